"""What is known of a user and an item at a moment: the numbers a ranker decides by.

Everything is counted from the events handed in and from `item_table`, in whole days back from the moment, each item
once a user and day (a *visit* is a user's day). Nothing here is learned, and events after the moment are no business
of it: a table made of events before a moment does not change when later ones are added.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recsys_assets.models.base import Events, Floats, Ints, Longs
from recsys_assets.training.events import DAY_MS

Array = NDArray[np.float64]

_WINDOWS = (1, 3, 7, 14, 28, 91, 365)  # days, of everybody's events
_HALF_LIVES = (15.0, 45.0, 120.0, 365.0)  # days, of a user's own
_VISIT_DECAY = (0.9, 0.97, 0.985)  # a visit
_CATEGORY_HALF_LIVES = (15.0, 120.0)
_TRIP_DAYS = 182  # what kind of visits an item is bought on is counted over half a year
_SHORT, _LONG = 1.5, 7.5  # days since the visit before
_FIRST_GAP = 30.0  # days, said of a first visit
_LIFT_WINDOWS = (3, 7, 28)  # days in which what came back is held against what was to be expected
_LIFT_HALF_LIFE = 60.0  # days, of what is to be expected
_RECENT = (7, 14, 30, 90)  # days
_LAST_VISITS = (2, 3, 10)
# Where the time since the last purchase (days; visits) changes its kind: the hazard is counted between these.
_DAY_EDGES = np.array([1, 2, 3, 4, 6, 8, 11, 15, 20, 28, 40, 60, 90, 150, 400], np.float64)
_VISIT_EDGES = np.array([1, 2, 3, 4, 5, 6, 8, 10, 13, 17, 23, 31, 46, 71, 121], np.float64)
_HAZARD_CATEGORY, _HAZARD_ITEM = 50.0, 20.0  # what a category's and an item's hazard are drawn to counts so many times

ITEM_FEATURES = (
    *(f"item_log_{days}d" for days in _WINDOWS),
    "item_log_weekday",
    "item_trend_3_28",
    "item_trend_7_91",
    "item_trend_28_365",
    "item_repeat_share",
    "item_days_per_user",
    "item_interval",
    "item_since",
    "item_basket",
    "item_short_gap",
    "item_long_gap",
    "item_weekday_lift",
    *(f"{kind}_{days}d" for days in _LIFT_WINDOWS for kind in ("item_lift", "item_first_time", "category_lift")),
    "category_trend_3_28",
    "category_trend_7_91",
    "category_trend_28_365",
)


class _Days(NamedTuple):
    """Distinct (user, item, day) triples, by user, item and rising age.

    user, item: int64[n]. age: int64[n], 1 is the day before the moment. visit: int64[n], place in `Visits`.
    """

    user: Longs
    item: Longs
    age: Longs
    visit: Longs


class _Visits(NamedTuple):
    """Distinct (user, day) pairs, newest first within a user: float64[v] but for `user`.

    rank: 0 is the user's newest. size: distinct items. gap: days since the user's visit before.
    """

    user: Longs
    age: Array
    rank: Array
    size: Array
    gap: Array


def distinct(keys: Longs) -> tuple[Longs, Longs]:
    """The distinct keys, rising, and how often each stands there. (np.unique hashes, which takes ten times as long.)"""
    keys = np.sort(keys)
    first = np.flatnonzero(np.diff(keys, prepend=keys[:1] - 1))
    return keys[first], np.diff(np.append(first, len(keys)))


def _days(events: Events, at_ms: int) -> tuple[_Days, _Visits]:
    age = np.maximum((at_ms - 1 - events.timestamp) // DAY_MS, 0) + 1
    span = int(age.max(initial=0)) + 1
    key, _ = distinct((events.user.astype(np.int64) * events.n_items + events.item) * span + age)
    pair, age = np.divmod(key, span)
    user, item = np.divmod(pair, max(events.n_items, 1))
    keys, size = distinct(user * span + age)
    visit = np.searchsorted(keys, user * span + age)
    of, when = np.divmod(keys, span)
    begins = np.flatnonzero(np.diff(of, prepend=-1))
    rank = np.arange(len(of)) - np.repeat(begins, np.diff(np.append(begins, len(of))))
    gap = np.full(len(of), _FIRST_GAP)
    same = np.flatnonzero(of[1:] == of[:-1])
    gap[same] = when[same + 1] - when[same]
    return _Days(user, item, age, visit), _Visits(of, when.astype(float), rank.astype(float), size.astype(float), gap)


def item_table(events: Events, at_ms: int, category: Ints) -> Floats:
    """float32[n_items, len(ITEM_FEATURES)]: what everybody's events before `at_ms` say of each item.

    A lift is the log of how many times users came back to the item (to items of its category) in a window over how many
    were to be expected by what they did before it: the users' visits in the window times the item's decayed share of
    their visits. `first_time` is the log of purchases by users new to the item over those by others.
    """
    n = events.n_items
    days, visits = _days(events, at_ms)
    group, groups = _groups(category)
    item, age = days.item, days.age

    def count(where: NDArray[np.bool_] | slice = slice(None)) -> Array:
        return np.bincount(item[where], minlength=n).astype(np.float64)

    within = {window: count(age <= window) for window in _WINDOWS}
    pair = days.user * n + item
    first = np.flatnonzero(np.diff(pair, prepend=-1))
    times = np.diff(np.append(first, len(pair)))
    of, again = item[first], times > 1
    buyers, total = np.bincount(of, minlength=n), count()
    span = (age[first + times - 1] - age[first])[again]
    since = np.full(n, np.nan)
    order = np.lexsort((age, item))
    newest = order[np.flatnonzero(np.diff(item[order], prepend=-1))]
    since[item[newest]] = np.log(age[newest])
    recent = age <= _TRIP_DAYS
    seen = count(recent)
    bought = visits.size[visits.age <= _TRIP_DAYS]

    def lift(kind: NDArray[np.bool_]) -> Array:
        """Log of how much more often the item is bought on visits of a kind than anything is, drawn to 0."""
        share = (bought[kind[visits.age <= _TRIP_DAYS]].sum() + 1) / (bought.sum() + 2)
        return np.log((count(recent & kind[days.visit]) + 4 * share) / (seen + 4) / share)

    sizes = np.log(visits.size)
    usual = float(sizes.mean()) if len(sizes) else 0.0
    columns = [
        *(np.log1p(within[window]) for window in _WINDOWS),
        np.log1p(count((age % 7 == 0) & (age <= 28))),
        np.log((within[3] + 0.5) / (within[28] * 3 / 28 + 0.5)),
        np.log((within[7] + 0.5) / (within[91] * 7 / 91 + 0.5)),
        np.log((within[28] + 0.5) / (within[365] * 28 / 365 + 0.5)),
        (np.bincount(of[again], minlength=n) + 0.3) / (buyers + 2),
        np.log((total + 1) / (buyers + 1)),
        np.log((np.bincount(of[again], span, n) + 60) / (np.bincount(of[again], times[again] - 1, n) + 1)),
        since,
        (np.bincount(item[recent], sizes[days.visit[recent]], n) + 2 * usual) / (seen + 2),
        lift(visits.gap < _SHORT),
        lift(visits.gap > _LONG),
        lift(visits.age % 7 == 0),
    ]
    of_pair = np.repeat(np.arange(len(first)), times)
    for window in _LIFT_WINDOWS:
        old, old_visit = age > window, visits.age > window
        usual_times = np.bincount(of_pair, np.where(old, 0.5 ** ((age - window) / _LIFT_HALF_LIFE), 0), len(first))
        usual_visits = np.where(old_visit, 0.5 ** ((visits.age - window) / _LIFT_HALF_LIFE), 0)
        usual_visits = np.bincount(visits.user, usual_visits, events.n_users)
        new_visits = np.bincount(visits.user[~old_visit], minlength=events.n_users)
        buyer = days.user[first]
        expected = np.bincount(of, usual_times / (usual_visits[buyer] + 0.3) * new_visits[buyer], n)
        knew = (usual_times > 0)[of_pair]
        returned, begun = count(~old & knew), count(~old & ~knew)
        whole, whole_expected = np.bincount(group, returned, groups), np.bincount(group, expected, groups)
        columns += [
            np.log((returned + 1) / (expected + 1)),
            np.log((begun + 0.5) / (returned + 1)),
            np.log((whole + 3) / (whole_expected + 3))[group],
        ]
    for short, long in ((3, 28), (7, 91), (28, 365)):
        new, usual_lines = (np.bincount(group, within[window], groups) for window in (short, long))
        columns.append(np.log((new + 1) / (usual_lines * short / long + 1))[group])
    return np.stack(columns, axis=1).astype(np.float32)


def _groups(category: Ints) -> tuple[Longs, int]:
    """The category of each item, one more for items without, and how many there are."""
    unknown = int(category.max(initial=-1)) + 1
    return np.where(category >= 0, category, unknown).astype(np.int64), unknown + 1


def hazards(events: Events, at_ms: int, category: Ints) -> Floats:
    """float32[n_items, 2, b]: by item and time since a user took it (days; visits), log of the chance a day (a visit)
    that they take it now: times they did, over the times they might have (a user who did not come back yet counts
    half in the last stretch). Drawn to the category's, and that to everything's."""
    days, visits = _days(events, at_ms)
    group, groups = _groups(category)
    pair = days.user * events.n_items + days.item
    first = np.diff(pair, prepend=-1) != 0
    again = ~first[1:]
    parts = []
    for time, edges in ((days.age.astype(np.float64), _DAY_EDGES), (visits.rank[days.visit] + 1, _VISIT_EDGES)):
        b, shape = len(edges), (events.n_items, len(edges))

        def count(items: Longs, lasted: Array, edges: Array = edges, shape: tuple[int, int] = shape) -> Array:
            place = items * shape[1] + _stretch(lasted, edges)
            return np.bincount(place, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)

        ended = count(days.item[1:][again], np.diff(time)[again])
        waiting = count(days.item[first], time[first])
        risk = np.cumsum((ended + waiting)[:, ::-1], axis=1)[:, ::-1] - waiting / 2
        whole = ended.sum(axis=0) / np.maximum(risk.sum(axis=0), 1)
        cell = (group[:, None] * b + np.arange(b)).ravel()
        ended_group = np.bincount(cell, ended.ravel(), groups * b).reshape(groups, b)
        risk_group = np.bincount(cell, risk.ravel(), groups * b).reshape(groups, b)
        of_group = (ended_group + _HAZARD_CATEGORY * whole) / (risk_group + _HAZARD_CATEGORY)
        chance = (ended + _HAZARD_ITEM * of_group[group] + 1e-6) / (risk + _HAZARD_ITEM)
        parts.append(np.log(chance / np.diff(edges, append=2 * edges[-1])))
    return np.stack(parts, axis=1).astype(np.float32)


def _stretch(time: Array, edges: Array) -> Longs:
    """Which stretch whole times lie in; the half keeps what exp and log made of them there."""
    return np.clip(np.searchsorted(edges - 0.5, time, "right") - 1, 0, len(edges) - 1)


class Shelf(NamedTuple):
    """The item side: what `pair_features` needs to know of the shop.

    table: float32[n_items, len(ITEM_FEATURES)] of `item_table`. hazard: float32[n_items, 2, b] of `hazards`. category:
    int32[n_items], -1 where unknown. price: float32[n_items], NaN where unknown.
    """

    table: Floats
    hazard: Floats
    category: Ints
    price: Floats

    def of(self, n_items: int) -> "Shelf":
        """For a larger map: items beyond are unknown."""
        more = n_items - len(self.category)
        if more <= 0:
            return self
        return Shelf(
            np.pad(self.table, ((0, more), (0, 0)), constant_values=np.nan),
            np.pad(self.hazard, ((0, more), (0, 0), (0, 0)), constant_values=np.nan),
            np.pad(self.category, (0, more), constant_values=-1),
            np.pad(self.price, (0, more), constant_values=np.nan),
        )


def category_affinity(history: Events, at_ms: int, shelf: Shelf) -> tuple[Floats, Floats]:
    """What a user buys of each category and what the shop sells of each item in it.

    Returns: float32[n_users, n_categories + 1], the share of a user's category in their (decayed) events, drawn to
    everybody's share; float32[n_items], an item's share of its category in the last 28 days. Their product is how
    probable an item would be if users chose a category as usual and then what everybody takes. The last category is
    that of items without one.
    """
    days, _ = _days(history, at_ms)
    n = int(shelf.category.max(initial=-1)) + 2
    group = np.where(shelf.category >= 0, shelf.category, n - 1)
    sold = np.expm1(np.nan_to_num(shelf.table[:, ITEM_FEATURES.index("item_log_28d")])).astype(np.float64)
    whole = np.bincount(group, sold, n)
    everybody = (whole + 1e-3) / (whole + 1e-3).sum()
    own = np.bincount(days.user * n + group[days.item], 0.5 ** (days.age / 120), history.n_users * n).reshape(-1, n)
    mixed = (own + 5 * everybody) / (own.sum(axis=1, keepdims=True) + 5)
    share = (sold + 0.01) / (whole + 1)[group]
    return mixed.astype(np.float32), share.astype(np.float32)


def pair_features(history: Events, at_ms: int, rows: Longs, items: Longs, shelf: Shelf) -> tuple[list[str], Floats]:
    """Names, and float32[p, f] features of p (row of `history`, item) pairs at `at_ms`; NaN for what there is not (a
    pair that never met has no interval). Each row depends on its own user's history and on the item only."""
    shelf = shelf.of(history.n_items)
    days, visits = _days(history, at_ms)
    out: dict[str, Array] = {}
    group, groups = _groups(shelf.category)
    users = _user_features(days, visits, history.n_users)
    own_key, own = _own_features(days, visits, users, shelf, history.n_items)
    own |= _place_in_list(days, visits, group, groups, history.n_users, history.n_items)
    group_key, grouped = _group_features(days, group, groups)
    at = _find(own_key, rows * history.n_items + items)
    met = at >= 0
    for name, values in own.items():
        out[name] = np.where(met, values[at], np.nan) if len(values) else np.full(len(rows), np.nan)
    out["met"] = met.astype(np.float64)
    at = _find(group_key, rows * groups + group[items])
    for name, values in grouped.items():
        out[name] = np.where(at >= 0, values[at], np.nan) if len(values) else np.full(len(rows), np.nan)
    for half_life in _CATEGORY_HALF_LIVES:
        mine = np.where(met, out[f"own_{half_life:g}d"], 0)
        out[f"category_share_{half_life:g}d"] = np.log((mine + 1e-3) / (out[f"category_{half_life:g}d"] + 1e-3))
    out["category_newer"] = out["since"] - out["category_since"]
    affinity, share = category_affinity(history, at_ms, shelf)
    out["category_affinity"] = np.log(affinity[rows, group[items]]).astype(np.float64)
    out["item_share_of_category"] = np.log(share[items]).astype(np.float64)
    out["category_guess"] = out["category_affinity"] + out["item_share_of_category"]
    price = np.log(np.where(shelf.price > 0, shelf.price, np.nan)).astype(np.float64)
    priced = ~np.isnan(price[days.item])
    paid = np.bincount(days.user[priced], price[days.item[priced]], history.n_users)
    count = np.bincount(days.user[priced], minlength=history.n_users)
    out["price"] = price[items]
    out["price_to_usual"] = price[items] - np.where(count > 0, paid / np.maximum(count, 1), np.nan)[rows]
    for place, name, time, edges in (
        (0, "hazard_days", np.exp(out["since"]), _DAY_EDGES),
        (1, "hazard_visits", out["visits_since"] + 1, _VISIT_EDGES),
    ):
        out[name] = np.where(met, shelf.hazard[items, place, _stretch(np.where(met, time, 1), edges)], np.nan)
    for name, values in users.items():
        if not name.startswith("_"):
            out[name] = values[rows]
    out["weekday"] = np.full(len(rows), float(at_ms // DAY_MS % 7))
    for position, name in enumerate(ITEM_FEATURES):
        out[name] = shelf.table[items, position].astype(np.float64)
    out["interval_due_item"] = out["since"] - out["item_interval"]
    out["basket_to_usual"] = out["item_basket"] - out["user_basket"]
    return list(out), np.column_stack([values.astype(np.float32) for values in out.values()])


def _find(keys: Longs, wanted: Longs) -> Longs:
    """Where each of `wanted` stands in rising `keys`, -1 if nowhere."""
    if not len(keys):
        return np.full(len(wanted), -1)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, at, -1)


def _user_features(days: _Days, visits: _Visits, n: int) -> dict[str, Array]:
    """float64[n] by name; names that begin with an underscore are for `_own_features`."""
    of, nothing = visits.user, np.full(n, np.nan)
    count = np.bincount(of, minlength=n).astype(np.float64)
    recent = 0.97**visits.rank
    idle, last = nothing.copy(), nothing.copy()
    newest = visits.rank == 0
    idle[of[newest]], last[of[newest]] = visits.age[newest], np.log(visits.size[newest])
    # How alike a past visit is to the coming one: as long after the one before, on the same day of the week.
    same_gap = np.exp(-2 * (np.log(visits.gap) - np.log(np.minimum(idle[of], 60))) ** 2)
    off = visits.age % 7
    same_day = np.where(off == 0, 1, np.where((off == 1) | (off == 6), 0.3, 0.1))
    month = np.bincount(of[visits.age <= 28], minlength=n)
    first = np.diff(days.user, prepend=-1).astype(bool) | np.diff(days.item, prepend=-1).astype(bool)
    items, lines = np.bincount(days.user[first], minlength=n), np.bincount(days.user, minlength=n)

    def mean_size(weight: Array) -> Array:
        total = np.bincount(of, weight, n)
        return np.where(total > 0, np.bincount(of, weight * np.log(visits.size), n) / np.maximum(total, 1e-12), np.nan)

    return {
        "user_visits": np.log1p(count),
        "user_items": np.log1p(items),
        "user_basket": mean_size(recent),
        "user_basket_alike": mean_size(recent * same_gap),
        "user_basket_weekday": mean_size(recent * same_day),
        "user_last_basket": last,
        "user_small_baskets": np.bincount(of, recent * (visits.size <= 3), n)
        / np.maximum(np.bincount(of, recent, n), 1e-12),
        "user_last_baskets": mean_size((visits.rank < 5).astype(np.float64)),
        "user_repeats": np.where(lines > 0, 1 - items / np.maximum(lines, 1), np.nan),
        "user_idle": np.log(idle),
        "user_month": month.astype(np.float64),
        "user_due": np.log(idle / (28 / (month + 0.5))),
        "_same_gap": same_gap,
        "_same_day": same_day,
    }


def _own_features(
    days: _Days, visits: _Visits, users: dict[str, Array], shelf: Shelf, n_items: int
) -> tuple[Longs, dict[str, Array]]:
    """Rising int64[p] keys user * n_items + item of the pairs that met, and float64[p] features by name."""
    pair = days.user * n_items + days.item
    first = np.flatnonzero(np.diff(pair, prepend=-1))
    count = np.diff(np.append(first, len(pair)))
    user, item = days.user[first], days.item[first]
    age = days.age.astype(np.float64)
    oldest = first + count - 1
    n = len(users["user_visits"])

    def total(values: Array) -> Array:
        return np.add.reduceat(values, first)

    def rate(weight: Array) -> Array:
        """The share of the user's visits with the item, visits weighted (float64[visits]) and drawn to nothing."""
        return np.log((total(weight[days.visit]) + 0.02) / (np.bincount(visits.user, weight, n)[user] + 0.3))

    since, rank = age[first], visits.rank[days.visit]
    interval = np.where(count > 1, (age[oldest] - since) / np.maximum(count - 1, 1), np.nan)
    visit_interval = np.where(count > 1, (rank[oldest] - rank[first]) / np.maximum(count - 1, 1), np.nan)
    usual = np.exp(shelf.table[item, ITEM_FEATURES.index("item_interval")].astype(np.float64))
    shrunk = (np.nan_to_num(interval) * (count - 1) + usual) / count
    # Days between one time and the next, within a pair
    inner = np.diff(pair) == 0
    whose = np.repeat(np.arange(len(first)), count)[1:][inner]
    gap, of = np.diff(age)[inner], whose
    order = np.lexsort((gap, of))
    gap, of = gap[order], of[order]
    middle = np.searchsorted(of, np.arange(len(first))) + (count - 1) // 2
    median = np.where(count > 1, gap[np.minimum(middle, len(gap) - 1)] if len(gap) else np.nan, np.nan)
    times = np.maximum(count - 1, 1)
    second = np.minimum(first + 1, len(age) - 1)
    newest_gap = np.where(count > 1, age[second] - since, np.nan)
    newest_visit_gap = np.where(count > 1, rank[second] - rank[first], np.nan)

    def near(time: Array, waited: Array) -> Array:
        """Log of the share of the times between that are about as long as what has been waited, of those not much
        shorter: the pair's own hazard, drawn to little."""
        between, now = np.diff(time)[inner], waited[whose]
        alike = np.exp(-4 * (np.log(between + 0.5) - np.log(now + 0.5)) ** 2)
        longer = np.bincount(whose, between >= 0.7 * now, len(first))
        return np.log((np.bincount(whose, alike, len(first)) + 0.05) / (longer + 1))

    steady = 0.985**visits.rank
    features = {f"own_{half_life:g}d": total(0.5 ** ((age - 1) / half_life)) for half_life in _CATEGORY_HALF_LIVES}
    features |= {f"rate_{half_life:g}d": rate(0.5 ** ((visits.age - 1) / half_life)) for half_life in _HALF_LIVES}
    features |= {f"rate_visits_{keep}": rate(keep**visits.rank) for keep in _VISIT_DECAY}
    features |= {
        "rate_same_gap": rate(steady * users["_same_gap"]),
        "rate_same_day": rate(steady * users["_same_day"]),
        "rate_small": rate(steady * (visits.size <= 3)),
        "share_of_baskets": np.log(
            (total((steady / visits.size)[days.visit]) + 0.01) / (np.bincount(visits.user, steady, n)[user] + 0.3)
        ),
        **{f"in_{window}d": total((age <= window).astype(np.float64)) for window in _RECENT},
        **{f"in_last_{last}": total((rank < last).astype(np.float64)) for last in _LAST_VISITS},
        "in_last_5": total((rank < 5).astype(np.float64)),
        "in_last_20": total((rank < 20).astype(np.float64)),
        "count": np.log(count),
        "since": np.log(since),
        "span": np.log(age[oldest]),
        "interval": np.log(interval + 0.5),
        "due": np.log((since + 0.5) / (interval + 0.5)),
        "due_shrunk": np.log((since + 0.5) / (shrunk + 0.5)),
        "due_median": np.log((since + 0.5) / (median + 0.5)),
        "gaps_longer": np.where(count > 1, np.bincount(of, gap >= since[of], len(first)) / times, np.nan),
        "gaps_equal": np.where(count > 1, np.bincount(of, np.abs(gap - since[of]) <= 1, len(first)) / times, np.nan),
        "newest_gap": newest_gap,
        "due_newest": np.log((since + 0.5) / (newest_gap + 0.5)),
        "hazard_own_days": near(age, since.astype(np.float64)),
        "visits_newest_gap": newest_visit_gap,
        "visits_due_newest": np.log((rank[first] + 0.5) / (newest_visit_gap + 0.5)),
        "hazard_own_visits": near(rank, rank[first] + 1),
        "visits_since": rank[first],
        "visits_interval": visit_interval,
        "visits_due": np.log((rank[first] + 0.5) / (visit_interval + 0.5)),
        "own_basket": total(np.log(visits.size)[days.visit]) / count - users["user_basket"][user],
    }
    return pair[first], features


def _place_in_list(
    days: _Days, visits: _Visits, group: Longs, groups: int, n_users: int, n_items: int
) -> dict[str, Array]:
    """How a pair that met stands among all the user met: float64[p] features by name, in the order of
    `_own_features`."""
    pair = days.user * n_items + days.item
    first = np.flatnonzero(np.diff(pair, prepend=-1))
    user, item, rank = days.user[first], days.item[first], visits.rank[days.visit]

    def order(among: Longs, value: Array) -> Array:
        """Place of each pair among those alike, 0 the largest (of equals, the one of the smaller item)."""
        by_value = np.lexsort((-value, among))
        place = np.empty(len(among))
        place[by_value] = np.arange(len(among)) - np.searchsorted(among[by_value], among[by_value])
        return place

    def largest(among: Longs, value: Array, n: int) -> Array:
        most = np.zeros(n)
        np.maximum.at(most, among, value)
        return np.maximum(most, 1e-9)[among]

    rate = np.add.reduceat(0.97**rank, first) / (np.bincount(visits.user, 0.97**visits.rank, n_users)[user] + 0.3)
    sum_of_rates = np.bincount(user, rate, n_users)
    kind = user * groups + group[item]
    return {
        "place": np.log1p(order(user, rate)),
        "place_lately": np.log1p(order(user, np.add.reduceat(0.8**rank, first))),
        "place_share": np.log(rate / np.maximum(sum_of_rates[user], 1e-9) + 1e-4),
        "place_to_first": np.log(rate / largest(user, rate, n_users) + 1e-3),
        "place_sum": np.log(sum_of_rates[user] + 0.01),
        "category_items": np.log(np.bincount(kind, minlength=n_users * groups)[kind]),
        "category_place": np.log1p(order(kind, rate)),
        "category_to_first": np.log(rate / largest(kind, rate, n_users * groups) + 1e-3),
    }


def _group_features(days: _Days, group: Longs, groups: int) -> tuple[Longs, dict[str, Array]]:
    """Rising int64[p] keys user * groups + group of what met, and float64[p] features by name."""
    span = int(days.age.max(initial=0)) + 1
    key, lines = distinct((days.user * groups + group[days.item]) * span + days.age)
    pair, age = np.divmod(key, span)
    first = np.flatnonzero(np.diff(pair, prepend=-1))
    count = np.diff(np.append(first, len(pair)))
    since, oldest = age[first].astype(np.float64), age[first + count - 1]
    interval = np.where(count > 1, (oldest - since) / np.maximum(count - 1, 1), np.nan)
    features = {
        "category_since": np.log(since),
        "category_due": np.log((since + 0.5) / (interval + 0.5)),
        "category_count": np.log(count),
        "category_lines": np.log(np.add.reduceat(lines, first) / count),
    }
    for half_life in _CATEGORY_HALF_LIVES:
        features[f"category_{half_life:g}d"] = np.add.reduceat(0.5 ** ((age - 1) / half_life), first)
    return pair[first], features
