import gzip
import json
import math
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys_assets.ingest import validate
from recsys_assets.ingest.decode import raw_table
from recsys_assets.ingest.validate import (
    INTERACTIONS_SCHEMA,
    REJECTED_SCHEMA,
    CleanResult,
    ConservationError,
    clean,
)
from recsys_assets.settings import Settings
from recsys_assets.storage.bucket import LogObject
from recsys_assets_tests.ingest.reference import judge

DAY = "2025-12-01"
NOON = 1_764_590_400_000  # 2025-12-01 12:00 UTC
MODIFIED = datetime(2025, 12, 1, 23, tzinfo=UTC)
LIMIT_MS = int(datetime(2025, 12, 4, tzinfo=UTC).timestamp()) * 1000
SETTINGS = Settings(home=Path("/nowhere"))
GOOD = {"timestamp": str(NOON), "item_id": '"i1"', "user_id": '"u1"', "action": '"VIEW"'}


def raw(objects: dict[str, bytes], max_bytes: int = 1 << 24) -> pa.Table:
    return raw_table(((LogObject(k, "e", len(v), MODIFIED), v) for k, v in objects.items()), max_bytes)


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        yield connection


def cleaned(objects: dict[str, bytes], settings: Settings = SETTINGS, day: str = DAY) -> CleanResult:
    with duckdb.connect() as connection:
        return clean(connection, raw(objects), day, settings)


def record(**fields: str | None) -> str:
    """The text of a record; each value is JSON text, None leaves the field out."""
    texts = {**GOOD, **fields}
    return "{" + ", ".join(f'"{name}": {text}' for name, text in texts.items() if text is not None) + "}"


def forms(text: str) -> list[bytes]:
    """The same record, number 0, on the fast path and on each slow one."""
    texts = [f"[{text}]", f'[{text}, {{"broken": tru}}]', f'{text}\n{{"a": 1}}', f'[{text}, {{"a']
    return [each.encode() for each in texts]


def outcomes(texts: list[str]) -> list[list[Any]]:
    """What becomes of each record: ['kept', values of the interaction] or [reason, detail]; the same in every form.

    All go through one cleaning, each with a user of its own in place of u1, so that none is a duplicate.
    """
    objects = {}
    for number, text in enumerate(texts):
        for form, content in enumerate(forms(text)):
            objects[f"{number}.{form}"] = content.replace(b"u1", b"u%d.%d" % (number, form))
    result = cleaned(objects)
    found: dict[str, list[Any]] = {}
    for row in result.interactions.filter(pl.col("record") == 0).rows(named=True):
        found[row["source_key"]] = ["kept", {**row, "user_id": "", "source_key": ""}]
    for row in result.rejected.filter(pl.col("record") == 0).rows(named=True):
        found[row["source_key"]] = [row["reason"], row["detail"]]
    for key, outcome in found.items():
        assert outcome == found[key.split(".")[0] + ".0"], (key, objects[key])
    return [found[f"{number}.0"] for number in range(len(texts))]


# ------------------------------------------------------------------------------------------- the table in the docstring


