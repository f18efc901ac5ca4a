"""A large day cleaned in portions, and small days cleaned together, are days cleaned each at once."""

import json
import random
from dataclasses import fields
from functools import partial
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from recsys_assets.ingest import validate
from recsys_assets.ingest.assets import _Together, clean_day
from recsys_assets.ingest.rules import apply_rules
from recsys_assets.ingest.validate import CleanResult, ConservationError, clean, clean_days, clean_large, is_large
from recsys_assets.settings import IngestSettings
from recsys_assets.storage.warehouse import scratch
from recsys_assets_tests.graph import INGEST, make_home, run
from recsys_assets_tests.ingest.test_validate import DAY, NOON, SETTINGS, raw, record

RULES = (
    IngestSettings(),
    IngestSettings(session_gap_minutes=0.0001),
    IngestSettings(max_events_per_hour=4),
)


def objects(seed: int, count: int = 40, hot: bool = False) -> dict[str, bytes]:
    """Arrays and objects of lines with duplicates, ties, odd ids and defects; a `hot` user has half of all events."""
    rng = random.Random(seed)
    found = {}
    for number in range(count):
        texts = []
        for _ in range(rng.randrange(25)):
            users = ["hot"] if hot and rng.random() < 0.5 else ["ä", "b", "B", "10", "9", f"u{rng.randrange(20)}"]
            far = rng.choice([0, 0, 0, 0, -(2**33)])  # beyond what one integer of user and moment holds
            texts.append(
                record(
                    user_id=json.dumps(rng.choice(users)),
                    item_id=rng.choice(['"x"', '"é"', "7", f'"i{rng.randrange(5)}"', "7.5"]),
                    timestamp=str(NOON + far + rng.randrange(6)),
                    action=rng.choice(['"VIEW"', '"PURCHASE"', '"view"', '"WISH"']),
                    price=rng.choice(["1", "2.5", "null", "-1"]),
                )
            )
        texts += ["5"] * (rng.random() < 0.2)
        form = rng.choice(["array", "array", "lines", "cut"])
        body = ("\n" if form == "lines" else ",").join(texts)
        content = {"array": f"[{body}]", "lines": body, "cut": f'[{body}{"," if texts else ""}{{"times'}[form]
        found[f"{rng.randrange(10)}/{number}ü.json"] = content.encode()
    return found


def both(
    folder: Path, table: pa.Table, rules: IngestSettings, rows: int = 3
) -> tuple[CleanResult, CleanResult, list[pl.DataFrame]]:
    """The result at once; the result in portions; the rows that were written then."""
    path, spill, written = folder / "raw.parquet", folder / "spill", list[pl.DataFrame]()
    pq.write_table(table, path, row_group_size=rows)
    spill.mkdir()
    with duckdb.connect() as connection:
        assert is_large(path)
        whole = apply_rules(clean(connection, table, DAY, SETTINGS), rules)
        apply = partial(apply_rules, settings=rules)
        result = clean_large(connection, path, DAY, SETTINGS, apply, written.append, spill)
        assert connection.execute("SHOW TABLES").fetchall() == []
    return whole, result, written


@pytest.fixture
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_TEXT_AT_ONCE", 6000), ("_SPILL_GROUP", 4), ("_SPILL_RANGE", 60)):
        monkeypatch.setattr(validate, name, value)


@pytest.mark.usefixtures("small_portions")
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), rules=st.sampled_from(RULES), hot=st.booleans(), rows=st.sampled_from([1, 4, 9]))
def test_portions_are_the_whole(
    tmp_path_factory: pytest.TempPathFactory, seed: int, rules: IngestSettings, hot: bool, rows: int
) -> None:
    entries = list(objects(seed, hot=hot).items())
    random.Random(seed).shuffle(entries)  # raw_events is in the order of keys; nothing relies on it
    whole, result, written = both(tmp_path_factory.mktemp("day"), raw(dict(entries)), rules, rows)
    for name in ("records_in", "kept", "duplicates", "rejections", "off_day", "actions", "users", "items"):
        assert getattr(result, name) == getattr(whole, name), name
    assert_frame_equal(result.by_key, whole.by_key)
    events = pl.concat([each for each in written if "user_id" in each.columns])
    rejected = pl.concat([each for each in written if "reason" in each.columns])
    assert_frame_equal(events, whole.interactions)
    assert_frame_equal(rejected, whole.rejected)
    first = whole.rejected.unique("reason", keep="first", maintain_order=True)
    assert_frame_equal(result.rejected, first)
    assert len(written) > 4
    kinds = ["user_id" in each.columns for each in written]
    assert kinds == sorted(kinds, reverse=True), "the events come first"


