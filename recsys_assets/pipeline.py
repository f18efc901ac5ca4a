"""What every asset works with: the settings and the storage behind them. Assets get it as the resource `pipeline`.

Importing this imports none of Dagster, DuckDB and Polars: a command that needs one part of a home waits for no other.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys_assets.settings import Settings, SettingsError, load_settings
from recsys_assets.storage.artifacts import ArtifactError, Artifacts
from recsys_assets.storage.bucket import S3_ATTEMPTS, Bucket, BucketError, BucketUnavailable, open_bucket
from recsys_assets.storage.tables import Tables
from recsys_assets.storage.tombstones import Tombstones
from recsys_assets.storage.warehouse import Warehouse

if TYPE_CHECKING:
    import dagster as dg

    from recsys_assets.evaluation.promotion import Champion
    from recsys_assets.training.holdout import Holdouts


class InputError(RuntimeError):
    """The inputs do not allow this step; the message says what is wrong, where, and what to do."""


class InputUnavailable(InputError):
    """A source does not answer: the same may succeed later."""


@dataclass(frozen=True)
class Pipeline:
    """Settings and storage of one home.

    Attributes:
        s3: makes the client as Dagster's resource `s3` does; None: the bucket makes it.
    """

    settings: Settings
    s3: Callable[[], Any] | None = None

    @staticmethod
    def open(home: Path | str | None = None) -> "Pipeline":
        return Pipeline(load_settings(home))

    @cached_property
    def bucket(self) -> Bucket:
        return open_bucket(self.settings.bucket, self.settings.home, self.s3)

    @cached_property
    def tables(self) -> Tables:
        return Tables(self.settings.store)

    @cached_property
    def artifacts(self) -> Artifacts:
        return Artifacts(self.settings.store)

    @cached_property
    def warehouse(self) -> Warehouse:
        return Warehouse(self.settings.store)

    @cached_property
    def holdouts(self) -> "Holdouts":
        from recsys_assets.training.holdout import Holdouts

        return Holdouts(self.settings.store)

    @cached_property
    def tombstones(self) -> Tombstones:
        return Tombstones(self.settings.home, self.settings.actions)

    @cached_property
    def champion(self) -> "Champion":
        from recsys_assets.evaluation.promotion import Champion

        return Champion(self.settings.store)

    def need_table(self, table: str, day: str) -> Path:
        """The file of a table's partition.

        Raises:
            InputError: there is none.
        """
        path = self.tables.path(table, day)
        if not path.exists():
            raise InputError(f"{table} has no partition {day} yet. Materialize {table} for {day} first.")
        return path


FILE_ERRORS = {code: os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)}


def _file_trouble(error: Exception) -> str | None:
    """Why a file could not be written (or read, where permissions forbid it: errors do not tell which was tried).

    DuckDB, Polars and safetensors say it in words of their own classes.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return FILE_ERRORS.get(error.errno)
    return next((reason for reason in FILE_ERRORS.values() if reason in str(error)), None)


@contextlib.contextmanager
def explained_failures(pipeline: Pipeline) -> Iterator[None]:
    """Turns errors a person can mend into a failure that says what, where and what to do, without a stack trace.

    Such failures are not retried: the same run would meet the same error. A bucket or a database that does not answer
    is another matter (setting `jobs.retries`).
    """
    import dagster as dg

    try:
        yield
    except (BucketError, InputError, ArtifactError, SettingsError) as error:
        may_pass = isinstance(error, (BucketUnavailable, InputUnavailable))
        raise dg.Failure(description=str(error), allow_retries=may_pass) from error
    except dg.Failure:
        raise
    except Exception as error:
        reason = _file_trouble(error)
        if reason is None:
            raise
        denied = reason == FILE_ERRORS[errno.EACCES]
        tried, mend = (
            ("read or write", "Mend the permissions")
            if denied
            else ("write", "Free or grow the disk (or mend the permissions)")
        )
        raise dg.Failure(
            description=(
                f"Cannot {tried} below {pipeline.settings.store}: {reason}. {mend} and run this again. "
                "Partitions published earlier are as they were."
            ),
            allow_retries=False,
        ) from error


def dagster_resources(pipeline: Pipeline) -> dict[str, Any]:
    """The resources of a home's code location: `pipeline`, with what its page in Dagster's UI should say of the home,
    and `s3`, by which it reaches a bucket of S3 (dagster-aws's; other assets may use it too). No secrets."""
    import dagster as dg

    from recsys_assets.alive import at_work

    settings = pipeline.settings
    calendar, bucket = settings.calendar, settings.bucket
    days = f"from {calendar.first_day}" + (f" to {calendar.last_day}" if calendar.last_day else " on")
    weights = ", ".join(f"{name} {weight:g}" for name, weight in settings.actions.items())

    resources: dict[str, Any] = {}
    if bucket.url.startswith("s3://"):
        from dagster_aws.s3 import S3Resource  # a second, which a bucket in a folder does without

        resources["s3"] = S3Resource(
            region_name=bucket.region,
            endpoint_url=bucket.endpoint_url,
            profile_name=bucket.profile,
            max_attempts=S3_ATTEMPTS,
        )
        # Not through the context, which would make the client before anything can say what is wrong with a profile.
        pipeline = replace(pipeline, s3=resources["s3"].get_client)

    def settings_and_storage(context: "dg.InitResourceContext") -> Pipeline:
        if context.run is not None:
            at_work(settings.home, context.run.run_id)
        return pipeline

    resources["pipeline"] = dg.ResourceDefinition(
        settings_and_storage,
        description=(
            f"Settings and storage of the home {settings.home} (its settings.yaml; `recsys settings` shows all).\n\n"
            f"- bucket: {bucket.url}/{bucket.prefix}, a day's folder: {bucket.layout}\n"
            f"- days: {days}, in {calendar.time_zone}\n"
            f"- actions and weights: {weights}\n"
            f"- tables and models: {settings.store}\n"
        ),
    )
    return resources
