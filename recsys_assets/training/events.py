"""The shape in which models and evaluation see behaviour: arrays of positions, sorted by user and time."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Floats = NDArray[np.float32]

DAY_MS = 86_400_000


@dataclass(frozen=True)
class Events:
    """n interactions, sorted by (user, timestamp, item, action).

    Attributes:
        user: int32[n], position in the user map.
        item: int32[n], position in the item map.
        action: int8[n], position in `actions` of the training set.
        weight: float32[n], the action's weight from the settings (> 0; not decayed).
        timestamp: int64[n], milliseconds since 1970-01-01 UTC.
        n_users, n_items: sizes of the maps; maps are append-only, so later events may have larger ones.
    """

    user: Ints
    item: Ints
    action: NDArray[np.int8]
    weight: Floats
    timestamp: Longs
    n_users: int
    n_items: int

    def __len__(self) -> int:
        return len(self.user)

    @cached_property
    def offsets(self) -> Longs:
        """int64[n_users + 1]: the events of user u are [offsets[u], offsets[u + 1])."""
        counts = np.bincount(self.user, minlength=self.n_users)
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def select(self, mask: NDArray[np.bool_]) -> "Events":
        """The events where bool[n] `mask` holds; the maps keep their sizes."""
        return Events(
            self.user[mask],
            self.item[mask],
            self.action[mask],
            self.weight[mask],
            self.timestamp[mask],
            self.n_users,
            self.n_items,
        )

    def before(self, timestamp_ms: int) -> "Events":
        """The events strictly before a moment."""
        return self.select(self.timestamp < timestamp_ms)

    def of_users(self, users: Ints) -> "Events":
        """The events of int32[b] distinct `users`, renumbered: users[r] becomes user r of b."""
        starts, ends = self.offsets[users], self.offsets[users + 1]
        counts = ends - starts
        rows = np.repeat(np.arange(len(users), dtype=np.int32), counts)
        first = np.cumsum(counts) - counts
        at = np.arange(counts.sum(), dtype=np.int64) - np.repeat(first - starts, counts)
        return Events(
            rows, self.item[at], self.action[at], self.weight[at], self.timestamp[at], len(users), self.n_items
        )

    @staticmethod
    def empty(n_users: int, n_items: int) -> "Events":
        """No events of anybody."""
        none = np.empty(0, np.int32)
        return Events(
            none, none, np.empty(0, np.int8), np.empty(0, np.float32), np.empty(0, np.int64), n_users, n_items
        )

    @staticmethod
    def sort(
        user: Ints,
        item: Ints,
        action: NDArray[np.int8],
        weight: Floats,
        timestamp: Longs,
        n_users: int,
        n_items: int,
    ) -> "Events":
        """Events from arrays in any order."""
        order = np.lexsort((action, item, timestamp, user))
        return Events(
            user[order].astype(np.int32),
            item[order].astype(np.int32),
            action[order].astype(np.int8),
            weight[order].astype(np.float32),
            timestamp[order].astype(np.int64),
            n_users,
            n_items,
        )


@dataclass(frozen=True)
class Items:
    """What is known of each item, by position.

    Attributes:
        ids: the outside id (text) of each position; append-only from day to day.
        category: int32[n_items], position in `categories`, -1 where unknown (the newest known category of the item).
        categories: the outside ids (text) of the categories.
        price: float32[n_items], newest known price, NaN where unknown.
    """

    ids: Sequence[str]
    category: Ints
    categories: Sequence[str]
    price: Floats

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class TrainingSet:
    """Everything a model may learn from at one day: the merged events up to it, without the frozen hold-outs.

    Attributes:
        events: all events, `n_users == len(users)` and `n_items == len(items)`.
        users: the outside id (text) of each user position; append-only.
        items: what is known of each item.
        actions: names of the actions, by position, in the order of the settings.
        end_ms: end (exclusive) of the newest day, milliseconds UTC.
    """

    events: Events
    users: Sequence[str]
    items: Items
    actions: Sequence[str]
    end_ms: int

    def before(self, timestamp_ms: int) -> "TrainingSet":
        """The training set as it stood at a moment; id maps keep their size (positions stay valid)."""
        return TrainingSet(self.events.before(timestamp_ms), self.users, self.items, self.actions, timestamp_ms)
