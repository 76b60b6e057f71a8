"""Benchmarks that store raw pixels in a few files: CIFAR, MNIST, STL-10, SVHN.

The formats are their authors'; each reader says which. CIFAR's Python version is a pickle,
which can run code when it is read: only its binary version is taken.
Every `open_*` returns None where the files are not there.
"""

import gzip
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from twinlens.errors import ConfigError
from twinlens.evaluate.class_names import ClassList, readable
from twinlens.evaluate.extra import need
from twinlens.evaluate.items import Found, Item
from twinlens.evaluate.pictures import PixelRows

Rows = UInt8[np.ndarray, "image byte"]
Arrange = Callable[[UInt8[np.ndarray, " byte"]], UInt8[np.ndarray, "..."]]

CIFAR_HOME = "https://www.cs.toronto.edu/~kriz/cifar.html"
DIGITS = tuple((str(digit),) for digit in range(10))
DIGIT_WORDS = tuple((w,) for w in "zero one two three four five six seven eight nine".split())


def folder_with(root: Path, file: str, *folders: str) -> Path | None:
    """The first of `root` and these folders below it that has such a file or folder."""
    for folder in (root, *(root / name for name in folders)):
        if (folder / file).exists():
            return folder
    return None


def open_cifar10(root: Path, split: str) -> Found | None:
    """cifar-10-binary.tar.gz: records of 1 label byte and 3,072 of red, green, blue planes."""
    folder = folder_with(root, "test_batch.bin", "cifar-10-batches-bin")
    if folder is None:
        _refuse_pickles(root, "cifar-10-batches-py", "batches.meta", "cifar-10-binary.tar.gz")
        return None
    train = [f"data_batch_{number}.bin" for number in range(1, 6)]
    files = train if split == "train" else ["test_batch.bin"]
    names = _lines(folder / "batches.meta.txt")
    return _cifar(folder, files, names, label_bytes=1)


def open_cifar100(root: Path, split: str) -> Found | None:
    """cifar-100-binary.tar.gz: records of a coarse label, a fine label and 3,072 bytes."""
    folder = folder_with(root, "fine_label_names.txt", "cifar-100-binary")
    if folder is None:
        _refuse_pickles(root, "cifar-100-python", "meta", "cifar-100-binary.tar.gz")
        return None
    names = _lines(folder / "fine_label_names.txt")
    return _cifar(folder, [f"{split}.bin"], names, label_bytes=2)


def _refuse_pickles(root: Path, folder: str, file: str, archive: str) -> None:
    for place in (root / folder, root):
        if (place / file).is_file():
            raise ConfigError(
                f"{place} holds CIFAR's Python version, pickles, which can run code when they "
                f"are read. Get the binary version ({archive}) from {CIFAR_HOME}."
            )


def _cifar(folder: Path, files: Sequence[str], names: list[str], *, label_bytes: int) -> Found:
    size = label_bytes + 3 * 32 * 32
    parts, ids = [], []
    for file in files:
        rows = _read(folder / file)
        if not len(rows) or len(rows) % size:
            raise ConfigError(
                f"{folder / file} has {len(rows):,} bytes, which is no whole number of records "
                f"of {size:,}. Fetch it again."
            )
        parts.append(rows.reshape(-1, size))
        ids += [f"{Path(file).stem}/{number:05d}" for number in range(len(parts[-1]))]
    rows = np.concatenate(parts) if len(parts) > 1 else parts[0]
    labels = rows[:, label_bytes - 1].astype(np.int64)
    classes = tuple((readable(name),) for name in names)
    return _found(folder, rows[:, label_bytes:], _planes(32), labels, ids, classes)


def _planes(side: int) -> Arrange:
    """Red, green and blue planes, each row by row, as pixels (row, column, channel)."""
    return lambda row: row.reshape(3, side, side).transpose(1, 2, 0)


def open_stl10(root: Path, split: str) -> Found | None:
    """stl10_binary: planes of 96 x 96 stored column by column; labels count from 1."""
    folder = folder_with(root, f"{split}_X.bin", "stl10_binary")
    if folder is None:
        return None
    rows = _read(folder / f"{split}_X.bin").reshape(-1, 3 * 96 * 96)
    labels = _read(folder / f"{split}_y.bin").astype(np.int64) - 1
    classes = tuple((readable(name),) for name in _lines(folder / "class_names.txt"))
    ids = [f"{split}/{number:05d}" for number in range(len(rows))]
    return _found(
        folder, rows, lambda row: row.reshape(3, 96, 96).transpose(2, 1, 0), labels, ids, classes
    )


