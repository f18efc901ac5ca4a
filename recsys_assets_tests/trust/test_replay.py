import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from recsys_assets.cli import main
from recsys_assets.pipeline import InputError, Pipeline
from recsys_assets.serving.assets import make_lists, make_similar
from recsys_assets.storage import artifacts as artifacts_module
from recsys_assets.storage.artifacts import ArtifactError
from recsys_assets.storage.environment import differences, environment
from recsys_assets.training.blend import blend_day
from recsys_assets.training.members import fit_member
from recsys_assets.training.training_set import merge_day
from recsys_assets.trust.replay import Compared, replay, verdict
from recsys_assets_tests.graph import DAYS, INGEST, changed, copy_home, run, snapshot


@pytest.fixture
def home(quick_home: Pipeline, tmp_path: Path) -> Pipeline:
    return copy_home(quick_home, tmp_path / "home")


def silent(_: str) -> None:
    pass


def replayed(pipeline: Pipeline, day: str, asset: str | None, place: Path) -> list[Compared]:
    return list(replay(pipeline, day, asset, place, silent))


def test_a_day_and_its_updates_give_the_same_bytes(quick_home: Pipeline, tmp_path: Path) -> None:
    before = snapshot(quick_home.settings.store)
    found = replayed(quick_home, DAYS[4], None, tmp_path / "scratch")
    assert [(each.asset, each.day, each.difference) for each in found if each.difference] == []
    chain = {(each.asset, each.day) for each in found}
    updated = {f"{name}_model" for name in ("repeat", "als", "sequence")}
    assert chain >= {("interactions", day) for day in DAYS[:5]}
    assert chain >= {(asset, day) for asset in ("training_set", "hybrid_model", *updated) for day in DAYS[3:5]}
    assert chain >= {("recommendations", DAYS[4]), ("similar_items", DAYS[4])}
    equal, text = verdict(found)
    assert equal
    assert text.startswith(f"equal: {sum(each.files for each in found)} files of {len(found)} partitions")
    assert snapshot(quick_home.settings.store) == before, "nothing published was touched"


def test_one_asset_needs_no_other(quick_home: Pipeline, tmp_path: Path) -> None:
    found = replayed(quick_home, DAYS[4], "als_model", tmp_path / "als")
    assert {each.asset for each in found} == {"interactions", "training_set", "als_model"}
    assert [each.day for each in found if each.asset == "als_model"] == [DAYS[3], DAYS[4]]
    assert {each.day for each in replayed(quick_home, DAYS[2], "interactions", tmp_path / "one")} == {DAYS[2]}


def test_lists_of_another_days_champion(quick_home: Pipeline, tmp_path: Path) -> None:
    assert (quick_home.tables.info("recommendations", DAYS[3]) or {})["model_day"] == DAYS[5]
    found = replayed(quick_home, DAYS[3], "recommendations", tmp_path / "lists")
    assert verdict(found)[0]
    assert {each.asset for each in found} == {"interactions", "training_set", "recommendations"}


def harmed(pipeline: Pipeline, asset: str, name: str) -> None:
    """Publishes other bytes under the version that stands there: what a broken disk or a clever hand would leave."""
    from safetensors.numpy import load_file, save_file

    good = pipeline.artifacts.need(asset, DAYS[4])
    with pipeline.artifacts.publish(asset, DAYS[4], good.version, good.info) as folder:
        shutil.copytree(good.path, folder, dirs_exist_ok=True)
        (folder / "manifest.json").unlink()
        arrays = load_file(folder / name)
        first = sorted(key for key, array in arrays.items() if array.dtype.kind == "f" and array.size)[0]
        arrays[first] = arrays[first] + 1
        (folder / name).unlink()
        save_file(arrays, folder / name)


def test_the_first_difference_is_named(home: Pipeline, tmp_path: Path) -> None:
    harmed(home, "als_model", "final/arrays.safetensors")
    frame = home.tables.read("interactions", DAYS[1]).with_columns(item_id=pl_reverse("item_id"))
    home.tables.publish_frame("interactions", DAYS[1], frame, home.tables.info("interactions", DAYS[1]) or {})
    found = replayed(home, DAYS[4], "als_model", tmp_path / "scratch")
    wrong = [each for each in found if each.difference]
    assert [(each.asset, each.day) for each in wrong] == [("interactions", DAYS[1]), ("als_model", DAYS[4])]
    assert wrong[0].difference == f"{DAYS[1]}.parquet: column item_id from row 0 on"
    assert "final/arrays.safetensors: item_factors, by at most 1" in str(wrong[1].difference)
    equal, text = verdict(found)
    assert not equal
    assert text == f"not equal: first interactions of {DAYS[1]}: {wrong[0].difference}"


