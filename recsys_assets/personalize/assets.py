"""Optional: Amazon Personalize, kept up to date from here (settings `personalize`).

A partition is a base date. A run starts a job, says so and ends; nothing waits. The sensor `personalize_progress` looks
how the jobs are doing, tells it on the assets' pages, and asks for the next run when one has ended. So a materialized
partition means: asked for; its metadata `status` says how far it is.
"""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import filelock

from recsys_assets import reporting
from recsys_assets.history import VERSION
from recsys_assets.partitions import daily
from recsys_assets.personalize.export import Exports
from recsys_assets.personalize.service import ACTIVE, Personalize
from recsys_assets.personalize.steps import (
    ASSETS,
    Chain,
    JobError,
    Record,
    Records,
    account,
    due,
    jobs_of,
    status_of,
    steps_of,
)
from recsys_assets.pipeline import InputError, Pipeline, explained_failures
from recsys_assets.settings import Settings, load_settings
from recsys_assets.storage.artifacts import version_of
from recsys_assets.training.schedules import RETRIES, request_newest

CODE_VERSION = "1"
ACCOUNT = "stands at"  # the metadata entry that the sensor compares with what it sees
DAY_TAG = "recsys/personalize_day"
SITUATION_TAG = "recsys/personalize_situation"
_FRUITLESS = 3  # runs for one situation before the sensor asks only now and then
_NOW_AND_THEN = timedelta(hours=1)
_LINES = 20  # of a tick: each is kept for days, and a backfill has hundreds of days
_ON_ITS_WAY = {
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.MANAGED,
    dg.DagsterRunStatus.STARTING,
}
_AT_WORK = {dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING}
_STARTING = timedelta(seconds=60)  # a run that began so recently may not hold the lock yet
_SHARED: dict[str, Any] = {
    "partitions_def": daily,
    "backfill_policy": dg.BackfillPolicy.single_run(),
    "group_name": "personalize",
    "owners": reporting.OWNERS,
    "code_version": CODE_VERSION,
}


@dg.asset(
    **_SHARED,
    deps=["interactions"],
    kinds={"csv", "s3"},
    description=(
        "The day's interactions, and the items and users of the window, as CSV files in the bucket that Amazon "
        "Personalize imports from, each by its dataset's own schema."
    ),
)
def personalize_export(context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]) -> dg.MaterializeResult:
    versions: dict[str, str] = {}
    with explained_failures(pipeline):
        exports = Exports(pipeline)
        chain = Chain(pipeline, Personalize(pipeline.settings.personalize), exports)
        for day in context.partition_keys:
            started = time.monotonic()
            with chain.records.lock():
                made = chain.export(day)
            versions[day] = version_of(**{name: file["sha256"] for name, file in made.items()})
            context.add_asset_metadata(
                {
                    "dagster/partition_row_count": made["interactions"]["rows"],
                    "files": reporting.table(
                        [
                            {
                                "file": f"{exports.bucket.url}/{file['key']}",
                                "rows": file["rows"],
                                "bytes": file["bytes"],
                                "left out (ids too long)": file["left_out"],
                                "columns": ", ".join(file["columns"]),
                                "written": "now" if file["fresh"] else "unchanged",
                            }
                            for file in made.values()
                        ]
                    ),
                    "seconds": round(time.monotonic() - started, 2),
                    **reporting.made(any(file["fresh"] for file in made.values()), versions[day]),
                },
                partition_key=day,
            )
    return dg.MaterializeResult(data_version=reporting.data_version(versions))


def _step(step: str, deps: list[str], description: str) -> dg.AssetsDefinition:
    @dg.asset(name=f"personalize_{ASSETS[step]}", **_SHARED, deps=deps, kinds={"aws"}, description=description)
    def asset(context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]) -> dg.MaterializeResult:
        versions, wrong = {}, []
        with explained_failures(pipeline):
            service = Personalize(pipeline.settings.personalize)
            chain = Chain(pipeline, service, Exports(pipeline))
            for day in context.partition_keys:
                try:
                    with chain.records.lock():
                        record = chain.advance(day, step)
                except JobError as error:  # the other days of a range go on
                    wrong.append(str(error))
                    continue
                versions[day] = account(record, step)
                entries = told(record, step, service) | {VERSION: versions[day]}
                context.add_asset_metadata(entries, partition_key=day)
                context.log.info(f"{day}: {account(record, step)}")
            if wrong:
                raise InputError("\n".join(wrong))
        return dg.MaterializeResult(data_version=reporting.data_version(versions))

    return asset


