"""Optional: who is likely to take an offer (settings `audience`)."""

import time
from typing import Any

import dagster as dg

from recsys_assets import reporting
from recsys_assets.audience import build
from recsys_assets.audience.features import FEATURE_COLUMNS
from recsys_assets.audience.measure import METRICS
from recsys_assets.partitions import daily
from recsys_assets.pipeline import Pipeline, explained_failures
from recsys_assets.settings import load_settings
from recsys_assets.training.schedules import RETRIES, request_newest

_settings = load_settings()
# The dimension users stands before them where it tells the device, and is there at all (sql.users).
_USERS = _settings.audience.mobile_column and _settings.sql.url and _settings.sql.users
_BEHAVIOUR = ["interactions", *(["users"] if _USERS else [])]
_SHARED: dict[str, Any] = {
    "partitions_def": daily,
    "backfill_policy": dg.BackfillPolicy.single_run(),
    "group_name": "audience",
    "owners": reporting.OWNERS,
    "code_version": build.CODE_VERSION,
}


@dg.asset(
    **_SHARED,
    deps=_BEHAVIOUR,
    kinds={"polars", "parquet"},
    description=(
        "What every user's events of the window that ends with this day come to: when in the day, on which device, how "
        "many different items, how long ago, how often."
    ),
    metadata={
        "dagster/table_name": "user_features",
        "dagster/column_schema": reporting.schema(FEATURE_COLUMNS),
    },
)
def user_features(context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]) -> dg.MaterializeResult:
    versions: dict[str, str] = {}
    audience = pipeline.settings.audience
    with explained_failures(pipeline):
        for day in context.partition_keys:
            started = time.monotonic()
            info, fresh = build.make_features(pipeline, day)
            versions[day] = info["version"]
            if fresh:
                pipeline.warehouse.ensure_views("user_features", context.log.warning)
            asked = audience.mobile_field or audience.mobile_column
            context.add_asset_metadata(
                {
                    "dagster/partition_row_count": info["users"],
                    "users with one event": info["one_event"],
                    "users with a device": info["with_device"] if asked else "left out: no setting names the device",
                    "quartiles": reporting.table(
                        [
                            {
                                name: value if name == "feature" else reporting.number(value)
                                for name, value in row.items()
                            }
                            for row in info["quartiles"]
                        ],
                        ["feature", "0%", "25%", "50%", "75%", "100%"],
                    ),
                    "days without interactions": len(info["missing_days"]),
                    "seconds": round(time.monotonic() - started, 2),
                    **reporting.made(fresh, info["version"]),
                },
                partition_key=day,
            )
            _warn_of_gaps(context, day, info["missing_days"])
    return dg.MaterializeResult(data_version=reporting.data_version(versions))


@dg.asset(
    **_SHARED,
    deps=_BEHAVIOUR,
    kinds={"scikitlearn"},
    description=(
        "A linear support vector machine with calibrated probabilities: who took the offer in the days after earlier "
        "windows. Measured on the newest of these periods, beside 'most active users first'."
    ),
)
def propensity_model(context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]) -> dg.MaterializeResult:
    versions: dict[str, str] = {}
    with explained_failures(pipeline):
        for day in context.partition_keys:
            artifact, fresh = build.make_model(pipeline, day, context.log.info)
            info = artifact.info
            versions[day] = artifact.version
            left_out = "mobile" not in info["features"]
            metadata: dict[str, Any] = {
                **reporting.prefixed("metric", {name: each["model"]["mean"] for name, each in info["metrics"].items()}),
                "measured": reporting.table(_compared(info["metrics"])),
                "lift at": f"the first {info['budget']} users" if info["budget"] else "nobody reached the threshold",
                "share that took the offer": reporting.number(info["base_rate"]),
                "Brier score": reporting.number(info["brier"]),
                "Brier score of the base rate": reporting.number(info["brier_of_the_base_rate"]),
                "calibration": reporting.calibration_picture(
                    [(row["foretold"], row["taken"], row["low"], row["high"]) for row in info["calibration"]]
                ),
                "periods": reporting.table(info["periods"], ["behaviour up to", "used to", "users", "took the offer"]),
                "coefficients": reporting.table(
                    [
                        {"feature": name, "per standard deviation": reporting.number(value)}
                        for name, value in zip(info["features"], info["coefficients"], strict=True)
                    ]
                ),
                "mobile": "left out: nothing tells a device" if left_out else "used",
                "days without interactions": len(info["missing_days"]),
                "seconds": info["seconds"],
                **reporting.made(fresh, artifact.version),
                "artifact": dg.MetadataValue.path(str(artifact.path)),
            }
            context.add_asset_metadata(metadata, partition_key=day)
            _warn_of_gaps(context, day, info["missing_days"])
            auc = info["metrics"]["auc"]
            context.log.info(
                f"{day}: AUC {auc['model']['mean']:.3f}, most active first {auc['most active first']['mean']:.3f}"
            )
    return dg.MaterializeResult(data_version=reporting.data_version(versions))


