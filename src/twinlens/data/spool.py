"""Brings a shard that cannot be read at any place (gzipped, remote) to a plain local file.

What is fetched lies in a folder of this process and goes when nobody needs it any more, or
stays in a folder of the user's. Knows bytes, not samples.
"""

import atexit
import contextlib
import functools
import gzip
import hashlib
import io
import os
import shutil
import tempfile
import threading
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from twinlens.data.remote import CHUNK_BYTES, open_command, open_url

PREFIX = "twinlens-shards-"
LOCK_NAME = "in-use"
LARGEST_SHARD_BYTES = 64 << 30  # uncompressed: a shard that unpacks for ever must not fill the disk

_ONE_FOLDER = threading.Lock()


class SpooledFile:
    """A file that exists as long as this object does; `path` may be handed to other processes."""

    def __init__(self, path: str, *, keep: bool) -> None:
        self.path = path
        if not keep:
            weakref.finalize(self, _remove, path)


def spooled(
    place: str, *, allow_private_hosts: bool, timeout_seconds: float, keep_folder: str | None
) -> tuple[SpooledFile, str]:
    """A plain copy of the shard at `place`, and what is wrong with it, or "".

    A gzip stream that is cut short is kept as far as it goes. Raises OSError when nothing
    can be had.
    """
    kept = None if keep_folder is None else Path(keep_folder) / _kept_name(place)
    if kept is not None and kept.is_file():
        return SpooledFile(str(kept), keep=True), ""
    folder = _own_folder() if kept is None else kept.parent
    os.makedirs(folder, exist_ok=True)
    handle, path = tempfile.mkstemp(dir=folder, suffix=".part")
    try:
        with (
            os.fdopen(handle, "wb") as target,
            _open(place, allow_private_hosts, timeout_seconds) as source,
        ):
            damage = _copy_plain(source, target)
        if kept is None or damage:
            return SpooledFile(path, keep=False), damage
        os.replace(path, kept)
        return SpooledFile(str(kept), keep=True), ""
    except BaseException:
        _remove(path)
        raise


def spool_bytes() -> IO[bytes]:
    """A new file of this process's folder, to be written, closed and made a SpooledFile."""
    return tempfile.NamedTemporaryFile(dir=_own_folder(), delete=False)


def is_gzipped(path: str | os.PathLike[str]) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _open(place: str, allow_private_hosts: bool, timeout_seconds: float) -> io.BufferedReader:
    if place.startswith("pipe:"):
        return open_command(place.removeprefix("pipe:"))
    if place.startswith(("http://", "https://")):
        return open_url(
            place, allow_private_hosts=allow_private_hosts, timeout_seconds=timeout_seconds
        )
    return open(place, "rb")


def _copy_plain(source: io.BufferedReader, target: io.BufferedWriter) -> str:
    """Copy, unzipping what is gzipped; returns what is wrong with a gzip stream, or ""."""
    gzipped = source.peek(2)[:2] == b"\x1f\x8b"
    size_bytes = 0
    try:
        for chunk in _chunks(gzip.GzipFile(fileobj=source) if gzipped else source):
            size_bytes += len(chunk)
            if size_bytes > LARGEST_SHARD_BYTES:
                raise OSError(f"larger than {LARGEST_SHARD_BYTES >> 30} GiB")
            target.write(chunk)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        return f"damaged or cut short: {error}"
    return ""


def _chunks(file: Any) -> Iterator[bytes]:
    # read1, not read: before an error it gives all that could still be unpacked.
    while chunk := file.read1(CHUNK_BYTES):
        yield chunk


def _kept_name(place: str) -> str:
    return hashlib.sha256(place.encode("utf-8")).hexdigest()[:32] + ".tar"


def _own_folder() -> str:
    with _ONE_FOLDER:
        return _make_own_folder()


@functools.cache
def _make_own_folder() -> str:
    """A folder for this process, after those of processes that were killed are removed."""
    _remove_abandoned()
    folder = tempfile.mkdtemp(prefix=PREFIX)
    new, name = os.path.join(folder, "new"), os.path.join(folder, LOCK_NAME)
    lock = open(new, "wb")  # noqa: SIM115 (open until the end)
    with contextlib.suppress(ImportError):
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX)  # until this process ends, however it ends
    # Only a folder with a lock of this name can be taken for abandoned: it is locked by now.
    os.rename(new, name)
    atexit.register(_close_and_remove, lock, folder, os.getpid())
    return folder


def _close_and_remove(lock: IO[bytes], folder: str, owner: int) -> None:
    if os.getpid() != owner:  # a forked child's exit must not take its parent's files
        return
    lock.close()
    shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned() -> None:
    try:
        import fcntl
    except ImportError:  # Windows: the user's temporary folder keeps them
        return
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            with open(folder / LOCK_NAME, "rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # somebody uses it, or it is somebody else's
            continue


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
