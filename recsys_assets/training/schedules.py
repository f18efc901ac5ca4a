"""The jobs and when they run by themselves."""

from typing import Any

import dagster as dg

from recsys_assets.days import day_of
from recsys_assets.models import MEMBERS
from recsys_assets.partitions import daily
from recsys_assets.settings import load_settings

_jobs = load_settings().jobs
RETRIES = dg.RetryPolicy(max_retries=_jobs.retries, delay=_jobs.retry_minutes * 60) if _jobs.retries else None

INGEST_ASSETS = dg.AssetSelection.assets("raw_events", "interactions", "rejected_events")

ingest = dg.define_asset_job(
    "ingest",
    INGEST_ASSETS,
    description="raw_events and interactions (with rejected_events) of a day: what the sensor asks for.",
    op_retry_policy=RETRIES,
)
readmit = dg.define_asset_job(
    "readmit",
    dg.AssetSelection.assets("interactions", "rejected_events"),
    description="interactions (with rejected_events) made again from raw_events by today's rules; nothing is fetched.",
    op_retry_policy=RETRIES,
)
train = dg.define_asset_job(
    "train",
    dg.AssetSelection.groups("training", "models", "evaluation", "serving", "publishing"),
    description="Everything from the training set to the recommendations of a day.",
    op_retry_policy=RETRIES,
)
lists = dg.define_asset_job(
    "lists",
    dg.AssetSelection.groups("serving", "publishing"),
    description="The champion's lists of a day, and its files where `publish` says: what `recsys rollback` makes anew.",
    op_retry_policy=RETRIES,
)
relist = dg.define_asset_job(
    "relist",
    dg.AssetSelection.assets("training_set") | dg.AssetSelection.groups("serving"),
    description="The training set of a day and the champion's lists from it: what `recsys erase` makes anew.",
    op_retry_policy=RETRIES,
)

FULL_REFIT: dict[str, Any] = {"ops": {f"{name}_model": {"config": {"full_refit": True}} for name in MEMBERS}}


def last_complete_days(context: dg.ScheduleEvaluationContext, count: int) -> list[str]:
    """The newest partitions whose day is over at the tick: up to yesterday, or to the last day of a closed history."""
    zone = load_settings().calendar.time_zone
    today = day_of(context.scheduled_execution_time, zone)
    keys = [key for key in daily.get_partition_keys(context.scheduled_execution_time) if key < today]
    return keys[-count:]


def request_newest(
    context: dg.ScheduleEvaluationContext, config: dict[str, Any] | None = None
) -> dg.RunRequest | dg.SkipReason:
    """One run a tick, for the newest day that is over."""
    days = last_complete_days(context, 1)
    if not days:
        return dg.SkipReason("no day of the calendar is over yet")
    return dg.RunRequest(
        run_key=f"{days[0]}:{context.scheduled_execution_time:%Y%m%d}", partition_key=days[0], run_config=config
    )


@dg.schedule(
    cron_schedule="0 3 * * *",
    job=train,
    execution_timezone=load_settings().calendar.time_zone,
    description="Every night at 3: train on everything up to yesterday, measure, promote, recommend.",
)
def nightly_train(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    if context.scheduled_execution_time.weekday() == 6:
        return dg.SkipReason("Sunday: weekly_full_refit does it")
    return request_newest(context)


@dg.schedule(
    cron_schedule="0 3 * * 0",
    job=train,
    execution_timezone=load_settings().calendar.time_zone,
    description="Sundays at 3: the same, but every model learns from scratch, which bounds the chain of updates.",
)
def weekly_full_refit(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    return request_newest(context, FULL_REFIT)
