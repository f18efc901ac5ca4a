"""From an S3 server into the warehouse, against the old script.

A day of 5,000 objects and 900,000 records, of which 1 % are duplicates. Ours is the assets raw_events and interactions
as Dagster runs them (list, fetch, keep, validate, deduplicate, publish, views), each time into an empty store, with an
event log in memory that is there before. The script (old_script.py) lists, fetches one by one with boto3, parses and
drops duplicates in pandas, and writes nothing.

Each line gives the CPU seconds of this process and of the server (with the network before it) for each side: all share
the machine, so their sum over its cores is the least that a run can take.

| name | |
|---|---|
| ingest.end_to_end.vs_script | the script's seconds over ours |
| ingest.end_to_end20.vs_script | the same, when each request takes 20 ms more; the script is timed once |

    python -m benchmarks.end_to_end [--objects 5000] [--runs 3]
"""

import argparse
import gc
import json
import os
import random
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from benchmarks import old_script
from benchmarks.lines import cpu_seconds, cpu_seconds_beside, emit, peak_mb, progress
from benchmarks.servers import client, distant, fast_s3_server

BUCKET = "logs"
DAY = "2025-11-03"
PREFIX = f"logs/{DAY.replace('-', '/')}/"
RECORDS = 180  # of an object, which has 20 KB then
LATENCY_MS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=5000)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    measure(arguments.objects, arguments.runs)


def measure(objects: int = 5000, runs: int = 3) -> None:
    """Emits both figures."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "server").mkdir()
        with fast_s3_server(Path(folder) / "server") as (endpoint, server):
            _fill(endpoint, objects)
            facts = {"objects": objects, "records": objects * RECORDS, "server": server}
            _ours(endpoint)  # what is imported and opened once
            gc.freeze()  # neither side looks for garbage in what the other one imported
            _compare("ingest.end_to_end.vs_script", endpoint, runs, runs, facts)
            with distant(endpoint, LATENCY_MS) as far:
                _compare("ingest.end_to_end20.vs_script", far, runs, 1, facts)


def _fill(endpoint: str, count: int) -> None:
    s3 = client(endpoint)
    s3.create_bucket(Bucket=BUCKET)
    with ThreadPoolExecutor(8) as pool:
        for number in range(count):
            pool.submit(s3.put_object, Bucket=BUCKET, Key=f"{PREFIX}events-{number:05}.json", Body=_object(number))
    progress(f"{count} objects written")


def _object(number: int) -> bytes:
    dice = random.Random(number)
    records = [
        {
            "timestamp": 1762128000000 + dice.randrange(86_400_000),
            "item_id": dice.randrange(5_000),
            "user_id": str(dice.randrange(20_000)),
            "action": dice.choice(("VIEW", "VIEW", "VIEW", "CLICK", "ADD_CART", "PURCHASE")),
            "category_id": dice.randrange(50),
            "price": dice.randrange(100, 100_000) / 4,
        }
        for _ in range(RECORDS)
    ]
    for _ in range(RECORDS // 100):
        records[dice.randrange(RECORDS)] = dict(records[dice.randrange(RECORDS)])
    return json.dumps(records).encode()


def _ours(endpoint: str) -> tuple[float, int]:
    """Seconds, and events kept."""
    import dagster as dg

    with tempfile.TemporaryDirectory() as folder:
        bucket = {"url": f"s3://{BUCKET}", "endpoint_url": endpoint, "region": "us-east-1"}
        text = yaml.safe_dump({"bucket": bucket, "calendar": {"first_day": "2025-11-01"}})
        (Path(folder) / "settings.yaml").write_text(text, encoding="utf-8")
        os.environ.setdefault("RECSYS_HOME", folder)  # the calendar, when the assets are imported
        from recsys_assets.ingest.assets import interactions, raw_events
        from recsys_assets.pipeline import Pipeline

        pipeline = Pipeline.open(folder)
        with dg.DagsterInstance.ephemeral() as instance:
            started = time.perf_counter()
            done = dg.materialize(
                [raw_events, interactions], instance=instance, partition_key=DAY, resources={"pipeline": pipeline}
            )
            seconds = time.perf_counter() - started
        info = pipeline.tables.info("interactions", DAY)
        if not done.success or info is None:
            raise RuntimeError("the run failed")
        return seconds, info["counts"]["kept"]


def _script(endpoint: str) -> tuple[float, int]:
    started = time.perf_counter()
    events = old_script.events_of_bucket(client(endpoint), BUCKET, PREFIX)
    return time.perf_counter() - started, len(events)


def _compare(name: str, endpoint: str, runs: int, runs_of_script: int, facts: dict[str, Any]) -> None:
    started = time.monotonic()
    sides = {"ours": (_ours, runs), "script": (_script, runs_of_script)}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    cpu: dict[str, list[float]] = {side: [] for side in sides}
    beside: dict[str, list[float]] = {side: [] for side in sides}
    for run in range(runs):
        for side, (do, wanted) in sides.items():
            if run >= wanted:
                continue
            before = cpu_seconds(), cpu_seconds_beside()
            took, kept = do(endpoint)
            seconds[side].append(took)
            cpu[side].append(cpu_seconds() - before[0])
            beside[side].append(cpu_seconds_beside() - before[1])
            progress(
                f"{name} {run + 1}: {side} {took:.2f} s, {kept:,} events, CPU {cpu[side][-1]:.2f} s and "
                f"{beside[side][-1]:.2f} s of the server"
            )
            if facts.setdefault("kept", kept) != kept:
                raise RuntimeError(f"{kept} events instead of {facts['kept']}")
    script = statistics.median(seconds["script"])
    emit(
        name,
        [script / each for each in seconds["ours"]]
        if runs_of_script < runs
        else [b / a for a, b in zip(seconds["ours"], seconds["script"], strict=True)],
        "ratio",
        time.monotonic() - started,
        peak_mb(),
        **{f"seconds_{side}": round(statistics.median(seconds[side]), 3) for side in sides},
        **{f"cpu_seconds_{side}": round(statistics.median(cpu[side]), 2) for side in sides},
        **{f"cpu_seconds_of_server_{side}": round(statistics.median(beside[side]), 2) for side in sides},
        **facts,
    )


if __name__ == "__main__":
    main()
