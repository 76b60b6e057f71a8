"""Runs the two ONNX towers of a model folder; needs no PyTorch.

What goes into a tower and what its output means is embed.py's business: arrays in,
arrays out here.
"""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Num

from twinlens.errors import CheckpointMismatch
from twinlens.runtime.folder import read_model_file


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
        content = read_model_file(path)
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
