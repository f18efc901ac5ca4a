"""Building a day again in a scratch place, and comparing it with what was published, file by file.

Everything is made anew from `raw_events` by the same functions: interactions, training sets, the members from their
last full refit on, the hybrid, and the lists. What is not rebuilt but taken as it stands: raw_events, the frozen
hold-out, the outcome of parameter searches, a champion of another day, and the hybrid whose weights were kept when
settings or code changed since.
"""

import itertools
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from recsys_assets.ingest.assets import clean_day
from recsys_assets.models import MEMBERS
from recsys_assets.models.base import Log
from recsys_assets.pipeline import InputError, Pipeline
from recsys_assets.serving.assets import make_lists, make_similar
from recsys_assets.storage import files
from recsys_assets.storage.artifacts import MANIFEST, Artifact, ArtifactError, link, link_tree, load_state
from recsys_assets.storage.environment import differences, environment
from recsys_assets.storage.tombstones import Tombstones
from recsys_assets.storage.warehouse import scratch
from recsys_assets.training import blend
from recsys_assets.training.blend import blend_day
from recsys_assets.training.holdout import Holdout
from recsys_assets.training.members import fit_member
from recsys_assets.training.search import asset_name
from recsys_assets.training.training_set import merge_day
from recsys_assets.trust.lineage import Made, parents

LISTS = ("recommendations", "similar_items")
ASSETS = ("interactions", "training_set", *[f"{name}_model" for name in MEMBERS], "hybrid_model", *LISTS)

# Of a manifest's info: no part of what was made. How long it took, where a value was set, and days of the calendar.
_ABOUT = {"seconds", "parameters", "missing_days"}
_NEVER = 1 << 30  # updates in a row: which day was a refit is recorded, not decided again


@dataclass(frozen=True)
class Compared:
    """One partition, rebuilt and compared.

    Attributes:
        files: how many were compared.
        difference: the first one, in words; None: all SHA-256 are equal.
        environment: what differs between the environment it was made in and this one, a line each.
    """

    asset: str
    day: str
    version: str
    files: int
    difference: str | None = None
    environment: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Scratch(Pipeline):
    """A home of its own for what is rebuilt, from which the users erased in `home_of` stay absent."""

    home_of: Pipeline = field(kw_only=True)

    @cached_property
    def tombstones(self) -> Tombstones:
        return self.home_of.tombstones


def replay(pipeline: Pipeline, day: str, asset: str | None, place: Path, log: Log) -> Iterator[Compared]:
    """Rebuilds `asset` of `day` (None: the whole day up to its lists) and all it was made of below `place`.

    Yields what was compared, in the order in which it was made. A difference does not end it: what is made of
    something that differs is compared as well.

    Raises:
        InputError: the asset is unknown, or its inputs are no longer those it was made of; the message names the first.
        ArtifactError: it, or a state it was updated from, is not there or not kept any more.
    """
    if asset is not None and asset not in ASSETS:
        raise InputError(f"{asset} cannot be replayed; known are {', '.join(ASSETS)}")
    training = pipeline.settings.training.model_copy(update={"full_refit_days": _NEVER})
    copy = _Scratch(pipeline.settings.model_copy(update={"home": place, "training": training}), home_of=pipeline)
    if asset == "interactions":
        if pipeline.tables.info("interactions", day) is None:
            raise InputError(f"interactions has no partition {day}")
        yield from _interactions(pipeline, copy, [day])
        return
    models = _models(pipeline, asset, day)
    lists = [name for name in LISTS if asset in (None, name) and pipeline.tables.path(name, day).exists()]
    if asset in LISTS and not lists:
        raise InputError(f"{asset} has no partition {day}")
    chain, kept = _chain(pipeline, day, models)
    sets = {made.day: made.version for made in chain if made.asset == "training_set"}
    log(f"{day}: {len(sets)} days of updates, {min(sets)} to {max(sets)}")
    for made in kept:
        log(f"{made.day}: {made.asset} was made under other settings or by other code: taken as it stands")
        _take(pipeline, copy, made)
    recorded = _recorded(pipeline, sets)
    holdouts = {_need(pipeline, Made("training_set", *each)).info["holdout"] for each in sets.items()}
    frozen = _take_holdout(pipeline, copy, holdouts)
    wanted = {(made.asset, made.day): made.version for made in chain}
    for each in sorted(sets):
        known = _need(pipeline, Made("training_set", each, sets[each])).info["inputs"]["interactions"]
        new = [of_day for of_day in sorted(known) if not copy.tables.path("interactions", of_day).exists()]
        yield from _interactions(pipeline, copy, new, recorded)  # no day that was ingested after this set was made
        merge_day(copy, each, frozen)
        yield _compared(pipeline, copy, Made("training_set", each, sets[each]))
        for name in models:
            if name != "hybrid_model" and (name, each) in wanted:
                published = _need(pipeline, Made(name, each, wanted[name, each]))
                log(f"{each}: {name}")
                _take_search(pipeline, copy, name.removesuffix("_model"), published)
                fit_member(copy, name.removesuffix("_model"), each, published.info["mode"] == "full refit", log)
                yield _compared(pipeline, copy, Made(name, each, published.version))
        if ("hybrid_model", each) in wanted:
            log(f"{each}: hybrid_model")
            blend_day(copy, each, log)
            yield _compared(pipeline, copy, Made("hybrid_model", each, wanted["hybrid_model", each]))
    for name in LISTS if asset is None else lists:
        log(f"{day}: {name}" + ("" if name in lists else " has no such partition: not compared"))
        if name in lists:
            yield _lists(pipeline, copy, name, day)


