"""What our ALS costs beside bare implicit: all of `AlsModel.fit` (confidences, sweeps, copies) over
`AlternatingLeastSquares.fit` on the finished matrix, with the same factors, sweeps, regularisation and threads.

    python -m benchmarks.als [--set complete-journey|beauty|toys|generated] [--runs 7]

als.vs_implicit: seconds over seconds, the two in turns; the value is the median of the turns' ratios.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from threadpoolctl import threadpool_limits

from benchmarks import sets
from benchmarks.lines import emit, progress
from benchmarks.quality import LAST_DAY, changed_settings, make_settings
from recsys_assets.models.als import AlsModel, confidence
from recsys_assets.settings import Settings
from recsys_assets.training.events import TrainingSet

SETS = (sets.COMPLETE_JOURNEY, *sets.LEAVE_ONE_OUT, "generated")


def training_set(name: str, settings: Settings) -> TrainingSet:
    """One of `SETS`.

    Raises:
        FileNotFoundError: it is not on this machine; the message says where it comes from.
    """
    if name == "generated":
        return sets.generated(20_000, 12_000, 400_000, 1, settings)
    if name == sets.COMPLETE_JOURNEY:
        with tempfile.TemporaryDirectory() as folder:
            return sets.Shop(Path(folder), sets.read_journey(), settings).training_set(LAST_DAY[name])
    path = sets.DATASETS / f"{sets.LEAVE_ONE_OUT[name]}.txt.gz"
    return sets.leave_one_out(sets.read_sequences(path), {}, 1, settings).data


def compare(data: TrainingSet, settings: Settings, runs: int) -> tuple[list[float], list[float]]:
    """Seconds of ours and of implicit's, run after run."""
    from implicit.cpu.als import AlternatingLeastSquares

    own = settings.als
    matrix = confidence(data.events, data.end_ms, own.alpha, own.half_life_days, data.events.n_items)
    ours, theirs = [], []

    def fit_ours() -> None:
        started = time.monotonic()
        AlsModel.fit(data, settings)
        ours.append(time.monotonic() - started)

    def fit_theirs() -> None:
        with threadpool_limits(1, "blas"):  # as implicit itself advises
            started = time.monotonic()
            model = AlternatingLeastSquares(
                factors=own.factors,
                regularization=own.regularization,
                alpha=1.0,
                iterations=own.iterations,
                random_state=settings.training.seed,
            )
            model.fit(matrix, show_progress=False)
            theirs.append(time.monotonic() - started)

    for run in range(runs):
        for fit in (fit_ours, fit_theirs) if run % 2 == 0 else (fit_theirs, fit_ours):
            fit()
        progress(f"als: {ours[-1]:.2f} s, bare implicit {theirs[-1]:.2f} s")
    return ours, theirs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=SETS, default=sets.COMPLETE_JOURNEY, help="events (default complete-journey)")
    parser.add_argument("--runs", type=int, default=7, help="turns (default 7)")
    arguments = parser.parse_args()
    settings = make_settings()
    started = time.monotonic()
    try:
        data = training_set(arguments.set, settings)
    except FileNotFoundError as error:
        sys.exit(f"{error}. Nothing was measured.")
    compare(data, settings, 1)  # the first fit of a process also loads libraries
    ours, theirs = compare(data, settings, arguments.runs)
    emit(
        "als.vs_implicit",
        [a / b for a, b in zip(ours, theirs, strict=True)],
        "ratio",
        time.monotonic() - started,
        set=arguments.set,
        events=len(data.events),
        ours_seconds=[round(s, 3) for s in ours],
        implicit_seconds=[round(s, 3) for s in theirs],
        settings=changed_settings(settings),
    )


if __name__ == "__main__":
    main()
