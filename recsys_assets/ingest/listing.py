"""Which objects make up a day: dated folders by the layout, everything else by the day of its LastModified."""

import fnmatch
import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from typing import Any
from zoneinfo import ZoneInfo

from recsys_assets.settings import BucketSettings, Settings
from recsys_assets.storage.bucket import Bucket, LogObject

_SUFFIX = re.compile(r"\.(json|ndjson|jsonl)(\.gz|\.zst)?$", re.IGNORECASE)
_CODES = {"Y": r"\d{4}", "m": r"\d{2}", "d": r"\d{2}", "j": r"\d{3}", "H": r"\d{2}", "M": r"\d{2}", "S": r"\d{2}"}
_LISTERS = 8  # listings sent at once: a round trip each, and their number grows with the days


@dataclass(frozen=True)
class DayListing:
    """A listing of some days.

    Attributes:
        days: day 'YYYY-MM-DD' -> its objects in byte order of their keys; days that were asked for are always there.
        ignored: reason -> objects of these days that are not read: 'directory_marker', 'ignored_name', 'suffix'.
        requests: listing requests sent.
    """

    days: dict[str, list[LogObject]]
    ignored: dict[str, int]
    requests: int


def days_of(bucket: Bucket, settings: Settings, days: Collection[str]) -> DayListing:
    """Lists the objects of the given days ('YYYY-MM-DD').

    A day's folder is `prefix` plus the layout; all below it, hours for instance, belongs to that day. Keys anywhere
    else below the prefix (undated, an impossible date, beside the dated folders) belong to the day of their
    LastModified in the calendar's time zone. Only folders of other days are left unlisted.

    Raises:
        BucketError: the bucket cannot be listed.
        ValueError: the layout has a code other than %Y %m %d %j %H %M %S.
    """
    return _list(bucket, settings, frozenset(days))


def all_days(bucket: Bucket, settings: Settings) -> dict[str, int]:
    """Day -> number of its objects, for every day that has any, oldest first. Lists every key below the prefix."""
    return {day: len(objects) for day, objects in sorted(_list(bucket, settings, None).days.items())}


def has_any(bucket: Bucket, settings: Settings) -> bool:
    """Whether any key at all lies below the prefix, readable or not."""
    return next(iter(bucket.walk(settings.bucket.prefix)), None) is not None


def fingerprint(objects: Iterable[LogObject]) -> str:
    """SHA-256 (hex) over the sorted (key, etag, size): equal exactly when the day's content is. Order is ignored."""
    digest = hashlib.sha256()
    for identity in sorted((obj.key, obj.etag, obj.size) for obj in objects):
        digest.update(json.dumps(identity).encode() + b"\n")
    return digest.hexdigest()


def _list(bucket: Bucket, settings: Settings, wanted: frozenset[str] | None) -> DayListing:
    """`wanted` None: every day."""
    zone = ZoneInfo(settings.calendar.time_zone)
    before = bucket.list_requests
    found: dict[str, list[LogObject]] = defaultdict(list)
    ignored: Counter[str] = Counter()
    why_ignored = _ignorer(settings.bucket)

    def add(day: str, folder: str, objects: Iterable[LogObject]) -> None:
        for obj in objects:
            if reason := why_ignored(obj.key[len(folder) :]):
                ignored[reason] += 1
            else:
                found[day].append(obj)

    def add_undated(objects: Iterable[LogObject]) -> None:
        for obj in objects:
            day = obj.last_modified.astimezone(zone).date().isoformat()
            if wanted is None or day in wanted:
                add(day, settings.bucket.prefix, [obj])

    segments = [_segment_pattern(segment) for segment in settings.bucket.layout.removesuffix("/").split("/")]
    open_folders: list[tuple[str, dict[str, str]]] = [(settings.bucket.prefix, {})]
    dated: list[tuple[str, str]] = []  # day, folder
    undated: list[str] = []
    with ThreadPoolExecutor(_LISTERS, thread_name_prefix="list") as pool:
        for segment in segments:  # one level of folders after the other
            deeper: list[tuple[str, dict[str, str]]] = []
            levels = pool.map(bucket.level, [folder for folder, _ in open_folders])
            for (folder, known), (objects, subfolders) in zip(open_folders, levels, strict=True):
                add_undated(objects)
                for subfolder in subfolders:
                    match = segment.fullmatch(subfolder[len(folder) : -1])
                    if match is None or any(known.get(code, text) != text for code, text in match.groupdict().items()):
                        undated.append(subfolder)
                    else:
                        deeper.append((subfolder, known | match.groupdict()))
            open_folders = deeper
        for folder, known in open_folders:
            day = _day(known)
            if day is None:
                undated.append(folder)
            elif wanted is None or day in wanted:
                dated.append((day, folder))

        def whole(folder: str) -> list[LogObject]:
            return list(bucket.walk(folder))

        for (day, folder), objects in zip(dated, pool.map(whole, [folder for _, folder in dated]), strict=True):
            add(day, folder, objects)
        for objects in pool.map(whole, undated):
            add_undated(objects)
    days = sorted(wanted if wanted is not None else found)
    return DayListing(
        {day: sorted(found[day], key=lambda obj: obj.key.encode()) for day in days},
        dict(sorted(ignored.items())),
        bucket.list_requests - before,
    )


def _segment_pattern(segment: str) -> re.Pattern[str]:
    """A layout's segment such as 'dt=%Y-%m-%d' as a pattern with a group for each code."""
    pattern, seen = "", set()
    for code, text in re.findall(r"%(.)|([^%]+)", segment):
        if text:
            pattern += re.escape(text)
        elif code == "%":
            pattern += "%"
        elif code not in _CODES:
            raise ValueError(f"bucket.layout: %{code} is not supported; known are %Y %m %d %j %H %M %S")
        else:
            pattern += f"(?P={code})" if code in seen else f"(?P<{code}>{_CODES[code]})"
            seen.add(code)
    return re.compile(pattern, re.ASCII)


def _day(known: dict[str, str]) -> str | None:
    try:
        day = date(int(known["Y"]), int(known["m"]), int(known["d"]))
    except ValueError:  # 2025/13/45
        return None
    if "j" in known and day.timetuple().tm_yday != int(known["j"]):
        return None
    return day.isoformat()


def _ignorer(settings: BucketSettings) -> Callable[[str], Any]:
    """A function from a key's part below the day's folder (or the prefix) to the reason it is not read, or None.

    A folder that matches an ignored name is ignored with all below it, as Spark's _temporary/ wants to be.
    """
    globs = "|".join(fnmatch.translate(glob) for glob in settings.ignore_names)
    ignored_name = re.compile(globs or r"(?!)")

    def reason(below: str) -> str | None:
        if below.endswith("/") or not below:
            return "directory_marker"
        if any(ignored_name.match(part) for part in below.split("/")):
            return "ignored_name"
        return None if _SUFFIX.search(below) else "suffix"

    return reason
