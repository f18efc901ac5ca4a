"""Amazon Personalize on loopback: its wire protocol (AWS JSON 1.1), its states, its quotas, its errors.

Requests and answers are held against botocore's model of the service, and the CSV files of an import against the
dataset's schema, in a real bucket. Training learns nothing: it counts what it would have learned from.

    python -m recsys_assets_tests.personalize.fake --port 4599 --s3 http://127.0.0.1:4566 --seconds 20
"""

import argparse
import csv
import io
import json
import random
import re
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import botocore.session
from botocore.model import Shape
from botocore.validate import ParamValidator

ACCOUNT = "123456789012"
ACTIVE, FAILED = "ACTIVE", "CREATE FAILED"
PENDING, PROGRESS = "CREATE PENDING", "CREATE IN_PROGRESS"
UNDER_WAY = (PENDING, PROGRESS)
LIMITS = {"dataset-import-job": 5, "solution-version": 20, "campaign": 5}
UPDATABLE = ("aws-user-personalization", "aws-hrnn-coldstart")
REQUIRED = {"interactions": {"USER_ID", "ITEM_ID", "TIMESTAMP"}, "items": {"ITEM_ID"}, "users": {"USER_ID"}}
MOVING = ("dataset-import-job", "solution-version", "campaign", "campaign-update")


class Refused(Exception):
    """An error as the service says it."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code, self.message, self.status = code, message, status


@dataclass
class Resource:
    """Anything with a status. `begun`: by the fake's clock, which tests move on."""

    kind: str
    arn: str
    values: dict[str, Any]
    begun: float
    created: float = field(default_factory=time.time)
    updated: float = field(default_factory=time.time)
    status: str = PENDING
    failure: str | None = None
    finish: Callable[[], str | None] | None = None  # at the end; what it returns is the reason of a failure

    def shown(self) -> dict[str, Any]:
        failure = {"failureReason": self.failure} if self.failure else {}
        times = {"creationDateTime": self.created, "lastUpdatedDateTime": self.updated}
        return {**self.values, "status": self.status, **times, **failure}


