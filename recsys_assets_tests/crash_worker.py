"""Runs for `test_crash`: told "go N", it forks a process that materializes in a loop until it is killed.

Forking from here spares each round the seconds it takes to import Dagster; nothing that starts threads has run yet.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

from recsys_assets.definitions import defs  # noqa: F401  # before the fork
from recsys_assets.pipeline import Pipeline
from recsys_assets_tests.graph import DAYS, INGEST, SHOP, fill, run

CRASH_DAYS = DAYS[:3]
SEEDS = 3  # of the shops whose logs take turns
ASSETS = [*INGEST, "training_set", "popularity_model", "transition_model"]


def work(home: Path, number: int) -> None:
    """Endlessly: other logs, and everything made of them."""
    os.dup2(os.open(home / f"round-{number}.log", os.O_WRONLY | os.O_CREAT), 2)
    pipeline = Pipeline.open(home)
    while True:
        number += 1
        fill(pipeline, CRASH_DAYS, replace(SHOP, seed=number % SEEDS))
        run(pipeline, ASSETS, CRASH_DAYS)


def _say(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def main() -> None:
    home = Path(sys.argv[1])
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            try:
                work(home, int(line) * 100)
            finally:
                os._exit(1)
        _say(pid)
        _say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


if __name__ == "__main__":
    main()
