"""A day that a run would leave as it is needs none, and every other one does."""

import gzip
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import dagster as dg
import pytest
import yaml

from recsys_assets.ingest import unchanged
from recsys_assets.ingest.unchanged import days_to_run
from recsys_assets.launch import RunFailed, open_instance, run_job
from recsys_assets.pipeline import Pipeline
from recsys_assets.settings import BucketSettings
from recsys_assets_tests.graph import DAYS, INGEST, changed, fill, make_home, run

THREE = DAYS[:3]


def files(pipeline: Pipeline) -> dict[str, tuple[int, int]]:
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in pipeline.settings.store.rglob("*.parquet")
        if path.parent.name == "interactions"
    }


def unchanged_days(pipeline: Pipeline, days: list[str]) -> set[str]:
    """What the look finds, whose reading of Dagster's file must always be what Dagster says."""
    assert unchanged._read_recorded(pipeline.settings.home / "dagster") == unchanged._ask_recorded(pipeline)
    return unchanged.unchanged_days(pipeline, days)


def test_what_needs_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")
    pipeline = make_home(tmp_path)
    fill(pipeline, THREE)
    with open_instance(pipeline) as instance:
        assert unchanged_days(pipeline, THREE) == set(), "nothing is there"
        run_job("ingest", THREE, pipeline, instance)
        assert unchanged_days(pipeline, DAYS) == set(THREE)
        first = run_job("ingest", THREE[:1], pipeline, instance).run_id
        before = files(pipeline)

        pipeline.bucket.put("logs/2025/11/02/late.json", b"[]")
        assert unchanged_days(pipeline, THREE) == {DAYS[0], DAYS[2]}
        pipeline.bucket.delete("logs/2025/11/02/late.json")
        assert unchanged_days(pipeline, THREE) == set(THREE)

        other = changed(pipeline, actions={"VIEW": 1, "PURCHASE": 5})
        assert unchanged_days(other, THREE) == set()
        pipeline = changed(pipeline)

        for table in ("raw_events", "interactions"):
            path = pipeline.tables.path(table, DAYS[2])
            sound = path.read_bytes()
            path.write_bytes(sound[:-1])
            assert unchanged_days(pipeline, THREE) == set(THREE[:2]), table
            path.write_bytes(sound)
        assert unchanged_days(pipeline, THREE) == set(THREE)

        folder = tmp_path / "bucket/logs/2025/11"
        os.rename(folder / "01", tmp_path / "away")
        with pytest.raises(RunFailed, match="stays as it was"):
            run_job("ingest", THREE, pipeline, instance)
        os.rename(tmp_path / "away", folder / "01")
        assert unchanged_days(pipeline, THREE) == set(), "the last run of these days failed"
        run_job("ingest", THREE, pipeline, instance)
        last = run_job("ingest", THREE[1:], pipeline, instance).run_id
        assert unchanged_days(pipeline, THREE) == set(THREE)
        instance.delete_run(last)
        assert unchanged_days(pipeline, THREE) == set(THREE), "earlier runs are there still"
        for record in instance.get_run_records():
            if record.dagster_run.run_id != first:
                instance.delete_run(record.dagster_run.run_id)
        assert unchanged_days(pipeline, THREE) == {DAYS[0]}
        run_job("ingest", THREE, pipeline, instance)
        assert unchanged_days(pipeline, THREE) == set(THREE)
        instance.wipe_assets([dg.AssetKey("rejected_events")])
        assert unchanged_days(pipeline, THREE) == set()
        assert {name: before[name] for name in before if DAYS[2] not in name} == {
            name: stamp for name, stamp in files(pipeline).items() if DAYS[2] not in name
        }


def test_a_run_takes_from_the_first_to_the_last_changed_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")
    pipeline = make_home(tmp_path)
    fill(pipeline, DAYS[:5])
    said: list[str] = []
    with open_instance(pipeline) as instance:
        assert days_to_run(pipeline, DAYS[:5], said.append) == DAYS[:5]
        assert not said
        run_job("ingest", DAYS[:5], pipeline, instance)
        for day in (DAYS[1], DAYS[3]):
            pipeline.bucket.put(f"logs/{day.replace('-', '/')}/late.json", b"[]")
        assert days_to_run(pipeline, DAYS[:5], said.append) == DAYS[1:4]
        run_job("ingest", DAYS[1:4], pipeline, instance)
        pipeline.warehouse.path.unlink()
        assert days_to_run(pipeline, DAYS[:5], said.append) == []
    assert pipeline.warehouse.path.exists()
    assert [line.partition(":")[0] for line in said] == ["2 of 5 days are unchanged", "5 of 5 days are unchanged"]


