"""Making a day's features, model and audience out of the store, each only where its inputs have changed."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recsys_assets.audience.behaviour import days_between, mobile_of_users, read_events, users_day
from recsys_assets.audience.features import FEATURE_COLUMNS, features, labels
from recsys_assets.audience.measure import METRICS, Ranking, brier, calibration, compare
from recsys_assets.audience.propensity import Propensity, fit, libsvm
from recsys_assets.days import day_start_ms, shift
from recsys_assets.models.base import Log
from recsys_assets.pipeline import InputError, Pipeline
from recsys_assets.settings import AudienceSettings
from recsys_assets.storage import files
from recsys_assets.storage.artifacts import Artifact, version_of

CODE_VERSION = "1"
_SELECTION = {"budget", "threshold"}  # settings that choose among users and change no feature and no model
_LABEL = {"action", "items", "categories", "label_days", "periods", "regularization"}

AUDIENCE_COLUMNS = {
    "rank": ("INTEGER", "1 is likeliest"),
    "user_id": FEATURE_COLUMNS["user_id"],
    "probability": ("DOUBLE", "calibrated: that the user takes the offer within audience.label_days after the day"),
    **{name: about for name, about in FEATURE_COLUMNS.items() if name != "user_id"},
}


def _window(pipeline: Pipeline, events: pl.DataFrame, day: str) -> pl.DataFrame:
    """The features at the end of a day, from what had arrived by then."""
    settings, zone = pipeline.settings.audience, pipeline.settings.calendar.time_zone
    start = day_start_ms(shift(day, 1 - settings.window_days), zone)
    known = events.filter(pl.col("day") <= day)
    frame = features(known, start, day_start_ms(shift(day, 1), zone), zone)
    return mobile_of_users(pipeline, frame, day)[0]


def _inputs(pipeline: Pipeline, versions: dict[str, str], users: list[str], without: set[str]) -> dict[str, Any]:
    """What features (or a model) are made of."""
    of_users = {day: files.sha256(pipeline.tables.path("users", day)) for day in sorted(users)}
    return {
        "interactions": versions,
        "users": of_users if pipeline.settings.audience.mobile_column else {},
        "settings": pipeline.settings.audience.model_dump(exclude=without),
        "time_zone": pipeline.settings.calendar.time_zone,
        "code": CODE_VERSION,
    }


def make_features(pipeline: Pipeline, day: str) -> tuple[dict[str, Any], bool]:
    """Publishes `user_features` of a day unless it stands there made of equal inputs. Returns its info and whether it
    is new.

    Raises:
        InputError: there are no interactions of the day, or the dimension users is not as the settings say.
    """
    pipeline.need_table("interactions", day)
    versions, missing = days_between(pipeline, shift(day, 1 - pipeline.settings.audience.window_days), day)
    found = users_day(pipeline, day)
    version = version_of(**_inputs(pipeline, versions, [found] if found else [], _SELECTION | _LABEL))
    info = pipeline.tables.sound_info("user_features", day)
    if info is not None and info["version"] == version:
        return info, False
    frame = _window(pipeline, read_events(pipeline, versions), day)
    info = {
        "version": version,
        "users": len(frame),
        "with_device": frame["mobile"].count(),
        "one_event": int((frame["events"] == 1).sum()),
        "missing_days": missing,
        "quartiles": [
            {"feature": name, **{f"{q:.0%}": frame[name].quantile(q, "linear") for q in (0.0, 0.25, 0.5, 0.75, 1.0)}}
            for name in FEATURE_COLUMNS
            if name != "user_id" and frame[name].count()
        ],
    }
    pipeline.tables.publish_frame("user_features", day, frame, info)
    return info, True


def _snapshots(settings: AudienceSettings, day: str, first: str) -> tuple[list[str], str]:
    """The days at whose ends to learn, oldest first, and the later one at whose end to measure. What follows each up to
    the next is its label; a window that history does not fill would count fewer events, so it is left out.

    Raises:
        InputError: history is too short.
    """
    measured = shift(day, -settings.label_days)
    learned = [shift(measured, -settings.label_days * n) for n in range(settings.periods, 0, -1)]
    learned = [each for each in learned if shift(each, 1 - settings.window_days) >= first]
    if not learned:
        needed = settings.window_days + 2 * settings.label_days
        raise InputError(
            f"An audience for {day} needs interactions from {shift(day, 1 - needed)} on: {settings.window_days} days "
            f"of behaviour and twice {settings.label_days} days after them, to learn from and to measure. They begin "
            f"on {first}. Shorten audience.window_days or audience.label_days, or wait."
        )
    return learned, measured


def make_model(pipeline: Pipeline, day: str, log: Log) -> tuple[Artifact, bool]:
    """Publishes `propensity_model` of a day unless it stands there made of equal inputs.

    It is learned from the periods before the last one and measured on the last one; the model that was measured is the
    one that is published.

    Raises:
        InputError: too little history, or too few users took the offer.
    """
    settings, zone = pipeline.settings.audience, pipeline.settings.calendar.time_zone
    samples, seed = pipeline.settings.evaluation.bootstrap_samples, pipeline.settings.training.seed
    pipeline.need_table("interactions", day)
    learned, measured = _snapshots(settings, day, pipeline.tables.days("interactions")[0])
    versions, missing = days_between(pipeline, shift(learned[0], 1 - settings.window_days), day)
    users = {found for each in (*learned, measured) if (found := users_day(pipeline, each))}
    inputs = {**_inputs(pipeline, versions, list(users), set()), "bootstrap_samples": samples, "seed": seed}
    version = version_of(**inputs)
    existing = pipeline.artifacts.sound("propensity_model", day)
    if existing is not None and existing.version == version:
        return existing, False
    started = time.monotonic()
    events = read_events(pipeline, versions)
    frames, takers = [], []
    for each in (*learned, measured):
        frame = _window(pipeline, events, each)
        begin = day_start_ms(shift(each, 1), zone)
        end = day_start_ms(shift(each, 1 + settings.label_days), zone)
        frames.append(frame)
        takers.append(labels(frame["user_id"], events, begin, end))
        log(f"behaviour up to {each}: {len(frame)} users, {takers[-1].sum()} took the offer in the days after")
    model = fit(pl.concat(frames[:-1]), pl.concat(takers[:-1]).to_numpy(), settings.regularization, seed)
    info: dict[str, Any] = {
        "version": version,
        "day": day,
        "inputs": inputs,
        "missing_days": missing,
        "periods": [
            {
                "behaviour up to": each,
                "used to": "learn" if each != measured else "measure",
                "users": len(frame),
                "took the offer": int(taken.sum()),
            }
            for each, frame, taken in zip((*learned, measured), frames, takers, strict=True)
        ],
        **_measured(model, frames[-1], takers[-1].to_numpy(), pipeline),
        "seconds": 0.0,
    }
    with pipeline.artifacts.publish("propensity_model", day, version, info) as folder:
        model.save(folder)
        info["seconds"] = round(time.monotonic() - started, 2)
    artifact = pipeline.artifacts.need("propensity_model", day)
    return artifact, True


def _measured(model: Propensity, frame: pl.DataFrame, taken: np.ndarray, pipeline: Pipeline) -> dict[str, Any]:
    settings = pipeline.settings.audience
    if not 0 < taken.sum() < len(taken):
        raise InputError(
            f"{taken.sum()} of {len(taken)} users took the offer in the newest {settings.label_days} days: nothing can "
            "be measured on them. See audience.action, .items, .categories and .label_days."
        )
    margin = model.margin(frame)
    probability = model.probability(margin)
    chosen = _chosen(probability, settings)
    found = compare(
        Ranking(margin, taken),
        Ranking(frame["events"].to_numpy().astype(np.float64), taken),
        max(chosen, 1),
        pipeline.settings.evaluation.bootstrap_samples,
        pipeline.settings.training.seed,
    )
    wanted = [metric for metric in METRICS if chosen or metric != "lift"]  # nobody reaches the threshold: no lift
    return {
        "features": list(model.names),
        "coefficients": model.coefficients.tolist(),
        "budget": chosen,
        "metrics": {metric: {side: asdict(each) for side, each in found[metric].items()} for metric in wanted},
        "base_rate": float(taken.mean()),
        "brier": brier(probability, taken),
        "brier_of_the_base_rate": brier(np.full(len(taken), taken.mean()), taken),
        "calibration": calibration(probability, taken).to_dicts(),
    }


def _chosen(probability: np.ndarray, settings: AudienceSettings) -> int:
    """How many users, from the likeliest on, are in the audience."""
    count = len(probability) if settings.threshold is None else int((probability >= settings.threshold).sum())
    return count if settings.budget is None else min(count, settings.budget)


def make_audience(pipeline: Pipeline, day: str) -> tuple[dict[str, Any], bool]:
    """Publishes `audience` of a day unless it stands there: DAY.csv and DAY.libsvm, and with DAY.parquet all is there.

    Raises:
        InputError, ArtifactError: there are no features or no model, or they are damaged.
    """
    settings = pipeline.settings.audience
    pipeline.need_table("user_features", day)
    of_features = pipeline.tables.info("user_features", day) or {}
    artifact = pipeline.artifacts.need("propensity_model", day)
    version = version_of(
        features=of_features["version"],
        model=artifact.version,
        selection=settings.model_dump(include=_SELECTION),
        code=CODE_VERSION,
    )
    info = pipeline.tables.sound_info("audience", day)
    if info is not None and info["version"] == version and _stand(pipeline, day, info["files"]):
        return info, False
    model = Propensity.load(artifact.path)
    frame = pipeline.tables.read("user_features", day)
    margin = model.margin(frame)
    probability = model.probability(margin)
    # The likeliest first; rounding may make probabilities equal whose margins are not.
    order = np.lexsort((np.arange(len(frame)), -margin))[: _chosen(probability, settings)]
    rows = frame[order].with_columns(
        rank=pl.int_range(1, len(order) + 1, dtype=pl.Int32, eager=True), probability=pl.Series(probability[order])
    )
    rows = rows.select(*AUDIENCE_COLUMNS)
    table = pipeline.tables.path("audience", day)
    with files.replacing(table.with_suffix(".csv")) as path:
        rows.write_csv(path)
    files.write_bytes(table.with_suffix(".libsvm"), libsvm(model.inputs(rows), probability[order]).encode())
    info = {
        "version": version,
        "users": len(rows),
        "of_users": len(frame),
        "expected_takers": float(probability[order].sum()),
        "lowest_probability": float(probability[order].min()) if len(rows) else None,
        "highest_probability": float(probability[order].max()) if len(rows) else None,
        "model_version": artifact.version,
        "features": list(model.names),
        "files": {path.name: files.sha256(path) for path in _exports(table)},
    }
    pipeline.tables.publish_frame("audience", day, rows, info)
    return info, True


def _exports(table: Path) -> list[Path]:
    return [table.with_suffix(suffix) for suffix in (".csv", ".libsvm")]


def _stand(pipeline: Pipeline, day: str, hashes: dict[str, str]) -> bool:
    return all(
        path.is_file() and files.sha256(path) == hashes.get(path.name)
        for path in _exports(pipeline.tables.path("audience", day))
    )
