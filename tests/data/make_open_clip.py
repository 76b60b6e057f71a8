"""Writes open_clip.json and open_clip.npz: tiny checkpoints, and what OpenCLIP computes from them.

Run once, outside the test environment, because OpenCLIP and timm need torchvision:
    PYTHONPATH=tests:FOLDER_WITH_open_clip_AND_timm python tests/data/make_open_clip.py
Made with open_clip_torch 3.3.0, timm 1.0.31, transformers 5.23.0, torch 2.13.0 on CPU. Where
torchvision is absent it is replaced by empty modules: no tower uses it.

A checkpoint is its configuration, its names and its shapes: random_weights.py says what is in it.
timm's towers are of published names, but cut to tiny sizes.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent


class Anything(type):
    """A class that has every attribute, so that enumerations can be empty too."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class EmptyTorchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Any `torchvision.x` imports, and holds a new class for whatever is asked of it."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.partition(".")[0] != "torchvision":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__getattr__ = self.anything  # type: ignore[method-assign]
        module.__version__ = "0.0"  # type: ignore[attr-defined]
        return module

    def anything(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything(name, (), {})

    def exec_module(self, module: types.ModuleType) -> None:
        pass


if importlib.util.find_spec("torchvision") is None:
    sys.meta_path.insert(0, EmptyTorchvision())

import timm  # noqa: E402
import transformers  # noqa: E402
from open_clip.model import CLIP, CustomTextCLIP, resize_pos_embed  # noqa: E402

from random_weights import fill, uniform  # noqa: E402

TEXT = {"context_length": 9, "vocab_size": 99, "width": 24, "heads": 3, "layers": 2}
SIGLIP_TEXT = {
    **TEXT,
    "heads": 4,
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
    "norm_kwargs": {"eps": 1e-6},
}
VISION = {"image_size": 32, "layers": 2, "width": 24, "head_width": 8, "patch_size": 8}
TIMM = {"timm_model_pretrained": False, "timm_pool": "map", "timm_proj": "none"}
# What a published timm name is cut to; heads, activation and mlp_ratio stay the name's own.
TIMM_SIZES: dict[str, dict[str, int]] = {
    "vit_base_patch32_siglip_256": {"embed_dim": 24, "depth": 2, "img_size": 32, "patch_size": 8},
    "vit_so400m_patch14_siglip_384": {
        "embed_dim": 32,
        "depth": 1,
        "img_size": 30,
        "patch_size": 7,
    },
}
# Of the hub's XLM-R: padding id 1, one token type, epsilon 1e-5, 12 heads.
XLM_ROBERTA = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 12,
    "intermediate_size": 60,
    "vocab_size": 99,
    "max_position_embeddings": 14,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
TANH = {"approximate": "tanh"}

CASES: dict[str, dict[str, Any]] = {
    # As ViT-*-CLIPA, with tanh-GELU besides.
    "clipa": {
        "embed_dim": 20,
        "vision_cfg": {
            **VISION,
            "no_ln_pre": True,
            "pool_type": "avg",
            "final_ln_after_pool": True,
            "pos_embed_type": "sin_cos_2d",
            "act_kwargs": TANH,
            "norm_kwargs": {"eps": 1e-3},
        },
        "text_cfg": {**TEXT, "pool_type": "last", "no_causal_mask": True, "act_kwargs": TANH},
    },
    "norm_before_mean": {
        "embed_dim": 20,
        "vision_cfg": {**VISION, "pool_type": "avg"},
        "text_cfg": TEXT,
    },
    "resnet_quick_gelu": {
        "embed_dim": 12,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": 64,
            "layers": [1, 2, 1, 1],
            "width": 8,
            "head_width": 32,
            "patch_size": None,
        },
        "text_cfg": TEXT,
    },
    # Heads and perceptrons of odd widths, as ViT-g-14 has; pooling at a named end token.
    "eos_odd_widths": {
        "embed_dim": 20,
        "init_logit_bias": -10,
        "nonscalar_logit_scale": True,
        "vision_cfg": {**VISION, "head_width": 12, "mlp_ratio": 4.3637},
        "text_cfg": {**TEXT, "heads": 2, "mlp_ratio": 2.5, "pool_type": "eos", "eos_id": 40},
    },
    # As MobileCLIP's text tower: no mask, pooled at the largest id; and no projection at all.
    "no_mask_no_projection": {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": VISION,
        "text_cfg": {**TEXT, "no_causal_mask": True, "proj_type": "none"},
    },
    "siglip_tanh": {
        "embed_dim": 24,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 32,
            "timm_model_name": "vit_base_patch32_siglip_256",
            **TIMM,
        },
        "text_cfg": {**SIGLIP_TEXT, "act_kwargs": TANH},
    },
    # Patches of 7 do not fill 30 pixels, as 14 do not fill 384.
    "siglip_exact": {
        "embed_dim": 32,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 30,
            "timm_model_name": "vit_so400m_patch14_siglip_384",
            **TIMM,
        },
        "text_cfg": {**SIGLIP_TEXT, "mlp_ratio": 3.7362},
    },
    "xlm_roberta_mlp": {
        "embed_dim": 20,
        "custom_text": True,
        "vision_cfg": VISION,
        "text_cfg": {"hf_model_name": "xlm-roberta-base", "hf_pooler_type": "mean_pooler"},
    },
    "xlm_roberta_linear": {
        "embed_dim": 20,
        "quick_gelu": True,
        "custom_text": True,
        "vision_cfg": VISION,
        "text_cfg": {
            "hf_model_name": "xlm-roberta-base",
            "hf_proj_type": "linear",
            "hf_pooler_type": "mean_pooler",
        },
    },
}

