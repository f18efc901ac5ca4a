"""Making a day's hybrid of its members: the ranking weights, and one folder that holds all it takes to serve."""

import time
from collections.abc import Iterable, Sequence

import pyarrow.parquet as pq

from recsys_assets.days import day_start_ms, shift
from recsys_assets.evaluation.tasks import Task, prediction_task, task_settings
from recsys_assets.models.base import Log
from recsys_assets.models.hybrid import RANKER, HybridModel, Members, learn_weights
from recsys_assets.models.ranker import Ranker
from recsys_assets.pipeline import Pipeline
from recsys_assets.settings import Settings
from recsys_assets.storage.artifacts import Artifact, ArtifactError, link, link_tree, load_state, save_state, version_of
from recsys_assets.training import members
from recsys_assets.training.events import TrainingSet
from recsys_assets.training.members import load_member, member_artifacts
from recsys_assets.training.training_set import read_training_set

CODE_VERSION = "3"


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
        ranker=settings.ranker.model_dump(),
        candidates=settings.recommend.candidates,
        training=settings.training.model_dump(exclude={"full_refit_days"}),
        **task_settings(settings),
    )


def learn_ranking(
    validation: Members, data: TrainingSet, lessons: Sequence[Task], tasks: Sequence[Task], settings: Settings, log: Log
) -> tuple[dict[str, float], Ranker | None]:
    """The ranker, learned on the days `lessons`, and the weights, learned on the later days `tasks` for members that
    have seen nothing of these. No ranker where it gets weight 0."""
    ranker = Ranker.learn(data, lessons, settings, log) if tasks else None
    of_days = [ranker.at(data.before(task.at_ms)) for task in tasks] if ranker is not None else []
    weights = learn_weights(validation, tasks, settings, log, of_days)
    return weights, ranker if weights.get(RANKER) else None


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
    if existing is not None and existing.info["inputs"] == inputs and same_ranking(pipeline, existing):
        return existing, False
    started = time.monotonic()
    source = pipeline.artifacts.need("training_set", day)
    data = read_training_set(source)
    days = min(artifact.info["validation_days"] for artifact in found.values())
    updated = _updated(found.values())
    parent = pipeline.artifacts.current("hybrid_model", shift(day, -1)) if updated else None
    if parent is not None:
        weights, origin = dict(parent.info["weights"]), f"kept from {parent.info['day']} (learned at the last refit)"
        ranker = _load_ranker(parent, "final")
    else:
        days = 0 if updated else days
        tasks = validation_tasks(data, day, days, settings)
        lessons = validation_tasks(data, shift(day, -days), settings.ranker.learn_days, settings) if tasks else []
        # Without tasks only the names matter: the default weights are taken.
        state = "validation" if tasks else "final"
        validation = {name: load_member(name, artifact.path / state) for name, artifact in found.items()}
        weights, ranker = learn_ranking(validation, data, lessons, tasks, settings, log)
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
    version = version_of(inputs=inputs, weights=weights, ranker=ranker.digest() if ranker is not None else None)
    with pipeline.artifacts.publish("hybrid_model", day, version, info) as folder:
        for name, artifact in found.items():
            link_tree(artifact.path / "final", folder / "members" / name)
        if ranker is not None:
            seen = data.before(day_start_ms(day, settings.calendar.time_zone))
            save_state(folder / RANKER / "test", *ranker.at(seen).state())
            save_state(folder / RANKER / "final", *ranker.at(data).state())
        for name in ("items.parquet", "categories.parquet", "actions.parquet"):
            link(source.path / name, folder / name)
    return pipeline.artifacts.need("hybrid_model", day), True


def _updated(made_of: Iterable[Artifact]) -> bool:
    return any(artifact.info["mode"] == "update" for artifact in made_of)


def same_ranking(pipeline: Pipeline, artifact: Artifact) -> bool:
    """Whether the ranking that a hybrid of updated members keeps still is the day before's, if that is kept."""
    day, parent = artifact.info["day"], artifact.info["parent"]
    members = {
        name: pipeline.artifacts.at(f"{name}_model", day, version)
        for name, version in artifact.info["inputs"]["members"].items()
    }
    if not _updated(member for member in members.values() if member is not None):
        return True
    now = pipeline.artifacts.current("hybrid_model", shift(day, -1))
    return now is None or (parent is not None and now.version == parent["version"])


def _load_ranker(artifact: Artifact, state: str) -> Ranker | None:
    """The ranker in the `test` or the `final` state; None where it did not earn a place."""
    folder = artifact.path / RANKER / state
    return Ranker.from_state(*load_state(folder)) if folder.exists() else None


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
    ranker = _load_ranker(artifact, "final")
    return HybridModel(made, artifact.info["weights"], artifact.info["candidates"], ranker), ids


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
    ranker = _load_ranker(artifact, "test")
    return HybridModel(made, artifact.info["weights"], artifact.info["candidates"], ranker)
