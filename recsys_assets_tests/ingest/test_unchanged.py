"""A day that a run would leave as it is needs none, and every other one does."""

import gzip
import os
from pathlib import Path

import pytest

from recsys_assets.ingest.unchanged import days_to_run, unchanged_days
from recsys_assets.launch import RunFailed, open_instance, run_job
from recsys_assets.pipeline import Pipeline
from recsys_assets_tests.graph import DAYS, INGEST, changed, fill, make_home, run

THREE = DAYS[:3]


def files(pipeline: Pipeline) -> dict[str, tuple[int, int]]:
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in pipeline.settings.store.rglob("*.parquet")
        if path.parent.name == "interactions"
    }


def test_what_needs_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")
    pipeline = make_home(tmp_path)
    fill(pipeline, THREE)
    with open_instance(pipeline) as instance:
        assert unchanged_days(pipeline, instance, THREE) == set(), "nothing is there"
        run_job("ingest", THREE, pipeline, instance)
        assert unchanged_days(pipeline, instance, DAYS) == set(THREE)
        run_job("ingest", THREE[:1], pipeline, instance)
        before = files(pipeline)

        pipeline.bucket.put("logs/2025/11/02/late.json", b"[]")
        assert unchanged_days(pipeline, instance, THREE) == {DAYS[0], DAYS[2]}
        pipeline.bucket.delete("logs/2025/11/02/late.json")
        assert unchanged_days(pipeline, instance, THREE) == set(THREE)

        other = changed(pipeline, actions={"VIEW": 1, "PURCHASE": 5})
        assert unchanged_days(other, instance, THREE) == set()
        pipeline = changed(pipeline)

        for table in ("raw_events", "interactions"):
            path = pipeline.tables.path(table, DAYS[2])
            sound = path.read_bytes()
            path.write_bytes(sound[:-1])
            assert unchanged_days(pipeline, instance, THREE) == set(THREE[:2]), table
            path.write_bytes(sound)
        assert unchanged_days(pipeline, instance, THREE) == set(THREE)

        folder = tmp_path / "bucket/logs/2025/11"
        os.rename(folder / "01", tmp_path / "away")
        with pytest.raises(RunFailed, match="stays as it was"):
            run_job("ingest", THREE, pipeline, instance)
        os.rename(tmp_path / "away", folder / "01")
        assert unchanged_days(pipeline, instance, THREE) == set(), "the last run of these days failed"
        run_job("ingest", THREE, pipeline, instance)
        assert unchanged_days(pipeline, instance, THREE) == set(THREE)
        assert {name: before[name] for name in before if DAYS[2] not in name} == {
            name: stamp for name, stamp in files(pipeline).items() if DAYS[2] not in name
        }


def test_a_run_takes_from_the_first_to_the_last_changed_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")
    pipeline = make_home(tmp_path)
    fill(pipeline, DAYS[:5])
    said: list[str] = []
    with open_instance(pipeline) as instance:
        assert days_to_run(pipeline, instance, DAYS[:5], said.append) == DAYS[:5]
        assert not said
        run_job("ingest", DAYS[:5], pipeline, instance)
        for day in (DAYS[1], DAYS[3]):
            pipeline.bucket.put(f"logs/{day.replace('-', '/')}/late.json", b"[]")
        assert days_to_run(pipeline, instance, DAYS[:5], said.append) == DAYS[1:4]
        run_job("ingest", DAYS[1:4], pipeline, instance)
        pipeline.warehouse.path.unlink()
        assert days_to_run(pipeline, instance, DAYS[:5], said.append) == []
    assert pipeline.warehouse.path.exists()
    assert [line.partition(":")[0] for line in said] == ["2 of 5 days are unchanged", "5 of 5 days are unchanged"]


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
