from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_assets.evaluation.measure import (
    CUTOFFS,
    HYBRID,
    POPULAR,
    metric_rows,
    ndcg_per_user,
    popular_lists,
    restricted,
)
from recsys_assets.evaluation.tasks import Task, bought_pairs, prediction_task
from recsys_assets.settings import EvaluationSettings, RecommendSettings, Settings
from recsys_assets.training.events import DAY_MS, Events, Items, TrainingSet

ACTIONS = ["VIEW", "PURCHASE"]
N_USERS, N_ITEMS = 4, 6
NOON = 100 * DAY_MS

REMOVE = Settings(home=Path("x"))
KEEP = Settings(home=Path("x"), recommend=RecommendSettings(bought_items="keep"))

# (user, item, action, day of the event relative to the moment of prediction)
rows = st.lists(
    st.tuples(
        st.integers(0, N_USERS - 1), st.integers(0, N_ITEMS - 1), st.integers(0, 1), st.sampled_from([-9, -2, -1, 0, 1])
    ),
    max_size=25,
)
Rows = list[tuple[int, int, int, int]]


def training_set(found: Rows) -> TrainingSet:
    columns = np.array(found, np.int64).reshape(-1, 4)
    events = Events.sort(
        columns[:, 0].astype(np.int32),
        columns[:, 1].astype(np.int32),
        columns[:, 2].astype(np.int8),
        np.ones(len(found), np.float32),
        NOON + columns[:, 3] * DAY_MS,
        N_USERS,
        N_ITEMS,
    )
    items = Items(
        [f"i{n}" for n in range(N_ITEMS)], np.full(N_ITEMS, -1, np.int32), [], np.full(N_ITEMS, np.nan, np.float32)
    )
    return TrainingSet(events, [f"u{n}" for n in range(N_USERS)], items, ACTIONS, NOON + 2 * DAY_MS)


def pairs(task_rows: np.ndarray, items: np.ndarray, task: Task) -> set[tuple[int, int]]:
    found = [(int(task.users[row]), int(item)) for row, item in zip(task_rows, items, strict=True)]
    assert len(set(found)) == len(found), "distinct"
    return set(found)


