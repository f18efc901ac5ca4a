import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_assets.days import shift, today
from recsys_assets.ingest.sensors import (
    DAY_TAG,
    FINGERPRINT_TAG,
    RUN_KEY_TAG,
    SeenDay,
    decide,
    new_log_prefixes,
    window,
)
from recsys_assets.pipeline import Pipeline
from recsys_assets.settings import BucketSettings, IngestSettings
from recsys_assets_tests.graph import INGEST, make_home, run

NOW = datetime(2025, 11, 20, 12, tzinfo=UTC)
TODAY = today("UTC")
YESTERDAY = shift(TODAY, -1)


# --- The decision alone -----------------------------------------------------------------------------------------------


def seen(**changes: Any) -> SeenDay:
    usual: dict[str, Any] = {
        "day": "2025-11-19",
        "fingerprint": "new",
        "newest": NOW - timedelta(hours=1),
        "materialized": "old",
        "asked": 0,
        "fruitless": 0,
        "in_flight": False,
        "recent": True,
    }
    return SeenDay(**{**usual, **changes})


@pytest.mark.parametrize(
    ("changes", "asks", "note"),
    [
        ({}, True, None),
        ({"materialized": None}, True, None),
        ({"materialized": "new"}, False, None),
        ({"newest": None}, True, None),  # a deletion like any other; the run says what to do
        ({"newest": None, "recent": False}, False, "gone from the bucket"),  # a lifecycle's work: runs would be refused
        ({"newest": None, "materialized": None}, False, None),  # never was anything
        ({"in_flight": True}, False, "under way"),
        ({"asked": 2, "fruitless": 2}, True, None),
        ({"asked": 3, "fruitless": 3}, False, "given up after 3 runs"),
        ({"asked": 3, "fruitless": 0}, True, None),  # the same content came back
        ({"newest": NOW - timedelta(minutes=5, seconds=-1)}, False, "still receiving"),
        ({"newest": NOW - timedelta(minutes=5)}, True, None),
    ],
)
def test_each_rule(changes: dict[str, Any], asks: bool, note: str | None) -> None:
    requests, notes = decide([seen(**changes)], IngestSettings(quiet_minutes=5, max_attempts=3), NOW)
    assert [request.day for request in requests] == ["2025-11-19"] * asks
    assert len(notes) == (note is not None)
    if note:
        assert note in notes[0]
        assert "2025-11-19" in notes[0]


def test_the_oldest_days_come_first_and_the_rest_next_time() -> None:
    days = [seen(day=f"2025-11-{n:02d}") for n in (9, 3, 7, 5)]
    requests, notes = decide(days, IngestSettings(max_requests_per_tick=2), NOW)
    assert [request.day for request in requests] == ["2025-11-03", "2025-11-05"]
    assert [note.split(":")[0] for note in notes] == ["2025-11-07", "2025-11-09"]
    assert all("next tick" in note for note in notes)


@given(
    st.lists(
        st.builds(
            SeenDay,
            day=st.integers(1, 19).map(lambda n: f"2025-11-{n:02d}"),
            fingerprint=st.sampled_from("ab"),
            newest=st.none() | st.integers(-60, 60).map(lambda n: NOW + timedelta(minutes=n)),
            materialized=st.none() | st.sampled_from("ab"),
            asked=st.integers(0, 4),
            fruitless=st.integers(0, 4),
            in_flight=st.booleans(),
        ),
        max_size=8,
        unique_by=lambda day: day.day,
    ),
    st.integers(1, 4),
)
def test_no_day_is_lost_without_a_word(days: list[SeenDay], most: int) -> None:
    requests, notes = decide(days, IngestSettings(max_requests_per_tick=most), NOW)
    named = [request.day for request in requests] + [note.split(":")[0] for note in notes]
    changed = [
        day.day
        for day in days
        if day.fingerprint != day.materialized and (day.newest is not None or day.materialized is not None)
    ]
    assert sorted(named) == sorted(changed)
    assert len(requests) <= most
    assert len({request.run_key for request in requests}) == len(requests)


# --- On an instance, against a real S3 server -------------------------------------------------------------------------


