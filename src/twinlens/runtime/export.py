"""PyTorch towers to ONNX files whose batch (and token) axes are free.

Uses the TorchScript exporter on purpose: the newer one needs two more packages and
gives these plain towers no better graph. Proving the result equal to the towers is
verify.py's business. Needs the extra `train`.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from twinlens.model.clip import Clip
from twinlens.runtime.verify import Tower

OPSET = 17


class _Side(nn.Module):
    """One `encode_...` method of a model as the `forward` that the exporter traces."""

    def __init__(self, model: Clip, encode: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model  # its weights become this module's
        self.encode = encode

    def forward(self, batch: Tensor) -> Tensor:
        return self.encode(batch)


def export_module(
    module: nn.Module,
    example: Tensor,
    path: Path,
    *,
    input_name: str,
    output_names: list[str],
    free_axes: dict[int, str],
) -> None:
    """Trace `module` on `example` and write ONNX; `free_axes` names the input's free axes."""
    axes: dict[str, Any] = {input_name: free_axes}
    axes |= {name: {0: "batch"} for name in output_names}
    with warnings.catch_warnings():
        # The exporter announces its own age and reports folding that it skips.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (example,),
            str(path),
            input_names=[input_name],
            output_names=output_names,
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )


def export_towers(
    model: Clip, image_path: Path, text_path: Path, *, context: int | None = None
) -> None:
    """Write both towers, projections included: pixels or ids in, raw embeddings out.

    `context` is the number of tokens traced; a tower that sees its padding needs its own.
    """
    size = model.config.image.image_size
    model = model.eval().cpu()
    export_module(
        _Side(model, model.encode_image),
        torch.zeros(2, 3, size, size),
        image_path,
        input_name="pixel_values",
        output_names=["embeddings"],
        free_axes={0: "batch"},
    )
    export_module(
        _Side(model, model.encode_text),
        torch.ones(2, context or 7, dtype=torch.int64),
        text_path,
        input_name="token_ids",
        output_names=["embeddings"],
        free_axes={0: "batch", 1: "token"},
    )


def torch_tower(encode: Callable[[Tensor], Tensor]) -> Tower:
    """One `encode_...` method on arrays instead of tensors."""

    def run(batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return encode(torch.from_numpy(batch)).float().cpu().numpy()

    return run
