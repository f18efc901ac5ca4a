import errno
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from recsys_assets.ingest.assets import yesterday_is_there
from recsys_assets.pipeline import Pipeline, explained_failures
from recsys_assets.sources.simulate import planted
from recsys_assets.storage import files
from recsys_assets.storage.environment import environment, in_words
from recsys_assets_tests.graph import (
    DAYS,
    INGEST,
    SHOP,
    TRAINED,
    Ran,
    changed,
    copy_home,
    fill,
    make_home,
    run,
    snapshot,
)

DAY = "2025-11-03"
FOLDER = "logs/2025/11/03"


FORCE_CLEANING = {"ops": {"interactions": {"config": {"force": True}}}}


def record(**changes: Any) -> dict[str, Any]:
    usual = {"timestamp": 1762164000000, "user_id": "u", "item_id": "i", "action": "VIEW"}  # 2025-11-03 10:00 UTC
    return {**usual, **changes}


def put(pipeline: Pipeline, key: str, *records: dict[str, Any]) -> None:
    pipeline.bucket.put(key, json.dumps(records).encode())


@pytest.fixture
def home(tmp_path: Path) -> Pipeline:
    """An ingested DAY of two small objects, and an older object so that the bucket is never empty."""
    pipeline = make_home(tmp_path / "home")
    put(pipeline, f"{FOLDER}/a.json", *(record(item_id=f"a{n}") for n in range(20)))
    put(pipeline, f"{FOLDER}/b.json", record(item_id="b"))
    put(pipeline, "logs/2025/11/01/z.json", record())
    run(pipeline, INGEST, [DAY])
    return pipeline


def kept(pipeline: Pipeline, day: str = DAY) -> set[str]:
    frame = pipeline.tables.read("interactions", day).filter(pl.col("reason").is_null())
    return set(frame["item_id"])


def test_a_range_run_counts_what_was_planted(ingest_run: tuple[Pipeline, Ran]) -> None:
    pipeline, ran = ingest_run
    assert ran.checks()["every_record_accounted_for"]
    cut = 0
    for day in DAYS:
        expected = planted(SHOP, date.fromisoformat(day))
        cut += expected.truncated_objects
        found = ran.metadata("interactions", day)
        rejected = {
            name.removeprefix("rejected "): value
            for name, value in ran.metadata("rejected_events", day).items()
            if name.startswith("rejected ")
        }
        objects = list(pipeline.bucket.walk(f"logs/{day.replace('-', '/')}/"))
        other_case = sum(pipeline.bucket.get(obj).count(b'"action":"view"') for obj in objects)
        missing = sum(count for name, count in rejected.items() if name.startswith("missing_"))
        assert missing == expected.broken["missing_field"]
        assert rejected.get("bad_timestamp", 0) == expected.broken["seconds"]
        assert rejected.get("unknown_action", 0) == expected.broken["unknown_action"] - other_case
        assert rejected.get("malformed_json", 0) == expected.truncated_objects
        assert sum(rejected.values()) == found["rejected"]
        assert found["duplicates"] == expected.duplicates
        assert found["kept"] == expected.good + other_case + expected.broken["number_as_text"]
        assert found["records in"] == expected.records + expected.truncated_objects
        assert found["records in"] == found["kept"] + found["rejected"] + found["duplicates"]
        assert found["dagster/partition_row_count"] == found["kept"]
        assert sum(found[f"action {name}"] for name in pipeline.settings.actions) == found["kept"]
        raw = ran.metadata("raw_events", day)
        assert raw["objects"] == len(objects) == SHOP.objects_per_day
        assert raw["bytes in the bucket"] == sum(obj.size for obj in objects)
        assert raw["fingerprint"] == found["fingerprint"]
        assert raw["unchanged"] is found["unchanged"] is False
        assert raw["environment"] == ran.metadata("rejected_events", day)["environment"] == in_words(environment())
        assert len(pipeline.tables.read("interactions", day)) == found["kept"] + found["rejected"]
    assert cut == 2, "the shop cuts objects, or this test sees none"


def test_unchanged_days_are_kept_and_called_so(ingested_home: Pipeline) -> None:
    before = snapshot(ingested_home.settings.store)
    ran = run(ingested_home, INGEST, DAYS[1:4])
    assert snapshot(ingested_home.settings.store) == before
    for asset in ("raw_events", "interactions", "rejected_events"):
        for day in DAYS[1:4]:
            assert ran.metadata(asset, day)["unchanged"] is True
            assert "environment" not in ran.metadata(asset, day), "it was not made in this one"
            assert ran.metadata(asset, day)["dagster/partition_row_count"] is not None


