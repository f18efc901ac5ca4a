"""Evaluation and promotion: one partition a day."""

import time
from dataclasses import asdict
from typing import Any

import dagster as dg
import polars as pl

from recsys_assets import reporting
from recsys_assets.evaluation.evaluate import CODE_VERSION, Sources, evaluate_day, gather_evidence, sources
from recsys_assets.evaluation.measure import HYBRID, MAIN_CUTOFF, POPULAR
from recsys_assets.evaluation.promotion import decide
from recsys_assets.evaluation.tasks import task_settings
from recsys_assets.partitions import daily
from recsys_assets.pipeline import Pipeline, explained_failures
from recsys_assets.settings import Settings, load_settings
from recsys_assets.storage.artifacts import version_of

_settings = load_settings()  # of the code versions: Dagster then marks what another setting outdates


def figures_recipe(settings: Settings) -> dict[str, Any]:
    """The settings that matter to a day's figures."""
    return {"evaluation": settings.evaluation.model_dump(), **task_settings(settings)}


def gate_recipe(settings: Settings) -> dict[str, Any]:
    """The settings that matter to a decision."""
    return {
        "promotion": settings.promotion.model_dump(),
        "bootstrap_samples": settings.evaluation.bootstrap_samples,
        **task_settings(settings),
    }


_METRIC_COLUMNS = {
    "day": ("DATE", "partition: the day that was predicted"),
    "split": (
        "VARCHAR",
        "next_day (also _warm, _cold: users with and without history), validation or test hold-out, all_users: lists "
        "of everybody",
    ),
    "model": ("VARCHAR", "hybrid, a member alone, or popularity_7d"),
    "metric": (
        "VARCHAR",
        "ndcg, recall, precision, hit_rate, average_precision, average_recall, coverage, diversity, ...",
    ),
    "k": ("INTEGER", "cut-off"),
    "value": ("DOUBLE", "mean over users"),
    "low": ("DOUBLE", "of the 95 % bootstrap interval, where there is one"),
    "high": ("DOUBLE", "of the same interval"),
    "users": ("BIGINT", "users measured"),
}


@dg.asset(
    partitions_def=daily,
    backfill_policy=dg.BackfillPolicy.single_run(),
    deps=["hybrid_model", "training_set"],
    group_name="evaluation",
    kinds={"parquet"},
    owners=reporting.OWNERS,
    code_version=f"{CODE_VERSION}.{version_of(**figures_recipe(_settings))}",
    description=(
        "How good the lists are: the models as they were before this day, measured on what users did on it (full "
        "ranking), beside popularity; and the published models on the frozen hold-outs. Paired 95 % intervals."
    ),
    metadata={"dagster/column_schema": reporting.schema(_METRIC_COLUMNS), "dagster/table_name": "metrics"},
    check_specs=[
        dg.AssetCheckSpec(
            "above_popularity",
            asset="evaluation",
            description="On the unseen day the hybrid's mean NDCG@10 is above popularity's.",
        )
    ],
)
def evaluation(context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]) -> dg.MaterializeResult:
    worse: list[str] = []
    versions: dict[str, str] = {}
    with explained_failures(pipeline):
        for day in context.partition_keys:
            started = time.monotonic()
            found = sources(pipeline, day)
            version = evaluation_version(pipeline, found.hybrid.version)
            info = pipeline.tables.sound_info("evaluation", day)
            unchanged = info is not None and info["version"] == version
            if unchanged:
                frame = pipeline.tables.read("evaluation", day)
            else:
                frame = evaluate_day(pipeline, found, context.log.info)
                pipeline.tables.publish_frame(
                    "evaluation", day, frame, {"version": version, "hybrid": found.hybrid.version}
                )
                pipeline.warehouse.ensure_views("evaluation", context.log.warning)
            metadata = _evaluation_metadata(frame, day)
            metadata |= {
                "seconds": round(time.monotonic() - started, 2),
                **reporting.made(not unchanged, version),
            }
            context.add_asset_metadata(metadata, partition_key=day)
            versions[day] = version
            gain = _value(frame, POPULAR, "hybrid_minus_this")
            if gain is not None and gain <= 0:
                worse.append(day)
    check = dg.AssetCheckResult(
        check_name="above_popularity",
        passed=not worse,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"not above popularity on {', '.join(worse)}" if worse else None,
        metadata={"days": len(context.partition_keys), "days not above popularity": len(worse)},
    )
    reporting.before_checks(context, "evaluation", versions)
    return dg.MaterializeResult(check_results=[check], data_version=reporting.data_version(versions))


def evaluation_version(pipeline: Pipeline, hybrid_version: str) -> str:
    """What a day's figures are made of."""
    frozen = pipeline.holdouts.current()
    return version_of(
        hybrid=hybrid_version,
        holdout=frozen.version if frozen else None,
        **figures_recipe(pipeline.settings),
        code=CODE_VERSION,
    )


