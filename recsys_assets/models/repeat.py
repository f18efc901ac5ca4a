"""What a user comes back to: their own items, by decayed frequency."""

from typing import ClassVar, Self

import numpy as np
from scipy import sparse

from recsys_assets.models.base import (
    Arrays,
    Events,
    Floats,
    Log,
    Params,
    TrainingSet,
    age_days,
    decay,
    silent,
)
from recsys_assets.settings import Settings


class RepeatModel:
    """A user's action-weighted events with each item, halved every `half_life_days`; 0 for all other items.

    The personal-frequency baseline that learned models rarely beat on groceries (Hu et al., TIFU-KNN, SIGIR 2020).
    It learns nothing: everything is in the history it is asked with.
    """

    name: ClassVar[str] = "repeat"

    def __init__(self, half_life_days: float) -> None:
        self.half_life_days = half_life_days

    @classmethod
    def fit(cls, data: TrainingSet, settings: Settings, log: Log = silent) -> Self:
        return cls(settings.repeat.half_life_days)

    def update(self, data: TrainingSet, settings: Settings, log: Log = silent) -> Self:
        return self.fit(data, settings, log)

    def score(self, history: Events, at_ms: int) -> Floats:
        """float32[n_users, n_items]."""
        weight = history.weight * decay(age_days(history, at_ms), self.half_life_days)
        shape = (history.n_users, history.n_items)
        counts = sparse.coo_array((weight, (history.user, history.item)), shape=shape)
        return counts.tocsr().astype(np.float32).toarray()

    def state(self) -> tuple[Arrays, Params]:
        return {}, {"half_life_days": self.half_life_days}

    @classmethod
    def from_state(cls, arrays: Arrays, params: Params) -> Self:
        return cls(float(params["half_life_days"]))
