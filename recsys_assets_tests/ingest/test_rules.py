import json
import random
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import hypothesis
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from recsys_assets.ingest.decode import raw_table
from recsys_assets.ingest.rules import TOO_MANY, apply_rules
from recsys_assets.ingest.validate import REJECTED_SCHEMA, CleanResult, clean
from recsys_assets.settings import IngestSettings, Settings
from recsys_assets.storage.bucket import LogObject

DAY = "2025-11-03"
START = 1762128000000
HOUR = 3_600_000
SETTINGS = Settings(home=Path("/nowhere"))


def cleaned(*objects: list[dict[str, Any]]) -> CleanResult:
    entries = []
    for number, records in enumerate(objects):
        content = json.dumps(records).encode()
        obj = LogObject(f"k{number}.json", "e", len(content), datetime(2025, 11, 3, 23, tzinfo=UTC))
        entries.append((obj, content))
    with duckdb.connect() as connection:
        return clean(connection, raw_table(entries, 2**30), DAY, SETTINGS)


def event(user: str, at: int, **changes: Any) -> dict[str, Any]:
    return {"timestamp": START + at, "user_id": user, "item_id": "i", "action": "VIEW", **changes}


def test_off_by_default_and_only_the_column_is_added() -> None:
    result = cleaned([event("u", n) for n in range(500)])
    ruled = apply_rules(result, IngestSettings())
    assert ruled.interactions["session_id"].null_count() == 500
    assert ruled.interactions.schema["session_id"] == pl.Int32()
    assert_frame_equal(ruled.interactions.drop("session_id"), result.interactions)
    for field in fields(CleanResult):
        if field.name not in ("interactions", "rejected", "by_key"):
            assert getattr(ruled, field.name) == getattr(result, field.name)


@pytest.mark.parametrize(
    ("times", "aside"),
    [
        ([0, 1, 2], False),
        ([0, 1, 2, 3], True),
        ([0, 1, 2, HOUR], False),  # three in any 60 minutes
        ([0, 1, 2, HOUR - 1], True),
        ([0, HOUR // 2, HOUR // 2 + 1, HOUR // 2 + 2, HOUR + 5], True),  # over the full hour
        ([n * HOUR // 3 for n in range(20)], False),
    ],
)
def test_the_ceiling_holds_for_any_sixty_minutes(times: list[int], aside: bool) -> None:
    result = apply_rules(
        cleaned([event("u", at) for at in times] + [event("calm", 5)]), IngestSettings(max_events_per_hour=3)
    )
    assert set(result.interactions["user_id"]) == ({"calm"} if aside else {"u", "calm"})
    assert result.rejections == ({TOO_MANY: len(times)} if aside else {})


def test_who_is_set_aside_is_counted_everywhere() -> None:
    robot = [event("robot", n, item_id=f"r{n}", action="CLICK") for n in range(10)]
    first = [*robot[:6], robot[0], event("u", 1), {"no": "event"}, event("robot", -1, item_id="early")]
    result = apply_rules(cleaned(first, [*robot[6:], event("u", 2)]), IngestSettings(max_events_per_hour=5))
    assert result.records_in == 15
    assert (result.kept, result.duplicates) == (2, 1)
    assert result.rejections == {"missing_timestamp": 1, TOO_MANY: 11}
    assert list(result.rejections) == sorted(result.rejections)
    assert result.actions == {"VIEW": 2, "CLICK": 0, "ADD_CART": 0, "PURCHASE": 0}
    assert (result.users, result.items, result.off_day) == (1, 1, 0)
    assert result.by_key.rows() == [("k0.json", 10, 1, 1, 8), ("k1.json", 5, 1, 0, 4)]
    assert result.rejected.schema == REJECTED_SCHEMA
    assert result.rejected.select("source_key", "record").rows() == sorted(
        result.rejected.select("source_key", "record").rows()
    )
    aside = result.rejected.filter(pl.col("reason") == TOO_MANY)
    assert set(aside["detail"]) == {"the user has more than 5 events within an hour"}
    assert '"user_id":"robot"' in aside["excerpt"][0]


def test_sessions_begin_anew_after_a_pause() -> None:
    minute = 60_000
    times = {"a": [0, 29, 59, 88, 118, 200], "b": [10, 40, 70]}
    result = apply_rules(
        cleaned([event(user, at * minute) for user, each in times.items() for at in each]),
        IngestSettings(session_gap_minutes=30),
    )
    found = {user: list(frame["session_id"]) for (user,), frame in result.interactions.group_by("user_id")}
    assert found == {"a": [0, 0, 1, 1, 2, 3], "b": [0, 1, 2]}, "a pause of the very gap begins a new one"


@hypothesis.settings(deadline=None, max_examples=20)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 40), st.sampled_from("xy")), max_size=40),
    st.integers(1, 6),
    st.sampled_from([None, 7.0, 30.0]),
    st.randoms(use_true_random=False),
)
def test_against_a_slow_reading(
    drawn: list[tuple[str, int, str]], most: int, gap: float | None, order: random.Random
) -> None:
    records = [event(user, at * 300_000, item_id=item) for user, at, item in drawn]
    settings = IngestSettings(max_events_per_hour=most, session_gap_minutes=gap)
    result = apply_rules(cleaned(records), settings)

    kept: dict[str, list[tuple[int, str]]] = {}
    for user in "abc":
        mine = sorted({(at * 300_000, item) for name, at, item in drawn if name == user})
        if all(sum(0 <= at - begin < HOUR for at, _ in mine) <= most for begin, _ in mine):
            kept[user] = mine
    expected = []
    for user, mine in kept.items():
        number, last = 0, None
        for at, item in mine:
            number += last is not None and gap is not None and at - last >= gap * 60_000
            last = at
            expected.append((user, START + at, item, None if gap is None else number))
    found = result.interactions.select("user_id", pl.col("timestamp").dt.epoch("ms"), "item_id", "session_id")
    assert found.rows() == expected
    assert result.records_in == result.kept + result.duplicates + sum(result.rejections.values())

    order.shuffle(records)
    again = apply_rules(cleaned(records), settings)
    assert_frame_equal(again.interactions.drop("record"), result.interactions.drop("record"))
