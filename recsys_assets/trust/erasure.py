"""`recsys erase`: a user is taken out of everything below the home, and stays out.

First a tombstone is written (storage/tombstones.py), from which moment nothing lets the user in again. Everything after
it finds what is left of the user by the tombstone alone, so an erasure that was cut short is finished by asking again,
without the id. Only Dagster's logs are searched for the id itself.

Each receipt (`HOME/erasure/receipts/`) says what was found before it is touched: a kill loses none of it, but a log
file that was just masked or an object that came after the erasure and was just cut.
"""

import contextlib
import gzip
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from recsys_assets.history import BatchedEventLogStorage
from recsys_assets.ingest.assets import clean_day
from recsys_assets.ingest.decode import decode, raw_writer
from recsys_assets.ingest.erased import cut_batch, cut_object
from recsys_assets.ingest.events import REJECTED
from recsys_assets.ingest.listing import placer
from recsys_assets.ingest.readmit import consecutive
from recsys_assets.ingest.validate import MARKER
from recsys_assets.launch import RunFailed
from recsys_assets.models import MEMBERS
from recsys_assets.partitions import daily
from recsys_assets.pipeline import InputError, Pipeline
from recsys_assets.storage import files
from recsys_assets.storage.artifacts import ArtifactError
from recsys_assets.storage.bucket import BucketError
from recsys_assets.storage.tables import info_text
from recsys_assets.storage.tombstones import Erased, trimmed
from recsys_assets.storage.warehouse import scratch
from recsys_assets.trust.lineage import Made, ancestry
from recsys_assets.trust.retention import leftover_folders
from recsys_assets.trust.scrub import holds, mask_in, mask_of, packed, pattern, scrub

MODELS = ("hybrid_model", *[f"{name}_model" for name in MEMBERS])
REFUSED = "refused: "
_GONE, _NOT_IN_IT = "gone", "without the user already"
_CUT = _REWRITTEN, _DELETED = "rewritten", "deleted"
RunJob = Callable[[str, list[str], dict[str, Any] | None], Any]


@dataclass(frozen=True)
class Trace:
    """What is left of erased users in one place.

    Attributes:
        what: a table, 'holdout', 'training_set' or a model that learned from a training set that was removed.
        which: its day or version; of a training set or model 'DAY/VERSION'.
        records: rows, or records, that are theirs; 0 of a model.
    """

    what: str
    which: str
    records: int


class Receipt:
    """What an erasure found, touched and left, without the id. Saved with each note."""

    def __init__(self, folder: Path, tombstone: str) -> None:
        self.path = folder / "receipts" / f"{tombstone}.json"
        self.tombstone = tombstone
        self.content: dict[str, Any] = {}
        self.read()

    def read(self) -> None:
        """As it is now: another erasure of the same user may have written to it."""
        self.content = {
            "tombstone": self.tombstone,
            "begun": _now(),
            "finished": None,
            "logs_searched": False,
            "touched": [],
            "removed": [],
            "refit": [],
            "source": [],
            "left": [],
        }
        if self.path.exists():
            self.content |= json.loads(self.path.read_text(encoding="utf-8"))

    def note(self, section: str, entry: dict[str, Any], *key: str) -> None:
        """Adds an entry, in the place of one that has the same values of `key`, if given."""
        entries: list[dict[str, Any]] = self.content[section]
        same = [each for each in entries if key and all(each.get(name) == entry.get(name) for name in key)]
        if same:
            same[0].update(entry)
        elif entry not in entries:
            entries.append(entry)
        self.save()

    def removed_sets(self) -> set[Made]:
        """The training sets with the user in them: a run that was reading one may end after it is gone."""
        return {_made(entry) for entry in self.content["removed"] if entry["asset"] == "training_set"}

    def save(self, **values: Any) -> None:
        self.content |= values
        files.write_bytes(self.path, json.dumps(self.content, indent=1).encode())


def _made(entry: dict[str, Any]) -> Made:
    return Made(entry["asset"], entry["day"], entry["version"])


