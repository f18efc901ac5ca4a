"""Decayed recent popularity: what everybody does now."""

from typing import ClassVar, Self

import numpy as np

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


class PopularityModel:
    """The action-weighted events of each item, an event losing half its weight every `half_life_days`.

    The baseline that eSASRec (arXiv 2508.06450) found hard to beat on global time splits ("Popular-7-days"), with
    exponential decay instead of a window. Decay is exponential, so the order of the items does not depend on `at_ms`.
    """

    name: ClassVar[str] = "popularity"

    def __init__(self, popularity: Floats) -> None:
        self.popularity = popularity

    @classmethod
    def fit(cls, data: TrainingSet, settings: Settings, log: Log = silent) -> Self:
        """float32[n_items] sums; float64 sums in event order, so the same events give the same bytes."""
        events = data.events
        weight = events.weight * decay(age_days(events, data.end_ms), settings.popularity.half_life_days)
        return cls(np.bincount(events.item, weight, events.n_items).astype(np.float32))

    def update(self, data: TrainingSet, settings: Settings, log: Log = silent) -> Self:
        """Fits again: one pass over the events costs less than keeping count of what was added."""
        return self.fit(data, settings, log)

    def score(self, history: Events, at_ms: int) -> Floats:
        """float32[n_users, n_items], the same row for everybody (a read-only view: it costs no memory)."""
        row = np.zeros(history.n_items, np.float32)
        known = min(len(self.popularity), history.n_items)
        row[:known] = self.popularity[:known]
        return np.broadcast_to(row, (history.n_users, history.n_items))

    def state(self) -> tuple[Arrays, Params]:
        return {"popularity": self.popularity}, {}

    @classmethod
    def from_state(cls, arrays: Arrays, params: Params) -> Self:
        return cls(arrays["popularity"])
