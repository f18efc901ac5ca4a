import subprocess
import sys
from pathlib import Path

import duckdb

from recsys_assets_tests.graph import DAYS, INGEST, contents, fill, make_home, run

RANGES = ["0:4", "2:7", "0:7", "3:3", "1:6", "5:7", "0:2", "4:7"]


def test_eight_backfills_at_once_over_overlapping_days_end_like_one(tmp_path: Path) -> None:
    together = make_home(tmp_path / "together", bucket={"url": f"file://{tmp_path}/alone/bucket"})
    alone = make_home(tmp_path / "alone")
    fill(alone)
    run(alone, INGEST, DAYS)
    log = tmp_path / "log"
    with log.open("wb") as errors:
        done = subprocess.run(
            [sys.executable, "-m", "recsys_assets_tests.backfill_worker", str(together.settings.home), *RANGES],
            stderr=errors,
        )
    said = log.read_text()
    assert done.returncode == 0, said[-5000:]
    assert "Conflicting lock" not in said
    for table in ("raw_events", "interactions"):
        assert contents(together.settings.store / table) == contents(alone.settings.store / table)
    with duckdb.connect(together.warehouse.path, read_only=True) as connection:
        assert connection.execute("SELECT count(DISTINCT day) FROM interactions").fetchall() == [(len(DAYS),)]
