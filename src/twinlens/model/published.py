"""What a published checkpoint is: its family, its towers' configuration, its weights.

Sizes are read from the weights and checked against what the files beside them declare;
heads, activation and pooling cannot be seen in weights and come from those files, from
the caller, or from the family's published rule, which is then noted. Nothing is guessed
in silence. Bytes to tensors: archive.py. Names: convert.py. Families: families.py.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from twinlens.config import (
    Activation,
    BertTextConfig,
    ClipConfig,
    ClipTextConfig,
    ConvNextConfig,
    FastVitConfig,
    Projection,
    ResNetConfig,
    VitConfig,
)
from twinlens.errors import CheckpointMismatch, ConfigError
from twinlens.model.archive import find_weights, read_tensors
from twinlens.model.convert import open_clip_weights, transformers_weights
from twinlens.model.convert_flax import big_vision_weights
from twinlens.model.declared import (
    check_lone,
    check_open_clip,
    check_transformers,
    check_whole,
)
from twinlens.model.families import (
    HEAD_WIDTH,
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_IMAGE_SIZE,
    Family,
    Towers,
    big_vision_towers,
    layers_of,
    open_clip_config,
    open_clip_towers,
    openai_towers,
    read_json,
    shape_of,
    transformers_towers,
)
from twinlens.model.positions import resize_image_positions


@dataclass(frozen=True)
class Published:
    """A checkpoint under our names, and what its files say of it.

    `folder` is where the tokenizer and preprocessing files are, if there are any;
    `declared` is the family's own configuration as it was read.
    """

    source: Path
    folder: Path
    family: Family
    config: ClipConfig
    tensors: dict[str, Tensor]
    declared: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_published(
    path: Path,
    *,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    activation: Activation | None = None,
    image_size: int | None = None,
    heads_needed: bool = True,
) -> Published:
    """Read a weights file or a checkpoint folder of any published format.

    The keywords say what the files do not, or overrule what they do; another `image_size`
    interpolates the position embeddings. Without `heads_needed` unknown heads become 1, for a
    caller that only asks about inputs.

    Raises CheckpointMismatch for weights that are damaged, foreign or contradict what is
    declared, and ConfigError for what cannot be known or is not supported.
    """
    weights, folder = _locate(path)
    foreign = read_tensors(weights)
    family = _family(foreign, weights)
    notes: list[str] = []
    declared: dict[str, Any] = {}
    if family == "big_vision":
        ours, towers = big_vision_weights(foreign), big_vision_towers(foreign)
    elif family == "open_clip":
        declared, folder = open_clip_config(weights, folder, notes)
        if declared:
            model = declared.get("model_cfg", declared)
            ours, towers = open_clip_towers(foreign, model, weights)
            check_open_clip(model, ours, weights)
        else:
            family = "openai"
            check_lone(foreign, weights)
            ours = open_clip_weights(foreign)
            towers = openai_towers(foreign, ours, weights, activation, notes)
    else:
        declared = read_json(folder / "config.json") if folder else {}
        family, towers = transformers_towers(declared, weights)
        ours = transformers_weights(foreign)
        check_transformers(declared, ours, weights)
    given: dict[str, Any] = {"vision_heads": vision_heads, "text_heads": text_heads}
    given |= {"vision_activation": activation, "text_activation": activation}
    towers = replace(towers, **{name: value for name, value in given.items() if value is not None})
    if not heads_needed:
        towers = replace(
            towers, vision_heads=towers.vision_heads or 1, text_heads=towers.text_heads or 1
        )
    config = _config(ours, towers, weights)
    if image_size is not None and image_size != config.image.image_size:
        if isinstance(config.image, ConvNextConfig | FastVitConfig):  # no weight depends on it
            config = replace(config, image=replace(config.image, image_size=image_size))
        else:
            config, resized = resize_image_positions(config, ours, image_size)
            if resized is not ours:
                notes.append(
                    f"{weights.name}: position embeddings interpolated to {image_size} px."
                )
            ours = resized
    if isinstance(config.text, BertTextConfig):
        # Later positions are never asked for.
        ours["text_tower.position"] = ours["text_tower.position"][: config.text.context]
    return Published(weights, folder, family, config, ours, declared, tuple(notes))


def _locate(path: Path) -> tuple[Path, Path]:
    """The weights file of a path, and the folder with what belongs to it."""
    if not path.is_dir():
        return path, path.parent
    if (path / OPEN_CLIP_CONFIG).is_file():
        for name in ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"):
            if (path / name).is_file():
                return path / name, path
    return find_weights(path), path


def _family(foreign: Mapping[str, Tensor], weights: Path) -> Family:
    """Which family's names these are; the finer distinctions come later."""
    names = {name.removeprefix("params/") for name in foreign}
    check_whole(names, weights)
    if "img/embedding/kernel" in names and "t" in names:
        return "big_vision"
    if any(name.startswith("visual.") for name in names):
        return "open_clip"
    if any(name.startswith("vision_model.") for name in names):
        return "clip"
    if any(name.startswith("image_encoder.model.") for name in names):
        raise ConfigError(
            f"{weights} is in the format of Apple's own code, which is not supported: get the "
            f"OpenCLIP version of the same model (on the hub, its name with '-OpenCLIP')."
        )
    shown = ", ".join(sorted(names)[:3]) or "none"
    raise CheckpointMismatch(
        f"{weights} holds weights of no CLIP that is known here (its names begin with {shown}). "
        f"Known: OpenAI, OpenCLIP, Hugging Face CLIP and SigLIP, big_vision SigLIP."
    )


