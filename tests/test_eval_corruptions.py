"""Damage is as strong as it says, the same each time, and its cost is counted right."""

import io

import numpy as np
import pytest
from PIL import Image, ImageStat

from eval_embedder import GivenEmbedder
from twinlens.errors import ConfigError
from twinlens.evaluate.corruptions import KINDS, SEVERITIES, corrupted, reference_size
from twinlens.evaluate.robustness import relative_loss, robustness
from twinlens.evaluate.sets import CaptionedSet, LabelledSet
from twinlens.evaluate.typographic import (
    can_be_written,
    labelled,
    typographic_attack,
    wrong_classes,
)
from twinlens.evaluate.vectors import VectorCache

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def plain(colour, size=(224, 224)):
    return Image.new("RGB", size, colour)


def busy(size=(224, 224)):
    noise = np.random.default_rng(0).integers(0, 255, (14, 14, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def difference(image, other):
    return np.abs(np.asarray(image, float) - np.asarray(other, float)).mean()


def mean_colour(image):
    """A vector that says how red, green and blue a picture is."""
    return [value + 1 for value in ImageStat.Stat(image).mean]


def colour_word(text):
    return next(([r + 1, g + 1, b + 1] for n, (r, g, b) in COLOURS.items() if n in text), [1, 1, 1])


@pytest.fixture
def colours():
    """Three plain pictures of each of three colours."""
    names = list(COLOURS)
    images = [plain(COLOURS[name], (60, 40)) for name in names for _ in range(3)]
    return LabelledSet(
        "colours",
        images,
        np.repeat(np.arange(3), 3),
        tuple((name,) for name in names),
        tuple(f"{name}{number}.png" for name in names for number in range(3)),
        templates=("a {} thing",),
    )


@pytest.fixture
def embedder():
    return GivenEmbedder(mean_colour, colour_word, dim=3)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("crop", "rotation")])
def test_a_higher_severity_changes_more_pixels(kind):
    image = busy()
    changes = [difference(image, corrupted(image, kind, severity)) for severity in SEVERITIES]
    assert changes == sorted(changes) and changes[0] > 0 and changes[-1] > 1.2 * changes[0]


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_the_same_each_time_and_leaves_the_picture_alone(kind):
    image = busy()
    before = image.tobytes()
    first, second = (corrupted(image, kind, 3, seed=1, picture=5).tobytes() for _ in range(2))
    assert first == second
    assert image.tobytes() == before
    assert corrupted(image, kind, 0) is image


def test_noise_has_the_stated_standard_deviation():
    grey = plain((128, 128, 128))
    pixels = np.asarray(corrupted(grey, "noise", 1), float)
    assert pixels.std() == pytest.approx(0.08 * 255, rel=0.01)  # clips nothing: 6 sigma are left
    other = np.asarray(corrupted(grey, "noise", 1, picture=1), float)
    assert abs(np.corrcoef(pixels.ravel(), other.ravel())[0, 1]) < 0.02


def test_noise_is_one_pattern_that_grows():
    grey = plain((128, 128, 128))
    weak, strong = (np.asarray(corrupted(grey, "noise", s), float) - 128 for s in (1, 2))
    assert np.corrcoef(weak.ravel(), strong.ravel())[0, 1] > 0.99
    assert strong.std() / weak.std() == pytest.approx(0.12 / 0.08, rel=0.01)


def test_contrast_shrinks_towards_the_mean_of_each_channel():
    halves = np.zeros((10, 10, 3), dtype=np.uint8)
    halves[:5] = 100, 40, 0
    changed = np.asarray(corrupted(Image.fromarray(halves), "contrast", 1))  # factor 0.4
    # Means 50, 20, 0: 50 + 0.4 * 50, 20 + 0.4 * 20, 0.
    assert changed[0, 0].tolist() == [70, 28, 0]
    assert changed[9, 9].tolist() == [30, 12, 0]


def test_brightness_raises_the_largest_channel_and_keeps_the_hue():
    changed = np.asarray(corrupted(plain((100, 50, 0)), "brightness", 2))[0, 0]
    # 100 + 0.2 * 255 = 151; the others by the same factor 1.51.
    assert changed.tolist() == [151, 76, 0]
    assert np.asarray(corrupted(plain((0, 0, 0)), "brightness", 2))[0, 0].tolist() == [51, 51, 51]
    assert np.asarray(corrupted(plain((255, 0, 0)), "brightness", 5))[0, 0].tolist() == [255, 0, 0]


def test_grey_at_the_highest_severity_has_no_colour_left():
    pixels = np.asarray(corrupted(busy(), "grey", 5))
    assert (pixels == pixels[..., :1]).all()


