"""One ranking from several models: candidates of all of them, a weighted sum of their normalised scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from recsys_assets.evaluation.metrics import hits_matrix, per_user, top
from recsys_assets.models import MEMBERS
from recsys_assets.models.als import AlsModel
from recsys_assets.models.base import (
    Arrays,
    Events,
    Floats,
    Ints,
    Log,
    Longs,
    Member,
    Params,
    Result,
    in_threads,
    silent,
)
from recsys_assets.models.popularity import PopularityModel
from recsys_assets.models.ranker import Day, Ranker, days_of_rows
from recsys_assets.models.transition import TransitionModel
from recsys_assets.settings import Settings

Members = Mapping[str, Member]
Pairs = tuple[Ints, Ints]
Bools = NDArray[np.bool_]

# Used where there is nothing to learn weights on (the first days of a shop).
DEFAULT_WEIGHTS = {"popularity": 0.2, "repeat": 0.5, "transition": 1.0, "als": 0.4, "sequence": 0.4}
_FALLBACK = PopularityModel.name
RANKER = "ranker"  # its name among the weights

_BATCH_ROWS = 256  # 256 users x 70,000 items x 4 bytes: 70 MB a member and thread
_WEIGHT_ROWS = 6000
_GRID = (0.0, 0.05, 0.1, 0.2, 0.3, 0.45, 0.65, 1.0, 1.5, 2.2)
_SWEEPS = 3
_CUTOFF = 10


@dataclass(frozen=True)
class Recommendations:
    """Lists for b users.

    Attributes:
        items: int32[b, n], best first, -1 where nothing is left to recommend; no item twice in a row.
        scores: float32[b, n], not comparable between users; 0 where items is -1.
        contributions: by member (and `RANKER`, if there is one), float32[b, n]: weight times normalised score; they add
            up to `scores`. Only if asked.
        lists: by member, int32[b, n]: what the member alone would recommend, -1 padded. Only if asked.
    """

    items: Ints
    scores: Floats
    contributions: dict[str, Floats] = field(default_factory=dict)
    lists: dict[str, Ints] = field(default_factory=dict)


@dataclass(frozen=True)
class HybridModel:
    """Members, how much each counts, and K, the candidates taken from each.

    A user's candidates are the union of the members' top K. Each member's scores are normalised over a user's
    candidates (see `_normalise`) and summed with its weight, the linear combination ("CombSUM" with weights) of
    Fox & Shaw (TREC-2, 1994). A learned ranker scores the same candidates by what is known of user and item; it counts
    as one more member in the sum, but proposes nothing. Users without history get the order of popularity.
    """

    members: dict[str, Member]
    weights: dict[str, float]
    candidates: int
    ranker: Ranker | None = None

    def recommend(
        self,
        history: Events,
        at_ms: int,
        n: int,
        *,
        forbidden: Pairs | None = None,
        allowed: Bools | None = None,
        detail: bool = False,
    ) -> Recommendations:
        """The best `n` items for every user of `history`, as of `at_ms` (milliseconds UTC), in bounded memory.

        Args:
            forbidden: int32[f] rows and int32[f] items, pairs to leave out (bought before, say).
            allowed: bool[n_items], the items that may be recommended (None: all).
            detail: also return each member's contribution and its own list, from the same pass over the scores.

        Filters are applied before candidates are taken, so they shorten a list only when nothing else is left. Members
        of weight 0 are not asked, but for popularity, which fills every list, for what `detail` shows, and where there
        is a ranker to choose among what they propose.

        Raises:
            ValueError: `allowed` has not one entry an item.
        """
        rows = history.n_users
        out = Recommendations(np.full((rows, n), -1, np.int32), np.zeros((rows, n), np.float32))
        if detail:
            for name in self.members:
                out.contributions[name] = np.zeros((rows, n), np.float32)
                out.lists[name] = np.full((rows, n), -1, np.int32)
            if self.ranker is not None:
                out.contributions[RANKER] = np.zeros((rows, n), np.float32)
        ranker = self.ranker if self.weights.get(RANKER) else None
        # The ranker only orders what it is shown, and it learned to order the candidates of all members.
        ranking = [name for name in self.members if ranker or self.weights.get(name) or name == _FALLBACK]

        def rank(begin: int, pool: _Pool) -> None:
            total = pool.weighted(self.weights)
            columns, valid = _best(pool, total, n)
            part, width = slice(begin, begin + len(columns)), columns.shape[1]
            out.items[part, :width] = np.where(valid, np.take_along_axis(pool.items, columns, axis=1), -1)
            out.scores[part, :width] = np.where(valid, np.take_along_axis(total, columns, axis=1), 0)
            if detail:
                weights = pool.row_weights(self.weights)
                for m, name in enumerate(pool.names):
                    values = np.take_along_axis(pool.normal[m], columns, axis=1) * weights[m][:, None]
                    out.contributions[name][part, :width] = np.where(valid, values, 0)
                for name, own in pool.lists.items():
                    out.lists[name][part] = own

        shown = n if detail else 0
        k = max(self.candidates, n)
        _pools(self.members, ranking, ranker, history, at_ms, k, forbidden, allowed, shown, rank)
        return out

    def similar_items(self, n: int) -> tuple[Ints, Floats]:
        """int32[n_items, n] most similar items, -1 padded, and their float32 scores (0 to 2).

        The sum of the transitions from an item (over their largest) and the cosine of the ALS factors (if above 0). The
        items that a transition leads to are ranked; all items are, by brute force, only for an item that has fewer than
        `n` of these: on 68,000 items everything against everything took minutes.
        """
        transition, als = self.members.get(TransitionModel.name), self.members.get(AlsModel.name)
        n_items = len(self._popularity())
        unit = np.zeros((n_items, 1), np.float32)
        if isinstance(als, AlsModel):
            unit = als.item_factors / np.maximum(np.linalg.norm(als.item_factors, axis=1, keepdims=True), 1e-12)
        steps = transition.scaled if isinstance(transition, TransitionModel) else csr_array((n_items, n_items))
        lists, scores = np.full((n_items, n), -1, np.int32), np.zeros((n_items, n), np.float32)
        for begin in range(0, n_items, _BATCH_ROWS):
            rows = np.arange(begin, min(begin + _BATCH_ROWS, n_items))
            part = steps[rows].tocoo()
            led, item, value = part.row.astype(np.int64), part.col.astype(np.int64), part.data.astype(np.float32)
            strongest = np.zeros(len(rows), np.float32)
            np.maximum.at(strongest, led, value)
            value /= strongest[led]
            few = np.flatnonzero(np.bincount(led, minlength=len(rows)) < n)
            keep = ~np.isin(led, few)
            everything = np.maximum(unit[rows[few]] @ unit.T, 0)
            place = np.searchsorted(few, led[~keep])
            everything[place, item[~keep]] += value[~keep]
            everything[np.arange(len(few)), rows[few]] = 0
            led, item, value = led[keep], item[keep], value[keep]
            value += np.maximum(np.einsum("ij,ij->i", unit[rows[led]], unit[item]), 0)
            more, more_items, more_values = largest(everything, n, np.zeros(len(few), np.float32))
            led = np.concatenate([led, few[more]])
            item, value = np.concatenate([item, more_items]), np.concatenate([value, more_values])
            order = np.lexsort((item, -value, led))
            rank = np.arange(len(order)) - np.searchsorted(led[order], led[order])
            order, rank = order[rank < n], rank[rank < n]
            lists[rows[led[order]], rank] = item[order]
            scores[rows[led[order]], rank] = value[order]
        return lists, scores

    def _popularity(self) -> Floats:
        member = self.members.get(_FALLBACK)
        return member.popularity if isinstance(member, PopularityModel) else np.zeros(0, np.float32)

    def state(self) -> tuple[dict[str, tuple[Arrays, Params]], Params]:
        """Each member's and the ranker's (arrays, params) by name, and the hybrid's own JSON-able parameters."""
        own = {"weights": dict(self.weights), "candidates": self.candidates}
        parts = {name: member.state() for name, member in self.members.items()}
        return parts | ({RANKER: self.ranker.state()} if self.ranker is not None else {}), own

    @classmethod
    def from_state(cls, members: Mapping[str, tuple[Arrays, Params]], params: Params) -> Self:
        """Raises KeyError for a member of unknown name."""
        made = {name: MEMBERS[name].from_state(*state) for name, state in members.items() if name != RANKER}
        ranker = Ranker.from_state(*members[RANKER]) if RANKER in members else None
        return cls(made, {k: float(v) for k, v in params["weights"].items()}, int(params["candidates"]), ranker)


