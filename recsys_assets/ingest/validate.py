"""The cleaning: raw records in, interactions and rejections out, every record accounted for.

Objects in which nothing is odd take the short way of `plain`, which judges nothing and gives the rows that would come
out here. Every other record takes the same SQL: DuckDB gives each field's own JSON text, and the text alone decides
type and value. An object that parses as an array is unnested; any other is first cut into texts by `decode.split`.

A record is rejected for its first defect: the record as such, then timestamp, item_id, user_id, action, category_id and
price, in this order. What becomes of odd input:

| input | outcome |
|---|---|
| byte-order mark, UTF-16 | read as text |
| array; a record a line; records one after the other; trailing, missing or doubled commas between records | read |
| bytes that are no UTF-8 (in UTF-16: a lone surrogate, half a character) | malformed_json, that record only |
| quotes or brackets that do not match | malformed_json, once up to the next sound record, or for the rest |
| cut off (also inside gzip or zstd) | the records before the cut, and malformed_json once for the rest |
| corrupt gzip or zstd | malformed_json for the object: nothing that came out can be trusted |
| decompressed text above bucket.max_object_mb | too_large for the object |
| lone surrogate (`"\\ud800"`), raw control character in a text | malformed_json |
| element that is no object (5, "x", null, [..]) | not_an_object |
| a comma behind the last field of a record or the last element of a list | ignored |
| `{"recsys":"erased"}`, which stands for a record that was cut out | erased |
| deep nesting in a field that is not used | ignored, as all unknown fields are |
| a field's name in another case or with white space | an unknown field; written with escapes it is the same |
| the same field twice in a record | the first one counts |
| required field absent or null | missing_FIELD |
| category_id or price absent, null or "" | null |
| id 31, "31", 31.0, " 31 " | the id `31`: ASCII white space around is removed; a text is otherwise taken as it stands |
| id 31.5, NaN, true, {..}, [..], number with a point or exponent from 2^53 on | wrong_type_FIELD |
| integer id of any length | its digits |
| id "" or longer than 256 characters | out_of_range_FIELD |
| timestamp 1764547200000, 1764547200000.0, "1764547200000" | milliseconds since 1970 UTC |
| timestamp of 2000 to 2100 in another unit: 1764547200, 1764547200000000 | bad_timestamp, the detail names the unit |
| timestamp that is another text ("2025-12-01") | bad_timestamp |
| timestamp before 2000, or after the day of LastModified (UTC) plus two days | out_of_range_timestamp |
| action in another case or with white space around | the action of the settings, if only one fits |
| action that the settings do not name | unknown_action |
| price "12.50" | 12.5 |
| price NaN, Infinity (in any case, inf too), 1e400, negative | out_of_range_price; -0.0 is 0.0 |
| event outside its partition's local day | kept, off_day is true |
| same user, item, action and millisecond within the day | the first by (key, record) is kept, the others are counted |
"""

import itertools
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import TypeAlias
from zoneinfo import ZoneInfo

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys_assets.ingest.decode import EXCERPT_CHARACTERS, RAW_SCHEMA, Rejection, is_whole, split
from recsys_assets.ingest.plain import EARLIEST_MS, MAX_ID_CHARACTERS, plain_events
from recsys_assets.settings import Settings

ERASED = "erased"
MARKER = '{"recsys":"erased"}'  # stands where a record of an erased user was cut out (ingest/erased.py)
_LATEST_GUESS_MS = 4_102_444_800_000  # 2100-01-01: up to here a wrong unit is recognised
_DAY_MS = 86_400_000
_SLACK_DAYS = 2  # clocks of clients run ahead, and time zones reach a day over the server's
_TEXT_AT_ONCE = 5 << 25  # bytes of objects cleaned together: a larger day is cleaned in portions
_CUT_AT_ONCE = 1 << 27  # bytes of records that were cut out of damaged objects and objects of lines
_DECODERS = 2  # threads, of what is one core's work each
_FRONTS = np.array([2**64 - 256 ** (8 - length) for length in range(9)], np.uint64)  # the first bytes of a number
_NUMBERED = 1 << 16  # texts turned into numbers together: what stays in a processor's cache
_SPILL_GROUP = 1 << 14  # rows that are read back together
_SPILL_RANGE = 1 << 20

INTERACTIONS_SCHEMA = pl.Schema(
    {
        "user_id": pl.String(),
        "item_id": pl.String(),
        "action": pl.String(),
        "timestamp": pl.Datetime("ms"),
        "category_id": pl.String(),
        "price": pl.Float64(),
        "source_key": pl.String(),
        "record": pl.Int32(),
        "off_day": pl.Boolean(),
    }
)
REJECTED_SCHEMA = pl.Schema(
    {
        "reason": pl.String(),
        "detail": pl.String(),
        "excerpt": pl.String(),
        "source_key": pl.String(),
        "record": pl.Int32(),
    }
)
_EVENT_COLUMNS = ("object", "record", "user_id", "item_id", "action", "ms", "category_id", "price")
_EVENT_TYPES = (pl.Int32(), pl.Int32(), pl.String(), pl.String(), pl.Int32(), pl.Int64(), pl.String(), pl.Float64())
_EVENT_SCHEMA = pl.Schema(zip(_EVENT_COLUMNS, _EVENT_TYPES, strict=True))  # object and action are positions
_HEAD_SCHEMA = pl.Schema({"key": pl.String(), "limit_ms": pl.Int64()})
_TOLD_SCHEMA = pl.Schema(
    {
        "object": pl.Int32(),
        "record": pl.Int32(),
        "reason": pl.String(),
        "detail": pl.String(),
        "excerpt": pl.String(),
    }
)


