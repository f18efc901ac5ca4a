"""Features and the ranker: nothing of the future, nothing of the order, and the same again from its files."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from recsys_assets.models import ranker as module
from recsys_assets.models.features import ITEM_FEATURES, Shelf, hazards, item_table, pair_features
from recsys_assets.models.hybrid import RANKER, HybridModel, learn_weights
from recsys_assets.models.ranker import Ranker, shelf_of
from recsys_assets.training.events import DAY_MS, Events, TrainingSet
from recsys_assets_tests.models.shop import START_MS, Case, settings, training_set

N_USERS, N_ITEMS = 4, 6
events_of_a_few = st.lists(
    st.tuples(st.integers(0, N_USERS - 1), st.integers(0, N_ITEMS - 1), st.floats(0, 59.9)), max_size=40
)


def everything(data: TrainingSet, at_ms: int, users: np.ndarray | None = None) -> tuple[list[str], np.ndarray]:
    """Features of all pairs of the users at a moment, from what was known then."""
    data = data.before(at_ms)
    users = np.arange(data.events.n_users, dtype=np.int32) if users is None else users
    rows, items = np.divmod(np.arange(len(users) * data.events.n_items), data.events.n_items)
    return pair_features(data.events.of_users(users), at_ms, rows, items, shelf_of(data))


@given(events_of_a_few, events_of_a_few)
@examples(deadline=None, max_examples=60)
def test_later_events_change_nothing(rows: list, later: list) -> None:
    at_ms = START_MS + 60 * DAY_MS
    category = [0, 0, 1, 1, 2, -1]
    before = training_set(rows, N_USERS, N_ITEMS, category, end=60)
    after = training_set([*rows, *((u, i, day + 60.001) for u, i, day in later)], N_USERS, N_ITEMS, category, end=130)
    names, known = everything(before, at_ms)
    assert known.shape == (N_USERS * N_ITEMS, len(names))
    assert len(set(names)) == len(names)
    assert names == everything(training_set([], N_USERS, N_ITEMS, category, end=60), at_ms)[0]
    assert not np.isinf(known).any()
    np.testing.assert_array_equal(known, everything(after, at_ms)[1])
    for kind in (item_table, hazards):
        np.testing.assert_array_equal(
            kind(before.events, at_ms, before.items.category),
            kind(after.events.before(at_ms), at_ms, after.items.category),
        )


@given(events_of_a_few, st.permutations(range(N_USERS)), st.permutations(range(N_USERS * N_ITEMS)))
@examples(deadline=None, max_examples=60)
def test_the_order_of_users_and_pairs_changes_nothing(rows: list, users: list[int], order: list[int]) -> None:
    data = training_set(rows, N_USERS, N_ITEMS, [0, 0, 1, 1, 2, -1], end=60)
    _, known = everything(data, data.end_ms)
    _, moved = everything(data, data.end_ms, np.array(users, np.int32))
    np.testing.assert_array_equal(moved.reshape(N_USERS, N_ITEMS, -1), known.reshape(N_USERS, N_ITEMS, -1)[users])
    row, item = np.divmod(np.array(order), N_ITEMS)
    _, mixed = pair_features(data.events, data.end_ms, row, item, shelf_of(data))
    np.testing.assert_array_equal(mixed, known[order])


def test_what_the_numbers_say() -> None:
    """A user buys item 0 every seventh day and item 1 once; item 2 is of item 1's category."""
    rows = [(0, 0, day + 0.5) for day in (0, 7, 14, 21)] + [(0, 1, 14.5), (1, 2, 27.5)]
    data = training_set(rows, 2, 4, [0, 1, 1, -1], end=28)
    names, values = everything(data, data.end_ms)
    of = dict(zip(names, values.reshape(2, 4, -1).transpose(2, 0, 1), strict=True))
    assert np.exp(of["since"][0, 0]) == pytest.approx(7)  # bought on the day a week before the coming one
    assert np.exp(of["interval"][0, 0]) == pytest.approx(7.5)  # seven and the half that keeps it above 0
    assert of["gaps_equal"][0, 0] == of["gaps_longer"][0, 0] == 1
    assert np.exp(of["count"][0]).tolist()[:2] == pytest.approx([4, 1])
    assert np.isnan(of["since"][0, 2])
    assert np.expm1(of["place"][0, :2]).tolist() == pytest.approx([0, 1])  # the item taken four times comes first
    assert of["in_7d"][0, 0] == 1
    assert of["in_90d"][0, 0] == 4
    assert of["newest_gap"][0, 0] == 7
    # A week after: three times of three somebody came back to item 0 then; to item 1 nobody ever has.
    assert of["hazard_days"][0, 0] > of["hazard_days"][0, 1]
    assert of["item_lift_7d"][0, 0] > of["item_lift_7d"][0, 1]  # it came back in the last week, item 1 did not
    assert np.isnan(of["hazard_days"][0, 2])
    assert of["met"].tolist() == [[1, 1, 0, 0], [0, 0, 1, 0]]
    assert np.exp(of["category_since"][0, 2]) == pytest.approx(14)  # by way of item 1
    assert np.exp(of["user_visits"][0, 0]) - 1 == pytest.approx(4)
    assert np.expm1(of["item_log_7d"][0]).tolist() == pytest.approx([1, 0, 1, 0])
    assert np.expm1(of["item_log_28d"][0]).tolist() == pytest.approx([4, 1, 1, 0])