def learn_weights(
    members: Members, days: Sequence[Day], settings: Settings, log: Log = silent, rankers: Sequence[Ranker] = ()
) -> dict[str, float]:
    """Weights that maximise the mean NDCG@10 over the candidates of at most 6,000 rows with targets.

    Coordinate ascent on a small grid with 0 in it, begun at the best single member: on those rows the result is never
    worse than any member, or the ranker, alone. Deterministic. Without rows or members: `DEFAULT_WEIGHTS`.

    Args:
        rankers: the ranker as of each of `days`, from which it has not learned: they judge it. Or none.
    """
    pools = _weight_pools(members, rankers, days, settings)
    if not pools:
        log("weights: no days to learn from, the defaults are taken")
        return {name: DEFAULT_WEIGHTS.get(name, 0.0) for name in members or DEFAULT_WEIGHTS}
    tried: dict[tuple[float, ...], float] = {}
    names = [*members, *([RANKER] if rankers else [])]

    def quality(weights: dict[str, float]) -> float:
        key = tuple(weights[name] for name in names)
        if key not in tried:
            tried[key] = _ndcg(pools, weights)
        return tried[key]

    single = {name: quality({other: float(other == name) for other in names}) for name in names}
    for name in names:
        log(f"weights: {name} alone NDCG@10 {single[name]:.4f}")
    first = max(names, key=lambda name: single[name])
    weights = {name: float(name == first) for name in names}
    best = single[first]
    for _ in range(_SWEEPS):
        before = best
        for name in sorted(names, key=lambda name: -single[name]):
            for value in _GRID:
                trial = {**weights, name: value}
                if any(trial.values()) and quality(trial) > best + 1e-9:
                    weights, best = trial, quality(trial)
        if best <= before:
            break
    for name in names:
        log(f"weights: {name} {weights[name]:g}" + ("" if weights[name] else ", it does not earn a place"))
    log(f"weights: together NDCG@10 {best:.4f} on {sum(len(pool.items) for pool, _ in pools)} rows")
    return weights


