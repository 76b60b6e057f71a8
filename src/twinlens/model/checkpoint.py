"""Our own checkpoint: a folder with `config.json` and `weights.safetensors`.

Weights under foreign names are convert.py's business. Nothing here unpickles.
"""

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from twinlens.config import ClipConfig
from twinlens.errors import CheckpointMismatch
from twinlens.model.clip import Clip

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "weights.safetensors"


def save_checkpoint(model: Clip, folder: Path) -> None:
    """Write config and weights; a crash leaves the old weights or the new, never half."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.write(folder / CONFIG_NAME)
    tensors = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    partial = folder / (WEIGHTS_NAME + ".partial")
    save_file(tensors, partial)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(folder / WEIGHTS_NAME)


def load_checkpoint(folder: Path) -> Clip:
    """Read a folder back, in eval mode.

    Raises ConfigError for a bad config and CheckpointMismatch for weights that are
    missing, truncated, or of other names or shapes than the config asks for.
    """
    config = ClipConfig.read(folder / CONFIG_NAME)
    path = folder / WEIGHTS_NAME
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointMismatch(
            f"{path} is not a whole safetensors file ({error}). Copy or download it again."
        ) from error
    return build_clip(config, tensors, source=str(path))


def build_clip(config: ClipConfig, tensors: dict[str, Tensor], *, source: str) -> Clip:
    """A model of these weights, in eval mode. Raises CheckpointMismatch as load_weights does."""
    # Without memory at first: drawing random weights only to replace them takes seconds.
    with torch.device("meta"):
        model = Clip(config)
    _check_weights(model, tensors, source=source)
    # Copies: what was read may be a view of a mapped file that someone overwrites.
    own = {
        name: value.clone(memory_format=torch.contiguous_format) for name, value in tensors.items()
    }
    model.load_state_dict(own, assign=True)
    return model.eval()


def load_weights(module: torch.nn.Module, tensors: dict[str, Tensor], *, source: str) -> None:
    """Copy `tensors` into `module`, all of them and nothing else.

    Raises CheckpointMismatch with the first few names or shapes that differ.
    """
    _check_weights(module, tensors, source=source)
    module.load_state_dict(tensors)


def _check_weights(module: torch.nn.Module, tensors: dict[str, Tensor], *, source: str) -> None:
    expected = module.state_dict()
    problems = [f"missing {name}" for name in expected.keys() - tensors.keys()]
    problems += [f"unexpected {name}" for name in tensors.keys() - expected.keys()]
    problems += [
        f"{name} is {tuple(tensors[name].shape)}, wanted {tuple(value.shape)}"
        for name, value in expected.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:5])
        raise CheckpointMismatch(
            f"{source} does not fit this model in {len(problems)} places: {shown}. "
            f"Check that the config belongs to these weights."
        )
