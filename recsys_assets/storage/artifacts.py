"""Artifacts of several files (training sets, models): `store/ASSET/DAY/VERSION/`, published in one step.

The files are written under a temporary name, the manifest with their SHA-256 comes last, then the folder gets its name
and at the very end the pointer `store/ASSET/DAY/current.json` moves. A kill between any two of these leaves the
artifact as it was before. Nothing here is a pickle: arrays are safetensors, tables Parquet, the rest JSON.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from numpy.typing import NDArray

from recsys_assets.storage import files
from recsys_assets.storage.environment import environment

MANIFEST = "manifest.json"
_POINTER = "current.json"


class ArtifactError(RuntimeError):
    """An artifact is missing or damaged; the message says which and what to do."""


def version_of(**parts: Any) -> str:
    """A short content version (16 hex digits): equal parts give equal versions on every machine."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Artifact:
    """A published artifact.

    Attributes:
        path: its folder.
        version: its version.
        info: what was said of it when it was published.
    """

    path: Path
    version: str
    info: dict[str, Any]

    @property
    def manifest(self) -> dict[str, Any]:
        """{"asset", "day", "version", "info", "environment", "files": name -> {"sha256", "bytes"}}."""
        return _json(self.path / MANIFEST)

    def verify(self) -> None:
        """Compares every file with the manifest.

        Raises:
            ArtifactError: naming the first file that is missing or differs.
        """
        for name, expected in self.manifest["files"].items():
            file = self.path / name
            if not file.is_file() or files.sha256(file) != expected["sha256"]:
                raise ArtifactError(
                    f"{file} is missing or not what was published. Materialize this partition again to rebuild it."
                )


class Artifacts:
    """The artifacts of a store."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def current(self, asset: str, day: str) -> Artifact | None:
        """The published artifact of a day, or None."""
        pointer = self.root / asset / day / _POINTER
        if not pointer.exists():
            return None
        return self.at(asset, day, _json(pointer)["version"])

    def sound(self, asset: str, day: str) -> Artifact | None:
        """The published artifact of a day if its files are what was published; None if there is none or it is damaged.

        Who may keep a partition as it is asks this, so that to materialize a damaged one again does rebuild it.
        """
        try:
            artifact = self.current(asset, day)
            if artifact is not None:
                artifact.verify()
        except ArtifactError:
            return None
        return artifact

    def at(self, asset: str, day: str, version: str) -> Artifact | None:
        """A certain version of a day's artifact, or None."""
        path = self.root / asset / day / version
        if not (path / MANIFEST).is_file():
            return None
        return Artifact(path, version, _json(path / MANIFEST)["info"])

    def need(self, asset: str, day: str) -> Artifact:
        """The verified artifact of a day.

        Raises:
            ArtifactError: there is none, or it is damaged.
        """
        artifact = self.current(asset, day)
        if artifact is None:
            raise ArtifactError(f"{asset} has no partition {day} yet. Materialize {asset} for {day} first.")
        artifact.verify()
        return artifact

    def remove(self, asset: str, day: str, version: str) -> None:
        """Deletes a version, and before it the pointer if that names it. To be called under `lock`."""
        folder = self.root / asset / day
        pointer = folder / _POINTER
        if pointer.exists() and _pointed_at(pointer) in (version, None):
            pointer.unlink()
        files.remove_folder(folder / version)
        with contextlib.suppress(OSError):  # other versions are in it
            folder.rmdir()

    def days(self, asset: str) -> list[str]:
        """The days that have an artifact, in order."""
        folder = self.root / asset
        if not folder.is_dir():
            return []
        return sorted(path.name for path in folder.iterdir() if (path / _POINTER).exists())

    def versions(self, asset: str, day: str) -> list[str]:
        """Every version of a day that has a manifest, present or superseded, in order."""
        return sorted(path.parent.name for path in (self.root / asset / day).glob(f"[!.]*/{MANIFEST}"))

    def lock(self) -> filelock.BaseFileLock:
        """Held while a folder is named and the pointer moves, and while versions are pruned: neither meets the other
        half-way. The operating system drops it with its process."""
        self.root.mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(self.root / "artifacts.lock")

    @contextlib.contextmanager
    def publish(self, asset: str, day: str, version: str, info: dict[str, Any]) -> Iterator[Path]:
        """Yields an empty folder to fill; when the block ends well it becomes the day's artifact.

        The version it supersedes stays until it is pruned (trust/retention.py): a champion may be made of it.

        Args:
            info: JSON-able facts stored in the manifest; may still be filled inside the block.
        """
        folder = self.root / asset / day
        folder.mkdir(parents=True, exist_ok=True)
        files.remove_leftovers(folder)
        temporary = folder / files.temporary_name()
        temporary.mkdir()
        aside = folder / files.temporary_name()
        try:
            yield temporary
            listed = {}
            for path in sorted(path for path in temporary.rglob("*") if path.is_file()):
                files.fsync(path)
                listed[path.relative_to(temporary).as_posix()] = {
                    "sha256": files.sha256(path),
                    "bytes": path.stat().st_size,
                }
            manifest = {
                "asset": asset,
                "day": day,
                "version": version,
                "info": info,
                "environment": environment(),
                "files": listed,
            }
            text = json.dumps(manifest, indent=1, sort_keys=True).encode()
            files.write_bytes(temporary / MANIFEST, text)
            target = folder / version
            with self.lock():
                if not _holds(target, text):
                    if target.exists():  # an equal version, damaged or rebuilt by hand: the new copy takes its place
                        os.replace(target, aside)
                    os.replace(temporary, target)
                    files.fsync(folder)
                files.write_bytes(folder / _POINTER, json.dumps({"version": version}).encode())
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(aside, ignore_errors=True)


def _holds(folder: Path, manifest: bytes) -> bool:
    """Whether the very same stands there already: then no kill can meet the moment in which it is replaced."""
    path = folder / MANIFEST
    if not path.is_file() or path.read_bytes() != manifest:
        return False
    try:
        Artifact(folder, folder.name, {}).verify()
    except ArtifactError:
        return False
    return True


def _pointed_at(pointer: Path) -> str | None:
    """The version that a pointer names; None if it is damaged."""
    try:
        return str(_json(pointer)["version"])
    except (ArtifactError, KeyError):
        return None


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is not readable. Materialize this partition again to rebuild it.") from error
    return found


def save_state(folder: Path, arrays: Mapping[str, NDArray[Any]], params: Mapping[str, Any]) -> None:
    """Writes a model's state: `arrays.safetensors` (same arrays, same bytes) and `params.json`."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "arrays.safetensors")
    (folder / "params.json").write_text(json.dumps(params, indent=1, sort_keys=True), encoding="utf-8")


def load_state(folder: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Reads what `save_state` wrote."""
    from safetensors.numpy import load_file

    return load_file(folder / "arrays.safetensors"), json.loads((folder / "params.json").read_text(encoding="utf-8"))


def link(source: Path, target: Path) -> None:
    """A second name for a published file, or a copy where the file system has no hard links.

    Published files are never changed in place, so sharing them is safe.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def link_tree(source: Path, target: Path) -> None:
    """`link` for every file below `source`."""
    shutil.copytree(source, target, copy_function=lambda a, b: link(Path(a), Path(b)))
