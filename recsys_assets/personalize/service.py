"""Amazon Personalize over its API: looking first, then asking, so that nothing is ever asked for twice.

botocore's own retries are off. It would send a Create again whose answer was lost, and a solution version's name need
not be unique. Here a lost answer means: look whether it is there, and only then ask again.
"""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from recsys_assets.pipeline import InputError, InputUnavailable
from recsys_assets.settings import PersonalizeSettings

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds between tries, each with jitter
ACTIVE = "ACTIVE"
FAILED = ("CREATE FAILED", "CREATE STOPPED")

_OCCUPIED = {"LimitExceededException", "ResourceInUseException"}
_BUSY = {
    "ThrottlingException",
    "Throttling",
    "TooManyRequestsException",
    "RequestLimitExceeded",
    "ServiceUnavailable",
    "ServiceUnavailableException",
    "InternalFailure",
    "InternalServerException",
    "RequestTimeout",
}
_CREDENTIALS = {"UnrecognizedClientException", "InvalidClientTokenId", "ExpiredTokenException", "SignatureDoesNotMatch"}


class Occupied(Exception):
    """The service has no place for it now: a quota is used up, or what it would change is in use. Ask again later."""


class NotFound(InputError):
    """There is no such resource."""


class _AlreadyExists(Exception):
    """There is one of that name."""


class _Unclear(Exception):
    """No answer came: it may have been done, or not."""


@dataclass(frozen=True)
class Seen:
    """What Personalize says of a job, a solution version or a campaign.

    Attributes:
        created, updated: ISO 8601, UTC.
        version: of a campaign, the ARN of the solution version it is to serve.
    """

    arn: str
    status: str
    created: str
    updated: str
    failure: str | None = None
    version: str | None = None


