"""Makes an index agree with its folder, embedding only what is new.

A file whose size and time are as recorded is not opened. Any other file is read once in
full and hashed: a recorded content under a new name is a rename, an unchanged content
with a new time is the same photo, and only the rest is embedded. (Hashing costs about a
millisecond per megabyte, embedding tens per photo. A hash of part of the file would save
little, and could take two scans with the same margins for one.)

Work is committed about every COMMIT_SECONDS: that much a kill can lose.
"""

import contextlib
import functools
import hashlib
import itertools
import os
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, cast

from twinlens.data.image import DEFAULT_MAX_MEGAPIXELS
from twinlens.embed import EmbeddedBatch, EmbedderLike
from twinlens.errors import TwinlensError
from twinlens.search.scan import Scan, scan_folder
from twinlens.search.store import Changes, FileVersion, Index

COMMIT_SECONDS = 0.5  # a commit takes about 20 ms, so this costs 4% at most
COMMIT_PHOTOS = 1024  # bounds the memory of vectors that wait
DIGEST_BYTES = 16


class SkippedFile(NamedTuple):
    """A file that is in no search result, and why."""

    path: Path
    reason: str


@dataclass(kw_only=True)
class SyncReport:
    """What became of every file. `indexed` is what can be found now."""

    added: int = 0
    changed: int = 0
    renamed: int = 0
    removed: int = 0
    unchanged: int = 0  # a new time on the same content included
    skipped: list[SkippedFile] = field(default_factory=list)  # on this run
    skipped_before: int = 0  # known to be unreadable, so not tried again
    indexed: int = 0
    seconds: float = 0.0


class _Candidate(NamedTuple):
    """A file that is not as the index has it. `old_digest` is None for a new one."""

    path: bytes
    size_bytes: int
    mtime_ns: int
    old_size_bytes: int | None
    old_digest: bytes | None


@dataclass
class _Difference:
    candidates: list[_Candidate] = field(default_factory=list)
    vanished: set[bytes] = field(default_factory=set)
    vanished_photos: dict[bytes, list[bytes]] = field(default_factory=dict)  # digest: paths
    vanished_sizes: set[int] = field(default_factory=set)
    unchanged: int = 0
    skipped_before: int = 0


def sync_folder(
    index: Index,
    embedder: EmbedderLike,
    folder: Path,
    *,
    max_megapixels: float = DEFAULT_MAX_MEGAPIXELS,
    progress: Callable[[int, int], None] | None = None,
    on_skip: Callable[[SkippedFile], None] | None = None,
) -> SyncReport:
    """Bring `index` up to date with `folder`.

    `progress` is told how many of how many files are dealt with; `on_skip` of each file
    left out. An unreadable file is remembered and not tried again until it changes or
    `max_megapixels`, the embedder's own limit, grows. An unreadable folder's photos stay.

    An interruption, by Ctrl-C or an error, keeps everything embedded so far.

    Raises IndexBusy when there is something to write and another process is writing, and
    TwinlensError when every photo is gone, which more likely is a disk not mounted.
    """
    started = time.monotonic()
    run = _Run(index, embedder, folder, max_megapixels, progress, on_skip)
    scan = scan_folder(folder)
    if b"" in scan.unreadable:
        raise TwinlensError(f"{folder}: {scan.unreadable[b'']}.")
    if not scan.files and not scan.unreadable and len(index):
        raise TwinlensError(
            f"{folder} holds no pictures now, but {len(index):,} are indexed. Is the disk that "
            f"they are on mounted? If they are gone for good, delete {index.place.index_dir}."
        )
    for path, reason in sorted(scan.unreadable.items()):
        run.skip(path, reason)
    difference = _compare(index, scan, max_megapixels)
    if difference.candidates or difference.vanished:
        # Only now the lock, so that a folder which cannot be written to can be searched.
        with index.writing():
            # Another process may have done the work in between.
            run.apply(_compare(index, scan, max_megapixels))
    else:
        run.report.unchanged = difference.unchanged
        run.report.skipped_before = difference.skipped_before
    run.report.indexed = len(index)
    run.report.seconds = time.monotonic() - started
    return run.report


def _compare(index: Index, scan: Scan, max_megapixels: float) -> _Difference:
    difference = _Difference()
    found = dict(scan.files)
    unreadable_folders = tuple(path for path in scan.unreadable if path.endswith(b"/"))
    for path, size_bytes, mtime_ns, digest, slot, old_limit in index.stored_files():
        now = found.pop(path, None)
        if now is None:
            if path in scan.unreadable or path.startswith(unreadable_folders):
                continue  # not gone, only out of sight
            difference.vanished.add(path)
            if slot is not None:
                difference.vanished_photos.setdefault(digest, []).append(path)
                difference.vanished_sizes.add(size_bytes)
        elif now != (size_bytes, mtime_ns) or (
            old_limit is not None and max_megapixels > old_limit
        ):
            old_digest = digest if slot is not None else None
            difference.candidates.append(_Candidate(path, *now, size_bytes, old_digest))
        elif slot is None:
            difference.skipped_before += 1
        else:
            difference.unchanged += 1
    difference.candidates += [_Candidate(path, *now, None, None) for path, now in found.items()]
    difference.candidates.sort()
    return difference