def test_each_asset_alone(tmp_path: Path) -> None:
    pipeline = make_home(tmp_path)
    put(pipeline, f"{FOLDER}/a.json", record())
    run(pipeline, ["raw_events"], [DAY])
    assert pipeline.tables.days("interactions") == []
    run(pipeline, ["interactions"], [DAY])
    assert kept(pipeline) == {"i"}


def test_interactions_without_raw_events(home: Pipeline) -> None:
    before = snapshot(home.settings.store)
    ran = run(home, ["interactions"], ["2025-11-04"], must=False)
    assert "raw_events has no partition 2025-11-04 yet. Materialize raw_events for 2025-11-04 first" in ran.said()
    assert snapshot(home.settings.store) == before


def test_a_late_file_changes_its_own_day_only(ingested_home: Pipeline, tmp_path: Path) -> None:
    pipeline = copy_home(ingested_home, tmp_path / "home")
    run(pipeline, INGEST, DAYS)  # a copied bucket has other ETags
    before = snapshot(pipeline.settings.store)
    put(pipeline, f"{FOLDER}/late/extra.ndjson", record(item_id="late"))
    ran = run(pipeline, INGEST, DAYS)
    after = snapshot(pipeline.settings.store)
    assert {name for name in after if after[name] != before.get(name)} == {
        f"raw_events/{DAY}.parquet",
        f"interactions/{DAY}.parquet",
    }
    assert "late" in kept(pipeline)
    assert [day for day in DAYS if not ran.metadata("interactions", day)["unchanged"]] == [DAY]


def test_an_overwritten_and_a_deleted_object(home: Pipeline) -> None:
    put(home, f"{FOLDER}/b.json", record(item_id="c"))
    run(home, INGEST, [DAY])
    assert kept(home) == {"c", *(f"a{n}" for n in range(20))}
    home.bucket.delete(f"{FOLDER}/b.json")
    run(home, INGEST, [DAY])
    assert kept(home) == {f"a{n}" for n in range(20)}


def test_an_object_that_cannot_be_read_comes_first_in_the_table(home: Pipeline) -> None:
    for number in range(12):
        put(home, f"{FOLDER}/odd-{number:02}.json", *[record(action="odd", item_id=str(n)) for n in range(3)], record())
    home.bucket.put(f"{FOLDER}/page.json", b"<html>503</html>")
    run(home, INGEST, [DAY])
    objects = (home.tables.info("interactions", DAY) or {})["objects"]
    assert objects[0]["key"] == f"{FOLDER}/page.json"
    assert len(objects) == 10


def test_the_order_of_actions_is_no_other_rule(home: Pipeline) -> None:
    path = home.tables.path("interactions", DAY)
    before = path.read_bytes()
    pipeline = changed(home, actions=dict(reversed(home.settings.actions.items())))
    assert run(pipeline, INGEST, [DAY]).metadata("interactions", DAY)["unchanged"] is True
    path.unlink()
    run(pipeline, INGEST, [DAY])
    assert path.read_bytes() == before


def test_settings_that_the_cleaning_reads_clean_again(home: Pipeline) -> None:
    pipeline = changed(home, actions={"PURCHASE": 5, "CLICK": 2})
    ran = run(pipeline, INGEST, [DAY], config=FORCE_CLEANING)
    assert ran.metadata("raw_events", DAY)["unchanged"] is True
    assert ran.metadata("interactions", DAY)["unchanged"] is False
    assert ran.metadata("rejected_events", DAY)["rejected unknown_action"] == 21


