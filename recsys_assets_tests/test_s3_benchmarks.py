"""The benchmarks before an S3 server, on a few objects: they run, both sides see the same, and the network is slow."""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import end_to_end, fetch


@pytest.fixture
def server(s3_endpoint: str, aws_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server of the tests in place of a faster one."""

    @contextlib.contextmanager
    def started(folder: Path) -> Iterator[tuple[str, str]]:
        yield s3_endpoint, "MiniStack"

    for module in (fetch, end_to_end):
        monkeypatch.setattr(module, "fast_s3_server", started)
        monkeypatch.setattr(module, "BUCKET", f"benchmark-{module.__name__.rpartition('.')[2].replace('_', '-')}")


def lines(out: str) -> dict[str, dict]:
    return {line["name"]: line for line in map(json.loads, out.splitlines())}


def test_fetch(server: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["fetch", "--objects", "20", "--runs", "1"])
    fetch.main()
    printed = lines(capsys.readouterr().out)
    assert list(printed) == ["fetch.vs_fastest", "fetch.vs_boto3", "fetch.latency20.vs_boto3"]
    assert all(line["value"] > 0 and line["cpu_seconds_per_1000"] > 0 for line in printed.values())
    assert printed["fetch.latency20.vs_boto3"]["objects_per_second_theirs"] < 50, "20 ms for each request"


def test_end_to_end(server: None, capsys: pytest.CaptureFixture[str]) -> None:
    end_to_end.measure(objects=3, runs=1)
    printed = lines(capsys.readouterr().out)
    assert list(printed) == ["ingest.end_to_end.vs_script", "ingest.end_to_end20.vs_script"]
    for line in printed.values():
        assert 535 <= line["kept"] < line["records"] == 540, "each side dropped the same repeated records"