class Shop:
    """A home over a bucket, an instance, and the two things the daemon does: tick, and run what was asked for."""

    def __init__(self, pipeline: Pipeline, instance: dg.DagsterInstance) -> None:
        self.pipeline, self.instance = pipeline, instance
        self.cursor: str | None = None

    def put(self, key: str, item: str = "i", content: bytes | None = None) -> None:
        stamp = int(datetime.fromisoformat(f"{YESTERDAY}T10:00:00+00:00").timestamp() * 1000)
        record = {"timestamp": stamp, "user_id": "u", "item_id": item, "action": "VIEW"}
        self.pipeline.bucket.put(key, content if content is not None else json.dumps([record]).encode())

    def tick(self) -> tuple[list[dg.RunRequest], str]:
        from recsys_assets.definitions import defs

        with dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            resources={"pipeline": self.pipeline},
            repository_def=defs.get_repository_def(),
        ) as context:
            tick = new_log_prefixes.evaluate_tick(context)
        self.cursor = tick.cursor
        assert len(self.cursor or "") < 200
        valid = set(defs.resolve_job_def("ingest").partitions_def.get_partition_keys())  # type: ignore[union-attr]
        for request in tick.run_requests or []:
            assert request.partition_key in valid
        return list(tick.run_requests or []), tick.skip_message or ""

    def days(self) -> list[str | None]:
        return [request.partition_key for request in self.tick()[0]]

    def serve(self, request: dg.RunRequest) -> bool:
        assert request.partition_key is not None
        tags = {**request.tags, "dagster/run_key": str(request.run_key)}
        ran = run(self.pipeline, INGEST, [request.partition_key], self.instance, tags=tags, must=False)
        return ran.success

    def serve_all(self) -> list[str | None]:
        """One tick, and the runs it asks for."""
        requests, _ = self.tick()
        for request in requests:
            assert self.serve(request)
        return [request.partition_key for request in requests]


@pytest.fixture
def shop(s3_bucket: BucketSettings, tmp_path: Path, instance: dg.DagsterInstance) -> Shop:
    bucket = {"url": s3_bucket.url, "endpoint_url": s3_bucket.endpoint_url}
    ingest = {"quiet_minutes": 0, "window_days": 4, "max_attempts": 2}
    return Shop(make_home(tmp_path / "home", bucket=bucket, ingest=ingest), instance)


def folder(day: str) -> str:
    return f"logs/{day.replace('-', '/')}/"


def test_new_late_overwritten_and_deleted_objects_each_give_one_request(shop: Shop) -> None:
    requests, said = shop.tick()
    assert requests == []
    assert said == "4 days compared, none changed"

    other = shift(TODAY, -3)
    shop.put(folder(YESTERDAY) + "a.json")
    shop.put(folder(other) + "a.json")
    shop.put(folder(other) + "b.json", "a longer one, so that little is lost when the late file goes")
    assert shop.serve_all() == [other, YESTERDAY]
    assert shop.serve_all() == []

    shop.put(folder(other) + "late.json", "late")
    assert shop.serve_all() == [other]
    assert shop.serve_all() == []

    shop.put(folder(other) + "late.json", "LATE")  # as long as before
    assert shop.serve_all() == [other]
    assert shop.serve_all() == []

    shop.pipeline.bucket.delete(folder(other) + "late.json")
    assert shop.serve_all() == [other], "the content is that of the first time: the run key must be another"
    assert shop.serve_all() == []
    assert set(shop.pipeline.tables.read("interactions", other)["item_id"]) == {
        "i",
        "a longer one, so that little is lost when the late file goes",
    }
    keys = [record.dagster_run.tags["dagster/run_key"] for record in shop.instance.get_run_records()]
    assert len(set(keys)) == len(keys) == 5


def test_a_request_names_the_day_the_content_and_the_attempt(shop: Shop) -> None:
    shop.put(folder(YESTERDAY) + "a.json")
    (request,), _ = shop.tick()
    fingerprint = request.tags[FINGERPRINT_TAG]
    assert request.tags[DAY_TAG] == YESTERDAY
    assert request.run_key == f"{YESTERDAY}:{fingerprint}:0"
    assert shop.tick()[0] == [request], "until a run exists the same is asked: Dagster knows the run key"


