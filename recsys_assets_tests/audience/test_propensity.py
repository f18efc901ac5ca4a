from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.datasets import load_svmlight_file
from sklearn.metrics import roc_auc_score

from recsys_assets.audience.features import DAY_MS, FEATURE_COLUMNS, features, labels
from recsys_assets.audience.measure import brier
from recsys_assets.audience.propensity import Propensity, _folds, calibrate, fit, libsvm
from recsys_assets.days import day_start_ms, shift
from recsys_assets.pipeline import InputError
from recsys_assets_tests.audience.behaviour import FIRST, Crowd, crowd


def periods(given: Crowd) -> list[tuple[pl.DataFrame, np.ndarray]]:
    """Features of three weeks and who took the offer in the one after them: three times, a week apart."""
    events = given.events.with_columns(mobile=pl.col("device") == "mobile", taken=pl.col("action") == "CLICK")
    found = []
    for week in (3, 4, 5):
        end = day_start_ms(shift(FIRST, week * 7), "UTC")
        frame = features(events, end - 21 * DAY_MS, end, "UTC")
        found.append((frame, labels(frame["user_id"], events, end, end + 7 * DAY_MS).to_numpy()))
    return found


def fitted(given: Crowd) -> tuple[Propensity, pl.DataFrame, np.ndarray, np.ndarray]:
    """The model of the first two periods, and the third: features, who took the offer, and everybody's true chance."""
    *learned, (frame, taken) = periods(given)
    model = fit(pl.concat([each for each, _ in learned]), np.concatenate([each for _, each in learned]), 0.01, 7)
    return model, frame, taken, np.array([given.chance[user] for user in frame["user_id"]])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_ranking_is_nearly_as_good_as_the_truth(seed: int) -> None:
    # Tastes show in events: with three a day the true weights themselves, over shares of sixty events, lose 0.014.
    model, frame, taken, chance = fitted(crowd(daily=6, seed=seed))
    truth, own = roc_auc_score(taken, chance), roc_auc_score(taken, model.margin(frame))
    most_active = roc_auc_score(taken, frame["events"])
    assert own == pytest.approx(truth, abs=0.02), "nor better: that would be the label, seen beforehand"
    assert most_active < 0.6 < 0.7 < own, "what is learned is not activity"
    probability = model.probability(model.margin(frame))
    assert probability.mean() == pytest.approx(taken.mean(), abs=0.02), "for all that both classes weigh the same"
    assert brier(probability, taken) < brier(np.full(len(taken), taken.mean()), taken)
    assert brier(probability, taken) < brier(chance, taken) + 0.004
    assert (np.argsort(probability, kind="stable") == np.argsort(model.margin(frame), kind="stable")).all()


def test_where_one_in_a_hundred_takes_it_the_ranking_still_holds() -> None:
    given = crowd(users=6000, daily=3, rate=-6.2)
    model, frame, taken, chance = fitted(given)
    assert 0.005 < taken.mean() < 0.02
    assert roc_auc_score(taken, model.margin(frame)) > roc_auc_score(taken, chance) - 0.05 > 0.65
    assert model.probability(model.margin(frame)).mean() == pytest.approx(taken.mean(), rel=0.5)


def test_what_is_saved_is_what_was_fitted_and_the_same_inputs_give_the_same(tmp_path: Path) -> None:
    given = crowd(users=300, daily=1)
    model, frame, _, _ = fitted(given)
    for name, each in (("a", model), ("b", fitted(given)[0])):
        each.save(tmp_path / name)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["arrays.safetensors", "params.json"]
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert (Propensity.load(tmp_path / "a").margin(frame) == model.margin(frame)).all()


def test_a_user_s_periods_are_never_on_both_sides_when_probabilities_are_learned() -> None:
    rng = np.random.default_rng(2)
    users = rng.integers(0, 200, 900).astype(str).astype(object)
    taken = rng.random(900) < 0.05
    ever, folds = _folds(users, taken, 7)
    assert ever == len(set(users[taken]))
    assert len(set(zip(users, folds, strict=True))) == len(set(users))
    takers = [len(set(users[taken & (folds == fold)])) for fold in range(5)]
    assert max(takers) - min(takers) <= 1, "spread evenly"


def test_a_device_that_nobody_tells_is_left_out_and_one_that_some_tell_is_filled() -> None:
    *_, (frame, taken) = periods(crowd(users=300, daily=1))
    without = frame.with_columns(mobile=pl.lit(None, pl.Float64))
    assert "mobile" not in fit(without, taken, 0.01, 7).names
    some = frame.with_columns(mobile=pl.when(pl.int_range(pl.len()) % 2 == 0).then("mobile"))
    model = fit(some, taken, 0.01, 7)
    filled = model.inputs(some)[:, model.names.index("mobile")]
    assert filled[1::2] == pytest.approx(some["mobile"].mean())
    assert filled[::2] == pytest.approx(some["mobile"].to_numpy()[::2])


def test_useless_features_give_the_base_rate_and_never_the_order_reversed() -> None:
    rng = np.random.default_rng(0)
    taken = rng.random(500) < 0.1
    margin = np.where(taken, -1.0, 1.0) + rng.normal(0, 1, 500)
    slope, offset = calibrate(margin, taken)
    assert slope == 0
    assert 1 / (1 + np.exp(-offset)) == pytest.approx(taken.mean(), abs=0.01)


def test_a_feature_that_never_varies_does_no_harm() -> None:
    *_, (frame, taken) = periods(crowd(users=300, daily=1))
    model = fit(frame.with_columns(distinct_items=pl.lit(1.0)), taken, 0.01, 7)
    assert np.isfinite(model.margin(frame)).all()


def test_too_few_takers_are_an_error_that_says_so() -> None:
    *_, (frame, taken) = periods(crowd(users=300, daily=1))
    rare = taken & (np.cumsum(taken) <= 3)
    with pytest.raises(InputError, match=r"^3 of 300 users took the offer .*audience\.action"):
        fit(frame[:300], rare, 0.01, 7)


def test_the_libsvm_file_loads_in_scikit_learn(tmp_path: Path) -> None:
    model, frame, _, _ = fitted(crowd(users=300, daily=1))
    inputs, target = model.inputs(frame), model.probability(model.margin(frame))
    (tmp_path / "file").write_text(libsvm(inputs, target))
    x, y = load_svmlight_file(str(tmp_path / "file"), n_features=len(model.names), zero_based=False)
    assert (x.toarray() == inputs).all()
    assert (y == target).all()
    assert set(model.names) < set(FEATURE_COLUMNS)
