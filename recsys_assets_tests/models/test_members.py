"""What holds for every member: finite, padded, deterministic, whole after a round trip."""

import json

import numpy as np
import pytest

from recsys_assets.models import MEMBERS
from recsys_assets_tests.models.shop import settings, shop, training_set

NAMES = list(MEMBERS)


@pytest.fixture(scope="module")
def data():
    return shop()


@pytest.fixture(scope="module")
def fitted(data):
    return {name: MEMBERS[name].fit(data, settings()) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_gives_identical_scores(name, data, fitted):
    arrays, params = fitted[name].state()
    assert all(array.dtype != object for array in arrays.values())
    again = MEMBERS[name].from_state(
        {key: array.copy() for key, array in arrays.items()}, json.loads(json.dumps(params))
    )
    before, after = (model.score(data.events, data.end_ms) for model in (fitted[name], again))
    assert before.shape == (80, 40)
    assert before.dtype == np.float32
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("name", NAMES)
def test_same_bytes_on_a_rerun(name, data, fitted):
    first, second = fitted[name].state(), MEMBERS[name].fit(data, settings()).state()
    assert first[1] == second[1]
    assert first[0].keys() == second[0].keys()
    for key in first[0]:
        assert first[0][key].tobytes() == second[0][key].tobytes(), key


@pytest.mark.parametrize("name", NAMES)
def test_every_user_of_a_batch_scores_as_alone(name, data, fitted):
    everyone = fitted[name].score(data.events, data.end_ms)
    for user in (0, 37):
        alone = fitted[name].score(data.events.of_users(np.array([user], np.int32)), data.end_ms)
        np.testing.assert_allclose(alone[0], everyone[user], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_items_get_the_lowest_score_when_the_map_grew(name, data, fitted):
    grown = training_set([(0, 3, 1), (0, 44, 2), (1, 44, 2)], 3, 45, end=30)
    scores = fitted[name].score(grown.events, grown.end_ms)
    assert scores.shape == (3, 45)
    assert np.isfinite(scores).all()
    unknown = scores[:, 40:44] if name == "repeat" else scores[:, 40:]
    np.testing.assert_array_equal(unknown, np.broadcast_to(scores.min(axis=1, keepdims=True), unknown.shape))
    assert (scores[0] > scores[0].min()).any()
    if name != "popularity":
        assert np.ptp(scores[2]) == 0  # no history


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("rows", "users", "items"),
    [([], 0, 0), ([], 2, 3), ([(0, 0, 1)], 1, 1), ([(0, 0, 1), (0, 0, 2), (0, 0, 2)], 1, 1), ([(0, 1, 1)], 2, 2)],
)
def test_next_to_nothing(name, rows, users, items):
    tiny = training_set(rows, users, items)
    model = MEMBERS[name].fit(tiny, settings())
    for each in (model, model.update(tiny, settings()), MEMBERS[name].from_state(*model.state())):
        scores = each.score(tiny.events, tiny.end_ms)
        assert scores.shape == (users, items)
        assert np.isfinite(scores).all()
    more = training_set([*rows, (users, items, 3), (users, 0, 4)], users + 1, items + 1)
    scores = model.update(more, settings()).score(more.events, more.end_ms)
    assert scores.shape == (users + 1, items + 1)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("name", NAMES)
def test_an_update_learns_new_items_and_keeps_the_old(name, data):
    model = MEMBERS[name].fit(data.before(data.end_ms - 3 * 86_400_000), settings())
    updated = model.update(data, settings())
    refit = MEMBERS[name].fit(data, settings())
    ours, theirs = (m.score(data.events, data.end_ms).astype(np.float64) for m in (updated, refit))
    correlation = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(ours, theirs, strict=True)])
    assert correlation > {"sequence": 0.7, "als": 0.9, "repeat": 0.9}.get(name, 0.999)


@pytest.mark.parametrize("name", ["als", "sequence"])
def test_an_item_without_events_scores_like_its_category(name):
    base = shop()
    rows = list(zip(base.events.user, base.events.item, base.events.timestamp, strict=True))
    first = base.events.timestamp.min()
    data = training_set(
        [(u, i, (t - first) / 86_400_000) for u, i, t in rows], 80, 42, [i % 5 for i in range(41)] + [-1]
    )
    scores = MEMBERS[name].fit(data, settings()).score(data.events, data.end_ms)
    np.testing.assert_allclose(scores[:, 40], scores[:, :40:5].mean(axis=1), atol=1e-4)
    np.testing.assert_array_equal(scores[:, 41], scores.min(axis=1))
