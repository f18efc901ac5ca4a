"""The hybrid: filters, padding, users without history, and weights that cannot do worse than the best member."""

import json

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from recsys_assets.evaluation.metrics import hits_matrix, per_user
from recsys_assets.models import MEMBERS
from recsys_assets.models.base import one_blas_thread
from recsys_assets.models.hybrid import DEFAULT_WEIGHTS, HybridModel, largest, learn_weights
from recsys_assets.training.events import DAY_MS
from recsys_assets_tests.models.shop import Case, settings, shop, training_set


def next_day(data, start_ms):
    events = data.events
    on = (events.timestamp >= start_ms) & (events.timestamp < start_ms + DAY_MS)
    users = np.unique(events.user[on]).astype(np.int32)
    pairs = np.unique(np.stack([np.searchsorted(users, events.user[on]), events.item[on]], axis=1), axis=0)
    return Case(
        events.before(start_ms).of_users(users), start_ms, pairs[:, 0].astype(np.int32), pairs[:, 1].astype(np.int32)
    )


@pytest.fixture(scope="module")
def data():
    return shop(n_users=300)


@pytest.fixture(scope="module")
def members(data):
    early = data.before(data.end_ms - 5 * DAY_MS)
    return {name: kind.fit(early, settings()) for name, kind in MEMBERS.items()}


@pytest.fixture(scope="module")
def days(data):
    return [next_day(data, data.end_ms - back * DAY_MS) for back in range(5, 0, -1)]


@pytest.fixture(scope="module")
def hybrid(members):
    return HybridModel(members, DEFAULT_WEIGHTS, 15)


def ndcg(lists, case):
    hits, counts = hits_matrix(lists, case.target_rows, case.target_items, case.history.n_items)
    return per_user(hits, counts, 10).ndcg


def test_lists_are_full_distinct_and_ordered(hybrid, data):
    made = hybrid.recommend(data.events, data.end_ms, 10, detail=True)
    assert made.items.shape == made.scores.shape == (300, 10)
    assert made.items.dtype == np.int32
    assert made.items.min() >= 0
    assert all(len(set(row)) == 10 for row in made.items.tolist())
    assert np.isfinite(made.scores).all()
    assert (np.diff(made.scores, axis=1) <= 1e-6).all()
    np.testing.assert_allclose(sum(made.contributions.values()), made.scores, atol=1e-4)


def test_batches_do_not_show(hybrid, data):
    together = hybrid.recommend(data.events, data.end_ms, 5)
    some = np.array([3, 255, 256, 299], np.int32)
    alone = hybrid.recommend(data.events.of_users(some), data.end_ms, 5)
    np.testing.assert_array_equal(together.items[some], alone.items)


def test_threads_do_not_show(hybrid, data):
    usual = hybrid.recommend(data.events, data.end_ms, 5)
    with threadpool_limits(1, "blas"):
        alone = hybrid.recommend(data.events, data.end_ms, 5)
    with one_blas_thread:
        assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {1}
    np.testing.assert_array_equal(usual.items, alone.items)
    assert usual.scores.tobytes() == alone.scores.tobytes()


def test_a_member_of_weight_0_is_asked_only_for_its_own_list(members, data):
    class Broken:
        name = "sequence"

        def score(self, history, at_ms):
            raise AssertionError("asked")

    weights = {**DEFAULT_WEIGHTS, "sequence": 0.0}
    made = HybridModel({**members, "sequence": Broken()}, weights, 15).recommend(data.events, data.end_ms, 10)
    shown = HybridModel(members, weights, 15).recommend(data.events, data.end_ms, 10, detail=True)
    np.testing.assert_array_equal(made.items, shown.items)
    np.testing.assert_array_equal(made.scores, shown.scores)
    assert (shown.lists["sequence"] >= 0).any()
    assert not shown.contributions["sequence"].any()


def test_own_lists_are_what_the_member_says(hybrid, members, data):
    lists = hybrid.recommend(data.events, data.end_ms, 10, detail=True).lists
    for name, member in members.items():
        scores = np.array(member.score(data.events, data.end_ms))
        for user in (0, 128, 299):
            order = np.argsort(-scores[user], kind="stable")[:10]
            expected = [i if name == "popularity" or scores[user, i] > scores[user].min() else -1 for i in order]
            assert lists[name][user].tolist() == expected


def test_filters_are_honoured_and_never_shorten_a_list_needlessly(hybrid, data):
    rng = np.random.default_rng(0)
    allowed = rng.random(40) < 0.6
    best = hybrid.recommend(data.events, data.end_ms, 10).items
    rows = np.repeat(np.arange(300, dtype=np.int32), 5)
    order = rng.permutation(len(rows))
    rows, items = rows[order], best[:, :5].ravel()[order]
    made = hybrid.recommend(data.events, data.end_ms, 10, forbidden=(rows, items), allowed=allowed, detail=True)
    for lists in (made.items, *made.lists.values()):
        shown = lists[lists >= 0]
        assert allowed[shown].all()
        codes = (np.arange(300)[:, None] * 40 + lists)[lists >= 0]
        assert not np.isin(codes, rows.astype(np.int64) * 40 + items).any()
    assert (made.items >= 0).all()


