"""raw_events, interactions and rejected_events: one partition a day."""

import functools
import itertools
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from recsys_assets import reporting
from recsys_assets.days import shift, today
from recsys_assets.ingest import listing
from recsys_assets.ingest.decode import raw_batches, raw_writer
from recsys_assets.ingest.erased import cut_batch, without
from recsys_assets.ingest.rules import apply_rules
from recsys_assets.ingest.validate import (
    INTERACTIONS_SCHEMA,
    REJECTED_SCHEMA,
    CleanResult,
    clean_days,
    clean_large,
    is_large,
    text_bytes,
)
from recsys_assets.ingest.versions import (
    CLEAN_CODE,
    FINGERPRINT,
    RAW_CODE,
    cleaning_version,
    raw_stands,
    raw_version,
)
from recsys_assets.optional import before_raw_events
from recsys_assets.partitions import daily
from recsys_assets.pipeline import InputError, Pipeline, explained_failures
from recsys_assets.settings import Settings, load_settings
from recsys_assets.storage.bucket import Bucket, LogObject, fetch
from recsys_assets.storage.files import temporary_name
from recsys_assets.storage.tables import info_text
from recsys_assets.storage.warehouse import scratch

_settings = load_settings()
# Settings are part of the code versions that Dagster knows, so that it marks what another setting outdates.
_CLEANING = f"{CLEAN_CODE}.{cleaning_version(_settings, '')}"
_SHOWN_OBJECTS = 10
_DAYS_TOGETHER = 16
_TEXT_TOGETHER = 1 << 25  # bytes


class RawConfig(dg.Config):
    """How a day's objects are taken over."""

    force: bool = Field(
        default=False, description="accept a day that shrinks by more than ingest.max_shrink_share or becomes empty"
    )


@dg.asset(
    partitions_def=daily,
    backfill_policy=dg.BackfillPolicy.single_run(),
    deps=before_raw_events(_settings),
    group_name="ingest",
    kinds={"s3", "json", "parquet"},
    owners=reporting.OWNERS,
    code_version=RAW_CODE,
    description=(
        "Every log object of the day as it came, with key, ETag and size: the day can be cleaned again by new rules, "
        "or after the bucket's lifecycle has deleted it. A day's objects are those in its dated folder; undated ones "
        "belong to the day they were last modified."
    ),
    metadata={
        "dagster/table_name": "raw_events",
        "dagster/column_schema": reporting.schema(
            {
                "key": ("VARCHAR", "the object's key in the bucket"),
                "etag": ("VARCHAR", "the version that was read"),
                "size": ("BIGINT", "bytes in the bucket"),
                "last_modified": ("TIMESTAMPTZ", "UTC"),
                "content": ("BLOB", "the text as it came, decompressed (the view raw_events shows a record a row)"),
                "reason": ("VARCHAR", "why a part of the object could not be read (too large, corrupt), if so"),
            }
        ),
    },
)
def raw_events(
    context: dg.AssetExecutionContext, config: RawConfig, pipeline: dg.ResourceParam[Pipeline]
) -> dg.MaterializeResult:
    with explained_failures(pipeline):
        settings, days = pipeline.settings, list(context.partition_keys)
        found = listing.days_of(pipeline.bucket, settings, days)
        objects = sum(len(each) for each in found.days.values())
        context.log.info(f"{reporting.summary(days)}: {objects} objects listed with {found.requests} requests")
        if left := found.ignored.get("max_files"):
            context.log.warning(
                f"{left} objects are NOT read, because bucket.max_files is {settings.bucket.max_files}: a setting for "
                "trying things out. Remove it and run these days again to read them."
            )
        if not objects and not listing.has_any(pipeline.bucket, settings):
            raise InputError(
                f"Nothing lies below {pipeline.bucket.url}/{settings.bucket.prefix}. Check bucket.url and "
                "bucket.prefix (recsys preflight helps). Earlier partitions are as they were."
            )
        known = {day: pipeline.tables.sound_info("raw_events", day) for day in days}
        changed = [
            day for day in days if not raw_stands(known[day], listing.fingerprint(found.days[day]), settings.bucket)
        ]
        refused = {} if config.force else shrinking(pipeline, changed, known, found.days)
        accepted = [day for day in changed if day not in refused]
        seconds = {}
        for day, started in _take_over(pipeline, accepted, found.days, {} if config.force else known, context):
            seconds[day] = time.monotonic() - started
        if accepted:
            pipeline.warehouse.ensure_views("raw_events", context.log.warning)
        if refused:
            raise InputError("\n".join(refused.values()))
        versions: dict[str, str] = {}
        of_the_run = f" of all {len(days)} days" if len(days) > 1 else ""
        for day in days:
            info = pipeline.tables.info("raw_events", day)
            assert info is not None
            if not info["objects"]:
                context.log.warning(f"{day}: no objects in the bucket for this day; an empty partition stands for it")
            versions[day] = raw_version(info)
            size = pipeline.tables.path("raw_events", day).stat().st_size
            context.add_asset_metadata(
                {
                    "dagster/partition_row_count": info["objects"],
                    "objects": info["objects"],
                    "bytes in the bucket": info["bytes"],
                    "bytes on disk": size,
                    "newest object": reporting.moment(info["newest"]),
                    **_console_link(pipeline.bucket, found.days[day]),
                    "largest objects": reporting.table(info["largest"], ["key", "bytes"]),
                    f"ignored objects{of_the_run}": reporting.counts_table("reason", found.ignored),
                    "seconds": round(seconds.get(day, 0.0), 2),
                    **reporting.made(day in seconds, versions[day]),
                    FINGERPRINT: info[FINGERPRINT],
                },
                partition_key=day,
            )
    return dg.MaterializeResult(data_version=reporting.data_version(versions))


