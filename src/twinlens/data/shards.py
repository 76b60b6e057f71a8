"""Reads image-text samples from WebDataset-style tar shards.

A shard is a tar file in which the members of one sample stand together and share a
key: `000123.jpg`, `000123.json`. `read_shards` reads whole shards in order, plain or
gzipped; `index_shard` says where in a plain one each sample lies, so that any sample can
be read alone. Pictures stay bytes here; decoding is image.py's.
"""

import json
import os
import tarfile
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from twinlens.data.image import IMAGE_SUFFIXES

# The members of a sample that count, in the order of ShardIndex's columns.
ROLES = ("image", "json", "txt", "cls")

_BLOCK = 512  # bytes; headers and contents begin at multiples of it
_QUICK_KINDS = (b"0", b"\0", b"5", b"x")  # file, file in old tars, folder, pax header


@dataclass(frozen=True)
class Sample:
    """One picture, still encoded, with what its shard says of it."""

    key: str
    image: bytes
    info: dict[str, Any]


@dataclass(frozen=True)
class ShardIndex:
    """Where each sample's members lie in a plain tar; a size of -1 means no such member."""

    keys: list[str]
    offsets: Int64[np.ndarray, "item role"]  # bytes from the beginning of the file
    sizes: Int64[np.ndarray, "item role"]
    damage: str = ""  # why what follows the last sample could not be read


def read_shards(paths: Iterable[Path]) -> Iterator[Sample]:
    """Every sample of every shard, in order.

    A key without both a picture and a JSON object is passed over: shards may carry
    other members too. Raises OSError or tarfile.TarError for a shard cut short.
    """
    for path in paths:
        with tarfile.open(path, "r|*") as tar:  # a stream: gzip cannot seek
            key, image, info = "", None, None
            for member in tar:
                stem, _, suffix = member.name.rpartition(".")
                if stem != key:
                    key, image, info = stem, None, None
                file = tar.extractfile(member)
                if file is None:
                    continue
                if f".{suffix.lower()}" in IMAGE_SUFFIXES:
                    image = file.read()
                elif suffix == "json":
                    info = json.loads(file.read())
                if image is not None and info is not None:
                    yield Sample(key, image, info)
                    image, info = None, None


def index_shard(path: str | os.PathLike[str]) -> ShardIndex:
    """The samples of a plain tar file, found from its headers alone.

    What can be read before any damage is kept. Raises OSError for a file that cannot be opened.
    Keys end at the first dot of a member's name, as WebDataset has it; a repeated role starts
    another sample.
    """
    members, damage = _quick_members(path), ""
    if members is None:
        members, damage = _all_members(path)
    size_bytes = os.path.getsize(path)
    keys: list[str] = []
    offsets, sizes = array("q"), array("q")
    previous, filled = None, set[int]()
    for name, offset, size in members:
        key, role = _key_and_role(name)
        if role is None:
            continue
        if offset + size > size_bytes:
            damage = "cut short"
            break
        if key != previous or role in filled:
            keys.append(key)
            offsets.extend([0] * len(ROLES))
            sizes.extend([-1] * len(ROLES))
            previous, filled = key, set()
        filled.add(role)
        place = (len(keys) - 1) * len(ROLES) + role
        offsets[place], sizes[place] = offset, size
    shape = (len(keys), len(ROLES))
    return ShardIndex(
        keys,
        np.array(offsets, dtype=np.int64).reshape(shape),
        np.array(sizes, dtype=np.int64).reshape(shape),
        damage,
    )


Member = tuple[str, int, int]  # name, where its bytes begin, how many they are


def _all_members(path: str | os.PathLike[str]) -> tuple[list[Member], str]:
    """The files in a tar of any kind, up to any damage, and what the damage is."""
    members: list[Member] = []
    if os.path.getsize(path) == 0:
        return members, "the file is empty"
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                if tar.offset <= member.offset:  # a negative size: it would be read for ever
                    return members, f"damaged at byte {member.offset:,}"
                if member.isreg():
                    members.append((member.name, member.offset_data, member.size))
            end = tar.offset
        with open(path, "rb") as file:  # tarfile takes garbage after the first member for the end
            file.seek(end)
            if file.read(_BLOCK) != bytes(_BLOCK):
                return members, f"damaged or cut short at byte {end:,}"
    except OSError:
        raise
    # Hostile headers make tarfile raise nearly anything; one shard must not end a run.
    except Exception as error:
        return members, f"damaged or cut short: {error or type(error).__name__}"
    return members, ""


def _quick_members(path: str | os.PathLike[str]) -> list[Member] | None:
    """The same for a sound tar of plain files, a tenth of the time; None for any other.

    Format: POSIX.1-1988 ustar, and pax headers that say nothing of names and sizes.
    """
    members: list[Member] = []
    with open(path, "rb", buffering=0) as file:
        position, size_bytes = 0, os.fstat(file.fileno()).st_size
        while True:
            file.seek(position)
            header = file.read(_BLOCK)
            if header == bytes(_BLOCK):
                return members
            kind = header[156:157]
            if len(header) < _BLOCK or header[257:262] != b"ustar" or kind not in _QUICK_KINDS:
                return None
            try:
                size = int(header[124:136].rstrip(b" \0"), 8)
                checksum = int(header[148:156].strip(b" \0"), 8)
                name = header[:100].rstrip(b"\0").decode()
                # GNU's variant of the magic has other things where POSIX has the prefix.
                prefix = header[345:500].rstrip(b"\0").decode() if header[262:263] == b"\0" else ""
            except ValueError:
                return None
            if checksum != sum(header) - sum(header[148:156]) + 8 * ord(" "):
                return None
            if kind == b"x":
                words = file.read(size)
                if b"path=" in words or b"size=" in words or b"sparse" in words:
                    return None
            elif kind != b"5":
                if position + _BLOCK + size > size_bytes:
                    return None
                full = f"{prefix}/{name}" if prefix else name
                members.append((full, position + _BLOCK, size))
            position += _BLOCK + -(-size // _BLOCK) * _BLOCK


def _key_and_role(name: str) -> tuple[str, int | None]:
    """The key, and the column of ROLES or None: `a/000123.seg.png` is a mask, not the picture."""
    folder, slash, base = name.rpartition("/")
    stem, dot, suffixes = base.partition(".")
    if not stem or not dot or base.startswith("__"):  # hidden files; WebDataset's own notes
        return name, None
    suffixes = suffixes.lower()
    key = f"{folder}{slash}{stem}"
    if suffixes in ROLES[1:]:
        return key, ROLES.index(suffixes)
    return key, 0 if f".{suffixes}" in IMAGE_SUFFIXES else None
