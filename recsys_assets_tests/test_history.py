"""Events stored in batches are those that Dagster's own storage would hold, and no batch is half stored."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest
from dagster._core.storage.event_log import SqliteEventLogStorage

from recsys_assets.definitions import defs
from recsys_assets.history import OF_SEVERAL, BatchedEventLogStorage
from recsys_assets.launch import open_instance, run_job
from recsys_assets.pipeline import Pipeline
from recsys_assets_tests.graph import DAYS, fill, make_home, run

RUN = "run-1"


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[BatchedEventLogStorage]:
    with dg.DagsterInstance.ephemeral() as instance:
        batched = BatchedEventLogStorage(str(tmp_path))
        batched.register_instance(instance)
        yield batched


def planned(days: list[str], run: str = RUN) -> list[dg.EventLogEntry]:
    return [
        dg.EventLogEntry(
            error_info=None,
            level=10,
            user_message="",
            run_id=run,
            timestamp=1.0,
            dagster_event=dg.DagsterEvent.build_asset_materialization_planned_event(
                "ingest", "raw_events", _planned_data(day)
            ),
        )
        for day in days
    ]


def _planned_data(day: str) -> Any:
    from dagster._core.events import AssetMaterializationPlannedData

    return AssetMaterializationPlannedData(dg.AssetKey("raw_events"), partition=day, partitions_subset=None)


def rows(history: Path) -> dict[str, list[tuple[Any, ...]]]:
    """What all runs of a history left: events, their tags, assets, checks; without what differs from run to run."""
    columns = {
        "event_logs": "dagster_event_type, step_key, asset_key, partition",
        "asset_event_tags": "asset_key, key, value",
        "asset_keys": "asset_key",
        "asset_check_executions": "asset_key, check_name, execution_status, partition",
    }
    found: dict[str, list[tuple[Any, ...]]] = {}
    for path in sorted(history.glob("*.db")):
        with closing(sqlite3.connect(path)) as connection:
            for table, names in columns.items():
                kind = f"{table} of {'all runs' if path.stem == 'index' else 'the run'}"
                found.setdefault(kind, []).extend(connection.execute(f"SELECT {names} FROM {table}"))
    return {kind: sorted(each, key=str) for kind, each in found.items()}


def test_what_is_stored_is_what_dagster_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")
    batches: list[int] = []
    store_batch = BatchedEventLogStorage.store_event_batch

    def counted(self: BatchedEventLogStorage, events: list[dg.EventLogEntry]) -> None:
        batches.append(len(events))
        store_batch(self, events)

    monkeypatch.setattr(BatchedEventLogStorage, "store_event_batch", counted)

    def ingested(home: Path, batch_size: str, own: bool) -> tuple[Pipeline, dict[str, list[tuple[Any, ...]]]]:
        monkeypatch.setenv("DAGSTER_EVENT_BATCH_SIZE", batch_size)
        pipeline = make_home(home, bucket={"url": f"file://{tmp_path}/logs"})
        if not own:
            (home / "dagster").mkdir()
            (home / "dagster/dagster.yaml").write_text("telemetry: {enabled: false}")
        with open_instance(pipeline) as instance:
            assert isinstance(instance.event_log_storage, SqliteEventLogStorage)
            assert isinstance(instance.event_log_storage, BatchedEventLogStorage) is own
            for days in (DAYS[:3], DAYS[1:2]):
                run_job("ingest", days, pipeline, instance)
        return pipeline, rows(home / "dagster/history/runs")

    (tmp_path / "logs").mkdir()
    fill(make_home(tmp_path, bucket={"url": "file://logs"}), DAYS[:3])
    _, one_by_one = ingested(tmp_path / "dagster's", "0", own=False)
    assert batches == []
    pipeline, batched = ingested(tmp_path / "ours", "5", own=True)
    assert max(batches) == 5
    assert sum(batches) >= 2 * 3 * 3, "planned and made, of three days and three assets"
    tags = [kind for kind in batched if kind.startswith("asset_event_tags")]
    ours, theirs = ([row for kind in tags for row in found.pop(kind)] for found in (batched, one_by_one))
    assert batched == one_by_one
    assert [row[:2] for row in ours] == [row[:2] for row in theirs]
    assert not [row for row in ours if row[2].startswith(OF_SEVERAL)]
    assert len([row for row in theirs if row[2].startswith(OF_SEVERAL)]) == 3 * 3, "three days of three assets"
    assert len(batched["event_logs of all runs"]) > 30

    with open_instance(pipeline) as instance:
        for asset in ("raw_events", "interactions", "rejected_events"):
            assert instance.get_materialized_partitions(dg.AssetKey(asset)) == set(DAYS[:3])
            latest = instance.get_latest_materialization_event(dg.AssetKey(asset))
            assert latest is not None
            assert latest.asset_materialization is not None
            assert latest.asset_materialization.partition == DAYS[1]


def test_every_day_of_a_range_has_its_own_data_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a day that is later materialized alone outdates what follows from it if it changed, and only then."""
    monkeypatch.setenv("DAGSTER_HOME", "")
    pipeline, days = make_home(tmp_path), DAYS[:3]
    fill(pipeline, days)
    assets = ("raw_events", "interactions", "rejected_events")

    def outdated(instance: dg.DagsterInstance) -> set[tuple[str, str]]:
        resolver = CachingStaleStatusResolver(
            instance, defs.resolve_asset_graph(), LoadingContextForTest(instance)
        )  # what the UI's staleStatusByPartition asks
        return {
            (asset, day)
            for asset in assets
            for day in days
            if resolver.get_status(dg.AssetKey(asset), day) != StaleStatus.FRESH
        }

    with open_instance(pipeline) as instance:
        ran = run_job("ingest", days, pipeline, instance)
        logged = [record.user_message for record in instance.all_logs(ran.run_id)]
        assert not [message for message in logged if "mismatch" in message]
        of_event = instance.event_log_storage.get_latest_tags_by_partition(
            dg.AssetKey("interactions"), dg.DagsterEventType.ASSET_MATERIALIZATION, ["dagster/data_version"]
        )
        assert {day: tags["dagster/data_version"] for day, tags in of_event.items()} == {
            day: (pipeline.tables.info("interactions", day) or {})["version"] for day in days
        }
        run(pipeline, ["raw_events"], [days[1]], instance)
        assert outdated(instance) == set(), "unchanged"
        pipeline.bucket.put(f"logs/{days[1].replace('-', '/')}/late.json", b"[]")
        run(pipeline, ["raw_events"], days, instance)
        assert outdated(instance) == {("interactions", days[1]), ("rejected_events", days[1])}


