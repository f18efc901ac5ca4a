"""The simulated shop keeps its promises: the same bytes again, counted defects, and structure worth learning."""

import json
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys_assets.evaluation.metrics import hits_matrix, per_user, top
from recsys_assets.settings import load_settings
from recsys_assets.sources.simulate import (
    ACTIONS,
    BROKEN,
    Shop,
    late_events,
    new_interest,
    planted,
    simulate,
    user_ids,
)

SMALL = Shop(
    seed=3, users=300, new_users_per_day=5, items=150, new_items_per_day=3, categories=10, objects_per_day=4,
    broken_share=0.01, duplicate_share=0.005,
)  # fmt: skip
CLEAN = Shop(broken_share=0, duplicate_share=0, truncated_every=0)
FIELDS = {"timestamp", "item_id", "user_id", "action", "category_id", "price"}
Record = dict[str, Any]


@cache
def days(shop: Shop, n: int) -> list[list[Record]]:
    """The records of the first n days of a shop without truncated objects."""
    out: dict[str, list[Record]] = {}
    for key, content in simulate(shop, shop.opened, n):
        out.setdefault(key[:15], []).extend(json.loads(content))
    return list(out.values())


def whole(content: bytes) -> tuple[list[Record], bool]:
    """The whole records of an object, and whether it is cut: a decoder of its own, one record at a time."""
    text, decoder, records, at = content.decode(), json.JSONDecoder(), [], 1
    while True:
        at += len(text[at:]) - len(text[at:].lstrip(", \n"))
        if text[at:].strip() == "]":
            return records, False
        try:
            record, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError:
            return records, True
        records.append(record)


def kind(record: Record) -> str:
    if set(record) != FIELDS:
        return "missing_field"
    if record["action"] not in ACTIONS:
        return "unknown_action"
    if record["timestamp"] < 10**11:
        return "seconds"
    return "number_as_text" if isinstance(record["price"], str) else "good"


def count(objects: Iterable[tuple[str, bytes]]) -> dict[str, Any]:
    kinds: Counter[str] = Counter(dict.fromkeys(BROKEN, 0))
    seen: set[tuple[Any, ...]] = set()
    found = dict.fromkeys(("records", "duplicates", "truncated_objects", "before_break"), 0)
    for _, content in objects:
        records, cut = whole(content)
        found["records"] += len(records)
        if cut:
            found["truncated_objects"] += 1
            found["before_break"] += len(records)
        for record in records:
            what = kind(record)
            if what != "good":
                kinds[what] += 1
            else:
                identity = tuple(record[name] for name in ("user_id", "item_id", "action", "timestamp"))
                found["duplicates"] += identity in seen
                seen.add(identity)
    return {**found, "broken": dict(kinds), "good": len(seen)}


def test_same_shop_same_bytes_and_another_seed_others() -> None:
    first = list(simulate(SMALL, SMALL.opened, 2))
    assert first == list(simulate(SMALL, SMALL.opened, 2))
    other = list(simulate(Shop(**{**vars(SMALL), "seed": 4}), SMALL.opened, 2))
    assert [key for key, _ in first] == [key for key, _ in other]
    assert all(a != b for (_, a), (_, b) in zip(first, other, strict=True))


def test_a_day_needs_no_other_day() -> None:
    replayed = list(simulate(SMALL, SMALL.opened, 6))[-4:]
    assert replayed == list(simulate(SMALL, SMALL.opened + timedelta(5), 1))
    assert [key for key, _ in replayed] == [f"logs/2025/11/06/part-{n:04d}.json" for n in range(4)]


def test_no_day_is_another_again() -> None:
    one, two = ({(r["user_id"], r["item_id"]) for r in records} for records in days(CLEAN, 14)[2:4])
    assert 0.05 < len(one & two) / len(one) < 0.5  # favourites come back, the rest is new
    still = Shop(**{**vars(CLEAN), "new_users_per_day": 0, "new_items_per_day": 0})
    records = [json.loads(c) for n in (0, 7) for _, c in simulate(still, still.opened + timedelta(n), 1)]
    half = len(records) // 2
    one, two = ({r["user_id"] for content in part for r in content} for part in (records[:half], records[half:]))
    assert len(one - two) > 100  # the same weekday, the same people, and yet not the same ones come


def test_before_the_opening_is_an_error() -> None:
    with pytest.raises(ValueError, match="2025-10-31 lies before the shop opened"):
        list(simulate(SMALL, date(2025, 10, 31), 1))
    with pytest.raises(ValueError, match="items must be at least 1"):
        Shop(items=0)


