"""The benchmarks on tiny generated data: the protocols hold and nothing has rotted. No figure here means anything."""

import gzip
import json
from argparse import Namespace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks import als, ingest, quality, recommend, sets, update
from recsys_assets.evaluation.tasks import Task
from recsys_assets.models.als import AlsModel
from recsys_assets.models.base import Member, silent
from recsys_assets.models.hybrid import HybridModel
from recsys_assets.models.popularity import PopularityModel
from recsys_assets.settings import Settings
from recsys_assets.training.events import DAY_MS, TrainingSet

FAST = {"als": {"factors": 8, "iterations": 2}, "sequence": {"epochs": 1, "dimension": 8}, "repeat": {"epochs": 1}}
MODELS = ["popularity", "transition", "als"]


@pytest.fixture
def settings() -> Settings:
    return quality.make_settings(**FAST, recommend={"bought_items": "remove"})


def sequences(users: int = 40, items: int = 30) -> list[list[str]]:
    rng = np.random.default_rng(0)
    return [[str(i) for i in rng.permutation(items)[: rng.integers(5, 12)]] for _ in range(users)]


def events(days: int = 24, users: int = 12, items: int = 15) -> pl.DataFrame:
    rng = np.random.default_rng(1)
    rows = [
        (
            f"u{user}",
            f"i{rng.integers(items)}",
            "PURCHASE",
            datetime(2024, 3, 1) + timedelta(days=day, hours=user),
            None,
        )
        for day in range(days)
        for user in range(users)
        for _ in range(2)
    ]
    return pl.DataFrame(rows, ["user_id", "item_id", "action", "timestamp", "category_id"], orient="row")


def lines(out: str) -> dict[str, dict]:
    return {line["name"]: line for line in map(json.loads, out.splitlines())}


def items_of(data: TrainingSet, user: int) -> list[str]:
    """Outside ids in time order."""
    events = data.events
    return [str(data.items.ids[i]) for i in events.item[events.offsets[user] : events.offsets[user + 1]]]


