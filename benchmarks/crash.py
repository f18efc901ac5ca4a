"""What SIGKILL at random moments of ingest, training, promotion, publishing and erasure destroys.

Each round kills a process in the middle of a chosen write of one of them (a slow disk is played, so that most kills
find something half written), looks at what stands, and lets the next run go on by itself.

    python -m benchmarks.crash [--rounds 200] [--seed 2025]

* crash.rounds: rounds that came to their end; `kills` of each sort, `places` what was being written, `half_written`
  after how many something was, `torn_models` after how many a model or training set.
* crash.lost, crash.doubled: events that are missing or stand twice, against the same logs ingested without a kill.
* crash.torn: rounds after which a manifest, a table or what is published for others was not whole, the champion did not
  load, an erased user was back, the next run failed, or a temporary file was left.
"""

import argparse
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from benchmarks.lines import emit, progress
from recsys_assets.pipeline import Pipeline
from recsys_assets.training.blend import load_hybrid
from recsys_assets.trust.erasure import scan
from recsys_assets_tests.crash import Victims, assert_published, assert_whole
from recsys_assets_tests.crash_worker import ASSETS, CRASH_DAYS, SEEDS, STAGES, erase_user, publish
from recsys_assets_tests.graph import INGEST, SHOP, TRAIN, fill, make_home, run

KEY = ["user_id", "item_id", "action", "timestamp"]
WRITES = {"ingest": 108, "training": 83, "promotion": 6, "publish": 48, "erasure": 170}  # of one pass, about

World = dict[str, pl.DataFrame]


def kept(pipeline: Pipeline) -> World:
    """Day -> the events that stand in the interactions."""
    return {
        day: pipeline.tables.read("interactions", day).filter(pl.col("reason").is_null()).select(KEY)
        for day in pipeline.tables.days("interactions")
    }


def difference(found: World, worlds: list[World], erased: set[str] | None = None) -> tuple[int, int]:
    """Events lost and doubled, of each day against the world it is nearest to.

    Of users who are being erased a day has every event or none. (It need not have none of any of them: a kill may meet
    the erasure of a second user, after the first one's.)
    """
    lost = doubled = 0
    for day in CRASH_DAYS:
        frame = found.get(day, pl.DataFrame(schema=worlds[0][day].schema))
        doubled += len(frame) - frame.unique().height
        cut = list((erased or set()) - set(frame["user_id"]))
        expected = [world[day].filter(~pl.col("user_id").is_in(cut)) for world in worlds]
        lost += min(
            each.join(frame, on=KEY, how="anti").height + frame.join(each, on=KEY, how="anti").height
            for each in expected
        )
    return lost, doubled


def erased_among(pipeline: Pipeline, worlds: list[World]) -> set[str]:
    """Users of the worlds that have a tombstone."""
    erased = pipeline.tombstones.read()
    return {
        user for world in worlds for frame in world.values() for user in frame["user_id"].unique() if user in erased
    }


def erased_from(world: World, users: set[str]) -> World:
    return {day: frame.filter(~pl.col("user_id").is_in(list(users))) for day, frame in world.items()}


def unsound(pipeline: Pipeline) -> str | None:
    """What of the home is not as it was published, if anything."""
    try:
        assert_whole(pipeline)
        assert_published(pipeline.settings.home / "published")
        champion = pipeline.champion.read()
        artifact = pipeline.artifacts.at("hybrid_model", champion["day"], champion["version"]) if champion else None
        if artifact is None:
            return "the champion is gone"
        artifact.verify()
        load_hybrid(artifact)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def place(path: str) -> str:
    """Which asset, or what else, a file of the home belongs to."""
    parts = [part for part in Path(path).parts if part != "store" and not part.startswith(".tmp-")]
    return parts[0] if parts else "store"


