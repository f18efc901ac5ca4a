"""What is kept of the days that were trained: decided after each promotion."""

import dagster as dg
import polars as pl

from recsys_assets import reporting
from recsys_assets.partitions import daily
from recsys_assets.pipeline import Pipeline, explained_failures
from recsys_assets.storage.artifacts import version_of
from recsys_assets.trust.erasure import scan, unfinished
from recsys_assets.trust.retention import prune

CODE_VERSION = "1"
_SCHEMA = {
    "asset": pl.String,
    "of_day": pl.String,
    "version": pl.String,
    "bytes": pl.Int64,
    "pruned": pl.Boolean,
    "reason": pl.String,
}


@dg.asset(
    partitions_def=daily,
    backfill_policy=dg.BackfillPolicy.single_run(),
    deps=["promotion", "recommendations", "similar_items"],  # last: it must take nothing from under a run's feet
    group_name="evaluation",
    kinds={"parquet"},
    owners=reporting.OWNERS,
    code_version=CODE_VERSION,
    description=(
        "Which versions of training sets and models stay and which were pruned, each with the reason: the newest days, "
        "one a month, and the champions with all they were made of (settings `retention`)."
    ),
    metadata={
        "dagster/table_name": "retention",
        "dagster/column_schema": reporting.schema(
            {
                "day": ("DATE", "partition: the newest day of the run that decided"),
                "asset": ("VARCHAR", "training_set, a member, hybrid_model or propensity_model"),
                "of_day": ("VARCHAR", "the day of the version"),
                "version": ("VARCHAR", "which of that day's versions"),
                "bytes": ("BIGINT", "of its files; some are shared with other versions"),
                "pruned": ("BOOLEAN", "it was deleted"),
                "reason": ("VARCHAR", "why it stays; null where it was deleted"),
            }
        ),
    },
)
def retention(context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]) -> dg.MaterializeResult:
    with explained_failures(pipeline):
        verdicts, gained = prune(pipeline)
        pruned = [verdict for verdict in verdicts if verdict.stays is None]
        for verdict in pruned:
            context.log.info(f"pruned {verdict.made.asset} of {verdict.made.day}, version {verdict.made.version}")
        rows = [
            {
                "asset": verdict.made.asset,
                "of_day": verdict.made.day,
                "version": verdict.made.version,
                "bytes": verdict.bytes,
                "pruned": verdict.stays is None,
                "reason": verdict.stays,
            }
            for verdict in verdicts
        ]
        newest, versions = max(context.partition_keys), dict[str, str]()
        for day in context.partition_keys:  # a run decides once, whatever the number of its days
            of_day = rows if day == newest else []
            versions[day] = version_of(rows=of_day, code=CODE_VERSION)
            before = pipeline.tables.sound_info("retention", day)
            fresh = before is None or before.get("version") != versions[day]
            if fresh:
                info = {"rows": len(of_day), "version": versions[day]}
                pipeline.tables.publish_frame("retention", day, pl.DataFrame(of_day, schema=_SCHEMA), info)
            metadata = {"dagster/partition_row_count": len(of_day), **reporting.made(fresh, versions[day])}
            context.add_asset_metadata(metadata, partition_key=day)
        pipeline.warehouse.ensure_views("retention", context.log.warning)
        context.add_asset_metadata(
            {
                "versions kept": len(verdicts) - len(pruned),
                "versions pruned": len(pruned),
                "bytes freed": gained,
                "pruned": reporting.table(
                    [row for row in rows if row["pruned"]][:50], ["asset", "of_day", "version", "bytes"]
                ),
            },
            partition_key=newest,
        )
    return dg.MaterializeResult(data_version=reporting.data_version(versions))


@dg.asset_check(
    asset=retention,
    description="No user that was erased is in the store again, and every erasure came to its end. Looked at after "
    "each training, so every day.",
)
def no_erased_user(pipeline: dg.ResourceParam[Pipeline]) -> dg.AssetCheckResult:
    with explained_failures(pipeline):
        traces, open_ones = list(scan(pipeline)), unfinished(pipeline)
    places = [{"what": trace.what, "which": trace.which, "records": trace.records} for trace in traces]
    said = [f"{len(traces)} places hold records of erased users: run `recsys erase`"] if traces else []
    said += (
        [f"{len(open_ones)} erasures did not come to their end: run `recsys erase --user` again"] if open_ones else []
    )
    return dg.AssetCheckResult(
        passed=not said,
        description="; ".join(said) or None,
        metadata={
            "erased users": len(pipeline.tombstones.read().digests),
            "places": reporting.table(places[:50], ["what", "which", "records"]),
        },
    )
