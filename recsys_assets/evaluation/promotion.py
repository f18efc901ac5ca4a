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
from recsys_assets.storage.artifacts import ArtifactError

GATE_LEVEL = 0.9
PROMOTED, ROLLED_BACK = "promoted", "rolled back"


@dataclass(frozen=True)
class Evidence:
    """What is known of a challenger when it asks for promotion.

    Attributes:
        day, version: the challenger's.
        users: how many users of the unseen day it was measured on.
        ndcg: its mean NDCG@10 there.
        over_popularity: paired difference to popularity of 7 days on the same users; None without users.
        coverage: share of the catalogue that its lists reach.
        failed_checks: what is wrong with the model itself; empty if nothing is.
        champion_day, champion_version: the present champion's, None if there is none.
        champion_ndcg: the champion's mean NDCG@10 on the same users, None where it cannot be measured on unseen data.
        over_champion: paired difference to the champion on the same users with its 90 % interval (`GATE_LEVEL`), None
            as above.
        pooled_days: days since the champion's that neither has seen, this one included; see `evaluate.lineage`.
        pooled_champion_ndcg, over_champion_pooled: the same two figures over all of these days; None with one day.
        newest_champion_day: of every champion there ever was, rolled back or not.
        rolled_back: why and when this very version was rolled back; None if it was not.
    """

    day: str
    version: str
    users: int
    ndcg: float
    over_popularity: Interval | None
    coverage: float
    failed_checks: tuple[str, ...] = ()
    champion_day: str | None = None
    champion_version: str | None = None
    champion_ndcg: float | None = None
    over_champion: Interval | None = None
    pooled_days: int = 1
    pooled_champion_ndcg: float | None = None
    over_champion_pooled: Interval | None = None
    newest_champion_day: str | None = None
    rolled_back: str | None = None


@dataclass(frozen=True)
class Decision:
    """`promote`, and why: the one reason that decided."""

    promote: bool
    reason: str


def decide(evidence: Evidence, settings: PromotionSettings) -> Decision:
    """Promotes a sound challenger that is newer, better than popularity, wide enough and not worse than the champion.

    Worse: the mean paired difference lies further below zero than `tolerance` of the champion's NDCG@10, and its
    one-sided 95 % bound (the upper end of the 90 % interval) below zero. A day with few users has a wide interval:
    there a loss may be chance, and refusing for it would leave an old model in charge. The same is asked of all unseen
    days since the champion together.
    """
    challenger = f"the model of {evidence.day}"
    if evidence.champion_version == evidence.version:
        return Decision(False, f"{challenger} ({evidence.version}) is the champion already")
    if evidence.champion_day is not None and evidence.day < evidence.champion_day:
        return Decision(False, f"{challenger} is older than the champion of {evidence.champion_day}")
    if evidence.newest_champion_day is not None and evidence.day < evidence.newest_champion_day:
        return Decision(
            False, f"{challenger} is older than that of {evidence.newest_champion_day}, champion until rolled back"
        )
    if evidence.rolled_back is not None:
        return Decision(
            False,
            f"{challenger} ({evidence.version}) was rolled back {evidence.rolled_back}; only "
            f"`recsys rollback --to {evidence.day}` brings it back",
        )
    if evidence.failed_checks:
        return Decision(False, f"its own checks failed: {'; '.join(evidence.failed_checks)}")
    if evidence.users == 0 or evidence.over_popularity is None:
        if evidence.champion_day is None:
            return Decision(True, "the first model: there is no unseen day yet to measure it on")
        return Decision(False, "nobody did anything on the unseen day: nothing shows that it is not worse")
    over = evidence.over_popularity
    if not over.mean > 0:  # turned round, here and below, so that a figure that is no number refuses
        return Decision(False, f"NDCG@10 {evidence.ndcg:.4f} is not above popularity's {evidence.ndcg - over.mean:.4f}")
    if not evidence.coverage >= settings.min_coverage:
        return Decision(
            False, f"its lists reach {evidence.coverage:.2%} of the catalogue, below {settings.min_coverage:.2%}"
        )
    if evidence.champion_day is None:
        return Decision(True, f"the first champion: NDCG@10 {evidence.ndcg:.4f}, above popularity by {over.mean:.4f}")
    if evidence.over_champion is None or evidence.champion_ndcg is None:
        return Decision(True, "the champion cannot be measured any more; above popularity")
    text = (
        f"NDCG@10 {evidence.ndcg:.4f} against the champion's {evidence.champion_ndcg:.4f} "
        f"({_described(evidence.over_champion)}, {evidence.users} users)"
    )
    newest = verdict(evidence.over_champion, evidence.champion_ndcg, settings.tolerance)
    if newest == "worse":
        return Decision(
            False, f"worse than the champion by more than the tolerance of {settings.tolerance:.0%}: {text}"
        )
    if evidence.over_champion_pooled is not None and evidence.pooled_champion_ndcg is not None:
        pooled = f"{evidence.pooled_days} unseen days together: {_described(evidence.over_champion_pooled)}"
        together = verdict(evidence.over_champion_pooled, evidence.pooled_champion_ndcg, settings.tolerance)
        if together == "worse":
            return Decision(
                False, f"worse than the champion by more than the tolerance of {settings.tolerance:.0%} on {pooled}"
            )
        text += f"; {pooled}"
    again = ", its own day built again" if evidence.day == evidence.champion_day else ""
    return Decision(
        True,
        f"not worse than the champion{again}: {text}"
        + ("; so few users cannot show whether the loss is more than chance" if newest == "unclear" else ""),
    )


