"""A day's interactions, the items and the users as CSV files, by the schemas of the datasets they go to.

    PREFIX/interactions/DAY.csv   the day's kept records: one file is a day, the folder is everything imported so far
    PREFIX/waiting/DAY.csv        the same, until it is the day's turn: an import of everything takes the whole folder
    PREFIX/items/DAY.csv          every item of the window that ends with the day
    PREFIX/users/DAY.csv          every user of it

Personalize's CSV: a header without quotes, text in quotes, a backslash before a quote or a backslash, a record a line.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl

from recsys_assets.days import shift
from recsys_assets.personalize.service import Personalize, region_of
from recsys_assets.pipeline import InputError, Pipeline
from recsys_assets.settings import BucketSettings, PersonalizeSettings
from recsys_assets.storage.bucket import Bucket, open_bucket
from recsys_assets.storage.tombstones import Erased
from recsys_assets.storage.warehouse import scratch

WAITING_ROOM = "waiting"
_LONGEST_ID = 256  # characters, Personalize's limit
_MOST_KINDS_OF_EVENT = 10  # together with the optional columns of the interactions
_REQUIRED = {"interactions": ("USER_ID", "ITEM_ID", "TIMESTAMP"), "items": ("ITEM_ID",), "users": ("USER_ID",)}


@dataclass(frozen=True)
class Field:
    """A field of a dataset's Avro schema."""

    name: str
    types: tuple[str, ...]

    @property
    def nullable(self) -> bool:
        return "null" in self.types


def schema_fields(schema: str, kind: str) -> list[Field]:
    """The fields of an Avro schema, in order.

    Raises:
        InputError: it lacks a field that Personalize requires.
    """
    fields = [
        Field(str(each["name"]), tuple([each["type"]] if isinstance(each["type"], str) else each["type"]))
        for each in json.loads(schema)["fields"]
    ]
    if missing := [name for name in _REQUIRED[kind] if name not in {field.name for field in fields}]:
        raise InputError(f"the schema of the dataset of {kind} has no {', '.join(missing)}")
    return fields


@lru_cache(maxsize=1)
def _opened(settings: PersonalizeSettings, name: str, home: Path) -> Bucket:
    """Kept open: to open it takes boto3 half a second, and the sensor looks every minute."""
    where = {"region": region_of(settings), "endpoint_url": settings.s3_endpoint_url, "profile": settings.profile}
    return open_bucket(BucketSettings.model_validate({"url": f"s3://{name}", **where}), home)


class Exports:
    """The bucket that Personalize reads from, and what lies where in it."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._settings, self._home = pipeline.settings.personalize, pipeline.settings.home
        assert self._settings.url is not None
        self._name, _, prefix = self._settings.url.removeprefix("s3://").partition("/")
        self.root = f"{prefix}/" if prefix else ""

    @property
    def bucket(self) -> Bucket:
        return _opened(self._settings, self._name, self._home)

    def key(self, kind: str, day: str) -> str:
        return f"{self.root}{kind}/{day}.csv"

    def location(self, kind: str, day: str | None = None) -> str:
        """Where Personalize finds a file; without a day, the whole folder."""
        return f"s3://{self._name}/" + (self.key(kind, day) if day else f"{self.root}{kind}/")

    def days(self, kind: str) -> dict[str, dict[str, Any]]:
        """Day -> etag and bytes of its file."""
        found = {}
        for entry in self.bucket.level(f"{self.root}{kind}/")[0]:
            name = entry.key.rpartition("/")[2]
            if name.endswith(".csv"):
                found[name.removesuffix(".csv")] = {"etag": entry.etag, "bytes": entry.size}
        return found


def export_day(
    pipeline: Pipeline, service: Personalize, exports: Exports, day: str, before: dict[str, Any] | None
) -> dict[str, Any]:
    """Writes the day's files, those that are not there already as they would be written.

    Args:
        before: what this returned the last time.

    Returns: kind -> key, sha256, etag, rows, bytes, columns, left_out (rows whose ids Personalize does not take), fresh
        (written now).

    Raises:
        InputError: a column that the schema requires is not to be had, or the day has no interactions partition.
        BucketError: a file cannot be written.
    """
    made: dict[str, Any] = {}
    for kind, dataset in service.datasets().items():
        fields = schema_fields(service.schema(dataset), kind)
        _check(pipeline, kind, fields)
        frame, left_out = _legal(_FRAMES[kind](pipeline, day))
        content = to_csv(frame, fields, kind)
        digest = hashlib.sha256(content).hexdigest()
        last = (before or {}).get(kind, {})
        key = str(last.get("key", ""))
        there = exports.bucket.head(key) if key else None
        fresh = there is None or last.get("sha256") != digest or last.get("etag") != there.etag
        if fresh:
            key = exports.key(WAITING_ROOM if kind == "interactions" else kind, day)
            exports.bucket.put(key, content)
            there = exports.bucket.head(key)
        made[kind] = {
            "key": key,
            "sha256": digest,
            "etag": there.etag if there else "",
            "rows": len(frame),
            "bytes": len(content),
            "columns": [field.name for field in fields],
            "left_out": left_out,
            "fresh": fresh,
        }
    return made


def admit(exports: Exports, day: str) -> str | None:
    """Copies a day's interactions from the waiting room to the others. Returns its ETag there; None: it waits not."""
    waiting = exports.bucket.head(exports.key(WAITING_ROOM, day))
    if waiting is None:
        return None
    key = exports.key("interactions", day)
    exports.bucket.put(key, exports.bucket.get(waiting))
    admitted = exports.bucket.head(key)
    assert admitted is not None
    return admitted.etag