def _models(pipeline: Pipeline, asset: str | None, day: str) -> list[str]:
    """The models to rebuild, members before the hybrid."""
    if asset == "training_set":
        return []
    if asset in LISTS and (pipeline.tables.info(asset, day) or {}).get("model_day") != day:
        return []  # another day's champion made the lists
    everything = [f"{name}_model" for name in MEMBERS] + ["hybrid_model"]
    return everything if asset in (None, "hybrid_model", *LISTS) else [str(asset)]


def _need(pipeline: Pipeline, made: Made) -> Artifact:
    artifact = pipeline.artifacts.at(*made)
    if artifact is None:
        raise ArtifactError(
            f"{made.asset} of {made.day}, version {made.version}, is not kept any more (settings `retention`): what "
            "was made of it cannot be replayed"
        )
    return artifact


def _chain(pipeline: Pipeline, day: str, models: list[str]) -> tuple[list[Made], list[Made]]:
    """Everything that has to be made to make the models of a day: back to the full refits, with the training sets. And
    the hybrids that weights come from but that cannot be made any more: an update keeps them through a change of
    settings or code, of which a manifest holds a digest only.

    Raises:
        InputError: two versions of one partition went into it.
    """
    if not models:
        return [Made("training_set", day, pipeline.artifacts.need("training_set", day).version)], []
    now = {"settings": blend.recipe(pipeline.settings), "code": blend.CODE_VERSION}
    first = Made(models[-1], day, pipeline.artifacts.need(models[-1], day).version)
    found: dict[Made, None] = {}
    kept: list[Made] = []
    waiting = [first]
    while waiting:
        made = waiting.pop()
        if made in found:
            continue
        artifact = _need(pipeline, made)
        inputs = artifact.info["inputs"]
        if made.asset == "hybrid_model" and made != first and any(inputs[name] != now[name] for name in now):
            kept.append(made)
            continue
        found[made] = None
        waiting += parents(made, artifact)
    for (asset, of_day), some in itertools.groupby(sorted(found), key=lambda made: (made.asset, made.day)):
        versions = [made.version for made in some]
        if len(versions) > 1:
            raise InputError(
                f"{asset} of {of_day} was made again in the midst of this chain of updates: parts of it go back to "
                f"version {versions[0]}, parts to {versions[1]}. Such a chain cannot be replayed"
            )
    return list(found), kept


