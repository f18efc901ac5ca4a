"""How good the lists are, through the models, weights and metrics that the assets use.

    python -m benchmarks.quality beauty|toys [--data DIR] [--seeds 3] [--models als sequence ...]
    python -m benchmarks.quality complete-journey [--days 14]
    python -m benchmarks.quality file --data FILE

Beauty, Toys, and any text file of the same shape (one user a line, items in time order): strict leave-one-out. Members
learn from s[:-2], the weights of the hybrid are learned by predicting s[-2] from s[:-2], and the question is s[-1]
after s[:-1]. Full ranking, seen items masked, item positions (and with them ties) permuted by the seed; one step counts
as one day. The value is the mean of the seeds.

The Complete Journey, and any table of events (Parquet or CSV: user_id, item_id, action, timestamp and, if known,
category_id and price): next day, over --days consecutive days, pooled over users' days. Members are fitted once on what
precedes the first day and then updated day by day as the assets do; weights come from the days before the first. Twice:
with repeats (SET) and with new items only (SET-new). Intervals are over users, each with all their days.

Settings can be given by environment (RECSYS_SEQUENCE__EPOCHS=5), as everywhere.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import sets
from benchmarks.lines import emit, progress
from recsys_assets.days import day_start_ms, shift
from recsys_assets.evaluation.measure import HYBRID, MAIN_CUTOFF, POPULAR, model_lists, popular_lists
from recsys_assets.evaluation.metrics import Array, hits_matrix, paired_bootstrap, per_user
from recsys_assets.evaluation.tasks import Task, prediction_task
from recsys_assets.models import MEMBERS
from recsys_assets.models.base import Log, Member
from recsys_assets.models.hybrid import HybridModel
from recsys_assets.models.ranker import Ranker
from recsys_assets.settings import Settings, load_settings
from recsys_assets.training.blend import learn_ranking, validation_tasks
from recsys_assets.training.events import DAY_MS, Ints, TrainingSet
from recsys_assets.training.members import CHEAP_MEMBERS, States, go_on, refit, validation_days

# Two weeks before Christmas Eve, chosen before any figure was looked at: late in the year, every day with trade.
LAST_DAY = {sets.COMPLETE_JOURNEY: "2017-12-24"}


def make_settings(**changes: dict[str, Any]) -> Settings:
    """The defaults, what the environment sets, and `changes` by section, as in {"recommend": {"count": 10}}."""
    with tempfile.TemporaryDirectory() as home:  # an empty one: no settings.yaml of the working directory counts
        settings = load_settings(home, {k: v for k, v in os.environ.items() if k != "RECSYS_HOME"})
    for section, values in changes.items():
        made = getattr(settings, section).model_copy(update=values)
        settings = settings.model_copy(update={section: made})
    return settings


def changed_settings(settings: Settings) -> dict[str, Any]:
    """The model settings that differ from the defaults."""
    sections = (*MEMBERS, "ranker", "training", "recommend")
    return {
        f"{section}.{name}": value
        for section in sections
        for name, value in getattr(settings, section).model_dump().items()
        if value != getattr(Settings(home=settings.home), section).model_dump()[name]
    }


class Pool:
    """Per-user values of every model, run after run (a run: a seed, a day)."""

    def __init__(self) -> None:
        self.users: list[Ints] = []
        self.values: dict[tuple[str, str], list[Array]] = defaultdict(list)

    def add(self, lists: dict[str, Ints], task: Task) -> None:
        self.users.append(task.users)
        for model, found in lists.items():
            hits, counts = hits_matrix(found, task.target_rows, task.target_items, task.history.n_items)
            metrics = per_user(hits, counts, MAIN_CUTOFF)
            self.values[model, "ndcg"].append(metrics.ndcg)
            self.values[model, "recall"].append(metrics.recall)

    def models(self) -> list[str]:
        return list(dict.fromkeys(model for model, _ in self.values))

    def mean(self, model: str, metric: str) -> float:
        return float(np.concatenate(self.values[model, metric]).mean())

    def runs(self, model: str, metric: str) -> list[float]:
        return [float(values.mean()) for values in self.values[model, metric]]

    def minus(self, model: str, other: str, relative: bool = False) -> dict[str, float]:
        """The mean difference of NDCG@10 and its 95 % interval, resampling users with all that is theirs: the days of
        one user are no independent witnesses."""
        one, two = (np.concatenate(self.values[name, "ndcg"]) for name in (model, other))
        _, user = np.unique(np.concatenate(self.users), return_inverse=True)
        found = paired_bootstrap(np.bincount(user, one - two).astype(np.float64))
        scale = (user.max() + 1) / len(user) / (two.mean() if relative else 1)
        return {name: round(value * scale, 5) for name, value in vars(found).items()}


def measure(
    members: dict[str, Member],
    weights: dict[str, float],
    ranker: Ranker | None,
    task: Task,
    data: TrainingSet,
    k: int,
) -> dict[str, Ints]:
    """int32[b, 10] lists of the hybrid, of each member and of seven days' popularity."""
    ranker = ranker.at(data.before(task.at_ms)) if ranker is not None else None
    lists = model_lists(HybridModel(members, weights, k, ranker), task, MAIN_CUTOFF)
    lists[POPULAR] = popular_lists(data.events, task, MAIN_CUTOFF)
    return lists


