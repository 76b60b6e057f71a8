"""Reads what torch.save and torch.jit.save write: zip archives, and the older layout without zip.

The pickle inside is read as data (pickle_reader.py) and the numbers are mapped from the file,
so that nothing is executed, and reading costs memory only for what is looked at. A TorchScript
module comes back as a `Node` with its attributes; which of those are weights is archive.py's
question. Only the byte layouts are torch's; no code of theirs is called but to view memory.
"""

import io
import math
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor

from twinlens.errors import CheckpointMismatch
from twinlens.model.pickle_reader import Name, read_pickle, shown
from twinlens.model.zip_file import ZipIndex, damaged

DTYPE_NAMES = (
    "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 int64 int32 int16 int8 "
    "uint8 uint16 uint32 uint64 bool"
).split()
DTYPES = {f"torch.{name}": getattr(torch, name) for name in DTYPE_NAMES}
STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.storage.UntypedStorage": torch.uint8,
    "torch.UntypedStorage": torch.uint8,
}

# The first of the pickles in the layout without zip is this number; the second the version.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001
ALIGNMENT = 8  # bytes; the widest number
MAX_AXES = 32  # of a tensor; PyTorch itself stops at 64


@dataclass(frozen=True)
class Storage:
    """A run of numbers in the file, by its key; views start `offset` numbers into it."""

    key: str
    dtype: torch.dtype
    num_items: int
    offset: int = 0


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that the pickle describes; its numbers are still in the file."""

    storage: Storage
    dtype: torch.dtype
    offset: int  # in items of `dtype` from the storage's start
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def num_items(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_items * self.dtype.itemsize

    @property
    def end(self) -> int:
        """The place in the storage behind the last number; 0 when there is none."""
        if 0 in self.shape:
            return 0
        reach = zip(self.shape, self.stride, strict=True)
        return self.offset + sum((length - 1) * step for length, step in reach) + 1


@dataclass(frozen=True)
class TorchFile:
    """The pickled value, with a `StoredTensor` for each tensor, and how to read one of those."""

    tree: object
    read: Callable[[StoredTensor], Tensor]
    source_code: Callable[[str], str]  # of a TorchScript module's file, as text


def read_torch_zip(path: Path, archive: ZipIndex) -> TorchFile:
    """What torch.save or torch.jit.save put into a zip archive."""
    source = str(path)
    pickles = [name for name in archive.entries if name.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
        raise CheckpointMismatch(
            f"{path} is a zip archive that torch.save did not write: it holds "
            f"{len(pickles)} data.pkl. Unpack it, and give the weights file inside."
        )
    folder = pickles[0].removesuffix("data.pkl")
    order = archive.entries.get(f"{folder}byteorder")
    if order is not None and archive.read(order) != b"little":
        raise _big_endian(source)
    tree = read_pickle(
        io.BytesIO(archive.read(archive.entries[pickles[0]])),
        BUILDERS,
        _storage_reference,
        source=source,
    )

    def find(storage: Storage) -> tuple[int, int]:
        entry = archive.entries.get(f"{folder}data/{storage.key}")
        if entry is None:
            raise damaged(path, f"it lacks its part data/{shown(storage.key)}")
        return archive.stored_range(entry)

    def source_code(name: str) -> str:
        entry = archive.entries.get(f"{folder}code/{name}")
        return archive.read(entry).decode("utf-8", "replace") if entry else ""

    return TorchFile(tree, _Reader(path, find).read, source_code)


def read_torch_legacy(path: Path) -> TorchFile:
    """What torch.save wrote before version 1.6, and writes with its zip switched off."""
    source = str(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        # How wide a storage's items are says only the pickle's mention of it.
        mentioned: dict[str, Storage] = {}

        def mention(reference: object) -> Storage:
            storage = _storage_reference(reference)
            mentioned.setdefault(storage.key, storage)
            return storage

        def next_pickle() -> object:
            return read_pickle(stream, BUILDERS, mention, source=source)

        if next_pickle() != LEGACY_MAGIC:
            raise CheckpointMismatch(
                f"{path} is a pickle that torch.save did not write. Load it with the program "
                f"that made it, and save its state dict with torch.save or safetensors."
            )
        version, system = next_pickle(), next_pickle()
        if version != LEGACY_VERSION or not isinstance(system, dict):
            raise CheckpointMismatch(
                f"{path} has a layout of torch.save that is not known here (version "
                f"{shown(version)}). Save it again with a newer PyTorch."
            )
        if system.get("little_endian") is not True:
            raise _big_endian(source)
        tree, keys = next_pickle(), next_pickle()
        if not isinstance(keys, list):
            raise damaged(path, "its list of storages is missing")
        # Behind the pickles: for each key the number of items, and the items.
        ranges: dict[str, tuple[int, int]] = {}
        for key in keys:
            if not isinstance(key, str) or key not in mentioned:
                raise damaged(path, "it holds a storage that nothing uses")
            header = stream.read(8)
            size = int.from_bytes(header, "little", signed=True) * mentioned[key].dtype.itemsize
            start = stream.tell()
            if len(header) < 8 or not 0 <= size <= len(stream) - start:
                raise damaged(path, f"storage {shown(key)} ends behind the file's end")
            ranges[key] = start, start + size
            stream.seek(start + size)

    def find(storage: Storage) -> tuple[int, int]:
        if storage.key not in ranges:
            raise damaged(path, f"storage {shown(storage.key)} is missing")
        return ranges[storage.key]

    return TorchFile(tree, _Reader(path, find).read, lambda name: "")


class _Reader:
    """Maps the file and views parts of it; tensors that shared a storage share it again."""

    def __init__(self, path: Path, find: Callable[[Storage], tuple[int, int]]) -> None:
        self._path = path
        self._find = find
        # Private: writing to a tensor never reaches the file.
        self._mapped = torch.from_file(
            str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8
        ).untyped_storage()
        self._parts: dict[str, torch.UntypedStorage] = {}

    def read(self, tensor: StoredTensor) -> Tensor:
        storage = tensor.storage
        if storage.key not in self._parts:
            self._parts[storage.key] = self._part(*self._find(storage))
        part = self._parts[storage.key]
        num_items = part.nbytes() // tensor.dtype.itemsize
        declared = storage.num_items * storage.dtype.itemsize
        if declared > part.nbytes() or max(tensor.end, tensor.num_items) > num_items:
            raise damaged(
                self._path,
                f"a tensor of shape {shown(tensor.shape)} does not fit its storage of "
                f"{num_items} numbers",
            )
        view = torch.empty(0, dtype=tensor.dtype)
        return view.set_(part, tensor.offset, tensor.shape, tensor.stride)

    def _part(self, start: int, stop: int) -> torch.UntypedStorage:
        if stop > self._mapped.nbytes():
            raise damaged(self._path, "it became shorter while it was read")
        if start == stop:
            return torch.empty(0, dtype=torch.uint8).untyped_storage()
        part: torch.UntypedStorage = self._mapped[start:stop]
        # The layout without zip aligns nothing, and arithmetic on such memory fails somewhere.
        return part.clone() if start % ALIGNMENT else part  # type: ignore[no-untyped-call]


def _storage_reference(reference: object) -> Storage:
    """('storage', type, key, device, items[, view]) as torch writes it."""
    if not isinstance(reference, tuple) or len(reference) not in (5, 6):
        raise ValueError("a reference that is not to a storage")
    tag, kind, key, _, num_items, *view = reference
    if tag != "storage" or not isinstance(kind, Name) or kind.text not in STORAGES:
        raise ValueError("a reference that is not to a storage")
    if not isinstance(key, str) or not _is_count(num_items):
        raise ValueError("a storage without key or size")
    offset = 0
    if view and view[0] is not None:
        _, offset, _ = view[0]
        if not _is_count(offset):
            raise ValueError("a view of a storage at no place")
    return Storage(key, STORAGES[kind.text], num_items, offset)


def _rebuild(
    storage: object,
    offset: object,
    shape: object,
    stride: object,
    requires_grad: object = False,
    hooks: object = None,
    *rest: object,
    dtype: torch.dtype | None = None,
) -> StoredTensor:
    """torch._utils._rebuild_tensor_v2, without the rebuilding."""
    if not isinstance(storage, Storage) or not _is_count(offset):
        raise ValueError("a tensor without a storage")
    if not _are_counts(shape) or not _are_counts(stride) or len(shape) != len(stride):
        raise ValueError("a tensor with negative or missing sizes")
    return StoredTensor(storage, dtype or storage.dtype, storage.offset + offset, shape, stride)


def _rebuild_with_dtype(*arguments: object) -> StoredTensor:
    """torch._utils._rebuild_tensor_v3: the seventh argument is the dtype."""
    name = arguments[6]
    if not isinstance(name, Name) or name.text not in DTYPES:
        raise ValueError("a tensor of a type that weights do not have")
    return _rebuild(*arguments[:6], dtype=DTYPES[name.text])


def _first(value: object, *rest: object) -> object:
    return value


def _rebuild_from_type(function: object, kind: object, arguments: object, state: object) -> object:
    """torch._tensor._rebuild_from_type_v2: a tensor that carried attributes; those are lost."""
    if not isinstance(function, Name) or not isinstance(arguments, tuple):
        raise ValueError("a tensor that is made by no name")
    if (build := BUILDERS.get(function.text)) is None:
        raise ValueError("a tensor that is made in an unknown way")
    return build(*arguments)


def _mapping(*arguments: object) -> dict[object, object]:
    """OrderedDict(), OrderedDict(pairs), defaultdict(factory): the items follow by themselves."""
    items: dict[object, object] = {}
    for argument in arguments:
        if isinstance(argument, list):
            for key, value in argument:
                if not isinstance(key, str | int):
                    raise TypeError("a dictionary key that is neither text nor number")
                items[key] = value
    return items


def _list(values: object = (), *rest: object) -> object:
    return values


BUILDERS: dict[str, Callable[..., object] | None] = {
    "torch._utils._rebuild_tensor": _rebuild,
    "torch._utils._rebuild_tensor_v2": _rebuild,
    "torch._utils._rebuild_tensor_v3": _rebuild_with_dtype,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": _mapping,
    "collections.Counter": _mapping,
    # TorchScript's typed containers.
    "torch.jit._pickle.build_intlist": _list,
    "torch.jit._pickle.build_doublelist": _list,
    "torch.jit._pickle.build_boollist": _list,
    "torch.jit._pickle.build_tensorlist": _list,
    "torch.jit._pickle.restore_type_tag": _first,
    # Seen in training checkpoints beside the weights; they stay inert.
    "argparse.Namespace": None,
    "_codecs.encode": None,
    "numpy.dtype": None,
    "numpy.ndarray": None,
    "torch.Size": _list,
    "torch.device": None,
    "torch.Tensor": None,
    "torch.nn.parameter.Parameter": None,
}
BUILDERS |= dict.fromkeys((*STORAGES, *DTYPES))
for _core in ("numpy.core.multiarray", "numpy._core.multiarray"):
    BUILDERS |= {f"{_core}.scalar": None, f"{_core}._reconstruct": None}
for _module in ("builtins", "__builtin__"):
    BUILDERS |= {f"{_module}.{_kind}": None for _kind in ("dict", "float", "int", "list", "set")}


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def _are_counts(values: object) -> TypeGuard[tuple[int, ...]]:
    return (
        isinstance(values, tuple)
        and len(values) <= MAX_AXES
        and all(_is_count(value) for value in values)
    )


def _big_endian(source: str) -> CheckpointMismatch:
    return CheckpointMismatch(
        f"{source} was written on a big-endian machine, which is not supported. "
        f"Convert it to safetensors there."
    )
