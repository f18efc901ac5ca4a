import fnmatch
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_assets.ingest import listing
from recsys_assets.ingest.listing import all_days, days_of, fingerprint, has_any, survey
from recsys_assets.settings import BucketSettings, Settings
from recsys_assets.storage.bucket import BucketError, BucketUnavailable, LogObject, open_bucket


def settings_of(bucket: BucketSettings, zone: str = "UTC", **changes: Any) -> Settings:
    return Settings(
        home=Path("/nowhere"),
        bucket=bucket.model_copy(update=changes),
        calendar={"time_zone": zone},  # type: ignore[arg-type]
    )


def today() -> str:
    """The day of LastModified of what a test puts; a test that runs over midnight may ask for a wrong one."""
    return datetime.now(UTC).date().isoformat()


@pytest.mark.parametrize(
    ("layout", "keys"),
    [
        ("%Y/%m/%d/", ["2025/11/01/a.json", "2025/11/01/07/b.json", "2025/11/02/a.json"]),
        ("dt=%Y-%m-%d/", ["dt=2025-11-01/a.json", "dt=2025-11-01/hour=07/b.json", "dt=2025-11-02/a.json"]),
        ("year=%Y/%m%d/", ["year=2025/1101/a.json", "year=2025/1101/x/y/b.json", "year=2025/1102/a.json"]),
        ("%Y/%m/%d/%H/", ["2025/11/01/07/a.json", "2025/11/01/23/b.json", "2025/11/02/00/a.json"]),
        ("%Y/%Y-%m-%d/", ["2025/2025-11-01/a.json", "2025/2025-11-01/b.json", "2025/2025-11-02/a.json"]),
    ],
)
def test_layouts(any_bucket: BucketSettings, layout: str, keys: list[str]) -> None:
    settings = settings_of(any_bucket, layout=layout)
    bucket = open_bucket(settings.bucket, settings.home)
    for key in keys:
        bucket.put("logs/" + key, b"[]")
    bucket.put("elsewhere/2025/11/01/a.json", b"[]")
    found = days_of(bucket, settings, ["2025-11-01", "2025-11-03"])
    assert {day: [obj.key for obj in objects] for day, objects in found.days.items()} == {
        "2025-11-01": sorted("logs/" + key for key in keys[:2]),
        "2025-11-03": [],
    }
    assert found.ignored == {}
    assert all_days(bucket, settings) == {"2025-11-01": 2, "2025-11-02": 1}


def test_undated_keys_belong_to_the_day_of_last_modified(any_bucket: BucketSettings) -> None:
    settings = settings_of(any_bucket)
    bucket = open_bucket(settings.bucket, settings.home)
    undated = ["x.json", "2025/x.json", "2025/13/45/x.json", "2025/02/30/x.json", "2025/2/3/x.json", "misc/deep/x.json"]
    for key in [*undated, "2025/11/01/x.json", "2025/11/x.json"]:
        bucket.put("logs/" + key, b"[]")
    day = today()
    found = days_of(bucket, settings, ["2025-11-01", day])
    assert [obj.key for obj in found.days["2025-11-01"]] == ["logs/2025/11/01/x.json"]
    assert [obj.key for obj in found.days[day]] == sorted("logs/" + key for key in [*undated, "2025/11/x.json"])


def test_the_calendars_time_zone_decides_about_undated_keys(tmp_path: Path) -> None:
    late = datetime(2025, 11, 2, 23, 30, tzinfo=UTC).timestamp()
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a.json").write_bytes(b"[]")
    os.utime(tmp_path / "logs" / "a.json", (late, late))
    for zone, day in (("UTC", "2025-11-02"), ("Europe/Paris", "2025-11-03"), ("America/New_York", "2025-11-02")):
        settings = settings_of(BucketSettings(url="file://."), zone)
        bucket = open_bucket(settings.bucket, tmp_path)
        assert all_days(bucket, settings) == {day: 1}


