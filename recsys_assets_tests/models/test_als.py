"""ALS: the fold-in is the exact solution, updates go on from where the model stood."""

import numpy as np
import pytest

from recsys_assets.models.als import AlsModel, _first_factors, confidence
from recsys_assets.training.events import DAY_MS
from recsys_assets_tests.models.shop import START_MS, settings, shop, training_set


@pytest.mark.parametrize("factors", [2, 8, 120])  # by implicit, by both ways, by the smaller systems alone
def test_fold_in_solves_the_normal_equations(factors):
    data, own = shop(), settings(als={"factors": factors})
    model = AlsModel.fit(data, own)
    at_ms = data.end_ms + 5 * DAY_MS
    found = model.user_factors(data.events, at_ms)
    y = model.item_factors.astype(np.float64)
    for user in range(80):
        c = np.ones(40)
        for item, when in zip(
            *(a[data.events.user == user] for a in (data.events.item, data.events.timestamp)), strict=True
        ):
            c[item] += own.als.alpha * 5 * 0.5 ** ((at_ms - when) / DAY_MS / own.als.half_life_days)
        met = c > 1
        left = y.T @ (c[:, None] * y) + own.als.regularization * np.eye(factors)
        np.testing.assert_allclose(found[user], np.linalg.solve(left, y.T @ (c * met)), rtol=2e-3, atol=2e-5)


def test_confidence_never_falls_below_that_of_an_item_never_met():
    data = training_set([(0, 0, 0), (0, 0, 1), (0, 1, 1)], 1, 3)
    matrix = confidence(data.events, data.end_ms + 100_000 * DAY_MS, 2.0, 1.0, 3)
    np.testing.assert_array_equal(matrix.data, [1, 1])
    np.testing.assert_allclose(confidence(data.events, data.end_ms, 2.0, 1e9, 3).toarray(), [[21, 11, 0]], rtol=1e-6)


def test_finds_the_two_halves_of_the_shop():
    data = shop()
    scores = AlsModel.fit(data, settings()).score(data.events, data.end_ms)
    own_half = np.arange(80)[:, None] % 2 == (np.arange(40) >= 20)
    assert scores[own_half].mean() > 5 * abs(scores[~own_half].mean())


def test_update_moves_new_items_away_from_zero_even_if_all_their_users_are_new():
    data = shop()
    rows = [
        (int(u), int(i), (t - data.events.timestamp[0]) / DAY_MS)
        for u, i, t in zip(data.events.user, data.events.item, data.events.timestamp, strict=True)
    ]
    last = max(row[2] for row in rows) + 1
    grown = training_set([*rows, *((u, i, last) for u in range(80, 100) for i in (40, 41))], 100, 42)
    updated = AlsModel.fit(data, settings()).update(grown, settings(als={"update_iterations": 3}))
    assert updated.item_factors.shape == (42, 8)
    scores = updated.score(grown.events, grown.end_ms)
    assert scores[80:, 40:].min() > 0.3
    assert scores[80:, 40:].min() > scores[80:, :40].max()


def test_an_update_solves_the_items_met_since_and_those_that_came_late():
    data, own = shop(), settings()
    rows = [
        (int(u), int(i), (t - START_MS) / DAY_MS)
        for u, i, t in zip(data.events.user, data.events.item, data.events.timestamp, strict=True)
    ]
    old = AlsModel.fit(training_set(rows, 80, 40, end=30), own)
    grown = training_set([*rows, (3, 5, 30.5), (4, 41, 2), (4, 42, 30.5)], 80, 43, end=31)
    factors = old.update(grown, own).item_factors
    moved = (factors[:40] != old.item_factors).any(axis=1)
    assert np.flatnonzero(moved).tolist() == [5]
    assert factors.any(axis=1)[40:].tolist() == [False, True, True]
    same = old.update(training_set(rows, 80, 40, end=31), own)
    np.testing.assert_array_equal(same.item_factors, old.item_factors)


def test_items_begin_alike_however_many_follow():
    np.testing.assert_array_equal(_first_factors(50, settings())[:20], _first_factors(20, settings()))


def test_warm_update_is_as_good_as_a_refit():
    data, own = shop(n_users=200), settings()
    old = AlsModel.fit(data.before(data.end_ms - 2 * DAY_MS), own)

    def loss(model):
        c = confidence(data.events, data.end_ms, own.als.alpha, own.als.half_life_days, 40).toarray()
        x = model.user_factors(data.events, data.end_ms)
        y = model.item_factors
        fit = np.where(c > 0, c, 1) * ((c > 0) - x @ y.T) ** 2
        return fit.sum() + own.als.regularization * ((x**2).sum() + (y**2).sum())

    assert loss(old.update(data, own)) == pytest.approx(loss(AlsModel.fit(data, own)), rel=0.02)
