"""`recsys status` and `recsys preflight`: what is there, what is missing, and why."""

from collections.abc import Iterator

import dagster as dg

from recsys_assets.days import day_start_ms
from recsys_assets.ingest import listing
from recsys_assets.ingest.sensors import look
from recsys_assets.partitions import partitions_of
from recsys_assets.pipeline import Pipeline
from recsys_assets.reporting import summary
from recsys_assets.settings import SettingsError
from recsys_assets.storage.bucket import BucketError

_SHOWN_DAYS = 30
_FEW_USERS = 50


def status_lines(pipeline: Pipeline, instance: dg.DagsterInstance) -> Iterator[str]:
    """Lines for a person: bucket, days, models, champion."""
    settings = pipeline.settings
    yield f"home      {settings.home}"
    yield f"bucket    {pipeline.bucket.url}/{settings.bucket.prefix}"
    in_bucket = listing.all_days(pipeline.bucket, settings)
    partitions = set(partitions_of(settings.calendar).get_partition_keys())
    days = sorted(partitions & (set(in_bucket) | set(pipeline.tables.days("interactions"))))
    outside = sorted(set(in_bucket) - partitions)
    yield f"          {sum(in_bucket.values()):,} objects on {len(in_bucket)} days"
    if outside:
        yield f"          {summary(outside)} outside the calendar: see calendar.first_day and calendar.last_day"
    if not days:
        yield "no day has objects or interactions; `recsys preflight` says why"
        return
    shown = days[-_SHOWN_DAYS:]
    if len(days) > len(shown):
        older = days[: -len(shown)]
        ingested = set(pipeline.tables.days("interactions"))
        missing = sum(day not in ingested for day in older)
        yield f"older     {len(older)} days, of which {missing} have no interactions"
    yield ""
    yield f"{'day':<12}{'objects':>8}{'kept':>10}{'rejected':>10}{'repeated':>10}  state"
    for seen in look(instance, pipeline, shown, shown)[0]:
        info = pipeline.tables.info("interactions", seen.day)
        numbers = f"{in_bucket.get(seen.day, 0):>8,}"
        if info is None:
            yield f"{seen.day:<12}{numbers}{'-':>10}{'-':>10}{'-':>10}  missing: not ingested yet"
            continue
        counts = info["counts"]
        state = "up to date"
        if info["fingerprint"] != seen.fingerprint:
            state = "outdated: objects were added, changed or deleted since"
        elif seen.materialized is None:
            state = "on disk, but this Dagster instance has no materialization of it"
        trained = [name for name in ("hybrid_model",) if pipeline.artifacts.current(name, seen.day)]
        if trained:
            state += ", trained"
        rejected = sum(counts["rejected"].values())
        yield f"{seen.day:<12}{numbers}{counts['kept']:>10,}{rejected:>10,}{counts['duplicates']:>10,}  {state}"
    yield ""
    champion = pipeline.champion.read()
    yield (
        f"champion  the hybrid model of {champion['day']} ({champion['version']}), since {champion['since']}: "
        f"{champion['reason']}"
        if champion
        else "champion  none yet: materialize the training assets (job `train`) for a day"
    )
    frozen = pipeline.holdouts.current()
    yield (
        f"hold-out  version {frozen.version}, drawn from days up to {frozen.info['drawn_from_days_up_to']}: "
        f"{frozen.info['users']} users, {frozen.info['events']} events"
        if frozen
        else "hold-out  not drawn yet"
    )
    made = pipeline.tables.days("recommendations")
    yield f"lists     newest of {made[-1]}" if made else "lists     none yet"