def forget(exports: Exports, settings: PersonalizeSettings) -> None:
    """Deletes the interactions' files of days before the window that ends with the newest one."""
    days = sorted(exports.days("interactions"))
    for day in days:
        if day < window_start(days[-1], settings):
            exports.bucket.delete(exports.key("interactions", day))


def forget_snapshots(exports: Exports, before: str) -> None:
    """Deletes the files of items and users of days before one whose own have been imported."""
    for kind in ("items", "users"):
        for day in exports.days(kind):
            if day < before:
                exports.bucket.delete(exports.key(kind, day))


def window_start(day: str, settings: PersonalizeSettings) -> str:
    return shift(day, 1 - settings.window_days)


# --------------------------------------------------------------------------------------------------------------- rows


def _interactions(pipeline: Pipeline, day: str) -> pl.DataFrame:
    weights = pipeline.settings.actions
    return pl.DataFrame(
        pl.read_parquet(pipeline.need_table("interactions", day), columns=["reason", *_READ])
        .filter(pl.col("reason").is_null())
        .select(
            USER_ID="user_id",
            ITEM_ID="item_id",
            TIMESTAMP=pl.col("timestamp").dt.epoch("s"),
            EVENT_TYPE="action",
            EVENT_VALUE=pl.col("action").replace_strict(weights, default=None, return_dtype=pl.Float64),
            CATEGORY_L1="category_id",
            PRICE="price",
        )
    )


_READ = ["user_id", "item_id", "action", "timestamp", "category_id", "price"]


def _of_window(pipeline: Pipeline, day: str, query: str) -> pl.DataFrame:
    """A query over the kept records (`events`) of the window that ends with the day."""
    first = window_start(day, pipeline.settings.personalize)
    days = [each for each in pipeline.tables.days("interactions") if first <= each <= day]
    paths = [str(pipeline.tables.path("interactions", each)) for each in days]
    with scratch(pipeline.settings.store) as connection:
        connection.read_parquet(paths).filter("reason IS NULL").create_view("events")
        return connection.sql(query).pl()


def _items(pipeline: Pipeline, day: str) -> pl.DataFrame:
    """Every item of the window: its first event, its last known category and price, and the catalogue's columns."""
    found = _of_window(
        pipeline,
        day,
        """SELECT item_id AS ITEM_ID, epoch_ms(min(timestamp)) // 1000 AS CREATION_TIMESTAMP,
            arg_max(category_id, (timestamp, category_id)) FILTER (category_id IS NOT NULL) AS CATEGORY_L1,
            arg_max(price, (timestamp, price)) FILTER (price IS NOT NULL) AS PRICE
        FROM events GROUP BY ALL ORDER BY 1""",
    )
    return _with_dimension(pipeline, found, "catalogue", "ITEM_ID", pipeline.settings.personalize.item_column, day)


def _users(pipeline: Pipeline, day: str) -> pl.DataFrame:
    """Every user of the window, with the columns of the table of users."""
    found = _of_window(pipeline, day, "SELECT DISTINCT user_id AS USER_ID FROM events ORDER BY 1")
    return _with_dimension(pipeline, found, "users", "USER_ID", pipeline.settings.personalize.user_column, day)


_FRAMES = {"interactions": _interactions, "items": _items, "users": _users}


def _with_dimension(
    pipeline: Pipeline, frame: pl.DataFrame, table: str, key: str, column: str, day: str
) -> pl.DataFrame:
    """Joins the newest table of the day, or before it, whose columns are named in capitals then."""
    days = [each for each in pipeline.tables.days(table) if each <= day]
    if not days:
        return frame
    known = pipeline.tables.read(table, days[-1])
    if column not in known.columns:
        raise InputError(f"the table {table} has no column '{column}': set personalize.{key[:4].lower()}_column")
    names = {name: name.upper() for name in known.columns if name != column and name.upper() != key}
    known = known.select(pl.col(column).cast(pl.String).alias(key), **{to: pl.col(name) for name, to in names.items()})
    known = known.unique(key, keep="first", maintain_order=True)
    frame = frame.drop([name for name in known.columns if name != key and name in frame.columns])
    return frame.join(known, on=key, how="left").sort(key)