def unfinished(pipeline: Pipeline) -> list[str]:
    """The tombstones of which not everything has been done."""
    folder, erased = pipeline.tombstones.folder, pipeline.tombstones.read()
    return sorted(each for each in erased.digests if not Receipt(folder, each).content["finished"])


def erase(
    pipeline: Pipeline,
    user: str | None,
    delete_source: bool,
    run_job: RunJob,
    say: Callable[[str], None],
) -> list[Receipt]:
    """Erases a user, or finishes what was begun (None: everybody with a tombstone is looked for again).

    Args:
        delete_source: take the user's records out of the bucket's objects too, deleting those that hold no others.
        run_job: materializes a job for a range of days, as launch.run_job.

    Raises:
        InputError: no user is given and nobody was erased so far.
        RunFailed: a day cannot be cleaned again. Asking once more goes on from there.
        ArtifactError: a file is damaged, so that nobody can tell who is in it.
    """
    if user is not None and not user.strip():
        raise InputError("--user is empty")
    if user is not None:
        digests = [pipeline.tombstones.add(user)]
    elif not (digests := sorted(pipeline.tombstones.read().digests)):
        raise InputError("nobody was erased so far: give --user")
    receipts = [Receipt(pipeline.tombstones.folder, each) for each in digests]
    with pipeline.tombstones.lock():
        for folder in leftover_folders(pipeline.settings.store):
            files.remove_leftovers(folder)
        for receipt in receipts:
            receipt.read()
            receipt.save(finished=None)
            _erase_one(pipeline, pipeline.tombstones.only(receipt.tombstone), receipt, run_job, say)
            if delete_source:
                _cut_source(pipeline, pipeline.tombstones.only(receipt.tombstone), receipt, say)
    return receipts


def finish(pipeline: Pipeline, user: str | None, receipts: list[Receipt], say: Callable[[str], None]) -> None:
    """The last step, when no run of ours writes to Dagster's history any more: its logs, then the receipts' ends."""
    with pipeline.tombstones.lock():
        for receipt in receipts:
            receipt.read()
        _finish(pipeline, user, receipts, say)


def _finish(pipeline: Pipeline, user: str | None, receipts: list[Receipt], say: Callable[[str], None]) -> None:
    home = pipeline.settings.home
    if user is not None:
        (receipt,), user = receipts, trimmed(user)
        wanted, mask = pattern(user), mask_of(user)

        def name_of(path: Path) -> str:  # without the id
            return wanted.sub(mask, path.relative_to(home).as_posix().encode()).decode()

        for what, folder in (("dagster", home / "dagster"), ("messages", pipeline.settings.store / REJECTED)):
            for path, times in scrub(folder, user):
                receipt.note("touched", {"what": what, "file": name_of(path), "records": times})
                say(f"{what:<8} {path.relative_to(home).as_posix()}: {times} rows or lines masked")
        for what, count in _mask_reasons(pipeline, wanted, mask):
            receipt.note("touched", {"what": what, "records": count}, "what")
            say(f"{what:<16} {count} reasons masked")
        database = pipeline.warehouse.path
        if database.exists() and holds(database, wanted):  # it holds nothing but views
            receipt.note("touched", {"what": "warehouse", "file": database.relative_to(home).as_posix()})
            database.unlink()
            database.with_name(f"{database.name}.wal").unlink(missing_ok=True)
            pipeline.warehouse.ensure_views("interactions", say)
        for path in _other_files(pipeline):
            of_store = path.is_relative_to(pipeline.settings.store)  # whose tables are known row by row
            named = wanted.search(path.relative_to(home).as_posix().encode())
            if named or holds(path, wanted) or (not of_store and any(map(wanted.search, packed(path)))):
                receipt.note("left", {"file": name_of(path), "why": "not ours to change"})
                say(f"LEFT     {path.relative_to(home).as_posix()} holds the id; it is not the pipeline's to change")
        for section in _kept_elsewhere(home / "dagster" / "dagster.yaml"):
            receipt.note("left", {"what": "Dagster's history", "why": f"{section} of dagster.yaml keeps it elsewhere"})
            say(f"LEFT     {section} of dagster.yaml keeps some of Dagster's history elsewhere: it was not searched")
        receipt.save(logs_searched=True)
        if not any(receipt.content[section] for section in ("touched", "removed", "source", "left")):
            say("nothing of this user was found: is the id written as in `interactions`? It is kept out from now on")
    for receipt in receipts:
        refused = any(entry["what"].startswith(REFUSED) for entry in receipt.content["source"])
        receipt.save(finished=_now() if receipt.content["logs_searched"] and not refused else None)


