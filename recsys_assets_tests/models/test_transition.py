"""Transitions against a slow and obvious count."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import given
from hypothesis import settings as hypothesis_settings

from recsys_assets.models.transition import _UNIT, TransitionModel, count_transitions, reference_ms
from recsys_assets.training.events import DAY_MS
from recsys_assets_tests.models.shop import settings, shop, training_set

ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 9)), max_size=40)
OWN = settings(transition={"half_life_days": 4.0, "max_gap": 3, "reverse": 0.3, "history_decay": 0.5})


def slow_counts(data, own, since_ms=None):
    """One user, one pair of steps at a time. Ties within a visit are taken in the order of `steps`."""
    from recsys_assets.models.base import steps

    counts = np.zeros((data.events.n_items, data.events.n_items))
    walked = steps(data.events)
    for user in range(data.events.n_users):
        own_steps = [k for k in range(len(walked)) if walked.user[k] == user]
        visits = sorted({int(walked.timestamp[k]) for k in own_steps})
        for a, first in enumerate(own_steps):
            for second in own_steps[a + 1 : a + 1 + own.max_gap]:
                i, j = walked.item[first], walked.item[second]
                when = int(walked.timestamp[second])
                if i == j or (since_ms is not None and when < since_ms):
                    continue
                weight = walked.weight[second] * 0.5 ** ((data.end_ms - when) / DAY_MS / own.half_life_days)
                distance = visits.index(when) - visits.index(int(walked.timestamp[first]))
                if distance:
                    counts[i, j] += weight / distance
                    counts[j, i] += own.reverse * weight / distance
                else:
                    counts[i, j] += weight * (1 + own.reverse) / 2
                    counts[j, i] += weight * (1 + own.reverse) / 2
    return counts


def decayed(counts, end_ms, own):
    """float64 counts as of `end_ms`, both directions."""
    faded = counts.toarray() / _UNIT * 0.5 ** ((end_ms - reference_ms(end_ms, own)) / DAY_MS / own.half_life_days)
    return faded + own.reverse * faded.T


@hypothesis_settings(max_examples=60, deadline=None)
@given(ROWS, st.one_of(st.none(), st.integers(0, 9)))
def test_counts_equal_the_obvious_count(rows, since):
    data, own = training_set(rows, 4, 6, end=11), OWN.transition
    since_ms = None if since is None else data.end_ms - since * DAY_MS
    reference = reference_ms(data.end_ms, own)
    ours = count_transitions(data.events, own, reference, None if since is None else np.full(4, since_ms))
    np.testing.assert_allclose(decayed(ours, data.end_ms, own), slow_counts(data, own, since_ms), rtol=1e-3, atol=1e-3)


@hypothesis_settings(max_examples=60, deadline=None)
@given(ROWS)
def test_scores_equal_the_obvious_sum(rows):
    data = training_set(rows, 4, 6, end=11)
    scores = TransitionModel.fit(data, OWN).score(data.events, data.end_ms)
    counts = slow_counts(data, OWN.transition)
    popularity = np.zeros(6)
    for item, when in zip(data.events.item, data.events.timestamp, strict=True):
        popularity[item] += 5 * 0.5 ** ((data.end_ms - when) / DAY_MS / 4)
    expected = np.zeros((4, 6))
    for user in range(4):
        path = [
            (int(t), int(i))
            for u, i, t in zip(data.events.user, data.events.item, data.events.timestamp, strict=True)
            if u == user
        ]
        # A run of one item is one step, at its first moment.
        path = [step for k, step in enumerate(path) if k == 0 or path[k - 1][1] != step[1]]
        visits = sorted({t for t, _ in path}, reverse=True)
        for item in {i for _, i in path}:
            weight = 0.5 ** visits.index(max(t for t, i in path if i == item))
            for j in range(6):
                if counts[item, j]:
                    expected[user, j] += weight * counts[item, j] * (popularity[item] * popularity[j]) ** -0.3
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-5)


def same_bytes(one, other):
    assert one.params == other.params
    for name, array in one.state()[0].items():
        assert array.dtype == other.state()[0][name].dtype
        assert array.tobytes() == other.state()[0][name].tobytes(), name
    assert (one.learned.counts.toarray() == other.learned.counts.toarray()).all()


VISITS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 60)), max_size=40)


@hypothesis_settings(max_examples=100, deadline=None)
@given(VISITS, VISITS, st.lists(st.integers(1, 59), min_size=1, max_size=4, unique=True), st.sampled_from([1.0, 90.0]))
def test_updates_equal_a_rebuild_to_the_last_bit(rows, late, cuts, half_life):
    """Whatever the day, the items and users that are new, and the earlier events that came late."""
    own = settings(transition={"half_life_days": half_life, "max_gap": 4, "neighbours": 2})
    model, n_users, n_items = None, 0, 0
    for number, cut in enumerate([*sorted(cuts), 61]):
        known = [row for row in [*rows, *(late if number % 2 else [])] if row[2] < cut]
        n_users = max([n_users, *(user + 1 for user, _, _ in known)])
        n_items = max([n_items, *(item + 1 for _, item, _ in known)])
        data = training_set(known, n_users, n_items, end=cut)
        rebuilt = TransitionModel.fit(data, own)
        model = rebuilt if model is None else model.update(data, own)
        same_bytes(model, rebuilt)


def test_a_model_that_was_read_back_is_updated_alike():
    data = shop()
    old = TransitionModel.fit(data.before(data.end_ms - DAY_MS), OWN)
    same_bytes(TransitionModel.from_state(*old.state()).update(data, OWN), old.update(data, OWN))


def test_an_update_adds_and_does_not_count_again():
    data, lines = shop(), []
    TransitionModel.fit(data.before(data.end_ms - DAY_MS), OWN).update(data, OWN, lines.append)
    assert not any("again" in line for line in lines)


def test_only_the_strongest_neighbours_are_kept():
    data = shop()
    every = TransitionModel.fit(data, settings(transition={"neighbours": 1000})).scaled.toarray()
    few = TransitionModel.fit(data, settings(transition={"neighbours": 3})).scaled.toarray()
    for all_row, row in zip(every, few, strict=True):
        assert (row > 0).sum() == min(3, (all_row > 0).sum())
        np.testing.assert_allclose(np.sort(row)[-3:], np.sort(all_row)[-3:], rtol=1e-6)


def test_a_basket_has_no_direction():
    data = training_set([(u, i, 1) for u in range(6) for i in (0, 1, 2)], 6, 3)
    counts = TransitionModel.fit(data, OWN).learned.counts.toarray()
    np.testing.assert_array_equal(counts, counts.T)
    assert counts[0, 1] > 0
    assert (np.diag(counts) == 0).all()