@pytest.mark.usefixtures("small_portions")
def test_a_record_lost_between_portions_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lossy(self: validate._Spill) -> object:
        return (rows[1:] for rows in ranges(self))

    ranges = validate._Spill.ranges
    monkeypatch.setattr(validate._Spill, "ranges", lossy)
    with pytest.raises(ConservationError, match="do not add up"):
        both(tmp_path, raw(objects(1)), IngestSettings())


@pytest.mark.usefixtures("small_portions")
def test_a_key_in_two_portions_is_refused(tmp_path: Path) -> None:
    table = pa.concat_tables([raw(objects(2)), raw(objects(2))])
    with pytest.raises(ValueError, match="twice"):
        both(tmp_path, table, IngestSettings())


def test_a_large_day_in_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The partition holds the same rows and says the same, leaves nothing behind, and has the same bytes every time."""
    pipeline = make_home(tmp_path, ingest={"max_events_per_hour": 30})
    for number, content in enumerate(objects(5, 110, hot=True).values()):
        pipeline.bucket.put(f"logs/2025/12/01/{number:03}.json", content)
    run(pipeline, INGEST, [DAY])
    path = pipeline.tables.path("interactions", DAY)
    small, info, expected = path.read_bytes(), pipeline.tables.info("interactions", DAY), pl.read_parquet(path)
    assert info is not None
    assert "too_many_events" in info["counts"]["rejected"]

    for name, value in (("_TEXT_AT_ONCE", 0), ("_SPILL_GROUP", 16), ("_SPILL_RANGE", 200)):
        monkeypatch.setattr(validate, name, value)
    assert is_large(pipeline.tables.path("raw_events", DAY))
    found = []
    for _ in range(2):
        path.unlink()
        run(pipeline, ["interactions"], [DAY])
        found.append(path.read_bytes())
        assert_frame_equal(pl.read_parquet(path), expected)
        assert pipeline.tables.info("interactions", DAY) == info
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert found[0] == found[1] != small


# ------------------------------------------------------------------------------------------ small days by one statement


@settings(max_examples=6, deadline=None)
@given(seeds=st.lists(st.integers(0, 10**6), min_size=1, max_size=4))
def test_days_cleaned_together_are_days_cleaned_alone(seeds: list[int]) -> None:
    """Also where keys are the same on several days, or a day is empty."""
    raws = {f"2025-12-{2 + at:02}": raw(objects(seed, 8)) for at, seed in enumerate(seeds)}
    raws["2025-12-01"] = raw({})
    with duckdb.connect() as connection:
        together = dict(clean_days(connection, raws, SETTINGS))
        assert list(together) == sorted(raws)
        for day, result in together.items():
            alone = clean(connection, raws[day], day, SETTINGS)
            for field in fields(CleanResult):
                found, expected = getattr(result, field.name), getattr(alone, field.name)
                same = found.equals(expected) if isinstance(found, pl.DataFrame) else found == expected
                assert same, (day, field.name)


def test_a_raw_day_replaced_while_others_are_cleaned_is_read_again(tmp_path: Path) -> None:
    pipeline = make_home(tmp_path, calendar={"first_day": "2025-12-01"})
    days = [f"2025-12-{number:02}" for number in range(1, 5)]
    for number, day in enumerate(days):
        pipeline.bucket.put(f"logs/{day.replace('-', '/')}/a.json", f"[{record(item_id=str(number))}]".encode())
    run(pipeline, ["raw_events"], days)
    with scratch(pipeline.settings.store) as connection:
        together = _Together(connection, pipeline, days)
        clean_day(connection, pipeline, days[0], together=together)
        pipeline.bucket.put("logs/2025/12/02/b.json", record(item_id='"new"').encode())
        run(pipeline, ["raw_events"], days[1:2])
        pipeline.tables.path("raw_events", days[3]).write_bytes(b"damaged")
        for day in days[1:3]:
            clean_day(connection, pipeline, day, together=together)
    items = [set(pipeline.tables.read("interactions", day)["item_id"]) for day in days[:3]]
    assert items == [{"0"}, {"1", "new"}, {"2"}]


def test_a_day_that_cannot_be_read_does_not_stop_the_days_before_it(tmp_path: Path) -> None:
    pipeline = make_home(tmp_path, calendar={"first_day": "2025-12-01"})
    days = [f"2025-12-{number:02}" for number in range(1, 4)]
    for number, day in enumerate(days):
        pipeline.bucket.put(f"logs/{day.replace('-', '/')}/a.json", f"[{record(item_id=str(number))}]".encode())
    run(pipeline, ["raw_events"], days)
    path = pipeline.tables.path("raw_events", days[2])
    content = path.read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    path.write_bytes(content[:4] + bytes(footer - 4) + content[footer:])
    ran = run(pipeline, ["interactions"], days, must=False)
    assert not ran.result.success
    assert pipeline.tables.days("interactions") == days[:2]
