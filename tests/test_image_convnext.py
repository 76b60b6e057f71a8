"""ConvNeXt gives OpenCLIP's numbers: recorded runs of its own code (tests/data/make_timm.py)."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from published_model import assert_same_features, difference, load
from timm_cases import pictures, read_cases, write_checkpoint
from twinlens.config import ClipConfig, ClipTextConfig, ConvNextConfig
from twinlens.errors import CheckpointMismatch, ConfigError
from twinlens.model.clip import Clip, build_tower
from twinlens.model.image_convnext import ConvNextTower
from twinlens.model.published import read_published
from twinlens.runtime.export import export_towers

CASES = read_cases("convnext")


def weights_of(folder: Path) -> Path:
    return folder / "open_clip_model.safetensors"


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


def test_sizes_are_read_from_the_weights(tmp_path: Path) -> None:
    published = read_published(write_checkpoint(tmp_path, CASES["convnext_mlp"]))
    assert published.config.image == ConvNextConfig(
        image_size=64, widths=(8, 12, 16, 24), layers=(1, 2, 3, 1)
    )
    assert published.config.image_projection == "mlp_wide"
    assert published.notes == ()


@torch.no_grad()
@pytest.mark.parametrize("name", ["convnext_linear", "convnext_xxlarge"])
def test_only_xxlarge_has_the_larger_epsilon_and_the_wrong_one_shows(
    name: str, tmp_path: Path
) -> None:
    case = CASES[name]
    model = load(write_checkpoint(tmp_path, case))
    assert model.config.image.layer_norm_eps == (1e-5 if name == "convnext_xxlarge" else 1e-6)
    tower = model.image_tower
    for module in tower.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1.1e-5 - module.eps
    features = model.encode_image(pictures(model.config.image.image_size))
    assert difference(features, case["image"]) > 1e-4


@pytest.mark.parametrize(
    ("widths", "layers", "published"),
    [
        # Torchvision's and timm's model tables, less the classifier of width * 1000 + 1000.
        ((96, 192, 384, 768), (3, 3, 9, 3), 28_589_128 - 769_000),
        ((128, 256, 512, 1024), (3, 3, 27, 3), 88_591_464 - 1_025_000),
        ((192, 384, 768, 1536), (3, 3, 27, 3), 197_767_336 - 1_537_000),
    ],
    ids=["tiny", "base", "large"],
)
def test_the_tower_has_the_published_number_of_parameters(
    widths: tuple[int, int, int, int], layers: tuple[int, int, int, int], published: int
) -> None:
    with torch.device("meta"):
        tower = ConvNextTower(ConvNextConfig(widths=widths, layers=layers))
    assert sum(p.numel() for p in tower.parameters()) == published


@torch.no_grad()
def test_a_fresh_block_is_nearly_the_identity() -> None:
    tower = build_tower(ConvNextConfig(image_size=32, widths=(4, 8, 8, 8), layers=(1, 1, 1, 1)))
    assert isinstance(tower, ConvNextTower)
    x = torch.randn(1, 4, 6, 6)
    torch.testing.assert_close(tower.stages[0](x), x, atol=1e-4, rtol=0)


@torch.no_grad()
def test_another_image_size_needs_no_other_weights(tmp_path: Path) -> None:
    case = CASES["convnext_linear"]  # made for 72 pixels
    model = load(write_checkpoint(tmp_path, case), image_size=160)
    assert model.config.image.image_size == 160
    with_room = torch.zeros(2, 3, 160, 160)
    with_room[:, :, :72, :72] = pictures(72)
    assert model.encode_image(with_room).shape == (2, 20)
    assert difference(model.encode_image(pictures(72)), case["image"]) < 1e-5
    with pytest.raises(ConfigError, match="image_size must be at least 32, not 16"):
        load(tmp_path, image_size=16)


@torch.no_grad()
def test_the_exported_tower_computes_the_same_for_any_batch(tmp_path: Path) -> None:
    case = CASES["convnext_mlp"]
    model = load(write_checkpoint(tmp_path, case))
    image, text = tmp_path / "image.onnx", tmp_path / "text.onnx"
    export_towers(model, image, text)
    session = onnxruntime.InferenceSession(str(image))
    pixels = pictures(64).numpy()
    for batch in (pixels, pixels[:1], np.concatenate([pixels] * 3)):
        expected = np.resize(case["image"], (len(batch), 20))
        (features,) = session.run(None, {"pixel_values": batch})
        assert difference(features, expected) < 1e-5


def test_a_config_survives_json_and_refuses_impossible_sizes(tmp_path: Path) -> None:
    text = ClipTextConfig(width=8, layers=1, heads=2, mlp_width=16)
    config = ClipConfig(
        image=ConvNextConfig(image_size=64, widths=(4, 8, 8, 8), layers=(1, 1, 2, 1)),
        text=text,
        dim=4,
        image_projection="mlp_wide",
    )
    config.write(tmp_path / "config.json")
    assert ClipConfig.read(tmp_path / "config.json") == config
    assert Clip(config).image_projection[0].out_features == 2 * config.dim
    with pytest.raises(ConfigError, match=r"layers must be positive, not \(1, 0, 2, 1\)"):
        ConvNextConfig(layers=(1, 0, 2, 1))


def changed(folder: Path, **changes: Any) -> Path:
    """A ConvNeXt checkpoint with other vision options."""
    case = CASES["convnext_linear"]
    model = case["model_cfg"]
    model = {**model, "vision_cfg": {**model["vision_cfg"], **changes}}
    return write_checkpoint(folder, {**case, "model_cfg": model})


def test_variants_that_no_published_clip_uses_are_refused(tmp_path: Path) -> None:
    folder = changed(tmp_path, timm_model_name="convnextv2_base")
    state = load_file(weights_of(folder))
    state["visual.trunk.stages.0.blocks.0.mlp.grn.weight"] = torch.zeros(32)
    save_file(state, weights_of(folder))
    with pytest.raises(
        ConfigError, match=r"'convnextv2_base' is not supported \(of timm's, SigLIP"
    ):
        read_published(folder)
    with pytest.raises(ConfigError, match="with timm_pool 'avg' it is, not with 'rot_attn'"):
        read_published(changed(tmp_path, timm_pool="rot_attn"))


def test_without_its_configuration_it_is_refused(tmp_path: Path) -> None:
    folder = changed(tmp_path)
    (folder / "open_clip_config.json").unlink()
    for said in ({}, {"activation": "gelu"}):
        with pytest.raises(ConfigError, match=r"timm's but no open_clip_config.json beside"):
            read_published(folder, **said)


def test_missing_and_foreign_weights_are_named(tmp_path: Path) -> None:
    folder = changed(tmp_path)
    whole = load_file(weights_of(folder))
    for name, named in (
        ("visual.trunk.stages.2.blocks.1.conv_dw.bias", "image_tower.stages.2.1.filter.bias"),
        ("visual.trunk.stages.3.downsample.0.weight", "image_tower.downsamples.2.norm.weight"),
    ):
        save_file({key: v for key, v in whole.items() if key != name}, weights_of(folder))
        with pytest.raises(CheckpointMismatch, match=f"missing {named}"):
            load(folder)
    gone = "visual.trunk.stages.3.blocks.0.gamma"
    save_file({key: v for key, v in whole.items() if key != gone}, weights_of(folder))
    with pytest.raises(CheckpointMismatch, match=r"lacks image_tower.stages.3.0.layer_scale"):
        load(folder)
    save_file({**whole, "visual.trunk.stem.2.weight": torch.zeros(1)}, weights_of(folder))
    with pytest.raises(CheckpointMismatch, match=r"unexpected visual.trunk.stem.2.weight"):
        load(folder)