def test_ignored(any_bucket: BucketSettings) -> None:
    settings = settings_of(any_bucket)
    bucket = open_bucket(settings.bucket, settings.home)
    read = ["a.json", "a.ndjson", "a.jsonl", "a.json.gz", "a.ndjson.zst", "a.JSON", "temporary.json", "x/b.jsonl.gz"]
    ignored = ["temp-a.json", ".a.json", "_a.json", "_temporary/0/a.json", "a.csv", "a.json.bz2", "json", "a.gz"]
    for key in read + ignored:
        bucket.put("logs/2025/11/01/" + key, b"")
    if any_bucket.url.startswith("s3"):
        bucket.put("logs/2025/11/01/", b"")
        bucket.put("logs/2025/11/01/folder/", b"")
    found = days_of(bucket, settings, ["2025-11-01"])
    assert [obj.key for obj in found.days["2025-11-01"]] == sorted("logs/2025/11/01/" + key for key in read)
    markers = {"directory_marker": 2} if any_bucket.url.startswith("s3") else {}
    assert found.ignored == {"ignored_name": 4, "suffix": 4} | markers


@pytest.mark.parametrize(
    ("include", "read"),
    [
        (["web-*"], ["07/web-b.json", "web-a.json", "web-x/c.json"]),  # `*` goes over folders too
        (["*b.json"], ["07/web-b.json", "app-b.json"]),
        (["0?/*", "app-b.json"], ["07/web-b.json", "app-b.json"]),
        (["nothing"], []),
    ],
)
def test_include(any_bucket: BucketSettings, include: list[str], read: list[str]) -> None:
    settings = settings_of(any_bucket, include=include)
    bucket = open_bucket(settings.bucket, settings.home)
    every = ["web-a.json", "07/web-b.json", "app-b.json", "web-x/c.json", "temp-web-b.json"]
    for key in every:
        bucket.put("logs/2025/11/01/" + key, b"[]")
    found = days_of(bucket, settings, ["2025-11-01"])
    assert [obj.key for obj in found.days["2025-11-01"]] == ["logs/2025/11/01/" + key for key in read]
    assert found.ignored == {"ignored_name": 1, "not_included": len(every) - 1 - len(read)}


def test_max_files_reads_the_first_by_key_and_counts_the_rest(any_bucket: BucketSettings) -> None:
    settings = settings_of(any_bucket, max_files=2)
    bucket = open_bucket(settings.bucket, settings.home)
    for key in ("2025/11/01/c.json", "2025/11/01/b/x.json", "2025/11/01/_a.json", "2025/11/01/a.json", "undated.json"):
        bucket.put("logs/" + key, b"[]")
    found = days_of(bucket, settings, ["2025-11-01", today()])
    assert [obj.key for obj in found.days["2025-11-01"]] == ["logs/2025/11/01/a.json", "logs/2025/11/01/b/x.json"]
    assert [obj.key for obj in found.days[today()]] == ["logs/undated.json"]
    assert found.ignored == {"ignored_name": 1, "max_files": 1}


def test_a_survey_knows_every_day_without_opening_its_folder(any_bucket: BucketSettings) -> None:
    settings = settings_of(any_bucket, layout="%Y-%m-%d/%H/")
    bucket = open_bucket(settings.bucket, settings.home)
    for day in range(1, 29):
        for hour in (7, 8):
            bucket.put(f"logs/2025-11-{day:02}/{hour:02}/a.json", b"[]")
    bucket.put("logs/2025-11-01/late.json", b"[]")
    surveyed = survey(bucket, settings)
    assert surveyed.days == {today(), *(f"2025-11-{day:02}" for day in range(1, 29))}
    assert surveyed.requests == 1 + 28
    before = bucket.list_requests
    found = days_of(bucket, settings, ["2025-11-02", today()], surveyed)
    assert {day: len(objects) for day, objects in found.days.items()} == {"2025-11-02": 2, today(): 1}
    assert found.requests == bucket.list_requests - before == 2


def test_listing_stops_between_days_when_the_requests_are_spent(any_bucket: BucketSettings) -> None:
    settings = settings_of(any_bucket)
    bucket = open_bucket(settings.bucket, settings.home)
    days = [f"2025-11-{day:02}" for day in range(28, 0, -1)]
    for day in days:
        bucket.put(f"logs/{day.replace('-', '/')}/a.json", b"[]")
    found = days_of(bucket, settings, days, max_requests=10)
    assert list(found.days) == sorted(days[:16]), "the first given come first; what is begun is listed whole"
    assert all(len(objects) == 1 for objects in found.days.values())
    assert len(days_of(bucket, settings, days, max_requests=1).days) == 8
    assert len(days_of(bucket, settings, days, max_requests=28).days) == 28


