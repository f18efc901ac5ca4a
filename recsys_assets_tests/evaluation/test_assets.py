import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pytest

from recsys_assets.evaluation.evaluate import gather_evidence, lineage, next_day_task, sources, spoiled, unsound
from recsys_assets.evaluation.measure import ndcg_per_user
from recsys_assets.evaluation.metrics import Interval, paired_bootstrap
from recsys_assets.evaluation.promotion import ROLLED_BACK, decide
from recsys_assets.evaluation.tasks import Task
from recsys_assets.models import MEMBERS
from recsys_assets.models.hybrid import HybridModel, Recommendations
from recsys_assets.pipeline import Pipeline
from recsys_assets.storage.artifacts import Artifact, link_tree, load_state, save_state
from recsys_assets.training import members
from recsys_assets.training.blend import blend_day, load_hybrid, load_measured
from recsys_assets.training.events import TrainingSet
from recsys_assets.training.schedules import FULL_REFIT
from recsys_assets_tests.graph import DAYS, TRAIN, TRAINED, Ran, changed, copy_home, fill, make_home, run

FIRST, SECOND = TRAINED
STATES = ("test", "final")


def champion(pipeline: Pipeline) -> dict[str, Any]:
    found = pipeline.champion.read()
    assert found is not None
    return found


def decision(pipeline: Pipeline, day: str) -> dict[str, Any]:
    return pipeline.tables.read("promotion", day).to_dicts()[0]


def dethrone(pipeline: Pipeline) -> None:
    """The first day's model is the champion, and nothing was decided about the second's."""
    pipeline.tables.path("promotion", SECOND).unlink()
    hybrid = pipeline.artifacts.need("hybrid_model", FIRST)
    pipeline.champion.path.unlink()
    pipeline.champion.move(FIRST, hybrid.version, "for the test")


@pytest.fixture
def home(trained_home: Pipeline, tmp_path: Path) -> Pipeline:
    return copy_home(trained_home, tmp_path / "home")


def test_figures_of_every_split_and_model(train_run: tuple[Pipeline, Ran]) -> None:
    pipeline, ran = train_run
    frame = pipeline.tables.read("evaluation", SECOND)
    splits = {"next_day", "next_day_warm", "next_day_cold", "validation", "test", "all_users"}
    assert set(frame["split"].unique()) == splits
    assert set(frame["model"].unique()) == {"hybrid", "popularity_7d", *MEMBERS}
    ndcg = frame.filter((pl.col("metric") == "ndcg") & (pl.col("k") == 10))
    assert ((ndcg["low"] <= ndcg["value"]) & (ndcg["value"] <= ndcg["high"])).all()
    users = dict(ndcg.filter(pl.col("model") == "hybrid").select("split", "users").iter_rows())
    assert users["next_day"] == users["next_day_warm"] + users["next_day_cold"]
    recorded = ran.metadata("evaluation", SECOND)
    value = ndcg.filter((pl.col("split") == "next_day") & (pl.col("model") == "hybrid"))["value"][0]
    assert recorded["ndcg@10"] == round(value, 6)
    assert recorded["users measured"] == users["next_day"]
    assert ran.checks()["above_popularity"]
    everybody = frame.filter((pl.col("split") == "all_users") & (pl.col("k") == 10))
    assert set(everybody["model"]) == {"hybrid", "popularity_7d"}
    values = dict(everybody.filter(pl.col("model") == "hybrid").select("metric", "value").iter_rows())
    assert 0 < values["diversity"] < 1
    assert values["coverage"] > 0
    assert everybody["users"].unique().item() > users["next_day"]


def test_the_newest_good_model_is_the_champion(train_run: tuple[Pipeline, Ran]) -> None:
    pipeline, ran = train_run
    assert champion(pipeline)["day"] == SECOND
    assert champion(pipeline)["previous"]["day"] == FIRST
    assert decision(pipeline, FIRST)["reason"].startswith("the first champion")
    assert decision(pipeline, SECOND)["champion_day"] == FIRST
    assert ran.metadata("promotion", SECOND)["champion now"] == SECOND


def test_an_old_day_never_moves_the_champion(home: Pipeline) -> None:
    before = champion(home)
    home.tables.path("promotion", FIRST).unlink()
    ran = run(home, ["promotion"], [FIRST])
    assert ran.metadata("promotion", FIRST)["reason"] == (
        f"the model of {FIRST} is older than the champion of {SECOND}"
    )
    assert champion(home) == before
    assert decision(home, FIRST)["champion_ndcg"] is None, "it has seen that day: no figure is an honest one"


