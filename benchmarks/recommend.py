"""How fast lists are made for everybody: top 100, without what a user bought before.

    python -m benchmarks.recommend [--set beauty|toys|complete-journey|generated] [--runs 5]

recommend.vs_implicit: users/s of a hybrid whose only member is ALS over users/s of bare implicit's
`recommend(filter_already_liked_items=True)` with the same item factors and the same matrix. Ours starts from the events
and solves each user's factors anew (fold-in), which is how the product makes lists; implicit's has them in store. What
implicit makes of the same work (`recalculate_user=True`) stands beside it as `folding_in`.
recommend.users_per_second: the full hybrid. Its sequence model is trained for one epoch only: that is as slow to ask.
"""

import argparse
import sys
import time

import numpy as np
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from benchmarks.als import SETS, training_set
from benchmarks.lines import emit, progress
from benchmarks.quality import changed_settings, make_settings
from recsys_assets.evaluation.tasks import bought_pairs
from recsys_assets.models import MEMBERS
from recsys_assets.models.als import AlsModel, confidence
from recsys_assets.models.hybrid import DEFAULT_WEIGHTS, HybridModel
from recsys_assets.settings import Settings
from recsys_assets.training.events import Ints, TrainingSet

N = 100


def our_lists(model: HybridModel, data: TrainingSet, settings: Settings) -> Ints:
    """int32[n_users, 100] as the asset `recommendations` makes them, exclusion included."""
    forbidden = bought_pairs(data.events, data.actions, settings)
    return model.recommend(data.events, data.end_ms, N, forbidden=forbidden).items


def bare_model(als: AlsModel, data: TrainingSet, settings: Settings) -> tuple[object, csr_matrix]:
    """implicit's model with the factors of `als`, the users' solved beforehand, and the matrix of what they met."""
    from implicit.cpu.als import AlternatingLeastSquares

    own = settings.als
    matrix = confidence(data.events, data.end_ms, own.alpha, own.half_life_days, data.events.n_items)
    with threadpool_limits(1, "blas"):
        bare = AlternatingLeastSquares(factors=own.factors, regularization=own.regularization, alpha=1.0)
        bare.item_factors = als.item_factors
        bare.user_factors = als.user_factors(data.events, data.end_ms)
    return bare, matrix


def bare_lists(bare: object, matrix: csr_matrix, folding_in: bool) -> Ints:
    """int32[n_users, 100] by implicit, in batches as its documentation proposes."""
    lists = []
    with threadpool_limits(1, "blas"):
        for begin in range(0, matrix.shape[0], 1000):
            users = np.arange(begin, min(begin + 1000, matrix.shape[0]))
            found, _ = bare.recommend(  # type: ignore[attr-defined]
                users, matrix[users], N=N, filter_already_liked_items=True, recalculate_user=folding_in
            )
            lists.append(found)
    return np.concatenate(lists).astype(np.int32)


def shared(one: Ints, other: Ints) -> float:
    """Mean share of a user's list that the other list holds too: both sides must have done the same work."""
    return float(np.mean([len(np.intersect1d(a, b)) / one.shape[1] for a, b in zip(one, other, strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=SETS, default="beauty", help="events (default beauty)")
    parser.add_argument("--runs", type=int, default=5, help="turns (default 5)")
    arguments = parser.parse_args()
    started = time.monotonic()
    settings = make_settings(recommend={"bought_items": "remove"}, sequence={"epochs": 1})
    try:
        data = training_set(arguments.set, settings)
    except FileNotFoundError as error:
        sys.exit(f"{error}. Nothing was measured.")
    als = AlsModel.fit(data, settings)
    single = HybridModel({"als": als}, {"als": 1.0}, N)
    bare, matrix = bare_model(als, data, settings)
    same = shared(our_lists(single, data, settings), bare_lists(bare, matrix, False))
    ways = {
        "ours": lambda: our_lists(single, data, settings),
        "implicit": lambda: bare_lists(bare, matrix, False),
        "folding_in": lambda: bare_lists(bare, matrix, True),
    }
    users = int(matrix.shape[0])
    speed: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(arguments.runs):
        for name in list(ways) if run % 2 == 0 else reversed(ways):
            begun = time.monotonic()
            ways[name]()
            speed[name].append(users / (time.monotonic() - begun))
        progress(", ".join(f"{name} {found[-1]:.0f} users/s" for name, found in speed.items()))
    facts = {
        "set": arguments.set,
        "users": users,
        "items": int(matrix.shape[1]),
        "settings": changed_settings(settings),
    }
    emit(
        "recommend.vs_implicit",
        [a / b for a, b in zip(speed["ours"], speed["implicit"], strict=True)],
        "ratio",
        time.monotonic() - started,
        users_per_second={name: [round(value) for value in found] for name, found in speed.items()},
        vs_implicit_folding_in=round(float(np.median(np.divide(speed["ours"], speed["folding_in"]))), 3),
        same_items=round(same, 4),
        **facts,
    )
    begun = time.monotonic()
    members = {
        name: als if name == AlsModel.name else kind.fit(data, settings, progress) for name, kind in MEMBERS.items()
    }
    hybrid = HybridModel(members, DEFAULT_WEIGHTS, settings.recommend.candidates)
    runs = []
    for _ in range(arguments.runs):
        turn = time.monotonic()
        our_lists(hybrid, data, settings)
        runs.append(users / (time.monotonic() - turn))
        progress(f"full hybrid: {runs[-1]:.0f} users/s")
    emit("recommend.users_per_second", runs, "users/s", time.monotonic() - begun, **facts)


if __name__ == "__main__":
    main()
