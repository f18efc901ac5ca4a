"""The short way through the cleaning: objects in which nothing is odd, decoded by Polars many at a time.

`plain_events` takes an object only if the outcome of each of its records is beyond doubt, and then gives the rows that
`validate`'s SQL would give. It judges nothing: an object with one record that is invalid, or merely unusual, is left to
the SQL as a whole. So it never has a reason to tell, and it may leave any object for any cause.

What makes it safe to let Polars (simd-json) decode, each seen and tested:

- It takes strict JSON in UTF-8 and nothing else; what it refuses is left. Of a field given twice it takes the first.
- An escaped lone surrogate becomes a NUL, and the name of a field may be escaped: objects with such escapes are left.
- An id is read as text, and of a number the digits come. `31.5`, `1e22`, `true` and `-0` could then not be told from
  texts, so objects with such ids are left, whether they are texts or not.
- `true` becomes the price 1: where a price is 0 or 1, the object is searched for a price that is a truth value.
- A number that is no integer stays one as Float64; below 2**53 every integer is its own double.

Objects are decoded in groups, glued by commas, for their overhead. A group is taken only if it has as many `{` as
records: then no record holds an inner object, each of the glued starts with a record and ends with one, and so its
records are as many as its own `{`. This is also their count before cleaning, which the cleaning must come to. For the
same reason lines can be glued: where each line end stands between `}` and `{`, it stands between two records.
"""

import itertools
import re
from collections.abc import Iterator

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

EARLIEST_MS = 946_684_800_000  # 2000-01-01
MAX_ID_CHARACTERS = 256
_GROUP = 1 << 19  # bytes decoded together: what stays in a processor's cache
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
_NAME = re.compile(r"(?!true$|false$)[A-Za-z_]\S*")  # an action that no number or truth value reads like
_ESCAPES = re.compile(rb"\\u(?:[dD][89a-fA-F]|00(?:[0167]|5[fF]))")  # surrogates, control characters, letters of names
_ZERO = re.compile(rb":[ \t\r\n]*-0")
_TRUTH = re.compile(rb'"price"[ \t\r\n]*:[ \t\r\n]*[tf]')
_SPACE = b" \t\r\n"
_EDGE = 100  # bytes of white space that are looked over


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
    taken = np.flatnonzero(records >= 0)
    counts = records[taken]
    total = int(counts.sum())
    events = pl.concat(frames).select(
        pl.Series("object", np.repeat(taken, counts), pl.Int32()),
        pl.Series("record", np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts), pl.Int32()),
        *_TEXTS[:2],
        pl.col("action").cast(pl.Enum(names), strict=False).to_physical().cast(pl.Int32()),
        pl.col("timestamp").alias("ms"),
        pl.col("category_id").replace("", None),
        "price",
    )
    ms, price, category = pl.col("ms"), pl.col("price"), pl.col("category_id")
    limits = pl.Series(np.repeat(limit_ms[taken], counts))
    tests = [
        (ms >= EARLIEST_MS) & (ms < limits) & (ms == ms.floor()),
        pl.col("action").is_not_null(),
        price.is_null() | ((price >= 0) & price.is_finite()),
        category.is_null() | ((category.str.len_bytes() <= MAX_ID_CHARACTERS) & ~category.str.contains(_DOUBTFUL)),
    ]
    for name in _TEXTS[:2]:
        text = pl.col(name)
        tests += [text.str.len_bytes().is_between(1, MAX_ID_CHARACTERS), ~text.str.contains(_DOUBTFUL)]
    sure = events.select(pl.all_horizontal(tests).fill_null(False)).to_series()
    if not sure.all():
        odd = np.unique(events["object"].filter(~sure).to_numpy())
        records[odd] = -1
        events = events.filter(~pl.col("object").is_in(odd))
    return events.with_columns(ms.cast(pl.Int64), price.abs()).match_to_schema(_EVENTS), records  # -0.0 is 0.0


def _frames(batch: pa.RecordBatch, records: NDArray[np.int64]) -> Iterator[pl.DataFrame]:
    """Decodes the objects that Polars takes, in order, and notes how many records each has."""
    together, left = True, 0
    for group in _groups(batch):
        frame = None
        if together:
            frame, counts = _decoded([text for _, text, _ in group])
            together = frame is not None or not counts  # objects with inner ones come in numbers
        if frame is not None:
            records[[row for row, _, _ in group]] = counts
            yield frame
            continue
        for row, text, is_array in group:
            frame, counts = _decoded([text], is_array)
            if frame is not None:
                records[row] = counts[0]
                yield frame
            else:
                left += 1
        if left > _PATIENCE + np.count_nonzero(records >= 0):
            return


def _decoded(inner: list[memoryview], may_nest: bool = False) -> tuple[pl.DataFrame | None, list[int]]:
    """The records of some objects, if they are taken; how many each has, empty if they were not counted.

    Args:
        inner: of each, its records with commas between them.
        may_nest: it is one array, whose records may hold inner objects.
    """
    glued: list[bytes | memoryview] = [b"["]
    for each in inner:
        glued += (each, b",")
    glued[-1] = b"]"
    text = b"".join(glued)
    if b"\\" in text and _ESCAPES.search(text):
        return None, []
    try:
        frame = pl.read_json(text, schema=_SCHEMA)
    except pl.exceptions.PolarsError:
        return None, []
    ends = list(itertools.accumulate((len(each) + 1 for each in inner), initial=1))
    counts = [text.count(b"{", start, end) for start, end in itertools.pairwise(ends)]
    if sum(counts) != len(frame):
        if not may_nest or text.count(b'"timestamp"') != len(frame):
            return None, counts
        counts = [len(frame)]
    if b"-" in text and any((frame[name] == "0").any() for name in _TEXTS) and _ZERO.search(text):
        return None, []
    if frame["price"].is_in([0.0, 1.0]).any() and (b"true" in text or b"false" in text) and _TRUTH.search(text):
        return None, []
    return frame, counts


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
