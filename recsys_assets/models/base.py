"""The small protocol every member of the hybrid follows.

A model holds item-side knowledge only. What a user did is passed in with each call, so a list can follow a user's
latest events without retraining, a new user needs nothing special, and one model can be asked about several days.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any, ClassVar, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from threadpoolctl import threadpool_info, threadpool_limits

from recsys_assets.settings import Settings
from recsys_assets.training.events import DAY_MS, Events, Floats, Ints, Longs, TrainingSet

Arrays = dict[str, NDArray[Any]]
Params = dict[str, Any]
Log = Callable[[str], None]
Result = TypeVar("Result")


def silent(message: str) -> None:
    """A `Log` that drops its messages."""


class Member(Protocol):
    """A model that can score every item for a user."""

    name: ClassVar[str]

    @classmethod
    def fit(cls, data: TrainingSet, settings: Settings, log: Log = silent) -> Self:
        """Learns from scratch. The same data and settings give the same model. `data` may have no events at all."""
        ...

    def update(self, data: TrainingSet, settings: Settings, log: Log = silent) -> Self:
        """A new model that has also learned from the events since this one was made.

        `data` holds all events (old and new) and id maps that begin with the ones this model knows.
        """
        ...

    def score(self, history: Events, at_ms: int) -> Floats:
        """float32[history.n_users, history.n_items]: higher is better, one row a user of `history`.

        Args:
            history: what the users have done before `at_ms`; users without events are allowed.
            at_ms: the moment the list is for (milliseconds UTC): decay is counted from it.

        A row may be constant (nothing known about this user). Items the model has never seen get the lowest
        score of their row unless the model knows better (a category, say). All values are finite.
        """
        ...

    def state(self) -> tuple[Arrays, Params]:
        """Everything needed to make the model again: named arrays and JSON-able parameters. No pickles."""
        ...

    @classmethod
    def from_state(cls, arrays: Arrays, params: Params) -> Self: ...


def decay(age_days: NDArray[Any], half_life_days: float) -> NDArray[np.float64]:
    """0.5 ** (age / half-life); ages below zero (clock skew) count as zero."""
    return np.exp2(-np.maximum(age_days, 0.0) / half_life_days)


def age_days(events: Events, at_ms: int) -> NDArray[np.float64]:
    """float64[n]: how long before `at_ms` each event was, in days."""
    return (at_ms - events.timestamp) / DAY_MS


@dataclass(frozen=True)
class Steps:
    """What users did, item after item: runs of one item (view, click, cart, purchase) count as one step.

    Attributes:
        user, item: int32[m], sorted by user and time.
        action: int8[m], weight: float32[m]: the strongest of the run.
        timestamp: int64[m] milliseconds, the first of the run.
        visit: int64[m], rises by one whenever user or timestamp changes: items of one visit have no known order.
    """

    user: Ints
    item: Ints
    action: NDArray[np.int8]
    weight: Floats
    timestamp: Longs
    visit: Longs

    def __len__(self) -> int:
        return len(self.user)


def steps(events: Events) -> Steps:
    """The steps of `events`; within a visit in an order that is fixed but tells nothing (a hash of item and time)."""
    user, item, timestamp = events.user, events.item, events.timestamp
    if not len(events):
        return Steps(user, item, events.action, events.weight, timestamp, np.zeros(0, np.int64))
    first = np.ones(len(events), bool)
    first[1:] = (user[1:] != user[:-1]) | (item[1:] != item[:-1])
    run = np.cumsum(first)
    strongest = np.lexsort((events.weight, run))[np.append(np.flatnonzero(first)[1:], len(events)) - 1]
    user, item, timestamp = user[first], item[first], timestamp[first]
    new_visit = np.ones(len(user), bool)
    new_visit[1:] = (user[1:] != user[:-1]) | (timestamp[1:] != timestamp[:-1])
    visit = np.cumsum(new_visit) - 1
    # Sorted by item position a basket would teach that larger positions follow smaller ones.
    mixed = (item.astype(np.uint64) + timestamp.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    order = np.lexsort((mixed >> np.uint64(20), visit))
    strongest = strongest[order]
    return Steps(user, item[order], events.action[strongest], events.weight[strongest], timestamp, visit)


def category_means(table: Floats, seen: NDArray[np.bool_], category: Ints) -> tuple[Floats, NDArray[np.bool_]]:
    """A stand-in for items that were never seen: the mean row of the seen items of their category.

    Args:
        table: float32[n_items, d]. seen: bool[n_items]. category: int32[n_items], -1 where unknown.

    Returns: the filled table, and bool[n_items] which rows mean something now.
    """
    known = seen.copy()
    missing = np.flatnonzero(~seen & (category >= 0))
    if not len(missing):
        return table, known
    from_rows = np.flatnonzero(seen & (category >= 0))
    n = int(category.max()) + 1
    count = np.bincount(category[from_rows], minlength=n)
    members = sparse.csr_array(
        (np.ones(len(from_rows), np.float32), (category[from_rows], np.arange(len(from_rows)))),
        shape=(n, len(from_rows)),
    )
    means = (members @ table[from_rows]) / np.maximum(count, 1)[:, None]
    missing = missing[count[category[missing]] > 0]
    table = table.copy()
    table[missing] = means[category[missing]]
    known[missing] = True
    return table, known


def lowest_for_unknown(scores: Floats, known: NDArray[np.bool_], n_items: int) -> Floats:
    """float32[b, n_items]: `scores` (float32[b, len(known)], changed in place) with the lowest score of the row for
    items that are not `known` and for items beyond them."""
    if not known.any():
        return np.zeros((len(scores), n_items), np.float32)
    if not known.all():
        scores[:, ~known] = np.inf
    low = scores.min(axis=1)
    if not known.all():
        scores[:, ~known] = low[:, None]
    if n_items <= scores.shape[1]:
        return scores[:, :n_items]
    padded = np.repeat(low[:, None], n_items, axis=1)
    padded[:, : scores.shape[1]] = scores
    return padded


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one CPU thread: small matrices gain little from a second one and lose a lot on a busy machine, and the
    result does not depend on the number of cores."""
    import torch

    threads = torch.get_num_threads()
    if threads == 1:  # restoring what another thread set for a while would make it last
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _OneBlasThread:
    """NumPy's and SciPy's BLAS on one thread, whoever of our threads asks: the limit is the whole process's, so the
    first who enters sets it and the last who leaves lifts it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._inside = 0
        self._limit: Any = None

    def __enter__(self) -> None:
        import scipy.linalg  # noqa: F401 - brings SciPy's own BLAS, which a limit set before would miss

        with self._lock:
            if not self._inside:
                self._limit = threadpool_limits(1, "blas")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._limit.restore_original_limits()


one_blas_thread = _OneBlasThread()


def in_threads(work: Callable[[int], Result], parts: Sequence[int]) -> list[Result]:
    """`work` of every part, in order, on as many threads as BLAS may use (OMP_NUM_THREADS, the cores), at most 4: each
    holds a batch of scores. BLAS itself runs on one thread, so the result does not depend on their number."""
    threads = min([len(parts), 4, *(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")])
    with one_blas_thread:
        if threads < 2:
            return [work(part) for part in parts]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(work, parts))


__all__ = [
    "Arrays",
    "Events",
    "Floats",
    "Ints",
    "Log",
    "Longs",
    "Member",
    "Params",
    "Steps",
    "TrainingSet",
    "age_days",
    "category_means",
    "decay",
    "in_threads",
    "lowest_for_unknown",
    "one_blas_thread",
    "one_thread",
    "silent",
    "steps",
]
