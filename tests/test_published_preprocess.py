"""What checkpoint folders say of their pictures is understood as their own libraries do."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

from twinlens.data.preprocess import Preprocess
from twinlens.data.published_preprocess import (
    OPENAI_MEAN,
    OPENAI_STD,
    default_preprocess,
    from_open_clip,
    from_transformers,
    preprocess_of_folder,
)
from twinlens.errors import ConfigError

# As openai/clip-vit-base-patch32 has it: numbers for sizes, no do_rescale, the old class name.
FIRST_SPELLING = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 224,
}
SIGLIP = {
    "do_normalize": True,
    "do_convert_rgb": None,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "SiglipImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 32, "width": 32},
}
CLIP_224 = Preprocess(
    image_size=224,
    resize="shortest",
    mean=OPENAI_MEAN,
    std=OPENAI_STD,
    reference="transformers",
)
FAMILIES = {
    "openai": "openai",
    "openclip": "open_clip",
    "hf_clip": "clip",
    "hf_siglip": "siglip",
    "hf_siglip2": "siglip",
}


def read(values: dict[str, Any]) -> Preprocess:
    return from_transformers(values, source="a.json")[0]


def notes_of(values: dict[str, Any]) -> str:
    return "\n".join(from_transformers(values, source="a.json")[1])


def photo(width: int, height: int) -> Image.Image:
    random = np.random.default_rng([width, height])
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    "case",
    [
        "hf_clip_gelu_eos49407",
        "hf_clip_gelu_extra_tokens",
        "hf_clip_quick_gelu_eos2",
        "hf_siglip",
        "hf_siglip2_fixed",
        "openai_resnet",
        "openai_vit",
        "openai_vit_2heads",
        "openclip_siglip",
        "openclip_vit",
        "openclip_vit_quickgelu",
    ],
)
def test_pixel_values_of_every_golden_case_are_equal(shared_folder: Path, case: str) -> None:
    folder = shared_folder / "golden" / case
    meta = json.loads((shared_folder / "golden" / "preprocessing" / "meta.json").read_text())
    if not case.startswith("hf_") and meta["versions"]["pillow"] != PIL.__version__:
        pytest.skip(f"the references were made with Pillow {meta['versions']['pillow']}")
    family = FAMILIES[next(key for key in sorted(FAMILIES, reverse=True) if case.startswith(key))]
    with np.load(folder / "inputs.npz") as inputs:
        expected = inputs["pixel_values"]
    preprocess, notes = preprocess_of_folder(folder, family=family, image_size=expected.shape[-1])
    assert bool(notes) == (family == "openai")  # the only one whose files say nothing
    for row, path in enumerate(sorted((folder / "images").iterdir())):
        with Image.open(path) as image:
            np.testing.assert_array_equal(preprocess(image), expected[row], err_msg=path.name)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}},
        {"size": 256},
        {"size": {"shortest_edge": 96}, "crop_size": 64, "resample": 2},
        {"size": {"height": 80, "width": 80}, "crop_size": [57, 57]},
        {"size": 48, "crop_size": 47, "resample": 1},
        {"size": [48, 48], "crop_size": 48, "image_mean": [0.1, 0.2, 0.3]},
        {"size": 48, "do_center_crop": False},
        {"size": {"height": 33, "width": 33}, "do_center_crop": False},
        {"size": 48, "crop_size": 48, "do_normalize": False},
        {"size": 48, "crop_size": 48, "rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1]},
        {"size": 48, "crop_size": 48, "do_rescale": False},
    ],
)
@pytest.mark.parametrize("processor", [CLIPImageProcessorPil, SiglipImageProcessorPil])
def test_settings_mean_what_they_mean_to_transformers(
    processor: Any, changes: dict[str, Any]
) -> None:
    values = {**FIRST_SPELLING, **changes}
    theirs = processor(**values)
    values |= {"feature_extractor_type": processor.__name__}
    if not values["do_center_crop"] and isinstance(values["size"], int):
        with pytest.raises(ConfigError, match="crops nothing"):
            read(values)
        return
    ours = read(values)
    assert ours.reference == "transformers_pillow"
    # Exact but for the last bit where two steps are joined here; 300x40 has an odd margin.
    for size in ((300, 40), (60, 90)):
        expected = theirs(photo(*size), return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(ours(photo(*size)), expected, rtol=1e-6, atol=1e-6)


def test_the_plain_settings_give_transformers_very_bits() -> None:
    theirs = CLIPImageProcessorPil(**FIRST_SPELLING)
    ours = read({**FIRST_SPELLING, "feature_extractor_type": "CLIPImageProcessorPil"})
    expected = theirs(photo(300, 240), return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(ours(photo(300, 240)), expected)


@pytest.mark.parametrize(
    "name", ["CLIPFeatureExtractor", "CLIPImageProcessor", "CLIPImageProcessorFast"]
)
def test_all_spellings_of_the_class_mean_the_torchvision_backend(name: str) -> None:
    assert read({**FIRST_SPELLING, "feature_extractor_type": name}) == CLIP_224


def test_siglip_squashes_and_a_complete_file_needs_no_note() -> None:
    preprocess, notes = from_transformers(SIGLIP, source="a.json")
    assert (preprocess.resize, preprocess.image_size) == ("squash", 32)
    assert (preprocess.mean, preprocess.std) == ((0.5,) * 3, (0.5,) * 3)
    assert notes == []


def test_every_default_is_noted() -> None:
    assert read({"image_processor_type": "CLIPImageProcessor"}) == CLIP_224
    assert notes_of(FIRST_SPELLING) == (
        "a.json does not say do_rescale, rescale_factor: as CLIPImageProcessor has it by default "
        "(true, 1/255)."
    )
    nameless = {**FIRST_SPELLING, "feature_extractor_type": None}
    assert "names no image processor: taken for a CLIPImageProcessor" in notes_of(nameless)
    assert "holds sepia, which nothing looks at" in notes_of({**SIGLIP, "sepia": True})
    assert "every picture is made RGB" in notes_of({**SIGLIP, "do_convert_rgb": False})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_processor_type": "Siglip2ImageProcessor"}, "asks for Siglip2ImageProcessor"),
        ({"do_resize": False}, "says do_resize false"),
        ({"do_pad": True}, "asks for do_pad"),
        ({"size": {"height": 32, "width": 48}}, "says size"),
        ({"size": {"longest_edge": 32}}, "says size"),
        ({"size": "32"}, "says size '32'"),
        ({"size": {"shortest_edge": 32}}, "crops nothing"),
        ({"size": 32, "do_center_crop": True, "crop_size": 48}, "resize_size 32"),
        ({"resample": 4}, "says resample 4; known are 0"),
        ({"resample": "3"}, "says resample '3'"),
        ({"image_mean": [0.5]}, "mean must be a list of 3"),
        ({"image_mean": "grey"}, "mean must be a list of 3"),
        ({"image_std": [0, 1, 1]}, "above zero"),
        ({"rescale_factor": 0}, "rescale_factor 0"),
        ({"rescale_factor": 1, "image_mean": ["a"]}, "says image_mean"),
    ],
)
def test_what_cannot_be_honoured_is_refused_naming_the_file(
    change: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=f"a.json.*{words}"):
        read({**SIGLIP, **change})


def test_open_clip_settings_are_taken_and_defaults_noted() -> None:
    values = {
        "mean": [0.1, 0.2, 0.3],
        "std": 0.5,
        "interpolation": "bilinear",
        "resize_mode": "longest",
        "fill_color": 7,
        "mode": "RGB",
        "size": [40, 40],
    }
    assert from_open_clip(values, image_size=40, source="c") == (
        Preprocess(
            image_size=40,
            resize="longest",
            interpolation="bilinear",
            mean=(0.1, 0.2, 0.3),
            std=(0.5, 0.5, 0.5),
            fill=7,
        ),
        [],
    )
    preprocess, notes = from_open_clip(
        {"interpolation": "random", "size": 224, "sepia": 1}, image_size=32, source="c"
    )
    assert preprocess == Preprocess(
        image_size=32, resize="shortest", mean=OPENAI_MEAN, std=OPENAI_STD
    )
    assert [note.split(":")[0].split(",")[0] for note in notes] == [
        "c does not say mean",
        "c holds sepia",
        "c says size 224",
        "c says interpolation 'random'",
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mode": "L"}, "mode 'L'"),
        ({"interpolation": "lanczos"}, "interpolation 'lanczos'"),
        ({"resize_mode": "stretch"}, "Preprocess.resize"),
        ({"resize_mode": "longest", "fill_color": "red"}, "Preprocess.fill"),
    ],
)
def test_open_clip_settings_that_it_does_not_know_are_refused(
    change: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=f"c.*{words}"):
        from_open_clip(change, image_size=32, source="c")


@pytest.mark.parametrize("family", ["openai", "open_clip", "clip", "metaclip_2", "chinese_clip"])
def test_the_default_of_clip_families_is_openais(family: str, tmp_path: Path) -> None:
    preprocess, (note,) = preprocess_of_folder(tmp_path, family=family, image_size=48)
    assert (preprocess.mean, preprocess.std) == (OPENAI_MEAN, OPENAI_STD)
    assert (preprocess.resize, preprocess.image_size) == ("shortest", 48)
    assert f"No file beside the {family} checkpoint" in note and "48 pixels" in note


@pytest.mark.parametrize("family", ["siglip", "big_vision"])
def test_the_default_of_siglip_families_squashes(family: str) -> None:
    preprocess, (note,) = default_preprocess(family, 48)
    assert (preprocess.mean, preprocess.std, preprocess.resize) == (
        (0.5,) * 3,
        (0.5,) * 3,
        "squash",
    )
    assert f"No file beside the {family} checkpoint" in note
    with pytest.raises(ConfigError, match="family 'blip'; known: openai, open_clip"):
        default_preprocess("blip", 48)


def test_the_nested_form_of_transformers_5_wins_over_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**SIGLIP, "resample": 3}))
    newer = {"image_processor": {**SIGLIP, "resample": 2}, "processor_class": "SiglipProcessor"}
    (tmp_path / "processor_config.json").write_text(json.dumps(newer))
    assert preprocess_of_folder(tmp_path, family="siglip", image_size=32)[0].interpolation == (
        "bilinear"
    )
    (tmp_path / "processor_config.json").write_text('{"processor_class": "SiglipProcessor"}')
    assert preprocess_of_folder(tmp_path, family="siglip", image_size=32)[0].interpolation == (
        "bicubic"
    )


def test_a_tower_of_another_size_gets_pictures_of_its_size_and_a_note(tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(SIGLIP))
    preprocess, notes = preprocess_of_folder(tmp_path, family="siglip", image_size=48)
    assert preprocess.image_size == 48
    assert notes[-1].endswith("says 32 pixels, but the image tower takes 48: "
                              "pictures are made 48 pixels.")  # fmt: skip
    path.write_text(json.dumps({**FIRST_SPELLING, "size": 256}))
    with pytest.raises(ConfigError, match="cuts 224 pixels out of 256, but the image tower"):
        preprocess_of_folder(tmp_path, family="clip", image_size=336)


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "not a readable JSON file"), ("[]", "must be a JSON object, not list")],
)
@pytest.mark.parametrize(
    ("name", "family"),
    [("preprocessor_config.json", "clip"), ("open_clip_config.json", "open_clip")],
)
def test_a_damaged_file_is_named(
    tmp_path: Path, name: str, family: str, text: str, words: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=f"{name}.*{words}"):
        preprocess_of_folder(tmp_path, family=family, image_size=32)
    # A neighbour of an OpenAI archive is not its own.
    assert preprocess_of_folder(tmp_path, family="openai", image_size=32)[0].image_size == 32
