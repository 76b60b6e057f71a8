"""What each published family declares of its towers that the weights do not show.

One function per family, from its configuration (or its published rule, where it has
none) to `Towers`. Facts only: sizes come from the weights, in published.py.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from twinlens.config import Activation
from twinlens.errors import ConfigError
from twinlens.model.convert import open_clip_weights, open_clip_xlm_roberta_weights
from twinlens.model.declared_types import check_types
from twinlens.model.families_timm import timm_tower, unsupported

Family = Literal[
    "openai", "open_clip", "clip", "siglip", "metaclip_2", "chinese_clip", "big_vision"
]

OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_IMAGE_SIZE = 224  # where its configuration is silent (model.py, CLIPVisionCfg)
HEAD_WIDTH = 64  # of every OpenAI tower (clip/model.py, build_model)


@dataclass(frozen=True)
class Towers:
    """What weights do not show, for both towers."""

    vision_heads: int | None = None
    text_heads: int | None = None
    vision_activation: Activation | None = None
    text_activation: Activation | None = None
    vision_eps: float = 1e-5
    text_eps: float = 1e-5
    image_size: int | None = None
    vision_pool: Literal["class", "mean"] = "class"
    norm_after_pool: bool = False
    text_pool: Literal["argmax", "eos", "last"] = "argmax"
    eos_id: int | None = None
    causal: bool = True
    context: int | None = None
    pad_id: int = 0
    bert_pool: Literal["mean", "first"] = "mean"


def read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path.parent} has no {path.name}, without which these weights cannot be understood. "
            f"Copy it from where the weights came from."
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not a readable JSON file: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a JSON object, not {type(values).__name__}.")
    check_types(values, path)
    return values


def shape_of(ours: Mapping[str, Tensor], name: str, axis: int) -> int | None:
    value = ours.get(name)
    return value.shape[axis] if value is not None and value.ndim > axis else None


def layers_of(ours: Mapping[str, Tensor], side: str) -> int:
    prefix = f"{side}_tower.blocks."
    return len({name.split(".")[2] for name in ours if name.startswith(prefix)})


def big_vision_towers(foreign: Mapping[str, Tensor]) -> Towers:
    """SigLIP in flax: tanh-GELU (vit.py), heads visible in the attention kernels."""
    heads = {
        name.removeprefix("params/").split("/")[0]: value.shape[-2]
        for name, value in foreign.items()
        if name.endswith("MultiHeadDotProductAttention_0/query/kernel") and value.ndim > 1
    }
    return Towers(
        vision_heads=heads.get("img"),
        text_heads=heads.get("txt"),
        vision_activation="gelu_tanh",
        text_activation="gelu_tanh",
        vision_eps=1e-6,
        text_eps=1e-6,
        text_pool="last",
        causal=False,
    )


def openai_towers(
    foreign: Mapping[str, Tensor],
    ours: Mapping[str, Tensor],
    weights: Path,
    activation: Activation | None,
    notes: list[str],
) -> Towers:
    """OpenAI's rules for a state dict with no configuration: heads of 64, quick-GELU."""
    # Their archives hold these numbers, and half precision everywhere but in the norms.
    typed = {"input_resolution", "context_length"} <= foreign.keys()
    matrix = foreign.get("transformer.resblocks.0.mlp.c_fc.weight")
    norm = foreign.get("ln_final.weight")
    mixed = matrix is not None and norm is not None and matrix.dtype != norm.dtype
    if not (typed or mixed or activation):
        raise ConfigError(
            f"{weights} has no {OPEN_CLIP_CONFIG} beside it and does not say whether its towers "
            f"use GELU or quick-GELU: put that file there, or pass activation='gelu' or "
            f"'quick_gelu'."
        )
    notes.append(
        f"{weights.name} does not say its heads and activation: OpenAI's are used (heads of "
        f"{HEAD_WIDTH}, {activation or 'quick_gelu'})."
    )
    return Towers(
        vision_heads=_heads_of_64(ours, "image_tower.class_token"),
        text_heads=_heads_of_64(ours, "text_tower.final_norm.weight"),
        vision_activation="quick_gelu",
        text_activation="quick_gelu",
    )


