"""The members of the hybrid, by name, in the order in which they are shown."""

from typing import Any

from recsys_assets.models.als import AlsModel
from recsys_assets.models.popularity import PopularityModel
from recsys_assets.models.repeat import RepeatModel
from recsys_assets.models.sequence import SequenceModel
from recsys_assets.models.transition import TransitionModel

# `type[Member]` would say it, but a protocol with class variables is not accepted for a class object.
MEMBERS: dict[str, Any] = {
    kind.name: kind for kind in (PopularityModel, RepeatModel, TransitionModel, AlsModel, SequenceModel)
}

__all__ = ["MEMBERS"]
