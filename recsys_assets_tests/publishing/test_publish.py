import json
import os
import signal
from pathlib import Path
from typing import Any

import boto3
import dagster as dg
import polars as pl
import pytest

from recsys_assets.pipeline import Pipeline
from recsys_assets.publishing import publish
from recsys_assets.publishing.assets import published_champion, published_metrics
from recsys_assets.publishing.publish import COLUMNS, DASHBOARD, publish_champion, publish_metrics
from recsys_assets.settings import BucketSettings
from recsys_assets.storage import files
from recsys_assets.storage.bucket import FileBucket
from recsys_assets_tests.graph import TRAINED, Ran, changed, copy_home


@pytest.fixture
def home(trained_home: Pipeline, tmp_path: Path) -> Pipeline:
    """A trained home of its own that publishes into folders."""
    copied = copy_home(trained_home, tmp_path / "home")
    return changed(copied, publish={"metrics_url": "file://out/metrics", "model_url": "file://out/model"})


def documents(home: Pipeline) -> dict[str, Any]:
    folder = home.settings.home / "out/metrics"
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def materialize(home: Pipeline, day: str) -> dg.ExecuteInProcessResult:
    return dg.materialize(
        [published_metrics, published_champion], resources={"pipeline": home}, partition_key=day, raise_on_error=False
    )


def test_two_materializations_of_a_day_leave_one_row(home: Pipeline) -> None:
    ran = [Ran(materialize(home, day)) for day in (*TRAINED, TRAINED[0])]
    assets = ("published_metrics", "published_champion")
    told = [each.metadata(name, TRAINED[0]) for each in (ran[0], ran[2]) for name in assets]
    assert [entries["unchanged"] for entries in told] == [False, False, False, True], "documents are always written"
    assert told[0]["version"] == told[2]["version"], "all days stand in them"
    assert told[3]["version"] == (home.champion.read() or {})["version"]
    found = documents(home)
    assert set(found) == set(DASHBOARD)
    for name, document in found.items():
        split, metric = DASHBOARD[name]
        assert document["columns"] == COLUMNS
        assert [row[0] for row in document["values"]] == TRAINED
        for day, value, popular, users in document["values"]:
            rows = home.tables.read("evaluation", day).filter(
                (pl.col("split") == split) & (pl.col("metric") == metric) & (pl.col("k") == 10)
            )
            assert [value, popular] == [
                rows.filter(pl.col("model") == model)["value"].item() for model in ("hybrid", "popularity_7d")
            ]
            assert users == rows["users"][0] > 0
    assert found["all_user_diversity"]["values"][0][3] > found["test_diversity"]["values"][0][3]


def test_a_kill_at_any_step_leaves_no_torn_file(home: Pipeline) -> None:
    url = home.settings.publish.metrics_url
    assert url is not None
    folder = home.settings.home / "out/metrics"
    made = publish.metric_documents(home.tables)
    earlier = {name: {**document, "values": document["values"][:1]} for name, document in made.items()}
    assert all(earlier[name] != document for name, document in made.items())
    for number in range(len(DASHBOARD) * 2):
        for name, document in earlier.items():
            files.write_bytes(folder / f"{name}.json", json.dumps(document).encode())
        child = os.fork()
        if not child:
            publish.metric_documents = lambda _: made  # Polars' threads do not outlive a fork
            calls = iter(range(100))
            original = files.fsync

            def fatal(path: Path, original: Any = original, calls: Any = calls, number: int = number) -> None:
                if next(calls) == number:  # before the rename, and after it
                    os.kill(os.getpid(), signal.SIGKILL)
                original(path)

            files.fsync = fatal
            try:
                publish_metrics(home, url)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        new = list(made)[: (number + 1) // 2]
        assert documents(home) == {name: (made if name in new else earlier)[name] for name in made}, "whole ones only"
    publish_metrics(home, url)
    assert documents(home) == made
    assert not list(folder.glob(".tmp-*")), "leftovers of the killed are cleared"


def test_the_champion_s_files_arrive_whole_and_the_pointer_last(home: Pipeline) -> None:
    url, champion = home.settings.publish.model_url, home.champion.read()
    assert url is not None
    assert champion is not None
    assert not publish_champion(home, url)["unchanged"]
    folder = home.settings.home / "out/model"
    pointer = json.loads((folder / "champion.json").read_text())
    assert (pointer["day"], pointer["version"]) == (champion["day"], champion["version"])
    artifact = home.artifacts.at("hybrid_model", champion["day"], champion["version"])
    assert artifact is not None
    copied = folder / pointer["path"]
    manifest = json.loads((copied / "manifest.json").read_text())
    assert {name: files.sha256(copied / name) for name in manifest["files"]} == {
        name: entry["sha256"] for name, entry in manifest["files"].items()
    }
    assert {path.relative_to(copied) for path in copied.rglob("*") if path.is_file()} == {
        path.relative_to(artifact.path) for path in artifact.path.rglob("*") if path.is_file()
    }
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    assert publish_champion(home, url)["unchanged"]
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before


def test_a_copy_that_broke_off_is_not_pointed_to(home: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    url = home.settings.publish.model_url
    assert url is not None
    puts: list[str] = []
    original = FileBucket.put

    def breaks_off(self: FileBucket, key: str, content: bytes) -> None:
        if len(puts) == 3:
            raise OSError("the network is gone")
        puts.append(key)
        original(self, key, content)

    monkeypatch.setattr(FileBucket, "put", breaks_off)
    with pytest.raises(OSError, match="network"):
        publish_champion(home, url)
    folder = home.settings.home / "out/model"
    assert not (folder / "champion.json").exists()
    assert not list(folder.rglob("manifest.json"))
    monkeypatch.undo()
    assert not publish_champion(home, url)["unchanged"]
    assert publish_champion(home, url)["unchanged"]


def test_into_a_real_bucket(home: Pipeline, s3_bucket: BucketSettings) -> None:
    name = s3_bucket.url.removeprefix("s3://")
    there = changed(
        home,
        publish={
            "metrics_url": f"{s3_bucket.url}/dash/board/",
            "model_url": s3_bucket.url,
            "endpoint_url": s3_bucket.endpoint_url,
        },
    )
    assert materialize(there, TRAINED[-1]).success
    s3 = boto3.client("s3", endpoint_url=s3_bucket.endpoint_url)
    keys = {entry["Key"] for entry in s3.list_objects_v2(Bucket=name)["Contents"]}
    assert {f"dash/board/{metric}.json" for metric in DASHBOARD} <= keys
    pointer = json.loads(s3.get_object(Bucket=name, Key="champion.json")["Body"].read())
    assert f"{pointer['path']}manifest.json" in keys


def test_what_is_missing_is_said(home: Pipeline, tmp_path: Path) -> None:
    ran = materialize(home, "2025-11-01")
    (failed,) = [event for event in ran.all_events if event.is_step_failure]
    assert "Materialize evaluation for 2025-11-01 first" in str(failed.step_failure_data.user_failure_data)
    from recsys_assets_tests.graph import make_home

    with pytest.raises(publish.InputError, match="no champion"):
        publish_champion(make_home(tmp_path / "empty"), "file://out")
