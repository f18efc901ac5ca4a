"""Dagster's own SQLite event log, with a batch of events in one transaction instead of two for each event, and with a
data version for each day of a run over several.

A run over a range of days records two events for each day of each asset, 2,200 for a year of ingest. Dagster hands them
over in batches where DAGSTER_EVENT_BATCH_SIZE says so, but its SQLite storage stores those one by one, with new
connections and two commits each: 17 of the 33 processor seconds of that year's first run.

What is stored, and how, stays Dagster's: this replaces the connections that `store_event` asks for while a batch lasts.
If a later Dagster asks otherwise, events are stored one by one again, as they are where a batch fails.

One thing is changed in what is stored: Dagster (1.13) gives all days of a run one data version (dagster#18649, #34013),
and no event of an asset says otherwise. Each materialization gets the version that stands in its own metadata instead,
so that a day that is later materialized alone, unchanged, has the version it had.
"""

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import dagster as dg
import sqlalchemy
from dagster._core.definitions.data_version import DATA_VERSION_TAG
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._serdes import ConfigurableClassData

VERSION = "version"  # the metadata entry that says the version of a partition
OF_SEVERAL = "days-"  # begins the data version that our assets give to a run over several days
BATCH_SIZE = 200  # events: others who write wait meanwhile, half a second where the machine is slow
_INDEX = "index"  # the shard of all runs' asset events, as SqliteEventLogStorage calls it
_BUSY_SECONDS = 30  # as there


class BatchedEventLogStorage(SqliteEventLogStorage):
    """For `event_log_storage` in dagster.yaml; its files are where, and what, SqliteEventLogStorage's would be.

    Args:
        dagster_home: the home that dagster.yaml belongs to.
    """

    def __init__(self, dagster_home: str, inst_data: ConfigurableClassData | None = None) -> None:
        if not Path(dagster_home).is_absolute():
            raise ValueError(f"DAGSTER_HOME must be an absolute path, not {dagster_home!r}")
        self._of_batch = threading.local()
        super().__init__(str(Path(dagster_home) / "history" / "runs"), inst_data)

    @classmethod
    def config_type(cls) -> Any:
        return {"dagster_home": dg.StringSource}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> "BatchedEventLogStorage":
        return cls(inst_data=inst_data, **config_value)

    def store_event(self, event: dg.EventLogEntry) -> None:
        super().store_event(_with_version_of_its_day(event))

    def store_event_batch(self, events: Sequence[dg.EventLogEntry]) -> None:
        """Stores all events or, if one fails, none: Dagster then tries them one by one."""
        for run_id, of_run in groupby(events, key=lambda event: event.run_id):
            with self.run_connection(run_id):  # the run's file is made with its first event
                pass
            with self._transaction(_INDEX) as index, self._transaction(run_id) as run:  # the run's commits first
                self._of_batch.connections = {run_id: run, _INDEX: index}
                try:
                    for event in of_run:
                        self.store_event(event)
                finally:
                    del self._of_batch.connections

    @contextlib.contextmanager
    def run_connection(self, run_id: str | None = None) -> Iterator[sqlalchemy.Connection]:
        with self._held(run_id) or super().run_connection(run_id) as connection:
            yield connection

    @contextlib.contextmanager
    def index_connection(self) -> Iterator[sqlalchemy.Connection]:
        with self._held(_INDEX) or super().index_connection() as connection:
            yield connection

    @contextlib.contextmanager
    def _transaction(self, shard: str) -> Iterator[sqlalchemy.Connection]:
        engine = sqlalchemy.create_engine(
            self.conn_string_for_shard(shard),
            poolclass=sqlalchemy.NullPool,
            connect_args={"timeout": _BUSY_SECONDS},
        )
        try:
            with engine.begin() as connection:
                yield connection
        finally:
            engine.dispose()

    def _held(self, shard: str | None) -> "contextlib.nullcontext[sqlalchemy.Connection] | None":
        """The connection of the batch that this thread stores, if it does."""
        connection = getattr(self._of_batch, "connections", {}).get(shard)
        return None if connection is None else contextlib.nullcontext(connection)


def _with_version_of_its_day(event: dg.EventLogEntry) -> dg.EventLogEntry:
    made = event.asset_materialization
    if made is None or made.tags is None or not made.tags.get(DATA_VERSION_TAG, "").startswith(OF_SEVERAL):
        return event
    version = made.metadata.get(VERSION)
    if made.partition is None or not isinstance(version, dg.TextMetadataValue) or not version.text:
        return event
    made = made._replace(tags={**made.tags, DATA_VERSION_TAG: version.text})
    told = event.get_dagster_event()
    data = told.step_materialization_data._replace(materialization=made)
    return event._replace(dagster_event=told._replace(event_specific_data=data))
