"""What a queue's message says: objects that came or went, an upstream job's end, or nothing we know. Pure functions."""

import fnmatch
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote_plus

from recsys_assets.ingest.listing import Place
from recsys_assets.settings import JobEventSettings

REJECTED = "queue_rejected"
"""Folder of the store for messages that cannot be understood."""


@dataclass(frozen=True)
class ObjectEvent:
    """An object of a bucket was created or removed.

    Attributes:
        at: when, by S3's clock; None if the event does not say.
    """

    bucket: str
    key: str
    at: datetime | None


@dataclass(frozen=True)
class JobEvent:
    """Any other event of EventBridge."""

    source: str
    detail_type: str
    detail: Mapping[str, Any]


class PoisonError(ValueError):
    """The message is none of the known kinds, or lacks what its kind must have; the text says what."""


_CHANGED = ("Object Created", "Object Deleted", "Object Removed")  # of EventBridge; restores and tags change no content
_CHANGES = ("ObjectCreated:", "ObjectRemoved:", "LifecycleExpiration:")


def parse(body: str) -> list[ObjectEvent | JobEvent]:
    """The events of a message: S3's own notification, S3's or any other event through EventBridge, or one of these
    wrapped by SNS. Empty for S3's test event and for events that change no object's content.

    Raises:
        PoisonError: it is nothing of the kind.
    """
    message = _object(_json(body), "the message")
    if message.get("Type") == "Notification" and isinstance(message.get("Message"), str):
        message = _object(_json(message["Message"]), "the message in SNS's envelope")
    if message.get("Event") == "s3:TestEvent":
        return []
    if "Records" in message:
        records = message["Records"]
        if not isinstance(records, list):
            raise PoisonError("'Records' is no list")
        return [event for record in records for event in _notification(_object(record, "a record"))]
    if "detail-type" in message:
        return _from_event_bridge(message)
    raise PoisonError("neither a notification of S3 nor an event of EventBridge")


def _notification(record: Mapping[str, Any]) -> list[ObjectEvent | JobEvent]:
    if record.get("eventSource") not in ("aws:s3", "minio:s3"):
        raise PoisonError(f"a record's eventSource is {_shown(record.get('eventSource'))}, not aws:s3")
    name = _text(record, "eventName").removeprefix("s3:")
    if not name.startswith(_CHANGES):
        return []
    s3 = _object(record.get("s3"), "s3")
    key = unquote_plus(_text(_object(s3.get("object"), "s3.object"), "key"))  # S3 encodes keys here, and only here
    return [ObjectEvent(_text(_object(s3.get("bucket"), "s3.bucket"), "name"), key, _moment(record.get("eventTime")))]


def _from_event_bridge(message: Mapping[str, Any]) -> list[ObjectEvent | JobEvent]:
    source, kind = _text(message, "source"), _text(message, "detail-type")
    detail = _object(message.get("detail"), "detail")
    if source != "aws.s3":
        return [JobEvent(source, kind, detail)]
    if kind not in _CHANGED:
        return []
    key = _text(_object(detail.get("object"), "detail.object"), "key")
    bucket = _text(_object(detail.get("bucket"), "detail.bucket"), "name")
    return [ObjectEvent(bucket, key, _moment(message.get("time")))]


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PoisonError("not valid JSON") from error


def _object(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise PoisonError(f"{name} is no JSON object")
    return value


def _text(section: Mapping[str, Any], name: str) -> str:
    value = section.get(name)
    if not isinstance(value, str) or not value:
        raise PoisonError(f"'{name}' is {_shown(value)}, not a text")
    return value


def _shown(value: Any) -> str:
    return repr(value)[:80]


def _moment(value: Any) -> datetime | None:
    try:
        found = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found


@dataclass(frozen=True)
class Meaning:
    """What an event asks for.

    Attributes:
        days: to be looked at.
        complete: an upstream job said that they are complete: no quiet time is waited for.
        ignored: why nothing is to be done, for the count; None if `days` are named.
    """

    days: tuple[str, ...] = ()
    complete: bool = False
    ignored: str | None = None


def meaning(
    event: ObjectEvent | JobEvent,
    bucket: str,
    place: Callable[[str], Place | None],
    day_of: Callable[[datetime], str],
    calendar: Sequence[str],
    jobs: Sequence[JobEventSettings],
) -> Meaning:
    """The days that an event is about.

    Args:
        bucket: name of the bucket that is read.
        place: listing.placer.
        day_of: the calendar's day of a moment.
        calendar: all days that exist up to today, in order.
    """
    if isinstance(event, JobEvent):
        days = max((job.days for job in jobs if _fits(event, job)), default=0)
        return Meaning(tuple(calendar[-days:]), complete=True) if days else Meaning(ignored="other event")
    if event.bucket != bucket:
        return Meaning(ignored="other bucket")
    where = place(event.key)
    if where is None:
        return Meaning(ignored="outside bucket.prefix")
    if where.ignored:
        return Meaning(ignored=where.ignored)
    day = where.day or (day_of(event.at) if event.at else None)
    if day is None or day not in calendar:
        return Meaning(ignored="outside the calendar" if day else "undated key without a time")
    return Meaning((day,))


def _fits(event: JobEvent, job: JobEventSettings) -> bool:
    def fits(value: Any, globs: str | list[str]) -> bool:
        return any(fnmatch.fnmatchcase(str(value), glob) for glob in ([globs] if isinstance(globs, str) else globs))

    return (
        fits(event.source, job.source)
        and fits(event.detail_type, job.detail_type)
        and all(name in event.detail and fits(event.detail[name], globs) for name, globs in job.detail.items())
    )