def test_what_was_damaged_since_is_no_equality(home: Pipeline, tmp_path: Path) -> None:
    """Of a chain of updates: in any of its partitions, in files that a rebuilt one does not read, in a manifest."""
    sets = {day: home.artifacts.need("training_set", day).path for day in DAYS[3:5]}
    models = {day: home.artifacts.need("als_model", day).path for day in DAYS[3:5]}
    table = home.tables.path("interactions", DAYS[1])
    table.write_bytes(table.read_bytes()[:4] + bytes(400) + table.read_bytes()[404:])
    events = sets[DAYS[3]] / "events.parquet"
    events.write_bytes(events.read_bytes()[:50] + b"!" + events.read_bytes()[51:])
    (models[DAYS[3]] / "test" / "params.json").unlink()
    (sets[DAYS[4]] / "more.parquet").write_bytes(b"")
    manifest = models[DAYS[4]] / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"updates_in_a_row": 1', '"updates_in_a_row": 2'))
    found = replayed(home, DAYS[4], "als_model", tmp_path / "scratch")
    assert {(each.asset, each.day): each.difference for each in found if each.difference} == {
        ("interactions", DAYS[1]): f"{DAYS[1]}.parquet is damaged: {table.stat().st_size} bytes that are no Parquet",
        ("training_set", DAYS[3]): "events.parquet is missing or no longer what was published",
        ("als_model", DAYS[3]): "test/params.json is missing or no longer what was published",
        ("training_set", DAYS[4]): "more.parquet lies there, but was not published",
        ("als_model", DAYS[4]): "manifest.json: updates_in_a_row",
    }


def test_what_came_later_and_what_no_version_holds_make_no_difference(home: Pipeline, tmp_path: Path) -> None:
    (home.settings.home / "lists").mkdir()
    items = sorted(home.tables.read("recommendations", DAYS[4])["item_id"].unique())
    (home.settings.home / "lists" / "stock.txt").write_text("\n".join(items[::2]))
    day = DAYS[3]  # a search of a day that was trained before
    with home.artifacts.publish("als_parameters", day, "v", {"day": day, "parameters": {"alpha": 9.0}}) as folder:
        (folder / "trials.json").write_text("[]")
    own = {"candidates": 29, "available_items_file": "lists/stock.txt"}
    now: dict[str, Any] = {"sequence": {"max_tokens": 1000}, "recommend": own}
    home = changed(home, **now)
    refit, _, _ = fit_member(home, "als", DAYS[4], False, silent)
    hybrid, _ = blend_day(home, DAYS[4], silent)
    assert (refit.info["mode"], refit.info["search"]["day"]) == ("full refit", day)
    assert hybrid.info["parent"]["day"] == day, "its weights are those of a hybrid that was made under other settings"
    make_lists(home, DAYS[4], silent)
    home.champion.move(DAYS[4], hybrid.version, "for the test")
    make_similar(home, DAYS[4])  # by another champion than the lists
    home = changed(home, **now, training={"full_refit_days": 1})
    said: list[str] = []
    found = list(replay(home, DAYS[4], None, tmp_path / "scratch", said.append))
    assert [(each.asset, each.day, each.difference) for each in found if each.difference] == []
    assert {each.day for each in found if each.asset == "hybrid_model"} == {DAYS[4]}
    assert f"{day}: hybrid_model was made under other settings or by other code: taken as it stands" in said


def test_a_day_that_was_ingested_after_the_first_model_of_a_chain(home: Pipeline, tmp_path: Path) -> None:
    """An empty one, that leaves the item map as it was: with any other the models learn from scratch."""
    home.tables.path("interactions", DAYS[1]).unlink()
    for late, day in enumerate(DAYS[3:5]):
        if late:
            shutil.rmtree(home.settings.home / "bucket" / "logs" / DAYS[1].replace("-", "/"))
            force = {"ops": {name: {"config": {"force": True}} for name in INGEST}}
            run(home, INGEST, [DAYS[1]], config=force)
        merge_day(home, day, home.holdouts.current())
        model, _, _ = fit_member(home, "als", day, False, silent)
    assert model.info["mode"] == "update"
    found = replayed(home, DAYS[4], "als_model", tmp_path / "scratch")
    assert [(each.asset, each.day, each.difference) for each in found if each.difference] == []


