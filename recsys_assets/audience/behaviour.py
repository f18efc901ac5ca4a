"""The events that audiences are found in, and the device each tells, read from the store."""

import json
from typing import Any

import polars as pl

from recsys_assets.audience.features import takes
from recsys_assets.days import shift
from recsys_assets.ingest.decode import Rejection, split
from recsys_assets.pipeline import InputError, Pipeline
from recsys_assets.storage.artifacts import version_of
from recsys_assets.storage.warehouse import scratch

_DEVICES = "devices"
_DEVICE_SCHEMA = pl.Schema({"source_key": pl.String(), "record": pl.Int32(), "mobile": pl.Boolean()})
_EVENT = ["user_id", "item_id", "action", "ms"]

# Records are numbered as ingest.validate numbers them: an object that parses as an array is unnested whole, any other
# is cut by `split`.
_ARRAYS = """
SELECT key AS source_key, unnest(range(len(list)))::INTEGER AS record, unnest(list).{field} AS value
FROM (
    SELECT key, TRY(from_json(decode(content), {shape})) AS list FROM read_parquet($raw)
    WHERE reason IS NULL AND starts_with(TRY(decode(content)), '[')
        AND TRY(json_array_length(decode(content))) IS NOT NULL)"""
_OTHERS = """
SELECT key, content FROM read_parquet($raw)
WHERE reason IS NOT NULL OR NOT coalesce(starts_with(TRY(decode(content)), '['), false)
    OR TRY(json_array_length(decode(content))) IS NULL"""


def days_between(pipeline: Pipeline, first: str, last: str) -> tuple[dict[str, str], list[str]]:
    """Day -> version of its interactions, and the days that have none."""
    versions, missing, day = {}, [], first
    while day <= last:
        info = pipeline.tables.info("interactions", day)
        if info is None:
            missing.append(day)
        else:
            versions[day] = str(info["version"])
        day = shift(day, 1)
    return versions, missing


def read_events(pipeline: Pipeline, versions: dict[str, str]) -> pl.DataFrame:
    """user_id, item_id, ms (UTC), day (partition), taken (bool: the event looked for), mobile (bool, null: not told).

    An object uploaded again under another day repeats its events there: the earliest day keeps them
    (training/merge.py).

    Args:
        versions: of the interactions, for each day that is to be read.
    """
    field, parts = pipeline.settings.audience.mobile_field, []
    for day, version in versions.items():
        part = (
            pl.scan_parquet(pipeline.tables.path("interactions", day))
            .filter(pl.col("reason").is_null())
            .with_columns(
                ms=pl.col("timestamp").dt.epoch("ms"), day=pl.lit(day), taken=takes(pipeline.settings.audience)
            )
        )
        if field is None:
            part = part.with_columns(mobile=pl.lit(None, pl.Boolean))
        else:
            part = part.join(_devices(pipeline, field, day, version).lazy(), on=["source_key", "record"], how="left")
        parts.append(part.select(*_EVENT, "day", "taken", "mobile"))
    if not parts:
        kinds = {**dict.fromkeys(("user_id", "item_id", "day"), pl.String), "ms": pl.Int64}
        return pl.DataFrame(schema={**kinds, "taken": pl.Boolean, "mobile": pl.Boolean})
    return (
        pl.concat(parts)
        .group_by(_EVENT)
        .agg(pl.col("day").min(), pl.col("taken").max(), pl.col("mobile").max())
        .drop("action")
        .collect(engine="streaming")
    )


def _devices(pipeline: Pipeline, field: str, day: str, version: str) -> pl.DataFrame:
    """_DEVICE_SCHEMA of the day's raw records that tell a device; kept, so that a day's records are parsed once."""
    values = pipeline.settings.audience.mobile_values
    made_of = version_of(field=field, values=values, interactions=version)
    info = pipeline.tables.sound_info(_DEVICES, day)
    if info is None or info["version"] != made_of:
        frame = _tell_devices(pipeline, field, values, day)
        pipeline.tables.publish_frame(_DEVICES, day, frame, {"version": made_of, "records": len(frame)})
    return pipeline.tables.read(_DEVICES, day)


def _tell_devices(pipeline: Pipeline, field: str, values: list[str], day: str) -> pl.DataFrame:
    raw = {"raw": str(pipeline.need_table("raw_events", day))}
    shape = "'" + json.dumps([{field: "VARCHAR"}], ensure_ascii=False).replace("'", "''") + "'"
    name = '"' + field.replace('"', '""') + '"'
    with scratch(pipeline.settings.store) as connection:
        arrays = connection.sql(_ARRAYS.format(field=name, shape=shape), params=raw).to_arrow_table()
        others = connection.execute(_OTHERS, raw)
        rows: list[tuple[str, int, str | None]] = []
        while fetched := others.fetchmany(20):
            for key, content in fetched:
                rows += [
                    (key, record, _value(piece, field))
                    for record, piece in split(content or b"")
                    if not isinstance(piece, Rejection)
                ]
    cut = pl.DataFrame(rows, schema={"source_key": pl.String, "record": pl.Int32, "value": pl.String}, orient="row")
    return (
        pl.concat([pl.DataFrame(arrays, schema=cut.schema), cut])
        .filter(pl.col("value").is_not_null())
        .with_columns(mobile=pl.col("value").is_in(values))
        .select(*_DEVICE_SCHEMA)
        .cast(_DEVICE_SCHEMA)
        .sort("source_key", "record")
    )


def _value(record: bytes, field: str) -> str | None:
    try:
        found: Any = json.loads(record)
    except ValueError:
        return None
    value = found.get(field) if isinstance(found, dict) else None
    return value if value is None or isinstance(value, str) else json.dumps(value)


def mobile_of_users(pipeline: Pipeline, features: pl.DataFrame, day: str) -> tuple[pl.DataFrame, str | None]:
    """The features with `mobile` from the dimension `users` (settings audience.mobile_column) as it was on a day or
    before it, and that partition; null, and None, where there was none yet.

    Raises:
        InputError: the dimension lacks a column, or names a user twice.
    """
    audience = pipeline.settings.audience
    if (column := audience.mobile_column) is None or (found := users_day(pipeline, day)) is None:
        return features, None
    users = pipeline.tables.read("users", found)
    if absent := [name for name in (audience.user_column, column) if name not in users.columns]:
        raise InputError(
            f"users of {found} has no column {', '.join(absent)} (audience.user_column, audience.mobile_column); "
            f"it has {', '.join(users.columns)}"
        )
    told = users.select(
        user_id=pl.col(audience.user_column).cast(pl.String),
        mobile=pl.col(column).cast(pl.String).is_in(audience.mobile_values).cast(pl.Float64),
    ).drop_nulls("user_id")
    if told["user_id"].is_duplicated().any():
        raise InputError(f"users of {found}: {audience.user_column} (audience.user_column) is not unique")
    columns = features.columns
    return features.drop("mobile").join(told, on="user_id", how="left").select(columns).sort("user_id"), found


def users_day(pipeline: Pipeline, day: str) -> str | None:
    """The newest partition of the dimension `users` up to a day."""
    return max((each for each in pipeline.tables.days("users") if each <= day), default=None)
