"""Cleaning days again from raw_events after rules or settings changed, and saying what moved. Nothing is fetched."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import dagster as dg

from recsys_assets.days import shift
from recsys_assets.launch import run_job
from recsys_assets.pipeline import InputError, Pipeline

_SHOWN_DAYS = 31


def readmit(
    pipeline: Pipeline,
    instance: dg.DagsterInstance,
    days: Sequence[str],
    reason: str | None,
    force: bool,
    say: Callable[[str], None],
) -> None:
    """Cleans the days that have records rejected for `reason` (None: all days) again, in runs that the UI shows.

    Args:
        days: consecutive or not; those without raw_events are left out.
        force: accept days that lose more than ingest.max_shrink_share of their events.

    Raises:
        InputError: none of the days has raw_events, or none has such a rejection.
        RunFailed: a day would lose too many events; the others are done.
    """
    raw = set(pipeline.tables.days("raw_events"))
    there = sorted(set(days) & raw)
    if not there:
        raise InputError("raw_events has none of these days. Ingest them first: recsys run ingest")
    before = {day: _counts(pipeline, day) for day in there}
    chosen = [day for day in there if reason is None or reason in before[day]]
    if not chosen:
        found = sorted({name for counts in before.values() for name in counts} - {"kept", "duplicates"})
        raise InputError(
            f"no record of these days is rejected for {reason}; reasons there: {', '.join(found) or 'none'}"
        )
    config: dict[str, Any] | None = {"ops": {"interactions": {"config": {"force": True}}}} if force else None
    for some in consecutive(chosen):
        run_job("readmit", some, pipeline, instance, config=config)
    after = {day: _counts(pipeline, day) for day in chosen}
    moved = [day for day in chosen if after[day] != before[day]]
    for day in moved[:_SHOWN_DAYS]:
        say(f"{day}  {_difference(before[day], after[day])}")
    if len(moved) > _SHOWN_DAYS:
        say(f"and {len(moved) - _SHOWN_DAYS} days more")
    totals = [sum((each[day] for day in chosen), Counter[str]()) for each in (before, after)]
    say(f"{len(moved)} of {len(chosen)} days changed" + (f": {_difference(*totals)}" if moved else ""))
    if not moved:
        say("The rules and settings reject the same records as before.")
    else:
        say("Training sets take this in from their next materialization on.")


def _counts(pipeline: Pipeline, day: str) -> Counter[str]:
    """Records kept, duplicates, and rejected for each reason; nothing for a day without interactions."""
    info = pipeline.tables.info("interactions", day)
    if info is None:
        return Counter()
    counts = info["counts"]
    return Counter({"kept": counts["kept"], "duplicates": counts["duplicates"], **counts["rejected"]})


def _difference(before: Counter[str], after: Counter[str]) -> str:
    names = ["kept", "duplicates", *sorted({*before, *after} - {"kept", "duplicates"})]
    changed = [name for name in names if name == "kept" or before[name] != after[name]]
    return ", ".join(
        f"{name} {before[name]:,} -> {after[name]:,} ({after[name] - before[name]:+,})" for name in changed
    )


def consecutive(days: Iterable[str]) -> Iterator[list[str]]:
    """The runs of consecutive days: each goes as one range."""
    groups = itertools.groupby(enumerate(days), key=lambda pair: shift(pair[1], -pair[0]))
    return ([day for _, day in group] for _, group in groups)
