"""A planted user is gone from every byte of the home, and stays gone."""

import base64
import gzip
import json
import os
import shutil
import sqlite3
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import ANY
from urllib.parse import quote, quote_plus

import dagster as dg
import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_assets.ingest.decode import RAW_SCHEMA
from recsys_assets.ingest.erased import cut_object
from recsys_assets.ingest.validate import ERASED, clean
from recsys_assets.launch import open_instance, run_job
from recsys_assets.pipeline import InputError, Pipeline
from recsys_assets.publishing.publish import publish_champion, publish_metrics
from recsys_assets.serving.recommend import Recommender
from recsys_assets.settings import Settings
from recsys_assets.sources.assets import users, watch_ratings
from recsys_assets.storage.artifacts import ArtifactError
from recsys_assets.storage.tombstones import Erased, Tombstones, digest_of
from recsys_assets.trust.assets import no_erased_user
from recsys_assets.trust.champion import roll_back
from recsys_assets.trust.erasure import Receipt, erase, finish, scan, unfinished
from recsys_assets.trust.plan import plan
from recsys_assets.trust.replay import replay
from recsys_assets.trust.retention import prune
from recsys_assets.trust.scrub import pattern, scrub
from recsys_assets_tests.graph import DAYS, INGEST, fill, make_home, run, snapshot

PLANTED = 'Zoë "Quux"/\\pläd 😀-7731'
FRIEND = "friend"  # whose records name the user and go with theirs
ERASE_DAYS = DAYS[:4]


def event(user: object, day: str, second: int, item: object = 5, **more: object) -> dict[str, Any]:
    moment = datetime.fromisoformat(f"{day}T12:00:00").replace(tzinfo=UTC)
    ms = int(moment.timestamp() * 1000) + second * 1000
    return {"timestamp": ms, "item_id": item, "user_id": user, "action": "VIEW", **more}


def plant(pipeline: Pipeline) -> dict[str, int]:
    """Puts the user's events into the bucket in many a guise. Returns key -> records that are the user's."""
    planted = {}
    for day in ERASE_DAYS:
        others = [event("bystander", day, second, item=7) for second in range(3)]
        mine = [event(PLANTED, day, second, item=9) for second in range(4)]
        lines = [json.dumps(each, ensure_ascii=False) for each in (others[0], *mine, mine[0], others[1])]
        odd = [
            event(PLANTED, day, 20, action="NEVER HEARD OF"),
            event([PLANTED], day, 21),
            event(FRIEND, day, 22, by=PLANTED),
        ]
        torn = json.dumps(event(PLANTED, day, 30), ensure_ascii=False)
        objects = {
            "array.json": (json.dumps([others[0], *mine, *odd, others[2]]).encode(), 7),
            "lines.ndjson.gz": (gzip.compress("\n".join(lines).encode()), 5),
            "wide.json": (json.dumps([*mine, others[1]], ensure_ascii=False).encode("utf-16"), 4),
            "torn.json": (f"[{json.dumps(others[0])}, {torn[:-1]}, {json.dumps(others[1])}".encode(), 1),
            "alone.json": (json.dumps(mine[:2]).encode(), 2),
        }
        for name, (content, count) in objects.items():
            key = f"logs/{day.replace('-', '/')}/{name}"
            pipeline.bucket.put(key, content)
            planted[key] = count
    return planted


def encodings(user: str) -> list[bytes]:
    """Independent of the code's own list."""
    raw = user.encode()
    texts = [user, json.dumps(user)[1:-1], json.dumps(json.dumps(user)[1:-1])[1:-1], quote(user), quote_plus(user)]
    shifted = [base64.b64encode(b"?" * pad + raw)[start:-4] for pad, start in enumerate((0, 2, 3))]
    found = [*(text.encode() for text in texts), *shifted, raw.hex().encode(), raw.hex().upper().encode()]
    # The parts that no writer changes give it away too, where an encoding was forgotten.
    return [*found, user.encode("utf-16-le"), user.encode("utf-16-be"), b"Quux", b"-7731", "Quux".encode("utf-16-le")]