def _need(ours: Mapping[str, Tensor], name: str, axis: int, weights: Path) -> int:
    size = shape_of(ours, name, axis)
    if size is None:
        raise CheckpointMismatch(
            f"{weights} lacks {name}: it holds only a part of a CLIP, or was cut. Get it again."
        )
    return size


def _heads(heads: int | None, width: int, side: str, weights: Path) -> int:
    if heads is None:
        raise ConfigError(
            f"{weights} does not say how many heads its {side} tower has: pass {side}_heads=."
        )
    if heads < 1 or width % heads:
        raise ConfigError(
            f"{weights}: {heads} heads do not divide the {side} tower's width of {width}; pass "
            f"another {side}_heads=."
        )
    return heads


def _grid(tokens: int, weights: Path) -> int:
    grid = math.isqrt(max(tokens, 0))
    if grid * grid != tokens or not grid:
        raise CheckpointMismatch(
            f"{weights}: {tokens} position embeddings make no square. Get the file again."
        )
    return grid


def _check_size(image_size: int, patch: int, grid: int, weights: Path) -> None:
    if image_size // patch != grid:
        raise CheckpointMismatch(
            f"{weights}: its position embeddings are for pictures of {grid * patch} px, but its "
            f"configuration says {image_size} px: put the configuration of these weights there."
        )


def _config(ours: Mapping[str, Tensor], towers: Towers, weights: Path) -> ClipConfig:
    image = _image_config(ours, towers, weights)
    text = _text_config(ours, towers, weights)
    projections = {side: _projection(ours, side) for side in ("image", "text")}
    dim = next(
        (
            size
            for side, last in (("text", ".2"), ("text", ""), ("image", ""))
            if (size := shape_of(ours, f"{side}_projection{last}.weight", 0)) is not None
        ),
        image.width,
    )
    return ClipConfig(
        image=image,
        text=text,
        dim=dim,
        image_projection=projections["image"],
        text_projection=projections["text"],
        bias_init=-10.0 if "bias" in ours else None,
    )


def _projection(ours: Mapping[str, Tensor], side: str) -> Projection:
    if f"{side}_projection.2.weight" in ours:
        return "mlp_wide" if f"{side}_projection.0.bias" in ours else "mlp"
    if f"{side}_projection.weight" not in ours:
        return "none"
    return "linear_bias" if f"{side}_projection.bias" in ours else "linear"


def _image_config(
    ours: Mapping[str, Tensor], towers: Towers, weights: Path
) -> VitConfig | ResNetConfig | ConvNextConfig | FastVitConfig:
    if "image_tower.pool.position" in ours:
        return _resnet_config(ours, towers, weights)
    if "image_tower.downsamples.0.conv.weight" in ours:
        return _convnext_config(ours, towers, weights)
    if "image_tower.head_gate.squeeze.weight" in ours:
        return _fastvit_config(ours, towers, weights)
    convolution_stem = "image_tower.patch.4.weight" in ours
    if convolution_stem:
        width = _need(ours, "image_tower.final_norm.weight", 0, weights)
        patch = 4 * _need(ours, "image_tower.patch.0.weight", 3, weights)
    else:
        width = _need(ours, "image_tower.patch.weight", 0, weights)
        patch = _need(ours, "image_tower.patch.weight", 3, weights)
    has_query = "image_tower.query_pool.query" in ours
    tokens = _need(ours, "image_tower.position", 0, weights)
    grid = _grid(tokens if has_query else tokens - 1, weights)
    size = towers.image_size or grid * patch
    _check_size(size, patch, grid, weights)
    return VitConfig(
        width=width,
        layers=layers_of(ours, "image"),
        heads=_heads(towers.vision_heads, width, "vision", weights),
        mlp_width=_need(ours, "image_tower.blocks.0.mlp.0.weight", 0, weights),
        activation=_activation(towers.vision_activation, weights),
        layer_norm_eps=towers.vision_eps,
        image_size=size,
        patch_size=patch,
        pool="map" if has_query else towers.vision_pool,
        patch_bias="image_tower.patch.bias" in ours,
        convolution_stem=convolution_stem,
        input_norm="image_tower.input_norm.weight" in ours,
        norm_after_pool=towers.norm_after_pool,
    )


