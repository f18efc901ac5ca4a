"""Erased users stay absent: their records are cut out when raw_events is written, and their events set aside when a raw
day from before is cleaned.

In the place of a record stands `MARKER`, so that the others keep their numbers and every record is accounted for:
cleaning rejects it with the reason `erased`. Where a record was cut out of a damaged object, the object is written
anew, a record a line; of what could not be read in it its excerpt stays.
"""

from dataclasses import replace

import duckdb
import polars as pl
import pyarrow as pa

from recsys_assets.ingest.decode import RAW_SCHEMA, Rejection, excerpt_of, is_whole, split
from recsys_assets.ingest.rules import set_aside
from recsys_assets.ingest.validate import ERASED, MARKER, CleanResult
from recsys_assets.storage.tombstones import Erased

_MARK = MARKER.encode()
_UNREADABLE = str.maketrans(dict.fromkeys('{}[]"\\\n\r', " "))


def cut_batch(batch: pa.RecordBatch, erased: Erased) -> tuple[pa.RecordBatch, dict[str, int]]:
    """A batch of RAW_SCHEMA without the records of erased users, and how many were cut out of which key."""
    found: dict[str, int] = {}
    if not erased:
        return batch, found
    contents = batch.column("content").to_pylist()
    whole = [reason is None for reason in batch.column("reason").to_pylist()]
    for row, (content, is_sound) in enumerate(zip(contents, whole, strict=True)):
        kept, cut = cut_object(content or b"", is_sound, erased)
        if cut:
            contents[row], found[batch.column("key")[row].as_py()] = kept, cut
    if found:
        place = RAW_SCHEMA.get_field_index("content")
        batch = batch.set_column(place, RAW_SCHEMA.field(place), pa.array(contents, RAW_SCHEMA.field(place).type))
    return batch, found


def cut_object(content: bytes, is_sound: bool, erased: Erased, marked: bool = True) -> tuple[bytes, int]:
    """An object's text without the records of erased users, and how many they were.

    Args:
        is_sound: nothing is missing behind the text.
        marked: leave MARKER in the place of each; otherwise nothing, and no text at all where no record is left.
    """
    text = _text(content)
    if not erased.may_be_in(text):
        return content, 0
    with duckdb.connect(config={"threads": 1}) as parser:
        return _cut(parser, content, is_sound, erased, marked)


def _cut(
    parser: duckdb.DuckDBPyConnection, content: bytes, is_sound: bool, erased: Erased, marked: bool
) -> tuple[bytes, int]:
    elements = _elements(parser, content) if is_sound else None
    if elements is not None:
        theirs = [erased.own(each) for each in elements]
        kept = [MARKER if mine else each for mine, each in zip(theirs, elements, strict=True) if marked or not mine]
        return (f"[{','.join(kept)}]".encode() if kept else b"", sum(theirs)) if any(theirs) else (content, 0)
    pieces = [piece for _, piece in split(content)]
    torn = not is_sound and bool(pieces) and (isinstance(last := pieces[-1], Rejection) or not is_whole(last))
    if torn:
        pieces.pop()  # as in cleaning: the row's own rejection stands for a record that is cut in two
    texts, tail = _texts_of(content, pieces)
    theirs = [erased.own(_text(each)) for each in texts]
    cut_tail = erased.named_in(_text(tail))
    if not any(theirs) and not cut_tail:
        return content, 0
    cut = sum(theirs) + cut_tail
    if not marked:
        rest = [text for text, mine in zip([*texts, tail], [*theirs, cut_tail], strict=True) if not mine]
        return b"\n".join(rest), cut
    lines = [_MARK if mine else _line(parser, piece) for mine, piece in zip(theirs, pieces, strict=True)]
    lines += [b"{"] if torn else []  # for cleaning to leave out in its turn
    made = b"\n".join(lines)
    if made.startswith(b"["):
        made = b"\n" + made  # no array, but lines of which the first is one
    if [piece for _, piece in split(made)] != lines:  # lines that would be cut otherwise: an array, of what is valid
        valid = [
            _MARK if mine or not _is_json(parser, line) else line for mine, line in zip(theirs, lines, strict=False)
        ]
        made = b"[" + b",".join(valid) + (b",{" if torn else b"]")
    return made, cut


def _texts_of(content: bytes, pieces: list[bytes | Rejection]) -> tuple[list[bytes], bytes]:
    """What each piece was cut from, a rejection's whole text too, and what stands behind the last."""
    spans: list[list[int]] = []
    at = 0
    for piece in pieces:
        if isinstance(piece, Rejection):
            spans.append([at, -1])
            continue
        start = content.index(piece, at)
        at = start + len(piece)
        if spans and spans[-1][1] < 0:
            spans[-1][1] = start
        spans.append([start, at])
    if spans and spans[-1][1] < 0:
        spans[-1][1] = at = len(content)
    return [content[start:end] for start, end in spans], content[at:].strip(b"], \t\r\n")


def _line(parser: duckdb.DuckDBPyConnection, piece: bytes | Rejection) -> bytes:
    """A record on one line; of one that is no JSON a line that is none either."""
    if isinstance(piece, bytes) and _is_json(parser, piece):
        return piece.replace(b"\n", b" ").replace(b"\r", b" ").strip(b", \t\v\f")
    excerpt = piece.excerpt if isinstance(piece, Rejection) else excerpt_of(piece)
    return f"{{unreadable: {excerpt.translate(_UNREADABLE)}}}".encode("utf-8", "replace")


def _text(content: bytes) -> str:
    """UTF-8 where it is, each byte a character where it is not."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content.decode("utf-8", "replace") + content.decode("latin-1")


def without(result: CleanResult, erased: Erased) -> CleanResult:
    """The result with every event of erased users set aside, and no excerpt that names one."""
    if not erased:
        return result
    users = result.interactions["user_id"].unique()
    gone = users.filter(pl.Series([user in erased for user in users], dtype=pl.Boolean))
    if len(gone):
        result = set_aside(result, gone, ERASED, pl.lit(None, pl.String()), pl.lit(None, pl.String()))
    names = [text is not None and erased.own(text, words=False) for text in result.rejected["excerpt"]]
    if any(names):
        named = pl.Series(names)
        nothing = pl.lit(None, pl.String())
        rejected = result.rejected.with_columns(
            reason=pl.when(named).then(pl.lit(ERASED)).otherwise("reason"),
            detail=pl.when(named).then(nothing).otherwise("detail"),
            excerpt=pl.when(named).then(nothing).otherwise("excerpt"),
        )
        reasons = dict(rejected["reason"].value_counts().sort("reason").iter_rows())
        result = replace(result, rejected=rejected, rejections=reasons)
    return result


def _elements(parser: duckdb.DuckDBPyConnection, content: bytes) -> list[str] | None:
    """The records of a sound array, by the parser that cleaning uses; None for any other text."""
    row = parser.execute(
        "SELECT coalesce(starts_with(TRY(decode($1)), '['), false), TRY(json_array_length(decode($1))), "
        "TRY(from_json(decode($1), '[\"JSON\"]'))::VARCHAR[]",
        [content],
    ).fetchone()
    if row is None or not row[0] or row[1] is None or row[2] is None:
        return None
    return ["null" if each is None else each for each in row[2]]


def _is_json(parser: duckdb.DuckDBPyConnection, record: bytes) -> bool:
    row = parser.execute("SELECT coalesce(json_valid(TRY(decode($1))), false)", [record]).fetchone()
    return bool(row and row[0])