def _recorded(pipeline: Pipeline, sets: dict[str, str]) -> dict[str, str]:
    """Day -> version of the interactions that the training sets were made of.

    Raises:
        InputError: two of the sets were made of different versions of a day, or today's inputs are others.
    """
    recorded: dict[str, str] = {}
    for day, version in sorted(sets.items()):
        for each, of_day in _need(pipeline, Made("training_set", day, version)).info["inputs"]["interactions"].items():
            if recorded.setdefault(each, of_day) != of_day:
                raise InputError(
                    f"interactions of {each} changed between the updates of this chain ({recorded[each]}, then "
                    f"{of_day}): its earlier version is gone, so what was updated from it cannot be replayed"
                )
    for each, of_day in sorted(recorded.items()):
        now = pipeline.tables.info("interactions", each)
        if now is None or now["version"] != of_day:
            raise InputError(
                f"interactions of {each} are version {now['version'] if now else 'none'} now, and were {of_day} when "
                "this was made: there is nothing to compare with until it is materialized again (see recsys plan)"
            )
    return recorded


def _take_holdout(pipeline: Pipeline, copy: Pipeline, versions: set[int | None]) -> Holdout | None:
    if len(versions) > 1:
        raise InputError(f"the hold-out changed between the updates of this chain: {sorted(map(str, versions))}")
    version = versions.pop()
    if version is None:
        return None
    target = copy.holdouts.folder
    target.mkdir(parents=True)
    link(pipeline.holdouts.folder / f"v{version}.parquet", target / f"v{version}.parquet")
    files.write_bytes(target / "current.json", b'{"version": %d}' % version)
    return copy.holdouts.current()


def _take_search(pipeline: Pipeline, copy: Pipeline, name: str, published: Artifact) -> None:
    """Leaves the parameter search that the member took its options from as the only one: a later one of an earlier day
    was not there yet."""
    shutil.rmtree(copy.artifacts.root / asset_name(name), ignore_errors=True)
    if search := published.info.get("search"):
        _take(pipeline, copy, Made(asset_name(name), search["day"], search["version"]))


def _take(pipeline: Pipeline, copy: Pipeline, made: Made) -> None:
    """Puts a published artifact into the scratch store as it stands."""
    if copy.artifacts.at(*made) is not None:
        return
    source = _need(pipeline, made)
    source.verify()
    target = copy.artifacts.root / made.asset / made.day
    target.mkdir(parents=True, exist_ok=True)
    link_tree(source.path, target / made.version)
    files.write_bytes(target / "current.json", b'{"version": "%s"}' % made.version.encode())


def _interactions(
    pipeline: Pipeline, copy: Pipeline, days: Iterable[str], recorded: dict[str, str] | None = None
) -> Iterator[Compared]:
    copy.settings.store.mkdir(parents=True, exist_ok=True)
    with scratch(copy.settings.store) as connection:
        for day in days:
            source = pipeline.tables.path("raw_events", day)
            if not source.exists():
                raise InputError(f"raw_events has no partition {day} any more: interactions cannot be made from it")
            target = copy.tables.path("raw_events", day)
            target.parent.mkdir(parents=True, exist_ok=True)
            link(source, target)
            made = clean_day(connection, copy, day).info["version"]
            version = recorded[day] if recorded else (pipeline.tables.info("interactions", day) or {})["version"]
            yield _table(pipeline, copy, "interactions", day, version, made)


def _lists(pipeline: Pipeline, copy: Pipeline, name: str, day: str) -> Compared:
    info = pipeline.tables.info(name, day) or {}
    champion = Made("hybrid_model", info["model_day"], info["model_version"])
    _take(pipeline, copy, champion)
    copy.champion.move(champion.day, champion.version, "the champion that made the lists")
    available = pipeline.settings.recommend.available_items_file
    if available and not (copy.settings.home / available).exists():
        (copy.settings.home / available).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(pipeline.settings.home / available, copy.settings.home / available)
    made, _ = make_lists(copy, day, lambda _: None) if name == "recommendations" else make_similar(copy, day)
    return _table(pipeline, copy, name, day, info["version"], made["version"])


def _table(pipeline: Pipeline, copy: Pipeline, table: str, day: str, version: str, made: str) -> Compared:
    theirs, ours = pipeline.tables.path(table, day), copy.tables.path(table, day)
    difference = None
    if made != version:
        difference = f"version {made} was made, {version} was published: its inputs, settings or code are others"
    elif files.sha256(theirs) != files.sha256(ours):
        difference = _first_difference(theirs, ours)
    return Compared(table, day, version, 1, difference)


