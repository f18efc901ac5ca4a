"""The small protocol every member of the hybrid follows.

A model holds item-side knowledge only. What a user did is passed in with each call, so a list can follow a user's
latest events without retraining, a new user needs nothing special, and one model can be asked about several days.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from recsys_assets.settings import Settings
from recsys_assets.training.events import Events, Floats, Ints, TrainingSet

Arrays = dict[str, NDArray[Any]]
Params = dict[str, Any]
Log = Callable[[str], None]


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


__all__ = ["Arrays", "Events", "Floats", "Ints", "Log", "Member", "Params", "TrainingSet", "decay", "silent"]
