"""The repeat model: decayed frequency, and what it learns beyond."""

import numpy as np

from recsys_assets.models.repeat import RepeatModel
from recsys_assets.training.events import DAY_MS
from recsys_assets_tests.models.shop import settings, shop, training_set

PLAIN = settings(repeat={"learn_lists": 0, "half_life_days": 10.0})


def test_unlearned_score_is_decayed_frequency():
    data = shop()
    at_ms = data.end_ms + 2 * DAY_MS
    expected = np.zeros((80, 40))
    events = data.events
    for user, item, when in zip(events.user, events.item, events.timestamp, strict=True):
        expected[user, item] += 5 * 0.5 ** ((at_ms - when) / DAY_MS / 10)
    np.testing.assert_allclose(RepeatModel.fit(data, PLAIN).score(events, at_ms), expected, rtol=1e-5)


def weekly_shop(n_users=60, days=60):
    """Everybody buys three staples every seventh day on their own weekday, and four of 20 whims yesterday only."""
    rng = np.random.default_rng(1)
    rows = []
    for user in range(n_users):
        for day in range(days):
            if day % 7 == user % 7:
                rows += [(user, staple, day + 0.5) for staple in range(3)]
            elif day % 7 == (user - 1) % 7:
                rows += [(user, int(whim), day + 0.5) for whim in 3 + rng.permutation(20)[:4]]
    return training_set(rows, n_users, 23, end=days)


def test_learns_that_what_is_due_comes_back():
    data = weekly_shop()
    learned, plain = (
        RepeatModel.fit(data, settings(repeat=options)) for options in ({}, {"learn_lists": 0, "half_life_days": 1.0})
    )
    due = np.flatnonzero(np.arange(60) % 7 == 60 % 7).astype(np.int32)
    history = data.events.of_users(due)

    def staples_first(model):
        return (np.sort(np.argsort(-model.score(history, data.end_ms), axis=1)[:, :3]) == [0, 1, 2]).all(axis=1).mean()

    assert learned.network
    assert staples_first(learned) == 1
    assert staples_first(plain) == 0


def test_scores_are_shares_over_the_history_and_zero_elsewhere():
    data = weekly_shop()
    scores = RepeatModel.fit(data, settings()).score(data.events, data.end_ms)
    met = np.zeros(scores.shape, bool)
    met[data.events.user, data.events.item] = True
    assert ((scores > 0) == met).all()
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-4)
