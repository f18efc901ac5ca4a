"""Whether a day that is built again is the same bytes: of a real retailer, in any order, on one thread and on two.

Random days of The Complete Journey are trained in shuffled order, as `recsys run train` does it (training set, all
members, hybrid, evaluation, promotion, lists), every other one on one thread and the rest on two. Then each is replayed
on one thread and on two (`recsys replay`), which compares the SHA-256 of every file.

| name | |
|---|---|
| replay.equal | the share of the replays in which every file is what was published; `differences` names them |
| replay.files | files that were compared |
| replay.train_seconds, replay.seconds | of one day, by the clock |

    python -m benchmarks.replay [--days 5] [--first 2017-01-01] [--last 2017-12-31] [--seed 2025]

Days of a whole year take an hour or more. Settings from the environment apply and stand in the facts of `replay.equal`:
RECSYS_SEQUENCE__MAX_TOKENS=500000 makes the sequence model's training shorter.
"""

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from benchmarks.lines import emit, progress
from recsys_assets.days import shift
from recsys_assets.pipeline import Pipeline
from recsys_assets.sources.complete_journey import complete_journey

THREADS = (1, 2)
_KEY = re.compile(r"logs/(\d{4})/(\d{2})/(\d{2})/")
_FILES = re.compile(r"(\d+) files")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=5, help="random days (default 5)")
    parser.add_argument("--first", default="2017-01-01", help="of the history that is ingested (default 2017-01-01)")
    parser.add_argument("--last", default="2017-12-31", help="likewise (default 2017-12-31)")
    parser.add_argument("--seed", type=int, default=2025)
    arguments = parser.parse_args()
    started, draw = time.monotonic(), random.Random(arguments.seed)
    length = (date.fromisoformat(arguments.last) - date.fromisoformat(arguments.first)).days + 1
    history = [shift(arguments.first, number) for number in range(length)]
    chosen = draw.sample(history[len(history) // 4 :], arguments.days)  # in the order in which they are built
    with tempfile.TemporaryDirectory(prefix="replay-") as folder:
        home = Path(folder)
        _fill(home, history)
        _recsys(home, 2, "run", "ingest", "--from", history[0], "--to", history[-1])
        trained, replayed, files, differences = [], [], 0, []
        for number, day in enumerate(chosen):
            trained.append(_recsys(home, THREADS[number % 2], "run", "train", "--day", day)[0])
            progress(f"{day}: trained on {THREADS[number % 2]} threads in {trained[-1]:.0f} s")
        for number, day in enumerate(chosen):
            for threads in THREADS:
                seconds, said, error = _recsys(home, threads, "replay", "--day", day, may_differ=True)
                replayed.append(seconds)
                if error:
                    differences.append(f"{day} on {threads} threads: {error}")
                else:
                    files += int(_FILES.findall(said)[-1])
                built = THREADS[number % 2]
                progress(f"{day}: built on {built}, replayed on {threads} threads in {seconds:.0f} s: {error or said}")
    facts: dict[str, Any] = {
        "days": chosen,
        "history": [history[0], history[-1]],
        "settings": {name: value for name, value in os.environ.items() if name.startswith("RECSYS_") and "__" in name},
    }
    took = time.monotonic() - started
    share = 1 - len(differences) / len(replayed)
    emit("replay.equal", [share], "share", took, replays=len(replayed), differences=differences, **facts)
    emit("replay.files", [files], "files", took)
    emit("replay.train_seconds", trained, "s", took)
    emit("replay.seconds", replayed, "s", took)


def _fill(home: Path, history: Sequence[str]) -> None:
    values = {
        "bucket": {"url": "file://bucket"},
        "calendar": {"first_day": history[0], "last_day": history[-1]},
        "recommend": {"bought_items": "keep"},
    }
    (home / "bucket").mkdir()
    (home / "settings.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    bucket, wanted = Pipeline.open(home).bucket, set(history)
    for key, content in complete_journey():
        found = _KEY.match(key)
        if found and "-".join(found.groups()) in wanted:
            bucket.put(key, content)


def _recsys(home: Path, threads: int, *arguments: str, may_differ: bool = False) -> tuple[float, str, str]:
    """Seconds, the last line on standard output, and what is said instead of it where a replay differs."""
    environ = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    command = [sys.executable, "-m", "recsys_assets.cli", "--home", str(home), *arguments]
    started = time.monotonic()
    done = subprocess.run(
        command, capture_output=True, text=True, env={**environ, "OMP_NUM_THREADS": str(threads)}, check=False
    )
    if done.returncode and not (may_differ and "not equal: " in done.stderr):
        raise RuntimeError(f"recsys {' '.join(arguments)} failed: {done.stderr[-2000:]}")
    lines = done.stdout.splitlines()
    error = done.stderr.partition("not equal: ")[2].splitlines()[0] if done.returncode else ""
    return time.monotonic() - started, lines[-1] if lines else "", error


if __name__ == "__main__":
    main()
