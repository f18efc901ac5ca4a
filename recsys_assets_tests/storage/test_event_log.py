"""Dagster's event log with connections that stay open: what one class writes the other reads, in any process."""

import sqlite3
import threading
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.storage.event_log import SqliteEventLogStorage

from recsys_assets.launch import dagster_home
from recsys_assets.storage import event_log
from recsys_assets.storage.event_log import PersistentSqliteEventLogStorage

KEY = dg.AssetKey("a")


@dg.asset(partitions_def=dg.StaticPartitionsDefinition(["x", "y"]))
def a() -> None: ...


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DAGSTER_HOME as `recsys` makes it."""
    folder = dagster_home(tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(folder))
    return folder


def run(instance: dg.DagsterInstance, partition: str) -> str:
    return dg.materialize([a], partition_key=partition, instance=instance).run_id


def seen(instance: dg.DagsterInstance) -> tuple[set[str], list[int]]:
    counts = [len(instance.all_logs(each.run_id)) for each in instance.get_runs()]
    return instance.get_materialized_partitions(KEY), counts


def test_dagsters_own_class_reads_the_same(home: Path) -> None:
    text = (home / "dagster.yaml").read_text()
    (home / "dagster.yaml").write_text("")
    with dg.DagsterInstance.get() as before:
        assert type(before.event_log_storage) is SqliteEventLogStorage
        run(before, "x")
        was = seen(before)
    (home / "dagster.yaml").write_text(text)
    with dg.DagsterInstance.get() as instance:
        assert type(instance.event_log_storage) is PersistentSqliteEventLogStorage
        assert seen(instance) == was
        run(instance, "y")
        now = seen(instance)
        assert now[0] == {"x", "y"}
        with dg.DagsterInstance.from_config(str(home), "none.yaml") as meanwhile:
            assert type(meanwhile.event_log_storage) is SqliteEventLogStorage
            assert seen(meanwhile) == now, "read while the other's connections are open"


def test_few_databases_stay_open(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "_OPEN", 2)
    with dg.DagsterInstance.get() as instance:
        runs = [run(instance, "x") for _ in range(4)]
        storage = instance.event_log_storage
        assert isinstance(storage, PersistentSqliteEventLogStorage)
        assert set(storage._engines) == {"index", *runs[2:]}
        assert all(instance.all_logs(each) for each in runs)


def test_a_wiped_log_begins_anew(home: Path) -> None:
    with dg.DagsterInstance.get() as instance:
        first = run(instance, "x")
        instance.event_log_storage.wipe()
        assert not instance.all_logs(first)
        run(instance, "y")
        assert instance.get_materialized_partitions(KEY) == {"y"}


def test_many_threads(home: Path) -> None:
    """(Whole runs side by side in one process are not Dagster's way: its loggers lock each other out.)"""
    with dg.DagsterInstance.get() as instance:

        def write(partition: str) -> None:
            for _ in range(10):
                instance.report_runless_asset_event(dg.AssetMaterialization(KEY, partition=partition))

        threads = [threading.Thread(target=write, args=(partition,)) for partition in "xyxy"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert instance.get_materialized_partitions(KEY) == {"x", "y"}
        assert len(instance.fetch_materializations(KEY, limit=100).records) == 40
    with sqlite3.connect(home / "history" / "runs" / "index.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
