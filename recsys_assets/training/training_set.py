"""Building and reading one day's training set in a store."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from recsys_assets.days import day_start_ms, shift
from recsys_assets.models.base import Log
from recsys_assets.pipeline import Pipeline
from recsys_assets.settings import Settings
from recsys_assets.storage.artifacts import Artifact, version_of
from recsys_assets.training import holdout, merge
from recsys_assets.training.events import TrainingSet

CODE_VERSION = "3"


def read_training_set(artifact: Artifact) -> TrainingSet:
    return merge.load(artifact.path, int(artifact.info["end_ms"]))


def frozen_holdout(pipeline: Pipeline, day: str, log: Log) -> holdout.Holdout | None:
    """The frozen hold-out; draws it from the interactions up to `day` if there is none yet."""
    existing = pipeline.holdouts.current()
    if existing is not None:
        return existing
    days = [each for each in pipeline.tables.days("interactions") if each <= day]
    drawn = pipeline.holdouts.ensure(
        [pipeline.tables.path("interactions", each) for each in days],
        day,
        pipeline.settings.holdout,
        pipeline.settings.training.seed,
    )
    if drawn is not None:
        log(f"drew the frozen hold-outs: {drawn.info}")
    return drawn


def recipe(settings: Settings) -> dict[str, Any]:
    """The settings that matter to a training set."""
    return {
        "actions": [list(pair) for pair in settings.actions.items()],
        "window_days": settings.training.window_days,
    }


def made_of(pipeline: Pipeline, interactions: dict[str, Any], frozen: holdout.Holdout | None) -> dict[str, Any]:
    """Everything a training set depends on: `version_of` these is its version.

    Args:
        interactions: day -> version, of every day up to the set's own.
    """
    return {
        "interactions": interactions,
        "holdout": frozen.version if frozen else None,
        **recipe(pipeline.settings),
        "code": CODE_VERSION,
    }


def merge_day(pipeline: Pipeline, day: str, frozen: holdout.Holdout | None) -> tuple[dict[str, Any], bool]:
    """Builds one day's training set unless it stands there made from equal inputs. Returns its info and whether it is
    new."""
    settings = pipeline.settings
    pipeline.need_table("interactions", day)
    days = [each for each in pipeline.tables.days("interactions") if each <= day]
    versions = {each: (pipeline.tables.info("interactions", each) or {}).get("version") for each in days}
    inputs = made_of(pipeline, versions, frozen)
    version = version_of(**inputs)
    existing = pipeline.artifacts.sound("training_set", day)
    if existing is not None and existing.version == version:
        return existing.info, False
    first = min(days[0], settings.calendar.first_day.isoformat())
    present = set(days)
    missing = [each for each in _days_between(first, day) if each not in present]
    info: dict[str, Any] = {
        "version": version,
        "inputs": inputs,
        "holdout": inputs["holdout"],
        "end_ms": day_start_ms(shift(day, 1), settings.calendar.time_zone),
        "missing_days": missing,
    }
    with pipeline.artifacts.publish("training_set", day, version, info) as folder:
        counts = merge.merge(
            [pipeline.tables.path("interactions", each) for each in days],
            frozen.path if frozen else None,
            settings.actions,
            shift(day, 1 - settings.training.window_days),
            info["end_ms"],
            folder,
        )
        info["counts"] = asdict(counts)
    return info, True


def _days_between(first: str, last: str) -> Iterator[str]:
    day = first
    while day <= last:
        yield day
        day = shift(day, 1)
