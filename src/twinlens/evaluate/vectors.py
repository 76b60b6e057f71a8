"""Vectors of a data set, embedded once and then kept by content and model.

A picture's key is a hash of its bytes, so renamed, copied and re-packed pictures are found
again, and a changed one is not mistaken. Vectors lie in one SQLite file a model, in the
user's cache. SQLite rather than appended npz files: a run that is killed loses at most its
last batch, two processes may write at once, and 10,000 rows among a million are found
without reading the rest. One file a model: what is no longer needed is deleted by hand.

A second run costs reading and hashing the pictures: 0.65 s of CPU for 10,000 files of 20 KB
and vectors of 512 numbers; 10,000 texts 0.1 s.
"""

import hashlib
import os
import sqlite3
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from PIL import Image

from twinlens.data.image import ImageSource
from twinlens.embed import EmbedderLike, Skipped
from twinlens.hub.cache import cache_folder
from twinlens.runtime.machine import usable_cores

Vectors = Float32[np.ndarray, "item dim"]
Progress = Callable[[int, int], None]  # pictures done, of how many

WAIT_SECONDS = 30.0  # for another process that is writing; a batch takes milliseconds
ROWS_A_QUERY = 500  # SQLite takes at most 999 placeholders in versions before 3.32
PICTURES_A_WRITE = 256  # lost at most when a run is killed
TEXTS_A_WRITE = 4096


class VectorCacheWarning(UserWarning):
    """The cache of vectors could not be used, or was damaged; results are right all the same."""


class VectorCache:
    """Vectors by content and model in `folder`; by default `vectors` in the user's cache.

    Whatever is wrong with its files costs time, not results: damaged ones are moved away
    and computed again, with one VectorCacheWarning.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = Path(folder) if folder is not None else cache_folder() / "vectors"
        self._warned = False
        self._lock = threading.Lock()

    def file(self, model_id: str) -> Path:
        """Where a model's vectors lie."""
        digest = hashlib.blake2b(model_id.encode("utf-8"), digest_size=12).hexdigest()
        return self.folder / f"{digest}.sqlite"

    def read(self, model_id: str, dim: int, keys: Sequence[bytes]) -> dict[bytes, np.ndarray]:
        """The known ones of these keys' vectors (dim,); read-only arrays."""
        found: dict[bytes, np.ndarray] = {}
        if not keys or not self.file(model_id).exists():
            return found

        def fetch(database: sqlite3.Connection) -> None:
            for start in range(0, len(keys), ROWS_A_QUERY):
                part = keys[start : start + ROWS_A_QUERY]
                query = f"SELECT key, vector, crc FROM vectors WHERE key IN ({_marks(part)})"
                for key, data, crc in database.execute(query, part):
                    if len(data) == 4 * dim and zlib.crc32(data) == crc:
                        found[key] = np.frombuffer(data, dtype="<f4")
                    else:
                        self._warn(f"{self.file(model_id)} has damaged rows: computed again.")

        self._with_database(model_id, fetch)
        return found

    def write(self, model_id: str, keys: Sequence[bytes], vectors: Vectors) -> None:
        """Adds vectors, all of them or, if the process is killed meanwhile, none."""
        rows = []
        for key, vector in zip(keys, np.asarray(vectors, dtype="<f4"), strict=True):
            data = vector.tobytes()
            rows.append((key, data, zlib.crc32(data)))

        def store(database: sqlite3.Connection) -> None:
            with database:  # one transaction
                database.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", rows)

        self._with_database(model_id, store)

    def _with_database(self, model_id: str, work: Callable[[sqlite3.Connection], None]) -> None:
        """A connection for each piece of work, some 0.3 ms: no thread or fork shares one."""
        path = self.file(model_id)
        with self._lock:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                try:
                    _run(path, work)
                except sqlite3.DatabaseError as error:
                    if not _is_damage(error):
                        raise
                    self._warn(f"{path} was damaged ({error}): its vectors are computed again.")
                    path.unlink(missing_ok=True)
                    # It would be rolled back into the new file.
                    path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
                    _run(path, work)
            # A full disk, a folder that cannot be written, a writer that holds on too long.
            except (OSError, sqlite3.Error) as error:
                self._warn(f"{path} cannot be used ({error}): vectors are not kept this time.")

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(message, VectorCacheWarning, stacklevel=6)


def _run(path: Path, work: Callable[[sqlite3.Connection], None]) -> None:
    with closing(sqlite3.connect(path, timeout=WAIT_SECONDS)) as database:
        database.execute(
            "CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB, crc INTEGER)"
        )
        work(database)


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """SQLite's codes for a broken file, one of another kind, and a table with other columns."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)


def _marks(values: Sequence[object]) -> str:
    return ",".join("?" * len(values))


def content_key(source: ImageSource) -> bytes | None:
    """A picture's key: 16 bytes, equal for equal content; None where it cannot be read."""
    digest = hashlib.blake2b(digest_size=16, person=b"twinlens image")
    if isinstance(source, bytes):
        digest.update(source)
    elif isinstance(source, Image.Image):
        digest.update(repr((source.mode, source.size, source.getexif().get(0x0112))).encode())
        digest.update(source.tobytes())
    elif isinstance(source, np.ndarray):
        digest.update(repr((source.dtype.str, source.shape)).encode())
        digest.update(source.tobytes())
    else:
        try:
            with open(source, "rb") as file:
                digest.update(file.read())
        except OSError:
            return None
    return digest.digest()


