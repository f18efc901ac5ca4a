import os
from pathlib import Path

import polars as pl
import pytest

from recsys_assets.storage.artifacts import ArtifactError
from recsys_assets.storage.tables import Tables


def frame(*values: int) -> pl.DataFrame:
    return pl.DataFrame({"a": values, "b": [str(value) for value in values]})


def test_a_partition_comes_back_with_its_info(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    tables.publish_frame("t", "2025-11-02", frame(1, 2), {"version": "é", "counts": {"kept": 2}})
    assert tables.read("t", "2025-11-02").equals(frame(1, 2))
    assert tables.read("t", "2025-11-02", ["b"]).columns == ["b"]
    assert tables.info("t", "2025-11-02") == {"version": "é", "counts": {"kept": 2}}


def test_what_is_not_there(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    assert tables.info("t", "2025-11-02") is None
    assert tables.days("t") == []


def test_a_damaged_file_is_told_from_a_sound_one(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    tables.publish_frame("t", "2025-11-02", frame(1), {"version": "v"})
    assert tables.sound_info("t", "2025-11-02") == {"version": "v"}
    path = tables.path("t", "2025-11-02")
    sound = path.read_bytes()
    for damaged in (b"PAR1", sound[:4] + bytes(len(sound) - 12) + sound[-8:]):
        path.write_bytes(damaged)
        assert tables.sound_info("t", "2025-11-02") is None
        with pytest.raises(ArtifactError, match=r"not the Parquet file that was published\. Materialize t for"):
            tables.info("t", "2025-11-02")


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    tables = Tables(tmp_path)
    tables.publish_frame("t", "2025-11-02", frame(1), {"version": "v"})
    monkeypatch.setattr("pyarrow.parquet.read_metadata", refused)
    for ask in (tables.info, tables.sound_info):
        with pytest.raises(PermissionError, match=r"2025-11-02\.parquet"):
            ask("t", "2025-11-02")


def test_a_file_without_info(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    tables.publish("t", "2025-11-02", lambda path: frame(1).write_parquet(path))
    assert tables.info("t", "2025-11-02") == {}


def test_days_are_those_of_partition_files(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    for day in ("2025-11-03", "2025-11-01"):
        tables.publish_frame("t", day, frame(1), {})
    for name in (".tmp-1-00000000", "notes.txt", "2025-11-02.parquet.bak", "x2025-11-02.parquet"):
        (tmp_path / "t" / name).write_bytes(b"x")
    assert tables.days("t") == ["2025-11-01", "2025-11-03"]


def test_a_failed_publish_leaves_the_partition_as_it_was(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    tables.publish_frame("t", "2025-11-01", frame(1), {"version": 1})

    def half(path: Path) -> None:
        path.write_bytes(b"PAR1")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        tables.publish("t", "2025-11-01", half)
    assert tables.read("t", "2025-11-01").equals(frame(1))
    assert tables.info("t", "2025-11-01") == {"version": 1}
    assert os.listdir(tmp_path / "t") == ["2025-11-01.parquet"]


def test_equal_frames_give_equal_bytes(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    tables.publish_frame("t", "2025-11-01", frame(3, 1), {"b": 1, "a": 2})
    tables.publish_frame("t", "2025-11-02", frame(3, 1), {"a": 2, "b": 1})
    assert tables.path("t", "2025-11-01").read_bytes() == tables.path("t", "2025-11-02").read_bytes()
