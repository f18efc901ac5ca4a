"""Two sensors ask for the same runs: who asks first tells the other.

Dagster compares run keys within one sensor only, and a run is on record only some seconds after a tick has asked for
it. A claim bridges these seconds. It is worth nothing later: `sensors.look` sees the run itself.
"""

import json
from collections.abc import Collection
from datetime import datetime
from pathlib import Path

import filelock

from recsys_assets.storage import files

_HELD_SECONDS = 300  # a tick may take 60, its runs' submission as long


class Claims:
    """`store/requests.json`: run key -> sensor and moment, of the last minutes."""

    def __init__(self, root: Path) -> None:
        self._path = root / "requests.json"

    def take(self, run_keys: Collection[str], sensor: str, now: datetime) -> dict[str, str]:
        """Claims the run keys for a sensor. Returns those it does not get, each with the sensor that has it."""
        if not run_keys:
            return {}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self._path.with_suffix(".lock")):
            held = self._read(now.timestamp())
            others = {key: held[key][0] for key in run_keys if key in held and held[key][0] != sensor}
            mine = {key: (sensor, now.timestamp()) for key in run_keys if key not in others}
            files.write_bytes(self._path, json.dumps(held | mine, indent=1, sort_keys=True).encode())
        return others

    def _read(self, now: float) -> dict[str, tuple[str, float]]:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            return {key: (str(who), float(at)) for key, (who, at) in found.items() if now - at < _HELD_SECONDS}
        except (OSError, ValueError, AttributeError, TypeError):
            return {}
