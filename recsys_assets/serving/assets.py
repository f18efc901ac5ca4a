"""What is handed to whoever serves: lists for every user, and similar items, always the champion's."""

import time
from typing import Any

import dagster as dg
import numpy as np
import polars as pl

from recsys_assets import reporting
from recsys_assets.evaluation.tasks import barring_settings
from recsys_assets.models.base import Log
from recsys_assets.partitions import daily
from recsys_assets.pipeline import Pipeline, explained_failures
from recsys_assets.serving.recommend import Recommender, available_by_setting
from recsys_assets.settings import Settings, load_settings
from recsys_assets.storage.artifacts import version_of

CODE_VERSION = "2"
_settings = load_settings()  # of the code versions: Dagster then marks what another setting outdates
_USERS_AT_ONCE = 50_000


def recipe(settings: Settings, table: str) -> dict[str, Any]:
    """The settings that matter to a day of one of them."""
    own = settings.recommend
    if table == "similar_items":
        return {"similar_items": own.similar_items}
    return {"count": own.count, "available_items_file": own.available_items_file, **barring_settings(settings)}


@dg.asset(
    partitions_def=daily,
    backfill_policy=dg.BackfillPolicy.single_run(),
    deps=["promotion", "training_set"],
    group_name="serving",
    kinds={"parquet"},
    owners=reporting.OWNERS,
    code_version=f"{CODE_VERSION}.{version_of(**recipe(_settings, 'recommendations'))}",
    description=(
        "The top-N list of every user with events in the training window, from the champion and everything the user "
        "did up to this day. Bought items, availability and length follow the settings."
    ),
    metadata={
        "dagster/table_name": "recommendations",
        "dagster/column_schema": reporting.schema(
            {
                "day": ("DATE", "partition: histories go up to its end"),
                "user_id": ("VARCHAR", "as in the logs"),
                "rank": ("INTEGER", "1 is best"),
                "item_id": ("VARCHAR", "as in the logs"),
                "score": ("FLOAT", "comparable within one user's list only"),
                "model_day": ("VARCHAR", "the champion's day"),
                "model_version": ("VARCHAR", "the champion's version"),
                "data_version": ("VARCHAR", "the version of the training set that gave the histories"),
            }
        ),
    },
)
def recommendations(context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]) -> dg.MaterializeResult:
    versions: dict[str, str] = {}
    with explained_failures(pipeline):
        for day in context.partition_keys:
            started = time.monotonic()
            info, fresh = make_lists(pipeline, day, context.log.info)
            versions[day] = info["version"]
            if fresh:
                pipeline.warehouse.ensure_views("recommendations", context.log.warning)
            metadata: dict[str, Any] = {
                "dagster/partition_row_count": info["rows"],
                "users": info["users"],
                "different items": info["different_items"],
                "coverage": reporting.number(info["coverage"]),
                "users with a full list": info["full_lists"],
                "champion": info["model_day"],
                "most recommended items": reporting.table(
                    info["most_recommended"], ["item_id", "category", "in the top 10 of users"]
                ),
                "seconds": round(time.monotonic() - started, 2),
                **reporting.made(fresh, info["version"]),
            }
            context.add_asset_metadata(metadata, partition_key=day)
            context.log.info(f"{day}: {info['rows']} rows for {info['users']} users")
    return dg.MaterializeResult(data_version=reporting.data_version(versions))


def make_lists(pipeline: Pipeline, day: str, log: Log) -> tuple[dict[str, Any], bool]:
    """Publishes `recommendations` of a day unless equal ones stand there. Returns their info and whether they are new.

    Raises:
        InputError, ArtifactError: there is no champion or training set, or it is damaged.
    """
    training = pipeline.artifacts.need("training_set", day)
    version = lists_version(pipeline, "recommendations", training.version)
    info = pipeline.tables.sound_info("recommendations", day)
    if info is not None and info["version"] == version:
        return info, False
    frame, info = _all_lists(pipeline, day, training.version, log)
    info["version"] = version
    pipeline.tables.publish_frame("recommendations", day, frame, info)
    return info, True


def make_similar(pipeline: Pipeline, day: str) -> tuple[dict[str, Any], bool]:
    """The same for `similar_items`."""
    training = pipeline.artifacts.need("training_set", day)
    version = lists_version(pipeline, "similar_items", training.version)
    info = pipeline.tables.sound_info("similar_items", day)
    if info is not None and info["version"] == version:
        return info, False
    frame, info = _similar(Recommender.open(pipeline, day), pipeline.settings.recommend.similar_items)
    info["version"] = version
    pipeline.tables.publish_frame("similar_items", day, frame, info)
    return info, True


def lists_version(pipeline: Pipeline, table: str, training_version: str) -> str:
    """What a day of `recommendations` or `similar_items` is made of: the champion, the histories, and the settings that
    choose among items."""
    champion, own = pipeline.champion.read(), recipe(pipeline.settings, table)
    if table == "recommendations":
        available = available_by_setting(pipeline.settings)
        own["available"] = sorted(available) if available is not None else None
    return version_of(
        champion=champion["version"] if champion else None, training_set=training_version, **own, code=CODE_VERSION
    )


