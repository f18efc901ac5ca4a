"""Why a user was shown an item: what ranked it, which events mattered, and the objects in the bucket behind them."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl

from recsys_assets.days import shift
from recsys_assets.evaluation.tasks import bought_pairs
from recsys_assets.ingest.versions import FINGERPRINT
from recsys_assets.models.hybrid import Recommendations
from recsys_assets.pipeline import InputError, Pipeline
from recsys_assets.serving.recommend import Recommender, allowed_items, available_by_setting
from recsys_assets.storage.artifacts import Artifact, ArtifactError
from recsys_assets.training.blend import load_hybrid
from recsys_assets.training.events import Events, Ints
from recsys_assets.training.training_set import read_training_set

_SHOWN_ITEMS = 10
_SHOWN_UNMOVED = 3
_SHOWN_EVENTS = 5
_TRIED_ITEMS = 250


@dataclass(frozen=True)
class Share:
    """What a member had to do with a rank.

    Attributes:
        weight: in the ranking; score: normalised over the user's candidates, None with weight 0 (not asked).
        contribution: what it adds to the score. alone: the item's rank in the member's own list; None: not in it.
    """

    member: str
    weight: float
    score: float | None
    contribution: float
    alone: int | None


@dataclass(frozen=True)
class Source:
    """An event and the record of the object it came from; `etag` is None if raw_events has the object no more."""

    at: datetime
    action: str
    day: str
    key: str
    record: int
    etag: str | None


@dataclass(frozen=True)
class Influence:
    """What the user did with one item, and the rank the explained item would have without it (None: off the list)."""

    item: str
    events: int
    rank_without: int | None
    sources: list[Source]


@dataclass(frozen=True)
class Explanation:
    """All that is known of one row of `recommendations`; `others`: items of the history that matter less."""

    row: dict[str, Any]
    day: str
    shares: list[Share]
    influences: list[Influence]
    others: int
    events: int
    window: tuple[str, str]
    training: list[str]
    notes: list[str]


def explain(pipeline: Pipeline, user: str, item: str, day: str | None = None) -> Explanation:
    """Explains the row of `user` and `item` in the lists of `day`, by default the newest.

    Events that matter are found by leaving out: for each item of the user's history (the newest 250), the list is made
    again without that item's events; the further the explained item falls, the more they mattered. It asks nothing of
    the models but a list, so it holds for any way of ranking.

    Raises:
        InputError: there are no lists of that day, or the user or the item is not in them; the message says which.
        ArtifactError: the model or the training set that made the list is not kept any more.
    """
    day, row = _row(pipeline, user, item, day)
    hybrid = _kept(pipeline, "hybrid_model", row["model_day"], row["model_version"])
    training = _kept(pipeline, "training_set", day, row["data_version"])
    model, model_ids = load_hybrid(hybrid)
    data = read_training_set(training)
    recommender = Recommender(model, hybrid, model_ids, data, day, pipeline.settings)
    position = np.array([recommender.users[user]], np.int32)
    history = recommender.events.of_users(position)
    wanted = list(recommender.items.ids).index(item)
    count = pipeline.settings.recommend.count
    shown = _lists(recommender, history, history, count, detail=True)
    place = _place(shown.items, wanted)[0]
    notes = []
    if place is None or place + 1 != row["rank"] or not np.isclose(shown.scores[0, place], row["score"], atol=1e-6):
        now = "it is not in the list" if place is None else f"rank {place + 1}, score {shown.scores[0, place]:.4f}"
        notes.append(
            f"made again under today's settings: {now}. Settings, available items or the environment changed since the "
            "list was made; what follows is of the list as it would be made now"
        )
    if unknown := len(data.events.of_users(position)) - len(history):
        notes.append(f"{unknown} more events are with items that the model of {row['model_day']} does not know")
    items, without = _without_each(recommender, history, wanted, count)
    if untried := len(np.unique(history.item)) - len(items):
        notes.append(
            f"{untried} more items of the history are older than the {_TRIED_ITEMS} newest: not left out in turn"
        )
    falls = [_fall(rank, place, count) for rank in without]
    ranked = sorted(range(len(items)), key=lambda i: (-falls[i], i))
    order = [i for i in ranked if falls[i]][:_SHOWN_ITEMS] or ranked[:_SHOWN_UNMOVED]
    sources = _sources(
        pipeline, training, user, [str(recommender.items.ids[items[i]]) for i in order], history, recommender
    )
    influences = []
    for i in order:
        name = str(recommender.items.ids[items[i]])
        rank = without[i]
        influences.append(
            Influence(
                name, int((history.item == items[i]).sum()), None if rank is None else rank + 1, sources.get(name, [])
            )
        )
    info = training.info
    days = {source.day for influence in influences for source in influence.sources}
    if gone := sum(influence.events - len(influence.sources) for influence in influences):
        days = set(info["inputs"]["interactions"])
        notes.append(f"{gone} of these events are in no interactions any more: what they came from is changed or gone")
    notes += _moved_on(pipeline, training, days)
    first = max(min(info["inputs"]["interactions"], default=day), shift(day, 1 - info["inputs"]["window_days"]))
    return Explanation(
        row,
        day,
        _shares(shown, place, hybrid),
        influences,
        len(items) - len(influences),
        len(history),
        (first, day),
        list(_training(pipeline, hybrid)),
        notes,
    )


def lines(found: Explanation) -> Iterator[str]:
    """The explanation for a person."""
    row = found.row
    yield f"item {row['item_id']} is number {row['rank']} of the list of user {row['user_id']} on {found.day}"
    yield f"model     hybrid_model of {row['model_day']}, version {row['model_version']}"
    yield f"data      training_set of {found.day}, version {row['data_version']}"
    yield from (f"note      {note}" for note in found.notes)
    yield ""
    yield f"{'member':<14}{'weight':>8}{'score':>9}{'adds':>9}  alone it has it at"
    for share in sorted(found.shares, key=lambda share: (-share.contribution, share.member)):
        score = f"{share.score:>9.3f}" if share.score is not None else f"{'-':>9}"
        alone = f"number {share.alone}" if share.alone else "no place"
        yield f"{share.member:<14}{share.weight:>8.3g}{score}{share.contribution:>+9.3f}  {alone}"
    yield f"{'the list says':<31}{row['score']:>+9.3f}"
    yield ""
    yield f"the user has {found.events} events from {found.window[0]} to {found.window[1]}; those that mattered most,"
    yield "by what leaving them out does to the rank (times in UTC, records counted from 0):"
    if not found.influences:
        yield "  none: without history popularity decides"
    for influence in found.influences:
        rank = "off the list" if influence.rank_without is None else f"number {influence.rank_without}"
        yield f"  {influence.events} with item {influence.item}: without them {rank}"
        for source in influence.sources[:_SHOWN_EVENTS]:
            yield (
                f"    {source.at:%Y-%m-%d %H:%M:%S} {source.action:<10} {source.key} record {source.record} "
                f"etag {source.etag or 'not kept'}"
            )
        if (more := len(influence.sources) - _SHOWN_EVENTS) > 0:
            yield f"    and {more} older"
    if found.others:
        yield f"  {found.others} other items of theirs: leaving out any one of them does less, or nothing"
    yield ""
    yield "what the model had learned from:"
    yield from (f"  {line}" for line in found.training)


def _row(pipeline: Pipeline, user: str, item: str, day: str | None) -> tuple[str, dict[str, Any]]:
    days = pipeline.tables.days("recommendations")
    if not days:
        raise InputError("there are no recommendations yet: run the job `train` for a day")
    day = day or days[-1]
    if day not in days:
        raise InputError(f"recommendations has no partition {day}; there are {len(days)} from {days[0]} to {days[-1]}")
    rows = (
        pl.scan_parquet(pipeline.tables.path("recommendations", day))
        .filter(pl.col("user_id") == user)
        .collect()
        .sort("rank")
    )
    if not len(rows):
        if user in pipeline.tombstones.read():
            raise InputError(f"user {user} was erased (recsys erase)")
        raise InputError(f"user {user} has no list of {day}: no event of theirs lies in the training window")
    found = rows.filter(pl.col("item_id") == item)
    if not len(found):
        first = ", ".join(rows["item_id"].head(10))
        raise InputError(
            f"item {item} is not among the {len(rows)} items of user {user} on {day}; the first are {first}"
        )
    return day, found.to_dicts()[0]


def _kept(pipeline: Pipeline, asset: str, day: str, version: str) -> Artifact:
    artifact = pipeline.artifacts.at(asset, day, version)
    if artifact is None:
        raise ArtifactError(
            f"{asset} of {day}, version {version}, which made this list, is not kept any more (settings `retention`). "
            "Materialize recommendations for this day again to explain what it would be now."
        )
    artifact.verify()
    return artifact


def _lists(
    recommender: Recommender, histories: Events, full: Events, count: int, detail: bool = False
) -> Recommendations:
    """Lists for rows of `histories`, all of one user whose bought items, by the `full` history, stay forbidden."""
    _, bought = bought_pairs(full, recommender.actions, recommender.settings)
    rows = np.repeat(np.arange(histories.n_users, dtype=np.int32), len(bought))
    return recommender.model.recommend(
        histories,
        recommender.at_ms,
        count,
        forbidden=(rows, np.tile(bought, histories.n_users).astype(np.int32)),
        allowed=allowed_items(recommender.items, available_by_setting(recommender.settings), None),
        detail=detail,
    )


def _place(lists: Ints, item: int) -> list[int | None]:
    """Place from 0 of the item in each row, None where it is not."""
    return [int(found[0]) if len(found := np.flatnonzero(row == item)) else None for row in lists]


def _fall(without: int | None, place: int | None, count: int) -> int:
    return (count if without is None else without) - (count if place is None else place)


def _without_each(recommender: Recommender, history: Events, wanted: int, count: int) -> tuple[Ints, list[int | None]]:
    """The distinct items of a user's history, newest first, and the place of `wanted` without the events of each."""
    newest_first = history.item[np.argsort(-history.timestamp, kind="stable")]
    _, first = np.unique(newest_first, return_index=True)
    items = newest_first[np.sort(first)][:_TRIED_ITEMS]
    if not len(items):
        return items, []
    n, b = len(history), len(items)
    keep = (history.item[None, :] != items[:, None]).ravel()
    row = np.repeat(np.arange(b, dtype=np.int32), n)[keep]

    def each(array: Any) -> Any:
        return np.tile(array, b)[keep]

    histories = Events(
        row,
        each(history.item),
        each(history.action),
        each(history.weight),
        each(history.timestamp),
        b,
        history.n_items,
    )
    return items, _place(_lists(recommender, histories, history, count).items, wanted)


