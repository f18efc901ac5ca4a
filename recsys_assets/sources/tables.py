"""Tables of a database as partitions of the store: dimensions as they stand, and ratings from a log of watches."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa

from recsys_assets.days import day_start_ms, shift
from recsys_assets.pipeline import Pipeline
from recsys_assets.settings import SqlClicksSettings, SqlDimensionSettings
from recsys_assets.sources.database import Clock, Database, batches, between, source, timed, without_time
from recsys_assets.sources.sql import plain
from recsys_assets.storage import files
from recsys_assets.storage.tables import info_text
from recsys_assets.storage.tombstones import Erased
from recsys_assets.storage.warehouse import scratch


def _arrow_type(kind: Any) -> pa.DataType:
    if isinstance(kind, sa.Boolean):
        return pa.bool_()
    if isinstance(kind, sa.Integer):
        return pa.int64()
    if isinstance(kind, sa.Numeric | sa.Float):  # from SQLAlchemy 2.1 on not the same
        return pa.float64()
    return pa.string()


def snapshot_dimension(
    pipeline: Pipeline, database: Database, setting: str, settings: SqlDimensionSettings, table: str, day: str
) -> dict[str, Any]:
    """Publishes a dimension as it stands now as the day's partition of a table. Returns {"rows", "columns"}, and of
    `users` also {"key", "erased"}: the columns of its key, and how many rows were left out.

    Whole numbers, numbers and truth values stay what they are; everything else is text. Erased users are left out of
    `users`: a row is theirs if a text in it, or its key, is the id.

    Raises:
        InputError: a table, a column or a key is not as the settings say, or the database cannot be read.
    """

    def write(path: Path, connection: sa.Connection) -> dict[str, Any]:
        roles = {name: name for name in settings.columns}
        read = source(connection, setting, settings.table, roles, settings.key)
        columns = read.columns or {column.name: column for column in read.table.columns}
        read = type(read)(read.table, {}, read.key)
        schema = pa.schema({name: _arrow_type(column.type) for name, column in columns.items()})
        erased, key = pipeline.tombstones.read(), [column.name for column in read.key]
        named = [field.name for field in schema if field.name in key or pa.types.is_string(field.type)]
        count = left_out = 0
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for rows in batches(connection, setting, read, columns, pipeline.settings.sql.batch_rows):
                if table == "users" and erased:
                    kept = [row for row in rows if not any(_is_of(row[name], erased) for name in named)]
                    left_out += len(rows) - len(kept)
                    rows = kept
                count += len(rows)
                writer.write_batch(_batch(rows, schema))
            info: dict[str, Any] = {"rows": count, "columns": list(columns)}
            info |= {"key": key, "erased": left_out} if table == "users" else {}
            writer.add_key_value_metadata({"recsys": info_text(info)})
        return info

    with files.replacing(pipeline.tables.path(table, day), unless_equal=True) as temporary:
        return database.reading(lambda connection: write(temporary, connection))


def _is_of(value: Any, erased: Erased) -> bool:
    return value is not None and str(plain(value)).strip() in erased


def _batch(rows: list[Mapping[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    def value(found: Any, kind: pa.DataType) -> Any:
        if found is None:
            return None
        if pa.types.is_string(kind):
            return str(plain(found))
        return float(found) if pa.types.is_floating(kind) else found

    return pa.record_batch(
        [pa.array([value(row[field.name], field.type) for row in rows], field.type) for field in schema], schema
    )


_WATCHES = pa.schema(
    {"user_id": pa.string(), "item_id": pa.string(), "ms": pa.int64(), "seconds": pa.float64(), "length": pa.float64()}
)
_CLICKS = pa.schema({"user_id": pa.string(), "item_id": pa.string(), "ms": pa.int64()})
_DAY_MS = 86_400_000

RATING_COLUMNS = {
    "user_id": ("VARCHAR", "as in the tables"),
    "item_id": ("VARCHAR", "the programme"),
    "rating": ("DOUBLE", "highest share of the programme that the user watched at one go, 0 to 1; 0 if only clicked"),
    "watches": ("DOUBLE", "times watched, at most the 95th percentile of all pairs that were watched"),
    "clicks": ("DOUBLE", "times clicked, at most the 95th percentile of all pairs that were clicked"),
    "click_recency_days": ("DOUBLE", "days from the last click to the end of the partition's day; null without one"),
}


def rate_watches(pipeline: Pipeline, database: Database, day: str) -> dict[str, Any]:
    """Publishes `watch_ratings` of a day: RATING_COLUMNS for every (user, programme) of the window that ends with it.

    Percentiles are interpolated linearly. Returns: pairs, both percentiles, and the rows that were set aside, with why.

    Raises:
        InputError: a table, a column or a key is not as the settings say, or the database cannot be read.
    """
    folder = pipeline.settings.store / files.temporary_name()
    pipeline.settings.store.mkdir(parents=True, exist_ok=True)
    files.remove_leftovers(pipeline.settings.store)
    folder.mkdir()
    try:
        lost = database.reading(lambda connection: _fetch(pipeline, connection, day, folder))
        end = day_start_ms(shift(day, 1), pipeline.settings.calendar.time_zone)
        with scratch(pipeline.settings.store) as connection:
            connection.read_parquet(str(folder / "watches.parquet")).create_view("watch_rows")
            connection.read_parquet(str(folder / "clicks.parquet")).create_view("click_rows")
            connection.execute(_PAIRS)
            counted = connection.execute(
                "SELECT count(*), quantile_cont(watches, 0.95) FILTER (watches > 0), "
                "quantile_cont(clicks, 0.95) FILTER (clicks > 0) FROM pairs"
            ).fetchall()[0]
            pairs, most_watches, most_clicks = counted
            odd = connection.execute(_ODD).fetchall()[0]
            reasons = ("watches without a length", "watches without seconds", "watches longer than the programme")
            info = {
                "pairs": pairs,
                "watches at most": most_watches,
                "clicks at most": most_clicks,
                "rows": {**lost, **dict(zip(reasons, odd, strict=True))},
            }

            def write(path: Path) -> None:
                _write(connection, path, end, info)

            pipeline.tables.publish("watch_ratings", day, write, unless_equal=True)
    finally:
        files.remove_folder(folder)
    return info


def _write(connection: duckdb.DuckDBPyConnection, path: Path, end: int, info: dict[str, Any]) -> None:
    target, text = (str(each).replace("'", "''") for each in (path, info_text(info)))
    connection.execute(
        f"""COPY (
            SELECT user_id, item_id, rating,
                least(watches, coalesce({info["watches at most"] or 0}::DOUBLE, 0)) AS watches,
                least(clicks, coalesce({info["clicks at most"] or 0}::DOUBLE, 0)) AS clicks,
                ({end} - last_click) / {_DAY_MS}.0::DOUBLE AS click_recency_days
            FROM pairs ORDER BY user_id, item_id
        ) TO '{target}' (FORMAT parquet, COMPRESSION zstd, KV_METADATA {{recsys: '{text}'}})"""
    )


_PAIRS = """
CREATE TEMP TABLE pairs AS
SELECT user_id, item_id, coalesce(rating, 0) AS rating, coalesce(watches, 0)::DOUBLE AS watches,
    coalesce(clicks, 0)::DOUBLE AS clicks, last_click
