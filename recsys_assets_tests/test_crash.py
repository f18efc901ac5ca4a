"""Kills at random moments of ingest and training. CRASH_ROUNDS=60 makes so many."""

import os
import random
from dataclasses import replace
from pathlib import Path

import duckdb
import polars as pl
import pytest

from benchmarks.crash import difference, kept, measure, unsound
from recsys_assets.storage.artifacts import ArtifactError
from recsys_assets_tests.crash import Victims, assert_whole, digests
from recsys_assets_tests.crash_worker import ASSETS, CRASH_DAYS, SEEDS, STAGES
from recsys_assets_tests.graph import INGEST, SHOP, fill, make_home, run

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "10"))
WRITES = 100  # to the disk, about so many while everything is made anew


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
    leftovers = 0
    with Victims(tmp_path) as victims:
        for number in range(ROUNDS):
            victims.kill("ingest", number, moments.randint(1, WRITES), moments.uniform(0.0, 0.05))
            assert assert_whole(pipeline) == expected, "no partition vanished"
            assert digests(pipeline).items() <= worlds, "a partition is a mix"
            leftovers += len(list(pipeline.settings.store.rglob(".tmp-*")))
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


@pytest.mark.slow
def test_a_killed_erasure_goes_on_and_what_was_not_begun_is_whole(tmp_path: Path) -> None:
    """With CRASH_ROUNDS, that many kills of every stage: what `python -m benchmarks.crash` measures."""
    stages, rounds = (list(STAGES), ROUNDS) if "CRASH_ROUNDS" in os.environ else (["erasure"], 1)
    totals, torn = measure(tmp_path, rounds, seed=7, stages=stages)
    assert torn == []
    assert totals["rounds"] == rounds
    assert totals["erasing"] or "erasure" not in stages[:rounds], "the kill met no erasure"
    assert totals["lost"] == totals["doubled"] == 0


def test_the_benchmark_sees_what_is_lost_and_doubled(tmp_path: Path) -> None:
    pipeline = make_home(tmp_path)
    fill(pipeline, CRASH_DAYS)
    run(pipeline, INGEST, CRASH_DAYS)
    world = kept(pipeline)
    assert difference(world, [world]) == (0, 0)
    first, *others = CRASH_DAYS
    damaged = {first: world[first].head(-2).vstack(world[first].head(3)), **{day: world[day] for day in others}}
    assert difference(damaged, [world]) == (2, 3)
    theirs = pl.col("user_id") == world[first]["user_id"][0]
    some = world[first].filter(theirs).head(-1).vstack(world[first].filter(~theirs))
    cut = {first: world[first].filter(~theirs), **{day: world[day] for day in others}}
    assert difference(cut, [world]) == (world[first].filter(theirs).height, 0)
    assert difference(cut, [world], {world[first]["user_id"][0]}) == (0, 0), "one erased user's, all of them"
    assert difference(cut | {first: some}, [world], {world[first]["user_id"][0]}) == (1, 0), "some of an erased user's"
    assert difference(damaged, [world], {"nobody"}) == (2, 3)
    assert unsound(pipeline) == "the champion is gone"
