"""The training set, the members and the hybrid: one partition a day."""

import time
from typing import Any

import dagster as dg
import numpy as np
from pydantic import Field

from recsys_assets import reporting
from recsys_assets.models import MEMBERS
from recsys_assets.models.base import Member
from recsys_assets.partitions import daily
from recsys_assets.pipeline import Pipeline, explained_failures
from recsys_assets.settings import load_settings
from recsys_assets.storage.artifacts import version_of
from recsys_assets.training import blend, members
from recsys_assets.training import training_set as building
from recsys_assets.training.events import Events, TrainingSet

_settings = load_settings()  # of the code versions: Dagster then marks what another setting outdates


class FitConfig(dg.Config):
    """How the models of a run are made."""

    full_refit: bool = Field(default=False, description="learn from scratch instead of going on from the day before")


@dg.asset(
    partitions_def=daily,
    backfill_policy=dg.BackfillPolicy.single_run(),
    # The set reads every day up to its own, yet is mapped to its own day only. Seen in the UI of Dagster 1.13 with
    # TimeWindowPartitionMapping(start_offset=-1) or (start_offset=-364): a backfill of all assets for days 2 to 4 also
    # made the training set of day 5 and all that follows from it (with -364, of every later day), in a second run that
    # waited for the backfill daemon. Mapped so, it is one run for the days asked. What became of earlier days is in the
    # version: a day is built again when it is next asked for and its inputs, any day's, have changed.
    deps=["interactions"],
    group_name="training",
    kinds={"duckdb", "parquet"},
    owners=reporting.OWNERS,
    code_version=f"{building.CODE_VERSION}.{version_of(**building.recipe(_settings))}",
    description=(
        "Every interaction up to the day, merged: id maps that only grow, per-user sequences as positions. The frozen "
        "validation and test hold-outs are drawn once and never merged."
    ),
    metadata={
        "dagster/column_schema": reporting.schema(
            {
                "user": ("int32", "position in users.parquet"),
                "item": ("int32", "position in items.parquet"),
                "action": ("int8", "position in actions.parquet"),
                "weight": ("float32", "the action's weight"),
                "timestamp": ("int64", "milliseconds since 1970 UTC"),
            }
        )
    },
)
def training_set(context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]) -> dg.MaterializeResult:
    with explained_failures(pipeline):
        versions: dict[str, str] = {}
        frozen = building.frozen_holdout(pipeline, max(context.partition_keys), context.log.info)
        for day in context.partition_keys:
            started = time.monotonic()
            info, fresh = building.merge_day(pipeline, day, frozen)
            metadata: dict[str, Any] = {
                "dagster/partition_row_count": info["counts"]["kept"],
                **{name.replace("_", " "): value for name, value in info["counts"].items()},
                "where the interactions went": reporting.counts_table(
                    "outcome",
                    {
                        name: info["counts"][key]
                        for name, key in (
                            ("learned from", "kept"),
                            ("repeated on a later day", "repeated_across_days"),
                            ("frozen hold-out", "withheld"),
                            ("older than training.window_days", "too_old"),
                            ("action not in settings", "unmapped"),
                            ("of a later day, learned from then", "ahead"),
                        )
                    },
                ),
                "days without interactions": len(info["missing_days"]),
                "hold-out": f"version {info['holdout']}" if info["holdout"] else "not drawn yet: too few users",
                "seconds": round(time.monotonic() - started, 2),
                **reporting.made(fresh, info["version"]),
            }
            if info["missing_days"]:
                context.log.warning(
                    f"{day}: no interactions partition for {reporting.summary(info['missing_days'])}; "
                    "these days are not learned from. Materialize interactions for them and then this day again."
                )
            context.add_asset_metadata(metadata, partition_key=day)
            versions[day] = info["version"]
            context.log.info(f"{day}: {info['counts']['kept']} events{'' if fresh else ' (unchanged)'}")
    return dg.MaterializeResult(data_version=reporting.data_version(versions))


def _example_lists(model: Member, data: TrainingSet, count: int = 5) -> dg.MetadataValue:
    """What the model shows to somebody whose only event is one of the most popular items: no user's data in it."""
    events = data.events
    if not len(events):
        return dg.MetadataValue.text("no events yet")
    strongest = int(np.argmax(np.bincount(events.action)))
    popular = np.argsort(-np.bincount(events.item, events.weight, events.n_items), kind="stable")[:count]
    history = Events.sort(
        np.arange(len(popular), dtype=np.int32),
        popular.astype(np.int32),
        np.full(len(popular), strongest, np.int8),
        np.ones(len(popular), np.float32),
        np.full(len(popular), data.end_ms - 1, np.int64),
        len(popular),
        events.n_items,
    )
    scores = model.score(history, data.end_ms)
    rows = []
    for row, item in enumerate(popular):
        best = np.argsort(-scores[row], kind="stable")[:count]
        rows.append(
            {
                "after item": str(data.items.ids[item]),
                "category": _category(data, int(item)),
                "the model shows": ", ".join(f"{data.items.ids[i]} ({_category(data, int(i))})" for i in best),
            }
        )
    return reporting.table(rows)