def _console_link(bucket: Bucket, objects: list[LogObject]) -> dict[str, dg.MetadataValue]:
    same = os.path.commonprefix([obj.key for obj in objects])  # noqa: RUF071 (cut to a folder in the next line)
    url = bucket.console_url(same[: same.rfind("/") + 1])
    return {"in the bucket": dg.MetadataValue.url(url)} if url else {}


def shrinking(
    pipeline: Pipeline, days: list[str], known: dict[str, Any], found: dict[str, list[LogObject]]
) -> dict[str, str]:
    """Days that would lose more than is believable of what is `known` of them, with what to say of each."""
    refused = {}
    for day in days:
        now = sum(obj.size for obj in found[day])
        if text := _loss(pipeline, day, known[day], now, len(found[day])):
            refused[day] = text
    return refused


def _loss(pipeline: Pipeline, day: str, known: dict[str, Any] | None, now: int, objects: int) -> str | None:
    """What to say of a day that would come from what is `known` of it to `now` bytes, if that is not believable."""
    before = known["bytes"] if known else 0
    if known is None or not _falls(before, now, pipeline.settings.ingest.max_shrink_share):
        return None
    return (
        f"{day}: the bucket now holds {now:,} bytes in {objects} objects, {before:,} bytes in "
        f"{known['objects']} objects were read before. The partition stays as it was. If objects were "
        "deleted on purpose, materialize raw_events for this day with the config force: true, or: "
        f"recsys run ingest --day {day} --force; if the bucket's lifecycle deletes old days, nothing needs doing."
    )


def _falls(before: int, now: int, share: float) -> bool:
    """Whether a number falls to nothing, or by more than a share."""
    return before > 0 and (now == 0 or now < before * (1 - share))


def _take_over(
    pipeline: Pipeline,
    days: list[str],
    found: dict[str, list[LogObject]],
    known: dict[str, Any],
    context: dg.AssetExecutionContext,
) -> Iterator[tuple[str, float]]:
    """Fetches the objects of all days in one stream, so that small days do not wait for one another, and publishes day
    after day. Yields each day that is published, with the moment its writing began.

    Raises:
        InputError: so much was deleted since the listing that a day loses more than is believable of what is `known`.
    """
    progress = reporting.Progress(context.log.info)
    day_of_key = {obj.key: day for day in days for obj in found[day]}
    stream = fetch(
        pipeline.bucket,
        [obj for day in days for obj in found[day]],
        pipeline.settings.bucket.in_flight,
        max_size=pipeline.settings.bucket.max_object_mb * 2**20,
        on_progress=lambda count, size: progress(f"{count} of {len(day_of_key)} objects, {size / 1e6:.0f} MB"),
        on_gone=lambda obj: context.log.warning(f"{obj.key} was deleted after it was listed; left out"),
    )
    groups = itertools.groupby(stream, key=lambda pair: day_of_key[pair[0].key])
    group = next(groups, None) if days else None
    for day in days:
        started = time.monotonic()
        here: Iterable[tuple[LogObject, bytes]] = group[1] if group is not None and group[0] == day else ()
        write = functools.partial(_write_raw, here, pipeline, day, known.get(day))
        pipeline.tables.publish("raw_events", day, write)
        yield day, started
        if group is not None and group[0] == day:
            group = next(groups, None)


