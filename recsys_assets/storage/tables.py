"""One Parquet file a table and day: `store/TABLE/YYYY-MM-DD.parquet`.

A partition is replaced by one rename, so readers and parallel backfills never meet a lock or half a day. What is known
of the partition (its version, counts) travels inside the file's own metadata: two files could disagree after a kill.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from recsys_assets.storage import files
from recsys_assets.storage.artifacts import ArtifactError

if TYPE_CHECKING:  # imported where it is needed: who asks for `info` alone does without
    import polars as pl

_DAY_FILE = re.compile(r"^(\d{4}-\d{2}-\d{2})\.parquet$")
_INFO_KEY = "recsys"
_NEARLY_FULL = 1 << 20  # free bytes


def info_text(info: dict[str, Any]) -> str:
    """The value of the file metadata entry `recsys`, for writers that set it themselves."""
    return json.dumps(info, sort_keys=True)


class Tables:
    """The tables of a store.

    Attributes:
        root: the store's folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, table: str, day: str) -> Path:
        return self.root / table / f"{day}.parquet"

    def days(self, table: str) -> list[str]:
        """The days that have a partition, in order."""
        folder = self.root / table
        if not folder.is_dir():
            return []
        return sorted(match[1] for path in folder.iterdir() if (match := _DAY_FILE.match(path.name)))

    def info(self, table: str, day: str) -> dict[str, Any] | None:
        """What was said of the partition when it was published; None if there is none.

        Raises:
            ArtifactError: the file is damaged.
        """
        path = self.path(table, day)
        if not path.exists():
            return None
        try:
            entries = pq.read_metadata(path).metadata or {}
        except (pa.ArrowInvalid, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # not of a damaged footer
                raise
            raise ArtifactError(
                f"{path} is not the Parquet file that was published. Materialize {table} for {day} again to rebuild it."
            ) from error
        info: dict[str, Any] = json.loads(entries.get(_INFO_KEY.encode(), b"{}"))
        return info

    def sound_info(self, table: str, day: str) -> dict[str, Any] | None:
        """The same, and None for a damaged file: what decides whether a partition may stay as it is."""
        try:
            return self.info(table, day)
        except ArtifactError:
            return None

    def read(self, table: str, day: str, columns: list[str] | None = None) -> "pl.DataFrame":
        import polars as pl

        return pl.read_parquet(self.path(table, day), columns=columns)

    def publish(self, table: str, day: str, write: Callable[[Path], None], unless_equal: bool = False) -> None:
        """Replaces a partition by the file that `write` makes at the path it is given.

        Args:
            unless_equal: the file stays if it holds the same bytes.
        """
        with files.replacing(self.path(table, day), unless_equal) as temporary:
            write(temporary)

    def publish_frame(self, table: str, day: str, frame: "pl.DataFrame", info: dict[str, Any]) -> None:
        self.publish(table, day, lambda path: write_frame(path, frame, info))


def write_frame(path: Path, frame: "pl.DataFrame", info: dict[str, Any]) -> None:
    """Writes a partition's file. The same rows give the same bytes, whatever the number of threads.

    Raises:
        OSError: the disk is full (ENOSPC), whatever Polars calls it, or the file cannot be written.
    """
    import polars as pl

    try:  # level 1 takes a fifth less CPU than Polars' 3 and a fortieth more bytes; pyarrow, too, has it by default
        frame.write_parquet(path, compression="zstd", compression_level=1, metadata={_INFO_KEY: info_text(info)})
    except pl.exceptions.ComputeError as error:  # of a full disk Polars may say "Invalid thrift" only
        if shutil.disk_usage(path.parent).free >= _NEARLY_FULL:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