def preflight_findings() -> Iterator[tuple[bool, str]]:
    """(is it well, what was found and what to do), from the first thing that must work to the last."""
    try:
        pipeline = Pipeline.open()
    except SettingsError as error:
        yield False, str(error)
        return
    settings = pipeline.settings
    written = (settings.home / "settings.yaml").exists()
    yield True, f"settings of {settings.home}" + ("" if written else ": no settings.yaml there, so all defaults")
    try:
        found = listing.all_days(pipeline.bucket, settings)
    except BucketError as error:
        yield False, str(error)
        return
    where = f"{pipeline.bucket.url}/{settings.bucket.prefix}"
    if not found:
        if listing.has_any(pipeline.bucket, settings):
            yield (
                False,
                f"{where} has objects, but none is read: names must end in .json, .ndjson or .jsonl (.gz, .zst)",
            )
        else:
            yield False, f"nothing lies below {where}: check bucket.url and bucket.prefix"
        return
    yield True, f"{where}: {sum(found.values()):,} objects, {summary(found)}"
    partitions = set(partitions_of(settings.calendar).get_partition_keys())
    inside = sorted(set(found) & partitions)
    if not inside:
        yield (
            False,
            (
                f"all of these days lie outside the calendar ({settings.calendar.first_day} to "
                f"{settings.calendar.last_day or 'today'}): set calendar.first_day to {min(found)}"
            ),
        )
        return
    if outside := sorted(set(found) - partitions):
        yield False, f"{summary(outside)} lie outside the calendar and are not read: see calendar.first_day"
    made = pipeline.tables.days("interactions")
    if not made:
        yield False, f"no interactions yet: recsys run ingest --from {inside[0]} --to {inside[-1]}"
        return
    if missing := sorted(set(inside) - set(made)):
        yield False, f"no interactions for {summary(missing)}: recsys run ingest --from {missing[0]} --to {missing[-1]}"
    kept, rejected, actions, reasons = 0, 0, dict.fromkeys(settings.actions, 0), dict[str, int]()
    for day in made:
        counts = (pipeline.tables.info("interactions", day) or {})["counts"]
        kept += counts["kept"]
        for name, count in counts["actions"].items():
            actions[name] = actions.get(name, 0) + count
        for name, count in counts["rejected"].items():
            reasons[name] = reasons.get(name, 0) + count
            rejected += count
    if not kept:
        yield (
            False,
            f"no event was kept on {len(made)} days; rejected: {_counts(reasons) or 'none, the objects are empty'}",
        )
        return
    yield True, f"{kept:,} events kept ({_counts(actions)})"
    if rejected > 0.05 * (kept + rejected):
        yield False, f"{rejected / (kept + rejected):.0%} of the records were rejected: {_counts(reasons)}"
    elif rejected:
        yield True, f"{rejected:,} records rejected ({rejected / (kept + rejected):.2%}): {_counts(reasons)}"
    if reasons.get("unknown_action"):
        yield (
            False,
            (
                f"{reasons['unknown_action']:,} records have an action that `actions` does not name; "
                "SELECT detail, count(*) FROM rejected_events GROUP BY 1 shows which"
            ),
        )
    if unused := [name for name, count in actions.items() if count == 0]:
        yield True, f"never seen: {', '.join(unused)} (fine if your logs have no such action)"
    trained = pipeline.artifacts.days("training_set")
    if not trained:
        yield False, f"nothing trained yet: recsys run train --day {made[-1]}"
        return
    info = pipeline.artifacts.need("training_set", trained[-1]).info
    users, items = info["counts"]["users"], info["counts"]["items"]
    if users < _FEW_USERS:
        yield False, f"only {users} users: below {_FEW_USERS} personal lists are hardly better than popularity"
    else:
        yield (
            True,
            f"training set of {trained[-1]}: {users:,} users, {items:,} items, {info['counts']['kept']:,} events",
        )
    if trained[-1] < made[-1]:
        yield False, f"interactions go up to {made[-1]}, training to {trained[-1]}: recsys run train --day {made[-1]}"
    champion = pipeline.champion.read()
    if champion is None:
        yield False, "no champion: SELECT reason FROM promotions ORDER BY day DESC says why the last model was refused"
    else:
        behind = (day_start_ms(made[-1], "UTC") - day_start_ms(champion["day"], "UTC")) // 86_400_000
        text = f"champion of {champion['day']}: {champion['reason']}"
        yield behind <= 7, text if behind <= 7 else f"{text}; {behind} days older than the newest interactions"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items(), key=lambda kv: -kv[1]))
