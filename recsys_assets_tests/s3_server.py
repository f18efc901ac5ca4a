"""A real S3 server over HTTP for tests: MiniStack on loopback, one for the whole session."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from recsys_assets.settings import BucketSettings

SECRET = "TOP-SECRET-KEY-OF-THE-TESTS"


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an S3 server that lives as long as the session."""
    with running_s3_server(tmp_path_factory.mktemp("s3")) as url:
        yield url


@contextlib.contextmanager
def running_s3_server(folder: Path) -> Iterator[str]:
    """Starts a server on a free port of loopback, with `folder` for its files, and ends it with the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environ = {**os.environ, "BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "TMPDIR": str(folder)}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [str(Path(sys.executable).parent / "ministack")], cwd=folder, env=environ, stdout=log, stderr=log
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(url, server, folder / "log")
        yield url
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except urllib.error.HTTPError:  # it answers
            return
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the S3 server does not start: {log.read_text()[-2000:]}") from None
            time.sleep(0.05)


@pytest.fixture
def aws_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials of no value, and nothing of the machine's own AWS configuration."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tests")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)


@pytest.fixture
def s3_bucket(s3_endpoint: str, aws_environment: None) -> BucketSettings:
    """The settings of a new, empty bucket on the server."""
    name = f"logs-{uuid.uuid4().hex}"
    boto3.client("s3", endpoint_url=s3_endpoint).create_bucket(Bucket=name)
    return BucketSettings(url=f"s3://{name}", endpoint_url=s3_endpoint)


@pytest.fixture(params=["file", "s3"])
def any_bucket(request: pytest.FixtureRequest, tmp_path: Path) -> BucketSettings:
    """The settings of a new, empty bucket, of each kind in turn."""
    if request.param == "s3":
        settings: BucketSettings = request.getfixturevalue("s3_bucket")
        return settings
    (tmp_path / "bucket").mkdir()
    return BucketSettings(url=f"file://{tmp_path}/bucket")
