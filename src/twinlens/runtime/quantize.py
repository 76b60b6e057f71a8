"""float32 ONNX towers to int8: a quarter of the bytes, and faster where VNNI is.

The convolutional tower gets fixed activation ranges from calibration pictures; the
text tower gets its ranges anew at each call, because transformer activations have
rare large values that a fixed range would clip or drown. Needs `onnx` (extra `train`).
"""

import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process


class _Reader(CalibrationDataReader):
    def __init__(self, input_name: str, batches: Iterable[np.ndarray]) -> None:
        self._feeds: Iterator[dict[str, np.ndarray]] = iter({input_name: b} for b in batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def quantize_image_tower(
    source: Path,
    target: Path,
    calibration: Iterable[Float32[np.ndarray, "batch 3 height width"]],
    *,
    input_name: str = "pixel_values",
) -> None:
    """Static int8 with one scale per output channel.

    `calibration` is preprocessed pictures like those the tower will see; about a
    hundred settle the ranges.
    """
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            target,
            _Reader(input_name, calibration),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            calibrate_method=CalibrationMethod.MinMax,
        )


def quantize_text_tower(source: Path, target: Path) -> None:
    """Dynamic int8 for every matrix product with weights, and for the token table."""
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        root = logging.getLogger()
        level = root.level
        root.setLevel(logging.ERROR)  # the quantiser logs each node on the root logger
        try:
            quantize_dynamic(
                prepared,
                target,
                per_channel=True,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            )
        finally:
            root.setLevel(level)
