"""Making a model and a newer training set speak of the same items."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recsys_assets.training.events import Events, Ints, Items, TrainingSet


@dataclass(frozen=True)
class ModelSpace:
    """A training set in item positions that a model's own item map agrees with.

    Attributes:
        events, items: those of the training set, in these positions.
        data_position: int32, the training set's position of each item here, -1 where it has none; None: the same.
    """

    events: Events
    items: Items
    data_position: Ints | None = None

    def to_data(self, positions: Ints) -> Ints:
        """Positions here (any shape, -1 for none) as positions of the training set."""
        if self.data_position is None:
            return positions
        return np.where(positions >= 0, self.data_position[positions], -1).astype(np.int32)


def in_model_space(data: TrainingSet, model_ids: Sequence[str]) -> ModelSpace:
    """The events and items of `data` in positions that a model with the item map `model_ids` understands.

    Maps only grow, so normally nothing changes. Where late data of an old day renumbered the items since the model was
    made, positions are translated by id, and items the model has never heard of are left out.
    """
    known = len(model_ids)
    if list(data.items.ids[:known]) == list(model_ids):
        return ModelSpace(data.events, data.items)
    position = {item: index for index, item in enumerate(model_ids)}
    translate = np.fromiter((position.get(item, -1) for item in data.items.ids), np.int32, len(data.items))
    source = np.full(known, -1, np.int32)
    source[translate[translate >= 0]] = np.flatnonzero(translate >= 0)
    old = data.events
    kept = translate[old.item] >= 0
    events = Events.sort(
        old.user[kept],
        translate[old.item[kept]],
        old.action[kept],
        old.weight[kept],
        old.timestamp[kept],
        old.n_users,
        known,
    )
    items = Items(
        model_ids,
        np.append(data.items.category, np.int32(-1))[source],  # -1 picks the appended "unknown"
        data.items.categories,
        np.append(data.items.price, np.float32(np.nan))[source],
    )
    return ModelSpace(events, items, source)
