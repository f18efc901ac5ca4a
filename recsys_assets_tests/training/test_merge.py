import itertools
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys_assets.ingest.validate import INTERACTIONS_SCHEMA, REJECTED_SCHEMA
from recsys_assets.training.merge import MergeCounts, load, merge
from recsys_assets_tests.graph import contents

ACTIONS = {"VIEW": 1.0, "PURCHASE": 5.0}
DAYS = ["2025-11-01", "2025-11-02", "2025-11-03"]
START = datetime(2025, 11, 1)
END_MS = int((START + timedelta(days=3)).replace(tzinfo=UTC).timestamp() * 1000)

# (day of the folder, user, item, action, hours from the start, category)
events = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["u1", "u2", "ü"]),
        st.sampled_from(["a", "b", "c", "d"]),
        st.sampled_from(["VIEW", "PURCHASE", "GONE"]),
        st.sampled_from([0, 5, 23, 24, 30, 47, 71, 72, 90]),
        st.sampled_from([None, "k1", "k2"]),
    ),
    max_size=25,
)
Event = tuple[int, str, str, str, int, str | None]


def write(folder: Path, found: list[Event]) -> list[Path]:
    """Interactions files as `interactions` makes them: unique within a day, with rejected rows in between."""
    folder.mkdir(exist_ok=True)
    paths = []
    for number, day in enumerate(DAYS):
        unique = {
            (user, item, action, hour): category for d, user, item, action, hour, category in found if d == number
        }
        kept = [
            {
                "user_id": user,
                "item_id": item,
                "action": action,
                "timestamp": START + timedelta(hours=hour),
                "category_id": category,
                "price": float(hour) or None,
                "source_key": "k",
                "record": 0,
                "off_day": False,
            }
            for (user, item, action, hour), category in unique.items()
        ]
        rejected = [{"reason": "malformed_json", "detail": "", "excerpt": "", "source_key": "k", "record": 9}]
        frame = pl.concat(
            [pl.DataFrame(kept, schema=INTERACTIONS_SCHEMA), pl.DataFrame(rejected, schema=REJECTED_SCHEMA)],
            how="diagonal",
        )
        paths.append(folder / f"{day}.parquet")
        frame.write_parquet(paths[-1])
    return paths


def merged(folder: Path, paths: list[Path], holdout: Path | None = None, window: str = DAYS[0]) -> MergeCounts:
    folder.mkdir()
    return merge(paths, holdout, ACTIONS, window, END_MS, folder)


def balanced(counts: MergeCounts) -> bool:
    parts = asdict(counts)
    whole = parts.pop("interactions")
    return whole == sum(value for name, value in parts.items() if name not in ("users", "items", "categories"))


number = itertools.count()
relaxed = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(found=events, window=st.sampled_from(DAYS))
@relaxed
def test_every_interaction_is_accounted_for(tmp_path: Path, found: list[Event], window: str) -> None:
    here = tmp_path / str(next(number))
    paths = write(here, found)
    counts = merged(here / "out", paths, window=window)
    unique = {(d, user, item, action, hour) for d, user, item, action, hour, _ in found}
    first: dict[tuple, int] = {}
    for d, *key in sorted(unique):
        first.setdefault(tuple(key), d)
    assert counts.interactions == len(unique)
    assert counts.repeated_across_days == len(unique) - len(first)
    inside = {key: d for key, d in first.items() if DAYS[d] >= window}
    assert counts.too_old == len(first) - len(inside)
    assert counts.ahead == sum(key[3] >= 72 for key in inside)
    assert counts.unmapped == sum(key[3] < 72 and key[2] == "GONE" for key in inside)
    assert counts.withheld == 0
    assert balanced(counts)
    data = load(here / "out", END_MS)
    learned = {
        (data.users[u], data.items.ids[i], data.actions[a], int(t))
        for u, i, a, t in zip(
            data.events.user, data.events.item, data.events.action, data.events.timestamp, strict=True
        )
    }
    start_ms = int(START.replace(tzinfo=UTC).timestamp() * 1000)
    assert learned == {
        (user, item, action, start_ms + hour * 3_600_000)
        for user, item, action, hour in inside
        if hour < 72 and action != "GONE"
    }
    assert len(learned) == len(data.events) == counts.kept
    assert data.events.weight.tolist() == [ACTIONS[data.actions[a]] for a in data.events.action]
    assert (counts.users, counts.items) == (len(data.users), len(data.items))


@given(found=events)
@relaxed
def test_ids_only_grow_and_the_order_of_the_files_does_not_matter(tmp_path: Path, found: list[Event]) -> None:
    here = tmp_path / str(next(number))
    paths = write(here, found)
    merged(here / "all", paths)
    merged(here / "turned", paths[::-1])
    assert contents(here / "all") == contents(here / "turned")
    whole = load(here / "all", END_MS)
    for days in (1, 2):
        merged(here / str(days), paths[:days])
        part = load(here / str(days), END_MS)
        assert list(whole.users[: len(part.users)]) == list(part.users)
        assert list(whole.items.ids[: len(part.items)]) == list(part.items.ids)
        assert list(whole.items.categories[: len(part.items.categories)]) == list(part.items.categories)


def test_the_earliest_day_keeps_an_event_uploaded_twice(tmp_path: Path) -> None:
    paths = write(tmp_path / "in", [(0, "u1", "a", "VIEW", 5, None), (2, "u1", "a", "VIEW", 5, None)])
    counts = merged(tmp_path / "out", paths, window=DAYS[1])
    assert (counts.interactions, counts.repeated_across_days, counts.too_old, counts.kept) == (2, 1, 1, 0)


def test_the_newest_category_and_price_count(tmp_path: Path) -> None:
    found: list[Event] = [
        (0, "u1", "a", "VIEW", 30, "new"),
        (1, "u1", "a", "VIEW", 5, "old"),
        (1, "u1", "a", "VIEW", 47, None),
        (1, "u1", "b", "VIEW", 0, None),
    ]
    merged(tmp_path / "out", write(tmp_path / "in", found))
    items = load(tmp_path / "out", END_MS).items
    assert items.ids == ["a", "b"]
    assert [items.categories[c] if c >= 0 else None for c in items.category] == ["new", None]
    assert items.price[0] == 47
    assert items.price[1] != items.price[1], "unknown"


def test_a_held_out_event_is_withheld_wherever_it_lies(tmp_path: Path) -> None:
    found: list[Event] = [
        (0, "u1", "a", "VIEW", 5, None),
        (1, "u1", "a", "VIEW", 5, None),
        (1, "u1", "a", "VIEW", 30, None),
        (1, "u2", "a", "VIEW", 5, None),
    ]
    paths = write(tmp_path / "in", found)
    frame = pl.read_parquet(paths[0]).filter(pl.col("reason").is_null())
    frame.select("user_id", "item_id", "action", "timestamp").write_parquet(tmp_path / "v1.parquet")
    counts = merged(tmp_path / "out", paths, tmp_path / "v1.parquet")
    assert (counts.kept, counts.withheld, counts.repeated_across_days) == (2, 1, 1)
    assert balanced(counts)


def test_no_days_at_all(tmp_path: Path) -> None:
    counts = merged(tmp_path / "out", [])
    assert not any(asdict(counts).values())
    data = load(tmp_path / "out", END_MS)
    assert (len(data.events), len(data.users), len(data.items)) == (0, 0, 0)
    assert data.actions == list(ACTIONS)