KEPT: list[tuple[dict[str, str | None], dict[str, Any]]] = [
    ({}, {"item_id": "i1", "action": "VIEW", "category_id": None, "price": None}),
    ({"item_id": "31"}, {"item_id": "31"}),
    ({"item_id": "31.0"}, {"item_id": "31"}),
    ({"item_id": '"31"'}, {"item_id": "31"}),
    ({"item_id": '" 31\\t"'}, {"item_id": "31"}),
    ({"item_id": "-0"}, {"item_id": "0"}),
    ({"item_id": "-0.0"}, {"item_id": "0"}),
    ({"item_id": "1e3"}, {"item_id": "1000"}),
    ({"item_id": '"31.0"'}, {"item_id": "31.0"}),
    ({"item_id": "9007199254740991.0"}, {"item_id": "9007199254740991"}),
    ({"item_id": "123456789012345678901234567890"}, {"item_id": "123456789012345678901234567890"}),
    ({"item_id": '"true"'}, {"item_id": "true"}),
    ({"item_id": '"{}"'}, {"item_id": "{}"}),
    ({"item_id": '"a\\"b\\\\c\\u00e9\\ud83d\\ude00"'}, {"item_id": 'a"b\\cé😀'}),
    ({"item_id": '"\\u0000"'}, {"item_id": "\0"}),
    ({"item_id": '"' + "é" * 256 + '"'}, {"item_id": "é" * 256}),
    ({"timestamp": f"{NOON}.0"}, {"timestamp": datetime(2025, 12, 1, 12)}),
    ({"timestamp": f'" {NOON} "'}, {"timestamp": datetime(2025, 12, 1, 12)}),
    ({"timestamp": "1.7645904e12"}, {"timestamp": datetime(2025, 12, 1, 12)}),
    ({"timestamp": str(NOON + 1)}, {"timestamp": datetime(2025, 12, 1, 12, 0, 0, 1000)}),
    ({"timestamp": "946684800000"}, {"timestamp": datetime(2000, 1, 1), "off_day": True}),
    ({"timestamp": str(LIMIT_MS - 1)}, {"off_day": True}),
    ({"timestamp": "1764547199999"}, {"off_day": True}),
    ({"timestamp": "1764547200000"}, {"off_day": False}),
    ({"timestamp": "1764633599999"}, {"off_day": False}),
    ({"timestamp": "1764633600000"}, {"off_day": True}),
    ({"action": '"view"'}, {"action": "VIEW"}),
    ({"action": '" Add_Cart "'}, {"action": "ADD_CART"}),
    ({"action": '"PURCH\\u0041SE"'}, {"action": "PURCHASE"}),
    ({"category_id": "null"}, {"category_id": None}),
    ({"category_id": '""'}, {"category_id": None}),
    ({"category_id": "7"}, {"category_id": "7"}),
    ({"price": "12.5"}, {"price": 12.5}),
    ({"price": '"12.50"'}, {"price": 12.5}),
    ({"price": "0.1"}, {"price": 0.1}),
    ({"price": "1e-7"}, {"price": 1e-7}),
    ({"price": "123456789012345678901234567890"}, {"price": 123456789012345678901234567890.0}),
    ({"price": "null"}, {"price": None}),
    ({"price": '" "'}, {"price": None}),
    ({"unknown": '{"timestamp": [1, {"x": "}"}]}'}, {"item_id": "i1"}),
    ({"unknown": "[" * 500 + "]" * 500}, {"item_id": "i1"}),
    ({"unknown": '"\\u0000"'}, {"item_id": "i1"}),
]