class FakePersonalize:
    """The service.

    Attributes:
        seconds: that a job is PENDING, and then IN_PROGRESS.
        rates: fault -> how often: 'throttle' and 'error' (nothing is done), 'lost' (done, and the answer lost).
        quota: operation -> how many of the next calls find no place (LimitExceededException).
        to_fail: what a failing job says -> names, each of which fails once.
        unique_versions: whether a solution version's name may not come twice. It is not told of the service.
        calls: every request that was let in, (operation, name, outcome).
        most: kind -> the most of it that were under way at once.
    """

    def __init__(self, s3: Any, seconds: tuple[float, float], clock: Callable[[], float] = float) -> None:
        self.s3, self.region, self.seconds, self._clock = s3, "eu-west-1", seconds, clock
        self.rates: dict[str, float] = {}
        self.quota: Counter[str] = Counter()
        self.to_fail: dict[str, list[str]] = {}
        self.unique_versions = True
        self.page = 100
        self.calls: list[tuple[str, str, str]] = []
        self.most: Counter[str] = Counter()
        self.trained: dict[str, tuple[int, int]] = {}  # version -> rows, newest TIMESTAMP that it learned from
        self._random = random.Random(5)
        self._lock = threading.RLock()
        self._skipped = 0.0
        self._found: dict[str, Resource] = {}
        self._rows: dict[str, list[dict[str, str]]] = {}  # dataset -> what it holds
        self._model = botocore.session.get_session().get_service_model("personalize")

    # ------------------------------------------------------------------------------------------------------- for tests

    def skip(self, seconds: float) -> None:
        """Moves the clock by which jobs go on; by itself it stands still."""
        with self._lock:
            self._skipped += seconds
            self._go_on()

    def all(self, kind: str) -> list[Resource]:
        with self._lock:
            self._go_on()
            return [each for each in self._found.values() if each.kind == kind]

    def rows(self, dataset: str) -> list[dict[str, str]]:
        return self._rows.get(dataset, [])

    # ------------------------------------------------------------------------------------------------------- the wire

    def answer(self, target: str, authorization: str, body: bytes) -> tuple[int, dict[str, Any] | None]:
        """Status and document; no document: the connection breaks."""
        service, _, operation = target.partition(".")
        with self._lock:
            self._go_on()
            try:
                if service != "AmazonPersonalize" or operation not in self._model.operation_names:
                    raise Refused("UnknownOperationException", target)
                if "/personalize/aws4_request" not in authorization:
                    raise Refused("IncompleteSignatureException", "no signature for this service", 403)
                model = self._model.operation_model(operation)
                asked = json.loads(body)
                self._check(asked, model.input_shape, operation)
                name = str(asked.get("jobName") or asked.get("name") or next(iter(asked.values()), ""))
                fault = self._fault(operation)
                if fault in ("throttle", "error"):
                    self.calls.append((operation, name, fault))
                    if fault == "throttle":
                        raise Refused("ThrottlingException", "Rate exceeded")
                    raise Refused("InternalFailure", "An internal error occurred", 500)
                try:
                    made: dict[str, Any] = getattr(self, "_" + re.sub(r"(?<!^)([A-Z])", r"_\1", operation).lower())(
                        asked
                    )
                except Refused as refused:
                    self.calls.append((operation, name, refused.code))
                    raise
                self.calls.append((operation, name, "lost" if fault else "done"))
                self._known_members(made, model.output_shape, operation)
                return (200, None) if fault == "lost" else (200, made)
            except Refused as refused:
                return refused.status, {"__type": refused.code, "message": refused.message}

    def _fault(self, operation: str) -> str | None:
        if self.quota[operation] > 0:
            self.quota[operation] -= 1
            raise Refused("LimitExceededException", "More than 5 resources with PENDING or IN_PROGRESS status.")
        drawn, above = self._random.random(), 0.0
        for fault, rate in self.rates.items():
            above += rate
            if drawn < above:
                return fault
        return None

    @staticmethod
    def _check(asked: Any, shape: Any, operation: str) -> None:
        report = ParamValidator().validate(asked, shape)
        if report.has_errors():
            raise Refused("ValidationException", f"{operation}: {report.generate_report()}")

        def walk(value: Any, shape: Shape, where: str) -> None:
            if shape.type_name == "structure":
                for name, inner in value.items():
                    if name not in shape.members:  # type: ignore[attr-defined]
                        raise Refused("SerializationException", f"{operation}: no member {where}{name}")
                    walk(inner, shape.members[name], f"{where}{name}.")  # type: ignore[attr-defined]
            elif shape.type_name == "string":
                pattern, allowed = shape.metadata.get("pattern"), shape.metadata.get("enum")
                if pattern and "\\p" not in pattern and not re.fullmatch(pattern, value):
                    raise Refused("InvalidInputException", f"{where}{value!r} does not match {pattern}")
                if allowed and value not in allowed:
                    raise Refused("InvalidInputException", f"{where}{value!r} is none of {allowed}")
                if len(value) > shape.metadata.get("max", len(value)):
                    raise Refused("InvalidInputException", f"{where}{value!r} is too long")

        walk(asked, shape, "")

    @staticmethod
    def _known_members(made: Any, shape: Any, operation: str) -> None:
        """An answer has no member that the service's has not."""
        if shape.type_name == "structure":
            for name, inner in made.items():
                assert name in shape.members, f"{operation} answers {name}, which the service does not"
                FakePersonalize._known_members(inner, shape.members[name], operation)
        elif shape.type_name == "list":
            for each in made:
                FakePersonalize._known_members(each, shape.member, operation)

    # ---------------------------------------------------------------------------------------------------- the states

    def _now(self) -> float:
        return self._clock() + self._skipped

    def _go_on(self) -> None:
        pending, progress = self.seconds
        for kind in MOVING:
            under_way = sum(each.kind == kind and each.status in UNDER_WAY for each in self._found.values())
            self.most[kind] = max(self.most[kind], under_way)
        for each in sorted(self._found.values(), key=lambda each: each.begun):
            age = self._now() - each.begun
            moves = each.kind in MOVING
            if each.status == PENDING and (age >= pending or not moves):
                each.status, each.updated = PROGRESS, time.time()
            if each.status == PROGRESS and (age >= pending + progress or not moves):
                each.failure = self._chance(each) or (each.finish() if each.finish else None)
                each.status, each.updated = FAILED if each.failure else ACTIVE, time.time()

    def _chance(self, each: Resource) -> str | None:
        name = str(each.values.get("jobName") or each.values.get("name"))
        for reason, names in self.to_fail.items():
            if f"{each.kind} {name}" in names:
                names.remove(f"{each.kind} {name}")
                return reason
        return None

    def _arn(self, kind: str, name: str) -> str:
        return f"arn:aws:personalize:{self.region}:{ACCOUNT}:{kind}/{name}"

    def _make(self, kind: str, arn: str, values: dict[str, Any]) -> Resource:
        if arn in self._found:
            raise Refused("ResourceAlreadyExistsException", f"Another resource with Arn {arn} already exists.")
        at_work = sum(each.kind == kind and each.status in UNDER_WAY for each in self._found.values())
        if at_work >= LIMITS.get(kind, 1000):
            raise Refused(
                "LimitExceededException", f"More than {LIMITS[kind]} resources with PENDING or IN_PROGRESS status."
            )
        self._found[arn] = made = Resource(kind, arn, values, self._now())
        return made

    def _need(self, arn: str, kind: str) -> Resource:
        found = self._found.get(arn)
        if found is None or found.kind != kind:
            raise Refused("ResourceNotFoundException", f"The resource {arn} was not found.")
        return found

    def _need_active(self, arn: str, kind: str) -> Resource:
        found = self._need(arn, kind)
        if found.status != ACTIVE:
            raise Refused("ResourceInUseException", f"{arn} is {found.status}")
        return found

    def _listed(self, asked: dict[str, Any], found: list[dict[str, Any]], name: str) -> dict[str, Any]:
        start = int(asked.get("nextToken", "0"))
        end = start + min(asked.get("maxResults", 100), self.page)
        return {name: found[start:end], **({"nextToken": str(end)} if end < len(found) else {})}

    # ---------------------------------------------------------------------------------------------- groups, datasets

    def _create_dataset_group(self, asked: dict[str, Any]) -> dict[str, Any]:
        arn = self._arn("dataset-group", asked["name"])
        self._make("dataset-group", arn, {"name": asked["name"], "datasetGroupArn": arn})
        return {"datasetGroupArn": arn}

    def _describe_dataset_group(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"datasetGroup": self._need(asked["datasetGroupArn"], "dataset-group").shown()}

    def _create_schema(self, asked: dict[str, Any]) -> dict[str, Any]:
        arn = self._arn("schema", asked["name"])
        try:
            json.loads(asked["schema"])["fields"]
        except (ValueError, KeyError) as error:
            raise Refused("InvalidInputException", "Schema is not valid Avro") from error
        self._make("schema", arn, {"name": asked["name"], "schemaArn": arn, "schema": asked["schema"]})
        return {"schemaArn": arn}

    def _describe_schema(self, asked: dict[str, Any]) -> dict[str, Any]:
        shown = self._need(asked["schemaArn"], "schema").shown()
        return {"schema": {name: value for name, value in shown.items() if name != "status"}}

    def _create_dataset(self, asked: dict[str, Any]) -> dict[str, Any]:
        group = self._need_active(asked["datasetGroupArn"], "dataset-group")
        schema = self._need(asked["schemaArn"], "schema")
        kind = str(asked["datasetType"]).lower()
        names = {each["name"] for each in json.loads(schema.values["schema"])["fields"]}
        if kind not in REQUIRED or REQUIRED[kind] - names:
            raise Refused("InvalidInputException", f"Schema does not fit datasetType {asked['datasetType']}")
        arn = self._arn("dataset", f"{group.values['name']}/{kind.upper()}")
        self._make(
            "dataset",
            arn,
            {
                "name": asked["name"],
                "datasetArn": arn,
                "datasetGroupArn": group.arn,
                "datasetType": kind.upper(),
                "schemaArn": schema.arn,
            },
        )
        return {"datasetArn": arn}

    def _describe_dataset(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"dataset": self._need(asked["datasetArn"], "dataset").shown()}

    def _list_datasets(self, asked: dict[str, Any]) -> dict[str, Any]:
        group = asked.get("datasetGroupArn")
        found = [
            {name: value for name, value in each.shown().items() if name not in ("schemaArn", "datasetGroupArn")}
            for each in self._found.values()
            if each.kind == "dataset" and group in (None, each.values["datasetGroupArn"])
        ]
        return self._listed(asked, found, "datasets")

    # -------------------------------------------------------------------------------------------------------- imports

    def _create_dataset_import_job(self, asked: dict[str, Any]) -> dict[str, Any]:
        dataset = self._need_active(asked["datasetArn"], "dataset")
        if not asked.get("roleArn"):
            raise Refused("InvalidInputException", "roleArn is required")
        mode = asked.get("importMode", "FULL")
        arn = self._arn("dataset-import-job", asked["jobName"])
        if arn not in self._found and mode == "INCREMENTAL" and dataset.arn not in self._rows:
            raise Refused("InvalidInputException", "No bulk data was imported before: the import mode must be FULL.")
        names = ("jobName", "datasetArn", "dataSource", "roleArn")
        values = {**{name: asked[name] for name in names}, "datasetImportJobArn": arn, "importMode": mode}
        made = self._make("dataset-import-job", arn, values)
        made.finish = lambda: self._import(dataset, asked["dataSource"]["dataLocation"], mode)
        return {"datasetImportJobArn": arn}

    def _import(self, dataset: Resource, location: str, mode: str) -> str | None:
        kind = str(dataset.values["datasetType"]).lower()
        fields = json.loads(self._found[dataset.values["schemaArn"]].values["schema"])["fields"]
        bucket, _, path = location.removeprefix("s3://").partition("/")
        keys = [path]
        if path.endswith("/"):
            listed = self.s3.list_objects_v2(Bucket=bucket, Prefix=path, Delimiter="/").get("Contents", ())
            keys = [each["Key"] for each in listed]
        rows: list[dict[str, str]] = []
        for key in keys:
            try:
                content = self.s3.get_object(Bucket=bucket, Key=key)["Body"].read().decode()
            except self.s3.exceptions.NoSuchKey:
                return f"Insufficient privileges for accessing data in Amazon S3: {location}."
            header, _, _ = content.partition("\n")
            if '"' in header:
                return "The header is in quotation marks."
            read = csv.DictReader(io.StringIO(content, newline=""), doublequote=False, escapechar="\\", strict=True)
            if missing := [each["name"] for each in fields if each["name"] not in (read.fieldnames or ())]:
                return f"Input CSV is missing the following columns:[{', '.join(missing)}]."
            found = list(read)
            rows += found
            for each in fields:
                types = [each["type"]] if isinstance(each["type"], str) else each["type"]
                for number, row in enumerate(found, 2):
                    if (wrong := _wrong(row[each["name"]], types)) is not None:
                        return f"{key}, line {number}: {each['name']} {wrong}."
        if kind == "interactions" and len(rows) < 1000:
            return f"The import has {len(rows)} interactions, fewer than 1000."
        if not rows:
            return f"There is no data in {location}."
        self._rows[dataset.arn] = rows if mode == "FULL" else [*self._rows[dataset.arn], *rows]
        return None

    def _describe_dataset_import_job(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"datasetImportJob": self._need(asked["datasetImportJobArn"], "dataset-import-job").shown()}

    def _list_dataset_import_jobs(self, asked: dict[str, Any]) -> dict[str, Any]:
        found = [
            {name: value for name, value in each.shown().items() if name not in ("datasetArn", "dataSource", "roleArn")}
            for each in self._found.values()
            if each.kind == "dataset-import-job" and asked.get("datasetArn") in (None, each.values["datasetArn"])
        ]
        return self._listed(asked, found, "datasetImportJobs")

    # ------------------------------------------------------------------------------------------------------- training

    def _create_solution(self, asked: dict[str, Any]) -> dict[str, Any]:
        self._need_active(asked["datasetGroupArn"], "dataset-group")
        arn = self._arn("solution", asked["name"])
        values = {
            name: asked[name]
            for name in ("name", "datasetGroupArn", "recipeArn", "performAutoTraining")
            if name in asked
        }
        self._make("solution", arn, {**values, "solutionArn": arn})
        return {"solutionArn": arn}

    def _describe_solution(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"solution": self._need(asked["solutionArn"], "solution").shown()}

    def _versions(self, solution: str) -> list[Resource]:
        return [
            each
            for each in self._found.values()
            if each.kind == "solution-version" and each.values["solutionArn"] == solution
        ]

    def _create_solution_version(self, asked: dict[str, Any]) -> dict[str, Any]:
        solution = self._need_active(asked["solutionArn"], "solution")
        name, mode = asked.get("name"), asked.get("trainingMode", "FULL")
        others = self._versions(solution.arn)
        if self.unique_versions and name and any(each.values.get("name") == name for each in others):
            raise Refused("ResourceAlreadyExistsException", f"Another resource with name {name} already exists.")
        recipe = str(solution.values["recipeArn"])
        whole = any(each.status == ACTIVE and each.values["trainingMode"] == "FULL" for each in others)
        if mode == "UPDATE" and not (whole and recipe.rpartition("/")[2] in UPDATABLE):
            raise Refused(
                "InvalidInputException", "UPDATE needs an active FULL solution version of a recipe that has it."
            )
        arn = f"{solution.arn}/{uuid.uuid4().hex[:8]}"
        group = str(solution.values["datasetGroupArn"])
        values = {
            "solutionVersionArn": arn,
            "solutionArn": solution.arn,
            "datasetGroupArn": group,
            "recipeArn": recipe,
            "trainingMode": mode,
            "trainingType": "MANUAL",
            **({"name": name} if name else {}),
        }
        made = self._make("solution-version", arn, values)
        made.finish = lambda: self._train(arn, group)
        return {"solutionVersionArn": arn}

    def _train(self, arn: str, group: str) -> str | None:
        (dataset,) = [
            each.arn
            for each in self._found.values()
            if each.kind == "dataset"
            and each.values["datasetGroupArn"] == group
            and each.values["datasetType"] == "INTERACTIONS"
        ]
        rows = self.rows(dataset)
        if len(rows) < 1000:
            return "Dataset has fewer than 1000 interactions."
        if sum(count >= 2 for count in Counter(row["USER_ID"] for row in rows).values()) < 25:
            return "Dataset has fewer than 25 users with at least 2 interactions each."
        self.trained[arn] = len(rows), max(int(row["TIMESTAMP"]) for row in rows)
        return None

    def _describe_solution_version(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"solutionVersion": self._need(asked["solutionVersionArn"], "solution-version").shown()}

    def _list_solution_versions(self, asked: dict[str, Any]) -> dict[str, Any]:
        hidden = ("solutionArn", "datasetGroupArn", "recipeArn", "name")
        found = [
            {name: value for name, value in each.shown().items() if name not in hidden}
            for each in self._versions(asked["solutionArn"])
        ]
        return self._listed(asked, found, "solutionVersions")

    # ------------------------------------------------------------------------------------------------------ campaigns

    def _create_campaign(self, asked: dict[str, Any]) -> dict[str, Any]:
        self._need_active(asked["solutionVersionArn"], "solution-version")
        arn = self._arn("campaign", asked["name"])
        values = {"name": asked["name"], "campaignArn": arn, "solutionVersionArn": asked["solutionVersionArn"]}
        config = {"campaignConfig": asked["campaignConfig"]} if "campaignConfig" in asked else {}
        self._make("campaign", arn, {**values, "minProvisionedTPS": asked.get("minProvisionedTPS", 1), **config})
        return {"campaignArn": arn}

    def _update_campaign(self, asked: dict[str, Any]) -> dict[str, Any]:
        campaign = self._need(asked["campaignArn"], "campaign")
        if campaign.status not in (ACTIVE, FAILED):
            raise Refused("ResourceInUseException", f"The campaign is {campaign.status}.")
        updates = self._updates(campaign.arn)
        if updates and updates[-1].status in UNDER_WAY:
            raise Refused("ResourceInUseException", f"The campaign is being updated: {updates[-1].status}.")
        version = self._need_active(asked["solutionVersionArn"], "solution-version")
        arn = f"{campaign.arn}#{len(updates) + 1}"
        values = {"solutionVersionArn": version.arn, "minProvisionedTPS": 1}
        update = self._make("campaign-update", arn, {**values, "name": version.values.get("name", "")})

        def serve() -> None:
            campaign.values["solutionVersionArn"] = version.arn
            campaign.status, campaign.failure, campaign.updated = ACTIVE, None, time.time()

        update.finish = serve  # type: ignore[assignment]
        return {"campaignArn": campaign.arn}

    def _updates(self, campaign: str) -> list[Resource]:
        return [
            each for each in self._found.values() if each.kind == "campaign-update" and each.arn.startswith(campaign)
        ]

    def _describe_campaign(self, asked: dict[str, Any]) -> dict[str, Any]:
        campaign = self._need(asked["campaignArn"], "campaign")
        shown = campaign.shown()
        if updates := self._updates(campaign.arn):
            shown["latestCampaignUpdate"] = {n: v for n, v in updates[-1].shown().items() if n != "name"}
        return {"campaign": shown}


