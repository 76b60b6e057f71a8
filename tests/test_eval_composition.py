"""Scores of pairs by hand; drawings show what their words say; changed captions are wrong."""

import itertools

import numpy as np
import pytest

from eval_embedder import GivenEmbedder
from twinlens.errors import ConfigError
from twinlens.evaluate.caption_changes import (
    changed_number,
    exchanged_attributes,
    exchanged_phrases,
    shuffled_trigrams,
)
from twinlens.evaluate.composition import (
    WINOGROUND_CHANCE,
    caption_swaps,
    composition,
    counted,
    counting,
    negation,
    winoground_scores,
    with_article,
)
from twinlens.evaluate.scenes import (
    COLOURS,
    NUMBER_WORDS,
    PAIR_KINDS,
    SHAPES,
    Placed,
    Thing,
    counted_scenes,
    draw,
    pairs_of,
)
from twinlens.evaluate.sets import CaptionedSet, LabelledSet
from twinlens.testing import FakeEmbedder


def draws(change, caption, count=20):
    """All that a change makes of a caption."""
    return {change(caption, np.random.default_rng(seed)) for seed in range(count)}


def share_of(image, colour):
    """Share of the pixels that have about this colour."""
    pixels = np.asarray(image, dtype=float)
    return (np.abs(pixels - COLOURS[colour]).max(axis=2) < 40).mean()


def test_winoground_scores_are_those_of_the_paper():
    scores = np.array(
        [
            [[0.9, 0.1], [0.2, 0.8]],  # all right
            [[0.9, 0.8], [0.2, 0.5]],  # picture 1 prefers its caption, but caption 1 picture 0
            [[0.5, 0.4], [0.8, 0.9]],  # caption 0 prefers picture 1
            [[0.5, 0.7], [0.1, 0.9]],  # picture 0 prefers caption 1
            [[0.5, 0.5], [0.5, 0.5]],  # a tie is a miss
        ]
    )
    found = winoground_scores(scores)
    assert found["text"].tolist() == [True, True, True, False, False]
    assert found["image"].tolist() == [True, False, False, True, False]
    assert found["group"].tolist() == [True, False, False, False, False]


def test_chance_is_the_share_of_all_orders_of_four_scores():
    orders = np.array(list(itertools.permutations(range(4))), dtype=float).reshape(-1, 2, 2)
    for name, hits in winoground_scores(orders).items():
        assert hits.mean() == pytest.approx(WINOGROUND_CHANCE[name])


def test_drawn_things_have_their_colours_where_they_should_be():
    things = [
        Placed(Thing("red", "square"), (0.25, 0.5), 0.1),
        Placed(Thing("blue", "circle"), (0.75, 0.5), 0.1),
    ]
    image = draw(things, (255, 255, 255))
    assert image.getpixel((56, 112)) == COLOURS["red"]
    assert image.getpixel((168, 112)) == COLOURS["blue"]
    assert image.getpixel((112, 20)) == (255, 255, 255)
    # A square of side 0.2 and a circle of radius 0.1, as shares of the picture.
    assert share_of(image, "red") == pytest.approx(0.04, abs=0.002)
    assert share_of(image, "blue") == pytest.approx(np.pi * 0.01, abs=0.002)


@pytest.mark.parametrize("kind", PAIR_KINDS)
def test_pairs_are_different_pictures_and_repeat_for_a_seed(kind):
    pairs, again = (pairs_of(kind, 12, seed=4) for _ in range(2))
    assert len({pair.id for pair in pairs}) == 12
    for pair, other in zip(pairs, again, strict=True):
        assert pair.images[0].tobytes() != pair.images[1].tobytes()
        assert pair.captions == other.captions
        assert pair.images[0].tobytes() == other.images[0].tobytes()


@pytest.mark.parametrize("kind", ["attributes swapped", "relation swapped"])
def test_swapped_captions_have_the_same_words(kind):
    for pair in pairs_of(kind, 12):
        first, second = (sorted(caption.split()) for caption in pair.captions)
        assert first == second and pair.captions[0] != pair.captions[1]


def test_swapped_places_are_those_that_the_caption_says():
    for pair in pairs_of("relation swapped", 30):
        words = pair.captions[0].split()
        first, second = words[1], words[-2]
        pixels = np.asarray(pair.images[0], dtype=float)
        middle = {
            colour: np.argwhere(np.abs(pixels - COLOURS[colour]).max(axis=2) < 40).mean(axis=0)
            for colour in (first, second)
        }
        down, across = middle[first] - middle[second]
        relation = " ".join(words[3:-3])
        assert {
            "to the left of": across < -50,
            "to the right of": across > 50,
            "above": down < -50,
            "below": down > 50,
            "on top of": down < -50,
        }[relation]


