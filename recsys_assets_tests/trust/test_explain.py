import random
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from recsys_assets.cli import main
from recsys_assets.evaluation.tasks import bought_pairs
from recsys_assets.models import MEMBERS
from recsys_assets.pipeline import InputError, Pipeline
from recsys_assets.serving.assets import make_lists
from recsys_assets.serving.recommend import Recommender, allowed_items
from recsys_assets.storage.artifacts import ArtifactError
from recsys_assets.training.training_set import merge_day
from recsys_assets.trust.champion import roll_back
from recsys_assets.trust.explain import explain, lines
from recsys_assets_tests.graph import DAYS, TRAINED, changed, copy_home

DAY = TRAINED[-1]


def row(pipeline: Pipeline, number: int) -> dict[str, object]:
    return pipeline.tables.read("recommendations", DAY).row(number, named=True)


@pytest.mark.parametrize("number", random.Random(5).sample(range(1000), 6))
def test_the_shares_add_up_and_the_events_lead_to_their_records(trained_home: Pipeline, number: int) -> None:
    wanted = row(trained_home, number)
    found = explain(trained_home, str(wanted["user_id"]), str(wanted["item_id"]))
    assert found.row == wanted
    assert found.notes == []
    assert {share.member for share in found.shares} >= set(MEMBERS)
    assert sum(share.contribution for share in found.shares) == pytest.approx(wanted["score"], abs=1e-4)
    hybrid = trained_home.artifacts.need("hybrid_model", DAY)
    assert all(share.weight == hybrid.info["weights"][share.member] for share in found.shares)
    assert found.window == (DAYS[0], DAY)
    assert found.influences
    falls = [99 if each.rank_without is None else each.rank_without for each in found.influences]
    assert falls == sorted(falls, reverse=True), "what matters most comes first"
    for influence in found.influences:
        assert influence.events == len(influence.sources) > 0
        for source in influence.sources:
            record = trained_home.tables.read("interactions", source.day).filter(
                (pl.col("source_key") == source.key) & (pl.col("record") == source.record) & pl.col("reason").is_null()
            )
            assert record.select("user_id", "item_id", "action").row(0) == (
                wanted["user_id"],
                influence.item,
                source.action,
            )
            raw = trained_home.tables.read("raw_events", source.day).filter(pl.col("key") == source.key)
            assert raw["etag"].to_list() == [source.etag]


@pytest.mark.parametrize("bought", ["keep", "remove"])
def test_leaving_an_item_out_is_what_it_says(trained_home: Pipeline, tmp_path: Path, bought: str) -> None:
    """Against a list made by hand from the history without it; what was bought or is sold out stays off it."""
    home = copy_home(trained_home, tmp_path / "home")
    known = sorted(home.tables.read("recommendations", DAY)["item_id"].unique())
    (home.settings.home / "stock.txt").write_text("\n".join(known[::2]))
    home = changed(home, recommend={"bought_items": bought, "available_items_file": "stock.txt"})
    make_lists(home, DAY, lambda _: None)
    recommender = Recommender.open(home, DAY)
    allowed = allowed_items(recommender.items, known[::2], None)
    buyers = home.tables.read("interactions", DAY).filter(pl.col("action") == "PURCHASE")["user_id"].unique().sort()
    lists = home.tables.read("recommendations", DAY).sort("rank")
    some = False
    for user in buyers[:2]:
        item = lists.filter(pl.col("user_id") == user)["item_id"][-1]  # one more before it, and it is off the list
        found = explain(home, user, item)
        assert found.notes == []
        history = recommender.events.of_users(np.array([recommender.users[user]], np.int32))
        barred = bought_pairs(history, recommender.actions, home.settings)
        some |= bool(len(barred[0]))
        for influence in found.influences:
            left = history.select(history.item != list(recommender.items.ids).index(influence.item))
            now = recommender.model.recommend(left, recommender.at_ms, 10, forbidden=barred, allowed=allowed).items[0]
            ids = [str(recommender.items.ids[i]) for i in now]
            assert influence.rank_without == (ids.index(item) + 1 if item in ids else None)
    assert some == (bought == "remove")


