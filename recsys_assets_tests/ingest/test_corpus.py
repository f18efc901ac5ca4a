"""Mutated records and files against a slow reading of the table. CORPUS_RECORDS=1000000 takes so many records.

Every batch is a day: what is kept, rejected (with its reason) or a duplicate is compared record by record. In a damaged
file the records that were not touched must be kept, and nothing that does not stand there.
"""

import dataclasses
import itertools
import os
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from recsys_assets.ingest.decode import EXCERPT_CHARACTERS, raw_table
from recsys_assets.ingest.validate import CleanResult, clean
from recsys_assets.settings import Settings
from recsys_assets.storage.bucket import LogObject
from recsys_assets_tests.ingest.corpus import BROKEN, DAY, MAX_BYTES, NOON, File, Mutator
from recsys_assets_tests.ingest.reference import Event, events_anywhere, judge

RECORDS = int(os.environ.get("CORPUS_RECORDS", "30000"))
FILES_A_DAY = 300
MIDNIGHT = NOON - 43_200_000
SETTINGS = Settings(home=Path("/nowhere"))


def cleaned(connection: duckdb.DuckDBPyConnection, files: dict[str, File]) -> CleanResult:
    objects = ((LogObject(key, "e", len(file.content), file.modified), file.content) for key, file in files.items())
    return clean(connection, raw_table(objects, MAX_BYTES), DAY, SETTINGS)


def event_of(row: dict[str, object]) -> Event:
    return Event(**{name: row[name] for name in Event.__dataclass_fields__})  # type: ignore[arg-type]


def disagreements(files: dict[str, File], result: CleanResult) -> list[str]:
    """What was said otherwise than by the reference, a line each."""
    wrong: list[str] = []
    in_file = {row["key"]: row for row in result.by_key.rows(named=True)}
    rows = result.interactions.with_columns(ms=pl.col("timestamp").dt.epoch("ms")).rows(named=True)
    kept = {(row["source_key"], row["record"]): event_of(row) for row in rows}
    rejected = {(row["source_key"], row["record"]): row for row in result.rejected.rows(named=True)}
    identities = {event.identity for event in kept.values()}
    off = [row for row in rows if row["off_day"] == (MIDNIGHT <= row["ms"] < MIDNIGHT + 86_400_000)]
    wrong += [f"{row['source_key']} {row['record']}: off_day is {row['off_day']} at {row['ms']}" for row in off]
    seen: set[tuple[str, str, str, int]] = set()
    for key in sorted(files, key=str.encode):
        file, counts = files[key], in_file[key]
        records = counts["records_in"]
        if records != counts["kept"] + counts["duplicates"] + counts["rejected"]:
            wrong.append(f"{key}: does not add up: {counts}")
        if file.damaged:
            here = {record: (kept.get((key, record)), rejected.get((key, record))) for record in range(records)}
            wrong += _of_damaged(key, file, here, identities)
            continue
        pieces = [*file.pieces[: records - 1], BROKEN] if file.partly else file.pieces
        expected = [judge(piece, file.limit_ms) if piece is not None else ("malformed_json", None) for piece in pieces]
        if file.too_large:
            expected = [("too_large", None)]
        if records != len(expected):
            wrong.append(f"{key}: {records} records, not {len(expected)}: {file.content!r}")
        for record, (reason, event) in enumerate(expected):
            if event is not None and event.identity in seen:
                reason = "duplicate"
            elif event is not None:
                seen.add(event.identity)
            told = "kept" if (key, record) in kept else "duplicate"
            if (key, record) in rejected:
                told = rejected[key, record]["reason"]
            if told != reason or (told == "kept" and kept[key, record] != event):
                found = kept.get((key, record))
                wrong.append(
                    f"{key} {record}: {told} {found}, not {reason} {event}: {(file.pieces or [b''])[record]!r}"
                )
    return wrong


def _of_damaged(
    key: str,
    file: File,
    records: dict[int, tuple[Event | None, dict[str, Any] | None]],
    identities: set[tuple[str, str, str, int]],
) -> list[str]:
    """The same of a damaged file, of whose records (kept or rejected) only those are known that were not touched."""
    wrong = []
    for piece in file.pieces:
        _, event = judge(piece or b"", file.limit_ms)
        if event is None or event.identity not in identities:
            wrong.append(f"{key}: lost {piece!r} of {file.content!r}")
    possible = events_anywhere(file.content.decode("utf-8", "backslashreplace"), file.limit_ms)
    for record, (event, row) in records.items():
        if event is not None and event not in possible:
            wrong.append(f"{key} {record}: kept {event}, which does not stand in {file.content!r}")
        if row is not None and len(row["excerpt"]) < EXCERPT_CHARACTERS:
            reason, _ = judge(row["excerpt"], file.limit_ms)
            stray = (row["reason"], reason) == ("malformed_json", "not_an_object")  # a bare word between records
            if reason != row["reason"] and not stray:
                wrong.append(f"{key} {record}: {row['reason']}, not {reason}: {row['excerpt']!r} of {file.content!r}")
    return wrong


def day_of(seed: int) -> dict[str, File]:
    mutator = Mutator(seed)
    return {f"{seed}-{number}.json": mutator.file() for number in range(FILES_A_DAY)}


def test_every_record_of_the_corpus_is_judged_as_the_reference_judges_it() -> None:
    records, wrong, outcomes = 0, list[str](), Counter[str]()
    with duckdb.connect() as connection:
        for seed in itertools.count():
            files = day_of(seed)
            result = cleaned(connection, files)
            wrong += disagreements(files, result)
            records += result.records_in
            outcomes.update({"kept": result.kept, "duplicate": result.duplicates, **result.rejections})
            if records >= RECORDS:
                break
    assert records == outcomes.total()
    if RECORDS > 1000:
        assert len(outcomes) == 22, "the corpus no longer meets every outcome"
    assert not wrong, f"{len(wrong)} of {records} records or files: {outcomes}\n" + "\n".join(
        each[:600] for each in wrong[:20]
    )


def test_the_comparison_itself_sees_a_difference() -> None:
    some = list(day_of(0).items())[:60]
    files = {key: file for key, file in some if file.pieces and not file.partly}
    with duckdb.connect() as connection:
        result = cleaned(connection, files)
    assert disagreements(files, result) == []
    for damaged in (True, False):
        key = next(key for key, file in files.items() if file.damaged is damaged)
        for pieces in (files[key].pieces[1:], [*files[key].pieces, Mutator(-1).text(Mutator(-1).good())]):
            other = {**files, key: dataclasses.replace(files[key], pieces=pieces)}
            assert bool(disagreements(other, result)) is (not damaged or len(pieces) > len(files[key].pieces))
    row = result.interactions.row(0, named=True)
    changed = result.interactions.with_columns(price=pl.lit(float("nan")))
    assert any(
        row["source_key"] in each for each in disagreements(files, dataclasses.replace(result, interactions=changed))
    )