def test_a_picture_has_as_many_things_as_its_caption_says():
    for scene in counted_scenes(6, seed=2):
        words = scene.captions[scene.count - 1].split()
        assert words[0] == NUMBER_WORDS[scene.count - 1]
        assert words[2].removesuffix("s") in SHAPES
        assert words[2].endswith("s") == (scene.count > 1)
        grid = np.asarray(scene.image, dtype=float)
        inked = np.abs(grid - COLOURS[words[1]]).max(axis=2) < 40
        cells = [
            inked[
                row * 224 // 3 : (row + 1) * 224 // 3, column * 224 // 3 : (column + 1) * 224 // 3
            ]
            for row in range(3)
            for column in range(3)
        ]
        assert sum(cell.mean() > 0.02 for cell in cells) == scene.count


def only_colours(image):
    return [share_of(image, colour) + 1e-6 for colour in COLOURS]


def colours_in(text):
    return [1.0 + (colour in text.split()) * 10 for colour in COLOURS]


def test_a_model_that_sees_colours_alone_passes_that_control_and_fails_the_swaps():
    embedder = GivenEmbedder(only_colours, colours_in, dim=len(COLOURS))
    result = composition(embedder, pairs_per_kind=10)
    figures = {name: figure.value for name, figure in result.figures.items()}
    assert figures["colour (control): group score"] == 1.0
    assert figures["relation swapped: group score"] == 0.0  # captions of equal vectors: ties
    assert figures["attributes swapped: text score"] == 0.0
    assert result.settings["chance"] == {"text": 0.25, "image": 0.25, "group": 1 / 6}
    assert {item["kind"] for item in result.details["missed"]} == {
        "shape (control)",
        "attributes swapped",
        "relation swapped",
    }
    assert len(result.per_item["relation swapped: group score"].ids) == 10


def test_a_count_is_the_best_caption_and_a_tie_is_a_miss():
    scores = np.array([[0.1, 0.9, 0.2], [0.5, 0.4, 0.1], [0.3, 0.3, 0.1]])
    said, right = counted(scores, np.array([2, 3, 1]))
    assert said.tolist() == [2, 1, 2]
    assert right.tolist() == [True, False, False]


def test_a_model_that_counts_ink_is_right_and_chance_is_stated():
    def ink(image):  # shares of the largest picture's ink, as an angle
        pixels = np.asarray(image.convert("L"), dtype=float)
        dark = (np.abs(pixels - np.median(pixels)) > 8).mean()
        return [np.cos(dark), np.sin(dark)]

    def always_three(text):
        return [1.0, 0.0] if text.startswith("three") else [0.9, -0.5]

    result = counting(GivenEmbedder(ink, always_three, dim=2), per_count=3)
    assert result.settings["chance"] == 0.2
    assert result.figures["counted right"].value == pytest.approx(0.2)
    assert result.figures["counted right, three"].value == 1.0
    # Errors of 2, 1, 0, 1 and 2 things.
    assert result.figures["mean error"].value == pytest.approx(1.2)
    assert result.details["confusion"]["counts"] == [[0, 0, 3, 0, 0]] * 5


@pytest.fixture
def pets():
    from PIL import Image

    images = [Image.new("RGB", (8, 8), colour) for colour in ("red", "red", "blue", "blue")]
    ids = ("dog0", "dog1", "owl0", "owl1")
    return LabelledSet("pets", images, np.array([0, 0, 1, 1]), (("dog",), ("owl",)), ids)


def red_or_blue(image):
    red, _, blue = image.getpixel((0, 0))
    return [red + 1.0, blue + 1.0, 20.0]


def test_a_model_that_ignores_no_has_half_right_and_tells_nothing_apart(pets):
    def bag(text):  # "no" is not heard, an article makes a little difference
        return ["dog" in text, "owl" in text, 0.2 if " a" in text.removeprefix("a") else 0.1]

    def mostly_alike(image):  # what the article changes outweighs what is seen
        return [*red_or_blue(image)[:2], 1e4]

    result = negation(GivenEmbedder(mostly_alike, bag, dim=3), pets)
    figures = {name: figure.value for name, figure in result.figures.items()}
    assert figures["both right"] == 0.0
    assert figures["affirmed where shown"] == 1.0
    assert figures["denied where not shown"] == 0.0
    assert result.settings["chance"]["both right"] == 0.25


