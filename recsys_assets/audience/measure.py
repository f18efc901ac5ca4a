"""How good a ranking of users is, and whether probabilities are what happens."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys_assets.evaluation.metrics import Interval

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]

METRICS = ("auc", "average_precision", "lift")


@dataclass(frozen=True)
class Ranking:
    """Users ranked by a score, best first, and who of them took the offer. Equal scores share a place.

    Attributes:
        score: float64[n], larger is better.
        taken: bool[n].
    """

    score: Array
    taken: Bools

    @cached_property
    def _place(self) -> NDArray[np.intp]:
        return np.unique(-self.score, return_inverse=True)[1]

    def measure(self, budget: int, times: Array | None = None) -> dict[str, float]:
        """METRICS.

        auc: area under the ROC curve, the chance that a taker stands before another user, ties half (Hanley & McNeil
        1982). average_precision: precision at each place, weighted by the recall gained there. lift: share of takers
        among the first `budget` users over their share of all; of users with equal scores at the border, the expected
        share. NaN where nobody or everybody took it.

        Args:
            times: float64[n] how often each user counts (a bootstrap's draw); default once.
        """
        times = np.ones(len(self.score)) if times is None else times
        users = np.bincount(self._place, times)
        takers = np.bincount(self._place, times * self.taken)
        others = users - takers
        all_takers, all_others = takers.sum(), others.sum()
        if not all_takers or not all_others:
            return dict.fromkeys(METRICS, float("nan"))
        seen, hits = np.cumsum(users), np.cumsum(takers)
        below = all_others - np.cumsum(others)
        precision = hits / np.maximum(seen, 1)
        first = min(budget, seen[-1])
        border = int(np.searchsorted(seen, first))
        found = hits[border] - takers[border] * (seen[border] - first) / max(users[border], 1)
        return {
            "auc": float((takers * (below + others / 2)).sum() / (all_takers * all_others)),
            "average_precision": float((takers * precision).sum() / all_takers),
            "lift": float(found / first / (all_takers / seen[-1])) if first else float("nan"),
        }


def compare(
    ranking: Ranking, baseline: Ranking, budget: int, samples: int, seed: int
) -> dict[str, dict[str, Interval]]:
    """Metric -> the ranking's, the baseline's and their difference, each with its 95 % interval.

    A paired percentile bootstrap (Efron & Tibshirani 1993): each of `samples` draws of users counts for both rankings.
    Draws without a taker (or without others) measure nothing and are left out.
    """
    rng = np.random.default_rng(seed)
    n = len(ranking.taken)
    measured = [(ranking.measure(budget), baseline.measure(budget))]
    for _ in range(samples):
        times = np.bincount(rng.integers(0, n, n), minlength=n).astype(np.float64)
        measured.append((ranking.measure(budget, times), baseline.measure(budget, times)))
    found: dict[str, dict[str, Interval]] = {}
    for metric in METRICS:
        own, other = np.array([(each[metric], beside[metric]) for each, beside in measured]).T
        sides = {"model": own, "most active first": other, "difference": own - other}
        found[metric] = {side: _interval(values) for side, values in sides.items()}
    return found


def _interval(values: Array) -> Interval:
    """The first value, and the interval of the others."""
    drawn = values[1:][~np.isnan(values[1:])]
    low, high = np.quantile(drawn, [0.025, 0.975]) if len(drawn) else (np.nan, np.nan)
    return Interval(float(values[0]), float(low), float(high))


def brier(probability: Array, taken: Bools) -> float:
    """Mean squared difference between what was foretold and what happened (Brier 1950)."""
    return float(np.mean((probability - taken) ** 2))


def calibration(probability: Array, taken: Bools, groups: int = 10) -> pl.DataFrame:
    """Up to `groups` groups of about as many users, by probability: users, takers, foretold (mean probability), taken
    (share that did), low and high (its 95 % interval, Wilson 1927). Equal probabilities stay together."""
    place = np.searchsorted(np.sort(probability), probability)  # of the first that is equal
    group = place * groups // max(len(probability), 1)
    share, z = pl.col("takers") / pl.col("users"), 1.959964
    middle = (share + z**2 / (2 * pl.col("users"))) / (1 + z**2 / pl.col("users"))
    root = (share * (1 - share) / pl.col("users") + z**2 / (4 * pl.col("users") ** 2)).sqrt()
    half = z * root / (1 + z**2 / pl.col("users"))
    return (
        pl.DataFrame({"group": group, "probability": probability, "taken": taken})
        .group_by("group")
        .agg(
            users=pl.len().cast(pl.Int64),
            takers=pl.col("taken").sum().cast(pl.Int64),
            foretold=pl.col("probability").mean(),
        )
        .sort("group")
        .select("users", "takers", "foretold", share.alias("taken"), (middle - half).alias("low"), high=middle + half)
    )
