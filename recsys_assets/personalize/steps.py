"""Import, training, deployment: what each step of a day started, and what is to be done next.

`store/personalize/DAY.json` says which jobs a day has. A job is written down, with its name, before it is asked for:
whoever comes after a kill looks for that name before asking again. No worker waits for a job: each call of `advance`
looks, does what can be done now, and returns.

Days take turns: a day's import begins when no other day is between its import and the end of its training, oldest
first, so that the version of a day learned from the days up to it. Deployment goes beside the next day's import.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import filelock

from recsys_assets.days import shift
from recsys_assets.personalize.export import (
    WAITING_ROOM,
    Exports,
    admit,
    export_day,
    forget,
    forget_snapshots,
    window_start,
)
from recsys_assets.personalize.service import ACTIVE, FAILED, NotFound, Occupied, Personalize, Seen, moment
from recsys_assets.pipeline import InputError, Pipeline
from recsys_assets.settings import PersonalizeSettings
from recsys_assets.storage import files

WAITING = "WAITING"
FOLDER = "personalize"
_LEAST_ROWS = 1000  # of interactions, in any import
_MOST_BYTES = 10**9  # of an incremental import
_ASK_AGAIN = timedelta(minutes=5)  # after a quota was used up
_UPDATABLE = ("aws-user-personalization", "aws-hrnn-coldstart")
_SOON = timedelta(minutes=1)
_SETTLED = (ACTIVE, *FAILED)
ASSETS = {"import": "import", "version": "solution_version", "campaign": "campaign"}
"""Step -> its asset, behind `personalize_`."""

Job = dict[str, Any]
"""A job of a step, as it is kept.

name, number (the how-manieth of its day), of (what it is made from), asked (ISO), arn (None: not asked for, as far
as is known), status, created, updated, failure, reported (a run said that it failed, or takes too long), mode and
what (why that mode), files (of the interactions: day -> ETag).
"""
Record = dict[str, Any]
"""What is kept of a day: `export`; step -> {"jobs": name -> Job, "why" it waits, "again": when to ask}; `imported`, the
earlier imports of its interactions; `done`: there is nothing left to look at.
"""


class JobError(InputError):
    """A job of Personalize failed or takes too long."""


class Records:
    """`store/personalize/`: a file a day, each replaced whole."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._folder = pipeline.settings.store / FOLDER

    @contextmanager
    def lock(self, seconds: float = 600) -> Iterator[None]:
        """One at a time looks and asks. Freed by the system when its process dies."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self._folder / "personalize.lock", timeout=seconds):
            yield

    def read(self, day: str) -> Record:
        try:
            record: Record = json.loads((self._folder / f"{day}.json").read_text(encoding="utf-8"))
            return record
        except FileNotFoundError:
            return {}

    def write(self, day: str, record: Record) -> None:
        files.write_bytes(self._folder / f"{day}.json", json.dumps(record, indent=1, sort_keys=True).encode())

    def all(self) -> dict[str, Record]:
        """Day -> record, oldest first."""
        if not self._folder.is_dir():
            return {}
        days = sorted(path.stem for path in self._folder.glob("*.json") if re.fullmatch(r"\d{4}-\d\d-\d\d", path.stem))
        return {day: self.read(day) for day in days}


class _Wait(Exception):
    """Not now. `again`: from when on (ISO) to ask again; None: when what it waits for has changed."""

    def __init__(self, why: str, again: datetime | None = None) -> None:
        super().__init__(why)
        self.why, self.again = why, again.isoformat(timespec="seconds") if again else None


# ------------------------------------------------------------------------------------------------ decisions, all pure


def steps_of(settings: PersonalizeSettings) -> list[str]:
    """The steps that the settings ask for, in order."""
    return ["import", *(["version"] if settings.solution_arn else []), *(["campaign"] if settings.campaign else [])]


def jobs_of(record: Record, step: str) -> dict[str, Job]:
    found: dict[str, Job] = record.get(step, {}).get("jobs", {})
    return found


def status_of(record: Record, step: str) -> str:
    """One status for the jobs of a step: a failed one's, else WAITING, else that of the least advanced."""
    jobs = jobs_of(record, step).values()
    statuses = [str(job["status"]) for job in jobs]
    if failed := next((status for status in statuses if status in FAILED), None):
        return failed
    if not jobs or record[step]["why"] or any(job["arn"] is None for job in jobs):
        return WAITING
    order = ("CREATE PENDING", "CREATE IN_PROGRESS")
    least = next((status for status in order if status in statuses), None)
    return least or next((status for status in statuses if status != ACTIVE), ACTIVE)