def leave_one_out(
    sequences: Sequence[Sequence[str]],
    categories: dict[str, str],
    names: Sequence[str],
    seed: int,
    settings: Settings,
    log: Log,
) -> tuple[dict[str, Ints], Task, dict[str, float], dict[str, float]]:
    """Lists for s[-1] by model, the task they answer, the weights, and seconds by member (`weights` among them)."""
    settings = settings.model_copy(update={"training": settings.training.model_copy(update={"seed": seed})})
    found = sets.leave_one_out(sequences, categories, seed, settings)
    known = found.data.before(found.validation_ms)
    members, seconds = {}, {}
    for name in names:
        started = time.monotonic()
        members[name] = MEMBERS[name].fit(known, settings, log)
        seconds[name] = time.monotonic() - started
    started = time.monotonic()
    validation = prediction_task(found.data, found.validation_ms, found.test_ms, settings)
    earlier = [found.validation_ms - back * DAY_MS for back in range(settings.ranker.learn_days, 0, -1)]
    lessons = [prediction_task(known, at_ms, at_ms + DAY_MS, settings) for at_ms in earlier]
    lessons = [task for task in lessons if len(task)]
    weights, ranker = learn_ranking(members, found.data, lessons, [validation], settings, log)
    seconds["weights"] = time.monotonic() - started
    task = prediction_task(found.data, found.test_ms, found.data.end_ms, settings)
    return (
        measure(members, weights, ranker, task, found.data.before(found.test_ms), settings.recommend.candidates),
        task,
        weights,
        seconds,
    )


def walk(
    shop: sets.Shop, days: Sequence[str], names: Sequence[str], log: Log
) -> Iterator[tuple[str, TrainingSet, dict[str, States], dict[str, float]]]:
    """Day after day: the training set, each member's states as the assets make them (a full refit on the first day,
    then updates) and the seconds each took."""
    settings, zone = shop.settings, shop.settings.calendar.time_zone
    states: dict[str, States] = {}
    for day in days:
        data, start = shop.training_set(day), day_start_ms(day, zone)
        seconds = {}
        for name in names:
            started = time.monotonic()
            if name in states and name not in CHEAP_MEMBERS:
                states[name] = go_on(states[name].final, data, settings, log)
            else:
                back = validation_days(data, start, settings)
                states[name] = refit(MEMBERS[name], data, start, day_start_ms(shift(day, -back), zone), settings, log)
            seconds[name] = time.monotonic() - started
        yield day, data, states, seconds


def next_days(
    shop: sets.Shop, days: Sequence[str], names: Sequence[str], log: Log
) -> tuple[dict[str, Pool], dict[str, dict[str, float]], dict[str, float], dict[str, list[float]]]:
    """By protocol ("" repeats allowed, "-new" without what was bought before): pools and weights; then the seconds of
    the first full refit (with `weights`) and those of each later day, by member."""
    protocols = {
        suffix: shop.settings.model_copy(
            update={"recommend": shop.settings.recommend.model_copy(update={"bought_items": bought})}
        )
        for suffix, bought in (("", "keep"), ("-new", "remove"))
    }
    zone = shop.settings.calendar.time_zone
    pools = {suffix: Pool() for suffix in protocols}
    weights: dict[str, dict[str, float]] = {}
    rankers: dict[str, Ranker | None] = {}
    fit_seconds: dict[str, float] = {}
    update_seconds: dict[str, list[float]] = defaultdict(list)
    for day, data, states, seconds in walk(shop, days, names, log):
        if not weights:
            fit_seconds = dict(seconds)
            started = time.monotonic()
            back = validation_days(data, day_start_ms(day, zone), shop.settings)
            fitted = {name: made.validation for name, made in states.items() if made.validation is not None}
            for suffix, settings in protocols.items():
                tasks = validation_tasks(data, day, back, settings)
                lessons = validation_tasks(data, shift(day, -back), settings.ranker.learn_days, settings)
                weights[suffix], rankers[suffix] = learn_ranking(fitted, data, lessons, tasks, settings, log)
            fit_seconds["weights"] = (time.monotonic() - started) / len(protocols)
        else:
            for name, took in seconds.items():
                update_seconds[name].append(round(took, 2))
        members = {name: made.test for name, made in states.items()}
        for suffix, settings in protocols.items():
            task = prediction_task(data, day_start_ms(day, zone), data.end_ms, settings)
            if len(task):
                k = settings.recommend.candidates
                lists = measure(members, weights[suffix], rankers[suffix], task, data, k)
                pools[suffix].add(lists, task)
                latest = ", ".join(f"{m} {pools[suffix].runs(m, 'ndcg')[-1]:.4f}" for m in pools[suffix].models())
                log(f"{day}{suffix}: {len(task)} users, NDCG@10 {latest}")
    return pools, weights, fit_seconds, update_seconds