def _category(data: TrainingSet, item: int) -> str:
    position = int(data.items.category[item])
    return "no category" if position < 0 else str(data.items.categories[position])


def _member_asset(name: str, kinds: set[str], description: str) -> dg.AssetsDefinition:
    @dg.asset(
        name=f"{name}_model",
        partitions_def=daily,
        backfill_policy=dg.BackfillPolicy.single_run(),
        deps=["training_set"],
        group_name="models",
        kinds=kinds,
        owners=reporting.OWNERS,
        code_version=f"{members.CODE_VERSION}.{members.recipe(_settings, name)}",
        description=description,
    )
    def member(
        context: dg.AssetExecutionContext, config: FitConfig, pipeline: dg.ResourceParam[Pipeline]
    ) -> dg.MaterializeResult:
        versions: dict[str, str] = {}
        with explained_failures(pipeline):
            for day in sorted(context.partition_keys):  # a day goes on from the one before
                lines: list[str] = []

                def log(message: str, lines: list[str] = lines) -> None:
                    lines.append(message)
                    context.log.info(message)

                artifact, fresh, data = members.fit_member(pipeline, name, day, config.full_refit, log)
                info = artifact.info
                metadata: dict[str, Any] = {
                    "mode": info["mode"],
                    "goes on from": info["parent"]["day"] if info["parent"] else "nothing: full refit",
                    "parameters": reporting.table(info.get("parameters", [])),
                    "events": info["events"],
                    "items": info["n_items"],
                    "seconds": info["seconds"],
                    "megabytes": round(sum(f.stat().st_size for f in artifact.path.rglob("*.*")) / 1e6, 2),
                    **reporting.made(fresh, artifact.version),
                    "artifact": dg.MetadataValue.path(str(artifact.path)),
                }
                if fresh and data is not None:
                    metadata["examples"] = _example_lists(members.load_member(name, artifact.path / "final"), data)
                    metadata["training log"] = reporting.log_lines(lines)
                context.add_asset_metadata(metadata, partition_key=day)
                versions[day] = artifact.version
        return dg.MaterializeResult(data_version=reporting.data_version(versions))

    return member


member_assets = [
    _member_asset("popularity", {"numpy"}, "Recent, decayed popularity: the baseline, and the list for new users."),
    _member_asset("repeat", {"numpy"}, "A user's own decayed item frequency: what this person keeps coming back to."),
    _member_asset("transition", {"scipy"}, "Decayed item-to-item transitions: what people do next after an item."),
    _member_asset("als", {"implicit"}, "Implicit ALS with confidence 1 + alpha * weight * decay; users are folded in."),
    _member_asset("sequence", {"pytorch"}, "Causal self-attention over a user's recent items (SASRec)."),
]


@dg.asset(
    partitions_def=daily,
    backfill_policy=dg.BackfillPolicy.single_run(),
    deps=["training_set", *[f"{name}_model" for name in MEMBERS]],
    group_name="models",
    kinds={"implicit", "pytorch"},
    owners=reporting.OWNERS,
    code_version=f"{blend.CODE_VERSION}.{blend.recipe(_settings)}",
    description=(
        "One ranking from all members: the union of their candidates, ranked by a weighted sum of normalised scores, "
        "with a learned ranker as one more where it helps. "
        "The weights are learned on earlier days. The folder holds everything it takes to serve."
    ),
)
def hybrid_model(context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]) -> dg.MaterializeResult:
    versions: dict[str, str] = {}
    with explained_failures(pipeline):
        for day in sorted(context.partition_keys):
            artifact, fresh = blend.blend_day(pipeline, day, context.log.info)
            info = artifact.info
            metadata: dict[str, Any] = {
                **reporting.prefixed("weight", info["weights"]),
                "weights": reporting.table(
                    [
                        {"member": name, "weight": weight, "note": "" if weight else "does not earn a place"}
                        for name, weight in info["weights"].items()
                    ],
                    ["member", "weight", "note"] if 0 in info["weights"].values() else ["member", "weight"],
                ),
                "weights learned": info["weights_origin"],
                "items": info["n_items"],
                "seconds": info["seconds"],
                **reporting.made(fresh, artifact.version),
                "artifact": dg.MetadataValue.path(str(artifact.path)),
            }
            context.add_asset_metadata(metadata, partition_key=day)
            versions[day] = artifact.version
    return dg.MaterializeResult(data_version=reporting.data_version(versions))
