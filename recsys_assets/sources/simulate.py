"""A seeded shop: behaviour logs with enough structure that a recommender can be seen to learn.

Users have tastes (categories, and a style: an angle on a circle) that drift slowly, and favourites they come back to.
Within a session the next item often is a complement of the one before, or close to it in style. Items have heavy-tailed
popularity with trends, and new ones appear every day. Some records and objects are broken, on purpose and counted.

Every day is a pure function of the shop and the day, so day 15 can be made without day 14. This holds because random
numbers are drawn in streams, one for each attribute: a larger shop draws further from the same stream, which leaves the
users and items that were there before as they are.
"""

import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys_assets.sources import object_key

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

ACTIONS = ("VIEW", "CLICK", "ADD_CART", "PURCHASE")
BROKEN = ("missing_field", "unknown_action", "seconds", "number_as_text")

_CONTINUES = (0.45, 0.30, 0.35)  # of the views that become clicks, of those carts, of those purchases
_DELAY_S = (6.0, 25.0, 60.0)  # median time to the click, the cart, the purchase
_WEEKDAY = (0.95, 0.88, 0.90, 0.95, 1.05, 1.22, 1.12)  # Monday first
_HOUR = (3, 2, 1, 1, 1, 2, 4, 6, 7, 8, 8, 9, 11, 10, 8, 8, 9, 10, 12, 14, 16, 15, 11, 6)
_ITEMS_PER_SESSION = 4.5
_COMPLEMENT, _SIMILAR, _FAVOURITE = 0.40, 0.20, 0.12  # how the next item of a session comes about; else by taste
_FAVOURITE_FIRST = 0.40  # of the sessions that begin with a favourite
_FAVOURITES = 8
_FAVOURITE_DAYS = 32  # until a favourite is replaced
_BUNDLE = 5  # items at the start that complement one another
_TABLE = 4_000_000  # cells of the users x items table held at once (32 MB)


