"""Optional: metrics for a dashboard and the champion's files, in buckets of yours (settings `publish`)."""

import time

import dagster as dg

from recsys_assets import reporting
from recsys_assets.partitions import daily
from recsys_assets.pipeline import Pipeline, explained_failures
from recsys_assets.publishing.publish import publish_champion, publish_metrics

CODE_VERSION = "1"


@dg.asset(
    partitions_def=daily,
    backfill_policy=dg.BackfillPolicy.single_run(),
    deps=["evaluation"],
    group_name="publishing",
    kinds={"json"},
    owners=reporting.OWNERS,
    code_version=CODE_VERSION,
    description=(
        "The metrics of every measured day as JSON for a dashboard, a document a metric: precision, recall, MAP, MAR, "
        "NDCG, diversity of the measured users' lists and of everybody's, each beside popularity's."
    ),
)
def published_metrics(context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]) -> dg.MaterializeResult:
    started, url = time.monotonic(), pipeline.settings.publish.metrics_url
    with explained_failures(pipeline):
        assert url is not None
        for day in context.partition_keys:
            pipeline.need_table("evaluation", day)
        rows, version = publish_metrics(pipeline, url)
    for day in context.partition_keys:
        context.add_asset_metadata(
            {
                "url": url,
                "days published": reporting.table([{"document": name, "days": count} for name, count in rows.items()]),
                "seconds": round(time.monotonic() - started, 2),
                **reporting.made(True, version),
            },
            partition_key=day,
        )
    return dg.MaterializeResult(data_version=dg.DataVersion(version))


@dg.asset(
    partitions_def=daily,
    backfill_policy=dg.BackfillPolicy.single_run(),
    deps=["promotion"],
    group_name="publishing",
    kinds={"json", "parquet"},
    owners=reporting.OWNERS,
    code_version=CODE_VERSION,
    description=(
        "The champion's files in a bucket, for a service elsewhere: below its day and version, the manifest with every "
        "file's SHA-256 after them, and champion.json, which names the one in use, last."
    ),
)
def published_champion(context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]) -> dg.MaterializeResult:
    started, url = time.monotonic(), pipeline.settings.publish.model_url
    with explained_failures(pipeline):
        assert url is not None
        found = publish_champion(pipeline, url)
    for day in context.partition_keys:
        context.add_asset_metadata(
            {
                "url": url,
                "champion": found["day"],
                "files": found["files"],
                "bytes": found["bytes"],
                "seconds": round(time.monotonic() - started, 2),
                **reporting.made(not found["unchanged"], found["version"]),
            },
            partition_key=day,
        )
    return dg.MaterializeResult(data_version=dg.DataVersion(found["version"]))
