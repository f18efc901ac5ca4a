"""A small made-up shop for the models' tests."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recsys_assets.settings import Settings
from recsys_assets.training.events import DAY_MS, Events, Items, TrainingSet

ACTIONS = ["VIEW", "PURCHASE"]
START_MS = 1_760_000_000_000
_NOTHING = np.zeros(0, np.int32)


class Case(NamedTuple):
    """What is asked and what came of it, as evaluation.tasks.Task says it."""

    history: Events
    at_ms: int
    target_rows: np.ndarray
    target_items: np.ndarray
    forbidden_rows: np.ndarray = _NOTHING
    forbidden_items: np.ndarray = _NOTHING


def settings(**sections: dict[str, Any]) -> Settings:
    """Small and quick, whatever the defaults are; `sections` override."""
    small: dict[str, dict[str, Any]] = {
        "als": {"factors": 8, "regularization": 1.0, "alpha": 1.0, "iterations": 8},
        "sequence": {"dimension": 16, "max_length": 12, "epochs": 3, "batch_tokens": 128, "learning_rate": 0.01},
        "recommend": {"candidates": 30, "count": 10},
    }
    for name, values in sections.items():
        small[name] = {**small.get(name, {}), **values}
    return Settings(home=Path("nowhere"), **small)  # type: ignore[arg-type]


def training_set(
    rows: list[tuple[int, int, float]], n_users: int, n_items: int, category: list[int] | None = None, end: float = 0
) -> TrainingSet:
    """Purchases (user, item, day)."""
    table = np.array(rows, np.float64).reshape(-1, 3)
    times = (START_MS + table[:, 2] * DAY_MS).astype(np.int64)
    events = Events.sort(
        table[:, 0].astype(np.int32),
        table[:, 1].astype(np.int32),
        np.ones(len(table), np.int8),
        np.full(len(table), 5, np.float32),
        times,
        n_users,
        n_items,
    )
    end_ms = START_MS + int(end * DAY_MS) if end else int(times.max(initial=START_MS)) + 1
    categories = np.array(category if category is not None else [-1] * n_items, np.int32)
    items = Items(
        [f"i{i}" for i in range(n_items)],
        categories,
        [f"c{i}" for i in range(int(categories.max(initial=-1)) + 1)],
        np.full(n_items, np.nan, np.float32),
    )
    return TrainingSet(events, [f"u{u}" for u in range(n_users)], items, ACTIONS, end_ms)


def shop(n_users: int = 80, n_items: int = 40, days: int = 30, seed: int = 0) -> TrainingSet:
    """Users walk through their half of the catalogue in item order, with jumps and favourites."""
    rng = np.random.default_rng(seed)
    rows = []
    half = n_items // 2
    for user in range(n_users):
        low = half * (user % 2)
        item, favourite = int(rng.integers(half)), int(rng.integers(half))
        for day in np.sort(rng.uniform(0, days, int(rng.integers(6, 20)))):
            rows.append((user, low + item, day))
            item = (item + 1) % half if rng.random() < 0.7 else favourite
    return training_set(rows, n_users, n_items, [i % 5 for i in range(n_items)], end=days)