def _heads_of_64(ours: Mapping[str, Tensor], name: str) -> int | None:
    """As OpenAI counts them: rounded down. None below one head's width."""
    width = shape_of(ours, name, 0)
    return None if width is None else width // HEAD_WIDTH or None


def open_clip_config(weights: Path, folder: Path, notes: list[str]) -> tuple[dict[str, Any], Path]:
    """OpenCLIP's configuration beside the weights, or one folder up (a run's checkpoints/)."""
    for place in (folder, folder.resolve().parent):
        if (place / OPEN_CLIP_CONFIG).is_file():
            if place != folder:
                notes.append(f"{weights.name}: {place / OPEN_CLIP_CONFIG} is taken as its own.")
            return read_json(place / OPEN_CLIP_CONFIG), place
    return {}, folder


def open_clip_towers(
    foreign: dict[str, Tensor], model: dict[str, Any], weights: Path
) -> tuple[dict[str, Tensor], Towers]:
    vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
    for section, key, plain in (
        (vision, "attentional_pool", False),
        (vision, "ls_init_value", None),
        (vision, "qk_norm", False),
        (text, "ls_init_value", None),
        (text, "embed_cls", False),
    ):
        if section.get(key, plain) != plain:
            raise ConfigError(
                f"{weights}: OpenCLIP's option {key} ({section[key]!r}) is not supported."
            )
    timm = vision.get("timm_model_name")
    if timm and (reason := unsupported(timm, foreign, vision.get("timm_pool", "avg") or "")):
        raise ConfigError(f"{weights}: the image tower {timm!r} is not supported ({reason}).")
    vision_pool = vision.get("pool_type", "tok")
    if vision_pool not in ("tok", "avg"):
        raise ConfigError(f"{weights}: image pooling {vision_pool!r} is not supported.")
    towers = Towers(
        vision_activation=_open_clip_activation(model, vision),
        vision_eps=_eps(vision),
        image_size=_square(vision.get("image_size"), weights),
        vision_pool="mean" if vision_pool == "avg" else "class",
        norm_after_pool=bool(vision.get("final_ln_after_pool", False)),
        vision_heads=vision.get("width", 768) // vision.get("head_width", 64),
    )
    if isinstance(vision.get("layers"), list):
        towers = replace(
            towers, vision_heads=vision.get("width", 64) * 32 // vision.get("head_width", 64)
        )
    if timm:
        tower = timm_tower(timm)
        towers = replace(
            towers,
            vision_heads=tower.heads,
            vision_activation=tower.activation,
            vision_eps=tower.eps,
        )
    if hugging_face := text.get("hf_model_name"):
        towers = _with_roberta(towers, hugging_face, text, weights)
        return open_clip_xlm_roberta_weights(foreign), towers
    pool = text.get("pool_type", "argmax")
    if pool not in ("argmax", "eos", "last"):
        raise ConfigError(f"{weights}: text pooling {pool!r} is not supported.")
    return open_clip_weights(foreign), replace(
        towers,
        text_heads=text.get("heads", 8),
        text_activation=_open_clip_activation(model, text),
        text_eps=_eps(text),
        text_pool=pool,
        # Their default for eos_id, 2, is OpenCLIP's own.
        eos_id=text.get("eos_id", 2) if pool == "eos" else None,
        causal=not text.get("no_causal_mask", False),
    )


def _open_clip_activation(model: Mapping[str, Any], tower: Mapping[str, Any]) -> Activation:
    if model.get("quick_gelu"):
        return "quick_gelu"
    return "gelu_tanh" if (tower.get("act_kwargs") or {}).get("approximate") == "tanh" else "gelu"


def _eps(tower: Mapping[str, Any]) -> float:
    return float((tower.get("norm_kwargs") or {}).get("eps", 1e-5))


def _square(size: Any, weights: Path) -> int | None:
    if isinstance(size, list | tuple):
        if len(set(size)) != 1:
            raise ConfigError(f"{weights}: pictures of {size} px are not square: not supported.")
        return int(size[0])
    return None if size is None else int(size)


# Hugging Face text towers that OpenCLIP's published models name: heads. All are RoBERTas, with
# GELU, epsilon 1e-5 and padding id 1 (their config.json on the hub).
_ROBERTA_HEADS = {"roberta-base": 12, "xlm-roberta-base": 12, "xlm-roberta-large": 16}


