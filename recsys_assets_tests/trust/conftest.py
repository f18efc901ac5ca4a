import pytest

from recsys_assets.pipeline import Pipeline
from recsys_assets_tests.graph import DAYS, INGEST, TRAIN, fill, make_home, run


@pytest.fixture(scope="session")
def quick_home(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Six days, three trained out of order: DAYS[4] goes on from DAYS[3], DAYS[5] is the champion. Read only."""
    pipeline = make_home(
        tmp_path_factory.mktemp("quick") / "home", sequence={"max_tokens": 1000}, ingest={"window_days": 3660}
    )
    fill(pipeline, DAYS[:6])
    run(pipeline, INGEST, DAYS[:6])
    for day in (DAYS[5], DAYS[3], DAYS[4]):
        run(pipeline, TRAIN, [day])
    return pipeline
