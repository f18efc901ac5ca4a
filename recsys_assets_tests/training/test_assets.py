import json
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recsys_assets.models import MEMBERS
from recsys_assets.pipeline import Pipeline
from recsys_assets.training.holdout import Holdout
from recsys_assets.training.merge import load
from recsys_assets.trust.plan import downstream
from recsys_assets_tests.graph import (
    DAYS,
    INGEST,
    TRAIN,
    TRAINED,
    Ran,
    changed,
    contents,
    copy_home,
    run,
    snapshot,
)
from recsys_assets_tests.graph import (
    MEMBERS as MEMBER_ASSETS,
)

KEY = ["user_id", "item_id", "action", "timestamp"]


def holdout(pipeline: Pipeline) -> Holdout:
    found = pipeline.holdouts.current()
    assert found is not None
    return found


def learned(pipeline: Pipeline, day: str) -> set[tuple[str, str, str, int]]:
    data = load(pipeline.artifacts.need("training_set", day).path, 0)
    events = data.events
    return {
        (data.users[u], data.items.ids[i], data.actions[a], int(t))
        for u, i, a, t in zip(events.user, events.item, events.action, events.timestamp, strict=True)
    }


def keys(frame: pl.DataFrame) -> set[tuple[str, str, str, int]]:
    return set(frame.select(*KEY[:3], pl.col("timestamp").dt.epoch("ms")).iter_rows())


def test_a_range_run_records_every_day_of_every_asset(train_run: tuple[Pipeline, Ran]) -> None:
    _, ran = train_run
    wanted: dict[str, set[str]] = {
        "training_set": {"dagster/partition_row_count", "version", "hold-out", "kept", "withheld", "ahead"},
        **{name: {"version", "mode", "events", "items", "examples", "artifact"} for name in MEMBER_ASSETS},
        "hybrid_model": {"weights", "weights learned", "weight/als", "version"},
        "evaluation": {"ndcg@10", "ndcg@10 popularity_7d", "recall@10", "chart", "users measured", "hybrid minus each"},
        "promotion": {"promoted", "reason", "champion now", "ndcg@10 over popularity"},
        "recommendations": {"dagster/partition_row_count", "users", "coverage", "champion", "most recommended items"},
        "similar_items": {"dagster/partition_row_count", "items", "examples"},
    }
    assert set(wanted) == set(TRAIN)
    for asset, names in wanted.items():
        for day in TRAINED:
            found = ran.metadata(asset, day)
            assert names | {"seconds", "unchanged", "environment", "version"} <= set(found), asset
            assert found["unchanged"] is False


def test_the_second_day_goes_on_from_the_first(train_run: tuple[Pipeline, Ran]) -> None:
    _, ran = train_run
    for name in MEMBER_ASSETS:
        costly = name not in ("popularity_model", "transition_model")
        assert ran.metadata(name, TRAINED[0])["mode"] == "full refit"
        assert ran.metadata(name, TRAINED[1])["mode"] == ("update" if costly else "full refit")
        assert ran.metadata(name, TRAINED[1])["goes on from"] == (TRAINED[0] if costly else "nothing: full refit")


def test_unchanged_inputs_write_nothing(trained_home: Pipeline) -> None:
    before = snapshot(trained_home.settings.store)
    ran = run(trained_home, TRAIN, TRAINED)
    assert snapshot(trained_home.settings.store) == before
    for asset in TRAIN:
        for day in TRAINED:
            assert ran.metadata(asset, day)["unchanged"] is True, asset


def test_the_frozen_holdout_is_in_no_training_set(trained_home: Pipeline) -> None:
    withheld = keys(holdout(trained_home).read())
    assert len(withheld) > 50
    for day in TRAINED:
        found = learned(trained_home, day)
        assert not withheld & found
        expected = set()
        for each in DAYS:
            if each <= day:
                frame = trained_home.tables.read("interactions", each, ["reason", *KEY])
                expected |= keys(frame.filter(pl.col("reason").is_null()))
        assert found == expected - withheld, "and nothing else is missing"


