import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from recsys_assets.audience.measure import Ranking, brier, calibration, compare

rows = st.lists(st.tuples(st.integers(0, 8), st.booleans(), st.integers(0, 3)), min_size=2, max_size=40)


@settings(max_examples=80, deadline=None)
@given(rows=rows, budget=st.integers(1, 50))
def test_measures_agree_with_scikit_learn_and_with_users_repeated(
    rows: list[tuple[int, bool, int]], budget: int
) -> None:
    score, taken, times = (np.array(column) for column in zip(*rows, strict=True))
    score = score.astype(float)
    repeated, of_them = np.repeat(score, times), np.repeat(taken, times)
    assume(0 < of_them.sum() < len(of_them))
    found = Ranking(score, taken).measure(budget, times.astype(float))
    assert found == pytest.approx(Ranking(repeated, of_them).measure(budget), rel=1e-9)
    assert found["auc"] == pytest.approx(roc_auc_score(of_them, repeated))
    assert found["average_precision"] == pytest.approx(average_precision_score(of_them, repeated))
    # Expected takers among the first: whole groups of equal scores, and of the group at the border its share.
    left, hits = min(budget, len(repeated)), 0.0
    for value in sorted(set(repeated), reverse=True):
        group = of_them[repeated == value]
        share = min(left, len(group)) / len(group)
        hits, left = hits + share * group.sum(), left - min(left, len(group))
    assert found["lift"] == pytest.approx(hits / min(budget, len(repeated)) / of_them.mean())


def test_a_difference_is_told_from_none() -> None:
    rng = np.random.default_rng(1)
    taken = rng.random(1500) < 0.1
    good = Ranking(taken + rng.normal(0, 1, 1500), taken)
    noise, other = (Ranking(rng.normal(0, 1, 1500), taken) for _ in range(2))
    found = compare(good, noise, 150, 300, 0)
    for metric in ("auc", "average_precision", "lift"):
        sides = found[metric]
        assert sides["difference"].mean == pytest.approx(sides["model"].mean - sides["most active first"].mean)
        assert 0 < sides["difference"].low < sides["difference"].mean < sides["difference"].high
        none = compare(noise, other, 150, 300, 0)[metric]["difference"]
        assert none.low < 0 < none.high
    assert compare(good, good, 150, 50, 0)["auc"]["difference"].high == 0, "paired: the draws are the same"


def test_where_all_or_none_took_it_nothing_is_measured() -> None:
    assert np.isnan(Ranking(np.arange(3.0), np.zeros(3, bool)).measure(1)["auc"])
    assert np.isnan(Ranking(np.arange(3.0), np.ones(3, bool)).measure(1)["auc"])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]), st.booleans()), min_size=1, max_size=60))
def test_calibration_counts_everybody_once(pairs: list[tuple[float, bool]]) -> None:
    probability, taken = (np.array(column) for column in zip(*pairs, strict=True))
    found = calibration(probability, taken)
    assert found["users"].sum() == len(pairs)
    assert found["takers"].sum() == taken.sum()
    assert found["foretold"].is_sorted()
    assert len(found) <= min(10, len(set(probability)))
    for row in found.to_dicts():
        assert -1e-12 <= row["low"] <= row["taken"] + 1e-12
        assert row["taken"] - 1e-12 <= row["high"] <= 1 + 1e-12
    assert brier(probability, taken) == pytest.approx(
        brier_score_loss(taken, probability, pos_label=True, labels=[False, True])
    )