def test_the_model_is_the_one_that_made_the_list(trained_home: Pipeline, tmp_path: Path) -> None:
    home, wanted = copy_home(trained_home, tmp_path / "home"), row(trained_home, 0)
    roll_back(home, None, "the list was made before")
    found = explain(home, str(wanted["user_id"]), str(wanted["item_id"]))
    assert (found.row, found.notes) == (wanted, [])


def test_an_event_is_of_the_first_day_that_has_it_and_others_had_no_part(
    trained_home: Pipeline, tmp_path: Path
) -> None:
    """An object uploaded again under a later day, and events that the training set withholds."""
    home, wanted = copy_home(trained_home, tmp_path / "home"), row(trained_home, 0)
    user, item = str(wanted["user_id"]), str(wanted["item_id"])
    before = explain(home, user, item).influences
    source = next(each for influence in before for each in influence.sources if each.day < DAY)
    events = home.tables.read("interactions", source.day).filter(
        (pl.col("source_key") == source.key) & (pl.col("record") == source.record) & pl.col("reason").is_null()
    )
    again = events.with_columns(source_key=pl.lit("again.json"))
    withheld = again.with_columns(timestamp=pl.col("timestamp") + pl.duration(milliseconds=1))
    frame = pl.concat([home.tables.read("interactions", DAY), again, withheld])
    home.tables.publish_frame("interactions", DAY, frame, home.tables.info("interactions", DAY) or {})
    assert explain(home, user, item).influences == before


def test_clear_errors(trained_home: Pipeline, tmp_path: Path) -> None:
    wanted = row(trained_home, 0)
    user, item = str(wanted["user_id"]), str(wanted["item_id"])
    with pytest.raises(InputError, match="user nobody has no list of"):
        explain(trained_home, "nobody", item)
    with pytest.raises(
        InputError, match=f"item nothing is not among the 10 items of user {user} on {DAY}; the first are"
    ):
        explain(trained_home, user, "nothing")
    with pytest.raises(InputError, match=rf"has no partition 2031-01-01; there are 2 from {TRAINED[0]} to {DAY}"):
        explain(trained_home, user, item, "2031-01-01")
    home = copy_home(trained_home, tmp_path / "home")
    shutil.rmtree(home.artifacts.need("training_set", DAY).path)
    with pytest.raises(ArtifactError, match=rf"training_set of {DAY}, version .* is not kept any more"):
        explain(home, user, item)
    shutil.rmtree(home.settings.store / "recommendations")
    with pytest.raises(InputError, match="there are no recommendations yet"):
        explain(home, user, item)


def test_what_changed_since_is_said(trained_home: Pipeline, tmp_path: Path) -> None:
    home = changed(copy_home(trained_home, tmp_path / "home"), recommend={"bought_items": "remove"})
    frame = home.tables.read("interactions", DAY)
    info = home.tables.info("interactions", DAY) or {}
    home.tables.publish_frame("interactions", DAY, frame, {**info, "version": "another"})
    bought = frame.filter((pl.col("action") == "PURCHASE") & pl.col("reason").is_null()).select("user_id", "item_id")
    listed = home.tables.read("recommendations", DAY).join(bought, on=["user_id", "item_id"]).row(0, named=True)
    found = explain(home, listed["user_id"], listed["item_id"])
    assert any("made again under today's settings: it is not in the list" in note for note in found.notes)
    other = home.tables.read("recommendations", DAY).filter(pl.col("user_id") == listed["user_id"])
    notes = [note for item in other["item_id"] for note in explain(home, listed["user_id"], item).notes]
    assert any(f"interactions of {DAY} have been made again since" in note for note in notes)


def test_events_whose_object_is_gone_are_said(trained_home: Pipeline, tmp_path: Path) -> None:
    home, wanted = copy_home(trained_home, tmp_path / "home"), row(trained_home, 0)
    user, item = str(wanted["user_id"]), str(wanted["item_id"])
    sources = [source for each in explain(home, user, item).influences for source in each.sources]
    of_day = [source for source in sources if source.day == sources[0].day]
    frame, info = home.tables.read("interactions", of_day[0].day), home.tables.info("interactions", of_day[0].day)
    left = frame.filter(~pl.col("source_key").is_in([source.key for source in of_day]))
    home.tables.publish_frame("interactions", of_day[0].day, left, {**(info or {}), "version": "another"})
    found = explain(home, user, item)
    assert sum(each.events - len(each.sources) for each in found.influences) == len(of_day)
    assert found.notes[0].startswith(f"{len(of_day)} of these events are in no interactions any more")
    assert found.notes[1].startswith(f"interactions of {of_day[0].day} have been made again since")


