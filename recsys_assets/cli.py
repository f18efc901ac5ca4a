"""The `recsys` command: thin verbs over the code the graph runs."""

import gc
import os
import shutil
import sys
from collections.abc import Callable
from datetime import date, datetime
from functools import wraps
from pathlib import Path
from typing import Any

import click

from recsys_assets.settings import SettingsError, home_path, load_settings


def explained(command: Callable[..., Any]) -> Callable[..., Any]:
    """Errors a person can mend end in one line and exit code 1, not in a stack trace."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except Exception as error:
            # Imported here: a command that ends well must not wait for Dagster.
            from recsys_assets.launch import RunFailed
            from recsys_assets.pipeline import FILE_ERRORS, InputError
            from recsys_assets.storage.artifacts import ArtifactError
            from recsys_assets.storage.bucket import BucketError

            if isinstance(error, (SettingsError, BucketError, InputError, ArtifactError, RunFailed, FileNotFoundError)):
                raise click.ClickException(str(error)) from error
            if isinstance(error, OSError) and error.errno in FILE_ERRORS:
                raise click.ClickException(f"{error.filename}: {error.strerror}") from error
            raise

    return wrapped


def say(message: str) -> None:
    click.echo(message)


class Verbs(click.Group):
    """Lists its verbs with whole first sentences: click's own cuts them to the line."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, self.commands[name].get_short_help_str(200)) for name in self.list_commands(ctx)]
            )


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--home", type=click.Path(path_type=Path), help="the home to work in; default: $RECSYS_HOME or data/sample"
)
def main(home: Path | None) -> None:
    """From a bucket of behaviour logs to recommendations."""
    if home is not None:  # for this process and every one it starts
        os.environ["RECSYS_HOME"] = str(home.resolve())


@main.command()
@explained
def demo() -> None:
    """Simulate a shop in data/demo, run the whole graph on it, and show what came of it."""
    home = home_path() if "RECSYS_HOME" in os.environ else Path("data/demo").resolve()
    os.environ["RECSYS_HOME"] = str(home)
    # The settings are read when the definitions are imported: the demo writes them first, then imports.
    from recsys_assets import demonstration

    demonstration.run(home, say)


@main.command()
@click.option("--to", "url", required=True, help="bucket URL: s3://BUCKET or file://FOLDER")
@click.option("--first-day", type=click.DateTime(["%Y-%m-%d"]), default="2025-11-01", show_default=True)
@click.option("--days", type=click.IntRange(1), default=14, show_default=True)
@click.option("--users", type=click.IntRange(1), default=1500, show_default=True)
@click.option("--items", type=click.IntRange(1), default=800, show_default=True)
@click.option("--seed", type=int, default=7, show_default=True)
@click.option(
    "--domain", type=click.Choice(["shop", "media"]), default="shop", help="media: PLAY, FINISH, LIKE; text ids only"
)
@explained
def simulate(url: str, first_day: datetime, days: int, users: int, items: int, seed: int, domain: str) -> None:
    """Write logs of a simulated shop, or of a media service, into a bucket."""
    from recsys_assets.sources import simulate as shop

    start = first_day.date()
    kind = shop.MEDIA if domain == "media" else {}
    _write(url, shop.simulate(shop.Shop(seed=seed, users=users, items=items, opened=start, **kind), start, days))


@main.command()
@click.argument("dataset", type=click.Choice(["complete-journey"]))
@click.option("--to", "url", required=True, help="bucket URL: s3://BUCKET or file://FOLDER")
@click.option("--records-per-object", type=click.IntRange(1), default=2000, show_default=True)
@explained
def load(dataset: str, url: str, records_per_object: int) -> None:
    """Write a real retailer's year (The Complete Journey, 1,469,307 purchases) into a bucket as daily logs."""
    from recsys_assets.sources.complete_journey import complete_journey

    _write(url, complete_journey(records_per_object))


def _write(url: str, objects: Any) -> None:
    from recsys_assets.reporting import Progress
    from recsys_assets.storage.bucket import open_bucket

    settings = load_settings()
    target = settings.bucket.model_copy(update={"url": url.rstrip("/")})
    if url.startswith("file://"):  # a bucket cannot be made by writing to it, a folder can
        (settings.home / url.removeprefix("file://")).mkdir(parents=True, exist_ok=True)
    bucket = open_bucket(target, settings.home)
    progress = Progress(lambda line: click.echo(line, err=True), every_seconds=2)
    written = size = 0
    for key, content in objects:
        bucket.put(key, content)
        written, size = written + 1, size + len(content)
        progress(f"{written} objects, {size / 1e6:.0f} MB, now {key}")
    say(f"{written} objects, {size / 1e6:.1f} MB written to {bucket.url}")