def test_a_batch_is_stored_whole_or_not_at_all(
    storage: BatchedEventLogStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.store_event_batch(planned(DAYS[:2]))
    events = planned(DAYS[2:5])
    store = SqliteEventLogStorage.store_event

    def fails_at_the_last(self: SqliteEventLogStorage, event: dg.EventLogEntry) -> None:
        store(self, event)
        if event is events[-1]:
            raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(SqliteEventLogStorage, "store_event", fails_at_the_last)
        with pytest.raises(sqlite3.OperationalError):
            storage.store_event_batch(events)
    history = Path(storage.path_for_shard("index")).parent
    assert [row[-1] for row in rows(history)["event_logs of all runs"]] == DAYS[:2]
    assert [row[-1] for row in rows(history)["event_logs of the run"]] == DAYS[:2]
    storage.store_event_batch(events)
    storage.store_event(planned(DAYS[5:6])[0])
    assert [row[-1] for row in rows(history)["event_logs of all runs"]] == DAYS[:6]
    assert [row[-1] for row in rows(history)["event_logs of the run"]] == DAYS[:6]


def test_the_runs_own_events_are_stored_before_the_index_has_them(
    storage: BatchedEventLogStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Dagster stores one event: a kill between the two leaves nothing in the index that its run does not know."""
    ended: list[str] = []
    transaction = BatchedEventLogStorage._transaction

    @contextmanager
    def noted(self: BatchedEventLogStorage, shard: str) -> Iterator[Any]:
        with transaction(self, shard) as connection:
            yield connection
        ended.append(shard)

    monkeypatch.setattr(BatchedEventLogStorage, "_transaction", noted)
    storage.store_event_batch(planned(DAYS[:2]))
    assert ended == [RUN, "index"]


def test_batches_of_several_writers_wait_for_one_another(storage: BatchedEventLogStorage, tmp_path: Path) -> None:
    other = BatchedEventLogStorage(str(tmp_path))  # as another process has it
    failed: list[BaseException] = []

    def write(to: BatchedEventLogStorage, run: str) -> None:
        try:
            for _ in range(5):
                to.store_event_batch(planned(DAYS, run))
                to.store_event(planned(DAYS[:1], run)[0])
        except BaseException as error:
            failed.append(error)

    writers = [
        threading.Thread(target=write, args=(to, f"run-{number}"))
        for number, to in enumerate((storage, storage, other, other))
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert failed == []
    found = rows(tmp_path / "history/runs")
    assert len(found["event_logs of all runs"]) == len(found["event_logs of the run"]) == 4 * 5 * (len(DAYS) + 1)


def test_a_home_that_is_not_set_is_no_place_to_write(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="DAGSTER_HOME must be an absolute path"):
        BatchedEventLogStorage("")
