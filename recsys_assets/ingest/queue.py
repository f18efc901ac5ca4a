"""`bucket_events`: hears of changes from an SQS queue, and asks for the same runs as `new_log_prefixes`.

A message only says which day to look at: the day is listed and compared with the asset catalogue like any other, so
that doubled, late and reordered messages ask for nothing twice. What a lost message would have said the listing sensor
finds out by itself.

A message is deleted once its day needs no request any more: its content is materialized, or a run for it is on record.
The tick that asks for the run therefore leaves the message in the queue, and a later one, which meets the run, deletes
it. A kill anywhere between the two loses nothing, and no list of messages is kept.
"""

import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import dagster as dg

from recsys_assets.days import day_of
from recsys_assets.ingest import listing, pace
from recsys_assets.ingest.events import REJECTED, Meaning, PoisonError, meaning, parse
from recsys_assets.ingest.sensors import INTERACTIONS, SeenDay, decide, look, run_requests, unclaimed, window
from recsys_assets.partitions import daily
from recsys_assets.pipeline import Pipeline
from recsys_assets.settings import Settings
from recsys_assets.storage import files
from recsys_assets.storage.bucket import BucketError

_HIDDEN_SECONDS = 120  # longer than a tick may take
_AGAIN_SECONDS = 20  # shorter than the pause between two ticks
_READ_SECONDS = 20  # of a tick's sixty
_PATIENCE_SECONDS = 5.0  # for a connection, and for an answer beyond the long poll; once more after a failure
_LONGEST_SECONDS = 43_200  # that SQS can hide a message
_BATCH = 10  # messages in one call, the most that SQS takes
_LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


class QueueError(RuntimeError):
    """The queue cannot be used as asked; the message says what to do, without secrets."""


@dataclass(frozen=True)
class Message:
    """Attributes:
    id: SQS's, the same however often the message is delivered.
    receipt: what this delivery is deleted with.
    """

    id: str
    receipt: str
    body: str


