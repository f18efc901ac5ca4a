import json
from math import nan
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_assets.evaluation.metrics import Interval
from recsys_assets.evaluation.promotion import Champion, Evidence, decide
from recsys_assets.settings import PromotionSettings
from recsys_assets.storage.artifacts import ArtifactError

RULES = PromotionSettings(tolerance=0.02, min_coverage=0.1)
BETTER = Interval(0.1, 0.05, 0.15)


def evidence(**changes: Any) -> Evidence:
    """A challenger that beats everything."""
    usual: dict[str, Any] = {
        "day": "2025-11-10",
        "version": "new",
        "users": 100,
        "ndcg": 0.3,
        "over_popularity": BETTER,
        "coverage": 0.5,
        "champion_day": "2025-11-09",
        "champion_version": "old",
        "champion_ndcg": 0.25,
        "over_champion": Interval(0.05, 0.01, 0.09),
    }
    return Evidence(**{**usual, **changes})


NO_CHAMPION: dict[str, Any] = {
    "champion_day": None,
    "champion_version": None,
    "champion_ndcg": None,
    "over_champion": None,
}
POOLED: dict[str, Any] = {
    "pooled_days": 3,
    "pooled_champion_ndcg": 0.2,
    "over_champion_pooled": Interval(0.01, -0.01, 0.03),
}
UNMEASURED: dict[str, Any] = {"users": 0, "over_popularity": None, "champion_ndcg": None, "over_champion": None}


@pytest.mark.parametrize(
    ("changes", "promoted", "reason"),
    [
        ({}, True, "not worse than the champion"),
        ({"over_champion": Interval(-0.001, -0.02, 0.02)}, True, "not worse than the champion"),
        ({"over_champion": Interval(-0.005, -0.02, 0.01)}, True, "not worse than the champion"),  # 2 % of 0.25
        ({"over_champion": Interval(-0.0051, -0.02, 0.01)}, True, "so few users cannot show whether the loss is more"),
        ({"over_champion": Interval(-0.0051, -0.02, -0.001)}, False, "worse than the champion by more than the tolera"),
        ({"over_champion": Interval(-0.004, -0.006, -0.002)}, True, "not worse than the champion"),  # within 2 %
        (POOLED, True, "; 3 unseen days together: difference +0.0100"),
        ({**POOLED, "over_champion_pooled": Interval(-0.01, -0.03, 0.01)}, True, "3 unseen days together"),
        ({**POOLED, "over_champion_pooled": Interval(-0.01, -0.03, -0.001)}, False, "tolerance of 2% on 3 unseen days"),
        # 2 % of the champion's on these days together, not of the newest's
        ({**POOLED, "over_champion_pooled": Interval(-0.0041, -0.03, -0.001)}, False, "tolerance of 2% on 3 unseen"),
        ({**POOLED, "over_champion_pooled": Interval(-0.0039, -0.03, -0.001)}, True, "3 unseen days together"),
        ({"failed_checks": ("lists that show an item twice",)}, False, "its own checks failed: lists that show"),
        ({"rolled_back": "on 2025-11-11 (bad)"}, False, "was rolled back on 2025-11-11 (bad); only `recsys rollback"),
        ({"newest_champion_day": "2025-11-11"}, False, "older than that of 2025-11-11, champion until rolled back"),
        ({"version": "old"}, False, "is the champion already"),
        ({"day": "2025-11-08"}, False, "is older than the champion of 2025-11-09"),
        ({"over_popularity": Interval(0.0, -0.1, 0.1)}, False, "is not above popularity's 0.3000"),
        ({"over_popularity": Interval(-0.1, -0.2, 0.0)}, False, "is not above popularity's 0.4000"),
        ({"coverage": 0.09}, False, "reach 9.00% of the catalogue, below 10.00%"),
        ({"coverage": 0.1}, True, "not worse"),
        ({"coverage": nan}, False, "of the catalogue"),
        ({"over_popularity": Interval(nan, nan, nan)}, False, "is not above popularity's"),
        ({"over_champion": Interval(nan, nan, nan)}, False, "worse than the champion"),
        ({"champion_ndcg": nan, "over_champion": Interval(-0.1, -0.2, -0.05)}, False, "worse than the champion"),
        ({**POOLED, "over_champion_pooled": Interval(nan, nan, nan)}, False, "tolerance of 2% on 3 unseen days"),
        (UNMEASURED, False, "nobody did anything on the unseen day"),
        ({**NO_CHAMPION, **UNMEASURED}, True, "the first model"),
        (NO_CHAMPION, True, "the first champion: NDCG@10 0.3000, above popularity by 0.1000"),
        ({**NO_CHAMPION, "over_popularity": Interval(-0.1, -0.2, 0.0)}, False, "not above popularity"),
        ({**NO_CHAMPION, "coverage": 0.01}, False, "below 10.00%"),
        ({"day": "2025-11-09"}, True, "not worse than the champion, its own day built again"),
        ({"day": "2025-11-09", "over_champion": Interval(-0.1, -0.2, -0.05)}, False, "worse than the champion by more"),
        ({"champion_ndcg": None, "over_champion": None}, True, "cannot be measured any more"),
    ],
)
def test_each_rule(changes: dict[str, Any], promoted: bool, reason: str) -> None:
    decision = decide(evidence(**changes), RULES)
    assert decision.promote is promoted, decision
    assert reason in decision.reason


