import json
import re
from pathlib import Path

from recsys_assets.ingest import validate
from recsys_assets.settings import BucketSettings, IngestSettings

DOCS = (Path(__file__).parent.parent.parent / "docs" / "ingest.md").read_text(encoding="utf-8")


def test_the_outcomes_table_is_that_of_the_code() -> None:
    rows = [line for line in (validate.__doc__ or "").splitlines() if line.startswith("|")]
    assert len(rows) > 20
    assert "\n".join(rows) in DOCS


def test_the_settings_it_names_exist() -> None:
    named = set(re.findall(r"`(bucket|ingest)\.([a-z_]+)", DOCS))
    assert len(named) > 10
    known = {("bucket", name) for name in BucketSettings.model_fields}
    known |= {("ingest", name) for name in IngestSettings.model_fields}
    assert named <= known
    assert {("ingest", name) for name in IngestSettings.model_fields} <= named, "every ingest setting is explained"


def test_every_setting_of_ingest_and_bucket_has_a_description() -> None:
    for section in (BucketSettings, IngestSettings):
        assert [name for name, field in section.model_fields.items() if not field.description] == []


def test_the_policy_is_json_and_deletes_and_writes_nothing() -> None:
    (policy,) = re.findall(r"```json\n(.*?)```", DOCS, re.DOTALL)
    assert {each["Action"] for each in json.loads(policy)["Statement"]} == {"s3:ListBucket", "s3:GetObject"}