@pytest.mark.parametrize("day", TRAINED)
def test_what_is_measured_is_the_state_before_the_day(trained_home: Pipeline, day: str) -> None:
    measured = load_measured(trained_home, trained_home.artifacts.need("hybrid_model", day))
    for name in MEMBERS:
        expected, _ = load_state(trained_home.artifacts.need(f"{name}_model", day).path / "test")
        served, _ = load_state(trained_home.artifacts.need(f"{name}_model", day).path / "final")
        found, _ = measured.members[name].state()
        assert set(found) == set(expected)
        assert all(np.array_equal(found[key], expected[key]) for key in expected)
        assert not all(key in served and np.array_equal(found[key], served[key]) for key in expected)


def test_a_backfill_of_an_older_day_leaves_the_champion(home: Pipeline) -> None:
    before = champion(home)
    cheap = changed(home, sequence={"max_tokens": 1000})
    run(cheap, TRAIN, [DAYS[3]])
    assert decision(cheap, DAYS[3])["promoted"] is False
    assert champion(cheap) == before
    assert cheap.tables.read("recommendations", DAYS[3])["model_day"].unique().to_list() == [SECOND]


def test_a_promotion_is_not_taken_back_by_running_it_again(home: Pipeline) -> None:
    before = home.tables.path("promotion", SECOND).read_bytes()
    ran = run(home, ["promotion"], TRAINED)
    assert ran.metadata("promotion", SECOND)["unchanged"] is True
    assert ran.metadata("promotion", FIRST)["promoted"] is True
    assert home.tables.path("promotion", SECOND).read_bytes() == before


def test_a_promotion_that_was_carried_out_stands_under_other_rules(home: Pipeline) -> None:
    """The champion's row must not say that it was refused, being the champion already."""
    before = home.tables.path("promotion", SECOND).read_bytes()
    other = changed(home, promotion={"pooled_days": 3})
    ran = run(other, ["promotion"], TRAINED)
    assert ran.metadata("promotion", SECOND)["unchanged"] is True
    assert ran.metadata("promotion", FIRST)["promoted"] is True
    assert home.tables.path("promotion", SECOND).read_bytes() == before


def test_a_kill_before_the_pointer_moved_is_mended_by_running_again(home: Pipeline) -> None:
    """The row is written before the pointer moves."""
    hybrid = home.artifacts.need("hybrid_model", FIRST)
    home.champion.path.unlink()
    home.champion.move(FIRST, hybrid.version, "for the test")
    ran = run(home, ["promotion"], [SECOND])
    assert ran.metadata("promotion", SECOND)["unchanged"] is False
    assert champion(home)["day"] == SECOND


def test_other_rules_decide_again(home: Pipeline) -> None:
    dethrone(home)
    strict = changed(home, promotion={"min_coverage": 1.0})
    assert (
        "of the catalogue, below 100.00%"
        in run(strict, ["promotion"], [SECOND]).metadata("promotion", SECOND)["reason"]
    )
    assert champion(strict)["day"] == FIRST
    assert run(strict, ["promotion"], [SECOND]).metadata("promotion", SECOND)["unchanged"] is True
    mild = changed(home, promotion={"min_coverage": 0.0})
    assert run(mild, ["promotion"], [SECOND]).metadata("promotion", SECOND)["promoted"] is True
    assert champion(mild)["day"] == SECOND


def reweigh(pipeline: Pipeline, day: str, version: str, change: Callable[[float], float]) -> None:
    """A day's hybrid as another version, with other weights."""
    good = pipeline.artifacts.need("hybrid_model", day)
    info = {**good.info, "weights": {name: change(weight) for name, weight in good.info["weights"].items()}}
    with pipeline.artifacts.publish("hybrid_model", day, version, info) as folder:
        for path in good.path.iterdir():
            if path.is_dir():
                link_tree(path, folder / path.name)
            elif path.name != "manifest.json":
                (folder / path.name).write_bytes(path.read_bytes())


def test_a_sabotaged_challenger_is_refused(home: Pipeline) -> None:
    dethrone(home)
    reweigh(home, SECOND, "sabotaged", lambda weight: -abs(weight) - 1)
    ran = run(home, ["evaluation", "promotion", "recommendations"], [SECOND])
    assert not ran.checks()["above_popularity"]
    found = ran.metadata("promotion", SECOND)
    assert found["promoted"] is False
    assert found["ndcg@10 over popularity"] < 0
    assert found["reason"].startswith("its own checks failed: the whole ranking reaches NDCG@10 0.0")
    assert champion(home)["day"] == FIRST
    assert decision(home, SECOND)["model_version"] == "sabotaged"
    assert home.tables.read("recommendations", SECOND)["model_day"].unique().to_list() == [FIRST]


