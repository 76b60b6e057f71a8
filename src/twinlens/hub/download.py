"""One file, from a URL to the disk: whole, checked, and continued where it broke off.

Bytes gather in NAME.partial, which only a right checksum turns into NAME. Which files, and
from where, is pull.py's to say.
"""

import errno
import hashlib
import http.client
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal
from urllib.parse import urlsplit

from twinlens.errors import CheckpointMismatch, TwinlensError
from twinlens.hub.connection import Connection, Patience

LOCK_NAME = ".pull.lock"
CHUNK_BYTES = 1 << 18
PROGRESS_BYTES = 1 << 20  # so much between two failures, and the first is forgiven
SPARE_BYTES = 50_000_000  # left free on the disk
LOCK_POLL_SECONDS = 0.2


Moved = Callable[[int, int | None], None]  # bytes of a file here, and in all if known


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file on a server, and how to tell that it arrived."""

    name: str  # a plain name, no folders
    url: str
    size_bytes: int | None = None
    sha256: str | None = None
    git_oid: str | None = None  # SHA-1 that git gives a blob; the hub has it for small files


def fetch(
    file: RemoteFile,
    folder: Path,
    connection: Connection,
    *,
    moved: Moved = lambda have_bytes, of_bytes: None,
) -> Path:
    """Bring `file` into `folder`, continuing what an earlier run left there.

    Raises CheckpointMismatch when it
    arrives damaged twice, TwinlensError for the rest.
    """
    target = _inside(folder, file.name)
    partial = _inside(folder, f"{file.name}.partial")
    etag = _inside(folder, f"{file.name}.partial.etag")
    with plain_disk_errors(folder):
        if target.is_file() and _is_whole(target, file):
            moved(target.stat().st_size, file.size_bytes)
            return target
    for _ in range(2):  # the second time without what may have been damaged before
        _fill(partial, etag, file, connection, moved)
        with plain_disk_errors(folder):
            if _is_whole(partial, file):
                with open(partial, "rb+") as done:
                    os.fsync(done.fileno())
                os.replace(partial, target)
                etag.unlink(missing_ok=True)
                return target
            partial.unlink()
            etag.unlink(missing_ok=True)
    raise CheckpointMismatch(
        f"{file.name} arrived from {urlsplit(file.url).netloc} damaged, twice: it is not what its "
        f"published checksum says. Nothing of it was kept; pull again later."
    )


def _fill(
    partial: Path,
    etag: Path,
    file: RemoteFile,
    connection: Connection,
    moved: Moved,
) -> None:
    """Request what is missing of `partial` until it is complete or patience ends."""
    kept = "What was fetched so far is kept. "
    patience = Patience(urlsplit(file.url).netloc, connection.retries, kept=kept)
    mark = 0  # bytes at the last failure that counted
    while True:
        with plain_disk_errors(partial.parent):
            have = partial.stat().st_size if partial.exists() else 0
            version = etag.read_text(encoding="latin-1") if have and etag.exists() else None
        if have == file.size_bytes:
            return
        if have >= mark + PROGRESS_BYTES:
            patience.progressed()
            mark = have
        try:
            with connection.open(file.url, _range_headers(have, version)) as response:
                if response.status == 416 and _total(response) == have:
                    return  # killed between the last byte and the check
                start = _start(response, have, version)
                if start is None:
                    with plain_disk_errors(partial.parent):
                        partial.unlink(missing_ok=True)
                    raise ConnectionError("the file changed on the server meanwhile")
                _receive(response, start, partial, etag, file, moved)
            return
        except http.client.HTTPException as error:
            patience.after(ConnectionError(f"the connection broke: {error}"))
        except OSError as error:
            patience.after(error)


def _range_headers(have: int, version: str | None) -> dict[str, str]:
    if not have:
        return {}
    headers = {"Range": f"bytes={have}-"}
    if version and not version.startswith("W/"):  # a weak one is not allowed there
        headers["If-Range"] = version
    return headers


def _start(response: Any, have: int, version: str | None) -> int | None:
    """Where in the file the response begins; None when what is here is of no use to it."""
    if response.status == 200:
        return 0  # no ranges here, or another version than ours
    if response.status == 416:
        return None
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    same = version is None or response.headers.get("ETag", version) == version
    return have if found and int(found[1]) == have and same else None


def _total(response: Any) -> int | None:
    found = re.fullmatch(r"bytes \S+/(\d+)", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _receive(
    response: Any,
    start: int,
    partial: Path,
    etag: Path,
    file: RemoteFile,
    moved: Moved,
) -> None:
    """Append the body from `start` on. Raises ConnectionError when it ends too early."""
    length = response.headers.get("Content-Length")
    expected = file.size_bytes
    if expected is None and length is not None and length.isdecimal():
        expected = start + int(length)
        require_space(partial.parent, int(length), file.name)
    with plain_disk_errors(partial.parent):
        if start == 0:
            etag.unlink(missing_ok=True)
            if version := response.headers.get("ETag"):
                etag.write_text(version, encoding="latin-1")
    have = start
    with _open(partial, "ab" if start else "wb") as output:
        while chunk := response.read1(CHUNK_BYTES):
            with plain_disk_errors(partial.parent):
                output.write(chunk)
            have += len(chunk)
            moved(have, expected)
            if expected is not None and have > expected:
                return  # more than was promised: the checksum will say so
        with plain_disk_errors(partial.parent):
            output.flush()
    if expected is not None and have < expected:
        raise ConnectionError(f"the connection ended after {have:,} of {expected:,} bytes")


def _is_whole(path: Path, file: RemoteFile) -> bool:
    """Whether size and checksum are the published ones."""
    size = path.stat().st_size
    if file.size_bytes not in (None, size):
        return False
    with open(path, "rb") as stream:
        if file.sha256 is not None:
            return hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256.lower()
        if file.git_oid is not None:
            digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
            while chunk := stream.read(CHUNK_BYTES):
                digest.update(chunk)
            return digest.hexdigest() == file.git_oid.lower()
    return True


def require_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Raises TwinlensError when the disk that holds `folder` has less than that free."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes + SPARE_BYTES:
        raise TwinlensError(
            f"{what} needs {readable(needed_bytes)}, and the disk that holds {folder} has "
            f"{readable(free_bytes)} free. Free some, or choose another disk with --to FOLDER."
        )


def readable(size_bytes: int) -> str:
    """`605 MB`, `3.4 GB`."""
    if size_bytes >= 1e9:
        return f"{size_bytes / 1e9:.1f} GB"
    return f"{size_bytes / 1e6:.0f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.0f} kB"


@contextmanager
def plain_disk_errors(folder: Path) -> Iterator[None]:
    """Turns the disk's errors into what happened here and what to do.

    Also tells them from the network's, which are OSErrors as well and worth another attempt.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TwinlensError(
                f"the disk that holds {folder} is full. What was fetched is kept; free some space "
                f"and pull again, or choose another disk with --to FOLDER."
            ) from error
        raise TwinlensError(
            f"{folder} cannot be written to ({error.strerror or error}). Choose another place "
            f"with --to FOLDER, or set TWINLENS_CACHE."
        ) from error


@contextmanager
def sole_writer(folder: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold `folder` against other pulls, after waiting for one that holds it now.

    The system lets go of the lock even after kill -9; the file stays.
    """
    with _open(folder / LOCK_NAME, "ab") as lock:
        waited = False
        while not _try_lock(lock):
            if not waited:
                on_wait()
                waited = True
            time.sleep(LOCK_POLL_SECONDS)
        yield


def _open(path: Path, mode: Literal["ab", "wb"]) -> IO[bytes]:
    with plain_disk_errors(path.parent):
        return open(path, mode)


def _try_lock(file: IO[bytes]) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Some network disks have no locks at all: better to go on than to wait for ever.
        return error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
    return True


def _inside(folder: Path, name: str) -> Path:
    """`folder / name` for a plain name. Raises TwinlensError for one that leads elsewhere."""
    if not re.fullmatch(r"[A-Za-z0-9_][\w.+-]*", name, re.ASCII):
        raise TwinlensError(f"the server names a file {name!r}, which is refused: no plain name.")
    return folder / name
