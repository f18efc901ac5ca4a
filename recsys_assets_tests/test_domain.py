"""Settings alone carry the pipeline to another domain: a media service, with nothing of the shop's in its logs."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from recsys_assets.serving.recommend import Recommender
from recsys_assets.settings import SettingsError
from recsys_assets.sources.simulate import MEDIA
from recsys_assets_tests.graph import DAYS, INGEST, SHOP, TRAIN, fill, make_home, run

SETTINGS = {
    "actions": {"PLAY": 1, "FINISH": 3, "LIKE": 5},
    "recommend": {"bought_items": "remove", "bought_actions": ["FINISH"]},
    "evaluation": {"target_actions": ["FINISH", "LIKE"]},
}


def test_a_media_service(tmp_path: Path) -> None:
    days = DAYS[:5]
    pipeline = make_home(tmp_path / "media", holdout={"users_share": 0}, **SETTINGS)
    fill(pipeline, days, replace(SHOP, **MEDIA))
    logs = b"".join(pipeline.bucket.get(obj) for obj in pipeline.bucket.walk("logs/"))
    assert b'"film-7"' in logs
    assert b"PURCHASE" not in logs
    assert b"category_id" not in logs
    assert b"price" not in logs
    run(pipeline, INGEST, days)
    ran = run(pipeline, TRAIN, days[-1:])

    kept = pl.concat(
        [pl.read_parquet(pipeline.tables.path("interactions", day)).filter(pl.col("reason").is_null()) for day in days]
    )
    assert set(kept["action"].unique()) == {"PLAY", "FINISH", "LIKE"}
    assert kept["item_id"].str.starts_with("film-").all()
    assert kept["category_id"].is_null().all()
    assert kept["price"].is_null().all()

    lists = pipeline.tables.read("recommendations", days[-1])
    assert lists["item_id"].str.starts_with("film-").all()
    finished = kept.filter(pl.col("action") == "FINISH").select("user_id", "item_id").unique()
    assert lists.join(finished, on=["user_id", "item_id"], how="semi").is_empty()
    assert not lists.join(kept.filter(pl.col("action") == "PLAY"), on=["user_id", "item_id"], how="semi").is_empty()
    assert len(pipeline.tables.read("similar_items", days[-1]))
    metrics = pipeline.tables.read("evaluation", days[-1]).filter(
        (pl.col("split") == "next_day") & (pl.col("metric") == "ndcg") & (pl.col("k") == 10)
    )
    quality = dict(metrics.select("model", "value").iter_rows())
    assert quality["hybrid"] > 0
    assert ran.metadata("promotion", days[-1])

    recommender = Recommender.open(pipeline)
    user = lists["user_id"][0]
    assert [entry.item_id for entry in recommender.recommend(user, 10)] == lists.filter(pl.col("user_id") == user)[
        "item_id"
    ].to_list()
    assert recommender.recommend("nobody", 3)[0].category is None


def test_settings_that_name_the_shop_s_actions_are_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"recommend\.bought_actions names PURCHASE"):
        make_home(tmp_path / "media", actions=SETTINGS["actions"])
