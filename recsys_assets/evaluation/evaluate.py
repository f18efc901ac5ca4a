"""A day's evaluation and the comparison with the champion, over a store."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from recsys_assets.days import day_start_ms, shift
from recsys_assets.evaluation.measure import (
    HYBRID,
    MAIN_CUTOFF,
    POPULAR,
    SCHEMA,
    all_users_rows,
    metric_rows,
    model_lists,
    ndcg_per_user,
    popular_lists,
    restricted,
)
from recsys_assets.evaluation.metrics import Array, coverage, paired_bootstrap
from recsys_assets.evaluation.promotion import GATE_LEVEL, Evidence, verdict
from recsys_assets.evaluation.tasks import Task, bought_pairs, prediction_task
from recsys_assets.models.base import Log
from recsys_assets.models.hybrid import HybridModel, Recommendations
from recsys_assets.pipeline import InputError, Pipeline
from recsys_assets.serving.alignment import in_model_space
from recsys_assets.settings import Settings
from recsys_assets.storage.artifacts import Artifact, ArtifactError
from recsys_assets.training.blend import load_hybrid, load_measured
from recsys_assets.training.events import Events, Ints, TrainingSet
from recsys_assets.training.training_set import read_training_set

CODE_VERSION = "2"
_LENGTH = 20


@dataclass(frozen=True)
class Sources:
    """What a day is measured with: its hybrid and the training set that hybrid was made of."""

    hybrid: Artifact
    data: TrainingSet
    day: str
    start_ms: int


def sources(pipeline: Pipeline, day: str) -> Sources:
    """Raises ArtifactError or InputError where something is missing or does not belong together."""
    hybrid = pipeline.artifacts.need("hybrid_model", day)
    training = pipeline.artifacts.need("training_set", day)
    if hybrid.info["training_set"] != training.version:
        raise InputError(
            f"hybrid_model for {day} was made from another training set than the present one. "
            f"Materialize the members and hybrid_model for {day} again."
        )
    start = day_start_ms(day, pipeline.settings.calendar.time_zone)
    return Sources(hybrid, read_training_set(training), day, start)


def next_day_task(found: Sources, pipeline: Pipeline) -> Task:
    """The day itself, which the measured models have not seen. Of the first day nothing could have been predicted: its
    task is empty."""
    known = bool((found.data.events.timestamp < found.start_ms).any())
    end_ms = found.data.end_ms if known else found.start_ms
    return prediction_task(found.data, found.start_ms, end_ms, pipeline.settings)


def evaluate_day(pipeline: Pipeline, found: Sources, log: Log) -> pl.DataFrame:
    """The metric rows of a day: the next day, its warm and cold users, and the two frozen hold-outs."""
    settings = pipeline.settings
    samples, seed = settings.evaluation.bootstrap_samples, settings.training.seed
    rows: list[dict[str, Any]] = []
    task = next_day_task(found, pipeline)
    log(f"{found.day}: {len(task)} users and {len(task.target_items)} targets on the unseen day")
    if len(task):
        measured = load_measured(pipeline, found.hybrid)
        lists = model_lists(measured, task, _LENGTH)
        lists[POPULAR] = popular_lists(found.data.events, task, _LENGTH)
        rows += metric_rows(lists, task, "next_day", samples, seed)
        warm = np.diff(task.history.offsets) > 0
        for split, keep in (("next_day_warm", warm), ("next_day_cold", ~warm)):
            if keep.any() and not keep.all():
                part = {name: found_lists[keep] for name, found_lists in lists.items()}
                rows += metric_rows(part, restricted(task, keep), split, samples, seed)
    final, _ = load_hybrid(found.hybrid)
    rows += all_users_rows(final, found.data, settings)
    for split, tasks in holdout_tasks(pipeline, found):
        log(f"{found.day}: frozen hold-out {split}")
        rows += _pooled_rows(final, tasks, found.data.events, split, samples, seed)
    return pl.DataFrame(rows, schema=SCHEMA)


def holdout_tasks(pipeline: Pipeline, found: Sources) -> Iterator[tuple[str, list[Task]]]:
    """For each split its tasks, one a withheld day: users see only what they did before that day.

    The models have seen later days of other users, so these figures compare models with one another, not with the
    next day's. A hold-out whose days lie after the training set is left out.
    """
    frozen = pipeline.holdouts.current()
    if frozen is None:
        return
    zone = pipeline.settings.calendar.time_zone
    frame = frozen.read().filter(pl.col("day") <= found.day)
    users = {user: position for position, user in enumerate(found.data.users)}
    items = {item: position for position, item in enumerate(found.data.items.ids)}
    for (split,), part in frame.group_by("split", maintain_order=True):
        tasks = []
        for (day,), events in part.group_by("day", maintain_order=True):
            known = [
                (users[u], items[i], found.data.actions.index(a))
                for u, i, a in events.select("user_id", "item_id", "action").iter_rows()
                if u in users and i in items and a in found.data.actions
            ]
            if not known:
                continue
            user, item, action = (np.array(column) for column in zip(*known, strict=True))
            n = len(known)
            start = day_start_ms(str(day), zone)
            targets = Events.sort(
                user,
                item,
                action.astype(np.int8),
                np.ones(n, np.float32),
                np.full(n, start),
                found.data.events.n_users,
                found.data.events.n_items,
            )
            end = day_start_ms(shift(str(day), 1), zone)
            task = prediction_task(found.data, start, end, pipeline.settings, targets)
            if len(task):
                tasks.append(task)
        if tasks:
            yield str(split), tasks


def _pooled_rows(
    model: HybridModel, tasks: list[Task], events: Events, split: str, samples: int, seed: int
) -> list[dict[str, Any]]:
    """Metric rows over several tasks as if they were one: lists are made a task at a time, then put end to end."""
    lists: dict[str, list[Ints]] = {}
    for task in tasks:
        for name, found in {
            **model_lists(model, task, _LENGTH),
            POPULAR: popular_lists(events, task, _LENGTH),
        }.items():
            lists.setdefault(name, []).append(found)
    shift_by = np.cumsum([0] + [len(task) for task in tasks])[:-1]
    pooled = Task(
        users=np.concatenate([task.users for task in tasks]),
        history=Events.empty(sum(len(task) for task in tasks), events.n_items),
        at_ms=tasks[-1].at_ms,
        target_rows=np.concatenate([task.target_rows + n for task, n in zip(tasks, shift_by, strict=True)]),
        target_items=np.concatenate([task.target_items for task in tasks]),
        forbidden_rows=np.empty(0, np.int32),
        forbidden_items=np.empty(0, np.int32),
    )
    together = {name: np.concatenate(parts) for name, parts in lists.items()}
    return metric_rows(together, pooled, split, samples, seed)


def gather_evidence(pipeline: Pipeline, found: Sources) -> Evidence:
    """Measures the challenger of a day, and the champion beside it on the same users, on days neither has seen."""
    settings = pipeline.settings
    samples, seed = settings.evaluation.bootstrap_samples, settings.training.seed
    champion = pipeline.champion.read()
    gone = pipeline.champion.rolled_back().get(found.hybrid.version)
    task = next_day_task(found, pipeline)
    evidence: dict[str, Any] = {
        "day": found.day,
        "version": found.hybrid.version,
        "users": len(task),
        "ndcg": 0.0,
        "over_popularity": None,
        "coverage": 0.0,
        "champion_day": champion["day"] if champion else None,
        "champion_version": champion["version"] if champion else None,
        "newest_champion_day": max((move["day"] for move in pipeline.champion.timeline()), default=None),
        "rolled_back": f"on {gone['since'][:10]} ({gone['reason']})" if gone else None,
    }
    final, _ = load_hybrid(found.hybrid)
    if not len(task):
        return Evidence(**evidence, failed_checks=unsound(final))
    measured = load_measured(pipeline, found.hybrid)
    shown, served = _shown(measured, task), _shown(final, task)
    own = ndcg_per_user(shown.items, task)
    popular = ndcg_per_user(popular_lists(found.data.events, task, _LENGTH), task)
    evidence |= {
        "ndcg": float(own.mean()),
        "over_popularity": paired_bootstrap(own - popular, samples, seed),
        "coverage": coverage(shown.items[:, :MAIN_CUTOFF], task.history.n_items),
        "failed_checks": unsound(final, shown, served),
    }
    before = _champion_ndcg(pipeline, champion, found, task) if champion else None
    if before is None or champion is None:
        return Evidence(**evidence)
    theirs = before[HYBRID]
    evidence |= {
        "champion_ndcg": float(theirs.mean()),
        "over_champion": paired_bootstrap(own - theirs, samples, seed, GATE_LEVEL),
        "failed_checks": evidence["failed_checks"] + spoiled(_ndcg_of_each(served, task), before, settings),
    }
    ours, others = [own], [theirs]
    oldest = max(shift(champion["day"], 1), shift(found.day, 1 - settings.promotion.pooled_days))
    for earlier in lineage(pipeline, found.hybrid, oldest):
        start = day_start_ms(earlier.info["day"], settings.calendar.time_zone)
        end = day_start_ms(shift(earlier.info["day"], 1), settings.calendar.time_zone)
        past = prediction_task(found.data, start, end, settings)
        against = _champion_ndcg(pipeline, champion, found, past) if len(past) else None
        if against is not None:
            ours.append(ndcg_per_user(_shown(load_measured(pipeline, earlier), past).items, past))
            others.append(against[HYBRID])
    if len(ours) > 1:
        together, their_all = np.concatenate(ours), np.concatenate(others)
        evidence |= {
            "pooled_days": len(ours),
            "pooled_champion_ndcg": float(their_all.mean()),
            "over_champion_pooled": paired_bootstrap(together - their_all, samples, seed, GATE_LEVEL),
        }
    return Evidence(**evidence)


def lineage(pipeline: Pipeline, hybrid: Artifact, oldest: str) -> Iterator[Artifact]:
    """The hybrids of the days before, as far back as `oldest`, that this one was updated from, newest first.

    They are earlier states of the same model, and each was measured on a day it had not seen. A full refit ends the
    line: what an earlier model did is no evidence about one that was learned anew.
    """
    while True:
        day = hybrid.info["day"]
        before = pipeline.artifacts.sound("hybrid_model", shift(day, -1)) if day > oldest else None
        if before is None:
            return
        members = {
            name: pipeline.artifacts.at(f"{name}_model", day, version)
            for name, version in hybrid.info["inputs"]["members"].items()
        }
        earlier = before.info["inputs"]["members"]
        parents = {name: member.info["parent"] for name, member in members.items() if member and member.info["parent"]}
        if not parents or any(parent["version"] != earlier.get(name) for name, parent in parents.items()):
            return
        if any(
            pipeline.artifacts.at(f"{name}_model", before.info["day"], each) is None for name, each in earlier.items()
        ):
            return  # not kept: its state before that day is gone
        yield before
        hybrid = before


def unsound(model: HybridModel, *shown: Recommendations) -> tuple[str, ...]:
    """What is wrong with a model whatever it is compared with: numbers that are none, lists that repeat or are empty.

    Args:
        model: as it would be served.
        shown: lists on the unseen day, as it was before that day and as it would be served; none if nobody is to be
            shown any.
    """
    problems = [
        f"the member {name} holds numbers that are not finite"
        for name, member in model.members.items()
        if any(np.isnan(array).any() for array in member.state()[0].values() if array.dtype.kind == "f")
    ]
    for found in shown:
        if not np.isfinite(found.scores).all():
            problems.append("scores that are not finite")
        ordered = np.sort(found.items, axis=1)
        if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
            problems.append("lists that show an item twice")
        if empty := int((found.items[:, :1] < 0).sum()):
            problems.append(f"empty lists for {empty} of {len(found.items)} users")
    return tuple(dict.fromkeys(problems))


def spoiled(served: Mapping[str, Array], before: Mapping[str, Array], settings: Settings) -> tuple[str, ...]:
    """Which parts of a model were spoiled by its training: each alone ranks much worse than the champion's, on a day
    that it has learned and the champion's has not.

    What is compared on an unseen day shows less than this. A ranker makes good lists of what bad members propose, and
    an update is measured as it was before it learned the day, which is what the champion is.

    Args:
        served: by name, float64[b] NDCG@10 of the challenger, as it would be served, and of each of its members alone.
        before: the same of the champion. Names that only one of the two has are not compared.
    """
    samples, seed = settings.evaluation.bootstrap_samples, settings.training.seed
    allowed = settings.promotion.member_tolerance
    problems = []
    for name in [name for name in served if name in before]:
        had, change = float(before[name].mean()), served[name] - before[name]
        if verdict(paired_bootstrap(change, samples, seed, GATE_LEVEL), had, allowed) == "worse":
            part = "the whole ranking" if name == HYBRID else f"the member {name} alone"
            problems.append(
                f"{part} reaches NDCG@10 {served[name].mean():.4f} on a day it has learned, where the champion's, "
                f"which has not, reaches {had:.4f}: a loss above promotion.member_tolerance, {allowed:.0%}"
            )
    return tuple(problems)


def _shown(model: HybridModel, task: Task) -> Recommendations:
    """The lists of a model, and of each of its members alone."""
    barred = (task.forbidden_rows, task.forbidden_items)
    return model.recommend(task.history, task.at_ms, _LENGTH, forbidden=barred, detail=True)


def _ndcg_of_each(shown: Recommendations, task: Task) -> dict[str, Array]:
    """float64[b] NDCG@10 by name: `HYBRID`, and each member alone."""
    return {name: ndcg_per_user(lists, task) for name, lists in {HYBRID: shown.items, **shown.lists}.items()}


def _champion_ndcg(pipeline: Pipeline, champion: dict[str, Any], found: Sources, task: Task) -> dict[str, Array] | None:
    """float64[b] NDCG@10 of the champion, and of each of its members alone, on a task; None where it has seen the day
    or cannot be read.

    On its own day the champion is measured as it was before that day, as the challenger is.
    """
    if champion["day"] > found.day:
        return None
    artifact = pipeline.artifacts.at("hybrid_model", champion["day"], champion["version"])
    if artifact is None:
        return None
    # A champion that is damaged, or that an older program made, must not hold the way for ever.
    with contextlib.suppress(ArtifactError):
        artifact.verify()
        model, model_ids = load_hybrid(artifact)
        if champion["day"] == found.day:
            model = load_measured(pipeline, artifact)
        space = in_model_space(found.data, model_ids)
        history = space.events.before(task.at_ms).of_users(task.users)
        forbidden = bought_pairs(history, found.data.actions, pipeline.settings)
        shown = model.recommend(history, task.at_ms, _LENGTH, forbidden=forbidden, detail=True)
        translated = {name: space.to_data(lists) for name, lists in shown.lists.items()}
        return _ndcg_of_each(replace(shown, items=space.to_data(shown.items), lists=translated), task)
    return None