personalize_import = _step(
    "import",
    ["personalize_export"],
    "The day's files in Personalize's datasets: an import job a dataset, started once. Interactions are appended where "
    "Personalize allows it.",
)
personalize_solution_version = _step(
    "version", ["personalize_import"], "A version of the solution, trained when the day's import has ended."
)
personalize_campaign = _step(
    "campaign",
    ["personalize_solution_version"],
    "The campaign serves the day's version, unless it serves that of a newer day. It is made with the first version.",
)
_STEPS = {"import": personalize_import, "version": personalize_solution_version, "campaign": personalize_campaign}


def told(record: Record, step: str, service: Personalize) -> dict[str, Any]:
    """Where a step stands, as metadata."""
    jobs = jobs_of(record, step)
    rows = [
        {
            "what": name,
            "status": job["status"] or "not started",
            "name": job["name"],
            "mode": f"{job['mode']}: {job['what']}" if job["what"] else job["mode"] or "",
            "began": _clock(job["created"]),
            "changed": _clock(job["updated"]),
            "failure": job["failure"] or "",
        }
        for name, job in sorted(jobs.items())
    ]
    metadata: dict[str, Any] = {
        "status": status_of(record, step),
        "jobs": reporting.table(rows),
        ACCOUNT: account(record, step),
        "console": dg.MetadataValue.url(service.console_url()),
        **{f"ARN of {name}": job["arn"] for name, job in sorted(jobs.items()) if job["arn"]},
    }
    if step == "campaign" and jobs:
        metadata["ARN of the version"] = jobs["campaign"]["of"]
    if record[step].get("why"):
        metadata["waits"] = record[step]["why"]
    if record[step].get("again"):
        metadata["asked again at"] = reporting.moment(record[step]["again"])
    if begun := [job["created"] for job in jobs.values() if job["created"]]:
        metadata["began"] = reporting.moment(min(begun))
        metadata["changed"] = reporting.moment(max(job["updated"] for job in jobs.values() if job["updated"]))
        spans = [
            datetime.fromisoformat(job["updated"]) - datetime.fromisoformat(job["created"])
            for job in jobs.values()
            if job["created"]
        ]
        metadata["minutes"] = round(max(spans).total_seconds() / 60, 2)
    return metadata


def _clock(iso: str | None) -> str:
    return "" if iso is None else f"{datetime.fromisoformat(iso):%Y-%m-%d %H:%M:%S} UTC"


personalize = dg.define_asset_job(
    "personalize",
    dg.AssetSelection.groups("personalize"),
    op_retry_policy=RETRIES,
    description="A day into Amazon Personalize: files, import, solution version, campaign. It starts what can be "
    "started and ends; the sensor personalize_progress asks for it again when a job has ended.",
)


