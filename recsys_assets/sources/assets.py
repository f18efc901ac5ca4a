"""Optional: tables of a database as a source (settings `sql`)."""

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import dagster as dg

from recsys_assets import reporting
from recsys_assets.partitions import daily
from recsys_assets.pipeline import Pipeline, explained_failures
from recsys_assets.settings import Settings, SqlDimensionSettings, load_settings
from recsys_assets.sources.database import Database
from recsys_assets.sources.sql import load_day
from recsys_assets.sources.tables import RATING_COLUMNS, rate_watches, snapshot_dimension
from recsys_assets.storage import files
from recsys_assets.storage.artifacts import version_of
from recsys_assets.training.schedules import INGEST_ASSETS, RETRIES, last_complete_days

CODE_VERSION = "1"
_SHARED: dict[str, Any] = {
    "partitions_def": daily,
    "backfill_policy": dg.BackfillPolicy.single_run(),
    "group_name": "sources",
    "kinds": {"sql"},
    "owners": reporting.OWNERS,
    "code_version": CODE_VERSION,
}


@dg.asset(
    **_SHARED,
    description=(
        "The day's rows of the tables in sql.events, as log objects in the bucket beside all others: raw_events reads "
        "them from there. A day that is read again rewrites only the objects whose rows changed."
    ),
)
def sql_events(context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]) -> dg.MaterializeResult:
    versions: dict[str, str] = {}
    with explained_failures(pipeline):
        database = Database(pipeline.settings.sql)
        progress = reporting.Progress(context.log.info)
        for day in context.partition_keys:
            started = time.monotonic()
            loaded = load_day(pipeline, database, day)
            rows = sum(each.rows for each in loaded.values())
            versions[day] = version_of(**{name: each.version for name, each in loaded.items()})
            context.add_asset_metadata(
                {
                    "dagster/partition_row_count": rows,
                    "database": database.name,
                    "tables": reporting.table([{"name": name, **asdict(each)} for name, each in loaded.items()]),
                    "seconds": round(time.monotonic() - started, 2),
                    **reporting.made(any(each.changed or each.removed for each in loaded.values()), versions[day]),
                },
                partition_key=day,
            )
            progress(f"{day}: {rows} rows")
    return dg.MaterializeResult(data_version=reporting.data_version(versions))


def _published(
    pipeline: Pipeline, table: str, day: str, publish: Callable[[], dict[str, Any]]
) -> tuple[dict[str, Any], bool, str]:
    """What `publish` says of a partition, whether its file is another one now, and the version: what was read of a
    database can be told by its content only."""
    path = pipeline.tables.path(table, day)
    before = files.sha256(path) if path.exists() else None
    info, now = publish(), files.sha256(path)
    return info, now != before, now[:16]


def _dimension(
    table: str, about: str, section: Callable[[Settings], SqlDimensionSettings | None]
) -> dg.AssetsDefinition:
    @dg.asset(name=table, **_SHARED, description=about, metadata={"dagster/table_name": table})
    def dimension(context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]) -> dg.MaterializeResult:
        settings, versions = section(pipeline.settings), dict[str, str]()
        with explained_failures(pipeline):
            assert settings is not None
            database = Database(pipeline.settings.sql)
            for day in context.partition_keys:
                started = time.monotonic()
                snapshot = partial(snapshot_dimension, pipeline, database, f"sql.{table}", settings, table, day)
                info, fresh, versions[day] = _published(pipeline, table, day, snapshot)
                pipeline.warehouse.ensure_views(table, context.log.warning)
                context.add_asset_metadata(
                    {
                        "dagster/partition_row_count": info["rows"],
                        "columns": ", ".join(info["columns"]),
                        **({"erased users left out": info["erased"]} if info.get("erased") else {}),
                        "database": database.name,
                        "seconds": round(time.monotonic() - started, 2),
                        **reporting.made(fresh, versions[day]),
                    },
                    partition_key=day,
                )
        return dg.MaterializeResult(data_version=reporting.data_version(versions))

    return dimension


catalogue = _dimension(
    "catalogue", "The table of items as it stood when this day was read (view catalogue).", lambda s: s.sql.catalogue
)
users = _dimension(
    "users", "The table of users as it stood when this day was read (view users).", lambda s: s.sql.users
)


@dg.asset(
    **_SHARED,
    description=(
        "From the tables of watches and clicks, for every user and programme up to this day: the highest share "
        "watched, how often watched and clicked (outliers clipped), and how long ago the last click was."
    ),
    metadata={"dagster/table_name": "watch_ratings", "dagster/column_schema": reporting.schema(RATING_COLUMNS)},
)
def watch_ratings(context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]) -> dg.MaterializeResult:
    versions: dict[str, str] = {}
    with explained_failures(pipeline):
        database = Database(pipeline.settings.sql)
        for day in context.partition_keys:
            started = time.monotonic()
            rate = partial(rate_watches, pipeline, database, day)
            info, fresh, versions[day] = _published(pipeline, "watch_ratings", day, rate)
            pipeline.warehouse.ensure_views("watch_ratings", context.log.warning)
            context.add_asset_metadata(
                {
                    "dagster/partition_row_count": info["pairs"],
                    "rows": reporting.table([{"what": name, "rows": count} for name, count in info["rows"].items()]),
                    **{name: info[name] for name in ("watches at most", "clicks at most") if info[name] is not None},
                    "database": database.name,
                    "seconds": round(time.monotonic() - started, 2),
                    **reporting.made(fresh, versions[day]),
                },
                partition_key=day,
            )
    return dg.MaterializeResult(data_version=reporting.data_version(versions))


def sql_assets(settings: Settings) -> list[dg.AssetsDefinition]:
    """Those that the settings name tables for."""
    sql = settings.sql
    wanted = ((sql_events, sql.events), (catalogue, sql.catalogue), (users, sql.users), (watch_ratings, sql.watches))
    return [asset for asset, named in wanted if named]


load_tables = dg.define_asset_job(
    "load_tables",
    dg.AssetSelection.groups("sources") | INGEST_ASSETS,
    op_retry_policy=RETRIES,
    description="A day's rows of the database, and with them raw_events and interactions.",
)


@dg.schedule(
    cron_schedule="0 2 * * *",
    job=load_tables,
    execution_timezone=load_settings().calendar.time_zone,
    description="Every night at 2: the newest days that are over (sql.reread_days), since rows may come late.",
)
def nightly_tables(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    days = last_complete_days(context, load_settings().sql.reread_days)
    if not days:
        return dg.SkipReason("no day of the calendar is over yet")
    return dg.RunRequest(
        run_key=f"{days[-1]}:{context.scheduled_execution_time:%Y%m%d}",
        tags={
            "dagster/asset_partition_range_start": days[0],
            "dagster/asset_partition_range_end": days[-1],
        },
    )
