"""What a source consists of: parts that are opened one by one, each with numbered samples.

A part is one shard, or all of a folder or a table. Opening one finds its samples without
reading their pictures; `Reference` says where the bytes of a sample are, small enough to
be kept by the hundred thousand. In which order samples are
taken is stream.py's, and what their bytes hold decode.py's.
"""

import glob
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from twinlens.data.pairs import BadSample, FolderSource, ShardSource, Source, TableSource
from twinlens.data.shards import ShardIndex, index_shard
from twinlens.data.spool import SpooledFile, is_gzipped, spooled
from twinlens.errors import ConfigError

WHOLE_FILE = -1


@dataclass(frozen=True)
class Bytes:
    """A range of a file; a size of WHOLE_FILE means all of it."""

    path: str
    offset: int = 0
    size: int = WHOLE_FILE


@dataclass(frozen=True)
class Reference:
    """Where a sample is. Members are ranges of bytes to be read; captions are known already."""

    source: int  # its number among the stream's sources
    slot: int  # its number in the stream, over all epochs and ranks: seeds its augmentation
    key: str
    image: Bytes | None
    members: tuple[tuple[str, Bytes], ...] = ()  # ("json" | "txt" | "cls", where)
    captions: tuple[str, ...] = ()
    label: int | None = None
    keep: SpooledFile | None = None  # a fetched file is there as long as somebody refers to it


@runtime_checkable
class OpenPart(Protocol):
    """The samples of one part."""

    problems: list[BadSample]

    def __len__(self) -> int: ...

    def reference(self, sample: int, *, slot: int) -> Reference: ...


@runtime_checkable
class Part(Protocol):
    """Something that samples come from."""

    source: int
    name: str
    slow: bool  # must be fetched or unpacked before it can be read

    def open(self) -> OpenPart: ...


def list_parts(source: Source, number: int) -> list[Part]:
    """The parts of a source, always in the same order.

    Raises ConfigError when there is nothing at all, or nothing that could be understood.
    """
    if isinstance(source, ShardSource):
        return [_ShardPart(source, number, place) for place in shard_places(source.shards)]
    from twinlens.data.tables import list_table_parts  # it imports this file

    assert isinstance(source, (FolderSource, TableSource))
    return list_table_parts(source, number)


def shard_places(patterns: Iterable[str]) -> list[str]:
    """Paths, URLs and commands that the patterns stand for."""
    places: list[str] = []
    for pattern in patterns:
        if pattern.startswith("pipe:"):
            places.append(pattern)
            continue
        for place in expand_braces(pattern):
            if place.startswith(("http://", "https://")):
                places.append(place)
            elif glob.has_magic(place) and not os.path.exists(place):
                places += sorted(glob.glob(place, recursive=True))
            elif os.path.exists(place) or place != pattern:
                places.append(place)  # of a numbered range one may be missing: that is counted
    if not places:
        raise ConfigError(f"No shard matches {', '.join(patterns)}. Check the path or pattern.")
    return places


def expand_braces(pattern: str) -> list[str]:
    """`a{00..02}{x,y}` as a shell expands it; numbers keep their leading zeros."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    inner = match.group(1)
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)(?:\.\.(\d+))?", inner)
    if numbers is not None:
        first, last, step = int(numbers[1]), int(numbers[2]), int(numbers[3] or 1)
        if step == 0:
            raise ConfigError(f"{pattern}: a range cannot go in steps of 0.")
        width = max(len(n) for n in numbers.group(1, 2)) if _has_zeros(numbers) else 0
        way = 1 if last >= first else -1
        inside = [f"{number:0{width}d}" for number in range(first, last + way, way * step)]
    elif "," in inner:
        inside = inner.split(",")
    else:
        raise ConfigError(
            f"{pattern}: {{{inner}}} is neither a range like {{0000..0009}} nor a list "
            f"like {{a,b}}."
        )
    head, tail = pattern[: match.start()], pattern[match.end() :]
    rests = expand_braces(tail)
    return [head + text + rest for text in inside for rest in rests]


def _has_zeros(numbers: re.Match[str]) -> bool:
    return any(len(text) > 1 and text.startswith("0") for text in numbers.group(1, 2))


class _ShardPart:
    def __init__(self, source: ShardSource, number: int, place: str) -> None:
        self.source = number
        self.name = place
        self._config = source
        self.slow = place.startswith(("pipe:", "http://", "https://")) or _looks_gzipped(place)

    def open(self) -> OpenPart:
        """Its index; a shard that cannot be had is an empty one with a problem."""
        try:
            keep, damage = None, ""
            if self.slow:
                keep, damage = spooled(
                    self.name,
                    allow_private_hosts=self._config.allow_private_hosts,
                    timeout_seconds=self._config.timeout_seconds,
                    keep_folder=self._config.keep_folder,
                )
            path = self.name if keep is None else keep.path
            index = index_shard(path)
        except OSError as error:
            reason = error.strerror.lower() if error.strerror else str(error)
            return NothingOpen([BadSample("unreachable shard", self.name, reason)])
        damage = damage or index.damage
        problems = [BadSample("damaged shard", self.name, damage)] if damage else []
        return _OpenShard(self.source, _stem(self.name), path, index, keep, problems)


class NothingOpen:
    """A part that could not be opened."""

    def __init__(self, problems: list[BadSample]) -> None:
        self.problems = problems

    def __len__(self) -> int:
        return 0

    def reference(self, sample: int, *, slot: int) -> Reference:
        raise IndexError(sample)


class _OpenShard:
    def __init__(
        self,
        source: int,
        stem: str,
        path: str,
        index: ShardIndex,
        keep: SpooledFile | None,
        problems: list[BadSample],
    ) -> None:
        self.problems = problems
        self._source = source
        self._stem = stem
        self._path = path
        self._index = index
        self._keep = keep

    def __len__(self) -> int:
        return len(self._index.keys)

    def reference(self, sample: int, *, slot: int) -> Reference:
        offsets, sizes = self._index.offsets[sample].tolist(), self._index.sizes[sample].tolist()
        image, *words = (
            Bytes(self._path, offset, size) if size >= 0 else None
            for offset, size in zip(offsets, sizes, strict=True)
        )
        names = ("json", "txt", "cls")
        return Reference(
            self._source,
            slot,
            f"{self._stem}/{self._index.keys[sample]}",
            image,
            tuple((n, where) for n, where in zip(names, words, strict=True) if where is not None),
            keep=self._keep,
        )


def _looks_gzipped(place: str) -> bool:
    try:
        return is_gzipped(place)
    except OSError:
        return False  # it is counted when it is opened


def _stem(place: str) -> str:
    """`https://host/a/train-0003.tar.gz?x` is `train-0003`; a command stands for itself."""
    if place.startswith("pipe:"):
        return place
    return Path(place.partition("?")[0]).name.partition(".")[0]
