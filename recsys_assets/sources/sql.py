"""A day's rows of the settings' tables as log objects in the bucket, like those any shop would have written there.

From there on nothing knows that they came from a database: the same rules judge them, each interaction tells its object
and record, a changed day is noticed by its fingerprint. The object's name tells the table, the record its row.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from recsys_assets.ingest.listing import Place, placer
from recsys_assets.pipeline import InputError, Pipeline
from recsys_assets.settings import Settings, SqlEventsSettings
from recsys_assets.sources.database import Clock, Database, batches, between, timed, without_time
from recsys_assets.storage.artifacts import version_of
from recsys_assets.storage.bucket import Bucket, LogObject, ObjectChanged


@dataclass
class Loaded:
    """What was read of one table for one day.

    Attributes:
        rows: read and written as records.
        objects: that hold them; `changed` of them did not stand there already.
        removed: objects of an earlier read that has more rows.
        without_time: rows of the whole table that no day has, because their time is null.
        version: of the objects' keys and contents.
    """

    rows: int = 0
    objects: int = 0
    changed: int = 0
    removed: int = 0
    without_time: int = 0
    version: str = ""


def load_day(pipeline: Pipeline, database: Database, day: str) -> dict[str, Loaded]:
    """Brings the objects of every table of `sql.events` to what its rows of a day are. Returns what was done by name.

    Raises:
        InputError: a table, a column or a key is not as the settings say, or the database cannot be read.
        BucketError: the bucket cannot be written.
    """
    return database.reading(lambda connection: _load_day(pipeline, connection, day))


def _load_day(pipeline: Pipeline, connection: sa.Connection, day: str) -> dict[str, Loaded]:
    settings, done = pipeline.settings, {}
    for name, events in settings.sql.events.items():
        where, loaded = f"sql.events.{name}", Loaded()
        roles = {role: getattr(events, role) for role in ("action", "value", "value_of", "category", "price")}
        read = timed(connection, where, events, roles)
        clock = Clock(where, events, read)
        columns = {**read.columns, **{f"row_{number}": column for number, column in enumerate(read.key)}}
        condition = between(read, clock, day, day, settings.calendar.time_zone)
        standing, contents = _standing(pipeline.bucket, settings, day, name), dict[str, str]()
        for rows in batches(connection, where, read, columns, settings.sql.batch_rows, condition):
            key = object_key(settings, day, name, loaded.objects)
            records = [_record(row, events, clock) for row in rows]
            content = ("[" + ",\n".join(json.dumps(each, ensure_ascii=False) for each in records) + "]").encode()
            if not _holds(pipeline.bucket, standing.get(key), content):
                pipeline.bucket.put(key, content)
                loaded.changed += 1
            contents[key] = hashlib.sha256(content).hexdigest()
            loaded.rows += len(rows)
            loaded.objects += 1
        for key in standing.keys() - contents.keys():
            pipeline.bucket.delete(key)
            loaded.removed += 1
        loaded.without_time, loaded.version = without_time(connection, read), version_of(**contents)
        done[name] = loaded
    return done


def object_key(settings: Settings, day: str, name: str, number: int) -> str:
    """The key of the object that holds a table's batch of a day.

    Raises:
        InputError: the bucket's settings would not read an object of this name.
    """
    key = f"{_day_folder(settings, day)}{_prefix(name)}{number:05d}.json"
    if placer(settings)(key) != Place(day, None):
        raise InputError(f"sql.events.{name}: bucket.include and bucket.ignore_names must let {key} be read")
    return key


def _prefix(name: str) -> str:
    return f"sql-{name}-"


def _day_folder(settings: Settings, day: str) -> str:
    return settings.bucket.prefix + datetime.combine(date.fromisoformat(day), time()).strftime(settings.bucket.layout)


def _standing(bucket: Bucket, settings: Settings, day: str, name: str) -> dict[str, LogObject]:
    """The objects of a table that an earlier read of the day left. Listed: asked for one key that is not there, S3 says
    so only to those who may list the whole bucket."""
    folder = _day_folder(settings, day)
    found = re.compile(re.escape(folder + _prefix(name)) + r"\d+\.json")
    return {obj.key: obj for obj in bucket.level(folder)[0] if found.fullmatch(obj.key)}


def _holds(bucket: Bucket, there: LogObject | None, content: bytes) -> bool:
    """Whether an object holds exactly this already: a day that is read again then keeps its fingerprint."""
    try:
        return there is not None and there.size == len(content) and bucket.get(there) == content
    except ObjectChanged:
        return False


def _record(row: Mapping[str, Any], events: SqlEventsSettings, clock: Clock) -> dict[str, Any]:
    """A row as a record of our logs. What cannot be an event stays what it is: the cleaning rejects it and says why."""
    record = {
        "timestamp": clock.ms(row["time"]),
        "user_id": plain(row["user"]),
        "item_id": plain(row["item"]),
        "action": _action(row, events),
    }
    record |= {
        f"{name}_id" if name == "category" else name: plain(row[name]) for name in ("category", "price") if name in row
    }
    identity = [plain(value) for role, value in row.items() if role.startswith("row_")]
    return {**record, "row": identity[0] if len(identity) == 1 else identity}


def _action(row: Mapping[str, Any], events: SqlEventsSettings) -> Any:
    if events.always is not None:
        return events.always
    if events.action is not None:
        found = plain(row["action"])
        return events.actions.get(str(found), found) if events.actions else found
    value = row["value"]
    if events.value_of is not None and value is not None:
        whole = row["value_of"]
        value = float(value) / float(whole) if whole else None
    if value is None:
        return None
    reached = [(least, name) for name, least in events.value_actions.items() if value >= least]
    return max(reached)[1] if reached else None


def plain(value: Any) -> Any:
    """A database's value as JSON has it."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Decimal) and value.is_finite():
        return int(value) if value == value.to_integral_value() and value.as_tuple().exponent == 0 else float(value)
    if isinstance(value, float) and math.isfinite(value):
        return value
    return value.hex() if isinstance(value, bytes) else str(value)
