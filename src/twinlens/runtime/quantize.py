"""float32 ONNX towers to int8: a quarter of the bytes, and faster where VNNI is.

Which way is chosen by looking at the graph. A convolutional tower gets fixed activation
ranges from calibration pictures (here); a transformer gets them too, but with its rare
large channels made smaller first (int8.py). A text tower without calibration texts finds
its ranges anew at each call, at half the speed. Needs `onnx` (extra `train`).
"""

import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from twinlens.errors import require_package
from twinlens.runtime.graph import Graph
from twinlens.runtime.int8 import quantize_products
from twinlens.runtime.precision import to_float16

__all__ = ["quantize_image_tower", "quantize_text_tower", "to_float16"]

# The first ranges are the widest. On `mini`, leaving three in float32 raises the mean cosine
# to the float32 tower from 0.993 to 0.996 (the least from 0.964 to 0.986) for 2.5 % of the speed.
FLOAT_CONVOLUTIONS = 3
BLOCK = 128  # numbers that share a scale in the text tower


def quantize_image_tower(
    source: Path,
    target: Path,
    calibration: Iterable[Float32[np.ndarray, "batch 3 height width"]],
    *,
    input_name: str = "pixel_values",
) -> None:
    """Static int8 with one scale per output channel.

    In a convolutional tower the first convolutions stay float32; in a transformer those
    products that suffer most. `calibration` is preprocessed pictures like those the tower
    will see; about a hundred settle the ranges of convolutions, thirty those of products.

    Raises MissingExtra without `onnx`, CheckpointMismatch for a tower that int8 spoils.
    """
    _require_onnx()
    if not _is_convolutional(source):
        quantize_products(source, target, list(calibration))
        return
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = iter(calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self._batches, None)
            return None if batch is None else {input_name: batch}

    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            calibrate_method=CalibrationMethod.MinMax,
            nodes_to_exclude=_first_convolutions(prepared),
        )


def _require_onnx() -> None:
    require_package("onnx", extra="train", purpose="quantising a tower")


def _is_convolutional(path: Path) -> bool:
    """Whether there is more than the one convolution that cuts a picture into patches."""
    kinds = [str(node.op_type) for node in Graph(path).nodes]
    return kinds.count("Conv") > 1


def _first_convolutions(path: Path) -> list[str]:
    import onnx

    names = [node.name for node in onnx.load(path).graph.node if node.op_type == "Conv"]
    return names[:FLOAT_CONVOLUTIONS]


def quantize_text_tower(
    source: Path,
    target: Path,
    calibration: Sequence[Int64[np.ndarray, "batch token"]] | None = None,
) -> None:
    """int8 for the token table and every matrix product with weights.

    With `calibration`, padded ids of thirty or more texts like those the tower will see,
    ranges are fixed (int8.py), which is twice as fast. Without, products run on int8 with a
    scale per block of BLOCK numbers, found anew for each row of activations. The simpler
    dynamic quantisation has one activation scale for a whole batch, so that a text's vector
    depends on its neighbours (cosine 0.990 between alone and in a batch of 200, against
    1.000 here) and is 0.993 from float32, against 0.999 (figures of `mini`).

    Raises MissingExtra without `onnx`, CheckpointMismatch for a tower that int8 spoils.
    """
    _require_onnx()
    if calibration is not None:
        quantize_products(source, target, calibration)
        return
    quantize_blocks(source, target)


def quantize_blocks(source: Path, target: Path) -> None:
    """int8 weights with a scale per BLOCK numbers; activations by row, at each call.

    No calibration and no surprise, at half the speed of fixed ranges. ONNX Runtime only.
    """
    _require_onnx()
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    from onnxruntime.quantization.onnx_model import ONNXModel

    with tempfile.TemporaryDirectory() as folder, _quiet():
        blocks = Path(folder) / "blocks.onnx"
        model = ONNXModel(onnx.load(source))
        model.replace_gemm_with_matmul()  # the one product that the next step knows
        quantizer = MatMulNBitsQuantizer(
            model.model, bits=8, block_size=BLOCK, is_symmetric=True, accuracy_level=4
        )
        quantizer.process()
        quantizer.model.save_model_to_file(str(blocks))
        quantize_dynamic(
            blocks, target, weight_type=QuantType.QInt8, op_types_to_quantize=["Gather"]
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantisers tell of each node, some of them on the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
