"""From an object's bytes to record texts: decompression, character sets, and cutting a damaged file into records.

Nothing here parses JSON values; that is `validate`'s, in one place for good and damaged files alike. A cut is made by
quotes, brackets and line ends only, so nothing here can disagree with the parser about a value, or recurse.
"""

import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recsys_assets.storage.bucket import LogObject

EXCERPT_CHARACTERS = 200
_CHUNK = 1 << 16
_MAX_DAMAGED_RECORD = 1 << 18  # bytes; bounds the search for a record's end where brackets do not match
_MAX_TRIED = 1 << 24  # bytes read in vain where a record might start after a break; bounds the time, not the distance

RAW_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("etag", pa.string()),
        ("size", pa.int64()),
        ("last_modified", pa.timestamp("us")),  # UTC
        ("content", pa.large_binary()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


@dataclass(frozen=True)
class Rejection:
    """Why a record, or all that could not be cut into records, is set aside.

    Attributes:
        reason: 'malformed_json' or 'too_large'.
        detail: one line for a person.
        excerpt: the start of what was rejected, at most EXCERPT_CHARACTERS.
    """

    reason: str
    detail: str
    excerpt: str


@dataclass(frozen=True)
class Decoded:
    """An object's text, as far as it could be read.

    Attributes:
        text: UTF-8 (unless the object is neither that nor UTF-16), no byte-order mark, no white space in front.
        rejection: stands for what is missing behind `text`: the whole object if `text` is empty.
    """

    text: bytes
    rejection: Rejection | None = None


def decode(content: bytes, max_bytes: int) -> Decoded:
    """Decompresses (gzip and zstd, told by their first bytes) and turns UTF-16 into UTF-8. Never raises.

    Never holds more than about `max_bytes` of decompressed text. A compressed stream that is cut off gives the text
    before the cut; one that is corrupt gives nothing, since what came out before the error cannot be trusted.
    """
    try:
        text, cut = _inflate(content, max_bytes)
        if len(text) > max_bytes:
            return _too_large(max_bytes)
        text = _to_utf8(text).lstrip()
    except (zlib.error, OSError) as error:
        return _refuse("malformed_json", f"cannot be decoded: {str(error)[:120]}")
    if cut:
        return Decoded(
            text, Rejection("malformed_json", f"the compressed stream breaks off after {len(text)} bytes of text", "")
        )
    return Decoded(text)


def raw_table(objects: Iterable[tuple[LogObject, bytes]], max_bytes: int) -> pa.Table:
    """Decodes fetched objects into a table of RAW_SCHEMA, a row per object, in chunks of at most 100 rows.

    `reason` and `detail` stand for what is missing behind `content` (see Decoded); both null for a sound object.
    Chunks (and row groups, when written with row_group_size=100) are what DuckDB spreads over its threads.
    """
    return pa.Table.from_batches(raw_batches(objects, max_bytes), RAW_SCHEMA)


def raw_batches(objects: Iterable[tuple[LogObject, bytes]], max_bytes: int) -> Iterator[pa.RecordBatch]:
    """`raw_table` as it is made: batches of at most 100 objects and about 64 MiB, to be written one by one."""
    rows: list[tuple[str, str, int, datetime, bytes, str | None, str | None]] = []
    held = 0
    for obj, content in objects:
        decoded = decode(content, max_bytes) if obj.size <= max_bytes else _too_large(max_bytes)  # not even fetched
        why = decoded.rejection
        rows.append(
            (
                obj.key,
                obj.etag,
                obj.size,
                obj.last_modified.replace(tzinfo=None),
                decoded.text,
                why.reason if why else None,
                why.detail if why else None,
            )
        )
        held += len(decoded.text)
        if len(rows) == 100 or held >= 1 << 26:
            yield _batch(rows)
            rows, held = [], 0
    if rows:
        yield _batch(rows)


def _batch(rows: list[tuple[str, str, int, datetime, bytes, str | None, str | None]]) -> pa.RecordBatch:
    columns = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), RAW_SCHEMA, strict=True)]
    return pa.record_batch(columns, RAW_SCHEMA)


def raw_writer(path: Path) -> pq.ParquetWriter:
    """Writes batches of `raw_batches`, a row group each, to a file."""
    short = [name for name in RAW_SCHEMA.names if name != "content"]  # which is all different: no use of a dictionary
    return pq.ParquetWriter(path, RAW_SCHEMA, compression="zstd", use_dictionary=short, write_statistics=short)


