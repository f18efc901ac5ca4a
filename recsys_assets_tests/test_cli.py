import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click import ClickException
from click.testing import CliRunner, Result

from recsys_assets.cli import explained, main
from recsys_assets.demonstration import MARKER, DemoError, _open_shop
from recsys_assets.launch import RunFailed, dagster_home, open_instance, run_job
from recsys_assets.pipeline import InputError, Pipeline
from recsys_assets.settings import SettingsError
from recsys_assets.storage.artifacts import ArtifactError
from recsys_assets.storage.bucket import BucketError
from recsys_assets_tests.graph import DAYS, INGEST, TRAINED, copy_home, fill, make_home, run

DAY = TRAINED[-1]


@pytest.fixture
def recsys(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs the command as a person would; errors nobody explained come through."""
    for name in ("RECSYS_HOME", "DAGSTER_HOME"):  # the command sets them for the processes it starts
        monkeypatch.setenv(name, os.environ.get(name, ""))

    def invoke(home: Path | None, *arguments: str) -> Result:
        before = ["--home", str(home)] if home else []
        return CliRunner().invoke(main, [*before, *arguments], catch_exceptions=False)

    return invoke


@pytest.mark.parametrize("kind", [SettingsError, BucketError, InputError, ArtifactError, RunFailed, FileNotFoundError])
def test_what_a_person_can_mend_is_one_line(kind: type[Exception]) -> None:
    def fails(error: Exception) -> None:
        raise error

    with pytest.raises(ClickException, match=r"^so it is$"):
        explained(fails)(kind("so it is"))
    with pytest.raises(ClickException, match=r"^shop/dagster: Read-only file system$"):
        explained(fails)(OSError(errno.EROFS, "Read-only file system", "shop/dagster"))
    with pytest.raises(KeyError):
        explained(fails)(KeyError("a mistake of ours"))


VERBS = {"demo", "simulate", "load", "status", "recommend", "preflight", "run", "redraw-holdout", "ui"}


@pytest.mark.parametrize("verb", sorted(main.commands))
def test_every_verb_explains_itself(recsys: Callable[..., Result], verb: str) -> None:
    done = recsys(None, verb, "--help")
    assert done.exit_code == 0
    assert len(done.output.splitlines()) > 4


def test_the_verbs_are_listed(recsys: Callable[..., Result]) -> None:
    done = recsys(None, "-h")
    assert done.exit_code == 0
    assert set(main.commands) >= VERBS
    for verb in main.commands:
        assert verb in done.output
    assert "models, and says what to do." in " ".join(done.output.split()), "what a verb does is not cut to the line"


def test_recommend(recsys: Callable[..., Result], trained_home: Pipeline, tmp_path: Path) -> None:
    home = trained_home.settings.home
    frame = trained_home.tables.read("recommendations", DAY)
    user = frame["user_id"][0]
    done = recsys(home, "recommend", "--user", user, "--n", "5")
    assert done.exit_code == 0
    rows = [line.split("\t") for line in done.stdout.splitlines()[1:]]
    assert [row[0] for row in rows] == ["1", "2", "3", "4", "5"]
    assert [row[1] for row in rows] == frame["item_id"][:5].to_list()
    assert f"# model of {DAY}" in done.stdout

    stock = tmp_path / "stock.txt"
    stock.write_text("\n".join(row[1] for row in rows[1:3]))
    done = recsys(home, "recommend", "--user", user, "--available", str(stock))
    # Scores are normalised over what is available, so that two items that are close may change places.
    assert {line.split("\t")[1] for line in done.stdout.splitlines()[1:]} == {row[1] for row in rows[1:3]}
    assert len(done.stdout.splitlines()) == 3

    done = recsys(home, "recommend", "--user", user, "--category", rows[0][2], "--n", "3")
    assert {line.split("\t")[2] for line in done.stdout.splitlines()[1:]} == {rows[0][2]}

    done = recsys(home, "recommend", "--user", "nobody at all")
    assert done.exit_code == 0
    assert "user nobody at all is unknown" in done.stderr
    assert len(done.stdout.splitlines()) == 11

    done = recsys(home, "recommend", "--user", user, "--category", "no such")
    assert (done.exit_code, done.stderr) == (1, "Error: no item has category 'no such'\n")

    stock.write_text("not-an-item")
    done = recsys(home, "recommend", "--user", user, "--available", str(stock))
    assert (done.exit_code, done.stderr) == (1, "Error: no item is left after the filters\n")


def test_recommend_before_anything_is_trained(recsys: Callable[..., Result], ingested_home: Pipeline) -> None:
    done = recsys(ingested_home.settings.home, "recommend", "--user", "1")
    assert done.exit_code == 1
    assert "there is no champion yet" in done.stderr


def test_status(recsys: Callable[..., Result], trained_home: Pipeline, tmp_path: Path) -> None:
    pipeline = copy_home(trained_home, tmp_path / "home")
    with open_instance(pipeline) as instance:
        run(pipeline, INGEST, DAYS[5:7], instance)
    pipeline.bucket.put("logs/2025/11/07/late.json", b"[]")
    pipeline.bucket.put("logs/2025/11/09/new.json", b"[]")
    pipeline.bucket.put("logs/1999/01/01/old.json", b"[]")
    done = recsys(pipeline.settings.home, "status")
    assert done.exit_code == 0
    row = {line.split()[0]: line for line in done.output.splitlines() if line[:2] == "20"}
    assert "up to date, trained" in row[DAYS[5]]
    assert "outdated: objects were added, changed or deleted since, trained" in row[DAYS[6]]
    assert "missing: not ingested yet" in row["2025-11-09"]
    assert f"champion  the hybrid model of {DAY}" in done.output
    assert "hold-out  version 1" in done.output
    assert f"lists     newest of {DAY}" in done.output
    assert "1999-01-01 outside the calendar" in done.output
    kept = (pipeline.tables.info("interactions", DAYS[5]) or {})["counts"]["kept"]
    assert f"{kept:,}" in row[DAYS[5]]


def test_status_of_nothing(recsys: Callable[..., Result], tmp_path: Path) -> None:
    make_home(tmp_path)
    done = recsys(tmp_path, "status")
    assert done.exit_code == 0
    assert "no day has objects or interactions; `recsys preflight` says why" in done.output
    done = recsys(tmp_path / "nowhere", "status")
    assert done.exit_code == 1
    assert "this folder does not exist; create it or set bucket.url" in done.stderr


def no_bucket(pipeline: Pipeline) -> None:
    (pipeline.settings.home / "bucket").rmdir()


def empty_bucket(pipeline: Pipeline) -> None:
    pass


def other_names(pipeline: Pipeline) -> None:
    pipeline.bucket.put("logs/2025/11/01/a.csv", b"a,b")


def outside(pipeline: Pipeline) -> None:
    pipeline.bucket.put("logs/2024/01/02/a.json", b"[]")


def not_ingested(pipeline: Pipeline) -> None:
    fill(pipeline, DAYS[:2])


def unmapped(pipeline: Pipeline) -> None:
    record = {"timestamp": 1761991200000, "user_id": "u", "item_id": "i", "action": "WATCH"}
    pipeline.bucket.put("logs/2025/11/01/a.json", json.dumps([record] * 3).encode())
    run(pipeline, INGEST, DAYS[:1])


def half_unmapped(pipeline: Pipeline) -> None:
    records = [
        {"timestamp": 1761991200000 + n, "user_id": "u", "item_id": "i", "action": "WATCH" if n % 2 else "VIEW"}
        for n in range(10)
    ]
    pipeline.bucket.put("logs/2025/11/01/a.json", json.dumps(records).encode())
    run(pipeline, INGEST, DAYS[:1])


def not_trained(pipeline: Pipeline) -> None:
    fill(pipeline, DAYS[:2])
    run(pipeline, INGEST, DAYS[:1])


def wrong_setting(pipeline: Pipeline) -> None:
    (pipeline.settings.home / "settings.yaml").write_text("bucket:\n  ulr: x\n")


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (no_bucket, ["this folder does not exist"]),
        (empty_bucket, ["nothing lies below", "check bucket.url and bucket.prefix"]),
        (other_names, ["has objects, but none is read: names must end in .json"]),
        (outside, ["lie outside the calendar", "set calendar.first_day to 2024-01-02"]),
        (not_ingested, ["no interactions yet: recsys run ingest --from 2025-11-01 --to 2025-11-02"]),
        (unmapped, ["no event was kept on 1 days; rejected: unknown_action 3"]),
        (half_unmapped, ["50% of the records were rejected", "5 records have an action that `actions` does not name"]),
        (
            not_trained,
            [
                "no interactions for 2025-11-02: recsys run ingest --from 2025-11-02",
                "nothing trained yet: recsys run train --day 2025-11-01",
            ],
        ),
        (wrong_setting, ["bucket.ulr", "did you mean 'url'"]),
    ],
)
def test_preflight_names_the_problem(
    recsys: Callable[..., Result], tmp_path: Path, prepare: Callable[[Pipeline], None], said: list[str]
) -> None:
    prepare(make_home(tmp_path))
    done = recsys(tmp_path, "preflight")
    assert done.exit_code == 1
    for words in said:
        assert words in done.output


def test_preflight_of_a_trained_home(recsys: Callable[..., Result], trained_home: Pipeline) -> None:
    done = recsys(trained_home.settings.home, "preflight")
    assert f"ok       champion of {DAY}" in done.output
    assert "interactions go up to 2025-11-08, training to 2025-11-07: recsys run train --day 2025-11-08" in done.output
    assert done.exit_code == 1


def test_run_a_day_then_a_range(recsys: Callable[..., Result], tmp_path: Path) -> None:
    pipeline = make_home(tmp_path)
    fill(pipeline, DAYS[:3])
    assert recsys(tmp_path, "run", "ingest", "--day", DAYS[0]).exit_code == 0
    assert recsys(tmp_path, "run", "ingest", "--from", DAYS[0], "--to", DAYS[2]).exit_code == 0
    assert pipeline.tables.days("interactions") == DAYS[:3]
    done = recsys(tmp_path, "status")
    assert done.output.count("up to date") == 3, "the runs are on the home's own instance"
    done = recsys(tmp_path, "run", "ingest", "--from", DAYS[0], "--to", DAYS[2])
    assert (done.exit_code, done.output) == (0, "3 of 3 days are unchanged: the same objects, the same rules\n")


def test_run_accepts_a_day_that_was_emptied_if_forced(recsys: Callable[..., Result], tmp_path: Path) -> None:
    pipeline = make_home(tmp_path)
    fill(pipeline, DAYS[:1])
    day = ["run", "ingest", "--day", DAYS[0]]
    assert recsys(tmp_path, *day).exit_code == 0
    for obj in list(pipeline.bucket.walk(f"logs/{DAYS[0].replace('-', '/')}/")):
        pipeline.bucket.delete(obj.key)
    pipeline.bucket.put("logs/2025/11/02/a.json", b"[]")
    refused = recsys(tmp_path, *day)
    assert refused.exit_code == 1
    assert f"recsys run ingest --day {DAYS[0]} --force" in refused.stderr
    assert recsys(tmp_path, *day, "--force").exit_code == 0
    assert not len(pipeline.tables.read("interactions", DAYS[0]))


@pytest.mark.parametrize(("job", "option"), [("train", "--force"), ("ingest", "--full-refit")])
def test_run_refuses_an_option_of_another_job(
    recsys: Callable[..., Result], tmp_path: Path, job: str, option: str
) -> None:
    make_home(tmp_path)
    done = recsys(tmp_path, "run", job, "--day", DAYS[0], option)
    assert done.exit_code == 2
    assert f"{option} is for" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--from", DAYS[0]],
        ["--to", DAYS[0]],
        ["--day", DAYS[0], "--from", DAYS[0], "--to", DAYS[1]],
        ["--from", DAYS[1], "--to", DAYS[0]],
        ["--day", "tomorrow"],
    ],
)
def test_run_refuses_half_a_range(recsys: Callable[..., Result], tmp_path: Path, arguments: list[str]) -> None:
    make_home(tmp_path)
    assert recsys(tmp_path, "run", "ingest", *arguments).exit_code == 2


@pytest.mark.parametrize("arguments", [["--day", "2020-01-01"], ["--from", "2025-10-30", "--to", "2025-11-02"]])
def test_run_outside_the_calendar(recsys: Callable[..., Result], tmp_path: Path, arguments: list[str]) -> None:
    make_home(tmp_path)
    done = recsys(tmp_path, "run", "ingest", *arguments)
    assert done.exit_code == 1
    assert f"{arguments[1]} lies outside the calendar: see calendar.first_day" in done.stderr


def test_a_failed_run_says_what_the_step_said(recsys: Callable[..., Result], tmp_path: Path) -> None:
    make_home(tmp_path)
    done = recsys(tmp_path, "run", "ingest", "--day", DAYS[0])
    assert done.exit_code == 1
    assert "Error: raw_events: Nothing lies below file://" in done.stderr


def test_a_damaged_partition_is_named(trained_home: Pipeline, tmp_path: Path) -> None:
    pipeline = copy_home(trained_home, tmp_path / "home")
    folder = pipeline.artifacts.need("training_set", DAY).path
    pipeline.tables.path("interactions", DAYS[2]).write_bytes(b"no Parquet")
    (folder.parent / "current.json").unlink()
    with (
        open_instance(pipeline) as instance,
        pytest.raises(RunFailed, match=r"^training_set: .*2025-11-03\.parquet is not the Par"),
    ):
        run_job("train", [DAY], pipeline, instance)


def test_simulate_writes_logs_that_can_be_ingested(recsys: Callable[..., Result], tmp_path: Path) -> None:
    pipeline = make_home(tmp_path)
    done = recsys(
        tmp_path, "simulate", "--to", "file://bucket", "--days", "2", "--users", "20", "--items", "10", "--seed", "1"
    )
    assert done.exit_code == 0
    assert "48 objects" in done.output
    run(pipeline, INGEST, DAYS[:2])
    assert (pipeline.tables.info("interactions", DAYS[0]) or {})["counts"]["kept"] > 50
    done = recsys(tmp_path, "simulate", "--to", "nowhere", "--days", "1")
    assert done.exit_code == 1
    assert "s3://" in done.stderr


def test_sql_reads_the_views(recsys: Callable[..., Result], ingested_home: Pipeline, tmp_path: Path) -> None:
    home = copy_home(ingested_home, tmp_path / "home").settings.home  # its views still name the original's files
    kept = sum(ingested_home.tables.info("interactions", day)["counts"]["kept"] for day in DAYS)
    done = recsys(home, "sql", "SELECT 'kept ' || count(*) AS answer FROM interactions")
    assert done.exit_code == 0
    assert f"kept {kept}" in done.output
    done = recsys(home, "sql", "DROP VIEW interactions")
    assert done.exit_code == 1
    assert "read-only" in done.stderr
    done = recsys(tmp_path / "nowhere", "sql", "SELECT 1")
    assert done.exit_code == 1
    assert "is not there yet" in done.stderr


def test_redraw_the_holdout(recsys: Callable[..., Result], trained_home: Pipeline, tmp_path: Path) -> None:
    pipeline = copy_home(trained_home, tmp_path / "home")
    assert recsys(pipeline.settings.home, "redraw-holdout", "--day", DAYS[7]).exit_code == 2, "a reason is needed"
    done = recsys(pipeline.settings.home, "redraw-holdout", "--day", DAYS[7], "--reason", "new season")
    assert done.exit_code == 0
    assert "hold-out version 2" in done.output
    current = pipeline.holdouts.current()
    assert current is not None
    assert current.info["reason"] == "new season"
    done = recsys(pipeline.settings.home, "redraw-holdout", "--day", DAYS[0], "--reason", "too early")
    assert done.exit_code == 1
    assert "too few users" in done.stderr


def test_a_persons_own_dagster_yaml_stays(tmp_path: Path) -> None:
    folder = dagster_home(tmp_path)
    assert "telemetry" in (folder / "dagster.yaml").read_text()
    (folder / "dagster.yaml").write_text("telemetry:\n  enabled: true\n")
    dagster_home(tmp_path)
    assert "enabled: true" in (folder / "dagster.yaml").read_text()


def test_the_demo_deletes_nothing_but_an_earlier_demo(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DemoError, match="holds something that no demo made"):
        _open_shop(tmp_path, print)
    (tmp_path / "settings.yaml").write_text("bucket: {}\n")
    with pytest.raises(DemoError, match="holds something that no demo made"):
        _open_shop(tmp_path, print)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    (tmp_path / "settings.yaml").write_text(MARKER)
    lines: list[Any] = []
    pipeline, shop, last = _open_shop(tmp_path, lines.append)
    assert not (tmp_path / "thesis.txt").exists()
    assert pipeline.settings.calendar.first_day == shop.opened
    assert (last - shop.opened).days == 13
