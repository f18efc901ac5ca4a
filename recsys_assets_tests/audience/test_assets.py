import json
import shutil
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pytest
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG
from sklearn.datasets import load_svmlight_file
from sklearn.metrics import roc_auc_score

from recsys_assets.audience import build
from recsys_assets.audience.assets import audience, find_audience, propensity_model, user_features
from recsys_assets.audience.behaviour import read_events
from recsys_assets.audience.features import labels
from recsys_assets.audience.measure import METRICS
from recsys_assets.audience.propensity import Propensity, fit
from recsys_assets.days import shift
from recsys_assets.pipeline import InputError, Pipeline
from recsys_assets.sources import object_key
from recsys_assets.trust.erasure import erase
from recsys_assets_tests.audience.behaviour import FIRST, crowd
from recsys_assets_tests.graph import INGEST, Ran, changed, contents, copy_home, make_home, run

ASSETS = [user_features, propensity_model, audience]
DAYS = [shift(FIRST, n) for n in range(21)]
LAST = DAYS[-1]
OFFER: dict[str, Any] = {
    "action": "CLICK",
    "window_days": 9,
    "label_days": 3,
    "periods": 2,
    "budget": 60,
    "mobile_field": "device",
}


def log(pipeline: Pipeline, events: pl.DataFrame) -> None:
    """Two objects a day: an array and, since both are read, records a line."""
    records = events.with_columns(day=pl.from_epoch("ms", time_unit="ms").dt.date())
    for (day,), rows in records.group_by("day"):
        assert isinstance(day, date)
        texts = [
            json.dumps({"timestamp": row.pop("ms"), **row, "device": row["device"]}, default=str)
            for row in rows.drop("day").iter_rows(named=True)
        ]
        half = len(texts) // 2
        pipeline.bucket.put(object_key(day, "array"), f"[{','.join(texts[:half])}]".encode())
        pipeline.bucket.put(object_key(day, "lines"), "\n".join(texts[half:]).encode())


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Three weeks of a crowd, ingested. Read only."""
    pipeline = make_home(tmp_path_factory.mktemp("audience") / "home", audience=OFFER)
    log(pipeline, crowd(users=400, days=21, daily=2, rate=-2.5).events)
    run(pipeline, INGEST, DAYS)
    return pipeline


@pytest.fixture(scope="module")
def found(ingested: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pipeline, Ran]:
    pipeline = copy_home(ingested, tmp_path_factory.mktemp("found") / "home")
    return pipeline, materialize(pipeline, [LAST])


def materialize(pipeline: Pipeline, days: list[str]) -> Ran:
    tags = {ASSET_PARTITION_RANGE_START_TAG: days[0], ASSET_PARTITION_RANGE_END_TAG: days[-1]}
    result = dg.materialize(
        ASSETS,
        resources={"pipeline": pipeline},
        partition_key=days[0] if len(days) == 1 else None,
        tags=tags if len(days) > 1 else {},
        raise_on_error=False,
    )
    return Ran(result)


def texts(values: Iterable[Any]) -> str:
    return " ".join(map(str, values))


def test_the_audience_in_its_three_forms(found: tuple[Pipeline, Ran]) -> None:
    pipeline, ran = found
    assert ran.success
    rows = pipeline.tables.read("audience", LAST)
    assert rows.columns == list(build.AUDIENCE_COLUMNS)
    assert rows["rank"].to_list() == list(range(1, 61))
    assert rows["probability"].is_sorted(descending=True)
    path = pipeline.tables.path("audience", LAST)
    written = pl.read_csv(path.with_suffix(".csv"), schema_overrides=dict(rows.schema))
    assert written.equals(rows)
    model = Propensity.load(pipeline.artifacts.need("propensity_model", LAST).path)
    x, y = load_svmlight_file(str(path.with_suffix(".libsvm")), n_features=len(model.names), zero_based=False)
    assert y.tolist() == rows["probability"].to_list()
    margin = (x.toarray() - model.mean) / model.scale @ model.coefficients + model.intercept
    assert model.probability(margin) == pytest.approx(y), "what was exported gives what was foretold"
    best = pipeline.tables.read("user_features", LAST)
    expected = model.probability(model.margin(best))
    assert rows["probability"].to_list() == pytest.approx(sorted(expected, reverse=True)[:60])
    with pipeline_views(pipeline) as connection:
        assert connection.execute("SELECT count(*), count(DISTINCT user_id) FROM audience").fetchall() == [(60, 60)]
        assert connection.execute("SELECT sum(events) FROM user_features").fetchall()[0][0] == best["events"].sum()


def pipeline_views(pipeline: Pipeline) -> Any:
    import duckdb

    return duckdb.connect(pipeline.warehouse.path, read_only=True)


def test_the_model_s_page_says_how_good_it_is_and_names_no_user(found: tuple[Pipeline, Ran]) -> None:
    pipeline, ran = found
    page = ran.metadata("propensity_model", LAST)
    info = pipeline.artifacts.need("propensity_model", LAST).info
    metrics = info["metrics"]
    for name in METRICS:
        assert page[f"metric/{name}"] == pytest.approx(metrics[name]["model"]["mean"], abs=1e-6)
        sides = metrics[name]
        assert sides["difference"]["low"] <= sides["difference"]["mean"] <= sides["difference"]["high"]
    assert metrics["auc"]["difference"]["low"] > 0, "better than the most active first, beyond chance"
    assert info["brier"] < info["brier_of_the_base_rate"]
    assert sum(row["users"] for row in info["calibration"]) == info["periods"][-1]["users"]
    assert page["calibration"].startswith("![chart](data:image/png;base64,")
    assert page["mobile"] == "used"
    assert [row["used to"] for row in info["periods"]] == ["learn", "learn", "measure"]
    assert [row["behaviour up to"] for row in info["periods"]] == [shift(LAST, -9), shift(LAST, -6), shift(LAST, -3)]
    said = texts(
        [
            *(ran.metadata(asset.key.to_user_string(), LAST).values() for asset in ASSETS),
            *(event.message for event in ran.result.all_events),
            json.dumps(info),
            pipeline.tables.info("audience", LAST),
            pipeline.tables.info("user_features", LAST),
        ]
    )
    users = pipeline.tables.read("user_features", LAST)["user_id"]
    assert len(users) > 100
    assert not [user for user in users if user in said]


def test_behaviour_ends_where_the_offer_s_days_begin(found: tuple[Pipeline, Ran], tmp_path: Path) -> None:
    """Windows and label days, counted by hand from what was logged."""
    pipeline = copy_home(found[0], tmp_path / "home")
    logged = crowd(users=400, days=21, daily=2, rate=-2.5).events.unique(["user_id", "item_id", "ms", "action"])
    logged = logged.with_columns(date=pl.from_epoch("ms", time_unit="ms").dt.date().cast(pl.String))

    def window(last: str) -> pl.DataFrame:
        return logged.filter(pl.col("date").is_between(pl.lit(shift(last, -8)), pl.lit(last)))

    for day in (shift(LAST, -3), LAST):
        build.make_features(pipeline, day)
        counted = window(day).group_by("user_id").agg(events=pl.len().cast(pl.Int64)).sort("user_id")
        assert pipeline.tables.read("user_features", day).select("user_id", "events").equals(counted)
    for period in pipeline.artifacts.need("propensity_model", LAST).info["periods"]:
        last = period["behaviour up to"]
        after = logged.filter(pl.col("date").is_between(pl.lit(shift(last, 1)), pl.lit(shift(last, 3))))
        takers = set(after.filter(pl.col("action") == "CLICK")["user_id"])
        users = set(window(last)["user_id"])
        assert (period["users"], period["took the offer"]) == (len(users), len(users & takers))


def test_days_and_hours_are_those_of_the_calendar_s_time_zone(ingested: Pipeline, tmp_path: Path) -> None:
    calendar = {"first_day": FIRST, "time_zone": "Asia/Kolkata"}
    pipeline = changed(copy_home(ingested, tmp_path / "home"), audience=OFFER, calendar=calendar)
    build.make_features(pipeline, LAST)
    first, of_window = shift(LAST, -8), []
    for ms in crowd(users=400, days=21, daily=2, rate=-2.5).events.unique(["user_id", "item_id", "ms"])["ms"]:
        at = datetime.fromtimestamp(ms / 1000, UTC)  # its date is its partition
        local = at + timedelta(hours=5, minutes=30)
        if first <= str(at.date()) and first <= str(local.date()) <= LAST:
            of_window.append(local.hour)
    found = pipeline.tables.read("user_features", LAST)
    assert found["events"].sum() == len(of_window)
    night = sum(hour >= 22 or hour < 5 for hour in of_window)
    assert (found["night"] * found["events"]).sum() == pytest.approx(night)


def test_what_is_measured_was_not_learned_from_and_stands_beside_the_most_active(found: tuple[Pipeline, Ran]) -> None:
    pipeline = found[0]
    artifact = pipeline.artifacts.need("propensity_model", LAST)
    events = read_events(pipeline, build.days_between(pipeline, FIRST, LAST)[0])
    frames, takers = [], []
    for last in (shift(LAST, -9), shift(LAST, -6), shift(LAST, -3)):
        frames.append(build._window(pipeline, events, last))
        begin, end = (build.day_start_ms(shift(last, days), "UTC") for days in (1, 4))
        takers.append(labels(frames[-1]["user_id"], events, begin, end).to_numpy())
    model = fit(pl.concat(frames[:2]), np.concatenate(takers[:2]), 0.01, pipeline.settings.training.seed)
    assert Propensity.load(artifact.path).coefficients.tolist() == model.coefficients.tolist()
    auc = artifact.info["metrics"]["auc"]
    assert auc["model"]["mean"] == pytest.approx(roc_auc_score(takers[2], model.margin(frames[2])))
    assert auc["most active first"]["mean"] == pytest.approx(roc_auc_score(takers[2], frames[2]["events"]))


def test_a_device_is_read_from_arrays_and_from_lines(ingested: Pipeline, found: tuple[Pipeline, Ran]) -> None:
    pipeline = found[0]
    given = crowd(users=400, days=21, daily=2, rate=-2.5).events
    expected = given.select("user_id", "item_id", "ms", mobile=pl.col("device") == "mobile")
    versions, missing = build.days_between(pipeline, FIRST, LAST)
    assert missing == []
    events = read_events(pipeline, versions)
    keys = ["user_id", "item_id", "ms"]
    assert len(events) == len(expected.unique(keys))
    joined = events.join(expected.unique(keys), on=keys, how="inner", validate="1:1")
    assert len(joined) == len(events)
    assert joined["mobile"].eq_missing(joined["mobile_right"]).all()
    assert joined["mobile"].null_count() == joined["taken"].sum() > 0, "clicks tell no device"


def test_unchanged_inputs_write_nothing_and_a_new_budget_the_audience_only(
    found: tuple[Pipeline, Ran], tmp_path: Path
) -> None:
    pipeline = copy_home(found[0], tmp_path / "home")
    before = contents(pipeline.settings.store)
    ran = materialize(pipeline, [LAST])
    names = [asset.key.to_user_string() for asset in ASSETS]
    assert [ran.metadata(name, LAST)["unchanged"] for name in names] == [True, True, True]
    assert all("environment" in found[1].metadata(name, LAST) for name in names)
    assert contents(pipeline.settings.store) == before
    exported = contents(pipeline.settings.store / "audience")
    pipeline.tables.path("audience", LAST).with_suffix(".csv").write_text("torn")
    assert not materialize(pipeline, [LAST]).metadata("audience", LAST)["unchanged"]
    assert contents(pipeline.settings.store / "audience") == exported, "made again, the same"
    strict = changed(pipeline, audience={**OFFER, "budget": None, "threshold": 0.3})
    ran = materialize(strict, [LAST])
    assert ran.metadata("user_features", LAST)["unchanged"]
    rows = strict.tables.read("audience", LAST)
    chances = Propensity.load(strict.artifacts.need("propensity_model", LAST).path)
    every = strict.tables.read("user_features", LAST)
    assert len(rows) == int((chances.probability(chances.margin(every)) >= 0.3).sum()) > 0
    assert rows["probability"].min() >= 0.3
    nobody = changed(pipeline, audience={**OFFER, "threshold": 1.0})
    ran = materialize(nobody, [LAST])
    assert ran.metadata("audience", LAST)["dagster/partition_row_count"] == 0
    page = ran.metadata("propensity_model", LAST)
    assert page["lift at"] == "nobody reached the threshold"
    assert {name for name in page if name.startswith("metric/")} == {"metric/auc", "metric/average_precision"}
    assert nobody.tables.path("audience", LAST).with_suffix(".libsvm").read_bytes() == b""


def test_what_is_learned_is_not_moved_by_what_came_after(found: tuple[Pipeline, Ran], tmp_path: Path) -> None:
    """The features of a period are those of the day it ended on, whatever arrives later, or once more."""
    pipeline = copy_home(found[0], tmp_path / "home")
    ended = shift(LAST, -3)
    before = build.make_features(pipeline, ended)[0]
    late = pl.DataFrame(
        {"user_id": ["u00001"], "item_id": ["late"], "action": ["VIEW"], "ms": [build.day_start_ms(ended, "UTC")]}
    )
    record = {"timestamp": late["ms"][0], "user_id": "u00001", "item_id": "late", "action": "VIEW"}
    pipeline.bucket.put(object_key(date.fromisoformat(LAST), "late"), json.dumps([record]).encode())
    again = pipeline.settings.home / "bucket" / object_key(date.fromisoformat(ended), "array")
    pipeline.bucket.put(object_key(date.fromisoformat(LAST), "again"), again.read_bytes())
    run(pipeline, INGEST, [LAST])
    assert build.make_features(pipeline, ended) == (before, False)
    versions, _ = build.days_between(pipeline, FIRST, LAST)
    events = read_events(pipeline, versions)
    assert len(events.filter(pl.col("item_id") == "late")) == 1
    assert not events.select("user_id", "item_id", "ms", "taken").is_duplicated().any(), "what came again counts once"
    assert build._window(pipeline, events, ended).equals(pipeline.tables.read("user_features", ended))


def test_an_erased_user_is_in_no_export(found: tuple[Pipeline, Ran], tmp_path: Path) -> None:
    pipeline = copy_home(found[0], tmp_path / "home")
    path = pipeline.tables.path("audience", LAST)
    user, *others = pipeline.tables.read("audience", LAST)["user_id"]

    for table in ("raw_events", "interactions"):  # what becomes of these is looked at where they are made
        shutil.rmtree(pipeline.settings.store / table)
    erase(pipeline, user, False, lambda *_: None, lambda _: None)
    assert not [each.name for each in path.parent.iterdir() if each != path], "CSV and LibSVM"
    assert pipeline.tables.read("audience", LAST)["user_id"].to_list() == others
    assert build.make_audience(pipeline, LAST)[1]
    assert user not in path.with_suffix(".csv").read_text()
    assert len(path.with_suffix(".libsvm").read_text().splitlines()) == 60


def test_several_days_in_one_run_and_days_that_are_missing(ingested: Pipeline, tmp_path: Path) -> None:
    pipeline = copy_home(ingested, tmp_path / "home")
    pipeline.tables.path("interactions", DAYS[14]).unlink()
    ran = materialize(pipeline, DAYS[-2:])
    assert ran.success
    for day in DAYS[-2:]:
        assert ran.metadata("propensity_model", day)["days without interactions"] == 1
        assert ran.metadata("audience", day)["dagster/partition_row_count"] == 60


def test_without_a_device_the_share_is_left_out(ingested: Pipeline, tmp_path: Path) -> None:
    pipeline = changed(copy_home(ingested, tmp_path / "home"), audience={**OFFER, "mobile_field": None})
    ran = materialize(pipeline, [LAST])
    assert "left out" in ran.metadata("user_features", LAST)["users with a device"]
    assert "left out" in ran.metadata("propensity_model", LAST)["mobile"]
    assert pipeline.tables.read("user_features", LAST)["mobile"].null_count() == 400


def test_the_device_of_the_dimension_users(ingested: Pipeline, tmp_path: Path) -> None:
    offer = {**OFFER, "mobile_field": None, "mobile_column": "device", "user_column": "id"}
    pipeline = changed(copy_home(ingested, tmp_path / "home"), audience=offer)
    users = pl.DataFrame({"id": [f"u{n:05d}" for n in range(300)], "device": ["mobile", "desktop", None] * 100})
    pipeline.tables.publish_frame("users", DAYS[5], users, {})
    assert materialize(pipeline, [LAST]).success
    mobile = dict(pipeline.tables.read("user_features", LAST).select("user_id", "mobile").iter_rows())
    assert [mobile[f"u{n:05d}"] for n in (0, 1, 2, 350)] == [1, 0, None, None]
    pipeline.tables.publish_frame("users", LAST, users.rename({"id": "customer"}), {})
    assert "users of 2025-11-21 has no column id" in materialize(pipeline, [LAST]).said()
    pipeline.tables.publish_frame("users", LAST, pl.concat([users, users]), {})
    assert "id (audience.user_column) is not unique" in materialize(pipeline, [LAST]).said()


def test_what_does_not_suffice_is_said(ingested: Pipeline, tmp_path: Path) -> None:
    pipeline = copy_home(ingested, tmp_path / "home")
    said = materialize(pipeline, [DAYS[12]]).said()
    assert "needs interactions from 2025-10-30 on" in said
    with pytest.raises(InputError, match="took the offer in the periods"):
        build.make_model(changed(pipeline, audience={**OFFER, "items": ["no such item"]}), LAST, print)
    with pytest.raises(InputError, match="Materialize user_features"):
        build.make_audience(pipeline, LAST)


def test_the_job_holds_the_three() -> None:
    assert find_audience.name == "find_audience"
    for asset in ASSETS:
        (spec,) = asset.specs
        assert len(spec.description or "") > 40
        assert (spec.group_name, spec.owners) == ("audience", ["team:recommendations"])
        assert isinstance(asset.partitions_def, dg.DailyPartitionsDefinition)
        assert asset.backfill_policy == dg.BackfillPolicy.single_run()
