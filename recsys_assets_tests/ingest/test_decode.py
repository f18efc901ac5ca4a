import gzip
import json
import random
import time
import tracemalloc
from datetime import UTC, datetime

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_assets.ingest.decode import EXCERPT_CHARACTERS, RAW_SCHEMA, Decoded, Rejection, decode, raw_table, split
from recsys_assets.storage.bucket import LogObject

LIMIT = 1 << 20
EVENT = b'{"timestamp":1764547200000,"item_id":"i","user_id":"u","action":"VIEW"}'
TEXT = b'[{"a": "\xc3\xa9"}]'


def gz(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def zstd(content: bytes) -> bytes:
    packed: bytes = pa.compress(content, codec="zstd", asbytes=True)
    return packed


@pytest.mark.parametrize(
    "content",
    [
        TEXT,
        b"\xef\xbb\xbf" + TEXT,
        b" \r\n\t" + TEXT,
        TEXT.decode().encode("utf-16"),
        b"\xfe\xff" + TEXT.decode().encode("utf-16-be"),
        TEXT.decode().encode("utf-16-le"),
        TEXT.decode().encode("utf-16-be"),
        gz(TEXT),
        gz(TEXT[:5]) + gz(TEXT[5:]),
        gz(TEXT) + b"\0" * 100,
        gz(b"\xef\xbb\xbf" + TEXT),
        zstd(TEXT),
        zstd(TEXT[:5]) + zstd(TEXT[5:]),
    ],
)
def test_text_in_every_dress(content: bytes) -> None:
    assert decode(content, LIMIT) == Decoded(TEXT)


def test_what_is_no_utf16_costs_no_more_than_its_place() -> None:
    wide = TEXT.decode().encode("utf-16")
    assert decode(wide + b"x", LIMIT) == Decoded(TEXT + b"\xff")
    assert decode(wide[:-1], LIMIT) == Decoded(TEXT[:-1] + b"\xff")
    assert decode(wide[:-2] + b"\x00\xd8" + wide[-2:], LIMIT) == Decoded(TEXT[:-1] + b"\xed\xa0\x80]")


def test_empty() -> None:
    assert decode(b"", LIMIT) == decode(b" \n", LIMIT) == decode(gz(b""), LIMIT) == Decoded(b"")


@pytest.mark.parametrize("pack", [gz, zstd])
def test_cut_off_compression_keeps_what_came_before(pack) -> None:  # type: ignore[no-untyped-def]
    text = random.Random(1).randbytes(300_000).hex().encode()
    packed = pack(text)
    decoded = decode(packed[: len(packed) // 2], LIMIT)
    assert decoded.text
    assert text.startswith(decoded.text)
    assert len(decoded.text) > len(text) // 2 - (1 << 17)
    assert decoded.rejection is not None
    assert decoded.rejection.reason == "malformed_json"
    assert "breaks off" in decoded.rejection.detail


@pytest.mark.parametrize(
    "content",
    [
        gz(TEXT)[:10] + b"\x07" * 30,
        gz(TEXT)[:-8] + b"\0" * 8,  # checksum
        zstd(TEXT)[:8] + b"\xff" * 20,
    ],
)
def test_corrupt_content_is_refused_as_a_whole(content: bytes) -> None:
    decoded = decode(content, LIMIT)
    assert decoded.text == b""
    assert decoded.rejection is not None
    assert decoded.rejection.reason == "malformed_json"
    assert "cannot be decoded" in decoded.rejection.detail


@pytest.mark.parametrize("pack", [bytes, gz, zstd])
def test_the_limit_is_of_the_text_and_exact(pack) -> None:  # type: ignore[no-untyped-def]
    assert decode(pack(b"x" * LIMIT), LIMIT) == Decoded(b"x" * LIMIT)
    over = decode(pack(b"x" * (LIMIT + 1)), LIMIT)
    assert over.text == b""
    assert over.rejection is not None
    assert over.rejection.reason == "too_large"
    assert "max_object_mb" in over.rejection.detail


@pytest.mark.parametrize("pack", [gz, zstd])
def test_a_bomb_costs_no_memory(pack) -> None:  # type: ignore[no-untyped-def]
    bomb = pack(b"0" * 100_000_000)
    tracemalloc.start()
    try:
        decoded = decode(bomb, LIMIT)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert decoded.rejection is not None
    assert decoded.rejection.reason == "too_large"
    assert peak < 8 * LIMIT


def test_raw_table() -> None:
    modified = datetime(2025, 12, 1, 12, tzinfo=UTC)
    objects = [(LogObject(f"k{number}", "e", 3, modified), TEXT) for number in range(250)]
    objects.append((LogObject("bad", "e", 9, modified), gz(TEXT)[:15]))
    table = raw_table(objects, LIMIT)
    assert table.schema == RAW_SCHEMA
    assert [len(batch) for batch in table.to_batches()] == [100, 100, 51]
    assert table.slice(0, 1).to_pylist() == [
        {"key": "k0", "etag": "e", "size": 3, "last_modified": datetime(2025, 12, 1, 12), "content": TEXT}
        | {"reason": None, "detail": None}
    ]
    assert table.slice(250, 1).to_pylist()[0]["reason"] == "malformed_json"
    assert len(raw_table([], LIMIT)) == 0


# --------------------------------------------------------------------------------------------------------------- split


def pieces(text: bytes) -> list[bytes | Rejection]:
    found = list(split(text))
    assert [number for number, _ in found] == list(range(len(found)))
    return [piece for _, piece in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", []),
        (b"[]", []),
        (b"[1, \"a,]\", null, [2, {}], {\"b\": [\"}\"]}]", [b"1", b'"a,]"', b"null", b"[2, {}]", b'{"b": ["}"]}']),
        (b'[{"a": tru}, {"b": 1}]', [b'{"a": tru}', b'{"b": 1}']),
        (b'[{"a": 1}{"b": 1},,{"c": 1},]', [b'{"a": 1}', b'{"b": 1}', b'{"c": 1}']),
        (b'[{"a": 1}]\n[{"b": 1}]', [b'{"a": 1}', b'{"b": 1}']),
        (b'{"a": 1}\n{"b": 1}\r\n\n {"c": 1}\n', [b'{"a": 1}', b'{"b": 1}', b'{"c": 1}']),
        (b'{"a": 1},\n{"b": 1},\n', [b'{"a": 1}', b'{"b": 1}']),
        (b'{"a": 1}\n, {"b": 1}\n,{"c": [{}]}', [b'{"a": 1}', b'{"b": 1}', b'{"c": [{}]}']),
        (b'{"a": 1}{"b": 1}', [b'{"a": 1}', b'{"b": 1}']),
        (b'{"a": 1}\n{\n "b": [\n  {}]\n},\n{"c": [\n{}\n', [b'{"a": 1}', b'{\n "b": [\n  {}]\n}', b'{"c": [', b"{}"]),
        (b'{\n "a": 1\n}\n{\n "b": 1\n}', [b'{\n "a": 1\n}', b'{\n "b": 1\n}']),
        (b'{"a": 1}\nrubbish, [{\n{"b": 1}', [b'{"a": 1}', b"rubbish, [{", b'{"b": 1}']),
        (b'rubbish\n{"b": "x"}\n{"c', [b"rubbish", b'{"b": "x"}', b'{"c']),
        (b'{"a": "\\"}{\\\\"}{"b": 1}\n', [b'{"a": "\\"}{\\\\"}', b'{"b": 1}']),
        (b'{"a": [{"x": 1}, {"x": 2}]}\n{"b": 1}', [b'{"a": [{"x": 1}, {"x": 2}]}', b'{"b": 1}']),
    ],
)  # fmt: skip
def test_sound_brackets(text: bytes, expected: list[bytes]) -> None:
    assert pieces(text) == expected


@pytest.mark.parametrize(
    ("text", "before", "offset", "after"),
    [
        (b'[{"a": 1}, {"b": "x', [b'{"a": 1}'], 11, []),
        (b'[{"a": 1}, {"b": [1, 2}, {"c": 1}]', [b'{"a": 1}'], 11, []),
        (b'[{"a": 1}', [b'{"a": 1}'], 9, []),
        (b'[{"a": 1}, nul', [b'{"a": 1}'], 11, []),
        (b"<html><body>Service Unavailable</body>", [], 0, []),
        (b"[{'a\": 1}]", [], 1, []),
        (b'[{"a": 1}] trailing {"b', [b'{"a": 1}'], 11, []),
        (b'[{"a": {"b": 1}, ' + EVENT + b", " + EVENT + b"]", [], 1, [EVENT, EVENT]),
        (b'[{"a": "x, "b": 1},\n' + EVENT + b"]", [], 1, [EVENT]),
        (b'[{"a": [{"x": 1}, {"x": 2}}, ' + EVENT + b"]", [], 1, [EVENT]),
        # a lost quote or bracket finds no match in another record
        (b"[" + EVENT[:-1] + b"," + EVENT + b"]", [], 1, [EVENT]),
        (b'["a, ' + EVENT + b"," + EVENT + b"]", [], 1, [EVENT, EVENT]),
        (EVENT[:9] + EVENT + b"\n" + EVENT, [], 0, [EVENT, EVENT]),  # a torn write, and the next on the same line
        (b'[{"a": [' + b'{"x": 1},' * 300 + b"}, " + EVENT + b"]", [], 1, [EVENT]),
        (b"[" + EVENT.replace(b'":', b" :") * 1000 + EVENT + b"]", [], 1, [EVENT]),
    ],
)
def test_a_break_costs_one_rejection(text: bytes, before: list[bytes], offset: int, after: list[bytes]) -> None:
    found = pieces(text)
    (broken,) = (piece for piece in found if isinstance(piece, Rejection))
    assert found == [*before, broken, *after]
    assert broken.reason == "malformed_json"
    assert f"at byte {offset}," in broken.detail
    assert text[offset:].decode().startswith(broken.excerpt)
    assert len(broken.excerpt) <= EXCERPT_CHARACTERS


@pytest.mark.parametrize(
    "text",
    [
        b"[" + EVENT[:-1] + b"," + EVENT + b", 5, " + EVENT + b"}]",
        b'[{"a": "x, "b": 1},' + EVENT + b"," + EVENT + b', {"a": "x, "b": 1}]',
        b'[5, "a, ' + EVENT + b', "b, ' + EVENT + b"]",
    ],
)
def test_two_breaks_do_not_make_up_for_each_other(text: bytes) -> None:
    assert [piece for piece in pieces(text) if piece == EVENT] == [EVENT, EVENT]


@pytest.mark.parametrize("mark", [b"[", b'{"a":', b'"', b"]", b"}", b",", b"\\", b'{"', b"[{", b"}{", b"},{"])
def test_deep_and_odd_files_neither_crash_nor_take_long(mark: bytes) -> None:
    began = time.process_time()
    for text in (mark * 100_000, b"[" + mark * 100_000, EVENT + b"\n" + mark * 100_000, b'[{"a":' + mark * 100_000):
        list(split(text))
    assert time.process_time() - began < 10


events = st.dictionaries(st.text(max_size=3), st.text() | st.integers() | st.lists(st.text()), max_size=3)


@settings(deadline=None)
@given(st.lists(events, max_size=8), st.sampled_from([None, 1]), st.booleans())
def test_any_records_in_any_form_are_cut_at_their_ends(
    records: list[dict[str, object]], indent: int, ascii: bool
) -> None:
    def dump(value: object, indent: int | None = None) -> bytes:
        return json.dumps(value, indent=indent, ensure_ascii=ascii).encode(errors="surrogatepass")

    array = dump(records, indent)
    lines = b"\n".join(map(dump, records))
    for text in (array, lines, b"".join(map(dump, records)), b" ".join(dump(record, indent) for record in records)):
        if text is array or not text.startswith(b"["):
            assert [json.loads(piece) for piece in pieces(text) if isinstance(piece, bytes)] == records


@settings(deadline=None)
@given(st.lists(st.just(EVENT), min_size=1, max_size=6), st.integers(0, 500))
def test_a_file_cut_anywhere_gives_the_records_before_the_cut(records: list[bytes], at: int) -> None:
    array = b"[" + b",".join(records) + b"]"
    cut = array[:at]
    found = pieces(cut)
    whole = sum(end <= len(cut) for end in (1 + (len(EVENT) + 1) * (n + 1) - 1 for n in range(len(records))))
    assert found[:whole] == [EVENT] * whole
    assert len(found) == whole + (0 < len(cut) < len(array))
