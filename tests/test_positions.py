"""Position embeddings at another image size are OpenCLIP's; everything else stays as it was.

OpenCLIP's own numbers are in tests/data (make_open_clip.py). Pillow is a second, independent
reference: its bicubic filter is antialiased, with the same kernel.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from published_model import difference, load
from random_weights import uniform
from test_published import DATA, open_clip_folder, tensors
from twinlens.errors import ConfigError
from twinlens.model.positions import resize_positions
from twinlens.model.published import read_published

pytestmark = pytest.mark.usefixtures("one_thread")

VIT, RESNET, SIGLIP = "norm_before_mean", "resnet_quick_gelu", "siglip_exact"
POSITION = {
    VIT: "image_tower.position",
    RESNET: "image_tower.pool.position",
    SIGLIP: "image_tower.position",
}


@pytest.mark.parametrize(
    ("name", "size"), [("norm_before_mean", 48), ("norm_before_mean", 24), ("eos_odd_widths", 40)]
)
def test_features_at_another_image_size_are_open_clips(
    name: str, size: int, tmp_path: Path
) -> None:
    model = load(open_clip_folder(tmp_path, name), image_size=size)
    pixels = uniform("pixel_values", (2, 3, size, size)) * 2
    expected = tensors(DATA / "open_clip.npz")[f"{name}.image_{size}"]
    with torch.no_grad():
        assert difference(model.encode_image(pixels), expected) < 1e-5


def pillows(position: torch.Tensor, old: int, new: int) -> np.ndarray:
    """Each channel resized as a picture of floating-point pixels."""
    channels = [
        np.asarray(
            Image.fromarray(channel.reshape(old, old).numpy()).resize(
                (new, new), Image.Resampling.BICUBIC
            )
        )
        for channel in position.T.contiguous()
    ]
    return np.stack([channel.flatten() for channel in channels], axis=1)


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize(("old", "new"), [(7, 12), (16, 7), (2, 3), (5, 1)])
def test_the_grid_is_resized_like_a_picture_and_other_tokens_stay(
    old: int, new: int, extra: int
) -> None:
    position = uniform("position", (extra + old**2, 6))
    resized = resize_positions(position, new, extra=extra)
    assert torch.equal(resized[:extra], position[:extra])
    np.testing.assert_allclose(resized[extra:], pillows(position[extra:], old, new), atol=2e-6)


def test_a_linear_ramp_stays_a_ramp() -> None:
    # Row y, column x of the old grid holds (y, x): so does the new one, in old units, wherever
    # the four old places that the kernel spans are all inside.
    old, new = 8, 12
    y, x = torch.meshgrid(torch.arange(old), torch.arange(old), indexing="ij")
    ramp = torch.stack([y.flatten(), x.flatten()], dim=1).float()
    resized = resize_positions(ramp, new, extra=0).reshape(new, new, 2)
    places = (torch.arange(new) + 0.5) * old / new - 0.5
    inside = [i for i, place in enumerate(places.tolist()) if 1 <= place < old - 2]
    assert len(inside) == 8
    for i in inside:
        assert torch.allclose(resized[i, inside, 0], places[i], atol=1e-5)
        assert torch.allclose(resized[inside, i, 1], places[i], atol=1e-5)


@pytest.mark.parametrize(("name", "size"), [(VIT, 32), (RESNET, 64), (SIGLIP, 30), (SIGLIP, 28)])
def test_a_size_with_the_same_grid_leaves_the_weights_alone(
    name: str, size: int, tmp_path: Path
) -> None:
    # SigLIP at 378 and at 384 px: 27 x 27 patches of 14 either way, and one set of weights.
    folder = open_clip_folder(tmp_path, name)
    plain, resized = read_published(folder), read_published(folder, image_size=size)
    assert torch.equal(resized.tensors[POSITION[name]], plain.tensors[POSITION[name]])
    assert resized.config.image.image_size == size
    assert resized.notes == plain.notes


@pytest.mark.parametrize(("name", "size", "tokens"), [(VIT, 56, 50), (RESNET, 96, 10)])
def test_only_the_positions_change(name: str, size: int, tokens: int, tmp_path: Path) -> None:
    folder = open_clip_folder(tmp_path, name)
    plain, resized = read_published(folder), read_published(folder, image_size=size)
    for key, value in plain.tensors.items():
        if key != POSITION[name]:
            assert torch.equal(resized.tensors[key], value), key
    before, after = plain.tensors[POSITION[name]], resized.tensors[POSITION[name]]
    assert after.shape == (tokens, before.shape[1])
    assert torch.equal(after[0], before[0])  # the class token; the mean's place
    assert any(f"interpolated to {size} px" in note for note in resized.notes)
    model = load(folder, image_size=size)
    assert model.encode_image(torch.zeros(1, 3, size, size)).shape == (1, model.config.dim)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        (VIT, 7, "VitConfig: a patch of 8 px does not fit in 7 px."),
        (VIT, 0, "VitConfig: a patch of 8 px does not fit in 0 px."),
        (RESNET, 80, "ResNetConfig.image_size must be a multiple of 32, not 80."),
        (RESNET, -32, "ResNetConfig.image_size must be positive, not -32."),
    ],
)
def test_a_size_that_the_tower_cannot_take_is_refused(
    name: str, size: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_published(open_clip_folder(tmp_path, name), image_size=size)
    assert str(caught.value) == message
