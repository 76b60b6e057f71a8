"""Keeps which photo has which vector, on disk, so that a kill loses only what was not committed.

Three files in one folder: `index.sqlite` (a row per file), `vectors.f32` (rows of `dim`
little-endian float32, no header) and `lock` (held while writing). A file's row names a
slot, the number of its row of vectors; that is all that ties the two together:

- Vectors are on disk before the transaction that names their slots begins. A kill between
  the two leaves slots that no row names, and such slots are simply free.
- A slot that a row named when the writer began is not reused by that writer, not even
  after its row is gone. So a search that is under way never sees a vector change.

Knows nothing of folders' contents or of embedding; sync.py decides what is written.
"""

import os
import shlex
import sqlite3
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int

from twinlens.errors import IndexBusy, IndexCorrupt, IndexModelMismatch
from twinlens.search.disk import Place

FORMAT_VERSION = 1
BUSY_SECONDS = 30.0  # how long to wait for another process's commit, which takes milliseconds
FLOAT_BYTES = 4

_SCHEMA = """
CREATE TABLE origin (
    folder BLOB NOT NULL,        -- absolute, when the index was made
    model_id TEXT NOT NULL,
    model_name TEXT NOT NULL,
    dim INTEGER NOT NULL
);
CREATE TABLE files (
    path BLOB PRIMARY KEY,       -- relative to the folder, "/" between parts, as the disk spells it
    size_bytes INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    digest BLOB NOT NULL,        -- of the whole content; recognises a renamed file
    slot INTEGER UNIQUE,         -- row of vectors.f32, or NULL for a file that was skipped,
    reason TEXT,                 -- for this reason,
    max_megapixels REAL,         -- under this limit
    CHECK ((slot IS NULL) = (reason IS NOT NULL))
) WITHOUT ROWID;
"""


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """Whose vectors these are. `name` is what finds the model again: `--model NAME`."""

    model_id: str
    name: str
    dim: int


class FileVersion(NamedTuple):
    """One content of one file."""

    path: bytes
    size_bytes: int
    mtime_ns: int
    digest: bytes


class StoredFile(NamedTuple):
    """A row of the index; `slot` is None for a file that was skipped."""

    path: bytes
    size_bytes: int
    mtime_ns: int
    digest: bytes
    slot: int | None
    max_megapixels: float | None


@dataclass
class Changes:
    """What one commit does to the index, all of it or nothing.

    A file in `embedded`, `skipped` or `moved` replaces whatever its path held before.
    """

    embedded: list[tuple[FileVersion, Float32[np.ndarray, " dim"]]] = field(default_factory=list)
    skipped: list[tuple[FileVersion, str, float]] = field(default_factory=list)
    moved: list[tuple[bytes, FileVersion]] = field(default_factory=list)  # (old path, new)
    removed: list[bytes] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.embedded) + len(self.skipped) + len(self.moved) + len(self.removed)


