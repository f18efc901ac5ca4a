from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_assets.audience.features import FEATURE_COLUMNS, features, labels, takes
from recsys_assets.settings import AudienceSettings

SCHEMA = {"user_id": pl.String, "item_id": pl.String, "ms": pl.Int64, "mobile": pl.Boolean, "taken": pl.Boolean}
Event = tuple[str, str, int, bool | None, bool]
END = int(datetime(2025, 10, 28, tzinfo=UTC).timestamp() * 1000)
START = END - 20 * 86_400_000

# Moments at and next to the hours at which a part of the day begins, in any zone with whole or half hours; summer time
# ends in Europe on 26 October.
boundaries = st.builds(
    lambda half_hours, off: START + half_hours * 1_800_000 + off,
    st.integers(-4, 20 * 48 + 4),
    st.sampled_from([-1, 0, 1]),
)
moments = st.one_of(boundaries, st.integers(START - 10_000_000, END + 10_000_000))
events = st.lists(
    st.tuples(
        st.sampled_from("abcdefg"), st.sampled_from("xyz"), moments, st.sampled_from([None, True, False]), st.booleans()
    ),
    max_size=60,
)


def frame(rows: Sequence[Event]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def reference(rows: Sequence[Event], zone: str) -> list[dict[str, Any]]:
    found = []
    for user in sorted({row[0] for row in rows if START <= row[2] < END}):
        own = [row for row in rows if row[0] == user and START <= row[2] < END]
        hours = [
            (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=row[2])).astimezone(ZoneInfo(zone)).hour
            for row in own
        ]
        devices = [row[3] for row in own if row[3] is not None]
        found.append(
            {
                "user_id": user,
                "night": sum(hour >= 22 or hour < 5 for hour in hours) / len(own),
                "morning": sum(5 <= hour < 12 for hour in hours) / len(own),
                "afternoon": sum(12 <= hour < 17 for hour in hours) / len(own),
                "evening": sum(17 <= hour < 22 for hour in hours) / len(own),
                "mobile": sum(devices) / len(devices) if devices else None,
                "distinct_items": len({row[1] for row in own}) / len(own),
                "recency_days": (END - max(row[2] for row in own)) / 86_400_000,
                "events": len(own),
            }
        )
    return found


@settings(max_examples=80, deadline=None)
@given(rows=events, zone=st.sampled_from(["UTC", "Europe/Paris", "Asia/Kolkata", "America/New_York"]))
def test_features_are_those_of_the_reference(rows: list[Event], zone: str) -> None:
    found = features(frame(rows), START, END, zone)
    assert found.columns == list(FEATURE_COLUMNS)
    expected = reference(rows, zone)
    recency = [row.pop("recency_days") for row in expected]
    assert found.drop("recency_days").to_dicts() == expected
    assert found["recency_days"].to_list() == pytest.approx(recency, rel=1e-12)


@pytest.mark.parametrize(
    ("clock", "part"),
    [
        ("00:00:00.000", "night"),
        ("04:59:59.999", "night"),
        ("05:00:00.000", "morning"),
        ("11:59:59.999", "morning"),
        ("12:00:00.000", "afternoon"),
        ("16:59:59.999", "afternoon"),
        ("17:00:00.000", "evening"),
        ("21:59:59.999", "evening"),
        ("22:00:00.000", "night"),
        ("23:59:59.999", "night"),
    ],
)
@pytest.mark.parametrize("zone", ["UTC", "Europe/Paris", "Asia/Kolkata"])
@pytest.mark.parametrize("day", ["2025-10-25", "2025-10-27"])  # summer time in Europe, and not
def test_a_user_of_one_event_at_the_boundary(clock: str, part: str, zone: str, day: str) -> None:
    at = datetime.fromisoformat(f"{day}T{clock}").replace(tzinfo=ZoneInfo(zone))
    (row,) = features(frame([("u", "x", round(at.timestamp() * 1000), None, False)]), START, END, zone).to_dicts()
    assert [name for name in ("night", "morning", "afternoon", "evening") if row[name] == 1] == [part]
    assert sum(row[name] for name in ("night", "morning", "afternoon", "evening")) == 1
    assert (row["mobile"], row["distinct_items"], row["events"]) == (None, 1, 1)


def test_the_window_s_first_moment_counts_and_its_end_does_not() -> None:
    rows: list[Event] = [
        (user, "x", ms, None, False) for user, ms in zip("abcd", (START - 1, START, END - 1, END), strict=True)
    ]
    found = features(frame(rows), START, END, "UTC")
    assert found["user_id"].to_list() == ["b", "c"]
    assert found["recency_days"].to_list() == pytest.approx([20, 1 / 86_400_000])


@settings(max_examples=60, deadline=None)
@given(rows=events)
def test_labels_are_those_of_the_reference(rows: list[Event]) -> None:
    users = ["a", "c", "g", "nobody"]
    found = labels(pl.Series(users), frame(rows), START, END)
    assert found.to_list() == [
        any(row[0] == user and row[4] and START <= row[2] < END for row in rows) for user in users
    ]


def test_the_offer_counts_from_the_first_moment_after_the_window_to_the_last_of_the_label_days() -> None:
    moments = [START - 1, START, END - 1, END]
    rows: list[Event] = [(user, "x", ms, None, True) for user, ms in zip("abcd", moments, strict=True)]
    assert labels(pl.Series(list("abcd")), frame(rows), START, END).to_list() == [False, True, True, False]


@pytest.mark.parametrize(
    ("offer", "expected"),
    [
        ({}, [True, True, True, False]),
        ({"items": ["i1"]}, [True, False, False, False]),
        ({"categories": ["c2"]}, [False, True, False, False]),
        ({"items": ["i1"], "categories": ["c2"]}, [True, True, False, False]),
    ],
)
def test_what_counts_as_taking_the_offer(offer: dict[str, list[str]], expected: list[bool]) -> None:
    rows = pl.DataFrame(
        {
            "action": ["CLICK", "CLICK", "CLICK", "VIEW"],
            "item_id": ["i1", "i2", "i3", "i1"],
            "category_id": [None, "c2", None, "c2"],
        }
    )
    assert rows.select(takes(AudienceSettings(action="CLICK", **offer))).to_series().to_list() == expected
