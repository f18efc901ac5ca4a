"""Which days need no run: looked at before one is begun, because Dagster takes longer to record a day than we to see
that it stands (docs/trust.md has the seconds of both).

The look itself imports no Dagster, which would take longer than all else it does: it reads what Dagster recorded from
the SQLite file where Dagster keeps it, and asks Dagster where anything there is not as Dagster 1.13 leaves it.
"""

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import yaml

from recsys_assets.ingest import listing
from recsys_assets.ingest.versions import cleaning_version, raw_stands, raw_version
from recsys_assets.pipeline import Pipeline

_ASSETS = ("raw_events", "interactions", "rejected_events")
_REVISION = "29b539ebc72a"  # of the tables of Dagster's history; another one may mean something else by them
_MOVED_BY = {"storage", "event_log_storage", "local_artifact_storage", "instance_class"}  # entries of dagster.yaml
_NOT_MOVED = {  # but in the way it is shipped
    "module": "recsys_assets.history",
    "class": "BatchedEventLogStorage",
    "config": {"dagster_home": {"env": "DAGSTER_HOME"}},
}


def days_to_run(pipeline: Pipeline, days: Sequence[str], say: Callable[[str], None]) -> list[str]:
    """The days from the first to the last that needs a run; none where all are unchanged. Says which are left out."""
    unchanged = unchanged_days(pipeline, days)
    changed = [day for day in days if day not in unchanged]
    wanted = [day for day in days if changed and changed[0] <= day <= changed[-1]]  # a run takes a range
    if left_out := set(days) - set(wanted):
        say(f"{len(left_out)} of {len(days)} days are unchanged: the same objects, the same rules")
    if not wanted:  # a run would make the views where they are missing
        for table in ("raw_events", "interactions"):
            pipeline.warehouse.ensure_views(table, say)
    return wanted


def unchanged_days(pipeline: Pipeline, days: Sequence[str]) -> set[str]:
    """The days of which a run would keep every file as it is: made of the objects the bucket holds now, by the rules of
    the settings, with sound files, and recorded in the home's Dagster instance by a run that came to its end.

    Raises:
        BucketError: the bucket cannot be listed.
    """
    recorded = _read_recorded(pipeline.settings.home / "dagster")
    if recorded is None:
        recorded = _ask_recorded(pipeline)
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
        and cleaned["version"] == cleaning_version(pipeline.settings, raw_version(raw))
    )


def _read_recorded(home: Path) -> set[str] | None:
    """Days of which every asset's last run, in the history of a DAGSTER_HOME, materialized it. None: ask Dagster."""
    configuration, history = home / "dagster.yaml", home / "history" / "runs" / "index.db"
    if any((home / "alive").glob("*.lock")):  # a run at work, or one that was killed, whose end is not noted yet
        return None
    try:
        configured = yaml.safe_load(configuration.read_text(encoding="utf-8")) or {} if configuration.exists() else {}
        if any(configured.get(name) not in (None, _NOT_MOVED) for name in _MOVED_BY):
            return None
        if not history.exists():  # the first run of this home
            return set()
        with closing(sqlite3.connect(f"{history.as_uri()}?mode=ro", uri=True)) as connection:
            if connection.execute("SELECT version_num FROM alembic_version").fetchall() != [(_REVISION,)]:
                return None
            recorded = [_of_asset(connection, asset) for asset in _ASSETS]
    except (OSError, ValueError, AttributeError, yaml.YAMLError, sqlite3.Error):
        return None
    return set.intersection(*recorded)


def _of_asset(connection: sqlite3.Connection, asset: str) -> set[str]:
    def latest(event: str) -> dict[str, int]:  # one search in an index each
        return dict(
            connection.execute(
                "SELECT partition, max(id) FROM event_logs WHERE asset_key = ? AND dagster_event_type = ? "
                "AND partition IS NOT NULL GROUP BY partition",
                (f'["{asset}"]', event),
            )
        )

    planned, made = latest("ASSET_MATERIALIZATION_PLANNED"), latest("ASSET_MATERIALIZATION")
    return {day for day, event in made.items() if event > planned.get(day, 0)}


def _ask_recorded(pipeline: Pipeline) -> set[str]:
    """The same from Dagster, which may keep its history elsewhere. Also notes of dead runs that they failed."""
    import dagster as dg

    from recsys_assets.launch import open_instance

    recorded = []
    with open_instance(pipeline) as instance:
        for asset in map(dg.AssetKey, _ASSETS):
            without = (
                instance.event_log_storage.get_latest_asset_partition_materialization_attempts_without_materializations
            )
            recorded.append(instance.get_materialized_partitions(asset) - set(without(asset)))
    return set.intersection(*recorded)