def _all_lists(pipeline: Pipeline, day: str, data_version: str, log: Log) -> tuple[pl.DataFrame, dict[str, Any]]:
    recommender = Recommender.open(pipeline, day)
    progress = reporting.Progress(log)
    count = pipeline.settings.recommend.count
    active = np.unique(recommender.events.user).astype(np.int32)
    user_ids, item_ids = np.array(recommender.user_ids, object), np.array(recommender.items.ids, object)
    parts = []
    for begin in range(0, len(active), _USERS_AT_ONCE):
        users = active[begin : begin + _USERS_AT_ONCE]
        items, scores = recommender.lists(users, count)
        row, place = np.nonzero(items >= 0)
        parts.append(
            pl.DataFrame(
                {
                    "user_id": user_ids[users[row]],
                    "rank": (place + 1).astype(np.int32),
                    "item_id": item_ids[items[row, place]],
                    "score": scores[row, place],
                },
                schema={"user_id": pl.String, "rank": pl.Int32, "item_id": pl.String, "score": pl.Float32},
            )
        )
        progress(f"{day}: lists for {begin + len(users)} of {len(active)} users")
    frame = (
        pl.concat(parts)
        if parts
        else pl.DataFrame(schema={"user_id": pl.String, "rank": pl.Int32, "item_id": pl.String, "score": pl.Float32})
    ).with_columns(
        model_day=pl.lit(recommender.model_day),
        model_version=pl.lit(recommender.model_version),
        data_version=pl.lit(data_version),
    )
    different = frame["item_id"].n_unique()
    full = frame.group_by("user_id").len().filter(pl.col("len") == count).height
    most = (
        frame.filter(pl.col("rank") <= 10)["item_id"].value_counts(sort=True).sort("count", "item_id", descending=True)
    )
    category = {item: recommender.category(i) for i, item in enumerate(recommender.items.ids)}
    info = {
        "rows": len(frame),
        "users": len(active),
        "different_items": different,
        "coverage": different / max(len(recommender.items), 1),
        "full_lists": full,
        "model_day": recommender.model_day,
        "model_version": recommender.model_version,
        "most_recommended": [
            {"item_id": item, "category": category[item] or "-", "in the top 10 of users": int(times)}
            for item, times in most.head(10).iter_rows()
        ],
    }
    return frame, info


@dg.asset(
    partitions_def=daily,
    backfill_policy=dg.BackfillPolicy.single_run(),
    deps=["promotion", "training_set"],
    group_name="serving",
    kinds={"parquet"},
    owners=reporting.OWNERS,
    code_version=f"{CODE_VERSION}.{version_of(**recipe(_settings, 'similar_items'))}",
    description="For every item the champion knows, those most like it: transitions plus the cosine of ALS factors.",
    metadata={
        "dagster/table_name": "similar_items",
        "dagster/column_schema": reporting.schema(
            {
                "day": ("DATE", "partition"),
                "item_id": ("VARCHAR", "as in the logs"),
                "rank": ("INTEGER", "1 is most similar"),
                "similar_item_id": ("VARCHAR", "as in the logs"),
                "score": ("FLOAT", "0 to 2"),
                "model_day": ("VARCHAR", "the champion's day"),
                "model_version": ("VARCHAR", "the champion's version"),
            }
        ),
    },
)
def similar_items(context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]) -> dg.MaterializeResult:
    versions: dict[str, str] = {}
    with explained_failures(pipeline):
        for day in context.partition_keys:
            started = time.monotonic()
            info, fresh = make_similar(pipeline, day)
            versions[day] = info["version"]
            if fresh:
                pipeline.warehouse.ensure_views("similar_items", context.log.warning)
            context.add_asset_metadata(
                {
                    "dagster/partition_row_count": info["rows"],
                    "items": info["items"],
                    "items without any similar one": info["alone"],
                    "champion": info["model_day"],
                    "examples": reporting.table(info["examples"], ["item_id", "category", "most similar"]),
                    "seconds": round(time.monotonic() - started, 2),
                    **reporting.made(fresh, info["version"]),
                },
                partition_key=day,
            )
    return dg.MaterializeResult(data_version=reporting.data_version(versions))


def _similar(recommender: Recommender, count: int) -> tuple[pl.DataFrame, dict[str, Any]]:
    found, scores = recommender.model.similar_items(count)
    item_ids = np.array(recommender.items.ids, object)
    row, place = np.nonzero(found >= 0)
    frame = pl.DataFrame(
        {
            "item_id": item_ids[row],
            "rank": (place + 1).astype(np.int32),
            "similar_item_id": item_ids[found[row, place]],
            "score": scores[row, place],
        },
        schema={"item_id": pl.String, "rank": pl.Int32, "similar_item_id": pl.String, "score": pl.Float32},
    ).with_columns(model_day=pl.lit(recommender.model_day), model_version=pl.lit(recommender.model_version))
    events = recommender.events
    popular = np.argsort(-np.bincount(events.item, minlength=len(item_ids)), kind="stable")[:8]
    examples = []
    for item in popular:
        if item < len(found):
            shown = [f"{item_ids[i]} ({recommender.category(int(i)) or '-'})" for i in found[item][:5] if i >= 0]
            examples.append(
                {
                    "item_id": str(item_ids[item]),
                    "category": recommender.category(int(item)) or "-",
                    "most similar": ", ".join(shown),
                }
            )
    info = {
        "rows": len(frame),
        "items": len(found),
        "alone": int((found[:, 0] < 0).sum()) if found.size else 0,
        "model_day": recommender.model_day,
        "model_version": recommender.model_version,
        "examples": examples,
    }
    return frame, info