@lru_cache(maxsize=1)
def _client(profile: str | None, region: str, endpoint_url: str | None) -> Any:
    """Kept open: to open it takes boto3 a third of a second, and the sensor looks every minute."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    config = Config(connect_timeout=5, read_timeout=60, retries={"total_max_attempts": 1})
    try:
        return boto3.Session(profile_name=profile).client(
            "personalize", region_name=region, endpoint_url=endpoint_url, config=config
        )
    except (BotoCoreError, ValueError) as error:
        raise InputError(f"Personalize cannot be opened ({type(error).__name__}): see personalize.*") from error


class Personalize:
    """The service of one region. Credentials come from the usual AWS chain, or a profile."""

    def __init__(self, settings: PersonalizeSettings) -> None:
        assert settings.dataset_group_arn is not None
        parts = settings.dataset_group_arn.split(":")
        self._settings, self._prefix = settings, ":".join(parts[:5])
        self.region = region_of(settings)
        self._client = _client(settings.profile, self.region, settings.endpoint_url)

    # ------------------------------------------------------------------------------------------------------ looking

    def datasets(self) -> dict[str, str]:
        """'interactions', 'items', 'users' -> ARN, of those that the dataset group has.

        Raises:
            InputError: it has no dataset of interactions.
        """
        group = self._settings.dataset_group_arn
        found = {
            str(each["datasetType"]).lower(): str(each["datasetArn"])
            for each in self._all("list_datasets", "datasets", datasetGroupArn=group)
        }
        if "interactions" not in found:
            raise InputError(f"{group} has no dataset of interactions: create one, with a schema (docs/personalize.md)")
        return {name: found[name] for name in ("interactions", "items", "users") if name in found}

    def schema(self, dataset: str) -> str:
        """The Avro schema (JSON) of a dataset that is ACTIVE."""
        described = self._read("describe_dataset", datasetArn=dataset)["dataset"]
        if described["status"] != ACTIVE:
            raise InputError(f"{dataset} is {described['status']}, not ACTIVE: nothing can be imported into it")
        arn = described.get("latestDatasetUpdate", {}).get("schemaArn") or described["schemaArn"]
        return str(self._read("describe_schema", schemaArn=arn)["schema"]["schema"])

    def recipe(self, solution: str) -> str:
        """The name of a solution's recipe, such as aws-user-personalization."""
        described = self._read("describe_solution", solutionArn=solution)["solution"]
        return str(described.get("recipeArn", "")).rpartition("/")[2]

    def import_job(self, arn: str) -> Seen:
        return _seen(
            self._read("describe_dataset_import_job", datasetImportJobArn=arn)["datasetImportJob"],
            "datasetImportJobArn",
        )

    def version(self, arn: str) -> Seen:
        return _seen(self._describe_version(arn), "solutionVersionArn")

    def version_name(self, arn: str) -> str | None:
        """The name it was made with; None if it has none, or is gone."""
        try:
            name = self._describe_version(arn).get("name")
        except NotFound:
            return None
        return None if name is None else str(name)

    def find_import(self, dataset: str, name: str) -> str | None:
        """The ARN of a dataset's import job of that name."""
        jobs = self._all("list_dataset_import_jobs", "datasetImportJobs", datasetArn=dataset)
        return next((str(job["datasetImportJobArn"]) for job in jobs if job.get("jobName") == name), None)

    def find_version(self, solution: str, name: str, since: datetime, known: set[str]) -> str | None:
        """The ARN of a solution's version of that name.

        Args:
            since: it cannot be older than that.
            known: ARNs that are others: a listing shows no names, so each unknown one is looked at.
        """
        for version in self._all("list_solution_versions", "solutionVersions", solutionArn=solution):
            arn = str(version["solutionVersionArn"])
            if arn in known or version["creationDateTime"] < since - timedelta(days=1):  # clocks differ
                continue
            if self.version_name(arn) == name:
                return arn
        return None

    def campaign(self, name: str) -> dict[str, Any] | None:
        """What `DescribeCampaign` says; None if there is no such campaign."""
        try:
            found: dict[str, Any] = self._read("describe_campaign", campaignArn=self.campaign_arn(name))["campaign"]
        except NotFound:
            return None
        return found

    def campaign_arn(self, name: str) -> str:
        return f"{self._prefix}:campaign/{name}"

    def console_url(self) -> str:
        return f"https://{self.region}.console.aws.amazon.com/personalize/home?region={self.region}"

    # ------------------------------------------------------------------------------------------------------- asking

    def import_into(self, dataset: str, name: str, location: str, mode: str) -> Seen:
        """The import job of that name; starts it if there is none.

        Raises:
            Occupied: five import jobs are under way already.
            InputError: another dataset has a job of that name, or the request is wrong.
        """

        def create() -> str:
            return str(
                self._send(
                    "create_dataset_import_job",
                    jobName=name,
                    datasetArn=dataset,
                    dataSource={"dataLocation": location},
                    roleArn=self._settings.role_arn,
                    importMode=mode,
                )["datasetImportJobArn"]
            )

        found = self._once(f"the import job {name}", lambda: self.find_import(dataset, name), create)
        return self.import_job(found)

    def train(self, solution: str, name: str, mode: str, since: datetime, known: set[str]) -> Seen:
        """The solution version of that name; begins to train it if there is none. `since`, `known`: as find_version."""

        def create() -> str:
            answer = self._send("create_solution_version", name=name, solutionArn=solution, trainingMode=mode)
            return str(answer["solutionVersionArn"])

        found = self._once(
            f"the solution version {name}", lambda: self.find_version(solution, name, since, known), create
        )
        return self.version(found)

    def create_campaign(self, name: str, version: str) -> None:
        def find() -> str | None:
            return None if self.campaign(name) is None else name

        def create() -> str:
            self._send("create_campaign", name=name, solutionVersionArn=version)
            return name

        self._once(f"the campaign {name}", find, create)

    def update_campaign(self, name: str, version: str, begun: Callable[[], bool]) -> None:
        """Lets a campaign serve another version. `begun`: whether that very update is under way, or done."""
        arn = self.campaign_arn(name)

        def create() -> str:
            self._send("update_campaign", campaignArn=arn, solutionVersionArn=version)
            return arn

        self._once(f"the update of the campaign {name}", lambda: arn if begun() else None, create)

    # ------------------------------------------------------------------------------------------------------ the wire

    def _once(self, what: str, find: Callable[[], str | None], create: Callable[[], str]) -> str:
        """What `find` finds, else what `create` makes. Where no answer came, it looks before it asks again."""
        error: Exception | None = None
        for pause in (0.0, *PAUSES):
            _sleep(pause)
            if (found := find()) is not None:
                return found
            try:
                return create()
            except _AlreadyExists as already:
                if (found := find()) is not None:
                    return found
                raise InputError(
                    f"{what}: there is one of that name elsewhere in this account ({already}); set personalize.name to "
                    "something of your own"
                ) from already
            except (_Unclear, InputUnavailable) as again:
                error = again
            except Occupied as occupied:  # also said of too many requests a second
                error = occupied
                if pause >= PAUSES[1]:
                    raise
        if isinstance(error, Occupied):
            raise error
        raise InputUnavailable(f"{what}: {error}") from error

    def _all(self, operation: str, field: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        token: dict[str, Any] = {}
        while True:
            page = self._read(operation, maxResults=100, **arguments, **token)
            yield from page.get(field, ())
            if not page.get("nextToken"):
                return
            token = {"nextToken": page["nextToken"]}

    def _describe_version(self, arn: str) -> dict[str, Any]:
        found: dict[str, Any] = self._read("describe_solution_version", solutionVersionArn=arn)["solutionVersion"]
        return found

    def _read(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """A call that changes nothing: tried again while the service is busy, or does not answer."""
        for pause in PAUSES:
            try:
                return self._send(operation, **arguments)
            except (InputUnavailable, _Unclear, Occupied):
                _sleep(pause)
        try:
            return self._send(operation, **arguments)
        except (_Unclear, Occupied) as error:
            raise InputUnavailable(str(error)) from error

    def _send(self, operation: str, **arguments: Any) -> dict[str, Any]:
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            ConnectionError,
            HTTPClientError,
            ParamValidationError,
        )

        name = "".join(part.capitalize() for part in operation.split("_"))
        what = f"personalize:{name}"
        try:
            answer: dict[str, Any] = getattr(self._client, operation)(**arguments)
            return answer
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", "unknown error"))
            said = str(error.response.get("Error", {}).get("Message", ""))
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if code == "ResourceNotFoundException":
                raise NotFound(f"{what}: {said}") from error
            if code == "ResourceAlreadyExistsException":
                raise _AlreadyExists(said) from error
            if code in _OCCUPIED:
                raise Occupied(f"{code}: {said}") from error
            if code in _BUSY and status < 500:  # refused at the door
                raise InputUnavailable(f"{what}: the service is too busy ({code}); try again later") from error
            if code in _BUSY or status >= 500:
                raise _Unclear(f"{what}: the service answered {status} {code}; try again later") from error
            if "AccessDenied" in code:
                more = " and iam:PassRole of personalize.role_arn" if operation == "create_dataset_import_job" else ""
                raise InputError(f"{what}: access denied; the credentials in use need {what}{more}") from error
            if code in _CREDENTIALS:
                raise InputError(f"{what}: the credentials are not valid ({code}); renew them") from error
            raise InputError(f"{what}: {code}: {said}") from error
        except ParamValidationError as error:
            raise InputError(f"{what}: {error}") from error
        except (HTTPClientError, ConnectionError) as error:
            name = type(error).__name__
            raise _Unclear(f"{what}: {self._client.meta.endpoint_url} does not answer ({name})") from error
        except BotoCoreError as error:
            raise InputError(
                f"{what}: {type(error).__name__}; check personalize.profile, personalize.region and the AWS credentials"
            ) from error


def _seen(answer: dict[str, Any], arn: str) -> Seen:
    return Seen(
        str(answer[arn]),
        str(answer["status"]),
        moment(answer["creationDateTime"]),
        moment(answer["lastUpdatedDateTime"]),
        answer.get("failureReason"),
    )


def region_of(settings: PersonalizeSettings) -> str:
    """Where the datasets are; Personalize reads only from buckets of its own region."""
    return settings.region or str(settings.dataset_group_arn).split(":")[3]


def moment(value: datetime) -> str:
    return value.astimezone(UTC).isoformat(timespec="milliseconds")


def _sleep(seconds: float) -> None:
    if seconds:
        time.sleep(seconds * random.uniform(0.5, 1.5))