def views(path: Path) -> Iterator[tuple[str, bytes]]:
    """A file as it is, and everything that lies compressed in it."""
    content = path.read_bytes()
    yield "bytes", content
    if content.startswith(b"\x1f\x8b"):
        yield "gzip", gzip.decompress(content)
    if content.startswith(b"\x28\xb5\x2f\xfd"):
        yield "zstd", pa.CompressedInputStream(pa.BufferReader(content), "zstd").read()
    if content.startswith(b"PAR1"):
        table = pq.read_table(path)
        for name in table.column_names:
            yield (
                name,
                repr(table[name].to_pylist()).encode()
                + b"".join(
                    each.encode() if isinstance(each, str) else each
                    for each in table[name].to_pylist()
                    if isinstance(each, str | bytes)
                ),
            )
    if content.startswith(b"SQLite format 3"):
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
            yield "dump", "\n".join(connection.iterdump()).encode("utf-8", "surrogateescape")
            for (table_name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                for row in connection.execute(f'SELECT * FROM "{table_name}"'):
                    for cell in row:
                        if isinstance(cell, bytes):
                            try:
                                yield "zlib", zlib.decompress(cell)
                            except zlib.error:
                                yield "blob", cell
    if zipfile.is_zipfile(path):  # NumPy's .npz too
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                yield member, archive.read(member)
    if path.suffix == ".duckdb":
        with duckdb.connect(path, read_only=True) as connection:
            for (view,) in connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall():
                yield view, repr(connection.sql(f'FROM "{view}"').fetchall()).encode()


def traces_of(user: str, folder: Path) -> list[str]:
    wanted = encodings(user)
    return [
        f"{path.relative_to(folder)} ({what})"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        for what, content in views(path)
        if any(each in content for each in wanted)
    ]


@pytest.fixture(scope="module")
def planted_home(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pipeline, dict[str, int]]:
    """A home with the user in it everywhere; its bucket lies beside it."""
    folder = tmp_path_factory.mktemp("erasure")
    (folder / "bucket").mkdir()
    pipeline = make_home(
        folder / "home",
        bucket={"url": "file://../bucket"},
        training={"seed": 8, "validation_days": 2},  # by which the user is drawn into the hold-out
        holdout={"users_share": 0.4, "min_users": 2},
        sequence={"max_tokens": 1000},
    )
    fill(pipeline, ERASE_DAYS)
    planted = plant(pipeline)
    home = pipeline.settings.home
    with open_instance(pipeline) as instance:
        run_job("ingest", ERASE_DAYS, pipeline, instance)
        run_job("train", ERASE_DAYS[-1:], pipeline, instance)
        instance.report_runless_asset_event(
            dg.AssetObservation("interactions", partition=DAYS[0], description=f"a person noted {PLANTED} here")
        )
    (home / "dagster/storage/some-run").mkdir(parents=True)
    (home / "dagster/storage/some-run/x.err").write_text(f"KeyError: {PLANTED!r}\nGET /u/{quote(PLANTED)}\n")
    with sqlite3.connect(home / "dagster/history/gone.db") as connection:
        connection.execute("PRAGMA secure_delete=OFF")
        connection.execute("CREATE TABLE t (x TEXT)")
        connection.executemany("INSERT INTO t VALUES (?)", [(f"{n} {PLANTED}",) for n in range(100)])
        connection.commit()
        connection.execute("DELETE FROM t")  # the pages are free, and as they were
    (home / "store/recommendations/.tmp-999999999-abc").write_text(PLANTED)
    (home / "store/queue_rejected").mkdir()
    (home / "store/queue_rejected/1.json").write_text(json.dumps({"body": json.dumps({"who": PLANTED})}))
    publish_metrics(pipeline, "file://published")
    publish_champion(pipeline, "file://published")
    return pipeline, planted


def forget(pipeline: Pipeline, user: str | None, delete_source: bool = False) -> list[Receipt]:
    with open_instance(pipeline) as instance:
        receipts = erase(
            pipeline,
            user,
            delete_source,
            lambda job, days, config: run_job(job, days, pipeline, instance, None, config),
            lambda _: None,
        )
    finish(pipeline, user, receipts, lambda _: None)
    return receipts


def totals(pipeline: Pipeline) -> dict[str, int]:
    """Records that came in, and events of everybody else that were kept."""
    found = {"in": 0, "others": 0}
    for day in ERASE_DAYS:
        info = pipeline.tables.info("interactions", day) or {}
        counts = info["counts"]
        assert counts["records_in"] == counts["kept"] + counts["duplicates"] + sum(counts["rejected"].values())
        found["in"] += counts["records_in"]
        frame = pipeline.tables.read("interactions", day).filter(pl.col("reason").is_null())
        assert len(frame) == counts["kept"]
        found["others"] += len(frame.filter(~pl.col("user_id").is_in([PLANTED, FRIEND])))
    return found


def test_an_erased_user_is_in_no_byte_and_never_comes_back(
    planted_home: tuple[Pipeline, dict[str, int]], tmp_path: Path
) -> None:
    pipeline, planted = planted_home
    home = pipeline.settings.home
    before = traces_of(PLANTED, home)
    for place in ("raw_events/", "interactions/", "training_set/", "holdout/", "recommendations/2", ".tmp-", "x.err",
                  "gone.db", "index.db", "warehouse", "queue_rejected"):  # fmt: skip
        assert any(place in each for each in before), f"nothing was planted in {place}"
    counted, list_before = totals(pipeline), pipeline.tables.read("recommendations", ERASE_DAYS[-1])
    holdout = pl.read_parquet(home / "store/holdout/v1.parquet")

    (receipt,) = forget(pipeline, PLANTED)

    assert traces_of(PLANTED, home) == []
    assert totals(pipeline) == counted, "records are conserved, and the others' events are all there"
    said = receipt.content
    assert said["finished"]
    assert {each["what"] for each in said["touched"]} == {
        "raw_events", "interactions", "recommendations", "holdout", "dagster", "messages"
    }  # fmt: skip
    assert {each["day"] for each in said["touched"] if each["what"] == "raw_events"} == set(ERASE_DAYS)
    assert {each["key"]: each["records"] for each in said["source"]} == planted
    assert {each["what"] for each in said["source"]} == {"listed"}
    assert {each["asset"] for each in said["refit"]} >= {"als_model", "sequence_model", "hybrid_model"}
    assert not said["left"]
    rejected = pipeline.tables.info("interactions", DAYS[0])["counts"]["rejected"]  # type: ignore[index]
    assert rejected[ERASED] == sum(planted.values()) / len(ERASE_DAYS)
    with open_instance(pipeline) as instance:
        assert "interactions" not in {each.asset for each in plan(pipeline, instance).outdated}, "as raw is now"
    frozen = pl.read_parquet(home / "store/holdout/v1.parquet")
    assert frozen.equals(holdout.filter(pl.col("user_id") != PLANTED))
    # The champion serves on, and everybody else has a list.
    lists = pipeline.tables.read("recommendations", ERASE_DAYS[-1])
    assert set(lists["user_id"]) == set(list_before["user_id"]) - {PLANTED, FRIEND}
    recommender = Recommender.open(pipeline)
    assert not recommender.knows(PLANTED)
    assert recommender.recommend("bystander", 5)

    # The old day again, from the bucket that has the records still; and rebuilt from raw_events.
    pipeline.tables.path("raw_events", DAYS[0]).unlink()
    pipeline.tables.path("interactions", DAYS[1]).unlink()
    run(pipeline, INGEST, DAYS[:2])
    list(replay(pipeline, DAYS[1], "interactions", home / "again", lambda _: None))
    assert traces_of(PLANTED, home) == []
    assert totals(pipeline) == counted
    run(pipeline, ["training_set", "popularity_model", "als_model"], ERASE_DAYS[-1:])
    assert pipeline.artifacts.need("als_model", ERASE_DAYS[-1]).info["mode"] == "full refit"
    compared = list(replay(pipeline, ERASE_DAYS[-1], "popularity_model", tmp_path / "again", lambda _: None))
    assert compared
    assert all(each.difference is None for each in compared)
    assert traces_of(PLANTED, home) == traces_of(PLANTED, tmp_path) == []
    assert list(scan(pipeline)) == []

    # The bucket, only when asked.
    assert traces_of(PLANTED, home.parent / "bucket")
    (receipt,) = forget(pipeline, PLANTED, delete_source=True)
    assert {each["what"] for each in receipt.content["source"]} == {"rewritten", "deleted"}
    assert traces_of(PLANTED, home.parent) == []
    run(pipeline, INGEST, ERASE_DAYS)
    assert totals(pipeline)["others"] == counted["others"]


def test_a_check_finds_who_came_back(tmp_path: Path) -> None:
    pipeline = make_home(tmp_path / "home")
    fill(pipeline, DAYS[:1])
    plant(pipeline)
    run(pipeline, INGEST, DAYS[:1])
    pipeline.tombstones.add(PLANTED)  # and the erasure was killed
    assert {trace.what for trace in scan(pipeline)} == {"raw_events", "interactions"}
    result = no_erased_user(pipeline)
    assert isinstance(result, dg.AssetCheckResult)
    assert not result.passed
    assert "run `recsys erase`" in (result.description or "")
    pipeline.tables.path("interactions", DAYS[0]).unlink()
    run(pipeline, ["interactions"], DAYS[:1])  # from raw_events that hold the user still
    assert {trace.what for trace in scan(pipeline)} == {"raw_events"}
    (again,) = replay(pipeline, DAYS[0], "interactions", tmp_path / "again", lambda _: None)
    assert again.difference is None
    assert traces_of(PLANTED, tmp_path / "again/store/interactions") == []
    forget(pipeline, None)
    assert list(scan(pipeline)) == []
    assert len(unfinished(pipeline)) == 1, "the logs take the id"
    forget(pipeline, PLANTED)
    assert traces_of(PLANTED, tmp_path / "home/store") == traces_of(PLANTED, tmp_path / "home/dagster") == []
    assert unfinished(pipeline) == []
    result = no_erased_user(pipeline)
    assert isinstance(result, dg.AssetCheckResult)
    assert result.passed


def test_every_table_of_users_and_its_exports(tmp_path: Path) -> None:
    pipeline = make_home(tmp_path)
    rows = pl.DataFrame({"user_id": ["31", "32"], "item_id": ["31", "31"]})
    for table in ("audience", "user_features"):
        pipeline.tables.publish_frame(table, DAYS[0], rows, {"rows": 2, "users": 2})
    pipeline.tables.publish_frame("users", DAYS[0], rows.rename({"user_id": "name"}).drop("item_id"), {"rows": 2})
    export = pipeline.settings.store / f"audience/{DAYS[0]}.csv"
    rows.write_csv(export)
    with pipeline.artifacts.publish("propensity_model", DAYS[0], "v", {}):
        pass
    (receipt,) = erase(pipeline, " 31 ", False, lambda *_: None, lambda _: None)
    assert pipeline.tables.read("audience", DAYS[0]).rows() == [("32", "31")]
    assert pipeline.tables.info("audience", DAYS[0]) == {"rows": 1, "users": 1}
    assert pipeline.tables.read("users", DAYS[0]).rows() == [("32",)]
    assert not export.exists()
    assert [each["asset"] for each in receipt.content["refit"]] == ["propensity_model"]
    assert {each["what"] for each in receipt.content["touched"]} == {"audience", "user_features", "users"}


def test_what_a_run_made_of_a_removed_training_set_goes_too(tmp_path: Path) -> None:
    """A training that was under way ends after the erasure, and the next one goes on from its model."""
    pipeline = make_home(tmp_path)

    def publish(asset: str, day: str, version: str, parent: str | None = None) -> None:
        info = {"inputs": {"training_set": f"set of {day}"}, "parent": parent and {"day": DAYS[0], "version": parent}}
        with pipeline.artifacts.publish(asset, day, version, info) as folder:
            if asset == "training_set":
                users = ["31", "32"] if day == DAYS[0] else ["32"]
                pl.DataFrame({"user_id": users}).write_parquet(folder / "users.parquet")

    for day in DAYS[:2]:
        publish("training_set", day, f"set of {day}")
        publish("als_model", day, "before")
    (receipt,) = erase(pipeline, "31", False, lambda *_: None, lambda _: None)
    assert receipt.removed_sets() == {("training_set", DAYS[0], f"set of {DAYS[0]}")}
    assert list(scan(pipeline)) == []
    publish("als_model", DAYS[0], "under way")
    publish("als_model", DAYS[1], "went on", "under way")
    assert [(trace.what, trace.which) for trace in scan(pipeline)] == [
        ("als_model", f"{DAYS[0]}/under way"),
        ("als_model", f"{DAYS[1]}/went on"),
    ]
    forget(pipeline, None)
    assert list(scan(pipeline)) == []
    assert [pipeline.artifacts.versions("als_model", day) for day in DAYS[:2]] == [[], ["before"]]


def test_the_champion_of_then_goes_when_another_is_in_charge(tmp_path: Path) -> None:
    pipeline = make_home(tmp_path)
    pipeline.tombstones.add("31")
    (digest,) = pipeline.tombstones.read().digests
    made = {"inputs": {"training_set": "of them", "members": {}}, "training_set": "of them", "parent": None}
    with pipeline.artifacts.publish("training_set", DAYS[0], "of them", {}) as folder:
        pl.DataFrame({"user_id": ["31"]}).write_parquet(folder / "users.parquet")
    with pipeline.artifacts.publish("hybrid_model", DAYS[0], "then", made):
        pass
    pipeline.champion.move(DAYS[0], "then", "the first")
    forget(pipeline, None)
    prune(pipeline)
    assert pipeline.artifacts.versions("hybrid_model", DAYS[0]) == ["then"], "nobody else is there"
    assert list(scan(pipeline)) == []
    with pipeline.artifacts.publish(
        "hybrid_model", DAYS[1], "now", made | {"training_set": "another", "inputs": {"members": {}}}
    ):
        pass
    pipeline.champion.move(DAYS[1], "now", "not worse")
    assert [trace.which for trace in scan(pipeline)] == [f"{DAYS[0]}/then"]
    prune(pipeline)
    assert list(scan(pipeline)) == []
    with pytest.raises(ArtifactError, match="learned from a user who was erased"):
        roll_back(pipeline, None, "back")
    assert Receipt(pipeline.tombstones.folder, digest).content["refit"]


def test_days_that_left_the_calendar_are_cleaned_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = make_home(tmp_path)
    for day in DAYS[:2]:
        events = [event("zoe-77", day, 1), event("bob", day, 2)]
        pipeline.bucket.put(f"logs/{day.replace('-', '/')}/x.json", json.dumps(events).encode())
    run(pipeline, INGEST, DAYS[:2])
    moved = dg.DailyPartitionsDefinition(start_date=DAYS[1])
    monkeypatch.setattr("recsys_assets.trust.erasure.daily", moved)
    asked = []
    erase(pipeline, "zoe-77", False, lambda job, days, _: asked.append((job, days)), lambda _: None)
    assert asked == [("readmit", DAYS[1:2])]
    kept = pipeline.tables.read("interactions", DAYS[0])
    assert kept.filter(pl.col("reason").is_null())["user_id"].to_list() == ["bob"]
    assert [(trace.what, trace.which) for trace in scan(pipeline)] == [("interactions", DAYS[1])], "that run was none"


@pytest.mark.parametrize(
    "name", ["raw_events/2025-11-01.parquet", "audience/2025-11-01.parquet", "training_set/2025-11-01/v/users.parquet"]
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    pipeline = make_home(tmp_path)
    path = tmp_path / "store" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(ArtifactError, match=f"{path} is damaged, so nobody can tell"):
        erase(pipeline, "zoe-77", False, lambda *_: None, lambda _: None)
    assert len(unfinished(pipeline)) == 1


def test_a_day_that_was_mostly_the_users_is_read_again_without_them(tmp_path: Path) -> None:
    pipeline = make_home(tmp_path)
    for day, others in ((DAYS[0], 1), (DAYS[1], 0)):
        events = [event("zoe-77", day, second) for second in range(20)] + [event("bob", day, 1)] * others
        pipeline.bucket.put(f"logs/{day.replace('-', '/')}/x.json", json.dumps(events).encode())
    run(pipeline, INGEST, DAYS[:2])
    (receipt,) = forget(pipeline, "zoe-77", delete_source=True)
    assert [each["what"] for each in receipt.content["source"]] == ["rewritten", "deleted"]
    (receipt,) = forget(pipeline, "zoe-77", delete_source=True)
    assert [each["what"] for each in receipt.content["source"]] == ["rewritten", "deleted"], "what was done stays said"
    run(pipeline, INGEST, DAYS[:2])  # which refuses a day that loses more than half for no reason
    assert [(pipeline.tables.info("raw_events", day) or {})["objects"] for day in DAYS[:2]] == [1, 0]
    assert pipeline.tables.read("interactions", DAYS[0])["user_id"].to_list() == ["bob"]


def test_two_erasures_of_one_user_lose_no_note(tmp_path: Path) -> None:
    pipeline = make_home(tmp_path)
    first, second = (erase(pipeline, "zoe-77", False, lambda *_: None, lambda _: None) for _ in range(2))
    first[0].note("touched", {"what": "raw_events", "day": DAYS[0]})
    finish(pipeline, "zoe-77", second, lambda _: None)
    assert Receipt(pipeline.tombstones.folder, first[0].tombstone).content["touched"]


def test_a_day_that_cannot_be_cleaned_again_is_in_the_receipt(tmp_path: Path) -> None:
    pipeline = make_home(tmp_path)
    rows = pl.DataFrame({"user_id": ["31", "32"], "excerpt": [None, None], "detail": [None, None]})
    pipeline.tables.publish_frame("interactions", DAYS[0], rows.cast(pl.String), {"version": "v"})
    (receipt,) = erase(pipeline, "31", False, lambda *_: None, lambda _: None)
    ((asset, day, why),) = [tuple(each.values()) for each in receipt.content["removed"]]
    assert (asset, day) == ("interactions", DAYS[0])
    assert "materialize them again" in why
    assert pipeline.tables.days("interactions") == []


def test_rows_of_a_database_are_cut_on_the_way_in(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "shop.db") as database:
        database.execute("CREATE TABLE people (nr INTEGER PRIMARY KEY, login TEXT, age INTEGER)")
        database.executemany("INSERT INTO people VALUES (?, ?, ?)", [(31, "zoe", 7), (32, "max", 31), (33, "31", 9)])
        database.execute("CREATE TABLE seen (nr INTEGER PRIMARY KEY, who INTEGER, what TEXT, at INTEGER, s INT, l INT)")
        at = int(datetime.fromisoformat(f"{DAYS[0]}T12:00+00:00").timestamp())
        seen = [(number, who, "p", at, 50, 100) for number, who in enumerate([31, 32, 31, 33])]
        database.executemany("INSERT INTO seen VALUES (?, ?, ?, ?, ?, ?)", seen)
    watches = {"table": "seen", "user": "who", "item": "what", "time": "at", "time_unit": "s", "seconds": "s"}
    sql = {"url": f"sqlite:///{tmp_path}/shop.db", "users": {"table": "people"}, "watches": {**watches, "length": "l"}}
    pipeline = make_home(tmp_path / "home", sql=sql)

    def load(day: str) -> None:
        assert dg.materialize([users, watch_ratings], resources={"pipeline": pipeline}, partition_key=day).success

    def rows(day: str) -> tuple[list[Any], list[Any]]:
        people, ratings = (pipeline.tables.read(table, day) for table in ("users", "watch_ratings"))
        return people.rows(), ratings["user_id"].to_list()

    load(DAYS[0])
    assert rows(DAYS[0]) == ([(31, "zoe", 7), (32, "max", 31), (33, "31", 9)], ["31", "32", "33"])
    erase(pipeline, "31", False, lambda *_: None, lambda _: None)
    left = ([(32, "max", 31)], ["32", "33"])
    assert rows(DAYS[0]) == left, "a key or a text is an id, another number is none"
    load(DAYS[1])
    assert rows(DAYS[1]) == left
    assert (pipeline.tables.info("users", DAYS[1]) or {})["erased"] == 2
    assert (pipeline.tables.info("watch_ratings", DAYS[1]) or {})["rows"]["watches of erased users"] == 2
    assert (pipeline.tables.info("watch_ratings", DAYS[0]) or {})["pairs"] == 2
    assert list(scan(pipeline)) == []


def test_digits_take_nobody_else_along(tmp_path: Path) -> None:
    tombstones = Tombstones(tmp_path)
    tombstones.add("31")
    records = [event(31, DAYS[0], 1), event(31.0, DAYS[0], 2), event(" 31 ", DAYS[0], 3), event(310, DAYS[0], 4)]
    for odd in ({"user_id": [31]}, {"note": {"user_id": ["x", "31"]}}):
        assert cut_object(json.dumps(odd).encode(), True, tombstones.read())[1] == 1
    assert cut_object(b'{"user_id": -0}', True, Erased(b"key", [digest_of(b"key", "0")]))[1] == 1, "0 to cleaning"
    records += [event("x", DAYS[0], 5, item=31), event("y", DAYS[0], 6, item="31", price=31)]
    content, cut = cut_object(json.dumps(records).encode(), True, tombstones.read())
    assert cut == 3
    assert [each.get("user_id") for each in json.loads(content)] == [None, None, None, 310, "x", "y"]
    assert stat.S_IMODE(os.stat(tmp_path / "erasure/key").st_mode) == 0o600
    (entry,) = json.loads((tmp_path / "erasure/tombstones.json").read_text())
    assert set(entry) == {"tombstone", "since"}
    assert entry["tombstone"] == digest_of((tmp_path / "erasure/key").read_bytes(), "31")
    assert entry["tombstone"] != digest_of(bytes(32), "31"), "without the key nobody can try an id"
    (tmp_path / "erasure/key").unlink()
    with pytest.raises(ArtifactError, match="is gone"):
        tombstones.read()


@pytest.mark.parametrize("user", ["VIEW", "view ", "price", "erased", "recsys"])
def test_who_is_called_like_a_word_of_every_record_takes_nobody_along(user: str) -> None:
    erased = Erased(b"key", [digest_of(b"key", user.strip())], ["VIEW", "CLICK"])
    others = [event("bob", DAYS[0], second, price=2, note={"by": "view"}) for second in range(3)]
    marked = json.dumps([{"recsys": "erased"}, *others]).encode()
    assert cut_object(marked, True, erased) == (marked, 0)
    assert cut_object(marked[:-9], False, erased) == (marked[:-9], 0), "nor of one that is torn"
    mine = [*others, event(user, DAYS[0], 5), {"note": {"userId": user}}, others[0]]
    for text in (json.dumps(mine), "\n".join(json.dumps(each) for each in mine)):
        assert cut_object(text.encode(), True, erased)[1] == 2
    torn = b'[%s, {"user_id": "%s", "action": "VIEW", "item_id": 3' % (json.dumps(others[0]).encode(), user.encode())
    assert cut_object(torn, True, erased)[1] == 1


@pytest.mark.parametrize(
    "record",
    [
        {"userId": 918273645},
        {"item_id": 3, "uid": "918273645"},
        {"User-ID": 918273645.0},
        {"user": {"id": 918273645, "age": 3}},
        {"context": {"user": [{"id": "918273645"}]}},
        {"body": json.dumps({"message": json.dumps({"user_id": 918273645})})},
    ],
)
def test_digits_are_an_id_wherever_a_users_stands(record: dict[str, Any]) -> None:
    erased = Erased(b"key", [digest_of(b"key", "918273645")])
    other = {"user_id": "bob", "item_id": 918273645, "user": {"age": 918273645}, "price": 918273645}
    content, cut = cut_object(json.dumps([record, other]).encode(), True, erased)
    assert cut == 1
    assert json.loads(content)[1] == other
    if "{" not in json.dumps(record)[1:]:  # not nested
        assert cut_object(json.dumps(record).encode()[:-1], True, erased)[1] == 1, "of one that cannot be read too"


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(config={"threads": 1}) as opened:
        yield opened


USERS = st.sampled_from(["alice", "bob", 'é"\\', "12", 12, 12.0, "alice2", None])
PIECES = st.lists(
    st.one_of(
        USERS.map(lambda user: json.dumps(event(user, DAYS[0], 1))),
        USERS.map(lambda user: json.dumps(event(user, DAYS[0], 1), ensure_ascii=False)[:-1]),
        USERS.map(lambda user: json.dumps({"note": {"user_id": user}})),
        st.sampled_from(["5", "null", '"alice"', "[1, 2]", "{", "]", '"', "garbage", '{"a": "b', ""]),
    ),
    max_size=6,
)


@settings(max_examples=25, deadline=None)
@given(
    pieces=PIECES,
    frame=st.sampled_from(["[%s]", "%s", "[%s"]),
    between=st.sampled_from([",", "\n", ", \n"]),
    is_sound=st.booleans(),
)
def test_any_text_is_cut_clean_and_loses_no_event_of_others(
    connection: duckdb.DuckDBPyConnection, pieces: list[str], frame: str, between: str, is_sound: bool
) -> None:
    erased = Erased(b"key", [digest_of(b"key", user) for user in ("alice", 'é"\\', "12")])
    text = (frame % between.join(pieces)).encode().lstrip()

    def cleaned(content: bytes) -> Any:
        why = (None, None) if is_sound else ("malformed_json", "cut off")
        row = {"key": "k", "etag": "e", "size": 1, "last_modified": datetime(2025, 11, 1), "content": content}
        raw = pa.Table.from_pylist([row | dict(zip(("reason", "detail"), why, strict=True))], RAW_SCHEMA)
        return clean(connection, raw, DAYS[0], Settings(home=Path()))

    made, cut = cut_object(text, is_sound, erased)
    assert cut_object(made, is_sound, erased) == (made, 0), "once is enough"
    before, after = cleaned(text), cleaned(made)
    assert after.records_in == before.records_in
    users = before.interactions["user_id"]
    assert after.interactions.equals(before.interactions.filter(~users.is_in(["alice", 'é"\\', "12"])))
    assert bool(cut) or made == text


def test_objects_that_cannot_be_cut_are_left_and_said(tmp_path: Path) -> None:
    """One that nobody can read any more, and one whose day is that of its last change."""
    pipeline, folder = make_home(tmp_path), f"logs/{DAYS[0].replace('-', '/')}"
    content = json.dumps([event("zoe-77", DAYS[0], 1), event("bob", DAYS[0], 1)]).encode()
    for key in (f"{folder}/torn.json.gz", "logs/undated.json"):
        pipeline.bucket.put(key, gzip.compress(content) if key.endswith(".gz") else content)
    noon = datetime.fromisoformat(f"{DAYS[0]}T12:00+00:00").timestamp()
    os.utime(tmp_path / "bucket/logs/undated.json", (noon, noon))
    run(pipeline, ["raw_events"], DAYS[:1])
    pipeline.bucket.put(f"{folder}/torn.json.gz", gzip.compress(content)[:9] + bytes(99))
    before = snapshot(tmp_path / "bucket")
    receipts = erase(pipeline, "zoe-77", True, lambda *_: None, lambda _: None)
    finish(pipeline, "zoe-77", receipts, lambda _: None)
    said = {each["key"]: each["what"] for each in receipts[0].content["source"]}
    assert said.pop("logs/undated.json").startswith("left: its day is that of its last change")
    assert said.pop(f"{folder}/torn.json.gz").startswith("refused: it cannot be read, so nobody knows who is in it")
    assert said == {}
    assert snapshot(tmp_path / "bucket") == before
    assert receipts[0].content["finished"] is None


def test_an_object_that_came_after_the_erasure_is_cut_too(tmp_path: Path) -> None:
    """With an id that a person gave with spaces around it, in objects of every kind."""
    pipeline, folder = make_home(tmp_path, bucket={"max_object_mb": 1}), f"logs/{DAYS[0].replace('-', '/')}"
    log = pipeline.settings.home / "dagster" / "x.log"
    log.parent.mkdir()
    log.write_text("KeyError: 'zoe-77'\n")

    def put(name: str, user: str, pack: Callable[[bytes], bytes] = bytes, times: int = 1) -> None:
        events = [event(user, DAYS[0], second) for second in range(times)]
        pipeline.bucket.put(f"{folder}/{name}", pack(json.dumps([*events, event("bob", DAYS[0], 1)]).encode()))

    def ask(delete_source: bool) -> tuple[dict[str, str], Any]:
        receipts = erase(pipeline, " zoe-77\t", delete_source, lambda *_: None, lambda _: None)
        finish(pipeline, " zoe-77\t", receipts, lambda _: None)
        content = receipts[0].content
        return {each["key"].removeprefix(f"{folder}/"): each["what"] for each in content["source"]}, content["finished"]

    for name in ("grown.json", "gone.json"):
        put(name, "zoe-77")
    run(pipeline, ["raw_events"], DAYS[:1])
    assert ask(False) == ({"grown.json": "listed", "gone.json": "listed"}, ANY)
    assert log.read_text() == "KeyError: '[erased]'\n"
    (tmp_path / "bucket" / folder / "gone.json").unlink()
    put("late.json", "zoe-77")
    put("late.json.gz", "zoe-77", gzip.compress)
    put("late.json.zst", "zoe-77", lambda text: pa.compress(text, codec="zstd", asbytes=True))
    pipeline.tombstones.add("another")
    put("anothers.json", "another")
    run(pipeline, ["raw_events"], DAYS[:1])
    put("grown.json", "zoe-77", times=15_000)
    before = (tmp_path / "bucket" / folder / "grown.json").read_bytes()
    said, finished = ask(True)
    assert said.pop("grown.json").startswith("refused: it has ")
    rewritten = dict.fromkeys(("late.json", "late.json.gz", "late.json.zst"), "rewritten")
    assert said == {"gone.json": "gone", **rewritten}
    assert finished is None, "one object could not be looked into"
    assert (tmp_path / "bucket" / folder / "grown.json").read_bytes() == before
    for name in rewritten:
        *_, (how, text) = views(tmp_path / "bucket" / folder / name)
        assert how == {"late.json": "bytes", "late.json.gz": "gzip", "late.json.zst": "zstd"}[name], "packed as it was"
        assert [each["user_id"] for each in json.loads(text)] == ["bob"]
    put("grown.json", "zoe-77")
    said, finished = ask(True)
    assert said["grown.json"] == "rewritten"
    assert finished


@pytest.mark.parametrize(
    "text",
    [
        "KeyError: 'zoé/77'",
        r'{"message": "{\"by\": \"zo\u00e9/77\"}"}',
        r'{"by": "zo\u00E9\/77"}',
        "logs/user%3Dzo%C3%A9/77/part.json",
        "GET /?q=%22zo%c3%a9%2f77%22",
        r"a line\nzoé/77\n",
        r"\u0022zo\u00e9/77\u0022",
        r"KeyError: 'zo\xe9/77' b'\x22zo\xc3\xa9/77'",
        "\x1b[31mzoé/77\x1b[0m",
        "\x1b[1;31mzoé/77",
        "&quot;zoé/77&quot;",
    ],
)
def test_an_id_is_found_however_it_is_written_and_none_that_is_longer(text: str) -> None:
    found = pattern("zoé/77")
    assert found.search(text.encode())
    for longer in ("azoé/77", "zoé/778", "zoé/7", "2zo\\u00e9/77"):
        assert not found.search(longer.encode())


@pytest.mark.parametrize("user", ["dagster", "ingest", "SUCCESS", "als", "default"])
def test_who_is_called_like_a_word_of_dagster_leaves_its_history_readable(user: str) -> None:
    text = (
        f'{{"__class__": "DagsterRun", "job_name": "{user}", "tags": {{"{user}/x": "als_model"}}, "by": "user {user}"}}'
    )
    wanted = pattern(user)
    assert wanted.findall(text.encode()) == [b"user "]
    assert wanted.search(f"KeyError: user_id='{user}'".encode())


def test_digits_in_a_history_leave_json_behind(tmp_path: Path) -> None:
    said = {"user": 918273645, "text": "user '918273645'", "at": 918273645.25, "other": [9182736450, 1.918273645]}
    (tmp_path / "x.json").write_text(json.dumps(said))
    assert len(list(scrub(tmp_path, "918273645"))) == 1
    assert json.loads((tmp_path / "x.json").read_text()) == {
        "user": 0, "text": "user '0'", "at": 918273645.25, "other": [9182736450, 1.0]
    }  # fmt: skip


def test_reasons_that_people_gave_are_masked(tmp_path: Path) -> None:
    pipeline = make_home(tmp_path)
    pipeline.champion.move(DAYS[0], "v", 'since "zoe-77" asked', "rolled back")
    (tmp_path / "store/holdout").mkdir()
    (tmp_path / "store/holdout/current.json").write_text(json.dumps({"version": 1, "reason": "zoe-77"}))
    rows = pl.DataFrame({"reason": ["was rolled back (zoe-77)"], "ndcg": [0.5]})
    pipeline.tables.publish_frame("promotion", DAYS[0], rows, {"rows": 1, "reason": "zoe-77"})
    receipts = erase(pipeline, "zoe-77", False, lambda *_: None, lambda _: None)
    finish(pipeline, "zoe-77", receipts, lambda _: None)
    assert [what for path in (tmp_path / "store").rglob("*.*") for what, each in views(path) if b"zoe-77" in each] == []
    (move,) = pipeline.champion.timeline()
    assert (move["version"], move["reason"]) == ("v", 'since "[erased]" asked')
    assert pipeline.tables.read("promotion", DAYS[0]).rows() == [("was rolled back ([erased])", 0.5)]
    assert pipeline.tables.info("promotion", DAYS[0]) == {"rows": 1, "reason": "[erased]"}
    places = [each["what"] for each in receipts[0].content["touched"]]
    assert places == ["champion.json", "holdout/current.json", f"promotion/{DAYS[0]}"]
    assert not receipts[0].content["left"]


def test_an_id_that_lies_in_two_pages_of_a_database(tmp_path: Path) -> None:
    """A long text is spread over pages: in some of these databases the id itself is cut in two."""
    user, places = "zoe-7777-abcdefgh", range(1_720, 1_750, 4)
    for n in places:
        with closing(sqlite3.connect(tmp_path / f"{n}.db")) as database:
            database.execute("CREATE TABLE t (x TEXT)")
            database.execute("INSERT INTO t VALUES (?)", ("y" * n + f" {user} " + "z" * (14_000 - n),))
            database.commit()
    assert not all(user.encode() in (tmp_path / f"{n}.db").read_bytes() for n in places)
    assert [times for _, times in scrub(tmp_path, user)] == [1] * len(places)
    for n in places:
        with closing(sqlite3.connect(tmp_path / f"{n}.db")) as database:
            assert user not in database.execute("SELECT x FROM t").fetchone()[0]
    before = snapshot(tmp_path)
    assert list(scrub(tmp_path, user)) == []
    assert snapshot(tmp_path) == before


def test_a_database_that_is_being_read_is_not_called_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys_assets.trust.scrub._PATIENCE_SECONDS", 0.05)
    with closing(sqlite3.connect(tmp_path / "x.db", isolation_level=None)) as ours:
        ours.execute("PRAGMA journal_mode=WAL")
        ours.execute("CREATE TABLE t (x TEXT)")
        ours.execute("INSERT INTO t VALUES ('zoe-77')")
        with closing(sqlite3.connect(tmp_path / "x.db", isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM t").fetchall()
            with pytest.raises(InputError, match=r"x\.db is in use by another process"):
                list(scrub(tmp_path, "zoe-77"))
        assert len(list(scrub(tmp_path, "zoe-77"))) == 1
        assert not any(b"zoe-77" in path.read_bytes() for path in tmp_path.iterdir())


@pytest.mark.parametrize("user", ["zoe-77", "31"])
def test_files_that_a_person_put_into_the_home_are_named(tmp_path: Path, user: str) -> None:
    """Packed ones too. Of those with the same word in another place, nothing is said."""
    pipeline, copies = make_home(tmp_path), tmp_path / "copies"
    copies.mkdir()
    lines = json.dumps({"user_id": user, "price": 1}).encode()
    (copies / "export.json").write_bytes(lines)
    (copies / "export.json.gz").write_bytes(gzip.compress(lines))
    (copies / "export.json.zst").write_bytes(pa.compress(lines, codec="zstd", asbytes=True))
    pl.DataFrame({"user_id": [user]}).write_parquet(copies / "lists.parquet")
    pl.DataFrame({"content": [lines, None]}).write_parquet(copies / "raw.parquet")
    expected = {path.relative_to(tmp_path).as_posix() for path in copies.iterdir()}
    pl.DataFrame({"user_id": [f"{user}9"], "price": [31]}).write_parquet(copies / "others.parquet")
    (copies / "damaged.parquet").write_bytes(b"PAR1" + bytes(99))
    (copies / "damaged.gz").write_bytes(gzip.compress(b"x")[:9] + bytes(99))
    receipts = erase(pipeline, user, False, lambda *_: None, lambda _: None)
    finish(pipeline, user, receipts, lambda _: None)
    assert {each["file"] for each in receipts[0].content["left"]} == expected


def test_a_record_in_a_text_of_a_record_is_found() -> None:
    user = 'zoe "7" \\é'
    erased, inner = Erased(b"key", [digest_of(b"key", user)]), event(user, DAYS[0], 1)
    for text in (json.dumps({"body": json.dumps(inner)}), json.dumps([json.dumps({"body": json.dumps([inner])})])):
        assert cut_object(text.encode(), True, erased)[1] == 1
        assert cut_object(text[:-1].encode(), True, erased)[1] == 1, "of one that cannot be read too"
    assert cut_object(json.dumps({"body": json.dumps(event("zoe", DAYS[0], 1))}).encode(), True, erased)[1] == 0


def test_a_receipt_has_no_file_name_with_the_id_and_says_what_was_not_searched(tmp_path: Path) -> None:
    pipeline = make_home(tmp_path)
    (tmp_path / "for zoe-77.txt").write_text("nothing")
    (tmp_path / "dagster/logs of zoe-77").mkdir(parents=True)
    (tmp_path / "dagster/logs of zoe-77/x").write_text("KeyError: 'zoe-77'")
    with open_instance(pipeline):
        pass
    receipts = erase(pipeline, "zoe-77", False, lambda *_: None, lambda _: None)
    finish(pipeline, "zoe-77", receipts, lambda _: None)
    assert "zoe-77" not in receipts[0].path.read_text()
    assert receipts[0].content["left"] == [{"file": "for [erased].txt", "why": "not ours to change"}]
    with (tmp_path / "dagster/dagster.yaml").open("a") as settings:
        settings.write("compute_logs:\n  module: dagster_aws.s3.compute_log_manager\n  class: S3ComputeLogManager\n")
    finish(pipeline, "zoe-77", receipts, lambda _: None)
    assert receipts[0].content["left"][1]["why"].startswith("compute_logs of dagster.yaml")


def test_nobody_to_erase(tmp_path: Path) -> None:
    pipeline = make_home(tmp_path)
    said: list[str] = []
    finish(pipeline, "31.0", erase(pipeline, "31.0", False, lambda *_: None, said.append), said.append)
    assert [line.split(":")[0] for line in said] == ["nothing of this user was found"]
    shutil.rmtree(pipeline.tombstones.folder)
    with pytest.raises(InputError, match="give --user"):
        erase(pipeline, None, False, lambda *_: None, lambda _: None)
    with pytest.raises(InputError, match="empty"):
        erase(pipeline, " ", False, lambda *_: None, lambda _: None)
