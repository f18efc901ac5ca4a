"""What a user comes back to: their own items, by how often, how lately and how regularly they were met."""

from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys_assets.models import listnet
from recsys_assets.models.base import (
    Arrays,
    Events,
    Floats,
    Ints,
    Log,
    Longs,
    Params,
    TrainingSet,
    age_days,
    decay,
    silent,
)
from recsys_assets.models.listnet import Lists
from recsys_assets.settings import RepeatSettings, Settings
from recsys_assets.training.events import DAY_MS

Array = NDArray[np.float64]

_HALF_LIVES = (5.0, 15.0, 45.0, 120.0, 365.0)  # days, of a user's own events
_CATEGORY_HALF_LIVES = (15.0, 120.0)  # days, of a user's events in the item's category
_ITEM_HALF_LIVES = (3.0, 14.0, 90.0)  # days, of everybody's events
_HIDDEN = (32, 16)
_MIN_LISTS = 50  # fewer examples teach less than decayed frequency knows
_BATCH_LISTS = 32


class RepeatModel:
    """Ranks the items of a user's history; all other items score 0.

    Decayed frequency (the personal baseline that learned models rarely beat on groceries: Hu et al., TIFU-KNN, SIGIR
    2020) does not know that milk is due and that yesterday's cake is not. So a small network learns, from the newest
    days, which items of their history people came back to: frequency at five half-lives, time since and between, what
    everybody buys now. The loss is a softmax over the user's list (ListNet, Cao et al., ICML 2007). With too few days
    to learn from, the score is the action-weighted frequency, halved every `half_life_days`.
    """

    name: ClassVar[str] = "repeat"

    def __init__(self, half_life_days: float, network: Arrays, items: Floats, category: Ints) -> None:
        """`network`: mean, scale, w0, b0, w1, b1, w2, b2, or empty; `items`: float32[n_items, 4] `item_features`;
        `category`: int32[n_items], -1 where unknown."""
        self.half_life_days = half_life_days
        self.network = network
        self.items = items
        self.category = category

    @classmethod
    def fit(cls, data: TrainingSet, settings: Settings, log: Log = silent) -> Self:
        own = settings.repeat
        items = item_features(data.events, data.end_ms)
        examples = _examples(data, own, settings.training.seed)
        network: Arrays = {}
        if examples is None or len(examples.sizes) < _MIN_LISTS:
            count = 0 if examples is None else len(examples.sizes)
            log(f"repeat: {count} lists are too few to learn from; decayed frequency it is")
        else:
            recipe = listnet.Recipe(_HIDDEN, own.learning_rate, own.epochs, _BATCH_LISTS)
            network = listnet.learn(examples, recipe, settings.training.seed, lambda message: log(f"repeat: {message}"))
        return cls(own.half_life_days, network, items, data.items.category)

    def update(self, data: TrainingSet, settings: Settings, log: Log = silent) -> Self:
        """Keeps what was learned about returning and counts the items anew."""
        if not self.network:
            return self.fit(data, settings, log)
        items = item_features(data.events, data.end_ms)
        return type(self)(settings.repeat.half_life_days, self.network, items, data.items.category)

    def score(self, history: Events, at_ms: int) -> Floats:
        """float32[n_users, n_items]: above 0 for the items of the history (a share of 1, if learned), 0 for others."""
        shape = (history.n_users, history.n_items)
        scores = np.zeros(shape, np.float32)
        if not len(history):
            return scores
        if not self.network:
            weight = history.weight * decay(age_days(history, at_ms), self.half_life_days)
            counts = sparse.coo_array((weight, (history.user, history.item)), shape=shape).tocsr().toarray()
            return counts.astype(np.float32)
        items = np.zeros((history.n_items, self.items.shape[1]), np.float32)
        known = min(len(items), len(self.items))
        items[:known] = self.items[:known]
        category = np.full(history.n_items, -1, np.int32)
        category[:known] = self.category[:known]
        users, positions, features = pair_features(history, at_ms, items, category)
        logits = listnet.forward(self.network, features)
        begins = np.flatnonzero(np.diff(users, prepend=-1))
        sizes = np.diff(np.append(begins, len(users)))
        odds = np.exp(logits - np.repeat(np.maximum.reduceat(logits, begins), sizes))
        share = odds / np.repeat(np.add.reduceat(odds, begins), sizes)
        scores[users, positions] = np.maximum(share, 1e-12)
        return scores

    def state(self) -> tuple[Arrays, Params]:
        arrays = {f"network.{name}": value for name, value in self.network.items()}
        return {**arrays, "items": self.items, "category": self.category}, {"half_life_days": self.half_life_days}

    @classmethod
    def from_state(cls, arrays: Arrays, params: Params) -> Self:
        mark = "network."
        network = {name.removeprefix(mark): value for name, value in arrays.items() if name.startswith(mark)}
        return cls(float(params["half_life_days"]), network, arrays["items"], arrays["category"])