def report(name: str, pool: Pool, seconds: float, hybrid: dict[str, Any], facts: dict[str, Any]) -> None:
    """The lines of one set; `hybrid` are further facts of the hybrid's lines."""
    facts = {"users": len(np.unique(np.concatenate(pool.users))), "lists": sum(map(len, pool.users)), **facts}
    others = [model for model in pool.models() if model != HYBRID]
    hybrid = {"minus": {other: pool.minus(HYBRID, other) for other in others}, **hybrid}
    for model in (*others, HYBRID):
        for metric in ("ndcg", "recall"):
            emit(
                f"quality.{name}.{model}.{metric}{MAIN_CUTOFF}",
                pool.runs(model, metric),
                f"{metric}@{MAIN_CUTOFF}",
                seconds,
                value=pool.mean(model, metric),
                **facts,
                **(hybrid if model == HYBRID else {}),
            )


def run_leave_one_out(name: str, path: Path, attributes: Path, arguments: argparse.Namespace) -> None:
    started = time.monotonic()
    settings = make_settings(recommend={"bought_items": "remove"})
    sequences = sets.read_sequences(path)
    categories = {}
    if arguments.category != "none" and attributes.exists():
        categories = sets.read_categories(attributes, arguments.category)
    pool, all_weights, all_seconds = Pool(), [], []
    for seed in range(1, arguments.seeds + 1):
        lists, task, weights, seconds = leave_one_out(sequences, categories, arguments.models, seed, settings, progress)
        pool.add(lists, task)
        all_weights.append(weights)
        all_seconds.append({name: round(took, 2) for name, took in seconds.items()})
        progress(f"seed {seed}: " + ", ".join(f"{m} {pool.runs(m, 'ndcg')[-1]:.4f}" for m in pool.models()))
    facts: dict[str, Any] = {
        "protocol": "leave-one-out: fit s[:-2], weights on s[-2], ask s[:-1] for s[-1]; mean of the seeds",
        "side_information": f"the {arguments.category} attribute of each item as its category" if categories else None,
        "settings": changed_settings(settings),
    }
    took = time.monotonic() - started
    report(name, pool, took, {"weights": all_weights}, facts)
    emit(
        f"quality.{name}.train_seconds",
        [sum(s.values()) for s in all_seconds],
        "s",
        took,
        by_model=all_seconds,
        **facts,
    )


def run_next_days(name: str, shop: sets.Shop, arguments: argparse.Namespace) -> None:
    started = time.monotonic()
    last = LAST_DAY.get(name, shop.days[-1])
    days = [shift(last, -back) for back in range(arguments.days - 1, -1, -1)]
    pools, weights, fit_seconds, update_seconds = next_days(shop, days, arguments.models, progress)
    facts: dict[str, Any] = {
        "protocol": f"next day, {days[0]} to {days[-1]}, one full fit before, then updates; pooled over users' days",
        "settings": changed_settings(shop.settings),
    }
    took = time.monotonic() - started
    for suffix, pool in pools.items():
        report(f"{name}{suffix}", pool, took, {"weights": weights[suffix]}, facts)
    emit(
        f"quality.{name}.train_seconds",
        [sum(fit_seconds.values())],
        "s",
        took,
        by_model={name: round(value, 2) for name, value in fit_seconds.items()},
        update_seconds=update_seconds,
        **facts,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=(*sets.LEAVE_ONE_OUT, sets.COMPLETE_JOURNEY, "file"))
    parser.add_argument("--data", type=Path, help="folder of the Amazon files, or the file to measure on")
    parser.add_argument("--seeds", type=int, default=3, help="leave-one-out: runs (default 3)")
    parser.add_argument("--days", type=int, default=14, help="next day: consecutive days (default 14)")
    parser.add_argument("--models", nargs="+", choices=list(MEMBERS), default=list(MEMBERS), help="default: all")
    parser.add_argument(
        "--category", choices=("first", "last", "none"), default="last", help="which attribute of the Amazon items"
    )
    arguments = parser.parse_args()
    if arguments.set in sets.LEAVE_ONE_OUT:
        folder, stem = arguments.data or sets.DATASETS, sets.LEAVE_ONE_OUT[arguments.set]
        path = folder / f"{stem}.txt.gz"
        if not path.exists():
            sys.exit(f"{path} is not there: say where it is with --data DIR. Nothing was measured.")
        run_leave_one_out(arguments.set, path, folder / f"{stem}_item2attributes.json.gz", arguments)
        return
    if arguments.set == "file" and (arguments.data is None or not arguments.data.is_file()):
        sys.exit("--data must name a file: lines of one user each, or a Parquet or CSV table of events.")
    if arguments.set == "file" and arguments.data.suffix not in (".parquet", ".csv"):
        run_leave_one_out("file", arguments.data, Path("no-attributes"), arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            events = sets.read_journey() if arguments.set == sets.COMPLETE_JOURNEY else sets.read_table(arguments.data)
        except (FileNotFoundError, ValueError) as error:
            sys.exit(f"{error}. Nothing was measured.")
        run_next_days(
            arguments.set,
            sets.Shop(Path(folder), events, make_settings(**sets.TUNED.get(arguments.set, {}))),
            arguments,
        )


if __name__ == "__main__":
    main()
