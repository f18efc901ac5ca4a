"""Search: resumable, deterministic, blind to the newest day; what it finds reaches the models."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from recsys_assets.cli import main
from recsys_assets.days import day_start_ms
from recsys_assets.models import MEMBERS
from recsys_assets.pipeline import InputError, Pipeline
from recsys_assets.settings import Settings
from recsys_assets.training import search
from recsys_assets.training.members import fit_member, load_member
from recsys_assets_tests.graph import TRAINED, changed, copy_home, run

DAY = max(TRAINED)


def quiet(_: str) -> None:
    pass


@pytest.fixture
def home(trained_home: Pipeline, tmp_path: Path) -> Pipeline:
    return copy_home(trained_home, tmp_path / "home")


def trials(pipeline: Pipeline, name: str) -> pl.DataFrame:
    artifact = pipeline.artifacts.need(f"{name}_parameters", DAY)
    return pl.read_parquet(artifact.path / "trials.parquet").drop("seconds")


def test_every_default_lies_in_its_range() -> None:
    defaults = Settings(home=Path("nowhere"))
    for name in MEMBERS:
        ranges = search.space(name, defaults)
        assert ranges
        for option, distribution in ranges.items():
            value = getattr(getattr(defaults, name), option)
            assert distribution._contains(distribution.to_internal_repr(value)), (name, option)


def test_goes_on_after_a_kill_and_makes_the_same_trials(
    home: Pipeline, trained_home: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = search.judge
    child = os.fork()  # popularity needs neither torch nor implicit, whose threads would not outlive a fork
    if child == 0:
        left = [3]

        def dies_in_the_fourth(*arguments: Any) -> np.ndarray:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return usual(*arguments)

        monkeypatch.setattr(search, "judge", dies_in_the_fourth)
        search.search(home, "popularity", DAY, quiet, trials=6)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert home.artifacts.current("popularity_parameters", DAY) is None

    judged: list[float] = []

    def counted(name: str, known: Any, tasks: Any, settings: Settings, log: Any) -> np.ndarray:
        judged.append(settings.popularity.half_life_days)
        return usual(name, known, tasks, settings, log)

    monkeypatch.setattr(search, "judge", counted)
    artifact, fresh = search.search(home, "popularity", DAY, quiet, trials=6)
    assert fresh
    assert len(judged) == 3, "the three that had ended were kept"
    assert artifact.info["trials"] == 6
    again, fresh = search.search(home, "popularity", DAY, quiet, trials=6)
    assert len(judged) == 3
    assert (again.version, fresh) == (artifact.version, False)

    whole = copy_home(trained_home, tmp_path / "whole")
    search.search(whole, "popularity", DAY, quiet, trials=6)
    assert trials(whole, "popularity").equals(trials(home, "popularity"))
    assert trials(whole, "popularity")["half_life_days"].n_unique() == 6


def test_the_newest_day_is_not_read(
    home: Pipeline, trained_home: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = day_start_ms(DAY, home.settings.calendar.time_zone)
    usual = search.read_training_set

    def other_newest_day(artifact: Any) -> Any:
        data = usual(artifact)
        newest = data.events.timestamp >= start
        assert newest.any()
        item = np.where(newest, (data.events.item + 17) % data.events.n_items, data.events.item).astype(np.int32)
        return replace(data, events=replace(data.events, item=item))

    search.search(home, "transition", DAY, quiet, trials=3)
    changed_home = copy_home(trained_home, tmp_path / "changed")
    monkeypatch.setattr(search, "read_training_set", other_newest_day)
    search.search(changed_home, "transition", DAY, quiet, trials=3)
    assert trials(home, "transition").equals(trials(changed_home, "transition"))


def test_what_was_found_reaches_the_model_unless_settings_say_otherwise(home: Pipeline) -> None:
    before, fresh, _ = fit_member(home, "popularity", DAY, False, quiet)
    assert not fresh
    old = load_member("popularity", before.path / "final").state()[0]["popularity"]
    found, _ = search.search(home, "popularity", DAY, quiet, trials=8)
    best = found.info["parameters"]["half_life_days"]
    table = trials(home, "popularity")
    assert table["half_life_days"][0] == 7.0, "the first trial is what was in force"
    assert best == table.sort("ndcg10", descending=True)["half_life_days"][0] != 7.0
    assert found.info["ndcg"] == table["ndcg10"].max() > found.info["ndcg_before"] == table["ndcg10"][0]

    after, fresh, _ = fit_member(home, "popularity", DAY, False, quiet)
    assert fresh
    assert after.version != before.version
    assert after.info["search"] == {"day": DAY, "version": found.version}
    assert [row["from"] for row in after.info["parameters"]] == [f"search of {DAY}"]
    assert not np.array_equal(old, load_member("popularity", after.path / "final").state()[0]["popularity"])
    settings, _ = search.in_force(home, "popularity", DAY)
    assert settings.popularity.half_life_days == best
    assert search.in_force(home, "popularity", min(TRAINED))[1] is None, "an earlier day does not know of it"

    mine = changed(home, popularity={"half_life_days": 7.0})
    settings, _ = search.in_force(mine, "popularity", DAY)
    assert settings.popularity.half_life_days == 7.0
    explicit, fresh, _ = fit_member(mine, "popularity", DAY, False, quiet)
    assert fresh
    assert [row["from"] for row in explicit.info["parameters"]] == ["settings"]
    with pytest.raises(InputError, match="sets every option"):
        search.search(mine, "popularity", DAY, quiet)


def test_parameters_are_checked_like_settings(home: Pipeline) -> None:
    with pytest.raises(ValueError, match="half_life_days"):
        search.changed(home.settings, "popularity", {"half_life_days": -1})


def test_seconds_end_a_search_that_the_next_one_goes_on_with(home: Pipeline) -> None:
    lines: list[str] = []
    with pytest.raises(InputError, match="more seconds"):
        search.search(home, "popularity", DAY, lines.append, trials=3, seconds=1e-9)
    artifact, _ = search.search(home, "popularity", DAY, lines.append, trials=2)
    assert artifact.info["trials"] == 2
    assert sum("trial 2 of 2" in line for line in lines) == 1


def test_two_at_once_and_too_little_history_are_told(home: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    (home.settings.store / "search").mkdir()
    with (
        filelock.FileLock(home.settings.store / "search" / ".popularity.lock"),
        pytest.raises(InputError, match="another"),
    ):
        search.search(home, "popularity", DAY, quiet)
    data = search.read_training_set(home.artifacts.need("training_set", DAY))
    first_moment = data.before(int(data.events.timestamp.min()) + 1)
    monkeypatch.setattr(search, "read_training_set", lambda _: first_moment)
    with pytest.raises(InputError, match="nothing to judge parameters by"):
        search.search(home, "popularity", DAY, quiet)


def test_only_a_run_for_nothing_else_searches(home: Pipeline) -> None:
    budget = {"ops": {"popularity_parameters": {"config": {"trials": 8}}}}
    both = run(home, ["popularity_parameters", "popularity_model"], [DAY], config=budget)
    assert both.metadata("popularity_parameters", DAY)["searched in this run"] is False
    assert home.artifacts.current("popularity_parameters", DAY) is None
    alone = run(home, ["popularity_parameters"], sorted(TRAINED), config=budget)
    shown = alone.metadata("popularity_parameters", DAY)
    assert shown["searched in this run"] is True
    assert shown["unchanged"] is False
    assert shown["version"] != both.metadata("popularity_parameters", DAY)["version"]
    assert shown["trials"] == 8
    assert shown["parameters"].records[0].data["from"] == f"search of {DAY}"
    assert alone.metadata("popularity_parameters", min(TRAINED))["searched in this run"] is False
    model = run(home, ["popularity_model"], [DAY]).metadata("popularity_model", DAY)
    assert model["parameters"].records[0].data["from"] == f"search of {DAY}"


def test_command(home: Pipeline) -> None:
    arguments = ["--home", str(home.settings.home), "search", "--model", "als", "--trials", "2"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("als: NDCG@10 ")
    assert trials(home, "als")["regularization"][0] == home.settings.als.regularization
    assert "factors" not in trials(home, "als").columns, "set explicitly"
    unknown = CliRunner().invoke(main, ["--home", str(home.settings.home), "search", "--model", "asl"])
    assert unknown.exit_code == 1
    assert "there is no model asl" in unknown.output
