"""Views are random within their limits, and the same for the same seed and slot."""

import numpy as np
import pytest
from PIL import Image

from twinlens.data.augment import Augment, generator
from twinlens.data.preprocess import Preprocess
from twinlens.errors import ConfigError

PREPROCESS = Preprocess(image_size=32, resize="shortest", mean=(0.0,) * 3, std=(1.0,) * 3)


@pytest.fixture(scope="module")
def photo():
    """A horizontal ramp in red and a vertical one in green: pixels say where they are from."""
    y, x = np.mgrid[0:120, 0:200]
    pixels = np.stack([x * 255 / 199, y * 255 / 119, np.full_like(x, 90.0)], axis=2)
    return Image.fromarray(pixels.astype(np.uint8))


def test_without_any_augmentation_a_view_is_the_preprocessed_picture(photo):
    plain = Augment(crop_scale=(1.0, 1.0))
    assert np.array_equal(plain.view(photo, PREPROCESS, generator(1, 2, 1)), PREPROCESS(photo))


@pytest.mark.parametrize("reference", ["open_clip", "transformers", "transformers_pillow"])
def test_every_reference_s_pixels_are_kept(photo, reference):
    preprocess = Preprocess(
        image_size=32,
        resize="shortest",
        resize_size=40,
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.2),
        reference=reference,
    )
    plain = Augment(crop_scale=(1.0, 1.0))
    assert np.array_equal(plain.view(photo, preprocess, generator(1, 2, 1)), preprocess(photo))


def test_the_same_seed_and_slot_give_the_same_view(photo):
    augment = Augment(crop_scale=(0.2, 1.0), flip=0.5, brightness=0.4, contrast=0.4, grey=0.5)
    views = [
        augment.view(photo, PREPROCESS, generator(seed, slot, 1)).tobytes()
        for seed, slot in ((1, 7), (1, 7), (1, 8), (2, 7))
    ]
    assert views[0] == views[1]
    assert len(set(views)) == 3


def test_crops_have_the_asked_share_of_the_area_and_cover_the_picture(photo):
    augment = Augment(crop_scale=(0.25, 0.5))
    lefts, shares = [], []
    for slot in range(300):
        left, top, right, bottom = augment._box(photo.size, generator(0, slot, 1))
        assert 0 <= left < right <= 200 and 0 <= top < bottom <= 120
        shares.append((right - left) * (bottom - top) / (200 * 120))
        assert 0.7 < (right - left) / (bottom - top) < 1.4
        lefts.append(left)
    assert 0.24 < min(shares) < 0.26 and 0.49 < max(shares) < 0.51
    assert min(lefts) < 5 and max(lefts) > 95


def test_an_extreme_shape_still_has_a_crop():
    augment = Augment()
    left, top, right, bottom = augment._box((4000, 10), generator(0, 0, 1))
    assert (bottom - top, right - left) == (10, 13)  # as wide as 4/3 of its height
    assert augment._box((1, 1), generator(0, 0, 1)) == (0, 0, 1, 1)


def test_a_flip_mirrors_and_grey_has_no_colour(photo):
    still = {"crop_scale": (1.0, 1.0)}
    mirrored = Augment(**still, flip=1.0).view(photo, PREPROCESS, generator(0, 0, 1))
    assert np.array_equal(mirrored, PREPROCESS(photo)[:, :, ::-1])
    grey = Augment(**still, grey=1.0).view(photo, PREPROCESS, generator(0, 0, 1))
    assert np.array_equal(grey[0], grey[1]) and np.array_equal(grey[1], grey[2])


def test_a_decoder_leaves_enough_pixels_for_the_smallest_crop():
    assert Augment(crop_scale=(0.25, 1.0)).decode_size(PREPROCESS) == 64


def test_every_caption_is_chosen_about_equally_often():
    chosen = [Augment().choose(("a", "b", "c"), generator(0, slot, 0)) for slot in range(600)]
    assert all(150 < chosen.count(caption) < 250 for caption in "abc")
    first = Augment(caption="first")
    assert {first.choose(("a", "b"), generator(0, slot, 0)) for slot in range(20)} == {"a"}


def test_keywords_are_dropped_but_never_all():
    augment = Augment(keyword_drop=0.9)
    found = {augment.thinned("red, old, car", generator(0, slot, 0)) for slot in range(200)}
    assert {"red", "old", "car"} <= found
    assert augment.thinned("a red car", generator(0, 0, 0)) == "a red car"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_scale": (0.0, 1.0)}, "crop_scale must be two shares"),
        ({"crop_scale": (0.9, 0.5)}, "crop_scale must be two shares"),
        ({"flip": 1.5}, "flip is a chance from 0 to 1, not 1.5"),
        ({"brightness": 1.0}, "brightness must be from 0 to below 1"),
        ({"caption": "best"}, "caption must be 'random' or 'first'"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Augment(**options)
    assert Augment.from_dict(Augment().to_dict()) == Augment()