def test_the_champion_stays_servable_when_its_day_is_built_again(home: Pipeline) -> None:
    before = champion(home)
    other = changed(home, training={"validation_days": 1}, promotion={"min_coverage": 1.0})
    run(other, ["popularity_model", "repeat_model", "transition_model", "als_model", "sequence_model"], [SECOND])
    run(other, ["hybrid_model", "evaluation", "promotion", "recommendations"], [SECOND])
    assert other.artifacts.need("hybrid_model", SECOND).version != before["version"]
    assert champion(other) == before
    kept = other.artifacts.at("hybrid_model", SECOND, before["version"])
    assert kept is not None
    kept.verify()
    assert other.tables.read("recommendations", SECOND)["model_version"].unique().to_list() == [before["version"]]


def test_a_champion_whose_files_are_gone(home: Pipeline) -> None:
    home.champion.move(SECOND, "gone", "for the test")
    home.tables.path("recommendations", SECOND).unlink()
    said = run(home, ["recommendations"], [SECOND], must=False).said()
    assert f"the champion's files ({SECOND}, gone) are gone. Materialize hybrid_model, evaluation and promotion" in said


def test_the_very_first_day_of_a_shop_gets_its_lists(tmp_path: Path) -> None:
    pipeline = make_home(tmp_path, sequence={"max_tokens": 1000})
    fill(pipeline, DAYS[:1])
    ran = run(pipeline, ["raw_events", "interactions", *TRAIN], DAYS[:1])
    assert ran.metadata("evaluation", DAYS[0])["note"].startswith("Nothing to measure on this day")
    assert ran.metadata("promotion", DAYS[0])["promoted"] is True
    assert ran.metadata("promotion", DAYS[0])["reason"].startswith("the first model")
    assert ran.metadata("recommendations", DAYS[0])["users"] > 10


def test_a_day_without_any_event_after_a_champion(home: Pipeline) -> None:
    cheap = changed(home, sequence={"max_tokens": 1000})
    day = "2025-11-20"
    run(cheap, ["raw_events", "interactions", *TRAIN], [day])
    assert "nobody did anything on the unseen day" in decision(cheap, day)["reason"]
    assert champion(cheap)["day"] == SECOND
    assert cheap.tables.read("recommendations", day).height > 0


def republish(
    pipeline: Pipeline, day: str, harm: Callable[[np.ndarray], np.ndarray], only: str = "", states: Any = STATES
) -> None:
    """All members of a day, or `only` one, as versions of their own: all arrays of real numbers changed by `harm`."""
    for name in [only] if only else MEMBERS:
        good = pipeline.artifacts.need(f"{name}_model", day)
        with pipeline.artifacts.publish(f"{name}_model", day, "sabotaged", good.info) as folder:
            for state in STATES:
                arrays, params = load_state(good.path / state)
                if state in states:
                    arrays = {k: harm(a) if a.dtype.kind == "f" else a for k, a in arrays.items()}
                save_state(folder / state, arrays, params)


def random_numbers(array: np.ndarray) -> np.ndarray:
    return np.random.default_rng(array.size).random(array.shape).astype(array.dtype)


@pytest.mark.parametrize("own_day", [False, True])
def test_random_factors_are_refused(home: Pipeline, own_day: bool) -> None:
    """Against the champion of the day before, and against the champion of this very day."""
    if not own_day:
        dethrone(home)
    before = champion(home)
    republish(home, SECOND, random_numbers)
    found = run(home, ["hybrid_model", "evaluation", "promotion"], [SECOND]).metadata("promotion", SECOND)
    assert found["promoted"] is False
    assert found["reason"].startswith("its own checks failed: ")
    assert all(f"the member {name} alone reaches NDCG@10 0." in found["reason"] for name in ("als", "sequence"))
    assert found["ndcg@10 over champion"] < -0.05, "the champion is measured beside it on its own day too"
    assert champion(home) == before
    home.artifacts.need("hybrid_model", SECOND)


