"""The short way through the cleaning: objects in which nothing is odd, taken by columns, many at a time.

`plain_events` takes an object only if the outcome of each of its records is beyond doubt, and then gives the rows that
`validate`'s SQL would give. It judges nothing: an object with one record that is invalid, or merely unusual, is left to
the SQL as a whole. So it never has a reason to tell, and it may leave any object for any cause.

Where all records of a group of objects follow one template, `template.cut` gives their values, and what kind of JSON
each is. Of strings only blanks at their ends are then in doubt, of numbers whether they are JSON.

Other objects are decoded by Polars (simd-json). What makes that safe, each seen and tested:

- It takes strict JSON in UTF-8 and nothing else; what it refuses is left. Of a field given twice it takes the first.
- An escaped lone surrogate becomes a NUL, and the name of a field may be escaped: objects with such escapes are left.
- An id is read as text, and of a number the digits come. `31.5`, `1e22`, `true` and `-0` could then not be told from
  texts, so objects with such ids are left, whether they are texts or not.
- `true` becomes the price 1: where a price is 0 or 1, the object is searched for a price that is a truth value.
- A number that is no integer stays one as Float64; below 2**53 every integer is its own double.

These too are decoded in groups, glued by commas, for their overhead. A group is taken only if it has as many `{` as
records: then no record holds an inner object, each of the glued starts with a record and ends with one, and so its
records are as many as its own `{`. This is also their count before cleaning, which the cleaning must come to. For the
same reason lines can be glued: where each line end stands between `}` and `{`, it stands between two records.
"""

import itertools
import re
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from recsys_assets.ingest import template

EARLIEST_MS = 946_684_800_000  # 2000-01-01
MAX_ID_CHARACTERS = 256
_GROUP = 1 << 22  # bytes cut together: between two operations of NumPy a thread waits for the interpreter
_DECODED = 1 << 19  # bytes decoded together: what stays in a processor's cache
_PATIENCE = 8  # more objects left than taken, of a batch: so the rest is not tried

_TEXTS = ("user_id", "item_id", "category_id")
_SCHEMA = {"timestamp": pl.Float64(), **dict.fromkeys((*_TEXTS, "action"), pl.String()), "price": pl.Float64()}
_EVENTS = pl.Schema(
    {
        "object": pl.Int32(),
        "record": pl.Int32(),
        "user_id": pl.String(),
        "item_id": pl.String(),
        "action": pl.Int32(),
        "ms": pl.Int64(),
        "category_id": pl.String(),
        "price": pl.Float64(),
    }
)
_DOUBTFUL = (  # white space to remove; or a text that may have been a number or a truth value
    r"^(?s:[\x00-\x20].*|.*[\x00-\x20]|-?[0-9]+(?:\.[0-9]+)?e-?[0-9]+|-?[0-9]+\.[0-9]+|-?[0-9]{16,}|-0|true|false)$"
)
_RECORDS = (*_TEXTS, "action", "timestamp", "price", "sure")  # timestamp: int64, null if it is none
_NUMBER = r"^(?:null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)$"
_SCALAR = _NUMBER.replace("null", "null|true|false")
_NAME = re.compile(r"(?!true$|false$)[A-Za-z_]\S*")  # an action that no number or truth value reads like
_ESCAPES = re.compile(rb"\\u(?:[dD][89a-fA-F]|00(?:[0167]|5[fF]))")  # surrogates, control characters, letters of names
_ZERO = re.compile(rb":[ \t\r\n]*-0")
_TRUTH = re.compile(rb'"price"[ \t\r\n]*:[ \t\r\n]*[tf]')
_SPACE = b" \t\r\n"
_EDGE = 100  # bytes of white space that are looked over

_Object: TypeAlias = tuple[int, memoryview, bool]
"""Row in the batch, its records with commas between them, whether it is an array."""