def _wrong(text: str | None, types: list[str]) -> str | None:
    if text is None:
        return "is missing"
    if text == "" and "null" in types:
        return None
    try:
        if {"int", "long"} & set(types):
            int(text)
        elif {"float", "double"} & set(types):
            float(text)
        elif not text:
            return "is empty"
    except ValueError:
        return f"is no number: {text!r}"
    return None


class Server:
    """The fake on a port of loopback."""

    def __init__(self, fake: FakePersonalize, port: int = 0) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, made = fake.answer(
                    self.headers.get("X-Amz-Target", ""), self.headers.get("Authorization", ""), body
                )
                if made is None:  # no answer: the client sees a connection that broke
                    self.close_connection = True
                    self.connection.close()
                    return
                content = json.dumps(made).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/x-amz-json-1.1")
                self.send_header("x-amzn-RequestId", str(uuid.uuid4()))
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self.fake = fake
        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()

    def wait(self) -> None:
        self._thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description="Amazon Personalize on loopback, for trying things out.")
    parser.add_argument("--port", type=int, default=4599)
    parser.add_argument("--s3", required=True, help="endpoint of the S3 server that holds the files")
    parser.add_argument("--seconds", type=float, default=20, help="that a job is pending, and then in progress")
    given = parser.parse_args()
    import boto3

    s3 = boto3.client("s3", endpoint_url=given.s3)
    with Server(FakePersonalize(s3, (given.seconds, given.seconds), time.monotonic), given.port) as server:
        print(f"Amazon Personalize, of a kind, on {server.url}", flush=True)  # noqa: T201
        server.wait()


if __name__ == "__main__":
    main()