def test_crop_keeps_the_stated_share_of_each_side_and_jpeg_the_size():
    assert corrupted(busy((200, 100)), "crop", 4).size == (100, 50)
    image = corrupted(busy((200, 100)), "jpeg", 5)
    assert (image.size, image.mode) == ((200, 100), "RGB")


def test_rotation_by_a_right_angle_loses_nothing():
    image = busy((30, 20))
    turned = corrupted(image, "rotation", 5)
    assert turned.size == (20, 30)
    assert turned.rotate(90, expand=True).tobytes() in (
        image.tobytes(),
        image.rotate(180).tobytes(),
    )


def test_pictures_come_to_the_reference_size_with_their_shape():
    assert reference_size(plain("red", (448, 896))).size == (224, 448)
    assert reference_size(plain("red", (56, 56))).size == (224, 224)
    assert reference_size(plain("red", (4000, 10))).size == (896, 2)  # not 89,600 wide


def test_unknown_damage_is_refused_with_what_there_is(embedder, colours):
    with pytest.raises(ConfigError, match=r"'fog' is no corruption: choose from blur, jpeg"):
        robustness(embedder, colours, kinds=["fog"])
    with pytest.raises(ConfigError, match="severity is 1, 2, 3, 4 or 5, not 6"):
        robustness(embedder, colours, severities=[6])


def test_what_a_colour_model_loses_is_its_colour(embedder, colours):
    result = robustness(embedder, colours, kinds=["blur", "grey"], severities=[1, 5])
    assert result.figures["accuracy@1 clean"].value == 1.0
    # Blur leaves plain pictures as they are, all grey leaves no colour: a tie, which is a miss.
    assert result.details["curves"]["blur"]["score"] == [1.0, 1.0, 1.0]
    assert result.details["curves"]["grey"]["score"] == [1.0, 1.0, 0.0]
    assert result.details["curves"]["blur"]["cosine to clean"] == pytest.approx([1, 1, 1])
    assert result.figures["accuracy@1 grey"].value == 0.5
    assert result.figures["accuracy@1 damaged, mean"].value == 0.75
    assert result.figures["relative loss"].value == pytest.approx(0.25)
    assert result.settings["chance"] == pytest.approx(1 / 3)
    assert result.per_item["accuracy@1 clean"].ids == list(colours.ids)


def test_captions_are_found_by_damaged_pictures(embedder):
    names = list(COLOURS)
    data = CaptionedSet(
        "captions",
        [plain(COLOURS[name]) for name in names],
        tuple(names),
        tuple(f"{how} {name}" for name in names for how in ("light", "dark")),
        np.repeat(np.arange(3), 2),
    )
    result = robustness(embedder, data, kinds=["grey"], severities=[5])
    assert result.figures["image_to_text_recall@1 clean"].value == 1.0
    assert result.figures["image_to_text_recall@1 grey"].value == 0.0
    assert result.settings["chance"] == pytest.approx(1 / 3)


def test_an_unreadable_picture_is_left_out_and_named(embedder, colours):
    broken = LabelledSet(
        "broken",
        [b"not a picture", *colours.images[1:]],
        colours.labels,
        colours.class_names,
        colours.ids,
    )
    result = robustness(embedder, broken, kinds=["grey"], severities=[5])
    assert result.data["images"] == 8
    assert result.data["skipped"][0][0] == "red0.png"
    assert result.per_item["accuracy@1 clean"].ids == list(colours.ids[1:])
    nothing = LabelledSet("none", [b"x"], np.array([0]), (("red",), ("blue",)), ("only.png",))
    with pytest.raises(
        ConfigError, match=r"None of the 1 pictures of none can be read\. The first: only"
    ):
        robustness(embedder, nothing)


def test_a_second_run_with_a_cache_embeds_nothing_and_says_the_same(colours, tmp_path):
    embedder = GivenEmbedder(mean_colour, colour_word, dim=3)
    files = []
    for name, image in zip(colours.ids, colours.images, strict=True):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        (tmp_path / name).write_bytes(buffer.getvalue())
        files.append(tmp_path / name)
    data = LabelledSet("files", files, colours.labels, colours.class_names, colours.ids)
    cache = VectorCache(tmp_path / "cache")
    arguments = {"kinds": ["noise", "grey"], "severities": [2, 5], "cache": cache}
    first = robustness(embedder, data, **arguments)
    assert embedder.images_seen == 9 * 5
    second = robustness(embedder, data, **arguments)
    assert embedder.images_seen == 9 * 5
    assert second.to_json() == first.to_json()
    robustness(embedder, data, **arguments, seed=1)  # other noise is another picture
    assert embedder.images_seen == 2 * 9 * 5