def test_a_failed_run_is_asked_for_again_and_then_given_up(shop: Shop) -> None:
    shop.put(folder(YESTERDAY) + "a.json")
    store = shop.pipeline.settings.store
    store.parent.mkdir(exist_ok=True)
    store.write_text("no folder: every run fails")
    keys = []
    for _ in range(2):
        (request,), _ = shop.tick()
        keys.append(request.run_key)
        assert not shop.serve(request)
    assert len(set(keys)) == 2
    requests, said = shop.tick()
    assert requests == []
    assert f"{YESTERDAY}: given up after 2 runs" in said
    assert f"recsys run ingest --day {YESTERDAY}" in said, "materializing interactions alone reads no bucket"

    store.unlink()
    shop.put(folder(YESTERDAY) + "b.json", "b")  # other content: a fresh start
    assert shop.serve_all() == [YESTERDAY]
    assert shop.serve_all() == []


def test_a_deleted_run_neither_repeats_a_run_key_nor_stops_the_day(shop: Shop) -> None:
    shop.put(folder(YESTERDAY) + "a.json")
    store = shop.pipeline.settings.store
    store.parent.mkdir(exist_ok=True)
    store.write_text("no folder: every run fails")
    (first,), _ = shop.tick()
    assert not shop.serve(first)
    (second,), _ = shop.tick()
    assert not shop.serve(second)
    (oldest,) = shop.instance.get_run_records(dg.RunsFilter(tags={RUN_KEY_TAG: str(first.run_key)}))
    shop.instance.delete_run(oldest.dagster_run.run_id)
    (third,), _ = shop.tick()
    assert third.run_key not in (first.run_key, second.run_key), "Dagster would pass it over without a word"
    store.unlink()
    assert shop.serve(third)
    assert shop.days() == []


def test_a_run_in_flight_is_not_asked_for_twice(shop: Shop) -> None:
    shop.put(folder(YESTERDAY) + "a.json")
    (request,), _ = shop.tick()
    from recsys_assets.definitions import defs

    waiting = shop.instance.create_run_for_job(
        defs.resolve_job_def("ingest"),
        tags={**request.tags, "dagster/partition": YESTERDAY},
        status=dg.DagsterRunStatus.STARTED,
    )
    requests, said = shop.tick()
    assert requests == []
    assert "under way" in said
    shop.put(folder(YESTERDAY) + "b.json")
    assert shop.days() == [YESTERDAY], "that run reads other objects"
    shop.pipeline.bucket.delete(folder(YESTERDAY) + "b.json")
    shop.instance.delete_run(waiting.run_id)
    assert shop.days() == [YESTERDAY]


def test_odd_keys_neither_break_the_tick_nor_start_a_run_wrongly(shop: Shop) -> None:
    for key in (
        folder(YESTERDAY) + "temp-part.json",
        folder(YESTERDAY) + "_SUCCESS",
        folder(YESTERDAY) + ".hidden.json",
        folder(YESTERDAY) + "notes.txt",
        folder(YESTERDAY) + "_temporary/0/part.json",
        folder(YESTERDAY),
    ):
        shop.put(key)
    assert shop.days() == []
    shop.put("other/2025/11/05/a.json")  # outside the prefix
    shop.put(folder(shift(TODAY, -30)) + "a.json")  # outside the window
    shop.put("logs/1999/01/01/a.json")  # before the calendar
    shop.put(folder(shift(TODAY, 20)) + "a.json")  # no partition yet
    assert shop.days() == []
    for key in ("undated.json", "2025/13/45/a.json", "2025/02/30/a.json", "2025/11/a.json", "20x5/11/05/é a.json"):
        shop.put("logs/" + key)
    modified = {obj.last_modified.date().isoformat() for obj in shop.pipeline.bucket.walk("logs/2025/13/")}
    assert set(shop.serve_all()) == modified, "undated keys belong to the day they were last modified"
    assert shop.days() == []


def test_the_quiet_period(shop: Shop) -> None:
    quiet = make_home(
        shop.pipeline.settings.home,
        bucket=shop.pipeline.settings.bucket.model_dump(include={"url", "endpoint_url"}),
        ingest={"quiet_minutes": 60, "window_days": 4},
    )
    shop.put(folder(YESTERDAY) + "a.json")
    requests, said = Shop(quiet, shop.instance).tick()
    assert requests == []
    assert f"{YESTERDAY}: still receiving objects" in said


