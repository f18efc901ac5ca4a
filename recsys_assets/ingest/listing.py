"""Which objects make up a day: dated folders by the layout, everything else by the day of its LastModified."""

import fnmatch
import hashlib
import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from zoneinfo import ZoneInfo

from recsys_assets.settings import BucketSettings, Settings
from recsys_assets.storage.bucket import Bucket, BucketError, BucketUnavailable, LogObject

_SUFFIX = re.compile(r"\.(json|ndjson|jsonl)(\.gz|\.zst)?$", re.IGNORECASE)
_CODES = {"Y": r"\d{4}", "m": r"\d{2}", "d": r"\d{2}", "j": r"\d{3}", "H": r"\d{2}", "M": r"\d{2}", "S": r"\d{2}"}
_LISTERS = 8  # listings sent at once: a round trip each, and their number grows with the days
_PAGE = 1000  # objects in an answer of S3


@dataclass(frozen=True)
class DayListing:
    """A listing of some days.

    Attributes:
        days: day 'YYYY-MM-DD' -> its objects in byte order of their keys; days that were asked for are always there,
            unless `max_requests` came first.
        ignored: reason -> objects of these days that are not read: 'directory_marker', 'ignored_name', 'not_included',
            'suffix', 'max_files'.
        requests: listing requests sent.
    """

    days: dict[str, list[LogObject]]
    ignored: dict[str, int]
    requests: int


@dataclass(frozen=True)
class Survey:
    """What lies below the prefix, as far as that is known without opening the folders of days.

    Attributes:
        folders: day -> its folders (several where the layout goes down to hours).
        undated: every object that lies in no day's folder, by the day of its LastModified.
        requests: listing requests sent.
    """

    folders: dict[str, list[str]]
    undated: dict[str, list[LogObject]]
    requests: int

    @property
    def days(self) -> set[str]:
        """The days that have a folder or an undated object, readable or not."""
        return {*self.folders, *self.undated}


def survey(bucket: "Bucket | _Small", settings: Settings) -> Survey:
    """Lists the levels above the folders of days, and all that lies elsewhere below the prefix.

    Keys that are in no folder of a day (undated, an impossible date, beside the dated folders) belong to the day of
    their LastModified in the calendar's time zone; which one, a listing alone tells, so they are always listed.

    Raises:
        BucketError: the bucket cannot be listed.
        ValueError: the layout has a code other than %Y %m %d %j %H %M %S.
    """
    zone = ZoneInfo(settings.calendar.time_zone)
    before = bucket.list_requests
    segments = [_segment_pattern(segment) for segment in settings.bucket.layout.removesuffix("/").split("/")]
    open_folders: list[tuple[str, dict[str, str]]] = [(settings.bucket.prefix, {})]
    undated: dict[str, list[LogObject]] = defaultdict(list)
    elsewhere: list[str] = []

    def add_undated(objects: Iterable[LogObject]) -> None:
        for obj in objects:
            undated[obj.last_modified.astimezone(zone).date().isoformat()].append(obj)

    folders: dict[str, list[str]] = defaultdict(list)
    with ThreadPoolExecutor(_LISTERS, thread_name_prefix="list") as pool:
        for segment in segments:  # one level of folders after the other
            deeper: list[tuple[str, dict[str, str]]] = []
            levels = pool.map(bucket.level, [folder for folder, _ in open_folders])
            for (folder, known), (objects, subfolders) in zip(open_folders, levels, strict=True):
                add_undated(objects)
                for subfolder in subfolders:
                    match = segment.fullmatch(subfolder[len(folder) : -1])
                    if match is None or any(known.get(code, text) != text for code, text in match.groupdict().items()):
                        elsewhere.append(subfolder)
                    else:
                        deeper.append((subfolder, known | match.groupdict()))
            open_folders = deeper
        for folder, known in open_folders:
            day = _day(known)
            if day is None:
                elsewhere.append(folder)
            else:
                folders[day].append(folder)
        for objects in pool.map(lambda folder: list(bucket.walk(folder)), elsewhere):
            add_undated(objects)
    return Survey(dict(folders), dict(undated), bucket.list_requests - before)


