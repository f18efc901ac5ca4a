"""Which versions of training sets and models stay, which are pruned, and why.

Everything that is published stays until it is pruned. What stays:

* the present version of the newest days (`retention.days`) and of the last day of each newest month
  (`retention.months`), every asset of those days;
* what was made within `retention.min_age_hours`: a backfill of old days, in this run or another, still reads it;
* the champion and the champions before it (`retention.champions`), each with all it was made of: its members, the
  states they were updated from back to the last full refit, and the training sets of those days. A hybrid's folder is
  whole by itself (hard links), so this costs what serving does not need: replay and comparison on the champion's day.

Everything else is pruned: older days, versions that were superseded, and a champion of before that had learned from a
user who was erased in its time. A pruned day can be built again from raw_events, which stay.
"""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from recsys_assets.models import MEMBERS
from recsys_assets.pipeline import Pipeline
from recsys_assets.settings import RetentionSettings
from recsys_assets.storage import files
from recsys_assets.storage.artifacts import MANIFEST, ArtifactError, Artifacts
from recsys_assets.trust.lineage import Made, ancestry

PRUNED_ASSETS = ("training_set", *[f"{name}_model" for name in MEMBERS], "hybrid_model", "propensity_model")


@dataclass(frozen=True)
class Verdict:
    """A version, its files' bytes, and why it stays; None: it is pruned."""

    made: Made
    bytes: int
    stays: str | None


def kept_days(days: Iterable[str], settings: RetentionSettings) -> dict[str, str]:
    """Day -> why it stays, of the days that have an artifact."""
    ordered = sorted(set(days))
    last_of_month = sorted({day[:7]: day for day in ordered}.values(), reverse=True)[: settings.months]
    months = {day: f"last day of {day[:7]}" for day in last_of_month}
    return months | dict.fromkeys(ordered[-settings.days :], f"one of the newest {settings.days} days")


def judge(pipeline: Pipeline) -> list[Verdict]:
    """What is to become of every version there is, in order of asset and day."""
    artifacts, settings = pipeline.artifacts, pipeline.settings.retention
    there = [
        Made(asset, day, version)
        for asset in PRUNED_ASSETS
        for day in _folders(artifacts, asset)
        for version in artifacts.versions(asset, day)
    ]
    days = kept_days((day for asset in PRUNED_ASSETS for day in artifacts.days(asset)), settings)
    moves = reversed(pipeline.champion.timeline())
    champions = list(dict.fromkeys(Made("hybrid_model", move["day"], move["version"]) for move in moves))
    present = ancestry(artifacts, champions[:1])
    earlier = ancestry(artifacts, champions[1 : settings.champions])
    to_go = {Made(entry["asset"], entry["day"], entry["version"]) for entry in pipeline.tombstones.stayed_in_charge()}
    verdicts = []
    for made in there:
        stays = None
        if made in present:
            stays = "the champion, or what it was made of"
        elif made in to_go:
            pass
        elif made in earlier:
            stays = "an earlier champion, or what it was made of"
        elif made.day in days and _present(artifacts, made):
            stays = days[made.day]
        elif _age_hours(artifacts, made) < settings.min_age_hours:
            stays = f"made within the last {settings.min_age_hours:g} hours"
        verdicts.append(Verdict(made, sum(stat.st_size for stat in _files(artifacts, made)), stays))
    return verdicts


def prune(pipeline: Pipeline, dry_run: bool = False) -> tuple[list[Verdict], int]:
    """Deletes what does not stay, and what killed runs left behind.

    Returns: what became, or would become, of every version, and the bytes that the disk gains.
    """
    with pipeline.champion.lock(), pipeline.artifacts.lock():
        verdicts = judge(pipeline)
        pruned = [verdict.made for verdict in verdicts if verdict.stays is None]
        gained = freed(pipeline.artifacts, pruned)
        if dry_run:
            return verdicts, gained
        for made in pruned:
            pipeline.artifacts.remove(*made)
    for folder in leftover_folders(pipeline.settings.store):
        with contextlib.suppress(FileNotFoundError):  # another run was faster
            files.remove_leftovers(folder)
    return verdicts, gained


def freed(artifacts: Artifacts, pruned: Iterable[Made]) -> int:
    """Bytes that the disk gains: of files all of whose names go (members and hybrids share theirs)."""
    names: Counter[int] = Counter()
    stats: dict[int, os.stat_result] = {}
    for made in pruned:
        for stat in _files(artifacts, made):
            names[stat.st_ino] += 1
            stats[stat.st_ino] = stat
    return sum(stats[inode].st_size for inode, count in names.items() if count == stats[inode].st_nlink)


def leftover_folders(store: Path) -> list[Path]:
    """The folders of the store that hold temporary files, of the dead or of the living."""
    return sorted({path.parent for depth in ("", "*/", "*/*/") for path in store.glob(f"{depth}.tmp-*")})


def _folders(artifacts: Artifacts, asset: str) -> list[str]:
    folder = artifacts.root / asset
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _present(artifacts: Artifacts, made: Made) -> bool:
    """Whether it is its day's present version. A damaged pointer prunes nothing: the next materialization mends it."""
    try:
        current = artifacts.current(made.asset, made.day)
    except ArtifactError:
        return True
    return current is not None and current.version == made.version


def _age_hours(artifacts: Artifacts, made: Made) -> float:
    manifest = artifacts.root / made.asset / made.day / made.version / MANIFEST
    return (time.time() - manifest.stat().st_mtime) / 3600


def _files(artifacts: Artifacts, made: Made) -> list[os.stat_result]:
    folder = artifacts.root / made.asset / made.day / made.version
    return [path.stat() for path in folder.rglob("*") if path.is_file()]
