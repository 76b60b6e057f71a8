"""timm's ViTs with a class token (MobileCLIP-B, MobileCLIP2-L-14) give OpenCLIP's numbers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from published_model import assert_same_features, difference, load
from timm_cases import pictures, read_cases, write_checkpoint
from twinlens.config import VitConfig
from twinlens.errors import CheckpointMismatch, ConfigError
from twinlens.model.published import read_published

CASES = read_cases("vit_")


@pytest.mark.parametrize("name", CASES)
def test_features_are_open_clips(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = load(write_checkpoint(tmp_path, case))
    assert_same_features(
        model,
        pictures(model.config.image.image_size),
        torch.from_numpy(case["ids"]),
        image=case["image"],
        text=case["text"],
        within=1e-5,
    )


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_each_has_its_own_epsilon_and_the_wrong_one_shows(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = load(write_checkpoint(tmp_path, case))
    assert isinstance(model.config.image, VitConfig)
    assert model.config.image.layer_norm_eps == (1e-5 if name == "vit_clip" else 1e-6)
    for module in model.image_tower.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1.1e-5 - module.eps
    features = model.encode_image(pictures(model.config.image.image_size))
    assert difference(features, case["image"]) > 1e-4


def test_only_mobile_clip_b_has_a_stem_of_convolutions(tmp_path: Path) -> None:
    image = read_published(write_checkpoint(tmp_path, CASES["vit_mci"])).config.image
    assert isinstance(image, VitConfig)
    assert image.convolution_stem and not image.input_norm and image.patch_size == 16
    # Both hold a class token, and only the second a position for it.
    positions = load_file(tmp_path / "open_clip_model.safetensors")["visual.trunk.pos_embed"]
    assert positions.shape[1] == image.grid**2
    image = read_published(write_checkpoint(tmp_path, CASES["vit_clip"])).config.image
    assert isinstance(image, VitConfig)
    assert not image.convolution_stem and image.input_norm and image.patch_size == 14
    positions = load_file(tmp_path / "open_clip_model.safetensors")["visual.trunk.pos_embed"]
    assert positions.shape[1] == image.grid**2 + 1


def with_vision(name: str, **changes: Any) -> dict[str, Any]:
    case = CASES[name]
    vision = {**case["model_cfg"]["vision_cfg"], **changes}
    return {**case, "model_cfg": {**case["model_cfg"], "vision_cfg": vision}}


def test_another_pooling_or_another_vit_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, with_vision("vit_clip", timm_pool="avg"))
    with pytest.raises(ConfigError, match="with timm_pool 'token' it is, not with 'avg'"):
        read_published(folder)
    folder = write_checkpoint(
        tmp_path, with_vision("vit_clip", timm_model_name="vit_base_patch16_224")
    )
    with pytest.raises(ConfigError, match="tower 'vit_base_patch16_224' is not supported"):
        read_published(folder)


def test_a_stem_that_is_not_whole_is_refused_by_name(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path, CASES["vit_mci"]) / "open_clip_model.safetensors"
    whole = load_file(weights)
    gone = "visual.trunk.patch_embed.backbone.1.bn.running_var"
    save_file({key: value for key, value in whole.items() if key != gone}, weights)
    with pytest.raises(CheckpointMismatch, match=f"checkpoint lacks {gone}, without which"):
        read_published(tmp_path)


def test_a_stem_of_convolutions_needs_sizes_that_four_divides() -> None:
    sizes = {"layers": 1, "heads": 2, "mlp_width": 8, "image_size": 28}
    with pytest.raises(ConfigError, match="that 4 divides, not 14 and 8"):
        VitConfig(**sizes, width=8, patch_size=14, convolution_stem=True)
