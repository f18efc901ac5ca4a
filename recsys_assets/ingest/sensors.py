"""`new_log_prefixes`: asks for every day whose objects are not the ones its interactions were made of.

The asset catalogue is the ledger: each materialization of `interactions` carries the fingerprint (keys, ETags, sizes)
of the objects it came from. A new, late, overwritten or deleted object changes the day's fingerprint, which gives one
request; a kept list of processed files would miss the last three.

Every tick compares the newest days (`ingest.window_days`); all older ones have their turn twice within
`ingest.reconcile_hours`, so that a change to any day is found (pace.py).
"""

import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import dagster as dg

from recsys_assets.alive import fail_dead_runs
from recsys_assets.days import shift, today
from recsys_assets.ingest import listing, pace
from recsys_assets.ingest.claims import Claims
from recsys_assets.ingest.versions import FINGERPRINT
from recsys_assets.partitions import daily
from recsys_assets.pipeline import Pipeline
from recsys_assets.settings import IngestSettings
from recsys_assets.storage.bucket import BucketError

DAY_TAG = "recsys/day"
FINGERPRINT_TAG = "recsys/fingerprint"
RUN_KEY_TAG = "dagster/run_key"

INTERACTIONS = dg.AssetKey("interactions")
_UNFINISHED = {
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.MANAGED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
}


@dataclass(frozen=True)
class SeenDay:
    """What a tick saw of one day.

    Attributes:
        fingerprint: of the objects listed now.
        newest: newest LastModified among them; None for a day without objects.
        materialized: fingerprint on the day's last materialization; None if there was none.
        asked: the next attempt for this very fingerprint: one more than that of any run that was asked for.
        fruitless: those runs that ended since the day's last materialization: they failed, or what they read was
            not what is listed. (A day that goes from A to B and back to A is asked for again: its first run is older.)
        in_flight: such a run waits or runs now.
        recent: the day lies in the window.
    """

    day: str
    fingerprint: str
    newest: datetime | None
    materialized: str | None
    asked: int
    fruitless: int
    in_flight: bool
    recent: bool


@dataclass(frozen=True)
class Request:
    day: str
    fingerprint: str
    attempt: int

    @property
    def run_key(self) -> str:
        """Dagster remembers run keys for ever, failed runs included: hence the attempt."""
        return f"{self.day}:{self.fingerprint}:{self.attempt}"


def decide(
    seen: list[SeenDay], settings: IngestSettings, now: datetime, held: Collection[str] = ()
) -> tuple[list[Request], list[str]]:
    """Which days to ask for, oldest first, and a line for each changed day that is not asked for now.

    Days that are `held` for a backfill (pace.propose) are passed over.
    """
    requests: list[Request] = []
    notes: list[str] = []
    for day in sorted(seen, key=lambda d: d.day):
        if day.fingerprint == day.materialized or (day.newest is None and day.materialized is None):
            continue
        if day.materialized is None and day.day in held:
            continue
        if day.newest is None and not day.recent:  # as a bucket's lifecycle leaves old days: runs would be refused
            notes.append(
                f"{day.day}: all its objects are gone from the bucket; the partition stays as it was. If it is to be "
                "emptied, materialize raw_events for this day with the config force: true, or: "
                f"recsys run ingest --day {day.day} --force"
            )
        elif day.in_flight:
            notes.append(f"{day.day}: a run for the same objects is under way")
        elif day.fruitless >= settings.max_attempts:
            notes.append(
                f"{day.day}: given up after {day.fruitless} runs for the same objects; see their errors "
                f"under Runs, then recsys run ingest --day {day.day} (in the UI: the job ingest)"
            )
        elif day.newest is not None and now - day.newest < timedelta(minutes=settings.quiet_minutes):
            notes.append(f"{day.day}: still receiving objects (newest {day.newest:%H:%M:%S} UTC)")
        elif len(requests) >= settings.max_requests_per_tick:
            notes.append(f"{day.day}: left to the next tick (ingest.max_requests_per_tick)")
        else:
            requests.append(Request(day.day, day.fingerprint, day.asked))
    return requests, notes


def unclaimed(
    pipeline: Pipeline, requests: list[Request], sensor: str, now: datetime
) -> tuple[list[Request], list[str]]:
    """The requests that the other sensor, if there is one, did not make a moment ago; and a line for each it did."""
    if not pipeline.settings.queue.url:
        return requests, []
    others = Claims(pipeline.settings.store).take([request.run_key for request in requests], sensor, now)
    notes = [
        f"{request.day}: {others[request.run_key]} asks for it" for request in requests if request.run_key in others
    ]
    return [request for request in requests if request.run_key not in others], notes


@dataclass(frozen=True)
class _Materialized:
    fingerprint: str
    timestamp: float  # seconds since 1970


def _last_materializations(instance: dg.DagsterInstance, days: list[str]) -> dict[str, _Materialized]:
    """Of interactions, for the days that have one."""
    found: dict[str, _Materialized] = {}
    cursor = None
    while len(found) < len(days):
        page = instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=INTERACTIONS, asset_partitions=days),
            limit=1000,
            cursor=cursor,
        )
        for record in page.records:  # newest first
            event = record.asset_materialization
            if event is not None and event.partition is not None and event.partition not in found:
                entry = event.metadata.get(FINGERPRINT)
                found[event.partition] = _Materialized(str(entry.value) if entry is not None else "", record.timestamp)
        if not page.has_more:
            break
        cursor = page.cursor
    return found


