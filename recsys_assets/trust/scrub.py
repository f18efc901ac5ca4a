"""Taking a user's id out of Dagster's history: its SQLite databases, free pages included, and its log files.

User ids stay out of Dagster's metadata by rule; what is looked for here is what a stack trace or a person's own log
line brought in.
"""

import base64
import contextlib
import functools
import html
import inspect
import json
import mmap
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_assets.ingest.decode import decode
from recsys_assets.pipeline import InputError
from recsys_assets.storage import files

MASK = "[erased]"
_SQLITE = b"SQLite format 3\0"
_DIGITS = re.compile(r"-?[0-9]+")
_COMMON = re.compile(r"-?\d{1,7}|.{1,3}", re.DOTALL)  # ids that occur everywhere by chance
# What ends in a letter or digit and is no part of the word behind it: \n, %22, \u0022, \x22, a colour of a terminal.
_ESCAPED = (
    rb"(?<=\\[ntr])|(?<=%[0-9A-Fa-f]{2})|(?<=\\u[0-9A-Fa-f]{4})|(?<=\\x[0-9A-Fa-f]{2})"
    rb"|(?<=\[[0-9]m)|(?<=[\[;][0-9]{2}m)"
)
_PATIENCE_SECONDS = 30.0
_MAX_PACKED = 1 << 30  # bytes of text
_NAMED = rb"(?i:\buser(?:_?id)?)[\\\"'\s:=]{1,8}"


def spellings(user: str) -> list[bytes]:
    """How an id may be written in a file: as it is, in JSON once and twice (\\/ and \\u00EB too), in a
    URL, in HTML, in Python, in UTF-16, in hexadecimal, and in Base64 on its own."""
    escaped, plain = json.dumps(user)[1:-1], json.dumps(user, ensure_ascii=False)[1:-1]
    loud = re.sub(r"\\u[0-9a-f]{4}", lambda found: "\\u" + found[0][2:].upper(), escaped)
    once = {each for text in (user, escaped, plain, loud) for each in (text, text.replace("/", "\\/"))}
    texts = [*once, *(json.dumps(each)[1:-1] for each in once)]
    raw = user.encode("utf-8", "surrogatepass")
    urls = [quote(raw), quote(raw, safe=""), quote_plus(raw)]
    texts += [*urls, *(re.sub("%..", lambda found: found[0].lower(), each) for each in urls)]
    texts += [html.escape(user), repr(user)[1:-1], ascii(user)[1:-1], repr(raw)[2:-1]]
    found = [each.encode("utf-8", "surrogatepass") for each in texts]
    found += [user.encode(codec, "surrogatepass") for codec in ("utf-16-le", "utf-16-be")]
    found += [raw.hex().encode(), raw.hex().upper().encode()]
    found += [code(raw).rstrip(b"=") for code in (base64.b64encode, base64.urlsafe_b64encode)]
    return sorted(set(found), key=lambda each: (-len(each), each))


def pattern(user: str) -> re.Pattern[bytes]:
    """Finds an id that stands for itself, not inside a longer word or number. Short digits, very short ids and those
    that Dagster or this graph uses as a word (`default`, `ingest`) only behind `user`: a history without its words is
    lost."""
    own = b"|".join(re.escape(each) for each in spellings(user))
    after = rb"(?![A-Za-z0-9]" + (rb"|\.[0-9])" if _DIGITS.fullmatch(user) else rb")")
    before = rb"(?P<before>(?<![A-Za-z0-9])|" + _ESCAPED + rb")"
    wanted = re.compile(rb"(?=" + own + rb")" + before + rb"(?:" + own + rb")" + after)  # looking first is fast
    if _COMMON.fullmatch(user) or wanted.search(_words_of_dagster()):
        return re.compile(rb"(?P<before>" + _NAMED + rb")(?:" + own + rb")" + after)
    return wanted


@functools.cache
def _words_of_dagster() -> bytes:
    """What Dagster's history cannot be read without: names of its classes, of their fields and values, of our graph."""
    from dagster._core.events import DagsterEventType
    from dagster._core.remote_representation.external_data import RepositorySnap
    from dagster._core.storage import tags
    from dagster_shared.serdes import serialize_value
    from dagster_shared.serdes.serdes import _WHITELIST_MAP

    from recsys_assets.definitions import defs

    words = [*DagsterEventType.__members__, *(each for each in vars(tags).values() if isinstance(each, str))]
    for name, of_class in _WHITELIST_MAP.object_serializers.items():
        words += [name, *inspect.signature(of_class.klass).parameters, *of_class.storage_field_names.values()]
    for name, of_enum in _WHITELIST_MAP.enum_serializers.items():
        words += [name, *(member.name for member in of_enum.klass)]
    return " ".join([*words, serialize_value(RepositorySnap.from_def(defs.get_repository_def()))]).encode()