def _compared(metrics: dict[str, Any]) -> list[dict[str, str]]:
    def shown(side: dict[str, float], sign: str = "") -> str:
        return f"{side['mean']:{sign}.4f} ({side['low']:{sign}.4f} to {side['high']:{sign}.4f})"

    return [
        {
            "metric": name,
            "model": shown(metrics[name]["model"]),
            "most active first": shown(metrics[name]["most active first"]),
            "difference": shown(metrics[name]["difference"], "+"),
        }
        for name in METRICS
        if name in metrics
    ]


@dg.asset(
    **_SHARED,
    deps=["user_features", "propensity_model"],
    kinds={"parquet", "csv"},
    description=(
        "The users likeliest to take the offer after this day, best first, above a probability and within a budget: "
        "as Parquet, CSV and LibSVM."
    ),
    metadata={
        "dagster/table_name": "audience",
        "dagster/column_schema": reporting.schema(build.AUDIENCE_COLUMNS),
    },
)
def audience(context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]) -> dg.MaterializeResult:
    versions: dict[str, str] = {}
    with explained_failures(pipeline):
        for day in context.partition_keys:
            started = time.monotonic()
            info, fresh = build.make_audience(pipeline, day)
            versions[day] = info["version"]
            if fresh:
                pipeline.warehouse.ensure_views("audience", context.log.warning)
            path = pipeline.tables.path("audience", day)
            metadata: dict[str, Any] = {
                "dagster/partition_row_count": info["users"],
                "out of users": info["of_users"],
                "takers expected": reporting.number(info["expected_takers"]),
                "LibSVM features": ", ".join(f"{n} {name}" for n, name in enumerate(info["features"], 1)),
                "seconds": round(time.monotonic() - started, 2),
                **reporting.made(fresh, info["version"]),
                **{
                    suffix[1:]: dg.MetadataValue.path(str(path.with_suffix(suffix)))
                    for suffix in (".parquet", ".csv", ".libsvm")
                },
            }
            if info["users"]:
                metadata["lowest probability"] = reporting.number(info["lowest_probability"])
                metadata["highest probability"] = reporting.number(info["highest_probability"])
            context.add_asset_metadata(metadata, partition_key=day)
            context.log.info(f"{day}: {info['users']} of {info['of_users']} users")
    return dg.MaterializeResult(data_version=reporting.data_version(versions))


def _warn_of_gaps(context: dg.AssetExecutionContext, day: str, missing: list[str]) -> None:
    if missing:
        context.log.warning(
            f"{day}: no interactions partition for {reporting.summary(missing)}; who was active then seems idle. "
            "Materialize interactions for them and then this day again."
        )


find_audience = dg.define_asset_job(
    "find_audience",
    dg.AssetSelection.groups("audience"),
    op_retry_policy=RETRIES,
    description="Features, model and audience of a day.",
)


@dg.schedule(
    cron_schedule="0 4 * * *",
    job=find_audience,
    execution_timezone=_settings.calendar.time_zone,
    description="Every night at 4: the audience at the end of the newest day that is over.",
)
def nightly_audience(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    return request_newest(context)


audience_assets = [user_features, propensity_model, audience]