def test_other_days_are_not_listed(any_bucket: BucketSettings) -> None:
    settings = settings_of(any_bucket)
    bucket = open_bucket(settings.bucket, settings.home)
    for day in range(1, 29):
        bucket.put(f"logs/2025/11/{day:02}/a.json", b"[]")
    found = days_of(bucket, settings, ["2025-11-05", "2025-11-06"])
    assert [len(objects) for objects in found.days.values()] == [1, 1]
    assert found.requests == 1 + 1 + 1 + 2  # logs/, 2025/, 11/ and the two days


def test_a_month_that_is_asked_for_is_listed_at_once(any_bucket: BucketSettings) -> None:
    settings = settings_of(any_bucket)
    bucket = open_bucket(settings.bucket, settings.home)
    days = [f"2025-11-{day:02}" for day in range(1, 31)]
    for day in days:
        bucket.put(f"logs/{day.replace('-', '/')}/a.json", b"[]")
    before = survey(bucket, settings)
    found = days_of(bucket, settings, days, before)
    assert [len(objects) for objects in found.days.values()] == [1] * 30
    assert found.requests == (1 if any_bucket.url.startswith("s3") else 31)
    bucket.put("logs/2025/11/01/b.json", b"[]")
    assert days_of(bucket, settings, days[:8], before).requests == 8, "so few are listed side by side"


def test_a_small_bucket_is_listed_at_once(s3_bucket: BucketSettings) -> None:
    settings = settings_of(s3_bucket)
    bucket = open_bucket(settings.bucket, settings.home)
    days = [f"2025-11-{day:02}" for day in range(1, 31)]
    for day in days[:10]:
        bucket.put(f"logs/{day.replace('-', '/')}/a.json", b"[]")
    bucket.put("logs/undated.json", b"[]")
    found = days_of(bucket, settings, [*days, today()])
    assert found.requests == 1
    assert found == replace(days_of(bucket, settings, [*days, today()], survey(bucket, settings)), requests=1)
    assert days_of(bucket, settings, days[:8]).requests == 1 + 1 + 1 + 8, "of few days only their folders are opened"


def test_a_month_of_large_days_is_not_listed_one_page_after_the_other() -> None:
    settings = settings_of(BucketSettings())
    days = [f"2025-11-{day:02}" for day in range(1, 31)]
    objects = [_object(f"logs/{day.replace('-', '/')}/{number:03}.json") for day in days for number in range(200)]
    pages = Pages(objects)
    assert [len(each) for each in days_of(pages, settings, days).days.values()] == [200] * 30  # type: ignore[arg-type]
    assert pages.walked == {"logs/": 1, "logs/2025/11/": 1, **{f"logs/2025/11/{day[-2:]}/": 1 for day in days}}


@pytest.mark.parametrize("surveyed", [False, True])
def test_a_day_that_nobody_asked_for_may_be_closed(surveyed: bool) -> None:
    settings, days = settings_of(BucketSettings()), [f"2025-11-{day:02}" for day in range(1, 31)]
    objects = [_object(f"logs/{day.replace('-', '/')}/a.json") for day in days]
    before = survey(Keys(objects), settings) if surveyed else None  # type: ignore[arg-type]
    closed = Closed(objects, BucketError("access denied"))
    found = days_of(closed, settings, days[:-1], before).days  # type: ignore[arg-type]
    assert [len(each) for each in found.values()] == [1] * 29
    with pytest.raises(BucketError, match="access denied"):
        days_of(closed, settings, days, before)  # type: ignore[arg-type]

    silent = Closed(objects, BucketUnavailable("no answer"))
    with pytest.raises(BucketUnavailable, match="no answer"):
        days_of(silent, settings, days[:-1], before)  # type: ignore[arg-type]
    assert silent.walked == ["logs/2025/11/" if surveyed else "logs/"], "who does not answer is not asked for each day"


def test_has_any(any_bucket: BucketSettings) -> None:
    settings = settings_of(any_bucket)
    bucket = open_bucket(settings.bucket, settings.home)
    bucket.put("other/a.json", b"[]")
    assert not has_any(bucket, settings)
    bucket.put("logs/whatever.txt", b"")
    assert has_any(bucket, settings)


