import os
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from recsys_assets.cli import main
from recsys_assets.models import MEMBERS
from recsys_assets.pipeline import Pipeline
from recsys_assets.settings import RetentionSettings
from recsys_assets.storage.artifacts import link_tree
from recsys_assets.training.blend import load_measured
from recsys_assets.training.schedules import FULL_REFIT
from recsys_assets.trust.champion import roll_back
from recsys_assets.trust.lineage import Made
from recsys_assets.trust.retention import PRUNED_ASSETS, freed, kept_days, prune
from recsys_assets_tests.graph import TRAINED, changed, copy_home, run, snapshot
from recsys_assets_tests.storage.test_files import dead_pid

FIRST, SECOND = TRAINED
STRICT = {"days": 1, "months": 0, "champions": 1, "min_age_hours": 0}


@pytest.fixture
def home(trained_home: Pipeline, tmp_path: Path) -> Pipeline:
    return copy_home(trained_home, tmp_path / "home")


def there(pipeline: Pipeline) -> Iterator[Made]:
    for asset in PRUNED_ASSETS:
        for day in TRAINED:
            for version in pipeline.artifacts.versions(asset, day):
                yield Made(asset, day, version)


def test_which_days_stay() -> None:
    days = [f"2025-{month:02d}-{day:02d}" for month in (9, 10, 11) for day in (3, 7, 20)]
    kept = kept_days(days, RetentionSettings(days=2, months=2))
    assert kept == {
        "2025-10-20": "last day of 2025-10",
        "2025-11-07": "one of the newest 2 days",
        "2025-11-20": "one of the newest 2 days",
    }
    assert set(kept_days(days, RetentionSettings(days=1, months=0))) == {"2025-11-20"}
    assert kept_days([], RetentionSettings()) == {}


@given(st.lists(st.dates().map(str)), st.integers(1, 9), st.integers(0, 9))
def test_the_newest_days_always_stay_and_more_is_never_less(days: list[str], newest: int, months: int) -> None:
    kept = kept_days(days, RetentionSettings(days=newest, months=months))
    assert set(sorted(set(days))[-newest:]) <= set(kept) <= set(days)
    assert set(kept) <= set(kept_days(days, RetentionSettings(days=newest + 1, months=months + 1)))
    assert len({day[:7] for day in kept}) >= min(months, len({day[:7] for day in days}))


def test_by_default_nothing_of_a_young_shop_goes(home: Pipeline) -> None:
    before = snapshot(home.settings.store)
    verdicts, gained = prune(home)
    assert len(verdicts) == len(list(there(home))) == 14
    assert all(verdict.stays for verdict in verdicts)
    assert gained == 0
    assert snapshot(home.settings.store) == before