def _convnext_config(ours: Mapping[str, Tensor], towers: Towers, weights: Path) -> ConvNextConfig:
    stages = [f"image_tower.stages.{stage}." for stage in range(4)]
    widths = [_need(ours, f"{stage}0.layer_scale", 0, weights) for stage in stages]
    blocks = [_blocks(ours, stage) for stage in stages]
    return ConvNextConfig(
        image_size=towers.image_size or OPEN_CLIP_IMAGE_SIZE,
        widths=(widths[0], widths[1], widths[2], widths[3]),
        layers=(blocks[0], blocks[1], blocks[2], blocks[3]),
        layer_norm_eps=towers.vision_eps,
    )


def _fastvit_config(ours: Mapping[str, Tensor], towers: Towers, weights: Path) -> FastVitConfig:
    stages = [
        f"image_tower.stages.{number}." for number in range(_blocks(ours, "image_tower.stages."))
    ]
    widths = [_need(ours, f"{stage}blocks.0.mlp.filter.weight", 0, weights) for stage in stages]
    inner = _need(ours, "image_tower.stages.0.blocks.0.mlp.widen.weight", 0, weights)
    return FastVitConfig(
        image_size=towers.image_size or OPEN_CLIP_IMAGE_SIZE,
        widths=tuple(widths),
        layers=tuple(_blocks(ours, f"{stage}blocks.") for stage in stages),
        expansion=inner // max(widths[0], 1),
        attention_stages=sum(f"{stage}position.weight" in ours for stage in stages),
        attention_norm=f"{stages[-1]}blocks.0.norm.weight" in ours,
        gated_downsamples=sum(f"{stage}downsample.gate.squeeze.bias" in ours for stage in stages),
    )


def _blocks(ours: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbers follow a prefix."""
    return len({n.removeprefix(prefix).split(".")[0] for n in ours if n.startswith(prefix)})


def _resnet_config(ours: Mapping[str, Tensor], towers: Towers, weights: Path) -> ResNetConfig:
    width = _need(ours, "image_tower.stem.2.conv.weight", 0, weights)
    grid = _grid(_need(ours, "image_tower.pool.position", 0, weights) - 1, weights)
    blocks = [_blocks(ours, f"image_tower.stages.{stage}.") for stage in range(4)]
    size = towers.image_size or grid * 32
    _check_size(size, 32, grid, weights)
    heads = towers.vision_heads or 32 * width // HEAD_WIDTH
    return ResNetConfig(
        image_size=size,
        stem_width=width,
        layers=(blocks[0], blocks[1], blocks[2], blocks[3]),
        heads=_heads(heads, 32 * width, "vision", weights),
    )


def _text_config(
    ours: Mapping[str, Tensor], towers: Towers, weights: Path
) -> ClipTextConfig | BertTextConfig:
    width = _need(ours, "text_tower.token.weight", 1, weights)
    positions = _need(ours, "text_tower.position", 0, weights)
    sizes: dict[str, Any] = {
        "width": width,
        "layers": layers_of(ours, "text"),
        "heads": _heads(towers.text_heads, width, "text", weights),
        "mlp_width": _need(ours, "text_tower.blocks.0.mlp.0.weight", 0, weights),
        "activation": _activation(towers.text_activation, weights),
        "layer_norm_eps": towers.text_eps,
        "vocab_size": _need(ours, "text_tower.token.weight", 0, weights),
    }
    if "text_tower.embedding_norm.weight" in ours:
        return BertTextConfig(
            **sizes,
            context=min(towers.context or positions, positions),
            pad_id=towers.pad_id,
            pool=towers.bert_pool,
        )
    return ClipTextConfig(
        **sizes,
        context=positions,
        pool=towers.text_pool,
        eos_id=towers.eos_id,
        causal=towers.causal,
    )


def _activation(activation: Activation | None, weights: Path) -> Activation:
    assert activation is not None, weights  # every family's reader sets it
    return activation