def _write_raw(
    fetched: Iterable[tuple[LogObject, bytes]], pipeline: Pipeline, day: str, known: dict[str, Any] | None, path: Path
) -> None:
    read: list[LogObject] = []
    max_object_mb = pipeline.settings.bucket.max_object_mb
    erased = pipeline.tombstones.read()

    def noted() -> Iterator[tuple[LogObject, bytes]]:
        for obj, content in fetched:
            read.append(obj)
            yield obj, content

    with raw_writer(path) as writer:
        too_large, cut = False, 0
        for batch in raw_batches(noted(), max_object_mb * 2**20):
            batch, found = cut_batch(batch, erased)
            cut += sum(found.values())
            writer.write_batch(batch)
            too_large |= "too_large" in batch.column("reason").to_pylist()
        info = _raw_info(read) | ({"too_large_above_mb": max_object_mb} if too_large else {})
        info |= {"erased": cut} if cut else {}
        if text := _loss(pipeline, day, known, info["bytes"], info["objects"]):
            raise InputError(text)
        writer.add_key_value_metadata({"recsys": info_text(info)})


def _raw_info(read: list[LogObject]) -> dict[str, Any]:
    largest = sorted(read, key=lambda obj: (-obj.size, obj.key))[:5]
    newest = max((obj.last_modified for obj in read), default=None)
    return {
        FINGERPRINT: listing.fingerprint(read),
        "code": RAW_CODE,
        "objects": len(read),
        "bytes": sum(obj.size for obj in read),
        "newest": newest.isoformat() if newest else None,
        "largest": [{"key": obj.key, "bytes": obj.size} for obj in largest],
    }


_INTERACTION_COLUMNS = {
    "day": ("DATE", "partition"),
    "user_id": ("VARCHAR", "as in the record"),
    "item_id": ("VARCHAR", "as in the record"),
    "action": ("VARCHAR", "one of the settings' actions"),
    "timestamp": ("TIMESTAMP", "UTC, milliseconds"),
    "category_id": ("VARCHAR", "null where the record has none"),
    "price": ("DOUBLE", "as in the record; null where it has none"),
    "source_key": ("VARCHAR", "the object the record came from"),
    "record": ("INTEGER", "the record's number in the object, from 0"),
    "off_day": ("BOOLEAN", "the event's local day is not the partition's"),
    "session_id": ("INTEGER", "number of the user's session in the day, from 0 (ingest.session_gap_minutes), or null"),
}
_REJECTED_COLUMNS = {
    "day": ("DATE", "partition"),
    "source_key": ("VARCHAR", "the object the record came from"),
    "record": ("INTEGER", "the record's number in the object, from 0"),
    "reason": ("VARCHAR", "missing_user_id, wrong_type_price, bad_timestamp, unknown_action, malformed_json, ..."),
    "detail": ("VARCHAR", "what was found instead"),
    "excerpt": ("VARCHAR", "the start of the record"),
}


class CleanConfig(dg.Config):
    """How a day is cleaned."""

    force: bool = Field(
        default=False,
        description="accept a day that loses more than ingest.max_shrink_share of its events, or all of them, though "
        "its objects stayed",
    )


