"""Killing at chosen moments, and what must hold afterwards: shared by `test_crash` and `benchmarks.crash`."""

import hashlib
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType

import polars as pl

from recsys_assets.pipeline import Pipeline
from recsys_assets.storage.artifacts import Artifact
from recsys_assets.storage.files import sha256
from recsys_assets_tests.crash_worker import WRITING


class Victims:
    """Processes that work on a home, one after the other, until each is killed."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._log = (home / "worker.log").open("wb")
        self._worker = subprocess.Popen(
            [sys.executable, "-m", "recsys_assets_tests.crash_worker", str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def __enter__(self) -> "Victims":
        return self

    def kill(self, stage: str, number: int, writes: int, seconds: float) -> str:
        """Lets a process work at a stage, and kills it `seconds` after it began its `writes`-th write to the disk.

        Returns: the file of that write, relative to the home.

        Raises:
            AssertionError: it ended by itself; with what it said.
        """
        assert self._worker.stdin is not None
        assert self._worker.stdout is not None
        self._worker.stdin.write(f"{stage} {number} {writes}\n")
        self._worker.stdin.flush()
        pid = int(self._worker.stdout.readline())
        said, _, path = self._worker.stdout.readline().strip().partition(" ")
        died_early, _, _ = select.select([self._worker.stdout], [], [], seconds)
        assert said == WRITING, (self._home / f"round-{number}.log").read_text()[-3000:]
        assert not died_early
        os.kill(pid, signal.SIGKILL)
        assert int(self._worker.stdout.readline()) == -signal.SIGKILL
        return Path(path).relative_to(self._home).as_posix()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._worker.kill()
        self._worker.communicate()
        self._log.close()


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


def assert_published(folder: Path) -> None:
    """What others fetch from `folder` is whole: the champion that its pointer names, and every document."""
    pointer = folder / "champion.json"
    if pointer.exists():
        said = json.loads(pointer.read_text())
        manifest = folder / said["path"] / "manifest.json"
        assert sha256(manifest) == said["manifest_sha256"]
        for name, expected in json.loads(manifest.read_text())["files"].items():
            assert sha256(folder / said["path"] / name) == expected["sha256"], name
    for document in folder.glob("*.json"):
        json.loads(document.read_text())


def digests(pipeline: Pipeline) -> dict[tuple[str, str], str]:
    """(table, day) -> what stands in the partition, without the moments at which it was made."""
    return {
        (table, day): hashlib.sha256(
            repr(pipeline.tables.read(table, day, columns).rows()).encode(),
        ).hexdigest()
        for table, columns in (("raw_events", ["key", "content"]), ("interactions", None))
        for day in pipeline.tables.days(table)
    }