def test_at_most_so_many_requests_a_tick(shop: Shop) -> None:
    home, bucket = shop.pipeline.settings.home, shop.pipeline.settings.bucket
    few = Shop(
        make_home(
            home,
            bucket=bucket.model_dump(include={"url", "endpoint_url"}),
            ingest={"quiet_minutes": 0, "window_days": 4, "max_requests_per_tick": 2},
        ),
        shop.instance,
    )
    days = [shift(TODAY, -back) for back in (3, 2, 1)]
    for day in days:
        few.put(folder(day) + "a.json")
    assert few.serve_all() == days[:2]
    assert few.serve_all() == days[2:]
    assert few.serve_all() == []


def test_interactions_materialized_by_hand_count_too(shop: Shop) -> None:
    shop.put(folder(YESTERDAY) + "a.json")
    run(shop.pipeline, ["raw_events"], [YESTERDAY], shop.instance)
    assert shop.days() == [YESTERDAY], "raw_events alone is not enough"
    run(shop.pipeline, INGEST, [shift(YESTERDAY, -1), YESTERDAY], shop.instance)
    assert shop.days() == []


def test_a_bucket_that_is_not_there_fails_the_tick_with_a_message(shop: Shop) -> None:
    home, endpoint = shop.pipeline.settings.home, shop.pipeline.settings.bucket.endpoint_url
    nowhere = make_home(home, bucket={"url": "s3://no-such-bucket-here", "endpoint_url": endpoint})
    with pytest.raises(dg.Failure) as caught:
        Shop(nowhere, shop.instance).tick()
    assert "s3://no-such-bucket-here" in str(caught.value.description)
    assert "does not exist" in str(caught.value.description)


def test_the_window_is_the_newest_days_of_the_calendar(tmp_path: Path) -> None:
    pipeline = make_home(tmp_path, ingest={"window_days": 3})
    assert window(pipeline, datetime.now(UTC)) == [shift(TODAY, -2), YESTERDAY, TODAY]
    closed = make_home(tmp_path, calendar={"last_day": datetime(2025, 11, 2).date()}, ingest={"window_days": 5})
    assert window(closed, datetime.now(UTC)) == ["2025-11-01", "2025-11-02"]


@pytest.fixture
def eastern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instance: dg.DagsterInstance) -> Iterator[Shop]:
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")  # 14 hours ahead of UTC
    time.tzset()
    yield Shop(make_home(tmp_path), instance)
    monkeypatch.undo()
    time.tzset()


def test_the_clock_of_the_machine_does_not_matter(eastern: Shop) -> None:
    key = folder(YESTERDAY) + "a.json"
    eastern.put(key)
    moment = datetime.now(UTC).timestamp()
    os.utime(eastern.pipeline.settings.home / "bucket" / key, (moment, moment))
    assert eastern.serve_all() == [YESTERDAY]
    assert eastern.serve_all() == []


# --- Before the window, and on a bucket that is new to the sensor -----------------------------------------------------


def long_ago(shop: Shop, seconds: float) -> None:
    """As if the last tick had been so long ago."""
    cursor = json.loads(shop.cursor or "{}")
    shop.cursor = json.dumps({**cursor, "at": cursor["at"] - seconds})


def test_a_change_before_the_window_is_found_at_the_slower_pace(shop: Shop) -> None:
    old = [shift(TODAY, -back) for back in (40, 39, 38)]
    for day in old:
        shop.put(folder(day) + "a.json")
    run(shop.pipeline, INGEST, [old[0], old[-1]], shop.instance)
    assert shop.days() == []
    shop.put(folder(old[1]) + "late.json", "late")
    shop.pipeline.bucket.delete(folder(old[2]) + "a.json")
    assert shop.days() == [], "only the window is compared at once"
    long_ago(shop, 24 * 3600)  # ingest.reconcile_hours
    requests, said = shop.tick()
    assert [request.partition_key for request in requests] == [old[1]]
    assert shop.serve(requests[0])
    long_ago(shop, 24 * 3600)
    requests, said = shop.tick()
    assert requests == []
    assert f"{old[2]}: all its objects are gone from the bucket; the partition stays as it was" in said


