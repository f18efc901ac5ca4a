"""The cleaning: raw records in, interactions and rejections out, every record accounted for.

Every record takes the same SQL: DuckDB gives each field's own JSON text, and the text alone decides type and value. An
object that parses as an array is unnested whole; any other is cut into record texts by `decode.split` first.

A record is rejected for its first defect: the record as such, then timestamp, item_id, user_id, action, category_id and
price, in this order. What becomes of odd input:

| input | outcome |
|---|---|
| byte-order mark, UTF-16 | read as text |
| array; a record a line; records one after the other; trailing, missing or doubled commas between records | read |
| bytes that are no UTF-8 | malformed_json, that record only |
| quotes or brackets that do not match | malformed_json, once up to the next sound record, or for the rest |
| cut off (also inside gzip or zstd) | the records before the cut, and malformed_json once for the rest |
| corrupt gzip or zstd | malformed_json for the object: nothing that came out can be trusted |
| decompressed text above bucket.max_object_mb | too_large for the object |
| lone surrogate (`"\\ud800"`), raw control character in a text | malformed_json |
| element that is no object (5, "x", null, [..]) | not_an_object |
| deep nesting in a field that is not used | ignored, as all unknown fields are |
| the same field twice in a record | the first one counts |
| required field absent or null | missing_FIELD |
| category_id or price absent, null or "" | null |
| id 31, "31", 31.0, " 31 " | the id `31`: white space around is removed; a text is otherwise taken as it stands |
| id 31.5, true, {..}, [..], number with a point or exponent from 2^53 on | wrong_type_FIELD |
| integer id of any length | its digits |
| id "" or longer than 256 characters | out_of_range_FIELD |
| timestamp 1764547200000, 1764547200000.0, "1764547200000" | milliseconds since 1970 UTC |
| timestamp 1764547200, 1764547200000000 and so on | bad_timestamp, the detail says seconds, micro- or nanoseconds |
| timestamp that is another text ("2025-12-01") | bad_timestamp |
| timestamp before 2000, or after the day of LastModified (UTC) plus two days | out_of_range_timestamp |
| action in another case or with white space around | the action of the settings, if only one fits |
| action that the settings do not name | unknown_action |
| price "12.50" | 12.5 |
| price NaN, infinite, 1e400, negative | out_of_range_price; -0.0 is 0.0 |
| event outside its partition's local day | kept, off_day is true |
| same user, item, action and millisecond within the day | the first by (key, record) is kept, the others are counted |
"""

import glob
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from recsys_assets.ingest.decode import EXCERPT_CHARACTERS, Rejection, is_whole, split
from recsys_assets.settings import Settings

MAX_ID_CHARACTERS = 256
EARLIEST_MS = 946_684_800_000  # 2000-01-01
_LATEST_GUESS_MS = 4_102_444_800_000  # 2100-01-01: up to here a wrong unit is recognised
_DAY_MS = 86_400_000
_SLACK_DAYS = 2  # clocks of clients run ahead, and time zones reach a day over the server's
_TEXTS_AT_ONCE = 1 << 27  # bytes of record texts cleaned together

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


def clean(connection: duckdb.DuckDBPyConnection, raw: pa.Table | Path, day: str, settings: Settings) -> CleanResult:
    """Validates and deduplicates a raw day. The same records give the same result, whatever order the rows come in.

    Args:
        connection: any; nothing is left in it.
        raw: a row per object, as decode.raw_table makes it (RAW_SCHEMA), or the Parquet file of that.
        day: the partition, 'YYYY-MM-DD', a day of the calendar's time zone.

    Raises:
        ConservationError: names the objects whose records do not add up.
        ValueError: a key stands in two rows.
    """
    source = f"read_parquet({_literal(glob.escape(str(raw)))})" if isinstance(raw, Path) else "raw_objects"
    with connection.cursor() as cursor, connection.cursor() as reader:
        for each in (cursor, reader):
            if not isinstance(raw, Path):
                each.register("raw_objects", raw)
        return _clean(cursor, reader, source, day, settings)


