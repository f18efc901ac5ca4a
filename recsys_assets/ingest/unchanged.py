"""Which days need no run: looked at before one is begun, because Dagster takes longer to record a day than we to see
that it stands. (Of the 15 CPU seconds of a run over an unchanged year, 14 went into Dagster's own events.)
"""

from collections.abc import Callable, Sequence

import dagster as dg

from recsys_assets.ingest import listing
from recsys_assets.ingest.assets import cleaning_version, raw_stands, raw_version
from recsys_assets.pipeline import Pipeline

_ASSETS = [dg.AssetKey(name) for name in ("raw_events", "interactions", "rejected_events")]


def days_to_run(
    pipeline: Pipeline, instance: dg.DagsterInstance, days: Sequence[str], say: Callable[[str], None]
) -> list[str]:
    """The days from the first to the last that needs a run; none where all are unchanged. Says which are left out."""
    unchanged = unchanged_days(pipeline, instance, days)
    changed = [day for day in days if day not in unchanged]
    wanted = [day for day in days if changed and changed[0] <= day <= changed[-1]]  # a run takes a range
    if left_out := set(days) - set(wanted):
        say(f"{len(left_out)} of {len(days)} days are unchanged: the same objects, the same rules")
    if not wanted:  # a run would make the views where they are missing
        for table in ("raw_events", "interactions"):
            pipeline.warehouse.ensure_views(table, say)
    return wanted


def unchanged_days(pipeline: Pipeline, instance: dg.DagsterInstance, days: Sequence[str]) -> set[str]:
    """The days of which a run would keep every file as it is: made of the objects the bucket holds now, by the rules of
    the settings, with sound files, and recorded in `instance` by a run that came to its end.

    Raises:
        BucketError: the bucket cannot be listed.
    """
    recorded = set(days)
    for asset in _ASSETS:
        recorded &= instance.get_materialized_partitions(asset)
        recorded -= set(
            instance.event_log_storage.get_latest_asset_partition_materialization_attempts_without_materializations(
                asset
            )
        )
    candidates = [day for day in days if day in recorded]
    if not candidates:
        return set()
    found = listing.days_of(pipeline.bucket, pipeline.settings, candidates).days
    return {day for day in candidates if _stands(pipeline, day, listing.fingerprint(found[day]))}


def _stands(pipeline: Pipeline, day: str, fingerprint: str) -> bool:
    raw = pipeline.tables.sound_info("raw_events", day)
    cleaned = pipeline.tables.sound_info("interactions", day)
    return (
        raw is not None
        and cleaned is not None
        and raw_stands(raw, fingerprint, pipeline.settings.bucket)
        and cleaned["version"] == cleaning_version(pipeline, raw_version(raw))
    )