@dataclass(frozen=True)
class _Pool:
    """The candidates of a batch of users.

    items: int32[b, c], rising positions, -1 for an empty place. normal: float32[m, b, c], one layer a member.
    known: bool[b], users with history. lists: each member's own list.
    """

    names: list[str]
    items: Ints
    normal: Floats
    known: Bools
    lists: dict[str, Ints]

    def row_weights(self, weights: Mapping[str, float]) -> Floats:
        """float32[m, b]: the weights, but popularity alone for users without history."""
        usual = np.array([weights.get(name, 0.0) for name in self.names], np.float32)
        if _FALLBACK not in self.names:
            return np.repeat(usual[:, None], len(self.items), axis=1)
        cold = np.array([name == _FALLBACK for name in self.names], np.float32)
        return np.where(self.known, usual[:, None], cold[:, None])

    def weighted(self, weights: Mapping[str, float]) -> Floats:
        """float32[b, c]: the weighted sum, -inf in empty places."""
        total = np.zeros(self.items.shape, np.float32)
        for layer, weight in zip(self.normal, self.row_weights(weights), strict=True):
            if weight.any():
                total += layer * weight[:, None]
        total[self.items < 0] = -np.inf
        return total


def _pools(
    members: Members,
    ranking: Sequence[str],
    ranker: Ranker | None,
    history: Events,
    at_ms: int,
    k: int,
    forbidden: Pairs | None,
    allowed: Bools | None,
    own: int,
    use: Callable[[int, _Pool], Result],
) -> list[Result]:
    """`use(first row, pool)` for batches of users, on several threads; what it returns, in order.

    Args:
        ranking: the members whose candidates are taken.
        own: the length of every member's own list, 0 for none.
    """
    n_items = history.n_items
    if allowed is not None and len(allowed) != n_items:
        raise ValueError(f"allowed has {len(allowed)} entries for {n_items} items")
    closed = None if allowed is None else np.flatnonzero(~allowed)
    rows, items = np.zeros(0, np.int32), np.zeros(0, np.int32)
    if forbidden is not None and len(forbidden[0]):
        order = np.argsort(forbidden[0], kind="stable")
        rows, items = forbidden[0][order], forbidden[1][order]

    def batch(begin: int) -> Result:
        users = np.arange(begin, min(begin + _BATCH_ROWS, history.n_users), dtype=np.int32)
        barred = None
        if len(rows):
            low, high = np.searchsorted(rows, [begin, begin + len(users)])
            barred = (rows[low:high] - begin, items[low:high])
        return use(begin, _pool(members, ranking, ranker, history.of_users(users), at_ms, k, barred, closed, own))

    return in_threads(batch, range(0, history.n_users if n_items else 0, _BATCH_ROWS))