def test_hostile_keys_are_listed(s3_bucket: BucketSettings) -> None:
    settings = settings_of(s3_bucket)
    bucket = open_bucket(settings.bucket, settings.home)
    keys = [
        "logs/2025/11/01//a.json",
        "logs/2025/11/01/../a.json",
        "logs/2025/11/01/a\n.json",
        "logs/2025/11/01/%2F.json",
    ]
    for key in [*keys, "logs//2025/11/01/a.json", "logs/../2025/11/01/a.json"]:
        bucket.put(key, b"[]")
    found = days_of(bucket, settings, ["2025-11-01", today()])
    # the name '..' stands in a key only, and looks hidden
    assert [obj.key for obj in found.days["2025-11-01"]] == sorted(set(keys) - {"logs/2025/11/01/../a.json"})
    assert [obj.key for obj in found.days[today()]] == ["logs//2025/11/01/a.json"]
    assert found.ignored == {"ignored_name": 2}


def test_a_layout_with_an_unknown_code(tmp_path: Path) -> None:
    settings = settings_of(BucketSettings(url="file://."), layout="%Y/%m/%d/%Q/")
    with pytest.raises(ValueError, match="%Q"):
        days_of(open_bucket(settings.bucket, tmp_path), settings, ["2025-11-01"])


# --------------------------------------------------------------------------------------------------------- fingerprint


def _object(
    key: str, etag: str = "e", size: int = 1, modified: datetime = datetime(2025, 11, 1, tzinfo=UTC)
) -> LogObject:
    return LogObject(key, etag, size, modified)


def test_fingerprint_is_of_keys_etags_and_sizes() -> None:
    a, b = _object("a"), _object("b")
    base = fingerprint([a, b])
    assert (
        base == fingerprint([b, a]) == fingerprint(iter([a, _object("b", modified=datetime(2026, 1, 1, tzinfo=UTC))]))
    )
    others = [[a], [a, b, _object("c")], [a, _object("b", "f")], [a, _object("b", size=2)], [_object('a", "e"'), b], []]
    assert len({base, *map(fingerprint, others)}) == len(others) + 1
    assert fingerprint([]) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


# ------------------------------------------------------------------------------------------------ against a slow reader


class Keys:
    """A bucket in memory."""

    url = "test://"

    def __init__(self, objects: list[LogObject]) -> None:
        self.objects = sorted(objects, key=lambda obj: obj.key.encode())
        self.list_requests = 0

    def level(self, prefix: str) -> tuple[list[LogObject], list[str]]:
        below = [obj for obj in self.objects if obj.key.startswith(prefix)]
        direct = [obj for obj in below if "/" not in obj.key[len(prefix) :]]
        names = {obj.key[: obj.key.index("/", len(prefix)) + 1] for obj in below if obj not in direct}
        return direct, sorted(names)

    def walk(self, prefix: str) -> Iterator[LogObject]:
        return (obj for obj in self.objects if obj.key.startswith(prefix))


class Pages(Keys):
    """The same, counting the pages of 1,000 that were asked for."""

    def __init__(self, objects: list[LogObject]) -> None:
        super().__init__(objects)
        self.walked: dict[str, int] = {}

    def walk(self, prefix: str) -> Iterator[LogObject]:
        for number, obj in enumerate(super().walk(prefix)):
            if number % 1000 == 0:
                self.walked[prefix] = self.walked.get(prefix, 0) + 1
            yield obj


class Closed(Keys):
    """The same, noting what is listed; the listing breaks off at the 30th day of a month."""

    def __init__(self, objects: list[LogObject], error: BucketError) -> None:
        super().__init__(objects)
        self.error, self.walked = error, list[str]()

    def walk(self, prefix: str) -> Iterator[LogObject]:
        self.walked.append(prefix)
        for obj in super().walk(prefix):
            if "/30/" in obj.key:
                raise self.error
            yield obj


names = st.sampled_from(
    [
        "2025",
        "2024",
        "11",
        "12",
        "13",
        "01",
        "30",
        "31",
        "x",
        "",
        "..",
        "a.json",
        "b.jsonl.gz",
        "c.txt",
        "temp-d.json",
        "_e",
    ]
)
dated = st.builds("{:04}/{:02}/{:02}/{}".format, st.just(2025), st.integers(10, 13), st.integers(0, 32), names)
rest = dated | st.lists(names, min_size=1, max_size=6).map("/".join)
keys = st.builds(lambda prefix, rest: prefix + rest, st.sampled_from(["logs/", "logs/", "logs/", "log", ""]), rest)