def _value(frame: pl.DataFrame, model: str, metric: str, split: str = "next_day") -> float | None:
    rows = frame.filter(
        (pl.col("split") == split)
        & (pl.col("model") == model)
        & (pl.col("metric") == metric)
        & (pl.col("k") == MAIN_CUTOFF)
    )
    return float(rows["value"][0]) if len(rows) else None


def _evaluation_metadata(frame: pl.DataFrame, day: str) -> dict[str, Any]:
    """Numbers (which Dagster plots from day to day), a picture and a table."""
    metadata: dict[str, Any] = {"dagster/partition_row_count": len(frame)}
    next_day = frame.filter((pl.col("split") == "next_day") & (pl.col("k") == MAIN_CUTOFF))
    if not len(next_day):
        metadata["note"] = (
            "Nothing to measure on this day: no user did anything that a list could have predicted, or it is the first."
        )
    else:
        metadata["users measured"] = int(next_day["users"][0])
        for metric in ("ndcg", "recall", "precision", "hit_rate", "average_precision", "coverage", "diversity"):
            value = _value(frame, HYBRID, metric)
            if value is not None:
                metadata[f"{metric}@{MAIN_CUTOFF}"] = reporting.number(value)
        for row in next_day.filter(pl.col("metric") == "ndcg").to_dicts():
            if row["model"] != HYBRID:
                metadata[f"ndcg@{MAIN_CUTOFF} {row['model']}"] = reporting.number(row["value"])
        ranked = next_day.filter(pl.col("metric") == "ndcg").sort("value", descending=True).to_dicts()
        metadata["chart"] = reporting.bars_picture(
            f"NDCG@{MAIN_CUTOFF} on {day}, 95 % intervals",
            [(row["model"], row["value"], row["low"], row["high"]) for row in ranked],
        )
        gains = next_day.filter(pl.col("metric") == "hybrid_minus_this").sort("value").to_dicts()
        metadata["hybrid minus each"] = reporting.table(
            [
                {
                    "than": row["model"],
                    "by": f"{row['value']:+.4f}",
                    "95 % interval": f"{row['low']:+.4f} to {row['high']:+.4f}",
                    "hybrid is": "better" if row["low"] > 0 else "worse" if row["high"] < 0 else "no different",
                }
                for row in gains
            ]
        )
    for split in ("validation", "test"):
        value = _value(frame, HYBRID, "ndcg", split)
        if value is not None:
            metadata[f"ndcg@{MAIN_CUTOFF} frozen {split} hold-out"] = reporting.number(value)
    return metadata


_PROMOTION_COLUMNS = {
    "day": ("DATE", "partition: the model's day"),
    "model_version": ("VARCHAR", "of the hybrid that was judged"),
    "promoted": ("BOOLEAN", "it became the champion"),
    "reason": ("VARCHAR", "why, or why not"),
    "users": ("BIGINT", "measured on the unseen day"),
    "ndcg": ("DOUBLE", "NDCG@10 of the hybrid"),
    "champion_day": ("VARCHAR", "the champion before; null if there was none"),
    "champion_version": ("VARCHAR", "the champion before"),
    "champion_ndcg": ("DOUBLE", "NDCG@10 of the champion before, on the same users"),
    "over_popularity": ("DOUBLE", "mean difference from popularity"),
    "over_popularity_low": ("DOUBLE", "of its 95 % interval"),
    "over_popularity_high": ("DOUBLE", "of its 95 % interval"),
    "over_champion": ("DOUBLE", "mean difference from the champion before"),
    "over_champion_low": ("DOUBLE", "of its 90 % interval"),
    "over_champion_high": ("DOUBLE", "of its 90 % interval"),
    "over_champion_pooled": ("DOUBLE", "the same over all unseen days since the champion's, if there are several"),
    "over_champion_pooled_low": ("DOUBLE", "of its 90 % interval"),
    "over_champion_pooled_high": ("DOUBLE", "of its 90 % interval"),
    "pooled_days": ("BIGINT", "how many days these are"),
    "coverage": ("DOUBLE", "share of the catalogue in the lists' first ten"),
    "failed_checks": ("VARCHAR", "what is wrong with the model itself; null if nothing is"),
}