def weekly(n_users: int = 60, n_items: int = 24, days: int = 84) -> TrainingSet:
    """Everybody buys three items on a fixed day of the week and, as often, three others on any day: decayed counts
    cannot tell them apart, the day of the week can."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(n_users):
        items = rng.permutation(n_items)[:6]
        for day in range(days):
            if day % 7 == user % 7:
                rows += [(user, int(item), day + 0.5) for item in items[:3]]
            if rng.random() < 1 / 7:
                rows += [(user, int(item), day + 0.5) for item in items[3:]]
    return training_set(rows, n_users, n_items, [i % 4 for i in range(n_items)], end=days)


def day_before_the_end(data: TrainingSet, back: int) -> Case:
    start = data.end_ms - back * DAY_MS
    on = (data.events.timestamp >= start) & (data.events.timestamp < start + DAY_MS)
    users = np.unique(data.events.user[on]).astype(np.int32)
    pairs = np.unique(np.stack([np.searchsorted(users, data.events.user[on]), data.events.item[on]], axis=1), axis=0)
    rows, items = pairs.astype(np.int32).T
    return Case(data.events.before(start).of_users(users), start, rows, items)


OPTIONS = settings(ranker={"epochs": 12, "learn_days": 28})


@pytest.fixture(scope="module")
def data() -> TrainingSet:
    return weekly()


@pytest.fixture(scope="module")
def ranker(data: TrainingSet) -> Ranker:
    learned = Ranker.learn(data, [day_before_the_end(data, back) for back in range(35, 7, -1)], OPTIONS)
    assert learned is not None
    return learned


def test_it_learns_what_a_decayed_count_cannot_say(data: TrainingSet, ranker: Ranker) -> None:
    better = []
    for back in range(7, 0, -1):
        day = day_before_the_end(data, back)
        rows, items = np.divmod(np.arange(day.history.n_users * data.events.n_items), data.events.n_items)
        made = ranker.at(data.before(day.at_ms))
        scores = made.score(day.history, day.at_ms, rows, items).reshape(day.history.n_users, -1)
        counts = np.zeros(scores.shape)
        np.add.at(counts, (day.history.user, day.history.item), 1)
        hit = np.zeros(scores.shape, bool)
        hit[day.target_rows, day.target_items] = True
        for score in (scores, counts):
            best = np.argsort(-score, axis=1, kind="stable")[:, :3]
            better.append(np.take_along_axis(hit, best, axis=1).mean())
    assert np.mean(better[::2]) > np.mean(better[1::2]) + 0.1


def test_the_same_again(data: TrainingSet, ranker: Ranker) -> None:
    again = Ranker.learn(data, [day_before_the_end(data, back) for back in range(35, 7, -1)], OPTIONS)
    assert again is not None
    assert again.digest() == ranker.digest()
    arrays, params = ranker.state()
    read = Ranker.from_state(arrays, json.loads(json.dumps(params)))
    rows, items = np.divmod(np.arange(60 * 24), 24)
    expected = ranker.score(data.events, data.end_ms, rows, items)
    np.testing.assert_array_equal(read.score(data.events, data.end_ms, rows, items), expected)


def test_too_little_to_learn_from(data: TrainingSet) -> None:
    lines: list[str] = []
    assert Ranker.learn(data, [day_before_the_end(data, 3)], OPTIONS, lines.append) is None
    assert "too few" in lines[0]
    never = settings(ranker={"learn_lists": 0})
    assert Ranker.learn(data, [day_before_the_end(data, back) for back in range(35, 7, -1)], never) is None


def test_bins_are_learned_from_many_lists_only(data: TrainingSet, monkeypatch: pytest.MonkeyPatch) -> None:
    days, quick = (
        [day_before_the_end(data, back) for back in range(20, 7, -1)],
        settings(ranker={"epochs": 1, "bins": 3}),
    )
    lines: list[str] = []
    few = Ranker.learn(data, days, quick, lines.append)
    assert few is not None
    assert "low" not in few.network
    monkeypatch.setattr(module, "_BIN_LISTS", int(lines[-1].split("learned from ")[1].split()[0]))
    many = Ranker.learn(data, days, quick, lines.append)
    assert many is not None
    assert many.network["low"].shape == (len(many.network["mean"]), 3)
    assert lines[-1].endswith("lists, 3 bins a number")
    read, (rows, items) = Ranker.from_state(*many.state()), np.divmod(np.arange(60 * 24), 24)
    expected = many.score(data.events, data.end_ms, rows, items)
    np.testing.assert_array_equal(read.score(data.events, data.end_ms, rows, items), expected)


def test_items_it_has_never_heard_of(data: TrainingSet, ranker: Ranker) -> None:
    larger = data.events.of_users(np.arange(3, dtype=np.int32))
    larger = Events(
        larger.user, larger.item, larger.action, larger.weight, larger.timestamp, 3, data.events.n_items + 2
    )
    scores = ranker.score(larger, data.end_ms, np.zeros(26, np.int64), np.arange(26))
    assert np.isfinite(scores).all()
    assert isinstance(ranker.shelf, Shelf)
    assert ranker.shelf.table.shape == (24, len(ITEM_FEATURES))


def test_the_hybrid_judges_the_ranker_and_shows_its_part(data: TrainingSet, ranker: Ranker) -> None:
    from recsys_assets.models import MEMBERS

    days = [day_before_the_end(data, back) for back in range(7, 0, -1)]
    members = {name: MEMBERS[name].fit(data.before(days[0].at_ms), OPTIONS) for name in ("popularity", "repeat")}
    weights = learn_weights(members, days, OPTIONS, rankers=[ranker.at(data.before(day.at_ms)) for day in days])
    assert weights[RANKER] > 0
    hybrid = HybridModel(members, weights, 30, ranker)
    made = hybrid.recommend(data.events, data.end_ms, 5, detail=True)
    assert set(made.contributions) == {*members, RANKER}
    assert set(made.lists) == set(members)
    np.testing.assert_allclose(sum(made.contributions.values()), made.scores, atol=1e-4)
    states, own = hybrid.state()
    read = HybridModel.from_state(states, json.loads(json.dumps(own))).recommend(data.events, data.end_ms, 5)
    np.testing.assert_array_equal(read.items, made.items)
    alone = HybridModel(members, {"popularity": 0.0, "repeat": 0.0, RANKER: 1.0}, 3, ranker)
    few = alone.recommend(data.events, data.end_ms, 3)
    bought = np.zeros((60, 24), bool)
    bought[data.events.user, data.events.item] = True
    assert np.take_along_axis(bought, few.items, axis=1).mean() > 0.9, "members of weight 0 propose candidates too"
    unused = HybridModel(members, {**weights, RANKER: 0.0}, 30, ranker).recommend(data.events, data.end_ms, 5)
    without = HybridModel(members, weights, 30).recommend(data.events, data.end_ms, 5)
    np.testing.assert_array_equal(unused.items, without.items)
