"""Runs the two ONNX towers of a model folder; needs no PyTorch.

What goes into a tower and what its output means is embed.py's business: arrays in,
arrays out here. ONNX Runtime runs them, OpenVINO (openvino.py) on request.
"""

import functools
import warnings
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Num

from twinlens.errors import CheckpointMismatch, ConfigError
from twinlens.runtime.machine import multiplies_bytes_exactly, usable_cores

Runtime = Literal["onnxruntime", "openvino"]


class GpuNotUsedWarning(UserWarning):
    """ONNX Runtime was installed for CUDA but runs on the processor."""


@runtime_checkable
class Session(Protocol):
    """One tower, ready to run."""

    def run(self, batch: Num[np.ndarray, "batch *shape"]) -> Float32[np.ndarray, "batch dim"]:
        """Embeddings of a batch, not normalised."""
        ...


class TowerSession:
    """One tower on ONNX Runtime: one array in, one array out. Safe to share by threads.

    Opened by its path, so that weights in a file beside it are found. CUDA is used where
    ONNX Runtime offers it. `threads` never exceeds the cores this process may use.

    Raises CheckpointMismatch when the file is missing or damaged.
    """

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4 if _cuda_is_offered() else 3
        # Idle threads that spin take the cores from those that decode: 15 to 35 % of the speed
        # of indexing (benchmarks/index_folder.py), for 5 % more in batches on an idle machine.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not multiplies_bytes_exactly():
            # Products of 8-bit numbers in 16-bit sums overflow; this avoids them. Where it is not
            # needed it would take nearly half the speed (`mini`: 154 images/s against 259).
            options.add_session_config_entry("session.x64quantprecision", "1")
        options.intra_op_num_threads = bounded_threads(threads)
        require_file(path)
        providers = ["CPUExecutionProvider"]
        if _cuda_is_offered():
            providers.insert(0, "CUDAExecutionProvider")
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=providers)
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            raise CheckpointMismatch(
                f"{path} is not an ONNX model that this ONNX Runtime "
                f"({onnxruntime.__version__}) can run: {error}"
            ) from error
        self.device: Literal["cpu", "cuda"] = "cpu"
        if self._session.get_providers()[0] == "CUDAExecutionProvider":
            self.device = "cuda"
        elif len(providers) > 1:
            _say_gpu_is_not_used()
        self._input = self._session.get_inputs()[0].name

    def run(self, batch: Num[np.ndarray, "batch *shape"]) -> Float32[np.ndarray, "batch dim"]:
        """Embeddings of a batch, not normalised."""
        (output,) = self._session.run(None, {self._input: batch})
        result: Any = output
        return np.asarray(result, dtype=np.float32)


def open_session(
    path: Path, *, runtime: Runtime = "onnxruntime", threads: int | None = None
) -> Session:
    """Open one tower.

    For a long stream the fastest is a session of one thread that as many threads as there are
    cores call at the same time, each with a batch of its own: no call waits for the slower half
    of another (ViT-B/32 int8, 2 cores: 80 images/s against 71).

    Raises CheckpointMismatch when the file is missing or damaged, MissingExtra when
    OpenVINO is wanted and not installed, ConfigError for an unknown runtime.
    """
    if runtime == "openvino":
        from twinlens.runtime.openvino import OpenVinoSession

        return OpenVinoSession(path, threads=threads)
    if runtime != "onnxruntime":
        raise ConfigError(f"runtime {runtime!r}: must be 'onnxruntime' or 'openvino'.")
    return TowerSession(path, threads=threads)


def unit_rows(vectors: Num[np.ndarray, "item dim"]) -> Float32[np.ndarray, "item dim"]:
    """A tower's output as embeddings: every row divided by its length; a row of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Float32[np.ndarray, "item dim"] = vectors / np.maximum(lengths, 1e-30)
    return unit.astype(np.float32, copy=False)


def bounded_threads(threads: int | None) -> int:
    """`threads`, but no more than there are cores for; all of those by default."""
    return usable_cores() if threads is None else max(1, min(threads, usable_cores()))


def require_file(path: Path) -> None:
    """Raises CheckpointMismatch for a tower that is not there or may not be read."""
    try:
        with path.open("rb"):
            return
    except OSError as error:
        raise CheckpointMismatch(
            f"{path} cannot be read ({error.strerror}), but the model.json beside it names it. "
            f"Install or convert the model again."
        ) from error


@functools.cache
def _cuda_is_offered() -> bool:
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@functools.cache
def _say_gpu_is_not_used() -> None:
    """Once per process: a cache remembers that it was said."""
    warnings.warn(
        "ONNX Runtime offers CUDA but could not use a GPU: towers run on the processor. "
        "Check the driver with `nvidia-smi`, and that CUDA and cuDNN of the versions that "
        "onnxruntime-gpu wants are installed.",
        GpuNotUsedWarning,
        stacklevel=4,
    )
