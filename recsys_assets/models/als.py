"""Matrix factorisation of implicit feedback (Hu, Koren & Volinsky, ICDM 2008) by implicit's ALS."""

from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys_assets.models.base import (
    Arrays,
    Events,
    Floats,
    Ints,
    Log,
    Params,
    TrainingSet,
    age_days,
    category_means,
    decay,
    lowest_for_unknown,
    one_blas_thread,
    silent,
)
from recsys_assets.settings import Settings

_FOLD_IN_ITEMS = 4096  # of all users solved at once: 4 MB of factors
# Steps of conjugate gradients in an update: users begin at zero, items where they stood (as in implicit's own sweeps).
_COLD_STEPS, _WARM_STEPS = 6, 3


def confidence(events: Events, at_ms: int, alpha: float, half_life_days: float, n_items: int) -> sparse.csr_matrix:
    """csr float32[n_users, n_items]: 1 + alpha * sum of weight * decay, over the events with items below `n_items`.

    implicit takes the value of an entry as the confidence itself: below 1 it would mean "less sure than of an item
    never met", so the 1 is added here and implicit's own alpha stays 1 (its GPU code ignores it anyway).
    """
    keep = events.item < n_items
    weight = (events.weight * decay(age_days(events, at_ms), half_life_days))[keep]
    matrix = sparse.csr_matrix((weight, (events.user[keep], events.item[keep])), shape=(events.n_users, n_items))
    matrix.sum_duplicates()
    matrix.data = (1 + alpha * matrix.data).astype(np.float32)
    return matrix


