"""Pictures reach the tower exactly as the reference pipelines would send them."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from twinlens.data.preprocess import Preprocess
from twinlens.data.resample import resize_like_torch
from twinlens.errors import ConfigError, UnreadableImage

REFERENCES = ("open_clip", "transformers", "transformers_pillow")


def preprocess(image_size: int = 4, resize: str = "shortest", **options: object) -> Preprocess:
    plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    return Preprocess(image_size=image_size, resize=resize, **{**plain, **options})  # type: ignore[arg-type]


def columns(*greys: int, height: int) -> Image.Image:
    """A picture whose every column has one grey."""
    row = np.array(greys, dtype=np.uint8)
    return Image.fromarray(np.broadcast_to(row, (height, len(greys))).copy()).convert("RGB")


def noise(width: int, height: int) -> Image.Image:
    """Random levels, half of the pictures black and white only: the sums' extremes."""
    random = np.random.default_rng([width, height])
    levels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels // 128 * 255 if width % 2 else levels)


def greys(image: Image.Image) -> list[int]:
    return [int(value) for value in np.asarray(image)[0, :, 0]]


def test_pixels_are_scaled_to_one_then_normalised_channel_by_channel() -> None:
    picture = Image.new("RGB", (4, 4), (255, 0, 51))  # 1.0, 0.0 and 0.2
    pixels = preprocess(mean=(0.5, 0.5, 0.0), std=(0.5, 0.25, 2.0))(picture)
    assert pixels.shape == (3, 4, 4) and pixels.dtype == np.float32
    assert pixels.flags.c_contiguous
    np.testing.assert_allclose(pixels[:, 0, 0], [1.0, -2.0, 0.1], rtol=1e-6)


def test_shortest_cuts_the_middle_out_of_the_long_side() -> None:
    picture = columns(10, 20, 30, 40, 50, 60, 70, 80, height=4)
    assert greys(preprocess().resized(picture)) == [30, 40, 50, 60]


def test_an_odd_margin_is_halved_to_the_even_side_as_torchvision_does() -> None:
    # Margins 1 and 3 give 0.5 and 1.5; round() takes them to 0 and 2, floor would to 0 and 1.
    assert greys(preprocess().resized(columns(1, 2, 3, 4, 5, height=4))) == [1, 2, 3, 4]
    assert greys(preprocess().resized(columns(1, 2, 3, 4, 5, 6, 7, height=4))) == [3, 4, 5, 6]


@pytest.mark.parametrize("reference", ["transformers", "transformers_pillow"])
def test_an_odd_margin_is_cut_to_the_lower_side_as_transformers_does(reference: str) -> None:
    settings = preprocess(reference=reference)
    assert greys(settings.resized(columns(1, 2, 3, 4, 5, height=4))) == [1, 2, 3, 4]
    assert greys(settings.resized(columns(1, 2, 3, 4, 5, 6, 7, height=4))) == [2, 3, 4, 5]


@pytest.mark.parametrize("reference", REFERENCES)
def test_the_crop_may_be_smaller_than_the_resized_picture(reference: str) -> None:
    picture = columns(10, 20, 30, 40, 50, 60, 70, 80, height=6)
    shortest = preprocess(4, resize_size=6, reference=reference)
    assert greys(shortest.resized(picture)) == [30, 40, 50, 60]  # nothing to resize
    assert shortest.resized_side == 6 and preprocess(4).resized_side == 4
    squashed = preprocess(2, "squash", resize_size=8, reference=reference)
    assert greys(squashed.resized(picture)) == [40, 50]


def test_longest_puts_the_whole_picture_between_bars() -> None:
    settings = preprocess(5, "longest", fill=9)
    found = np.asarray(settings.resized(Image.new("RGB", (10, 4), (200, 100, 50))))
    # 5x2 in a square of 5: one bar above, two below.
    assert [tuple(map(int, row)) for row in found[:, 2]] == [
        *[(9, 9, 9)],
        *[(200, 100, 50)] * 2,
        *[(9, 9, 9)] * 2,
    ]
    assert preprocess(8, "longest").resized(Image.new("RGB", (4000, 3))).size == (8, 8)


def test_squash_keeps_the_whole_picture() -> None:
    picture = columns(*[0] * 8, *[200] * 8, height=4)
    assert preprocess(resize="squash").resized(picture).size == (4, 4)
    left, right = greys(preprocess(resize="squash").resized(picture))[::3]
    assert left < 10 and right > 190


