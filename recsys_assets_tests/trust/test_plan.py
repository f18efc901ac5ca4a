import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from click.testing import CliRunner
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from recsys_assets.cli import main
from recsys_assets.definitions import defs
from recsys_assets.ingest.sensors import new_log_prefixes
from recsys_assets.pipeline import Pipeline
from recsys_assets.storage.artifacts import link_tree
from recsys_assets.trust.plan import lines, plan
from recsys_assets_tests.graph import DAYS, INGEST, TRAIN, TRAINED, changed, copy_home, run, snapshot

FIRST, SECOND = TRAINED
Known = tuple[Pipeline, dg.DagsterInstance]


@pytest.fixture(scope="module")
def ran(trained_home: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained home whose catalogue, in its folder `catalogue`, knows every day of it by a run of its own. All days
    lie in the sensor's window."""
    pipeline = copy_home(trained_home, tmp_path_factory.mktemp("known") / "home")
    pipeline = changed(pipeline, ingest={"window_days": 3660})
    catalogue = pipeline.settings.home / "catalogue"
    catalogue.mkdir()
    with dg.DagsterInstance.local_temp(str(catalogue)) as instance:
        for day in DAYS:
            run(pipeline, INGEST, [day], instance)
        for day in TRAINED:
            run(pipeline, TRAIN, [day], instance)
        run(pipeline, ["recommendations", "similar_items"], [FIRST], instance)
    return pipeline.settings.home


@pytest.fixture
def known(ran: Path, tmp_path: Path) -> Iterator[Known]:
    home = tmp_path / "home"
    shutil.copytree(ran, home, ignore=shutil.ignore_patterns("bucket"))
    link_tree(ran / "bucket", home / "bucket")  # the ETag of a file holds its inode
    with dg.DagsterInstance.local_temp(str(home / "catalogue")) as instance:
        yield Pipeline.open(home), instance


def key(pipeline: Pipeline, day: str) -> str:
    return min(pipeline.tables.read("raw_events", day)["key"])


def remove(pipeline: Pipeline, key: str) -> None:
    (pipeline.settings.home / "bucket" / key).unlink()


def asked(pipeline: Pipeline, instance: dg.DagsterInstance) -> set[tuple[str, str]]:
    """(run key, day) of what the sensor asks for."""
    with dg.build_sensor_context(
        instance=instance, resources={"pipeline": pipeline}, repository_def=defs.get_repository_def()
    ) as context:
        found = new_log_prefixes.evaluate_tick(context).run_requests or []
    return {(str(request.run_key), str(request.partition_key)) for request in found}


def data_versions(instance: dg.DagsterInstance) -> dict[tuple[str, str], str]:
    """(asset, day) -> the data version on its last materialization."""
    found = {}
    for asset in [*INGEST, "rejected_events", *TRAIN]:
        for day in instance.get_materialized_partitions(dg.AssetKey(asset)):
            record = instance.get_latest_data_version_record(dg.AssetKey(asset), partition_key=day)
            assert record is not None
            found[asset, day] = (record.asset_event.tags or {})["dagster/data_version"]
    return found


def test_nothing_to_do(known: Known) -> None:
    pipeline, instance = known
    found = plan(pipeline, instance)
    assert (found.requests, found.outdated) == ([], [])
    assert "The sensor asks for nothing" in next(lines(found))


@pytest.mark.parametrize("day", TRAINED)
def test_a_deleted_object_changes_exactly_what_the_plan_names(known: Known, day: str) -> None:
    pipeline, instance = known
    gone = key(pipeline, day)
    remove(pipeline, gone)
    before = snapshot(pipeline.settings.store)
    found = plan(pipeline, instance)
    assert snapshot(pipeline.settings.store) == before, "a plan writes nothing"
    assert found.objects == {day: [f"deleted {gone}"]}
    assert asked(pipeline, instance) == {(request.run_key, request.day) for request in found.requests}

    versions = data_versions(instance)
    for each in DAYS[4:]:
        run(pipeline, INGEST, [each], instance)
    for each in TRAINED:
        run(pipeline, TRAIN, [each], instance)
    now = data_versions(instance)
    differs = {where for where in now if now[where] != versions.get(where)}
    certain = {(each.asset, each.day) for each in found.outdated if each.certain}
    certain |= {(asset, request.day) for asset in (*INGEST, "rejected_events") for request in found.requests}
    possible = {(each.asset, each.day) for each in found.outdated if not each.certain}
    assert certain <= differs <= certain | possible
    assert {each for _, each in certain} == {each for each in TRAINED if each >= day}
    assert not possible or day == SECOND
    assert plan(pipeline, instance).requests == []


def test_late_and_changed_objects(known: Known) -> None:
    pipeline, instance = known
    late, altered = f"logs/{DAYS[7].replace('-', '/')}/late.json", key(pipeline, DAYS[2])
    pipeline.bucket.put(late, b"[]")
    pipeline.bucket.put(altered, b"[]\n")
    found = plan(pipeline, instance)
    assert found.objects == {DAYS[2]: [f"changed {altered}"], DAYS[7]: [f"added {late}"]}
    assert {(each.asset, each.why) for each in found.outdated} >= {("training_set", f"interactions of {DAYS[2]}")}
    text = "\n".join(lines(found))
    assert f"{DAYS[2]}: 1 objects are not those that were read\n    changed {altered}" in text
    assert f"training_set      {FIRST} to {SECOND} (2 days): interactions of {DAYS[2]}" in text


def test_days_that_wait_are_said(known: Known) -> None:
    pipeline, instance = known
    patient = changed(pipeline, ingest={"quiet_minutes": 60, "window_days": 3660})
    patient.bucket.put(f"logs/{DAYS[7].replace('-', '/')}/late.json", b"[]")
    found = plan(patient, instance)
    assert not found.requests
    assert not found.outdated
    assert any(f"{DAYS[7]}: still receiving objects" in note for note in found.notes)


@pytest.mark.parametrize(
    ("section", "first"),
    [
        ({"training": {"window_days": 300}}, "training_set"),
        ({"als": {"alpha": 9.0}}, "als_model"),
        ({"recommend": {"count": 9}}, "hybrid_model"),
        ({"ingest": {"max_events_per_hour": 1000}}, "interactions"),
        ({"evaluation": {"bootstrap_samples": 101}}, "hybrid_model"),
        ({"promotion": {"tolerance": 0.5}}, "promotion"),
    ],
)
def test_a_changed_setting_outdates_what_depends_on_it(known: Known, section: dict, first: str) -> None:
    pipeline, instance = known
    found = plan(changed(pipeline, **section), instance)
    assert found.requests == []
    assert found.outdated[0].asset == first
    assert all(each.why for each in found.outdated)


def test_dagsters_own_staleness_agrees(known: Known) -> None:
    pipeline, instance = known
    graph = defs.resolve_asset_graph()

    def stale() -> set[tuple[str, str]]:
        resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
        return {
            (asset, day)
            for asset in (*INGEST, *TRAIN)
            for day in TRAINED
            if resolver.get_status(dg.AssetKey(asset), day) == StaleStatus.STALE
        }

    assert stale() == set()
    run(pipeline, INGEST, [SECOND], instance)
    assert stale() == set(), "built again from equal inputs: nothing is outdated"
    remove(pipeline, key(pipeline, SECOND))
    run(pipeline, INGEST, [SECOND], instance)
    assert stale() == {("training_set", SECOND)}


def test_the_verb(known: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RECSYS_HOME", "DAGSTER_HOME"):
        monkeypatch.setenv(name, "")
    pipeline, _ = known
    done = CliRunner().invoke(main, ["--home", str(pipeline.settings.home), "plan"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert f"{DAYS[0]}: 0 objects are not those that were read" in done.output, "its own Dagster has not seen any"
