"""What the short way takes comes out as the SQL gives it, and it takes what is plain.

PLAIN_ROUNDS=1000 compares so many batches of random objects; `make test` takes 15 for each size of a group.
"""

import gzip
import json
import os
import random
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from polars.testing import assert_frame_equal

from recsys_assets.ingest import plain, template, validate
from recsys_assets.ingest.plain import plain_events
from recsys_assets.ingest.validate import CleanResult, ConservationError, clean
from recsys_assets_tests.ingest.test_validate import DAY, LIMIT_MS, NOON, SETTINGS, raw, record

ROUNDS = int(os.environ.get("PLAIN_ROUNDS", "15"))
NAMES = sorted(SETTINGS.actions)


def taken(*contents: bytes) -> list[int]:
    """How many records are taken of each object; -1 if it is left."""
    (batch,) = raw({f"{number:03}": content for number, content in enumerate(contents)}).combine_chunks().to_batches()
    events, records = plain_events(batch, np.full(len(batch), LIMIT_MS), NAMES)
    assert events["object"].value_counts().sort("object").rows() == [
        (number, count) for number, count in enumerate(records.tolist()) if count > 0
    ]
    return records.tolist()


def array(*texts: str) -> bytes:
    return f"[{', '.join(texts)}]".encode()


def test_plain_objects_are_taken_whole_and_others_are_left() -> None:
    good = record()
    assert taken(array(good), array(good, good), array(good, record(user_id="7", category_id='"c"', price="1.5"))) == [
        1,
        2,
        2,
    ]
    assert taken(array(good), array(good, record(timestamp="5")), array(good)) == [1, -1, 1]  # of one group
    assert taken(array(good), array(good)[:-9], array(good)) == [1, -1, 1]  # a group that cannot be decoded
    pretty = json.dumps([json.loads(good)] * 3, indent=2).encode() + b"\n"
    inner = array(good, record(context='{"page": [{"a": 1}], "b": "{"}'))
    assert taken(pretty, array(record(title=r'"\u00e9\n"'))) == [3, 1]
    assert taken(*[inner] * 3, array(good)) == [2, 2, 2, 1]
    assert taken(b"[]", b"", b"[" + good.encode(), b"{", b"}", b"]") == [-1] * 6
    assert taken(*[good.encode(), f"{good}\n{good}\n".encode()], array(good)) == [1, 2, 1]
    assert taken(f"{good}\n\n{good}".encode(), f"{good}\r\n{good}".encode(), f"{good}\n5".encode()) == [-1] * 3
    assert taken(f"{good}\n{good}".replace('", "', '",\n"').encode()) == [-1]
    assert taken(array(record(user_id="-0.0")), array(record(item_id="-0"))) == [-1, -1]
    packed = gzip.compress(f"{good}\n{good}\n".encode())
    assert taken(packed, packed[:-8]) == [2, -1]  # what breaks off behind a record lacks its end all the same


@pytest.mark.parametrize(
    ("field", "text"),
    [
        *(("user_id", text) for text in ("31.5", '"31.5"', "1e22", "1e-7", "true", "-0", "-0.0", '" u"', '"u "', '""')),
        *(
            ("user_id", text)
            for text in ('"\\tu"', '"\\ud800"', '"\\u0000"', "1234567890123456", '"' + "x" * 257 + '"')
        ),
        *(("user_id", text) for text in ("null", None, "[1]", "{}", '"1e5"', "NaN", '"u', "false")),
        *(("timestamp", text) for text in (f"{NOON}.5", f'"{NOON}"', "1", "true", f"{NOON}000", "null", None)),
        *(("action", text) for text in ('"view"', "5", "null", None, '"VIEW "', '"WISH"')),
        *(("price", text) for text in ("true", "false", '"1"', "-1", "1e400", "NaN", '""', "[]")),
        *(("category_id", text) for text in ("1.5", "true", '" "', "-0", "[]", '"' + "é" * 129 + '"')),
        *(("pr\\u0069ce", text) for text in ("true", "1")),
        *(("other", text) for text in ("NaN", '"\\ud800"', "+1", "01", '"\n"', '"\udcff"')),
    ],
)
def test_an_object_with_anything_odd_is_left(field: str, text: str | None) -> None:
    odd = record(**{field: text}).encode("utf-8", "surrogateescape")
    good = record(price="0", category_id="0", user_id="0").encode()
    assert taken(b"[" + good + b"]", b"[" + good + b"," + odd + b"]", b"[" + good + b"]") == [1, -1, 1]