def test_a_limit_takes_pictures_from_everywhere(embedder, colours):
    result = robustness(embedder, colours, kinds=["grey"], severities=[1], limit=5, seed=0)
    ids = result.per_item["accuracy@1 clean"].ids
    assert len(ids) == 5 and len({name[:3] for name in ids}) == 3


def test_relative_loss_is_the_lost_share_of_the_clean_score():
    clean, damaged = np.array([1.0, 1.0, 0.0, 0.0]), np.array([0.5, 0.0, 0.25, 0.0])
    # Means 0.5 and 0.1875.
    assert relative_loss(clean, damaged).value == pytest.approx(0.625)
    assert np.isnan(relative_loss(np.zeros(3), np.zeros(3)).value)


def reader(image):
    """Red, green or blue by the corners; the middle of a written label outweighs it."""
    pixels = np.asarray(image, dtype=float)
    dark = (pixels.max(axis=2) < 60).mean()  # ink
    corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]].mean(axis=0) + 1
    return [*corners, 1e5 * dark]


def reads(text):
    """The class "green" stands for whatever is written."""
    return [*colour_word(text), 1000.0 if "green" in text else 0.0]


def test_a_model_that_reads_falls_for_the_written_word(colours):
    red_and_green = colours.rows(np.arange(6))
    data = LabelledSet(
        "two",
        red_and_green.images,
        red_and_green.labels,
        (("red",), ("green",)),
        red_and_green.ids,
    )
    embedder = GivenEmbedder(reader, reads, dim=4)
    result = typographic_attack(embedder, data, limit=None)
    figures = {name: figure.value for name, figure in result.figures.items()}
    # Whatever has ink is "green": red pictures fall for it, and green ones have "red" written.
    assert figures["accuracy@1 blank label"] == figures["accuracy@1 clean"]
    assert figures["accuracy@1 attacked"] == 0.5
    assert figures["written word wins"] == 0.5
    assert {item["written"] for item in result.details["fooled"]} == {"green"}
    lost = figures["accuracy@1 blank label"] - 0.5
    assert figures["accuracy lost to the word"] == pytest.approx(lost)


def test_a_model_that_cannot_read_loses_nothing_to_words(embedder, colours):
    result = typographic_attack(embedder, colours)
    assert result.figures["written word wins"].value == 0.0
    assert result.figures["accuracy lost to the word"].value == 0.0
    assert result.details["fooled"] == []


def test_the_blank_label_differs_from_the_written_one_by_its_ink_alone():
    image = busy((300, 200))
    written = labelled(image, "Grapefruit", across=0.5, down=1.0)
    blank = labelled(image, "Grapefruit", across=0.5, down=1.0, blank=True)
    changed = np.asarray(written, float) - np.asarray(blank, float)
    assert changed.min() < -200 and changed.max() <= 0  # black on white
    white = (np.asarray(blank) == 255).all(axis=2) & (np.asarray(image) != 255).any(axis=2)
    rows, columns = np.nonzero(white)
    assert rows.max() >= 198 and 0.3 < (columns.max() - columns.min()) / 300 < 0.9
    assert np.flatnonzero(changed.min(axis=(0, 2)) < 0).min() > columns.min()  # ink inside


def test_a_long_word_gets_smaller_letters_and_a_small_picture_is_no_error():
    image = plain("red", (224, 224))
    long = labelled(image, "black-and-tan coonhound", across=0.0, down=0.0)
    white = (np.asarray(long) > 100).all(axis=2)
    assert np.nonzero(white)[1].max() < 224 * 0.9
    assert labelled(plain("red", (8, 8)), "word", across=1.0, down=1.0).size == (8, 8)


def test_a_wrong_name_is_never_the_pictures_own():
    labels = np.arange(500) % 3
    for classes in (np.array([0, 1, 2]), np.array([0, 2])):
        written = wrong_classes(labels, classes, seed=3)
        assert (written != labels).all() and set(written) <= set(classes.tolist())
    # Both others about as often: 500 draws, a standard deviation of 11.
    counts = np.bincount(wrong_classes(np.zeros(500, dtype=int), np.arange(3), seed=0))
    assert counts[0] == 0 and abs(counts[1] - 250) < 45


def test_names_that_pillows_font_lacks_are_not_written(embedder, colours):
    assert can_be_written("go-kart 2") and not can_be_written(" ")
    assert not can_be_written("café") and not can_be_written("狗")  # a box instead of a letter
    foreign = LabelledSet(
        "foreign", colours.images, colours.labels, (("赤",), ("緑",), ("blue",)), colours.ids
    )
    with pytest.raises(ConfigError, match="3 classes, and the names of 1 can be written"):
        typographic_attack(embedder, foreign)
