"""What a list is asked to predict: everything users do in a span of time, given only what they did before it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recsys_assets.settings import Settings
from recsys_assets.training.events import Events, Ints, TrainingSet


@dataclass(frozen=True)
class Task:
    """Next-interaction prediction for b users at one moment.

    Attributes:
        users: int32[b], positions in the training set's user map; row r of everything below is users[r].
        history: what they did before `at_ms`, renumbered to rows 0..b-1. Rows without events are new users.
        at_ms: the moment the lists are for (milliseconds UTC).
        target_rows, target_items: int32[t], distinct (row, item) pairs that happened; every row has at least one.
        forbidden_rows, forbidden_items: int32[f], distinct pairs that must not be recommended (bought before, where
            bought items are removed); disjoint from the targets.
    """

    users: Ints
    history: Events
    at_ms: int
    target_rows: Ints
    target_items: Ints
    forbidden_rows: Ints
    forbidden_items: Ints

    def __len__(self) -> int:
        return len(self.users)


def task_settings(settings: Settings) -> dict[str, Any]:
    """The settings that a task is made by: whoever learns from tasks or is measured on them depends on these."""
    return {**barring_settings(settings), "target_actions": sorted(settings.evaluation.target_actions)}


def barring_settings(settings: Settings) -> dict[str, Any]:
    """The settings by which bought items stay out of lists."""
    own = settings.recommend
    return {"never_again_after": sorted(own.bought_actions) if own.bought_items == "remove" else []}


def bought_pairs(history: Events, actions: Sequence[str], settings: Settings) -> tuple[Ints, Ints]:
    """The distinct (row, item) pairs that may not be recommended again; empty where bought items are kept."""
    if settings.recommend.bought_items == "keep":
        return np.empty(0, np.int32), np.empty(0, np.int32)
    bought = [actions.index(name) for name in settings.recommend.bought_actions if name in actions]
    mask = np.isin(history.action, bought)
    return _distinct(history.user[mask], history.item[mask], history.n_items)


def prediction_task(
    data: TrainingSet, start_ms: int, end_ms: int, settings: Settings, targets: Events | None = None
) -> Task:
    """The task of predicting [start_ms, end_ms) from everything before it.

    Args:
        targets: what is to be predicted, in positions of `data`; by default the events of `data` in the span. (A frozen
            hold-out is not in the training set and is passed in.)
    """
    if targets is None:
        span = (data.events.timestamp >= start_ms) & (data.events.timestamp < end_ms)
        targets = data.events.select(span)
    if settings.evaluation.target_actions:
        wanted = [data.actions.index(name) for name in settings.evaluation.target_actions if name in data.actions]
        targets = targets.select(np.isin(targets.action, wanted))
    users = np.unique(targets.user).astype(np.int32)
    history = data.events.before(start_ms).of_users(users)
    rows, items = _distinct(np.searchsorted(users, targets.user), targets.item, data.events.n_items)
    forbidden_rows, forbidden_items = bought_pairs(history, data.actions, settings)
    # A purchase of something the setting removes from lists cannot be predicted: it is no target.
    code = data.events.n_items
    possible = ~np.isin(rows.astype(np.int64) * code + items, forbidden_rows.astype(np.int64) * code + forbidden_items)
    rows, items = rows[possible], items[possible]
    kept = np.unique(rows)
    if len(kept) < len(users):
        renumbered = np.full(len(users), -1, np.int32)
        renumbered[kept] = np.arange(len(kept), dtype=np.int32)
        users, history, rows = users[kept], history.of_users(kept.astype(np.int32)), renumbered[rows]
        stays = renumbered[forbidden_rows] >= 0
        forbidden_rows, forbidden_items = renumbered[forbidden_rows[stays]], forbidden_items[stays]
    return Task(users, history, start_ms, rows, items, forbidden_rows, forbidden_items)


def _distinct(rows: np.ndarray, items: np.ndarray, n_items: int) -> tuple[Ints, Ints]:
    pairs = np.unique(rows.astype(np.int64) * max(n_items, 1) + items)
    return (pairs // max(n_items, 1)).astype(np.int32), (pairs % max(n_items, 1)).astype(np.int32)
