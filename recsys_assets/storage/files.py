"""Writing files so that a kill at any moment leaves the old one or the new one, never a torn one."""

import contextlib
import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

_TEMPORARY = re.compile(r"^\.tmp-(\d+)-")
_ABANDONED_SECONDS = 86_400


def temporary_name() -> str:
    """A name that listings skip and that tells which process made it, so that a later one can clear up after a kill."""
    return f".tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def replacing(path: Path, unless_equal: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `path`; when the block ends well, what stands there takes the name `path`.

    Args:
        unless_equal: what stands under the name stays if it holds the same bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    temporary = path.parent / temporary_name()
    try:
        yield temporary
        if unless_equal and path.exists() and sha256(path) == sha256(temporary):
            return
        fsync(temporary)
        os.replace(temporary, path)
        fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces a small file atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def remove_folder(path: Path) -> None:
    """Deletes a published folder: first it loses its name, so that a kill half-way leaves no folder that looks whole.

    (A crash test once found an old version with its manifest and without its arrays.)
    """
    aside = path.with_name(temporary_name())
    os.replace(path, aside)
    shutil.rmtree(aside, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Deletes temporary files and folders whose process is gone (killed, or the machine went down).

    After a day also those whose process number is in use: another process has it by then (runs end after six hours).
    """
    for entry in os.scandir(folder):
        match = _TEMPORARY.match(entry.name)
        if match and (not _alive(int(match[1])) or _age(entry) > _ABANDONED_SECONDS):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                Path(entry.path).unlink(missing_ok=True)


def _age(entry: os.DirEntry[str]) -> float:
    try:
        return time.time() - entry.stat(follow_symlinks=False).st_mtime
    except FileNotFoundError:
        return 0.0


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
