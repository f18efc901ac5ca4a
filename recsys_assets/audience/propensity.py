"""How likely a user is to take an offer: a linear support vector machine with calibrated probabilities.

The hinge loss weighs takers and others so that both count the same in sum (else, where few take, "nobody does" is the
best answer). Its margins say who comes before whom; what they mean as a probability is learned from margins of users
that the machine was not fitted on (Platt 1999, with the targets and the loss of Lin, Lin & Weng 2007).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys_assets.pipeline import InputError
from recsys_assets.storage.artifacts import load_state, save_state

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]

ALWAYS = ("night", "morning", "afternoon", "evening", "distinct_items", "recency_days", "events")
_LOGARITHMS = ("recency_days", "events")  # heavy-tailed: log(1 + x)
_FOLDS = 5
_MAX_SWEEPS = 20_000


@dataclass(frozen=True)
class Propensity:
    """A fitted model.

    Attributes:
        names: its features, in the order of the arrays.
        fill: float64[f] what stands for a missing value: the mean over those that were there.
        mean, scale: float64[f] of the inputs.
        coefficients: float64[f] of the standardised inputs; `intercept` belongs to them.
        slope, offset: probability = 1 / (1 + exp(-(slope * margin + offset))); slope is never negative.
    """

    names: tuple[str, ...]
    fill: Array
    mean: Array
    scale: Array
    coefficients: Array
    intercept: float
    slope: float
    offset: float

    def inputs(self, frame: pl.DataFrame) -> Array:
        """float64[n, f]: the features as the model takes them, not yet standardised, nothing missing."""
        raw = _inputs(frame, self.names)
        return np.where(np.isnan(raw), self.fill, raw)

    def margin(self, frame: pl.DataFrame) -> Array:
        """float64[n]: larger is likelier."""
        standardised = (self.inputs(frame) - self.mean) / self.scale
        return np.asarray(standardised @ self.coefficients + self.intercept)

    def probability(self, margin: Array) -> Array:
        from scipy.special import expit

        return np.asarray(expit(self.slope * margin + self.offset), np.float64)

    def save(self, folder: Path) -> None:
        arrays = {"fill": self.fill, "mean": self.mean, "scale": self.scale, "coefficients": self.coefficients}
        numbers = {"intercept": self.intercept, "slope": self.slope, "offset": self.offset}
        save_state(folder, arrays, {"names": list(self.names), **numbers})

    @staticmethod
    def load(folder: Path) -> "Propensity":
        arrays, params = load_state(folder)
        values: dict[str, Any] = {**arrays, **params, "names": tuple(params["names"])}
        return Propensity(**values)


def _inputs(frame: pl.DataFrame, names: Sequence[str]) -> Array:
    """float64[n, f], NaN where a value is missing."""
    columns = [pl.col(name).log1p() if name in _LOGARITHMS else pl.col(name) for name in names]
    return frame.select(each.cast(pl.Float64).fill_null(np.nan) for each in columns).to_numpy()


def fit(frame: pl.DataFrame, taken: Bools, regularization: float, seed: int) -> Propensity:
    """Learns from rows of features and whether each one's user took the offer afterwards.

    Minimises regularization / 2 |w|^2 + mean weighted hinge loss. A user may have several rows (of several periods);
    they are never on both sides when probabilities are learned. `mobile` is left out where no row has it.

    Raises:
        InputError: fewer takers (or others) than folds; scikit-learn is not installed.
    """
    users = frame["user_id"].to_numpy()
    ever, folds = _folds(users, taken, seed)
    if min(ever, len(np.unique(users[~taken]))) < _FOLDS:
        raise InputError(
            f"{ever} of {len(np.unique(users))} users took the offer in the periods to learn from: at least {_FOLDS} "
            "who did and as many who did not are needed. See audience.action, .items, .categories and .periods."
        )
    names = (*ALWAYS, *(["mobile"] if frame["mobile"].count() else []))
    raw = _inputs(frame, names)
    fill = np.nanmean(raw, axis=0)
    x = np.where(np.isnan(raw), fill, raw)
    mean, spread = x.mean(axis=0), x.std(axis=0)
    scale = np.where(spread > 1e-12, spread, 1.0)
    x = (x - mean) / scale
    held_out = np.empty(len(x))
    for fold in range(_FOLDS):
        out = folds == fold
        w, b = _machine(x[~out], taken[~out], regularization, seed)
        held_out[out] = x[out] @ w + b
    slope, offset = calibrate(held_out, taken)
    w, b = _machine(x, taken, regularization, seed)
    return Propensity(names, fill, mean, scale, w, b, slope, offset)


def _folds(users: NDArray[np.object_], taken: Bools, seed: int) -> tuple[int, NDArray[np.intp]]:
    """Users who ever took the offer, and the fold of each row: a user's rows in one, takers spread evenly."""
    _, position = np.unique(users, return_inverse=True)
    ever = np.bincount(position, taken) > 0
    order = np.lexsort((np.random.default_rng(seed).random(len(ever)), ever))
    fold = np.empty(len(ever), np.intp)
    fold[order] = np.arange(len(ever)) % _FOLDS
    return int(ever.sum()), fold[position]


def _machine(x: Array, taken: Bools, regularization: float, seed: int) -> tuple[Array, float]:
    try:
        from sklearn.svm import LinearSVC
    except ImportError as error:
        raise InputError("audience needs scikit-learn: pip install 'recsys_assets[audience]'") from error
    machine = LinearSVC(
        loss="hinge",
        dual=True,
        C=1 / (regularization * len(x)),
        class_weight="balanced",
        tol=1e-3,
        max_iter=_MAX_SWEEPS,
        random_state=seed,
    ).fit(x, taken)
    return np.asarray(machine.coef_[0], np.float64), float(machine.intercept_[0])


def calibrate(margin: Array, taken: Bools) -> tuple[float, float]:
    """The slope (never below 0: probabilities keep the order of margins) and offset of the logistic of a margin."""
    from scipy.optimize import minimize
    from scipy.special import expit

    takers = int(taken.sum())
    target = np.where(taken, (takers + 1) / (takers + 2), 1 / (len(taken) - takers + 2))

    def loss(at: Array) -> tuple[float, Array]:
        z = at[0] * margin + at[1]
        error = expit(z) - target
        return float(np.mean(np.logaddexp(0, z) - target * z)), np.array([np.mean(error * margin), np.mean(error)])

    rate = target.mean()
    start = np.array([1.0, np.log(rate / (1 - rate))])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None), (None, None)])
    return float(found.x[0]), float(found.x[1])


def libsvm(inputs: Array, target: Array) -> str:
    """Rows in the LibSVM format, `TARGET 1:VALUE 2:VALUE ...`; zeros are left out, as the format has it.

    Numbers are written so that they are read back as they were.
    """
    lines = []
    for row, value in zip(inputs, target, strict=True):
        pairs = " ".join(f"{number + 1}:{float(row[number])!r}" for number in np.flatnonzero(row))
        lines.append(f"{float(value)!r} {pairs}".rstrip())
    return "".join(f"{line}\n" for line in lines)
