"""What a day of raw_events and of interactions is made of, and whether it stands.

Imports no Dagster and no DuckDB, since `recsys run ingest` asks this before it begins a run (unchanged.py).
"""

from typing import Any

from recsys_assets.settings import BucketSettings, Settings
from recsys_assets.storage.artifacts import version_of

FINGERPRINT = "fingerprint"  # of the day's objects: an entry of both tables' files and of interactions' metadata
RAW_CODE = "1"
CLEAN_CODE = "3"
_RAW_BEFORE = "1"  # the code of files that do not say by which they were made


def raw_stands(info: dict[str, Any] | None, fingerprint: str, settings: BucketSettings) -> bool:
    """Whether raw_events, of which `info` is known, need not be read again where these objects are in the bucket.

    Of an object that was too large nothing was kept: a higher bucket.max_object_mb reads the day again.
    """
    return (
        info is not None
        and info[FINGERPRINT] == fingerprint
        and info.get("code", _RAW_BEFORE) == RAW_CODE
        and info.get("too_large_above_mb", settings.max_object_mb) >= settings.max_object_mb
    )


def raw_version(info: dict[str, Any]) -> str:
    """What raw_events holds of a day: its objects, the code that took them over if it is not the first, the size above
    which some were left out, and how many records of erased users were, if so."""
    left_out, cut, code = info.get("too_large_above_mb"), info.get("erased"), info.get("code", _RAW_BEFORE)
    version = str(info[FINGERPRINT]) + (f" by code {code}" if code != _RAW_BEFORE else "")
    version += f" up to {left_out} MB" if left_out is not None else ""
    return f"{version} without {cut} records" if cut else version


def cleaning_version(settings: Settings, raw: str) -> str:
    """What interactions are made of: `raw_version`, the rules, and the settings that the rules read."""
    return version_of(
        raw=raw,
        actions=sorted(settings.actions),
        time_zone=settings.calendar.time_zone,
        max_object_mb=settings.bucket.max_object_mb,
        session_gap_minutes=settings.ingest.session_gap_minutes,
        max_events_per_hour=settings.ingest.max_events_per_hour,
        code=CLEAN_CODE,
    )