def slow_day(obj: LogObject, zone: str) -> tuple[str, str]:
    """The day of a key below logs/ and its part below the day's folder."""
    if match := re.match(r"logs/(\d{4})/(\d{2})/(\d{2})/", obj.key):
        try:
            return date(int(match[1]), int(match[2]), int(match[3])).isoformat(), obj.key[match.end() :]
        except ValueError:
            pass
    return obj.last_modified.astimezone(ZoneInfo(zone)).date().isoformat(), obj.key[len("logs/") :]


def is_read(below: str, ignore: list[str]) -> bool:
    hidden = any(fnmatch.fnmatchcase(part, glob) for part in below.split("/") for glob in ignore)
    return below.endswith((".json", ".jsonl.gz")) and not hidden


@hypothesis.settings(deadline=None)
@given(
    st.lists(keys, unique=True, max_size=30),
    st.lists(st.dates(date(2025, 10, 28), date(2025, 12, 5)).map(date.isoformat), unique=True, max_size=8),
    st.sampled_from(["UTC", "Asia/Tokyo"]),
    st.integers(0, 40 * 24),
)
def test_every_key_is_listed_for_its_day(listed: list[str], days: list[str], zone: str, hours: int) -> None:
    start = datetime(2025, 11, 1, tzinfo=UTC)
    objects = [
        _object(key, modified=start + timedelta(hours=(hours * number) % 800))
        for number, key in enumerate(listed)
        if key
    ]
    settings = settings_of(BucketSettings(), zone)
    expected: dict[str, list[str]] = {}
    for obj in sorted(objects, key=lambda obj: obj.key.encode()):
        if obj.key.startswith("logs/"):
            day, below = slow_day(obj, zone)
            if is_read(below, settings.bucket.ignore_names):
                expected.setdefault(day, []).append(obj.key)
    bucket = Keys(objects)
    found = days_of(bucket, settings, days)  # type: ignore[arg-type]
    assert {day: [obj.key for obj in found.days[day]] for day in days} == {day: expected.get(day, []) for day in days}
    assert set(found.days) == set(days)
    assert all_days(bucket, settings) == {day: len(expected[day]) for day in sorted(expected)}  # type: ignore[arg-type]


@hypothesis.settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 32), st.lists(names, min_size=1, max_size=3)), max_size=120),
    st.lists(rest, max_size=10),
    st.sets(st.integers(1, 30), min_size=5),
    st.sampled_from(["", "logs/"]),
    st.sampled_from(["%Y/%m/%d/", "%Y/%m/%d/%H/", "dt=%Y-%m-%d/", "%Y/%m%d/"]),
    st.integers(1, 150),
    st.integers(0, 3),
)
def test_a_listing_of_months_is_that_of_their_days(
    of_days: list[tuple[int, list[str]]],
    beside: list[str],
    wanted: set[int],
    prefix: str,
    layout: str,
    page: int,
    listers: int,
) -> None:
    """With any page size and any number of folders from which on it is tried, so that it is also given up."""
    fields = layout.replace("%Y", "2025").replace("%m", "11").replace("%d", "{:02}").replace("%H", "{:02}")
    listed = {fields.format(day, len(below)) + "/".join(below) for day, below in of_days} | set(beside) - {""}
    objects = [
        _object(prefix + key, modified=datetime(2025, 11, 1 + number % 30, tzinfo=UTC))
        for number, key in enumerate(sorted(listed))
    ]
    settings = settings_of(BucketSettings(), prefix=prefix, layout=layout)
    days = [f"2025-11-{day:02}" for day in wanted]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "_PAGE", page)
        patch.setattr(listing, "_LISTERS", listers + 1)
        found = days_of(Keys(objects), settings, days)  # type: ignore[arg-type]
        patch.setattr(listing, "_small", lambda *_: None)
        assert days_of(Keys(objects), settings, days) == found  # type: ignore[arg-type]
        patch.setattr(listing, "_by_parent", lambda *_: {})
        assert days_of(Keys(objects), settings, days) == found  # type: ignore[arg-type]