def wanted(record: Record, step: str) -> dict[str, str] | None:
    """Job -> what it is to be made from; None while the step before has not ended."""
    if step == "import":
        return {kind: f"{made['sha256']} {','.join(made['columns'])}" for kind, made in record["export"].items()}
    before = "import" if step == "version" else "version"
    if status_of(record, before) != ACTIVE or is_outdated(record, before):
        return None
    jobs = jobs_of(record, before)
    if step == "version":
        return {"version": " ".join(job["name"] for _, job in sorted(jobs.items()))}
    return {"campaign": str(jobs["version"]["arn"])}


def is_outdated(record: Record, step: str) -> bool:
    """Whether the jobs of a step were made from something else than they would be now."""
    now = wanted(record, step)
    return now is None or now != {name: job["of"] for name, job in jobs_of(record, step).items()}


def is_late(job: Job, settings: PersonalizeSettings, now: datetime) -> bool:
    """Whether a job that has been started takes longer than the settings allow."""
    if job["arn"] is None or job["status"] in _SETTLED:
        return False
    return now - datetime.fromisoformat(job["created"]) > timedelta(hours=settings.timeout_hours)


def is_at_work(record: Record, step: str) -> bool:
    """Whether Personalize is at work on a step. What takes too long, and was said to, holds nobody up."""
    return any(
        job["arn"] is not None and job["status"] not in _SETTLED and not job["reported"]
        for job in jobs_of(record, step).values()
    )


def number_of(record: Record, step: str) -> int:
    return max((job["number"] for job in jobs_of(record, step).values()), default=0)


def is_tried_again(record: Record, step: str, settings: PersonalizeSettings) -> bool:
    """Whether a step failed that the sensor will start once more."""
    return status_of(record, step) in FAILED and number_of(record, step) < settings.max_attempts


def obstacle(records: dict[str, Record], day: str, step: str, settings: PersonalizeSettings) -> str | None:
    """Which day a step must wait for, and why; None: it may start as far as the other days are concerned.

    No two days wait for each other: a training waits for nothing but jobs that run, an import for days that are
    between import and training, and for older ones.
    """
    for other, record in records.items():
        if other == day or record.get("done") or step == "campaign":
            continue
        if is_at_work(record, "import") or is_at_work(record, "version"):
            return f"{other} is being imported or trained on: one day at a time"
        if step == "version":
            continue
        trains = status_of(record, "version") == WAITING or is_tried_again(record, "version", settings)
        if status_of(record, "import") == ACTIVE and "version" in record and trains:
            return f"{other} is to be trained on first: one day at a time"
        if other < day and "import" in record:
            if is_tried_again(record, "import", settings):
                return f"{other} goes first: its import failed, and is to be tried again"
            if status_of(record, "import") == WAITING:
                return f"{other} goes first"
    return None


def due(
    records: dict[str, Record], day: str, settings: PersonalizeSettings, told: dict[str, str], now: datetime
) -> tuple[str, str] | None:
    """The step from which on a run of the day can do something now, and the situation it would find.

    Args:
        told: step -> what its last materialization told (`account`).
    """
    record = records[day]
    for step in steps_of(settings):
        status, jobs = status_of(record, step), jobs_of(record, step)
        number = number_of(record, step)
        if status in FAILED:
            failed = [job for job in jobs.values() if job["status"] in FAILED]
            if not all(job["reported"] for job in failed):
                return step, f"failed {number}"
            if not is_tried_again(record, step, settings) or obstacle(records, day, step, settings):
                return None
            return step, f"again after {number}"
        if any(is_late(job, settings, now) and not job["reported"] for job in jobs.values()):
            return step, f"late {number}"
        if is_at_work(record, step) or any(is_late(job, settings, now) for job in jobs.values()):
            return None
        if status == WAITING or is_outdated(record, step):
            again = record.get(step, {}).get("again")
            if (again and now < datetime.fromisoformat(again)) or obstacle(records, day, step, settings):
                return None
            return step, f"to start {number} {again or ''}".strip()
        if told.get(step) != account(record, step):
            return step, f"ended {number}"
    return None