def test_training_sets_do_not_depend_on_the_order_of_building(trained_home: Pipeline, tmp_path: Path) -> None:
    pipeline = copy_home(trained_home, tmp_path / "home")
    store = pipeline.settings.store / "training_set"
    run(pipeline, ["training_set"], DAYS[3:])
    expected = contents(store)
    assert len({name.split("/")[0] for name in expected}) == 5
    store.rename(tmp_path / "before")
    for day in (DAYS[5], DAYS[7], DAYS[3], DAYS[6], DAYS[4]):
        run(pipeline, ["training_set"], [day])
    assert contents(store) == expected
    users: list[str] = []
    for day in DAYS[3:]:
        found = list(load(pipeline.artifacts.need("training_set", day).path, 0).users)
        assert found[: len(users)] == users, "ids only grow"
        users = found


def test_a_missing_day_is_told_and_absorbed_later(trained_home: Pipeline, tmp_path: Path) -> None:
    pipeline = copy_home(trained_home, tmp_path / "home")
    day, path = TRAINED[0], pipeline.tables.path("interactions", DAYS[2])
    expected = contents(pipeline.artifacts.need("training_set", day).path)
    path.rename(tmp_path / "away")
    ran = run(pipeline, ["training_set"], [day])
    assert ran.metadata("training_set", day)["days without interactions"] == 1
    (tmp_path / "away").rename(path)
    assert run(pipeline, ["training_set"], [day]).metadata("training_set", day)["days without interactions"] == 0
    assert contents(pipeline.artifacts.need("training_set", day).path) == expected


def session(pipeline: Pipeline, in_folder_of: str, on: str, n: int = 40) -> None:
    """A late object: known users, active on the folder's day and on no frozen list, with known items, on a day."""
    frames = {day: pipeline.tables.read("interactions", day, ["user_id", "item_id", "reason"]) for day in DAYS}
    frozen = set(holdout(pipeline).read()["user_id"]) if pipeline.holdouts.current() else set()
    first = set(frames[DAYS[0]].drop_nulls("user_id")["user_id"])
    users = sorted(first & set(frames[in_folder_of].drop_nulls("user_id")["user_id"]) - frozen)
    items = sorted(set(frames[DAYS[0]].drop_nulls("item_id")["item_id"]))
    assert users
    start = int(datetime.fromisoformat(f"{on}T20:00:00+00:00").timestamp() * 1000)
    records = [
        {
            "timestamp": start + i * 1000,
            "user_id": users[i % len(users)],
            "item_id": items[i * 7 % len(items)],
            "action": "PURCHASE",
        }
        for i in range(n)
    ]
    pipeline.bucket.put(f"logs/{in_folder_of.replace('-', '/')}/session.json", json.dumps(records).encode())
    run(pipeline, INGEST, [in_folder_of])


def states(pipeline: Pipeline, day: str, state: str) -> dict[str, dict[str, str]]:
    return {name: contents(pipeline.artifacts.need(f"{name}_model", day).path / state) for name in MEMBERS}


def trained_again(trained_home: Pipeline, folder: Path, in_folder_of: str, on: str) -> Pipeline:
    """The trained home, with a late session and the first day trained from nothing again."""
    pipeline = copy_home(trained_home, folder)
    session(pipeline, in_folder_of, on)
    for name in (*MEMBER_ASSETS, "hybrid_model"):
        (pipeline.settings.store / name).rename(folder / name)
    run(pipeline, ["training_set", *MEMBER_ASSETS], [TRAINED[0]])
    return pipeline


def test_what_is_measured_never_saw_the_measured_day(trained_home: Pipeline, tmp_path: Path) -> None:
    day = TRAINED[0]
    other = trained_again(trained_home, tmp_path / "home", in_folder_of=day, on=day)
    assert states(other, day, "test") == states(trained_home, day, "test")
    assert states(other, day, "validation") == states(trained_home, day, "validation")
    final, before = states(other, day, "final"), states(trained_home, day, "final")
    assert all(final[name] != before[name] for name in MEMBERS), "the served ones did learn it"