@dataclass(frozen=True)
class Place:
    """Where a key belongs by its name alone.

    Attributes:
        day: of its dated folder; None for an undated key, whose day is that of its LastModified.
        ignored: why the object is not read, as in `DayListing.ignored`; None if it is.
    """

    day: str | None
    ignored: str | None


def placer(settings: Settings) -> Callable[[str], Place | None]:
    """A function from a key to its place, by the rules of `survey` and `days_of`; None for one outside the prefix."""
    segments = [_segment_pattern(segment) for segment in settings.bucket.layout.removesuffix("/").split("/")]
    why_ignored = _ignorer(settings.bucket)
    prefix = settings.bucket.prefix

    def place(key: str) -> Place | None:
        if not key.startswith(prefix):
            return None
        parts = key[len(prefix) :].split("/")
        known: dict[str, str] = {}
        for segment, part in zip(segments, parts[:-1], strict=False):
            match = segment.fullmatch(part)
            if match is None or any(known.get(code, text) != text for code, text in match.groupdict().items()):
                break
            known |= match.groupdict()
        else:
            if len(parts) > len(segments) and (day := _day(known)) is not None:
                return Place(day, why_ignored("/".join(parts[len(segments) :])))
        return Place(None, why_ignored("/".join(parts)))

    return place


def days_of(
    bucket: Bucket,
    settings: Settings,
    days: Sequence[str],
    surveyed: Survey | None = None,
    max_requests: int | None = None,
) -> DayListing:
    """Lists the objects of the given days ('YYYY-MM-DD').

    A day's folder is `prefix` plus the layout; all below it, hours for instance, belongs to that day, as do the
    undated keys that were last modified on it. Folders of other days are left unlisted, unless so many days of a
    month (or whatever the layout has above its days) are asked for that one listing of it answers them all.

    Args:
        surveyed: a survey made a moment ago; None: one is made.
        max_requests: no further days are begun once their folders have taken this many requests. At least
            eight are listed; the first ones given come first.

    Raises:
        BucketError: the bucket cannot be listed.
        ValueError: as for `survey`.
    """
    before = bucket.list_requests
    source: Bucket | _Small = bucket
    if surveyed is None and max_requests is None and len(days) > _LISTERS:
        source = _small(bucket, settings.bucket.prefix) or bucket
    known = surveyed or survey(source, settings)
    why_ignored = _ignorer(settings.bucket)
    found: dict[str, list[LogObject]] = {}
    ignored: Counter[str] = Counter()
    begun = bucket.list_requests
    at_once = len(days) if max_requests is None else _LISTERS

    with ThreadPoolExecutor(_LISTERS, thread_name_prefix="list") as pool:
        for start in range(0, len(days), max(at_once, 1)):
            if max_requests is not None and start and bucket.list_requests - begun >= max_requests:
                break
            some = days[start : start + at_once]
            folders = [folder for day in some for folder in known.folders.get(day, ())]
            walked = _by_parent(source, folders, pool)
            left = [folder for folder in folders if folder not in walked]
            walked |= zip(left, pool.map(lambda folder: list(source.walk(folder)), left), strict=True)
            here: dict[str, list[LogObject]] = {day: [] for day in some}
            for day in some:
                for folder in known.folders.get(day, ()):
                    here[day] += _read(walked.pop(folder), folder, why_ignored, ignored)
                here[day] += _read(known.undated.get(day, ()), settings.bucket.prefix, why_ignored, ignored)
                here[day].sort(key=lambda obj: obj.key.encode())
                found[day] = here[day][: settings.bucket.max_files]
                ignored["max_files"] += len(here[day]) - len(found[day])
    return DayListing(
        {day: found[day] for day in sorted(found)},
        {reason: count for reason, count in sorted(ignored.items()) if count},
        bucket.list_requests - before,
    )


def all_days(bucket: Bucket, settings: Settings) -> dict[str, int]:
    """Day -> number of its objects, for every day that has any, oldest first. Lists every key below the prefix."""
    surveyed = survey(bucket, settings)
    found = days_of(bucket, settings, sorted(surveyed.days), surveyed)
    return {day: len(objects) for day, objects in found.days.items() if objects}