def test_other_code_takes_the_objects_over_again(home: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("versions", "assets"):
        monkeypatch.setattr(f"recsys_assets.ingest.{module}.RAW_CODE", "another")
    for made in (True, False):
        ran = run(home, INGEST, [DAY])
        for asset in ("raw_events", "interactions", "rejected_events"):
            assert ran.metadata(asset, DAY)["unchanged"] is not made, asset


def test_a_day_that_loses_most_of_its_bytes_is_refused_unless_forced(home: Pipeline) -> None:
    home.bucket.delete(f"{FOLDER}/a.json")
    before = snapshot(home.settings.store)
    ran = run(home, INGEST, [DAY], must=False)
    assert "The partition stays as it was" in ran.said()
    assert "force: true" in ran.said()
    assert DAY in ran.said()
    assert snapshot(home.settings.store) == before
    run(home, INGEST, [DAY], config={"ops": {"raw_events": {"config": {"force": True}}}})
    assert kept(home) == {"b"}


def test_a_day_that_would_become_empty_is_refused_whatever_the_share(home: Pipeline) -> None:
    pipeline = changed(home, ingest={"max_shrink_share": 1})
    pipeline.bucket.delete(f"{FOLDER}/a.json")
    run(pipeline, INGEST, [DAY])
    pipeline.bucket.delete(f"{FOLDER}/b.json")
    ran = run(pipeline, INGEST, [DAY], must=False)
    assert "the bucket now holds 0 bytes in 0 objects" in ran.said()
    assert kept(pipeline) == {"b"}


def test_objects_that_vanish_while_they_are_fetched_do_not_empty_a_day(
    home: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(home, f"{FOLDER}/c.json", record(item_id="c"))
    before = snapshot(home.settings.store)
    monkeypatch.setattr("recsys_assets.ingest.assets.fetch", lambda *_args, **_more: iter(()))
    ran = run(home, INGEST, [DAY], must=False)
    assert "the bucket now holds 0 bytes in 0 objects" in ran.said()
    assert snapshot(home.settings.store) == before


def test_a_rule_that_loses_most_events_is_refused_unless_forced(home: Pipeline) -> None:
    put(home, f"{FOLDER}/c.json", *(record(item_id=f"c{n}", action="CLICK") for n in range(9)))
    put(home, "logs/2025/11/04/n.json", record(action="CLICK"))
    run(home, INGEST, [DAY, "2025-11-04"])
    pipeline = changed(home, actions={"PURCHASE": 5, "CLICK": 2})
    before = snapshot(pipeline.settings.store / "interactions")
    ran = run(pipeline, INGEST, [DAY, "2025-11-04"], must=False)
    assert ran.said().startswith(f"{DAY}: 9 events would be kept where 30 are now")
    assert "21 unknown_action" in ran.said()
    assert f"recsys readmit --day {DAY} --force" in ran.said()
    after = snapshot(pipeline.settings.store / "interactions")
    assert after[f"{DAY}.parquet"] == before[f"{DAY}.parquet"]
    assert after["2025-11-04.parquet"] != before["2025-11-04.parquet"], "the other day is cleaned again"
    forced = run(pipeline, INGEST, [DAY], config=FORCE_CLEANING)
    assert forced.metadata("interactions", DAY)["kept"] == 9
    assert forced.metadata("interactions", DAY)["kept before"] == 30


def test_garbage_in_place_of_good_objects_is_refused(home: Pipeline) -> None:
    obj = home.bucket.head(f"{FOLDER}/a.json")
    assert obj is not None
    home.bucket.put(f"{FOLDER}/a.json", b"x" * obj.size)
    ran = run(home, INGEST, [DAY], must=False)
    assert "1 events would be kept where 21 are now" in ran.said()
    assert len(kept(home)) == 21


def test_events_that_go_with_their_objects_are_not_asked_about_twice(home: Pipeline) -> None:
    home.bucket.delete(f"{FOLDER}/a.json")
    run(home, ["raw_events"], [DAY], config={"ops": {"raw_events": {"config": {"force": True}}}})
    run(home, ["interactions"], [DAY])
    assert kept(home) == {"b"}


def test_the_rules_are_applied_counted_and_shown(home: Pipeline) -> None:
    robot = [record(user_id="robot", item_id=f"r{n}", timestamp=1762164000000 + n) for n in range(40)]
    put(
        home,
        f"{FOLDER}/c.json",
        *robot,
        record(user_id="v", timestamp=1762164000000),
        record(user_id="v", timestamp=1762167600001),
    )
    pipeline = changed(home, ingest={"max_events_per_hour": 30, "session_gap_minutes": 30})
    ran = run(pipeline, INGEST, [DAY])
    assert ran.metadata("rejected_events", DAY)["rejected too_many_events"] == 40
    assert ran.metadata("interactions", DAY)["kept"] == 23
    assert ran.checks()["every_record_accounted_for"]
    assert not any(item.startswith("r") for item in kept(pipeline))
    sessions = pipeline.tables.read("interactions", DAY).filter(pl.col("user_id") == "v")["session_id"]
    assert sorted(sessions) == [0, 1]
    off = changed(home, ingest={"max_shrink_share": 0.9})
    assert run(off, INGEST, [DAY]).metadata("interactions", DAY)["kept"] == 63, (
        "nothing was lost: raw_events has it all"
    )
    assert off.tables.read("interactions", DAY)["session_id"].null_count() == 63


@pytest.mark.parametrize("rule", ["max_events_per_hour", "session_gap_minutes"])
def test_a_rule_switched_on_or_off_cleans_again(home: Pipeline, rule: str) -> None:
    pipeline = changed(home, ingest={rule: 1000})
    assert run(pipeline, ["interactions"], [DAY]).metadata("interactions", DAY)["unchanged"] is False
    assert run(pipeline, ["interactions"], [DAY]).metadata("interactions", DAY)["unchanged"] is True
    assert run(changed(home), ["interactions"], [DAY]).metadata("interactions", DAY)["unchanged"] is False


def test_a_range_takes_over_what_it_can_when_a_day_is_refused(home: Pipeline) -> None:
    home.bucket.delete(f"{FOLDER}/a.json")
    put(home, "logs/2025/11/04/n.json", record())
    ran = run(home, ["raw_events"], [DAY, "2025-11-04"], must=False)
    assert ran.said().startswith(DAY)
    assert home.tables.days("raw_events") == [DAY, "2025-11-04"]
    assert (home.tables.info("raw_events", DAY) or {})["objects"] == 2


def test_an_empty_day_is_an_empty_partition(home: Pipeline) -> None:
    ran = run(home, INGEST, ["2025-11-02"])
    assert ran.checks()["every_record_accounted_for"]
    assert ran.metadata("raw_events", "2025-11-02")["objects"] == 0
    assert ran.metadata("interactions", "2025-11-02")["records in"] == 0
    assert len(home.tables.read("interactions", "2025-11-02")) == 0


def test_a_corrupt_object_loses_its_own_records_only(home: Pipeline) -> None:
    home.bucket.put(f"{FOLDER}/bad.json", b'{"timestamp": 17621')
    home.bucket.put(f"{FOLDER}/bad.json.gz", gzip.compress(b"[]" * 500)[:12] + b"\x00\xff\x00")
    put(home, f"{FOLDER}/good.json", record(item_id="good"))
    ran = run(home, INGEST, [DAY])
    assert ran.metadata("rejected_events", DAY)["rejected malformed_json"] == 2
    assert {"good", "b"} < kept(home)
    rejected = home.tables.read("interactions", DAY).filter(pl.col("reason").is_not_null())
    assert sorted(rejected["source_key"]) == [f"{FOLDER}/bad.json", f"{FOLDER}/bad.json.gz"]


def gone(pipeline: Pipeline) -> Pipeline:
    (pipeline.settings.home / "bucket").rename(pipeline.settings.home / "elsewhere")
    return Pipeline.open(pipeline.settings.home)


def other_prefix(pipeline: Pipeline) -> Pipeline:
    return changed(pipeline, bucket={"prefix": "log/"})


def emptied(pipeline: Pipeline) -> Pipeline:
    for obj in list(pipeline.bucket.walk("")):
        pipeline.bucket.delete(obj.key)
    return pipeline


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (gone, ["does not exist", "bucket.url", "bucket"]),
        (other_prefix, ["Nothing lies below", "/log/", "bucket.prefix", "Earlier partitions are as they were"]),
        (emptied, ["Nothing lies below", "/logs/", "bucket.url"]),
    ],
)
def test_a_bucket_that_cannot_be_right(home: Pipeline, harm: Callable[[Pipeline], Pipeline], said: list[str]) -> None:
    before = snapshot(home.settings.store)
    ran = run(harm(home), INGEST, [DAY], must=False)
    for words in said:
        assert words in ran.said()
    assert snapshot(home.settings.store) == before