def account(record: Record, step: str) -> str:
    """A line on where a step stands: equal lines, nothing new."""
    again = {job["number"]: f" no. {job['number']}" for job in jobs_of(record, step).values() if job["number"] > 1}
    names = ", ".join(
        f"{job['name']}{again.get(job['number'], '')} {job['status']}"
        for _, job in sorted(jobs_of(record, step).items())
    )
    why = record.get(step, {}).get("why")
    return f"{names or 'nothing started'}{f'; {why}' if why else ''}"


def in_dataset(records: dict[str, Record]) -> tuple[dict[str, str], dict[str, Any] | None]:
    """What the dataset of interactions holds: day -> ETag of its file; and the last import of everything, if any."""
    ended = [job for record in records.values() for job in record.get("imported", [])]
    ended += [job for job in _imports(records) if job["status"] == ACTIVE]
    holds: dict[str, str] = {}
    full: dict[str, Any] | None = None
    for job in sorted(ended, key=lambda job: str(job["created"])):
        if job["mode"] == "FULL":
            holds, full = {}, job
        holds |= job["files"]
    return holds, full


def _imports(records: dict[str, Record]) -> list[Job]:
    """The newest import of interactions of each day."""
    found = (jobs_of(record, "import").get("interactions") for record in records.values())
    return [job for job in found if job is not None]


def import_mode(
    records: dict[str, Record], there: dict[str, dict[str, Any]], day: str, settings: PersonalizeSettings
) -> tuple[str, str]:
    """FULL or INCREMENTAL for the interactions of a day, and why.

    Appending is right only where the day is new to the dataset and everything else in it still is what lies in the
    bucket. `there`: Exports.days.
    """
    holds, full = in_dataset(records)
    rows, size = records[day]["export"]["interactions"]["rows"], there[day]["bytes"]
    first = window_start(max(there), settings)
    if not settings.incremental:
        why = "personalize.incremental is off"
    elif full is None:
        why = "nothing was imported before"
    elif day in holds:
        why = "the day was imported before, from another file"
    elif changed := [each for each, etag in holds.items() if each >= first and there.get(each, {}).get("etag") != etag]:
        why = f"the file of {min(changed)} has changed since it was imported"
    elif rows < _LEAST_ROWS:
        why = f"fewer than {_LEAST_ROWS} rows"
    elif size > _MOST_BYTES:
        why = "more than 1 GB"
    elif any(job["arn"] and job["status"] not in _SETTLED for job in _imports(records)):
        why = "another import, which takes too long, may read the file"
    elif shift(str(full["day"]), settings.full_import_days) <= day:
        why = f"everything was imported {settings.full_import_days} days ago or more"
    else:
        return "INCREMENTAL", "the day is new to the dataset"
    return "FULL", why


def training_mode(records: dict[str, Record], day: str, recipe: str, settings: PersonalizeSettings) -> tuple[str, str]:
    """FULL or UPDATE for a day's version, and why."""
    if recipe not in _UPDATABLE:
        return "FULL", f"{recipe} has no UPDATE"
    for each, record in reversed(records.items()):
        for job in jobs_of(record, "version").values():
            recent = each < day < shift(each, settings.full_training_days)
            if recent and job["status"] == ACTIVE and job["mode"] == "FULL":
                return "UPDATE", f"trained in full on {each}"
    return "FULL", f"no full training in the {settings.full_training_days} days up to this one"


def deployment(campaign: dict[str, Any], version: str) -> Seen | None:
    """How far a campaign is with serving a version; None if it neither serves it nor is to."""
    latest = campaign.get("latestCampaignUpdate", {})
    source = latest if latest.get("solutionVersionArn") == version else campaign
    if source.get("solutionVersionArn") != version:
        return None
    return Seen(
        str(campaign["campaignArn"]),
        str(source["status"]),
        moment(source["creationDateTime"]),
        moment(source["lastUpdatedDateTime"]),
        source.get("failureReason"),
    )


# -------------------------------------------------------------------------------------------------------------- acting