def test_the_look_asks_dagster_where_its_file_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")
    pipeline = make_home(tmp_path)
    fill(pipeline, THREE)
    dagster = tmp_path / "dagster"
    assert unchanged._read_recorded(dagster) == set(), "before the first run"
    with open_instance(pipeline) as instance:
        run_job("ingest", THREE, pipeline, instance)
    assert unchanged._read_recorded(dagster) == set(THREE)

    (dagster / "alive/some-run.lock").touch()
    assert unchanged._read_recorded(dagster) is None, "a run was killed, or is at work"
    assert unchanged.unchanged_days(pipeline, THREE) == set(THREE)
    assert unchanged._read_recorded(dagster) == set(THREE), "the killed run is noted"

    configuration = (dagster / "dagster.yaml").read_text()
    for moved in ("storage:\n  sqlite:\n    base_dir: elsewhere", "event_log_storage: {}", "["):
        (dagster / "dagster.yaml").write_text(moved)
        assert unchanged._read_recorded(dagster) is None
    storage = {"sqlite": {"base_dir": str(tmp_path / "elsewhere")}}
    (dagster / "dagster.yaml").write_text(yaml.safe_dump({"storage": storage}))
    assert unchanged.unchanged_days(pipeline, THREE) == set(), "there nothing is recorded"
    (dagster / "dagster.yaml").write_text(configuration)
    assert unchanged.unchanged_days(pipeline, THREE) == set(THREE)

    history = dagster / "history/runs/index.db"
    with closing(sqlite3.connect(history)) as connection:
        (revision,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        assert revision == unchanged._REVISION, "if this fails with a newer Dagster: are event_logs what they were?"
        connection.execute("UPDATE alembic_version SET version_num = 'later'")
        connection.commit()
        assert unchanged._read_recorded(dagster) is None
    history.write_bytes(b"no database")
    assert unchanged._read_recorded(dagster) is None


LOOK = """
import sys
from recsys_assets.cli import main
try:
    main(["run", "ingest", "--from", sys.argv[1], "--to", sys.argv[2]])
except SystemExit as end:
    assert not end.code
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_the_look_imports_nothing_heavy(
    any_bucket: BucketSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")
    pipeline = make_home(tmp_path, bucket={"url": any_bucket.url, "endpoint_url": any_bucket.endpoint_url})
    fill(pipeline, THREE)
    with open_instance(pipeline) as instance:
        run_job("ingest", THREE, pipeline, instance)
    done = subprocess.run(
        [sys.executable, "-c", LOOK, THREE[0], THREE[-1]],
        env={**os.environ, "RECSYS_HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    said, modules = done.stdout.splitlines()
    assert said == "3 of 3 days are unchanged: the same objects, the same rules"
    heavy = {"dagster", "dagster_aws", "duckdb", "polars", "sqlalchemy", "scipy", "torch"}
    assert heavy & set(modules.split()) == set()
    assert {"pyarrow", "sqlite3"} <= set(modules.split())


def test_what_was_too_large_is_read_again_under_a_higher_limit(tmp_path: Path) -> None:
    pipeline = make_home(tmp_path, bucket={"max_object_mb": 1})
    record = b'{"timestamp": 1761994800000, "user_id": "u", "item_id": "i", "action": "VIEW"}'
    pipeline.bucket.put("logs/2025/11/01/a.json", b"[" + record + b" " * 2**20 + b"]")
    pipeline.bucket.put("logs/2025/11/01/b.json.gz", gzip.compress(b"[" + record + b" " * 2**20 + b"]"))
    assert run(pipeline, INGEST, DAYS[:1]).success
    assert pipeline.tables.info("interactions", DAYS[0])["counts"]["rejected"] == {"too_large": 2}

    higher = changed(pipeline, bucket={"max_object_mb": 2})
    assert run(higher, ["interactions"], DAYS[:1]).success, "cleaned before it is read again"
    assert higher.tables.info("interactions", DAYS[0])["counts"]["rejected"] == {"too_large": 2}
    ran = run(higher, INGEST, DAYS[:1])
    assert ran.metadata("raw_events", DAYS[0])["unchanged"] is False
    assert higher.tables.info("interactions", DAYS[0])["counts"]["kept"] == 1
    assert run(pipeline, INGEST, DAYS[:1]).metadata("raw_events", DAYS[0])["unchanged"] is True, (
        "a lower one loses none"
    )
