"""Writes timm.json and timm.npz: checkpoints with image towers of timm's, and what
OpenCLIP computes from them.

Run once, outside the test environment, because OpenCLIP and timm need torchvision:
    PYTHONPATH=tests:FOLDER_WITH_open_clip_AND_timm python tests/data/make_timm.py
Made with open_clip_torch 3.3.0, timm 1.0.31, torch 2.13.0 on CPU. Where torchvision is absent it
is replaced by empty modules, as in make_open_clip.py: no tower uses it.

A checkpoint is its configuration, its names and its shapes: timm_cases.py says what is in it.
The towers are of published names, but cut to tiny sizes.
"""

import json
from pathlib import Path
from typing import Any

import make_open_clip  # stands in for torchvision, so it goes first
import numpy as np
import timm
import torch
from open_clip.model import CLIP, CustomTextCLIP

from random_weights import uniform
from timm_cases import pictures, timm_weight

HERE = Path(__file__).parent
assert make_open_clip.HERE == HERE

TEXT = {"context_length": 9, "vocab_size": 99, "width": 24, "heads": 3, "layers": 1}
OPEN_TEXT = {**TEXT, "no_causal_mask": True}


def vision(name: str, size: int, pool: str, proj: str | None) -> dict[str, Any]:
    return {
        "timm_model_name": name,
        "timm_model_pretrained": False,
        "timm_pool": pool,
        "timm_proj": proj,
        "timm_drop": 0.0,
        "timm_drop_path": 0.1,
        "image_size": size,
    }


SMALL_FASTVIT = {"layers": (1, 2, 1, 2), "embed_dims": (8, 16, 48, 96)}
SMALL_CONVNEXT = {"depths": (1, 2, 3, 1), "dims": (8, 12, 16, 24)}
# So small that the first norm divides by little more than its epsilon.
FAINT_STEM = {"trunk.stem.0.": 0.004}

# Each: model_cfg, what the tower is cut to, and scales of weights.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, float]]] = {
    # As convnext_base_w. 72 pixels make 18, 9, 4 and 2 places: the last of 9 is not seen.
    "convnext_linear": (
        {
            "embed_dim": 20,
            "vision_cfg": vision("convnext_base", 72, "", "linear"),
            "text_cfg": TEXT,
        },
        SMALL_CONVNEXT,
        FAINT_STEM,
    ),
    # As convnext_large_d.
    "convnext_mlp": (
        {"embed_dim": 20, "vision_cfg": vision("convnext_large", 64, "", "mlp"), "text_cfg": TEXT},
        SMALL_CONVNEXT,
        FAINT_STEM,
    ),
    # As convnext_xxlarge, whose epsilon is another.
    "convnext_xxlarge": (
        {
            "embed_dim": 20,
            "vision_cfg": vision("convnext_xxlarge", 64, "", "linear"),
            "text_cfg": TEXT,
        },
        {**SMALL_CONVNEXT, "depths": (2, 1, 1, 2)},
        FAINT_STEM,
    ),
    # No published one: timm's own classifier as the projection.
    "convnext_classifier": (
        {
            "embed_dim": 20,
            "custom_text": True,
            "vision_cfg": vision("convnext_tiny", 64, "avg", None),
            "text_cfg": OPEN_TEXT,
        },
        SMALL_CONVNEXT,
        {},
    ),
    # As MobileCLIP-S1: batch norms before attention, gates between the last stages.
    "fastvit_mci1": (
        {
            "embed_dim": 20,
            "custom_text": True,
            "vision_cfg": vision("fastvit_mci1", 72, "avg", None),
            "text_cfg": OPEN_TEXT,
        },
        SMALL_FASTVIT,
        {},
    ),
    # As MobileCLIP2-S3: five stages, layer norms before attention in two of them, no gates.
    "fastvit_mci3": (
        {
            "embed_dim": 20,
            "custom_text": True,
            "vision_cfg": vision("fastvit_mci3", 100, "avg", None),
            "text_cfg": OPEN_TEXT,
        },
        {"layers": (1, 1, 2, 1, 2), "embed_dims": (4, 8, 16, 32, 64)},
        {"gamma": 0.4},
    ),
    # As MobileCLIP-B: a stem of convolutions, which its name fixes to a width of 768.
    "vit_mci": (
        {
            "embed_dim": 20,
            "custom_text": True,
            "vision_cfg": vision("vit_base_mci_224", 64, "token", None),
            "text_cfg": TEXT,
        },
        {"depth": 1, "img_size": 64},
        {"backbone.2.": 0.002, "pos_embed": 0.002, "cls_token": 0.002, "attn.qkv.weight": 4.0},
    ),
    # As MobileCLIP2-L-14.
    "vit_clip": (
        {
            "embed_dim": 20,
            "custom_text": True,
            "vision_cfg": vision("vit_large_patch14_clip_224", 56, "token", None),
            "text_cfg": OPEN_TEXT,
        },
        {"depth": 2, "img_size": 56, "embed_dim": 48},
        {"patch_embed.": 0.004, "pos_embed": 0.004, "cls_token": 0.004},
    ),
    # Saved after timm's own folding.
    "fastvit_folded": (
        {
            "embed_dim": 20,
            "custom_text": True,
            "vision_cfg": vision("fastvit_mci0", 72, "avg", None),
            "text_cfg": OPEN_TEXT,
        },
        SMALL_FASTVIT,
        {"reparam_conv.weight": 1.5, "reparam_conv.bias": 0.2},
    ),
}


def build(model_cfg: dict[str, Any], sizes: dict[str, Any]) -> torch.nn.Module:
    """OpenCLIP's own model, with timm's tower cut to `sizes`."""
    config = dict(model_cfg)
    custom = config.pop("custom_text", False)
    whole = timm.create_model
    timm.create_model = lambda *args, **kwargs: whole(*args, **{**kwargs, **sizes})
    try:
        return (CustomTextCLIP if custom else CLIP)(**config).eval()
    finally:
        timm.create_model = whole


def main() -> None:
    described: dict[str, Any] = {}
    expected: dict[str, np.ndarray] = {}
    token_ids = (uniform("token_ids", (2, 9)) * 40 + 48).long()  # 9 to 86
    token_ids[0, 5:] = torch.tensor([98, 0, 0, 0])
    token_ids[1, 8] = 98
    for name, (model_cfg, sizes, scales) in CASES.items():
        model = build(model_cfg, sizes)
        if name.endswith("folded"):
            model = timm.utils.reparameterize_model(model)
        with torch.no_grad():
            for key, value in model.state_dict().items():
                if value.is_floating_point():
                    value.copy_(timm_weight(key, tuple(value.shape), scales))
            image = model.encode_image(pictures(model_cfg["vision_cfg"]["image_size"]))
            text = model.encode_text(token_ids)
        described[name] = {
            "model_cfg": model_cfg,
            "scales": scales,
            "shapes": {key: list(value.shape) for key, value in model.state_dict().items()},
        }
        values = {"image": image, "text": text, "ids": token_ids}
        expected |= {f"{name}.{key}": value.numpy() for key, value in values.items()}
        apart = (image[0] - image[1]).abs().max() / image.abs().max()
        print(f"{name}: image std {image.std():.2f}, the two pictures {apart:.2f} apart")
    (HERE / "timm.json").write_text(json.dumps(described) + "\n")
    np.savez_compressed(HERE / "timm.npz", **expected)


if __name__ == "__main__":
    main()
