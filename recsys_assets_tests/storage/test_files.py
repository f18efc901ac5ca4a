import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recsys_assets.storage import files


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_write_bytes_replaces(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    files.write_bytes(path, b"one")
    inode = path.stat().st_ino
    files.write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_ino != inode, "a new file takes the name; the old one is never written into"
    assert os.listdir(path.parent) == ["file"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.write_bytes(path, b"old")

    def torn() -> None:
        with files.replacing(path) as temporary:
            temporary.write_bytes(b"ne")
            raise RuntimeError("torn")

    with pytest.raises(RuntimeError, match="torn"):
        torn()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_the_old_file_stands_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.write_bytes(path, b"old")
    with files.replacing(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content, then the name, then the folder's entry: a power cut between any two leaves the old file or the new."""
    done: list[str] = []
    real_fsync, real_replace = files.fsync, os.replace

    def fsync(path: Path) -> None:
        done.append("folder" if path == tmp_path else "content")
        real_fsync(path)

    def replace(source: Path, target: Path) -> None:
        done.append(target.name)
        real_replace(source, target)

    monkeypatch.setattr(files, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    files.write_bytes(tmp_path / "file", b"x")
    assert done == ["content", "file", "folder"]


def test_a_number_in_use_again_protects_nothing_for_longer_than_a_day(tmp_path: Path) -> None:
    for name, hours in (("old", 25), ("new", 23)):
        path = tmp_path / f".tmp-{os.getpid()}-{name}"
        path.write_bytes(b"x")
        os.utime(path, (then := time.time() - hours * 3600, then))
    files.remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == [f".tmp-{os.getpid()}-new"]


def test_leftovers_of_the_dead_go_those_of_the_living_stay(tmp_path: Path) -> None:
    dead = dead_pid()
    (tmp_path / f".tmp-{dead}-00000000").write_bytes(b"x")
    (tmp_path / f".tmp-{dead}-11111111").mkdir()
    (tmp_path / f".tmp-{dead}-11111111" / "part").write_bytes(b"x")
    kept = {f".tmp-{os.getpid()}-22222222", ".tmp-1-33333333", ".tmp-x", "2025-11-01.parquet", f"tmp-{dead}-4"}
    for name in kept:
        (tmp_path / name).write_bytes(b"x")
    files.write_bytes(tmp_path / "file", b"y")
    assert set(os.listdir(tmp_path)) == kept | {"file"}


def test_a_leftover_link_is_removed_not_what_it_points_to(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"x")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / f".tmp-{dead_pid()}-00000000").symlink_to(outside)
    files.remove_leftovers(folder)
    assert os.listdir(folder) == []
    assert (outside / "file").exists()


def test_temporary_names_differ() -> None:
    assert len({files.temporary_name() for _ in range(100)}) == 100


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256(tmp_path / "file") == expected


def test_a_folder_half_deleted_has_lost_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "manifest.json").write_bytes(b"{}")
    seen: list[list[str]] = []
    monkeypatch.setattr(files.shutil, "rmtree", lambda *_, **__: seen.append(os.listdir(tmp_path)))
    files.remove_folder(tmp_path / "v1")
    assert len(seen) == 1
    assert all(name.startswith(f".tmp-{os.getpid()}-") for name in seen[0]), "a kill in here leaves a leftover"