def _kept_elsewhere(path: Path) -> list[str]:
    """The sections of a dagster.yaml by which a person keeps the history in another place than beside it."""
    found = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.exists() else {}
    sections = [
        "storage",
        "run_storage",
        "event_log_storage",
        "schedule_storage",
        "compute_logs",
        "local_artifact_storage",
    ]
    ours = {"event_log_storage": BatchedEventLogStorage.__name__}
    return [each for each in sections if each in found and found[each].get("class") != ours.get(each, "")]


def _mask_reasons(pipeline: Pipeline, wanted: re.Pattern[bytes], mask: bytes) -> Iterator[tuple[str, int]]:
    """Takes the id out of the reasons that people gave for a rollback or a new hold-out. Yields what held how many."""
    with pipeline.champion.lock():
        for path in (pipeline.champion.path, pipeline.holdouts.folder / "current.json"):
            if path.exists() and (times := mask_in(path, wanted, mask)):
                yield path.relative_to(pipeline.settings.store).as_posix(), times
    for day in pipeline.tables.days("promotion"):  # a refusal repeats the reason of the rollback
        frame, info = pipeline.tables.read("promotion", day), pipeline.tables.info("promotion", day) or {}
        texts = json.dumps([frame.to_dicts(), info], default=str, ensure_ascii=False).encode()
        if times := len(wanted.findall(texts)):
            clean = pl.col(pl.String).map_elements(
                lambda text: wanted.sub(mask, text.encode()).decode(), return_dtype=pl.String
            )
            info = json.loads(wanted.sub(mask, info_text(info).encode()))
            pipeline.tables.publish_frame("promotion", day, frame.with_columns(clean), info)
            yield f"promotion/{day}", times


def _other_files(pipeline: Pipeline) -> Iterator[Path]:
    """Files in the home that neither the store, the bucket nor Dagster's history account for."""
    home, bucket = pipeline.settings.home, pipeline.settings.bucket.url
    ours = [home / "dagster", pipeline.tombstones.folder]
    if bucket.startswith("file://"):
        ours.append(home / bucket.removeprefix("file://"))
    for path in sorted(home.rglob("*")):
        if path.is_file() and not any(path.is_relative_to(each) for each in ours) and path.suffix != ".lock":
            yield path


# -------------------------------------------------------------------------------------------------------------- finding


def scan(pipeline: Pipeline) -> Iterator[Trace]:
    """Where erased users still are in the store. Raw days that were found clean are not read again while they stand."""
    erased = pipeline.tombstones.read()
    if not erased:
        return
    seen_path = pipeline.tombstones.folder / "scanned.json"
    seen: dict[str, Any] = json.loads(seen_path.read_text(encoding="utf-8")) if seen_path.exists() else {}
    known = seen.get("days", {}) if seen.get("version") == erased.version else {}
    clean: dict[str, Any] = {}
    for day in pipeline.tables.days("raw_events"):
        stat = pipeline.tables.path("raw_events", day).stat()
        mark = [stat.st_mtime_ns, stat.st_size]
        count = 0 if known.get(day) == mark else sum(_in_raw(pipeline, day, erased).values())
        if count:
            yield Trace("raw_events", day, count)
        else:
            clean[day] = mark
    files.write_bytes(seen_path, json.dumps({"version": erased.version, "days": clean}).encode())
    yield from _in_tables(pipeline, erased)
    yield from _in_training_sets(pipeline, erased)
    receipts = [Receipt(pipeline.tombstones.folder, each) for each in sorted(erased.digests)]
    in_charge = _in_charge(pipeline)
    known = {_made(entry) for receipt in receipts for entry in receipt.content["refit"]}  # the champion of then
    for made in _made_of(pipeline, {made for receipt in receipts for made in receipt.removed_sets()}):
        if made not in known or made != in_charge:
            yield Trace(made.asset, f"{made.day}/{made.version}", 0)