class Queue:
    """An SQS queue."""

    def __init__(self, url: str, settings: Settings) -> None:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        parts = urlsplit(url)
        host = re.match(r"(?:sqs\.|queue\.)([a-z]{2}(?:-[a-z]+)+-\d)\.", parts.hostname or "")
        self.url = url
        try:
            session = boto3.Session(profile_name=settings.queue.profile or settings.bucket.profile)
            self._client: Any = session.client(
                "sqs",
                region_name=host[1] if host else settings.bucket.region,
                endpoint_url=f"{parts.scheme}://{parts.netloc}",
                config=Config(
                    connect_timeout=_PATIENCE_SECONDS,
                    read_timeout=settings.queue.wait_seconds + _PATIENCE_SECONDS,
                    retries={"total_max_attempts": 2, "mode": "standard"},
                ),
            )
        except (BotoCoreError, ValueError) as error:
            raise self._explain(error, "open the queue") from error

    def receive(self, most: int, wait_seconds: int) -> list[Message]:
        """Up to `most` messages, hidden from others for two minutes; waits for the first one only."""
        found: list[Message] = []
        until = time.monotonic() + _READ_SECONDS
        while len(found) < most and time.monotonic() < until:
            answer = self._call(
                "receive_message",
                "sqs:ReceiveMessage",
                MaxNumberOfMessages=min(_BATCH, most - len(found)),
                WaitTimeSeconds=min(1, wait_seconds) if found else wait_seconds,
                VisibilityTimeout=_HIDDEN_SECONDS,
            )
            batch = answer.get("Messages", ())
            if not batch:
                break
            found += [Message(each["MessageId"], each["ReceiptHandle"], each["Body"]) for each in batch]
        return found

    def delete(self, messages: Iterable[Message]) -> None:
        for entries in _batches([{"ReceiptHandle": each.receipt} for each in messages]):
            self._call("delete_message_batch", "sqs:DeleteMessage", Entries=entries)

    def show_again(self, messages: Iterable[tuple[Message, int]]) -> None:
        """Lets each message appear again after so many seconds."""
        changes = [{"ReceiptHandle": each.receipt, "VisibilityTimeout": seconds} for each, seconds in messages]
        for entries in _batches(changes):
            self._call("change_message_visibility_batch", "sqs:ChangeMessageVisibility", Entries=entries)

    def send(self, message: Message, reason: str) -> None:
        fifo = {"MessageGroupId": "recsys", "MessageDeduplicationId": message.id} if self.url.endswith(".fifo") else {}
        attributes = {"reason": {"DataType": "String", "StringValue": reason}}
        self._call("send_message", "sqs:SendMessage", MessageBody=message.body, MessageAttributes=attributes, **fifo)

    def _call(self, operation: str, permission: str, **arguments: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            # A batch may fail in part: such a message appears again, which is harmless.
            return getattr(self._client, operation)(QueueUrl=self.url, **arguments)
        except (BotoCoreError, ClientError) as error:
            raise self._explain(error, permission) from error

    def _explain(self, error: Exception, needed: str) -> QueueError:
        code = str((getattr(error, "response", None) or {}).get("Error", {}).get("Code", ""))  # None after a timeout
        what = f"{self.url}: {needed} failed: {code or type(error).__name__}"
        if "NonExistentQueue" in code or "QueueDoesNotExist" in code:
            return QueueError(f"{what}: there is no such queue; check queue.url")
        if "AccessDenied" in code:
            return QueueError(f"{what}: the credentials in use need {needed} there")
        if not code:
            return QueueError(f"{what}: check queue.url, the network and the AWS credentials")
        return QueueError(f"{what}: check queue.url and the AWS credentials")


def _batches(entries: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, len(entries), _BATCH):
        yield [{"Id": str(number), **entry} for number, entry in enumerate(entries[start : start + _BATCH])]


@dataclass(frozen=True)
class Read:
    """A message and what it asks for; `poison` says why it cannot be understood."""

    message: Message
    meanings: tuple[Meaning, ...]
    poison: str | None = None

    @property
    def days(self) -> set[str]:
        return {day for each in self.meanings for day in each.days}


def read(messages: Iterable[Message], settings: Settings, calendar: Sequence[str]) -> list[Read]:
    """What each message asks for. `calendar`: all days that exist up to today, in order."""
    place = listing.placer(settings)
    zone, bucket = settings.calendar.time_zone, settings.bucket.url.partition("://")[2]
    found = []
    for message in messages:
        try:
            events = parse(message.body)
        except PoisonError as error:
            found.append(Read(message, (), str(error)))
        else:
            meanings = (
                meaning(event, bucket, place, lambda moment: day_of(moment, zone), calendar, settings.queue.job_events)
                for event in events
            )
            found.append(Read(message, tuple(meanings)))
    return found


def put_aside(reads: Iterable[Read], pipeline: Pipeline) -> None:
    """Keeps the messages that cannot be understood, with their reasons: in the dead-letter queue if the settings name
    one, else in a file each. One that was put aside before a kill is put aside once more under the same name."""
    elsewhere = pipeline.settings.queue.dead_letter_url
    for each in reads:
        assert each.poison is not None
        if elsewhere:
            Queue(elsewhere, pipeline.settings).send(each.message, each.poison)
        else:
            name = re.sub(r"[^A-Za-z0-9-]", "_", each.message.id)[:100]
            record = {"id": each.message.id, "reason": each.poison, "body": each.message.body}
            path = pipeline.settings.store / REJECTED / f"{name}.json"
            files.write_bytes(path, json.dumps(record, indent=1).encode())


def again_in(seen: SeenDay | None, asked: bool, complete: bool, settings: Settings, now: datetime) -> int | None:
    """Seconds until a message about a day is wanted again; None if it has done its work.

    Args:
        seen: None if the day could not be listed in this tick.
        asked: this tick asks for a run of the day.
    """
    if seen is None or asked:
        return _AGAIN_SECONDS
    if seen.fingerprint == seen.materialized or seen.in_flight or seen.fruitless >= settings.ingest.max_attempts:
        return None
    if seen.newest is None:  # nothing there and never was, or an old day that was emptied: the listing sensor says so
        return None if seen.materialized is None or not seen.recent else _AGAIN_SECONDS
    quiet_in = 0 if complete else settings.ingest.quiet_minutes * 60 - (now - seen.newest).total_seconds()
    return int(min(max(_AGAIN_SECONDS, quiet_in + 1), _LONGEST_SECONDS))


@dg.sensor(
    job_name="ingest",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Reads the bucket's events from an SQS queue (queue.url) and asks for ingest of the days they name. "
    "Keep new_log_prefixes on beside it: it finds what a lost event would have told, and nothing is asked for twice.",
)
def bucket_events(context: dg.SensorEvaluationContext, pipeline: dg.ResourceParam[Pipeline]) -> dg.SensorResult:
    now, settings = datetime.now(UTC), pipeline.settings
    assert settings.queue.url is not None
    try:
        queue = Queue(settings.queue.url, settings)
        messages = queue.receive(settings.queue.max_messages_per_tick, settings.queue.wait_seconds)
        if not messages:
            return dg.SensorResult(skip_reason=dg.SkipReason("no events"))
        calendar = [str(key) for key in daily.get_partition_keys(now)]
        reads = read(messages, settings, calendar)
        poison = [each for each in reads if each.poison is not None]
        put_aside(poison, pipeline)
        queue.delete(each.message for each in poison)
        complete = {day for each in reads for what in each.meanings if what.complete for day in what.days}
        seen, held = _look(context.instance, pipeline, sorted({day for each in reads for day in each.days}), now)
        # A job's word is as good as the quiet time.
        ready = [replace(day, newest=_LONG_AGO) if day.day in complete and day.newest else day for day in seen]
        requests, notes = decide(ready, settings.ingest, now, held)
        requests, elsewhere = unclaimed(pipeline, requests, "bucket_events", now)
        asked, by_day = {request.day for request in requests}, {day.day: day for day in seen}
        wanted = {
            day: None
            if day in held and by_day[day].materialized is None
            else again_in(by_day.get(day), day in asked, day in complete, settings, now)
            for each in reads
            for day in each.days
        }
        done: list[Message] = []
        later: list[tuple[Message, int]] = []
        for each in reads:
            if each.poison is None:
                again = [seconds for day in each.days if (seconds := wanted[day]) is not None]
                later += [(each.message, min(again))] if again else []
                done += [] if again else [each.message]
        queue.show_again(later)
        queue.delete(done)
    except (BucketError, QueueError) as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error
    notes += elsewhere
    for each in poison:
        notes.append(f"message {each.message.id} was put aside: {each.poison}")
    for line in notes:
        context.log.warning(line)
    ignored = Counter(what.ignored for each in reads for what in each.meanings if what.ignored)
    said = "".join(f", {count} ignored ({reason})" for reason, count in sorted(ignored.items()))
    summary = f"{len(messages)} messages about {len(wanted)} days{said}; {len(later)} stay in the queue"
    context.log.info(summary)
    return dg.SensorResult(
        run_requests=list(run_requests(requests)),
        skip_reason=None if requests else dg.SkipReason("; ".join([summary, *notes])),
    )


def _look(
    instance: dg.DagsterInstance, pipeline: Pipeline, days: list[str], now: datetime
) -> tuple[list[SeenDay], frozenset[str]]:
    """What is to be seen of the days, and those that wait for a backfill, as `new_log_prefixes` has them."""
    if not days:
        return [], frozenset()
    surveyed = listing.survey(pipeline.bucket, pipeline.settings)
    partitions = set(daily.get_partition_keys(now))
    ingested = instance.get_materialized_partitions(INTERACTIONS) & partitions
    recent = window(pipeline, now)
    proposal = pace.propose((surveyed.days & partitions) - ingested, recent, bool(ingested), pipeline.settings.ingest)
    seen, _ = look(instance, pipeline, days, recent, surveyed, pipeline.settings.ingest.max_list_requests_per_tick)
    return seen, proposal.held if proposal else frozenset()
