import subprocess
import sys
from pathlib import Path

import duckdb
import polars as pl
import pytest

from recsys_assets.pipeline import Pipeline
from recsys_assets.storage.tables import Tables
from recsys_assets.storage.warehouse import Warehouse, scratch
from recsys_assets_tests.graph import DAYS, copy_home
from recsys_assets_tests.storage.test_files import dead_pid


def query(path: Path, sql: str) -> list[tuple]:
    with duckdb.connect(path, read_only=True) as connection:
        return connection.execute(sql).fetchall()


def views(path: Path) -> set[str]:
    return {name for (name,) in query(path, "SELECT view_name FROM duckdb_views() WHERE NOT internal")}


def unsaid(message: str) -> None:
    raise AssertionError(f"nothing was to be said: {message}")


def test_views_show_what_is_published(ingested_home: Pipeline) -> None:
    path = ingested_home.warehouse.path
    assert views(path) == {"raw_events", "raw_objects", "interactions", "rejected_events"}
    kept = rejected = objects = 0
    for day in DAYS:
        info = ingested_home.tables.info("interactions", day)
        assert info is not None
        kept += info["counts"]["kept"]
        rejected += sum(info["counts"]["rejected"].values())
        objects += (ingested_home.tables.info("raw_events", day) or {})["objects"]
    assert query(path, "SELECT count(*), count(DISTINCT day) FROM interactions") == [(kept, len(DAYS))]
    assert query(path, "SELECT count(*), count(reason) FROM rejected_events") == [(rejected, rejected)]
    assert query(path, "SELECT count(*) FROM raw_objects") == [(objects,)]
    assert query(path, "SELECT typeof(day) FROM interactions LIMIT 1") == [("DATE",)]
    traced = query(
        path,
        "SELECT count(*) FROM interactions i JOIN raw_events r "
        "ON r.key = i.source_key AND r.record = i.record AND r.day = i.day "
        "WHERE TRY(r.body->>'user_id') = i.user_id AND TRY(r.body->>'item_id') = i.item_id",
    )
    whole = query(
        path,
        "SELECT count(*) FROM interactions WHERE source_key NOT IN "
        "(SELECT source_key FROM rejected_events WHERE reason = 'malformed_json')",
    )
    assert traced == whole, "every interaction is traced back to its record (cut objects are one row)"


def test_the_database_is_written_only_when_a_view_changes(ingested_home: Pipeline, tmp_path: Path) -> None:
    pipeline = copy_home(ingested_home, tmp_path / "home")
    pipeline.warehouse.ensure_views("interactions", unsaid)  # another root than before: the views change once
    before = pipeline.warehouse.path.stat().st_mtime_ns
    pipeline.warehouse.ensure_views("interactions", unsaid)
    assert pipeline.warehouse.path.stat().st_mtime_ns == before


def store(folder: Path) -> Warehouse:
    tables = Tables(folder)
    tables.publish_frame("similar_items", "2025-11-01", pl.DataFrame({"item_id": ["a"]}), {})
    tables.publish_frame("recommendations", "2025-11-01", pl.DataFrame({"user_id": ["u"]}), {})
    return Warehouse(folder)


@pytest.mark.parametrize("length", [0, 100, 4096, 12288, 100_000])
def test_a_database_torn_by_a_kill_is_made_again(tmp_path: Path, length: int) -> None:
    warehouse = store(tmp_path)
    for table in ("recommendations", "similar_items"):
        warehouse.ensure_views(table, unsaid)
    warehouse.path.write_bytes(warehouse.path.read_bytes()[:length])
    (tmp_path / "warehouse.views.json").unlink()  # written after the views
    said: list[str] = []
    warehouse.ensure_views("recommendations", said.append)
    assert views(warehouse.path) == {"recommendations", "similar_items"}
    assert "is damaged" in said[0]


def test_a_deleted_database_gets_all_its_views_again(tmp_path: Path) -> None:
    warehouse = store(tmp_path)
    for table in ("recommendations", "similar_items"):
        warehouse.ensure_views(table, unsaid)
    warehouse.path.unlink()
    warehouse.ensure_views("recommendations", unsaid)
    assert views(warehouse.path) == {"recommendations", "similar_items"}


def test_an_open_shell_blocks_no_run(tmp_path: Path) -> None:
    warehouse = store(tmp_path)
    (tmp_path / "similar_items").rename(tmp_path / "later")
    warehouse.ensure_views("recommendations", unsaid)
    (tmp_path / "later").rename(tmp_path / "similar_items")
    shell = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import duckdb, sys; c = duckdb.connect(sys.argv[1], read_only=True); print('open', flush=True); input()",
            str(warehouse.path),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert shell.stdout is not None
        assert shell.stdout.readline() == b"open\n"
        said: list[str] = []
        warehouse.ensure_views("similar_items", said.append)
        assert "is open in another program" in said[0]
    finally:
        shell.communicate(b"\n")
    warehouse.ensure_views("similar_items", unsaid)
    assert views(warehouse.path) == {"recommendations", "similar_items"}


def test_a_path_with_a_quote(tmp_path: Path) -> None:
    warehouse = store(tmp_path / "o'clock")
    warehouse.ensure_views("recommendations", unsaid)
    assert query(warehouse.path, "SELECT user_id FROM recommendations") == [("u",)]


def test_what_a_killed_run_spilled_is_cleared_away(tmp_path: Path) -> None:
    spilled = tmp_path / f".tmp-{dead_pid()}-00000000"
    spilled.mkdir()
    (spilled / "duckdb_temp_storage_S32K-0.tmp").write_bytes(b"x")
    with scratch(tmp_path) as connection:
        assert connection.execute("SELECT 1").fetchall() == [(1,)]
        assert not spilled.exists()
