"""Kills at random moments of ingest and training. CRASH_ROUNDS=60 makes so many."""

import hashlib
import json
import os
import random
import select
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import duckdb
import polars as pl
import pytest

from recsys_assets.pipeline import Pipeline
from recsys_assets.storage.artifacts import Artifact, ArtifactError
from recsys_assets_tests.crash_worker import ASSETS, CRASH_DAYS, SEEDS, WRITING
from recsys_assets_tests.graph import INGEST, SHOP, fill, make_home, run

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "10"))
WRITES = 100  # to the disk, about so many while everything is made anew


def assert_whole(pipeline: Pipeline) -> int:
    """Every partition can be read, adds up, and every artifact is what was published. Returns how many there are."""
    store, found = pipeline.settings.store, 0
    for table in ("raw_events", "interactions"):
        for day in pipeline.tables.days(table):
            frame, info = pipeline.tables.read(table, day), pipeline.tables.info(table, day)
            assert info is not None
            found += 1
            if table == "raw_events":
                assert frame["key"].n_unique() == info["objects"]
            else:
                counts = info["counts"]
                assert counts["kept"] == len(frame.filter(pl.col("reason").is_null()))
                assert counts["records_in"] == counts["kept"] + counts["duplicates"] + sum(counts["rejected"].values())
    for asset in ("training_set", "popularity_model", "transition_model"):
        for day in pipeline.artifacts.days(asset):
            pipeline.artifacts.need(asset, day)
            found += 1
    for manifest in store.glob("*/*/*/manifest.json"):
        if not manifest.parent.name.startswith(".tmp-"):
            Artifact(manifest.parent, manifest.parent.name, {}).verify()
    if (pointer := store / "holdout/current.json").exists():
        version = json.loads(pointer.read_text())["version"]
        assert len(pl.read_parquet(store / f"holdout/v{version}.parquet"))
    return found


def digests(pipeline: Pipeline) -> dict[tuple[str, str], str]:
    """(table, day) -> what stands in the partition, without the moments at which it was made."""
    return {
        (table, day): hashlib.sha256(
            repr(pipeline.tables.read(table, day, columns).rows()).encode(),
        ).hexdigest()
        for table, columns in (("raw_events", ["key", "content"]), ("interactions", None))
        for day in pipeline.tables.days(table)
    }


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[tuple[str, str], str]]:
    """What each partition may hold: all of one of the worker's logs, and nothing of another."""
    found: set[tuple[tuple[str, str], str]] = set()
    for seed in range(SEEDS):
        pipeline = make_home(tmp_path_factory.mktemp("world"))
        fill(pipeline, CRASH_DAYS, replace(SHOP, seed=seed))
        run(pipeline, INGEST, CRASH_DAYS)
        found |= digests(pipeline).items()
    assert len(found) == SEEDS * len(INGEST) * len(CRASH_DAYS), "the worlds differ"
    return found


def test_a_kill_at_any_moment_loses_nothing_that_was_there(
    tmp_path: Path, worlds: set[tuple[tuple[str, str], str]]
) -> None:
    pipeline = make_home(tmp_path, holdout={"users_share": 0.2, "min_users": 2})
    fill(pipeline, CRASH_DAYS, replace(SHOP, seed=0))
    run(pipeline, ASSETS, CRASH_DAYS)
    expected = assert_whole(pipeline)
    assert expected == len(ASSETS) * len(CRASH_DAYS)
    moments = random.Random(2025)
    with (tmp_path / "worker.log").open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "recsys_assets_tests.crash_worker", str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        assert worker.stdin is not None
        assert worker.stdout is not None
        leftovers = 0
        try:
            for number in range(ROUNDS):
                worker.stdin.write(f"{number} {moments.randint(1, WRITES)}\n")
                worker.stdin.flush()
                pid = int(worker.stdout.readline())
                writing = worker.stdout.readline().strip() == WRITING
                died_early, _, _ = select.select([worker.stdout], [], [], moments.uniform(0.0, 0.05))
                assert writing, (tmp_path / f"round-{number}.log").read_text()[-3000:]
                assert not died_early
                os.kill(pid, signal.SIGKILL)
                assert int(worker.stdout.readline()) == -signal.SIGKILL
                assert assert_whole(pipeline) == expected, "no partition vanished"
                assert digests(pipeline).items() <= worlds, "a partition is a mix"
                leftovers += len(list(pipeline.settings.store.rglob(".tmp-*")))
        finally:
            worker.kill()
            worker.communicate()
    fill(pipeline, CRASH_DAYS, replace(SHOP, seed=0))
    ran = run(pipeline, ASSETS, CRASH_DAYS)
    assert ran.checks()["every_record_accounted_for"]
    assert assert_whole(pipeline) == expected
    assert leftovers, "no kill hit a write: nothing was tested"
    assert not list(pipeline.settings.store.rglob(".tmp-*"))
    with duckdb.connect(pipeline.warehouse.path, read_only=True) as connection:
        assert connection.execute("SELECT count(*) FROM interactions").fetchall() == [
            (sum((pipeline.tables.info("interactions", day) or {})["counts"]["kept"] for day in CRASH_DAYS),)
        ]


def test_the_check_itself_sees_damage(tmp_path: Path) -> None:
    pipeline = make_home(tmp_path)
    fill(pipeline, CRASH_DAYS[:1])
    run(pipeline, ["raw_events", "interactions", "training_set"], CRASH_DAYS[:1])
    path = pipeline.artifacts.need("training_set", CRASH_DAYS[0]).path / "events.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"events\.parquet is missing or not what was published"):
        assert_whole(pipeline)