def _shares(shown: Recommendations, place: int | None, hybrid: Artifact) -> list[Share]:
    if place is None:
        return []
    item = int(shown.items[0, place])
    shares = []
    for name, values in shown.contributions.items():
        weight, adds = float(hybrid.info["weights"].get(name, 0.0)), float(values[0, place])
        alone = _place(shown.lists[name], item)[0] if name in shown.lists else None
        shares.append(
            Share(name, weight, adds / weight if weight else None, adds, None if alone is None else alone + 1)
        )
    return shares


def _sources(
    pipeline: Pipeline, training: Artifact, user: str, items: list[str], history: Events, recommender: Recommender
) -> dict[str, list[Source]]:
    """Item -> the user's events with it, newest first, with the objects they came from.

    Only events that the training set holds: what is withheld in a hold-out, too old or of another action had no part.
    """
    days = [
        day for day in training.info["inputs"]["interactions"] if pipeline.tables.path("interactions", day).exists()
    ]
    if not days or not items:
        return {}
    learned = {
        (str(recommender.items.ids[i]), str(recommender.actions[a]), int(t))
        for i, a, t in zip(history.item, history.action, history.timestamp, strict=True)
    }
    events = (
        pl.scan_parquet([pipeline.tables.path("interactions", day) for day in days], include_file_paths="path")
        .filter(pl.col("reason").is_null() & (pl.col("user_id") == user) & pl.col("item_id").is_in(items))
        .select(
            "item_id", "action", "timestamp", "source_key", "record", pl.col("path").str.slice(-18, 10).alias("day")
        )
        .collect()
        .sort("day", "source_key", "record")
        # An object uploaded again under another day repeats its events: the earliest day counts (training/merge.py).
        .unique(["item_id", "action", "timestamp"], keep="first", maintain_order=True)
        .sort("timestamp", descending=True, maintain_order=True)
    )
    etags: dict[tuple[str, str], str] = {}
    for day in events["day"].unique():
        raw = pipeline.tables.path("raw_events", day)
        if raw.exists():
            etags |= {(day, key): etag for key, etag in pl.read_parquet(raw, columns=["key", "etag"]).iter_rows()}
    found: dict[str, list[Source]] = {}
    for each in events.iter_rows(named=True):
        at = each["timestamp"].replace(tzinfo=UTC)
        if (each["item_id"], each["action"], round(at.timestamp() * 1000)) in learned:
            etag = etags.get((each["day"], each["source_key"]))
            source = Source(at, each["action"], each["day"], each["source_key"], each["record"], etag)
            found.setdefault(each["item_id"], []).append(source)
    return found


