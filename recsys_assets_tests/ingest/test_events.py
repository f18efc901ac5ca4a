import contextlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_assets.days import day_of
from recsys_assets.ingest.events import JobEvent, Meaning, ObjectEvent, PoisonError, meaning, parse
from recsys_assets.ingest.listing import Place, days_of, placer
from recsys_assets.settings import JobEventSettings, Settings
from recsys_assets.storage.bucket import FileBucket

AT = datetime(2025, 11, 3, 23, 30, tzinfo=UTC)


def notification(key: str, name: str = "ObjectCreated:Put", bucket: str = "logs") -> dict[str, Any]:
    """A record of S3's own notification; `key` as S3 encodes it."""
    return {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "eventTime": "2025-11-03T23:30:00.000Z",
        "eventName": name,
        "s3": {"bucket": {"name": bucket}, "object": {"key": key, "size": 1, "eTag": "e"}},
    }


def event_bridge(kind: str, detail: Any, source: str = "aws.s3") -> str:
    return json.dumps(
        {"version": "0", "source": source, "detail-type": kind, "time": "2025-11-03T23:30:00Z", "detail": detail}
    )


GLUE = event_bridge("Glue Job State Change", {"jobName": "export-logs", "state": "SUCCEEDED"}, "aws.glue")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (json.dumps({"Records": [notification("logs/a+b%3D1.json")]}), [ObjectEvent("logs", "logs/a b=1.json", AT)]),
        (
            json.dumps({"Records": [notification("a.json", "ObjectRemoved:Delete")]}),
            [ObjectEvent("logs", "a.json", AT)],
        ),
        (json.dumps({"Records": [notification("a", "LifecycleExpiration:Delete")]}), [ObjectEvent("logs", "a", AT)]),
        (json.dumps({"Records": [notification("a", "ObjectTagging:Put")]}), []),
        (json.dumps({"Records": [notification("a"), notification("b")]}), [ObjectEvent("logs", k, AT) for k in "ab"]),
        (
            event_bridge("Object Created", {"bucket": {"name": "logs"}, "object": {"key": "a+b%3D1.json"}}),
            [ObjectEvent("logs", "a+b%3D1.json", AT)],
        ),
        (
            event_bridge("Object Deleted", {"bucket": {"name": "logs"}, "object": {"key": "a"}}),
            [ObjectEvent("logs", "a", AT)],
        ),
        (event_bridge("Object Tags Added", {"bucket": {"name": "logs"}, "object": {"key": "a"}}), []),
        (
            GLUE,
            [JobEvent("aws.glue", "Glue Job State Change", {"jobName": "export-logs", "state": "SUCCEEDED"})],
        ),
        (
            json.dumps({"Type": "Notification", "Message": json.dumps({"Records": [notification("a")]})}),
            [ObjectEvent("logs", "a", AT)],
        ),
        (json.dumps({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "logs"}), []),
    ],
)
def test_every_kind_of_message(body: str, expected: list[Any]) -> None:
    assert parse(body) == expected


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("5", "no JSON object"),
        ("{}", "neither a notification"),
        ('{"Records": 5}', "'Records' is no list"),
        ('{"Records": [5]}', "a record is no JSON object"),
        ('{"Records": [{"eventSource": "aws:sns"}]}', "not aws:s3"),
        ('{"Records": [{"eventSource": "aws:s3", "eventName": "ObjectCreated:Put"}]}', "s3 is no JSON object"),
        (json.dumps({"Records": [notification("")]}), "'key' is ''"),
        (json.dumps({"Type": "Notification", "Message": "hello"}), "not valid JSON"),
        (event_bridge("Object Created", {"bucket": {"name": "logs"}}), "detail.object is no JSON object"),
        (event_bridge("Object Created", None), "detail is no JSON object"),
    ],
)
def test_poison_says_what_is_wrong(body: str, why: str) -> None:
    with pytest.raises(PoisonError, match=why):
        parse(body)


