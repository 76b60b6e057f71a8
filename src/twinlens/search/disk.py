"""Where an index lies, who may write to it, and what the disk's errors mean for it.

Knows nothing of what an index holds; that is store.py's.
"""

import errno
import os
import shlex
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from twinlens.errors import IndexBusy, IndexCorrupt, TwinlensError

FOLDER_NAME = ".twinlens"
DATABASE_NAME = "index.sqlite"
VECTORS_NAME = "vectors.f32"
LOCK_NAME = "lock"


@dataclass(frozen=True)
class Place:
    """The folder of photos and the folder of its index."""

    folder: Path
    index_dir: Path

    @classmethod
    def of(cls, folder: Path, index_dir: Path | None = None) -> "Place":
        """Where the index of `folder` is, or would be made.

        In the folder itself, so that it moves along; in the user's cache when the folder
        cannot be written to.
        """
        inside = folder / FOLDER_NAME
        if index_dir is not None:
            return cls(folder, index_dir)
        if (inside / DATABASE_NAME).exists() or os.access(folder, os.W_OK):
            return cls(folder, inside)
        import hashlib

        place = cls(folder, _user_cache() / "twinlens")
        name = hashlib.blake2b(place.absolute_folder, digest_size=12).hexdigest()
        return cls(folder, place.index_dir / name)

    @property
    def absolute_folder(self) -> bytes:
        return os.fsencode(self.folder.resolve())

    @property
    def database(self) -> Path:
        return self.index_dir / DATABASE_NAME

    @property
    def journal(self) -> Path:
        return self.index_dir / f"{DATABASE_NAME}-journal"

    @property
    def vectors(self) -> Path:
        return self.index_dir / VECTORS_NAME

    def check_folder(self, built_for: bytes) -> None:
        """Raises TwinlensError for another folder's index, whose rows would seem to be gone.

        A folder that has moved is recognised by its old place being empty.
        """
        inside = self.index_dir.resolve().parent == self.folder.resolve()
        if not inside and built_for != self.absolute_folder and os.path.isdir(built_for):
            raise TwinlensError(
                f"{self.index_dir} is the index of {os.fsdecode(built_for)}. "
                f"Give {self.folder} an --index-dir of its own."
            )

    def command(self, *options: str) -> str:
        """`twinlens index` for this folder, to be pasted into a shell."""
        return shlex.join(["twinlens", "index", str(self.folder), *options])

    def corrupt(self, finding: str) -> IndexCorrupt:
        return IndexCorrupt(
            f"{finding}: the index is damaged. The photos are not touched; start it over: "
            f"`{self.command('--rebuild')}`."
        )

    @contextmanager
    def writer_lock(self) -> Iterator[None]:
        """Held by one process at a time. Raises IndexBusy at once rather than wait."""
        with open(self.index_dir / LOCK_NAME, "ab") as file:
            try:
                _lock_file(file)
            except OSError as error:
                raise IndexBusy(
                    f"another twinlens is indexing {self.folder} now. Wait for it to end, or "
                    f"search what it has so far with --no-index."
                ) from error
            yield

    @contextmanager
    def plain_errors(self) -> Iterator[None]:
        """Turns the disk's and SQLite's errors into what happened here and what to do."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise self._explain(error) from error

    def _explain(self, error: OSError | sqlite3.Error) -> TwinlensError:
        code = error.errno if isinstance(error, OSError) else None
        text = str(error)
        if code in (errno.ENOSPC, errno.EDQUOT) or "is full" in text:
            return TwinlensError(
                f"the disk that holds {self.index_dir} is full. What was indexed stays so; "
                f"free some space and run the same command again."
            )
        if code in (errno.EROFS, errno.EACCES, errno.EPERM) or "readonly" in text:
            return TwinlensError(
                f"{self.index_dir} cannot be written to. Search the index as it is with "
                f"--no-index, or keep one elsewhere with --index-dir PATH."
            )
        if "locked" in text:
            return IndexBusy(f"another process keeps {self.index_dir} locked; try again later.")
        # OperationalError is the world's fault; its parent says that the file makes no sense.
        if isinstance(error, sqlite3.DatabaseError) and type(error) is sqlite3.DatabaseError:
            return self.corrupt(f"{self.database}: {text}")
        return TwinlensError(f"{self.index_dir}: {text}")


def _lock_file(file: IO[bytes]) -> None:
    """Raises OSError when another process holds it. The system lets go even after kill -9."""
    if sys.platform == "win32":
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _user_cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