class AlsModel:
    """Item factors; a user's factors are solved from the history in hand (fold-in), never stored.

    So the half step by which implicit's user factors lag behind its item factors does not matter, and a new user is
    no special case. Items without events get the mean factors of their category.
    """

    name: ClassVar[str] = "als"

    def __init__(self, item_factors: Floats, seen: NDArray[np.bool_], category: Ints, params: Params) -> None:
        """float32[n_items, f] factors, bool[n_items] items with events, int32[n_items] category (-1 unknown); params:
        alpha, regularization, half_life_days, end_ms."""
        self.item_factors = item_factors
        self.seen = seen
        self.category = category
        self.params = params

    @classmethod
    def fit(cls, data: TrainingSet, settings: Settings, log: Log = silent) -> Self:
        own = settings.als
        factors = _first_factors(data.events.n_items, settings)
        if len(data.events):
            matrix = confidence(data.events, data.end_ms, own.alpha, own.half_life_days, data.events.n_items)
            model = _implicit(own.factors, own.regularization, own.iterations, settings.training.seed)
            model.item_factors = factors
            model.user_factors = np.zeros((data.events.n_users, own.factors), np.float32)
            with one_blas_thread:
                model.fit(matrix, show_progress=False, callback=lambda i, s, _: log(f"als: sweep {i + 1}, {s:.1f} s"))
        return cls._make(factors, data, settings)

    def update(self, data: TrainingSet, settings: Settings, log: Log = silent) -> Self:
        """Half a sweep over all users, half a sweep over the items met since: the others' factors hardly move."""
        own, since = settings.als, int(self.params["end_ms"])
        n_old, n_items = len(self.item_factors), data.events.n_items
        if self.item_factors.shape[1] != own.factors or n_old > n_items or data.end_ms < since:
            return self.fit(data, settings, log)
        # implicit does not grow its arrays by itself and reads past their end. Zeros would not do for a new item all
        # of whose users are new: nothing would ever move either side away from zero.
        factors = _first_factors(n_items, settings)
        factors[:n_old][self.seen] = self.item_factors[self.seen]
        met = np.zeros(n_items, bool)
        met[data.events.item[data.events.timestamp >= since]] = True
        met[data.events.item] |= ~np.pad(self.seen, (0, n_items - n_old))[data.events.item]  # new, but late
        items = np.flatnonzero(met)
        if len(items):
            users_items = confidence(data.events, data.end_ms, own.alpha, own.half_life_days, n_items)
            items_users = users_items.T.tocsr()[items]
            users = np.zeros((data.events.n_users, own.factors), np.float32)
            model = _implicit(own.factors, own.regularization, 1, settings.training.seed)
            with one_blas_thread:
                for _ in range(own.update_iterations):
                    model.cg_steps = _COLD_STEPS
                    model.solver(users_items, users, factors, own.regularization, num_threads=0)
                    model.cg_steps = _WARM_STEPS
                    some = factors[items]
                    model.solver(items_users, some, users, own.regularization, num_threads=0)
                    factors[items] = some
        log(f"als: {len(items)} of {n_items} items solved again")
        return self._make(factors, data, settings)

    @classmethod
    def _make(cls, factors: Floats, data: TrainingSet, settings: Settings) -> Self:
        params = settings.als.model_dump(include={"alpha", "regularization", "half_life_days"})
        seen = np.bincount(data.events.item, minlength=data.events.n_items) > 0
        factors = np.where(seen[:, None], factors, np.float32(0))
        return cls(factors, seen, data.items.category, {**params, "end_ms": data.end_ms})

    @cached_property
    def _table(self) -> tuple[Floats, NDArray[np.bool_]]:
        return category_means(self.item_factors, self.seen, self.category)

    @cached_property
    def _solver(self) -> Any:
        model = _implicit(self.item_factors.shape[1], self.params["regularization"], 1, 0)
        model.item_factors = self.item_factors
        with one_blas_thread:
            model.YtY  # noqa: B018 - computed once, here
        return model

    @cached_property
    def _projected(self) -> NDArray[np.float64]:
        """float64[n_items, f]: Y (Y'Y + reg I)^-1."""
        wide = self.item_factors.astype(np.float64)
        return np.linalg.solve(wide.T @ wide + self.params["regularization"] * np.eye(wide.shape[1]), wide.T).T

    def user_factors(self, history: Events, at_ms: int) -> Floats:
        """float32[n_users, f]: the exact solution of (Y'CY + reg I) x = Y'C1 for each user; zeros without history.

        A user with few items costs a system of that many unknowns instead of f, by the identity
        (A + U'DU)^-1 U' = A^-1 U' (I + D U A^-1 U')^-1 (Woodbury; Golub & Van Loan, Matrix Computations, 2.1.4) with
        A = Y'Y + reg I, U the user's rows of Y and D = C - I. implicit solves the others.
        """
        n_items, f = min(len(self.item_factors), history.n_items), self.item_factors.shape[1]
        factors = np.zeros((history.n_users, f), np.float32)
        if n_items == 0 or history.n_users == 0:
            return factors
        matrix = confidence(history, at_ms, self.params["alpha"], self.params["half_life_days"], n_items)
        counts = np.diff(matrix.indptr)
        longest = f if self.params["regularization"] > 0 else 0  # without it Y'Y alone may be singular
        with one_blas_thread:
            width, above = 4, 0
            while above < longest:
                width = min(width, longest)
                users = np.flatnonzero((counts > above) & (counts <= width))
                rows = max(1, _FOLD_IN_ITEMS // width)
                for begin in range(0, len(users), rows):
                    some = users[begin : begin + rows]
                    factors[some] = self._fold_in(matrix, some, width)
                above, width = width, 2 * width
            users = np.flatnonzero(counts > longest)
            if len(users):
                factors[users] = self._solver.recalculate_user(np.arange(len(users)), matrix[users])
        return factors

    def _fold_in(self, matrix: sparse.csr_matrix, users: NDArray[np.int64], width: int) -> Floats:
        """float32[b, f] factors of int64[b] `users` with at most `width` items each, shorter ones padded with nothing
        (an item of confidence 0 and no excess)."""
        place = matrix.indptr[users][:, None] + np.arange(width)
        filled = place < matrix.indptr[users + 1][:, None]
        place = np.where(filled, place, 0)
        item, sure = matrix.indices[place], np.where(filled, matrix.data[place], 0).astype(np.float64)
        projected = self._projected[item]
        excess = np.where(filled, sure - 1, 0)
        system = excess[:, :, None] * (self.item_factors[item] @ projected.transpose(0, 2, 1)) + np.eye(width)
        share = np.linalg.solve(system, sure[:, :, None])
        return (share.transpose(0, 2, 1) @ projected)[:, 0].astype(np.float32)

    def score(self, history: Events, at_ms: int) -> Floats:
        """float32[n_users, n_items]: preferences, about 0 to 1; 0 throughout for users without (known) history."""
        table, known = self._table
        return lowest_for_unknown(self.user_factors(history, at_ms) @ table.T, known, history.n_items)

    def state(self) -> tuple[Arrays, Params]:
        return {"item_factors": self.item_factors, "seen": self.seen, "category": self.category}, self.params

    @classmethod
    def from_state(cls, arrays: Arrays, params: Params) -> Self:
        return cls(arrays["item_factors"], arrays["seen"], arrays["category"], params)


def _first_factors(n_items: int, settings: Settings) -> Floats:
    """float32[n_items, f] seeded noise, the same for an item however many come after it: a fit of today and one of
    yesterday then find nearly the same factors, and do not differ by the luck of their draw."""
    rng = np.random.default_rng(settings.training.seed)
    return rng.random((n_items, settings.als.factors), np.float32) * np.float32(0.01)


def _implicit(factors: int, regularization: float, iterations: int, seed: int) -> Any:
    from implicit.cpu.als import AlternatingLeastSquares

    with one_blas_thread:  # implicit warns about the BLAS threads it finds
        return AlternatingLeastSquares(
            factors=factors, regularization=regularization, alpha=1.0, iterations=iterations, random_state=seed
        )
