"""Sequences of pictures that read each one when it is asked for.

A data set of 100,000 pictures is a list of places, not of bytes: ranges of tar files, rows
of a Parquet file, raw pixels of a mapped array. Any element is an ImageSource.
"""

import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TypeVar, overload

import numpy as np
from jaxtyping import Int, UInt8

from twinlens.data.image import ImageSource
from twinlens.data.spool import SpooledFile

ROW_GROUPS_KEPT = 2  # unpacked at a time; pictures are mostly asked for in order

Element = TypeVar("Element", covariant=True)


class _Lazy(Sequence[Element]):
    """Slices are lists: nobody slices more than a batch. Sub-classes read one element."""

    @overload
    def __getitem__(self, place: int) -> Element: ...
    @overload
    def __getitem__(self, place: slice) -> list[Element]: ...
    def __getitem__(self, place: int | slice) -> Element | list[Element]:
        if isinstance(place, slice):
            return [self._read(row) for row in range(*place.indices(len(self)))]
        row = int(place) + len(self) if place < 0 else int(place)
        if not 0 <= row < len(self):
            raise IndexError(place)
        return self._read(row)

    def _read(self, row: int) -> Element:
        raise NotImplementedError


class Picked(_Lazy[ImageSource]):
    """Some rows of another sequence, in the order given."""

    def __init__(
        self, images: Sequence[ImageSource], rows: Int[np.ndarray, " kept"] | Sequence[int]
    ) -> None:
        self._images: Sequence[ImageSource] = images
        self._rows: Int[np.ndarray, " kept"] = np.asarray(rows, dtype=np.int64)
        if isinstance(images, Picked):  # a pick of a pick would slow every further read down
            self._images, self._rows = images._images, images._rows[self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def _read(self, row: int) -> ImageSource:
        return self._images[int(self._rows[row])]


class Edited(_Lazy[ImageSource]):
    """Another sequence, each picture changed by `edit` when it is read."""

    def __init__(
        self, images: Sequence[ImageSource], edit: Callable[[ImageSource], ImageSource]
    ) -> None:
        self._images = images
        self._edit = edit

    def __len__(self) -> int:
        return len(self._images)

    def _read(self, row: int) -> ImageSource:
        return self._edit(self._images[row])


class FileRanges(_Lazy[bytes]):
    """Encoded pictures inside larger files, such as plain tar shards.

    A range that can no longer be read gives b"", which read_image calls an empty file: one
    picture lost, not a run. `keep` are unpacked files that live as long as this object.
    """

    def __init__(
        self,
        paths: Sequence[str],
        file: Int[np.ndarray, " image"],
        offsets: Int[np.ndarray, " image"],  # bytes
        sizes: Int[np.ndarray, " image"],  # bytes
        keep: Sequence[SpooledFile] = (),
    ) -> None:
        self._paths = tuple(paths)
        self._file, self._offsets, self._sizes = file, offsets, sizes
        self._keep = tuple(keep)

    def __len__(self) -> int:
        return len(self._sizes)

    def _read(self, row: int) -> bytes:
        return read_range(
            self._paths[self._file[row]], int(self._offsets[row]), int(self._sizes[row])
        )


def read_range(path: str | os.PathLike[str], offset: int, size: int) -> bytes:
    """`size` bytes of a file from `offset` on; b"" where they cannot be read."""
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(size)
    except OSError:
        return b""
    return data if len(data) == size else b""


class PixelRows(_Lazy[np.ndarray]):
    """Pictures stored as raw bytes in one array, one a row; `arrange` makes pixels of a row."""

    def __init__(
        self,
        rows: UInt8[np.ndarray, "image byte"],
        arrange: Callable[[UInt8[np.ndarray, " byte"]], UInt8[np.ndarray, "..."]],
    ) -> None:
        self._rows = rows
        self._arrange = arrange

    def __len__(self) -> int:
        return len(self._rows)

    def _read(self, row: int) -> np.ndarray:
        return np.ascontiguousarray(self._arrange(np.asarray(self._rows[row])))


class GroupedRows(_Lazy[ImageSource]):
    """Pictures that can only be unpacked many at a time, such as Parquet's row groups.

    `unpack(group)` gives the pictures of one group; `sizes` says how many each has.
    """

    def __init__(
        self, sizes: Sequence[int], unpack: Callable[[int], Sequence[ImageSource]]
    ) -> None:
        self._ends = np.cumsum(np.asarray(sizes, dtype=np.int64))
        self._unpack = unpack
        self._kept: OrderedDict[int, Sequence[ImageSource]] = OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def _read(self, row: int) -> ImageSource:
        group = int(np.searchsorted(self._ends, row, side="right"))
        if group not in self._kept:
            self._kept[group] = self._unpack(group)
            while len(self._kept) > ROW_GROUPS_KEPT:
                self._kept.popitem(last=False)
        start = int(self._ends[group - 1]) if group else 0
        return self._kept[group][row - start]