@dataclass(frozen=True)
class Shop:
    """What is simulated. Equal shops give equal bytes.

    Attributes:
        opened: the first day there are logs of.
        users, items: how many there are on that day; `new_users_per_day` and `new_items_per_day` join each day after.
        sessions_per_user: mean number a day; a session makes about 7 events.
        objects_per_day: log objects that a day's records are spread over, by time.
        broken_share: share of the records replaced by a broken one, the kinds of `BROKEN` in turn.
        duplicate_share: share of the records that are delivered twice.
        truncated_every: one object is cut in the middle every so many days (0: never), first on the third.
        time_zone: IANA name; a day's logs are those of the local day, and hours follow the local clock.
        actions: what it is called to meet an item and to go on with it, up to four steps, each rarer than the last.
        item_prefix: what item ids begin with; they are numbers if it is empty.
        described: whether records name category and price.
    """

    seed: int = 7
    users: int = 1500
    new_users_per_day: int = 10
    items: int = 800
    new_items_per_day: int = 10
    categories: int = 16
    sessions_per_user: float = 1.6
    objects_per_day: int = 24
    broken_share: float = 0.001
    duplicate_share: float = 0.0005
    truncated_every: int = 5
    opened: date = date(2025, 11, 1)
    time_zone: str = "UTC"
    actions: tuple[str, ...] = ACTIONS
    item_prefix: str = ""
    described: bool = True

    @property
    def breaks(self) -> tuple[str, ...]:
        """The kinds of broken records there can be: a price given as text takes a price."""
        return BROKEN if self.described else BROKEN[:-1]

    def __post_init__(self) -> None:
        for name in ("users", "items", "categories", "objects_per_day"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        for name in ("seed", "new_users_per_day", "new_items_per_day", "sessions_per_user", "truncated_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")
        for name in ("broken_share", "duplicate_share"):
            if not 0 <= getattr(self, name) <= 0.2:
                raise ValueError(f"{name} must lie between 0 and 0.2")
        if not 1 <= len(self.actions) <= len(ACTIONS):
            raise ValueError(f"actions must be 1 to {len(ACTIONS)} names")


# The same behaviour in another domain: other actions, text ids, no category and no price.
MEDIA: dict[str, Any] = {"actions": ("PLAY", "FINISH", "LIKE"), "item_prefix": "film-", "described": False}


@dataclass(frozen=True)
class Planted:
    """What a day's objects hold, counted while they were made.

    Attributes:
        records: whole records, broken ones, duplicates and those before a truncated object's break included.
        broken: number of records of each kind in `BROKEN`: a field left out, an action nobody knows, a timestamp in
            seconds, a price given as text. They are whole JSON, outside truncated objects.
        duplicates: records that repeat an earlier good one of the day, byte for byte.
        truncated_objects: objects cut inside a record.
        before_break: whole (and good) records in those objects.
        lost: records in those objects behind the break, the cut one included; not in `records`.
    """

    records: int
    broken: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    truncated_objects: int = 0
    before_break: int = 0
    lost: int = 0

    @property
    def good(self) -> int:
        """Records that are neither broken nor duplicates."""
        return self.records - sum(self.broken.values()) - self.duplicates


def simulate(shop: Shop, first_day: date, days: int) -> Iterator[tuple[str, bytes]]:
    """The log objects (key, JSON array of records) of `days` days from `first_day` on, in the order of their keys.

    Raises:
        ValueError: `first_day` lies before the shop opened.
    """
    _index(shop, first_day)
    for n in range(days):
        yield from _objects(shop, first_day + timedelta(n))[0]


def planted(shop: Shop, day: date) -> Planted:
    """What `simulate` puts into a day's objects. Costs as much as making them."""
    return _objects(shop, day)[1]


def user_ids(shop: Shop, day: date) -> list[str]:
    """The users who may be seen on a day."""
    return [str(u + 1) for u in range(_n_users(shop, _index(shop, day)))]


def new_interest(shop: Shop, day: date, user_id: str) -> int:
    """The category that a user has touched least up to and including a day (normally not at all), by their tastes the
    least expected of those.

    Replays the days since the shop opened (tens of milliseconds each).

    Raises:
        ValueError: there is no such user on that day.
    """
    user, last = _user(shop, day, user_id), _index(shop, day)
    touched = np.zeros(shop.categories, np.int64)
    for index in range(last + 1):
        users, items = _visits(shop, index)[1:]
        category = _items(shop, index).category[items[users == user]]
        touched += np.bincount(category, minlength=shop.categories)
    stocked = np.isin(np.arange(shop.categories), _items(shop, last).category)
    taste = _tastes(shop, last, np.array([user]))[0][0]
    return int(np.lexsort((taste, touched, ~stocked))[0]) + 1


def late_events(shop: Shop, day: date, user_id: str, category: int | None = None, items: int = 12) -> bytes:
    """A log object with one more session of a user, late in the evening of `day`: a clearly new interest.

    Args:
        category: the category all items come from; `new_interest` of the user if not given.
        items: how many, fewer where the category has fewer; every second is put into the cart, every fourth bought.

    Raises:
        ValueError: there is no such user on that day, or no item in that category.
    """
    user, index = _user(shop, day, user_id), _index(shop, day)
    wanted = (new_interest(shop, day, user_id) if category is None else category) - 1
    stock = _items(shop, index)
    members = np.flatnonzero(stock.category == wanted)
    if not len(members):
        raise ValueError(f"no item in category {category} on {day}")
    members = members[np.argsort(-stock.popularity[members], kind="stable")][:items]
    deepest = np.where(np.arange(len(members)) % 4 == 0, 3, np.where(np.arange(len(members)) % 2 == 0, 2, 1))
    deepest = np.minimum(deepest, len(shop.actions) - 1)
    item, action = np.repeat(members, deepest + 1), np.concatenate([np.arange(n + 1) for n in deepest])
    _, end = _bounds(shop, day)
    stamp = end - 15_000 * (len(item) - np.arange(len(item)))
    return _array(_lines(shop, index, np.full(len(item), user), item, action, stamp))


# --- The shop on a day. `index` counts days since it opened. ----------------------------------------------------------


def _index(shop: Shop, day: date) -> int:
    index = (day - shop.opened).days
    if index < 0:
        raise ValueError(f"{day} lies before the shop opened ({shop.opened})")
    return index


def _user(shop: Shop, day: date, user_id: str) -> int:
    ids = user_ids(shop, day)
    if user_id not in ids:
        raise ValueError(f"no user {user_id!r} on {day}: they are '1' to '{len(ids)}'")
    return int(user_id) - 1


def _n_users(shop: Shop, index: int) -> int:
    return shop.users + shop.new_users_per_day * index


def _rng(shop: Shop, stream: str, *numbers: int) -> np.random.Generator:
    return np.random.default_rng([shop.seed, zlib.crc32(stream.encode()), *numbers])


def _bounds(shop: Shop, day: date) -> tuple[int, int]:
    """Start and end (exclusive) of a local day in ms UTC; 23 or 25 hours apart when clocks change."""
    zone = ZoneInfo(shop.time_zone)
    ends = (datetime.combine(d, time(), zone).astimezone(UTC) for d in (day, day + timedelta(1)))
    start, end = (int(moment.timestamp() * 1000) for moment in ends)
    return start, end


class _Ring:
    """Items in groups; within a group in a closed order."""

    def __init__(self, group: Ints, order: NDArray[Any]) -> None:
        self._at = np.lexsort((order, group))
        self._place = np.empty_like(self._at)
        self._place[self._at] = np.arange(len(group))
        self._size = np.bincount(group)
        self._first = np.cumsum(self._size) - self._size
        self._group = group

    def step(self, items: Ints, by: Ints) -> Ints:
        """The items `by` places further on."""
        group = self._group[items]
        first = self._first[group]
        return self._at[first + (self._place[items] - first + by) % self._size[group]]


@dataclass(frozen=True)
class _Stock:
    """The n items of a day: int64[n] category and price, float64[n] style (a share of a turn) and popularity."""

    category: Ints
    price: Ints
    style: Floats
    popularity: Floats
    complements: _Ring
    similar: _Ring


@lru_cache(maxsize=64)
def _items(shop: Shop, index: int) -> _Stock:
    n = shop.items + shop.new_items_per_day * index
    number = np.arange(n)
    born = np.maximum(0, (number - shop.items) // max(shop.new_items_per_day, 1) + 1)
    size = 1 / np.sqrt(np.arange(1, shop.categories + 1))
    category = np.searchsorted(np.cumsum(size) / size.sum(), _rng(shop, "category").random(n)).clip(
        max=shop.categories - 1
    )
    level = 6000 * np.exp(1.2 * _rng(shop, "price level").standard_normal(shop.categories).clip(-2, 2))
    spread = np.exp(0.35 * _rng(shop, "price").standard_normal(n))
    price = np.maximum(100, np.round(level[category] * spread, -2)).astype(np.int64)
    style = _rng(shop, "style").random(n)
    period, phase = _rng(shop, "trend").random((n, 2)).T
    trend = 0.6 * np.sin(2 * np.pi * (index / (20 + 40 * period) + phase))
    novelty = np.where(born > 0, 1 + 3 * np.exp(-(index - born) / 4), 1)
    popularity = novelty * np.exp(1.2 * _rng(shop, "popularity").standard_normal(n) + trend)
    # Complements come from neighbouring categories (phones and their cases), so that a pair crosses categories.
    themes = (shop.categories + 1) // 2
    bundles = max(1, shop.items // (_BUNDLE * themes))
    bundle = (category // 2) * bundles + _rng(shop, "bundle").integers(0, bundles, n)
    return _Stock(category, price, style, popularity, _Ring(bundle, number), _Ring(category, style))


def _tastes(shop: Shop, index: int, users: Ints) -> tuple[Floats, Floats]:
    """float64[b, categories] log-weight of each category, and float64[b] preferred style, of int64[b] users."""
    n = int(users.max()) + 1
    base = _rng(shop, "taste").standard_normal((n, shop.categories))[users]
    phase = _rng(shop, "taste drift").random((n, shop.categories))[users]
    style, speed = _rng(shop, "user style").random((n, 2))[users].T
    weights = 1.7 * base + 0.9 * np.sin(2 * np.pi * (index / 60 + phase))
    return weights, style + (speed - 0.5) * index / 60


def _by_taste(shop: Shop, index: int, users: Ints, uniform: Floats) -> Ints:
    """An item for each of int64[n] users, drawn by their tastes and its popularity from float64[n] in [0, 1)."""
    stock = _items(shop, index)
    n_items = len(stock.category)
    distinct, row = np.unique(users, return_inverse=True)
    out = np.empty(len(users), np.int64)
    step = max(1, _TABLE // n_items)
    for start in range(0, len(distinct), step):
        weights, style = _tastes(shop, index, distinct[start : start + step])
        near = np.cos(2 * np.pi * (style[:, None] - stock.style))
        table = np.exp(weights[:, stock.category] + 1.5 * near) * stock.popularity
        np.cumsum(table, axis=1, out=table)
        table /= table[:, -1:]
        table += np.arange(len(table))[:, None]  # one sorted array, so that one search serves all rows
        here = (row >= start) & (row < start + step)
        at = row[here] - start
        found = np.searchsorted(table.ravel(), at + uniform[here], side="right") - at * n_items
        out[here] = found.clip(0, n_items - 1)
    return out


def _favourites(shop: Shop, index: int, users: Ints, slot: Ints) -> Ints:
    """The item in int64[n] favourite slots of int64[n] users. A slot keeps its item for `_FAVOURITE_DAYS` days."""
    out = np.empty(len(users), np.int64)
    for number in range(_FAVOURITES):
        here = slot == number
        if here.any():
            turn, age = divmod(index + number * _FAVOURITE_DAYS // _FAVOURITES, _FAVOURITE_DAYS)
            uniform = _rng(shop, "favourite", number, turn).random(_n_users(shop, index))
            out[here] = _by_taste(shop, max(0, index - age), users[here], uniform[users[here]])
    return out


def _visits(shop: Shop, index: int) -> tuple[Ints, Ints, Ints]:
    """A day's visits of items: int64[n] session number, user and item, in the order of the sessions."""
    rng = _rng(shop, "visits", index)
    stock = _items(shop, index)
    n_users = _n_users(shop, index)
    activity = np.exp(0.9 * _rng(shop, "activity").standard_normal(n_users) - 0.405).clip(max=8)
    weekday = _WEEKDAY[(shop.opened + timedelta(index)).weekday()]
    sessions_of = rng.poisson(shop.sessions_per_user * weekday * activity)
    session_user = np.repeat(np.arange(n_users), sessions_of)
    length = rng.geometric(1 / _ITEMS_PER_SESSION, len(session_user)).clip(max=30)
    first = np.cumsum(length) - length
    session = np.repeat(np.arange(len(length)), length)
    user = session_user[session]
    n = len(user)
    if not n:
        return session, user, user

    kind = rng.random(n)
    kind[first] = np.where(rng.random(len(first)) < _FAVOURITE_FIRST, _COMPLEMENT + _SIMILAR, 1)
    item = _by_taste(shop, index, user, rng.random(n))
    favourite = (kind >= _COMPLEMENT + _SIMILAR) & (kind < _COMPLEMENT + _SIMILAR + _FAVOURITE)
    weight = 1 / np.arange(1, _FAVOURITES + 1)
    slot = np.searchsorted(np.cumsum(weight) / weight.sum(), rng.random(n)).clip(max=_FAVOURITES - 1)
    item[favourite] = _favourites(shop, index, user[favourite], slot[favourite])
    onward = 1 + (rng.random(n) > 0.6).astype(np.int64) + (rng.random(n) > 0.85)
    sideways = onward * np.where(rng.random(n) < 0.5, 1, -1)
    for step in range(1, int(length.max())):
        at = first[length > step] + step
        before = item[at - 1]
        item[at] = np.where(
            kind[at] < _COMPLEMENT,
            stock.complements.step(before, onward[at]),
            np.where(kind[at] < _COMPLEMENT + _SIMILAR, stock.similar.step(before, sideways[at]), item[at]),
        )
    return session, user, item


def _events(shop: Shop, index: int) -> tuple[Ints, Ints, Ints, Ints]:
    """A day's events by time: int64[n] user, item, action (a place in `shop.actions`) and timestamp (ms UTC)."""
    session, user, item = _visits(shop, index)
    rng = _rng(shop, "events", index)
    n = len(user)
    goes_on = np.cumprod(rng.random((n, 3)) < _CONTINUES, axis=1).astype(bool)
    delay = np.array(_DELAY_S) * np.exp(0.5 * rng.standard_normal((n, 3))) * goes_on
    duration = delay.sum(axis=1) + 35 * np.exp(0.6 * rng.standard_normal(n))
    begin = np.cumsum(duration) - duration
    n_sessions = int(session[-1]) + 1 if n else 0
    first = np.searchsorted(session, np.arange(n_sessions))
    begin -= begin[first][session]
    total = np.bincount(session, duration, n_sessions)
    start, end = _bounds(shop, shop.opened + timedelta(index))
    clock = np.interp(rng.random(n_sessions), np.cumsum((0, *_HOUR)) / sum(_HOUR), np.linspace(0, 1, 25))
    seconds = (end - start) / 1000
    opened = np.minimum(clock * seconds, seconds - total - 1).clip(min=0)  # no session runs into the next day
    at = (opened[session] + begin)[:, None] + np.cumsum(np.column_stack([np.zeros(n), delay]), axis=1)
    happens = np.column_stack([np.ones(n, bool), goes_on])
    visit, action = np.nonzero(happens)
    stamp = (start + at[happens] * 1000).astype(np.int64)
    # Two events of a user in one millisecond could look like a duplicate that was not planted.
    _, keep = np.unique(np.column_stack([user[visit], stamp]), axis=0, return_index=True)
    keep = keep[(stamp[keep] >= start) & (stamp[keep] < end)]
    keep = keep[action[keep] < len(shop.actions)]
    keep = keep[np.lexsort((user[visit[keep]], stamp[keep]))]
    return user[visit[keep]], item[visit[keep]], action[keep], stamp[keep]


# --- Objects ----------------------------------------------------------------------------------------------------------


def _lines(shop: Shop, index: int, user: Ints, item: Ints, action: Ints, stamp: Ints) -> list[bytes]:
    stock = _items(shop, index)
    frame = pl.DataFrame(
        {
            "timestamp": stamp,
            "item_id": [f"{shop.item_prefix}{number}" for number in item + 1] if shop.item_prefix else item + 1,
            "user_id": pl.Series(user + 1).cast(pl.String),
            "action": pl.Series(shop.actions)[action],
            "category_id": stock.category[item] + 1,
            "price": stock.price[item],
        }
    )
    if not shop.described:
        frame = frame.drop("category_id", "price")
    out = io.BytesIO()
    frame.write_ndjson(out)
    return out.getvalue().splitlines()


def _array(lines: list[bytes]) -> bytes:
    return b"[\n" + b",\n".join(lines) + b"\n]\n"


def _break(line: bytes, kind: str, choice: int) -> bytes:
    record: dict[str, Any] = json.loads(line)
    if kind == "missing_field":
        del record[("item_id", "user_id", "timestamp", "action")[choice % 4]]
    elif kind == "unknown_action":
        record["action"] = ("HOVER", "WISH", "view")[choice % 3]
    elif kind == "seconds":
        record["timestamp"] //= 1000
    else:
        record["price"] = str(record["price"])
    return json.dumps(record, separators=(",", ":")).encode()


def _objects(shop: Shop, day: date) -> tuple[list[tuple[str, bytes]], Planted]:
    index = _index(shop, day)
    lines = _lines(shop, index, *_events(shop, index))
    n, n_objects = len(lines), shop.objects_per_day
    rng = _rng(shop, "broken", index)
    ends = np.linspace(0, n, n_objects + 1).astype(np.int64)
    cut: int | None = None
    if shop.truncated_every and index % shop.truncated_every == min(2, shop.truncated_every - 1) and n >= 2 * n_objects:
        cut = int(rng.integers(n_objects))

    # What is broken or repeated lies outside the truncated object, so that the counts hold however that one is read.
    sound = np.arange(n) if cut is None else np.r_[0 : ends[cut], ends[cut + 1] : n]
    n_broken, n_repeated = round(shop.broken_share * n), round(shop.duplicate_share * n)
    chosen = rng.permutation(sound)[: n_broken + n_repeated]
    counts = dict.fromkeys(shop.breaks, 0)
    for number, at in enumerate(chosen[:n_broken]):
        kind = shop.breaks[(number + index) % len(shop.breaks)]
        lines[at] = _break(lines[at], kind, number // len(shop.breaks) + index)
        counts[kind] += 1
    repeats = [lines[at] for at in chosen[n_broken:]]
    host = n_objects - 1 if cut != n_objects - 1 else 0  # the object that delivers them again

    objects, before_break, lost = [], 0, 0
    for number in range(n_objects):
        part = lines[ends[number] : ends[number + 1]]
        content = _array(part + repeats if number == host else part)
        if number == cut:
            before_break = len(part) * 3 // 5
            lost = len(part) - before_break
            content = _array(part[: before_break + 1])[: -len(b"\n]\n") - len(part[before_break]) // 2]
        objects.append((object_key(day, f"part-{number:04d}"), content))
    found = Planted(n - lost + len(repeats), counts, len(repeats), int(cut is not None), before_break, lost)
    return objects, found
