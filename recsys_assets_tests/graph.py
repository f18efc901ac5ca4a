"""Running the graph in tests: a tiny simulated shop, homes in temporary folders, and what a run recorded."""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from recsys_assets.pipeline import Pipeline
from recsys_assets.sources.simulate import Shop, simulate

FIRST = date(2025, 11, 1)
DAYS = [(FIRST + timedelta(n)).isoformat() for n in range(8)]
TRAINED = DAYS[5:7]
"""The days `trained_home` has trained; DAYS[7] is ingested only."""

SHOP = Shop(
    seed=3,
    users=150,
    new_users_per_day=4,
    items=60,
    new_items_per_day=2,
    categories=6,
    sessions_per_user=0.8,
    objects_per_day=3,
    broken_share=0.01,
    duplicate_share=0.01,
)

TINY: dict[str, Any] = {
    "bucket": {"url": "file://bucket"},
    "calendar": {"first_day": FIRST},
    "ingest": {"quiet_minutes": 0},
    "holdout": {"users_share": 0.08, "min_users": 3},
    "training": {"validation_days": 2},
    "repeat": {"epochs": 2},
    "als": {"factors": 8, "iterations": 3},
    "sequence": {"dimension": 8, "max_length": 10, "epochs": 1, "negatives": 16},
    "recommend": {"candidates": 30, "count": 10, "similar_items": 5, "bought_items": "keep"},
    "evaluation": {"bootstrap_samples": 100},
}

INGEST = ["raw_events", "interactions"]
MEMBERS = ["popularity_model", "repeat_model", "transition_model", "als_model", "sequence_model"]
TRAIN = [
    "training_set",
    *MEMBERS,
    "hybrid_model",
    "evaluation",
    "promotion",
    "recommendations",
    "similar_items",
]


def make_home(folder: Path, **sections: dict[str, Any]) -> Pipeline:
    """A home with an empty file:// bucket and the tiny settings, changed by `sections`."""
    (folder / "bucket").mkdir(parents=True, exist_ok=True)
    values = {name: dict(section) for name, section in TINY.items()}
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    (folder / "settings.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return Pipeline.open(folder)


def changed(pipeline: Pipeline, **sections: dict[str, Any]) -> Pipeline:
    """The same home under other settings."""
    return make_home(pipeline.settings.home, **sections)


def fill(pipeline: Pipeline, days: Sequence[str] = DAYS, shop: Shop = SHOP) -> None:
    for day in days:
        for key, content in simulate(shop, date.fromisoformat(day), 1):
            pipeline.bucket.put(key, content)


@dataclass(frozen=True)
class Ran:
    """What a run recorded."""

    result: dg.ExecuteInProcessResult

    @property
    def success(self) -> bool:
        return self.result.success

    def metadata(self, asset: str, day: str) -> dict[str, Any]:
        """The plain values of the metadata of a materialization."""
        found = [
            event.step_materialization_data.materialization
            for event in self.result.all_events
            if event.is_step_materialization
            and event.asset_key == dg.AssetKey(asset)
            and event.step_materialization_data.materialization.partition == day
        ]
        assert len(found) == 1, f"{len(found)} materializations of {asset} {day}"
        return {name: entry.value for name, entry in found[0].metadata.items()}

    def checks(self) -> dict[str, bool]:
        return {check.check_name: check.passed for check in self.result.get_asset_check_evaluations()}

    def said(self) -> str:
        """What the failed step said to the person."""
        for event in self.result.all_events:
            if event.is_step_failure:
                data = event.step_failure_data
                if data.user_failure_data is not None and data.user_failure_data.description:
                    return str(data.user_failure_data.description)
                raise AssertionError(f"a failure nobody explained: {data.error and data.error.to_string()}")
        raise AssertionError("no step failed")


def run(
    pipeline: Pipeline,
    assets: Sequence[str],
    days: Sequence[str],
    instance: dg.DagsterInstance | None = None,
    config: dict[str, Any] | None = None,
    tags: dict[str, str] | None = None,
    must: bool = True,
) -> Ran:
    """Materializes assets for a day or a range of days, as the UI would, in this process."""
    from recsys_assets.definitions import defs

    names = sorted({*assets, *(["rejected_events"] if "interactions" in assets else [])})
    range_tags = {ASSET_PARTITION_RANGE_START_TAG: min(days), ASSET_PARTITION_RANGE_END_TAG: max(days)}

    def execute(on: dg.DagsterInstance) -> Ran:
        result = dg.materialize(
            [*(defs.assets or []), *(defs.asset_checks or [])],  # type: ignore[list-item]
            selection=dg.AssetSelection.assets(*names),
            resources={"pipeline": pipeline},
            run_config=config or {},
            instance=on,
            partition_key=days[0] if len(days) == 1 else None,
            tags={**(tags or {}), **(range_tags if len(days) > 1 else {})},
            raise_on_error=must,
        )
        return Ran(result)

    if instance is not None:
        return execute(instance)
    with dg.DagsterInstance.ephemeral() as fresh:
        return execute(fresh)


def snapshot(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Every file below a folder: inode, modification time and content. Equal snapshots: nothing was written."""
    return {
        path.relative_to(folder).as_posix(): (
            path.stat().st_ino,
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def contents(folder: Path) -> dict[str, str]:
    return {name: found[2] for name, found in snapshot(folder).items()}


def copy_home(source: Pipeline, folder: Path) -> Pipeline:
    """A home of its own to change: files are copied, not linked."""
    shutil.copytree(source.settings.home, folder)
    return Pipeline.open(folder)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


@pytest.fixture(scope="session")
def ingest_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pipeline, Ran]:
    """A home with DAYS of the shop, ingested in one run, and that run."""
    pipeline = make_home(tmp_path_factory.mktemp("ingested") / "home")
    fill(pipeline)
    return pipeline, run(pipeline, INGEST, DAYS)


@pytest.fixture(scope="session")
def ingested_home(ingest_run: tuple[Pipeline, Ran]) -> Pipeline:
    """The home of `ingest_run`. Read only: `copy_home` it to change it."""
    return ingest_run[0]


@pytest.fixture(scope="session")
def train_run(ingested_home: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pipeline, Ran]:
    """A copy of `ingested_home` with TRAINED trained in one run, and that run."""
    pipeline = copy_home(ingested_home, tmp_path_factory.mktemp("trained") / "home")
    return pipeline, run(pipeline, TRAIN, TRAINED)


@pytest.fixture(scope="session")
def trained_home(train_run: tuple[Pipeline, Ran]) -> Pipeline:
    """The home of `train_run`. Read only: `copy_home` it to change it."""
    return train_run[0]
