from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys_assets.pipeline import InputError, Pipeline
from recsys_assets.serving.alignment import in_model_space
from recsys_assets.serving.recommend import Recommender, allowed_items, read_item_list
from recsys_assets.training.events import Events, Items, TrainingSet
from recsys_assets_tests.graph import TRAINED, Ran, changed, copy_home, run

DAY = TRAINED[-1]


def training_set(ids: list[str], items: list[int], categories: list[int] | None = None) -> TrainingSet:
    """One user who did something with `items`, in this order."""
    n = len(items)
    events = Events.sort(
        np.zeros(n, np.int32),
        np.array(items, np.int32),
        np.zeros(n, np.int8),
        np.ones(n, np.float32),
        np.arange(n),
        1,
        len(ids),
    )
    category = np.array(categories or [-1] * len(ids), np.int32)
    known = Items(ids, category, ["k0", "k1"], np.arange(len(ids), dtype=np.float32))
    return TrainingSet(events, ["u"], known, ["VIEW"], 100)


def test_a_grown_map_is_taken_as_it_is() -> None:
    data = training_set(["a", "b", "c"], [2, 0])
    space = in_model_space(data, ["a", "b"])
    assert space.events is data.events
    assert space.items is data.items
    assert space.to_data(np.array([1, -1], np.int32)).tolist() == [1, -1]


def test_renumbered_items_are_translated_by_id() -> None:
    data = training_set(["x", "b", "a"], [0, 1, 2, 1], categories=[0, 1, -1])
    space = in_model_space(data, ["a", "b", "gone"])
    assert [space.items.ids[i] for i in space.events.item] == ["b", "a", "b"], "x is nothing the model knows"
    assert space.events.n_items == 3
    assert space.items.category.tolist() == [-1, 1, -1]
    assert space.items.price[:2].tolist() == [2, 1]
    assert np.isnan(space.items.price[2])
    assert space.to_data(np.array([[0, 1, 2, -1]], np.int32)).tolist() == [[2, 1, -1, -1]]


def test_a_training_set_without_items() -> None:
    space = in_model_space(training_set([], []), ["a", "b"])
    assert len(space.events) == 0
    assert space.items.category.tolist() == [-1, -1]
    assert space.to_data(np.array([0, -1], np.int32)).tolist() == [-1, -1]


def test_filters() -> None:
    items = training_set(["a", "b", "c"], [], categories=[0, 1, -1]).items
    assert allowed_items(items, None, None) is None
    for available, category, expected in [
        ({"a", "c", "z"}, None, [True, False, True]),
        (None, "k1", [False, True, False]),
        ({"a"}, "k1", [False, False, False]),
    ]:
        found = allowed_items(items, available, category)
        assert found is not None
        assert found.tolist() == expected
    with pytest.raises(InputError, match="no item has category 'k9'"):
        allowed_items(items, None, "k9")


def test_item_lists(tmp_path: Path) -> None:
    path = tmp_path / "items.txt"
    path.write_bytes("\ufeffa \r\n\n b\nü\n".encode())
    assert read_item_list(path) == {"a", "b", "ü"}
    path.write_text("\n \n")
    with pytest.raises(InputError, match=r"items\.txt names no item"):
        read_item_list(path)
    path.write_bytes(b"\xff")
    with pytest.raises(InputError, match="cannot be read"):
        read_item_list(path)
    with pytest.raises(InputError, match=r"missing\.txt cannot be read: .*No such file"):
        read_item_list(tmp_path / "missing.txt")


# --- On the trained home ----------------------------------------------------------------------------------------------


def lists(pipeline: Pipeline, day: str = DAY) -> pl.DataFrame:
    return pipeline.tables.read("recommendations", day)


def bought(pipeline: Pipeline) -> pl.DataFrame:
    folder = pipeline.artifacts.need("training_set", DAY).path
    events = pl.read_parquet(folder / "events.parquet")
    users, items, actions = (pl.read_parquet(folder / f"{name}.parquet") for name in ("users", "items", "actions"))
    purchase = actions["name"].to_list().index("PURCHASE")
    events = events.filter(pl.col("action") == purchase)
    return pl.DataFrame(
        {"user_id": users["user_id"][events["user"]], "item_id": items["item_id"][events["item"]]}
    ).unique()


