"""Cleaning a day beside a bare read of its files, beside the script that came before, and its peak memory.

A day of 1,000,000 records in 2,000 files of 500 lies on local disk. Ours reads the files, decodes, validates, sets
aside, deduplicates and writes the partition's Parquet file, sorted. Beside it, in turns:

- ingest.vs_duckdb: seconds over seconds of DuckDB's read_json with the six columns and their types given, into a table
  in memory (`over_parquet` has the ratio to the same read written as Parquet, in the order of the files). It checks
  nothing.
- ingest.vs_duckdb.bad1: 1 % of our files are damaged: cut off, a quote lost in the middle, or records with defects.
  The other side reads the undamaged files: it cannot read the others.
- ingest.vs_script: the speed-up over benchmarks/old_script.py, which neither validates nor writes.

ingest.day10m.peak_mb: a day of 10,000,000 records in 20,000 objects of a file:// bucket through `recsys run ingest`,
that is through raw_events, interactions and Dagster, in a process of its own; `seconds_of_the_run` is what the whole
command took.

Then, from an S3 server into the warehouse (end_to_end.py): ingest.end_to_end.vs_script, ingest.end_to_end20.vs_script.

    python -m benchmarks.ingest [--runs 7] [--no-large] [--no-end-to-end]
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import polars as pl

from benchmarks import end_to_end, old_script
from benchmarks.lines import emit, progress
from benchmarks.year import recsys
from recsys_assets.ingest.decode import raw_batches
from recsys_assets.ingest.validate import CleanResult, clean
from recsys_assets.settings import Settings
from recsys_assets.storage.bucket import LogObject
from recsys_assets.storage.tables import write_frame

DAY = "2025-12-01"
START_MS = 1_764_547_200_000
MODIFIED = datetime(2025, 12, 2, tzinfo=UTC)
ACTIONS = ("VIEW", "CLICK", "ADD_CART", "PURCHASE")
PER_FILE = 500
TYPES = (
    "{timestamp: 'BIGINT', user_id: 'VARCHAR', item_id: 'VARCHAR', action: 'VARCHAR', category_id: 'VARCHAR', "
    "price: 'DOUBLE'}"
)
DAMAGE = ("cut", "quote", "defects")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="of each side (default 7)")
    parser.add_argument("--no-large", action="store_true", help="without the day of 10,000,000 records")
    parser.add_argument("--no-end-to-end", action="store_true", help="without the S3 server")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        speed(Path(folder), 2000, arguments.runs)
    if not arguments.no_end_to_end:
        end_to_end.measure()
    if not arguments.no_large:
        with tempfile.TemporaryDirectory() as folder:
            large(Path(folder), 20_000)


def speed(folder: Path, count: int, runs: int) -> None:
    """Prints the three ratios over `count` files."""
    started = time.monotonic()
    sound, damaged = folder / "sound", folder / "damaged"
    write_files(sound, count, users=count * PER_FILE // 10)
    damaged.mkdir()
    for number, path in enumerate(sorted(sound.iterdir())):
        kind = DAMAGE[number // 100 % len(DAMAGE)] if number % 100 == 50 else None
        (damaged / path.name).write_bytes(damage(path.read_bytes(), kind) if kind else path.read_bytes())
    sides: dict[str, Callable[[], object]] = {
        "table": lambda: bare_table(sound),
        "ours": lambda: ours(sound, folder / "ours.parquet"),
        "parquet": lambda: bare_parquet(sound, folder / "bare.parquet"),
        "damaged": lambda: ours(damaged, folder / "ours.parquet"),
        "script": lambda: old_script.events(_read(path) for path in sorted(sound.iterdir())),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    said: dict[str, object] = {}
    for run in range(-1, runs):  # the first is not counted: imports, caches
        for name, side in sides.items():
            begun = time.perf_counter()
            result = side()
            if run >= 0:
                seconds[name].append(time.perf_counter() - begun)
            if isinstance(result, CleanResult):
                said[name] = {"kept": result.kept, "duplicates": result.duplicates, "rejected": result.rejections}
        if run >= 0:
            progress(f"run {run + 1} of {runs}: { ({name: round(each[-1], 2) for name, each in seconds.items()}) }")

    def ratios(above: str, below: str) -> list[float]:
        return [one / other for one, other in zip(seconds[above], seconds[below], strict=True)]

    def say(name: str, runs: list[float], mine: str) -> None:
        took = time.monotonic() - started
        over_parquet = round(statistics.median(ratios(mine, "parquet")), 3)
        facts = {"records": count * PER_FILE, "files": count, "outcome": said[mine], "over_parquet": over_parquet}
        emit(name, runs, "ratio", took, None, None, **facts, median_seconds=medians)

    medians = {name: round(statistics.median(each), 3) for name, each in seconds.items()}
    say("ingest.vs_duckdb", ratios("ours", "table"), "ours")
    say("ingest.vs_duckdb.bad1", ratios("damaged", "table"), "damaged")
    say("ingest.vs_script", ratios("script", "ours"), "ours")


def large(folder: Path, count: int) -> None:
    """Prints the peak memory of the command that takes a day of `count` files over and cleans it."""
    started = time.monotonic()
    write_files(folder / "bucket" / "logs" / "2025" / "12" / "01", count, users=count * PER_FILE // 10)
    (folder / "settings.yaml").write_text(f'bucket: {{url: "file://bucket"}}\ncalendar: {{first_day: {DAY}}}\n')
    took, peak = recsys(folder, "run", "ingest", "--day", DAY)
    (partition,) = (folder / "store" / "interactions").glob("*.parquet")
    rows = pl.scan_parquet(partition).select(pl.len()).collect().item()
    facts = {"records": count * PER_FILE, "rows": rows, "seconds_of_the_run": round(took, 1)}
    emit("ingest.day10m.peak_mb", [peak], "MB", time.monotonic() - started, peak, **facts)


def write_files(folder: Path, count: int, users: int) -> None:
    """Seeded records of a day: heavy-tailed items, prices, 1 record in 1,000 delivered twice."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    for number in range(count):
        user = rng.integers(0, users, PER_FILE).tolist()
        item = (rng.pareto(1.1, PER_FILE) * 10 % 50_000).astype(int).tolist()
        moment = (START_MS + rng.integers(0, 86_400_000, PER_FILE)).tolist()
        action = rng.choice(len(ACTIONS), PER_FILE, p=[0.6, 0.25, 0.1, 0.05]).tolist()
        price = (rng.integers(100, 9999, PER_FILE) / 100).tolist()
        records = [
            {
                "timestamp": moment[row],
                "user_id": f"user_{user[row]}",
                "item_id": f"item_{item[row]}",
                "action": ACTIONS[action[row]],
                "category_id": f"cat_{item[row] % 97}",
                "price": price[row],
            }
            for row in range(PER_FILE)
        ]
        if number % 2:
            records[-1] = records[0]
        (folder / f"part-{number:05}.json").write_text(json.dumps(records))


