"""Checkpoints with timm's image towers that need no file: weights and pictures from their names.

tests/data/make_timm.py ran OpenCLIP on these very weights and recorded what it gave.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from random_weights import uniform, weight

DATA = Path(__file__).parent / "data"


def timm_weight(name: str, shape: tuple[int, ...], scales: dict[str, float]) -> torch.Tensor:
    """A random weight; `scales` multiplies those whose name contains a key."""
    value = weight(name, shape)
    if name.endswith(".weight") and len(shape) > 1 and name.startswith("visual."):
        # Each channel its own mean: filters without one turn every picture into the same.
        value = (
            value
            + 0.5
            * value.flatten(1).shape[1] ** -0.5
            * uniform(f"{name}.mean", shape[:1])[(...,) + (None,) * (len(shape) - 1)]
        )
    for part, scale in scales.items():
        value = value * scale if part in name else value
    return value


def pictures(size: int) -> torch.Tensor:
    """Two that differ in their large areas and in their grain."""
    areas = uniform("areas", (2, 3, 4, 4)).repeat_interleave(size // 4, 2)
    areas = areas.repeat_interleave(size // 4, 3)
    return 2 * areas + 0.5 * uniform("grain", (2, 3, size, size))


def write_checkpoint(folder: Path, case: dict[str, Any]) -> Path:
    """The folder as OpenCLIP publishes one; `case` is one of those in tests/data/timm.json."""
    state = {
        name: torch.zeros((), dtype=torch.int64)
        if name.endswith("num_batches_tracked")
        else timm_weight(name, tuple(shape), case["scales"])
        for name, shape in case["shapes"].items()
    }
    config = {"model_cfg": case["model_cfg"], "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


def read_cases(prefix: str) -> dict[str, dict[str, Any]]:
    """Recorded cases of one kind of tower: what each is, and under "image", "text" OpenCLIP's."""
    cases = json.loads((DATA / "timm.json").read_text())
    with np.load(DATA / "timm.npz") as values:
        return {
            name: {**case, **{key: values[f"{name}.{key}"] for key in ("image", "text", "ids")}}
            for name, case in cases.items()
            if name.startswith(prefix)
        }
