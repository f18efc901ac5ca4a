"""Running a job from the command line on the home's own Dagster instance, so that the UI shows it afterwards."""

import logging
import os
import shutil
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import dagster as dg
import filelock
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from recsys_assets.alive import ended, fail_dead_runs
from recsys_assets.history import BATCH_SIZE
from recsys_assets.pipeline import Pipeline, dagster_resources


class RunFailed(RuntimeError):
    """A run ended without success; the message names the step and its error."""


def dagster_home(home: Path) -> Path:
    """`HOME/dagster`, made ready: a DAGSTER_HOME with the checked-in dagster.yaml."""
    folder = home / "dagster"
    folder.mkdir(parents=True, exist_ok=True)
    with resources.as_file(resources.files("recsys_assets") / "dagster.yaml") as source:
        if not (folder / "dagster.yaml").exists():  # a person's own changes stay
            shutil.copyfile(source, folder / "dagster.yaml")
    return folder


def open_instance(pipeline: Pipeline) -> dg.DagsterInstance:
    """The persistent instance of a home, in which no run seems to be at work whose process is gone."""
    folder = dagster_home(pipeline.settings.home)
    os.environ["DAGSTER_HOME"] = str(folder)
    os.environ.setdefault("DAGSTER_EVENT_BATCH_SIZE", str(BATCH_SIZE))  # for what this process starts too (the UI)
    with filelock.FileLock(folder / "opening.lock"):  # of two that make its databases at once one would fail
        instance = dg.DagsterInstance.get()
    fail_dead_runs(instance, pipeline.settings.home)
    return instance


@dg.logger(config_schema={}, description="One short line a message, for a terminal.")
def brief_logger(_: dg.InitLoggerContext) -> logging.Logger:
    class Brief(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            meta: dict[str, Any] = getattr(record, "dagster_meta", None) or {}
            text = str(meta.get("orig_message") or record.getMessage())
            return f"    {meta.get('step_key') or 'run'}: {text}"

    logger = logging.Logger("recsys", logging.INFO)
    handler = logging.StreamHandler()
    handler.setFormatter(Brief())
    logger.addHandler(handler)
    return logger


def run_job(
    job: str,
    days: Sequence[str],
    pipeline: Pipeline,
    instance: dg.DagsterInstance,
    tags: dict[str, str] | None = None,
    config: dict[str, Any] | None = None,
) -> dg.ExecuteInProcessResult:
    """Runs a job for one day or a range of days, in one run and in this process.

    Raises:
        RunFailed: naming the step and what it said.
    """
    from recsys_assets.definitions import defs
    from recsys_assets.partitions import daily

    if unknown := sorted({min(days), max(days)} - set(daily.get_partition_keys())):
        raise RunFailed(
            f"{', '.join(unknown)} lies outside the calendar: see calendar.first_day and calendar.last_day in "
            f"{pipeline.settings.home / 'settings.yaml'}"
        )
    run_config: dict[str, Any] = {"loggers": {"brief": {}}, **(config or {})}
    partition_tags = {ASSET_PARTITION_RANGE_START_TAG: min(days), ASSET_PARTITION_RANGE_END_TAG: max(days)}
    result = defs.resolve_job_def(job).execute_in_process(
        run_config=run_config,
        instance=instance,
        resources=dagster_resources(pipeline),
        partition_key=days[0] if len(days) == 1 else None,
        tags={**(tags or {}), **(partition_tags if len(days) > 1 else {})},
        raise_on_error=False,
    )
    ended(pipeline.settings.home, result.run_id)
    if not result.success:
        failed = next((e for e in result.all_events if e.is_step_failure), None)
        if failed is None:
            raise RunFailed(f"{job} for {', '.join(days)} ended without success; its log in the UI says more")
        data = failed.step_failure_data
        said = data.user_failure_data.description if data.user_failure_data else None
        error = data.error
        while said is None and error is not None:  # the innermost cause is what went wrong
            said, error = (None, error.cause) if error.cause else (error.message.strip(), None)
        raise RunFailed(f"{failed.step_key}: {said or 'failed'}")
    return result
