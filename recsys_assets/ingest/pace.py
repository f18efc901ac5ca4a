"""Which days a tick of the sensor looks at: the window each time, every other day at a slower pace. Pure functions.

Between two ticks only a position and a moment are kept (`Cursor`), never what was seen: what a day is made of stands in
the asset catalogue, so a lost cursor costs nothing but a pass begun anew.
"""

import json
from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace

from recsys_assets.settings import IngestSettings

_FAR_MORE = 2  # times max_requests_per_tick: with more new days than this a backfill is proposed
_LOOKS = 2  # at each day within reconcile_hours: the first look may meet it while objects still arrive


@dataclass(frozen=True)
class Cursor:
    """Where the sensor stands.

    Attributes:
        window: the day of the window to begin with, if the last tick could not list all of it.
        reconciled: the day before the window that was looked at last.
        at: seconds since 1970 up to which the pace of `reconcile_hours` has been kept.
    """

    window: str | None = None
    reconciled: str | None = None
    at: float | None = None

    @staticmethod
    def parse(text: str | None) -> "Cursor":
        """The cursor of a text; anything that is not one begins anew."""
        try:
            found = json.loads(text or "{}")
            window, reconciled, at = found.get("window"), found.get("reconciled"), found.get("at")
        except (ValueError, AttributeError):
            return Cursor()
        return Cursor(
            window if isinstance(window, str) and len(window) == 10 else None,
            reconciled if isinstance(reconciled, str) and len(reconciled) == 10 else None,
            float(at) if isinstance(at, int | float) else None,
        )

    def text(self) -> str:
        return json.dumps({name: value for name, value in asdict(self).items() if value is not None})


def window_order(window: Sequence[str], cursor: Cursor) -> list[str]:
    """The window's days, newest first, from the one on that the last tick did not come to."""
    order = sorted(window, reverse=True)
    start = order.index(cursor.window) if cursor.window in order else 0
    return order[start:] + order[:start]


def due(older: Sequence[str], cursor: Cursor, now: float, settings: IngestSettings) -> list[str]:
    """The days before the window that are to be looked at now, in the order of their turn.

    Args:
        older: all days before the window, sorted.
        now: seconds since 1970.
    """
    if not older or not settings.reconcile_hours or cursor.at is None:
        return []
    turns = int((now - cursor.at) / _seconds_a_day(older, settings))
    # No more than may be asked for: else a changed day could lose its turn to the limit.
    count = max(0, min(turns, len(older), settings.max_requests_per_tick))
    start = bisect_right(older, cursor.reconciled or "")
    return [older[(start + step) % len(older)] for step in range(count)]


def advanced(
    cursor: Cursor,
    window_left: Sequence[str],
    older: Sequence[str],
    looked: Sequence[str],
    now: float,
    settings: IngestSettings,
) -> Cursor:
    """The cursor after a tick.

    Args:
        window_left: the days of the window that the tick could not list, in the order of their turn.
        looked: the days of `due` that were looked at.
    """
    moved = replace(cursor, window=window_left[0] if window_left else None)
    if not older or not settings.reconcile_hours or cursor.at is None or cursor.at > now:
        return replace(moved, at=now)
    pace = _seconds_a_day(older, settings)
    # After a long stop one pass is due, not all the passes that were missed.
    at = max(cursor.at + len(looked) * pace, now - len(older) * pace)
    return replace(moved, at=at, reconciled=looked[-1] if looked else cursor.reconciled)


def _seconds_a_day(older: Sequence[str], settings: IngestSettings) -> float:
    return settings.reconcile_hours * 3600 / _LOOKS / len(older)


@dataclass(frozen=True)
class Proposal:
    """What to do about far more new days than a sensor should ask for.

    Attributes:
        held: new days that are not asked for.
        text: for the person, with the exact command.
    """

    held: frozenset[str]
    text: str


def propose(
    new: Collection[str], window: Collection[str], any_ingested: bool, settings: IngestSettings
) -> Proposal | None:
    """A backfill instead of a run for each of very many days that were never ingested; None if they are few.

    Once any day is ingested, the window's own days are asked for as usual: what arrives today does not wait for a
    backfill of last year.

    Args:
        new: days that have objects and were never ingested.
        any_ingested: whether any day of the calendar ever was.
    """
    most = _FAR_MORE * settings.max_requests_per_tick
    if len(new) <= most:
        return None
    within = set(new) & set(window)
    held = set(new) - within if any_ingested and len(within) <= most else set(new)
    if not held:
        return None
    text = (
        f"{len(held)} days of the bucket were never ingested; one backfill does that better than {len(held)} runs: "
        f"recsys run ingest --from {min(held)} --to {max(held)}"
    )
    if not any_ingested:
        text += f". To begin with the newest days only: recsys run ingest --day {max(held)}"
    return Proposal(frozenset(held), text)