@main.command()
@explained
def status() -> None:
    """What is in the bucket, what is materialized, what is missing and why."""
    from recsys_assets.launch import open_instance
    from recsys_assets.pipeline import Pipeline
    from recsys_assets.status import status_lines

    pipeline = Pipeline.open()
    with open_instance(pipeline) as instance:
        for line in status_lines(pipeline, instance):
            say(line)


@main.command()
@click.option("--user", required=True, help="user_id as in the logs")
@click.option("--category", help="only items of this category_id")
@click.option(
    "--available", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="file, an item_id a line"
)
@click.option("--n", "count", type=click.IntRange(1), help="length of the list; default: recommend.count")
@explained
def recommend(user: str, category: str | None, available: Path | None, count: int | None) -> None:
    """The champion's list for a user, from everything the user has done so far."""
    from recsys_assets.pipeline import Pipeline
    from recsys_assets.serving.recommend import Recommender, read_item_list

    pipeline = Pipeline.open()
    recommender = Recommender.open(pipeline)
    entries = recommender.recommend(
        user,
        count or pipeline.settings.recommend.count,
        category=category,
        available=read_item_list(available) if available else None,
    )
    if not recommender.knows(user):
        gone = user in pipeline.tombstones.read()
        why = "was erased" if gone else "is unknown or has no events in the training window"
        click.echo(f"user {user} {why}: popularity decides", err=True)
    if not entries:
        raise click.ClickException("no item is left after the filters")
    say(f"# model of {recommender.model_day} ({recommender.model_version}), history up to {recommender.data_day}")
    for entry in entries:
        say(f"{entry.rank}\t{entry.item_id}\t{entry.category or ''}\t{entry.score:.4f}")


@main.command()
@explained
def preflight() -> None:
    """Why is there nothing, or nothing useful? Checks settings, bucket, events and models, and says what to do."""
    from recsys_assets.status import preflight_findings

    problems = 0
    for ok, line in preflight_findings():
        problems += not ok
        say(("ok       " if ok else "PROBLEM  ") + line)
    if problems:
        sys.exit(1)


@main.command()
@click.argument("job", type=click.Choice(["ingest", "train", "load_tables", "find_audience", "personalize"]))
@click.option("--day", type=click.DateTime(["%Y-%m-%d"]), help="one day")
@click.option("--from", "first", type=click.DateTime(["%Y-%m-%d"]), help="first day of a range")
@click.option("--to", "last", type=click.DateTime(["%Y-%m-%d"]), help="last day of a range")
@click.option("--full-refit", is_flag=True, help="train: learn from scratch")
@click.option(
    "--force",
    is_flag=True,
    help="ingest: read the days again, even one that shrank by more than ingest.max_shrink_share or is empty now",
)
@explained
def run(
    job: str, day: datetime | None, first: datetime | None, last: datetime | None, full_refit: bool, force: bool
) -> None:
    """Run a job for a day or a range of days, in one run that the UI shows too."""
    from recsys_assets.pipeline import Pipeline

    if full_refit and job != "train":
        raise click.UsageError("--full-refit is for train")
    if force and job != "ingest":
        raise click.UsageError("--force is for ingest")
    days = _days(day, first, last)
    pipeline = Pipeline.open()
    if job == "load_tables" and not pipeline.settings.sql.url:
        raise SettingsError("sql.url is not set: there is no database to load tables from (docs/sql.md)")
    if job == "find_audience" and not pipeline.settings.audience.action:
        raise SettingsError("audience.action is not set: there is no offer to find an audience for (docs/audience.md)")
    if job == "personalize" and not pipeline.settings.personalize.url:
        raise SettingsError("personalize.url is not set: there is no Personalize to feed (docs/personalize.md)")
    if job == "ingest" and not force:
        from recsys_assets.ingest.unchanged import days_to_run

        if not (days := days_to_run(pipeline, days, say)):
            return
    # Imported here: where nothing changed there is no run, and no waiting for Dagster.
    from recsys_assets.launch import open_instance, run_job
    from recsys_assets.training.schedules import FULL_REFIT

    forced = {"ops": {"raw_events": {"config": {"force": True}}}}
    with open_instance(pipeline) as instance:
        run_job(job, days, pipeline, instance, config=FULL_REFIT if full_refit else forced if force else None)