def verdict(difference: Interval, champion_ndcg: float, tolerance: float) -> str:
    """'worse', 'unclear' (a loss above the tolerance that may be chance) or 'not worse'."""
    if difference.mean >= -tolerance * champion_ndcg:
        return "not worse"
    return "unclear" if difference.high >= 0 else "worse"


def _described(difference: Interval) -> str:
    return f"difference {difference.mean:+.4f}, 90 % interval {difference.low:+.4f} to {difference.high:+.4f}"


class Champion:
    """The pointer `store/champion.json`, with the timeline of all its moves; it moves last and by one rename."""

    def __init__(self, root: Path) -> None:
        self.path = root / "champion.json"

    def read(self) -> dict[str, Any] | None:
        """{"day", "version", "event", "reason", "since", "previous"} of the champion, or None."""
        moves = self.timeline()
        return moves[-1] if moves else None

    def timeline(self) -> list[dict[str, Any]]:
        """Every move of the pointer, oldest first; `event` is 'promoted' or 'rolled back'.

        Raises:
            ArtifactError: the file is damaged.
        """
        if not self.path.exists():
            return []
        try:
            found: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
            # Before there was a timeline the file held the champion alone.
            moves: list[dict[str, Any]] = found.get("timeline", [{**found, "event": PROMOTED}])
        except (ValueError, AttributeError, TypeError) as error:
            raise ArtifactError(
                f"{self.path} is damaged: bring it back from a copy. Or delete it: then there is no champion until a "
                "model passes the gate as the first one"
            ) from error
        return moves

    def standing(self) -> list[dict[str, Any]]:
        """The moves that still count, oldest first: a rollback takes all moves after its target's away."""
        return _stand(self.timeline())[0]

    def rolled_back(self) -> dict[str, dict[str, Any]]:
        """Version -> the rollback that took it away, for versions that nobody brought back since."""
        return _stand(self.timeline())[1]

    def lock(self) -> filelock.BaseFileLock:
        """Held from reading the champion to moving the pointer, so that two runs never decide against the same one.

        The operating system drops it with its process: a kill leaves nothing behind.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(self.path.with_suffix(".lock"))

    def move(self, day: str, version: str, reason: str, event: str = PROMOTED) -> None:
        moves = self.timeline()
        record = {
            "day": day,
            "version": version,
            "event": event,
            "reason": reason,
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "previous": {key: moves[-1][key] for key in ("day", "version")} if moves else None,
        }
        files.write_bytes(self.path, json.dumps({"timeline": [*moves, record]}, indent=1).encode())


def _stand(moves: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    standing: list[dict[str, Any]] = []
    gone: dict[str, dict[str, Any]] = {}
    for move in moves:
        if move["event"] == ROLLED_BACK and any(each["version"] == move["version"] for each in standing):
            while standing[-1]["version"] != move["version"]:
                gone[standing.pop()["version"]] = move
        else:
            standing.append(move)
        gone.pop(move["version"], None)
    return standing, gone
