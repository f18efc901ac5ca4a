"""Measuring lists against what happened: rows for the `metrics` view and the evidence for promotion."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from recsys_assets.evaluation.metrics import (
    Array,
    coverage,
    diversity,
    hits_matrix,
    paired_bootstrap,
    per_user,
)
from recsys_assets.evaluation.tasks import Task, bought_pairs
from recsys_assets.models.hybrid import HybridModel
from recsys_assets.settings import Settings
from recsys_assets.training.events import DAY_MS, Events, Ints, TrainingSet

CUTOFFS = (5, 10, 20)
MAIN_CUTOFF = 10
HYBRID = "hybrid"
POPULAR = "popularity_7d"
_USERS_AT_ONCE = 10_000

SCHEMA = {
    "split": pl.String,  # next_day, next_day_warm, next_day_cold, validation, test, all_users
    "model": pl.String,
    "metric": pl.String,
    "k": pl.Int32,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "users": pl.Int64,
}


def popular_lists(events: Events, task: Task, n: int, days: int = 7) -> Ints:
    """int32[b, n]: the items with most events in the days before the task, the same for all but for forbidden items.

    The baseline beside every figure: no decay, no weights, no parameters.
    """
    recent = (events.timestamp >= task.at_ms - days * DAY_MS) & (events.timestamp < task.at_ms)
    counts = np.bincount(events.item[recent], minlength=events.n_items)
    order = np.argsort(-counts, kind="stable")
    order = order[: int((counts > 0).sum())].astype(np.int32)
    lists = np.full((len(task), n), -1, np.int32)
    common = order[:n]
    lists[:, : len(common)] = common
    barred_rows = task.forbidden_rows[np.isin(task.forbidden_items, common)]
    starts = np.searchsorted(task.forbidden_rows, [np.arange(len(task)), np.arange(1, len(task) + 1)])
    for row in np.unique(barred_rows):
        barred = task.forbidden_items[starts[0][row] : starts[1][row]]
        rest = order[: n + len(barred)]
        rest = rest[~np.isin(rest, barred)][:n]
        lists[row] = -1
        lists[row, : len(rest)] = rest
    return lists


def model_lists(model: HybridModel, task: Task, n: int) -> dict[str, Ints]:
    """int32[b, n] lists of the hybrid and of each member, from one pass over the scores."""
    found = model.recommend(
        task.history,
        task.at_ms,
        n,
        forbidden=(task.forbidden_rows, task.forbidden_items),
        detail=True,
    )
    return {HYBRID: found.items, **found.lists}


def ndcg_per_user(lists: Ints, task: Task, k: int = MAIN_CUTOFF) -> Array:
    """float64[b] NDCG@k of each user of the task."""
    hits, counts = hits_matrix(lists, task.target_rows, task.target_items, task.history.n_items)
    return per_user(hits, counts, k).ndcg


def metric_rows(lists: Mapping[str, Ints], task: Task, split: str, samples: int, seed: int) -> list[dict[str, Any]]:
    """Rows of `SCHEMA` for every model: all metrics at 5, 10 and 20, and intervals for the NDCG@10.

    `hybrid_minus_this` at 10 is the paired difference of NDCG@10, the hybrid's minus the model's, with its interval.
    """
    rows: list[dict[str, Any]] = []

    def add(model: str, metric: str, k: int, value: float, low: float | None = None, high: float | None = None) -> None:
        rows.append(
            {
                "split": split,
                "model": model,
                "metric": metric,
                "k": k,
                "value": value,
                "low": low,
                "high": high,
                "users": len(task),
            }
        )

    if not len(task):
        return rows
    main = {name: ndcg_per_user(found, task) for name, found in lists.items()}
    for name, found in lists.items():
        hits, counts = hits_matrix(found, task.target_rows, task.target_items, task.history.n_items)
        for k in CUTOFFS:
            means = per_user(hits, counts, k).means()
            for metric, value in means.items():
                if (metric, k) != ("ndcg", MAIN_CUTOFF):
                    add(name, metric, k, value)
            add(name, "coverage", k, coverage(found[:, :k], task.history.n_items))
            add(name, "diversity", k, diversity(found[:, :k], task.history.n_items))
        own = paired_bootstrap(main[name], samples, seed)
        add(name, "ndcg", MAIN_CUTOFF, own.mean, own.low, own.high)
        if name != HYBRID:
            gain = paired_bootstrap(main[HYBRID] - main[name], samples, seed)
            add(name, "hybrid_minus_this", MAIN_CUTOFF, gain.mean, gain.low, gain.high)
    return rows


def all_users_rows(model: HybridModel, data: TrainingSet, settings: Settings) -> list[dict[str, Any]]:
    """Rows of `SCHEMA`, split all_users: diversity and coverage of the lists that everybody with events would be shown
    now, the hybrid's and popularity's. Of more users than `evaluation.diversity_users` so many are drawn, the same each
    time."""
    users = np.unique(data.events.user).astype(np.int32)
    if len(users) > settings.evaluation.diversity_users:
        rng = np.random.default_rng(settings.training.seed)
        users = np.sort(rng.choice(users, settings.evaluation.diversity_users, replace=False))
    lists: dict[str, list[Ints]] = {HYBRID: [], POPULAR: []}
    for start in range(0, len(users), _USERS_AT_ONCE):
        some = users[start : start + _USERS_AT_ONCE]
        history = data.events.of_users(some)
        barred = bought_pairs(history, data.actions, settings)
        none = np.empty(0, np.int32)
        task = Task(some, history, data.end_ms, none, none, *barred)
        lists[HYBRID].append(model.recommend(history, data.end_ms, max(CUTOFFS), forbidden=barred).items)
        lists[POPULAR].append(popular_lists(data.events, task, max(CUTOFFS)))
    measures = {"diversity": diversity, "coverage": coverage}
    return [
        {
            "split": "all_users",
            "model": name,
            "metric": metric,
            "k": k,
            "value": measure(np.concatenate(parts)[:, :k], len(data.items)),
            "low": None,
            "high": None,
            "users": len(users),
        }
        for name, parts in lists.items()
        if parts
        for metric, measure in measures.items()
        for k in CUTOFFS
    ]


def restricted(task: Task, keep: np.ndarray) -> Task:
    """The task for the rows where bool[b] `keep` holds."""
    kept = np.flatnonzero(keep).astype(np.int32)
    renumbered = np.full(len(task), -1, np.int32)
    renumbered[kept] = np.arange(len(kept), dtype=np.int32)
    targets, forbidden = renumbered[task.target_rows] >= 0, renumbered[task.forbidden_rows] >= 0
    return Task(
        task.users[kept],
        task.history.of_users(kept),
        task.at_ms,
        renumbered[task.target_rows[targets]],
        task.target_items[targets],
        renumbered[task.forbidden_rows[forbidden]],
        task.forbidden_items[forbidden],
    )