def test_events_that_lie_in_an_earlier_days_folder_are_not_seen_early(trained_home: Pipeline, tmp_path: Path) -> None:
    """An update of the next day goes on from these states, and is measured on that day."""
    day, later = TRAINED
    other = trained_again(trained_home, tmp_path / "home", in_folder_of=day, on=later)
    assert states(other, day, "final") == states(trained_home, day, "final")
    counts = other.artifacts.need("training_set", day).info["counts"]
    assert counts["ahead"] == 40
    run(other, ["training_set"], [later])
    counts = other.artifacts.need("training_set", later).info["counts"]
    assert counts["ahead"] == 0
    assert len(learned(other, later)) == len(learned(trained_home, later)) + 40


@pytest.mark.parametrize("redraw", [False, True])
def test_no_model_goes_on_from_one_that_learned_the_holdout(
    trained_home: Pipeline, tmp_path: Path, redraw: bool
) -> None:
    pipeline = copy_home(trained_home, tmp_path / "home")
    before = contents(pipeline.settings.store / "training_set")
    if redraw:
        files = [pipeline.tables.path("interactions", day) for day in DAYS]
        pipeline.holdouts.ensure(files, DAYS[7], pipeline.settings.holdout, pipeline.settings.training.seed, "again")
        assert holdout(pipeline).version == 2
    ran = run(pipeline, ["training_set", "als_model"], [DAYS[7]])
    assert ran.metadata("training_set", DAYS[7])["hold-out"] == f"version {2 if redraw else 1}"
    assert ran.metadata("als_model", DAYS[7])["mode"] == ("full refit" if redraw else "update")
    assert not keys(holdout(pipeline).read()) & learned(pipeline, DAYS[7])
    after = contents(pipeline.settings.store / "training_set")
    assert {name: after[name] for name in before} == before


def test_a_chain_of_updates_ends(trained_home: Pipeline, tmp_path: Path) -> None:
    pipeline = changed(copy_home(trained_home, tmp_path / "home"), training={"full_refit_days": 2})
    ran = run(pipeline, ["training_set", "als_model"], [DAYS[7]])
    assert ran.metadata("als_model", DAYS[7])["mode"] == "full refit"


def test_a_full_refit_on_demand(trained_home: Pipeline, tmp_path: Path) -> None:
    pipeline = copy_home(trained_home, tmp_path / "home")
    config: dict[str, Any] = {"ops": {"als_model": {"config": {"full_refit": True}}}}
    ran = run(pipeline, ["als_model"], [TRAINED[1]], config=config)
    assert ran.metadata("als_model", TRAINED[1])["mode"] == "full refit"
    assert run(pipeline, ["als_model"], [TRAINED[1]], config=config).metadata("als_model", TRAINED[1])["unchanged"]


def test_what_was_updated_from_a_state_that_was_replaced_is_made_again(trained_home: Pipeline, tmp_path: Path) -> None:
    pipeline, newest = copy_home(trained_home, tmp_path / "home"), DAYS[7]
    models = ["als_model", "hybrid_model"]
    run(pipeline, ["training_set", *MEMBER_ASSETS, "hybrid_model"], [newest])
    config: dict[str, Any] = {"ops": {"als_model": {"config": {"full_refit": True}}}}
    run(pipeline, models, [TRAINED[1]], config=config)
    refitted = {name: pipeline.artifacts.need(name, TRAINED[1]) for name in models}
    named = {(each.asset, each.day): each.why for each in downstream(pipeline, interactions(pipeline))}
    assert named["als_model", newest] == "als_model of the day before"
    assert named["hybrid_model", newest] == "als_model of its day"
    again, unchanged = run(pipeline, models, [newest]), run(pipeline, models, [newest])
    for name in models:
        assert again.metadata(name, newest)["unchanged"] is False
        assert unchanged.metadata(name, newest)["unchanged"] is True
        assert pipeline.artifacts.need(name, newest).info["parent"]["version"] == refitted[name].version
    # No other member: their states of the day before are what they were.
    others = [name for name in MEMBER_ASSETS if name != "als_model"]
    ran = run(pipeline, others, [newest])
    assert all(ran.metadata(name, newest)["unchanged"] for name in others)