def _pool(
    members: Members,
    ranking: Sequence[str],
    ranker: Ranker | None,
    history: Events,
    at_ms: int,
    k: int,
    barred: Any,
    closed: Any,
    own: int,
) -> _Pool:
    n_items, b = history.n_items, history.n_users
    scores, lists = {}, {}
    wanted = np.zeros((b, n_items), bool)
    for name in members if own else ranking:
        score = members[name].score(history, at_ms)
        low = score.min(axis=1)
        if barred is not None or closed is not None:
            score = score if score.flags.writeable else score.copy()
            if barred is not None:
                score[barred] = -np.inf
            if closed is not None:
                score[:, closed] = -np.inf
        # A member proposes only what it prefers to something; popularity whatever there is, so no list runs short.
        floor = np.full(b, -np.inf, np.float32) if name == _FALLBACK else low
        found_rows, found_items, _ = largest(score, k, floor)
        if own:
            lists[name] = _lists(found_rows, found_items, b, own)
        if name in ranking:
            wanted[found_rows, found_items] = True
            scores[name] = score
    at = np.flatnonzero(wanted)
    row = at // max(n_items, 1)
    item = at - row * n_items
    counts = np.bincount(row, minlength=b)
    place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    width = int(counts.max(initial=0))
    items = np.full((b, width), -1, np.int32)
    items[row, place] = item
    layers = {name: score[row, item] for name, score in scores.items()}
    if ranker is not None:
        layers[RANKER] = ranker.score(history, at_ms, row, item)
    normal = np.zeros((len(layers), b, width), np.float32)
    for m, layer in enumerate(layers.values()):
        normal[m, row, place] = layer
    _normalise(normal, items >= 0)
    return _Pool(list(layers), items, normal, np.diff(history.offsets) > 0, lists)


def _normalise(normal: Floats, valid: Bools) -> None:
    """In place, per member and user: z-scores over the candidates (a member that says the same of all gets 0)."""
    count = np.maximum(valid.sum(axis=1), 1)[:, None]
    for layer in normal:
        wide = layer.astype(np.float64)
        mean = np.where(valid, wide, 0).sum(axis=1, keepdims=True) / count
        centred = np.where(valid, wide - mean, 0)
        deviation = np.sqrt((centred**2).sum(axis=1, keepdims=True) / count)
        layer[:] = centred / np.where(deviation > 1e-9 * (1 + np.abs(mean)), deviation, np.inf)