def plain_events(
    batch: pa.RecordBatch, limit_ms: NDArray[np.int64], names: list[str]
) -> tuple[pl.DataFrame, NDArray[np.int64]]:
    """The events of a batch's plain objects.

    Args:
        batch: of decode.RAW_SCHEMA.
        limit_ms: int64[objects], what an object's timestamps lie before.
        names: the settings' actions.

    Returns:
        The events: object (its row in the batch), record, user_id, item_id, action (position in `names`), ms,
        category_id and price. int64[objects], how many records each object has; -1 if it is left.
    """
    records = np.full(len(batch), -1, np.int64)
    frames = list(_frames(batch, records)) if all(_NAME.fullmatch(name) for name in names) else []
    if not frames:
        return pl.DataFrame(schema=_EVENTS), records
    ms, price = pl.col("ms"), pl.col("price")
    events = pl.concat(frames).with_columns(
        pl.col("timestamp").alias("ms"),
        pl.col("action").cast(pl.Enum(names), strict=False).to_physical().cast(pl.Int32()),
        pl.when(pl.col("category_id") != "").then("category_id"),
    )
    limits = pl.Series(limit_ms[events["object"].to_numpy()])
    sure = events.select(
        pl.all_horizontal(
            "sure",
            (ms >= EARLIEST_MS) & (ms < limits),
            pl.col("action").is_not_null(),
            price.is_null() | ((price >= 0) & price.is_finite()),
        ).fill_null(False)
    ).to_series()
    if not sure.all():
        odd = np.unique(events["object"].filter(~sure).to_numpy())
        records[odd] = -1
        events = events.filter(~pl.col("object").is_in(odd))
    return events.with_columns(price.abs()).select(*_EVENTS).match_to_schema(_EVENTS), records  # -0.0 is 0.0


def _frames(batch: pa.RecordBatch, records: NDArray[np.int64]) -> Iterator[pl.DataFrame]:
    """The records of what can be read, each with whether it is `sure` that its texts are; notes how many there are."""

    def taken(some: list[_Object], counts: list[int], frame: pl.DataFrame) -> pl.DataFrame:
        rows = [row for row, _, _ in some]
        records[rows] = counts
        number = np.arange(len(frame)) - np.repeat(np.cumsum(counts) - counts, counts)
        return frame.hstack(
            [pl.Series("object", np.repeat(rows, counts), pl.Int32()), pl.Series("record", number, pl.Int32())]
        )

    alike = differ = left = 0
    together = True
    for group in _groups(batch):
        others = group
        if differ <= _PATIENCE + alike:
            others = []
            for some, found in _alike(group):
                if found is None:
                    others += some
                else:
                    yield taken(some, *found)
            differ += len(others)
            alike += len(group) - len(others)
        for part in _parts(others):
            decoded = None
            if together:
                decoded, counted = _decoded([text for _, text, _ in part])
                together = decoded is not None or not counted  # objects with inner ones come in numbers
            if decoded is not None:
                yield taken(part, counted, decoded)
                continue
            for each in part:
                decoded, counted = _decoded([each[1]], each[2])
                if decoded is not None:
                    yield taken([each], counted, decoded)
                else:
                    left += 1
        if left > _PATIENCE + np.count_nonzero(records >= 0):
            return


def _parts(objects: list[_Object]) -> Iterator[list[_Object]]:
    """The objects, about _DECODED bytes together."""
    part: list[_Object] = []
    held = 0
    for each in objects:
        part.append(each)
        held += len(each[1])
        if held >= _DECODED:
            yield part
            part, held = [], 0
    if part:
        yield part


def _glued(inner: list[memoryview]) -> tuple[bytes, list[int]]:
    """One array of all records; and where those of each object begin in it, and would of one behind the last."""
    pieces: list[bytes | memoryview] = [b"["]
    for each in inner:
        pieces += (each, b",")
    pieces[-1] = b"]"
    begins = itertools.accumulate((len(each) + 1 for each in inner), initial=1)
    return b"".join([*pieces, template.PADDING]), list(begins)


