"""Records that are written alike, cut at their quotes by NumPy: a third of the work of a JSON parser.

A program that logs writes its records by one template: the same names in the same order, the same blanks between, only
the values differ. `cut` learns the template from the first record and proves that the whole text follows it. Without a
backslash every quote begins or ends a string. The quotes are counted off, so many a record; between two values must
stand what the template has there, with its quotes, byte for byte in every record. These are all the quotes there are,
so no value holds one, and every byte is the template's or a value's. A text in UTF-8 without quote, backslash and
control character is a JSON string of that value; of any other value, who uses it asks that it reads as a JSON number or
literal. So the whole is JSON, and the values are what any parser would find. Where one byte differs, nothing is said.
"""

import re
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

PADDING = b" " * 32  # behind the text: words are read of which only the front counts

_FIELD = re.compile(rb'((?:^\{| *,) *"([^"]+)" *: *(")?)(?(3)[^"]*"|[^" ,{}\[\]]+)')
_CLOSE = re.compile(rb"( *\})(, *(?=\{))?")
_MAX_RECORD = 1 << 14  # bytes
_INLINE = 12  # bytes of a text that an Arrow string view holds itself; of a longer one it has four, and the place
_HELD = np.where(np.arange(-4, _INLINE) < np.arange(_INLINE + 2)[:, None], 255, 0).astype(np.uint8)
_HELD[:, :4] = 0  # where a view has the length
_HELD[-1, 8:] = 0
_MASKS = _HELD.reshape(-1).view("V16")  # of a view, by the length of its text


@dataclass(frozen=True)
class Values:
    """The values of a field, of every record one.

    Attributes:
        quoted: they are strings; otherwise numbers or literals, if they are JSON at all.
        texts: as they stand, without the quotes.
        starts, ends: int64[records], their places.
    """

    quoted: bool
    texts: pl.Series
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]


def cut(text: bytes, objects: NDArray[np.int64]) -> tuple[dict[bytes, Values], NDArray[np.int64]] | None:
    """The values of records that follow one template, by the fields' names; None if they do not.

    Args:
        text: '[', the records of some objects with commas between them, ']', PADDING. Between two objects stands a
            comma and nothing else.
        objects: int64[objects], where each begins.

    Returns:
        The values, and int64[objects], how many records each object has.
    """
    end = len(text) - len(PADDING) - 1
    raw = np.frombuffer(text, np.uint8)
    template = _template(text[1:_MAX_RECORD])
    if template is None or end >= 2**31 or b"\\" in text or not _is_utf8(text) or raw[:end].min() < 0x20:
        return None
    names, pieces, comma = template
    marks = np.flatnonzero(raw[:end] == 0x22)
    per_record = sum(piece.count(b'"') for piece in pieces)
    if len(marks) % per_record:
        return None
    quotes = marks.reshape(-1, per_record)

    places = []  # of each piece in each record
    at = 0
    for piece in pieces[:-1]:
        begin = 1 if piece.startswith(b'"') else 0
        named = piece.index(b'"', begin)
        places.append(quotes[:, at + begin] - named)
        at += piece.count(b'"')
    first = np.searchsorted(places[0], objects)
    if first[0] or first[-1] == len(quotes) or (places[0][first] != objects).any():
        return None
    last = first - 1  # of the object before; the first has the very last one
    behind = np.full(len(places[0]), len(pieces[-1] + comma))
    behind[last] = len(pieces[-1]) + 1
    places.append(np.append(places[0][1:], end + 1) - behind)
    starts = [place + len(piece) for place, piece in zip(places[:-1], pieces, strict=False)]  # of the values
    if any((stop < start).any() for start, stop in zip(starts, places[1:], strict=True)):
        return None

    values = {}
    for name, piece, place, start, stop in zip(names, pieces, places, starts, places[1:], strict=False):
        rows = _rows(text, place, piece)
        if not _stands(piece, rows):
            return None
        values[name] = Values(piece.endswith(b'"'), _texts(rows, len(piece), text, start, stop - start), start, stop)
    inner = np.delete(places[-1], last)
    for piece, place in ((pieces[-1], places[-1][last]), (pieces[-1] + comma, inner)):
        if not _stands(piece, _rows(text, place, piece)):
            return None
    return values, np.diff(first, append=len(quotes))


def _template(text: bytes) -> tuple[list[bytes], list[bytes], bytes] | None:
    """The names of the first record's fields; what stands in front of each value, with the end of the one before, and
    behind the last; what stands between two records."""
    names: list[bytes] = []
    pieces: list[bytes] = []
    at, quote = 0, b""
    while field := _FIELD.match(text, at):
        names.append(field[2])
        pieces.append(quote + field[1])
        at, quote = field.end(), field[3] or b""
    close = _CLOSE.match(text, at)
    if not names or close is None or len(set(names)) < len(names):
        return None
    return names, [*pieces, quote + close[1]], close[2] or b","


def _is_utf8(text: bytes) -> bool:
    if text.isascii():
        return True
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _rows(text: bytes, places: NDArray[np.int64], piece: bytes) -> NDArray[np.uint64]:
    """uint64[places, words]: the bytes there, of a piece and _INLINE behind it. To look one byte up costs as much."""
    size = -(-(len(piece) + _INLINE) // 8) * 8
    return np.ndarray(len(text) - size + 1, f"V{size}", text, strides=(1,))[places].view("<u8").reshape(-1, size // 8)


def _stands(piece: bytes, rows: NDArray[np.uint64]) -> bool:
    """Whether every one of `_rows` starts with the piece."""
    for start in range(0, len(piece), 8):
        part = piece[start : start + 8]
        words = rows[:, start // 8]
        if len(part) < 8:
            words = words & np.uint64(256 ** len(part) - 1)
        if (words != int.from_bytes(part, "little")).any():
            return False
    return True


def _texts(
    rows: NDArray[np.uint64], start: int, text: bytes, starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> pl.Series:
    """The texts that start there in `_rows`, as string views. A long one stays where it is: its view has the place."""
    held = np.ndarray(len(rows), "V16", rows, start - 4, rows.strides[:1]).copy().view(np.uint64)
    held &= _MASKS.take(np.minimum(lengths, _INLINE + 1)).view(np.uint64)
    views = held.reshape(-1, 2)
    views[:, 0] |= lengths.view(np.uint64)
    buffers = [None, pa.py_buffer(views)]
    if lengths.max(initial=0) > _INLINE:
        views[:, 1] |= np.where(lengths > _INLINE, starts << 32, 0).view(np.uint64)
        buffers.append(pa.py_buffer(text))
    return pl.Series(pa.Array.from_buffers(pa.string_view(), len(starts), buffers))
