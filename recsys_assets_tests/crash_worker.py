"""Runs for `test_crash` and `benchmarks.crash`: told a stage, a number and N, it forks a process that works in a loop
until it is killed.

It says that process's id, WRITING and the file when the stage is about to write to the disk for the Nth time, and how
it ended. Forking from here spares each round the seconds it takes to import Dagster; nothing that starts threads has
run yet.
"""

import itertools
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from recsys_assets.definitions import defs  # noqa: F401  # before the fork
from recsys_assets.pipeline import Pipeline
from recsys_assets.publishing.publish import publish_champion, publish_metrics
from recsys_assets.storage import files
from recsys_assets.trust.erasure import erase
from recsys_assets_tests.graph import DAYS, INGEST, SHOP, TRAIN, fill, run

WRITING = "writing"
CRASH_DAYS = DAYS[:3]
SEEDS = 3  # of the shops whose logs take turns
ASSETS = [*INGEST, "training_set", "popularity_model", "transition_model"]
LISTS = ["recommendations", "similar_items"]
GATE = ["evaluation", "promotion"]
LEARN = [asset for asset in TRAIN if asset not in (*GATE, *LISTS)]
PUBLISHED = "file://published"


def work(home: Path, stage: str, number: int, writes: int) -> None:
    """Endlessly: other logs, what the stage needs of them, and the stage, whose writes to the disk are counted."""
    os.dup2(os.open(home / f"round-{number}.log", os.O_WRONLY | os.O_CREAT), 2)
    pipeline = Pipeline.open(home)
    needs, act = STAGES[stage]
    usual, slow = files.fsync, _slow_disk(writes)
    for seed in itertools.count(number):
        fill(pipeline, CRASH_DAYS, replace(SHOP, seed=seed % SEEDS))
        if needs:
            run(pipeline, INGEST, CRASH_DAYS)
        if trained := [asset for asset in needs if asset not in INGEST]:
            run(pipeline, trained, CRASH_DAYS[-1:])
        files.fsync = slow  # type: ignore[assignment]
        act(pipeline)
        files.fsync = usual


def publish(pipeline: Pipeline) -> None:
    """Makes the lists, and puts the metrics and the champion's files where others fetch them."""
    run(pipeline, LISTS, CRASH_DAYS[-1:])
    publish_metrics(pipeline, PUBLISHED)
    publish_champion(pipeline, PUBLISHED)


def erase_someone(pipeline: Pipeline) -> None:
    """Erases the first day's busiest user."""
    erase_user(pipeline, busiest(pipeline))


def busiest(pipeline: Pipeline) -> str:
    users = pipeline.tables.read("interactions", CRASH_DAYS[0], ["user_id"])["user_id"].drop_nulls()
    return str(users.value_counts().sort(["count", "user_id"], descending=True)["user_id"][0])


def erase_user(pipeline: Pipeline, user: str | None) -> None:
    jobs = {"readmit": ["interactions"], "relist": ["training_set", "recommendations", "similar_items"]}
    erase(
        pipeline,
        user,
        False,
        lambda job, days, config: run(pipeline, jobs[job], days, config=config),
        lambda _: None,
    )


# stage -> what must be made before it, and what is then done until the kill
STAGES: dict[str, tuple[list[str], Callable[[Pipeline], object]]] = {
    "ingest": ([], lambda pipeline: run(pipeline, ASSETS, CRASH_DAYS)),
    "training": (INGEST, lambda pipeline: run(pipeline, LEARN, CRASH_DAYS[-1:])),
    "promotion": ([*INGEST, *LEARN], lambda pipeline: run(pipeline, GATE, CRASH_DAYS[-1:])),
    "publish": ([*INGEST, *LEARN, *GATE], publish),
    "erasure": (INGEST, erase_someone),
}


def _slow_disk(writes: int, fsync: Callable[[Path], None] = files.fsync) -> Callable[[Path], None]:
    """An fsync that takes long, so that most kills find something half written; says the given time's file."""
    count = itertools.count(1)

    def slow(path: Path) -> None:
        if next(count) == writes:
            _say(f"{WRITING} {path}")
        time.sleep(0.01)
        fsync(path)

    return slow


def _say(what: object) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def main() -> None:
    home = Path(sys.argv[1])
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            try:
                stage, number, writes = line.split()
                work(home, stage, int(number), int(writes))
            finally:
                os._exit(1)
        _say(pid)
        _say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


if __name__ == "__main__":
    main()