def test_bilinear_is_another_filter_than_bicubic() -> None:
    picture = columns(0, 0, 0, 0, 255, 255, 255, 255, height=8)
    bicubic = greys(preprocess().resized(picture))
    bilinear = greys(preprocess(interpolation="bilinear").resized(picture))
    assert bicubic != bilinear


@pytest.mark.parametrize("size", [(900, 20), (20, 900), (3, 700), (700, 3)])
@pytest.mark.parametrize("reference", ["open_clip", "transformers_pillow"])
def test_very_long_pictures_give_the_same_crop_as_resizing_them_whole(
    size: tuple[int, int], reference: str
) -> None:
    picture = noise(*size)
    short = min(size)
    width, height = (int(32 * side / short) for side in size)
    whole_number = round if reference == "open_clip" else int
    left, top = whole_number((width - 32) / 2), whole_number((height - 32) / 2)
    whole = picture.resize((width, height), Image.Resampling.BICUBIC)
    expected = whole.crop((left, top, left + 32, top + 32))
    found = preprocess(32, reference=reference).resized(picture)
    difference = np.abs(np.asarray(found).astype(int) - np.asarray(expected).astype(int))
    assert difference.max() <= 2


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000), (4000, 10)])
def test_a_picture_one_pixel_high_needs_no_memory_for_its_length(
    reference: str, size: tuple[int, int]
) -> None:
    tracemalloc.start()
    pixels = preprocess(224, reference=reference)(Image.new("RGB", size, (9, 9, 9)))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_allclose(pixels, np.full((3, 224, 224), 9 / 255), rtol=1e-6)
    assert peak_bytes < 20e6  # resized whole it would be 60,000 x 224 x 224 pixels: 12 GB


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (223, 225)])
@pytest.mark.parametrize("resize", ["squash", "shortest"])
def test_every_size_becomes_the_square(size: tuple[int, int], resize: str) -> None:
    assert preprocess(224, resize)(Image.new("RGB", size)).shape == (3, 224, 224)


def test_open_clip_drops_alpha_and_transformers_lays_it_on_white() -> None:
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert preprocess().resized(clear).getpixel((0, 0)) == (10, 20, 30)
    for reference in ("transformers", "transformers_pillow"):
        found = preprocess(reference=reference).resized(clear)
        assert found.getpixel((0, 0)) == (255, 255, 255)


def test_open_clip_resizes_a_palette_by_nearest_neighbour() -> None:
    palette = columns(0, 0, 0, 255, 255, 255, 255, 255, height=8).quantize(2)
    assert set(greys(preprocess().resized(palette))) == {0, 255}
    assert not set(greys(preprocess(reference="transformers").resized(palette))) <= {0, 255}


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_every_mode_becomes_rgb(mode: str, reference: str) -> None:
    for size in ((7, 9), (200, 5)):
        pixels = preprocess(6, reference=reference)(Image.new(mode, size))
        assert pixels.shape == (3, 6, 6)