def test_two_versions_of_a_day_in_one_chain_are_told(home: Pipeline, tmp_path: Path) -> None:
    other = changed(home, sequence={"max_tokens": 1000}, als={"alpha": 9.0})
    fit_member(other, "als", DAYS[3], False, silent)
    blend_day(other, DAYS[3], silent)
    home = changed(other, sequence={"max_tokens": 1000})
    blend_day(home, DAYS[4], silent)  # takes the new weights, with a member that goes back to the state before
    with pytest.raises(InputError, match=rf"als_model of {DAYS[3]} was made again in the midst of this chain"):
        replayed(home, DAYS[4], "hybrid_model", tmp_path / "scratch")


def pl_reverse(column: str) -> Any:
    import polars as pl

    return pl.col(column).reverse()


def test_other_settings_are_said(home: Pipeline, tmp_path: Path) -> None:
    other = changed(home, sequence={"max_tokens": 1000}, als={"alpha": 9.0})
    first = next(each for each in replayed(other, DAYS[4], "als_model", tmp_path / "scratch") if each.difference)
    assert (first.asset, first.day) == ("als_model", DAYS[3])
    assert str(first.difference).endswith("was made: other settings")


def test_inputs_that_moved_on_are_named(home: Pipeline, tmp_path: Path) -> None:
    home.bucket.put(f"logs/{DAYS[2].replace('-', '/')}/late.json", b"[]")
    run(home, INGEST, [DAYS[2]])
    with pytest.raises(InputError, match=rf"interactions of {DAYS[2]} are version \w+ now, and were \w+ when this"):
        replayed(home, DAYS[4], None, tmp_path / "scratch")


def test_what_is_not_kept_cannot_be_replayed(home: Pipeline, tmp_path: Path) -> None:
    gone = home.artifacts.need("als_model", DAYS[3])
    shutil.rmtree(gone.path)
    with pytest.raises(ArtifactError, match=rf"als_model of {DAYS[3]}, version {gone.version}, is not kept any more"):
        replayed(home, DAYS[4], "als_model", tmp_path / "scratch")
    with pytest.raises(InputError, match="nothing_model cannot be replayed; known are interactions, training_set"):
        replayed(home, DAYS[4], "nothing_model", tmp_path / "scratch")
    with pytest.raises(ArtifactError, match="als_model has no partition 2031-01-01 yet"):
        replayed(home, "2031-01-01", "als_model", tmp_path / "scratch")


def test_another_environment_is_never_called_equal(
    home: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = environment()
    elsewhere = {**there, "kernels": ["Haswell"], "libraries": {**there["libraries"], "numpy": "1.0"}}
    assert differences(there, there) == []
    assert differences(None, there) == ["it does not say in which environment it was made"]
    monkeypatch.setattr(artifacts_module, "environment", lambda: elsewhere)
    shutil.rmtree(home.settings.store / "popularity_model")
    run(home, ["popularity_model"], [DAYS[4]])
    monkeypatch.undo()
    found = replayed(home, DAYS[4], "popularity_model", tmp_path / "scratch")
    equal, text = verdict(found)
    assert equal
    assert not text.startswith("equal")
    assert "though the environment is another one (kernels: made with ['Haswell'], here" in text
    assert "numpy: made with 1.0, here" in text
    equal, text = verdict([Compared("a", "d", "v", 1, "x", ["numpy: made with 1.0, here 2"])])
    assert not equal
    assert text.endswith("so nothing is claimed")


def test_the_verb(home: Pipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RECSYS_HOME", "")
    place = ["--home", str(home.settings.home), "replay", "--day", DAYS[4], "--asset"]
    done = CliRunner().invoke(main, [*place, "als_model", "--into", str(tmp_path / "kept")])
    assert done.exit_code == 0, done.output
    assert "equal: " in done.output
    assert list((tmp_path / "kept").rglob("*.safetensors"))
    harmed(home, "als_model", "test/arrays.safetensors")
    done = CliRunner().invoke(main, [*place, "als_model"])
    assert done.exit_code == 1
    assert "not equal: first als_model" in done.output
    assert not list(home.settings.store.rglob(".tmp-*"))
    done = CliRunner().invoke(main, [*place, "als_model", "--into", str(home.champion.path)])
    assert (done.exit_code, "is a file" in done.output) == (2, True)