def test_leave_one_out_never_shows_what_it_asks_for(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    users, fitted, asked, learned = sequences(), [], [], []

    def fit(cls: type, data: TrainingSet, settings: Settings, log: object) -> PopularityModel:
        fitted.append(data)
        return original(data, settings, silent)

    original = PopularityModel.fit
    monkeypatch.setattr(PopularityModel, "fit", classmethod(fit))

    def learn(
        members: object, data: TrainingSet, lessons: list, tasks: list, settings: Settings, log: object
    ) -> tuple[dict[str, float], None]:
        assert all(lesson.at_ms + DAY_MS <= task.at_ms for lesson in lessons for task in tasks)
        learned.extend(tasks)
        return dict.fromkeys(MODELS, 1.0), None

    monkeypatch.setattr(quality, "learn_ranking", learn)

    def lists(model: HybridModel, task: object, n: int) -> dict[str, np.ndarray]:
        asked.append(task)
        return made(model, task, n)

    made = quality.model_lists
    monkeypatch.setattr(quality, "model_lists", lists)
    found, task, _, _ = quality.leave_one_out(users, {}, MODELS, 3, settings, silent)

    (data,), (validation,), (test,) = fitted, learned, asked
    assert test is task
    assert len(task) == len(validation) == len(users)
    for user, items in enumerate(users):
        assert items_of(data, user) == items[:-2]
        for question, known, wanted in ((validation, items[:-2], items[-2]), (test, items[:-1], items[-1])):
            history = question.history.of_users(np.array([user], np.int32))
            assert [data.items.ids[i] for i in history.item] == known
            assert [data.items.ids[i] for i in question.target_items[question.target_rows == user]] == [wanted]
            forbidden = question.forbidden_items[question.forbidden_rows == user]
            assert {data.items.ids[i] for i in forbidden} == set(known)
    assert (data.events.timestamp < data.end_ms).all()
    for name in ("hybrid", *MODELS, "popularity_7d"):
        for user, items in enumerate(users):
            assert not {data.items.ids[i] for i in found[name][user] if i >= 0} & set(items[:-1])


def test_positions_are_permuted_by_the_seed(settings: Settings) -> None:
    users = sequences()
    categories = {str(i): f"c{i % 3}" for i in range(25)}
    one, again, two = (sets.leave_one_out(users, categories, seed, settings) for seed in (1, 1, 2))
    in_reading_order = list(dict.fromkeys(item for items in users for item in items))
    assert list(one.data.items.ids) != in_reading_order
    assert list(one.data.items.ids) == list(again.data.items.ids) != list(two.data.items.ids)
    for made in (one, two):
        assert [made.data.items.ids[p] for p in made.permutation] == in_reading_order
        assert items_of(made.data, 7) == users[7]
        for item, category in zip(made.data.items.ids, made.data.items.category, strict=True):
            assert (made.data.items.categories[category] if category >= 0 else None) == categories.get(item)


def test_ties_are_broken_by_the_permutation(settings: Settings) -> None:
    """A model that says the same of all items must not profit from the numbers in the file."""
    wanted = [f"t{i}" for i in range(10)]  # the first ten numbers in reading order are what everybody meets last
    users = [wanted] + [[f"{u}-{i}" for i in range(4)] + [wanted[u % 10]] for u in range(200)]
    made = sets.leave_one_out(users, {}, 1, settings)
    task = quality.prediction_task(made.data, made.test_ms, made.data.end_ms, settings)
    flat: dict[str, Member] = {"popularity": PopularityModel(np.ones(len(made.data.items), np.float32))}
    pool = quality.Pool()
    pool.add(quality.measure(flat, {"popularity": 1.0}, None, task, made.data, 10), task)
    assert (quality.measure(flat, {"popularity": 1.0}, None, task, made.data, 10)["hybrid"] >= 0).all()
    assert pool.mean("hybrid", "recall") < 0.05


def test_quality_of_a_file_of_sequences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, attributes = tmp_path / "shop.txt.gz", tmp_path / "shop_item2attributes.json.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(f"{user} {' '.join(items)}\n" for user, items in enumerate([*sequences(), ["1", "2"]]))
    with gzip.open(attributes, "wt") as file:
        json.dump({str(i): [1, 2 + i % 3] for i in range(30)}, file)
    assert sets.read_sequences(path) == sequences()
    assert sets.read_categories(attributes, "last")["4"] == "3"
    assert sets.read_categories(attributes, "first")["4"] == "1"
    quality.run_leave_one_out("shop", path, attributes, Namespace(seeds=2, category="last", models=MODELS))
    found = lines(capsys.readouterr().out)
    wanted = {f"quality.shop.{m}.{k}" for m in ("hybrid", "popularity_7d", *MODELS) for k in ("ndcg10", "recall10")}
    assert set(found) == wanted | {"quality.shop.train_seconds"}
    line = found["quality.shop.hybrid.ndcg10"]
    assert len(line["runs"]) == 2
    assert line["value"] == pytest.approx(np.mean(line["runs"]), abs=1e-4)
    assert set(line["minus"]) == {"popularity_7d", *MODELS}
    assert line["lists"] == 2 * line["users"] == 80


def test_quality_and_update_from_day_to_day(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(
        members: dict, weights: object, ranker: object, task: Task, data: object, k: int
    ) -> dict[str, np.ndarray]:
        # What is measured on a day has not seen it: its transitions end where the day begins.
        assert members["transition"].params["end_ms"] == task.at_ms
        return original(members, weights, ranker, task, data, k)

    original = quality.measure
    monkeypatch.setattr(quality, "measure", measure)
    shop = sets.Shop(tmp_path, events(), settings)
    assert (len(shop.days), shop.days[0], shop.days[-1]) == (24, "2024-03-01", "2024-03-24")
    asked: list[str] = []
    for day, data, states, _ in quality.walk(shop, shop.days[-3:], MODELS, silent):
        asked.append(day)
        assert data.events.timestamp.max() < data.end_ms
        assert states["transition"].test.params["end_ms"] == data.end_ms - DAY_MS
        assert (states["als"].validation is None) == (day != shop.days[-3])
    assert asked == shop.days[-3:]
    quality.run_next_days("shop", shop, Namespace(days=3, models=MODELS))
    found = lines(capsys.readouterr().out)
    assert {"quality.shop.hybrid.ndcg10", "quality.shop-new.hybrid.ndcg10", "quality.shop.train_seconds"} <= set(found)
    assert len(found["quality.shop.als.ndcg10"]["runs"]) == 3
    assert len(found["quality.shop.train_seconds"]["update_seconds"]["als"]) == 2

    pool, seconds, _, equal = update.updates(shop, shop.days[-2:], "transition", silent)
    assert equal == [True, True]
    assert update.updates(shop, shop.days[-1:], "als", silent)[3] == [False]
    assert len(seconds["update"]) == len(seconds["refit"]) == 2
    assert pool.minus("update", "refit", relative=True) == {"mean": 0.0, "low": 0.0, "high": 0.0}


def test_intervals_are_over_users() -> None:
    pool = quality.Pool()
    for users in ([0, 1], [0, 1]):
        pool.users.append(np.array(users, np.int32))
        pool.values["a", "ndcg"].append(np.array([1.0, 0.0]))
        pool.values["b", "ndcg"].append(np.array([0.5, 0.5]))
    found = pool.minus("a", "b")
    assert (found["mean"], found["low"], found["high"]) == (0, -0.5, 0.5)  # two witnesses, not four


def test_als_and_recommend(settings: Settings) -> None:
    data = sets.generated(200, 300, 6000, 1, settings)
    ours, theirs = als.compare(data, settings, 2)
    assert len(ours) == len(theirs) == 2
    model = AlsModel.fit(data, settings)
    bare, matrix = recommend.bare_model(model, data, settings)
    lists = recommend.our_lists(HybridModel({"als": model}, {"als": 1.0}, recommend.N), data, settings)
    for folding_in in (False, True):
        # The same lists but for rounding and for items nobody met: so the speeds compare the same work.
        assert recommend.shared(lists, recommend.bare_lists(bare, matrix, folding_in)) > 0.98
    for user, items in enumerate(lists):
        assert not set(items) & set(matrix[user].indices)


def test_event_tables(tmp_path: Path) -> None:
    frame = events(days=4)
    frame.write_csv(tmp_path / "shop.csv")
    frame.with_columns(pl.col("timestamp").dt.epoch("ms")).write_parquet(tmp_path / "shop.parquet")
    settings = quality.make_settings()
    made = []
    for name in ("shop.csv", "shop.parquet"):
        (tmp_path / name.replace(".", "-")).mkdir()
        made.append(sets.Shop(tmp_path / name.replace(".", "-"), sets.read_table(tmp_path / name), settings))
    one, two = (shop.training_set("2024-03-03").events for shop in made)
    assert len(one) == frame.unique().filter(pl.col("timestamp") < datetime(2024, 3, 4)).height
    assert all(np.array_equal(a, b) for a, b in zip(vars(one).values(), vars(two).values(), strict=True))
    frame.drop("action").write_csv(tmp_path / "bad.csv")
    with pytest.raises(ValueError, match="no column action"):
        sets.read_table(tmp_path / "bad.csv")


def test_ingest_damages_one_file_in_a_hundred(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ingest.speed(tmp_path, 51, 1)
    found = lines(capsys.readouterr().out)
    assert set(found) == {"ingest.vs_duckdb", "ingest.vs_duckdb.bad1", "ingest.vs_script"}
    sound, damaged = (found[name]["outcome"] for name in ("ingest.vs_duckdb", "ingest.vs_duckdb.bad1"))
    assert (sound["kept"] + sound["duplicates"], sound["rejected"]) == (51 * ingest.PER_FILE, {})
    assert damaged["rejected"] == {"malformed_json": 1}
    assert 0 < sound["kept"] - damaged["kept"] < ingest.PER_FILE