def damage(content: bytes, kind: str) -> bytes:
    if kind == "cut":
        return content[: len(content) // 2]
    if kind == "quote":
        at = content.index(b'"', len(content) // 2)
        return content[:at] + content[at + 1 :]
    records = json.loads(content)
    for record in records[::50]:
        record["timestamp"] //= 1000
    records[1]["user_id"] = None
    records[2] = 5
    return json.dumps(records).encode()


def ours(folder: Path, target: Path) -> CleanResult:
    settings = Settings(home=folder)
    paths = sorted(folder.iterdir())
    contents = ((LogObject(path.name, "", 0, MODIFIED), _read(path)) for path in paths)
    raw = raw_batches(contents, settings.bucket.max_object_mb * 2**20)
    with duckdb.connect() as connection:
        result = clean(connection, raw, DAY, settings)
    write_frame(target, result.rows(), {})
    return result


def _read(path: Path) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()


def bare_table(folder: Path) -> None:
    with duckdb.connect() as connection:
        connection.execute(f"CREATE TABLE events AS FROM {_bare(folder)}")


def bare_parquet(folder: Path, target: Path) -> None:
    with duckdb.connect() as connection:
        connection.execute(f"COPY (FROM {_bare(folder)}) TO '{target}' (COMPRESSION zstd)")


def _bare(folder: Path) -> str:
    return f"read_json('{folder}/*.json', format='array', columns={TYPES})"


if __name__ == "__main__":
    main()
