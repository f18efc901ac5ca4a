import json
import os
import random
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import dagster as dg
import pytest

from recsys_assets.days import shift, today
from recsys_assets.ingest import queue as queue_module
from recsys_assets.ingest.claims import Claims
from recsys_assets.ingest.events import REJECTED
from recsys_assets.ingest.queue import bucket_events
from recsys_assets.ingest.sensors import new_log_prefixes
from recsys_assets.pipeline import Pipeline
from recsys_assets.settings import BucketSettings, QueueSettings
from recsys_assets_tests.graph import INGEST, make_home, run
from recsys_assets_tests.ingest.test_events import event_bridge, notification

TODAY = today("UTC")
DAYS = [shift(TODAY, -back) for back in range(10, -1, -1)]
WINDOW = 6


class Shop:
    """A home over a bucket and a queue on one server, and an instance."""

    def __init__(self, folder: Path, bucket: BucketSettings, instance: dg.DagsterInstance) -> None:
        self.sqs = boto3.client("sqs", endpoint_url=bucket.endpoint_url)
        self.url: str = self.sqs.create_queue(QueueName=f"q-{uuid.uuid4().hex}")["QueueUrl"]
        self.bucket_name = bucket.url.removeprefix("s3://")
        self.folder, self.instance = folder, instance
        self.settings: dict[str, dict[str, Any]] = {
            "bucket": {"url": bucket.url, "endpoint_url": bucket.endpoint_url},
            "ingest": {"quiet_minutes": 0, "window_days": WINDOW, "max_attempts": 2},
            "queue": {"url": self.url, "wait_seconds": 0},
        }
        self.open()

    def open(self, **sections: dict[str, Any]) -> Pipeline:
        merged = {
            name: {**self.settings.get(name, {}), **sections.get(name, {})} for name in {**self.settings, **sections}
        }
        self.pipeline = make_home(self.folder, **merged)
        return self.pipeline

    def put(self, day: str, name: str = "a.json", item: str = "i") -> str:
        key = f"logs/{day.replace('-', '/')}/{name}"
        stamp = int(datetime.fromisoformat(f"{day}T10:00:00+00:00").timestamp() * 1000)
        record = {"timestamp": stamp, "user_id": "u", "item_id": item, "action": "VIEW"}
        self.pipeline.bucket.put(key, json.dumps([record]).encode())
        return key

    def event(self, key: str, bridge: bool = False) -> str:
        if bridge:
            return event_bridge("Object Created", {"bucket": {"name": self.bucket_name}, "object": {"key": key}})
        return json.dumps({"Records": [notification(key, bucket=self.bucket_name)]})

    def send(self, *bodies: str) -> None:
        for start in range(0, len(bodies), 10):
            entries: Any = [{"Id": str(n), "MessageBody": body} for n, body in enumerate(bodies[start : start + 10])]
            assert not self.sqs.send_message_batch(QueueUrl=self.url, Entries=entries).get("Failed")

    def left(self) -> int:
        names: Any = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        found = self.sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=names)["Attributes"]
        return sum(int(found[name]) for name in names)

    def tick(self, sensor: dg.SensorDefinition = bucket_events) -> list[dg.RunRequest]:
        from recsys_assets.definitions import defs

        with dg.build_sensor_context(
            instance=self.instance, resources={"pipeline": self.pipeline}, repository_def=defs.get_repository_def()
        ) as context:
            tick = sensor.evaluate_tick(context)
        self.said = tick.skip_message or ""
        return list(tick.run_requests or [])

    def days(self, sensor: dg.SensorDefinition = bucket_events) -> list[str | None]:
        return [request.partition_key for request in self.tick(sensor)]

    def record(self, request: dg.RunRequest, status: dg.DagsterRunStatus = dg.DagsterRunStatus.STARTED) -> None:
        """What the daemon does with a request: the run is on record."""
        self.instance.add_run(
            dg.DagsterRun(
                job_name="ingest", status=status, tags={**request.tags, "dagster/run_key": str(request.run_key)}
            )
        )

    def serve(self, request: dg.RunRequest) -> None:
        assert request.partition_key is not None
        tags = {**request.tags, "dagster/run_key": str(request.run_key)}
        assert run(self.pipeline, INGEST, [request.partition_key], self.instance, tags=tags).success


