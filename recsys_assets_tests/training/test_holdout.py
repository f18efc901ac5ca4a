from pathlib import Path

import polars as pl
import pytest

from recsys_assets.pipeline import Pipeline
from recsys_assets.settings import HoldoutSettings
from recsys_assets.training.holdout import Holdouts, draw
from recsys_assets_tests.graph import DAYS, snapshot

SOME = HoldoutSettings(users_share=0.1, min_users=2, window_days=3)
KEY = ["user_id", "item_id", "action", "timestamp"]


def files(pipeline: Pipeline, days: list[str] = DAYS) -> list[Path]:
    return [pipeline.tables.path("interactions", day) for day in days]


def everything(pipeline: Pipeline) -> pl.DataFrame:
    return pl.concat(
        pipeline.tables.read("interactions", day, ["reason", *KEY]).with_columns(day=pl.lit(day)) for day in DAYS
    ).filter(pl.col("reason").is_null())


def test_a_draw_is_the_last_active_day_of_some_users(ingested_home: Pipeline) -> None:
    frame = draw(files(ingested_home), DAYS[-1], SOME, seed=1)
    assert frame is not None
    assert set(frame["split"].unique()) == {"validation", "test"}
    assert frame.group_by("user_id").agg(pl.col("split").n_unique())["split"].max() == 1, "a user is in one split"
    found = everything(ingested_home)
    for user, day in frame.select("user_id", "day").unique().iter_rows():
        own = found.filter(pl.col("user_id") == user)
        assert day == own["day"].max()
        assert own["day"].n_unique() >= 2
        assert day > "2025-11-05", "seen within window_days"
        withheld = frame.filter(pl.col("user_id") == user)
        assert len(withheld) == len(own.filter(pl.col("day") == day).select(KEY).unique())


def test_a_draw_is_the_same_again_and_another_by_another_seed(ingested_home: Pipeline) -> None:
    one, again, other = (draw(files(ingested_home), DAYS[-1], SOME, seed) for seed in (1, 1, 2))
    assert one is not None
    assert other is not None
    assert again is not None
    assert one.equals(again)
    assert set(one["user_id"]) != set(other["user_id"])
    turned = draw(files(ingested_home)[::-1], DAYS[-1], SOME, 1)
    assert turned is not None
    assert one.equals(turned)


@pytest.mark.parametrize("settings", [HoldoutSettings(users_share=0), HoldoutSettings(users_share=0.1, min_users=1000)])
def test_nothing_is_drawn(ingested_home: Pipeline, tmp_path: Path, settings: HoldoutSettings) -> None:
    assert draw(files(ingested_home), DAYS[-1], settings, 1) is None
    assert Holdouts(tmp_path).ensure(files(ingested_home), DAYS[-1], settings, 1) is None
    assert Holdouts(tmp_path).current() is None


def test_drawn_once_and_again_only_on_command(ingested_home: Pipeline, tmp_path: Path) -> None:
    holdouts = Holdouts(tmp_path)
    first = holdouts.ensure(files(ingested_home, DAYS[:6]), DAYS[5], SOME, 1)
    assert first is not None
    before = snapshot(tmp_path)
    again = holdouts.ensure(files(ingested_home), DAYS[-1], SOME, 99)
    assert again is not None
    assert (again.version, again.info) == (1, first.info)
    assert snapshot(tmp_path) == before
    drawn = holdouts.ensure(files(ingested_home), DAYS[-1], SOME, 1, redraw="a new season")
    assert drawn is not None
    assert drawn.version == 2
    assert drawn.info["reason"] == "a new season"
    assert not drawn.read().equals(first.read())
    assert snapshot(tmp_path)["holdout/v1.parquet"] == before["holdout/v1.parquet"], "the old one stays"
    current = holdouts.current()
    assert current is not None
    assert current.version == 2


def test_a_redraw_with_too_few_users_keeps_the_present_one(ingested_home: Pipeline, tmp_path: Path) -> None:
    holdouts = Holdouts(tmp_path)
    holdouts.ensure(files(ingested_home), DAYS[-1], SOME, 1)
    kept = holdouts.ensure(files(ingested_home, DAYS[:1]), DAYS[0], SOME, 1, redraw="why not")
    assert kept is not None
    assert kept.version == 1