def has_any(bucket: Bucket, settings: Settings) -> bool:
    """Whether any key at all lies below the prefix, readable or not."""
    return next(iter(bucket.walk(settings.bucket.prefix)), None) is not None


def fingerprint(objects: Iterable[LogObject]) -> str:
    """SHA-256 (hex) over the sorted (key, etag, size): equal exactly when the day's content is. Order is ignored."""
    digest = hashlib.sha256()
    for identity in sorted((obj.key, obj.etag, obj.size) for obj in objects):
        digest.update(json.dumps(identity).encode() + b"\n")
    return digest.hexdigest()


class _Small:
    """All that lies below a prefix, asked like the bucket itself."""

    list_requests = 0

    def __init__(self, objects: list[LogObject]) -> None:
        self._objects = objects

    def level(self, prefix: str) -> tuple[list[LogObject], list[str]]:
        objects: list[LogObject] = []
        prefixes: dict[str, None] = {}
        for obj in self.walk(prefix):
            end = obj.key.find("/", len(prefix))
            if end < 0:
                objects.append(obj)
            else:
                prefixes[obj.key[: end + 1]] = None
        return objects, list(prefixes)

    def walk(self, prefix: str) -> Iterator[LogObject]:
        return (obj for obj in self._objects if obj.key.startswith(prefix))


def _small(bucket: Bucket, prefix: str) -> _Small | None:
    """All that lies below the prefix, if one answer can hold it; None if it cannot, or if not all of it can be read."""
    try:
        objects = list(itertools.islice(bucket.walk(prefix), _PAGE))
    except BucketUnavailable:
        raise
    except BucketError:  # perhaps of a day that nobody asked for
        return None
    return _Small(objects) if len(objects) < _PAGE else None


def _by_parent(bucket: Bucket | _Small, folders: list[str], pool: ThreadPoolExecutor) -> dict[str, list[LogObject]]:
    """Folder -> its objects, of those folders that a listing of the folder above answers with fewer round trips."""
    siblings: dict[str, list[str]] = defaultdict(list)
    for folder in folders:
        siblings[folder[: folder.rfind("/", 0, -1) + 1]].append(folder)

    def listed(parent: str) -> dict[str, list[LogObject]]:
        found: dict[str, list[LogObject]] = {folder: [] for folder in siblings[parent]}
        pages = 0
        try:
            for count, obj in enumerate(bucket.walk(parent), 1):
                folder = obj.key[: obj.key.find("/", len(parent)) + 1]
                if folder in found:
                    found[folder].append(obj)
                if count % _PAGE == 0:
                    pages += 1
                    if sum(map(bool, found.values())) < _LISTERS * pages:  # a folder each, side by side, is faster
                        return {}
        except BucketUnavailable:
            raise
        except BucketError:  # perhaps of something beside the folders, which nobody asked for
            return {}
        return found

    many = [parent for parent, below in siblings.items() if len(below) > _LISTERS]
    return {folder: objects for found in pool.map(listed, many) for folder, objects in found.items()}


def _read(
    objects: Iterable[LogObject], folder: str, why_ignored: Callable[[str], str | None], ignored: Counter[str]
) -> Iterator[LogObject]:
    """The objects of a folder that are read; counts the others."""
    for obj in objects:
        if reason := why_ignored(obj.key[len(folder) :]):
            ignored[reason] += 1
        else:
            yield obj


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


def _ignorer(settings: BucketSettings) -> Callable[[str], str | None]:
    """A function from a key's part below the day's folder (or the prefix) to the reason it is not read, or None.

    A folder that matches an ignored name is ignored with all below it, as Spark's _temporary/ wants to be.
    """
    ignored_name = _any_of(settings.ignore_names)
    included = _any_of(settings.include or ["*"])

    def reason(below: str) -> str | None:
        if below.endswith("/") or not below:
            return "directory_marker"
        if any(ignored_name.match(part) for part in below.split("/")):
            return "ignored_name"
        if not (included.match(below) or included.match(below.rpartition("/")[2])):
            return "not_included"
        return None if _SUFFIX.search(below) else "suffix"

    return reason


def _any_of(globs: list[str]) -> re.Pattern[str]:
    return re.compile("|".join(fnmatch.translate(glob) for glob in globs) or r"(?!)")
