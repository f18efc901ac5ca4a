import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_assets.evaluation.metrics import coverage, diversity, hits_matrix, paired_bootstrap, per_user, top

N_ITEMS = 12


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[list[int]], list[set[int]], int]:
    """Lists (-1 for an empty place, anywhere at the end), targets of each, and a cut-off."""
    rows = draw(st.integers(1, 4))
    width = draw(st.integers(0, 8))
    lists, targets = [], []
    for _ in range(rows):
        found = draw(st.lists(st.integers(0, N_ITEMS - 1), max_size=width, unique=True))
        lists.append(found + [-1] * (width - len(found)))
        targets.append(draw(st.sets(st.integers(0, N_ITEMS - 1), min_size=1)))
    return lists, targets, draw(st.integers(1, 10))


def slow(found: list[int], targets: set[int], k: int) -> dict[str, float]:
    """The textbook, one user and one place at a time."""
    hits, dcg, precisions, recalls = 0, 0.0, 0.0, 0.0
    for rank in range(1, k + 1):
        if rank <= len(found) and found[rank - 1] in targets:
            hits += 1
            dcg += 1 / math.log2(rank + 1)
            precisions += hits / rank
        recalls += hits / len(targets)
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(targets)) + 1))
    return {
        "precision": hits / k,
        "recall": hits / len(targets),
        "hit_rate": float(hits > 0),
        "average_precision": precisions / min(k, len(targets)),
        "average_recall": recalls / k,
        "ndcg": dcg / ideal,
    }


@given(cases())
@settings(max_examples=200, deadline=None)
def test_metrics_are_those_of_the_textbook(case: tuple[list[list[int]], list[set[int]], int]) -> None:
    lists, targets, k = case
    pairs = [(row, item) for row, items in enumerate(targets) for item in items]
    rows, items = np.array(pairs, np.int32).T
    matrix = np.array(lists, np.int32).reshape(len(lists), -1)
    hits, counts = hits_matrix(matrix, rows, items, N_ITEMS)
    assert counts.tolist() == [len(each) for each in targets]
    found = per_user(hits, counts, k)
    expected = [slow(each, wanted, k) for each, wanted in zip(lists, targets, strict=True)]
    for name, values in vars(found).items():
        np.testing.assert_allclose(values, [row[name] for row in expected], atol=1e-12, err_msg=name)
        assert found.means()[name] == pytest.approx(sum(row[name] for row in expected) / len(expected))
    assert coverage(matrix, N_ITEMS) == len({i for each in lists for i in each if i >= 0}) / N_ITEMS


@given(st.integers(1, 6), st.integers(1, 5), st.randoms())
def test_diversity_is_the_mean_over_all_pairs(users: int, k: int, chance: Any) -> None:
    lists = [chance.sample(range(N_ITEMS), k) for _ in range(users)]
    lists = [[i if chance.random() < 0.8 else -1 for i in each] for each in lists]
    pairs = list(itertools.combinations(lists, 2))
    apart = [1 - len({*a} & {*b} - {-1}) / k for a, b in pairs]
    expected = sum(apart) / len(apart) if apart else 0
    assert diversity(np.array(lists, np.int32), N_ITEMS) == pytest.approx(expected)


def test_an_empty_place_is_no_hit_of_the_neighbours_last_item() -> None:
    hits, counts = hits_matrix(
        np.array([[0], [-1]], np.int32), np.array([0, 1], np.int32), np.array([3, 0], np.int32), n_items=4
    )
    assert not hits.any()
    assert counts.tolist() == [1, 1]


def test_a_target_named_twice_counts_once() -> None:
    _, counts = hits_matrix(np.array([[0]], np.int32), np.array([0, 0], np.int32), np.array([1, 1], np.int32), 4)
    assert counts.tolist() == [1]


def test_a_row_without_targets_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one target"):
        per_user(np.zeros((1, 3), bool), np.zeros(1, np.int32), 3)


def test_no_users_no_items() -> None:
    assert per_user(np.zeros((0, 3), bool), np.zeros(0, np.int32), 3).means()["ndcg"] == 0
    assert coverage(np.full((2, 3), -1, np.int32), 0) == 0


@given(
    st.integers(1, 4).flatmap(
        lambda rows: st.integers(1, 20).flatmap(
            lambda columns: st.lists(
                st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 1.0]), min_size=columns, max_size=columns),
                min_size=rows,
                max_size=rows,
            )
        )
    ),
    st.integers(0, 25),
)
@settings(max_examples=300, deadline=None)
def test_top_is_the_stable_order_cut(scores: list[list[float]], n: int) -> None:
    table = np.array(scores, np.float32)
    expected = [sorted(range(len(row)), key=lambda column: (-row[column], column))[:n] for row in scores]
    found = top(table, n)
    assert found.dtype == np.int32
    assert found.tolist() == expected


def test_bootstrap_of_a_constant_and_of_nothing() -> None:
    same = paired_bootstrap(np.full(50, 0.25))
    assert (same.mean, same.low, same.high) == (0.25, 0.25, 0.25)
    nothing = paired_bootstrap(np.zeros(0))
    assert (nothing.mean, nothing.low, nothing.high) == (0, 0, 0)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=80), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_bootstrap_encloses_the_mean_and_turns_with_the_sign(values: list[float], seed: int) -> None:
    difference = np.array(values)
    found = paired_bootstrap(difference, 200, seed)
    assert found == paired_bootstrap(difference, 200, seed), "seeded"
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
    turned = paired_bootstrap(-difference, 200, seed)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low), abs=1e-9)


def test_the_interval_is_that_of_the_normal_distribution() -> None:
    difference = np.random.default_rng(1).normal(0.1, 1, 2000)
    found = paired_bootstrap(difference, 2000)
    half = 1.96 * difference.std() / math.sqrt(len(difference))
    assert found.low == pytest.approx(difference.mean() - half, abs=0.006)
    assert found.high == pytest.approx(difference.mean() + half, abs=0.006)
