"""Runs of a home that are killed: for each line 'WHAT DAY STEPS EVENT' it forks a process that is killed (SIGKILL) at
its EVENT-th event, and says how it ended.

An event is a moment at which a kill leaves another state behind: just before and just after a request that changes
something in Personalize or in the bucket, and before and after a file of the store takes its name.

WHAT is `call` (the step itself) or `run` (the step as a Dagster run on the home's instance).
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg

from recsys_assets.personalize import service
from recsys_assets.personalize.export import Exports
from recsys_assets.personalize.service import Personalize
from recsys_assets.personalize.steps import Chain
from recsys_assets.pipeline import Pipeline
from recsys_assets.storage import files
from recsys_assets.storage.bucket import S3Bucket
from recsys_assets_tests.personalize.shop import definitions

CHANGES = ("create_", "update_")


def count_events(kill_at: int) -> None:
    """From now on this process is killed at an event; 0: never."""
    seen = 0

    def event() -> None:
        nonlocal seen
        seen += 1
        if seen == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(owner: Any, name: str, changes: Callable[..., bool], after: bool = True) -> None:
        original = getattr(owner, name)

        def wrapped(*given: Any, **named: Any) -> Any:
            if not changes(*given, **named):
                return original(*given, **named)
            event()
            made = original(*given, **named)
            if after:
                event()
            return made

        setattr(owner, name, wrapped)

    around(Personalize, "_send", lambda _, operation, **__: operation.startswith(CHANGES))
    around(S3Bucket, "put", lambda *_: True)
    # Of a file before it takes its name, and of the folder after that.
    around(files, "fsync", lambda path: "personalize" in (path.parent.name, path.name), after=False)


def call(pipeline: Pipeline, personalize: Personalize, exports: Exports, day: str, step: str) -> None:
    chain = Chain(pipeline, personalize, exports)
    with chain.records.lock():
        if step == "export":
            chain.export(day)
        else:
            chain.advance(day, step)


def run(job: dg.JobDefinition, instance: dg.DagsterInstance, day: str, steps: list[str]) -> bool:
    selection = [dg.AssetKey(f"personalize_{step}") for step in steps]
    return job.execute_in_process(
        instance=instance, partition_key=day, asset_selection=selection, raise_on_error=False
    ).success


def main() -> None:
    home = Path(sys.argv[1])
    service.PAUSES = (0.005, 0.005, 0.005, 0.005, 0.005, 0.005, 0.005)
    pipeline = Pipeline.open(home)
    personalize, exports = Personalize(pipeline.settings.personalize), Exports(pipeline)
    exports.bucket.level("")  # warm: each process begins with what is open by then
    job = definitions(pipeline).resolve_job_def("personalize")
    (home / "dagster").mkdir(exist_ok=True)
    instance = dg.DagsterInstance.local_temp(str(home / "dagster"))
    for line in sys.stdin:
        what, day, steps, kill_at = line.split()
        pid = os.fork()
        if not pid:
            ended = 1
            try:
                log = os.open(home / "worker.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(log, 2)
                os.dup2(log, 1)
                count_events(int(kill_at))
                if what == "call":
                    call(pipeline, personalize, exports, day, steps)
                    ended = 0
                else:
                    ended = 0 if run(job, instance, day, steps.split(",")) else 2
            finally:
                os._exit(ended)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