class Index:
    """An open index. One process may write (IndexBusy for the next), any number may read.

    May be shared between threads.
    """

    model: ModelRecord

    def __init__(self, place: Place) -> None:
        """Use `open` or `create`."""
        self.place = place
        self._resources = ExitStack()
        self._close = weakref.finalize(self, self._resources.close)
        self._one_at_a_time = threading.RLock()
        self._free_slots: list[int] | None = None  # holes, while writing
        self._end_slot = 0
        self._live_cache: tuple[tuple[int, int], Bool[np.ndarray, " slot"]] | None = None

    @classmethod
    def open(cls, folder: Path, index_dir: Path | None = None) -> "Index | None":
        """The index of `folder`, or None when there is none yet.

        Raises IndexCorrupt, and TwinlensError for the index of another folder.
        """
        index = cls(Place.of(folder, index_dir))
        if not index.place.database.exists():
            return None
        with index.place.plain_errors():
            index._connect()
            (version,) = index._database.execute("PRAGMA user_version").fetchone()
            if version == 0:  # killed before its first transaction
                index.close()
                return None
            if version != FORMAT_VERSION:
                raise IndexCorrupt(
                    f"{index.place.index_dir} has format {version}, and this twinlens reads "
                    f"{FORMAT_VERSION}. Install the twinlens that made it, or rebuild: "
                    f"`{index.place.command('--rebuild')}`."
                )
            index._open_vectors()
        return index

    @classmethod
    def create(cls, folder: Path, model: ModelRecord, index_dir: Path | None = None) -> "Index":
        """An empty index for `model`; whatever index was there is gone."""
        index = cls(Place.of(folder, index_dir))
        place = index.place
        with place.plain_errors():
            place.index_dir.mkdir(parents=True, exist_ok=True)
            with place.writer_lock():
                # Unlinked, not emptied: who still reads the old index keeps the old files. The
                # journal first, for it must never meet a database that it does not belong to.
                for path in (place.journal, place.database, place.vectors):
                    path.unlink(missing_ok=True)
                place.vectors.touch()
                index._connect()
                with index._transaction() as database:
                    for statement in _SCHEMA.strip().removesuffix(";").split(";\n"):
                        database.execute(statement)
                    database.execute(
                        "INSERT INTO origin VALUES (?, ?, ?, ?)",
                        (place.absolute_folder, model.model_id, model.name, model.dim),
                    )
                    database.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
                index._open_vectors()
        return index

    def close(self) -> None:
        self._close()

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Reading

    def check_model(self, model: ModelRecord) -> None:
        """Raises IndexModelMismatch unless `model` made this index."""
        own, place = self.model, self.place
        if model.model_id == own.model_id:
            return
        if (model.name, model.dim) == (own.name, own.dim):
            raise IndexModelMismatch(
                f"{place.index_dir} was built with another version of the model {own.name} "
                f"({own.model_id}; this is {model.model_id}). "
                f"Rebuild: `{place.command('--rebuild')}`."
            )
        raise IndexModelMismatch(
            f"{place.index_dir} was built with {own.name} ({own.dim} numbers per image), but "
            f"this model is {model.name} ({model.dim}). Search with "
            f"`--model {shlex.quote(own.name)}`, or rebuild: "
            f"`{place.command('--model', model.name, '--rebuild')}`."
        )

    def stored_files(self) -> list[StoredFile]:
        """Every row, skipped files included."""
        with self._alone() as database:
            rows = database.execute(
                "SELECT path, size_bytes, mtime_ns, digest, slot, max_megapixels FROM files"
            )
            return [StoredFile._make(row) for row in rows]

    def skipped_files(self) -> list[tuple[bytes, str]]:
        """Path and reason of the files that could not be read, by path."""
        with self._alone() as database:
            return database.execute(
                "SELECT path, reason FROM files WHERE slot IS NULL ORDER BY path"
            ).fetchall()

    def __len__(self) -> int:
        """Photos that can be found."""
        with self._alone() as database:
            (count,) = database.execute("SELECT COUNT(slot) FROM files").fetchone()
        return int(count)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Within it, `live_vectors` and `paths` speak of one moment."""
        with self._alone() as database:
            database.execute("BEGIN")
            try:
                yield
            finally:
                database.execute("ROLLBACK")

    def live_vectors(self) -> tuple[Float32[np.ndarray, "slot dim"], Bool[np.ndarray, " slot"]]:
        """The vectors of all slots, mapped rather than read, and which of them are in use."""
        with self._alone():
            live = self._live_slots()
            shape = (len(live), self.model.dim)
            if len(live) == 0:  # nothing to map
                return np.empty(shape, dtype=np.float32), live
            return np.memmap(self._vectors_file, dtype="<f4", mode="r", shape=shape), live

    def paths(self, slots: Sequence[int] | Int[np.ndarray, " hit"]) -> list[bytes]:
        """The photo of each slot, which must be in use."""
        find = "SELECT path FROM files WHERE slot = ?"
        with self._alone() as database:
            return [database.execute(find, (int(slot),)).fetchone()[0] for slot in slots]

    # Writing

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the one writer meanwhile; `commit` needs it. Raises IndexBusy."""
        with ExitStack() as stack:
            with self._alone():
                stack.enter_context(self.place.writer_lock())
                here = os.stat(self.place.vectors)
                if not os.path.samestat(here, os.fstat(self._vectors_file.fileno())):
                    raise IndexBusy(
                        f"another twinlens rebuilt the index of {self.place.folder} just now. "
                        f"Run the same command again."
                    )
                live = self._live_slots()
                self._free_slots = np.flatnonzero(~live).tolist()
                self._end_slot = len(live)
            stack.callback(setattr, self, "_free_slots", None)
            yield

    def commit(self, changes: Changes) -> None:
        """Write it all, durably, or, with an error, nothing."""
        if not changes:
            return
        with self._alone():
            slots = self._write_vectors([vector for _, vector in changes.embedded])
            with self._transaction() as database:
                database.executemany(
                    "DELETE FROM files WHERE path = ?", ((path,) for path in changes.removed)
                )
                for old_path, new in changes.moved:
                    if new.path != old_path:
                        database.execute("DELETE FROM files WHERE path = ?", (new.path,))
                    database.execute(
                        "UPDATE files SET path = ?, size_bytes = ?, mtime_ns = ?, digest = ? "
                        "WHERE path = ?",
                        (*new, old_path),
                    )
                database.executemany(
                    "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, NULL, NULL)",
                    (
                        (*version, slot)
                        for (version, _), slot in zip(changes.embedded, slots, strict=True)
                    ),
                )
                database.executemany(
                    "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, NULL, ?, ?)",
                    ((*version, reason, limit) for version, reason, limit in changes.skipped),
                )

    def _write_vectors(self, vectors: list[Float32[np.ndarray, " dim"]]) -> list[int]:
        """The slots that now hold `vectors`, on disk for good but named by no row yet."""
        if not vectors:
            return []
        slots = self._take_slots(len(vectors))
        row_bytes = self.model.dim * FLOAT_BYTES
        with open(self.place.vectors, "r+b") as file:
            for slot, vector in zip(slots, vectors, strict=True):
                if file.tell() != slot * row_bytes:  # seeking would flush the buffer each time
                    file.seek(slot * row_bytes)
                file.write(vector.astype("<f4").tobytes())
            file.flush()
            os.fsync(file.fileno())
        return slots

    def _take_slots(self, count: int) -> list[int]:
        """Holes first, then what lies behind the last slot."""
        assert self._free_slots is not None, "commit() outside of writing()"
        slots = self._free_slots[:count]
        del self._free_slots[:count]
        begin = self._end_slot
        self._end_slot += count - len(slots)
        return [*slots, *range(begin, self._end_slot)]

    def _live_slots(self) -> Bool[np.ndarray, " slot"]:
        (others,) = self._database.execute("PRAGMA data_version").fetchone()
        version = (others, self._database.total_changes)
        if self._live_cache is None or self._live_cache[0] != version:
            named = self._database.execute("SELECT slot FROM files WHERE slot IS NOT NULL")
            slots = np.fromiter((slot for (slot,) in named), dtype=np.int64)
            live = np.zeros(self._slots_on_disk(), dtype=np.bool_)
            live[slots] = True
            self._live_cache = (version, live)
        return self._live_cache[1]

    def _slots_on_disk(self) -> int:
        """A torn last row counts as not there."""
        size_bytes = os.fstat(self._vectors_file.fileno()).st_size
        return size_bytes // (self.model.dim * FLOAT_BYTES)

    # Opening

    def _connect(self) -> None:
        """No write-ahead log: it would not work on network disks or read-only folders."""
        database = sqlite3.connect(
            self.place.database,
            timeout=BUSY_SECONDS,
            isolation_level=None,  # transactions are begun by hand
            check_same_thread=False,  # _one_at_a_time sees to it
        )
        self._database = self._resources.enter_context(closing(database))

    def _open_vectors(self) -> None:
        (origin,) = self._database.execute("SELECT folder, model_id, model_name, dim FROM origin")
        folder, model_id, model_name, dim = origin
        self.model = ModelRecord(model_id=model_id, name=model_name, dim=dim)
        self.place.check_folder(folder)
        path = self.place.vectors
        if not path.exists():
            raise self.place.corrupt(f"{path} is missing")
        # Kept open, so that rows and vectors stay of one build when another process rebuilds.
        self._vectors_file: IO[bytes] = self._resources.enter_context(path.open("rb"))
        (last,) = self._database.execute("SELECT MAX(slot) FROM files").fetchone()
        slots = self._slots_on_disk()
        if last is not None and last >= slots:
            raise self.place.corrupt(f"{path} holds {slots} vectors, but {last + 1} are in use")

    @contextmanager
    def _alone(self) -> Iterator[sqlite3.Connection]:
        with self.place.plain_errors(), self._one_at_a_time:
            yield self._database

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield self._database
            self._database.execute("COMMIT")
        finally:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
