"""What is cut by a template is what a JSON parser reads; what is not JSON, or of two templates, is not cut."""

import itertools
import json
import random
from typing import Any

import numpy as np
import pytest

from recsys_assets.ingest import plain, template
from recsys_assets.ingest.template import PADDING


def values_of(*objects: str | bytes) -> tuple[list[dict[str, str]], list[int]] | None:
    """Each record with its values as texts, and how many each object has."""
    contents = [each.encode() if isinstance(each, str) else each for each in objects]
    text = b"[" + b",".join(contents) + b"]" + PADDING
    begins = list(itertools.accumulate((len(each) + 1 for each in contents), initial=1))[:-1]
    cut = template.cut(text, np.array(begins))
    if cut is None:
        return None
    names = [name.decode() for name in cut[0]]
    for values in cut[0].values():
        places = zip(values.starts.tolist(), values.ends.tolist(), strict=True)
        assert [text[start:end].decode() for start, end in places] == values.texts.to_list()
    rows = zip(*(values.texts.to_list() for values in cut[0].values()), strict=True)
    return [dict(zip(names, row, strict=True)) for row in rows], cut[1].tolist()


def test_records_of_one_template_are_cut() -> None:
    assert values_of('{"a": 1, "b": "x"}, {"a": 22, "b": ""}', '{"a": -3.5, "b": "{,}: [é]"}') == (
        [{"a": "1", "b": "x"}, {"a": "22", "b": ""}, {"a": "-3.5", "b": "{,}: [é]"}],
        [2, 1],
    )
    assert values_of('{"a":"x","b":null}', '{"a":"y","b":true}') == (
        [{"a": "x", "b": "null"}, {"a": "y", "b": "true"}],
        [1, 1],
    )
    assert values_of('{"a":"x"},{"a":"y"},{"a":"z"}') == ([{"a": "x"}, {"a": "y"}, {"a": "z"}], [3])
    assert values_of('{ "a" : "x" },   { "a" : "y" }') == ([{"a": "x"}, {"a": "y"}], [2])


@pytest.mark.parametrize("length", [0, 1, 4, 5, 11, 12, 13, 14, 40, 300])
def test_texts_of_any_length(length: int) -> None:
    texts = ["é" * (length // 2) + "y" * (length % 2), "", "0123456789ab", "0123456789abc"]
    rows = values_of(*(json.dumps({"id": text}, ensure_ascii=False) for text in texts))
    assert rows is not None
    assert [row["id"] for row in rows[0]] == texts


@pytest.mark.parametrize(
    "objects",
    [
        ['{"a": 1, "b": "x"}, {"b": "x", "a": 1}'],
        ['{"a": 1, "b": "x"}, {"a": 1,"b": "x"}'],
        ['{"a": 1}, {"a": 1}', '{"a": 1},{"a": 1}, {"a": 1}'],
        ['{"a": "x"}, {"a": "x"', '{"a": "x"}'],
        ['{"a": "x", "b": "y"}, {"a": "x"}, {"a": "x", "b": "y", "c": "z"}'],
        ['{"a": "x"}', '"b"'],
        ['{"a":"x}', '{y"},{"a":"z"}'],  # the comma between the two falls into a text
        ['{"a":"w"},{"a":"x}', '{y"},{"a":"z"}'],
        ['{"a" : 1 , "b" : "x"},{"a" : , "b" : "x"}'],  # a blank of two pieces
        ['{"a": "x", "' + "b" * 90 + '": 1}, {"a": "x", "c": 1}'],
        ['{"a": "\\u0041"}'],
        ['{"a": "\t"}'],
        ['{"a": {"b": 1}}'],
        ['{"a": [1]}'],
        ['{"a": 1, "a": 2}'],
        ['{"a": 1 "b": "x"}'],
        ['{"a": 5", "b": "x"}'],
        ['{"a": "x", }'],
        ['{"": "x"}'],
        ["{}"],
        ["{}", "{}"],
        [""],
        ['{"a": "' + "x" * (1 << 15) + '"}'],
        [b'{"a": "\xff"}'],
        [b'{"a": "\xed\xa0\x80"}'],
    ],
)
def test_what_is_of_no_template_is_not_cut(objects: list[str]) -> None:
    assert values_of(*objects) is None


def some_records(rng: random.Random, count: int) -> tuple[list[str], list[dict[str, Any]]]:
    """Records of one template, as text and as they are."""
    comma, colon = rng.choice([(", ", ": "), (",", ":"), (" , ", " : ")])
    fields = ["timestamp", "user_id", "item_id", "action", *rng.sample(["category_id", "price", "x", "longer name"], 3)]
    rng.shuffle(fields)
    numbers = {"timestamp", "price", *rng.sample(fields, 2)} - {"action"}

    def value(name: str) -> Any:
        if name == "timestamp":
            return 1_764_547_200_000 + rng.randrange(86_400_000)
        if name in numbers:
            return (
                rng.choice([rng.randrange(1, 10**6), None, 1.5]) if name in ("price", "x") else rng.randrange(1, 10**9)
            )
        return "".join(rng.choice("abé{,}: 5") for _ in range(rng.choice([0, 1, 5, 12, 13, 20])))

    rows = [{name: value(name) for name in fields} for _ in range(count)]
    return [json.dumps(row, separators=(comma, colon), ensure_ascii=False) for row in rows], rows


def test_a_changed_byte_is_read_as_a_parser_reads_it_or_not_at_all() -> None:
    taken = 0
    for seed in range(400):
        rng = random.Random(seed)
        texts, rows = some_records(rng, 6)
        inner = [", ".join(texts[:3]).encode(), ", ".join(texts[3:]).encode()]
        for change in range(6):
            which = rng.randrange(2)
            changed = list(inner)
            if change:
                at = rng.randrange(len(changed[which]))
                byte = rng.choice(
                    [b"", b'"', b",", b"{", b"}", b"0", b"9", b"-", b".", b" ", b"x", b":", b"\x00", b"\xc3", b"\\"]
                )
                changed[which] = changed[which][:at] + byte + changed[which][at + rng.randrange(2) :]
            text, begins = plain._glued([memoryview(each) for each in changed])
            cut = template.cut(text, np.array(begins[:-1]))
            frame = plain._typed(text, cut[0]) if cut is not None else None
            if cut is None or frame is None:
                assert change, "what is of one template is taken"
                continue
            taken += 1
            parsed = [json.loads(b"[" + each + b"]", parse_constant=pytest.fail) for each in changed]
            assert cut[1].tolist() == [len(each) for each in parsed]
            records = [record for each in parsed for record in each]
            for name in ("user_id", "item_id", "category_id"):
                want = [record.get(name) for record in records]
                assert frame[name].to_list() == [None if each is None else str(each) for each in want]
            assert frame["action"].to_list() == [record["action"] for record in records]
            assert frame["timestamp"].to_list() == [record["timestamp"] for record in records]
            assert frame["price"].to_list() == [record.get("price") for record in records]
            if not change:
                assert records == rows
    assert 500 < taken < 2000