@pytest.fixture
def shop(
    s3_bucket: BucketSettings, tmp_path: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> Shop:
    monkeypatch.setattr(queue_module, "_AGAIN_SECONDS", 0)
    return Shop(tmp_path / "home", s3_bucket, instance)


POISON = [
    "no json",
    "{}",
    '{"Records": 5}',
    '{"Records": [{"eventSource": "aws:s3"}]}',
    event_bridge("Object Created", {}),
]


def test_a_thousand_events_doubled_shuffled_lost_and_poisoned(shop: Shop) -> None:
    chance = random.Random(11)
    keys = [shop.put(day, f"{n:02d}.json") for day in DAYS[:-1] for n in range(25)]
    lonely = shop.put(DAYS[-1])  # the only event of its day gets lost
    events = [shop.event(key, bridge) for key in keys for bridge in (False, True) * 2]
    chance.shuffle(events)
    events = events[len(events) // 10 :]
    events += chance.choices(events, k=100)
    chance.shuffle(events)
    for body in POISON:
        events.insert(chance.randrange(len(events)), body)
    assert len(events) == 1005
    shop.send(*events)

    with dg.DagsterInstance.ephemeral() as alone:
        shop.instance, events_instance = alone, shop.instance
        shop.open(queue={"url": None}, ingest={"window_days": len(DAYS)})
        expected = {request.run_key for request in shop.tick(new_log_prefixes)}
        shop.instance = events_instance
    shop.open(queue={"max_messages_per_tick": 300}, ingest={"window_days": len(DAYS)})

    assert len(expected) == len(DAYS)
    asked: list[str | None] = []
    for _ in range(12):
        if len(asked) >= len(DAYS) and not shop.left():
            break
        for sensor in (bucket_events, new_log_prefixes) if len(asked) >= len(DAYS) - 1 else (bucket_events,):
            for request in shop.tick(sensor):
                asked.append(request.run_key)
                shop.record(request)
    assert len(asked) == len(set(asked)), "nothing is asked for twice"
    assert set(asked) == expected
    assert asked[-1].startswith(DAYS[-1]), "the lost event's day was found by listing"  # type: ignore[union-attr]
    assert lonely
    assert shop.left() == 0
    aside = [json.loads(path.read_text()) for path in sorted((shop.pipeline.settings.store / REJECTED).iterdir())]
    assert sorted(each["body"] for each in aside) == sorted(POISON)
    assert all(each["reason"] for each in aside)


@pytest.mark.parametrize("point", ["put_aside", "unclaimed", "show_again"])
def test_a_kill_anywhere_before_the_request_is_on_record_loses_none(
    shop: Shop, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_module, "_HIDDEN_SECONDS", 1)
    shop.send(*[shop.event(shop.put(day)) for day in DAYS[-3:]], "poison")
    child = os.fork()
    if not child:
        owner = queue_module.Queue if hasattr(queue_module.Queue, point) else queue_module
        original: Callable[..., Any] = getattr(owner, point)

        def fatal(*args: Any, **kwargs: Any) -> Any:
            original(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(owner, point, fatal)
        try:
            shop.tick()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    time.sleep(1.1)
    assert shop.days() == DAYS[-3:]
    assert len(list((shop.pipeline.settings.store / REJECTED).iterdir())) == 1


def test_a_request_that_the_daemon_never_recorded_is_made_again(shop: Shop) -> None:
    shop.send(shop.event(shop.put(TODAY)))
    (lost,) = shop.tick()
    (request,) = shop.tick()
    assert request.run_key == lost.run_key, "Dagster knows it as the same"
    assert shop.left() == 1
    shop.record(request)
    assert shop.days() == []
    assert shop.left() == 0


def test_a_failed_run_is_asked_for_again_until_given_up(shop: Shop) -> None:
    shop.send(shop.event(shop.put(TODAY)))
    keys = []
    for _ in range(4):
        for request in shop.tick():
            keys.append(str(request.run_key))
            shop.record(request)
            (record, *_) = shop.instance.get_run_records()
            shop.instance.handle_new_event(_failure(record.dagster_run))
    assert [key[-1] for key in keys] == ["0", "1"]
    assert shop.left() == 0


def _failure(found: dg.DagsterRun) -> Any:
    from dagster._core.events import DagsterEvent, DagsterEventType, JobFailureData, RunFailureReason
    from dagster._core.events.log import EventLogEntry

    event = DagsterEvent(
        event_type_value=DagsterEventType.RUN_FAILURE.value,
        job_name=found.job_name,
        event_specific_data=JobFailureData(error=None, failure_reason=RunFailureReason.UNKNOWN),
    )
    return EventLogEntry(
        error_info=None, level=20, user_message="", run_id=found.run_id, timestamp=time.time(), dagster_event=event
    )


def test_both_sensors_at_once_ask_for_nothing_twice(shop: Shop) -> None:
    for attempt in range(3):
        keys = [shop.put(day, item=f"i{attempt}") for day in DAYS[-WINDOW:]]
        shop.send(*map(shop.event, keys))
        found: list[dg.RunRequest] = []
        gate = threading.Barrier(2)

        def ask(sensor: dg.SensorDefinition, gate: threading.Barrier = gate, found: list[Any] = found) -> None:
            gate.wait()
            found += shop.tick(sensor)

        both = [threading.Thread(target=ask, args=(sensor,)) for sensor in (bucket_events, new_log_prefixes)]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
        assert sorted(str(request.partition_key) for request in found) == DAYS[-WINDOW:]
        for request in found:
            shop.record(request)
        assert shop.days() == [], "what the other one asked for is on record"
        assert shop.left() == 0


def test_a_claim_lasts_for_minutes(tmp_path: Path) -> None:
    claims, then = Claims(tmp_path), datetime(2025, 11, 3, tzinfo=UTC)
    assert claims.take(["a", "b"], "one", then) == {}
    assert claims.take(["a", "c"], "two", then) == {"a": "one"}
    assert claims.take(["a"], "one", then) == {}, "its own"
    assert claims.take(["a"], "two", then.replace(minute=6)) == {}
    (tmp_path / "requests.json").write_text("damaged")
    assert claims.take(["a"], "one", then) == {}


@pytest.mark.parametrize("road", ["direct", "EventBridge"])
def test_the_bucket_s_own_notifications_and_a_rename(shop: Shop, road: str) -> None:
    s3, events = (boto3.client(name, endpoint_url=shop.settings["bucket"]["endpoint_url"]) for name in ("s3", "events"))  # type: ignore[call-overload]
    queue = f"arn:aws:sqs:us-east-1:000000000000:{shop.url.rsplit('/', 1)[1]}"
    configuration: Any = {"EventBridgeConfiguration": {}}
    if road == "direct":
        told = ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"]
        configuration = {"QueueConfigurations": [{"QueueArn": queue, "Events": told}]}
    else:
        pattern = {
            "source": ["aws.s3"],
            "detail-type": ["Object Created", "Object Deleted"],
            "detail": {"bucket": {"name": [shop.bucket_name]}, "object": {"key": [{"prefix": "logs/"}]}},
        }
        events.put_rule(Name=shop.bucket_name, EventPattern=json.dumps(pattern))
        events.put_targets(Rule=shop.bucket_name, Targets=[{"Id": "queue", "Arn": queue}])
    s3.put_bucket_notification_configuration(Bucket=shop.bucket_name, NotificationConfiguration=configuration)
    temporary = shop.put(TODAY, "temp-a b.json")
    assert shop.days() == []
    assert "ignored_name" in shop.said
    final = temporary.replace("temp-", "")
    s3.copy_object(Bucket=shop.bucket_name, Key=final, CopySource={"Bucket": shop.bucket_name, "Key": temporary})
    s3.delete_object(Bucket=shop.bucket_name, Key=temporary)
    (request,) = shop.tick()
    assert request.partition_key == TODAY
    shop.serve(request)
    assert shop.days() == []
    s3.delete_object(Bucket=shop.bucket_name, Key=final)
    assert shop.days() == [TODAY]


def test_a_job_s_end_does_not_wait_for_the_quiet_time(shop: Shop) -> None:
    glue = {"source": "aws.glue", "detail_type": "Glue Job State Change", "detail": {"state": "SUCCEEDED"}, "days": 2}
    shop.open(ingest={"quiet_minutes": 30}, queue={"job_events": [glue]})
    for day in DAYS[-3:]:
        shop.send(shop.event(shop.put(day)))
    assert shop.days() == []
    assert "still receiving" in shop.said
    assert shop.left() == 3, "they come back when the quiet time is over"
    shop.send(event_bridge("Glue Job State Change", {"state": "FAILED", "jobName": "export"}, "aws.glue"))
    assert shop.days() == []
    shop.send(event_bridge("Glue Job State Change", {"state": "SUCCEEDED", "jobName": "export"}, "aws.glue"))
    assert shop.days() == DAYS[-2:]


def test_poison_goes_to_the_dead_letter_queue_if_there_is_one(shop: Shop) -> None:
    dead = shop.sqs.create_queue(QueueName=f"dead-{uuid.uuid4().hex}")["QueueUrl"]
    shop.open(queue={"dead_letter_url": dead})
    shop.send("poison", json.dumps({"Service": "Amazon S3", "Event": "s3:TestEvent"}))
    assert shop.days() == []
    assert shop.left() == 0
    (message,) = shop.sqs.receive_message(QueueUrl=dead, MessageAttributeNames=["All"])["Messages"]
    assert message["Body"] == "poison"
    assert message["MessageAttributes"]["reason"]["StringValue"] == "not valid JSON"
    assert not (shop.pipeline.settings.store / REJECTED).exists()


@pytest.mark.parametrize(
    ("url", "said"), [("/000000000000/absent", "no such queue"), (None, "check queue.url")], ids=["absent", "refused"]
)
def test_a_queue_that_cannot_be_read_says_so(shop: Shop, url: str | None, said: str) -> None:
    endpoint = shop.settings["bucket"]["endpoint_url"]
    shop.open(queue={"url": f"{endpoint}{url}" if url else "http://127.0.0.1:1/000000000000/q"})
    with pytest.raises(dg.Failure) as caught:
        shop.tick()
    assert said in str(caught.value.description)
    assert "queue.url" in str(caught.value.description)


def test_a_queue_that_never_answers_is_given_up_within_the_tick(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    wait: Any = QueueSettings.model_fields["wait_seconds"].metadata
    (longest,) = [each.le for each in wait if hasattr(each, "le")]
    assert 2 * (longest + queue_module._PATIENCE_SECONDS) < 60, "Dagster gives a tick a minute"
    monkeypatch.setattr(queue_module, "_PATIENCE_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        shop.open(queue={"url": f"http://127.0.0.1:{silent.getsockname()[1]}/000000000000/q"})
        began = time.monotonic()
        with pytest.raises(dg.Failure, match=r"sqs:ReceiveMessage failed: ReadTimeoutError: check queue\.url"):
            shop.tick()
        assert time.monotonic() - began < 15, "not botocore's own minute, several times over"
