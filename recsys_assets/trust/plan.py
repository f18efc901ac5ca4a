"""What a late, changed or deleted object will rebuild, and why, before anything runs.

The first part is the sensor's own decision (`ingest.sensors`): the days it will ask for. The second follows the
versions: each partition records what it was made of, so what is made of something that changes can be told without
making it. Those partitions are built again when they are next asked for, by a schedule or a person.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby

import dagster as dg
import polars as pl

from recsys_assets.days import shift
from recsys_assets.evaluation.assets import decision_stands, evaluation_version
from recsys_assets.ingest import listing, pace
from recsys_assets.ingest.assets import shrinking
from recsys_assets.ingest.sensors import INTERACTIONS, Request, decide, look, window
from recsys_assets.ingest.versions import cleaning_version, raw_stands, raw_version
from recsys_assets.models import MEMBERS
from recsys_assets.partitions import daily
from recsys_assets.pipeline import Pipeline
from recsys_assets.reporting import summary
from recsys_assets.serving.assets import lists_version
from recsys_assets.storage.artifacts import Artifact, version_of
from recsys_assets.storage.bucket import LogObject
from recsys_assets.training import blend, members, search
from recsys_assets.training.training_set import made_of

_SHOWN_OBJECTS = 5


@dataclass(frozen=True)
class Outdated:
    """A partition that stands there and would be another one if it were made again; not `certain`: it may be."""

    asset: str
    day: str
    why: str
    certain: bool = True


@dataclass(frozen=True)
class Plan:
    """What is to come.

    Attributes:
        requests: the runs of `ingest` that the sensor asks for, in one tick or several: raw_events, interactions and
            rejected_events of a day.
        objects: day -> the objects that changed, a line each.
        refused: day -> why the run that is asked for will leave the day as it is.
        notes: changed days that are not asked for now, and why.
        outdated: what is built again when it is next asked for.
    """

    requests: list[Request]
    objects: dict[str, list[str]]
    refused: dict[str, str]
    notes: list[str]
    outdated: list[Outdated]


def plan(pipeline: Pipeline, instance: dg.DagsterInstance, now: datetime | None = None) -> Plan:
    """Looks at every day of the bucket and of the catalogue. Runs nothing, writes nothing.

    Raises:
        BucketError: the bucket cannot be listed.
    """
    now = now or datetime.now(UTC)
    surveyed = listing.survey(pipeline.bucket, pipeline.settings)
    partitions = set(daily.get_partition_keys(now))
    ingested = instance.get_materialized_partitions(INTERACTIONS) & partitions
    days = sorted((surveyed.days & partitions) | ingested)
    recent = window(pipeline, now)
    proposal = pace.propose((surveyed.days & partitions) - ingested, recent, bool(ingested), pipeline.settings.ingest)
    seen, _ = look(instance, pipeline, days, recent, surveyed)
    whole = pipeline.settings.ingest.model_copy(update={"max_requests_per_tick": len(days)})
    requests, notes = decide(seen, whole, now, proposal.held if proposal else ())
    if proposal:
        notes.append(proposal.text)
    asked = [request.day for request in requests]
    found = listing.days_of(pipeline.bucket, pipeline.settings, asked, surveyed).days
    read = {day: pipeline.tables.sound_info("raw_events", day) for day in asked}
    again = [
        day for day in asked if not raw_stands(read[day], listing.fingerprint(found[day]), pipeline.settings.bucket)
    ]
    refused = shrinking(pipeline, again, read, found)
    versions, outdated = _interactions(
        pipeline, {request.day: request.fingerprint for request in requests if request.day not in refused}
    )
    return Plan(
        requests,
        {day: changed_objects(pipeline, day, objects) for day, objects in found.items()},
        refused,
        notes,
        [*outdated, *downstream(pipeline, versions)],
    )


def changed_objects(pipeline: Pipeline, day: str, objects: Iterable[LogObject]) -> list[str]:
    """Which objects of a day are not those that raw_events holds, a line each: added, changed, then deleted ones."""
    path = pipeline.tables.path("raw_events", day)
    before = dict(pl.read_parquet(path, columns=["key", "etag"]).iter_rows()) if path.exists() else {}
    now = {obj.key: obj.etag for obj in objects}
    return [
        *(f"added {key}" for key in now if key not in before),
        *(f"changed {key}" for key, etag in now.items() if key in before and before[key] != etag),
        *(f"deleted {key}" for key in before if key not in now),
    ]


def _interactions(pipeline: Pipeline, asked: dict[str, str]) -> tuple[dict[str, str], list[Outdated]]:
    """Day -> the version its interactions will have once the sensor's runs are through; and the days whose rules
    changed, which no sensor asks for: they keep their version until `recsys readmit`."""
    versions, outdated = {}, []
    for day in sorted({*pipeline.tables.days("interactions"), *asked}):
        info = pipeline.tables.sound_info("interactions", day)
        raw = pipeline.tables.sound_info("raw_events", day)
        if day in asked:
            stands = raw is not None and raw_stands(raw, asked[day], pipeline.settings.bucket)
            versions[day] = cleaning_version(pipeline.settings, raw_version(raw) if raw and stands else asked[day])
        elif info is not None:
            versions[day] = info["version"]
            if raw is not None and cleaning_version(pipeline.settings, raw_version(raw)) != info["version"]:
                outdated.append(Outdated("interactions", day, "its rules, settings or code changed (recsys readmit)"))
    return versions, outdated


def downstream(pipeline: Pipeline, interactions: dict[str, str]) -> Iterator[Outdated]:
    """Everything from the training sets on that would be made of something else than it was.

    Args:
        interactions: day -> version, as they are or will be.
    """
    frozen, changed = pipeline.holdouts.current(), set[tuple[str, str]]()
    champion = pipeline.champion.read()
    newest_champion_day = max((move["day"] for move in pipeline.champion.timeline()), default="")
    judged = False  # whether the gate has a model before it that it may let in

    def outdated(asset: str, day: str, reasons: list[str]) -> Iterator[Outdated]:
        if reasons:
            changed.add((asset, day))
            yield Outdated(asset, day, "; ".join(reasons))

    def went_on(asset: str, artifact: Artifact, stands: bool) -> list[str]:
        parent = artifact.info["parent"]
        will_be = parent is not None and (asset, parent["day"]) in changed
        return [f"{asset} of the day before"] if will_be or not stands else []

    sets: dict[str, str] = {}
    for day, artifact in _artifacts(pipeline, "training_set"):
        inputs = made_of(pipeline, {each: version for each, version in interactions.items() if each <= day}, frozen)
        sets[day] = version_of(**inputs)
        if sets[day] != artifact.version:
            yield from outdated("training_set", day, _changes(artifact.info.get("inputs", {}), inputs))
    for name in MEMBERS:
        for day, artifact in _artifacts(pipeline, f"{name}_model"):
            settings, _ = search.in_force(pipeline, name, day)
            expected = {"settings": members.recipe(settings, name), "code": members.CODE_VERSION}
            reasons = _made_of_set(artifact.info["inputs"]["training_set"], day, sets) + _recipe(artifact, expected)
            stands = members.same_parent(pipeline, f"{name}_model", artifact)
            yield from outdated(f"{name}_model", day, reasons or went_on(f"{name}_model", artifact, stands))
    for day, artifact in _artifacts(pipeline, "hybrid_model"):
        reasons = []
        for name, version in artifact.info["inputs"]["members"].items():
            current = pipeline.artifacts.current(f"{name}_model", day)
            if (f"{name}_model", day) in changed or current is None or current.version != version:
                reasons.append(f"{name}_model")
        expected = {"settings": blend.recipe(pipeline.settings), "code": blend.CODE_VERSION}
        said = [f"{', '.join(reasons)} of its day"] if reasons else []
        said += _recipe(artifact, expected)
        stands = blend.same_ranking(pipeline, artifact)
        yield from outdated("hybrid_model", day, said or went_on("hybrid_model", artifact, stands))
    for table in ("evaluation", "promotion"):
        for day in pipeline.tables.days(table):
            info, hybrid = pipeline.tables.sound_info(table, day) or {}, pipeline.artifacts.current("hybrid_model", day)
            if hybrid is None:
                continue  # pruned: its figures stay as they were
            if ("hybrid_model", day) in changed:
                yield from outdated(table, day, ["hybrid_model of its day"])
            elif table == "evaluation" and info.get("version") != evaluation_version(pipeline, hybrid.version):
                yield from outdated(table, day, ["its model, settings, the hold-out or code changed"])
            elif table == "promotion" and not decision_stands(pipeline, day, hybrid.version):
                yield from outdated(table, day, ["its model, the champion, the rules or code changed"])
            if table == "promotion" and (table, day) in changed and day >= newest_champion_day:
                other = champion is None or champion["version"] != hybrid.version
                judged |= other or ("hybrid_model", day) in changed
    for table in ("recommendations", "similar_items"):
        for day in pipeline.tables.days(table):
            info = pipeline.tables.sound_info(table, day) or {}
            if day in sets and info.get("version") != lists_version(pipeline, table, sets[day]):
                present = pipeline.artifacts.current("training_set", day)
                why = "training_set of its day" if present is None or present.version != sets[day] else ""
                yield from outdated(table, day, [why or "the champion, settings, available items or code changed"])
            elif judged:
                yield Outdated(table, day, "only if the gate makes a model that it judges again the champion", False)


def _artifacts(pipeline: Pipeline, asset: str) -> Iterator[tuple[str, Artifact]]:
    for day in pipeline.artifacts.days(asset):
        artifact = pipeline.artifacts.current(asset, day)
        if artifact is not None:
            yield day, artifact


def _changes(before: dict[str, object], now: dict[str, object]) -> list[str]:
    """What differs between the inputs that a training set records and those it would have."""
    then, would = before.get("interactions"), now.get("interactions")
    reasons = []
    if isinstance(then, dict) and isinstance(would, dict):
        days = [day for day in sorted({*then, *would}) if then.get(day) != would.get(day)]
        if days:
            reasons.append(f"interactions of {summary(days)}")
    names = {"holdout": "the hold-out", "actions": "setting actions", "window_days": "setting training.window_days"}
    reasons += [about for name, about in names.items() if before.get(name) != now.get(name)]
    return reasons + (["code"] if before.get("code") != now.get("code") else [])


def _made_of_set(version: str, day: str, sets: dict[str, str]) -> list[str]:
    return ["training_set of its day"] if day in sets and sets[day] != version else []


def _recipe(artifact: Artifact, expected: dict[str, str]) -> list[str]:
    return [name for name, version in expected.items() if artifact.info["inputs"].get(name) != version]


def lines(found: Plan) -> Iterator[str]:
    """The plan for a person."""
    if found.requests:
        yield "The sensor asks for ingest (raw_events, interactions, rejected_events) of"
    for request in found.requests:
        objects = found.objects[request.day]
        said = f"{len(objects)} objects are not those that were read" if objects else "Dagster does not know it yet"
        yield f"  {request.day}: {said}"
        if request.day in found.refused:
            yield f"    will be refused: {found.refused[request.day]}"
        yield from (f"    {line}" for line in objects[:_SHOWN_OBJECTS])
        if len(objects) > _SHOWN_OBJECTS:
            yield f"    and {len(objects) - _SHOWN_OBJECTS} more"
    if not found.requests:
        yield "The sensor asks for nothing: every day's interactions were made of the objects that are there"
    yield from (f"  not now: {note}" for note in found.notes)
    if found.outdated:
        yield "Then outdated, and built again when next asked for (recsys run train, the schedules, the UI):"
    for (asset, why), some in groupby(found.outdated, key=lambda each: (each.asset, each.why)):
        days = [each.day for each in some]
        text = summary(days) if days[-1] == shift(days[0], len(days) - 1) else ", ".join(days)
        yield f"  {asset:<17} {text}: {why}"
    if not found.outdated:
        yield "Nothing that was made is outdated by it"