@main.command()
@click.option("--model", "models", multiple=True, required=True, help="als, sequence, ...; may be given several times")
@click.option("--day", type=click.DateTime(["%Y-%m-%d"]), help="judge on the days before it; default: the newest")
@click.option("--trials", type=click.IntRange(1), help="trials in all; default: search.trials")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="no new trial then; default: search.seconds")
@explained
def search(models: tuple[str, ...], day: datetime | None, trials: int | None, seconds: float | None) -> None:
    """Search a model's parameters on the days before DAY; the next training reads the best. Stopped, it goes on."""
    from recsys_assets.launch import open_instance, run_job
    from recsys_assets.models import MEMBERS
    from recsys_assets.pipeline import InputError, Pipeline
    from recsys_assets.training.search import asset_name

    if unknown := sorted(set(models) - set(MEMBERS)):
        raise InputError(f"there is no model {', '.join(unknown)}; there are {', '.join(MEMBERS)}")
    pipeline = Pipeline.open()
    if not (days := [_day(day)] if day else pipeline.artifacts.days("training_set")[-1:]):
        raise InputError("there is no training set yet: run the job `train` for a day")
    budget = {"trials": trials, "seconds": seconds}
    with open_instance(pipeline) as instance:
        for name in models:
            config = {"ops": {asset_name(name): {"config": budget}}}
            run_job(f"search_{name}", days, pipeline, instance, config=config)
            found = pipeline.artifacts.need(asset_name(name), days[0]).info
            chosen = ", ".join(f"{option} {value:.6g}" for option, value in found["parameters"].items())
            say(f"{name}: NDCG@10 {found['ndcg']:.4f} on validation, {found['ndcg_before']:.4f} before: {chosen}")


@main.command()
@click.option("--reason", help="only days with records rejected for this reason, such as unknown_action")
@click.option("--day", type=click.DateTime(["%Y-%m-%d"]), help="one day")
@click.option("--from", "first", type=click.DateTime(["%Y-%m-%d"]), help="first day of a range")
@click.option("--to", "last", type=click.DateTime(["%Y-%m-%d"]), help="last day of a range")
@click.option("--force", is_flag=True, help="accept a day that loses more than ingest.max_shrink_share of its events")
@explained
def readmit(
    reason: str | None, day: datetime | None, first: datetime | None, last: datetime | None, force: bool
) -> None:
    """Clean days again from raw_events after rules or settings changed, and say what moved. Fetches nothing."""
    from recsys_assets.ingest.readmit import readmit as clean_again
    from recsys_assets.launch import open_instance
    from recsys_assets.pipeline import Pipeline

    days = _days(day, first, last)
    pipeline = Pipeline.open()
    with open_instance(pipeline) as instance:
        clean_again(pipeline, instance, days, reason, force, say)


def _days(day: datetime | None, first: datetime | None, last: datetime | None) -> list[str]:
    """The days of --day, or of --from and --to."""
    from recsys_assets.days import shift

    if (day is None) == (first is None or last is None) or (day and (first or last)):
        raise click.UsageError("give --day, or --from and --to")
    start, end = _day(day or first), _day(day or last)
    if end < start:
        raise click.UsageError("--to lies before --from")
    days = [start]
    while days[-1] < end:
        days.append(shift(days[-1], 1))
    return days


def _day(moment: datetime | date | None) -> str:
    assert moment is not None
    return moment.date().isoformat() if isinstance(moment, datetime) else moment.isoformat()


@main.command()
@explained
def settings() -> None:
    """All settings of this home: their values and what they mean, as YAML for settings.yaml."""
    from recsys_assets.settings import described

    say(described(load_settings()))


@main.command()
@click.argument("query")
@explained
def sql(query: str) -> None:
    """Ask the warehouse: views interactions, rejected_events, raw_events, metrics, promotions, recommendations, ..."""
    import duckdb

    from recsys_assets.pipeline import InputError, Pipeline

    path = Pipeline.open().warehouse.path
    if not path.exists():
        raise InputError(f"{path} is not there yet: it comes with the first ingest (recsys preflight says how)")
    try:
        with duckdb.connect(path, read_only=True) as connection:
            say(str(connection.sql(query)))
    except duckdb.Error as error:
        raise InputError(str(error)) from error


