"""`recsys champion` and `recsys rollback`: who is in charge and why, and going back."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from recsys_assets.evaluation.promotion import ROLLED_BACK
from recsys_assets.pipeline import InputError, Pipeline
from recsys_assets.storage.artifacts import ArtifactError
from recsys_assets.training.blend import load_hybrid


def timeline_lines(pipeline: Pipeline) -> Iterator[str]:
    """The moves of the champion, newest first, each with its reason, and before them the challengers refused since."""
    moves = pipeline.champion.timeline()
    standing = pipeline.champion.standing()
    if not moves:
        yield "there is no champion yet: run the job `train` for a day"
    since = moves[-1]["day"] if moves else ""
    for day in reversed([day for day in pipeline.tables.days("promotion") if day >= since]):
        row = pipeline.tables.read("promotion", day).to_dicts()[0]
        if not row["promoted"]:
            yield f"{'':<29}refused      {day}  {row['model_version']}  {row['reason']}"
    for number, move in reversed(list(enumerate(moves))):
        mark = "*" if number == len(moves) - 1 else " " if move in standing else "-"
        yield f"{mark} {move['since']}  {move['event']:<13}{move['day']}  {move['version']}  {move['reason']}"
    if moves:
        yield "* in charge   - taken back by a later rollback"


def roll_back(pipeline: Pipeline, to_day: str | None, reason: str) -> dict[str, Any]:
    """Moves the pointer back to an earlier champion: the one before, or the newest of `to_day`. Returns the move.

    What is taken back is not promoted again by itself. A version that was rolled back can be brought back the same way.

    Raises:
        InputError: no reason is given, or there is no such earlier champion.
        ArtifactError: its files are gone, damaged or of another version of this program; the pointer stays.
    """
    if not reason.strip():
        raise InputError("say why: --reason is kept in the timeline")
    with pipeline.champion.lock():
        standing, moves = pipeline.champion.standing(), pipeline.champion.timeline()
        if not moves:
            raise InputError("there is no champion to roll back")
        present = moves[-1]
        if to_day is None:
            earlier = [move for move in standing if move["version"] != present["version"]]
            if not earlier:
                raise InputError(f"the model of {present['day']} is the first champion: nothing lies before it")
            target = earlier[-1]
        else:
            of_day = [move for move in moves if move["day"] == to_day and move["version"] != present["version"]]
            if not of_day:
                known = sorted({move["day"] for move in moves if move["version"] != present["version"]})
                raise InputError(
                    f"no other champion was of {to_day}; there were those of {', '.join(known) or 'no other day'}"
                )
            target = of_day[-1]
        artifact = pipeline.artifacts.at("hybrid_model", target["day"], target["version"])
        if artifact is None:
            raise ArtifactError(
                f"the files of the champion of {target['day']} ({target['version']}) are gone: retention.champions "
                f"({pipeline.settings.retention.champions}) and retention.days say how many stay, and none "
                "stays that had learned from a user who was erased. The pointer stays."
            )
        artifact.verify()
        load_hybrid(artifact)  # no lists can be made of a model that this program cannot read
        pipeline.champion.move(target["day"], target["version"], reason.strip(), ROLLED_BACK)
    return {"from": present, "to": target}


def noted(instance: dg.DagsterInstance, moved: dict[str, Any], reason: str) -> None:
    """Tells the UI of a rollback: an observation of `promotion` on the day that lost its champion."""
    instance.report_runless_asset_event(
        dg.AssetObservation(
            "promotion",
            partition=moved["from"]["day"],
            description=f"rolled back to the model of {moved['to']['day']}: {reason}",
            metadata={
                "rolled back": True,
                "reason": reason,
                "champion now": moved["to"]["day"],
                "champion version": moved["to"]["version"],
                "champion before": moved["from"]["day"],
            },
        )
    )
