import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import duckdb
import polars as pl
import pytest
from click.testing import CliRunner

from recsys_assets.cli import main
from recsys_assets.evaluation.promotion import Champion
from recsys_assets.pipeline import InputError, Pipeline
from recsys_assets.storage.artifacts import ArtifactError, Artifacts
from recsys_assets.training.members import CODE_VERSION
from recsys_assets.trust.champion import roll_back, timeline_lines
from recsys_assets.trust.retention import prune
from recsys_assets_tests.graph import DAYS, TRAINED, changed, copy_home, make_home, run

FIRST, SECOND = TRAINED


@pytest.fixture
def home(trained_home: Pipeline, tmp_path: Path) -> Pipeline:
    return copy_home(trained_home, tmp_path / "home")


def version(pipeline: Pipeline, day: str) -> str:
    return pipeline.artifacts.need("hybrid_model", day).version


def test_rollback_restores_the_earlier_lists_byte_for_byte(home: Pipeline) -> None:
    """The lists that each of two champions gave for one and the same day."""
    lists, champions = home.tables.path("recommendations", SECOND), home.champion.path.read_bytes()
    of_second = lists.read_bytes()
    home.champion.path.unlink()
    home.champion.move(FIRST, version(home, FIRST), "as it was before the second day")
    run(home, ["recommendations", "similar_items"], [SECOND])
    of_first, similar = lists.read_bytes(), home.tables.path("similar_items", SECOND).read_bytes()
    assert of_first != of_second
    home.champion.path.write_bytes(champions)
    run(home, ["recommendations", "similar_items"], [SECOND])
    assert lists.read_bytes() == of_second

    moved = roll_back(home, None, "the second was bad")
    assert (moved["from"]["day"], moved["to"]["day"]) == (SECOND, FIRST)
    run(home, ["recommendations", "similar_items"], [SECOND])
    assert lists.read_bytes() == of_first
    assert home.tables.path("similar_items", SECOND).read_bytes() == similar


def test_what_was_rolled_back_is_not_promoted_again_by_itself(home: Pipeline) -> None:
    roll_back(home, FIRST, "the second was bad")
    found = run(home, ["promotion"], TRAINED).metadata("promotion", SECOND)
    assert found["promoted"] is False
    assert "was rolled back on" in found["reason"]
    assert "(the second was bad)" in found["reason"]
    champion = home.champion.read()
    assert champion is not None
    assert champion["day"] == FIRST
    assert run(home, ["promotion"], [SECOND]).metadata("promotion", SECOND)["unchanged"] is True

    roll_back(home, SECOND, "it was not")
    assert not home.champion.rolled_back()
    assert [move["event"] for move in home.champion.timeline()] == ["promoted", "promoted", *["rolled back"] * 2]


def test_rollbacks_that_are_refused(home: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no champion to roll back"):
        roll_back(make_home(tmp_path / "empty"), None, "why")
    with pytest.raises(InputError, match="say why"):
        roll_back(home, None, " ")
    with pytest.raises(InputError, match=f"no other champion was of {DAYS[0]}; there were those of {FIRST}$"):
        roll_back(home, DAYS[0], "why")
    before = home.champion.path.read_bytes()
    kept = home.artifacts.need("hybrid_model", FIRST).path
    of_another_program = (kept / "manifest.json").read_text().replace('"member_code": "', '"member_code": "before ')
    (kept / "manifest.json").write_text(of_another_program)
    with pytest.raises(ArtifactError, match="was made by another version of this program"):
        roll_back(home, None, "why")
    (kept / "items.parquet").write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match=r"items\.parquet is missing or not what was published"):
        roll_back(home, None, "why")
    shutil.rmtree(kept)
    with pytest.raises(ArtifactError, match=rf"the files of the champion of {FIRST} .* are gone"):
        roll_back(home, None, "why")
    assert home.champion.path.read_bytes() == before
    home.champion.path.unlink()
    home.champion.move(FIRST, "only", "first")
    with pytest.raises(InputError, match="is the first champion"):
        roll_back(home, None, "why")


@pytest.fixture
def four(tmp_path: Path) -> Pipeline:
    """Champions a, b of one day, then c and d; models of no member."""
    pipeline = make_home(tmp_path)
    for day, name in zip((DAYS[0], DAYS[0], DAYS[1], DAYS[2]), "abcd", strict=True):
        info = {"training_set": "none", "inputs": {"members": {}}, "parent": None, "weights": {}, "candidates": 1}
        with pipeline.artifacts.publish("hybrid_model", day, name, {**info, "member_code": CODE_VERSION}) as folder:
            pl.DataFrame({"item_id": ["i"]}).write_parquet(folder / "items.parquet")
        pipeline.champion.move(day, name, "for the test")
    return pipeline


