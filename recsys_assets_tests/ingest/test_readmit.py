from pathlib import Path

import dagster as dg
import pytest

from recsys_assets.ingest.readmit import consecutive, readmit
from recsys_assets.launch import RunFailed
from recsys_assets.pipeline import InputError, Pipeline
from recsys_assets_tests.graph import INGEST, changed, make_home, run, snapshot
from recsys_assets_tests.ingest.test_assets import put, record

DAYS = [f"2025-11-{day:02}" for day in range(1, 7)]
WISHES = {DAYS[0]: 2, DAYS[1]: 3, DAYS[4]: 1}


@pytest.fixture
def home(tmp_path: Path) -> Pipeline:
    """Six ingested days; three have events of an action that the settings do not name, and the bucket is gone."""
    pipeline = make_home(tmp_path / "home")
    for day in DAYS:
        wishes = (record(item_id=f"w{n}", action="WISH") for n in range(WISHES.get(day, 0)))
        put(pipeline, f"logs/{day.replace('-', '/')}/a.json", record(), record(), record(user_id=None), *wishes)
    run(pipeline, INGEST, DAYS)
    (pipeline.settings.home / "bucket").rename(tmp_path / "lifecycle")
    return pipeline


def readmitted(
    pipeline: Pipeline, instance: dg.DagsterInstance, reason: str | None, force: bool = False, days: list[str] = DAYS
) -> list[str]:
    said: list[str] = []
    readmit(pipeline, instance, days, reason, force, said.append)
    return said


def test_what_was_rejected_comes_back_under_new_settings_without_fetching(
    home: Pipeline, instance: dg.DagsterInstance
) -> None:
    pipeline = changed(home, actions={"VIEW": 1, "WISH": 2, "PURCHASE": 5})
    before = snapshot(pipeline.settings.store)
    said = readmitted(pipeline, instance, "unknown_action")
    assert said == [
        "2025-11-01  kept 1 -> 3 (+2), unknown_action 2 -> 0 (-2)",
        "2025-11-02  kept 1 -> 4 (+3), unknown_action 3 -> 0 (-3)",
        "2025-11-05  kept 1 -> 2 (+1), unknown_action 1 -> 0 (-1)",
        "3 of 3 days changed: kept 3 -> 9 (+6), unknown_action 6 -> 0 (-6)",
        "Training sets take this in from their next materialization on.",
    ]
    after = snapshot(pipeline.settings.store)
    assert {name for name in after if after[name] != before[name]} == {
        f"interactions/{day}.parquet" for day in WISHES
    }, "raw_events and the other days are as they were"
    assert len(instance.get_run_records()) == 2, "two days together, one alone: a range each"
    assert instance.get_materialized_partitions(dg.AssetKey("interactions")) == set(WISHES)
    with pytest.raises(InputError, match="rejected for unknown_action; reasons there: missing_user_id"):
        readmitted(pipeline, instance, "unknown_action")


def test_without_a_reason_every_day_is_cleaned_and_nothing_may_have_moved(
    home: Pipeline, instance: dg.DagsterInstance
) -> None:
    before = snapshot(home.settings.store)
    assert readmitted(home, instance, None) == [
        "0 of 6 days changed",
        "The rules and settings reject the same records as before.",
    ]
    assert snapshot(home.settings.store) == before


def test_a_day_that_would_lose_too_much_is_refused_unless_forced(home: Pipeline, instance: dg.DagsterInstance) -> None:
    pipeline = changed(home, actions={"WISH": 2, "PURCHASE": 5})
    with pytest.raises(RunFailed, match="2025-11-03: 0 events would be kept where 1 are now"):
        readmitted(pipeline, instance, None)
    said = readmitted(pipeline, instance, None, force=True)
    assert said[-2].startswith("3 of 6 days changed")


def test_days_without_raw_events(home: Pipeline, instance: dg.DagsterInstance) -> None:
    with pytest.raises(InputError, match="raw_events has none of these days"):
        readmitted(home, instance, None, days=["2025-11-09"])


def test_consecutive() -> None:
    days = ["2025-02-27", "2025-02-28", "2025-03-01", "2025-03-03", "2025-03-05", "2025-03-06"]
    assert list(consecutive(days)) == [days[:3], days[3:4], days[4:]]
    assert list(consecutive([])) == []