@given(rows, st.booleans(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_task_is_what_happened_and_only_what_was_known_before(found: Rows, keep: bool, purchases: bool) -> None:
    configured = KEEP if keep else REMOVE
    if purchases:
        configured = configured.model_copy(update={"evaluation": EvaluationSettings(target_actions=["PURCHASE"])})
    task = prediction_task(training_set(found), NOON, NOON + DAY_MS, configured)
    bought = set() if keep else {(u, i) for u, i, a, day in found if a == 1 and day < 0}
    happened = {(u, i) for u, i, a, day in found if day == 0 and (a == 1 or not purchases)} - bought
    assert pairs(task.target_rows, task.target_items, task) == happened
    assert task.users.tolist() == sorted({u for u, _ in happened})
    assert pairs(task.forbidden_rows, task.forbidden_items, task) == {(u, i) for u, i in bought if u in task.users}
    assert (np.diff(task.forbidden_rows) >= 0).all(), "in the order of the rows"
    assert task.history.n_users == len(task)
    history = sorted(
        (int(task.users[row]), int(i), int(a), int(t))
        for row, i, a, t in zip(
            task.history.user, task.history.item, task.history.action, task.history.timestamp, strict=True
        )
    )
    assert history == sorted((u, i, a, NOON + day * DAY_MS) for u, i, a, day in found if day < 0 and u in task.users)


def test_targets_may_be_given(tmp_path: Path) -> None:
    data = training_set([(0, 1, 0, -1), (2, 1, 0, 0)])
    targets = training_set([(0, 3, 0, 0), (0, 3, 1, 0)]).events
    task = prediction_task(data, NOON, NOON + DAY_MS, KEEP, targets)
    assert pairs(task.target_rows, task.target_items, task) == {(0, 3)}


def test_an_action_the_training_set_does_not_have_is_no_target() -> None:
    configured = KEEP.model_copy(update={"evaluation": EvaluationSettings(target_actions=["CLICK", "PURCHASE"])})
    task = prediction_task(training_set([(0, 1, 1, 0), (1, 1, 0, 0)]), NOON, NOON + DAY_MS, configured)
    assert pairs(task.target_rows, task.target_items, task) == {(0, 1)}


def test_bought_actions_decide_what_is_bought() -> None:
    history = training_set([(0, 1, 1, -1), (0, 2, 0, -1), (1, 1, 1, -1), (1, 1, 1, -2)]).events
    both = Settings(home=Path("x"), recommend=RecommendSettings(bought_actions=["PURCHASE", "VIEW", "CLICK"]))
    assert [array.tolist() for array in bought_pairs(history, ACTIONS, REMOVE)] == [[0, 1], [1, 1]]
    assert [array.tolist() for array in bought_pairs(history, ACTIONS, both)] == [[0, 0, 1], [1, 2, 1]]
    assert [array.tolist() for array in bought_pairs(history, ACTIONS, KEEP)] == [[], []]


@given(rows, st.integers(1, 8))
@settings(max_examples=200, deadline=None)
def test_popularity_is_the_count_of_seven_days_without_what_is_forbidden(found: Rows, n: int) -> None:
    data = training_set(found)
    task = prediction_task(data, NOON, NOON + DAY_MS, REMOVE)
    counts = [sum(i == item and -7 <= day < 0 for _, i, _, day in found) for item in range(N_ITEMS)]
    order = sorted((item for item in range(N_ITEMS) if counts[item]), key=lambda item: (-counts[item], item))
    barred = pairs(task.forbidden_rows, task.forbidden_items, task)
    expected = []
    for user in task.users:
        best = [item for item in order if (int(user), item) not in barred][:n]
        expected.append(best + [-1] * (n - len(best)))
    assert popular_lists(data.events, task, n).tolist() == expected


def example() -> tuple[TrainingSet, Task]:
    data = training_set(
        [(0, 0, 0, -1), (1, 1, 1, -1), (2, 2, 0, -9), (0, 1, 0, 0), (0, 2, 0, 0), (1, 3, 0, 0), (3, 4, 1, 0)]
    )
    return data, prediction_task(data, NOON, NOON + DAY_MS, REMOVE)


def test_restricting_a_task_keeps_each_users_own() -> None:
    _, task = example()
    keep = np.array([False, True, True])
    part = restricted(task, keep)
    assert part.users.tolist() == [1, 3]
    assert pairs(part.target_rows, part.target_items, part) == {(1, 3), (3, 4)}
    assert pairs(part.forbidden_rows, part.forbidden_items, part) == {(1, 1)}
    assert part.history.item.tolist() == [1]
    assert np.diff(part.history.offsets).tolist() == [1, 0]


def test_rows_of_metrics_hold_every_figure_once() -> None:
    _, task = example()
    lists = {
        HYBRID: np.array([[1, 2, 0], [3, 0, 2], [0, 1, 4]], np.int32),
        POPULAR: np.array([[0, 1, -1], [0, -1, -1], [0, 1, -1]], np.int32),
    }
    found = metric_rows(lists, task, "next_day", 100, 1)
    keys = [(row["model"], row["metric"], row["k"]) for row in found]
    assert len(set(keys)) == len(keys)
    assert {k for _, _, k in keys} == set(CUTOFFS)
    value = {key: row["value"] for key, row in zip(keys, found, strict=True)}
    expected = [1.0, 1.0, 1 / np.log2(4)]
    assert ndcg_per_user(lists[HYBRID], task).tolist() == pytest.approx(expected)
    assert value[(HYBRID, "ndcg", 10)] == pytest.approx(np.mean(expected))
    assert value[(HYBRID, "coverage", 5)] == 5 / 6
    popular = ndcg_per_user(lists[POPULAR], task)
    assert value[(POPULAR, "hybrid_minus_this", 10)] == pytest.approx(np.mean(expected - popular))
    assert {row["users"] for row in found} == {3}
    assert [row["model"] for row in found if row["metric"] == "hybrid_minus_this"] == [POPULAR]
    assert all(
        (row["low"] is None) == (row["metric"] not in ("ndcg", "hybrid_minus_this") or row["k"] != 10) for row in found
    )


def test_a_task_without_users_has_no_rows() -> None:
    empty = replace(example()[1], users=np.empty(0, np.int32))
    assert metric_rows({HYBRID: np.empty((0, 3), np.int32)}, empty, "next_day", 100, 1) == []