def _runs_for(instance: dg.DagsterInstance, day: str, fingerprint: str, since: float) -> tuple[int, int, bool]:
    """The next attempt for this fingerprint, the runs of earlier ones that ended since a moment, and whether one is
    under way."""
    records = instance.get_run_records(dg.RunsFilter(tags={DAY_TAG: day, FINGERPRINT_TAG: fingerprint}))
    # A retry by Dagster itself carries its parent's tags: it belongs to the same attempt.
    asked = [record for record in records if record.dagster_run.parent_run_id is None]
    fruitless = [record for record in asked if (record.end_time or 0) >= since and record.end_time]
    in_flight = any(record.dagster_run.status in _UNFINISHED for record in records)
    # Not their number: where someone deleted a run, it would be the attempt of one that is there, and a run key that
    # Dagster knows is passed over without a word.
    attempts = (str(record.dagster_run.tags.get(RUN_KEY_TAG, "")).rpartition(":")[2] for record in asked)
    following = max([len(asked), *(int(attempt) + 1 for attempt in attempts if attempt.isdecimal())])
    return following, len(fruitless), in_flight


def look(
    instance: dg.DagsterInstance,
    pipeline: Pipeline,
    days: list[str],
    recent: Collection[str],
    surveyed: listing.Survey | None = None,
    max_requests: int | None = None,
) -> tuple[list[SeenDay], Mapping[str, int]]:
    """Lists the days' objects and compares them with the catalogue; `recent` are the days of the window.

    Returns: what was seen of each day (not of those that `max_requests` left out), and how many objects were ignored
        for which reason.
    """
    found = listing.days_of(pipeline.bucket, pipeline.settings, days, surveyed, max_requests)
    known = _last_materializations(instance, list(found.days))
    seen = []
    for day, objects in found.days.items():
        fingerprint = listing.fingerprint(objects)
        last = known.get(day)
        materialized = last.fingerprint if last else None
        asked, fruitless, in_flight = 0, 0, False
        if fingerprint != materialized:
            asked, fruitless, in_flight = _runs_for(instance, day, fingerprint, last.timestamp if last else 0)
        newest = max((entry.last_modified for entry in objects), default=None)
        seen.append(SeenDay(day, fingerprint, newest, materialized, asked, fruitless, in_flight, day in recent))
    return seen, found.ignored


def window(pipeline: Pipeline, now: datetime) -> list[str]:
    """The days a tick compares: the newest partitions, today included."""
    calendar = pipeline.settings.calendar
    newest = today(calendar.time_zone)
    if calendar.last_day is not None:
        newest = min(newest, calendar.last_day.isoformat())
    days = [shift(newest, -back) for back in range(pipeline.settings.ingest.window_days - 1, -1, -1)]
    known = set(daily.get_partition_keys(now))
    return [day for day in days if day in known]


@dg.sensor(
    job_name="ingest",
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Asks for the job ingest for every day whose objects changed: new, late, overwritten or deleted ones.",
)
def new_log_prefixes(context: dg.SensorEvaluationContext, pipeline: dg.ResourceParam[Pipeline]) -> dg.SensorResult:
    now, settings = datetime.now(UTC), pipeline.settings.ingest
    for run in fail_dead_runs(context.instance, pipeline.settings.home):
        context.log.warning(f"run {run} was killed: its days are asked for again")
    cursor = pace.Cursor.parse(context.cursor)
    days = window(pipeline, now)
    partitions = set(daily.get_partition_keys(now))
    ingested = context.instance.get_materialized_partitions(INTERACTIONS) & partitions
    before = pipeline.bucket.list_requests
    try:
        surveyed = listing.survey(pipeline.bucket, pipeline.settings)
        proposal = pace.propose((surveyed.days & partitions) - ingested, days, bool(ingested), settings)
        held = proposal.held if proposal else frozenset()
        older = sorted(((surveyed.days & partitions) | ingested) - set(days) - held)
        due = pace.due(older, cursor, now.timestamp(), settings)
        order = pace.window_order(days, cursor)
        # One older day first: a window that needs all the requests must not starve the others.
        seen, ignored = look(
            context.instance,
            pipeline,
            [*due[:1], *order, *due[1:]],
            days,
            surveyed,
            settings.max_list_requests_per_tick,
        )
    except BucketError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error
    requests, notes = decide(seen, settings, now, held)
    requests, elsewhere = unclaimed(pipeline, requests, "new_log_prefixes", now)
    notes += elsewhere
    listed = {day.day for day in seen}
    left = [day for day in order if day not in listed]
    if left:
        notes.append(
            f"{len(left)} of the window's {len(days)} days are left to the next tick: listing the others took all of "
            "ingest.max_list_requests_per_tick"
        )
    if proposal:
        notes.append(proposal.text)
    for line in notes:
        context.log.warning(line)
    for request in requests:
        context.log.info(
            f"{request.day}: its objects are not those its interactions were made of; asking for ingest"
            + (f", attempt {request.attempt + 1} for these objects" if request.attempt else "")
        )
    if ignored:
        said = "ignored: " + ", ".join(f"{count} {reason}" for reason, count in sorted(ignored.items()))
        (context.log.warning if "max_files" in ignored else context.log.info)(said)
    context.log.info(
        f"{pipeline.bucket.list_requests - before} listing requests for {len(seen)} days, "
        f"{len(listed & set(due))} of them before the window"
    )
    looked = list(itertools.takewhile(listed.__contains__, due))
    reason = "; ".join(notes) or f"{len(seen)} days compared, none changed"
    return dg.SensorResult(
        run_requests=list(run_requests(requests)),
        skip_reason=None if requests else dg.SkipReason(reason),
        cursor=pace.advanced(cursor, left, older, looked, now.timestamp(), settings).text(),
    )


def run_requests(requests: list[Request]) -> Iterator[dg.RunRequest]:
    for request in requests:
        yield dg.RunRequest(
            run_key=request.run_key,
            partition_key=request.day,
            tags={DAY_TAG: request.day, FINGERPRINT_TAG: request.fingerprint},
        )
