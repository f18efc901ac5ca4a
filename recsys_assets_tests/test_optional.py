"""What settings switch on: nothing of it is imported while it is off."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from recsys_assets.pipeline import Pipeline, explained_failures
from recsys_assets.storage.bucket import BucketError, BucketUnavailable

ROOT = Path(__file__).parent.parent
ON = {
    "RECSYS_QUEUE__URL": "https://sqs.eu-west-1.amazonaws.com/1/logs",
    "RECSYS_PUBLISH__METRICS_URL": "s3://dashboard/metrics",
    "RECSYS_PUBLISH__MODEL_URL": "s3://models",
    "RECSYS_JOBS__RETRIES": "5",
}
MODULES = ["recsys_assets.ingest.queue", "recsys_assets.publishing"]
ASSETS = ["published_champion", "published_metrics"]

TELL = """
import json, sys, dagster as dg
from recsys_assets.definitions import defs
dg.Definitions.validate_loadable(defs)
train = defs.resolve_job_def("train")
print(json.dumps({
    "modules": sorted(sys.modules),
    "sensors": sorted(sensor.name for sensor in defs.sensors),
    "assets": sorted(key.to_user_string() for key in defs.resolve_asset_graph().get_all_asset_keys()),
    "train": sorted(key.to_user_string() for key in train.asset_layer.executable_asset_keys),
    "retries": train.op_retry_policy and [train.op_retry_policy.max_retries, train.op_retry_policy.delay],
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
        assert not {"boto3", "psycopg", "pymysql"} & set(found["modules"]), "nothing connects while loading"
    assert not set(MODULES) & set(off["modules"])
    assert set(MODULES) <= set(on["modules"])
    assert off["sensors"] == ["new_log_prefixes"]
    assert on["sensors"] == ["bucket_events", "new_log_prefixes"]
    assert sorted(set(on["assets"]) - set(off["assets"])) == ASSETS
    assert set(on["train"]) - set(off["train"]) == {"published_champion", "published_metrics"}
    assert off["retries"] is None
    assert on["retries"] == [5, 600]


@pytest.mark.parametrize(("error", "tries"), [(BucketUnavailable("busy"), 3), (BucketError("denied"), 1)])
def test_only_what_may_pass_is_tried_again(error: BucketError, tries: int) -> None:
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