@settings(max_examples=40)
@given(
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(
                    ["Records", "detail-type", "source", "detail", "eventSource", "s3", "object", "key", "Message"]
                ),
                inner,
            )
        ),
    )
)
def test_nothing_else_is_ever_raised(value: Any) -> None:
    with contextlib.suppress(PoisonError):
        parse(json.dumps(value))


@pytest.mark.parametrize("layout", ["%Y/%m/%d/", "dt=%Y-%m-%d/%H", "%Y/%j/%Y-%m-%d"])
def test_a_key_has_the_place_that_a_listing_gives_it(layout: str, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, bucket={"url": f"file://{tmp_path}/bucket", "layout": layout})  # type: ignore[arg-type]
    (tmp_path / "bucket").mkdir()
    bucket = FileBucket(tmp_path / "bucket")
    day = datetime(2025, 11, 3, 7)
    names = ["a.json", "temp-a.json", "x/b.ndjson.gz", "_tmp/c.json", "d.csv"]
    keys = [f"logs/{day.strftime(layout).strip('/')}/{name}" for name in names]
    keys += ["logs/loose.json", "logs/2025/13/45/x.json", "logs/2025/11/y.json", "logs/dt=2025-11-03/z.json"]
    for key in keys:
        bucket.put(key, b"[]")
    place = placer(settings)
    loose = day_of(datetime.now(UTC), "UTC")
    listed = days_of(bucket, settings, ["2025-11-03", loose]).days
    for key in keys:
        where = place(key)
        assert where is not None
        found = [day for day, objects in listed.items() if key in {obj.key for obj in objects}]
        assert found == ([] if where.ignored else [where.day or loose])
    assert place("other/2025/11/03/a.json") is None


PLACES = {
    "logs/a.json": Place("2025-11-03", None),
    "logs/temp-a.json": Place("2025-11-03", "ignored_name"),
    "logs/old.json": Place("2020-01-01", None),
    "logs/loose.json": Place(None, None),
}
CALENDAR = ["2025-11-01", "2025-11-02", "2025-11-03", "2025-11-04"]
JOB = JobEventSettings(
    source=["aws.glue"], detail_type="Glue *", detail={"state": "SUCCEEDED", "jobName": ["a", "export-*"]}
)


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (ObjectEvent("logs", "logs/a.json", None), Meaning(("2025-11-03",))),
        (ObjectEvent("other", "logs/a.json", None), Meaning(ignored="other bucket")),
        (ObjectEvent("logs", "else/a.json", None), Meaning(ignored="outside bucket.prefix")),
        (ObjectEvent("logs", "logs/temp-a.json", None), Meaning(ignored="ignored_name")),
        (ObjectEvent("logs", "logs/old.json", None), Meaning(ignored="outside the calendar")),
        (ObjectEvent("logs", "logs/loose.json", AT), Meaning(("2025-11-04",))),  # half past midnight in Paris
        (ObjectEvent("logs", "logs/loose.json", None), Meaning(ignored="undated key without a time")),
        (parse(GLUE)[0], Meaning(("2025-11-03", "2025-11-04"), complete=True)),
        (
            JobEvent("aws.glue", "Glue Job State Change", {"jobName": "export-logs", "state": "FAILED"}),
            Meaning(ignored="other event"),
        ),
        (JobEvent("aws.glue", "Glue Job State Change", {"state": "SUCCEEDED"}), Meaning(ignored="other event")),
        (
            JobEvent("aws.batch", "Glue Job State Change", {"jobName": "a", "state": "SUCCEEDED"}),
            Meaning(ignored="other event"),
        ),
    ],
)
def test_what_an_event_asks_for(event: ObjectEvent | JobEvent, expected: Meaning) -> None:
    assert meaning(event, "logs", PLACES.get, lambda at: day_of(at, "Europe/Paris"), CALENDAR, [JOB]) == expected
