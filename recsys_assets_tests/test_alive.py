"""A run whose process was killed is noted as failed; one that is at work, or came to its end, is left alone."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import dagster as dg
import filelock
import pytest

from recsys_assets.alive import at_work, fail_dead_runs, serves
from recsys_assets.ingest.sensors import new_log_prefixes
from recsys_assets.launch import open_instance, run_job
from recsys_assets.pipeline import InputError
from recsys_assets_tests.graph import DAYS, fill, make_home

KILLED_IN_A_RUN = """
import os, signal, sys
from recsys_assets.ingest import assets
from recsys_assets.launch import open_instance, run_job
from recsys_assets.pipeline import InputError
from recsys_assets.pipeline import Pipeline
def clean_day(*_):
    os.kill(os.getpid(), signal.SIGKILL)
assets.clean_day = clean_day
pipeline = Pipeline.open()
run_job("ingest", sys.argv[1:], pipeline, open_instance(pipeline))
"""


def test_a_killed_run_is_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")
    pipeline = make_home(tmp_path)
    fill(pipeline, DAYS[:2])
    environ = {**os.environ, "RECSYS_HOME": str(tmp_path)}
    killed = subprocess.run([sys.executable, "-c", KILLED_IN_A_RUN, DAYS[0]], env=environ, check=False)
    assert killed.returncode == -signal.SIGKILL
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    with dg.DagsterInstance.get() as instance:
        (run,) = instance.get_runs()
        assert run.status == dg.DagsterRunStatus.STARTED, "as Dagster leaves it"
    with open_instance(pipeline) as instance:
        (run,) = instance.get_runs()
        assert run.status == dg.DagsterRunStatus.FAILURE
        finished = run_job("ingest", DAYS[:2], pipeline, instance).run_id
        assert fail_dead_runs(instance, tmp_path) == []
        assert instance.get_run_by_id(finished).status == dg.DagsterRunStatus.SUCCESS  # type: ignore[union-attr]
    assert list((tmp_path / "dagster/alive").iterdir()) == [], "what ended holds no lock while this process lives on"


def test_the_sensor_looks_and_leaves_the_living_alone(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    pipeline = make_home(tmp_path, ingest={"window_days": 3660})

    @dg.job
    def nothing() -> None: ...

    def started() -> str:
        return instance.create_run_for_job(nothing, status=dg.DagsterRunStatus.STARTED).run_id

    living, dead, unknown = started(), started(), started()
    at_work(tmp_path, living)
    at_work(tmp_path, living)
    (tmp_path / f"dagster/alive/{dead}.lock").touch()
    with dg.build_sensor_context(instance=instance, resources={"pipeline": pipeline}) as context:
        new_log_prefixes.evaluate_tick(context)
    assert {run.run_id: run.status.value for run in instance.get_runs()} == {
        living: "STARTED",
        dead: "FAILURE",
        unknown: "STARTED",
    }
    assert [path.stem for path in (tmp_path / "dagster/alive").iterdir()] == [living]


def test_one_command_at_a_time_makes_the_databases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that began at once on a new home one ended with "UNIQUE constraint failed: alembic_version"."""
    monkeypatch.setenv("DAGSTER_HOME", "")
    usual, locked = dg.DagsterInstance.get, []

    def get() -> dg.DagsterInstance:
        try:
            filelock.FileLock(tmp_path / "dagster" / "opening.lock").acquire(blocking=False)
        except filelock.Timeout:
            locked.append(True)
        return usual()

    monkeypatch.setattr(dg.DagsterInstance, "get", staticmethod(get))
    open_instance(make_home(tmp_path)).dispose()
    assert locked == [True]


def test_one_ui_a_home_and_a_port(tmp_path: Path) -> None:
    """Dagster itself begins a second daemon for the home and stays, without a UI."""
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as freed:
        port = freed.getsockname()[1]
        with pytest.raises(InputError, match=r"cannot be opened .*in use.*: choose another port with --port"):
            serves(tmp_path, taken.getsockname()[1])
    lock = serves(tmp_path, port)
    assert os.get_inheritable(lock), "`recsys ui` becomes `dagster dev`, which must go on holding it"
    with pytest.raises(InputError, match=f"served already, at http://127.0.0.1:{port}: one"):
        serves(tmp_path, port + 1)
    os.close(lock)
    os.close(serves(tmp_path, port))