def open_mnist(root: Path, split: str) -> Found | None:
    """idx files, plain or gzipped: a big-endian header, then a byte a pixel."""
    stem = "train" if split == "train" else "t10k"
    for folder in (root, *(root / name for name in ("MNIST/raw", "mnist", "raw"))):
        for dash in ("-", "."):
            for end in ("", ".gz"):
                images = folder / f"{stem}-images{dash}idx3-ubyte{end}"
                if images.is_file():
                    labels = folder / f"{stem}-labels{dash}idx1-ubyte{end}"
                    return _mnist(folder, images, labels, split)
    return None


def _mnist(folder: Path, images: Path, labels: Path, split: str) -> Found:
    pixels, numbers = _read_idx(images), _read_idx(labels)
    ids = [f"{split}/{number:05d}" for number in range(len(pixels))]
    height, width = pixels.shape[1:]
    return _found(
        folder,
        pixels.reshape(len(pixels), -1),
        lambda row: row.reshape(height, width),
        numbers.astype(np.int64),
        ids,
        DIGITS,
    )


def _read_idx(path: Path) -> UInt8[np.ndarray, "..."]:
    """Format: two zero bytes, 8 for unsigned bytes, the number of axes, their lengths."""
    data = _read(path).tobytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError) as error:
            raise ConfigError(f"{path} is damaged: {error}. Fetch it again.") from error
    axes = data[3] if data[:3] == b"\0\0\x08" else 0
    shape = struct.unpack(f">{axes}I", data[4 : 4 + 4 * axes]) if len(data) > 4 * axes else ()
    pixels = np.frombuffer(data, dtype=np.uint8, offset=min(len(data), 4 + 4 * axes))
    if not axes or pixels.size != np.prod(shape):
        raise ConfigError(f"{path} is no idx file of bytes, or cut short. Fetch it again.")
    return pixels.reshape(shape)


def open_svhn(root: Path, split: str) -> Found | None:
    """Cropped digits, format 2: MATLAB arrays X (row, column, channel, image) and y, 10 for 0."""
    folder = folder_with(root, f"{split}_32x32.mat", "svhn")
    if folder is None:
        return None
    path = folder / f"{split}_32x32.mat"
    try:
        values = need("scipy.io", purpose="reading SVHN").loadmat(path)
        rows = np.ascontiguousarray(values["X"].transpose(3, 0, 1, 2)).reshape(-1, 32 * 32 * 3)
        labels = values["y"].reshape(-1).astype(np.int64) % 10
    except (KeyError, ValueError, OSError) as error:
        raise ConfigError(f"{path} is not SVHN's cropped format: {error}") from error
    ids = [f"{split}/{number:05d}" for number in range(len(rows))]
    return _found(folder, rows, lambda row: row.reshape(32, 32, 3), labels, ids, DIGIT_WORDS)


def _found(
    folder: Path,
    rows: Rows,
    arrange: Arrange,
    labels: Int[np.ndarray, " label"],
    ids: list[str],
    classes: tuple[tuple[str, ...], ...],
) -> Found:
    if len(labels) != len(rows):
        raise ConfigError(
            f"{folder} has {len(rows):,} pictures but {len(labels):,} labels: there must be one "
            f"for each. Fetch both files again."
        )
    items = [
        Item(identity, place, label=label)
        for place, (identity, label) in enumerate(zip(ids, labels.tolist(), strict=True))
    ]
    return Found(
        name="",
        images=PixelRows(rows, arrange),
        items=items,
        classes=ClassList(str(folder), classes, ()),
        root=str(folder),
    )


def _read(path: Path) -> UInt8[np.ndarray, " byte"]:
    try:
        return np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}), though the files beside it are there. "
            f"Fetch the data set again."
        ) from error


def _lines(path: Path) -> list[str]:
    text = _read(path).tobytes().decode("utf-8", "replace")
    return [line.strip() for line in text.splitlines() if line.strip()]