class _Run:
    """One synchronisation: what is waiting to be committed, and the report so far."""

    def __init__(
        self,
        index: Index,
        embedder: EmbedderLike,
        folder: Path,
        max_megapixels: float,
        progress: Callable[[int, int], None] | None,
        on_skip: Callable[[SkippedFile], None] | None,
    ) -> None:
        self.index = index
        self.embedder = embedder
        self.folder = folder
        self.max_megapixels = max_megapixels
        self.progress = progress or (lambda done, total: None)
        self.on_skip = on_skip or (lambda skipped: None)
        self.report = SyncReport()
        self.changes = Changes()
        self.last_commit = time.monotonic()
        self.done = 0
        self.total = 0

    def apply(self, difference: _Difference) -> None:
        self.report.unchanged = difference.unchanged
        self.report.skipped_before = difference.skipped_before
        self.total = len(difference.candidates)
        self._advance(0)
        try:
            to_embed = self._recognise(difference)
            self.changes.removed += sorted(difference.vanished)
            self.report.removed = len(difference.vanished)
            self._commit()
            self._embed(to_embed)
        finally:
            self._commit()

    def skip(self, path: bytes, reason: str) -> None:
        skipped = SkippedFile(self.folder / os.fsdecode(path), reason)
        self.report.skipped.append(skipped)
        self.on_skip(skipped)

    def _recognise(self, difference: _Difference) -> list[tuple[_Candidate, FileVersion | None]]:
        """Settle what needs no embedding; return the rest, with the versions known by then."""
        rest: list[tuple[_Candidate, FileVersion | None]] = []
        for candidate in difference.candidates:
            may_be_same = candidate.size_bytes == candidate.old_size_bytes
            if not may_be_same and candidate.size_bytes not in difference.vanished_sizes:
                rest.append((candidate, None))
                continue
            version = self._read(candidate)
            if version is None:
                continue
            if version.digest == candidate.old_digest:
                self.changes.moved.append((candidate.path, version))
                self.report.unchanged += 1
            elif old_paths := difference.vanished_photos.get(version.digest):
                old_path = old_paths.pop()
                difference.vanished.remove(old_path)
                self.changes.moved.append((old_path, version))
                self.report.renamed += 1
            else:
                rest.append((candidate, version))
                continue
            self._advance(1)
            self._commit_when_due()
        return rest

    def _embed(self, candidates: list[tuple[_Candidate, FileVersion | None]]) -> None:
        waiting: dict[int, tuple[_Candidate, FileVersion]] = {}  # by position in the stream
        position = itertools.count()

        def sources() -> Iterator[str]:
            for candidate, version in candidates:
                version = version or self._read(candidate)
                if version is not None:
                    waiting[next(position)] = (candidate, version)
                    yield str(self.folder / os.fsdecode(candidate.path))

        stream = self.embedder.stream_images(sources())
        # Closed here, not when the garbage is collected: Ctrl-C must stop the decoding threads.
        with contextlib.closing(cast("Generator[EmbeddedBatch]", stream)):
            for batch in stream:
                for place, vector in zip(batch.positions, batch.vectors, strict=True):
                    candidate, version = waiting.pop(place)
                    self.changes.embedded.append((version, vector))
                    if candidate.old_digest is None:
                        self.report.added += 1
                    else:
                        self.report.changed += 1
                for item in batch.skipped:
                    _, version = waiting.pop(item.position)
                    if item.lasting:
                        self.changes.skipped.append((version, item.reason, self.max_megapixels))
                    self.skip(version.path, item.reason)
                self._advance(len(batch.positions) + len(batch.skipped))
                self._commit_when_due()

    def _read(self, candidate: _Candidate) -> FileVersion | None:
        """Hash the file; None, and a skip that is not remembered, when it cannot be read."""
        try:
            with open(self.folder / os.fsdecode(candidate.path), "rb") as file:
                digest = hashlib.file_digest(
                    file, functools.partial(hashlib.blake2b, digest_size=DIGEST_BYTES)
                ).digest()
        except OSError as error:
            gone = isinstance(error, FileNotFoundError)
            reason = "gone before it was read" if gone else (error.strerror or str(error)).lower()
            self.skip(candidate.path, reason)
            self._advance(1)
            return None
        # Size and time are the scan's: a file that changed since will look changed next time.
        return FileVersion(candidate.path, candidate.size_bytes, candidate.mtime_ns, digest)

    def _advance(self, files: int) -> None:
        self.done += files
        self.progress(self.done, self.total)

    def _commit_when_due(self) -> None:
        waited = time.monotonic() - self.last_commit
        if waited >= COMMIT_SECONDS or len(self.changes) >= COMMIT_PHOTOS:
            self._commit()

    def _commit(self) -> None:
        # Handed over first: should this commit fail, the one that cleans up does not repeat it.
        changes, self.changes = self.changes, Changes()
        self.index.commit(changes)
        self.last_commit = time.monotonic()