def excerpt_of(text: bytes) -> str:
    """The start of a record for a person: at most EXCERPT_CHARACTERS, undecodable bytes shown as U+FFFD."""
    return text[: 4 * EXCERPT_CHARACTERS].decode("utf-8", "replace")[:EXCERPT_CHARACTERS]


def _too_large(max_bytes: int) -> Decoded:
    return _refuse("too_large", f"more than {max_bytes} bytes of text, the limit of bucket.max_object_mb")


def _refuse(reason: str, detail: str) -> Decoded:
    return Decoded(b"", Rejection(reason, detail, ""))


def _inflate(content: bytes, max_bytes: int) -> tuple[bytes, bool]:
    """The text, a little over `max_bytes` at most, and whether the stream ended too early."""
    if content.startswith(b"\x1f\x8b"):
        return _gunzip(content, max_bytes)
    if content.startswith(b"\x28\xb5\x2f\xfd"):
        return _unzstd(content, max_bytes)
    return content, False


def _gunzip(content: bytes, max_bytes: int) -> tuple[bytes, bool]:
    parts: list[bytes] = []
    size = 0
    while content:  # several members may stand one after the other
        stream = zlib.decompressobj(wbits=31)
        rest = content
        while not stream.eof:
            part = stream.decompress(rest, max_bytes - size + 1)
            parts.append(part)
            size += len(part)
            if size > max_bytes:
                return b"".join(parts), False
            rest = stream.unconsumed_tail
            if not part and not rest and not stream.eof:
                return b"".join(parts), True
        content = stream.unused_data.lstrip(b"\0")  # gzip allows padding
        if content and not content.startswith(b"\x1f\x8b"):
            return b"".join(parts), True
    return b"".join(parts), False


def _unzstd(content: bytes, max_bytes: int) -> tuple[bytes, bool]:
    parts: list[bytes] = []
    size = 0
    with pa.CompressedInputStream(pa.BufferReader(content), "zstd") as stream:
        while size <= max_bytes:
            try:
                part = stream.read(_CHUNK)
            except OSError as error:
                if "Truncated" in str(error):
                    return b"".join(parts), True
                raise
            if not part:
                break
            parts.append(part)
            size += len(part)
    return b"".join(parts), False


def _to_utf8(text: bytes) -> bytes:
    if text.startswith(b"\xef\xbb\xbf"):
        return text[3:]
    if text.startswith(b"\xff\xfe"):
        return _utf16(text[2:], "utf-16-le")
    if text.startswith(b"\xfe\xff"):
        return _utf16(text[2:], "utf-16-be")
    if text[:1] in (b"[", b"{") and text[1:2] == text[3:4] == b"\0" != text[2:3]:
        return _utf16(text, "utf-16-le")
    if text[1:2] in (b"[", b"{") and text[:1] == text[2:3] == b"\0" != text[3:4]:
        return _utf16(text, "utf-16-be")
    return text


def _utf16(text: bytes, codec: str) -> bytes:
    """A lone surrogate, or half a character at the end, becomes what is no UTF-8: it costs its record only."""
    whole = len(text) // 2 * 2
    return text[:whole].decode(codec, "surrogatepass").encode("utf-8", "surrogatepass") + b"\xff" * (len(text) - whole)


# ------------------------------------------------------------------------------------------------- cutting into records

_STRING = rb'"[^"\\\n]*(?:\\.[^"\\\n]*)*"'  # a JSON string holds no raw line end: a lost quote costs a line at most
# What follows a string, and what stands before an opening bracket, tells a lost quote or bracket where it was lost:
# counting alone would find its match in another record.
_TOKEN = re.compile(_STRING + rb'(?=\s*(?:[:,\]}]|\Z))|:\s*[\[{]|["\[\]{}]')
_SCALAR = re.compile(_STRING + rb'(?=\s*(?:[,\]]|\Z))|[^,\[\]{}"]+')
_BETWEEN = re.compile(rb"[\s,]*")
_OBJECT = re.compile(rb"(?::\s*)?\{")
_ONE_LINE_RECORD = re.compile(rb"^\{.*\}[ \t\r,]*$", re.MULTILINE)
_RECORD_FIELDS = (b'"timestamp"', b'"item_id"', b'"user_id"', b'"action"')


