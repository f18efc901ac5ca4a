"""A real retailer's year from raw objects to interactions, and the newest day from there to recommendations.

The Complete Journey is written into a real S3 server on loopback, then these are measured as whole processes, as a user
starts them, with the peak memory of each:

| name | |
|---|---|
| year.seconds | `recsys run ingest` of all 365 days by one command in a home of its own |
| year.unchanged_speedup | the same over the seconds of the same command once more, which must leave every file alone |
| year.day_cost_ratio | one more day after 360 days of history over the same day after 30: seconds of the run alone |
| year.train_seconds | `recsys run train` of the newest day |

    python -m benchmarks.year [--runs 3] [--no-train]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import boto3
import yaml

from benchmarks.lines import emit, progress
from recsys_assets.sources.complete_journey import PURCHASES, complete_journey
from recsys_assets_tests.s3_server import running_s3_server

BUCKET = "complete-journey"
NEWEST = "2017-12-31"
MORE_DAYS = [f"2017-12-{number}" for number in range(27, 32)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="ingests of the whole year (default 3)")
    parser.add_argument("--no-train", action="store_true", help="ingest only")
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, running_s3_server(Path(folder)) as endpoint:
        os.environ.update(AWS_ACCESS_KEY_ID="benchmark", AWS_SECRET_ACCESS_KEY="benchmark")
        _fill(endpoint)
        seconds, peaks, again, home = [], [], [], Path(folder) / "home"
        for run in range(arguments.runs):
            home = Path(folder) / f"home-{run}"
            _new_home(home, endpoint)
            took, peak = recsys(home, "run", "ingest", "--from", "2017-01-01", "--to", "2018-01-01")
            progress(f"ingest {run + 1} of {arguments.runs}: {took:.1f} s, {peak:.0f} MB")
            seconds.append(took)
            peaks.append(peak)
            before = _files(home)
            again.append(recsys(home, "run", "ingest", "--from", "2017-01-01", "--to", "2018-01-01")[0])
            progress(f"unchanged: {again[-1]:.1f} s")
            if _files(home) != before:
                raise RuntimeError("a run in which nothing changed wrote files")
        facts = {"records": PURCHASES, "days": 366}
        emit("year.seconds", seconds, "s", time.monotonic() - started, max(peaks), **facts)
        speedups = [first / later for first, later in zip(seconds, again, strict=True)]
        unchanged = [round(each, 2) for each in again]
        emit(
            "year.unchanged_speedup",
            speedups,
            "ratio",
            time.monotonic() - started,
            unchanged_seconds=unchanged,
            **facts,
        )
        _measure_one_more_day(Path(folder), endpoint)
        if not arguments.no_train:
            took, peak = recsys(home, "run", "train", "--day", NEWEST)
            emit("year.train_seconds", [took], "s", time.monotonic() - started, peak, day=NEWEST, **facts)


def _measure_one_more_day(folder: Path, endpoint: str) -> None:
    started = time.monotonic()
    homes = {"2017-01-01": folder / "long", "2017-11-27": folder / "short"}
    for first, home in homes.items():
        _new_home(home, endpoint)
        recsys(home, "run", "ingest", "--from", first, "--to", "2017-12-26")
    seconds = []
    for number, day in enumerate(MORE_DAYS):
        order = list(homes.values())[:: 1 if number % 2 else -1]
        took = {home.name: _seconds_of_one_day(home, day) for home in order}
        progress(f"{day}: {took['long']:.2f} s after 360 days, {took['short']:.2f} s after 30")
        seconds.append((took["long"], took["short"]))
    emit(
        "year.day_cost_ratio",
        [late / early for late, early in seconds],
        "ratio",
        time.monotonic() - started,
        seconds_after_360=[round(late, 3) for late, _ in seconds],
        seconds_after_30=[round(early, 3) for _, early in seconds],
    )


def _seconds_of_one_day(home: Path, day: str) -> float:
    """Of the run in a new process; what it takes to start one is the same whatever the history."""
    code = (
        "import sys, time\n"
        "from recsys_assets.definitions import defs\n"
        "from recsys_assets.launch import open_instance, run_job\n"
        "from recsys_assets.pipeline import Pipeline\n"
        "pipeline = Pipeline.open()\n"
        "with open_instance(pipeline) as instance:\n"
        "    started = time.perf_counter()\n"
        "    run_job('ingest', [sys.argv[1]], pipeline, instance)\n"
        "    print(time.perf_counter() - started)\n"
    )
    environ = {**os.environ, "RECSYS_HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", code, day], stdout=subprocess.PIPE, text=True, check=True, env=environ)
    return float(done.stdout.split()[-1])


def _files(home: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of every file of the store."""
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in (home / "store").rglob("*.parquet")}


def _fill(endpoint: str) -> None:
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    client.create_bucket(Bucket=BUCKET)
    for count, (key, content) in enumerate(complete_journey()):
        client.put_object(Bucket=BUCKET, Key=key, Body=content)
        if count % 200 == 0:
            progress(f"writing {key}")


def _new_home(home: Path, endpoint: str) -> None:
    home.mkdir()
    settings = {
        "bucket": {"url": f"s3://{BUCKET}", "endpoint_url": endpoint, "region": "us-east-1"},
        "calendar": {"first_day": "2017-01-01", "last_day": "2018-01-01"},
        "recommend": {"bought_items": "keep"},
    }
    (home / "settings.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")


def recsys(home: Path, *arguments: str) -> tuple[float, float]:
    """Seconds and peak resident memory (MB) of one `recsys` command.

    A child's peak is read through a small process of its own, because RUSAGE_CHILDREN is the largest of all children.
    """
    measure = (
        "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:], stdout=sys.stderr); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
    )
    command = [sys.executable, "-m", "recsys_assets.cli", "--home", str(home), *arguments]
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", measure, *command], stdout=subprocess.PIPE, text=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    return time.monotonic() - started, int(done.stdout.split()[-1]) * unit / 1e6


if __name__ == "__main__":
    main()