def test_other_scores_and_a_shorter_window_are_told(trained_home: Pipeline, tmp_path: Path) -> None:
    home, wanted = copy_home(trained_home, tmp_path / "home"), row(trained_home, 0)
    lists, info = home.tables.read("recommendations", DAY), home.tables.info("recommendations", DAY) or {}
    home.tables.publish_frame("recommendations", DAY, lists.with_columns(score=pl.col("score") + 0.01), info)
    manifest = home.artifacts.need("training_set", DAY).path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"window_days": 365', '"window_days": 3'))
    found = explain(home, str(wanted["user_id"]), str(wanted["item_id"]))
    assert found.notes[0].startswith(f"made again under today's settings: rank {wanted['rank']}, score ")
    assert found.window == (DAYS[4], DAY)
    assert f"from {DAYS[4]} to {DAY}" in found.training[0]


def test_objects_that_were_read_again_and_items_that_were_not_looked_at_are_told(
    trained_home: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, wanted = copy_home(trained_home, tmp_path / "home"), row(trained_home, 0)
    user, item = str(wanted["user_id"]), str(wanted["item_id"])
    for day in DAYS[:7]:  # as a kill between the two assets leaves it
        frame, info = home.tables.read("raw_events", day), home.tables.info("raw_events", day) or {}
        home.tables.publish_frame("raw_events", day, frame, {**info, "fingerprint": "another"})
    monkeypatch.setattr("recsys_assets.trust.explain._TRIED_ITEMS", 1)
    found = explain(home, user, item)
    assert found.notes[0].endswith("more items of the history are older than the 1 newest: not left out in turn")
    assert found.notes[1:] == [
        f"objects of {day} have been read again since, not yet its events; the ETags are those read last"
        for day in sorted({source.day for influence in found.influences for source in influence.sources})
    ]


def test_events_with_items_that_the_model_does_not_know_are_counted(trained_home: Pipeline, tmp_path: Path) -> None:
    """A late object renumbered the items: the champion ranks by what it knows."""
    home, wanted = copy_home(trained_home, tmp_path / "home"), row(trained_home, 0)
    user, item = str(wanted["user_id"]), str(wanted["item_id"])
    before = explain(home, user, item)
    frame, info = home.tables.read("interactions", DAYS[0]), home.tables.info("interactions", DAYS[0]) or {}
    late = frame.filter(pl.col("reason").is_null()).head(1).with_columns(user_id=pl.lit(user), item_id=pl.lit("0late"))
    home.tables.publish_frame("interactions", DAYS[0], pl.concat([frame, late]), {**info, "version": "another"})
    merge_day(home, DAY, home.holdouts.current())
    make_lists(home, DAY, lambda _: None)
    found = explain(home, user, item)
    assert found.events == before.events
    assert found.notes == [f"1 more events are with items that the model of {DAY} does not know"]


def test_the_verb(trained_home: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_HOME", "")
    wanted = row(trained_home, 3)
    place = ["--home", str(trained_home.settings.home), "explain", "--day", DAY]
    done = CliRunner().invoke(main, [*place, "--user", str(wanted["user_id"]), "--item", str(wanted["item_id"])])
    assert done.exit_code == 0, done.output
    for part in (
        str(wanted["model_version"]),
        str(wanted["data_version"]),
        f"the list says{wanted['score']:>+27.3f}\n",
        "etag ",
        f"learned from scratch on {TRAINED[0]}, updates since: 1",
        "logs/2025",
    ):
        assert part in done.output
    assert done.output.splitlines() == list(
        lines(explain(trained_home, str(wanted["user_id"]), str(wanted["item_id"]), DAY))
    )
    done = CliRunner().invoke(main, [*place, "--user", "nobody", "--item", "1"])
    assert (done.exit_code, done.output.count("\n")) == (1, 1)
