"""Makes every model and lists and prints their SHA-256: python -m recsys_assets_tests.determinism_worker HOME FOLDER.

HOME has training sets of the days that follow as further arguments; its models are made anew by what the assets call.
FOLDER takes members fitted and updated, and a ranker learned, on a shop that is large enough for BLAS and torch
to want several threads.
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path

from recsys_assets.evaluation.tasks import prediction_task
from recsys_assets.models import MEMBERS
from recsys_assets.models.hybrid import RANKER, HybridModel
from recsys_assets.models.ranker import Ranker
from recsys_assets.pipeline import Pipeline
from recsys_assets.storage.artifacts import save_state
from recsys_assets.training.blend import blend_day, load_hybrid
from recsys_assets.training.events import DAY_MS
from recsys_assets.training.members import fit_member
from recsys_assets.training.training_set import read_training_set
from recsys_assets_tests.graph import contents
from recsys_assets_tests.models.shop import settings, shop


def quiet(_: str) -> None:
    pass


def main() -> None:
    home, folder, days = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    pipeline = Pipeline.open(home)
    found = {}
    for name in [*MEMBERS, "hybrid"]:
        shutil.rmtree(pipeline.settings.store / f"{name}_model")
    for day in days:
        for name in MEMBERS:
            fit_member(pipeline, name, day, False, quiet)
        blend_day(pipeline, day, quiet)
    for name in [*MEMBERS, "hybrid"]:
        for path, digest in contents(pipeline.settings.store / f"{name}_model").items():
            if not path.endswith(("manifest.json", "current.json")):  # how many seconds it took
                found[f"{name}_model/{path}"] = digest
    training = read_training_set(pipeline.artifacts.need("training_set", days[-1]))
    model, _ = load_hybrid(pipeline.artifacts.need("hybrid_model", days[-1]))
    lists = model.recommend(training.events, training.end_ms, 10)
    found["lists"] = hashlib.sha256(lists.items.tobytes() + lists.scores.tobytes()).hexdigest()
    data = shop(n_users=1200, n_items=1000)
    own = settings(
        als={"factors": 64, "iterations": 3},
        sequence={"dimension": 64, "epochs": 1, "batch_tokens": 2048},
        recommend={"bought_items": "keep"},
    )
    members = {}
    for name, kind in MEMBERS.items():
        model = kind.fit(data.before(data.end_ms - 3 * DAY_MS), own)
        members[name] = model.update(data, own)
        for state, made in (("fit", model), ("update", members[name])):
            save_state(folder / name / state, *made.state())
    starts = [data.end_ms - back * DAY_MS for back in range(14, 0, -1)]
    ranker = Ranker.learn(data, [prediction_task(data, start, start + DAY_MS, own) for start in starts], own)
    if ranker is None:
        raise RuntimeError("the shop is too small to learn a ranker from: nothing would be compared")
    save_state(folder / RANKER, *ranker.state())
    ranked = HybridModel(members, {"als": 0.5, RANKER: 1.0}, 100, ranker).recommend(data.events, data.end_ms, 10)
    found["ranked lists"] = hashlib.sha256(ranked.items.tobytes() + ranked.scores.tobytes()).hexdigest()
    found |= contents(folder)
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