def test_lists_are_full_ranked_and_without_repeats(train_run: tuple[Pipeline, Ran]) -> None:
    pipeline, ran = train_run
    frame = lists(pipeline)
    assert not frame.select("user_id", "item_id").is_duplicated().any()
    for _, part in frame.group_by("user_id"):
        assert part["rank"].to_list() == list(range(1, len(part) + 1))
        assert part["score"].is_sorted(descending=True)
        assert len(part) == 10
    folder = pipeline.artifacts.need("training_set", DAY).path
    users = pl.read_parquet(folder / "users.parquet")["user_id"]
    active = set(users[pl.read_parquet(folder / "events.parquet")["user"].unique()])
    assert set(frame["user_id"]) == active
    assert ran.metadata("recommendations", DAY)["users"] == len(active)
    assert ran.metadata("recommendations", DAY)["dagster/partition_row_count"] == len(frame)
    assert frame["model_day"].unique().to_list() == [DAY]
    assert frame["data_version"].unique().to_list() == [folder.name]


def test_bought_items_are_kept_or_removed(trained_home: Pipeline, tmp_path: Path) -> None:
    had = bought(trained_home)
    again = lists(trained_home).join(had, on=["user_id", "item_id"], how="semi")
    assert len(again) > 10, "kept: groceries repeat"
    remove = changed(copy_home(trained_home, tmp_path / "home"), recommend={"bought_items": "remove"})
    ran = run(remove, ["recommendations"], [DAY])
    assert ran.metadata("recommendations", DAY)["unchanged"] is False
    found = lists(remove)
    assert found.join(had, on=["user_id", "item_id"], how="semi").is_empty()
    assert found["user_id"].n_unique() == lists(trained_home)["user_id"].n_unique()


def test_only_available_items_are_recommended(trained_home: Pipeline, tmp_path: Path) -> None:
    pipeline = changed(copy_home(trained_home, tmp_path / "home"), recommend={"available_items_file": "stock.txt"})
    said = run(pipeline, ["recommendations"], [DAY], must=False).said()
    assert "stock.txt cannot be read" in said
    stock = sorted(lists(trained_home)["item_id"].unique())[::3]
    (pipeline.settings.home / "stock.txt").write_text("\n".join([*stock, "not-an-item"]))
    run(pipeline, ["recommendations"], [DAY])
    assert set(lists(pipeline)["item_id"]) <= set(stock)
    assert lists(pipeline)["user_id"].n_unique() == lists(trained_home)["user_id"].n_unique()
    (pipeline.settings.home / "stock.txt").write_text(stock[0])
    ran = run(pipeline, ["recommendations"], [DAY])
    assert ran.metadata("recommendations", DAY)["unchanged"] is False, "the list is an input"
    assert set(lists(pipeline)["item_id"]) == {stock[0]}


@pytest.fixture(scope="module")
def recommender(trained_home: Pipeline) -> Recommender:
    return Recommender.open(trained_home, DAY)


def test_one_list_is_the_one_of_the_table(trained_home: Pipeline, recommender: Recommender) -> None:
    frame = lists(trained_home)
    user = frame["user_id"][0]
    expected = frame.filter(pl.col("user_id") == user)["item_id"].to_list()
    assert recommender.knows(user)
    assert [entry.item_id for entry in recommender.recommend(user, 10)] == expected


def test_a_category_only(recommender: Recommender) -> None:
    user = next(user for user in recommender.user_ids if recommender.knows(user))
    category = recommender.items.categories[2]
    found = recommender.recommend(user, 50, category=category)
    members = {str(item) for item, at in zip(recommender.items.ids, recommender.items.category, strict=True) if at == 2}
    assert {entry.item_id for entry in found} == members
    assert {entry.category for entry in found} == {category}
    with pytest.raises(InputError, match="no item has category"):
        recommender.recommend(user, 5, category="nothing")


def test_an_unknown_user_gets_popularity(recommender: Recommender) -> None:
    assert not recommender.knows("nobody at all")
    found = [entry.item_id for entry in recommender.recommend("nobody at all", 8)]
    scores = recommender.model.members["popularity"].score(
        Events.empty(1, recommender.events.n_items), recommender.at_ms
    )[0]
    expected = [recommender.items.ids[i] for i in np.argsort(-scores, kind="stable")[:8]]
    assert found == expected


def test_more_than_there_is(recommender: Recommender) -> None:
    found = recommender.recommend("nobody at all", 500)
    assert sorted(entry.item_id for entry in found) == sorted(recommender.items.ids)


def test_nothing_to_recommend_with(tmp_path: Path, ingested_home: Pipeline, trained_home: Pipeline) -> None:
    with pytest.raises(InputError, match="there is no champion yet"):
        Recommender.open(ingested_home)


def test_similar_items(trained_home: Pipeline) -> None:
    frame = trained_home.tables.read("similar_items", DAY)
    assert (frame["item_id"] != frame["similar_item_id"]).all()
    assert not frame.select("item_id", "similar_item_id").is_duplicated().any()
    assert frame.group_by("item_id").len()["len"].max() == 5
    assert frame["score"].is_between(0, 2, closed="right").all()