def text_key(text: str) -> bytes:
    """A text's key: 16 bytes."""
    data = text.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=16, person=b"twinlens text").digest()


def cached_images(
    embedder: EmbedderLike,
    images: Sequence[ImageSource],
    *,
    cache: VectorCache | None = None,
    progress: Progress | None = None,
) -> tuple[Vectors, list[Skipped]]:
    """A unit vector for each picture that can be read, in order, and those that cannot.

    A picture that occurs several times is embedded once. Without a `cache` nothing is kept
    and nothing hashed.
    """
    vectors = np.full((len(images), embedder.dim), np.nan, dtype=np.float32)
    keys: list[bytes | None] = [None] * len(images)
    if cache is not None:
        keys = list(_keys(images))
        known = cache.read(embedder.model_id, embedder.dim, list({k for k in keys if k}))
        for row, key in enumerate(keys):
            if key is not None and key in known:
                vectors[row] = known[key]
    done = ~np.isnan(vectors[:, 0])
    wanted, same = _first_of_each(keys, done)
    if progress is not None:
        progress(int(done.sum()), len(images))
    skipped = _embed_rows(embedder, images, wanted, keys, vectors, cache, progress)
    for row, first in same.items():
        vectors[row] = vectors[first]
    reasons = {item.position: item for item in skipped}
    skipped += [
        Skipped(row, reasons[first].source, reasons[first].reason, reasons[first].lasting)
        for row, first in same.items()
        if first in reasons
    ]
    skipped.sort(key=lambda item: item.position)
    kept = np.ones(len(images), dtype=bool)
    kept[[item.position for item in skipped]] = False
    return vectors[kept], skipped


def _keys(images: Sequence[ImageSource]) -> Iterator[bytes | None]:
    """Hashing and reading let go of Python's lock, so threads help."""

    def key(row: int) -> bytes | None:
        return content_key(images[row])

    if not isinstance(images, list | tuple):  # what is lazy may unpack many at a time
        yield from map(key, range(len(images)))
        return
    with ThreadPoolExecutor(max_workers=usable_cores()) as pool:
        yield from pool.map(key, range(len(images)))


def _first_of_each(
    keys: Sequence[bytes | None], done: np.ndarray
) -> tuple[list[int], dict[int, int]]:
    """The rows to be embedded, and for each other row without a vector the one it equals."""
    first: dict[bytes, int] = {}
    wanted: list[int] = []
    same: dict[int, int] = {}
    for row in np.flatnonzero(~done).tolist():
        key = keys[row]
        if key is not None and key in first:
            same[row] = first[key]
            continue
        if key is not None:
            first[key] = row
        wanted.append(row)
    return wanted, same


def _embed_rows(
    embedder: EmbedderLike,
    images: Sequence[ImageSource],
    rows: Sequence[int],
    keys: Sequence[bytes | None],
    vectors: Vectors,
    cache: VectorCache | None,
    progress: Progress | None,
) -> list[Skipped]:
    """Fills these rows of `vectors` and keeps them every PICTURES_A_WRITE pictures.

    A picture that changed since it was hashed gets its old key; the next run is wrong about
    it then. Nobody edits a data set while it is measured.
    """
    skipped: list[Skipped] = []
    fresh: list[int] = []
    finished = len(images) - len(rows)

    def keep() -> None:
        stored = [(key, row) for row in fresh if (key := keys[row]) is not None]
        if cache is not None and stored:
            cache.write(
                embedder.model_id, [key for key, _ in stored], vectors[[row for _, row in stored]]
            )
        fresh.clear()

    if not rows:
        return skipped
    try:
        for batch in embedder.stream_images(images[row] for row in rows):
            places = [rows[position] for position in batch.positions]
            vectors[places] = batch.vectors
            fresh += places
            skipped += [
                Skipped(rows[s.position], s.source, s.reason, s.lasting) for s in batch.skipped
            ]
            finished += len(batch.positions) + len(batch.skipped)
            if len(fresh) >= PICTURES_A_WRITE:
                keep()
            if progress is not None:
                progress(finished, len(images))
    finally:  # Ctrl-C must not cost what is done
        keep()
    return skipped


def cached_texts(
    embedder: EmbedderLike, texts: Sequence[str], *, cache: VectorCache | None = None
) -> Vectors:
    """A unit vector for each text, in order; equal texts are embedded once."""
    unique = list(dict.fromkeys(texts))
    place = {text: row for row, text in enumerate(unique)}
    vectors = np.empty((len(unique), embedder.dim), dtype=np.float32)
    keys = [text_key(text) for text in unique] if cache is not None else []
    known = {} if cache is None else cache.read(embedder.model_id, embedder.dim, keys)
    missing = list(range(len(unique)))
    if cache is not None:
        missing = [row for row, key in enumerate(keys) if key not in known]
        for row, key in enumerate(keys):
            if key in known:
                vectors[row] = known[key]
    for start in range(0, len(missing), TEXTS_A_WRITE):
        rows = missing[start : start + TEXTS_A_WRITE]
        vectors[rows] = embedder.texts([unique[row] for row in rows])
        if cache is not None:
            cache.write(embedder.model_id, [keys[row] for row in rows], vectors[rows])
    return vectors[[place[text] for text in texts]]
