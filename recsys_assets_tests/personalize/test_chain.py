"""The chain from a day's files to the campaign, against the fake service and a real bucket."""

import signal
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import boto3
import dagster as dg
import pytest

from recsys_assets.days import shift
from recsys_assets.personalize import assets, service
from recsys_assets.settings import BucketSettings
from recsys_assets_tests.personalize.fake import FakePersonalize, Server
from recsys_assets_tests.personalize.shop import DAYS, GROUP, Shop, Worker


@pytest.fixture
def server(s3_bucket: BucketSettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Jobs take two seconds of the fake's clock, which every tick moves on by one."""
    monkeypatch.setattr(service, "PAUSES", (0.002,) * 7)
    monkeypatch.setattr(assets, "_STARTING", timedelta(0))
    s3 = boto3.client("s3", endpoint_url=s3_bucket.endpoint_url)
    with Server(FakePersonalize(s3, seconds=(1, 1))) as made:
        yield made


@pytest.fixture
def shop(tmp_path: Path, s3_bucket: BucketSettings, server: Server) -> Iterator[Shop]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Shop(tmp_path / "home", s3_bucket, instance, server)


def test_three_base_dates_in_turn(shop: Shop) -> None:
    shop.add_dataset("items")
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


def test_a_kill_at_every_moment_of_every_step(tmp_path: Path, s3_bucket: BucketSettings, server: Server) -> None:
    """Day n's worker is killed at its n-th moment in each of the four steps, and comes again."""
    days = [shift(DAYS[0], n) for n in range(16)]
    fake, killed = server.fake, Counter[str]()
    fake.unique_versions, fake.page = False, 5
    with dg.DagsterInstance.ephemeral() as instance:
        shop = Shop(tmp_path / "home", s3_bucket, instance, server, days)
    chain = shop.chain()
    with Worker(shop.folder) as worker:
        for moment, day in enumerate(days, 1):
            for step in ("export", "import", "version", "campaign"):
                if killed[step] == moment - 1:  # it had all moments so far
                    ended = worker.does("call", day, step, kill_at=moment)
                    assert ended in (0, -signal.SIGKILL), (shop.folder / "worker.log").read_text()
                    killed[step] += ended != 0
                with chain.records.lock():  # somebody comes again: the job is pending, then done
                    if step == "export":
                        chain.export(day)
                        continue
                    for _ in range(2):
                        chain.advance(day, step)
                        fake.skip(2)
    assert killed == {"export": 4, "import": 14, "version": 10, "campaign": 10}, "and no moment more, in 16 days"
    assert shop.names("dataset-import-job") == [f"recsys-interactions-{day}" for day in days]
    assert shop.names("solution-version") == [f"recsys-{day}" for day in days]
    assert len(fake.all("dataset-import-job")) == len(fake.all("solution-version")) == len(days)
    assert len(fake.all("campaign")) == 1
    assert [each.values["name"] for each in fake.all("campaign-update")] == [f"recsys-{day}" for day in days[1:]]
    assert {step["status"] for day in days for step in shop.record(day)["campaign"]["jobs"].values()} == {"ACTIVE"}
    rows = fake.rows(f"{GROUP.replace('dataset-group', 'dataset')}/INTERACTIONS")
    assert len(rows) == 1200 * len(days), "every day is in it once"
    assert [fake.trained[each.arn][0] for each in fake.all("solution-version")] == [1200 * n for n in range(1, 17)]


def test_three_base_dates_through_failures_throttling_and_kills(
    tmp_path: Path, s3_bucket: BucketSettings, server: Server
) -> None:
    """A backfill of three days; every other run that the sensor asks for is killed, at another moment each."""
    fake = server.fake
    fake.rates, fake.page = {"throttle": 0.1, "error": 0.05, "lost": 0.1}, 1
    fake.quota["CreateDatasetImportJob"] = 3
    fake.to_fail = {
        "An internal error.": [
            f"dataset-import-job recsys-interactions-{DAYS[0]}",
            f"solution-version recsys-{DAYS[1]}",
            f"campaign-update recsys-{DAYS[2]}",
        ]
    }
    home = tmp_path / "home"
    (home / "dagster").mkdir(parents=True)
    with dg.DagsterInstance.local_temp(str(home / "dagster")) as instance:
        rates, fake.rates = fake.rates, {}
        shop = Shop(home, s3_bucket, instance, server)
        fake.rates = rates
        assert shop.run(DAYS), shop.said
        assert [shop.record(day)["import"]["why"] is None for day in DAYS] == [False] * 3, "no place, then in turn"
        shop.let_pass()
        ended: list[int] = []
        seen: set[str] = set()
        killed: set[str] = set()  # the steps that a killed run was to begin with
        with Worker(home) as worker:
            for _ in range(120):
                if not shop.under_way():
                    break
                for request in shop.look().run_requests or ():
                    situation = f"{request.partition_key} {request.tags[assets.SITUATION_TAG]}"
                    kill_at = 0 if situation in seen or len(seen) % 2 else 2 + len(seen) % 9
                    seen.add(situation)
                    steps = ",".join(key.path[0].removeprefix("personalize_") for key in request.asset_selection or ())
                    ended.append(worker.does("run", str(request.partition_key), steps, kill_at))
                    if ended[-1] == -signal.SIGKILL:
                        killed.add(steps.split(",")[0])
                fake.skip(2)
                shop.let_pass()
        assert not shop.under_way(), {day: shop.stands(day) for day in DAYS}
        for day in DAYS:
            for step in ("import", "solution_version", "campaign"):
                assert shop.metadata(step, day)["status"] == "ACTIVE"
    assert ended.count(-signal.SIGKILL) >= 5
    assert killed == {"import", "solution_version", "campaign"}
    assert ended.count(2) >= 3, "each failed job was a failed run"
    first, second, third = DAYS
    assert shop.names("dataset-import-job") == [
        f"recsys-interactions-{first}-2",
        f"recsys-interactions-{second}",
        f"recsys-interactions-{third}",
    ]
    assert shop.names("solution-version") == [f"recsys-{first}", f"recsys-{second}-2", f"recsys-{third}"]
    assert len(fake.all("dataset-import-job")) == len(fake.all("solution-version")) == 4, "one more for the one failed"
    assert shop.names("campaign-update") == [f"recsys-{second}-2", f"recsys-{third}"]
    assert len(fake.all("campaign-update")) == 3
    assert [fake.trained[each.arn][0] for each in fake.all("solution-version") if each.status == "ACTIVE"] == [
        1200 * n for n in (1, 2, 3)
    ], "each from the days up to its own"
    outcomes = Counter(outcome for _, _, outcome in fake.calls)
    assert min(outcomes[each] for each in ("throttle", "error", "lost")) >= 3, outcomes