def in_charge(pipeline: Pipeline) -> str:
    return str((pipeline.champion.read() or {})["version"])


def test_one_rollback_after_the_other(four: Pipeline) -> None:
    for expected in "cba":
        assert roll_back(four, None, "why")["to"]["version"] == expected == in_charge(four)
    assert set(four.champion.rolled_back()) == set("bcd")
    with pytest.raises(InputError, match="nothing lies before it"):
        roll_back(four, None, "why")


def test_a_rollback_to_a_day_takes_its_newest_champion(four: Pipeline) -> None:
    assert roll_back(four, DAYS[0], "why")["to"]["version"] == "b"
    assert roll_back(four, DAYS[0], "why")["to"]["version"] == "a", "not the present one"
    assert roll_back(four, DAYS[2], "it was good")["to"]["version"] == "d" == in_charge(four)
    with pytest.raises(InputError, match=f"no other champion was of {DAYS[2]}"):
        roll_back(four, DAYS[2], "why")


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_as_many_champions_stay_as_the_settings_say(four: Pipeline, count: int) -> None:
    strict = changed(four, retention={"days": 1, "months": 0, "champions": count, "min_age_hours": 0})
    prune(strict)
    kept = [name for day in DAYS[:3] for name in strict.artifacts.versions("hybrid_model", day)]
    assert kept == list("abcd")[-count:]
    with pytest.raises(ArtifactError, match=r"are gone: retention\.champions") if count == 1 else nullcontext():
        roll_back(strict, None, "why")


def test_nothing_is_pruned_beside_a_publisher_or_a_promotion(four: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both locks are held, in this order, while anything is deleted."""
    held: list[str] = []

    @contextmanager
    def noted(name: str) -> Iterator[None]:
        held.append(name)
        yield
        held.remove(name)

    def remove(_: Artifacts, *made: str) -> None:
        removed.append((*held, *made))

    removed: list[tuple[str, ...]] = []
    monkeypatch.setattr(Champion, "lock", lambda _: noted("champion"))
    monkeypatch.setattr(Artifacts, "lock", lambda _: noted("artifacts"))
    monkeypatch.setattr(Artifacts, "remove", remove)
    prune(changed(four, retention={"days": 1, "months": 0, "champions": 3, "min_age_hours": 0}))
    assert removed == [("champion", "artifacts", "hybrid_model", DAYS[0], "a")]


def test_the_timeline_tells_everything(home: Pipeline) -> None:
    roll_back(home, None, "the second was bad")
    run(home, ["promotion"], [SECOND])
    lines = "\n".join(timeline_lines(home))
    for part in (f"rolled back  {FIRST}", "the second was bad", f"refused      {SECOND}", "the first champion: NDCG"):
        assert part in lines
    assert lines.index("refused") < lines.index("the second was bad") < lines.index("not worse than the champion")
    with duckdb.connect(home.warehouse.path, read_only=True) as connection:
        rows = connection.execute("SELECT event, day::VARCHAR, reason FROM champions").fetchall()
    assert [row[:2] for row in rows] == [("promoted", FIRST), ("promoted", SECOND), ("rolled back", FIRST)]
    assert rows[-1][2] == "the second was bad"


def test_a_refusal_on_the_champions_own_day_is_told(home: Pipeline) -> None:
    """Its day was built again, and what came of it was not let in."""
    promoted = "\n".join(timeline_lines(home))
    assert "refused" not in promoted
    row = home.tables.read("promotion", SECOND).with_columns(promoted=False, reason=pl.lit("worse than it was"))
    home.tables.publish_frame("promotion", SECOND, row, {"version": "another"})
    assert next(timeline_lines(home)).endswith("worse than it was")


def test_the_verbs(home: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RECSYS_HOME", "DAGSTER_HOME"):
        monkeypatch.setenv(name, "")
    place = ["--home", str(home.settings.home)]
    assert CliRunner().invoke(main, [*place, "rollback"]).exit_code == 2, "no reason, no rollback"
    done = CliRunner().invoke(main, [*place, "rollback", "--reason", "too many sofas"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert f"the champion is the model of {FIRST}" in done.output
    assert home.tables.read("recommendations", SECOND)["model_day"].unique().to_list() == [FIRST]
    done = CliRunner().invoke(main, [*place, "champion"], catch_exceptions=False)
    assert "too many sofas" in done.output