def _moved_on(pipeline: Pipeline, training: Artifact, days: set[str]) -> Iterator[str]:
    for day in sorted(days):
        info = pipeline.tables.sound_info("interactions", day)
        if info is None or info["version"] != training.info["inputs"]["interactions"][day]:
            yield f"interactions of {day} have been made again since; their objects are named as they are now"
            continue
        raw = pipeline.tables.sound_info("raw_events", day)
        if raw is not None and raw[FINGERPRINT] != info[FINGERPRINT]:
            yield f"objects of {day} have been read again since, not yet its events; the ETags are those read last"


def _training(pipeline: Pipeline, hybrid: Artifact) -> Iterator[str]:
    info = hybrid.info
    source = pipeline.artifacts.at("training_set", info["day"], info["training_set"])
    if source is not None:
        inputs = source.info["inputs"]
        first = max(min(inputs["interactions"], default=info["day"]), shift(info["day"], 1 - inputs["window_days"]))
        kept = source.info["counts"]["kept"]
        yield f"{kept:,} events from {first} to {info['day']} (training_set {info['training_set']})"
    yield f"ranking: {info['weights_origin']}"
    for name, version in info["inputs"]["members"].items():
        member = pipeline.artifacts.at(f"{name}_model", info["day"], version)
        if member is None:
            yield f"{name} {version}: not kept any more"
        elif member.info["parent"]:
            updates = member.info["updates_in_a_row"]
            yield f"{name} {version}: learned from scratch on {shift(info['day'], -updates)}, updates since: {updates}"
        else:
            yield f"{name} {version}: learned from scratch on {info['day']}"
