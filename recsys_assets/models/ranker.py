"""Ranks candidates by what is known of the user and the item: a small network learned on past days."""

import hashlib
from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np

from recsys_assets.evaluation.metrics import top
from recsys_assets.models import listnet
from recsys_assets.models.base import Arrays, Events, Floats, Ints, Log, Longs, Params, TrainingSet, in_threads, silent
from recsys_assets.models.features import (
    ITEM_FEATURES,
    Shelf,
    category_affinity,
    distinct,
    hazards,
    item_table,
    pair_features,
)
from recsys_assets.settings import Settings
from recsys_assets.training.events import DAY_MS

_BATCH_ROWS = 256
_OWN, _CANDIDATES = 50, 60  # candidates of a list to learn from: met before, and together with what was not
_MARK = "network."  # before the names of the network's arrays
_SOLD = 2000  # best-selling items among which new ones are chosen
_MIN_LISTS = 200  # with a hit among the candidates: fewer teach little but noise
_BIN_LISTS = 8000  # fewer teach a thousand inputs noise: on Beauty's 4,500 the numbers alone did better
_STEPS, _BATCH_LISTS = 200, (16, 128)  # steps in a pass, as far as these bounds of the lists in a step allow
_CUTOFF = 10  # a list weighs one over the DCG it could reach among so many


class Day(Protocol):
    """What is learned on: what users had done before a moment, and what they did then.

    target_rows, target_items: int32[t] distinct (row of `history`, item) pairs. forbidden_rows, forbidden_items:
    int32[f] pairs that must not be recommended. `evaluation.tasks.Task` is one.
    """

    @property
    def history(self) -> Events: ...
    @property
    def at_ms(self) -> int: ...
    @property
    def target_rows(self) -> Ints: ...
    @property
    def target_items(self) -> Ints: ...
    @property
    def forbidden_rows(self) -> Ints: ...
    @property
    def forbidden_items(self) -> Ints: ...


def days_of_rows(days: Sequence[Day], count: int, seed: int) -> list[tuple[Day, Ints]]:
    """A seeded sample of `count` of the days' rows with targets: each day and its chosen rows, rising."""
    rng = np.random.default_rng(seed)
    with_targets = [np.unique(day.target_rows) for day in days]
    chosen = np.zeros(sum(len(rows) for rows in with_targets), bool)
    chosen[rng.permutation(len(chosen))[:count]] = True
    ends = np.cumsum([len(rows) for rows in with_targets])
    parts = np.split(chosen, ends[:-1]) if len(ends) else []
    return [(day, rows[part].astype(np.int32)) for day, rows, part in zip(days, with_targets, parts, strict=True)]


