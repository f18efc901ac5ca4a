"""Which runs are at work: each holds a lock that the operating system drops with its process.

Dagster's launcher for one machine cannot tell that a run's process is gone (a power cut, a killed `recsys run`): such a
run stays STARTED until run_monitoring ends it after six hours, takes one of the two places meanwhile, and the sensor
waits for it.
"""

from pathlib import Path

import dagster as dg
import filelock

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
