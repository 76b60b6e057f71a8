"""A runtime model folder: what `model.json` says, where it is found, what identifies it.

A model folder holds `model.json` (RuntimeConfig), one ONNX file per tower and the
tokenizer's files. Needs no PyTorch.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from twinlens.config import JsonConfig
from twinlens.data.preprocess import Preprocess
from twinlens.data.tokenizer import TokenizerConfig
from twinlens.errors import CheckpointMismatch, ModelNotFound

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


def find_model(name_or_path: str | os.PathLike[str]) -> Path:
    """The folder of a built-in model or of a path. Raises ModelNotFound."""
    for folder in (Path(name_or_path), BUILT_IN / Path(name_or_path).name):
        if (folder / CONFIG_NAME).is_file():
            return folder
    built_in = sorted(path.parent.name for path in BUILT_IN.glob(f"*/{CONFIG_NAME}"))
    raise ModelNotFound(
        f"{os.fspath(name_or_path)!r} is neither a built-in model ({', '.join(built_in)}) "
        f"nor a folder with a {CONFIG_NAME}."
    )


def load_runtime_config(folder: Path) -> RuntimeConfig:
    """Read `model.json`. Raises ConfigError when it does not fit this version."""
    return RuntimeConfig.read(folder / CONFIG_NAME)


def model_identity(folder: Path, config: RuntimeConfig) -> str:
    """`name-version:digest`, the same only for byte-identical towers and tokenizer.

    Hashing 28 MB takes about 30 ms, so an index can afford to check it every time.
    """
    digest = hashlib.blake2b(digest_size=6)
    for name in (config.image_file, config.text_file, config.tokenizer.file):
        if name is not None:
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