def _in_raw(pipeline: Pipeline, day: str, erased: Erased) -> dict[str, int]:
    found: dict[str, int] = {}
    path = pipeline.tables.path("raw_events", day)
    with _readable(path):
        for batch in pq.ParquetFile(path).iter_batches(batch_size=100):
            found |= cut_batch(batch, erased)[1]
    return found


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, pl.exceptions.ComputeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # not of what stands in the file
            raise
        what = path.parent if path.name == "users.parquet" else path
        raise ArtifactError(
            f"{path} is damaged, so nobody can tell whether an erased user is in it. Bring it back from a copy, or "
            f"delete {what} and materialize it again; then run `recsys erase` again"
        ) from error


def _read(path: Path, columns: list[str] | None = None) -> pl.DataFrame:
    with _readable(path):
        return pl.read_parquet(path, columns=columns)


def _in_tables(pipeline: Pipeline, erased: Erased) -> Iterator[Trace]:
    for day in pipeline.tables.days("interactions"):
        frame = _read(pipeline.tables.path("interactions", day), ["user_id", "excerpt", "detail"])
        theirs = _theirs(frame["user_id"], erased)
        for name in ("excerpt", "detail"):
            theirs |= _where(frame[name], lambda text: erased.own(text, words=False))
        if theirs.any():
            yield Trace("interactions", day, int(theirs.sum()))
    for table, day in _other_tables(pipeline):
        if count := int(_rows_of(pipeline, table, day, erased)[1].sum()):
            yield Trace(table, day, count)
    for path in sorted(pipeline.holdouts.folder.glob("v*.parquet")):
        if count := int(_theirs(_read(path)["user_id"], erased).sum()):
            yield Trace("holdout", path.stem, count)


def _in_training_sets(pipeline: Pipeline, erased: Erased) -> Iterator[Trace]:
    for path in sorted((pipeline.artifacts.root / "training_set").glob("*/[!.]*/users.parquet")):
        if count := int(_theirs(_read(path, ["user_id"])["user_id"], erased).sum()):
            yield Trace("training_set", f"{path.parent.parent.name}/{path.parent.name}", count)


def _other_tables(pipeline: Pipeline) -> Iterator[tuple[str, str]]:
    """(table, day) of everything in the store that may have a row a user."""
    for folder in sorted(path for path in pipeline.settings.store.glob("*") if path.is_dir()):
        if folder.name not in ("raw_events", "interactions"):
            for day in pipeline.tables.days(folder.name):
                yield folder.name, day


def _rows_of(pipeline: Pipeline, table: str, day: str, erased: Erased) -> tuple[pl.DataFrame, pl.Series]:
    """A table's day and bool[rows]: the rows of erased users. The table `users` is a person's own: any text in it, or
    its key, may be the id."""
    frame, info = _read(pipeline.tables.path(table, day)), pipeline.tables.info(table, day) or {}
    names = ["user_id"]
    if table == "users":
        names += info.get("key", []) + [name for name, kind in frame.schema.items() if kind == pl.String]
    found = pl.Series(values=[False], dtype=pl.Boolean).new_from_index(0, len(frame))
    for name in {*names} & {*frame.columns}:
        found |= _theirs(frame[name].cast(pl.String), erased)
    return frame, found


def _theirs(users: pl.Series, erased: Erased) -> pl.Series:
    return _where(users, lambda user: user in erased)


def _where(texts: pl.Series, test: Callable[[str], bool]) -> pl.Series:
    """bool[rows]; each distinct text is tested once."""
    hits = [text for text in texts.unique() if text is not None and test(text)]
    return texts.is_in(pl.Series(hits, dtype=pl.String).implode()).fill_null(False)


# -------------------------------------------------------------------------------------------------------------- cutting


