"""A real retailer's year from raw objects to interactions, and the newest day from there to recommendations.

The Complete Journey is written into a real S3 server on loopback, then `recsys run ingest` takes all 365 days by one
command in a home of its own (year.seconds) and `recsys run train` the newest one
(year.train_seconds), each with the peak memory of its process. These are whole processes, as a user starts them.

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="ingests of the whole year (default 3)")
    parser.add_argument("--no-train", action="store_true", help="ingest only")
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, running_s3_server(Path(folder)) as endpoint:
        os.environ.update(AWS_ACCESS_KEY_ID="benchmark", AWS_SECRET_ACCESS_KEY="benchmark")
        _fill(endpoint)
        seconds, peaks, home = [], [], Path(folder) / "home"
        for run in range(arguments.runs):
            home = Path(folder) / f"home-{run}"
            _new_home(home, endpoint)
            took, peak = _recsys(home, "run", "ingest", "--from", "2017-01-01", "--to", "2018-01-01")
            progress(f"ingest {run + 1} of {arguments.runs}: {took:.1f} s, {peak:.0f} MB")
            seconds.append(took)
            peaks.append(peak)
        facts = {"records": PURCHASES, "days": 366}
        emit("year.seconds", seconds, "s", time.monotonic() - started, max(peaks), **facts)
        if not arguments.no_train:
            took, peak = _recsys(home, "run", "train", "--day", NEWEST)
            emit("year.train_seconds", [took], "s", time.monotonic() - started, peak, day=NEWEST, **facts)


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


def _recsys(home: Path, *arguments: str) -> tuple[float, float]:
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