def recover(pipeline: Pipeline, stage: str, number: int, worlds: list[World]) -> tuple[int, int, str | None]:
    """The next run, by itself, of the world of this number. Returns events lost and doubled after it, and what is
    torn."""
    lost = doubled = 0
    try:
        if pipeline.tombstones.read():
            gone = erased_among(pipeline, worlds)
            erase_user(pipeline, None)
            if back := list(scan(pipeline)):
                return 0, 0, f"erased users are there still: {back}"
            lost, doubled = difference(kept(pipeline), [erased_from(world, gone) for world in worlds])
            shutil.rmtree(pipeline.tombstones.folder)  # they may come back for the next round
            for day in CRASH_DAYS:
                pipeline.tables.path("raw_events", day).unlink(missing_ok=True)
        if stage == "ingest":
            run(pipeline, ASSETS, CRASH_DAYS)
        else:
            run(pipeline, INGEST, CRASH_DAYS)
            run(pipeline, TRAIN, CRASH_DAYS[-1:])
            publish(pipeline)
    except Exception as error:
        return 0, 0, f"the next run failed: {type(error).__name__}: {error}"
    left = list(pipeline.settings.store.rglob(".tmp-*"))
    torn = unsound(pipeline) or (f"{left} left behind" if left else None)
    lost_then, doubled_then = difference(kept(pipeline), [worlds[number]])
    return lost + lost_then, doubled + doubled_then, torn


def measure(
    folder: Path, rounds: int, seed: int, stages: Sequence[str] = tuple(STAGES)
) -> tuple[Counter[str], list[str]]:
    """Kills so many times, at the stages in turn. Returns counts by name, and a line for each round that tore."""
    worlds = []
    for number in range(SEEDS):
        other = make_home(folder / f"world-{number}")
        fill(other, CRASH_DAYS, replace(SHOP, seed=number))
        run(other, INGEST, CRASH_DAYS)
        worlds.append(kept(other))
    home = folder / "home"
    pipeline = make_home(home, holdout={"users_share": 0.2, "min_users": 2}, sequence={"max_tokens": 1000})
    moments, totals, torn, store = random.Random(seed), Counter[str](), list[str](), pipeline.settings.store
    with Victims(home) as victims:
        fill(pipeline, CRASH_DAYS, replace(SHOP, seed=0))
        run(pipeline, INGEST, CRASH_DAYS)
        run(pipeline, TRAIN, CRASH_DAYS[-1:])
        for number in range(rounds):
            stage = stages[number % len(stages)]
            before = set(home.rglob(".tmp-*"))
            writing = victims.kill(stage, number, moments.randint(1, WRITES[stage]), moments.uniform(0.0, 0.02))
            half_written = set(home.rglob(".tmp-*")) - before
            totals["half-written"] += bool(half_written)
            totals["torn models"] += any(each.is_dir() and each.parent.parent.parent == store for each in half_written)
            totals.update([f"kill {stage}", f"at {place(writing)}"])
            gone = erased_among(pipeline, worlds)
            totals["erasing"] += bool(gone)
            lost, doubled = difference(kept(pipeline), worlds, gone)
            problem = unsound(pipeline)
            world = number % SEEDS
            fill(pipeline, CRASH_DAYS, replace(SHOP, seed=world))
            again_lost, again_doubled, again_torn = recover(pipeline, stage, world, worlds)
            totals.update(rounds=1, lost=lost + again_lost, doubled=doubled + again_doubled)
            if problem := problem or again_torn:
                torn.append(f"round {number} ({stage}): {problem}")
                progress(torn[-1])
            progress(f"round {number + 1} of {rounds}, {stage}: {dict(totals)}, {len(torn)} torn")
    return totals, torn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=2025)
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="crash-") as folder:
        totals, torn = measure(Path(folder), arguments.rounds, arguments.seed)
    seconds = time.monotonic() - started
    emit(
        "crash.rounds",
        [totals["rounds"]],
        "rounds",
        seconds,
        seed=arguments.seed,
        kills=_named(totals, "kill "),
        places=_named(totals, "at "),
        half_written=totals["half-written"],
        torn_models=totals["torn models"],
    )
    emit("crash.lost", [totals["lost"]], "events", seconds)
    emit("crash.doubled", [totals["doubled"]], "events", seconds)
    emit("crash.torn", [len(torn)], "rounds", seconds, what=torn[:20])


def _named(totals: Counter[str], begin: str) -> dict[str, int]:
    return {name.removeprefix(begin): count for name, count in totals.most_common() if name.startswith(begin)}


if __name__ == "__main__":
    main()
