"""Decayed item-to-item transitions: what is done after what."""

import hashlib
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from scipy import sparse

from recsys_assets.models.base import (
    Arrays,
    Events,
    Floats,
    Log,
    Longs,
    Params,
    Steps,
    TrainingSet,
    age_days,
    decay,
    silent,
    steps,
)
from recsys_assets.settings import Settings, TransitionSettings
from recsys_assets.training.events import DAY_MS

# An item that has all but vanished must not win by the smallness of its popularity.
_MIN_POPULARITY = 1e-3
# Older visits weigh less than this in a query and are left out.
_MIN_HISTORY_WEIGHT = 1e-3
# Counts are whole numbers of 1 / _UNIT.
_UNIT = 4096


@dataclass(frozen=True)
class Learned:
    """csr int64[n_items, n_items] forward counts in 1 / `_UNIT` as of `reference_ms`, of all pairs, and the digest of
    the events and settings they come from."""

    counts: sparse.csr_array
    key: str


class TransitionModel:
    """Neighbourhood model over sequences: count(i -> j) += w_j / d for steps at most `max_gap` apart.

    d is the distance in visits (steps of one timestamp are one visit and have no order: such a pair counts half in
    each direction). The reverse direction counts `reverse` times as much; counts halve every `half_life_days`; a score
    is scaled by (pop_i pop_j) ** -popularity_power. The form is that of sequential rules with 1/d weights (Ludewig &
    Jannach, UMUAI 2018) with the popularity scaling of item-kNN. i -> i is left to the repeat model.

    Counts are whole numbers as of a fixed moment, so adding a day to them gives the very bytes of counting all days
    (see `reference_ms`). They stay in memory: what is stored is the table that scores, cut to the strongest
    neighbours, a third of the size; a model that was read back counts all again when it is updated.
    """

    name: ClassVar[str] = "transition"

    def __init__(self, scaled: sparse.csr_array, params: Params, learned: Learned | None = None) -> None:
        """csr float32[n_items, n_items] as of `end_ms`: (count(i, j) + reverse * count(j, i)) * (pop_i pop_j) **
        -popularity_power, the `neighbours` largest of each row; params: end_ms, history_decay."""
        self.scaled = scaled
        self.params = params
        self.learned = learned

    @classmethod
    def fit(cls, data: TrainingSet, settings: Settings, log: Log = silent) -> Self:
        counts = count_transitions(data.events, settings.transition, reference_ms(data.end_ms, settings.transition))
        return cls._make(data, settings, counts, log)

    def update(self, data: TrainingSet, settings: Settings, log: Log = silent) -> Self:
        """The same bytes as `fit` on the same data, at the cost of the users seen since. Where adding is not enough
        (events of before came late or left the window, or the reference moved) it counts all again."""
        since, own = int(self.params["end_ms"]), settings.transition
        reference = reference_ms(data.end_ms, own)
        old = data.events.before(since)
        if self.learned is None or data.end_ms < since or self.learned.key != _key(old, own, reference):
            log("transition: counting all again")
            return self.fit(data, settings, log)
        touched = np.zeros(data.events.n_users, bool)
        touched[data.events.user[data.events.timestamp >= since]] = True
        old, now = old.select(touched[old.user]), data.events.select(touched[data.events.user])
        # A new event can lengthen (and outweigh) the run that was a user's last step: that step is counted anew.
        last = np.full(data.events.n_users, since, np.int64)
        walked = steps(old)
        last[walked.user] = walked.timestamp
        counts = self.learned.counts.copy()
        counts.resize((data.events.n_items, data.events.n_items))
        counts = counts + count_transitions(now, own, reference, last) - count_transitions(old, own, reference, last)
        counts.eliminate_zeros()
        return self._make(data, settings, counts, log)

    @classmethod
    def _make(cls, data: TrainingSet, settings: Settings, counts: sparse.csr_array, log: Log) -> Self:
        own, events = settings.transition, data.events
        reference = reference_ms(data.end_ms, own)
        weight = events.weight * decay(age_days(events, data.end_ms), own.half_life_days)
        popularity = np.bincount(events.item, weight, events.n_items).astype(np.float32)
        scaled = counts.astype(np.float32)
        if own.reverse:
            scaled = (scaled + np.float32(own.reverse) * scaled.T.tocsr()).tocsr()
        factor = np.maximum(popularity, _MIN_POPULARITY) ** -np.float32(own.popularity_power)
        faded = 0.5 ** ((data.end_ms - reference) / DAY_MS / own.half_life_days) / _UNIT
        scaled.data *= np.repeat(factor * np.float32(faded), np.diff(scaled.indptr))
        scaled.data *= factor[scaled.indices]
        kept = _strongest(scaled, own.neighbours)
        log(f"transition: {kept.nnz} transitions of {scaled.nnz} kept")
        params = {"end_ms": data.end_ms, "history_decay": own.history_decay}
        return cls(kept, params, Learned(counts, _key(events, own, reference)))

    def score(self, history: Events, at_ms: int) -> Floats:
        """float32[n_users, n_items]: sum over the history's items i of history_decay**age_i * scaled(i, j), where age
        is counted in visits from the newest. 0 where no transition leads."""
        scores = np.zeros((history.n_users, history.n_items), np.float32)
        n_items = min(history.n_items, self.scaled.shape[0])
        query = query_weights(steps(history), self.params["history_decay"], (history.n_users, self.scaled.shape[0]))
        found = (query @ self.scaled).toarray() if n_items else scores
        scores[:, :n_items] = found[:, :n_items]
        return scores

    def state(self) -> tuple[Arrays, Params]:
        arrays = {"data": self.scaled.data, "indices": self.scaled.indices, "indptr": self.scaled.indptr}
        return arrays, self.params

    @classmethod
    def from_state(cls, arrays: Arrays, params: Params) -> Self:
        n = len(arrays["indptr"]) - 1
        return cls(sparse.csr_array((arrays["data"], arrays["indices"], arrays["indptr"]), shape=(n, n)), params)