def scrub(folder: Path, user: str) -> Iterator[tuple[Path, int]]:
    """Masks an id in every file below a folder. Yields each file that held it, and how many lines or rows did.

    Raises:
        InputError: another process holds a database for long.
    """
    wanted, mask = pattern(user), mask_of(user)
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if not path.is_file() or path.is_symlink() or path.name.endswith(("-wal", "-shm", "-journal")):
            continue
        with path.open("rb") as handle:
            is_database = handle.read(len(_SQLITE)) == _SQLITE
        if is_database:
            if rows := _scrub_database(path, wanted, mask):
                yield path, rows
        elif times := mask_in(path, wanted, mask):
            yield path, times


def mask_of(user: str) -> bytes:
    """What is put in an id's place (for `subn`): where digits are a number of JSON, another number."""
    return rb"\g<before>" + (b"0" if _DIGITS.fullmatch(user) else MASK.encode())


def mask_in(path: Path, wanted: re.Pattern[bytes], mask: bytes) -> int:
    """Masks an id in a file; how often it was in it."""
    masked, times = wanted.subn(mask, path.read_bytes())
    if times:
        files.write_bytes(path, masked)
    return times


def holds(path: Path, wanted: re.Pattern[bytes]) -> bool:
    """Whether the bytes of a file, or of a database's logs of changes, hold the id."""
    for each in (path, *(path.with_name(path.name + end) for end in ("-wal", "-journal"))):
        if each.is_file() and each.stat().st_size:
            with each.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if wanted.search(content):
                    return True
    return False


def packed(path: Path) -> Iterator[bytes]:
    """The texts that lie compressed in a gzip, zstd or Parquet file; as far as it can be read."""
    with path.open("rb") as handle:
        start = handle.read(4)
    if start == b"PAR1":
        with contextlib.suppress(pa.ArrowException, OSError):
            for batch in pq.ParquetFile(path).iter_batches():
                frame = pl.DataFrame(batch)
                for name in frame.select(pl.selectors.binary()).columns:
                    yield b"\n".join(frame[name].drop_nulls())
                yield frame.select(~pl.selectors.binary()).write_ndjson().encode()
    elif start.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")):
        yield decode(path.read_bytes(), _MAX_PACKED).text


def _scrub_database(path: Path, wanted: re.Pattern[bytes], mask: bytes) -> int:
    """Returns the rows that were changed, or 1 where only a free page held the id.

    Its cells are asked one by one: a long one lies in several pages, and none of them need hold the whole id.
    """
    in_bytes = holds(path, wanted)

    def hit(cell: object) -> bool:
        return bool(wanted.search(_bytes(cell)))

    def masked(cell: object) -> str | bytes:
        found = wanted.sub(mask, _bytes(cell))
        return found.decode("utf-8", "surrogateescape") if isinstance(cell, str) else found

    rows = 0
    with (
        _in_use(path),
        contextlib.closing(sqlite3.connect(path, timeout=_PATIENCE_SECONDS, isolation_level=None)) as connection,
    ):
        connection.execute("PRAGMA secure_delete=ON")
        connection.create_function("hit", 1, hit)
        connection.create_function("masked", 1, masked)
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for column in [row[1] for row in connection.execute(f"PRAGMA table_info({_name(table)})")]:
                cell = _name(column)
                where = f"WHERE typeof({cell}) IN ('text', 'blob') AND hit({cell})"
                if connection.execute(f"SELECT EXISTS (SELECT 1 FROM {_name(table)} {where})").fetchone()[0]:
                    rows += connection.execute(f"UPDATE {_name(table)} SET {cell} = masked({cell}) {where}").rowcount
        if not rows and not in_bytes:
            return 0
        connection.execute("VACUUM")  # free pages keep what was deleted
        if connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:  # 1: somebody reads the log of changes
            raise sqlite3.OperationalError("database is locked")
    return max(rows, 1)


@contextlib.contextmanager
def _in_use(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise
        raise InputError(f"{path} is in use by another process. End it (recsys ui, a run) and ask again.") from error


def _bytes(cell: object) -> bytes:
    return cell.encode("utf-8", "surrogateescape") if isinstance(cell, str) else bytes(cell)  # type: ignore[call-overload]


def _name(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