@pytest.mark.parametrize("objects_per_day", [1, 4])
def test_every_defect_is_counted(objects_per_day: int) -> None:
    shop = Shop(**{**vars(SMALL), "objects_per_day": objects_per_day})
    cut = 0
    for n in range(4):
        day = shop.opened + timedelta(n)
        said = planted(shop, day)
        found = count(simulate(shop, day, 1))
        assert found == {name: getattr(said, name) for name in found}, day
        cut += said.truncated_objects
        if not said.truncated_objects:
            assert min(said.broken.values()) >= 3
            assert said.duplicates >= 5
            assert said.lost == 0
        else:
            everything = planted(Shop(**{**vars(shop), "truncated_every": 0}), day)
            assert said.good + said.lost == everything.good + (
                sum(everything.broken.values()) - sum(said.broken.values())
            )
    assert cut == 1


def test_records_lie_in_their_local_day() -> None:
    shop = Shop(**{**vars(SMALL), "time_zone": "America/New_York", "broken_share": 0, "truncated_every": 0})
    for n, hours in ((0, 24), (1, 25)):  # clocks go back on 2025-11-02
        day = datetime(2025, 11, 1 + n, 4, tzinfo=UTC).timestamp() * 1000
        stamps = np.array([record["timestamp"] for record in days(shop, 2)[n]])
        assert day <= stamps.min()
        assert stamps.max() < day + hours * 3_600_000
        assert stamps.max() - stamps.min() > 20 * 3_600_000


def test_old_users_and_items_stay_as_they_are() -> None:
    seen: dict[int, tuple[int, int]] = {}
    for n, records in enumerate(days(CLEAN, 14)):
        for record in records:
            what = (record["category_id"], record["price"])
            assert seen.setdefault(record["item_id"], what) == what
            assert record["item_id"] <= CLEAN.items + n * CLEAN.new_items_per_day
            assert int(record["user_id"]) <= CLEAN.users + n * CLEAN.new_users_per_day
    last = days(CLEAN, 14)[-1]
    assert any(record["item_id"] > CLEAN.items + 12 * CLEAN.new_items_per_day for record in last)
    assert any(int(record["user_id"]) > CLEAN.users for record in last)


