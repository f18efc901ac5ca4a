import json
import os
from pathlib import Path

import numpy as np
import pytest

from recsys_assets.storage import artifacts as module
from recsys_assets.storage.artifacts import (
    ArtifactError,
    Artifacts,
    link,
    link_tree,
    load_state,
    save_state,
    version_of,
)
from recsys_assets.storage.environment import environment
from recsys_assets_tests.graph import contents, snapshot
from recsys_assets_tests.storage.test_files import dead_pid

DAY = "2025-11-01"


def publish(store: Artifacts, version: str = "v1", text: str = "one", day: str = DAY) -> None:
    info = {"n": 1}
    with store.publish("model", day, version, info) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "a.txt").write_text(text)
        (folder / "b.txt").write_text("b")
        info["n"] = 2


def test_a_published_artifact_is_found_and_verifies(tmp_path: Path) -> None:
    store = Artifacts(tmp_path)
    publish(store)
    artifact = store.need("model", DAY)
    assert artifact.version == "v1"
    assert artifact.info == {"n": 2}, "info may be filled inside the block"
    assert (artifact.path / "deep/a.txt").read_text() == "one"
    assert store.days("model") == [DAY]
    assert store.sound("model", DAY) == artifact
    manifest = json.loads((artifact.path / "manifest.json").read_text())
    assert set(manifest["files"]) == {"deep/a.txt", "b.txt"}
    assert (manifest["asset"], manifest["day"], manifest["version"]) == ("model", DAY, "v1")
    assert manifest["environment"] == environment()


def test_what_is_not_there(tmp_path: Path) -> None:
    store = Artifacts(tmp_path)
    assert store.current("model", DAY) is None
    assert store.sound("model", DAY) is None
    assert store.at("model", DAY, "v1") is None
    assert store.days("model") == []
    with pytest.raises(ArtifactError, match=f"model has no partition {DAY} yet. Materialize model for {DAY} first"):
        store.need("model", DAY)


def test_a_newer_version_takes_the_place_of_the_older_which_stays(tmp_path: Path) -> None:
    store = Artifacts(tmp_path)
    publish(store, "v1", "one")
    publish(store, "v2", "two")
    assert (store.need("model", DAY).path / "deep/a.txt").read_text() == "two"
    old = store.at("model", DAY, "v1")
    assert old is not None
    old.verify()
    assert store.versions("model", DAY) == ["v1", "v2"]


def test_the_same_version_again_moves_the_pointer_and_nothing_else(tmp_path: Path) -> None:
    store = Artifacts(tmp_path)
    publish(store, "v1", "one")
    before = snapshot(tmp_path / "model" / DAY / "v1")
    publish(store, "v2", "two")
    publish(store, "v1", "one")
    assert store.need("model", DAY).version == "v1"
    assert snapshot(tmp_path / "model" / DAY / "v1") == before, "no moment in which a champion's files are gone"
    publish(store, "v1", "made otherwise")
    assert (store.need("model", DAY).path / "deep/a.txt").read_text() == "made otherwise"


def test_a_version_is_removed_with_its_pointer(tmp_path: Path) -> None:
    store = Artifacts(tmp_path)
    publish(store, "v1", "one")
    publish(store, "v2", "two")
    store.remove("model", DAY, "v1")
    assert store.need("model", DAY).version == "v2"
    assert store.at("model", DAY, "v1") is None
    store.remove("model", DAY, "v2")
    assert store.current("model", DAY) is None
    assert not (tmp_path / "model" / DAY).exists()
    publish(store, "v3", "three")
    (tmp_path / "model" / DAY / "current.json").write_text("")
    store.remove("model", DAY, "v3")
    assert not (tmp_path / "model" / DAY).exists()


def test_a_failed_publish_leaves_everything_as_it_was(tmp_path: Path) -> None:
    store = Artifacts(tmp_path)
    publish(store)
    before = snapshot(tmp_path)

    def torn() -> None:
        with store.publish("model", DAY, "v2", {}) as folder:
            (folder / "a.txt").write_text("half")
            raise RuntimeError("torn")

    with pytest.raises(RuntimeError, match="torn"):
        torn()
    assert snapshot(tmp_path) == before
    assert sorted(os.listdir(tmp_path / "model" / DAY)) == ["current.json", "v1"]