Raw: TypeAlias = Path | pa.Table | Iterable[pa.RecordBatch]
"""A raw day of decode.RAW_SCHEMA: its Parquet file, a table, or batches as they come."""


class ConservationError(RuntimeError):
    """Records in are not kept + duplicates + rejected for some object: nothing of this day may be published."""


@dataclass(frozen=True)
class CleanResult:
    """A cleaned day.

    Attributes:
        interactions: INTERACTIONS_SCHEMA, sorted by user_id, timestamp, item_id, action; unique in these four.
            timestamp is UTC; record counts from 0 within the object.
        rejected: REJECTED_SCHEMA, sorted by source_key, record.
        records_in: records counted before cleaning, not by it. records_in = kept + duplicates + sum(rejections).
        kept, duplicates: records.
        rejections: reason -> records.
        off_day: kept records whose local day is not the partition's.
        actions: action -> kept records, in the order of the settings.
        users, items: distinct ids kept.
        by_key: a row per object, sorted by key: key, records_in, kept, duplicates, rejected.
    """

    interactions: pl.DataFrame
    rejected: pl.DataFrame
    records_in: int
    kept: int
    duplicates: int
    rejections: dict[str, int]
    off_day: int
    actions: dict[str, int]
    users: int
    items: int
    by_key: pl.DataFrame

    def rows(self) -> pl.DataFrame:
        """Interactions and rejected, one below the other, with the columns of both: what a partition holds."""
        if len(self.rejected):
            return pl.concat([self.interactions, self.rejected], how="diagonal")
        others = REJECTED_SCHEMA.keys() - self.interactions.columns
        nulls = [pl.lit(None, kind).alias(name) for name, kind in REJECTED_SCHEMA.items() if name in others]
        return self.interactions.with_columns(nulls)  # which take no memory


def clean(connection: duckdb.DuckDBPyConnection, raw: Raw, day: str, settings: Settings) -> CleanResult:
    """Validates and deduplicates a raw day. The same records give the same result, whatever order the rows come in.

    Args:
        connection: any; nothing is left in it.
        raw: a row per object, as decode.raw_table or raw_batches make them, or the Parquet file of that.
        day: the partition, 'YYYY-MM-DD', a day of the calendar's time zone.

    Raises:
        ConservationError: names the objects whose records do not add up.
        ValueError: a key stands in two rows.
    """
    ((_, result),) = clean_days(connection, {day: raw}, settings)
    return result


def clean_days(
    connection: duckdb.DuckDBPyConnection, raws: Mapping[str, Raw], settings: Settings
) -> Iterator[tuple[str, CleanResult]]:
    """`clean` of several days by one statement: to compile it takes longer than to run it over a small day."""
    days = sorted(raws)
    objects_of: list[int] = []

    def batches() -> Iterator[pa.RecordBatch]:
        for day in days:
            objects_of.append(0)
            for batch in _batches(raws[day]):
                objects_of[-1] += len(batch)
                yield batch.set_column(0, "key", pc.binary_join_element_wise(day, batch["key"], "/"))

    with connection.cursor() as cursor, connection.cursor() as reader:
        objects, records_in, events, rejected = _judge(cursor, reader, batches(), None, sorted(settings.actions))
    first = 0
    for day, count in zip(days, objects_of, strict=True):
        end = first + count
        inside, number = pl.col("object").is_between(first, end, closed="left"), pl.col("object") - first
        valid, others = (
            each.filter(inside).with_columns(number.alias("object")) if len(days) > 1 else each
            for each in (events, rejected)
        )
        keys = objects["key"][first:end].str.slice(len(day) + 1)
        result = _result(valid, others, keys, records_in[first:end], day, settings)
        assert_conserved(result.by_key)
        yield day, result
        first = end


def _batches(raw: Raw) -> Iterable[pa.RecordBatch]:
    if isinstance(raw, Path):
        return _read_groups(raw, range(len(_group_bytes(raw))))
    return raw.to_batches() if isinstance(raw, pa.Table) else raw


def text_bytes(raw: Path) -> int:
    """Bytes of a raw day's objects, decompressed."""
    return sum(_group_bytes(raw))


def is_large(raw: Path) -> bool:
    """Whether a raw day is so large that `clean_large` must take it."""
    return text_bytes(raw) > _TEXT_AT_ONCE