def test_rhythm_of_week_and_hours() -> None:
    sizes = np.array([len(records) for records in days(CLEAN, 14)])  # 2025-11-01 is a Saturday
    assert (sizes > 14_000).all()
    assert (sizes < 24_000).all()
    weekend = sizes[[0, 1, 7, 8]].mean()
    assert weekend > 1.15 * sizes[[2, 3, 4, 9, 10, 11]].mean()
    hours = np.bincount([r["timestamp"] // 3_600_000 % 24 for day in days(CLEAN, 14) for r in day], minlength=24)
    assert hours[20] > 5 * hours[3]


def test_funnel_narrows() -> None:
    counts = Counter(record["action"] for day in days(CLEAN, 14) for record in day)
    view, click, cart, purchase = (counts[action] for action in ACTIONS)
    assert view > 1.5 * click > 3 * cart > 6 * purchase > 0
    done: set[tuple[str, int, str]] = set()
    for record in sorted(days(CLEAN, 14)[0], key=lambda record: record["timestamp"]):
        step = ACTIONS.index(record["action"])
        done.add((record["user_id"], record["item_id"], record["action"]))
        assert step == 0 or (record["user_id"], record["item_id"], ACTIONS[step - 1]) in done


def test_heavy_tails() -> None:
    for name, share in (("item_id", 0.25), ("user_id", 0.3)):
        counts = np.sort([*Counter(r[name] for day in days(CLEAN, 14) for r in day).values()])[::-1]
        assert counts[: len(counts) // 10].sum() > share * counts.sum()
        assert counts[0] < 0.05 * counts.sum()


def test_tastes_and_sequences_beat_popularity() -> None:
    """Own repeats plus item-to-item transitions, of 13 days, on the users of the 14th."""
    records = days(CLEAN, 14)
    events = [
        (int(r["user_id"]), r["timestamp"], r["item_id"], r["category_id"], n) for n in range(14) for r in records[n]
    ]
    user, stamp, item, category, day = np.array(sorted(events)).T
    n_users, n_items = user.max() + 1, item.max() + 1
    learn, test = day < 13, day == 13
    repeats, transitions = np.zeros((n_users, n_items)), np.zeros((n_items, n_items))
    np.add.at(repeats, (user[learn], item[learn]), 0.5 ** ((13 - day[learn]) / 14))
    popularity = repeats.sum(axis=0)
    u, i, t = user[learn], item[learn], stamp[learn]
    follows = (u[1:] == u[:-1]) & (i[1:] != i[:-1]) & (t[1:] - t[:-1] < 1_800_000)
    np.add.at(transitions, (i[:-1][follows], i[1:][follows]), 1)
    onward = transitions / (transitions.sum(axis=1, keepdims=True) + 5)
    reached = np.sqrt(repeats) @ onward

    def ndcg(scores: Any, users: Any, pairs: Any) -> float:
        hits, targets = hits_matrix(
            top(scores[users], 10),
            np.searchsorted(users, pairs[0]).astype(np.int32),
            pairs[1].astype(np.int32),
            n_items,
        )
        return per_user(hits, targets, 10).means()["ndcg"]

    known = test & (repeats.sum(axis=1)[user] > 0)
    pairs = np.stack([user[known], item[known]])
    users = np.unique(pairs[0])
    everyone = np.broadcast_to(popularity, repeats.shape)
    by_popularity = ndcg(everyone, users, pairs)
    by_own = ndcg(repeats / popularity.max() + 0.5 * reached, users, pairs)
    assert 0.03 < by_popularity < 0.15
    assert 2 * by_popularity < by_own < 0.5  # worth learning, and no foregone conclusion

    fresh = pairs[:, repeats[pairs[0], pairs[1]] == 0]  # items new to the user: sequences alone, nothing to repeat
    users, unseen = np.unique(fresh[0]), repeats == 0
    assert ndcg(reached * unseen, users, fresh) > 1.5 * ndcg(everyone * unseen, users, fresh)

    # Complements cross categories, which tastes and styles do not explain: what followed an item follows it again.
    u, i, c, t = user[test], item[test], category[test], stamp[test]
    follows = (u[1:] == u[:-1]) & (c[1:] != c[:-1]) & (t[1:] - t[:-1] < 1_800_000)
    right = np.mean(transitions.argmax(axis=1)[i[:-1][follows]] == i[1:][follows])
    assert right > 0.12
    assert right > 5 * np.mean(popularity.argmax() == i[1:][follows])


@pytest.mark.parametrize("user_id", ["3", "120"])
def test_late_events_bring_a_new_interest(user_id: str) -> None:
    day = CLEAN.opened + timedelta(6)
    mine = [r for records in days(CLEAN, 14)[:7] for r in records if r["user_id"] == user_id]
    late = json.loads(late_events(CLEAN, day, user_id))
    categories = {record["category_id"] for record in late}
    assert categories == {new_interest(CLEAN, day, user_id)}
    assert categories.isdisjoint(record["category_id"] for record in mine)
    assert {record["user_id"] for record in late} == {user_id}
    assert len({record["item_id"] for record in late}) >= 8
    assert {record["action"] for record in late} == set(ACTIONS)
    stamps = [record["timestamp"] for record in late]
    assert stamps == sorted(set(stamps))
    assert stamps[0] > max(record["timestamp"] for record in mine)
    assert datetime.fromtimestamp(stamps[-1] / 1000, UTC).date() == day
    prices = {r["item_id"]: (r["category_id"], r["price"]) for records in days(CLEAN, 14) for r in records}
    assert all(prices.get(r["item_id"], (r["category_id"], r["price"])) == (r["category_id"], r["price"]) for r in late)
    (category,) = categories
    assert json.loads(late_events(CLEAN, day, user_id, category=category)) == late
    chosen = json.loads(late_events(CLEAN, day, user_id, category=1, items=3))
    assert ({record["category_id"] for record in chosen}, len({record["item_id"] for record in chosen})) == ({1}, 3)


def test_late_events_of_nobody_is_an_error() -> None:
    with pytest.raises(ValueError, match="no user '9999'"):
        late_events(SMALL, SMALL.opened, "9999")
    with pytest.raises(ValueError, match="no item in category 99"):
        late_events(SMALL, SMALL.opened, user_ids(SMALL, SMALL.opened)[0], category=99)


def test_the_sample_bucket_is_what_its_settings_say(tmp_path: Path) -> None:
    sample = Path(__file__).parents[2] / "data/sample"
    settings = load_settings(sample, {})
    assert settings.bucket.url == "file://bucket"
    comment = (sample / "settings.yaml").read_text(encoding="utf-8").split('python -c "')[1].split('"\n')[0]
    call = "\n".join(line[4:] for line in comment.splitlines()).replace("data/sample/bucket", str(tmp_path))
    exec(compile(call, "settings.yaml", "exec"), {})
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.json")}
    there = {path.relative_to(sample / "bucket"): path for path in (sample / "bucket").rglob("*.json")}
    assert made.keys() == there.keys()
    assert [path for path in made if made[path] != there[path].read_bytes()] == []
    assert sum(map(len, made.values())) < 1_500_000
    first, last = settings.calendar.first_day, settings.calendar.last_day
    assert sorted({str(path)[5:15] for path in made}) == [f"{first:%Y/%m}/{n:02d}" for n in range(1, 6)]
    assert last == date(2025, 11, 5)
