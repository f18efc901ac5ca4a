"""How fast objects come out of an S3 server, against the bare fastest client and against the old script's way.

Ours is what raw_events does: each object by the ETag that was listed, its length checked, retries, progress, bounded
memory, in order. Against it, on the same 5,000 objects of 20 KB, in objects/s:

| name | the other side |
|---|---|
| fetch.vs_fastest | obstore's blocking get in a thread pool of the size that is best here, checking nothing |
| fetch.vs_boto3 | boto3, one object after the other |
| fetch.latency20.vs_boto3 | the same, when each request takes 20 ms more |

Each line gives objects/s, and the CPU seconds of this process and of the server (with the network before it) for 1,000
objects, of both sides: all share the machine.

    python -m benchmarks.fetch [--objects 5000] [--runs 5]
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.lines import cpu_seconds, cpu_seconds_beside, emit, peak_mb, progress
from benchmarks.servers import client, distant, fast_s3_server
from recsys_assets.settings import BucketSettings
from recsys_assets.storage.bucket import Bucket, LogObject, fetch, open_bucket

BUCKET = "logs"
SIZE = 20_000
POOLS = (8, 16, 32, 64)  # thread pools tried for the bare client
LATENCY_MS = 20
FEW = 500  # objects that boto3 is timed on where each takes 20 ms

Side = Callable[[Sequence[LogObject]], int]
"""Fetches all of the objects; returns the bytes that came."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=5000)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, fast_s3_server(Path(folder)) as (endpoint, server):
        objects = _fill(endpoint, arguments.objects)
        facts = {"of": len(objects), "bytes": SIZE, "server": server}
        ours = our_side(endpoint)
        best = _best_pool(endpoint, objects)
        compare(
            "fetch.vs_fastest", ours, bare_side(endpoint, best), objects, objects, arguments.runs, threads=best, **facts
        )
        compare("fetch.vs_boto3", ours, boto3_side(endpoint), objects, objects, arguments.runs, **facts)
        with distant(endpoint, LATENCY_MS) as far:
            few = objects[:FEW]
            facts |= {"of_boto3": len(few)}
            compare("fetch.latency20.vs_boto3", our_side(far), boto3_side(far), objects, few, arguments.runs, **facts)


def _fill(endpoint: str, count: int) -> list[LogObject]:
    client(endpoint).create_bucket(Bucket=BUCKET)
    bucket = _open(endpoint)
    dice = random.Random(0)
    keys = [f"logs/2025/11/03/events-{number:05}.json" for number in range(count)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: bucket.put(key, dice.randbytes(SIZE // 2).hex().encode()), keys))
    listed = list(bucket.walk("logs/"))
    if [obj.key for obj in listed] != keys:
        raise RuntimeError("the server does not list what was written")
    progress(f"{count} objects written")
    return listed


def _open(endpoint: str) -> Bucket:
    return open_bucket(BucketSettings(url=f"s3://{BUCKET}", endpoint_url=endpoint, region="us-east-1"), Path())


def our_side(endpoint: str) -> Side:
    bucket, in_flight = _open(endpoint), BucketSettings().in_flight

    def run(objects: Sequence[LogObject]) -> int:
        seen = [0]
        stream = fetch(bucket, objects, in_flight, on_progress=lambda count, size: seen.__setitem__(0, size))
        return sum(len(content) for _, content in stream)

    return run


def bare_side(endpoint: str, threads: int) -> Side:
    from obstore.store import S3Store

    store = S3Store(
        BUCKET,
        endpoint=endpoint,
        region="us-east-1",
        access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
        secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )

    def run(objects: Sequence[LogObject]) -> int:
        with ThreadPoolExecutor(threads) as pool:
            return sum(pool.map(lambda obj: len(store.get(obj.key).bytes()), objects))

    return run


def boto3_side(endpoint: str) -> Side:
    s3 = client(endpoint)

    def run(objects: Sequence[LogObject]) -> int:
        return sum(len(s3.get_object(Bucket=BUCKET, Key=obj.key)["Body"].read()) for obj in objects)

    return run


def timed(side: Side, objects: Sequence[LogObject]) -> tuple[float, float, float]:
    """Objects/s, and CPU seconds of this process and of the server for 1,000 objects."""
    before, beside, started = cpu_seconds(), cpu_seconds_beside(), time.perf_counter()
    size = side(objects)
    took = time.perf_counter() - started
    cpu, of_server = cpu_seconds() - before, cpu_seconds_beside() - beside
    if size != sum(obj.size for obj in objects):
        raise RuntimeError(f"{size} bytes came")
    return len(objects) / took, cpu / len(objects) * 1000, of_server / len(objects) * 1000


def _best_pool(endpoint: str, objects: Sequence[LogObject]) -> int:
    speeds: dict[int, list[float]] = {threads: [] for threads in POOLS}
    for _ in range(3):
        for threads in POOLS:
            speeds[threads].append(timed(bare_side(endpoint, threads), objects[: max(len(objects) // 2, 1)])[0])
    medians = {threads: statistics.median(runs) for threads, runs in speeds.items()}
    progress(", ".join(f"{threads} threads: {speed:,.0f} objects/s" for threads, speed in medians.items()))
    return max(medians, key=lambda threads: medians[threads])


def compare(
    name: str,
    ours: Side,
    theirs: Side,
    objects: Sequence[LogObject],
    of_theirs: Sequence[LogObject],
    runs: int,
    **facts: Any,
) -> None:
    """Emits our objects/s over theirs, of alternating runs after one of each that does not count."""
    started = time.monotonic()
    timed(ours, of_theirs)
    timed(theirs, of_theirs[: max(len(of_theirs) // 10, 1)])
    pairs = []
    for run in range(runs):
        pairs.append((timed(ours, objects), timed(theirs, of_theirs)))
        (our_speed, our_cpu, _), (their_speed, their_cpu, _) = pairs[-1]
        progress(
            f"{name} {run + 1} of {runs}: {our_speed:,.0f} / {their_speed:,.0f} objects/s, "
            f"{our_cpu:.2f} / {their_cpu:.2f} CPU s a thousand"
        )

    def median(side: int, of: int) -> float:
        return round(statistics.median(pair[side][of] for pair in pairs), 3)

    emit(
        name,
        [ours[0] / theirs[0] for ours, theirs in pairs],
        "ratio",
        time.monotonic() - started,
        peak_mb(),
        objects_per_second=median(0, 0),
        objects_per_second_theirs=median(1, 0),
        cpu_seconds_per_1000=median(0, 1),
        cpu_seconds_per_1000_theirs=median(1, 1),
        cpu_seconds_of_server_per_1000=median(0, 2),
        cpu_seconds_of_server_per_1000_theirs=median(1, 2),
        **facts,
    )


if __name__ == "__main__":
    main()