@pytest.fixture(scope="module")
def refitted_home(trained_home: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Under strict rules, with a champion of the second day that goes on from nothing."""
    home = copy_home(trained_home, tmp_path_factory.mktemp("refitted") / "home")
    strict = changed(home, retention=STRICT, sequence={"max_tokens": 1000})
    run(strict, [f"{name}_model" for name in MEMBERS], [SECOND], config=FULL_REFIT)
    run(strict, ["hybrid_model"], [SECOND])
    strict.champion.move(SECOND, strict.artifacts.need("hybrid_model", SECOND).version, "for the test")
    return strict


@pytest.fixture
def refitted(refitted_home: Pipeline, tmp_path: Path) -> Pipeline:
    return copy_home(refitted_home, tmp_path / "home")


def test_the_champion_and_all_it_was_made_of_stay(home: Pipeline) -> None:
    """It goes on from the first day's states and ranking."""
    strict = changed(home, retention=STRICT)
    verdicts, _ = prune(strict)
    assert {verdict.stays for verdict in verdicts} == {"the champion, or what it was made of"}
    assert len(list(there(strict))) == 14


def test_the_rest_goes(refitted: Pipeline) -> None:
    for day in TRAINED:  # an audience's model, which no champion is made of
        with refitted.artifacts.publish("propensity_model", day, "v", {}):
            pass
    strict, before = refitted, set(there(refitted))
    assert len(before) == 20
    dry, would_gain = prune(strict, dry_run=True)
    assert set(there(strict)) == before, "a dry run deletes nothing"
    verdicts, gained = prune(strict)
    assert verdicts == dry
    assert gained == would_gain > 0
    assert sorted((made.asset, made.day) for made in there(strict)) == sorted(
        (asset, SECOND) for asset in PRUNED_ASSETS
    )
    assert strict.artifacts.current("hybrid_model", FIRST) is None
    load_measured(strict, strict.artifacts.need("hybrid_model", SECOND))
    assert prune(strict)[1] == 0
    assert run(strict, ["hybrid_model"], [SECOND]).metadata("hybrid_model", SECOND)["unchanged"]
    assert run(strict, ["training_set"], [FIRST]).metadata("training_set", FIRST)["unchanged"] is False


def test_what_was_just_made_stays(refitted: Pipeline) -> None:
    """A backfill of days older than the newest ones still reads them, in this run or another."""
    careful = changed(refitted, retention={**STRICT, "min_age_hours": 1})
    verdicts, _ = prune(careful)
    assert len(list(there(careful))) == 18
    assert "made within the last 1 hours" in {verdict.stays for verdict in verdicts}
    for made in there(careful):
        os.utime(careful.artifacts.root / made.asset / made.day / made.version / "manifest.json", (0, 0))
    prune(careful)
    assert len(list(there(careful))) == 7


def test_an_earlier_champion_stays_for_a_rollback(refitted: Pipeline) -> None:
    strict = changed(refitted, retention={**STRICT, "champions": 3})
    prune(strict)
    assert len(list(there(strict))) == 18
    assert roll_back(strict, FIRST, "why")["to"]["day"] == FIRST
    load_measured(strict, strict.artifacts.need("hybrid_model", FIRST))


def test_superseded_versions_go_unless_a_champion_is_made_of_them(home: Pipeline) -> None:
    strict = changed(
        home,
        training={"validation_days": 1},
        sequence={"max_tokens": 1000},
        retention={"champions": 1, "min_age_hours": 0},
    )
    before = set(there(strict))
    run(strict, [*(f"{name}_model" for name in MEMBERS), "hybrid_model"], [SECOND])
    rebuilt = set(there(strict)) - before
    assert {made.asset for made in rebuilt} == {"hybrid_model", *(f"{name}_model" for name in MEMBERS)}
    prune(strict)
    assert set(there(strict)) == before | rebuilt, "all of them: the champion is made of the older ones"
    good = strict.artifacts.need("hybrid_model", SECOND)
    strict.champion.move(SECOND, good.version, "for the test")
    prune(strict)
    assert (
        set(there(strict)) == {made for made in before if made.day == FIRST or made.asset == "training_set"} | rebuilt
    )


def test_what_the_dead_left_goes(home: Pipeline) -> None:
    store = home.settings.store
    dead = f".tmp-{dead_pid()}-00000000"
    for folder in (store, store / "interactions", store / "als_model" / FIRST):
        (folder / dead).mkdir()
    prune(home)
    assert not list(store.rglob(".tmp-*"))


def test_shared_files_are_freed_with_their_last_name(home: Pipeline, tmp_path: Path) -> None:
    artifacts = home.artifacts
    with artifacts.publish("als_model", "2025-12-01", "a", {}) as folder:
        (folder / "x").write_bytes(b"1" * 100)
    with artifacts.publish("hybrid_model", "2025-12-01", "b", {}) as folder:
        link_tree(artifacts.need("als_model", "2025-12-01").path, folder / "als")
    member, hybrid = Made("als_model", "2025-12-01", "a"), Made("hybrid_model", "2025-12-01", "b")
    alone, both = freed(artifacts, [member]), freed(artifacts, [member, hybrid])
    assert alone == 0, "the manifest and the file are linked by the hybrid too"
    assert both > 100


def test_the_asset_and_the_verb(refitted: Pipeline) -> None:
    strict = refitted
    place = ["--home", str(strict.settings.home)]
    done = CliRunner().invoke(main, [*place, "prune", "--dry-run"], catch_exceptions=False)
    assert f"prune  hybrid_model     {FIRST}" in done.output
    assert "7 versions stay, 11 would go" in done.output
    ran = run(strict, ["retention"], TRAINED)
    found = ran.metadata("retention", SECOND)
    assert (found["versions kept"], found["versions pruned"]) == (7, 11)
    assert found["bytes freed"] > 0
    assert ran.metadata("retention", FIRST)["dagster/partition_row_count"] == 0
    assert {"version", "environment"} <= set(found)
    rows = strict.tables.read("retention", SECOND)
    assert rows.filter("pruned")["reason"].null_count() == 11
    assert set(rows.filter(~pl.col("pruned"))["reason"]) == {"the champion, or what it was made of"}
    assert run(strict, ["retention"], TRAINED).metadata("retention", FIRST)["unchanged"] is True
    done = CliRunner().invoke(main, [*place, "prune"], catch_exceptions=False)
    assert done.output.endswith("7 versions stay, 0 went: 0.0 MB\n")