def item_features(events: Events, at_ms: int) -> Floats:
    """float32[n_items, 4]: log decayed counts at three half-lives, and log mean events a user with the item has."""
    age = age_days(events, at_ms)
    columns = [
        np.log1p(np.bincount(events.item, decay(age, half_life), events.n_items)) for half_life in _ITEM_HALF_LIVES
    ]
    pairs = np.unique(events.user.astype(np.int64) * max(events.n_items, 1) + events.item)
    users = np.bincount(pairs % max(events.n_items, 1), minlength=events.n_items)
    columns.append(np.log((np.bincount(events.item, minlength=events.n_items) + 2) / (users + 2)))
    return np.stack(columns, axis=1).astype(np.float32)


def pair_features(history: Events, at_ms: int, items: Floats, category: Ints) -> tuple[Longs, Longs, Floats]:
    """int64[p] users and items, each pair of the history once, sorted, and float32[p, f] what is known of the pair."""
    key = history.user.astype(np.int64) * history.n_items + history.item
    order = np.argsort(key, kind="stable")  # by time within a pair
    key, age = key[order], np.maximum(age_days(history, at_ms)[order], 0)
    weight = history.weight[order]
    first = np.flatnonzero(np.diff(key, prepend=-1))
    count = np.diff(np.append(first, len(key)))
    since, span = age[first + count - 1], age[first]
    users, positions = np.divmod(key[first], history.n_items)
    columns = [np.log(1e-3 + np.add.reduceat(weight * decay(age, half_life), first)) for half_life in _HALF_LIVES]
    interval = (span - since + 1) / np.maximum(count - 1, 1)
    due = np.where(count > 1, np.log((since + 0.5) / (interval + 0.5)), 0)
    events_of = np.bincount(history.user, minlength=history.n_users)
    ends = np.maximum(np.cumsum(events_of) - 1, 0)
    idle = np.maximum((at_ms - history.timestamp[ends]) / DAY_MS, 0)[users]
    columns += [
        np.log(since + 0.5),
        np.log(span + 1),
        np.log(count),
        (count == 1).astype(np.float64),
        due,
        np.abs(due),
        np.log(idle + 0.1),
        np.log(since + 0.5) - np.log(idle + 0.5),
        np.log(events_of[users] + 1),
        np.log(count / events_of[users]),
        *_category_columns(users, first, since, weight, age, positions, category),
    ]
    return users, positions, np.column_stack([np.stack(columns, axis=1), items[positions]]).astype(np.float32)


def _category_columns(
    users: Longs, first: Longs, since: Array, weight: Floats, age: Array, items: Longs, category: Ints
) -> list[Array]:
    """What the user did with the pair's whole category (another brand of milk): two decayed counts, the time since,
    and the item's share. An item of unknown category is a category of its own."""
    group = np.where(category[items] >= 0, category[items], int(category.max(initial=-1)) + 1 + items)
    _, group = np.unique(users * (int(group.max()) + 1) + group, return_inverse=True)
    newest = np.full(group.max() + 1, np.inf)
    np.minimum.at(newest, group, since)
    columns, share = [], np.zeros(0)
    for half_life in _CATEGORY_HALF_LIVES:
        own = np.add.reduceat(weight * decay(age, half_life), first)
        whole = np.bincount(group, own)[group]
        columns.append(np.log(1e-3 + whole))
        share = np.log((own + 1e-3) / (whole + 1e-3))
    return [*columns, share, np.log(newest[group] + 0.5)]


def _examples(data: TrainingSet, own: RepeatSettings, seed: int) -> Lists | None:
    """A seeded sample of (user, day) lists of the newest days in which the user came back to something."""
    events, rng = data.events, np.random.default_rng(seed)
    features, returned, sizes, hits = [], [], [], []
    for back in range(own.learn_days, 0, -1):
        start = data.end_ms - back * DAY_MS
        day = events.select((events.timestamp >= start) & (events.timestamp < start + DAY_MS))
        before = events.before(start)
        if not len(day) or not len(before):
            continue
        users = np.unique(day.user)
        users = np.sort(rng.permutation(users)[: -(-own.learn_lists // own.learn_days)])
        history = before.of_users(users)
        if not len(history):
            continue
        rows, items, values = pair_features(history, start, item_features(before, start), data.items.category)
        hit = np.isin(
            users[rows].astype(np.int64) * events.n_items + items, day.user * np.int64(events.n_items) + day.item
        )
        useful = np.bincount(rows, hit, len(users)) > 0
        kept = useful[rows]
        features.append(values[kept])
        returned.append(hit[kept])
        sizes.append(np.bincount(rows[kept], minlength=len(users))[useful])
        hits.append(np.bincount(rows, hit, len(users))[useful])
    if not sizes:
        return None
    weights = (1 / np.concatenate(hits)).astype(np.float32)  # a list counts once, however much came back
    return Lists(np.concatenate(features), np.concatenate(returned), np.concatenate(sizes), weights)
