"""Ingest behind a network and a store that misbehave. FAULT_SEEDS=20 plays each fault with so many seeds."""

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest
from polars.testing import assert_frame_equal

from recsys_assets.ingest import listing
from recsys_assets.pipeline import Pipeline
from recsys_assets.settings import BucketSettings
from recsys_assets.storage import bucket as bucket_module
from recsys_assets.storage.bucket import open_bucket
from recsys_assets_tests.fault_proxy import FAULTS, FaultProxy, fault_proxy
from recsys_assets_tests.graph import INGEST, make_home, run, snapshot

SEEDS = range(int(os.environ.get("FAULT_SEEDS", "1")))
DAYS = ["2025-11-03", "2025-11-04"]


def contents(version: int) -> dict[str, bytes]:
    """The objects of the bucket. From the first version to the second some come, some go, and some are others."""
    dice = random.Random(5)
    made = {}
    for day in DAYS:
        for number in range(10):
            records = [
                {"timestamp": 1762164000000 + dice.randrange(10**7), "user_id": n % 7, "item_id": n, "action": "VIEW"}
                for n in range(20)
            ]
            if number in (3, 4) and version == 2:
                records = records[:15]
            if (number == 5 and version == 2) or (number == 6 and version == 1):
                continue
            made[f"logs/{day.replace('-', '/')}/{number:02}.json"] = json.dumps([*records, {"no": "event"}]).encode()
    return made


class Shop:
    """A bucket of which version 1 was ingested, and what interactions of version 2 are."""

    def __init__(self, settings: BucketSettings, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        assert settings.endpoint_url is not None
        self.endpoint = settings.endpoint_url
        self.client = boto3.client("s3", endpoint_url=settings.endpoint_url)
        self.bucket = open_bucket(settings, folder)
        self.name = settings.url.removeprefix("s3://")
        self.put(2)
        clean = self.home(folder / "clean", self.endpoint)
        run(clean, INGEST, DAYS)
        self.expected = {day: clean.tables.read("interactions", day) for day in DAYS}
        self.put(1)
        run(self.home(folder / "old", self.endpoint), INGEST, DAYS)

    def home(self, folder: Path, endpoint: str) -> Pipeline:
        bucket = {"url": self.settings.url, "endpoint_url": endpoint, "in_flight": 16}
        return make_home(folder, bucket=bucket)

    def put(self, version: int) -> None:
        wanted, there = contents(version), {obj.key: obj for obj in self.bucket.walk("logs/")}
        for key in there.keys() - wanted.keys():
            self.bucket.delete(key)
        for key, content in wanted.items():
            if key not in there or self.bucket.get(there[key]) != content:
                self.bucket.put(key, content)

    def overwrite(self, key: str) -> None:
        """By the same records with another ETag and size."""
        found = self.client.get_object(Bucket=self.name, Key=key)["Body"].read()
        self.client.put_object(Bucket=self.name, Key=key, Body=found + b"\n")

    def old_home(self, folder: Path, proxy: FaultProxy) -> Pipeline:
        """A home on which version 1 was ingested, over the bucket that now holds version 2, through the proxy."""
        self.put(1)
        shutil.copytree(self.folder / "old" / "store", folder / "store")
        pipeline = self.home(folder, proxy.url)
        share, proxy.share = proxy.share, 0
        listing.days_of(pipeline.bucket, pipeline.settings, DAYS)  # what a stale listing shows
        self.put(2)
        proxy.share = share
        return pipeline


@pytest.fixture
def shop(s3_bucket: BucketSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.setattr(bucket_module, "_PAUSES", (0.01, 0.02, 0.05, 0.1))
    return Shop(s3_bucket, tmp_path)


def ingest_until_seen(shop: Shop, pipeline: Pipeline, proxy: FaultProxy) -> tuple[int, list[str]]:
    """Runs as the sensor asks for them: until what was read is what a true listing shows. Returns runs and failures."""
    failures = []
    for number in range(1, 12):
        before = snapshot(pipeline.settings.store)
        ran = run(pipeline, INGEST, DAYS, must=False)
        if not ran.success:
            failures.append(ran.said())  # that it was explained
            after = snapshot(pipeline.settings.store)
            assert before.keys() <= after.keys(), "no partition vanishes"
        seen = listing.days_of(shop.bucket, pipeline.settings, DAYS)
        if ran.success and all(
            (pipeline.tables.info("interactions", day) or {})["fingerprint"] == listing.fingerprint(seen.days[day])
            for day in DAYS
        ):
            return number, failures
        proxy.share = min(proxy.share, 0.2)
    raise AssertionError(f"never came to rest; failures: {failures}")


def test_every_fault_in_turn_ends_in_the_interactions_of_a_clean_run(shop: Shop, tmp_path: Path) -> None:
    played: Counter[str] = Counter()
    for seed in SEEDS:
        for fault in FAULTS:
            share = 0.6 if fault == "stale" else 0.2  # the first run's; it has few listings
            with fault_proxy(shop.endpoint, [fault], share, seed, overwrite=shop.overwrite) as proxy:
                pipeline = shop.old_home(tmp_path / f"{fault}-{seed}", proxy)
                runs, failures = ingest_until_seen(shop, pipeline, proxy)
            for day, expected in shop.expected.items():
                assert_frame_equal(pipeline.tables.read("interactions", day), expected)
            assert runs == 1 + len(failures) or fault == "stale", (fault, runs)
            played += proxy.played
    assert set(played) == set(FAULTS), "a fault was never played"


def only_object(name: str) -> Callable[[str], bool]:
    return lambda path: path.split("?")[0].endswith(name)


@pytest.mark.parametrize(
    ("fault", "says"),
    [("slow_down", "too busy"), ("reset", "cannot be reached")],
)
def test_a_fault_that_does_not_end_leaves_the_old_partitions(
    shop: Shop, tmp_path: Path, fault: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_module, "_PAUSES", ())
    with fault_proxy(shop.endpoint, [fault], 1, 0, only=only_object("04/03.json")) as proxy:
        pipeline = shop.old_home(tmp_path / "home", proxy)
        before = {day: pipeline.tables.read("interactions", day) for day in DAYS}
        ran = run(pipeline, INGEST, DAYS, must=False)
        assert not ran.success
        assert "2025/11/04/03.json" in ran.said()
        assert says in ran.said()
        for day in DAYS:
            assert_frame_equal(pipeline.tables.read("interactions", day), before[day])
        assert (pipeline.tables.info("raw_events", DAYS[1]) or {})["objects"] == 9
        proxy.share = 0
        run(pipeline, INGEST, DAYS)
    for day, expected in shop.expected.items():
        assert_frame_equal(pipeline.tables.read("interactions", day), expected)


def test_the_same_seed_hits_the_same_requests() -> None:
    def hit(seed: int) -> list[bool]:
        with fault_proxy("http://127.0.0.1:9", ["error500"], 0.2, seed) as proxy:
            return [proxy.fault("GET", f"/b/{n % 50}")[0] is not None for n in range(500)]

    assert hit(1) == hit(1) != hit(2)
    assert 60 < sum(hit(1)) < 140
