"""Reads the weights out of any published file, by its content and without executing anything.

safetensors, what torch.save and torch.jit.save write (a state dict, a training checkpoint, a
TorchScript module such as OpenAI's), NumPy's .npz, and the index of a sharded checkpoint. What
comes back is a plain dictionary, names and dtypes as in the file; convert.py knows the names.
"""

import json
import re
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from twinlens.errors import CheckpointMismatch
from twinlens.model.npz_file import SUFFIX as NPY_SUFFIX
from twinlens.model.npz_file import read_npz
from twinlens.model.pickle_reader import shown
from twinlens.model.state_dict import plain_names, state_of
from twinlens.model.torch_file import read_torch_legacy, read_torch_zip
from twinlens.model.zip_file import damaged, open_zip

# What a file starts with when it holds no weights, and what to do then.
MISTAKEN = {
    b"version https://git-lfs": (
        "a Git LFS pointer, not the weights themselves. Fetch them with: git lfs pull"
    ),
    b"/annex/objects/": "a git-annex pointer. Fetch the weights with: git annex get",
    b"\xff\xd8\xff": "a JPEG picture. Give the file that holds the weights",
    b"\x89PNG": "a PNG picture. Give the file that holds the weights",
    b"GIF8": "a GIF picture. Give the file that holds the weights",
    b"%PDF": "a PDF document. Give the file that holds the weights",
    b"<": (
        "a web page or XML, perhaps a download's error message. "
        "Open it to see what it says, and download again"
    ),
    b"\x1f\x8b": "compressed with gzip. Unpack it and give the file inside",
    b"BZh": "compressed with bzip2. Unpack it and give the file inside",
    b"\xfd7zXZ": "compressed with xz. Unpack it and give the file inside",
    b"\x28\xb5\x2f\xfd": "compressed with zstd. Unpack it and give the file inside",
    b"7z\xbc\xaf": "a 7z archive. Unpack it and give the file inside",
    b"Rar!": "a RAR archive. Unpack it and give the file inside",
    b"\x89HDF": "an HDF5 file of Keras. Give the PyTorch or safetensors version",
    b"GGUF": "a GGUF file of llama.cpp. Give the PyTorch or safetensors version",
}
TAR_MAGIC = (b"ustar", 257)  # and its place
ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
PICKLE_MAGIC = b"\x80"  # followed by the protocol, 2 to 5
# Protocols 0 and 1 have no magic. No weights are written so, but attacks are: they start with a
# container or a name, and mention the name of what they call.
OLD_PICKLE = re.compile(rb"(?s:[(}\]].*)?[ci][A-Za-z_][\w.]*\n[A-Za-z_][\w.]*\n")
TEXT = re.compile(rb"[\t\r\n -~]*")
HEAD_BYTES = 512
MAX_INDEX_BYTES = 64 * 2**20

# The order in which a folder's files are preferred: the safest format first, and names that
# come with a config beside them before others.
WEIGHTS_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "weights.safetensors",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.pt",
)
WEIGHTS_SUFFIXES = (".safetensors", ".npz", ".pt", ".pth", ".bin", ".ckpt")
# What trainers write beside the weights.
NOT_WEIGHTS = frozenset("optimizer scheduler training_args rng_state scaler".split())