def split(text: bytes) -> Iterator[tuple[int, bytes | Rejection]]:
    """Cuts an object's text into (record number, record text) in order; numbers count from 0 without gaps.

    Takes an array, records a line, or records one after the other, with commas missing or doubled. A record text may
    still be no JSON: whoever parses it says so, and it costs nobody else. Where quotes or brackets do not match, what
    stands up to the next sound record (to the end if there is none) is ONE Rejection with the offset of the break.
    A line never costs another one when records stand one a line.
    """
    if not text.startswith(b"[") and _ONE_LINE_RECORD.search(text):
        return enumerate(_lines(text))
    return enumerate(_sequence(text))


def is_whole(record: bytes) -> bool:
    """Whether a record's text is there to its end: its quotes and brackets match."""
    return _record_end(record, 0) == len(record)


def _lines(text: bytes) -> Iterator[bytes | Rejection]:
    at = done = 0
    for line in text.split(b"\n"):
        start = at
        at += len(line) + 1
        if start < done:  # the record before goes on here
            start, line = done, text[done : at - 1]
        record = line.strip(b", \t\r\v\f")
        if not record:
            continue
        alone = record.startswith(b"{") and record.find(b"{", 1) < 0 and record.find(b"}") == len(record) - 1
        if alone or b"{" not in record or is_whole(record):
            yield record
        elif line.startswith(b"{") and (end := _record_end(_block(text, start), 0)) > len(line):
            yield text[start : start + end]
            done = start + end
        else:  # perhaps several on one line, or what a torn write left in front of one
            pieces = list(_sequence(record))
            yield from pieces if len(pieces) > 1 else [record]


def _block(text: bytes, start: int) -> bytes:
    """A record's line, and those behind it up to the next that begins with '{': it may go over several."""
    limit = start + _MAX_DAMAGED_RECORD
    end = text.find(b"\n{", start, limit)
    return text[start : limit if end < 0 else end]


def _sequence(text: bytes) -> Iterator[bytes | Rejection]:
    at, in_array = 0, False
    while True:
        at = _end(_BETWEEN.match(text, at), at)
        if at == len(text):
            if in_array:
                yield _break(text, at, at, "the array is not closed: cut off")
            return
        first = text[at : at + 1]
        if first == b"[" and not in_array:
            at, in_array = at + 1, True
        elif first == b"]" and in_array:
            at, in_array = at + 1, False
        elif (in_array or first == b"{") and (end := _record_end(text, at)) > 0:
            yield text[at:end].rstrip()
            at = end
        else:
            start, at = at, _restart(text, at)
            in_array = in_array and at < len(text)  # one rejection for the rest, not one more for the missing ']'
            yield _break(text, start, at, "quotes or brackets do not match")


def _record_end(text: bytes, start: int) -> int:
    """The end of the value that starts at `start`.

    Where its quotes or brackets do not match, or it may be cut off: minus the position up to which it was read, or 0.
    """
    if text[start] not in b"{[":
        end = _end(_SCALAR.match(text, start), 0)
        return end if end < len(text) else 0
    closers = bytearray()
    last = min(len(text), start + _MAX_DAMAGED_RECORD)
    for token in _TOKEN.finditer(text, start, last):
        mark = text[token.end() - 1]
        if mark == 0x22:
            if token.end() - token.start() == 1:
                return -token.end()
        elif mark in b"{[":
            if closers and (closers[-1] == 0x7D) != (text[token.start()] == 0x3A):
                return -token.end()  # in an object a value follows its name, in an array none does
            closers.append(mark + 2)  # in ASCII the closing bracket stands two after the opening one
        elif closers.pop() != mark:
            return -token.end()
        elif not closers:
            return token.end()
    return -last


def _restart(text: bytes, broken: int) -> int:
    """Where the next sound record starts after a break; the end of the text if none is found."""
    tried = 0
    for candidate in _OBJECT.finditer(text, broken + 1):
        start = candidate.start()
        if text[start] == 0x3A:  # the value of a name
            continue
        end = _record_end(text, start)
        # Only a whole event counts: an inner object of the broken record must not pass for one.
        if end > 0 and all(field in text[start:end] for field in _RECORD_FIELDS):
            return start
        tried += abs(end) - start
        if tried > _MAX_TRIED:
            break
    return len(text)


def _break(text: bytes, start: int, end: int, what: str) -> Rejection:
    return Rejection(
        "malformed_json", f"{what} at byte {start}, {end - start} bytes set aside", excerpt_of(text[start:end])
    )


def _end(match: re.Match[bytes] | None, otherwise: int) -> int:
    return match.end() if match else otherwise
