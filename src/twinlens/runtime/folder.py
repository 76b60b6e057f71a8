"""A runtime model folder: what `model.json` says, where it is found, what identifies it.

A model folder holds `model.json` (RuntimeConfig), one ONNX file per tower and the
tokenizer's files. Needs no PyTorch.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from twinlens.config import JsonConfig
from twinlens.data.preprocess import Preprocess
from twinlens.data.tokenizer import TokenizerConfig, tokenizer_files
from twinlens.errors import CheckpointMismatch, ModelNotFound
from twinlens.hub.cache import pulled_folder
from twinlens.hub.registry import find_published

CONFIG_NAME = "model.json"
BUILT_IN = Path(__file__).parent.parent / "models"
DEFAULT_MODEL = "mini"


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig(JsonConfig):
    """What `model.json` says about an exported model.

    `image_query_weight` is the spread (standard deviation) of text-to-image cosines
    over that of image-to-image cosines, measured on validation photos: a picture in a
    mixed query is multiplied by it, or it would drown the words.
    """

    format_version: Literal[1]
    name: str
    version: str
    dim: int  # numbers in an embedding
    tokenizer: TokenizerConfig
    image_file: str
    text_file: str
    preprocess: Preprocess
    logit_scale: float  # already exponentiated
    logit_bias: float | None = None
    image_query_weight: float = 1.0
    precision: Literal["fp32", "fp16", "int8"] = "int8"
    # Of both towers, written at conversion: gigabytes need not be hashed at every start.
    fingerprint: str | None = None


def locate(name_or_path: str | os.PathLike[str]) -> Path:
    """Where a model is: the built-in one of that name, else a path, else a pulled model.

    A folder that happens to be called like a built-in model is found as `./mini`.

    Raises ModelNotFound, which says how to get the model if the name is a published one.
    """
    name = os.fspath(name_or_path)
    built_in = BUILT_IN / name
    if Path(name).name == name and (built_in / CONFIG_NAME).is_file():
        return built_in
    path = Path(os.path.expanduser(name))
    if path.exists():
        return path
    if (pulled := pulled_folder(name)) is not None:
        return pulled
    known = ", ".join(sorted(place.parent.name for place in BUILT_IN.glob(f"*/{CONFIG_NAME}")))
    if (published := find_published(name)) is not None:
        raise ModelNotFound(
            f"The model {published.name} is not on this machine yet. Fetch it: "
            f"`twinlens pull {published.name}`."
        )
    raise ModelNotFound(
        f"{name!r} is neither a built-in model ({known}), nor one that was pulled, nor a file or "
        f"folder. `twinlens models` lists the known ones."
    )


def lasting_name(name_or_path: str | os.PathLike[str]) -> str:
    """What finds the same model again from anywhere: a path becomes absolute."""
    name, dim = split_dim(name_or_path)
    suffix = "" if dim is None else f"@{dim}"
    path = Path(os.path.expanduser(name))
    return (os.path.abspath(path) if path.exists() else name) + suffix


def split_dim(name_or_path: str | os.PathLike[str]) -> tuple[str, int | None]:
    """`NAME@256` as the name and the number of leading dimensions to keep."""
    name = os.fspath(name_or_path)
    if (found := re.fullmatch(r"(.+)@(\d+)", name)) and not os.path.exists(name):
        return found[1], int(found[2])
    return name, None


def load_runtime_config(folder: Path) -> RuntimeConfig:
    """Read `model.json`. Raises ConfigError when it does not fit this version."""
    return RuntimeConfig.read(folder / CONFIG_NAME)


def model_identity(folder: Path, config: RuntimeConfig) -> str:
    """`name-version:digest`, the same only for byte-identical towers and tokenizer.

    Hashing 28 MB takes about 30 ms, so an index can afford to check it every time.
    """
    digest = hashlib.blake2b(digest_size=6)
    towers = () if config.fingerprint else (config.image_file, config.text_file)
    digest.update((config.fingerprint or "").encode())
    for name in (*towers, *tokenizer_files(config.tokenizer)):
        digest.update(read_model_file(folder / name))
    digest.update(repr(config.preprocess).encode())
    return f"{config.name}-{config.version}:{digest.hexdigest()}"


def read_model_file(path: Path) -> bytes:
    """The bytes of a file that model.json names. Raises CheckpointMismatch when it is not there."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointMismatch(
            f"{path} cannot be read ({error.strerror}), but the {CONFIG_NAME} beside it names it. "
            f"Install or convert the model again."
        ) from error