@dg.multi_asset(
    name="interactions",
    partitions_def=daily,
    backfill_policy=dg.BackfillPolicy.single_run(),
    group_name="ingest",
    specs=[
        dg.AssetSpec(
            "interactions",
            deps=["raw_events"],
            kinds={"duckdb", "parquet"},
            owners=reporting.OWNERS,
            code_version=_CLEANING,
            description=(
                "The day's events, typed, validated and deduplicated, each with the object and record it came from. "
                "Made in DuckDB from raw_events; nothing disappears without a count and a reason."
            ),
            metadata={
                "dagster/table_name": "interactions",
                "dagster/column_schema": reporting.schema(_INTERACTION_COLUMNS),
            },
        ),
        dg.AssetSpec(
            "rejected_events",
            deps=["raw_events"],
            kinds={"duckdb", "parquet"},
            owners=reporting.OWNERS,
            code_version=_CLEANING,
            description=(
                "The day's records that are no valid event, each with its reason. Lies in the same file as the "
                "interactions, so that the two can never disagree."
            ),
            metadata={
                "dagster/table_name": "rejected_events",
                "dagster/column_schema": reporting.schema(_REJECTED_COLUMNS),
            },
        ),
    ],
    check_specs=[
        dg.AssetCheckSpec(
            "every_record_accounted_for",
            asset="interactions",
            description="Records in the objects = kept + rejected + duplicates, for every object. Checked before "
            "publishing: a day that does not add up is never published.",
        )
    ],
)
def interactions(
    context: dg.AssetExecutionContext, config: CleanConfig, pipeline: dg.ResourceParam[Pipeline]
) -> Iterator[dg.MaterializeResult]:
    refused: list[str] = []
    versions: dict[str, str] = {}
    totals = {"records in": 0, "kept": 0, "rejected": 0, "duplicates": 0}
    days = list(context.partition_keys)
    progress = reporting.Progress(context.log.info)
    with explained_failures(pipeline), scratch(pipeline.settings.store) as connection:  # connecting costs a small day
        together = _Together(connection, pipeline, days)
        for number, day in enumerate(days):
            started = time.monotonic()
            try:
                cleaned = clean_day(connection, pipeline, day, config.force, together)
            except RefusedError as error:
                refused.append(str(error))
                continue
            info, counts = cleaned.info, cleaned.info["counts"]
            versions[day] = info["version"]
            rejected = sum(counts["rejected"].values())
            for name, value in zip(
                totals, (counts["records_in"], counts["kept"], rejected, counts["duplicates"]), strict=True
            ):
                totals[name] += value
            shared = {
                "seconds": round(time.monotonic() - started, 2),
                **reporting.made(cleaned.fresh, info["version"]),
            }
            context.add_asset_metadata(
                {
                    "dagster/partition_row_count": counts["kept"],
                    "records in": counts["records_in"],
                    "kept": counts["kept"],
                    **({} if cleaned.kept_before is None else {"kept before": cleaned.kept_before}),
                    "rejected": rejected,
                    "duplicates": counts["duplicates"],
                    "events of another day": counts["off_day"],
                    "users": counts["users"],
                    "items": counts["items"],
                    **{f"action {name}": count for name, count in counts["actions"].items()},
                    "actions": reporting.counts_table("action", counts["actions"]),
                    "objects that were not kept whole": reporting.table(
                        info["objects"], ["key", "records_in", "kept", "rejected", "duplicates"]
                    ),
                    **shared,
                    FINGERPRINT: info[FINGERPRINT],  # the sensor reads it
                },
                asset_key="interactions",
                partition_key=day,
            )
            context.add_asset_metadata(
                {
                    "dagster/partition_row_count": rejected,
                    "share of the records": reporting.number(rejected / max(counts["records_in"], 1)),
                    **{f"rejected {name}": count for name, count in counts["rejected"].items()},
                    "reasons": reporting.counts_table("reason", counts["rejected"]),
                    "examples (the view rejected_events has all)": reporting.table(
                        info["examples"], ["reason", "record", "source_key"]
                    ),
                    **shared,
                },
                asset_key="rejected_events",
                partition_key=day,
            )
            progress(f"{number + 1} of {len(days)} days cleaned, now {day}")
        if pipeline.tables.days("interactions"):
            pipeline.warehouse.ensure_views("interactions", context.log.warning)
        if refused:
            raise InputError("\n".join(refused))
    context.log.info(
        f"{reporting.summary(days)}: {totals['records in']:,} records = {totals['kept']:,} kept + "
        f"{totals['rejected']:,} rejected + {totals['duplicates']:,} duplicates"
    )
    version = reporting.data_version(versions)
    reporting.before_checks(context, "interactions", versions)
    yield dg.MaterializeResult(
        asset_key="interactions",
        data_version=version,
        check_results=[
            dg.AssetCheckResult(
                check_name="every_record_accounted_for",
                passed=totals["records in"] == totals["kept"] + totals["rejected"] + totals["duplicates"],
                metadata={**totals, "days": len(days)},
            )
        ],
    )
    yield dg.MaterializeResult(asset_key="rejected_events", data_version=version)


