"""What a run starts from: a preset with random weights, or any checkpoint that can be read.

Either becomes a folder of our own format inside the run, so that the run goes on without
the file it came from. Reading checkpoints is runtime/load.py's business.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from twinlens.config import ClipConfig, ClipTextConfig, VitConfig
from twinlens.data.preprocess import Preprocess
from twinlens.data.tokenizer import TokenizerConfig, tokenizer_files
from twinlens.model.checkpoint import save_checkpoint
from twinlens.model.clip import Clip
from twinlens.runtime.folder import locate
from twinlens.runtime.load import (
    INPUTS_NAME,
    InputsConfig,
    load_checkpoint_at,
    preprocess_config,
    tokenizer_config,
)
from twinlens.train.config import TrainConfig

# Radford et al. 2021's mean and spread of their pictures, red, green and blue.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
SIGMOID_LOG_SCALE, SIGMOID_BIAS = 2.302585092994046, -10.0  # ln 10: Zhai et al. 2023, section 3.2

# patch, then width, layers and heads of the image tower and of the text tower, and the dim.
PRESETS: dict[str, tuple[int, tuple[int, int, int], tuple[int, int, int], int]] = {
    "vit-ti-16": (16, (192, 12, 3), (256, 6, 4), 256),
    "vit-s-32": (32, (384, 12, 6), (384, 12, 6), 384),
    "vit-s-16": (16, (384, 12, 6), (384, 12, 6), 384),
    "vit-b-32": (32, (768, 12, 12), (512, 12, 8), 512),
    "vit-b-16": (16, (768, 12, 12), (512, 12, 8), 512),
    "vit-l-14": (14, (1024, 24, 16), (768, 12, 12), 768),
}


@dataclass(frozen=True)
class Start:
    """A model, what it wants of its inputs, and the folder of its tokenizer's files."""

    model: Clip
    inputs: InputsConfig
    folder: Path


def preset_config(name: str, *, image_size: int | None = None, sigmoid: bool = False) -> ClipConfig:
    """The configuration of a preset, for pictures of 224 px unless `image_size` says otherwise."""
    patch, image, text, dim = PRESETS[name]
    sizes: list[dict[str, Any]] = [
        {"width": width, "layers": layers, "heads": heads, "mlp_width": 4 * width}
        for width, layers, heads in (image, text)
    ]
    config = ClipConfig(
        image=VitConfig(**sizes[0], image_size=image_size or 224, patch_size=patch),
        text=ClipTextConfig(**sizes[1]),
        dim=dim,
    )
    if sigmoid:
        config = replace(config, log_scale_init=SIGMOID_LOG_SCALE, bias_init=SIGMOID_BIAS)
    return config


def open_start(config: TrainConfig) -> Start:
    """The model that `config` names. Draws a preset's weights from PyTorch's random numbers.

    Raises what load_model raises: ModelNotFound, CheckpointMismatch, ConfigError.
    """
    if config.model in PRESETS:
        sizes = preset_config(
            config.model, image_size=config.image_size, sigmoid=config.loss == "sigmoid"
        )
        inputs = InputsConfig(
            preprocess=Preprocess(
                image_size=sizes.image.image_size, resize="shortest", mean=CLIP_MEAN, std=CLIP_STD
            ),
            tokenizer=TokenizerConfig(kind="clip_bpe", context=sizes.text.context),
        )
        return Start(Clip(sizes), inputs, Path())
    place = locate(config.model)
    model, published = load_checkpoint_at(place, image_size=config.image_size)
    preprocess = preprocess_config(place, published)
    if config.image_size is not None:
        preprocess = replace(preprocess, image_size=config.image_size, resize_size=None)
    tokens, folder = tokenizer_config(place, published)
    if config.loss == "sigmoid" and model.bias is None:
        model.config = replace(model.config, bias_init=SIGMOID_BIAS)
        model.bias = nn.Parameter(torch.tensor(SIGMOID_BIAS))
    return Start(model, InputsConfig(preprocess=preprocess, tokenizer=tokens), folder)


def write_model(model: Clip, start: Start, folder: Path) -> None:
    """`model` as a checkpoint folder that needs no other: weights, inputs, tokenizer's files."""
    save_checkpoint(model, folder)
    start.inputs.write(folder / INPUTS_NAME)
    for file in tokenizer_files(start.inputs.tokenizer):
        shutil.copyfile(start.folder / file, folder / file)


def write_start(start: Start, folder: Path) -> None:
    """write_model, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".start.", dir=folder.parent))
    try:
        write_model(start.model, start, partial)
        partial.chmod(0o755)  # mkdtemp's is for its owner alone
        os.rename(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