def _erase_one(
    pipeline: Pipeline, erased: Erased, receipt: Receipt, run_job: RunJob, say: Callable[[str], None]
) -> None:
    changed = set(_cut_raw(pipeline, erased, receipt, say))
    traces = list(_in_tables(pipeline, erased))
    for trace in traces:
        receipt.note("touched", {"what": trace.what, "day": trace.which, "records": trace.records}, "what", "day")
        say(f"{trace.what:<16} {trace.which}: {trace.records} rows")
        if trace.what == "interactions":
            changed.add(trace.which)
        elif trace.what == "holdout":
            _strip_holdout(pipeline, trace.which, erased)
        else:
            _strip_table(pipeline, trace.what, trace.which, erased)
    if any(trace.what == "user_features" for trace in traces):  # made anew from its changed inputs when next asked for
        for day in pipeline.artifacts.days("propensity_model"):
            for version in pipeline.artifacts.versions("propensity_model", day):
                made = Made("propensity_model", day, version)
                receipt.note("refit", made._asdict() | {"in_charge_until_then": True})
    raw, cleaned = set(pipeline.tables.days("raw_events")), set(pipeline.tables.days("interactions"))
    for day in sorted(changed & cleaned - raw):
        why = (
            "there are no raw_events to make it from: materialize them again, and then it, for everybody else's events"
        )
        receipt.note("removed", {"asset": "interactions", "day": day, "why": why})
        say(f"interactions     {day}: deleted, since {why}")
        pipeline.tables.path("interactions", day).unlink()
    calendar = {str(key) for key in daily.get_partition_keys()}
    for days in consecutive(sorted(changed & raw & cleaned & calendar)):
        run_job("readmit", days, {"ops": {"interactions": {"config": {"force": True}}}})
    if outside := sorted(changed & raw & cleaned - calendar):  # of which Dagster makes no runs any more
        with scratch(pipeline.settings.store) as connection:
            for day in outside:
                clean_day(connection, pipeline, day, force=True)
    _remove_trained(pipeline, erased, receipt, say)
    if pipeline.settings.personalize.url:
        _cut_exports(pipeline, erased, receipt, say)
    newest = pipeline.tables.days("recommendations")[-1:]
    if newest and pipeline.artifacts.current("training_set", newest[0]) is None and pipeline.champion.read():
        try:
            run_job("relist", newest, None)
        except RunFailed as error:  # a champion that today's code cannot read: the user is gone all the same
            receipt.note("left", {"lists of": newest[0], "why": f"not made anew: {error}"})
            say(f"LEFT     the lists of {newest[0]} are without the user, but were not made anew: {error}")


def _cut_raw(pipeline: Pipeline, erased: Erased, receipt: Receipt, say: Callable[[str], None]) -> Iterator[str]:
    for day in pipeline.tables.days("raw_events"):
        found = _in_raw(pipeline, day, erased)
        if not found:
            continue
        info = pipeline.tables.info("raw_events", day) or {}
        info["erased"] = info.get("erased", 0) + sum(found.values())
        for key, count in found.items():
            entry = {"key": key, "day": day, "records": count, "what": "listed"}
            receipt.note("source", entry, "key")
        receipt.note("touched", {"what": "raw_events", "day": day, "records": sum(found.values())}, "what", "day")
        say(f"raw_events       {day}: {sum(found.values())} records in {len(found)} objects")
        _publish_raw(pipeline, day, info, erased)
        yield day


def _publish_raw(pipeline: Pipeline, day: str, info: dict[str, Any], erased: Erased) -> None:
    source = pq.ParquetFile(pipeline.tables.path("raw_events", day))

    def write(path: Path) -> None:
        with raw_writer(path) as writer:
            for group in range(source.num_row_groups):
                for batch in source.read_row_group(group).combine_chunks().to_batches():
                    writer.write_batch(cut_batch(batch, erased)[0])
            writer.add_key_value_metadata({"recsys": info_text(info)})

    pipeline.tables.publish("raw_events", day, write)


