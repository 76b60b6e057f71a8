"""Pictures reach the tower exactly as the reference pipelines would send them."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from twinlens.data.image import read_image
from twinlens.data.preprocess import Preprocess
from twinlens.errors import ConfigError

GOLDEN = Path(__file__).parent.parent.parent / "shared" / "golden" / "preprocessing"


def preprocess(image_size: int = 4, resize: str = "shortest", **options: object) -> Preprocess:
    plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    return Preprocess(image_size=image_size, resize=resize, **{**plain, **options})  # type: ignore[arg-type]


def columns(*greys: int, height: int) -> Image.Image:
    """A picture whose every column has one grey."""
    row = np.array(greys, dtype=np.uint8)
    return Image.fromarray(np.broadcast_to(row, (height, len(greys))).copy()).convert("RGB")


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


@pytest.mark.parametrize("size", [(900, 100), (100, 900), (1000, 90)])
def test_very_long_pictures_give_the_same_crop_as_resizing_them_whole(
    size: tuple[int, int],
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    short = min(size)
    width, height = (int(32 * side / short) for side in size)
    left, top = round((width - 32) / 2), round((height - 32) / 2)
    whole = picture.resize((width, height), Image.Resampling.BICUBIC)
    expected = whole.crop((left, top, left + 32, top + 32))
    found = preprocess(32).resized(picture)
    difference = np.abs(np.asarray(found).astype(int) - np.asarray(expected).astype(int))
    assert difference.max() <= 1


def test_a_picture_one_pixel_high_needs_no_memory_for_its_length() -> None:
    tracemalloc.start()
    pixels = preprocess(224)(Image.new("RGB", (60_000, 1), (9, 9, 9)))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert pixels.shape == (3, 224, 224)
    assert peak_bytes < 20e6  # resized whole it would be 60,000 x 224 x 224 pixels: 12 GB


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (223, 225)])
@pytest.mark.parametrize("resize", ["squash", "shortest"])
def test_every_size_becomes_the_square(size: tuple[int, int], resize: str) -> None:
    assert preprocess(224, resize)(Image.new("RGB", size)).shape == (3, 224, 224)


def test_only_rgb_is_taken() -> None:
    with pytest.raises(ConfigError, match=r"mode L: read_image\(\) makes pictures RGB"):
        preprocess()(Image.new("L", (4, 4)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_size": 0}, "image_size 0"),
        ({"mean": (0.5, float("nan"), 0.5)}, "finite numbers"),
        ({"std": (1.0, 0.0, 1.0)}, "above zero"),
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


# What differs from a reference, and why: see the docstring of the test below.
GREY16, RGBA, PALETTE, GIF = "07_grey16", "04_rgba", "05_palette_transparency", "11_animated"
DIFFERENT = {
    "openclip_shortest": {GREY16, RGBA, PALETTE, GIF, "08_cmyk"},
    "openclip_squash": {GREY16, RGBA, PALETTE, GIF},
    "hf_clip_pil": {GREY16, "08_cmyk", "09_exif_orientation6"},
    "hf_siglip_pil": {GREY16},
}


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs the shared golden files")
@pytest.mark.parametrize("pipeline", DIFFERENT)
def test_pixels_equal_the_reference_pipelines_bit_for_bit(pipeline: str) -> None:
    """All but the files in DIFFERENT, where we differ on purpose.

    07: 16-bit grey is white in every reference, Pillow clipping it; here it is seen.
    04, 05, 08, 11: OpenCLIP resizes before it makes the picture RGB, so it drops alpha
    instead of compositing and resizes palettes by nearest neighbour.
    08, 09: transformers' CLIP floors an odd crop margin where torchvision rounds it.
    """
    meta = json.loads((GOLDEN / "meta.json").read_text())
    made_with = meta["versions"]["pillow"]
    if made_with != PIL.__version__:  # 11.3 differs from 13.0 by up to 18 levels at hard edges
        pytest.skip(f"the references were made with Pillow {made_with}")
    resize = "squash" if pipeline in ("openclip_squash", "hf_siglip_pil") else "shortest"
    for name in meta["images"]:
        if Path(name).stem in DIFFERENT[pipeline]:
            continue
        key = f"{pipeline}/{name}"
        with np.load(GOLDEN / "expected.npz") as expected:
            reference = expected[meta["identical"].get(key, key)]
        image = read_image(GOLDEN / "images" / name, exif_orientation=False)
        pixels = np.asarray(preprocess(224, resize).resized(image)).transpose(2, 0, 1)
        np.testing.assert_array_equal(pixels, reference, err_msg=name)
