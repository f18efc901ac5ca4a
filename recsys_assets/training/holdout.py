"""The frozen validation and test hold-outs.

Drawn once, then never merged into training, so that a figure of March can be compared with one of May. A user's last
active day is withheld and nothing else of theirs, which costs their lists one day of freshness. `recsys
redraw-holdout` draws a new version; older versions stay on disk.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import filelock
import polars as pl

from recsys_assets.settings import HoldoutSettings
from recsys_assets.storage import files
from recsys_assets.storage.warehouse import scratch

_SQL = """
WITH kept AS (
  SELECT parse_filename(filename, true) AS day, user_id, item_id, action, timestamp
  FROM read_parquet($files, filename = true) WHERE reason IS NULL
), active AS (
  SELECT user_id, max(day) AS last_day FROM kept GROUP BY user_id
  HAVING count(DISTINCT day) >= 2 AND max(day) > $oldest
), chosen AS (
  -- md5, not DuckDB's hash(), which may change between versions
  SELECT user_id, last_day, CASE WHEN draw < $share THEN 'validation' WHEN draw < 2 * $share THEN 'test' END AS split
  FROM (SELECT *, (md5_number_lower(user_id || ':' || $seed) % 1000000) / 1e6 AS draw FROM active)
)
SELECT DISTINCT split, c.last_day AS day, user_id, item_id, action, timestamp
FROM kept JOIN chosen c USING (user_id)
WHERE split IS NOT NULL AND kept.day = c.last_day
ORDER BY ALL
"""


@dataclass(frozen=True)
class Holdout:
    """A frozen hold-out.

    Attributes:
        version: counts up from 1.
        path: Parquet with columns split ('validation' or 'test'), day, user_id, item_id, action, timestamp.
        info: when and why it was drawn, and how many users and events it holds.
    """

    version: int
    path: Path
    info: dict[str, Any]

    def read(self) -> pl.DataFrame:
        return pl.read_parquet(self.path)


def draw(interactions: Sequence[Path], day: str, settings: HoldoutSettings, seed: int) -> pl.DataFrame | None:
    """Draws both splits from the interactions files up to `day`; None while there are too few users."""
    if not interactions or settings.users_share == 0:
        return None
    oldest = (date.fromisoformat(day) - timedelta(days=settings.window_days)).isoformat()
    with scratch(interactions[0].parent) as connection:
        frame = connection.sql(
            _SQL,
            params={
                "files": [str(path) for path in interactions],
                "oldest": oldest,
                "share": settings.users_share,
                "seed": str(seed),
            },
        ).pl()
    users = dict(frame.group_by("split").agg(pl.col("user_id").n_unique()).iter_rows())
    if min(users.get("validation", 0), users.get("test", 0)) < settings.min_users:
        return None
    return frame


class Holdouts:
    """The hold-outs of a store: `store/holdout/vN.parquet` and the pointer `current.json`."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "holdout"

    def current(self) -> Holdout | None:
        pointer = self.folder / "current.json"
        if not pointer.exists():
            return None
        info = json.loads(pointer.read_text(encoding="utf-8"))
        return Holdout(info["version"], self.folder / f"v{info['version']}.parquet", info)

    def recount(self) -> None:
        """Mends the figures of the current version after rows were taken out of its file."""
        with filelock.FileLock(self.folder / ".lock"):
            if (held := self.current()) is not None:
                frame = held.read()
                info = {**held.info, "users": frame["user_id"].n_unique(), "events": len(frame)}
                files.write_bytes(self.folder / "current.json", json.dumps(info, indent=1).encode())

    def ensure(
        self, interactions: Sequence[Path], day: str, settings: HoldoutSettings, seed: int, redraw: str | None = None
    ) -> Holdout | None:
        """The current hold-out; draws it if there is none, or a new version if `redraw` gives a reason."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # The lock is the operating system's: a killed run leaves none behind.
        with filelock.FileLock(self.folder / ".lock"):
            existing = self.current()
            if existing is not None and redraw is None:
                return existing
            version = existing.version + 1 if existing else 1
            frame = draw(interactions, day, settings, seed + version - 1)
            if frame is None:
                return existing
            path = self.folder / f"v{version}.parquet"
            with files.replacing(path) as temporary:
                frame.write_parquet(temporary, compression="zstd")
            info = {
                "version": version,
                "drawn_from_days_up_to": day,
                "reason": redraw or "first draw",
                "users": frame["user_id"].n_unique(),
                "events": len(frame),
            }
            files.write_bytes(self.folder / "current.json", json.dumps(info, indent=1).encode())
            return Holdout(version, path, info)