def test_records_torn_over_two_objects_are_not_joined() -> None:
    """Glued by a comma the two are one sound array."""
    first, second = record(x='[{"a": 1}, {"a": 2}]').split(", {")
    assert taken(f"[{first}]".encode(), f"[{{{second}]".encode()) == [-1, -1]
    flat, rest = record(x="[1, 2]").rsplit(", ", 1)
    assert taken(f"[{flat}]".encode(), f"[{rest}]".encode()) == [-1, -1]
    flat, rest = record(x='[{"a": 1}, 2]', y='{"timestamp": 1}').split(", 2")
    assert taken(f"[{flat}]".encode(), f'[{{"a": 2}}{rest}]'.encode()) == [-1, -1]


def test_a_record_torn_over_two_lines_is_not_joined() -> None:
    first, second = record(x="[1, 2]").rsplit(", ", 1)
    assert taken(f"{first}\n{second}".encode(), f"{record()}\n{first}\n{second}".encode()) == [-1, -1]
    first, second = record(x='[{"a": 1}, {"a": 2}]').split(", {")
    assert taken(f"{first}\n{{{second}".encode(), f"{record()}\n{first}\n{{{second}".encode()) == [-1, -1]


def test_actions_that_a_number_could_read_like_are_left_to_the_sql() -> None:
    (batch,) = raw({"a": array(record(action='"7"'))}).to_batches()
    for name in ("7", "true", "-x"):
        assert plain_events(batch, np.array([LIMIT_MS]), ["VIEW", name])[1].tolist() == [-1]


def test_a_slice_of_a_batch() -> None:
    batch: pa.RecordBatch = raw({f"{n}": array(*[record(item_id=str(n))] * n) for n in range(1, 6)}).to_batches()[0]
    events, records = plain_events(batch.slice(2, 2), np.full(2, LIMIT_MS), NAMES)
    assert records.tolist() == [3, 4]
    assert events["item_id"].to_list() == ["3"] * 3 + ["4"] * 4
    assert events["record"].to_list() == [*range(3), *range(4)]


IDS = ["31", '"31"', "31.0", "3.1e1", "0", '"0"', "-0", "-5", '"-0"', "1.5", '"1.5"', "9007199254740993", "1e22", '"é"']
IDS += [
    '"a b"',
    '" a"',
    '"true"',
    "true",
    '"1e5f"',
    '"1e5"',
    '"\\u0041"',
    '"\\n"',
    '"{"',
    '"12345678901234567890"',
    "null",
]
VALUES = {
    "timestamp": [f"{NOON}", f"{NOON + 1}.0", f"{NOON}.5", f'"{NOON}"', f"{NOON // 1000}", "1.7645904e12", "true"],
    "user_id": IDS,
    "item_id": IDS,
    "category_id": [*IDS, '""'],
    "action": ['"VIEW"', '"CLICK"', '"PURCHASE"', '"view"', "1", '"\\u0056IEW"', "null"],
    "price": [
        "0",
        "1",
        "0.1",
        "-0.0",
        "-0",
        "12.50",
        '"2"',
        "true",
        "1e3",
        "1e308",
        "1e309",
        "123456789.12345679",
        "null",
    ],
    "other": ["true", "1", '"timestamp"', '{"timestamp": 1}', "[{}]", '"}, {"', '"x\\"y"', "-0", "[[1], 2]"],
}