def test_a_list_is_short_only_when_nothing_is_left(hybrid, data):
    allowed = np.zeros(40, bool)
    allowed[[3, 7, 21]] = True
    made = hybrid.recommend(
        data.events, data.end_ms, 5, forbidden=(np.array([1], np.int32), np.array([7], np.int32)), allowed=allowed
    )
    assert sorted(made.items[0].tolist()) == [-1, -1, 3, 7, 21]
    assert sorted(made.items[1].tolist()) == [-1, -1, -1, 3, 21]
    assert (made.scores[made.items < 0] == 0).all()
    nothing = hybrid.recommend(data.events, data.end_ms, 5, allowed=np.zeros(40, bool))
    assert (nothing.items == -1).all()
    with pytest.raises(ValueError, match="allowed has 3 entries"):
        hybrid.recommend(data.events, data.end_ms, 5, allowed=np.ones(3, bool))


def test_users_without_history_get_popularity_even_where_it_has_no_weight(members, data):
    hybrid = HybridModel(members, {"transition": 1.0, "popularity": 0.0}, 15)
    empty = data.events.select(np.zeros(len(data.events), bool)).of_users(np.array([0, 1], np.int32))
    made = hybrid.recommend(empty, data.end_ms, 6)
    expected = np.argsort(-members["popularity"].popularity, kind="stable")[:6]
    assert made.items.tolist() == [expected.tolist()] * 2


def test_weights_are_never_worse_than_the_best_member(members, days):
    weights = learn_weights(members, days, settings())
    assert weights == learn_weights(members, days, settings())

    def mean(which):
        hybrid = HybridModel(members, which, settings().recommend.candidates)
        return np.mean(np.concatenate([ndcg(hybrid.recommend(c.history, c.at_ms, 10).items, c) for c in days]))

    together = mean(weights)
    singles = {name: mean({name: 1.0}) for name in members}
    assert together >= max(singles.values()) - 1e-9
    assert together > singles["popularity"] * 1.5


def test_a_member_that_only_disturbs_gets_no_weight(members, days, data):
    class Noise:
        name = "noise"

        def score(self, history, at_ms):
            return np.random.default_rng(len(history)).random((history.n_users, history.n_items), np.float32)

    lines: list[str] = []
    weights = learn_weights({**members, "noise": Noise()}, days, settings(), lines.append)
    assert weights["noise"] <= 0.1 * max(weights.values())
    assert any(line.startswith("weights: noise") for line in lines)


def test_weights_without_days_are_the_defaults(members):
    assert learn_weights(members, [], settings()) == DEFAULT_WEIGHTS
    assert learn_weights({}, [], settings()) == DEFAULT_WEIGHTS


def test_forbidden_items_do_not_take_part_in_learning(members, days):
    """Where all repeats are forbidden the repeat model is of no use."""
    strict = []
    for case in days:
        pairs = np.unique(case.history.user.astype(np.int64) * 40 + case.history.item)
        fresh = ~np.isin(case.target_rows.astype(np.int64) * 40 + case.target_items, pairs)
        rows, items = np.divmod(pairs, 40)
        strict.append(
            case._replace(
                target_rows=case.target_rows[fresh],
                target_items=case.target_items[fresh],
                forbidden_rows=rows.astype(np.int32),
                forbidden_items=items.astype(np.int32),
            )
        )
    assert learn_weights(members, strict, settings())["repeat"] == 0


def test_state_round_trip(hybrid, data):
    states, own = hybrid.state()
    again = HybridModel.from_state(states, json.loads(json.dumps(own)))
    first, second = (h.recommend(data.events, data.end_ms, 10) for h in (hybrid, again))
    np.testing.assert_array_equal(first.items, second.items)
    np.testing.assert_array_equal(first.scores, second.scores)


def test_similar_items(hybrid):
    lists, scores = hybrid.similar_items(4)
    assert lists.shape == scores.shape == (40, 4)
    assert (lists != np.arange(40)[:, None]).all()
    assert np.isfinite(scores).all()
    successor = np.array([(i + 1) % 20 + 20 * (i // 20) for i in range(40)])
    assert (lists == successor[:, None]).any(axis=1).mean() > 0.9
    wide, _ = hybrid.similar_items(60)
    assert wide.shape == (40, 60)
    assert (wide[:, -1] == -1).all()


@pytest.mark.parametrize(("rows", "users", "items"), [([], 0, 0), ([], 2, 3), ([(0, 0, 1)], 1, 1)])
def test_next_to_nothing(rows, users, items):
    tiny = training_set(rows, users, items)
    hybrid = HybridModel({n: k.fit(tiny, settings()) for n, k in MEMBERS.items()}, DEFAULT_WEIGHTS, 15)
    made = hybrid.recommend(tiny.events, tiny.end_ms, 4, detail=True)
    assert made.items.shape == (users, 4)
    if users and items:
        assert (made.items[:, : min(items, 4)] >= 0).all()
    assert np.isfinite(made.scores).all()
    lists, _ = hybrid.similar_items(2)
    assert lists.shape == (items, 2)


def test_largest_equals_a_full_sort():
    rng = np.random.default_rng(0)
    for n in (5, 300, 5000):
        scores = rng.integers(0, 400, (7, n)).astype(np.float32)
        scores[3] = 1
        scores[4, 10:] = -np.inf
        for k in (1, 7, 40):
            floor = scores.min(axis=1)
            rows, columns, values = largest(scores, k, floor)
            for row in range(7):
                order = np.argsort(-scores[row], kind="stable")
                expected = [i for i in order[:k] if scores[row, i] > floor[row]]
                assert columns[rows == row].tolist() == expected
            np.testing.assert_array_equal(values, scores[rows, columns])
