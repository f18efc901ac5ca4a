import json
from datetime import date, timedelta

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_assets.ingest.pace import Cursor, advanced, due, propose, window_order
from recsys_assets.settings import IngestSettings

START = 1_763_000_000.0


def days(count: int) -> list[str]:
    return [(date(2022, 1, 1) + timedelta(n)).isoformat() for n in range(count)]


@hypothesis.settings(deadline=None, max_examples=15)
@given(st.integers(1, 200), st.sampled_from([2.0, 24.0, 48.0]), st.lists(st.integers(30, 240), min_size=1, max_size=5))
def test_every_day_has_two_turns_within_the_hours(count: int, hours: float, gaps: list[int]) -> None:
    older, settings = days(count), IngestSettings(reconcile_hours=hours)
    looks: dict[str, list[float]] = {day: [START] for day in older}
    cursor, now, tick = Cursor(), START, 0
    while now < START + 3 * hours * 3600:
        turn = due(older, cursor, now, settings)
        assert len(turn) == len(set(turn)) <= settings.max_requests_per_tick
        for day in turn:
            looks[day].append(now)
        cursor = Cursor.parse(advanced(cursor, [], older, turn, now, settings).text())
        now += gaps[tick % len(gaps)]
        tick += 1
    half = hours * 3600 / 2
    for seen in looks.values():
        waits = [after - before for before, after in zip(seen, [*seen[1:], now], strict=True)]
        assert max(waits) <= half + 2 * max(gaps) + 1
    assert sum(map(len, looks.values())) <= count * 8, "and not many more"


def test_after_a_long_stop_one_pass_is_due_and_no_more() -> None:
    older, settings = days(50), IngestSettings(reconcile_hours=24)
    cursor, now, looked = Cursor(reconciled=older[9], at=START), START + 30 * 86_400, 0
    for _ in range(10):
        turn = due(older, cursor, now, settings)
        looked += len(turn)
        cursor = advanced(cursor, [], older, turn, now, settings)
        now += 1
    assert looked == 50 + 20, "the first twenty before the debt is cut to one pass"
    assert cursor.reconciled == older[(9 + 70) % 50]


def test_nothing_is_due_on_the_first_tick_or_when_it_is_switched_off_or_the_clock_went_back() -> None:
    older = days(10)
    assert due(older, Cursor(), START, IngestSettings()) == []
    assert due(older, Cursor(at=START), START + 10**6, IngestSettings(reconcile_hours=0)) == []
    late = Cursor(reconciled=older[3], at=START + 10**6)
    assert due(older, late, START, IngestSettings()) == []
    assert advanced(late, [], older, [], START, IngestSettings()) == Cursor(reconciled=older[3], at=START)


def test_only_days_that_were_looked_at_have_had_their_turn() -> None:
    older, settings = days(10), IngestSettings(reconcile_hours=24)
    cursor = Cursor(reconciled=older[1], at=START)
    now = START + 4 * 3600 * 1.2
    assert due(older, cursor, now, settings) == older[2:6]
    after = advanced(cursor, [], older, older[2:4], now, settings)
    assert due(older, after, now, settings) == older[4:6]


def test_the_window_begins_where_the_last_tick_stopped() -> None:
    window = days(5)
    assert window_order(window, Cursor()) == window[::-1]
    left = advanced(Cursor(), [window[1], window[0]], [], [], START, IngestSettings())
    assert window_order(window, left) == [window[1], window[0], window[4], window[3], window[2]]
    assert window_order(window, Cursor(window="1999-01-01")) == window[::-1]


@pytest.mark.parametrize(
    "text",
    [None, "", "{", "[]", "5", "null", '{"window": 5, "at": "x"}', '{"at": {}}', "a" * 100_000, '{"reconciled": "x"}'],
)
def test_what_is_no_cursor_begins_anew(text: str | None) -> None:
    assert Cursor.parse(text) == Cursor()


def test_the_cursor_is_a_position_and_a_moment() -> None:
    cursor = Cursor("2025-11-01", "2022-03-04", 1763000000.123)
    assert Cursor.parse(cursor.text()) == cursor
    assert len(cursor.text()) < 200
    assert set(json.loads(cursor.text())) == {"window", "reconciled", "at"}


def test_few_new_days_are_asked_for_and_many_are_proposed() -> None:
    settings = IngestSettings(max_requests_per_tick=20)
    every = days(1000)
    window = every[-14:]
    assert propose(every[:40], window, False, settings) is None
    first = propose(every, window, False, settings)
    assert first is not None
    assert first.held == frozenset(every)
    assert f"recsys run ingest --from {every[0]} --to {every[-1]}" in first.text
    running = propose(every, window, True, settings)
    assert running is not None
    assert running.held == frozenset(every[:-14])
    assert f"--from {every[0]} --to {every[-15]}" in running.text
    wide = propose(every, every, True, settings)
    assert wide is not None
    assert wide.held == frozenset(every), "a window of years is a backfill too"
