"""Ranks candidates by what is known of the user and the item: trees learned on past days."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np

from recsys_assets.evaluation.metrics import top
from recsys_assets.models.base import Arrays, Events, Floats, Ints, Log, Longs, Params, TrainingSet, silent
from recsys_assets.models.features import (
    ITEM_FEATURES,
    Shelf,
    category_affinity,
    distinct,
    item_table,
    pair_features,
)
from recsys_assets.settings import Settings
from recsys_assets.training.events import DAY_MS

_BATCH_ROWS = 256
_OWN, _CANDIDATES = 70, 90  # candidates of a list to learn from: met before, and together with what was not
_SOLD = 2000  # best-selling items among which new ones are chosen
_MIN_LISTS = 200  # with a hit among the candidates: fewer teach trees little but noise


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
    """LambdaMART (Burges, MSR-TR-2010-82) in LightGBM's form over the features of `models.features`.

    Learned on lists of past days for NDCG, from each day's own past only. The trees stay as they are until they are
    learned anew; what they look at (`shelf`) is counted anew every day.
    """

    def __init__(self, trees: str, shelf: Shelf) -> None:
        """`trees`: LightGBM's text format."""
        self.trees = trees
        self.shelf = shelf

    @classmethod
    def learn(cls, data: TrainingSet, days: Sequence[Day], settings: Settings, log: Log = silent) -> Self | None:
        """From at most `ranker.learn_lists` lists of `days`, all before the end of `data`; None if too few of them
        have anything to teach. The same input gives the same trees."""
        own = settings.ranker
        features, labels, sizes = [], [], []
        names: list[str] = []
        for day, users in days_of_rows(days, own.learn_lists, settings.training.seed) if own.learn_lists else []:
            shelf = shelf_of(data.before(day.at_ms))
            for begin in range(0, len(users), _BATCH_ROWS):
                part = users[begin : begin + _BATCH_ROWS]
                history = day.history.of_users(part)
                rows, items = _candidates(history, day, part, shelf)
                wanted = day.target_rows.astype(np.int64) * history.n_items + day.target_items
                hit = np.isin(part[rows].astype(np.int64) * history.n_items + items, wanted)
                kept = (np.bincount(rows, hit, len(part)) > 0)[rows]
                names, values = pair_features(history, day.at_ms, rows[kept], items[kept], shelf)
                features.append(values)
                labels.append(hit[kept])
                sizes.append(np.unique(rows[kept], return_counts=True)[1])
        lists = sum(map(len, sizes))
        if lists < _MIN_LISTS:
            log(f"ranker: {lists} lists are too few to learn from; the hybrid is a weighted sum of its members")
            return None
        import lightgbm

        parameters = {
            "objective": "lambdarank",
            "lambdarank_truncation_level": 15,
            "learning_rate": own.learning_rate,
            "num_leaves": own.leaves,
            "min_data_in_leaf": 200,
            "feature_fraction": 0.35,
            "bagging_fraction": 0.35,
            "bagging_freq": 1,
            "max_bin": 63,
            "seed": settings.training.seed,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": 1,
            "verbose": -1,
        }
        table = lightgbm.Dataset(
            np.concatenate(features),
            np.concatenate(labels).astype(np.float32),
            group=np.concatenate(sizes),
            feature_name=names,
            params=parameters,
        )
        booster = lightgbm.train(parameters, table, own.trees)
        gain = booster.feature_importance("gain")
        most = ", ".join(names[i] for i in np.argsort(-gain, kind="stable")[:5])
        log(f"ranker: {booster.num_trees()} trees learned from {lists} lists; most used: {most}")
        return cls(booster.model_to_string(), shelf_of(data))

    def at(self, data: TrainingSet) -> Self:
        """The same trees, looking at the shop as of the end of `data`."""
        return type(self)(self.trees, shelf_of(data))

    @cached_property
    def _booster(self) -> Any:
        import lightgbm

        return lightgbm.Booster(model_str=self.trees)

    def score(self, history: Events, at_ms: int, rows: Longs, items: Longs) -> Floats:
        """float32[p]: one score a (row of `history`, item) pair, comparable within a row."""
        if not len(rows):
            return np.zeros(0, np.float32)
        _, values = pair_features(history, at_ms, rows, items, self.shelf)
        return np.asarray(self._booster.predict(values, num_threads=1), np.float32)

    def explain(self, history: Events, at_ms: int, rows: Longs, items: Longs) -> tuple[list[str], Floats, Floats]:
        """Feature names, float32[p, f] values, and float32[p, f] what each adds to the score (SHAP values of the trees,
        Lundberg et al. 2020; the score less a constant is their sum)."""
        names, values = pair_features(history, at_ms, rows, items, self.shelf)
        added = np.asarray(self._booster.predict(values, pred_contrib=True, num_threads=1), np.float32)
        return names, values, added[:, :-1]

    def state(self) -> tuple[Arrays, Params]:
        return dict(self.shelf._asdict()), {"trees": self.trees}

    @classmethod
    def from_state(cls, arrays: Arrays, params: Params) -> Self:
        return cls(str(params["trees"]), Shelf(arrays["table"], arrays["category"], arrays["price"]))


def shelf_of(data: TrainingSet) -> Shelf:
    """The item side as of the end of `data`."""
    return Shelf(item_table(data.events, data.end_ms), data.items.category, data.items.price)


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