class Ranker:
    """A network over the features of `models.features`, learned by `listnet` on lists of past days, from each day's
    own past only. The network stays as it is until it is learned anew; what it looks at (`shelf`) is counted anew every
    day.
    """

    def __init__(self, network: Arrays, shelf: Shelf) -> None:
        self.network = network
        self.shelf = shelf

    @classmethod
    def learn(cls, data: TrainingSet, days: Sequence[Day], settings: Settings, log: Log = silent) -> Self | None:
        """From at most `ranker.learn_lists` lists of `days`, all before the end of `data`; None if too few of them
        have anything to teach. The same input gives the same network."""
        own = settings.ranker
        sample = days_of_rows(days, own.learn_lists, settings.training.seed) if own.learn_lists else []
        lessons = in_threads(lambda day: _lessons(data, *sample[day]), range(len(sample)))
        parts = [part for of_day in lessons for part in of_day]
        lists = sum(len(part.sizes) for part in parts)
        if lists < _MIN_LISTS:
            log(f"ranker: {lists} lists are too few to learn from; the hybrid is a weighted sum of its members")
            return None
        together = listnet.Lists(*(np.concatenate(values) for values in zip(*parts, strict=True)))
        del lessons, parts
        batch = int(np.clip(lists // _STEPS, *_BATCH_LISTS))
        bins = own.bins if lists >= _BIN_LISTS else 0
        recipe = listnet.Recipe(tuple(own.hidden), own.learning_rate, own.epochs, batch, own.dropout, bins)
        network = listnet.learn(together, recipe, settings.training.seed, lambda message: log(f"ranker: {message}"))
        log(f"ranker: learned from {lists} lists, {bins} bins a number")
        return cls(network, shelf_of(data))

    def at(self, data: TrainingSet) -> Self:
        """The same network, looking at the shop as of the end of `data`."""
        return type(self)(self.network, shelf_of(data))

    def score(self, history: Events, at_ms: int, rows: Longs, items: Longs) -> Floats:
        """float32[p]: one score a (row of `history`, item) pair, comparable within a row."""
        if not len(rows):
            return np.zeros(0, np.float32)
        return listnet.forward(self.network, pair_features(history, at_ms, rows, items, self.shelf)[1])

    def digest(self) -> str:
        """A digest of what was learned."""
        return hashlib.sha256(b"".join(self.network[name].tobytes() for name in sorted(self.network))).hexdigest()[:16]

    def state(self) -> tuple[Arrays, Params]:
        return {**{_MARK + name: values for name, values in self.network.items()}, **self.shelf._asdict()}, {}

    @classmethod
    def from_state(cls, arrays: Arrays, params: Params) -> Self:
        network = {name.removeprefix(_MARK): values for name, values in arrays.items() if name.startswith(_MARK)}
        return cls(network, Shelf(*(arrays[name] for name in Shelf._fields)))


def _lessons(data: TrainingSet, day: Day, users: Ints) -> list[listnet.Lists]:
    """What the `users` of a day teach: their candidates, and which of them they took, where they took any."""
    if not len(users):
        return []
    found = []
    shelf = shelf_of(data.before(day.at_ms))
    possible = np.bincount(day.target_rows, minlength=day.history.n_users)
    for begin in range(0, len(users), _BATCH_ROWS):
        part = users[begin : begin + _BATCH_ROWS]
        history = day.history.of_users(part)
        rows, items = _candidates(history, day, part, shelf)
        wanted = day.target_rows.astype(np.int64) * history.n_items + day.target_items
        hit = np.isin(part[rows].astype(np.int64) * history.n_items + items, wanted)
        useful = np.bincount(rows, hit, len(part)) > 0
        kept = useful[rows]
        _, values = pair_features(history, day.at_ms, rows[kept], items[kept], shelf)
        ideal = np.cumsum(1 / np.log2(np.arange(_CUTOFF) + 2))[np.minimum(possible[part], _CUTOFF) - 1]
        sizes = np.bincount(rows[kept], minlength=len(part))[useful]
        found.append(listnet.Lists(values, hit[kept], sizes, (1 / ideal[useful]).astype(np.float32)))
    return found


def shelf_of(data: TrainingSet) -> Shelf:
    """The item side as of the end of `data`."""
    events, end, category = data.events, data.end_ms, data.items.category
    return Shelf(item_table(events, end, category), hazards(events, end, category), category, data.items.price)


def _candidates(history: Events, day: Day, users: Ints, shelf: Shelf) -> tuple[Longs, Longs]:
    """int64 rows of `history` (the `users` of the day) and items to learn from: what the user met most often and
    lately, filled up with what their favourite categories sell most."""
    shelf = shelf.of(history.n_items)
    n_items = history.n_items
    place = np.full(day.history.n_users, -1)
    place[users] = np.arange(len(users))
    barred = place[day.forbidden_rows]
    closed = np.sort((barred * n_items + day.forbidden_items)[barred >= 0])
    age = np.maximum(day.at_ms - history.timestamp, 0) / DAY_MS
    order = np.argsort(history.user.astype(np.int64) * n_items + history.item, kind="stable")
    met, count = distinct(history.user.astype(np.int64) * n_items + history.item)
    often = np.add.reduceat(0.5 ** (age[order] / 45), np.cumsum(count) - count) if len(met) else np.zeros(0)
    often = np.where(np.isin(met, closed), 0, often)
    order = np.lexsort((met, -often, met // n_items))
    rank = np.arange(len(met)) - np.searchsorted(met, met // n_items * n_items)  # sorted by row either way
    own = met[order[(rank < _OWN) & (often[order] > 0)]]
    left = _CANDIDATES - np.bincount(own // n_items, minlength=len(users))
    affinity, share = category_affinity(history, day.at_ms, shelf)
    sold = np.sort(top(shelf.table[:, ITEM_FEATURES.index("item_log_28d")][None, :], _SOLD)[0])
    fresh = affinity[:, shelf.category[sold]] * share[sold]  # category -1: the last
    for taken in (met, closed):
        at = np.minimum(np.searchsorted(sold, taken % n_items), len(sold) - 1)
        here = sold[at] == taken % n_items
        fresh[taken[here] // n_items, at[here]] = 0
    columns = top(fresh, _CANDIDATES)
    good = np.take_along_axis(fresh, columns, axis=1) > 0
    row, at = np.nonzero(good & (np.arange(columns.shape[1]) < left[:, None]))
    rows, items = np.divmod(np.sort(np.concatenate([own, row * n_items + sold[columns[row, at]]])), n_items)
    return rows, items