def _alike(group: list[_Object]) -> Iterator[tuple[list[_Object], tuple[list[int], pl.DataFrame] | None]]:
    """The objects: those of one template together, with their counts and records; the others."""
    text, begins = _glued([text for _, text, _ in group])
    cut = template.cut(text, np.array(begins[:-1]))
    frame = _typed(text, cut[0]) if cut is not None else None
    if cut is not None and frame is not None:
        yield group, (cut[1].tolist(), frame)
    elif len(group) > 1:
        front, back = group[: len(group) // 2], group[len(group) // 2 :]
        found = list(_alike(front))
        yield from found
        if len(front) >= _PATIENCE and all(each is None for _, each in found):
            yield back, None
        else:
            yield from _alike(back)
    else:
        yield group, None


def _typed(text: bytes, fields: dict[bytes, template.Values]) -> pl.DataFrame | None:
    """The records of a template; None if a field is missing or of an unusual kind, or a value is no JSON."""
    if not {b"timestamp", b"user_id", b"item_id", b"action"} <= fields.keys():
        return None
    raw = np.frombuffer(text, np.uint8)
    columns: dict[str, pl.Series] = {}
    sure = np.ones(len(fields[b"timestamp"].starts), bool)
    for name, values in ((name.decode(), values) for name, values in fields.items()):
        column = values.texts
        if name in _TEXTS and values.quoted:
            lengths = values.ends - values.starts
            sure &= (lengths >= (name != "category_id")) & (lengths <= MAX_ID_CHARACTERS)
            sure &= (raw[values.starts] != 0x20) & (raw[values.ends - 1] != 0x20)
        elif name in _TEXTS or name == "timestamp":
            digits = column.cast(pl.Int64(), strict=False)
            first = raw[values.starts]
            odd = (first < 0x31) & ((first != 0x30) | (values.ends - values.starts > 1))
            if values.quoted or digits.null_count() or odd.any():  # -1, +1, 01
                return None
            column = digits if name == "timestamp" else column
        elif name == "price":
            if values.quoted or not column.str.contains(_NUMBER).all():
                return None
            column = column.cast(pl.Float64(), strict=False)
        elif not values.quoted and (name == "action" or not column.str.contains(_SCALAR).all()):
            return None
        columns[name] = column
    columns["sure"] = pl.Series(sure)
    return pl.DataFrame({name: columns[name] if name in columns else _absent(name, len(sure)) for name in _RECORDS})


def _absent(name: str, count: int) -> pl.Series:
    return pl.Series([None], dtype=_SCHEMA[name]).new_from_index(0, count)


def _decoded(inner: list[memoryview], may_nest: bool = False) -> tuple[pl.DataFrame | None, list[int]]:
    """The records of some objects, if they are taken; how many each has, empty if they were not counted.

    Args:
        inner: of each, its records with commas between them.
        may_nest: it is one array, whose records may hold inner objects.
    """
    text, begins = _glued(inner)
    if b"\\" in text and _ESCAPES.search(text):
        return None, []
    try:
        frame = pl.read_json(text, schema=_SCHEMA)
    except pl.exceptions.PolarsError:
        return None, []
    counts = [text.count(b"{", start, end) for start, end in itertools.pairwise(begins)]
    if sum(counts) != len(frame):
        if not may_nest or text.count(b'"timestamp"') != len(frame):
            return None, counts
        counts = [len(frame)]
    if b"-" in text and any((frame[name] == "0").any() for name in _TEXTS) and _ZERO.search(text):
        return None, []
    if frame["price"].is_in([0.0, 1.0]).any() and (b"true" in text or b"false" in text) and _TRUTH.search(text):
        return None, []
    moment = pl.col("timestamp")
    tests = []
    for name in _TEXTS:
        value = pl.col(name)
        shortest = 0 if name == "category_id" else 1
        test = value.str.len_bytes().is_between(shortest, MAX_ID_CHARACTERS) & ~value.str.contains(_DOUBTFUL)
        tests.append(test.fill_null(name == "category_id"))
    whole = pl.when(moment.is_between(EARLIEST_MS, 2**53) & (moment == moment.floor())).then(moment)
    return frame.with_columns(whole.cast(pl.Int64()), pl.all_horizontal(tests).alias("sure")).select(*_RECORDS), counts


def _groups(batch: pa.RecordBatch) -> Iterator[list[tuple[int, memoryview, bool]]]:
    """(row, its records with commas between them, whether it is an array) of sound objects, some at a time."""
    contents, sound = batch.column("content"), batch.column("reason").is_null().to_pylist()
    ends = np.frombuffer(contents.buffers()[1], np.int64)[contents.offset :].tolist()
    data = memoryview(contents.buffers()[2] or b"").cast("B")
    group: list[tuple[int, memoryview, bool]] = []
    held = 0
    for row in range(len(batch)):
        start, end = ends[row], _rstrip(data, ends[row], ends[row + 1])
        if not sound[row] or start == end:
            continue
        is_array = data[start] == 0x5B and data[end - 1] == 0x5D  # [ and ]
        if is_array:
            front = bytes(data[start + 1 : start + _EDGE])
            start, end = start + 1 + len(front) - len(front.lstrip(_SPACE)), _rstrip(data, start, end - 1)
        if start >= end or data[start] != 0x7B or data[end - 1] != 0x7D:  # { and }
            continue
        text = data[start:end]
        if not is_array:
            lines = bytes(text).replace(b"}\n{", b"},{")
            if b"\n" in lines:
                continue
            text = memoryview(lines)
        group.append((row, text, is_array))
        held += len(text)
        if held >= _GROUP:
            yield group
            group, held = [], 0
    if group:
        yield group


def _rstrip(data: memoryview, start: int, end: int) -> int:
    """Where a text ends without the white space behind it, if that is less than _EDGE."""
    edge = max(start, end - _EDGE)
    return edge + len(bytes(data[edge:end]).rstrip(_SPACE))
