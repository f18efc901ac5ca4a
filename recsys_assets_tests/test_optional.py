"""What settings switch on: nothing of it is imported while it is off."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from recsys_assets.pipeline import InputError, InputUnavailable, Pipeline, explained_failures
from recsys_assets.settings import Settings
from recsys_assets.storage.bucket import BucketError, BucketUnavailable

ROOT = Path(__file__).parent.parent
ON = {
    "RECSYS_QUEUE__URL": "https://sqs.eu-west-1.amazonaws.com/1/logs",
    "RECSYS_PUBLISH__METRICS_URL": "s3://dashboard/metrics",
    "RECSYS_PUBLISH__MODEL_URL": "s3://models",
    "RECSYS_SQL__URL": "postgresql+psycopg://user:secret@127.0.0.1:1/shop",
    "RECSYS_SQL__EVENTS": "{orders: {table: orders, user: u, item: i, time: t, always: PURCHASE}}",
    "RECSYS_SQL__CATALOGUE": "{table: products}",
    "RECSYS_SQL__USERS": "{table: customers}",
    "RECSYS_AUDIENCE__ACTION": "CLICK",
    "RECSYS_AUDIENCE__MOBILE_COLUMN": "device",
    "RECSYS_PERSONALIZE__URL": "s3://for-personalize/shop",
    "RECSYS_PERSONALIZE__ROLE_ARN": "arn:aws:iam::123456789012:role/reads",
    "RECSYS_PERSONALIZE__DATASET_GROUP_ARN": "arn:aws:personalize:eu-west-1:123456789012:dataset-group/shop",
    "RECSYS_PERSONALIZE__SOLUTION_ARN": "arn:aws:personalize:eu-west-1:123456789012:solution/shop",
    "RECSYS_PERSONALIZE__CAMPAIGN": "shop",
    "RECSYS_JOBS__RETRIES": "5",
}
MODULES = [
    "recsys_assets.ingest.queue",
    "recsys_assets.publishing",
    "recsys_assets.sources.database",
    "recsys_assets.audience",
    "recsys_assets.personalize",
]
ASSETS = [
    "audience",
    "catalogue",
    "personalize_campaign",
    "personalize_export",
    "personalize_import",
    "personalize_solution_version",
    "propensity_model",
    "published_champion",
    "published_metrics",
    "sql_events",
    "user_features",
    "users",
]
DOCS = {
    "events": ["queue"],
    "sql": ["sql"],
    "metrics": ["publish", "jobs"],
    "audience": ["audience"],
    "personalize": ["personalize"],
}
NO_POLICY = ["audience"]
"""Pages of what needs no permission beyond those there are."""

TELL = """
import json, sys, dagster as dg
from recsys_assets.definitions import defs
dg.Definitions.validate_loadable(defs)
train = defs.resolve_job_def("train")
print(json.dumps({
    "modules": sorted(sys.modules),
    "sensors": sorted(sensor.name for sensor in defs.sensors),
    "assets": sorted(key.to_user_string() for key in defs.resolve_asset_graph().get_all_asset_keys()),
    "jobs": sorted(job.name for job in defs.jobs),
    "before": sorted(
        key.to_user_string() for key in defs.resolve_asset_graph().get(dg.AssetKey("raw_events")).parent_keys
    ),
    "order": [
        other.node
        for job in defs.jobs
        if job.name == "load_tables"
        for node, inputs in defs.resolve_job_def(job.name).dependencies.items()
        if node.name == "raw_events"
        for other in inputs.values()
    ],
    "schedules": sorted(schedule.name for schedule in defs.schedules),
    "train": sorted(key.to_user_string() for key in train.asset_layer.executable_asset_keys),
    "retries": [
        policy and [policy.max_retries, policy.delay]
        for policy in (defs.resolve_job_def(job.name).op_retry_policy for job in defs.jobs)
    ],
}))
"""


def told(given: dict[str, str]) -> Any:
    """What a new process that loads the definitions sees; it has no credentials."""
    environ = {name: text for name, text in os.environ.items() if not name.startswith("AWS_")}
    done = subprocess.run(
        [sys.executable, "-c", TELL], capture_output=True, text=True, cwd=ROOT, env={**environ, **given}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_is_off_is_not_there_and_what_is_on_is() -> None:
    off, on = told({}), told(ON)
    for found in (off, on):
        assert not {"boto3", "psycopg", "pymysql", "sklearn"} & set(found["modules"]), "nothing connects while loading"
    assert not set(MODULES) & set(off["modules"])
    assert set(MODULES) <= set(on["modules"])
    assert off["sensors"] == ["new_log_prefixes"]
    assert on["sensors"] == ["bucket_events", "new_log_prefixes", "personalize_progress"]
    assert sorted(set(on["assets"]) - set(off["assets"])) == ASSETS
    assert set(on["train"]) - set(off["train"]) == {"published_champion", "published_metrics"}
    assert set(on["jobs"]) - set(off["jobs"]) == {"find_audience", "load_tables", "personalize"}
    assert set(on["schedules"]) - set(off["schedules"]) == {"nightly_audience", "nightly_personalize", "nightly_tables"}
    assert (off["before"], on["before"]) == ([], ["sql_events"])
    assert on["order"] == ["sql_events"], "not in the lineage alone, but in the run"
    assert off["retries"] == [None] * len(off["jobs"])
    assert on["retries"] == [[5, 600]] * len(on["jobs"]), "of every job"


@pytest.mark.parametrize("page", DOCS)
def test_the_page_names_every_setting_and_its_policy_is_json(page: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    for name in DOCS[page]:
        section = Settings.model_fields[name].annotation
        assert section is not None
        assert [field for field in section.model_fields if f"`{name}.{field}`" not in text] == []
        named = set(re.findall(rf"`{name}\.([a-z0-9_]+)", text))
        assert named <= set(section.model_fields)
    policies = [json.loads(each) for each in re.findall(r"```json\n(.*?)```", text, re.DOTALL) if "Statement" in each]
    assert bool(policies) == (page not in NO_POLICY)
    settings = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert settings
    for each in settings:
        Settings.model_validate({"home": ROOT, **yaml.safe_load(each)})


@pytest.mark.parametrize(
    ("error", "tries"),
    [(BucketUnavailable("busy"), 3), (InputUnavailable("gone"), 3), (BucketError("denied"), 1), (InputError("no"), 1)],
)
def test_only_what_may_pass_is_tried_again(error: Exception, tries: int) -> None:
    tried = []

    @dg.asset
    def publishes() -> None:
        tried.append(1)
        with explained_failures(Pipeline.open()):
            raise error

    job = dg.define_asset_job("job", [publishes], op_retry_policy=dg.RetryPolicy(max_retries=2, delay=0))
    found = dg.Definitions([publishes], jobs=[job], executor=dg.in_process_executor).resolve_job_def("job")
    assert not found.execute_in_process(raise_on_error=False).success
    assert len(tried) == tries