def test_an_object_that_may_not_be_read(home: Pipeline) -> None:
    put(home, f"{FOLDER}/secret.json", record())
    secret = home.settings.home / "bucket" / FOLDER / "secret.json"
    secret.chmod(0)
    if os.access(secret, os.R_OK):  # root: once more, without the right to read everything
        if "WITHOUT_RIGHTS" in os.environ or not shutil.which("setpriv"):
            pytest.skip("this user may read everything, and there is no setpriv to take that away")
        rights = ("--bounding-set", "--inh-caps")
        command = ["setpriv", *(f"{which}=-dac_override,-dac_read_search" for which in rights), sys.executable]
        command += ["-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={home.settings.home.parent}/again"]
        again = subprocess.run(
            [*command, f"{__file__}::test_an_object_that_may_not_be_read"],
            env={**os.environ, "WITHOUT_RIGHTS": "1"},
            capture_output=True,
            text=True,
        )
        assert "1 passed" in again.stdout, again.stdout[-3000:]
        return
    before = snapshot(home.settings.store)
    ran = run(home, INGEST, [DAY], must=False)
    assert "access denied" in ran.said()
    assert "secret.json" in ran.said()
    assert snapshot(home.settings.store) == before


@pytest.fixture
def full_disk(trained_home: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """(pipeline, fill): a copy of the trained home whose store lies on a disk of its own; `fill(True)` leaves no byte
    free on it, `fill(False)` frees it. Where no disk can be mounted, fsync says what a full disk says."""
    pipeline = copy_home(trained_home, tmp_path / "home")
    store, filler = pipeline.settings.store, pipeline.settings.store / ".filler"
    store.rename(tmp_path / "copied")
    store.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", store], capture_output=True)
    if mounted.returncode:
        store.rmdir()
        (tmp_path / "copied").rename(store)
    else:
        subprocess.run(["cp", "-a", f"{tmp_path}/copied/.", store], check=True)
    fsync = files.fsync

    def fail(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def make(full: bool, leave: int = 0) -> None:
        if mounted.returncode:
            monkeypatch.setattr(files, "fsync", fail if full else fsync)
        elif full:
            with filler.open("wb", buffering=0) as handle:
                try:
                    while handle.write(b"\0" * 4096) == 4096:
                        pass
                except OSError:
                    handle.truncate(handle.tell() // 4096 * 4096 - leave)
        else:
            filler.unlink()

    try:
        yield pipeline, make
    finally:
        if not mounted.returncode:
            subprocess.run(["umount", "-l", store], check=True)


def test_no_disk_is_explained_by_every_asset_and_leaves_everything_as_it_was(full_disk: Any) -> None:
    pipeline, disk = full_disk
    day = TRAINED[-1]
    put(pipeline, f"logs/{day.replace('-', '/')}/late.json", record(timestamp=1762509600000))  # 2025-11-07
    run(pipeline, ["raw_events"], [DAYS[0]])  # views of the copied store, and this day's new ETags
    for asset in [
        "raw_events",
        "interactions",
        "training_set",
        "popularity_model",
        "repeat_model",
        "transition_model",
        "als_model",
        "sequence_model",
        "hybrid_model",
        "evaluation",
        "promotion",
        "recommendations",
        "similar_items",
    ]:
        disk(True)
        before = snapshot(pipeline.settings.store)
        ran = run(pipeline, [asset], [day], must=False)
        assert not ran.success, asset
        assert (
            f"Cannot write below {pipeline.settings.store}: No space left on device. Free or grow the disk"
            in ran.said()
        )
        assert snapshot(pipeline.settings.store) == before, asset
        disk(False)
        run(pipeline, [asset], [day])


def test_permissions_are_named_for_what_they_are(tmp_path: Path) -> None:
    wanted = "Cannot read or write below .*: Permission denied. Mend the permissions and run this again"
    with pytest.raises(dg.Failure) as raised, explained_failures(make_home(tmp_path)):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "raw_events/2025-11-01.parquet")
    assert re.match(wanted, raised.value.description or "")


def test_no_disk_for_the_views(full_disk: Any) -> None:
    pipeline, disk = full_disk
    pipeline.warehouse.path.unlink()
    put(pipeline, f"{FOLDER}/late.json", record())
    disk(True, leave=120_000)  # enough for a day, not for a database
    ran = run(pipeline, ["raw_events"], [DAY], must=False)
    assert "No space left on device" in ran.said()
    disk(False)
    run(pipeline, ["raw_events"], [DAY])
    assert pipeline.warehouse.path.exists()


@pytest.mark.parametrize("asset", INGEST)
def test_a_damaged_partition_is_explained_and_rebuilt(home: Pipeline, asset: str) -> None:
    path = home.tables.path(asset, DAY)
    good = pl.read_parquet(path)
    path.write_bytes(path.read_bytes()[:200])
    if asset == "raw_events":
        said = run(home, ["interactions"], [DAY], must=False).said()
        assert f"{path} is not the Parquet file that was published. Materialize raw_events for {DAY} again" in said
    assert run(home, [asset], [DAY]).metadata(asset, DAY)["unchanged"] is False
    assert pl.read_parquet(path).equals(good)


def test_yesterday_is_there(tmp_path: Path) -> None:
    pipeline = make_home(tmp_path, calendar={"last_day": date(2025, 11, 3)})
    missing = yesterday_is_there(pipeline=pipeline)
    assert not missing.passed
    assert missing.description == "interactions has no partition 2025-11-03"
    fill(pipeline, [DAY])
    run(pipeline, INGEST, [DAY])
    assert yesterday_is_there(pipeline=pipeline).passed
