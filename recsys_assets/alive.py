"""Which runs are at work, and which UI: each holds a lock that the operating system drops with its process.

Dagster's launcher for one machine cannot tell that a run's process is gone (a power cut, a killed `recsys run`): such a
run stays STARTED until run_monitoring ends it after six hours, takes one of the two places meanwhile, and the sensor
waits for it.
"""

import fcntl
import os
import socket
from pathlib import Path

import dagster as dg
import filelock

from recsys_assets.pipeline import InputError

_held: list[filelock.BaseFileLock] = []  # till the process ends: Dagster notes a run's end after its resources are gone


def at_work(home: Path, run_id: str) -> None:
    """Says until this process ends that the run is at work in it."""
    folder = home / "dagster" / "alive"
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / f"{run_id}.lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:  # another process of the same run: one is enough
        return
    _held.append(lock)


def ended(home: Path, run_id: str) -> None:
    """Takes back what `at_work` said in this process, once Dagster has noted the run's end."""
    path = home / "dagster" / "alive" / f"{run_id}.lock"
    for lock in [lock for lock in _held if Path(lock.lock_file) == path]:
        path.unlink(missing_ok=True)
        lock.release()
        _held.remove(lock)


def fail_dead_runs(instance: dg.DagsterInstance, home: Path) -> list[str]:
    """Notes of every run whose process is gone before its end that it failed. Returns their ids."""
    failed = []
    for path in sorted((home / "dagster" / "alive").glob("*.lock")):
        lock = filelock.FileLock(path)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            continue
        try:
            run = instance.get_run_by_id(path.stem)
            if run is not None and run.status in (dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING):
                instance.report_run_failed(
                    run, "The process of this run is gone: it was killed, or the machine stopped."
                )
                failed.append(run.run_id)
            path.unlink(missing_ok=True)
        finally:
            lock.release()
    return failed


def serves(home: Path, port: int) -> int:
    """Says until this process ends, through an exec too, that it serves the home's UI at that port of loopback.

    Dagster finds a taken port only when its daemon is at work already, which stays: two daemons of one home disturb
    each other, and there is no UI.

    Returns:
        The lock's file descriptor, of HOME/dagster/ui.lock: closed, the home is free again.

    Raises:
        InputError: something else listens at the port, or another process serves the home.
    """
    address = f"http://127.0.0.1:{port}"
    (home / "dagster").mkdir(parents=True, exist_ok=True)
    lock = os.open(home / "dagster" / "ui.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        there = os.pread(lock, 100, 0).decode(errors="replace")
        os.close(lock)
        raise InputError(
            f"this home is served already, at {there}: one `recsys ui` a home, it runs the sensor"
        ) from None
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will
            probe.bind(("127.0.0.1", port))
    except OSError as error:
        os.close(lock)
        raise InputError(f"{address} cannot be opened ({error.strerror}): choose another port with --port") from None
    os.truncate(lock, 0)
    os.pwrite(lock, address.encode(), 0)
    os.set_inheritable(lock, True)
    return lock