def clean_large(
    connection: duckdb.DuckDBPyConnection,
    raw: Path,
    day: str,
    settings: Settings,
    rules: Callable[[CleanResult], CleanResult],
    write: Callable[[pl.DataFrame], None],
    spill: Path,
) -> CleanResult:
    """`clean` and `rules` in bounded memory: some objects at a time, then some users at a time.

    Args:
        rules: applied to all events of some users at a time (rules.apply_rules).
        write: takes the rows in the order they have in CleanResult: interactions, then rejected.
        spill: an empty folder for what does not fit into memory, about a tenth of the text.

    Returns:
        The counts of the day. Its `interactions` are empty, its `rejected` hold the first row of each reason.

    Raises:
        ConservationError, ValueError: as `clean`, the former perhaps after `write` took rows.
    """
    with pq.ParquetFile(raw) as file:
        objects = _objects(_heads(file.read(columns=["key", "last_modified"])))
    keys, names = objects["key"], sorted(settings.actions)
    by_user, by_key = _Spill(spill, "user_id"), _Spill(spill, "source_key")
    records_in = np.zeros(len(keys), np.int64)
    for groups in _portions(_group_bytes(raw)):
        with connection.cursor() as cursor, connection.cursor() as reader:
            _, counted, events, rejected = _judge(cursor, reader, _read_groups(raw, groups), objects, names)
        records_in += counted
        by_user.add(events[pl.Series(_ranks(events["user_id"])).arg_sort()])
        by_key.add(_named(rejected, keys))
        del events, rejected

    nobody = pl.DataFrame(schema=_TOLD_SCHEMA)
    total = rules(_result(pl.DataFrame(schema=_EVENT_SCHEMA), nobody, keys, records_in, day, settings))
    items = pl.Series([], dtype=pl.String())
    counts = np.zeros((len(keys), 3), np.int64)  # kept, duplicates, rejected
    for events in by_user.ranges():
        part = rules(_result(events, nobody, keys, None, day, settings))
        write(part.interactions)
        by_key.add(part.rejected)
        counts[:, :2] += part.by_key.select("kept", "duplicates").to_numpy()
        items = pl.concat([items, part.interactions["item_id"]]).unique()
        total = replace(
            total,
            kept=total.kept + part.kept,
            duplicates=total.duplicates + part.duplicates,
            off_day=total.off_day + part.off_day,
            actions={action: count + part.actions[action] for action, count in total.actions.items()},
            users=total.users + part.users,
        )
    reasons: Counter[str] = Counter()
    examples = total.rejected
    for rejected in by_key.ranges():
        rejected = rejected.sort("source_key", "record")
        write(rejected)
        counts[:, 2] += np.bincount(keys.search_sorted(rejected["source_key"]).to_numpy(), minlength=len(keys))
        reasons.update(dict(rejected["reason"].value_counts().iter_rows()))
        examples = pl.concat([examples, rejected]).unique("reason", keep="first", maintain_order=True)
    total = replace(
        total,
        items=len(items),
        rejected=examples,
        rejections=dict(sorted(reasons.items())),
        by_key=_by_key(keys, records_in, *counts.T),
    )
    assert_conserved(total.by_key)
    return total


