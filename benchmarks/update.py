"""What a day's update costs and loses against learning everything again.

Days in a row of The Complete Journey: yesterday's model takes in today (`update`), beside one fitted to the same events
from scratch (`fit`); both are asked about tomorrow, which neither has seen. The updated model is tomorrow's yesterday,
so whatever is lost adds up over the days, as it would without the weekly refit.

    python -m benchmarks.update [--days 14] [--models transition als sequence]

update.MODEL.time_ratio: seconds of the update over seconds of the fit, median of the days, the two in turns first.
update.MODEL.ndcg_rel: NDCG@10 with repeats allowed, (update - fit) / fit, pooled over users' days.
update.MODEL.ndcg_rel_low: its lower 95 % bound, resampling users with all their days.
update.transition.equal: the share of the days on which the updated state has the very bytes of the fitted one.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import sets
from benchmarks.lines import emit, progress
from benchmarks.quality import LAST_DAY, Pool, changed_settings, make_settings
from recsys_assets.days import day_start_ms, shift
from recsys_assets.evaluation.measure import MAIN_CUTOFF, model_lists
from recsys_assets.evaluation.tasks import prediction_task
from recsys_assets.models import MEMBERS
from recsys_assets.models.base import Log, Member
from recsys_assets.models.hybrid import HybridModel
from recsys_assets.models.transition import TransitionModel

UPDATE, REFIT = "update", "refit"


def timed(make: Callable[[], Member]) -> tuple[Member, float, float]:
    """What `make` returns, its seconds, and its processor seconds (all threads): the latter on a busy machine."""
    started, processor = time.monotonic(), time.process_time()
    return make(), time.monotonic() - started, time.process_time() - processor


def same_bytes(one: Member, other: Member) -> bool:
    arrays, others = one.state()[0], other.state()[0]
    return (
        one.state()[1] == other.state()[1]
        and arrays.keys() == others.keys()
        and all(array.tobytes() == others[name].tobytes() for name, array in arrays.items())
    )


def updates(
    shop: sets.Shop, days: Sequence[str], name: str, log: Log
) -> tuple[Pool, dict[str, list[float]], dict[str, list[float]], list[bool]]:
    """The NDCG@10 of both on each of `days`, the seconds and processor seconds of both on the days before, and whether
    both were the same."""
    settings, zone = shop.settings, shop.settings.calendar.time_zone
    pool = Pool()
    equal: list[bool] = []
    seconds: dict[str, list[float]] = {UPDATE: [], REFIT: []}
    processor: dict[str, list[float]] = {UPDATE: [], REFIT: []}
    model: Member = MEMBERS[name].fit(shop.training_set(shift(days[0], -2)), settings, log)
    for number, day in enumerate(days):
        known = shop.training_set(shift(day, -1))
        makers: dict[str, Callable[[], Member]] = {
            UPDATE: partial(model.update, known, settings, log),
            REFIT: partial(MEMBERS[name].fit, known, settings, log),
        }
        made = {}
        for way in (UPDATE, REFIT) if number % 2 == 0 else (REFIT, UPDATE):
            made[way], took, used = timed(makers[way])
            seconds[way].append(took)
            processor[way].append(used)
        equal.append(same_bytes(made[UPDATE], made[REFIT]))
        data = shop.training_set(day)
        task = prediction_task(data, day_start_ms(day, zone), data.end_ms, settings)
        k = settings.recommend.candidates
        lists = {way: model_lists(HybridModel({name: m}, {name: 1.0}, k), task, MAIN_CUTOFF) for way, m in made.items()}
        pool.add({way: found[name] for way, found in lists.items()}, task)
        log(
            f"{name} {day}: update {seconds[UPDATE][-1]:.2f} s, NDCG@10 {pool.runs(UPDATE, 'ndcg')[-1]:.4f}; "
            f"refit {seconds[REFIT][-1]:.2f} s, {pool.runs(REFIT, 'ndcg')[-1]:.4f}"
        )
        model = made[UPDATE]
    return pool, seconds, processor, equal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=14, help="updates in a row (default 14)")
    models = ("transition", "als", "sequence")
    parser.add_argument("--models", nargs="+", choices=models, default=models, help="default: all three")
    arguments = parser.parse_args()
    last = LAST_DAY[sets.COMPLETE_JOURNEY]
    days = [shift(last, -back) for back in range(arguments.days - 1, -1, -1)]
    settings = make_settings(recommend={"bought_items": "keep"}, **sets.TUNED[sets.COMPLETE_JOURNEY])
    with tempfile.TemporaryDirectory() as folder:
        try:
            shop = sets.Shop(Path(folder), sets.read_journey(), settings)
        except FileNotFoundError as error:
            sys.exit(f"{error}. Nothing was measured.")
        for name in arguments.models:
            started = time.monotonic()
            pool, seconds, processor, equal = updates(shop, days, name, progress)
            took = time.monotonic() - started
            found = pool.minus(UPDATE, REFIT, relative=True)
            facts: dict[str, Any] = {
                "set": sets.COMPLETE_JOURNEY,
                "days": f"{days[0]} to {days[-1]}",
                "settings": changed_settings(settings),
            }
            per_day = [u / r - 1 for u, r in zip(pool.runs(UPDATE, "ndcg"), pool.runs(REFIT, "ndcg"), strict=True)]
            emit(
                f"update.{name}.time_ratio",
                [u / r for u, r in zip(seconds[UPDATE], seconds[REFIT], strict=True)],
                "ratio",
                took,
                update_seconds=[round(s, 2) for s in seconds[UPDATE]],
                refit_seconds=[round(s, 2) for s in seconds[REFIT]],
                processor_ratio=[round(u / r, 4) for u, r in zip(processor[UPDATE], processor[REFIT], strict=True)],
                **facts,
            )
            quality = {"update": pool.mean(UPDATE, "ndcg"), "refit": pool.mean(REFIT, "ndcg"), "high": found["high"]}
            emit(f"update.{name}.ndcg_rel", per_day, "share", took, value=found["mean"], **quality, **facts)
            emit(f"update.{name}.ndcg_rel_low", [found["low"]], "share", took, **facts)
            if name == TransitionModel.name:
                emit(
                    f"update.{name}.equal", list(map(float, equal)), "share", took, value=float(np.mean(equal)), **facts
                )


if __name__ == "__main__":
    main()