def random_object(rng: random.Random) -> bytes:
    """An array that is plain, or nearly."""
    texts = []
    for _ in range(rng.randrange(12)):
        fields: dict[str, Any] = {}
        for name, values in VALUES.items():
            dice = rng.random()
            if dice < 0.03:
                fields[name] = rng.choice(values)
            elif name in ("user_id", "item_id"):
                fields[name] = f'"u{rng.randrange(9)}"' if dice < 0.7 else str(rng.randrange(3))
            elif name != "other" and dice < 0.9:
                fields[name] = rng.choice(values[:3] if name != "timestamp" else values[:2])
        pieces = [record(**fields)[1:-1]]
        if rng.random() < 0.02:
            pieces.append(record(user_id='"again"')[1:-1])
        if rng.random() < 0.02:
            pieces[0] = pieces[0].replace("price", "pr\\u0069ce").replace("user_id", "user\\u005Fid")
        rng.shuffle(pieces)
        texts.append("{" + ", ".join(pieces) + "}")
    form = rng.choice(["[%s]", "[%s]", "[ %s\n]\n", "%s\n"])
    content = form % rng.choice([", ", ",", ",\n  "] if "[" in form else ["\n", "\n", ",\n", ","]).join(texts)
    if rng.random() < 0.03:
        at = rng.randrange(len(content))
        content = content[:at] + rng.choice(["", "}", "]", '"', ",", "{", "\\"]) + content[at + rng.randrange(2) :]
    return content.encode()


def random_alike(rng: random.Random) -> bytes:
    """An array whose records are of one template, or nearly; which one it is, few choices tell."""
    names = ["timestamp", "user_id", "item_id", "action", "category_id", "price", "other"][: rng.choice([4, 6, 6, 7])]
    comma, colon = rng.choice([(", ", ": "), (",", ":")])
    quoted = {name: name == "action" or (name in plain._TEXTS and rng.random() < 0.8) for name in names}
    usual = {"timestamp": VALUES["timestamp"][:1], "action": VALUES["action"][:3]}
    usual |= {"price": ["0", "1", "12.50", "-0.0", "1e3", "null"], "other": ["true", "1", "-0", "null"]}
    texts = []
    for _ in range(rng.randrange(1, 12)):
        fields = {name: rng.choice(usual.get(name) or [str(rng.randrange(1, 9))]) for name in names}
        for name in plain._TEXTS:
            if quoted.get(name):
                fields[name] = f'"{fields[name]}{rng.choice(["", "é", " thirteen byte", " x,{}:y"])}"'
        if rng.random() < 0.01:
            name = rng.choice(names)
            fields[name] = rng.choice(VALUES[name])
        texts.append("{" + comma.join(f'"{name}"{colon}{text}' for name, text in fields.items()) + "}")
    content = f"[{comma.join(texts)}]"
    if rng.random() < 0.03:
        at = rng.randrange(len(content))
        content = content[:at] + rng.choice(["", "}", '"', ",", "{", "5", " "]) + content[at + rng.randrange(2) :]
    return content.encode()


def bits(result: CleanResult) -> list[int]:
    """Of the prices, so that -0.0 is not 0.0."""
    bits: list[int] = result.interactions["price"].fill_null(-1).to_numpy().view(np.int64).tolist()
    return bits


def test_the_short_way_gives_what_the_sql_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    def both(objects: dict[str, bytes]) -> tuple[CleanResult, CleanResult]:
        with duckdb.connect() as connection:
            short = clean(connection, raw(objects), DAY, SETTINGS)
            with monkeypatch.context() as patch:
                patch.setattr(plain, "_groups", lambda batch: iter(()))
                return short, clean(connection, raw(objects), DAY, SETTINGS)

    for group in (1, 2000, 1 << 19):
        monkeypatch.setattr(plain, "_GROUP", group)
        for seed in range(ROUNDS):
            rng = random.Random(seed)
            one = random_alike if seed % 2 else random_object
            objects = {f"{number}": one(rng) for number in range(120)}
            assert sum(count >= 0 for count in taken(*objects.values())) > 20
            short, sql = both(objects)
            assert_frame_equal(short.interactions, sql.interactions, check_exact=True)
            assert bits(short) == bits(sql)
            assert_frame_equal(short.rejected, sql.rejected)
            assert_frame_equal(short.by_key, sql.by_key)
            assert (short.users, short.items, short.duplicates) == (sql.users, sql.items, sql.duplicates)


