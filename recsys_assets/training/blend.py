"""Making a day's hybrid of its members: the ranking weights, and one folder that holds all it takes to serve."""

import time

import pyarrow.parquet as pq

from recsys_assets.days import day_start_ms, shift
from recsys_assets.evaluation.tasks import Task, prediction_task
from recsys_assets.models.base import Log
from recsys_assets.models.hybrid import HybridModel, learn_weights
from recsys_assets.pipeline import Pipeline
from recsys_assets.settings import Settings
from recsys_assets.storage.artifacts import Artifact, ArtifactError, link, link_tree, version_of
from recsys_assets.training import members
from recsys_assets.training.events import TrainingSet
from recsys_assets.training.members import load_member, member_artifacts
from recsys_assets.training.training_set import read_training_set

CODE_VERSION = "1"


def validation_tasks(data: TrainingSet, day: str, days: int, settings: Settings) -> list[Task]:
    """A task for each of the validation days before `day`, histories rolled forward to each."""
    zone = settings.calendar.time_zone
    tasks = []
    for back in range(days, 0, -1):
        start, end = day_start_ms(shift(day, -back), zone), day_start_ms(shift(day, 1 - back), zone)
        task = prediction_task(data, start, end, settings)
        if len(task):
            tasks.append(task)
    return tasks


def recipe(settings: Settings) -> str:
    """A version of the settings that matter to the ranking."""
    return version_of(
        recommend=settings.recommend.model_dump(),
        training=settings.training.model_dump(exclude={"full_refit_days"}),
        evaluation=settings.evaluation.model_dump(),
    )


def blend_day(pipeline: Pipeline, day: str, log: Log) -> tuple[Artifact, bool]:
    """Publishes the hybrid of a day: weights, and the members' final states, whole in one folder."""
    settings = pipeline.settings
    found = member_artifacts(pipeline, day)
    inputs = {
        "members": {name: artifact.version for name, artifact in found.items()},
        "settings": recipe(settings),
        "code": CODE_VERSION,
    }
    existing = pipeline.artifacts.sound("hybrid_model", day)
    if existing is not None and existing.info["inputs"] == inputs:
        return existing, False
    started = time.monotonic()
    source = pipeline.artifacts.need("training_set", day)
    data = read_training_set(source)
    days = min(artifact.info["validation_days"] for artifact in found.values())
    updated = any(artifact.info["mode"] == "update" for artifact in found.values())
    parent = pipeline.artifacts.current("hybrid_model", shift(day, -1)) if updated else None
    if parent is not None:
        weights, origin = dict(parent.info["weights"]), f"kept from {parent.info['day']} (learned at the last refit)"
    else:
        tasks = [] if updated else validation_tasks(data, day, days, settings)
        # Without tasks only the names matter: the default weights are taken.
        state = "validation" if tasks else "final"
        validation = {name: load_member(name, artifact.path / state) for name, artifact in found.items()}
        weights = learn_weights(validation, tasks, settings, log)
        origin = f"learned on {len(tasks)} days before {day}" if tasks else "defaults: no days to learn them on"
    info = {
        "day": day,
        "inputs": inputs,
        "training_set": source.version,
        "weights": weights,
        "weights_origin": origin,
        "parent": {"day": parent.info["day"], "version": parent.version} if parent else None,
        "candidates": settings.recommend.candidates,
        "n_items": len(data.items),
        "member_code": members.CODE_VERSION,
        "seconds": round(time.monotonic() - started, 2),
    }
    version = version_of(inputs=inputs, weights=weights)
    with pipeline.artifacts.publish("hybrid_model", day, version, info) as folder:
        for name, artifact in found.items():
            link_tree(artifact.path / "final", folder / "members" / name)
        for name in ("items.parquet", "categories.parquet", "actions.parquet"):
            link(source.path / name, folder / name)
    return pipeline.artifacts.need("hybrid_model", day), True


def load_hybrid(artifact: Artifact) -> tuple[HybridModel, list[str]]:
    """A published hybrid, and the item ids its positions stand for.

    Raises:
        ArtifactError: another version of this program made it, whose models this one cannot read.
    """
    if artifact.info.get("member_code") != members.CODE_VERSION:
        raise ArtifactError(
            f"hybrid_model for {artifact.info['day']} ({artifact.version}) was made by another version of this "
            "program. Run the job `train` for the newest day to make a model that this version can read."
        )
    made = {name: load_member(name, artifact.path / "members" / name) for name in artifact.info["inputs"]["members"]}
    ids = pq.read_table(artifact.path / "items.parquet", columns=["item_id"]).column(0).to_pylist()
    return HybridModel(made, artifact.info["weights"], artifact.info["candidates"]), ids


def load_measured(pipeline: Pipeline, artifact: Artifact) -> HybridModel:
    """The hybrid as it was before its newest day: what is measured on that day.

    Raises:
        ArtifactError: a member it was made of has been built again since.
    """
    day = artifact.info["day"]
    made = {}
    for name, version in artifact.info["inputs"]["members"].items():
        source = pipeline.artifacts.at(f"{name}_model", day, version)
        if source is None:
            raise ArtifactError(
                f"{name}_model for {day} was built again after hybrid_model. Materialize hybrid_model for {day} again."
            )
        made[name] = load_member(name, source.path / "test")
    return HybridModel(made, artifact.info["weights"], artifact.info["candidates"])