class Chain:
    """The steps of a home. Everything here happens under `records.lock()`."""

    def __init__(self, pipeline: Pipeline, service: Personalize, exports: Exports) -> None:
        self.settings = pipeline.settings.personalize
        self.records = Records(pipeline)
        self._pipeline, self._service, self._exports = pipeline, service, exports

    def export(self, day: str) -> dict[str, Any]:
        """Writes the day's files, and down what they are. Returns what `export_day` does."""
        record = self.records.read(day)
        made = export_day(self._pipeline, self._service, self._exports, day, record.get("export"))
        kept = {kind: {name: file[name] for name in file if name != "fresh"} for kind, file in made.items()}
        if record.get("export") != kept:
            record.pop("done", None)
            self.records.write(day, record | {"export": kept})
        return made

    def refresh(self, day: str, record: Record, step: str) -> bool:
        """Asks Personalize about the jobs of a step that have not ended. Returns whether anything changed."""
        changed = False
        for name, job in jobs_of(record, step).items():
            if job["arn"] is not None and job["status"] not in _SETTLED:
                changed |= self._note(job, self._look(name, job))
        if changed:
            self.records.write(day, record)
        return changed

    def _look(self, name: str, job: Job) -> Seen:
        try:
            if name == "version":
                return self._service.version(job["arn"])
            if name != "campaign":
                return self._service.import_job(job["arn"])
            found = self._service.campaign(job["name"])
            seen = None if found is None else deployment(found, job["of"])
            gone = "The campaign serves something else now: was it changed by hand?"
        except NotFound:
            seen, gone = None, "It is gone: was it deleted by hand?"
        return seen or Seen(job["arn"], FAILED[0], job["created"], moment(datetime.now(UTC)), gone)

    @staticmethod
    def _note(job: Job, seen: Seen) -> bool:
        told = {name: getattr(seen, name) for name in ("arn", "status", "created", "updated", "failure")}
        changed = any(job[name] != value for name, value in told.items())
        job.update(told)
        return changed

    def advance(self, day: str, step: str) -> Record:
        """Does what can be done now for a step of a day. Returns the day's record.

        Raises:
            JobError: a job failed (said once: the next call starts another), or takes too long.
            InputError: what it needs is not there.
        """
        record, now = self.records.read(day), datetime.now(UTC)
        if "export" not in record:
            raise InputError(f"nothing of {day} was exported yet: materialize personalize_export for it first")
        self.refresh(day, record, step)
        self._complain(day, record, step, now)
        record.pop("done", None)
        found = record.setdefault(step, {"jobs": {}})
        found["why"] = found["again"] = None
        try:
            self._plan(day, record, step, now)
            for name, job in found["jobs"].items():
                if job["arn"] is None:
                    self._start(day, record, name, job, now)
                    self.records.write(day, record)
        except _Wait as wait:
            found["why"], found["again"] = wait.why, wait.again
        except Occupied as occupied:
            found["why"] = f"Personalize has no place for it now ({occupied})"
            found["again"] = (now + _ASK_AGAIN).isoformat(timespec="seconds")
        self.records.write(day, record)
        if step == "import" and status_of(record, step) == ACTIVE:
            forget_snapshots(self._exports, day)
        self._complain(day, record, step, now)  # of a job that was found, and had failed already
        return record

    def _complain(self, day: str, record: Record, step: str, now: datetime) -> None:
        for job in jobs_of(record, step).values():
            failed, late = job["status"] in FAILED and not job["reported"], is_late(job, self.settings, now)
            if not (failed or late):
                continue
            job["reported"] = True
            self.records.write(day, record)
            where = f"{job['arn'] or job['name']} ({job['name']}, {self._service.console_url()})"
            again = f"materialize personalize_{ASSETS[step]} for {day} again"
            if failed:
                raise JobError(
                    f"{where} is {job['status']}: {job['failure'] or 'Personalize gives no reason'} "
                    f"Mend what it names, then {again}: that starts another job"
                )
            raise JobError(
                f"{where} is {job['status']} since {job['created']}, longer than personalize.timeout_hours "
                f"({self.settings.timeout_hours:g}). If it is only slow, raise that and {again}; the sensor goes on "
                "when it ends"
            )

    def _plan(self, day: str, record: Record, step: str, now: datetime) -> None:
        """Writes down the jobs that the step needs, before any of them is asked for."""
        needed = wanted(record, step)
        if needed is None:
            raise _Wait(f"the {'import' if step == 'version' else 'solution version'} has not ended")
        jobs = jobs_of(record, step)
        new: dict[str, Job] = {}
        for name, of in needed.items():
            job = jobs.get(name)
            if job is not None and job["of"] == of and job["status"] not in FAILED:
                continue
            if job is not None and job["arn"] is None:  # written down; asked for perhaps
                self._find(day, record, name, job)
            if job is not None and job["arn"] is not None and job["status"] not in _SETTLED:
                raise _Wait(f"{job['name']}, of other content, has not ended", now + _SOON)
            number = 1 if job is None else job["number"] + (job["arn"] is not None)
            new[name] = self._job(day, name, of, number, now)
        if not new and all(job["arn"] is not None for job in jobs.values()):
            return
        if why := obstacle(self.records.all(), day, step, self.settings):
            raise _Wait(why)
        for name, job in new.items():
            replaced = jobs.get(name)
            if name == "interactions" and replaced is not None and replaced["status"] == ACTIVE:
                kept = {each: replaced[each] for each in ("mode", "files", "created", "updated", "day")}
                record.setdefault("imported", []).append(kept)
            jobs[name] = job
        for name in [name for name in jobs if name not in needed]:  # a dataset that is no longer there
            del jobs[name]
        self.records.write(day, record)

    def _find(self, day: str, record: Record, name: str, job: Job) -> None:
        """Whether a job that a killed run wrote down was asked for. (Of a campaign's update `_deploy` finds out.)"""
        if job["mode"] is None or name == "campaign":
            return
        if name == "version":
            arn = self._service.find_version(str(self.settings.solution_arn), job["name"], *self._where(day))
        else:
            dataset = self._service.datasets().get(name)
            arn = self._service.find_import(dataset, job["name"]) if dataset else None
        if arn is not None:
            self._note(job, self._look(name, job | {"arn": arn}))
            self.records.write(day, record)

    def _where(self, day: str) -> tuple[datetime, set[str]]:
        """Since when a day's version can be there, and the versions that are others'."""
        records = self.records.all().values()
        known = {str(job["arn"]) for record in records for job in jobs_of(record, "version").values()}
        return datetime.fromisoformat(day).replace(tzinfo=UTC), known

    def _job(self, day: str, name: str, of: str, number: int, now: datetime) -> Job:
        kind = "" if name in ("version", "campaign") else f"-{name}"
        made = f"{self.settings.name}{kind}-{day}{f'-{number}' if number > 1 else ''}"
        return {
            "name": str(self.settings.campaign) if name == "campaign" else made,
            "number": number,
            "of": of,
            "day": day,
            "asked": moment(now),
            "mode": None,
            "what": None,
            "files": {},
            **dict.fromkeys(("arn", "status", "created", "updated", "failure")),
            "reported": False,
        }

    def _start(self, day: str, record: Record, name: str, job: Job, now: datetime) -> None:
        if name == "version":
            self._train(day, record, job)
        elif name == "campaign":
            self._deploy(day, record, job, now)
        else:
            self._import(day, record, name, job)

    def _import(self, day: str, record: Record, kind: str, job: Job) -> None:
        self._find(day, record, kind, job)
        if job["arn"] is not None:
            return
        if kind == "interactions":
            self._admit(day, record)
            forget(self._exports, self.settings)
        there = self._exports.days(kind)
        if day not in there:
            raise InputError(
                f"{self._exports.location(kind, day)} is gone: materialize personalize_export for {day} again"
            )
        record["export"][kind]["etag"] = there[day]["etag"]  # another one where `recsys erase` took rows out since
        # Anew after a kill: what is there may have changed since.
        job["mode"], job["what"] = "FULL", "the file replaces what there was"
        if kind == "interactions":
            records = self.records.all() | {day: record}
            job["mode"], job["what"] = import_mode(records, there, day, self.settings)
            wholly = job["mode"] == "FULL"
            job["files"] = {each: file["etag"] for each, file in there.items() if wholly or each == day}
            rows = [records.get(each, {}).get("export", {}).get(kind, {}).get("rows") for each in there]
            if wholly and None not in rows and sum(rows) < _LEAST_ROWS:
                raise InputError(
                    f"{self._exports.location(kind)} holds {sum(rows)} interactions, and Personalize takes no fewer "
                    f"than {_LEAST_ROWS}: export more days first"
                )
        self.records.write(day, record)
        whole = kind == "interactions" and job["mode"] == "FULL"
        location = self._exports.location(kind, None if whole else day)
        dataset = self._service.datasets()[kind]
        self._note(job, self._service.import_into(dataset, job["name"], location, job["mode"]))

    def _admit(self, day: str, record: Record) -> None:
        """At the day's turn its file goes to the others; not before, since an import of everything takes them all."""
        file, key = record["export"]["interactions"], self._exports.key("interactions", day)
        if file["key"] != key:
            etag = admit(self._exports, day)
            if etag is None:
                raise InputError(f"{file['key']} is gone: materialize personalize_export for {day} again")
            file |= {"key": key, "etag": etag}
            self.records.write(day, record)
        self._exports.bucket.delete(self._exports.key(WAITING_ROOM, day))

    def _train(self, day: str, record: Record, job: Job) -> None:
        solution = self.settings.solution_arn
        assert solution is not None
        records = self.records.all()
        if job["mode"] is None:
            job["mode"], job["what"] = training_mode(records, day, self._service.recipe(solution), self.settings)
            self.records.write(day, record)
        self._note(job, self._service.train(solution, job["name"], job["mode"], *self._where(day)))

    def _deploy(self, day: str, record: Record, job: Job, now: datetime) -> None:
        """Lets the campaign serve the day's version, unless it serves that of a newer day."""
        records, version = self.records.all(), str(job["of"])
        for other, found in records.items():  # the next update makes Personalize forget how the last one ended
            if other != day:
                self.refresh(other, found, "campaign")
        campaign = self._service.campaign(job["name"])
        if campaign is None:
            self._decide(day, record, job, "created")
            self._service.create_campaign(job["name"], version)
        elif campaign.get("campaignConfig", {}).get("syncWithLatestSolutionVersion"):
            raise InputError(
                f"{campaign['campaignArn']} follows its solution by itself (syncWithLatestSolutionVersion), so that a "
                "backfill of old days would take it back: turn that off, or leave personalize.campaign unset"
            )
        else:
            latest = campaign.get("latestCampaignUpdate") or campaign
            status = str(latest["status"])
            if latest["solutionVersionArn"] != version and status not in _SETTLED:
                raise _Wait(f"the campaign is being changed to {latest['solutionVersionArn']} ({status})", now + _SOON)
            serves = str(campaign["solutionVersionArn"])
            base = self._base_day(serves, records) if campaign["status"] == ACTIVE and serves != version else None
            if base is not None and base > day and (latest["solutionVersionArn"] != version or status in FAILED):
                job |= {"mode": "kept", "what": f"it serves the version of {base}: a campaign never goes back"}
                self._note(job, Seen(str(campaign["campaignArn"]), ACTIVE, moment(now), moment(now)))
                return
            self._decide(day, record, job, "updated")
            self._update(job, version)
        changed = self._service.campaign(job["name"])
        seen = None if changed is None else deployment(changed, version)
        if seen is None:
            raise _Wait("the campaign does not show the change yet", now + _SOON)
        self._note(job, seen)

    def _decide(self, day: str, record: Record, job: Job, mode: str) -> None:
        """Written down before it is asked for; after a kill it stays what it was."""
        if job["mode"] is None:
            job["mode"] = mode
            self.records.write(day, record)

    def _update(self, job: Job, version: str) -> None:
        """An update has no name: one of this version that was made since this job was planned is this job's."""

        def begun() -> bool:
            found = self._service.campaign(job["name"])
            seen = None if found is None else deployment(found, version)
            if seen is None:
                return False
            return seen.status not in FAILED or seen.created >= job["asked"]

        self._service.update_campaign(job["name"], version, begun)

    def _base_day(self, version: str, records: dict[str, Record]) -> str | None:
        """The base date of a solution version; None if it is none of ours."""
        for day, record in records.items():
            if any(job["arn"] == version for job in jobs_of(record, "version").values()):
                return day
        name = self._service.version_name(version) or ""
        match = re.fullmatch(rf"{re.escape(self.settings.name)}-(\d{{4}}-\d\d-\d\d)(-\d+)?", name)
        return match[1] if match else None