class _Spill:
    """Rows on disk, each portion sorted by the column `by`, to be read back in ranges of it."""

    def __init__(self, folder: Path, by: str) -> None:
        self._folder = folder
        self._by = by
        self._paths: list[Path] = []
        self._samples: list[pl.Series] = []

    def add(self, portion: pl.DataFrame) -> None:
        if len(portion):
            path = self._folder / f"{self._by}-{len(self._paths)}.parquet"
            pq.write_table(portion.to_arrow(), path, compression="lz4", row_group_size=_SPILL_GROUP)
            self._paths.append(path)
            self._samples.append(portion[self._by].gather_every(_SPILL_GROUP))

    def ranges(self) -> Iterator[pl.DataFrame]:
        """All rows in successive ranges, of about _SPILL_RANGE rows if no one value has more."""
        if not self._paths:
            return
        column = pl.col(self._by)
        starts = pl.concat(self._samples).sort().gather_every(max(_SPILL_RANGE // _SPILL_GROUP, 1))
        for start, end in itertools.pairwise([None, *starts[1:].unique(maintain_order=True), None]):
            inside = pl.lit(True) if start is None else column >= start
            rows = pl.scan_parquet(self._paths).filter(inside if end is None else inside & (column < end)).collect()
            if len(rows):
                yield rows


def _group_bytes(raw: Path) -> list[int]:
    """Bytes of each row group, decompressed."""
    metadata = pq.read_metadata(raw)
    return [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]


def _read_groups(raw: Path, groups: Iterable[int]) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(raw) as file:  # a dataset's scanner takes twice the CPU
        for group in groups:
            yield from file.read_row_group(group).to_batches()


def _portions(sizes: list[int]) -> list[list[int]]:
    """The numbers of a file's row groups, together where they hold at most _TEXT_AT_ONCE."""
    portions: list[list[int]] = [[]]
    held = 0
    for group, size in enumerate(sizes):
        held += size
        if portions[-1] and held > _TEXT_AT_ONCE:
            portions.append([])
            held = size
        portions[-1].append(group)
    return portions


def _heads(raw: pa.RecordBatch | pa.Table) -> pl.DataFrame:
    """_HEAD_SCHEMA of each object: its key, and what its timestamps lie before."""
    frame = pl.DataFrame({"key": raw["key"], "limit_ms": raw["last_modified"]}, schema_overrides={"key": pl.String()})
    return frame.with_columns(
        pl.col("limit_ms").dt.truncate("1d").dt.epoch("ms") + (_SLACK_DAYS + 1) * _DAY_MS
    ).match_to_schema(_HEAD_SCHEMA)


def _objects(heads: pl.DataFrame) -> pl.DataFrame:
    """The day's objects in the order of their keys: key, limit_ms, object (the number).

    Raises:
        ValueError: a key stands in two rows.
    """
    if heads["key"].n_unique() < len(heads):
        raise ValueError("the raw day holds a key twice")
    return heads.sort("key").with_columns(pl.int_range(pl.len(), dtype=pl.Int32()).alias("object"))


def _judge(
    cursor: duckdb.DuckDBPyConnection,
    reader: duckdb.DuckDBPyConnection,
    batches: Iterable[pa.RecordBatch],
    objects: pl.DataFrame | None,
    names: list[str],
) -> tuple[pl.DataFrame, NDArray[np.int64], pl.DataFrame, pl.DataFrame]:
    """Every record on its own.

    Args:
        batches: of RAW_SCHEMA.
        objects: those of the whole day, if `batches` are a part of it (`_objects`).

    Returns:
        The objects; int64[objects], how many records each has; the valid events (_EVENT_SCHEMA, in no order); and the
        others (_TOLD_SCHEMA, by object and record).
    """
    heads, counts, events, left = _plain(batches, names)
    objects = _objects(heads) if objects is None else objects
    number = heads.join(objects, on="key", how="left", maintain_order="left")["object"]
    records_in = np.zeros(len(objects), np.int64)
    records_in[number.to_numpy()] = counts
    events = events.with_columns(number.gather(events["object"]))
    if not len(left):
        return objects, records_in, events, pl.DataFrame(schema=_TOLD_SCHEMA)

    for each in (cursor, reader):
        each.register("raw_objects", left)
    counted = _frame(cursor.sql(_COUNT)).join(objects, on="key")
    records_in[counted["object"].to_numpy()] = counted["records"].fill_null(0).to_numpy()  # others as they are cut
    here = counted.select("key", "object", "limit_ms", pl.col("records").is_not_null().alias("is_array")).to_arrow()
    for each in (cursor, reader):
        each.register("objects", here)
    found = [_judged(cursor, _FROM_ARRAYS, names)]
    told: list[tuple[int, int, Rejection]] = []
    for texts in _cut(reader, records_in, told):
        cursor.register("texts", texts)
        found.append(_judged(cursor, _FROM_TEXTS, names))
        cursor.unregister("texts")
    records = pl.concat(found)
    rejected = _explain(cursor, records.filter(pl.col("reason").is_not_null()), told)
    valid = records.filter(pl.col("reason").is_null()).select(*_EVENT_COLUMNS)
    return objects, records_in, pl.concat([events, valid]), rejected


def _plain(
    batches: Iterable[pa.RecordBatch], names: list[str]
) -> tuple[pl.DataFrame, NDArray[np.int64], pl.DataFrame, pa.Table]:
    """Decodes plain objects on all cores while `batches` are read.

    Returns:
        The objects as they came (key, last_modified, limit_ms); int64[objects], how many records each has, 0 if it is
        left; the events of plain objects, by their place among all; and the rows of those that are left.
    """
    heads: list[pl.DataFrame] = []
    counts: list[NDArray[np.int64]] = []
    events: list[pl.DataFrame] = []
    left: list[pa.RecordBatch] = []
    first = 0

    def take(batch: pa.RecordBatch, found: tuple[pl.DataFrame, NDArray[np.int64]]) -> None:
        nonlocal first
        events.append(found[0].with_columns(pl.col("object") + first))
        counts.append(found[1].clip(0))
        if len(rest := np.flatnonzero(found[1] < 0)):
            left.append(batch.take(pa.array(rest)))
        first += len(batch)

    running: deque[tuple[pa.RecordBatch, Future[tuple[pl.DataFrame, NDArray[np.int64]]]]] = deque()
    with ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode") as pool:
        for batch in batches:
            heads.append(_heads(batch))
            running.append((batch, pool.submit(plain_events, batch, heads[-1]["limit_ms"].to_numpy(), names)))
            if len(running) > 2 * _DECODERS:
                done, future = running.popleft()
                take(done, future.result())
        for done, future in running:
            take(done, future.result())
    return (
        pl.concat([pl.DataFrame(schema=_HEAD_SCHEMA), *heads]),
        np.concatenate([np.empty(0, np.int64), *counts]),
        pl.concat([pl.DataFrame(schema=_EVENT_SCHEMA), *events]),
        pa.Table.from_batches(left, RAW_SCHEMA),
    )


def _result(
    events: pl.DataFrame,
    rejected: pl.DataFrame,
    keys: pl.Series,
    records_in: NDArray[np.int64] | None,
    day: str,
    settings: Settings,
) -> CleanResult:
    """The result of judged records. `records_in`: of each object; None: just these."""
    names = sorted(settings.actions)
    start_ms, end_ms = _bounds_ms(day, settings.calendar.time_zone)
    with ThreadPoolExecutor(1) as pool:  # beside the ranking, which takes one core
        joined, items = pool.submit(events.rechunk), pool.submit(events["item_id"].n_unique)
        user = _ranks(events["user_id"])
        users, events = int(user.max(initial=-1)) + 1, joined.result()
        order, again = _deduplicated(events, user)

    def per_object(numbers: pl.Series) -> NDArray[np.int64]:
        return np.bincount(numbers.to_numpy(), minlength=len(keys))

    duplicates = per_object(events["object"].gather(again))
    kept = events.select(pl.all().gather(pl.Series(order, dtype=pl.UInt32())))  # what Polars would cast each time
    interactions = kept.select(
        "user_id",
        "item_id",
        pl.Series(names, dtype=pl.String()).gather(kept["action"]).alias("action"),
        pl.col("ms").cast(pl.Datetime("ms")).alias("timestamp"),
        "category_id",
        "price",
        keys.gather(kept["object"]).alias("source_key"),
        "record",
        ~pl.col("ms").is_between(start_ms, end_ms, closed="left").alias("off_day"),
    ).match_to_schema(INTERACTIONS_SCHEMA)
    counts = (per_object(kept["object"]), duplicates, per_object(rejected["object"]))
    by_key = _by_key(keys, np.sum(counts, 0) if records_in is None else records_in, *counts)
    per_action = np.bincount(kept["action"].to_numpy(), minlength=len(names)).tolist()
    return CleanResult(
        interactions=interactions,
        rejected=_named(rejected, keys),
        records_in=int(by_key["records_in"].sum()),
        kept=len(kept),
        duplicates=len(again),
        rejections=dict(rejected["reason"].value_counts().sort("reason").iter_rows()),
        off_day=int(interactions["off_day"].sum()),
        actions={action: per_action[names.index(action)] for action in names},
        users=users,
        items=items.result(),
        by_key=by_key,
    )


def _named(rejected: pl.DataFrame, keys: pl.Series) -> pl.DataFrame:
    """Rejected records (_TOLD_SCHEMA) in REJECTED_SCHEMA."""
    source_key = keys.gather(rejected["object"]).alias("source_key")
    return rejected.select("reason", "detail", "excerpt", source_key, "record").match_to_schema(REJECTED_SCHEMA)


def _by_key(
    keys: pl.Series,
    records_in: NDArray[np.int64],
    kept: NDArray[np.int64],
    duplicates: NDArray[np.int64],
    rejected: NDArray[np.int64],
) -> pl.DataFrame:
    return pl.DataFrame(
        {"key": keys, "records_in": records_in, "kept": kept, "duplicates": duplicates, "rejected": rejected},
        schema={"key": pl.String(), **dict.fromkeys(("records_in", "kept", "duplicates", "rejected"), pl.Int64())},
    )


def assert_conserved(by_key: pl.DataFrame) -> None:
    """Raises ConservationError unless, for every row of a CleanResult's by_key, what came in is what came out."""
    wrong = by_key.filter(pl.col("records_in") != pl.col("kept") + pl.col("duplicates") + pl.col("rejected"))
    if len(wrong):
        first = wrong.row(0, named=True)
        raise ConservationError(
            f"{len(wrong)} objects do not add up, the first is {first['key']!r}: {first['records_in']} records in, but "
            f"{first['kept']} kept + {first['duplicates']} duplicates + {first['rejected']} rejected"
        )


def _bounds_ms(day: str, time_zone: str) -> tuple[int, int]:
    """Milliseconds since 1970 UTC at which a local day starts and ends."""
    first = date.fromisoformat(day)
    zone = ZoneInfo(time_zone)
    starts = (datetime.combine(first + timedelta(days=days), time(), zone) for days in (0, 1))
    start, end = (int(moment.timestamp()) * 1000 for moment in starts)
    return start, end


def _deduplicated(events: pl.DataFrame, user: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to keep, in the order of (user_id, timestamp, item_id, action); rows that repeat one. `user`: its ranks.

    Sorting one integer is far faster than sorting by all columns, and faster still if it holds its row. It leaves few
    rows that share a user and a moment (or many in a small day): only these are sorted by all.
    """
    action, ms, place, record = (events[name].to_numpy() for name in ("action", "ms", "object", "record"))
    since = ms - ms.min(initial=_LATEST_GUESS_MS)
    row_bits, user_bits, ms_bits = (
        int(top).bit_length() for top in (len(ms), user.max(initial=0), since.max(initial=0))
    )
    cut = max(row_bits + user_bits + ms_bits - 63, 0)  # of a large day, or a long one, the last bits of ms do not fit
    keys = user << (ms_bits - cut)  # then in place: new memory costs as much as the arithmetic
    keys |= since >> cut
    keys <<= row_bits
    keys |= np.arange(len(ms))
    coarse = pl.Series(keys).sort().to_numpy()
    order = coarse & ((1 << row_bits) - 1)
    coarse = coarse >> row_bits
    follows = np.flatnonzero(coarse[1:] == coarse[:-1]) + 1  # places in the order, equal to the one before
    tied = np.union1d(follows, follows - 1)
    rows = order[tied]
    item = _ranks(events["item_id"].gather(rows))
    by_all = np.lexsort([record[rows], place[rows], action[rows], item, ms[rows], coarse[tied]])
    order[tied] = rows[by_all]
    identity = np.stack([item, ms[rows], action[rows]])[:, by_all]
    second = np.searchsorted(tied, follows)  # of `tied`, where the one before it is its neighbour
    repeats = follows[(identity[:, second] == identity[:, second - 1]).all(0)]
    return np.delete(order, repeats), order[repeats]


def _ranks(texts: pl.Series) -> NDArray[np.int64]:
    """The position of each text among the distinct ones in byte order: far cheaper to sort by than the text."""
    numbers = _numbers(texts)
    values = pa.chunked_array([texts.to_arrow()]).combine_chunks() if numbers is None else pa.array(numbers)
    codes = values.dictionary_encode()
    order = pl.Series(codes.dictionary).arg_sort().to_numpy()
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank[codes.indices.to_numpy()]


def _numbers(texts: pl.Series) -> NDArray[np.uint64] | None:
    """Numbers of the same order, which are cheaper to tell apart. For texts that begin alike and differ in the eight
    bytes behind at most, as names do that end in a number; None for others."""
    edges = [str(text).encode() for text in (texts.min(), texts.max())]
    alike = len(os.path.commonprefix(edges))  # noqa: RUF071 (no paths)
    numbers = np.empty(len(texts), np.uint64)
    for start in range(0, len(texts), _NUMBERED):
        part = pa.chunked_array([texts[start : start + _NUMBERED].to_arrow()]).combine_chunks()
        _, ends, text = part.cast(pa.large_string()).buffers()
        places = np.frombuffer(ends, np.int64)[part.offset : part.offset + len(part) + 1]
        lengths = np.diff(places) - alike
        if lengths.max() > 8 or b"\0" in (held := text.to_pybytes()):
            return None
        words = np.ndarray(len(held) + 1, ">u8", held + bytes(8), strides=(1,))[places[:-1] + alike]
        np.bitwise_and(words, _FRONTS[lengths], out=numbers[start : start + len(part)])
    return numbers


def _cut(
    reader: duckdb.DuckDBPyConnection,
    records_in: NDArray[np.int64],
    told: list[tuple[int, int, Rejection]],
) -> Iterator[pa.Table]:
    """Cuts the objects that are no sound array into tables (object, record, limit_ms, text); fills the other two."""
    rows: list[tuple[int, int, int, bytes]] = []
    held = 0
    reader.execute(_OTHER_OBJECTS)
    while fetched := reader.fetchmany(20):
        for number, limit_ms, content, reason, detail in fetched:
            pieces = [piece for _, piece in split(content or b"")]
            if reason is not None:  # stands for all behind the text, so also for a record cut in two at its end
                if pieces and (isinstance(last := pieces[-1], Rejection) or not is_whole(last)):
                    pieces.pop()
                pieces.append(Rejection(reason, detail, ""))
            records_in[number] = len(pieces)
            for record, piece in enumerate(pieces):
                if isinstance(piece, Rejection):
                    told.append((number, record, piece))
                else:
                    rows.append((number, record, limit_ms, piece))
                    held += len(piece) + 100
            if held > _CUT_AT_ONCE:
                yield _texts(rows)
                rows, held = [], 0
    if rows:
        yield _texts(rows)


def _texts(rows: Iterable[tuple[int, int, int, bytes]]) -> pa.Table:
    columns = zip(*rows, strict=True)
    types = {"object": pa.int32(), "record": pa.int32(), "limit_ms": pa.int64(), "text": pa.binary()}
    table = pa.table(
        {name: pa.array(column, kind) for (name, kind), column in zip(types.items(), columns, strict=True)}
    )
    return pa.Table.from_batches(table.to_batches(max_chunksize=20_000))  # what DuckDB spreads over its threads


def _explain(
    cursor: duckdb.DuckDBPyConnection, rejected: pl.DataFrame, told: list[tuple[int, int, Rejection]]
) -> pl.DataFrame:
    """Adds the excerpts that arrays still lack, tells what is no object, and joins the rejections of the cutting."""
    columns = list(_TOLD_SCHEMA)
    from_texts = rejected.filter(pl.col("excerpt").is_not_null()).select(columns)
    from_arrays = rejected.filter(pl.col("excerpt").is_null()).select(columns[:-1])
    if len(from_arrays):
        cursor.register("wanted", from_arrays.to_arrow())
        excerpts = _frame(cursor.sql(_EXCERPTS))
        from_arrays = from_arrays.join(excerpts, on=["object", "record"], how="left")
    else:
        from_arrays = from_texts.clear()
    cut = pl.DataFrame(
        [(number, record, why.reason, why.detail, why.excerpt) for number, record, why in told],
        schema=_TOLD_SCHEMA,
        orient="row",
    )
    no_object = (pl.col("reason") == "missing_timestamp") & ~pl.col("excerpt").str.starts_with("{")
    cut_out = (pl.col("reason") == "missing_timestamp") & (pl.col("excerpt") == MARKER)
    return (
        pl.concat([from_texts, from_arrays])
        .with_columns(
            reason=pl.when(no_object)
            .then(pl.lit("not_an_object"))
            .when(cut_out)
            .then(pl.lit(ERASED))
            .otherwise("reason"),
            detail=pl.when(no_object)
            .then(pl.lit("no JSON object"))
            .when(cut_out)
            .then(pl.lit("the record of an erased user"))
            .otherwise("detail"),
        )
        .vstack(cut)
        .sort("object", "record")
    )


# -------------------------------------------------------------------------------------------------------------- the SQL

_FIELDS = ("timestamp", "item_id", "user_id", "action", "category_id", "price")
_SPEC = json.dumps(dict.fromkeys(_FIELDS, "JSON"))  # each field as its own JSON text, null where absent or null

_COUNT = """
SELECT key,
    CASE WHEN reason IS NULL AND starts_with(TRY(decode(content)), '[') THEN TRY(json_array_length(decode(content))) END
    ::BIGINT AS records
FROM raw_objects"""

_FROM_ARRAYS = f"""
SELECT object, record, limit_ms, fields, false AS malformed, NULL AS excerpt
FROM (
    SELECT object, limit_ms, unnest(range(len(list)))::INTEGER AS record, unnest(list) AS fields
    FROM (
        SELECT object, limit_ms, TRY(from_json(decode(content), '[{_SPEC}]')) AS list
        FROM raw_objects JOIN objects USING (key)
        WHERE is_array))"""

_FROM_TEXTS = f"""
SELECT object, record, limit_ms, fields,
    fields IS NULL AND NOT coalesce(json_valid(text), false) AS malformed,
    left(coalesce(TRY(from_json(text, '"JSON"'))::VARCHAR, text, replace(bytes::VARCHAR, '\\x22', '"')),
        {EXCERPT_CHARACTERS}) AS excerpt
FROM (
    SELECT object, record, limit_ms, bytes, text, TRY(from_json(text, '{_SPEC}')) AS fields
    FROM (SELECT object, record, limit_ms, text AS bytes, TRY(decode(text)) AS text FROM texts))"""

_OTHER_OBJECTS = """
SELECT object, limit_ms, content, reason, detail FROM raw_objects JOIN objects USING (key)
WHERE NOT is_array ORDER BY object"""

_EXCERPTS = f"""
SELECT object, record, left(coalesce(element::VARCHAR, 'null'), {EXCERPT_CHARACTERS}) AS excerpt
FROM (
    SELECT object, unnest(range(len(list)))::INTEGER AS record, unnest(list) AS element
    FROM (
        SELECT object, from_json(decode(content), '["JSON"]') AS list
        FROM raw_objects JOIN objects USING (key)
        WHERE object IN (SELECT object FROM wanted)))
SEMI JOIN wanted USING (object, record)"""

_SPACE = "' ' || chr(9) || chr(10) || chr(11) || chr(12) || chr(13)"
_NUMBER = "[+-]?([0-9]+([.][0-9]*)?|[.][0-9]+)([eE][+-]?[0-9]+)?"
_EXACT = 2**53  # below, every integer is its own double


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _text(raw: str) -> str:
    """SQL: the trimmed value of a JSON string. White space other than a blank can only stand there escaped."""
    bare = f"substr({raw}, 2, length({raw}) - 2)"
    return f"""CASE WHEN contains({raw}, '\\') THEN trim({raw}->>'$', {_SPACE})
        WHEN contains({raw}, ' ') THEN trim({bare}, {_SPACE}) ELSE {bare} END"""


def _id(raw: str) -> str:
    """SQL: the text of a JSON string or integral number; null for anything else."""
    number = f"TRY_CAST({raw} AS DOUBLE)"
    return f"""CASE WHEN starts_with({raw}, '"') THEN {_text(raw)}
        WHEN TRY_CAST({raw} AS BIGINT)::VARCHAR = {raw} OR regexp_full_match({raw}, '-?[0-9]+') THEN {raw}::VARCHAR
        WHEN abs({number}) < {_EXACT} AND trunc({number}) = {number} THEN {number}::BIGINT::VARCHAR END"""


def _action(raw: str, names: list[str]) -> str:
    """SQL: the position of an action in `names`."""
    lower = [name.lower() for name in names]
    exact = " ".join(
        f"WHEN {_literal(json.dumps(name, ensure_ascii=False))} THEN {at}" for at, name in enumerate(names)
    )
    escaped = " ".join(f"WHEN {_literal(name)} THEN {at}" for at, name in enumerate(names))
    similar = " ".join(
        f"WHEN lower({_literal(name)}) THEN {at}" for at, name in enumerate(names) if lower.count(name.lower()) == 1
    )
    value = _text(raw)
    similar = f"CASE lower({value}) {similar} END" if similar else "NULL"
    return f"""CASE {raw} {exact}
        ELSE CASE WHEN starts_with({raw}, '"') THEN coalesce(CASE {value} {escaped} END, {similar}) END END"""


def _judged(cursor: duckdb.DuckDBPyConnection, records: str, names: list[str]) -> pl.DataFrame:
    """The records (object, record, limit_ms, fields, malformed, excerpt) with their typed values, or a reason.

    Each layer below computes once what the next one uses several times; NULLs fail a comparison, so that the first,
    cheap test of `reason` takes only records without any defect.
    """
    raw = ", ".join(f"fields.{name}::VARCHAR AS raw_{name}" for name in _FIELDS)
    any_id = f"BETWEEN 1 AND {MAX_ID_CHARACTERS}"

    def id_defects(name: str) -> str:
        return f"""WHEN raw_{name} IS NULL THEN 'missing_{name}' WHEN {name} IS NULL THEN 'wrong_type_{name}'
            WHEN NOT length({name}) {any_id} THEN 'out_of_range_{name}'"""

    unit = f"""CASE WHEN ms BETWEEN {EARLIEST_MS // 1000} AND {_LATEST_GUESS_MS // 1000} THEN 'seconds'
        WHEN ms // 1000 BETWEEN {EARLIEST_MS} AND {_LATEST_GUESS_MS} THEN 'microseconds'
        WHEN ms // 1000000 BETWEEN {EARLIEST_MS} AND {_LATEST_GUESS_MS} THEN 'nanoseconds' END"""
    query = f"""
WITH raw AS (SELECT object, record, limit_ms, malformed, excerpt, {raw} FROM ({records})),
typed AS (SELECT *,
    TRY_CAST(raw_timestamp AS BIGINT) AS plain_ms, {_id("raw_item_id")} AS item_id, {_id("raw_user_id")} AS user_id,
    {_action("raw_action", names)}::INTEGER AS action,
    {_id("raw_category_id")} AS category_text,
    CASE WHEN starts_with(raw_price, '"') THEN {_text("raw_price")} END AS price_text FROM raw),
odd AS (SELECT *,  -- a cast rounds 31.5, so only a number that reads the same again is taken as it is
    CASE WHEN plain_ms::VARCHAR = raw_timestamp THEN NULL ELSE {_id("raw_timestamp")} END AS moment FROM typed),
timed AS (SELECT *,
    CASE WHEN moment IS NULL AND plain_ms::VARCHAR = raw_timestamp THEN plain_ms
         WHEN regexp_full_match(moment, '-?[0-9]+') THEN TRY_CAST(moment AS BIGINT) END AS ms,
    nullif(category_text, '') AS category_id,
    0.0 + CASE WHEN price_text IS NULL THEN TRY_CAST(raw_price AS DOUBLE)
        WHEN regexp_full_match(price_text, '{_NUMBER}') THEN TRY_CAST(price_text AS DOUBLE) END AS price FROM odd),
judged AS (SELECT *, CASE
    WHEN ms >= {EARLIEST_MS} AND ms < limit_ms AND length(item_id) {any_id} AND length(user_id) {any_id}
        AND action IS NOT NULL AND (raw_category_id IS NULL OR length(category_id) <= {MAX_ID_CHARACTERS})
        AND (raw_price IS NULL OR price >= 0 AND price < 'inf'::DOUBLE) THEN NULL
    WHEN malformed THEN 'malformed_json'
    WHEN raw_timestamp IS NULL THEN 'missing_timestamp'
    WHEN ms IS NULL AND moment IS NULL THEN 'wrong_type_timestamp'
    WHEN ms IS NULL AND NOT regexp_full_match(moment, '-?[0-9]+') THEN 'bad_timestamp'
    WHEN ms IS NULL OR ms < {EARLIEST_MS} OR ms >= limit_ms
        THEN CASE WHEN {unit} IS NULL THEN 'out_of_range_timestamp' ELSE 'bad_timestamp' END
    {id_defects("item_id")}
    {id_defects("user_id")}
    WHEN raw_action IS NULL THEN 'missing_action'
    WHEN NOT starts_with(raw_action, '"') THEN 'wrong_type_action'
    WHEN action IS NULL THEN 'unknown_action'
    WHEN length(category_id) > {MAX_ID_CHARACTERS} THEN 'out_of_range_category_id'
    WHEN raw_category_id IS NOT NULL AND category_text IS NULL THEN 'wrong_type_category_id'
    WHEN price IS NOT NULL AND NOT (price >= 0 AND price < 'inf'::DOUBLE) THEN 'out_of_range_price'
    WHEN raw_price IS NOT NULL AND price IS NULL AND price_text IS DISTINCT FROM '' THEN 'wrong_type_price'
    END AS reason FROM timed)
SELECT object, record, reason,
    CASE WHEN reason IS NULL THEN NULL
        WHEN reason = 'malformed_json' THEN 'not valid JSON'
        WHEN starts_with(reason, 'missing_') THEN 'absent or null'
        WHEN reason = 'bad_timestamp' THEN coalesce({unit}, 'text')
            || ' given for milliseconds: ' || left(raw_timestamp, 80)
        WHEN reason = 'out_of_range_timestamp' THEN left(raw_timestamp, 80) || ' is before 2000-01-01 or not before '
            || strftime(make_timestamp_ms(limit_ms), '%Y-%m-%d') || ' UTC'
        WHEN ends_with(reason, '_action') THEN left(raw_action, 80)
        WHEN ends_with(reason, '_price') THEN left(raw_price, 80)
        ELSE CASE WHEN starts_with(reason, 'out_of_range') THEN 'empty or longer than {MAX_ID_CHARACTERS} characters: '
            ELSE 'neither text nor integer: ' END
            || left(CASE WHEN ends_with(reason, 'item_id') THEN raw_item_id WHEN ends_with(reason, 'user_id')
                THEN raw_user_id WHEN ends_with(reason, 'category_id') THEN raw_category_id ELSE raw_timestamp END, 80)
    END AS detail,
    CASE WHEN reason IS NOT NULL THEN excerpt::VARCHAR END AS excerpt,
    user_id, item_id, action, ms, category_id, price
FROM judged"""
    return _frame(cursor.sql(query))


def _frame(relation: duckdb.DuckDBPyRelation) -> pl.DataFrame:
    frame = pl.from_arrow(relation.to_arrow_table())
    assert isinstance(frame, pl.DataFrame)
    return frame