FROM (
    SELECT user_id, item_id, max(least(seconds / length, 1.0)) AS rating, count(*) AS watches
    FROM watch_rows WHERE length > 0 AND seconds >= 0 GROUP BY ALL
) FULL JOIN (
    SELECT user_id, item_id, count(*) AS clicks, max(ms) AS last_click FROM click_rows GROUP BY ALL
) USING (user_id, item_id)"""

_ODD = """
SELECT count(*) FILTER (length IS NULL OR NOT length > 0),
    count(*) FILTER (length > 0 AND (seconds IS NULL OR NOT seconds >= 0)),
    count(*) FILTER (length > 0 AND seconds > length)
FROM watch_rows"""


def _fetch(pipeline: Pipeline, connection: sa.Connection, day: str, folder: Path) -> dict[str, int]:
    """The window's watches and clicks as Parquet files. Returns counts of rows that cannot be used."""
    settings = pipeline.settings.sql
    assert settings.watches is not None
    lost: dict[str, int] = {}
    sections: tuple[tuple[str, SqlClicksSettings | None, pa.Schema], ...] = (
        ("watches", settings.watches, _WATCHES),
        ("clicks", settings.clicks, _CLICKS),
    )
    for name, section, schema in sections:
        count = 0
        with pq.ParquetWriter(folder / f"{name}.parquet", schema) as writer:
            if section is not None:
                for rows in _usable(pipeline, connection, f"sql.{name}", section, day, schema, lost):
                    count += len(rows)
                    writer.write_batch(_batch(rows, schema))
        lost[f"{name} used"] = count
    return lost


def _usable(
    pipeline: Pipeline,
    connection: sa.Connection,
    setting: str,
    section: SqlClicksSettings,
    day: str,
    schema: pa.Schema,
    lost: dict[str, int],
) -> Iterator[list[Mapping[str, Any]]]:
    extra = [name for name in ("seconds", "length") if name in schema.names]
    read = timed(connection, setting, section, {name: getattr(section, name) for name in extra})
    clock = Clock(setting, section, read)
    first = shift(day, 1 - pipeline.settings.sql.watch_window_days)
    condition = between(read, clock, first, day, pipeline.settings.calendar.time_zone)
    nobody = theirs = 0
    erased = pipeline.tombstones.read()
    for rows in batches(connection, setting, read, read.columns, pipeline.settings.sql.batch_rows, condition):
        kept = [row for row in rows if row["user"] is not None and row["item"] is not None]
        nobody += len(rows) - len(kept)
        if erased:
            others = [row for row in kept if not _is_of(row["user"], erased)]
            theirs += len(kept) - len(others)
            kept = others
        yield [
            {
                "user_id": row["user"],
                "item_id": row["item"],
                "ms": clock.ms(row["time"]),
                **{each: row[each] for each in extra},
            }
            for row in kept
        ]
    lost[f"{setting.removeprefix('sql.')} without user or programme"] = nobody
    if erased:
        lost[f"{setting.removeprefix('sql.')} of erased users"] = theirs
    lost[f"{setting.removeprefix('sql.')} without a time"] = without_time(connection, read)