def test_reconciling_goes_on_where_it_stopped_and_leaves_the_window_its_turn(shop: Shop) -> None:
    home, bucket = shop.pipeline.settings.home, shop.pipeline.settings.bucket
    slow = Shop(
        make_home(
            home,
            bucket=bucket.model_dump(include={"url", "endpoint_url"}),
            ingest={
                "quiet_minutes": 0,
                "window_days": 20,
                "max_list_requests_per_tick": 10,
                "max_requests_per_tick": 40,
            },
        ),
        shop.instance,
    )
    days = [shift(TODAY, -back) for back in range(24)]
    for day in days:
        slow.put(folder(day) + "a.json")
    requests, said = slow.tick()
    assert [request.partition_key for request in requests] == sorted(days[:16]), "eight at once, until ten requests"
    run(slow.pipeline, INGEST, days[:16], slow.instance)
    requests, _ = slow.tick()
    assert [request.partition_key for request in requests] == sorted(days[16:20])
    run(slow.pipeline, INGEST, days[16:20], slow.instance)
    found: list[str | None] = []
    for _ in range(5):
        long_ago(slow, 24 * 3600)
        requests, said = slow.tick()
        found += [request.partition_key for request in requests]
        for request in requests:
            run(slow.pipeline, INGEST, [str(request.partition_key)], slow.instance)
        assert requests or "left to the next tick" in said
    assert sorted(map(str, found)) == sorted(days[20:]), "each once, one a tick while the window takes all the requests"


@pytest.fixture
def many(shop: Shop) -> tuple[Shop, list[str]]:
    """A bucket with ten days that were never ingested, and a sensor that may ask for three a tick."""
    bucket = shop.pipeline.settings.bucket.model_dump(include={"url", "endpoint_url"})
    ingest = {"quiet_minutes": 0, "window_days": 4, "max_requests_per_tick": 3}
    days = [shift(YESTERDAY, -back) for back in range(9, -1, -1)]
    for day in days:
        shop.put(folder(day) + "a.json")
    return Shop(make_home(shop.pipeline.settings.home, bucket=bucket, ingest=ingest), shop.instance), days


def test_a_first_start_on_a_long_history_proposes_a_backfill(many: tuple[Shop, list[str]]) -> None:
    shop, days = many
    for _ in range(3):
        requests, said = shop.tick()
        assert requests == []
        assert f"recsys run ingest --from {days[0]} --to {days[-1]}" in said
        assert f"recsys run ingest --day {days[-1]}" in said
        long_ago(shop, 24 * 3600)
    run(shop.pipeline, INGEST, days, shop.instance)
    for _ in range(4):
        requests, said = shop.tick()
        assert requests == []
        assert "none changed" in said
        long_ago(shop, 24 * 3600)


def test_the_window_goes_on_while_a_long_history_waits_for_its_backfill(many: tuple[Shop, list[str]]) -> None:
    shop, days = many
    run(shop.pipeline, INGEST, [days[-1]], shop.instance)
    assert shop.serve_all() == days[-3:-1]
    requests, said = shop.tick()
    assert requests == []
    assert f"recsys run ingest --from {days[0]} --to {days[-4]}" in said


def test_another_sensor_and_a_restarted_daemon_ask_for_nothing_twice(shop: Shop) -> None:
    from recsys_assets.definitions import defs

    for back in (1, 2):
        shop.put(folder(shift(TODAY, -back)) + "a.json")
    first, _ = shop.tick()
    other = Shop(Pipeline.open(shop.pipeline.settings.home), shop.instance)
    assert [request.run_key for request in other.tick()[0]] == [request.run_key for request in first]
    for request in first:
        shop.instance.create_run_for_job(
            defs.resolve_job_def("ingest"), tags={**request.tags, "dagster/partition": str(request.partition_key)}
        )
    assert Shop(Pipeline.open(shop.pipeline.settings.home), shop.instance).days() == []
    shop.cursor = "{not ours"
    assert shop.days() == []


def test_max_files_is_said_loudly(shop: Shop) -> None:
    bucket = shop.pipeline.settings.bucket.model_dump(include={"url", "endpoint_url"})
    few = make_home(shop.pipeline.settings.home, bucket={**bucket, "max_files": 1}, ingest={"quiet_minutes": 0})
    for name in "abc":
        shop.put(folder(YESTERDAY) + name + ".json", name)
    trial = Shop(few, shop.instance)
    assert trial.serve_all() == [YESTERDAY]
    assert trial.serve_all() == []
    assert set(few.tables.read("interactions", YESTERDAY)["item_id"]) == {"a"}
    assert shop.serve_all() == [YESTERDAY], "without the limit the day is another"