def find_weights(folder: Path) -> Path:
    """The file of a folder that holds its weights: the first of WEIGHTS_NAMES, else the only one.

    Raises CheckpointMismatch when there is none, or several and none of a usual name.
    """
    if not folder.is_dir():
        raise CheckpointMismatch(f"{folder} is not a folder. Give one that holds a checkpoint.")
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise _unreadable(folder, error) from error
    for name in WEIGHTS_NAMES:
        if name in names:
            return folder / name
    candidates = [
        name
        for name in names
        if name.lower().endswith(WEIGHTS_SUFFIXES) and Path(name).stem not in NOT_WEIGHTS
    ]
    if not candidates:
        raise CheckpointMismatch(
            f"{folder} holds no weights: looked for {', '.join(WEIGHTS_NAMES)}, or one file "
            f"that ends in {', '.join(WEIGHTS_SUFFIXES)}. Give the folder of a checkpoint."
        )
    if len(candidates) > 1:
        more = f" and {len(candidates) - 5} more" if len(candidates) > 5 else ""
        raise CheckpointMismatch(
            f"{folder} holds several files that may be the weights: "
            f"{', '.join(candidates[:5])}{more}. Give the path of one of them."
        )
    return folder / candidates[0]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The weights in one file, by name, in the file's dtypes; nothing in it is executed.

    Of a training checkpoint only the state dict is returned. Wrappers' prefixes ("module.",
    "_orig_mod.") and big_vision's "params/" are taken off. Tensors may be views of the mapped
    file, private to this process: copy them before the file is overwritten in place.
    For `*.index.json` all shards that it names are read.

    Raises CheckpointMismatch, one sentence each, for files that are truncated, damaged,
    mislabelled or hostile.
    """
    try:
        return plain_names(_read(path, may_be_index=True))
    except CheckpointMismatch:
        raise
    except OSError as error:
        raise _unreadable(path, error) from error
    except Exception as error:
        # The file may be made to break any of the libraries that read it.
        raise damaged(path, f"reading it failed ({shown(error)})") from error


def _read(path: Path, *, may_be_index: bool) -> dict[str, Tensor]:
    if path.is_dir():
        raise CheckpointMismatch(f"{path} is a folder. Give the weights file inside.")
    if not path.exists():
        raise CheckpointMismatch(f"{path} does not exist. Check the path of the weights.")
    if not path.is_file():
        raise CheckpointMismatch(f"{path} is not a regular file. Give a weights file.")
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        raise damaged(path, "it is empty")
    if head.startswith(ZIP_MAGIC):
        return _read_zip(path)
    if head[8:9] == b"{" and not TEXT.fullmatch(head[:8]):
        return _read_safetensors(path)
    if head[:1] == PICKLE_MAGIC and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return state_of(read_torch_legacy(path), source=path)
    if may_be_index and head.lstrip()[:1] == b"{":
        return _read_index(path)
    for start, what in MISTAKEN.items():
        if head.lstrip().startswith(start):
            raise CheckpointMismatch(f"{path} is {what}.")
    magic, place = TAR_MAGIC
    if head[place : place + len(magic)] == magic:
        raise CheckpointMismatch(f"{path} is a tar archive. Unpack it and give the file inside.")
    if OLD_PICKLE.match(head):
        read_torch_legacy(path)  # refuses it, by the name that it would call
    raise CheckpointMismatch(
        f"{path} is no weights file that twinlens knows (safetensors, PyTorch, TorchScript, "
        f"npz), or only part of one. Check the path, or download it again."
    )


def _read_zip(path: Path) -> dict[str, Tensor]:
    archive = open_zip(path)
    names = list(archive.entries)
    if names and all(name.endswith(NPY_SUFFIX) for name in names):
        return read_npz(path, archive)
    return state_of(read_torch_zip(path, archive), source=path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError:
        raise
    except Exception as error:
        raise damaged(path, f"as safetensors, {shown(error)}") from error


def _read_index(path: Path) -> dict[str, Tensor]:
    """All tensors that a `weight_map` names, from the files it names, in the index's folder."""
    if path.stat().st_size > MAX_INDEX_BYTES:
        raise CheckpointMismatch(f"{path} is too large for an index. Give the weights file.")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"as JSON, {shown(error)}") from error
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places:
        raise CheckpointMismatch(
            f"{path} is JSON without the weight_map of a sharded checkpoint. "
            f"Give the weights file beside it."
        )
    names_in: dict[str, list[str]] = {}
    for name, shard in places.items():
        if not isinstance(shard, str) or shard in ("", ".", "..") or set(shard) & set("/\\:\0"):
            raise CheckpointMismatch(
                f"{path} names a shard outside its folder ({shown(shard)}), so nothing was read. "
                f"Use an index whose shards lie beside it."
            )
        names_in.setdefault(shard, []).append(name)
    tensors = {}
    for shard, names in names_in.items():
        if not (path.parent / shard).is_file():
            raise CheckpointMismatch(
                f"{path} needs the file {shown(shard)}, which is not in its folder. "
                f"Download all {len(names_in)} shards."
            )
        part = _read(path.parent / shard, may_be_index=False)
        if missing := [name for name in names if name not in part]:
            raise CheckpointMismatch(
                f"{path} says that {shown(shard)} holds {shown(missing[0])}, but it does not "
                f"({len(missing)} missing). Download index and shards together."
            )
        tensors.update({name: part[name] for name in names})
    return tensors


def _unreadable(path: Path, error: OSError) -> CheckpointMismatch:
    reason = error.strerror or str(error)
    return CheckpointMismatch(f"{path} cannot be read: {reason}. Check it and its permissions.")