def _compared(pipeline: Pipeline, copy: Pipeline, made: Made) -> Compared:
    published, rebuilt = _need(pipeline, made), copy.artifacts.need(made.asset, made.day)
    expected = published.manifest["files"]
    elsewhere = differences(published.manifest.get("environment"), environment())
    return Compared(*made, len(expected), _difference(published, rebuilt), elsewhere)


def _difference(published: Artifact, rebuilt: Artifact) -> str | None:
    theirs, ours = published.manifest["files"], rebuilt.manifest["files"]
    if rebuilt.version != published.version:
        inputs, now = published.info["inputs"], rebuilt.info["inputs"]
        other = [name for name in sorted({*inputs, *now}) if inputs.get(name) != now.get(name)]
        why = f"other {', '.join(other)}" if other else f"{rebuilt.info.get('mode')}, not {published.info.get('mode')}"
        return f"version {rebuilt.version} was made: {why}"
    for name in sorted({*theirs, *ours}):
        if name not in theirs or name not in ours:
            return f"{name} is only in what was {'rebuilt' if name in ours else 'published'}"
        file = published.path / name
        if not file.is_file() or files.sha256(file) != theirs[name]["sha256"]:
            return f"{name} is missing or no longer what was published"
        if theirs[name]["sha256"] != ours[name]["sha256"]:
            return _first_difference(file, rebuilt.path / name)
    there = {path.relative_to(published.path).as_posix() for path in published.path.rglob("*") if path.is_file()}
    if others := sorted(there - {*theirs, MANIFEST}):
        return f"{others[0]} lies there, but was not published"
    for name in sorted({*published.info, *rebuilt.info} - _ABOUT):
        if published.info.get(name) != rebuilt.info.get(name):
            return f"{MANIFEST}: {name}"
    return None


def _first_difference(theirs: Path, ours: Path) -> str:
    """Where two files differ first: an array of safetensors, a column and row of Parquet."""
    if theirs.suffix == ".safetensors":
        then, now = load_state(theirs.parent)[0], load_state(ours.parent)[0]
        for name in sorted({*then, *now}):
            if name not in then or name not in now or then[name].shape != now[name].shape:
                return f"{theirs.parent.name}/{theirs.name}: the shape of {name}"
            if not np.array_equal(then[name], now[name], equal_nan=then[name].dtype.kind == "f"):
                apart = np.abs(then[name].astype(np.float64) - now[name].astype(np.float64))
                return f"{theirs.parent.name}/{theirs.name}: {name}, by at most {np.nanmax(apart):.3g}"
    if theirs.suffix == ".parquet":
        try:
            before, after = pl.read_parquet(theirs), pl.read_parquet(ours)
        except pl.exceptions.PolarsError:
            return f"{theirs.name} is damaged: {theirs.stat().st_size} bytes that are no Parquet"
        if before.shape != after.shape or before.columns != after.columns:
            return f"{theirs.name}: {before.height} rows were published, {after.height} made"
        for name in before.columns:
            row = (before[name].ne_missing(after[name])).arg_true()
            if len(row):
                return f"{theirs.name}: column {name} from row {row[0]} on"
    return f"{theirs.name}: SHA-256 {files.sha256(theirs)[:16]} was published, {files.sha256(ours)[:16]} made"


def verdict(compared: list[Compared]) -> tuple[bool, str]:
    """Whether everything is equal, and a line that claims no more than was seen."""
    count = sum(each.files for each in compared)
    first = next((each for each in compared if each.difference), None)
    elsewhere = list(dict.fromkeys(line for each in compared for line in each.environment))
    if first is None and not elsewhere:
        return True, f"equal: {count} files of {len(compared)} partitions have the SHA-256 that was published"
    place = f"the environment is another one ({'; '.join(elsewhere)})"
    if first is None:
        return True, f"{count} files have the SHA-256 that was published, though {place}"
    text = f"not equal: first {first.asset} of {first.day}: {first.difference}"
    return False, f"{text}; {place}, so nothing is claimed" if elsewhere else text
