import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from click.testing import CliRunner
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from recsys_assets.cli import main
from recsys_assets.definitions import defs
from recsys_assets.evaluation.promotion import ROLLED_BACK
from recsys_assets.ingest.sensors import new_log_prefixes
from recsys_assets.ingest.versions import cleaning_version, raw_version
from recsys_assets.pipeline import Pipeline
from recsys_assets.storage.artifacts import link_tree
from recsys_assets.training.training_set import merge_day
from recsys_assets.trust.explain import explain
from recsys_assets.trust.plan import lines, plan
from recsys_assets_tests.graph import DAYS, INGEST, TRAIN, changed, run, snapshot

TRAINED = DAYS[3:6]
QUICK = {"sequence": {"max_tokens": 1000}}
Known = tuple[Pipeline, dg.DagsterInstance]


def linked(source: Path, home: Path) -> None:
    """A copy of a home. The bucket's files are linked: their ETag holds the inode."""
    shutil.copytree(source, home, ignore=shutil.ignore_patterns("bucket"))
    link_tree(source / "bucket", home / "bucket")


@pytest.fixture(scope="module")
def ran(quick_home: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained home with its catalogue in a folder of it, which knows the last day by a run of its own."""
    home = tmp_path_factory.mktemp("known") / "home"
    linked(quick_home.settings.home, home)
    (home / "catalogue").mkdir()
    pipeline = Pipeline.open(home)
    with dg.DagsterInstance.local_temp(str(home / "catalogue")) as instance:
        run(pipeline, INGEST, DAYS[:3], instance)
        run(pipeline, [*INGEST, *TRAIN], TRAINED, instance)  # all lists come from the last day's champion now
        ran = run(pipeline, [*INGEST, *TRAIN], TRAINED[-1:], instance)
        assert ran.metadata("hybrid_model", TRAINED[-1])["unchanged"]
    return home


@pytest.fixture
def known(ran: Path, tmp_path: Path) -> Iterator[Known]:
    linked(ran, tmp_path / "home")
    with dg.DagsterInstance.local_temp(str(tmp_path / "home" / "catalogue")) as instance:
        yield Pipeline.open(tmp_path / "home"), instance


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


def stored_versions(pipeline: Pipeline) -> dict[tuple[str, str], Any]:
    """(asset, day) -> the version stored with it; of a decision all that it says."""
    found: dict[tuple[str, str], Any] = {}
    for day in pipeline.tables.days("interactions"):
        found["raw_events", day] = (pipeline.tables.info("raw_events", day) or {})["fingerprint"]
        for asset in ("interactions", "rejected_events"):
            found[asset, day] = (pipeline.tables.info("interactions", day) or {})["version"]
    for day in pipeline.tables.days("promotion"):
        found["promotion", day] = pipeline.tables.read("promotion", day).rows()
        for asset in ("evaluation", "recommendations", "similar_items"):
            found[asset, day] = (pipeline.tables.info(asset, day) or {})["version"]
    for asset in TRAIN:
        for day in pipeline.artifacts.days(asset):
            found[asset, day] = pipeline.artifacts.need(asset, day).version
    return found


def test_nothing_to_do(known: Known) -> None:
    pipeline, instance = known
    found = plan(pipeline, instance)
    assert (found.requests, found.outdated) == ([], [])
    assert "The sensor asks for nothing" in next(lines(found))


@pytest.mark.parametrize("seed", range(int(os.environ.get("EXPLAIN_ROWS", "1"))))
def test_deleting_an_object_that_explain_names_changes_exactly_what_the_plan_names(known: Known, seed: int) -> None:
    """Of a random row of the lists, a random object behind its events. EXPLAIN_ROWS=20 looks at so many."""
    pipeline, instance = known
    draw = random.Random(seed)
    row = draw.choice(pipeline.tables.read("recommendations", listed := draw.choice(TRAINED)).rows(named=True))
    explained = explain(pipeline, row["user_id"], row["item_id"], listed)
    assert explained.notes == []
    named = sorted({(source.day, source.key) for influence in explained.influences for source in influence.sources})
    day, gone = draw.choice(named)
    remove(pipeline, gone)
    before = snapshot(pipeline.settings.store)
    found = plan(pipeline, instance)
    assert snapshot(pipeline.settings.store) == before, "a plan writes nothing"
    assert found.objects == {day: [f"deleted {gone}"]}
    assert asked(pipeline, instance) == {(request.run_key, request.day) for request in found.requests}

    versions, champion = stored_versions(pipeline), pipeline.champion.read()
    assert {asset for asset, _ in versions} == {*INGEST, "rejected_events", *TRAIN}
    run(pipeline, INGEST, [day], instance)
    run(pipeline, [*INGEST, *TRAIN], TRAINED, instance)
    now = stored_versions(pipeline)
    expected = {(asset, day) for asset in (*INGEST, "rejected_events")}
    expected |= {(each.asset, each.day) for each in found.outdated if each.certain}
    if pipeline.champion.read() != champion:  # the gate let the champion's day, built again, take its place
        expected |= {(each.asset, each.day) for each in found.outdated}
    assert {where for where in now if now[where] != versions.get(where)} == expected
    again = plan(pipeline, instance)
    assert (again.requests, again.outdated) == ([], []), "nothing is left to do"


def test_late_and_changed_objects(known: Known) -> None:
    pipeline, instance = known
    late, altered = f"logs/{DAYS[5].replace('-', '/')}/late.json", key(pipeline, DAYS[2])
    pipeline.bucket.put(late, b"[]")
    pipeline.bucket.put(altered, b"[]\n")
    found = plan(pipeline, instance)
    assert found.objects == {DAYS[2]: [f"changed {altered}"], DAYS[5]: [f"added {late}"]}
    text = "\n".join(lines(found))
    assert f"{DAYS[2]}: 1 objects are not those that were read\n    changed {altered}" in text
    assert f"training_set      {DAYS[3]} to {DAYS[4]} (2 days): interactions of {DAYS[2]}\n" in text
    assert f"training_set      {DAYS[5]}: interactions of {DAYS[2]} to {DAYS[5]} (2 days)" in text


def test_a_loss_that_the_run_refuses_rebuilds_nothing(known: Known) -> None:
    pipeline, instance = known
    for gone in pipeline.tables.read("raw_events", DAYS[2])["key"].unique():
        remove(pipeline, gone)
    found = plan(pipeline, instance)
    assert [request.day for request in found.requests] == [*found.refused] == [DAYS[2]]
    assert found.outdated == []
    assert f"    will be refused: {found.refused[DAYS[2]]}" in list(lines(found))
    assert run(pipeline, INGEST, [DAYS[2]], instance, must=False).said() == found.refused[DAYS[2]]


def test_every_changed_day_is_in_the_plan_however_many_ticks_it_takes(known: Known) -> None:
    pipeline, instance = known
    slow = changed(pipeline, ingest={"max_requests_per_tick": 1, "window_days": 3660}, **QUICK)
    for day in DAYS[:2]:
        slow.bucket.put(f"logs/{day.replace('-', '/')}/late.json", b"[]")
    found = plan(slow, instance)
    assert [request.day for request in found.requests] == DAYS[:2]
    assert found.notes == []
    assert asked(slow, instance) == {(found.requests[0].run_key, DAYS[0])}


def test_a_day_that_dagster_does_not_know_but_that_stands_outdates_nothing(known: Known) -> None:
    """Records of an erased user were cut: what was read is less than what the bucket holds."""
    pipeline, _ = known
    raw = {**(pipeline.tables.info("raw_events", DAYS[2]) or {}), "erased": 2}
    pipeline.tables.publish_frame("raw_events", DAYS[2], pipeline.tables.read("raw_events", DAYS[2]), raw)
    info = pipeline.tables.info("interactions", DAYS[2]) or {}
    info["version"] = cleaning_version(pipeline.settings, raw_version(raw))
    pipeline.tables.publish_frame("interactions", DAYS[2], pipeline.tables.read("interactions", DAYS[2]), info)
    for day in TRAINED:
        merge_day(pipeline, day, pipeline.holdouts.current())
    with dg.DagsterInstance.ephemeral() as unknowing:
        found = plan(pipeline, unknowing)
    assert [request.day for request in found.requests] == DAYS[:6]
    assert [each for each in found.outdated if each.asset == "training_set"] == []


def test_a_rollback_and_a_refused_model_that_will_be_judged_again(known: Known) -> None:
    pipeline, instance = known
    first, last = (pipeline.artifacts.need("hybrid_model", day).version for day in (TRAINED[0], TRAINED[-1]))
    pipeline.champion.path.unlink()
    pipeline.champion.move(TRAINED[0], first, "for the test")
    pipeline.champion.move(TRAINED[-1], last, "for the test")
    pipeline.champion.move(TRAINED[0], first, "for the test", ROLLED_BACK)
    found = {(each.asset, each.day) for each in plan(pipeline, instance).outdated}
    lists = {(asset, day) for asset in ("recommendations", "similar_items") for day in TRAINED}
    assert found == {*lists, *(("promotion", day) for day in TRAINED)}
    before = stored_versions(pipeline)
    run(pipeline, ["promotion", "recommendations", "similar_items"], TRAINED, instance)
    now = stored_versions(pipeline)
    assert {where for where in now if now[where] != before[where]} == found
    assert plan(pipeline, instance).outdated == []

    pipeline.bucket.put(f"logs/{TRAINED[-1].replace('-', '/')}/late.json", b"[]")
    later = plan(pipeline, instance).outdated
    assert {each.day for each in later if each.certain} == {TRAINED[-1]}
    assert {(each.asset, each.day) for each in later if not each.certain} == {
        where for where in lists if where[1] != TRAINED[-1]
    }


def test_other_code_of_the_gate_outdates_its_figures(known: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, instance = known
    monkeypatch.setattr("recsys_assets.evaluation.assets.CODE_VERSION", "another")
    found = {(each.asset, each.day) for each in plan(pipeline, instance).outdated}
    assert [move["day"] for move in pipeline.champion.standing()] == TRAINED[-1:]
    refused = {("promotion", day) for day in TRAINED[:-1]}  # a promotion that was carried out stands
    assert found == {("evaluation", day) for day in TRAINED} | refused


def test_a_member_that_was_made_again_outdates_what_is_made_of_it(known: Known) -> None:
    pipeline, instance = known
    good = pipeline.artifacts.need("als_model", TRAINED[0])
    with pipeline.artifacts.publish("als_model", TRAINED[0], "another", good.info) as folder:
        link_tree(good.path / "final", folder / "final")
    found = {(each.asset, each.day): each.why for each in plan(pipeline, instance).outdated}
    assert found["hybrid_model", TRAINED[0]] == "als_model of its day"
    assert found["als_model", TRAINED[1]] == "als_model of the day before"
    following = {("als_model", TRAINED[1]), *(("hybrid_model", day) for day in TRAINED[:2])}
    judged = {(asset, day) for asset in ("evaluation", "promotion") for day in TRAINED[:2]}
    assert set(found) == following | judged, "the last day was learned from scratch"


def test_days_that_a_backfill_does_better_are_said(known: Known) -> None:
    """As the sensor leaves them alone."""
    pipeline, instance = known
    few = changed(pipeline, ingest={"max_requests_per_tick": 1, "window_days": 1}, **QUICK)
    for n in range(10, 20):
        few.bucket.put(f"logs/2025/11/{n}/a.json", b"[]")
    found = plan(few, instance)
    assert found.requests == []
    assert asked(few, instance) == set()
    assert any("recsys run ingest --from 2025-11-10 --to 2025-11-19" in note for note in found.notes)


def test_days_that_wait_are_said(known: Known) -> None:
    pipeline, instance = known
    patient = changed(pipeline, ingest={"quiet_minutes": 60, "window_days": 3660}, **QUICK)
    patient.bucket.put(f"logs/{DAYS[5].replace('-', '/')}/late.json", b"[]")
    found = plan(patient, instance)
    assert not found.requests
    assert not found.outdated
    assert any(f"{DAYS[5]}: still receiving objects" in note for note in found.notes)


@pytest.mark.parametrize(
    ("section", "first"),
    [
        ({"training": {"window_days": 300}}, "training_set"),
        ({"als": {"alpha": 9.0}}, "als_model"),
        ({"recommend": {"candidates": 29}}, "hybrid_model"),
        ({"recommend": {"count": 9}}, "recommendations"),
        ({"recommend": {"similar_items": 4}}, "similar_items"),
        ({"ingest": {"max_events_per_hour": 1000}}, "interactions"),
        ({"evaluation": {"bootstrap_samples": 101}}, "evaluation"),
        ({"promotion": {"tolerance": 0.5}}, "promotion"),
    ],
)
def test_a_changed_setting_outdates_what_depends_on_it(known: Known, section: dict, first: str) -> None:
    pipeline, instance = known
    found = plan(changed(pipeline, **{**QUICK, **section}), instance)
    assert found.requests == []
    assert found.outdated[0].asset == first
    # The champion's day, built again, may change the lists of every day.
    may = {(asset, day) for asset in ("recommendations", "similar_items") for day in TRAINED}
    rebuilt = first in ("als_model", "hybrid_model")
    assert {(each.asset, each.day) for each in found.outdated if not each.certain} == (may if rebuilt else set())
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
    run(pipeline, INGEST, [DAYS[5]], instance)
    assert stale() == set(), "built again from equal inputs: nothing is outdated"
    remove(pipeline, key(pipeline, DAYS[5]))
    run(pipeline, INGEST, [DAYS[5]], instance)
    assert stale() == {("training_set", DAYS[5])}


def test_the_verb(known: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RECSYS_HOME", "DAGSTER_HOME"):
        monkeypatch.setenv(name, "")
    pipeline, _ = known
    done = CliRunner().invoke(main, ["--home", str(pipeline.settings.home), "plan"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert f"{DAYS[0]}: Dagster does not know it yet" in done.output, "its own Dagster has not seen any"
