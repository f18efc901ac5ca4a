"""The chain from a day's files to the campaign, against the fake service and a real bucket."""

from collections.abc import Iterator
from pathlib import Path

import boto3
import dagster as dg
import pytest

from recsys_assets.personalize import assets, service
from recsys_assets.settings import BucketSettings
from recsys_assets_tests.personalize.fake import FakePersonalize, Server
from recsys_assets_tests.personalize.shop import DAYS, Shop


@pytest.fixture
def shop(tmp_path: Path, s3_bucket: BucketSettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """Jobs take two seconds of the fake's clock, which every tick moves on by one."""
    monkeypatch.setattr(service, "PAUSES", (0.002,) * 7)
    monkeypatch.setattr(assets, "_STARTING", assets.timedelta(0))
    s3 = boto3.client("s3", endpoint_url=s3_bucket.endpoint_url)
    with (
        Server(FakePersonalize(s3, seconds=(1, 1))) as server,
        dg.DagsterInstance.ephemeral() as instance,
    ):
        yield Shop(tmp_path / "home", s3_bucket, instance, server)


def test_three_base_dates_in_turn(shop: Shop) -> None:
    for day in DAYS:
        assert shop.run([day]), shop.said
        assert shop.record(day)["version"]["why"] == "the import has not ended"
        shop.settle()
        assert {name: shop.metadata(name, day)["status"] for name in ("import", "solution_version", "campaign")} == {
            "import": "ACTIVE",
            "solution_version": "ACTIVE",
            "campaign": "ACTIVE",
        }
    assert all(success for _, _, success in shop.runs)
    assert len(shop.runs) == 4 * len(DAYS), "one by hand, and one for each step's end"
    assert sorted(shop.names("dataset-import-job")) == sorted(
        f"recsys-{kind}-{day}" for kind in ("interactions", "items") for day in DAYS
    )
    assert shop.names("solution-version") == [f"recsys-{day}" for day in DAYS]
    assert shop.changes("CreateCampaign") == 1
    assert shop.changes("UpdateCampaign") == 2
    assert (
        shop.record(DAYS[2])["campaign"]["jobs"]["campaign"]["of"]
        == shop.fake.all("campaign")[0].values["solutionVersionArn"]
    )
    modes = [shop.record(day)["import"]["jobs"]["interactions"]["mode"] for day in DAYS]
    assert modes == ["FULL", "INCREMENTAL", "INCREMENTAL"]
    modes = [shop.record(day)["version"]["jobs"]["version"]["mode"] for day in DAYS]
    assert modes == ["FULL", "UPDATE", "UPDATE"]
    before = list(shop.fake.calls)
    assert shop.run(DAYS)
    assert not [call for call in shop.fake.calls[len(before) :] if call[0].startswith(("Create", "Update"))]