@main.command()
@explained
def plan() -> None:
    """What late, changed or deleted objects will rebuild, and why, before anything runs."""
    from recsys_assets.launch import open_instance
    from recsys_assets.pipeline import Pipeline
    from recsys_assets.trust.plan import lines
    from recsys_assets.trust.plan import plan as plan_of

    pipeline = Pipeline.open()
    with open_instance(pipeline) as instance:
        for line in lines(plan_of(pipeline, instance)):
            say(line)


@main.command()
@click.option("--day", type=click.DateTime(["%Y-%m-%d"]), required=True)
@click.option("--asset", help="one asset, such as als_model; default: the day's models and lists")
@click.option(
    "--into", type=click.Path(path_type=Path, file_okay=False), help="keep what is rebuilt in this new folder"
)
@explained
def replay(day: datetime, asset: str | None, into: Path | None) -> None:
    """Build a day again from raw_events, in a scratch place, and compare SHA-256 with what was published."""
    from recsys_assets.pipeline import InputError, Pipeline
    from recsys_assets.storage.files import temporary_name
    from recsys_assets.trust import replay as again

    pipeline = Pipeline.open()
    if into is not None and into.exists() and any(into.iterdir()):
        raise InputError(f"{into} is not empty")
    place = into or pipeline.settings.store / temporary_name()  # beside the originals: links, and swept after a kill
    compared = []
    try:
        for each in again.replay(pipeline, _day(day), asset, place, lambda line: click.echo(f"    {line}", err=True)):
            compared.append(each)
            say(f"{'differs' if each.difference else 'equal':<9}{each.asset:<18}{each.day}  {each.version}")
    finally:
        if into is None:
            shutil.rmtree(place, ignore_errors=True)
    equal, text = again.verdict(compared)
    if not equal:
        raise click.ClickException(text)
    say(text)


@main.command()
@click.option("--user", required=True, help="user_id as in the logs")
@click.option("--item", required=True, help="item_id as in the logs")
@click.option("--day", type=click.DateTime(["%Y-%m-%d"]), help="of the lists; default: the newest")
@explained
def explain(user: str, item: str, day: datetime | None) -> None:
    """Why is this item in this user's list? Members, the events that mattered, and their objects in the bucket."""
    from recsys_assets.pipeline import Pipeline
    from recsys_assets.trust.explain import explain as explain_row
    from recsys_assets.trust.explain import lines

    for line in lines(explain_row(Pipeline.open(), user, item, _day(day) if day else None)):
        say(line)


@main.command()
@explained
def champion() -> None:
    """The champion, the ones before it, and why each came, went or was refused."""
    from recsys_assets.pipeline import Pipeline
    from recsys_assets.trust.champion import timeline_lines

    for line in timeline_lines(Pipeline.open()):
        say(line)


@main.command()
@click.option("--to", "to_day", type=click.DateTime(["%Y-%m-%d"]), help="that day's champion; default: the last one")
@click.option("--reason", required=True, help="why; kept in the timeline")
@explained
def rollback(to_day: datetime | None, reason: str) -> None:
    """Go back to an earlier champion and make the newest lists from it."""
    from recsys_assets.launch import open_instance, run_job
    from recsys_assets.pipeline import Pipeline
    from recsys_assets.trust.champion import noted, roll_back

    pipeline = Pipeline.open()
    moved = roll_back(pipeline, _day(to_day) if to_day else None, reason)
    say(f"the champion is the model of {moved['to']['day']} ({moved['to']['version']}), no longer that of")
    say(f"{moved['from']['day']} ({moved['from']['version']}), which will not be promoted again by itself")
    with open_instance(pipeline) as instance:
        noted(instance, moved, reason)
        if made := pipeline.tables.days("recommendations"):
            run_job("lists", [made[-1]], pipeline, instance)


@main.command()
@click.option("--dry-run", is_flag=True, help="say what would be pruned, and delete nothing")
@explained
def prune(dry_run: bool) -> None:
    """Delete versions of training sets and models that retention does not keep, and what killed runs left."""
    from recsys_assets.pipeline import Pipeline
    from recsys_assets.trust.retention import prune as prune_store

    verdicts, gained = prune_store(Pipeline.open(), dry_run)
    for verdict in verdicts:
        why = verdict.stays or ("would be pruned" if dry_run else "pruned")
        mark, made = "keep " if verdict.stays else "prune", verdict.made
        say(f"{mark}  {made.asset:<17}{made.day}  {made.version}  {why}")
    pruned = sum(verdict.stays is None for verdict in verdicts)
    say(f"{len(verdicts) - pruned} versions stay, {pruned} {'would go' if dry_run else 'went'}: {gained / 1e6:.1f} MB")