REJECTED: list[tuple[dict[str, str | None], str, str]] = (
    [
        *[({name: None}, f"missing_{name}", "absent") for name in GOOD],
        *[({name: "null"}, f"missing_{name}", "null") for name in GOOD],
        *[({name: "true"}, f"wrong_type_{name}", "true") for name in GOOD],
        *[({name: "{}"}, f"wrong_type_{name}", "{}") for name in [*GOOD, "category_id", "price"]],
        *[({name: "[1]"}, f"wrong_type_{name}", "[1]") for name in [*GOOD, "category_id", "price"]],
        ({"item_id": "31.5"}, "wrong_type_item_id", "31.5"),
        ({"item_id": "9007199254740992.0"}, "wrong_type_item_id", "9007199254740992.0"),
        ({"item_id": "1e30"}, "wrong_type_item_id", "1e30"),
        ({"item_id": "NaN"}, "wrong_type_item_id", "NaN"),
        ({"item_id": '""'}, "out_of_range_item_id", "empty"),
        ({"user_id": '" \\n"'}, "out_of_range_user_id", "empty"),
        ({"user_id": '"' + "x" * 257 + '"'}, "out_of_range_user_id", "256"),
        ({"category_id": '"' + "x" * 257 + '"'}, "out_of_range_category_id", "256"),
        ({"user_id": "1" * 257}, "out_of_range_user_id", "256"),
        ({"category_id": "false"}, "wrong_type_category_id", "false"),
        ({"timestamp": f"{NOON}.5"}, "wrong_type_timestamp", ".5"),
        ({"timestamp": f'"{NOON}.0"'}, "bad_timestamp", "text given for milliseconds"),
        ({"timestamp": '"2025-12-01T12:00:00Z"'}, "bad_timestamp", "text given for milliseconds: \"2025-12-01T"),
        ({"timestamp": '"0x19adc0ee800"'}, "bad_timestamp", "text"),
        ({"timestamp": '"1_764_590_400_000"'}, "bad_timestamp", "text"),
        ({"timestamp": '""'}, "bad_timestamp", "text"),
        ({"timestamp": str(NOON // 1000)}, "bad_timestamp", "seconds given for milliseconds"),
        ({"timestamp": f"{NOON // 1000}.0"}, "bad_timestamp", "seconds given for milliseconds"),
        ({"timestamp": f'"{NOON // 1000}"'}, "bad_timestamp", "seconds given for milliseconds"),
        ({"timestamp": f"{NOON}000"}, "bad_timestamp", "microseconds given for milliseconds"),
        ({"timestamp": f"{NOON}000000"}, "bad_timestamp", "nanoseconds given for milliseconds"),
        ({"timestamp": "946684799999"}, "out_of_range_timestamp", "before 2000-01-01"),
        ({"timestamp": str(LIMIT_MS)}, "out_of_range_timestamp", "2025-12-04"),
        ({"timestamp": "0"}, "out_of_range_timestamp", "0 is"),
        ({"timestamp": "-5"}, "out_of_range_timestamp", "-5 is"),
        ({"timestamp": "9" * 30}, "out_of_range_timestamp", "999"),
        ({"action": '"WISH"'}, "unknown_action", "WISH"),
        ({"action": '""'}, "unknown_action", '""'),
        ({"action": "1"}, "wrong_type_action", "1"),
        ({"price": "-0.01"}, "out_of_range_price", "-0.01"),
        ({"price": "NaN"}, "out_of_range_price", "NaN"),
        ({"price": "Infinity"}, "out_of_range_price", "Infinity"),
        ({"price": "-Infinity"}, "out_of_range_price", "Infinity"),
        ({"price": "1e400"}, "out_of_range_price", "1e400"),
        ({"price": '"-1"'}, "out_of_range_price", "-1"),
        ({"price": "true"}, "wrong_type_price", "true"),
        ({"price": '"12,50"'}, "wrong_type_price", "12,50"),
        ({"price": '"nan"'}, "wrong_type_price", "nan"),
        ({"price": '"1_000"'}, "wrong_type_price", "1_000"),
        ({"item_id": '"\\ud800"'}, "malformed_json", "not valid JSON"),
        ({"unknown": '"\\udc00x"'}, "malformed_json", "not valid JSON"),
        ({"item_id": '"a\tb"'}, "malformed_json", "not valid JSON"),
        ({"item_id": "01"}, "malformed_json", "not valid JSON"),
        ({"item_id": "tru"}, "malformed_json", "not valid JSON"),
        ({"item_id": "'x'"}, "malformed_json", "not valid JSON"),
        # several defects: the first counts
        ({"timestamp": "{}", "item_id": None, "price": "-1"}, "wrong_type_timestamp", "{}"),
        ({"user_id": None, "action": "1", "category_id": "true"}, "missing_user_id", "absent"),
        ({"category_id": "true", "price": "-1"}, "wrong_type_category_id", "true"),
    ]
)  # fmt: skip


def test_every_outcome_of_the_table() -> None:
    found = outcomes([record(**fields) for fields, *_ in [*KEPT, *REJECTED]])
    for (fields, kept), (result, values) in zip(KEPT, found[: len(KEPT)], strict=True):
        assert result == "kept", (fields, result, values)
        assert values | kept == values, fields
    for (fields, reason, says), (result, detail) in zip(REJECTED, found[len(KEPT) :], strict=True):
        assert result == reason, (fields, result, detail)
        assert says in detail, (fields, detail)


def test_not_an_object() -> None:
    texts = ["5", '"x"', "null", "true", "[1]", "[]", '"{}"', "1e400"]
    arrays = cleaned({"a.json": f"[{', '.join(texts)}]".encode(), "b.json": f"[{', '.join(texts)}, tru]".encode()})
    assert arrays.rejections == {"not_an_object": 16, "malformed_json": 1}
    assert arrays.rejected["excerpt"].to_list() == [*texts, *texts, "tru"]
    lines = cleaned({"c.ndjson": "\n".join([record(), *texts]).encode()})
    assert (lines.kept, lines.rejections) == (1, {"not_an_object": 8})


def test_negative_zero_is_zero() -> None:
    assert math.copysign(1, outcomes([record(price="-0.0")])[0][1]["price"]) == 1


def test_the_first_of_a_field_given_twice_counts() -> None:
    text = record()[:-1] + ', "item_id": "second", "price": 1, "price": "bad"}'
    _, values = outcomes([text])[0]
    assert (values["item_id"], values["price"]) == ("i1", 1.0)


def test_deeply_nested_records_do_not_crash_and_cost_nobody_else() -> None:
    deep = "[" * 100_000
    for content in (f"[{record()}, {deep}", f"[{deep}{']' * 100_000}, {record()}]", f"{record()}\n{deep}\n"):
        result = cleaned({"k.json": content.encode()})
        assert (result.kept, sum(result.rejections.values())) == (1, 1)


def test_actions_that_differ_only_in_case_are_told_apart_exactly_or_not_at_all() -> None:
    settings = Settings(home=Path("/"), actions={"View": 1, "VIEW": 2, "it's": 3}, recommend={"bought_actions": []})  # type: ignore[arg-type]
    texts = [
        record(action=json.dumps(name), user_id=str(number))
        for number, name in enumerate(["View", "VIEW", "view", "IT'S"])
    ]
    result = cleaned({"k.json": f"[{','.join(texts)}]".encode()}, settings)
    assert result.actions == {"View": 1, "VIEW": 1, "it's": 1}
    assert result.rejected["record"].to_list() == [2]
    assert result.rejections == {"unknown_action": 1}


def test_bytes_that_are_no_utf8_cost_only_their_record() -> None:
    content = (
        b"[" + record(item_id='"1"').encode() + b', {"item_id": "\xff\xfe"}, ' + record(item_id='"2"').encode() + b"]"
    )
    for text in (content, content[1:-1].replace(b"}, {", b"}\n{")):
        result = cleaned({"k.json": text})
        assert result.interactions["record"].to_list() == [0, 2]
        assert result.rejected.rows() == [
            ("malformed_json", "not valid JSON", '{"item_id": "\\xFF\\xFE"}', "k.json", 1)
        ]


def test_excerpts_are_capped_and_details_too() -> None:
    long = record(item_id='{"x": "' + "y" * 5000 + '"}')
    for content in (f"[{long}]", f"{long}\n{long}"):
        row = cleaned({"k.json": content.encode()}).rejected.row(0, named=True)
        assert len(row["excerpt"]) == 200
        assert len(row["detail"]) < 200


def test_time_zone_and_daylight_saving_decide_the_local_day() -> None:
    settings = Settings(home=Path("/"), calendar={"time_zone": "Europe/Paris"})  # type: ignore[arg-type]
    start = int(datetime(2025, 10, 25, 22, tzinfo=UTC).timestamp()) * 1000  # 2025-10-26 has 25 hours in Paris
    moments = [start - 1, start, start + 25 * 3_600_000 - 1, start + 25 * 3_600_000]
    content = ",".join(record(timestamp=str(moment)) for moment in moments)
    result = cleaned({"k.json": f"[{content}]".encode()}, settings, "2025-10-26")
    assert result.interactions["off_day"].to_list() == [True, False, False, True]
    assert result.off_day == 2


# ------------------------------------------------------------------------------------------------------- whole objects


def test_a_cut_object_gives_its_records_and_one_rejection() -> None:
    whole = f"[{','.join(record(item_id=str(number)) for number in range(100))}]".encode()
    lines = b"\n".join(record(item_id=str(number)).encode() for number in range(100))
    packed = gzip.compress(random.Random(1).randbytes(0) + lines, mtime=0)
    result = cleaned({"a.json": whole[:5000], "b.ndjson": lines[:5000], "c.gz": packed[:-20], "d.gz": b"\x1f\x8bxx"})
    rejected = dict(result.by_key.select("key", "rejected").iter_rows())
    assert rejected == {"a.json": 1, "b.ndjson": 1, "c.gz": 1, "d.gz": 1}
    assert result.rejections == {"malformed_json": 4}
    kept = dict(result.by_key.select("key", pl.col("kept") + pl.col("duplicates")).iter_rows())
    assert kept["a.json"] == whole[:5000].count(b"}")
    assert kept["b.ndjson"] == lines[:5000].count(b"}")
    assert kept["c.gz"] > 90
    assert kept["d.gz"] == 0


def test_a_too_large_object_is_one_rejection() -> None:
    objects = {"big.json": f"[{record()}{' ' * 5000}]".encode(), "small.json": f"[{record()}]".encode()}
    with duckdb.connect() as connection:
        result = clean(connection, raw(objects, 4000), DAY, SETTINGS)
    assert result.rejected.rows() == [
        ("too_large", "more than 4000 bytes of text, the limit of bucket.max_object_mb", "", "big.json", 0)
    ]
    assert result.kept == 1


def test_an_empty_day_and_empty_objects() -> None:
    for objects in ({}, {"a.json": b"", "b.json": b"[]", "c.ndjson": b"\n\n"}):
        result = cleaned(objects)
        assert (result.records_in, result.kept, result.duplicates, result.rejections) == (0, 0, 0, {})
        assert result.interactions.schema == INTERACTIONS_SCHEMA
        assert result.rejected.schema == REJECTED_SCHEMA
        assert result.by_key["key"].to_list() == sorted(objects)


def test_duplicates_keep_the_first_by_key_and_record() -> None:
    a, b = record(), record(item_id='"i2"')
    same = record(item_id='" i1 "', price="5")
    result = cleaned(
        {"ä.json": f"[{a}]".encode(), "z.json": f"[{b},{a},{same}]".encode(), "b.ndjson": f"{same}\n{a}".encode()}
    )
    assert result.interactions.select("item_id", "source_key", "record", "price").rows() == [
        ("i1", "b.ndjson", 0, 5.0),
        ("i2", "z.json", 0, None),
    ]
    assert result.duplicates == 4
    assert result.by_key["duplicates"].to_list() == [1, 2, 1]
    assert (result.users, result.items, result.actions["VIEW"]) == (1, 2, 2)


def test_moments_far_apart_are_sorted_to_the_millisecond() -> None:
    """User, moment and row do not fit into one integer then: its last bits of the moment are those of others."""
    rng = random.Random(4)
    events = [(f"u{rng.randrange(4500)}", NOON - rng.choice([0, 2, 4, 800_000_000_000])) for _ in range(9000)]
    result = cleaned(
        {"a": f"[{','.join(record(user_id=json.dumps(user), timestamp=str(ms)) for user, ms in events)}]".encode()}
    )
    rows = result.interactions.select("user_id", pl.col("timestamp").dt.epoch("ms"), "record").rows()
    first = {event: record for record, event in reversed(list(enumerate(events)))}
    assert rows == [(*event, first[event]) for event in sorted(first)]
    assert result.duplicates == len(events) - len(first)


@pytest.mark.parametrize("letters", ["0123456789", "ab", "aé\0", "\0"])
def test_users_are_ranked_by_their_bytes(letters: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate, "_NUMBERED", 16)
    for seed in range(60):
        rng = random.Random(seed)
        front, most = rng.choice(["", "user_", "é"]), rng.choice([3, 8, 9, 12])
        texts = [front + "".join(rng.choices(letters, k=rng.randrange(most + 1))) for _ in range(rng.randrange(50))]
        distinct = sorted({text.encode() for text in texts})
        ranks = validate._ranks(pl.Series(texts, dtype=pl.String()))
        assert ranks.tolist() == [distinct.index(text.encode()) for text in texts]


def test_a_partition_has_the_same_columns_with_and_without_rejections() -> None:
    one, none = (cleaned({"a": f"[{record()}, {other}]".encode()}).rows() for other in ("5", record(price="1")))
    assert one.schema == none.schema
    assert none.select(one.columns[-3:]).null_count().row(0) == (1, 1, 1)
    assert one["reason"].to_list() == [None, "not_an_object"]


def test_order_of_rows_and_file_or_table_make_no_difference(tmp_path: Path) -> None:
    rng = random.Random(3)
    objects = {}
    for number in range(60):
        texts = [
            record(item_id=str(rng.randrange(9)), user_id=str(rng.randrange(9)), timestamp=str(NOON + rng.randrange(5)))
            for _ in range(rng.randrange(40))
        ]
        objects[f"f{number:02}[x]'*.json"] = (
            f"[{','.join(texts)}]" if number % 3 else "\n".join([*texts, "x"])
        ).encode()
    shuffled = list(objects.items())
    rng.shuffle(shuffled)
    path = tmp_path / "it's [odd]*.parquet"
    pq.write_table(raw(dict(shuffled)), path, row_group_size=7)
    with duckdb.connect() as connection:
        first = clean(connection, raw(objects), DAY, SETTINGS)
        second = clean(connection, path, DAY, SETTINGS)
        assert connection.execute("SHOW TABLES").fetchall() == []
    assert first.rejected.equals(second.rejected)
    assert first.duplicates == second.duplicates > 0
    for name, result in (("a", first), ("b", second)):
        result.interactions.write_parquet(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    rows = first.interactions.select("user_id", "timestamp", "item_id", "action").rows()
    assert rows == sorted(set(rows))


def test_a_lost_record_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    lossy = validate._FROM_ARRAYS + " WHERE record <> 1"
    monkeypatch.setattr(validate, "_FROM_ARRAYS", lossy)
    odd = record(item_id='" 2"')  # the blank leaves it to the SQL
    content = f"[{record()},{odd}]".encode()
    with pytest.raises(ConservationError, match=r"1 objects.*'b\.json'.*2 records in.*1 kept"):
        cleaned({"a.json": f"[{record()}]".encode(), "b.json": content.replace(b"u1", b"u2")})


def test_a_key_in_two_rows_is_refused() -> None:
    with duckdb.connect() as connection, pytest.raises(ValueError, match="twice"):
        clean(connection, pa.concat_tables([raw({"a": b"[]"}), raw({"a": b"[]"})]), DAY, SETTINGS)


# ------------------------------------------------------------------------------------- against a slow, separate reading


ids = st.sampled_from(
    ['"a"', '"b"', "1", '"1"', "1.0", '" 1"', "-7", "31.5", "true", "null", '""', "{}", "[]", "1e2", "1e30",
     '"\\u00e9"', '"é"', '"\\ud800"', "9" * 30, "NaN", '"x\\"y"', '"\\\\"', "12345678901234567.5",
     '"' + "z" * 257 + '"']
)  # fmt: skip
moments = st.sampled_from(
    [str(NOON), str(NOON + 1), f'"{NOON}"', f"{NOON}.0", f"{NOON}.5", str(NOON // 1000), f"{NOON}000", f"{NOON}999999",
     "0", "null", "true", '"x"', '""', "1.764547200000e12", str(LIMIT_MS), "946684800", "4102444801", "-1", "9" * 25,
     "Infinity"]
)  # fmt: skip
action_names = st.sampled_from(
    ['"VIEW"', '"view"', '"PURCHASE "', '"ADD_CART"', '"BUY"', "1", "null", '"\\u0056IEW"', "[]"]
)
prices = st.sampled_from(
    [
        "1",
        "1.5",
        '"1.5"',
        '"1e2"',
        '" 3. "',
        "-1",
        "NaN",
        "null",
        '""',
        "true",
        '"abc"',
        "1e400",
        "0",
        "-0.0",
        "{}",
        '".5"',
        "1e-400",
    ]
)
unknown = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
).map(json.dumps)


@st.composite
def record_texts(draw: st.DrawFn) -> str:
    """The text of one element: mostly a record with few defects."""
    kind = draw(st.integers(0, 19))
    if kind == 0:
        return draw(st.sampled_from(["5", "null", '"text"', "[1, 2]", "{}", "true", "[]"]))
    if kind == 1:
        return draw(
            st.sampled_from(['{"timestamp": tru}', '{"a": 01}', '{"a": 1 "b": 2}', '{"a"}', "{'a': 1}", "{,}", "nope"])
        )
    fields = [("timestamp", str(NOON)), ("item_id", draw(ids)), ("user_id", '"u"'), ("action", '"VIEW"')]
    strategies = {"timestamp": moments, "item_id": ids, "user_id": ids, "action": action_names, "price": prices}
    for name in draw(st.lists(st.sampled_from([*strategies, "category_id", "unknown"]), max_size=2)):
        fields.append((name, draw({**strategies, "category_id": ids, "unknown": unknown}[name])))
    fields = draw(st.permutations(fields))
    return "{" + ",".join(f'"{name}":{text}' for name, text in fields[draw(st.integers(0, 9)) == 0 :]) + "}"


@st.composite
def files(draw: st.DrawFn) -> tuple[bytes, list[str | None]]:
    """A file and the texts of its records; None is what a cut leaves: one rejection."""
    texts: list[str | None] = list(draw(st.lists(record_texts(), max_size=6)))
    form = draw(st.sampled_from(["array", "array", "lines", "cut", "gzip"]))
    if form == "lines" and (
        not any(text and text.startswith("{") and text.endswith("}") for text in texts)
        or any(text and text.startswith("[") for text in texts)  # a line that is an array holds its elements' records
    ):
        form = "array"
    body = ("\n" if form == "lines" else ",").join(text for text in texts if text is not None)
    if form == "lines":
        return body.encode(), texts
    if form == "cut":
        return f'[{body}{"," if texts else ""}{{"timestamp": 17'.encode(), [*texts, None]
    content = f"[{body}]".encode()
    return (gzip.compress(content) if form == "gzip" else content), texts


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(day=st.lists(files(), max_size=8))
def test_every_record_is_judged_as_a_slow_reading_judges_it(
    connection: duckdb.DuckDBPyConnection, day: list[tuple[bytes, list[str | None]]]
) -> None:
    result = clean(connection, raw({f"{number}.json": each for number, (each, _) in enumerate(day)}), DAY, SETTINGS)
    kept: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    rejected, duplicates = [], 0
    for number, (_, texts) in enumerate(day):
        for index, text in enumerate(texts):
            reason, event = ("malformed_json", None) if text is None else judge(text, LIMIT_MS)
            if event is None:
                rejected.append((f"{number}.json", index, reason))
            elif event.identity in kept:
                duplicates += 1
            else:
                kept[event.identity] = (event.category_id, event.price, f"{number}.json", index)
    found = result.interactions.with_columns(pl.col("timestamp").dt.epoch("ms")).drop("off_day")
    columns = ["user_id", "item_id", "action", "timestamp", "category_id", "price", "source_key", "record"]
    expected = sorted((*event, *rest) for event, rest in kept.items())
    assert sorted(found.select(columns).rows(), key=lambda row: row[:4]) == sorted(expected, key=lambda row: row[:4])
    assert result.rejected.select("source_key", "record", "reason").rows() == rejected
    assert result.duplicates == duplicates
    assert result.records_in == sum(len(texts) for _, texts in day)
    assert result.records_in == result.kept + result.duplicates + sum(result.rejections.values())


@st.composite
def mutated(draw: st.DrawFn) -> tuple[list[bytes], bytes]:
    """The texts of some good records, a line each or in an array, and the file with a few bytes changed."""
    texts = [record(item_id=str(number)).encode() for number in range(draw(st.integers(1, 5)))]
    content = draw(st.sampled_from([b"\n".join(texts), b"[" + b",".join(texts) + b"]"]))
    for _ in range(draw(st.integers(1, 3))):
        at, removed = draw(st.integers(0, len(content))), draw(st.integers(0, 4))
        new = draw(st.binary(max_size=3) | st.text(alphabet='{}[]",:\\n0', max_size=3).map(str.encode))
        content = content[:at] + new + content[at + removed :]
    return texts, content


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(day=st.lists(mutated(), min_size=1, max_size=12))
def test_mutated_files_never_crash_and_always_add_up(
    connection: duckdb.DuckDBPyConnection, day: list[tuple[list[bytes], bytes]]
) -> None:
    objects = {f"{number}.json": content for number, (_, content) in enumerate(day)}
    sound = [record(item_id=str(number)).encode() for number in range(5)]
    objects["sound.json"] = b"[" + b",".join(sound) + b"]"
    result = clean(connection, raw(objects), DAY, SETTINGS)  # asserts conservation itself
    by_key = {row["key"]: row for row in result.by_key.rows(named=True)}
    assert (by_key["sound.json"]["records_in"], by_key["sound.json"]["rejected"]) == (5, 0)
    for number, (texts, content) in enumerate(day):
        untouched = sum(line in texts for line in content.split(b"\n"))
        if (
            untouched
            and content[:2] not in (b"\x1f\x8b", b"\xff\xfe", b"\xfe\xff")
            and not content.lstrip().startswith(b"[")
        ):
            row = by_key[f"{number}.json"]
            assert row["kept"] + row["duplicates"] >= untouched, content  # a line never costs another
