"""What an artifact was made of: which versions of which days, as its manifest records them."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from recsys_assets.storage.artifacts import Artifact, Artifacts


class Made(NamedTuple):
    """One version of one day of an asset."""

    asset: str
    day: str
    version: str


def parents(made: Made, artifact: Artifact) -> Iterator[Made]:
    """The artifacts this one was made of directly."""
    info = artifact.info
    if made.asset == "training_set":
        return
    if made.asset == "hybrid_model":
        yield Made("training_set", made.day, info["training_set"])
        for name, version in info["inputs"]["members"].items():
            yield Made(f"{name}_model", made.day, version)
    else:
        yield Made("training_set", made.day, info["inputs"]["training_set"])
    if info.get("parent"):  # whose state, or whose ranking, it goes on from
        yield Made(made.asset, info["parent"]["day"], info["parent"]["version"])


def ancestry(artifacts: Artifacts, begin: Iterable[Made]) -> set[Made]:
    """`begin` and everything it was made of, back to the full refits; of a version that is gone, itself alone."""
    found: set[Made] = set()
    waiting = list(begin)
    while waiting:
        made = waiting.pop()
        artifact = artifacts.at(*made) if made not in found else None
        found.add(made)
        if artifact is not None:
            waiting += parents(made, artifact)
    return found
