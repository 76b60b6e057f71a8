"""The parts of the `mini` recipe that can be checked without its data."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent / "recipes"))

from mini_data import clean_caption, clean_name, view_of
from mini_report import label_vectors
from mini_train import shuffled
from mini_words import CLOTHING_TEMPLATES, DRAWING_TEMPLATES, TEMPLATES, imagenet_texts
from twinlens.testing import FakeEmbedder


def test_flickrs_old_tokenisation_is_undone():
    assert clean_caption("A dog , wet , runs .") == "A dog, wet, runs"
    assert clean_caption('A boy "s" hat') == 'A boy "s" hat'


def test_labels_become_words_as_one_would_type_them():
    assert clean_name("garbage_truck") == "garbage truck"
    assert clean_name("T-Shirt") == "t-shirt"


def test_the_second_view_is_the_mirror_image_and_later_ones_are_smaller_and_repeatable():
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).resize((64, 48))
    assert view_of(image, 0, seed=5) is image
    mirrored = np.asarray(view_of(image, 1, seed=5))
    np.testing.assert_array_equal(mirrored, np.asarray(image)[:, ::-1])
    crop, again = view_of(image, 2, seed=5), view_of(image, 2, seed=5)
    assert crop.size == again.size and crop.width < 64
    np.testing.assert_array_equal(np.asarray(crop), np.asarray(again))


def test_every_picture_comes_once_per_pass():
    batches = shuffled(np.random.default_rng(0), 6, 4)
    seen = np.concatenate([next(batches) for _ in range(3)])  # two passes of six
    assert np.bincount(seen).tolist() == [2] * 6


def test_the_classifiers_thousand_classes_are_in_its_own_order():
    texts = imagenet_texts()
    assert len(texts) == 1000
    assert texts[0][0][0] == "tench" and texts[701][0][0] == "parachute"


def test_a_label_vector_is_the_unit_mean_of_its_prompts():
    embedder = FakeEmbedder()
    (vector,) = label_vectors(embedder, [["cat"]])
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-6)
    single = embedder.texts(["cat"])[0]
    assert vector @ single > 0.2  # one of five, nearly orthogonal: about 1 / sqrt(5)


def test_every_template_has_one_place_for_the_name():
    assert all(
        template.count("{}") == 1 for template in TEMPLATES + CLOTHING_TEMPLATES + DRAWING_TEMPLATES
    )
