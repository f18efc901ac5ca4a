"""Searching a member's parameters: Optuna proposes, the days before the newest judge, the best is kept.

A search of a day learns from the events before the validation days and is judged on the validation days, the same on
which the ranking weights are learned; the newest day, on which models are measured, is never read. The first trial is
what is in force, so the outcome is never worse than that on validation.

What settings.yaml or the environment sets is not searched, and wins: settings > the newest search of that day or an
earlier one > defaults.
"""

import time
from collections.abc import Mapping
from typing import Any

import filelock
import numpy as np
import polars as pl

from recsys_assets.days import day_start_ms, shift
from recsys_assets.evaluation.measure import MAIN_CUTOFF, ndcg_per_user
from recsys_assets.evaluation.metrics import paired_bootstrap
from recsys_assets.evaluation.tasks import Task, prediction_task
from recsys_assets.models import MEMBERS
from recsys_assets.models.base import Log
from recsys_assets.models.hybrid import HybridModel
from recsys_assets.pipeline import InputError, Pipeline
from recsys_assets.settings import Settings
from recsys_assets.storage.artifacts import Artifact, version_of
from recsys_assets.training.events import DAY_MS, TrainingSet
from recsys_assets.training.training_set import read_training_set

CODE_VERSION = "1"


def asset_name(name: str) -> str:
    return f"{name}_parameters"


def space(name: str, settings: Settings) -> dict[str, Any]:
    """What is searched of a member, option -> Optuna distribution: its options but for those that are set explicitly.

    How long training may take (ALS's sweeps, the sequence model's epochs) is no question of taste and stays as it is.
    """
    from optuna.distributions import CategoricalDistribution as Choice
    from optuna.distributions import FloatDistribution as Float
    from optuna.distributions import IntDistribution as Int

    spaces: dict[str, dict[str, Any]] = {
        "popularity": {"half_life_days": Float(0.5, 90, log=True)},
        "repeat": {
            "half_life_days": Float(5, 365, log=True),
            "learn_days": Int(7, 56),
            "learning_rate": Float(0.002, 0.03, log=True),
            "epochs": Int(4, 24),
        },
        "transition": {
            "half_life_days": Float(7, 730, log=True),
            "max_gap": Int(1, 24, log=True),
            "reverse": Float(0, 1),
            "popularity_power": Float(0, 0.8),
            "history_decay": Float(0.3, 1),
        },
        "als": {
            "factors": Choice((32, 64, 128, 192)),
            "regularization": Float(0.3, 300, log=True),
            "alpha": Float(0.1, 40, log=True),
            "half_life_days": Float(7, 730, log=True),
        },
        "sequence": {
            "dimension": Choice((32, 64, 128)),
            "blocks": Int(1, 2),
            "dropout": Float(0, 0.5),
            "learning_rate": Float(2e-4, 5e-3, log=True),
            "max_length": Choice((20, 50, 100)),
        },
    }
    return {
        option: kind for option, kind in spaces[name].items() if option not in getattr(settings, name).model_fields_set
    }


def changed(settings: Settings, name: str, values: Mapping[str, Any]) -> Settings:
    """The settings with other options of one member, checked like those of a file."""
    section = getattr(settings, name)
    made = type(section).model_validate({**section.model_dump(), **values})
    return settings.model_copy(update={name: made})


def in_force(pipeline: Pipeline, name: str, day: str) -> tuple[Settings, Artifact | None]:
    """The settings with a member's parameters as they are on a day, and the search they come from (None: none yet)."""
    days = [each for each in pipeline.artifacts.days(asset_name(name)) if each <= day]
    if not days:
        return pipeline.settings, None
    found = pipeline.artifacts.need(asset_name(name), days[-1])
    explicit = getattr(pipeline.settings, name).model_fields_set
    values = {option: value for option, value in found.info["parameters"].items() if option not in explicit}
    return changed(pipeline.settings, name, values), found


