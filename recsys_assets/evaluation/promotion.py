"""The gate: may a challenger become the champion? A pure decision, and the pointer it moves."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock

from recsys_assets.evaluation.metrics import Interval
from recsys_assets.settings import PromotionSettings
from recsys_assets.storage import files


@dataclass(frozen=True)
class Evidence:
    """What is known of a challenger when it asks for promotion.

    Attributes:
        day, version: the challenger's.
        users: how many users of the unseen day it was measured on.
        ndcg: its mean NDCG@10 there.
        over_popularity: paired difference to popularity of 7 days on the same users; None without users.
        coverage: share of the catalogue that its lists reach.
        champion_day, champion_version: the present champion's, None if there is none.
        champion_ndcg: the champion's mean NDCG@10 on the same users, None where it cannot be measured on unseen data.
        over_champion: paired difference to the champion on the same users, None as above.
    """

    day: str
    version: str
    users: int
    ndcg: float
    over_popularity: Interval | None
    coverage: float
    champion_day: str | None = None
    champion_version: str | None = None
    champion_ndcg: float | None = None
    over_champion: Interval | None = None


@dataclass(frozen=True)
class Decision:
    """`promote`, and why: the one reason that decided."""

    promote: bool
    reason: str


def decide(evidence: Evidence, settings: PromotionSettings) -> Decision:
    """Promotes a challenger that is newer, better than popularity, wide enough and not worse than the champion.

    Not worse: the mean paired difference is no further below zero than `tolerance` of the champion's NDCG@10, and its
    95 % interval does not lie below zero as a whole.
    """
    challenger = f"the model of {evidence.day}"
    if evidence.champion_version == evidence.version:
        return Decision(False, f"{challenger} ({evidence.version}) is the champion already")
    if evidence.champion_day is not None and evidence.day < evidence.champion_day:
        return Decision(False, f"{challenger} is older than the champion of {evidence.champion_day}")
    if evidence.users == 0 or evidence.over_popularity is None:
        if evidence.champion_day is None:
            return Decision(True, "the first model: there is no unseen day yet to measure it on")
        return Decision(False, "nobody did anything on the unseen day: nothing shows that it is not worse")
    over = evidence.over_popularity
    if over.mean <= 0:
        return Decision(False, f"NDCG@10 {evidence.ndcg:.4f} is not above popularity's {evidence.ndcg - over.mean:.4f}")
    if evidence.coverage < settings.min_coverage:
        return Decision(
            False, f"its lists reach {evidence.coverage:.1%} of the catalogue, below {settings.min_coverage:.1%}"
        )
    if evidence.champion_day is None:
        return Decision(True, f"the first champion: NDCG@10 {evidence.ndcg:.4f}, above popularity by {over.mean:.4f}")
    if evidence.day == evidence.champion_day:
        return Decision(True, "the champion's own day built again from newer data; above popularity as before")
    if evidence.over_champion is None or evidence.champion_ndcg is None:
        return Decision(True, "the champion cannot be read any more; above popularity")
    difference = evidence.over_champion
    text = (
        f"NDCG@10 {evidence.ndcg:.4f} against the champion's {evidence.champion_ndcg:.4f} "
        f"(difference {difference.mean:+.4f}, 95 % interval {difference.low:+.4f} to {difference.high:+.4f})"
    )
    if difference.mean < -settings.tolerance * evidence.champion_ndcg:
        return Decision(False, f"worse than the tolerance of {settings.tolerance:.0%} allows: {text}")
    if difference.high < 0:
        return Decision(False, f"surely worse than the champion: {text}")
    return Decision(True, f"not worse than the champion: {text}")


class Champion:
    """The pointer `store/champion.json`; it moves last and by one rename."""

    def __init__(self, root: Path) -> None:
        self.path = root / "champion.json"

    def read(self) -> dict[str, Any] | None:
        """{"day", "version", "reason", "since", "previous"} of the champion, or None."""
        return json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else None

    def lock(self) -> filelock.BaseFileLock:
        """Held from reading the champion to moving the pointer, so that two runs never decide against the same one.

        The operating system drops it with its process: a kill leaves nothing behind.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(self.path.with_suffix(".lock"))

    def move(self, day: str, version: str, reason: str) -> None:
        previous = self.read()
        record = {
            "day": day,
            "version": version,
            "reason": reason,
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "previous": {key: previous[key] for key in ("day", "version")} if previous else None,
        }
        files.write_bytes(self.path, json.dumps(record, indent=1).encode())