def test_a_mode_without_a_way_to_rgb_is_unreadable() -> None:
    with pytest.raises(UnreadableImage, match="mode La cannot be made RGB"):
        preprocess()(Image.new("La", (4, 4)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_size": 0}, "image_size 0"),
        ({"mean": (0.5, float("nan"), 0.5)}, "finite numbers"),
        ({"std": (1.0, 0.0, 1.0)}, "above zero"),
        ({"resize_size": 3}, "resize_size 3: must not be below image_size 4"),
        ({"fill": 256}, "fill 256"),
        ({"resize": "longest", "resize_size": 5}, "takes reference 'open_clip'"),
        ({"resize": "longest", "reference": "transformers"}, "takes reference 'open_clip'"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        preprocess(**change)  # type: ignore[arg-type]


def test_settings_survive_json_and_unknown_ones_are_refused() -> None:
    settings = preprocess(224, "squash", mean=(0.48, 0.46, 0.41))
    stored = json.loads(json.dumps(settings.to_dict()))
    assert Preprocess.from_dict(stored) == settings
    for change in ({"colour": "sepia"}, {"resize": "pad"}, {"mean": [0.5, 0.5]}):
        with pytest.raises(ConfigError, match=next(iter(change))):
            Preprocess.from_dict({**stored, **change})


def test_a_model_json_of_before_the_references_means_open_clip_and_keeps_its_identity() -> None:
    old = {"image_size": 224, "resize": "squash", "interpolation": "bicubic"}
    settings = Preprocess.from_dict({**old, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]})
    assert settings.reference == "open_clip"
    # As dataclasses wrote it then; an index stores a digest of it.
    assert repr(settings) == (
        "Preprocess(image_size=224, resize='squash', interpolation='bicubic', "
        "mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))"
    )
    assert "reference='transformers'" in repr(preprocess(reference="transformers"))


def test_resizing_equals_pytorchs_bit_for_bit() -> None:
    """torch.nn.functional.interpolate of a uint8 tensor: what transformers 5 calls."""
    random = np.random.default_rng(1)
    for _ in range(150):
        largest = int(random.choice([8, 60, 500]))
        width, height = (int(side) for side in random.integers(1, largest, 2))
        across, down = (int(side) for side in random.integers(2, 120, 2))  # PyTorch fails at 1x1
        left, top = int(random.integers(0, across)), int(random.integers(0, down))
        right, bottom = int(random.integers(left, across)) + 1, int(random.integers(top, down)) + 1
        picture = noise(width, height)
        tensor = torch.from_numpy(np.array(picture).transpose(2, 0, 1).copy())[None]
        for interpolation in ("bicubic", "bilinear", "lanczos"):
            whole = torch.nn.functional.interpolate(
                tensor, (down, across), mode=interpolation, antialias=True
            )
            found = resize_like_torch(
                picture, (across, down), (left, top, right, bottom), interpolation
            )
            expected = whole[0].permute(1, 2, 0).numpy()[top:bottom, left:right]
            where = f"{interpolation} {(width, height)} to {(across, down)}"
            np.testing.assert_array_equal(found, expected, err_msg=where)


def test_nearest_takes_the_pixel_under_the_middle() -> None:
    picture = columns(10, 20, 30, 40, 50, 60, 70, height=7)
    # Middles of 3 in 7: 1.17, 3.5, 5.83; of 9 in 7: every 7/9 from 0.39.
    for side, expected in (
        (3, [20, 40, 60]),
        (9, [10, 20, 20, 30, 40, 50, 60, 60, 70]),
    ):
        whole = (0, 0, side, side)
        found = resize_like_torch(picture, (side, side), whole, "nearest")
        assert [int(level) for level in found[0, :, 0]] == expected


PIPELINES = {
    "openclip_shortest": ("shortest", "open_clip"),
    "openclip_squash": ("squash", "open_clip"),
    "hf_clip_torchvision": ("shortest", "transformers"),
    "hf_clip_pil": ("shortest", "transformers_pillow"),
    "hf_siglip_torchvision": ("squash", "transformers"),
    "hf_siglip_pil": ("squash", "transformers_pillow"),
}


def needs_pillow_of(made_with: str, reference: str) -> None:
    # 11.3 differs from 13.0 by up to 18 levels at hard edges. PyTorch's kernel does not care.
    if made_with != PIL.__version__ and reference != "transformers":
        pytest.skip(f"the references were made with Pillow {made_with}")


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_pixels_equal_the_reference_pipelines_bit_for_bit(
    shared_folder: Path, pipeline: str
) -> None:
    """Twelve awkward pictures: palettes, CMYK, 16 bits, an EXIF rotation that nobody applies."""
    golden = shared_folder / "golden" / "preprocessing"
    meta = json.loads((golden / "meta.json").read_text())
    resize, reference = PIPELINES[pipeline]
    needs_pillow_of(meta["versions"]["pillow"], reference)
    settings = preprocess(meta["size"], resize, reference=reference)
    with np.load(golden / "expected.npz") as expected:
        for name in meta["images"]:
            key = meta["identical"].get(f"{pipeline}/{name}", f"{pipeline}/{name}")
            if key in expected:
                wanted = expected[key]
            else:  # stored as a difference to the Pillow backend's
                base = f"{pipeline.replace('torchvision', 'pil')}/{name}"
                base = meta["identical"].get(base, base)
                wanted = (expected[base] + expected[f"delta_to_pil/{key}"]).astype(np.uint8)
            with Image.open(golden / "images" / name) as image:
                pixels = np.asarray(settings.resized(image)).transpose(2, 0, 1)
            np.testing.assert_array_equal(pixels, wanted, err_msg=name)