def origins(pipeline: Pipeline, name: str, settings: Settings, searched: Artifact | None) -> list[dict[str, str]]:
    """Rows of option, value and where the value comes from, of what `in_force` returned."""
    explicit = getattr(pipeline.settings, name).model_fields_set
    chosen = searched.info["parameters"] if searched else {}

    def origin(option: str) -> str:
        if option in explicit:
            return "settings"
        return f"search of {searched.info['day']}" if searched and option in chosen else "default"

    return [
        {"option": option, "value": short(value), "from": origin(option)} for option, value in getattr(settings, name)
    ]


def judging_tasks(data: TrainingSet, day: str, days: int, settings: Settings) -> list[Task]:
    """What trials are judged by: the validation days before `day`, at most `search.lists` rows in all."""
    zone, rng = settings.calendar.time_zone, np.random.default_rng(settings.training.seed)
    tasks = []
    for back in range(days, 0, -1):
        start, end = day_start_ms(shift(day, -back), zone), day_start_ms(shift(day, 1 - back), zone)
        of_day = data.events.select((data.events.timestamp >= start) & (data.events.timestamp < end))
        users = rng.permutation(np.unique(of_day.user))[: -(-settings.search.lists // days)]
        task = prediction_task(data, start, end, settings, of_day.select(np.isin(of_day.user, users)))
        if len(task):
            tasks.append(task)
    return tasks


def judge(name: str, known: TrainingSet, tasks: list[Task], settings: Settings, log: Log) -> np.ndarray:
    """float64[rows] NDCG@10 of the member alone, fitted on `known`, for every row of the tasks."""
    model = HybridModel({name: MEMBERS[name].fit(known, settings, log)}, {name: 1.0}, settings.recommend.candidates)
    found = []
    for task in tasks:
        forbidden = (task.forbidden_rows, task.forbidden_items)
        lists = model.recommend(task.history, task.at_ms, MAIN_CUTOFF, forbidden=forbidden).items
        found.append(ndcg_per_user(lists, task))
    return np.concatenate(found)


def search(
    pipeline: Pipeline, name: str, day: str, log: Log, trials: int | None = None, seconds: float | None = None
) -> tuple[Artifact, bool]:
    """Searches until the study of these inputs has `trials` trials or `seconds` have passed, and publishes the best.

    The study lies in `store/search/NAME.sqlite`, a trial is kept when it ends: a search that was killed or that ran out
    of time goes on with the next call. Trial n draws from a generator seeded by n, so an interrupted search makes the
    same trials as an uninterrupted one.

    Returns: the artifact `NAME_parameters` of the day, and whether it is new.

    Raises:
        InputError: nothing is left to search, nothing to judge by, or another process searches the same member.
    """
    settings, before = in_force(pipeline, name, shift(day, -1))
    source = pipeline.artifacts.need("training_set", day)
    distributions = space(name, pipeline.settings)
    if not distributions:
        raise InputError(f"{name}: settings.yaml sets every option, there is nothing to search. Remove some of them.")
    inputs = {
        "training_set": source.version,
        "settings": version_of(
            own=getattr(settings, name).model_dump(),
            training=settings.training.model_dump(exclude={"full_refit_days"}),
            recommend=settings.recommend.model_dump(),
            evaluation=settings.evaluation.target_actions,
            lists=settings.search.lists,
        ),
        "options": sorted(distributions),
        "code": CODE_VERSION,
    }
    folder = pipeline.settings.store / "search"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / f".{name}.lock", timeout=0):  # the system's: a kill leaves none behind
            data, start_ms = read_training_set(source), day_start_ms(day, settings.calendar.time_zone)
            study = _study(folder / f"{name}.sqlite", version_of(**inputs))
            current = getattr(settings, name).model_dump(include=set(distributions))
            _run(study, name, data.before(start_ms), day, settings, distributions, current, log, trials, seconds)
            return _publish(pipeline, name, day, study, inputs, before, data)
    except filelock.Timeout:
        raise InputError(f"another search of {name} is running in this home: wait for its end") from None


def _study(path: Any, study_name: str) -> Any:
    import optuna
    from sqlalchemy import URL

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(URL.create("sqlite", database=str(path)).render_as_string())
    return optuna.create_study(storage=storage, study_name=study_name, direction="maximize", load_if_exists=True)


def _ended(study: Any) -> list[Any]:
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _run(
    study: Any,
    name: str,
    data: TrainingSet,
    day: str,
    settings: Settings,
    distributions: dict[str, Any],
    current: dict[str, Any],
    log: Log,
    trials: int | None,
    seconds: float | None,
) -> None:
    """Trials until there are enough or time is over; `data` ends before the newest day."""
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    trials, seconds = trials or settings.search.trials, seconds or settings.search.seconds
    # Days with events, as for the ranking weights.
    days = min(settings.training.validation_days, len(np.unique(data.events.timestamp // DAY_MS)) // 4)
    tasks = judging_tasks(data, day, days, settings)
    if not tasks:
        raise InputError(
            f"{name}: nothing to judge parameters by, {days} validation days before {day} with anything to predict. "
            "Search on a later day."
        )
    known = data.before(day_start_ms(shift(day, -days), settings.calendar.time_zone))
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):  # of a search that was killed
        study.tell(trial.number, state=TrialState.FAIL)
    lists = sum(map(len, tasks))
    log(f"{name}: {len(known.events)} events to learn from, {lists} lists on {len(tasks)} days to judge by")
    began = time.monotonic()
    while (number := len(_ended(study))) < trials:
        if time.monotonic() - began > seconds:
            log(f"{name}: {number} of {trials} trials after {seconds:g} s; to search again goes on from here")
            break
        study.sampler = TPESampler(seed=settings.training.seed + number)
        if number == 0 and not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            study.enqueue_trial(current)
        trial = study.ask(distributions)
        started = time.monotonic()
        quality = judge(name, known, tasks, changed(settings, name, trial.params), lambda _: None)
        trial.set_user_attr("seconds", round(time.monotonic() - started, 2))
        trial.set_user_attr("rows", [round(float(value), 6) for value in quality])
        study.tell(trial, float(quality.mean()))
        shown = ", ".join(f"{option} {short(value)}" for option, value in trial.params.items())
        log(
            f"{name}: trial {number + 1} of {trials}, NDCG@10 {quality.mean():.4f} (best {study.best_value:.4f}, "
            f"before {_ended(study)[0].value:.4f}), {time.monotonic() - started:.1f} s: {shown}"
        )


def short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _publish(
    pipeline: Pipeline, name: str, day: str, study: Any, inputs: dict[str, Any], before: Artifact | None, data: Any
) -> tuple[Artifact, bool]:
    ended = _ended(study)
    if not ended:
        raise InputError(f"{name}: no trial ended; give the search more seconds")
    first, best = ended[0], study.best_trial
    difference = paired_bootstrap(np.array(best.user_attrs["rows"]) - np.array(first.user_attrs["rows"]))
    info = {
        "day": day,
        "inputs": inputs,
        "parameters": best.params,
        "trials": len(ended),
        "best_trial": ended.index(next(trial for trial in ended if trial.number == best.number)) + 1,
        "ndcg": best.value,
        "ndcg_before": first.value,
        "difference": vars(difference),
        "before": {"day": before.info["day"], "version": before.version} if before else None,
        "lists": len(first.user_attrs["rows"]),
        "seconds": round(sum(trial.user_attrs["seconds"] for trial in ended), 1),
    }
    version = version_of(inputs=inputs, trials=len(ended), parameters=best.params)
    existing = pipeline.artifacts.sound(asset_name(name), day)
    if existing is not None and existing.version == version:
        return existing, False
    table = pl.DataFrame(
        [
            {"trial": number, "ndcg10": trial.value, "seconds": trial.user_attrs["seconds"], **trial.params}
            for number, trial in enumerate(ended, 1)
        ]
    )
    with pipeline.artifacts.publish(asset_name(name), day, version, info) as folder:
        table.write_parquet(folder / "trials.parquet")
    return pipeline.artifacts.need(asset_name(name), day), True
