"""Refuses a configuration that describes other weights than those beside it.

Heads, activation and pooling cannot be seen in weights: a configuration of other weights
would give plausible nonsense. Its sizes betray it. What is read from a configuration:
families.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from twinlens.errors import CheckpointMismatch, ConfigError
from twinlens.model.families import OPEN_CLIP_CONFIG, layers_of, sections_of, shape_of


def check_transformers(
    declared: Mapping[str, Any], ours: Mapping[str, Tensor], weights: Path
) -> None:
    """Hugging Face's config.json; what it leaves out has transformers' default."""
    _, vision, text = sections_of(declared, weights)
    for side, section in (("image", vision), ("text", text)):
        found = {
            "hidden_size": shape_of(ours, f"{side}_tower.final_norm.weight", 0)
            or shape_of(ours, f"{side}_tower.embedding_norm.weight", 0),
            "intermediate_size": shape_of(ours, f"{side}_tower.blocks.0.mlp.0.weight", 0),
            "num_hidden_layers": layers_of(ours, side) or None,
            "patch_size": shape_of(ours, f"{side}_tower.patch.weight", 2),
            "vocab_size": shape_of(ours, f"{side}_tower.token.weight", 0),
            "max_position_embeddings": shape_of(ours, "text_tower.position", 0),
        }
        _refuse_others("config.json", side, section, found, weights)


def check_open_clip(model: Mapping[str, Any], ours: Mapping[str, Tensor], weights: Path) -> None:
    """OpenCLIP's model_cfg; towers of timm's and Hugging Face's have no sizes there."""
    vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
    dims = [shape_of(ours, f"{side}_projection.weight", 0) for side in ("image", "text")]
    _refuse_others(OPEN_CLIP_CONFIG, "", model, {"embed_dim": dims[0] or dims[1]}, weights)
    if not vision.get("timm_model_name"):
        is_resnet = isinstance(vision.get("layers"), list)
        first = "stem.2.conv" if is_resnet else "patch"
        found = {
            "width": shape_of(ours, f"image_tower.{first}.weight", 0),
            "layers": None if is_resnet else layers_of(ours, "image"),
            "patch_size": None if is_resnet else shape_of(ours, "image_tower.patch.weight", 2),
        }
        _refuse_others(OPEN_CLIP_CONFIG, "image", vision, found, weights)
    if not text.get("hf_model_name"):
        found = {
            "width": shape_of(ours, "text_tower.final_norm.weight", 0),
            "layers": layers_of(ours, "text"),
            "vocab_size": shape_of(ours, "text_tower.token.weight", 0),
            "context_length": shape_of(ours, "text_tower.position", 0),
        }
        _refuse_others(OPEN_CLIP_CONFIG, "text", text, found, weights)


def _refuse_others(
    file: str, side: str, section: Mapping[str, Any], found: Mapping[str, int | None], weights: Path
) -> None:
    for key, value in found.items():
        # Nothing found: published.py says what is missing.
        if value and section.get(key, value) != value:
            raise CheckpointMismatch(
                f"{weights} does not belong to the {file} beside it, which says "
                f"{f'{side} {key}'.strip()} {section[key]}, while the weights have {value}: put "
                f"the {file} of these weights there."
            )


# What names of each tower begin with, in every format that is known here.
_IMAGE = ("visual.", "vision_model.", "img/")
_TEXT = ("text.", "text_model.", "token_embedding.", "txt/")


def check_whole(names: set[str], weights: Path) -> None:
    """Refuse one tower alone: whoever published it may have kept the other elsewhere."""
    has_image = any(name.startswith(_IMAGE) for name in names)
    has_text = any(name.startswith(_TEXT) for name in names)
    if has_image != has_text:
        there, missing = ("an image", "text") if has_image else ("a text", "image")
        raise CheckpointMismatch(
            f"{weights} holds only {there} tower: get the whole model's file, which has the "
            f"{missing} tower too."
        )


def check_lone(foreign: Mapping[str, Tensor], weights: Path) -> None:
    """Refuse OpenCLIP weights whose towers only a configuration explains."""
    strange = {
        "an image tower of timm's": any(name.startswith("visual.trunk.") for name in foreign),
        "a text tower of Hugging Face's": any(
            name.startswith("text.transformer.embeddings.") for name in foreign
        ),
        # CLIPA's, which pool otherwise too.
        "an image tower without a norm before its blocks": "visual.class_embedding" in foreign
        and "visual.ln_pre.weight" not in foreign,
    }
    for what, is_there in strange.items():
        if is_there:
            raise ConfigError(
                f"{weights} has {what} but no {OPEN_CLIP_CONFIG} beside it, without which it "
                f"cannot be understood: copy that file from where the weights came from."
            )