def test_a_ranking_that_came_late_is_kept(trained_home: Pipeline, tmp_path: Path) -> None:
    """The hybrid of the day before was made after the hybrid that keeps its weights: a run was killed between."""
    pipeline, newest = copy_home(trained_home, tmp_path / "home"), DAYS[7]
    before = pipeline.artifacts.need("hybrid_model", TRAINED[1])
    pipeline.artifacts.remove("hybrid_model", TRAINED[1], before.version)
    run(pipeline, ["training_set", *MEMBER_ASSETS, "hybrid_model"], [newest])
    assert pipeline.artifacts.need("hybrid_model", newest).info["parent"] is None
    run(pipeline, ["hybrid_model"], [TRAINED[1]])
    assert ("hybrid_model", newest) in {(each.asset, each.day) for each in downstream(pipeline, interactions(pipeline))}
    run(pipeline, ["hybrid_model"], [newest])
    late = pipeline.artifacts.need("hybrid_model", newest).info
    assert late["parent"]["version"] == before.version
    assert late["weights"] == before.info["weights"]


def interactions(pipeline: Pipeline) -> dict[str, str]:
    tables = pipeline.tables
    return {day: (tables.info("interactions", day) or {})["version"] for day in tables.days("interactions")}


@pytest.mark.parametrize(
    ("asset", "said"),
    [
        ("training_set", "interactions has no partition 2025-11-20 yet. Materialize interactions for 2025-11-20 first"),
        ("als_model", "training_set has no partition 2025-11-20 yet"),
        ("hybrid_model", "training_set has no partition 2025-11-20 yet"),
        ("evaluation", "hybrid_model has no partition 2025-11-20 yet"),
        ("promotion", "evaluation has no partition 2025-11-20 yet"),
        ("recommendations", "training_set has no partition 2025-11-20 yet"),
        ("similar_items", "training_set has no partition 2025-11-20 yet"),
    ],
)
def test_each_asset_alone_says_what_it_misses(trained_home: Pipeline, asset: str, said: str) -> None:
    before = snapshot(trained_home.settings.store)
    assert said in run(trained_home, [asset], ["2025-11-20"], must=False).said()
    assert snapshot(trained_home.settings.store) == before


@pytest.mark.parametrize("asset", ["training_set", "popularity_model", "hybrid_model"])
def test_a_damaged_partition_is_rebuilt_when_materialized_again(
    trained_home: Pipeline, tmp_path: Path, asset: str
) -> None:
    pipeline, day = copy_home(trained_home, tmp_path / "home"), TRAINED[1]
    folder = pipeline.artifacts.need(asset, day).path
    good = contents(folder)
    harmed = sorted(path for path in folder.rglob("*.*") if path.name != "manifest.json")[0]
    harmed.write_bytes(b"x" + harmed.read_bytes()[1:])
    downstream = {"training_set": "als_model", "popularity_model": "hybrid_model", "hybrid_model": "evaluation"}[asset]
    said = run(pipeline, [downstream], [day], must=False).said()
    assert f"{harmed} is missing or not what was published. Materialize this partition again" in said
    assert run(pipeline, [asset], [day]).metadata(asset, day)["unchanged"] is False
    found = contents(folder)
    assert {name: found[name] for name in good if name != "manifest.json"} == {
        name: digest for name, digest in good.items() if name != "manifest.json"
    }
    run(pipeline, [downstream], [day])