def test_a_model_that_understands_no_has_all_right(pets):
    def knows(text):
        vector = [float("dog" in text), float("owl" in text), 0.0]
        return vector if " no " not in text else [vector[1], vector[0], 0.0]

    result = negation(GivenEmbedder(red_or_blue, knows, dim=3), pets)
    assert {figure.value for figure in result.figures.values()} == {1.0}
    one_class = LabelledSet("one", pets.images[:2], pets.labels[:2], (("dog",),), pets.ids[:2])
    with pytest.raises(ConfigError, match="one has one class: negation needs two"):
        negation(FakeEmbedder(), one_class)


def test_articles_are_those_of_english():
    assert (with_article("dog"), with_article("owl")) == ("a dog", "an owl")


@pytest.mark.parametrize(
    ("caption", "changed"),
    [
        ("A man on a horse", "A horse on a man"),
        ("an old man is riding a horse .", "a horse is riding an old man ."),
        ("A dog running after the cat", "A cat running after the dog"),
        ("A girl plays near her house", "A house plays near her girl"),
        ("A dog near a cat", None),  # near: the same the other way round
        ("a cat and a dog", None),
        ("two dogs play", None),
        ("the children watch a bird", None),  # many and one
    ],
)
def test_things_change_places(caption, changed):
    assert draws(exchanged_phrases, caption) == {changed}


@pytest.mark.parametrize(
    ("caption", "changed"),
    [
        ("a red ball on a blue box", "a blue ball on a red box"),
        ("Black dog chases a white cat", "White dog chases a black cat"),
        ("a black and white dog", None),
        ("A black dog and a brown dog in snow", None),
        ("a black dog follows a brown dog", "a brown dog follows a black dog"),
        ("a big dog bites a small one", "a small dog bites a big one"),
        ("an orange cat on a red mat", "a red cat on an orange mat"),
        ("a red ball on a red box", None),
    ],
)
def test_attributes_change_places(caption, changed):
    assert draws(exchanged_attributes, caption) == {changed}


def test_a_number_becomes_another():
    assert draws(changed_number, "Two dogs") == {"Three dogs", "Four dogs", "Five dogs", "Six dogs"}
    assert draws(changed_number, "a dog") == {None}


def test_runs_of_three_words_are_put_in_another_order():
    assert draws(shuffled_trigrams, "a man rides a small horse") == {"a small horse a man rides"}
    assert draws(shuffled_trigrams, "a man rides") == {None}
    assert draws(shuffled_trigrams, "so it is so it is") == {None}


def test_a_bag_of_words_cannot_tell_swapped_captions():
    data = captions()
    embedder = GivenEmbedder(
        lambda image: [*image.getpixel((0, 0)), 1.0],
        lambda text: [len(set(text.lower().split()) & {"a", "man", "on", "horse"}), 0, 0, 1.0],
        dim=4,
    )
    result = caption_swaps(embedder, data)
    assert result.figures["things exchanged"].value == 0.0
    assert result.settings["captions"] == {
        "things exchanged": 2,
        "attributes exchanged": 0,
        "number changed": 0,
        "order of words": 3,
    }
    assert result.settings["chance"] == 0.5
    items = result.per_item["things exchanged"]
    assert items.ids == ["a.png#0", "b.png#0"] and items.clusters == ["a.png", "b.png"]


def test_what_captions_alone_give_away_is_shown_beside():
    """This text tower likes captions that begin with "A man" on any picture."""
    embedder = GivenEmbedder(
        lambda image: [1.0, 0.001 * image.getpixel((0, 0))[0]],
        lambda text: [1.0 if text.startswith("A man") else 0.5, 0.5],
        dim=2,
    )
    result = caption_swaps(embedder, captions(), changes={"things": exchanged_phrases})
    assert result.figures["things, without the picture"].value == 1.0
    assert result.figures["things"].value == 1.0
    assert result.details["things"] == []


def test_captions_without_anything_to_exchange_are_one_sentence():
    from PIL import Image

    data = CaptionedSet("bare", [Image.new("RGB", (4, 4))], ("a",), ("dog",), np.array([0]))
    with pytest.raises(ConfigError, match="None of the 1 captions of bare has words that can be"):
        caption_swaps(FakeEmbedder(), data)


def captions():
    from PIL import Image

    return CaptionedSet(
        "captions",
        [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")],
        ("a.png", "b.png"),
        ("A man on a horse", "Somebody rides here today", "A man on a horse"),
        np.array([0, 0, 1]),
    )