@dg.schedule(
    cron_schedule="0 5 * * *",
    job=personalize,
    execution_timezone=load_settings().calendar.time_zone,
    description="Every night at 5: the newest day that is over, into Amazon Personalize.",
)
def nightly_personalize(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    return request_newest(context)


@dg.sensor(
    job=personalize,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Looks how the jobs in Amazon Personalize are doing, says so on the assets' pages, and asks for the "
    "next step's run when one has ended.",
)
def personalize_progress(context: dg.SensorEvaluationContext, pipeline: dg.ResourceParam[Pipeline]) -> dg.SensorResult:
    now, settings = datetime.now(UTC), pipeline.settings.personalize
    records = Records(pipeline)
    open_days = [day for day, record in records.all().items() if "import" in record and not record.get("done")]
    if not open_days:
        return dg.SensorResult(skip_reason=dg.SkipReason("nothing is under way"))
    requests: list[dg.RunRequest] = []
    events: list[dg.AssetObservation] = []
    notes: list[str] = []
    steps = steps_of(settings)
    with explained_failures(pipeline):
        try:
            with records.lock(seconds=0):
                service = Personalize(settings)
                chain = Chain(pipeline, service, Exports(pipeline))
                for day in open_days:
                    record = records.read(day)
                    events += [
                        dg.AssetObservation(
                            f"personalize_{ASSETS[step]}", partition=day, metadata=told(record, step, service)
                        )
                        for step in steps
                        if chain.refresh(day, record, step)
                    ]
                seen = records.all()
                for day in open_days:
                    last = {step: _told_last(context.instance, step, day) for step in steps}
                    found = due(seen, day, settings, last, now)
                    notes.append(
                        f"{day}: " + ", ".join(f"{ASSETS[step]} {status_of(seen[day], step)}" for step in steps)
                    )
                    if found is not None:
                        requests += _request(context.instance, day, found, steps, now, notes)
                    elif all(last[step] == account(seen[day], step) for step in steps) and (
                        {status_of(seen[day], step) for step in steps} == {ACTIVE}
                    ):
                        records.write(day, seen[day] | {"done": True})
        except filelock.Timeout:
            return dg.SensorResult(skip_reason=dg.SkipReason("a run is at work"))
    if len(notes) > _LINES:
        notes = [*notes[:_LINES], f"and {len(notes) - _LINES} more"]
    for line in notes:
        context.log.info(line)
    return dg.SensorResult(
        run_requests=requests,
        asset_events=events,
        skip_reason=None if requests else dg.SkipReason("; ".join(notes)),
    )


def _told_last(instance: dg.DagsterInstance, step: str, day: str) -> str:
    """What the last materialization of a step said of where it stands."""
    key = dg.AssetKey(f"personalize_{ASSETS[step]}")
    page = instance.fetch_materializations(dg.AssetRecordsFilter(asset_key=key, asset_partitions=[day]), limit=1)
    for record in page.records:
        event = record.asset_materialization
        if event is not None and ACCOUNT in event.metadata:
            return str(event.metadata[ACCOUNT].value)
    return ""


def _request(
    instance: dg.DagsterInstance, day: str, found: tuple[str, str], steps: list[str], now: datetime, notes: list[str]
) -> Iterator[dg.RunRequest]:
    """A run of the day from a step on, unless one is on its way, or too many came to nothing of late."""
    step, situation = found[0], f"{found[0]}: {found[1]}"
    runs = instance.get_run_records(dg.RunsFilter(tags={DAY_TAG: day}))
    for run in runs:
        status, began = run.dagster_run.status, run.start_time or 0
        if status in _ON_ITS_WAY or (status in _AT_WORK and now.timestamp() - began < _STARTING.total_seconds()):
            notes.append(f"{day}: a run is on its way")
            return
    same = [run for run in runs if run.dagster_run.tags.get(SITUATION_TAG) == situation]
    fruitless = [run for run in same if run.dagster_run.status != dg.DagsterRunStatus.SUCCESS]
    again = max((run.end_time or 0 for run in fruitless), default=0) + _NOW_AND_THEN.total_seconds()
    if len(fruitless) >= _FRUITLESS and now.timestamp() < again:
        notes.append(
            f"{day}: {len(fruitless)} runs came to nothing ({situation}); see their errors. The next is at "
            f"{datetime.fromtimestamp(again, UTC):%H:%M} UTC, or materialize personalize_{ASSETS[step]} for this day"
        )
        return
    yield dg.RunRequest(
        run_key=f"{day}:{situation}:{len(same)}",
        partition_key=day,
        asset_selection=[dg.AssetKey(f"personalize_{ASSETS[each]}") for each in steps[steps.index(step) :]],
        tags={DAY_TAG: day, SITUATION_TAG: situation},
    )


def personalize_assets(settings: Settings) -> list[dg.AssetsDefinition]:
    """The export, and those steps that the settings ask for."""
    return [personalize_export, *(_STEPS[step] for step in steps_of(settings.personalize))]