def test_a_record_lost_on_the_short_way_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def lossy(*args: Any) -> Any:
        events, records = plain_events(*args)
        return events.filter(pl.col("record") != 1), records

    monkeypatch.setattr(validate, "plain_events", lossy)
    objects = {"a": array(record()), "b": array(record(user_id="2"), record(user_id="3"))}
    with duckdb.connect() as connection, pytest.raises(ConservationError, match=r"'b'.*2 records in.*1 kept"):
        clean(connection, raw(objects), DAY, SETTINGS)


def test_nothing_is_decoded_twice_where_nothing_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(pl, "read_json", lambda *args, **kwargs: calls.append(0) or _refuse())
    monkeypatch.setattr(plain, "_GROUP", 500)
    other = json.dumps(dict(reversed(json.loads(record()).items())))
    assert set(taken(*[array(record(), other)] * 100)) == {-1}
    assert 9 <= len(calls) < 20


@pytest.mark.parametrize("group", [500, 1 << 22])
def test_where_nothing_follows_a_template_few_are_tried(monkeypatch: pytest.MonkeyPatch, group: int) -> None:
    """Of groups of one object only the first ones, and of a large group not every half of a half."""
    tried, cut = [], template.cut
    monkeypatch.setattr(template, "cut", lambda *args: tried.append(0) or cut(*args))
    monkeypatch.setattr(plain, "_GROUP", group)
    other = json.dumps(dict(reversed(json.loads(record()).items())))
    assert taken(*[array(record(), other)] * 100) == [2] * 100
    assert 9 <= len(tried) < 40


def test_objects_of_one_template_are_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pl, "read_json", lambda *args, **kwargs: _refuse())
    first, second = array(record(), record(user_id='"a b"')), array(record(user_id='"1.5"', price="null"))
    assert taken(first, second, first[:-9], second) == [2, 1, -1, 1]
    lines = first[1:-1].replace(b"}, ", b"}\n")
    assert taken(lines, lines + b"\n", array(record(user_id='" x"')), lines) == [2, 2, -1, 2]
    numbers = {"user_id": "7", "item_id": "12345678901234567", "category_id": "8", "other": "true"}
    assert taken(array(record(**numbers)), array(record(**numbers))) == [1, 1]
    odd = [
        ("timestamp", text) for text in (f"0{NOON}", f"+{NOON}", f'"{NOON}"', f"{NOON}.0", f"{NOON}000", "1", "null")
    ]
    for name in ("user_id", "item_id", "category_id"):
        texts = ('" x"', '"x "', '"' + "x" * 257 + '"', "01", "-1", "+1", "1.0", "null", "true")
        odd += [(name, text) for text in (*texts, *(['""'] if name != "category_id" else []))]
    odd += [("action", text) for text in ('"view"', "5", "null", '"VIEW "')]
    odd += [("price", text) for text in ("true", "01", "1.", ".5", "+1", "1e", "-1", "1e400", "NaN", '"1"')]
    odd += [("other", text) for text in ("01", "1.", "+1", "NaN", "nul", "True")]
    for name, text in odd:
        assert taken(array(record(**{name: text}))) == [-1], (name, text)
    assert taken(*[array(record(category_id='"x"'), record(category_id='""'))] * 2) == [2, 2]


def _refuse() -> None:
    raise pl.exceptions.ComputeError("no")