def _check(pipeline: Pipeline, kind: str, fields: list[Field]) -> None:
    names = [field.name for field in fields]
    if kind == "interactions" and "EVENT_TYPE" in names:
        many = len(pipeline.settings.actions) + len(set(names) - set(_REQUIRED[kind]))
        if many > _MOST_KINDS_OF_EVENT:
            raise InputError(
                f"Personalize takes {_MOST_KINDS_OF_EVENT} kinds of events and optional columns of the interactions "
                f"together, and here they are {many}: take EVENT_TYPE or other columns out of the schema"
            )


def _legal(frame: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Without the rows whose ids are longer than Personalize takes, or hold the end of a line."""
    ids = [
        (pl.col(name).str.len_chars() <= _LONGEST_ID) & ~pl.col(name).str.contains(r"[\r\n]")
        for name in ("USER_ID", "ITEM_ID")
        if name in frame.columns
    ]
    kept = frame.filter(*ids)
    return kept, len(frame) - len(kept)


def to_csv(frame: pl.DataFrame, fields: Iterable[Field], kind: str) -> bytes:
    """The columns of the fields, in their order; a nullable one that is not to be had is left empty.

    Raises:
        InputError: a field that must not be null is not to be had, or is null in a row; a value is not of its type.
    """
    columns: list[pl.Expr | pl.Series] = []
    for field in fields:
        if field.name not in frame.columns:
            if not field.nullable:
                table = {"items": " or in the table catalogue", "users": " in the table users"}.get(kind, "")
                raise InputError(
                    f"the dataset of {kind} requires {field.name}, which is not to be had here{table}; make it "
                    'nullable in the schema ("type": ["null", …]) or leave it out'
                )
            columns.append(pl.lit(None, pl.String).alias(field.name))
            continue
        if not field.nullable and (nulls := frame[field.name].null_count()):
            raise InputError(
                f"the dataset of {kind} requires {field.name}, which is null in {nulls} of {len(frame)} rows; make it "
                'nullable in the schema ("type": ["null", …])'
            )
        column = pl.col(field.name)
        if "string" in field.types:
            text = column.cast(pl.String).str.replace_all("\\", "\\\\", literal=True)
            text = text.str.replace_all('"', '\\"', literal=True).str.replace_all(r"[\r\n]+", " ")
            columns.append(pl.concat_str(pl.lit('"'), text, pl.lit('"')).alias(field.name))
        else:
            columns.append(_values(frame[field.name], field, kind))
    target = io.BytesIO()
    frame.select(columns).write_csv(target, quote_style="never")
    return target.getvalue()


def _values(column: pl.Series, field: Field, kind: str) -> pl.Series:
    """A column as the field's type, which is not text; moments are seconds since 1970."""
    if isinstance(column.dtype, (pl.Date, pl.Datetime)):
        column = column.dt.epoch("s")
    to: type[pl.DataType] = pl.Float64
    if {"int", "long"} & set(field.types):
        to = pl.Int64
    elif "boolean" in field.types:
        to = pl.Boolean
    try:
        made = column.cast(to, strict=False)
    except pl.exceptions.InvalidOperationError:  # text as boolean
        made = pl.Series(column.name, [None] * len(column), to)
    if wrong := made.null_count() - column.null_count():
        named = " or ".join(each for each in field.types if each != "null")
        raise InputError(
            f"the dataset of {kind} requires {field.name} to be {named}, and {wrong} of {len(column)} rows hold "
            f"something else ({column.dtype})"
        )
    return made


# ------------------------------------------------------------------------------------------------------------- erasure


def files_of(exports: Exports, erased: Erased) -> Iterator[tuple[str, bytes, int]]:
    """Key, content without them, and rows of erased users, of every file in the bucket that has any."""
    for kind in ("interactions", WAITING_ROOM, "users"):
        for day in sorted(exports.days(kind)):
            key = exports.key(kind, day)
            found = exports.bucket.head(key)
            content, rows = cut(exports.bucket.get(found), erased) if found is not None else (b"", 0)
            if rows:
                yield key, content, rows


def cut(content: bytes, erased: Erased) -> tuple[bytes, int]:
    """A file without the rows of erased users, and how many they were."""
    lines = content.decode().removesuffix("\n").split("\n")
    header = lines[0].split(",")
    if "USER_ID" not in header:
        return content, 0
    place = header.index("USER_ID")
    kept = [lines[0]]
    for line in lines[1:]:
        (row,) = csv.reader([line], doublequote=False, escapechar="\\")
        if row[place] not in erased:
            kept.append(line)
    return "".join(f"{line}\n" for line in kept).encode(), len(lines) - len(kept)