@main.command()
@click.option("--user", help="user_id as in the logs; without it, earlier erasures are looked after again")
@click.option("--delete-source", is_flag=True, help="take the user's records out of the bucket's objects too")
@explained
def erase(user: str | None, delete_source: bool) -> None:
    """Erase a user from everything in the home, for good, and write a receipt."""
    from recsys_assets.launch import open_instance, run_job
    from recsys_assets.pipeline import Pipeline
    from recsys_assets.trust import erasure

    pipeline = Pipeline.open()
    with open_instance(pipeline) as instance:
        receipts = erasure.erase(
            pipeline,
            user,
            delete_source,
            lambda job, days, config: run_job(job, days, pipeline, instance, None, config),
            say,
        )
    erasure.finish(pipeline, user, receipts, say)
    for receipt in receipts:
        if not receipt.content["logs_searched"]:
            say("Dagster's logs were not searched: that takes the id (recsys erase --user)")
        if listed := [each for each in receipt.content["source"] if each["what"] == "listed"]:
            say(f"{len(listed)} objects of the bucket hold the user's records still (--delete-source takes them out)")
        say(f"receipt: {receipt.path}")
    if refused := [each for receipt in receipts for each in receipt.content["source"] if "refused" in each["what"]]:
        lines = "\n".join(f"{each['key']}: {each['what']}" for each in refused)
        raise click.ClickException(f"{len(refused)} objects of the bucket were not changed:\n{lines}")


@main.command("redraw-holdout")
@click.option(
    "--day", type=click.DateTime(["%Y-%m-%d"]), required=True, help="draw from the interactions up to this day"
)
@click.option("--reason", required=True, help="why; kept with the hold-out")
@explained
def redraw_holdout(day: datetime, reason: str) -> None:
    """Draw a new version of the frozen validation and test hold-outs. Figures on the old version end here."""
    from recsys_assets.pipeline import InputError, Pipeline

    pipeline = Pipeline.open()
    days = [each for each in pipeline.tables.days("interactions") if each <= _day(day)]
    before = pipeline.holdouts.current()
    drawn = pipeline.holdouts.ensure(
        [pipeline.tables.path("interactions", each) for each in days],
        _day(day),
        pipeline.settings.holdout,
        pipeline.settings.training.seed,
        redraw=reason,
    )
    if drawn is None or (before is not None and drawn.version == before.version):
        raise InputError("too few users for a hold-out up to this day; see holdout.min_users and holdout.users_share")
    say(f"hold-out version {drawn.version}: {drawn.info['users']} users, {drawn.info['events']} events")
    say("training sets are built with it from their next materialization on")


@main.command()
@click.option("--port", type=click.IntRange(1, 65535), default=3000, show_default=True)
@explained
def ui(port: int) -> None:
    """Dagster's UI and daemon on loopback, for this home."""
    from recsys_assets.alive import serves
    from recsys_assets.launch import dagster_home, open_instance
    from recsys_assets.pipeline import Pipeline

    home = load_settings().home
    folder = dagster_home(home)
    serves(home, port)
    open_instance(Pipeline.open()).dispose()  # runs that a power cut ended must not seem to be at work
    workspace = Path(__file__).resolve().parent.parent / "workspace.yaml"
    dagster = shutil.which("dagster", path=str(Path(sys.executable).parent)) or "dagster"
    say(f"Home {home}\nOpening http://127.0.0.1:{port} (Ctrl-C ends it)")
    environment = os.environ | {"DAGSTER_HOME": str(folder), "RECSYS_HOME": str(home)}
    # `dagster dev` works on, but says on every start that `dg dev` supersedes it, which needs another package.
    hush = "ignore:Function `dev_command` is superseded"
    environment["PYTHONWARNINGS"] = ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), hush)))
    command = [dagster, "dev", "-w", str(workspace), "-h", "127.0.0.1", "-p", str(port)]
    os.execve(dagster, command, environment)


def entry() -> None:
    """The console script: `main`, then an end without the interpreter's own tidying up.

    With torch loaded in the same process DuckDB 2.0's bindings print a page of "nanobind: leaked instances" while the
    interpreter takes itself apart, below the demo's last lines. Everything is written and closed by then.
    """
    code: Any = 0
    gc.set_threshold(100_000)  # what imports make stays: a tenth of a short command's time went into looking through it
    try:
        main()
    except SystemExit as end:
        code = end.code
    if isinstance(code, str):
        print(code, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    entry()
