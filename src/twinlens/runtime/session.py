"""Finds a runtime model folder and runs its two ONNX towers; needs no PyTorch.

A model folder holds `model.json` (RuntimeConfig), one ONNX file per tower and the
tokenizer's files. What goes into a tower and what its output means is embed.py's
business: arrays in, arrays out here.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Num

from twinlens.config import JsonConfig
from twinlens.data.preprocess import Preprocess
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
    context: int  # tokens, specials included
    tokenizer: Literal["wordpiece"]
    tokenizer_file: str
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
    for name in (config.image_file, config.text_file, config.tokenizer_file):
        digest.update(_read_model_file(folder / name))
    digest.update(repr(config.preprocess).encode())
    return f"{config.name}-{config.version}:{digest.hexdigest()}"


def _read_model_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointMismatch(
            f"{path} cannot be read ({error.strerror}), but the {CONFIG_NAME} beside it names it. "
            f"Install or convert the model again."
        ) from error


class TowerSession:
    """One tower on ONNX Runtime: one array in, one array out. Safe to share by threads."""

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Idle threads that spin take the cores from those that decode: 15 to 35 % of the speed
        # of indexing (benchmarks/index_folder.py).
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if threads is not None:
            options.intra_op_num_threads = threads
        content = _read_model_file(path)
        try:
            self._session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            raise CheckpointMismatch(
                f"{path} is not an ONNX model that this ONNX Runtime "
                f"({onnxruntime.__version__}) can run: {error}"
            ) from error
        self._input = self._session.get_inputs()[0].name

    def run(self, batch: Num[np.ndarray, "batch *shape"]) -> Float32[np.ndarray, "batch dim"]:
        """Embeddings of a batch, not normalised."""
        (output,) = self._session.run(None, {self._input: batch})
        result: Any = output
        return np.asarray(result, dtype=np.float32)


def unit_rows(vectors: Num[np.ndarray, "item dim"]) -> Float32[np.ndarray, "item dim"]:
    """A tower's output as embeddings: every row divided by its length; a row of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Float32[np.ndarray, "item dim"] = vectors / np.maximum(lengths, 1e-30)
    return unit.astype(np.float32, copy=False)


def open_session(path: Path, *, threads: int | None = None) -> TowerSession:
    """Open one tower. Raises CheckpointMismatch when the file is missing or damaged."""
    return TowerSession(path, threads=threads)
