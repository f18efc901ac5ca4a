"""`recsys demo`: a simulated shop goes through the whole graph, then a late file arrives and a list changes."""

import shutil
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import dagster as dg
import polars as pl
import yaml

from recsys_assets.launch import open_instance, run_job
from recsys_assets.pipeline import InputError, Pipeline
from recsys_assets.serving.recommend import Recommendation, Recommender
from recsys_assets.sources.simulate import Shop, late_events, simulate

DAYS = 14
MARKER = "# Written by `recsys demo`, which starts by deleting this folder.\n"

Say = Callable[[str], None]


class DemoError(InputError):
    """The demo cannot run; the message says why."""


def run(home: Path, say: Say) -> None:
    """Runs the demo in `home`, which is emptied first if an earlier demo made it.

    Raises:
        DemoError: the folder holds something else.
    """
    started = time.monotonic()
    pipeline, shop, last = _open_shop(home, say)

    first = last - timedelta(days=DAYS - 1)
    say(f"\n1. {DAYS} days of logs, {first} to {last}")
    records = 0
    for key, content in simulate(shop, first, DAYS):
        pipeline.bucket.put(key, content)
        records += content.count(b'"timestamp"')
    say(f"   {records:,} records written to {pipeline.bucket.url}")

    instance = open_instance(pipeline)
    days = [(first + timedelta(days=n)).isoformat() for n in range(DAYS)]
    say("\n2. Backfill of raw_events and interactions: one run for all days")
    run_job("ingest", days, pipeline, instance)

    say(f"\n3. Train, measure, promote and recommend for {last}")
    run_job("train", [days[-1]], pipeline, instance)
    say(f"\n4. Measured on {last}, which the measured models had not seen (NDCG@10, 95 % interval)")
    for line in metrics_lines(pipeline, days[-1]):
        say(f"   {line}")

    user = _somebody(pipeline, days[-1])
    before = Recommender.open(pipeline).recommend(user, 10)
    say(f"\n5. User {user} would be shown")
    _say_list(before, set(), say)

    key = f"logs/{last:%Y/%m/%d}/late-upload.json"
    pipeline.bucket.put(key, late_events(shop, last, user))
    say(f"\n6. A late file arrives: {key}")
    say("   it holds one more session of this user, in a category new to them. The sensor looks:")
    requests = _tick(pipeline, instance, say)
    for request in requests:
        assert request.partition_key is not None
        run_job("ingest", [request.partition_key], pipeline, instance, tags=dict(request.tags))
    if _tick(pipeline, instance, say):
        raise DemoError("the sensor asked again for a day that has just been read")
    run_job("train", [days[-1]], pipeline, instance)

    after = Recommender.open(pipeline).recommend(user, 10)
    old = {entry.item_id for entry in before}
    new = [entry for entry in after if entry.item_id not in old]
    say(f"\n7. User {user} is shown now (+ marks what is new)")
    _say_list(after, {entry.item_id for entry in new}, say)
    if not new:
        raise DemoError("the list did not change; please report this")
    say(
        f"\nThe list changed: {len(new)} of {len(after)} items are new. "
        f"{time.monotonic() - started:.0f} seconds in all."
    )
    say(
        "\nWhat to look at next:\n"
        "  make ui                                   the same shop in Dagster's UI: Catalog, Lineage, Runs\n"
        f"  RECSYS_HOME={_shown(home)} .venv/bin/recsys status      what is in the bucket, what is materialized\n"
        f"  RECSYS_HOME={_shown(home)} .venv/bin/recsys recommend --user {user}\n"
        f"  RECSYS_HOME={_shown(home)} .venv/bin/recsys sql 'FROM rejected_events'    why records were refused"
    )


def _open_shop(home: Path, say: Say) -> tuple[Pipeline, Shop, date]:
    settings = home / "settings.yaml"
    if home.exists() and any(home.iterdir()):
        if not settings.exists() or not settings.read_text(encoding="utf-8").startswith(MARKER):
            raise DemoError(f"{home} holds something that no demo made; choose another folder with --home")
        shutil.rmtree(home)
    (home / "bucket").mkdir(parents=True)
    last = datetime.now(UTC).date() - timedelta(days=1)
    first = last - timedelta(days=DAYS - 1)
    values = {
        "bucket": {"url": "file://bucket"},
        "calendar": {"first_day": first.isoformat(), "time_zone": "UTC"},
        "ingest": {"quiet_minutes": 0},
        "recommend": {"bought_items": "keep"},
        "sequence": {"epochs": 8},
        "als": {"factors": 32},
    }
    settings.write_text(MARKER + yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    say(f"A simulated shop in {_shown(home)}")
    return Pipeline.open(home), Shop(opened=first), last


def metrics_lines(pipeline: Pipeline, day: str) -> list[str]:
    """The next-day NDCG@10 of each model, and the hybrid's paired difference to it."""
    frame = pipeline.tables.read("evaluation", day).filter((pl.col("split") == "next_day") & (pl.col("k") == 10))
    lines = []
    values = frame.filter(pl.col("metric") == "ndcg").sort("value", descending=True)
    gains = {row["model"]: row for row in frame.filter(pl.col("metric") == "hybrid_minus_this").to_dicts()}
    for row in values.to_dicts():
        text = f"{row['model']:<16} {row['value']:.4f}  [{row['low']:.4f}, {row['high']:.4f}]"
        if (gain := gains.get(row["model"])) is not None:
            text += f"   hybrid is {gain['value']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}]"
        lines.append(text)
    return lines


def _somebody(pipeline: Pipeline, day: str) -> str:
    """A user with an average history: neither new nor the busiest."""
    counts = (
        pl.scan_parquet(pipeline.artifacts.need("training_set", day).path / "events.parquet")
        .group_by("user")
        .len()
        .sort("len", "user")
        .collect()
    )
    users = pl.read_parquet(pipeline.artifacts.need("training_set", day).path / "users.parquet")["user_id"]
    return str(users[int(counts["user"][len(counts) // 2])])


def _tick(pipeline: Pipeline, instance: dg.DagsterInstance, say: Say) -> list[dg.RunRequest]:
    """One real evaluation of the sensor, as the daemon would make it."""
    from recsys_assets.definitions import defs
    from recsys_assets.ingest.sensors import new_log_prefixes

    with dg.build_sensor_context(
        instance=instance, resources={"pipeline": pipeline}, repository_def=defs.get_repository_def()
    ) as context:
        tick = new_log_prefixes.evaluate_tick(context)
    requests = list(tick.run_requests or [])
    for request in requests:
        say(f"   the sensor asks for {request.job_name or 'ingest'} of {request.partition_key}")
    if not requests:
        say(f"   the sensor looks again and asks for nothing: {tick.skip_message}")
    return requests


def _say_list(entries: list[Recommendation], marked: set[str], say: Say) -> None:
    for entry in entries:
        mark = "+" if entry.item_id in marked else " "
        say(f"  {mark}{entry.rank:>3}. item {entry.item_id:<6} category {entry.category or '-':<4} {entry.score:.3f}")


def _shown(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