@dg.asset(
    partitions_def=daily,
    backfill_policy=dg.BackfillPolicy.single_run(),
    deps=["evaluation", "hybrid_model", "training_set"],
    group_name="evaluation",
    kinds={"json", "parquet"},
    owners=reporting.OWNERS,
    code_version=f"{CODE_VERSION}.{version_of(**gate_recipe(_settings))}",
    description=(
        "The gate: this day's model becomes the champion if it is newer, sound, above popularity, wide enough and not "
        "worse than the present champion on the same users of days neither has seen. Otherwise it says why not. "
        "`recsys champion` shows the timeline, `recsys rollback` goes back."
    ),
    metadata={"dagster/table_name": "promotions", "dagster/column_schema": reporting.schema(_PROMOTION_COLUMNS)},
)
def promotion(context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]) -> dg.MaterializeResult:
    versions: dict[str, str] = {}
    with explained_failures(pipeline):
        for day in sorted(context.partition_keys):
            started = time.monotonic()
            pipeline.need_table("evaluation", day)
            found = sources(pipeline, day)
            with pipeline.champion.lock():
                row, unchanged = _decided(pipeline, found)
            pipeline.warehouse.ensure_views("promotion", context.log.warning)
            verdict = "promoted" if row["promoted"] else "not promoted"
            context.log.info(f"{day}: {verdict}: {row['reason']}{' (unchanged)' if unchanged else ''}")
            metadata: dict[str, Any] = {
                "promoted": row["promoted"],
                "reason": row["reason"],
                "champion now": (pipeline.champion.read() or {}).get("day", "none"),
                "users measured": row["users"],
                "ndcg@10": reporting.number(row["ndcg"]),
                "coverage@10": reporting.number(row["coverage"]),
            }
            for name, value in (
                ("over popularity", row["over_popularity"]),
                ("over champion", row["over_champion"]),
                ("over champion, unseen days together", row["over_champion_pooled"]),
                ("champion", row["champion_ndcg"]),
            ):
                if value is not None:
                    metadata[f"ndcg@10 {name}"] = reporting.number(value)
            metadata |= {
                "seconds": round(time.monotonic() - started, 2),
                "model version": row["model_version"],
                **reporting.made(not unchanged, version := version_of(row=row)),
            }
            context.add_asset_metadata(metadata, partition_key=day)
            versions[day] = version
    return dg.MaterializeResult(data_version=reporting.data_version(versions))


def gate_version(pipeline: Pipeline) -> str:
    """The rules of the gate and of what it measures."""
    return version_of(**gate_recipe(pipeline.settings), code=CODE_VERSION)


def decision_stands(pipeline: Pipeline, day: str, version: str) -> bool:
    """Whether what was decided about this version of a day's hybrid is not decided again.

    A promotion that was carried out stands until it is rolled back, whatever the rules are now: to materialize a
    champion's day again must not turn its row into a refusal. A refusal stands while the rules and the champion do.
    A model that was refused is not compared again while there is a champion of a newer day, which it cannot follow.
    """
    champion = pipeline.champion.read()
    before = pipeline.tables.sound_info("promotion", day)
    if before is None or before["version"] != version:
        return False
    if before["promoted"]:
        return version in {move["version"] for move in pipeline.champion.standing()}
    if before.get("rules") != gate_version(pipeline):
        return False
    return before["champion"] == (champion["version"] if champion else None) or (
        champion is not None and bool(champion["day"] > day)
    )


def _decided(pipeline: Pipeline, found: Sources) -> tuple[dict[str, Any], bool]:
    """The row of `promotions` for a day, and whether it stood there already. To be called under the champion's lock."""
    if decision_stands(pipeline, found.day, found.hybrid.version):
        return pipeline.tables.read("promotion", found.day).to_dicts()[0], True
    evidence = gather_evidence(pipeline, found)
    decision = decide(evidence, pipeline.settings.promotion)
    figures = asdict(evidence)
    row = {
        "model_version": evidence.version,
        "promoted": decision.promote,
        "reason": decision.reason,
        "users": evidence.users,
        "ndcg": evidence.ndcg,
        "champion_day": evidence.champion_day,
        "champion_version": evidence.champion_version,
        "champion_ndcg": evidence.champion_ndcg,
        **_interval("over_popularity", figures["over_popularity"]),
        **_interval("over_champion", figures["over_champion"]),
        **_interval("over_champion_pooled", figures["over_champion_pooled"]),
        "pooled_days": evidence.pooled_days,
        "coverage": evidence.coverage,
        "failed_checks": "; ".join(evidence.failed_checks) or None,
    }
    info = {
        "version": evidence.version,
        "rules": gate_version(pipeline),
        "promoted": decision.promote,
        "champion": evidence.champion_version,
    }
    pipeline.tables.publish_frame("promotion", found.day, pl.DataFrame([row], schema=_PROMOTION_SCHEMA), info)
    if decision.promote:
        pipeline.champion.move(found.day, evidence.version, decision.reason)
    return row, False


_PROMOTION_SCHEMA: dict[str, Any] = {
    "model_version": pl.String,
    "promoted": pl.Boolean,
    "reason": pl.String,
    "users": pl.Int64,
    "ndcg": pl.Float64,
    "champion_day": pl.String,
    "champion_version": pl.String,
    "champion_ndcg": pl.Float64,
    "over_popularity": pl.Float64,
    "over_popularity_low": pl.Float64,
    "over_popularity_high": pl.Float64,
    "over_champion": pl.Float64,
    "over_champion_low": pl.Float64,
    "over_champion_high": pl.Float64,
    "over_champion_pooled": pl.Float64,
    "over_champion_pooled_low": pl.Float64,
    "over_champion_pooled_high": pl.Float64,
    "pooled_days": pl.Int64,
    "coverage": pl.Float64,
    "failed_checks": pl.String,
}


def _interval(name: str, interval: dict[str, float] | None) -> dict[str, float | None]:
    values = interval or {}
    return {
        name: values.get("mean"),
        f"{name}_low": values.get("low"),
        f"{name}_high": values.get("high"),
    }
