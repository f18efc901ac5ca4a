"""A home that serves from Amazon Personalize: the fake on loopback, a real bucket, days of interactions."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import dagster as dg
import polars as pl

from recsys_assets.ingest.validate import INTERACTIONS_SCHEMA, REJECTED_SCHEMA
from recsys_assets.personalize import assets
from recsys_assets.personalize.export import Exports
from recsys_assets.personalize.service import Personalize
from recsys_assets.personalize.steps import Chain, Record, Records, account, is_outdated, status_of, steps_of
from recsys_assets.pipeline import Pipeline, dagster_resources
from recsys_assets.settings import BucketSettings
from recsys_assets_tests.graph import make_home
from recsys_assets_tests.personalize.fake import Server

DAYS = ["2025-11-01", "2025-11-02", "2025-11-03"]
ROLE = "arn:aws:iam::123456789012:role/personalize-reads-s3"
GROUP = "arn:aws:personalize:eu-west-1:123456789012:dataset-group/shop"
SOLUTION = "arn:aws:personalize:eu-west-1:123456789012:solution/shop"
ASSETS = {
    "export": assets.personalize_export,
    "import": assets.personalize_import,
    "solution_version": assets.personalize_solution_version,
    "campaign": assets.personalize_campaign,
}
NULL_OR_TEXT, NULL_OR_NUMBER = ["null", "string"], ["null", "float"]
FIELDS: dict[str, list[tuple[str, Any]]] = {
    "interactions": [
        ("USER_ID", "string"),
        ("ITEM_ID", "string"),
        ("TIMESTAMP", "long"),
        ("EVENT_TYPE", "string"),
        ("EVENT_VALUE", "float"),
    ],
    "items": [
        ("ITEM_ID", "string"),
        ("CATEGORY_L1", NULL_OR_TEXT),
        ("PRICE", NULL_OR_NUMBER),
        ("CREATION_TIMESTAMP", "long"),
    ],
    "users": [("USER_ID", "string"), ("COUNTRY", NULL_OR_TEXT)],
}


def definitions(pipeline: Pipeline) -> dg.Definitions:
    return dg.Definitions(
        assets=list(ASSETS.values()),
        jobs=[assets.personalize],
        sensors=[assets.personalize_progress],
        executor=dg.in_process_executor,
        resources=dagster_resources(pipeline),
    )


def avro(kind: str, fields: Sequence[tuple[str, Any]]) -> str:
    import json

    return json.dumps(
        {
            "type": "record",
            "name": kind.capitalize(),
            "namespace": "com.amazonaws.personalize.schema",
            "fields": [{"name": name, "type": types} for name, types in fields],
            "version": "1.0",
        }
    )


def events(day: str, rows: int = 1200, users: int = 60, items: int = 40) -> pl.DataFrame:
    start = datetime.fromisoformat(f"{day}T08:00:00")
    frame = pl.DataFrame(
        {
            "user_id": [f"user-{n % users}" for n in range(rows)],
            "item_id": [f"item-{n * 7 % items}" for n in range(rows)],
            "action": [("VIEW", "CLICK", "PURCHASE")[n % 3] for n in range(rows)],
            "timestamp": [start + timedelta(seconds=n) for n in range(rows)],
            "category_id": [f"c{n * 7 % items % 5}" for n in range(rows)],
            "price": [float(n * 7 % items) if n % 4 else None for n in range(rows)],
            "source_key": ["k"] * rows,
            "record": list(range(rows)),
            "off_day": [False] * rows,
        },
        schema=INTERACTIONS_SCHEMA,
    )
    missing = [name for name in REJECTED_SCHEMA if name not in INTERACTIONS_SCHEMA]
    return frame.with_columns(pl.lit(None, REJECTED_SCHEMA[name]).alias(name) for name in missing)


class Shop:
    """Attributes:
    fake: the service.
    pipeline: the home.
    runs: (day, steps, success) of every run.
    """

    def __init__(
        self,
        folder: Path,
        bucket: BucketSettings,
        instance: dg.DagsterInstance,
        server: Server,
        days: Sequence[str] = DAYS,
    ) -> None:
        self.server, self.fake, self.instance = server, server.fake, instance
        self.folder = folder
        self.client = boto3.client("personalize", region_name="eu-west-1", endpoint_url=server.url)
        self.settings: dict[str, Any] = {
            "url": f"{bucket.url}/for/personalize",
            "role_arn": ROLE,
            "dataset_group_arn": GROUP,
            "solution_arn": SOLUTION,
            "campaign": "shop",
            "endpoint_url": server.url,
            "s3_endpoint_url": bucket.endpoint_url,
            "region": "eu-west-1",
        }
        self.bucket_name = bucket.url.removeprefix("s3://")
        self.runs: list[tuple[str, list[str], bool]] = []
        self.said: list[str] = []
        self.open()
        self.prepare()
        for day in days:
            self.publish(day, events(day))

    def open(self, **changed: Any) -> Pipeline:
        self.settings |= changed
        self.pipeline = make_home(self.folder, personalize=self.settings)
        self.repository = definitions(self.pipeline).get_repository_def()
        return self.pipeline

    def publish(self, day: str, frame: pl.DataFrame) -> None:
        self.pipeline.tables.publish_frame("interactions", day, frame, {"version": str(len(frame))})

    def prepare(self, recipe: str = "aws-user-personalization", kinds: Sequence[str] = ("interactions",)) -> None:
        """What a person sets up once."""
        self.client.create_dataset_group(name="shop")
        for kind in kinds:
            self.add_dataset(kind)
        self.client.create_solution(
            name="shop",
            datasetGroupArn=GROUP,
            recipeArn=f"arn:aws:personalize:::recipe/{recipe}",
            performAutoTraining=False,
        )

    def add_dataset(self, kind: str, fields: Sequence[tuple[str, Any]] | None = None) -> str:
        schema = self.client.create_schema(name=f"shop-{kind}", schema=avro(kind, fields or FIELDS[kind]))["schemaArn"]
        return self.client.create_dataset(
            name=f"shop-{kind}", datasetGroupArn=GROUP, datasetType=kind.capitalize(), schemaArn=schema
        )["datasetArn"]

    def run(self, days: Sequence[str], *steps: str, tags: dict[str, str] | None = None) -> bool:
        """Materializes steps (default: all) of a day or a range, as the UI would."""
        from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

        many = {ASSET_PARTITION_RANGE_START_TAG: min(days), ASSET_PARTITION_RANGE_END_TAG: max(days)}
        result = self.repository.get_job("personalize").execute_in_process(
            instance=self.instance,
            partition_key=days[0] if len(days) == 1 else None,
            asset_selection=[dg.AssetKey(f"personalize_{step}") for step in steps or ASSETS],
            tags={**(tags or {}), **(many if len(days) > 1 else {})},
            raise_on_error=False,
        )
        self.runs.append((f"{min(days)}..{max(days)}" if len(days) > 1 else days[0], list(steps), result.success))
        for event in result.all_events:
            if event.is_step_failure:
                data = event.step_failure_data
                assert data.user_failure_data is not None, data.error and data.error.to_string()
                self.said.append(str(data.user_failure_data.description))
        return result.success

    def chain(self) -> Chain:
        return Chain(self.pipeline, Personalize(self.pipeline.settings.personalize), Exports(self.pipeline))

    def go(self, *days: str) -> dict[str, Any]:
        """The whole chain of days without Dagster, which takes most of a test's time. Returns the last export."""
        made: dict[str, Any] = {}
        chain = self.chain()
        steps = steps_of(chain.settings)
        with chain.records.lock():
            for day in days:
                made = chain.export(day)
            for _ in range(6 * len(days)):
                for day in days:
                    for step in steps:
                        chain.advance(day, step)
                self.fake.skip(2)
                records = [chain.records.read(day) for day in days]
                if all(status_of(r, step) == "ACTIVE" and not is_outdated(r, step) for r in records for step in steps):
                    return made
        raise AssertionError({day: self.stands(day) for day in days})

    def look(self) -> dg.SensorResult:
        """A tick of the sensor; what it tells is recorded, and what it asks for is left to the caller."""
        with dg.build_sensor_context(
            instance=self.instance,
            resources={"pipeline": self.pipeline},
            repository_def=self.repository,
        ) as context:
            ticked = assets.personalize_progress(context)
        assert isinstance(ticked, dg.SensorResult)
        for event in ticked.asset_events:
            self.instance.report_runless_asset_event(event)
        return ticked

    def tick(self, seconds: float = 1) -> int:
        """The daemon's part: a tick, and the runs it asks for; then time goes on. Returns how many were asked for."""
        requests = list(self.look().run_requests or ())
        for request in requests:
            steps = [key.path[0].removeprefix("personalize_") for key in request.asset_selection or ()]
            self.run([str(request.partition_key)], *steps, tags=dict(request.tags))
        self.fake.skip(seconds)
        return len(requests)

    def settle(self, ticks: int = 60) -> None:
        """Ticks until nothing is under way any more.

        Raises:
            AssertionError: it does not come to an end.
        """
        for _ in range(ticks):
            if not self.under_way():
                return
            self.tick()
        raise AssertionError({day: self.stands(day) for day in self.under_way()})

    def settle_until(self, reached: Callable[[], bool], ticks: int = 30) -> None:
        for _ in range(ticks):
            if reached():
                return
            self.tick()
        raise AssertionError({day: self.stands(day) for day in self.under_way()})

    def under_way(self) -> list[str]:
        return [
            d for d, record in Records(self.pipeline).all().items() if "import" in record and not record.get("done")
        ]

    def record(self, day: str) -> Record:
        return Records(self.pipeline).read(day)

    def let_pass(self) -> None:
        """The pauses until something is asked for again are over."""
        records = Records(self.pipeline)
        with records.lock():
            for day, record in records.all().items():
                for step in ("import", "version", "campaign"):
                    if record.get(step, {}).get("again"):
                        record[step]["again"] = "2025-11-01T00:00:00+00:00"
                records.write(day, record)

    def stands(self, day: str) -> dict[str, str]:
        record = self.record(day)
        return {step: account(record, step) for step in ("import", "version", "campaign") if step in record}

    def metadata(self, step: str, day: str) -> dict[str, Any]:
        key = dg.AssetKey(f"personalize_{step}")
        page = self.instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=key, asset_partitions=[day]), limit=1
        )
        found = page.records[0].asset_materialization
        assert found is not None
        return {name: entry.value for name, entry in found.metadata.items()}

    def names(self, kind: str) -> list[str]:
        """Of the jobs of a kind that came to their end well, in order."""
        return [
            str(each.values.get("jobName") or each.values.get("name"))
            for each in self.fake.all(kind)
            if each.status == "ACTIVE"
        ]

    def changes(self, operation: str) -> int:
        return sum(name == operation and outcome in ("done", "lost") for name, _, outcome in self.fake.calls)


class Worker:
    """The process of `worker.py`, which forks runs that are killed."""

    def __init__(self, home: Path) -> None:
        import subprocess
        import sys

        self._process = subprocess.Popen(
            [sys.executable, "-m", "recsys_assets_tests.personalize.worker", str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Worker":
        return self

    def does(self, what: str, day: str, steps: str, kill_at: int = 0) -> int:
        """How it ended: 0, 2 (a run that failed), -9 (killed)."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{what} {day} {steps} {kill_at}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