intervals = st.tuples(*[st.floats(-1, 1)] * 3).map(sorted).map(lambda v: Interval(v[1], v[0], v[2]))
days = st.integers(1, 28).map(lambda n: f"2025-11-{n:02d}")
evidences = st.builds(
    Evidence,
    day=days,
    version=st.sampled_from(["a", "b"]),
    users=st.integers(0, 3),
    ndcg=st.floats(0, 1),
    over_popularity=st.none() | intervals,
    coverage=st.floats(0, 1),
    champion_day=days,
    champion_version=st.sampled_from(["a", "b"]),
    champion_ndcg=st.none() | st.floats(0, 1),
    over_champion=st.none() | intervals,
    pooled_champion_ndcg=st.none() | st.floats(0, 1),
    over_champion_pooled=st.none() | intervals,
    failed_checks=st.sampled_from([(), ("broken",)]),
    rolled_back=st.sampled_from([None, None, "on 2025-11-01 (bad)"]),
)


@given(evidences, st.floats(0, 0.5), st.floats(0, 1))
def test_what_never_passes(found: Evidence, tolerance: float, least: float) -> None:
    rules = PromotionSettings(tolerance=tolerance, min_coverage=least)
    decision = decide(found, rules)
    assert decision.reason
    if not decision.promote:
        return
    assert found.champion_day is not None
    assert found.day >= found.champion_day, "an older day never moves the champion"
    assert found.version != found.champion_version
    assert found.users > 0
    assert found.over_popularity is not None
    assert found.over_popularity.mean > 0
    assert found.coverage >= least
    assert not found.failed_checks
    assert found.rolled_back is None
    if found.over_champion and found.champion_ndcg is not None:
        for difference, ndcg in (
            (found.over_champion, found.champion_ndcg),
            (found.over_champion_pooled, found.pooled_champion_ndcg),
        ):
            if difference is not None and ndcg is not None:
                assert difference.mean >= -tolerance * ndcg or difference.high >= 0, "surely worse never passes"


@given(evidences, st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0, 0.3))
def test_better_evidence_and_milder_rules_never_hurt(
    found: Evidence, tolerance: float, more: float, gain: float
) -> None:
    strict = decide(found, PromotionSettings(tolerance=tolerance, min_coverage=0.2))
    mild = decide(found, PromotionSettings(tolerance=tolerance + more, min_coverage=0.1))
    assert mild.promote or not strict.promote

    def moved(interval: Interval | None) -> Interval | None:
        return interval and Interval(interval.mean + gain, interval.low + gain, interval.high + gain)

    better = Evidence(
        **{
            **vars(found),
            "over_popularity": moved(found.over_popularity),
            "over_champion": moved(found.over_champion),
            "over_champion_pooled": moved(found.over_champion_pooled),
        }
    )
    assert decide(better, PromotionSettings(tolerance=tolerance, min_coverage=0.2)).promote or not strict.promote


def test_the_pointer_remembers_the_one_before(tmp_path: Path) -> None:
    champion = Champion(tmp_path)
    assert champion.read() is None
    with champion.lock():
        champion.move("2025-11-01", "a", "first")
        champion.move("2025-11-02", "b", "better")
    found = champion.read()
    assert found is not None
    assert (found["day"], found["version"], found["reason"]) == ("2025-11-02", "b", "better")
    assert found["previous"] == {"day": "2025-11-01", "version": "a"}
    assert found["since"].endswith("+00:00")
    assert [(move["event"], move["day"]) for move in champion.timeline()] == [
        ("promoted", "2025-11-01"),
        ("promoted", "2025-11-02"),
    ]


def test_a_pointer_without_a_timeline_is_its_own_first_move(tmp_path: Path) -> None:
    champion = Champion(tmp_path)
    champion.path.write_text(json.dumps({"day": "2025-11-01", "version": "a", "reason": "r", "since": "s"}))
    champion.move("2025-11-02", "b", "better")
    assert [move["version"] for move in champion.timeline()] == ["a", "b"]


@pytest.mark.parametrize("content", ["", '{"timeline": [', "[]", "null"])
def test_a_damaged_pointer_is_said_and_not_taken_for_none(tmp_path: Path, content: str) -> None:
    champion = Champion(tmp_path)
    champion.path.write_text(content)
    for ask in (champion.read, champion.standing, lambda: champion.move("2025-11-02", "b", "better")):
        with pytest.raises(ArtifactError, match=r"champion\.json is damaged: bring it back from a copy"):
            ask()
    assert champion.path.read_text() == content


@given(st.lists(st.tuples(st.sampled_from(["promoted", "rolled back"]), st.sampled_from("abcd")), max_size=12))
def test_what_stands_after_any_moves(moves: list[tuple[str, str]]) -> None:
    with TemporaryDirectory() as folder:
        champion = Champion(Path(folder))
        found = [{"event": event, "version": version} for event, version in moves]
        champion.path.write_text(json.dumps({"timeline": found}))
        standing = [move["version"] for move in champion.standing()]
        gone = champion.rolled_back()
    assert standing[-1:] == [version for _, version in moves][-1:], "the last move is in charge"
    assert not set(standing[-1:]) & set(gone)
    for version, move in gone.items():
        assert move["event"] == "rolled back"
        assert version not in {each for _, each in moves[moves.index(("rolled back", move["version"])) :][-1:]}