def largest(scores: Floats, k: int, floor: Floats) -> tuple[Longs, Longs, Floats]:
    """The k largest scores above float32[b] `floor` of each row of float32[b, n] `scores`, -inf never among them.

    Returns int64 rows, int64 columns, float32 scores: row after row, best first, equal scores by column. The K-th
    largest of the maxima of groups of columns is at most the K-th largest score: one cheap pass leaves little more than
    K to choose from. A group is every (n / size)-th column, so that the maxima are taken of whole stretches of memory.
    """
    b, n = scores.shape
    mask = scores > floor[:, None]
    if k < n:
        size = min(64, n // (4 * k))
        few = scores
        if size > 1:
            few = scores[:, : n // size * size].reshape(b, size, n // size).max(axis=1)
        bound = np.partition(few, few.shape[1] - k, axis=1)[:, few.shape[1] - k]
        mask &= scores >= bound[:, None]
    at = np.flatnonzero(mask)
    rows = at // max(n, 1)
    columns = at - rows * n
    values = scores[rows, columns]
    counts = np.bincount(rows, minlength=b)
    first = np.cumsum(counts) - counts
    wide = np.full((b, int(counts.max(initial=0))), np.inf, np.float32)
    wide[rows, np.arange(len(rows)) - first[rows]] = -values
    order = np.argsort(wide, axis=1, kind="stable")[:, :k]
    filled = order < counts[:, None]
    chosen = (order + first[:, None])[filled]
    return rows[chosen], columns[chosen], values[chosen]


def _lists(rows: Longs, columns: Longs, b: int, n: int) -> Ints:
    """int32[b, n]: the columns that `largest` found, -1 padded."""
    counts = np.bincount(rows, minlength=b)
    rank = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    keep = rank < n
    lists = np.full((b, n), -1, np.int32)
    lists[rows[keep], rank[keep]] = columns[keep]
    return lists


def _best(pool: _Pool, total: Floats, n: int) -> tuple[Ints, Bools]:
    columns = top(total, n)
    return columns, np.take_along_axis(pool.items, columns, axis=1) >= 0


def _weight_pools(
    members: Members, rankers: Sequence[Ranker], days: Sequence[Day], settings: Settings
) -> list[tuple[_Pool, Pairs]]:
    """(candidates, targets as (rows, items)) of a seeded sample of the rows with targets, day by day."""
    pools: list[tuple[_Pool, Pairs]] = []
    sample = days_of_rows(days, _WEIGHT_ROWS, settings.training.seed)
    for (day, users), ranker in zip_longest(sample, rankers):
        if not len(users):
            continue
        renumber = np.full(day.history.n_users, -1, np.int32)
        renumber[users] = np.arange(len(users))
        kept = renumber[day.forbidden_rows] >= 0
        forbidden = (renumber[day.forbidden_rows[kept]], day.forbidden_items[kept])
        kept = renumber[day.target_rows] >= 0
        target_rows, target_items = renumber[day.target_rows[kept]], day.target_items[kept]
        history = day.history.of_users(users)

        def with_targets_of(
            first: int, pool: _Pool, at: Ints = target_rows, item: Ints = target_items
        ) -> tuple[_Pool, Pairs]:
            here = (at >= first) & (at < first + len(pool.items))
            return pool, (at[here] - first, item[here])

        k = settings.recommend.candidates
        pools += _pools(members, list(members), ranker, history, day.at_ms, k, forbidden, None, 0, with_targets_of)
    return pools


def _ndcg(pools: list[tuple[_Pool, Pairs]], weights: Mapping[str, float]) -> float:
    total, rows = 0.0, 0
    for pool, (target_rows, target_items) in pools:
        columns, valid = _best(pool, pool.weighted(weights), _CUTOFF)
        lists = np.where(valid, np.take_along_axis(pool.items, columns, axis=1), -1)
        n_items = int(max(pool.items.max(initial=0), target_items.max(initial=0))) + 1
        hits, counts = hits_matrix(lists, target_rows, target_items, n_items)
        total += float(per_user(hits, counts, _CUTOFF).ndcg.sum())
        rows += len(lists)
    return total / rows


__all__ = ["DEFAULT_WEIGHTS", "RANKER", "Day", "HybridModel", "Recommendations", "learn_weights"]
