"""Fitting or updating one member at one day, and the three states that come of it.

A day's member is published in up to three states, so that what is measured has never seen what it is measured on:

* `validation`: learned from the days before the validation days; the ranking weights are learned on those days.
* `test`: learned from every day before the newest; measured on the newest day.
* `final`: learned from the newest day too; served.

A *full refit* fits the first and updates it twice. An *update* starts from the final state of the day before, which
has seen exactly what today's `test` may see, and makes `final` from it.
"""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recsys_assets.days import day_start_ms, shift
from recsys_assets.models import MEMBERS
from recsys_assets.models.base import Log, Member
from recsys_assets.pipeline import InputError, Pipeline
from recsys_assets.settings import Settings
from recsys_assets.storage.artifacts import Artifact, link_tree, load_state, save_state, version_of
from recsys_assets.training import search
from recsys_assets.training.events import DAY_MS, TrainingSet
from recsys_assets.training.training_set import read_training_set

CODE_VERSION = "3"

# Learning these again costs seconds and absorbs late events at once; the others go on from the day before.
CHEAP_MEMBERS = frozenset({"popularity", "transition"})


@dataclass(frozen=True)
class States:
    """A member at one day; `validation` is None after an update."""

    test: Member
    final: Member
    validation: Member | None = None


def validation_days(data: TrainingSet, day_start_ms: int, settings: Settings) -> int:
    """How many days before the newest are kept for learning the ranking weights: at most a quarter of the history."""
    earlier = data.events.timestamp[data.events.timestamp < day_start_ms]
    # Days with events, not the span: one event with a wrong clock must not make a long history.
    return min(settings.training.validation_days, len(np.unique(earlier // DAY_MS)) // 4)


def refit(
    member: type[Member], data: TrainingSet, day_start_ms: int, validation_start_ms: int, settings: Settings, log: Log
) -> States:
    """Fits from scratch up to the validation days, then updates to the two later states."""
    validation = member.fit(data.before(validation_start_ms), settings, log)
    test = validation.update(data.before(day_start_ms), settings, log)
    return States(test, test.update(data, settings, log), validation)


def go_on(parent: Member, data: TrainingSet, settings: Settings, log: Log) -> States:
    """Goes on from the final state of the day before."""
    return States(parent, parent.update(data, settings, log))


def ids_digest(ids: Sequence[str], count: int) -> str:
    """A digest of the first `count` ids: a model made with a smaller map fits a larger one only if they are equal."""
    digest = hashlib.sha256()
    for name in ids[:count]:
        digest.update(name.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:16]


def load_member(name: str, folder: Path) -> Member:
    return MEMBERS[name].from_state(*load_state(folder))


def recipe(settings: Settings, name: str) -> str:
    """A version of the settings that matter to a member."""
    return version_of(
        own=getattr(settings, name).model_dump(),
        training=settings.training.model_dump(exclude={"full_refit_days"}),
    )


def fit_member(
    pipeline: Pipeline, name: str, day: str, full_refit: bool, log: Log
) -> tuple[Artifact, bool, TrainingSet | None]:
    """Publishes a member's states for a day unless equal ones stand there.

    Returns: the artifact, whether it is new, and the training set if it had to be read.
    """
    asset = f"{name}_model"
    settings, searched = search.in_force(pipeline, name, day)
    source = pipeline.artifacts.need("training_set", day)
    inputs = {
        "training_set": source.version,
        "settings": recipe(settings, name),
        "code": CODE_VERSION,
    }
    existing = pipeline.artifacts.sound(asset, day)
    if (
        existing is not None
        and existing.info["inputs"] == inputs
        and not (full_refit and existing.info["mode"] == "update")
        and same_parent(pipeline, asset, existing)
    ):
        return existing, False, None
    data = read_training_set(source)
    start_ms = day_start_ms(day, settings.calendar.time_zone)
    parent = (
        None
        if full_refit or name in CHEAP_MEMBERS
        else _usable_parent(pipeline, asset, day, inputs, data, source.info["holdout"])
    )
    started = time.monotonic()
    days = 0
    if parent is not None:
        log(f"{asset} {day}: going on from {parent.info['day']} ({parent.version})")
        states = go_on(load_member(name, parent.path / "final"), data, settings, log)
    else:
        days = validation_days(data, start_ms, settings)
        log(f"{asset} {day}: full refit, {days} validation days")
        validation_start_ms = day_start_ms(shift(day, -days), settings.calendar.time_zone)
        states = refit(MEMBERS[name], data, start_ms, validation_start_ms, settings, log)
    info = {
        "day": day,
        "inputs": inputs,
        "mode": "update" if parent else "full refit",
        "parent": {"day": parent.info["day"], "version": parent.version} if parent else None,
        "updates_in_a_row": parent.info["updates_in_a_row"] + 1 if parent else 0,
        "validation_days": days,
        "parameters": search.origins(pipeline, name, settings, searched),
        "search": {"day": searched.info["day"], "version": searched.version} if searched else None,
        "holdout": source.info["holdout"],
        "events": len(data.events),
        "n_items": len(data.items),
        "items_digest": ids_digest(data.items.ids, len(data.items)),
        "seconds": round(time.monotonic() - started, 2),
    }
    version = version_of(inputs=inputs, mode=info["mode"], parent=parent.version if parent else None)
    with pipeline.artifacts.publish(asset, day, version, info) as folder:
        save_state(folder / "final", *states.final.state())
        if parent is not None:
            link_tree(parent.path / "final", folder / "test")
        else:
            save_state(folder / "test", *states.test.state())
        if states.validation is not None:
            save_state(folder / "validation", *states.validation.state())
    return pipeline.artifacts.need(asset, day), True, data


def same_parent(pipeline: Pipeline, asset: str, artifact: Artifact) -> bool:
    """Whether what a model went on from still is the day before's: a full refit of that day, say, outdates what was
    updated from the state it replaced. One that is not kept any more (retention) was not replaced."""
    parent = artifact.info["parent"]
    now = pipeline.artifacts.current(asset, parent["day"]) if parent else None
    return now is None or now.version == parent["version"]


def _usable_parent(
    pipeline: Pipeline, asset: str, day: str, inputs: dict[str, Any], data: TrainingSet, holdout: int | None
) -> Artifact | None:
    """The day before's model, if today may go on from it."""
    parent = pipeline.artifacts.sound(asset, shift(day, -1))
    if parent is None:
        return None
    same_recipe = all(parent.info["inputs"][key] == inputs[key] for key in ("settings", "code"))
    chain_left = parent.info["updates_in_a_row"] + 1 < pipeline.settings.training.full_refit_days
    # Late data of an old day can renumber the ids; yesterday's rows would then stand for other items.
    known = int(parent.info["n_items"])
    same_ids = known <= len(data.items) and ids_digest(data.items.ids, known) == parent.info["items_digest"]
    # A model from before the hold-out was drawn has learned the events that are withheld now.
    same_holdout = parent.info.get("holdout") == holdout
    return parent if same_recipe and chain_left and same_ids and same_holdout else None


def member_artifacts(pipeline: Pipeline, day: str) -> dict[str, Artifact]:
    """The members of a day, all made from the day's training set.

    Raises:
        ArtifactError: one is missing or damaged.
        InputError: one was made from another training set.
    """
    source = pipeline.artifacts.need("training_set", day)
    found = {name: pipeline.artifacts.need(f"{name}_model", day) for name in MEMBERS}
    for name, artifact in found.items():
        if artifact.info["inputs"]["training_set"] != source.version:
            raise InputError(
                f"{name}_model for {day} was made from another training set than the present one. "
                f"Materialize {name}_model for {day} again."
            )
    return found