def _with_roberta(towers: Towers, name: str, text: Mapping[str, Any], weights: Path) -> Towers:
    heads = _ROBERTA_HEADS.get(name.rpartition("/")[2])
    pooler = text.get("hf_pooler_type", text.get("pooler_type", "mean_pooler"))
    if heads is None or pooler != "mean_pooler":
        raise ConfigError(
            f"{weights}: the text tower {name!r} with {pooler!r} is not supported (known: "
            f"{', '.join(_ROBERTA_HEADS)} with 'mean_pooler')."
        )
    return replace(
        towers,
        text_heads=heads,
        text_activation="gelu",
        context=text.get("context_length", 77),
        pad_id=1,
    )


# What transformers' configuration classes take when config.json is silent.
_CLIP_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_CLIP_TEXT = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}
_SIGLIP_VISION = {**_CLIP_VISION, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh"}
_SIGLIP_TEXT = {
    **_CLIP_TEXT,
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "max_position_embeddings": 64,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
_BERT_TEXT = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
_TRANSFORMERS: dict[str, tuple[Family, dict[str, Any], dict[str, Any]]] = {
    "clip": ("clip", _CLIP_VISION, _CLIP_TEXT),
    "siglip": ("siglip", {**_SIGLIP_VISION, "layer_norm_eps": 1e-6}, _SIGLIP_TEXT),
    "metaclip_2": ("metaclip_2", _CLIP_VISION, _CLIP_TEXT),
    "chinese_clip": ("chinese_clip", _CLIP_VISION, _BERT_TEXT),
}
_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}


def sections_of(declared: Mapping[str, Any], weights: Path) -> tuple[Family, dict[str, Any], Any]:
    """Family, vision and text section of a config.json, completed as transformers does."""
    kind = declared.get("model_type")
    if kind == "siglip2":
        raise ConfigError(
            f"{weights}: SigLIP 2 NaFlex (pictures of any shape) is not supported; its checkpoints "
            f"of fixed resolution are."
        )
    if kind not in _TRANSFORMERS:
        raise ConfigError(
            f"{weights}: config.json says model_type {kind!r}; known are "
            f"{', '.join(_TRANSFORMERS)}."
        )
    family, vision, text = _TRANSFORMERS[kind]
    return family, _completed(declared, "vision", vision), _completed(declared, "text", text)


def _completed(
    declared: Mapping[str, Any], side: str, defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """One section. In old files "..._config_dict" is what counts, and its gaps are defaults."""
    section = declared.get(f"{side}_config") or {}
    old = declared.get(f"{side}_config_dict")
    return {**defaults, **section} if old is None else {**section, **defaults, **old}


def transformers_towers(declared: dict[str, Any], weights: Path) -> tuple[Family, Towers]:
    family, vision, text = sections_of(declared, weights)
    for section in (vision, text):
        if section["hidden_act"] not in _ACTIVATIONS:
            raise ConfigError(
                f"{weights}: activation {section['hidden_act']!r} is not supported (known: "
                f"{', '.join(_ACTIVATIONS)})."
            )
    towers = Towers(
        vision_heads=vision["num_attention_heads"],
        vision_activation=_ACTIVATIONS[vision["hidden_act"]],
        vision_eps=float(vision["layer_norm_eps"]),
        image_size=_square(vision["image_size"], weights),
        text_heads=text["num_attention_heads"],
        text_activation=_ACTIVATIONS[text["hidden_act"]],
        text_eps=float(text["layer_norm_eps"]),
    )
    if family == "siglip":
        return family, replace(towers, text_pool="last", causal=False)
    if family == "chinese_clip":
        return family, replace(towers, pad_id=text["pad_token_id"] or 0, bert_pool="first")
    eos = text["eos_token_id"]
    eos = eos[0] if isinstance(eos, list) else eos
    # 2 is a mistake of old files that transformers reads as "the largest id"; not MetaCLIP 2.
    if eos == 2 and family == "clip":
        return family, towers
    return family, replace(towers, text_pool="eos", eos_id=eos)