def _strip_table(pipeline: Pipeline, table: str, day: str, erased: Erased) -> None:
    frame, theirs = _rows_of(pipeline, table, day, erased)
    kept, info = frame.filter(~theirs), pipeline.tables.info(table, day) or {}
    for export in pipeline.tables.path(table, day).parent.glob(f"{day}.*"):
        if export.suffix != ".parquet":  # an audience as CSV and LibSVM: made again when it is next asked for
            export.unlink()
    info |= {name: len(kept) for name in ("rows", "pairs") if isinstance(info.get(name), int)}
    if "users" in info and "user_id" in kept.columns:
        info["users"] = kept["user_id"].n_unique()
    pipeline.tables.publish_frame(table, day, kept, info)


def _cut_exports(pipeline: Pipeline, erased: Erased, receipt: Receipt, say: Callable[[str], None]) -> None:
    """Takes the user out of the files that Amazon Personalize reads. They have changed then, so that its next import
    replaces everything. What it has imported and learned is its own to delete (docs/personalize.md)."""
    from recsys_assets.personalize.export import Exports, files_of
    from recsys_assets.personalize.steps import Records

    exports = Exports(pipeline)
    whole = {"key": exports.location("interactions"), "of": "personalize"}
    try:
        with Records(pipeline).lock():
            for key, content, rows in files_of(exports, erased):
                receipt.note("touched", {"what": "personalize", "key": key, "records": rows}, "what", "key")
                say(f"personalize      {key}: {rows} rows")
                exports.bucket.put(key, content)
        receipt.note("left", {"what": "Amazon Personalize", "why": "delete the user there: CreateDataDeletionJob"})
        if any(entry["key"] == whole["key"] for entry in receipt.content["source"]):  # refused the last time
            receipt.note("source", whole | {"what": _REWRITTEN}, "key")
    except BucketError as error:
        receipt.note("source", whole | {"what": f"{REFUSED}{error}"}, "key")
        say(f"personalize      {whole['key']}: {REFUSED}{error}")


def _strip_holdout(pipeline: Pipeline, version: str, erased: Erased) -> None:
    """The others' rows stay what they were drawn to be: the version keeps its number."""
    path = pipeline.holdouts.folder / f"{version}.parquet"
    frame = pl.read_parquet(path)
    kept = frame.filter(~_theirs(frame["user_id"], erased))
    with files.replacing(path) as temporary:
        kept.write_parquet(temporary, compression="zstd")
    pipeline.holdouts.recount()


def _remove_trained(pipeline: Pipeline, erased: Erased, receipt: Receipt, say: Callable[[str], None]) -> None:
    """Removes every training set with the user in it and every model that learned from one: the next training learns
    from scratch. The champion's ranking stays in charge until then: it knows items, and nobody by name."""
    artifacts = pipeline.artifacts
    found = {Made("training_set", *trace.which.split("/")) for trace in _in_training_sets(pipeline, erased)}
    if not (tainted := found | receipt.removed_sets()):
        return
    with pipeline.champion.lock(), artifacts.lock():
        in_charge = _in_charge(pipeline)
        affected = _made_of(pipeline, tainted)
        for made in affected:
            receipt.note("refit", made._asdict() | {"in_charge_until_then": made == in_charge})
        for made in [*affected, *sorted(found)]:
            if made != in_charge:
                receipt.note("removed", made._asdict())
                say(f"{made.asset:<16} {made.day}: version {made.version} removed")
        for made in [*affected, *sorted(found)]:  # the sets last: by them a second call finds the rest
            if made != in_charge:
                artifacts.remove(*made)


def _in_charge(pipeline: Pipeline) -> Made | None:
    champion = pipeline.champion.read()
    return Made("hybrid_model", champion["day"], champion["version"]) if champion else None


def _made_of(pipeline: Pipeline, tainted: set[Made]) -> list[Made]:
    """Every version of a model that learned from one of these training sets, or goes on from one that did."""
    artifacts = pipeline.artifacts
    there = [
        Made(asset, path.name, version)
        for asset in MODELS
        for path in sorted((artifacts.root / asset).glob("[!.]*"))
        for version in artifacts.versions(asset, path.name)
    ]
    return [made for made in there if tainted and ancestry(artifacts, [made]) & tainted]


# ----------------------------------------------------------------------------------------------------------- the bucket