def query_weights(walked: Steps, history_decay: float, shape: tuple[int, int]) -> sparse.csr_array:
    """csr float32[n_users, n_items]: history_decay ** (visits since), an item counted where it was met last."""
    if not len(walked):
        return sparse.csr_array(shape, dtype=np.float32)
    last = np.append(np.flatnonzero(np.diff(walked.user)), len(walked) - 1)
    newest = np.zeros(shape[0], np.int64)
    newest[walked.user[last]] = walked.visit[last]
    weight = history_decay ** (newest[walked.user] - walked.visit).astype(np.float64)
    keep = (weight >= _MIN_HISTORY_WEIGHT) & (walked.item < shape[1])
    user, item, weight = walked.user[keep], walked.item[keep], weight[keep]
    # Steps come oldest first: of equal (user, item) pairs np.unique finds the first of the reversed, the newest.
    _, at = np.unique((user.astype(np.int64) * shape[1] + item)[::-1], return_index=True)
    at = len(user) - 1 - at
    return sparse.csr_array((weight[at].astype(np.float32), (user[at], item[at])), shape=shape)


def reference_ms(end_ms: int, own: TransitionSettings) -> int:
    """The moment as of which transitions learned up to `end_ms` are counted: the same for eight half-lives.

    A step weighs 2 ** (time since this moment / half-life), rounded to whole units of 1 / `_UNIT`: whole numbers add
    up exactly in any order, and ageing is one factor. It lies 8 to 16 half-lives back: what is older has lost its
    weight, and the newest weigh at most 2**16 (int64 holds 2**25 steps of weight 1000 between two items).
    """
    span = own.half_life_days * DAY_MS * 8
    return int((end_ms // span - 1) * span)


def count_transitions(
    events: Events, own: TransitionSettings, reference_ms: int, since_ms: Longs | None = None
) -> sparse.csr_array:
    """csr int64[n_items, n_items], canonical, no zeros: forward counts in 1 / `_UNIT` as of `reference_ms`, of all
    transitions or of those whose later step is not before int64[n_users] `since_ms` of its user."""
    n_items = events.n_items
    walked = steps(events)
    user, item, visit, timestamp = walked.user, walked.item, walked.visit, walked.timestamp
    weight = _UNIT * walked.weight * np.exp2((timestamp - reference_ms) / DAY_MS / own.half_life_days)
    wanted = np.ones(len(walked), bool) if since_ms is None else timestamp >= since_ms[user]
    counts = sparse.csr_array((n_items, n_items), dtype=np.int64)
    sources, targets, values = [], [], []
    for gap in range(1, min(own.max_gap, len(walked) - 1) + 1):
        a, b = slice(0, len(user) - gap), slice(gap, len(user))
        keep = (user[a] == user[b]) & (item[a] != item[b]) & wanted[b]
        i, j, w = item[a][keep], item[b][keep], weight[b][keep]
        distance = (visit[b] - visit[a])[keep]
        together = distance == 0
        w = np.rint(w / np.where(together, 2, distance)).astype(np.int64)
        sources += [i, j[together]]
        targets += [j, i[together]]
        values += [w, w[together]]
    if sources:
        entries = (np.concatenate(values), (np.concatenate(sources), np.concatenate(targets)))
        counts = sparse.coo_array(entries, shape=(n_items, n_items)).tocsr()
        counts.sum_duplicates()
        counts.eliminate_zeros()
    return counts


def _key(events: Events, own: TransitionSettings, reference_ms: int) -> str:
    """A digest of what counts depend on."""
    digest = hashlib.blake2b(f"{own.half_life_days} {own.max_gap} {reference_ms}".encode(), digest_size=16)
    for column in (events.user, events.item, events.weight, events.timestamp):
        digest.update(np.ascontiguousarray(column).data)
    return digest.hexdigest()


def _strongest(table: sparse.csr_array, n: int) -> sparse.csr_array:
    """`table` with the n largest entries of each row; ties by column."""
    long_rows = np.flatnonzero(np.diff(table.indptr) > n)
    if not len(long_rows):
        return table
    keep = np.ones(table.nnz, bool)
    for row in long_rows:  # rows, not users: only popular items have this many neighbours
        own = slice(table.indptr[row], table.indptr[row + 1])
        values = table.data[own]
        least = np.partition(values, len(values) - n)[len(values) - n]
        keep[own] = values > least
        ties = np.flatnonzero(values == least)
        keep[own.start + ties[: n - np.count_nonzero(keep[own])]] = True
    kept = np.concatenate([[0], np.cumsum(keep)])[table.indptr]
    return sparse.csr_array((table.data[keep], table.indices[keep], kept.astype(table.indptr.dtype)), shape=table.shape)
