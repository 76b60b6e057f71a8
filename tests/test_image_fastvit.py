"""MobileCLIP's MCi towers give OpenCLIP's numbers: recorded runs of its own code."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from published_model import assert_same_features, difference, load
from timm_cases import pictures, read_cases, write_checkpoint
from twinlens.config import ClipConfig, ClipTextConfig, FastVitConfig
from twinlens.errors import CheckpointMismatch, ConfigError
from twinlens.model.convert_mobileclip import fastvit_weights
from twinlens.model.image_fastvit import FastVitTower
from twinlens.model.published import read_published
from twinlens.runtime.export import export_towers

CASES = read_cases("fastvit")


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


def test_stages_gates_and_norms_are_read_from_the_weights(tmp_path: Path) -> None:
    published = read_published(write_checkpoint(tmp_path, CASES["fastvit_mci1"]))
    assert published.config.image == FastVitConfig(
        image_size=72, widths=(8, 16, 48, 96), layers=(1, 2, 1, 2)
    )
    assert published.config.image_projection == "linear_bias"
    # MobileCLIP's text tower sees all of a text, padding too.
    assert isinstance(published.config.text, ClipTextConfig)
    assert published.config.text.sees_padding
    five = read_published(write_checkpoint(tmp_path, CASES["fastvit_mci3"])).config.image
    assert five == FastVitConfig(
        image_size=100,
        widths=(4, 8, 16, 32, 64),
        layers=(1, 1, 2, 1, 2),
        expansion=4,
        attention_stages=2,
        attention_norm=True,
        gated_downsamples=0,
    )


def test_branches_are_one_convolution_worked_out_by_hand() -> None:
    stem = "visual.trunk.stem.1."
    # Each norm takes away 1, divides by 2 (variance 4 less the epsilon), times 6, plus 5.
    norm = {
        "weight": torch.tensor([6.0]),
        "bias": torch.tensor([5.0]),
        "running_mean": torch.tensor([1.0]),
        "running_var": torch.tensor([4.0 - 1e-5]),
        "num_batches_tracked": torch.tensor(9),
    }
    foreign = {
        f"{stem}conv_kxk.0.conv.weight": torch.full((1, 1, 3, 3), 10.0),
        f"{stem}conv_scale.conv.weight": torch.full((1, 1, 1, 1), 100.0),
    }
    for branch in ("conv_kxk.0.bn", "conv_scale.bn", "identity"):
        foreign |= {f"{stem}{branch}.{leaf}": value for leaf, value in norm.items()}
    ours = fastvit_weights(foreign)
    assert ours.keys() == {"image_tower.stem.2.weight", "image_tower.stem.2.bias"}
    # 6 / 2 = 3 times each kernel: 30 all over, 300 more in the middle, and 3 for the residual.
    kernel = torch.full((3, 3), 30.0)
    kernel[1, 1] = 30 + 300 + 3
    torch.testing.assert_close(ours["image_tower.stem.2.weight"][0, 0], kernel)
    torch.testing.assert_close(ours["image_tower.stem.2.bias"], torch.tensor([3 * (5.0 - 3)]))


@pytest.mark.parametrize(
    ("config", "millions"),
    [
        # With the projection; apple/ml-mobileclip's README gives it before folding.
        (FastVitConfig(layers=(2, 6, 10, 2)), 11.4),
        (FastVitConfig(layers=(4, 12, 20, 4)), 21.5),
        (FastVitConfig(widths=(80, 160, 320, 640), layers=(4, 12, 24, 4)), 35.7),
        (
            FastVitConfig(
                widths=(96, 192, 384, 768, 1536),
                layers=(2, 12, 24, 4, 2),
                expansion=4,
                attention_stages=2,
                attention_norm=True,
                gated_downsamples=0,
            ),
            125.1,
        ),
    ],
    ids=["MCi0", "MCi1", "MCi2", "MCi3"],
)
def test_the_tower_has_the_published_number_of_parameters(
    config: FastVitConfig, millions: float
) -> None:
    with torch.device("meta"):
        tower = FastVitTower(config)
    dim = 768 if len(config.widths) == 5 else 512
    parameters = sum(p.numel() for p in tower.parameters()) + config.width * dim
    assert parameters / 1e6 == pytest.approx(millions, abs=0.1)


@torch.no_grad()
def test_another_image_size_needs_no_other_weights(tmp_path: Path) -> None:
    case = CASES["fastvit_mci1"]
    model = load(write_checkpoint(tmp_path, case), image_size=160)
    assert model.config.image.image_size == 160
    assert model.encode_image(torch.zeros(1, 3, 160, 160)).shape == (1, 20)
    assert difference(model.encode_image(pictures(72)), case["image"]) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("name", ["fastvit_mci1", "fastvit_mci3"])
def test_the_exported_tower_computes_the_same_for_any_batch(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = load(write_checkpoint(tmp_path, case))
    image, text = tmp_path / "image.onnx", tmp_path / "text.onnx"
    export_towers(model, image, text)
    session = onnxruntime.InferenceSession(str(image))
    pixels = pictures(model.config.image.image_size).numpy()
    for batch in (pixels, pixels[:1], np.concatenate([pixels] * 3)):
        expected = np.resize(case["image"], (len(batch), 20))
        (features,) = session.run(None, {"pixel_values": batch})
        assert difference(features, expected) < 1e-5


def test_a_config_survives_json_and_refuses_impossible_sizes(tmp_path: Path) -> None:
    text = ClipTextConfig(width=8, layers=1, heads=2, mlp_width=16)
    config = ClipConfig(image=FastVitConfig(), text=text, dim=4)
    config.write(tmp_path / "config.json")
    assert ClipConfig.read(tmp_path / "config.json") == config
    for values, message in (
        ({"layers": (1, 2)}, "has 4 widths but 2 layers"),
        ({"widths": (64, 96, 192, 384)}, "a width of 96 cannot follow one of 64: no multiple"),
        ({"widths": (6, 12, 24, 48)}, "heads of 32 do not divide a width of 48"),
        ({"gated_downsamples": 4}, "gated_downsamples must be 0 to 3, not 4"),
        ({"widths": (), "layers": ()}, r"widths must be several positive numbers, not \(\)"),
        ({"image_size": 16}, "image_size must be at least 32, not 16"),
    ):
        with pytest.raises(ConfigError, match=message):
            FastVitConfig(**values)


def test_numbers_of_another_shape_are_refused_and_never_spread(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, CASES["fastvit_mci1"])
    whole = load_file(weights_of(folder))
    names = [n for n in sorted(whole) if n.startswith("visual.") and "num_batches" not in n]
    for name in names[::9]:
        for misshapen in (torch.tensor(1.0), whole[name][:0], torch.cat([whole[name]] * 2)):
            save_file({**whole, name: misshapen.contiguous()}, weights_of(folder))
            with pytest.raises((CheckpointMismatch, ConfigError)):
                load(folder)


def test_other_fastvits_are_refused(tmp_path: Path) -> None:
    case = CASES["fastvit_mci1"]
    vision = {**case["model_cfg"]["vision_cfg"], "timm_model_name": "fastvit_sa12"}
    other = {**case, "model_cfg": {**case["model_cfg"], "vision_cfg": vision}}
    with pytest.raises(ConfigError, match=r"tower 'fastvit_sa12' is not supported \(of timm's"):
        read_published(write_checkpoint(tmp_path, other))


def test_a_module_that_is_not_whole_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, CASES["fastvit_mci1"])
    whole = load_file(weights_of(folder))
    stage = "visual.trunk.stages.1"
    for name in (
        f"{stage}.blocks.1.token_mixer.mixer.conv_kxk.0.bn.bias",
        f"{stage}.downsample.proj.0.large_conv.conv.weight",
    ):
        save_file({key: v for key, v in whole.items() if key != name}, weights_of(folder))
        with pytest.raises(CheckpointMismatch, match=f"checkpoint lacks {name}, without which"):
            load(folder)
    without_head = {key: v for key, v in whole.items() if ".final_conv.conv_" not in key}
    save_file(without_head, weights_of(folder))
    with pytest.raises(CheckpointMismatch, match=r"lacks visual.trunk.final_conv"):
        load(folder)
    save_file({**whole, f"{stage}.extra.weight": torch.zeros(1)}, weights_of(folder))
    with pytest.raises(CheckpointMismatch, match=r"unexpected visual.trunk.stages.1.extra.weight"):
        load(folder)