# Cases that are also read at other image sizes, as `open_clip --force-image-size` does.
OTHER_SIZES = {"norm_before_mean": (48, 24), "eos_odd_widths": (40,)}


def build(model_cfg: dict[str, Any]) -> torch.nn.Module:
    """OpenCLIP's own model, with timm's towers cut to size and no look at the hub."""
    config = dict(model_cfg)
    custom = config.pop("custom_text", False)
    name = config["vision_cfg"].get("timm_model_name")
    whole_timm = timm.create_model
    hub = transformers.AutoConfig.from_pretrained
    timm.create_model = lambda *args, **kwargs: whole_timm(*args, **kwargs, **TIMM_SIZES[name])
    transformers.AutoConfig.from_pretrained = lambda _: transformers.XLMRobertaConfig(**XLM_ROBERTA)
    if "hf_model_name" in config["text_cfg"]:
        config["text_cfg"] = {**config["text_cfg"], "hf_model_pretrained": False}
    try:
        return (CustomTextCLIP if custom else CLIP)(**config).eval()
    finally:
        timm.create_model = whole_timm
        transformers.AutoConfig.from_pretrained = hub


def main() -> None:
    described: dict[str, Any] = {}
    expected: dict[str, np.ndarray] = {}
    for name, model_cfg in CASES.items():
        model = build(model_cfg)
        fill(model)
        size = model_cfg["vision_cfg"]["image_size"]
        pixels = uniform("pixel_values", (2, 3, size, size)) * 2
        token_ids = ids(model_cfg["text_cfg"])
        with torch.no_grad():
            image, text = model.encode_image(pixels), model.encode_text(token_ids)
            logits, _ = model.get_logits(pixels, token_ids)
        described[name] = {
            "model_cfg": model_cfg,
            "shapes": {key: list(value.shape) for key, value in model.state_dict().items()},
        }
        values = {"image": image, "text": text, "logits": logits, "token_ids": token_ids}
        for other in OTHER_SIZES.get(name, ()):
            values[f"image_{other}"] = at_other_size(model, model_cfg, other)
        expected |= {f"{name}.{key}": value.numpy() for key, value in values.items()}
        print(f"{name}: image std {image.std():.2f}, text std {text.std():.2f}")
    (HERE / "open_clip.json").write_text(json.dumps(described) + "\n")
    np.savez_compressed(HERE / "open_clip.npz", **expected)


def at_other_size(model: torch.nn.Module, model_cfg: dict[str, Any], size: int) -> torch.Tensor:
    """Image features of the same weights, their positions resized by OpenCLIP."""
    vision = {**model_cfg["vision_cfg"], "image_size": size}
    other = build({**model_cfg, "vision_cfg": vision})
    state = model.state_dict()
    resize_pos_embed(state, other)
    other.load_state_dict(state)
    with torch.no_grad():
        return other.encode_image(uniform("pixel_values", (2, 3, size, size)) * 2)


def ids(text_cfg: dict[str, Any]) -> torch.Tensor:
    """Three texts, one of which fills the context, with the end token and padding of their kind."""
    hugging_face = "hf_model_name" in text_cfg
    end, padding = (2, 1) if hugging_face else (text_cfg.get("eos_id", 98), 0)
    token_ids = (uniform("token_ids", (3, 9)) * 40 + 48).long()  # 9 to 86
    token_ids[token_ids == end] += 1
    for row, length in enumerate((9, 4, 6)):
        token_ids[row, length - 1 :] = padding
        token_ids[row, length - 1] = end
    return token_ids


if __name__ == "__main__":
    main()