def _clean(
    cursor: duckdb.DuckDBPyConnection, reader: duckdb.DuckDBPyConnection, source: str, day: str, settings: Settings
) -> CleanResult:
    counted = cursor.execute(_COUNT.format(source=source)).fetchall()
    counted.sort(key=lambda row: row[0].encode())
    keys = [row[0] for row in counted]
    if len(set(keys)) < len(keys):
        raise ValueError("the raw day holds a key twice")
    objects = pa.table(
        {
            "key": pa.array(keys, pa.string()),
            "object": pa.array(range(len(keys)), pa.int32()),
            "limit_ms": pa.array([row[1] + (_SLACK_DAYS + 1) * _DAY_MS for row in counted], pa.int64()),
            "is_array": pa.array([row[2] is not None for row in counted], pa.bool_()),
        }
    )
    cursor.register("objects", objects)
    reader.register("objects", objects)
    records_in = np.array([row[2] or 0 for row in counted], np.int64)  # arrays; the others are counted as they are cut

    names = sorted(settings.actions)
    found = [_judged(cursor, _FROM_ARRAYS.format(source=source, spec=_literal(f"[{_SPEC}]")), names)]
    told: list[tuple[int, int, Rejection]] = []
    for texts in _cut(reader, source, records_in, told):
        cursor.register("texts", texts)
        found.append(_judged(cursor, _FROM_TEXTS, names))
        cursor.unregister("texts")
    records = pl.concat(found)

    rejected = _explain(cursor, source, records.filter(pl.col("reason").is_not_null()), told)
    events, is_duplicate = _deduplicate(records.filter(pl.col("reason").is_null()))

    duplicates = events["object"].filter(is_duplicate)
    kept = events.filter(~is_duplicate) if len(duplicates) else events

    def per_object(numbers: pl.Series) -> NDArray[np.int64]:
        return np.bincount(numbers.to_numpy(), minlength=len(keys))

    source_keys = pl.Series(keys, dtype=pl.String())
    by_key = pl.DataFrame(
        {
            "key": source_keys,
            "records_in": records_in,
            "kept": per_object(kept["object"]),
            "duplicates": per_object(duplicates),
            "rejected": per_object(rejected["object"]),
        },
        schema={"key": pl.String(), **dict.fromkeys(("records_in", "kept", "duplicates", "rejected"), pl.Int64())},
    )
    assert_conserved(by_key)

    start_ms, end_ms = _bounds_ms(day, settings.calendar.time_zone)
    interactions = kept.select(
        "user_id",
        "item_id",
        pl.Series(names, dtype=pl.String()).gather(kept["action"]).alias("action"),
        pl.col("ms").cast(pl.Datetime("ms")).alias("timestamp"),
        "category_id",
        "price",
        source_keys.gather(kept["object"]).alias("source_key"),
        "record",
        ~pl.col("ms").is_between(start_ms, end_ms, closed="left").alias("off_day"),
    ).match_to_schema(INTERACTIONS_SCHEMA)
    per_action = dict(zip(names, np.bincount(kept["action"].to_numpy(), minlength=len(names)).tolist(), strict=True))
    return CleanResult(
        interactions=interactions,
        rejected=rejected.select(
            "reason", "detail", "excerpt", source_keys.gather(rejected["object"]).alias("source_key"), "record"
        ).match_to_schema(REJECTED_SCHEMA),
        records_in=int(records_in.sum()),
        kept=len(interactions),
        duplicates=len(duplicates),
        rejections=dict(rejected["reason"].value_counts().sort("reason").iter_rows()),
        off_day=int(interactions["off_day"].sum()),
        actions={action: per_action[action] for action in settings.actions},
        users=kept["user_rank"].n_unique(),
        items=kept["item_rank"].n_unique(),
        by_key=by_key,
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


def _deduplicate(records: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series]:
    """The records sorted by (user, timestamp, item, action, key, record), and bool[n]: same event as the one before."""
    identity = ["user_rank", "ms", "item_rank", "action"]
    records = (
        records.drop("reason", "detail", "excerpt")
        .with_columns(user_rank=_ranks(records["user_id"]), item_rank=_ranks(records["item_id"]))
        .sort([*identity, "object", "record"])
    )
    same = pl.all_horizontal(pl.col(column) == pl.col(column).shift(1) for column in identity)
    return records, records.select(same.fill_null(False).alias("same"))["same"]


def _ranks(texts: pl.Series) -> pl.Series:
    """The position of each text among the distinct ones in byte order: far cheaper to sort by than the text."""
    codes = pa.chunked_array([texts.to_arrow().cast(pa.large_string())]).combine_chunks().dictionary_encode()
    order = pl.Series(codes.dictionary).arg_sort().to_numpy()
    rank = np.empty(len(order), np.uint32)
    rank[order] = np.arange(len(order), dtype=np.uint32)
    return pl.Series(rank[codes.indices.to_numpy()])


def _cut(
    reader: duckdb.DuckDBPyConnection,
    source: str,
    records_in: NDArray[np.int64],
    told: list[tuple[int, int, Rejection]],
) -> Iterator[pa.Table]:
    """Cuts the objects that are no sound array into tables (object, record, limit_ms, text); fills the other two."""
    rows: list[tuple[int, int, int, bytes]] = []
    held = 0
    reader.execute(_OTHER_OBJECTS.format(source=source))
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
            if held > _TEXTS_AT_ONCE:
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
    cursor: duckdb.DuckDBPyConnection, source: str, rejected: pl.DataFrame, told: list[tuple[int, int, Rejection]]
) -> pl.DataFrame:
    """Adds the excerpts that arrays still lack, tells what is no object, and joins the rejections of the cutting."""
    columns = ["object", "record", "reason", "detail", "excerpt"]
    from_texts = rejected.filter(pl.col("excerpt").is_not_null()).select(columns)
    from_arrays = rejected.filter(pl.col("excerpt").is_null()).select(columns[:-1])
    if len(from_arrays):
        cursor.register("wanted", from_arrays.to_arrow())
        excerpts = _frame(cursor.sql(_EXCERPTS.format(source=source)))
        from_arrays = from_arrays.join(excerpts, on=["object", "record"], how="left")
    else:
        from_arrays = from_texts.clear()
    cut = pl.DataFrame(
        [(number, record, why.reason, why.detail, why.excerpt) for number, record, why in told],
        schema={name: from_texts.schema[name] for name in columns},
        orient="row",
    )
    no_object = (pl.col("reason") == "missing_timestamp") & ~pl.col("excerpt").str.starts_with("{")
    return (
        pl.concat([from_texts, from_arrays])
        .with_columns(
            reason=pl.when(no_object).then(pl.lit("not_an_object")).otherwise("reason"),
            detail=pl.when(no_object).then(pl.lit("no JSON object")).otherwise("detail"),
        )
        .vstack(cut)
        .sort("object", "record")
    )


