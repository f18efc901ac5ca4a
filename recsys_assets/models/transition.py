"""Decayed item-to-item transitions: what is done after what."""

from functools import cached_property
from typing import ClassVar, Self

import numpy as np
from scipy import sparse

from recsys_assets.models.base import (
    Arrays,
    Events,
    Floats,
    Log,
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


class TransitionModel:
    """Neighbourhood model over sequences: count(i -> j) += w_j / d for steps at most `max_gap` apart.

    d is the distance in visits (steps of one timestamp are one visit and have no order: such a pair counts half in
    each direction). The reverse direction counts `reverse` times as much; counts halve every `half_life_days`; a score
    is scaled by (pop_i pop_j) ** -popularity_power. The form is that of sequential rules with 1/d weights (Ludewig &
    Jannach, UMUAI 2018) with the popularity scaling of item-kNN. i -> i is left to the repeat model.
    """

    name: ClassVar[str] = "transition"

    def __init__(self, counts: sparse.csr_array, popularity: Floats, params: Params) -> None:
        """csr float32[n_items, n_items] decayed counts and float32[n_items] popularity, both as of `end_ms`; params:
        end_ms, popularity_power, history_decay."""
        self.counts = counts
        self.popularity = popularity
        self.params = params

    @classmethod
    def fit(cls, data: TrainingSet, settings: Settings, log: Log = silent) -> Self:
        return cls._make(data, settings, count_transitions(data, settings.transition, None), log)

    def update(self, data: TrainingSet, settings: Settings, log: Log = silent) -> Self:
        """Adds the transitions that end after `end_ms`: counts add up and decay is one factor, so this equals a refit
        but for neighbours cut off earlier and for events that came late (those wait for the next refit)."""
        since = int(self.params["end_ms"])
        if data.end_ms < since:
            return self.fit(data, settings, log)
        new = count_transitions(data, settings.transition, since)
        faded = np.float32(0.5 ** ((data.end_ms - since) / DAY_MS / settings.transition.half_life_days))
        old = self.counts * faded
        old.resize(new.shape)
        return self._make(data, settings, old + new, log)

    @classmethod
    def _make(cls, data: TrainingSet, settings: Settings, counts: sparse.csr_array, log: Log) -> Self:
        own, events = settings.transition, data.events
        weight = events.weight * decay(age_days(events, data.end_ms), own.half_life_days)
        popularity = np.bincount(events.item, weight, events.n_items).astype(np.float32)
        params = {
            "end_ms": data.end_ms,
            "popularity_power": own.popularity_power,
            "history_decay": own.history_decay,
        }
        model = cls(counts, popularity, params)
        model = cls(_strongest(counts, model.scaled.data, own.neighbours), popularity, params)
        log(f"transition: {model.counts.nnz} transitions of {counts.nnz} kept")
        return model

    @cached_property
    def scaled(self) -> sparse.csr_array:
        """csr float32[n_items, n_items]: counts(i, j) * (pop_i pop_j) ** -popularity_power."""
        factor = np.maximum(self.popularity, _MIN_POPULARITY) ** -np.float32(self.params["popularity_power"])
        rows = np.repeat(factor, np.diff(self.counts.indptr))
        data = self.counts.data * rows * factor[self.counts.indices]
        return sparse.csr_array((data, self.counts.indices, self.counts.indptr), shape=self.counts.shape)

    def score(self, history: Events, at_ms: int) -> Floats:
        """float32[n_users, n_items]: sum over the history's items i of history_decay**age_i * scaled(i, j), where age
        is counted in visits from the newest. 0 where no transition leads."""
        scores = np.zeros((history.n_users, history.n_items), np.float32)
        n_items = min(history.n_items, len(self.popularity))
        query = query_weights(steps(history), self.params["history_decay"], (history.n_users, len(self.popularity)))
        found = (query @ self.scaled).toarray() if n_items else scores
        scores[:, :n_items] = found[:, :n_items]
        return scores

    def state(self) -> tuple[Arrays, Params]:
        arrays = {
            "data": self.counts.data,
            "indices": self.counts.indices,
            "indptr": self.counts.indptr,
            "popularity": self.popularity,
        }
        return arrays, self.params

    @classmethod
    def from_state(cls, arrays: Arrays, params: Params) -> Self:
        n = len(arrays["popularity"])
        counts = sparse.csr_array((arrays["data"], arrays["indices"], arrays["indptr"]), shape=(n, n))
        return cls(counts, arrays["popularity"], params)


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


def count_transitions(data: TrainingSet, own: TransitionSettings, since_ms: int | None) -> sparse.csr_array:
    """csr float32[n_items, n_items]: decayed counts as of `data.end_ms`, of transitions whose later step is not before
    `since_ms` (None: of all)."""
    events, n_items = data.events, data.events.n_items
    if since_ms is not None:
        touched = np.zeros(events.n_users, bool)
        touched[events.user[events.timestamp >= since_ms]] = True
        events = events.select(touched[events.user])
    walked = steps(events)
    user, item, visit, timestamp = walked.user, walked.item, walked.visit, walked.timestamp
    weight = (walked.weight * decay((data.end_ms - timestamp) / DAY_MS, own.half_life_days)).astype(np.float32)
    sources, targets, values = [], [], []
    for gap in range(1, min(own.max_gap, len(walked) - 1) + 1):
        a, b = slice(0, len(user) - gap), slice(gap, len(user))
        keep = (user[a] == user[b]) & (item[a] != item[b])
        if since_ms is not None:
            keep &= timestamp[b] >= since_ms
        i, j, w = item[a][keep], item[b][keep], weight[b][keep]
        distance = (visit[b] - visit[a])[keep]
        together = distance == 0
        w = w / np.maximum(distance, 1).astype(np.float32) * np.where(together, np.float32(0.5), np.float32(1))
        sources += [i, j[together]]
        targets += [j, i[together]]
        values += [w, w[together]]
    if not sources:
        return sparse.csr_array((n_items, n_items), dtype=np.float32)
    forward = sparse.coo_array(
        (np.concatenate(values), (np.concatenate(sources), np.concatenate(targets))), shape=(n_items, n_items)
    ).tocsr()
    counts = (forward + own.reverse * forward.T.tocsr()).tocsr() if own.reverse else forward
    counts.sort_indices()
    return counts.astype(np.float32)


def _strongest(counts: sparse.csr_array, strength: Floats, n: int) -> sparse.csr_array:
    """`counts` with the n entries of each row that have the largest `strength` (float32[nnz]); ties by column."""
    lengths = np.diff(counts.indptr)
    long_rows = np.flatnonzero(lengths > n)
    if not len(long_rows):
        return counts
    keep = np.ones(counts.nnz, bool)
    for row in long_rows:  # rows, not users: only popular items have this many neighbours
        begin, end = counts.indptr[row], counts.indptr[row + 1]
        order = np.argsort(-strength[begin:end], kind="stable")
        keep[begin + order[n:]] = False
    kept = np.concatenate([[0], np.cumsum(keep)])[counts.indptr]
    return sparse.csr_array((counts.data[keep], counts.indices[keep], kept), shape=counts.shape)
