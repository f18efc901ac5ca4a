"""The sequence model learns what follows what."""

import numpy as np

from recsys_assets.models.popularity import PopularityModel
from recsys_assets.models.sequence import SequenceModel, _windows
from recsys_assets_tests.models.shop import settings, training_set


def cycle(n_users, length, n_items=30, users_from=0, day=0):
    rng = np.random.default_rng(n_users)
    starts = rng.integers(n_items, size=n_users)
    return [(users_from + u, int(starts[u] + 7 * k) % n_items, day + k) for u in range(n_users) for k in range(length)]


def first_rank_share(model, data, step=7):
    scores = np.array(model.score(data.events, data.end_ms))
    last = data.events.item[data.events.offsets[1:] - 1]
    wanted = (last + step) % data.events.n_items
    return float((scores.argmax(axis=1) == wanted).mean())


def test_learns_a_cycle():
    data = training_set(cycle(120, 10), 120, 30)
    options = settings(sequence={"epochs": 25, "dropout": 0.1, "max_length": 6})
    model = SequenceModel.fit(data, options)
    assert first_rank_share(model, data) > 0.9
    assert first_rank_share(PopularityModel.fit(data, options), data) < 0.2


def test_learns_a_cycle_with_sampled_negatives():
    data = training_set(cycle(120, 10), 120, 30)
    model = SequenceModel.fit(
        data, settings(sequence={"epochs": 25, "dropout": 0.1, "full_softmax_items": 0, "negatives": 10})
    )
    assert first_rank_share(model, data) > 0.8


def test_update_learns_a_new_habit_of_new_items():
    old = training_set(cycle(100, 10), 100, 30)
    options = settings(sequence={"epochs": 20, "dropout": 0.1, "update_epochs": 30})
    model = SequenceModel.fit(old, options)
    news = [(u, 30 + (u + k) % 4, 20 + k) for u in range(100, 140) for k in range(8)]
    grown = training_set([*cycle(100, 10), *news], 140, 34)
    updated = model.update(grown, options)
    scores = updated.score(grown.events, grown.end_ms)
    last = grown.events.item[grown.events.offsets[1:] - 1]
    assert (scores[100:].argmax(axis=1) == 30 + (last[100:] - 30 + 1) % 4).mean() > 0.9
    assert (scores[:100].argmax(axis=1) == (last[:100] + 7) % 30).mean() > 0.8


def test_items_of_one_basket_do_not_predict_each_other():
    """In every basket items 2k and 2k + 1 lie together; the basket after 2k is always 10 further on."""
    rows = [(u, (u * 2 + 10 * k) % 30 + side, k) for u in range(80) for k in range(8) for side in (0, 1)]
    data = training_set(rows, 80, 30)
    scores = SequenceModel.fit(data, settings(sequence={"epochs": 20, "dropout": 0.1})).score(data.events, data.end_ms)
    base = (np.arange(80) * 2 + 80) % 30
    best = np.sort(np.argsort(-scores, axis=1)[:, :2], axis=1)
    assert (best == np.stack([base, base + 1], axis=1)).all(axis=1).mean() > 0.9


def test_windows_cover_every_step_once():
    from recsys_assets.models.base import steps

    data = training_set([(u, i % 5, i) for u, n in enumerate((1, 4, 9, 12)) for i in range(n)], 4, 5)
    walked = steps(data.events)
    starts, lengths = _windows(walked, 4)
    covered = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)])
    assert covered.tolist() == list(range(len(walked)))
    assert lengths.max() == 4
    for s, n in zip(starts, lengths, strict=True):
        assert len(set(walked.user[s : s + n])) == 1


def test_a_token_budget_limits_the_epochs():
    lines: list[str] = []
    data = training_set(cycle(120, 10), 120, 30)
    SequenceModel.fit(data, settings(sequence={"epochs": 30, "max_tokens": 2500}), lines.append)
    assert sum("sequence: epoch" in line for line in lines) == 2
