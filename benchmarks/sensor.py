"""A tick of the sensor on a bucket of three years x 1,000 objects a day, in which nothing changed.

`new_log_prefixes` is evaluated as the daemon does it, on an instance on disk in whose catalogue every day is ingested:
sensor.tick_seconds and sensor.list_requests, of ticks a minute apart (so with the share of the older days that is due
each minute), and sensor.latency20.tick_seconds with 20 ms for each request. Writing 1,095,000 objects into a real S3
server takes longer than all else, so a server of our own answers the listings (listing_server.py), as S3 would.

    python -m benchmarks.sensor [--years 3] [--objects 1000] [--runs 15]
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import yaml

from benchmarks.lines import emit, progress


@contextlib.contextmanager
def listing_server(days: int, objects: int, latency_ms: int) -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks.listing_server", str(days), str(objects), str(latency_ms)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        server.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--years", type=int, default=3)
    parser.add_argument("--objects", type=int, default=1000, help="objects a day (default 1000)")
    parser.add_argument("--runs", type=int, default=15, help="ticks (default 15)")
    arguments = parser.parse_args()
    days = 365 * arguments.years
    started = time.monotonic()
    os.environ.update(AWS_ACCESS_KEY_ID="benchmark", AWS_SECRET_ACCESS_KEY="benchmark")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ["RECSYS_HOME"] = folder
        with listing_server(days, arguments.objects, 0) as endpoint:
            _settings(home, endpoint, days)
            with dg.instance_for_test(temp_dir=folder) as instance:
                _ingested(instance)
                first, seconds, requests, compared = _ticks(instance, arguments.runs)
                facts = {"days": days, "objects": days * arguments.objects, "first_tick_seconds": round(first, 3)}
                took = time.monotonic() - started
                emit("sensor.tick_seconds", seconds, "s", took, days_compared=compared, **facts)
                emit("sensor.list_requests", requests, "requests", took, days_compared=compared, **facts)
                with listing_server(days, arguments.objects, 20) as slow:
                    _settings(home, slow, days)
                    _, seconds, _, compared = _ticks(instance, arguments.runs)
                    took = time.monotonic() - started
                    emit("sensor.latency20.tick_seconds", seconds, "s", took, days_compared=compared, **facts)


def _settings(home: Path, endpoint: str, days: int) -> None:
    from recsys_assets.days import shift, today

    values = {
        "bucket": {"url": "s3://logs", "endpoint_url": endpoint, "region": "us-east-1"},
        "calendar": {"first_day": shift(today("UTC"), -days)},
    }
    (home / "settings.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")


def _ingested(instance: dg.DagsterInstance) -> None:
    """Enters every day into the catalogue with the fingerprint of its objects."""
    from recsys_assets.ingest import listing
    from recsys_assets.ingest.versions import FINGERPRINT
    from recsys_assets.pipeline import Pipeline

    pipeline = Pipeline.open()
    surveyed = listing.survey(pipeline.bucket, pipeline.settings)
    found = listing.days_of(pipeline.bucket, pipeline.settings, sorted(surveyed.days), surveyed)
    progress(f"{sum(map(len, found.days.values())):,} objects of {len(found.days)} days listed")
    for day, objects in found.days.items():
        instance.report_runless_asset_event(
            dg.AssetMaterialization("interactions", partition=day, metadata={FINGERPRINT: listing.fingerprint(objects)})
        )
    progress("entered into the catalogue")


def _ticks(instance: dg.DagsterInstance, runs: int) -> tuple[float, list[float], list[int], list[int]]:
    """Seconds of the first tick of a process's client, then seconds, listing requests and days of each further one."""
    from recsys_assets.definitions import defs
    from recsys_assets.ingest.sensors import new_log_prefixes
    from recsys_assets.pipeline import Pipeline

    pipeline = Pipeline.open()
    cursor: str | None = None
    seconds: list[float] = []
    requests: list[int] = []
    compared: list[int] = []
    for _ in range(runs + 1):
        if cursor is not None:  # as if a minute had passed
            kept = json.loads(cursor)
            cursor = json.dumps({**kept, "at": kept["at"] - 60})
        before = pipeline.bucket.list_requests if seconds else 0
        with dg.build_sensor_context(
            instance=instance,
            cursor=cursor,
            resources={"pipeline": pipeline},
            repository_def=defs.get_repository_def(),
        ) as context:
            started = time.perf_counter()
            tick = new_log_prefixes.evaluate_tick(context)
            seconds.append(time.perf_counter() - started)
        if tick.run_requests or "none changed" not in (tick.skip_message or ""):
            raise RuntimeError(f"nothing changed, but the tick says: {tick.skip_message}")
        compared.append(int((tick.skip_message or "").split()[0]))
        requests.append(pipeline.bucket.list_requests - before)
        cursor = tick.cursor
        progress(f"{seconds[-1]:.3f} s, {requests[-1]} requests, {compared[-1]} days, cursor {cursor}")
    return seconds[0], seconds[1:], requests[1:], compared[1:]


if __name__ == "__main__":
    main()
