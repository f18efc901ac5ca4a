"""Full-ranking metrics over lists of recommendations, written once for weights, evaluation and benchmarks."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys_assets.training.events import Ints

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PerUser:
    """One value a user (float64[b]) of each metric at a cut-off k, binary relevance.

    precision: hits / k. recall: hits / targets. hit_rate: 1 if any hit. average_precision: mean of precision at each
    hit, over min(k, targets) (the MAP of Manning et al., truncated). average_recall: mean of recall at 1..k (MAR).
    ndcg: sum of 1/log2(rank+1) at hits over the same sum of a perfect list (Järvelin & Kekäläinen 2002).
    """

    precision: Array
    recall: Array
    hit_rate: Array
    average_precision: Array
    average_recall: Array
    ndcg: Array

    def means(self) -> dict[str, float]:
        return {name: float(np.mean(values)) if len(values) else 0.0 for name, values in vars(self).items()}


def hits_matrix(lists: Ints, target_rows: Ints, target_items: Ints, n_items: int) -> tuple[NDArray[np.bool_], Ints]:
    """Which places of which list hold a target.

    Args:
        lists: int32[b, n] item positions, best first, -1 for an empty place; no item twice in a row.
        target_rows, target_items: int32[t] distinct (row, item) pairs to be found.

    Returns: bool[b, n] hits, and int32[b] number of targets of each row.
    """
    targets = np.unique(target_rows.astype(np.int64) * n_items + target_items)
    wanted = np.arange(len(lists), dtype=np.int64)[:, None] * n_items + lists
    hits = np.isin(wanted, targets) & (lists >= 0)
    counts = np.bincount((targets // n_items).astype(np.int64), minlength=len(lists))
    return hits, counts.astype(np.int32)


def per_user(hits: NDArray[np.bool_], n_targets: Ints, k: int) -> PerUser:
    """Metrics at k from bool[b, n] hits (n < k counts as empty places) and int32[b] targets (each >= 1)."""
    found = hits[:, :k].astype(np.float64)
    if found.shape[1] < k:
        found = np.pad(found, ((0, 0), (0, k - found.shape[1])))
    if (n_targets < 1).any():
        raise ValueError("every row needs at least one target")
    so_far = np.cumsum(found, axis=1)
    ranks = np.arange(1, k + 1)
    discount = 1 / np.log2(ranks + 1)
    best = np.concatenate([[0.0], np.cumsum(discount)])[np.minimum(n_targets, k)]
    return PerUser(
        precision=so_far[:, -1] / k,
        recall=so_far[:, -1] / n_targets,
        hit_rate=(so_far[:, -1] > 0).astype(np.float64),
        average_precision=(found * so_far / ranks).sum(axis=1) / np.minimum(n_targets, k),
        average_recall=(so_far / n_targets[:, None]).mean(axis=1),
        ndcg=(found * discount).sum(axis=1) / best,
    )


def coverage(lists: Ints, n_items: int) -> float:
    """Share of the catalogue that appears in at least one list."""
    return len(np.unique(lists[lists >= 0])) / n_items if n_items else 0.0


def diversity(lists: Ints, n_items: int) -> float:
    """How different the lists of two users are: 1 - the share of places they have in common, mean over all pairs.

    The mean Hamming distance of Zhou et al. 2010 (PNAS 107:4511), exact: an item in c lists is common to c(c - 1)/2
    pairs. 0 where all lists hold the same items, 1 where no two share any, and 0 for fewer than two lists. An empty
    place is common to nobody.

    Args:
        lists: int32[b, k] item positions, -1 for an empty place; no item twice in a row.
    """
    users, k = lists.shape
    if users < 2 or k == 0:
        return 0.0
    counts = np.bincount(lists[lists >= 0], minlength=n_items).astype(np.float64)
    return float(1 - (counts * (counts - 1)).sum() / (users * (users - 1)) / k)


@dataclass(frozen=True)
class Interval:
    """A mean with its interval (95 % unless said otherwise)."""

    mean: float
    low: float
    high: float


def paired_bootstrap(difference: Array, samples: int = 1000, seed: int = 0, level: float = 0.95) -> Interval:
    """Percentile bootstrap over users of the mean of a paired per-user difference (Efron & Tibshirani 1993)."""
    n = len(difference)
    if n == 0:
        return Interval(0.0, 0.0, 0.0)
    rng = np.random.default_rng(seed)
    means = np.empty(samples)
    for start in range(0, samples, 64):  # 64 resamples at a time keep memory small at a million users
        size = min(64, samples - start)
        means[start : start + size] = difference[rng.integers(0, n, (size, n))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.mean(difference)), float(low), float(high))


def top(scores: NDArray[np.floating], n: int) -> Ints:
    """int32[b, min(n, columns)]: columns of the largest scores of each row, best first; equal scores by column."""
    rows, columns = scores.shape
    n = min(n, columns)
    if n == 0:
        return np.empty((rows, 0), np.int32)
    # Where equal scores cross the cut a partition takes any of them: such rows are mended to the first columns.
    part = np.argpartition(-scores, n - 1, axis=1)[:, :n] if n < columns else np.tile(np.arange(columns), (rows, 1))
    if n < columns:
        kth = np.take_along_axis(scores, part, axis=1).min(axis=1)
        crossing = np.flatnonzero((scores >= kth[:, None]).sum(axis=1) > n)
        for row in crossing:
            above = np.flatnonzero(scores[row] > kth[row])
            level = np.flatnonzero(scores[row] == kth[row])[: n - len(above)]
            part[row] = np.concatenate([above, level])
    part = np.sort(part, axis=1)
    order = np.argsort(-np.take_along_axis(scores, part, axis=1), axis=1, kind="stable")
    return np.take_along_axis(part, order, axis=1).astype(np.int32)
