"""Runs a tower on OpenVINO, which reads the same ONNX files. Needs the extra `openvino`.

On processors with AVX-512 it is the faster of the two, in float and for one picture at a
time above all (benchmarks/embed_throughput.py). Sums are kept in float32 unless asked
otherwise: by itself it would round to bfloat16 where the processor can.
"""

import threading
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Num

from twinlens.errors import CheckpointMismatch, require_package
from twinlens.runtime.session import bounded_threads, require_file


class OpenVinoSession:
    """One tower on OpenVINO: one array in, one array out. Safe to share by threads.

    `numbers="bfloat16"` is twice as fast where the processor has such instructions, at a
    cosine of about 0.9998 to float32.

    Raises MissingExtra without `openvino`, CheckpointMismatch for a file that is missing,
    damaged or uses steps that only ONNX Runtime knows.
    """

    device: Literal["cpu", "cuda"] = "cpu"

    def __init__(
        self,
        path: Path,
        *,
        threads: int | None = None,
        numbers: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        require_package("openvino", extra="openvino", purpose="running a tower on OpenVINO")
        import openvino

        require_file(path)
        settings = {
            # One stream with all threads: a batch is one request, and requests of several
            # threads wait for each other instead of sharing the caches.
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": bounded_threads(threads),
            "INFERENCE_PRECISION_HINT": "bf16" if numbers == "bfloat16" else "f32",
        }
        try:
            core = openvino.Core()
            self._model: Any = core.compile_model(core.read_model(path), "CPU", settings)
        except Exception as error:  # RuntimeError and pybind's own
            reason = " ".join(str(error).split())[:300]
            raise CheckpointMismatch(
                f"{path} is not an ONNX model that this OpenVINO ({openvino.__version__}) can "
                f"run: {reason}. Use ONNX Runtime for it."
            ) from error
        self._local = threading.local()  # a request holds the arrays of one run

    def run(self, batch: Num[np.ndarray, "batch *shape"]) -> Float32[np.ndarray, "batch dim"]:
        """Embeddings of a batch, not normalised."""
        if not hasattr(self._local, "request"):
            self._local.request = self._model.create_infer_request()
        outputs = self._local.request.infer({0: np.ascontiguousarray(batch)})
        # A copy: the request's own array is overwritten by the next run.
        return np.array(outputs[self._model.output(0)], dtype=np.float32)
