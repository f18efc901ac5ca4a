"""Lists from the champion: for one user now, and for everybody."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recsys_assets.evaluation.tasks import bought_pairs
from recsys_assets.models.hybrid import HybridModel
from recsys_assets.pipeline import InputError, Pipeline
from recsys_assets.serving.alignment import in_model_space
from recsys_assets.settings import Settings
from recsys_assets.storage.artifacts import Artifact, ArtifactError
from recsys_assets.training.blend import load_hybrid
from recsys_assets.training.events import Events, Ints, Items, TrainingSet
from recsys_assets.training.training_set import read_training_set


@dataclass(frozen=True)
class Recommendation:
    """One place of a list; rank counts from 1."""

    rank: int
    item_id: str
    category: str | None
    score: float


def read_item_list(path: Path) -> set[str]:
    """The item ids of a text file, one a line; blank lines and spaces around ids do not count.

    Raises:
        InputError: the file cannot be read or names no item.
    """
    try:
        ids = {line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()} - {""}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the list of available items {path} cannot be read: {error}") from error
    if not ids:
        raise InputError(f"the list of available items {path} names no item")
    return ids


def available_by_setting(settings: Settings) -> set[str] | None:
    """The items that may be recommended by `recommend.available_items_file`; None: all."""
    name = settings.recommend.available_items_file
    return read_item_list(settings.home / name) if name else None


def allowed_items(items: Items, available: Collection[str] | None, category: str | None) -> NDArray[np.bool_] | None:
    """bool[n_items] of the items that pass both filters; None where there is no filter.

    Raises:
        InputError: no item has that category.
    """
    if available is None and category is None:
        return None
    allowed = np.ones(len(items), bool)
    if available is not None:
        allowed &= np.fromiter((item in available for item in items.ids), bool, len(items))
    if category is not None:
        if category not in items.categories:
            raise InputError(f"no item has category {category!r}")
        allowed &= items.category == items.categories.index(category)
    return allowed


class Recommender:
    """The champion with the newest histories, ready to answer.

    Attributes:
        model_day, model_version: the champion's.
        data_day: the day up to which histories go.
    """

    def __init__(
        self,
        model: HybridModel,
        artifact: Artifact,
        model_ids: Sequence[str],
        data: TrainingSet,
        data_day: str,
        settings: Settings,
    ) -> None:
        self.model = model
        self.model_day, self.model_version = str(artifact.info["day"]), artifact.version
        self.data_day = data_day
        self.actions, self.at_ms = data.actions, data.end_ms
        self.user_ids = data.users
        self.users = {user: position for position, user in enumerate(data.users)}
        space = in_model_space(data, model_ids)
        self.events, self.items = space.events, space.items
        self.settings = settings

    @staticmethod
    def open(pipeline: Pipeline, day: str | None = None) -> "Recommender":
        """The champion with the histories of a day's training set, by default the newest.

        Raises:
            InputError: there is no champion or no training set yet.
        """
        champion = pipeline.champion.read()
        if champion is None:
            refused = pipeline.tables.days("promotion")
            if refused:
                reason = pipeline.tables.read("promotion", refused[-1])["reason"][0]
                raise InputError(f"there is no champion: the model of {refused[-1]} was refused: {reason}")
            raise InputError("there is no champion yet: run the job `train` for a day (recsys preflight helps)")
        artifact = pipeline.artifacts.at("hybrid_model", champion["day"], champion["version"])
        if artifact is None:
            raise ArtifactError(
                f"the champion's files ({champion['day']}, {champion['version']}) are gone. Materialize hybrid_model, "
                f"evaluation and promotion for {champion['day']} or a newer day again."
            )
        artifact.verify()
        days = pipeline.artifacts.days("training_set")
        if not days:
            raise InputError("there is no training set yet: materialize the job `train` for a day")
        data_day = day or days[-1]
        data = read_training_set(pipeline.artifacts.need("training_set", data_day))
        model, model_ids = load_hybrid(artifact)
        return Recommender(model, artifact, model_ids, data, data_day, pipeline.settings)

    def knows(self, user: str) -> bool:
        """Whether the user has events to go by."""
        position = self.users.get(user)
        return position is not None and bool(self.events.offsets[position + 1] > self.events.offsets[position])

    def lists(
        self, users: Ints, count: int, category: str | None = None, available: Collection[str] | None = None
    ) -> tuple[Ints, NDArray[np.float32]]:
        """int32[b, count] item positions (-1: no item left) and their scores, for int32[b] user positions.

        Raises:
            InputError: no item has that category.
        """
        return self._lists(self.events.of_users(users), count, category, available)

    def recommend(
        self, user: str, count: int, category: str | None = None, available: Collection[str] | None = None
    ) -> list[Recommendation]:
        """The list of one user; popularity's for a user who is not known.

        Raises:
            InputError: no item has that category.
        """
        position = self.users.get(user)
        if position is None:
            history = Events.empty(1, self.events.n_items)
        else:
            history = self.events.of_users(np.array([position], np.int32))
        found, scores = self._lists(history, count, category, available)
        return [
            Recommendation(rank + 1, str(self.items.ids[item]), self.category(int(item)), float(score))
            for rank, (item, score) in enumerate(zip(found[0], scores[0], strict=True))
            if item >= 0
        ]

    def _lists(
        self, history: Events, count: int, category: str | None, available: Collection[str] | None
    ) -> tuple[Ints, NDArray[np.float32]]:
        if available is None:
            available = available_by_setting(self.settings)
        found = self.model.recommend(
            history,
            self.at_ms,
            count,
            forbidden=bought_pairs(history, self.actions, self.settings),
            allowed=allowed_items(self.items, available, category),
        )
        return found.items, found.scores

    def category(self, item: int) -> str | None:
        position = int(self.items.category[item])
        return str(self.items.categories[position]) if position >= 0 else None