def test_shuffled_labels_are_refused(home: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    dethrone(home)
    real = members.read_training_set

    def shuffled(artifact: Artifact) -> TrainingSet:
        data = real(artifact)
        events = data.events
        items = np.random.default_rng(1).integers(0, events.n_items, len(events)).astype(np.int32)
        return replace(data, events=replace(events, item=items))

    monkeypatch.setattr(members, "read_training_set", shuffled)
    for name in MEMBERS:  # equal inputs: without this those that are always learned anew would stay as they are
        shutil.rmtree(home.settings.store / f"{name}_model" / SECOND)
    run(home, [f"{name}_model" for name in MEMBERS], [SECOND], config=FULL_REFIT)
    monkeypatch.undo()
    found = run(home, ["hybrid_model", "evaluation", "promotion"], [SECOND]).metadata("promotion", SECOND)
    assert found["promoted"] is False
    assert "the member als alone reaches NDCG@10 0." in found["reason"]
    assert champion(home)["day"] == FIRST


@pytest.mark.parametrize(
    ("name", "states"), [("als", STATES), ("als", ("final",)), ("sequence", STATES), ("transition", ("final",))]
)
def test_one_member_that_was_spoiled_is_refused_by_name(home: Pipeline, name: str, states: tuple[str, ...]) -> None:
    """A ranker makes good lists of what a bad member proposes; an update is measured as it was before its day. Neither
    is seen by what the hybrid reaches on the unseen day."""
    dethrone(home)
    assert not gather_evidence(home, sources(home, SECOND)).failed_checks
    republish(home, SECOND, random_numbers, name, states)
    blend_day(home, SECOND, lambda _: None)
    evidence = gather_evidence(home, sources(home, SECOND))
    (said,) = evidence.failed_checks
    assert said.startswith(f"the member {name} alone reaches NDCG@10 0.")
    assert not decide(evidence, home.settings.promotion).promote
    assert decide(replace(evidence, failed_checks=()), home.settings.promotion).promote, "nothing else would tell"


def test_what_counts_as_spoiled(home: Pipeline) -> None:
    settings = changed(home, promotion={"member_tolerance": 0.3}).settings
    good = np.tile([0.2, 0.4, 0.6], 40)
    served = {"hybrid": good, "als": good * 0.69, "repeat": good * 0.71, "sequence": good * 0, "new": good}
    said = spoiled(served, dict.fromkeys(("hybrid", "als", "repeat", "gone"), good), settings)
    assert [each.split(" reaches")[0] for each in said] == ["the member als alone"]
    assert said[0].endswith(
        "NDCG@10 0.2760 on a day it has learned, where the champion's, which has not, reaches "
        "0.4000: a loss above promotion.member_tolerance, 30%"
    )
    assert not spoiled({"als": good[:2] * [0, 1]}, {"als": good[:2]}, settings), "two users prove nothing"
    off = changed(home, promotion={"member_tolerance": 1}).settings
    assert not spoiled({"als": good * 0}, {"als": good}, off)


def test_numbers_that_are_none_are_refused(home: Pipeline) -> None:
    dethrone(home)
    republish(home, SECOND, lambda array: np.where(array == array.max(initial=0), np.nan, array).astype(array.dtype))
    found = run(home, ["hybrid_model", "evaluation", "promotion"], [SECOND]).metadata("promotion", SECOND)
    assert found["promoted"] is False
    assert found["reason"].startswith("its own checks failed: ")
    assert "the member popularity holds numbers that are not finite" in found["reason"]
    assert champion(home)["day"] == FIRST


def test_the_days_since_the_champion_are_compared_together(home: Pipeline) -> None:
    """Two days after the champion, in one line of updates."""
    dethrone(home)
    strict = changed(home, promotion={"min_coverage": 1.0}, sequence={"max_tokens": 1000})
    run(strict, TRAIN, [SECOND])
    assert champion(strict)["day"] == FIRST
    run(changed(home, sequence={"max_tokens": 1000}), [name for name in TRAIN if name != "recommendations"], DAYS[7:])
    row = decision(home, DAYS[7])
    assert row["champion_day"] == FIRST
    assert row["pooled_days"] == 2
    assert row["over_champion_pooled_low"] < row["over_champion_pooled"] < row["over_champion_pooled_high"]
    assert row["over_champion_pooled"] != row["over_champion"]


def ndcg_of(model: HybridModel, task: Task) -> np.ndarray:
    barred = (task.forbidden_rows, task.forbidden_items)
    return ndcg_per_user(model.recommend(task.history, task.at_ms, 20, forbidden=barred).items, task)


def test_both_are_measured_on_the_same_users_from_the_same_histories(home: Pipeline) -> None:
    """The figures of the gate again, by hand, against a champion that ranks otherwise."""
    reweigh(home, FIRST, "otherwise", lambda weight: 1 - weight)
    dethrone(home)
    found = sources(home, SECOND)
    task = next_day_task(found, home)
    assert (task.history.timestamp < found.start_ms).all()
    own = ndcg_of(load_measured(home, found.hybrid), task)
    theirs = ndcg_of(load_hybrid(home.artifacts.need("hybrid_model", FIRST))[0], task)
    assert (own > theirs).any()
    assert (own < theirs).any()
    evidence = gather_evidence(home, found)
    assert (evidence.users, evidence.ndcg, evidence.champion_ndcg) == (len(task), own.mean(), theirs.mean())
    samples, seed = home.settings.evaluation.bootstrap_samples, home.settings.training.seed
    assert evidence.over_champion == paired_bootstrap(own - theirs, samples, seed, 0.9)
    assert (evidence.pooled_days, evidence.over_champion_pooled) == (1, None), "the champion's own day it has seen"


def test_a_champion_is_not_better_for_having_seen_its_own_day(trained_home: Pipeline) -> None:
    evidence = gather_evidence(trained_home, sources(trained_home, SECOND))
    assert evidence.champion_day == SECOND
    assert evidence.over_champion == Interval(0.0, 0.0, 0.0), "both as they were before it"


def test_a_day_older_than_a_champion_that_was_rolled_back(home: Pipeline) -> None:
    before = champion(home)
    home.champion.move(DAYS[7], "bad", "for the test")
    home.champion.move(SECOND, before["version"], "it was bad", ROLLED_BACK)
    evidence = gather_evidence(home, sources(home, SECOND))
    assert (evidence.champion_day, evidence.newest_champion_day) == (SECOND, DAYS[7])


def test_what_was_refused_for_a_newer_champion_is_not_compared_again(home: Pipeline) -> None:
    home.tables.path("promotion", FIRST).unlink()
    assert not run(home, ["promotion"], [FIRST]).metadata("promotion", FIRST)["promoted"]
    home.champion.move(DAYS[7], "newer", "for the test")
    before = home.tables.path("promotion", FIRST).read_bytes()
    assert run(home, ["promotion"], [FIRST]).metadata("promotion", FIRST)["unchanged"]
    assert home.tables.path("promotion", FIRST).read_bytes() == before


def test_only_states_of_one_model_are_pooled(home: Pipeline) -> None:
    """The day before counts if this day's members were updated from its members, and these are still there."""
    second, first = (home.artifacts.need("hybrid_model", day) for day in (SECOND, FIRST))

    def days(oldest: str = DAYS[0]) -> list[str]:
        return [each.info["day"] for each in lineage(home, second, oldest)]

    assert days() == days(FIRST) == [FIRST]
    assert days(SECOND) == []
    removed = home.artifacts.need("popularity_model", FIRST).path
    removed.rename(removed.with_name(".aside"))
    assert days() == []
    removed.with_name(".aside").rename(removed)
    members = {**first.info["inputs"]["members"], "als": "another"}
    with home.artifacts.publish("als_model", FIRST, "another", home.artifacts.need("als_model", FIRST).info):
        pass
    with home.artifacts.publish("hybrid_model", FIRST, "again", {**first.info, "inputs": {"members": members}}):
        pass
    assert days() == []


class Nothing:
    """A hybrid of no members."""

    members: ClassVar[dict[str, Any]] = {}


@pytest.mark.parametrize(
    ("items", "score", "problems"),
    [
        ([[1, 2, -1, -1], [2, 1, 0, -1]], 1.0, []),
        ([[1, 2, 1, -1], [2, 1, 0, -1]], 1.0, ["lists that show an item twice"]),
        ([[-1, -1, -1, -1], [2, 1, 0, -1]], 1.0, ["empty lists for 1 of 2 users"]),
        ([[1, 2, -1, -1], [2, 1, 0, -1]], np.inf, ["scores that are not finite"]),
        ([[1, 1, -1, -1], [-1, -1, -1, -1]], np.nan, ["scores", "lists that show", "empty lists for 1"]),
    ],
)
def test_what_is_wrong_with_lists(items: list[list[int]], score: float, problems: list[str]) -> None:
    shown = Recommendations(np.array(items, np.int32), np.full((2, 4), score, np.float32))
    found = unsound(Nothing(), shown)  # type: ignore[arg-type]
    assert len(found) == len(problems)
    assert all(said.startswith(start) for said, start in zip(found, problems, strict=True))