def _cut_source(pipeline: Pipeline, erased: Erased, receipt: Receipt, say: Callable[[str], None]) -> None:
    """Takes the records out of the objects that the receipt lists, and of those that came after the erasure.

    An object without a day in its key stays: written anew it would belong to today.
    """
    place = placer(pipeline.settings)
    listed = {entry["key"] for entry in receipt.content["source"]}
    later = [{"key": key, "day": day} for key, day in _cut_on_the_way_in(pipeline) if key not in listed]
    for entry in [*receipt.content["source"], *later]:
        key = entry["key"]
        if entry.get("of") == "personalize":  # in another bucket, and dealt with
            continue
        where, before = place(key), entry.get("what")
        try:
            what = _cut_object_of(pipeline, key, erased, where is not None and where.day is not None)
        except BucketError as error:
            what = f"{REFUSED}{error}"
        if what in (_NOT_IN_IT, _GONE) and (key not in listed or before in _CUT):
            continue  # another erased user's, or cut by an earlier call
        receipt.note("source", entry | {"what": what}, "key")
        say(f"source           {key}: {what}")
    _weigh_again(pipeline, erased, receipt)


def _weigh_again(pipeline: Pipeline, erased: Erased, receipt: Receipt) -> None:
    """Takes what is now missing in the bucket off the bytes that days were read of: ingest would refuse a day of which
    more than half is gone without a reason that it knows."""
    by_day: dict[str, set[str]] = {}
    for entry in receipt.content["source"]:
        if "day" in entry and entry["what"] in (*_CUT, _GONE, _NOT_IN_IT):  # not Personalize's
            by_day.setdefault(entry["day"], set()).add(entry["key"])
    for day in sorted({*by_day} & {*pipeline.tables.days("raw_events")}):
        read = pl.read_parquet(pipeline.tables.path("raw_events", day), columns=["key", "size"])
        info, now = pipeline.tables.info("raw_events", day) or {}, 0
        for key, size in read.iter_rows():
            found = pipeline.bucket.head(key) if key in by_day[day] else None
            now += found.size if found is not None else 0 if key in by_day[day] else size
        if now < info["bytes"]:
            _publish_raw(pipeline, day, info | {"bytes": now}, erased)


def _cut_on_the_way_in(pipeline: Pipeline) -> Iterator[tuple[str, str]]:
    """Key and day of each object of which records of some erased user were left out of raw_events."""
    for day in pipeline.tables.days("raw_events"):
        if (pipeline.tables.info("raw_events", day) or {}).get("erased"):
            for batch in pq.ParquetFile(pipeline.tables.path("raw_events", day)).iter_batches(batch_size=100):
                for key, content in zip(batch["key"], batch["content"], strict=True):
                    if MARKER.encode() in (content.as_py() or b""):
                        yield key.as_py(), day


def _cut_object_of(pipeline: Pipeline, key: str, erased: Erased, is_dated: bool) -> str:
    bucket = pipeline.bucket
    found = bucket.head(key)
    if found is None:
        return _GONE
    limit = pipeline.settings.bucket.max_object_mb * 2**20
    if found.size > limit:
        raise BucketError(f"it has {found.size} bytes, more than bucket.max_object_mb, so nobody knows who is in it")
    content = bucket.get(found)
    decoded = decode(content, limit)
    if decoded.rejection is not None and not decoded.text:
        raise BucketError(f"it cannot be read, so nobody knows who is in it: {decoded.rejection.detail}")
    text, cut = cut_object(decoded.text, decoded.rejection is None, erased, marked=False)
    if not cut:
        return _NOT_IN_IT
    if not is_dated:
        return "left: its day is that of its last change; delete it yourself"
    if not text.strip(b"[], \t\r\n"):
        bucket.delete(key)
        return _DELETED
    if content.startswith(b"\x1f\x8b"):
        text = gzip.compress(text, mtime=0)
    elif content.startswith(b"\x28\xb5\x2f\xfd"):
        text = pa.compress(text, codec="zstd", asbytes=True)
    bucket.put(key, text)
    return _REWRITTEN


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