class RefusedError(InputError):
    """A day would lose more events than is believable; the partition stays as it was."""


@dataclass(frozen=True)
class Cleaned:
    """A day's interactions as they stand now.

    Attributes:
        info: of the partition: version, fingerprint, counts.
        fresh: made anew, because the inputs or the rules are others.
        kept_before: events in the partition that this one replaced; None if there was none.
    """

    info: dict[str, Any]
    fresh: bool
    kept_before: int | None


class _Together:
    """Cleans small days of a run by one statement: the first that needs it takes the next ones along."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, pipeline: Pipeline, days: Iterable[str]) -> None:
        self._connection = connection
        self._pipeline = pipeline
        self._left = deque(days)
        self._ready: dict[str, tuple[str, CleanResult]] = {}  # day -> raw fingerprint, result

    def clean(self, day: str, raw: Path, fingerprint: str) -> CleanResult:
        """The cleaned day. `fingerprint`: of `raw`, read before; a raw day that was replaced since is read again."""
        found, result = self._ready.pop(day, (None, None))
        if result is None or found != fingerprint:
            raws, fingerprints = self._following(day, raw)
            try:
                results = dict(clean_days(self._connection, raws, self._pipeline.settings))
            except Exception:  # a day that fails fails when its turn comes
                if len(raws) == 1:
                    raise
                results = dict(clean_days(self._connection, {day: raw}, self._pipeline.settings))
            result = results.pop(day)
            self._ready |= {each: (fingerprints[each], results[each]) for each in results}
        return result

    def _following(self, day: str, raw: Path) -> tuple[dict[str, Path], dict[str, str]]:
        """Raw files of the day and of small ones after it that are to be cleaned; the latter's fingerprints."""
        raws, fingerprints, held = {day: raw}, dict[str, str](), text_bytes(raw)
        while self._left and len(raws) < _DAYS_TOGETHER:
            following = self._left.popleft()
            info = self._pipeline.tables.sound_info("raw_events", following)
            if following <= day or info is None or self._is_made(following, raw_version(info)):
                continue
            path = self._pipeline.tables.path("raw_events", following)
            held += text_bytes(path)
            if held > _TEXT_TOGETHER:
                self._left.appendleft(following)
                break
            raws[following], fingerprints[following] = path, raw_version(info)
        return raws, fingerprints

    def _is_made(self, day: str, fingerprint: str) -> bool:
        existing = self._pipeline.tables.sound_info("interactions", day)
        return existing is not None and existing["version"] == cleaning_version(self._pipeline.settings, fingerprint)


def clean_day(
    connection: duckdb.DuckDBPyConnection,
    pipeline: Pipeline,
    day: str,
    force: bool = False,
    together: _Together | None = None,
) -> Cleaned:
    """Publishes a day's interactions and rejections unless they stand there made from equal inputs.

    Raises:
        InputError: raw_events has no such day.
        RefusedError: the day would lose too many events and it is not forced; nothing is published.
        ConservationError: records would be lost; nothing is published.
    """
    raw = pipeline.need_table("raw_events", day)
    raw_info = pipeline.tables.info("raw_events", day) or {}
    version = cleaning_version(pipeline.settings, raw_version(raw_info))
    existing = pipeline.tables.sound_info("interactions", day)
    if existing is not None and existing["version"] == version:
        return Cleaned(existing, False, existing["counts"]["kept"])
    kept_before = existing["counts"]["kept"] if existing is not None else None
    erased = pipeline.tombstones.read()

    def rules(result: CleanResult) -> CleanResult:
        return apply_rules(without(result, erased), pipeline.settings.ingest)

    def info_of(result: CleanResult) -> dict[str, Any]:
        if existing is not None and not force:
            _refuse_loss(pipeline, day, existing, result, raw_info["bytes"])
        return _clean_info(result, raw_info, version)

    # Kept and rejected rows lie in one file, told apart by `reason`: two files could disagree after a kill.
    if is_large(raw):
        write = functools.partial(_write_large, connection, raw, day, pipeline.settings, rules, info_of)
        pipeline.tables.publish("interactions", day, write)
        info = pipeline.tables.info("interactions", day) or {}
    else:
        together = together or _Together(connection, pipeline, [])
        result = rules(together.clean(day, raw, raw_version(raw_info)))
        info = info_of(result)
        pipeline.tables.publish_frame("interactions", day, result.rows(), info)
    return Cleaned(info, True, kept_before)