# -------------------------------------------------------------------------------------------------------------- the SQL

_FIELDS = ("timestamp", "item_id", "user_id", "action", "category_id", "price")
_SPEC = json.dumps(dict.fromkeys(_FIELDS, "JSON"))  # each field as its own JSON text, null where absent or null

_COUNT = """
SELECT key, epoch_ms(date_trunc('day', last_modified)),
    CASE WHEN reason IS NULL AND starts_with(TRY(decode(content)), '[') THEN TRY(json_array_length(decode(content))) END
FROM {source}"""

_FROM_ARRAYS = """
SELECT object, record, limit_ms, fields, false AS malformed, NULL AS excerpt
FROM (
    SELECT object, limit_ms, unnest(range(len(list)))::INTEGER AS record, unnest(list) AS fields
    FROM (
        SELECT object, limit_ms, TRY(from_json(decode(content), {spec})) AS list
        FROM {source} JOIN objects USING (key)
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
SELECT object, limit_ms, content, reason, detail FROM {source} JOIN objects USING (key)
WHERE NOT is_array ORDER BY object"""

_EXCERPTS = f"""
SELECT object, record, left(coalesce(element::VARCHAR, 'null'), {EXCERPT_CHARACTERS}) AS excerpt
FROM (
    SELECT object, unnest(range(len(list)))::INTEGER AS record, unnest(list) AS element
    FROM (
        SELECT object, from_json(decode(content), '["JSON"]') AS list
        FROM {{source}} JOIN objects USING (key)
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