@pytest.mark.parametrize("step", range(12))
def test_an_error_at_any_step_leaves_the_old_artifact_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """The disk gives up at the n-th durable step (fsync or rename) of a publication."""
    store = Artifacts(tmp_path)
    publish(store)
    steps = 0

    def failing(real):  # type: ignore[no-untyped-def]
        def call(*args):  # type: ignore[no-untyped-def]
            nonlocal steps
            steps += 1
            if steps == step + 1:
                raise OSError(5, "Input/output error")
            return real(*args)

        return call

    monkeypatch.setattr(module.files, "fsync", failing(module.files.fsync))
    monkeypatch.setattr(os, "replace", failing(os.replace))
    try:
        publish(store, "v2", "two")
    except OSError:
        assert steps == step + 1
    else:
        assert steps <= step, "the error was swallowed"
    monkeypatch.undo()
    found = store.need("model", DAY)
    assert (found.path / "deep/a.txt").read_text() == {"v1": "one", "v2": "two"}[found.version]
    assert not list(tmp_path.rglob(".tmp-*"))


@pytest.mark.parametrize("harm", ["changed", "missing", "manifest", "manifest gone"])
def test_damage_is_found_and_publishing_the_same_version_again_mends_it(tmp_path: Path, harm: str) -> None:
    store = Artifacts(tmp_path)
    publish(store)
    folder = tmp_path / "model" / DAY / "v1"
    good = contents(tmp_path)
    if harm == "changed":
        (folder / "deep/a.txt").write_text("onE")
    elif harm == "missing":
        (folder / "b.txt").unlink()
    elif harm == "manifest":
        (folder / "manifest.json").write_text('{"files": {')
    else:
        (folder / "manifest.json").unlink()
    assert store.sound("model", DAY) is None
    with pytest.raises(ArtifactError, match="Materialize"):
        store.need("model", DAY)
    publish(store)
    assert contents(tmp_path) == good
    assert store.sound("model", DAY) is not None


def test_a_damaged_pointer_is_explained_and_mended(tmp_path: Path) -> None:
    store = Artifacts(tmp_path)
    publish(store)
    (tmp_path / "model" / DAY / "current.json").write_text("")
    assert store.sound("model", DAY) is None
    with pytest.raises(ArtifactError, match=r"current\.json is not readable. Materialize this partition again"):
        store.need("model", DAY)
    publish(store)
    assert store.need("model", DAY).version == "v1"


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    store = Artifacts(tmp_path)
    publish(store)
    folder = tmp_path / "model" / DAY
    dead, alive = folder / f".tmp-{dead_pid()}-00000000", folder / f".tmp-{os.getppid()}-00000000"
    for path in (dead, alive):
        path.mkdir()
        (path / "half").write_text("half")
    publish(store, "v2")
    assert not dead.exists()
    assert (alive / "half").exists()


def test_versions_are_stable_and_tell_parts_apart() -> None:
    assert version_of(a=1, b={"x": [1, 2]}) == version_of(b={"x": [1, 2]}, a=1)
    assert len({version_of(a=1), version_of(a="1"), version_of(b=1), version_of(a=None), version_of()}) == 5


def test_states_come_back_and_equal_ones_give_equal_bytes(tmp_path: Path) -> None:
    arrays = {"b": np.arange(6, dtype=np.int32).reshape(2, 3).T, "a": np.array([1.5, np.inf], np.float32)}
    save_state(tmp_path / "one", arrays, {"z": 1, "a": None})
    save_state(tmp_path / "two", dict(reversed(arrays.items())), {"a": None, "z": 1})
    found, params = load_state(tmp_path / "one")
    assert params == {"z": 1, "a": None}
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_links_share_the_file_and_fall_back_to_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "a").write_text("a")
    link_tree(source, tmp_path / "target")
    assert (tmp_path / "target/deep/a").stat().st_ino == (source / "deep/a").stat().st_ino

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    link(source / "deep/a", tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "a"
    assert (tmp_path / "copy").stat().st_ino != (source / "deep/a").stat().st_ino