def _clean_info(result: CleanResult, raw_info: dict[str, Any], version: str) -> dict[str, Any]:
    return {
        "version": version,
        FINGERPRINT: raw_info[FINGERPRINT],
        "raw_bytes": raw_info["bytes"],
        "counts": {
            "records_in": result.records_in,
            "kept": result.kept,
            "duplicates": result.duplicates,
            "rejected": result.rejections,
            "off_day": result.off_day,
            "actions": result.actions,
            "users": result.users,
            "items": result.items,
        },
        "examples": _examples(result),
        "objects": _damaged(result),
    }


def _write_large(
    connection: duckdb.DuckDBPyConnection,
    raw: Path,
    day: str,
    settings: Settings,
    rules: Callable[[CleanResult], CleanResult],
    info_of: Callable[[CleanResult], dict[str, Any]],
    path: Path,
) -> None:
    """Writes a day that is cleaned in portions, with the columns of one that is cleaned at once."""
    columns = {**INTERACTIONS_SCHEMA, "session_id": pl.Int32(), **REJECTED_SCHEMA}
    nothing = pl.DataFrame(schema=columns)

    def to_arrow(rows: pl.DataFrame) -> pa.Table:
        return pl.concat([nothing, rows], how="diagonal").to_arrow(compat_level=pl.CompatLevel.oldest())

    with (
        tempfile.TemporaryDirectory(prefix=temporary_name(), dir=path.parent) as spill,
        pq.ParquetWriter(path, to_arrow(nothing).schema, compression="zstd") as writer,
    ):
        result = clean_large(
            connection, raw, day, settings, rules, lambda rows: writer.write_table(to_arrow(rows)), Path(spill)
        )
        writer.add_key_value_metadata({"recsys": info_text(info_of(result))})


def _refuse_loss(pipeline: Pipeline, day: str, existing: dict[str, Any], result: CleanResult, raw_bytes: int) -> None:
    share = pipeline.settings.ingest.max_shrink_share
    before = existing["counts"]["kept"]
    if not _falls(before, result.kept, share) or _falls(existing.get("raw_bytes", raw_bytes), raw_bytes, share):
        return  # where the objects themselves became so few, raw_events has asked already
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in result.rejections.items()) or "none"
    raise RefusedError(
        f"{day}: {result.kept:,} events would be kept where {before:,} are now, though the objects of the day hold "
        f"about as much as before (rejected: {reasons}). The partition stays as it was. If the settings or rules were "
        "changed on purpose, materialize interactions for this day with the config force: true, or: "
        f"recsys readmit --day {day} --force"
    )


def _damaged(result: CleanResult) -> list[dict[str, Any]]:
    """What became of the records of the objects that lost most to rejections and duplicates; first those of which
    nothing but rejections is left, since one that cannot be read at all counts as one record."""
    lost, nothing = pl.col("rejected") + pl.col("duplicates"), pl.col("rejected") == pl.col("records_in")
    worst = result.by_key.filter(lost > 0).sort(nothing, lost, "key", descending=[True, True, False])
    return worst.head(_SHOWN_OBJECTS).select("key", "records_in", "kept", "rejected", "duplicates").to_dicts()


def _examples(result: CleanResult) -> list[dict[str, Any]]:
    """Where one record of each reason is. Not the record: it may hold a user's id, which stays out of Dagster."""
    return (
        result.rejected.unique("reason", keep="first", maintain_order=True)
        .select("reason", "source_key", "record")
        .to_dicts()
    )


@dg.asset_check(
    asset="interactions",
    description="The newest day that is over has its interactions: yesterday, or the last day of a closed history. "
    "(Dagster's own freshness looks at any partition: a backfill of an old day would make it fresh.)",
)
def yesterday_is_there(pipeline: dg.ResourceParam[Pipeline]) -> dg.AssetCheckResult:
    calendar = pipeline.settings.calendar
    expected = shift(today(calendar.time_zone), -1)
    if calendar.last_day is not None:
        expected = min(expected, calendar.last_day.isoformat())
    days = pipeline.tables.days("interactions")
    return dg.AssetCheckResult(
        passed=expected in days,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"interactions has no partition {expected}" if expected not in days else None,
        metadata={"expected day": expected, "newest day": days[-1] if days else "none"},
    )
