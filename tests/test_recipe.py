"""The parts of the `mini` recipe that can be checked without its data."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent / "recipes"))

from mini_data import clean_caption, clean_name, view_of
from mini_report import label_vectors
from mini_train import Pictures, shuffled
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


class _Sums:
    """In the place of a tower: a map's sum."""

    def from_block(self, maps, first):
        return maps.sum(dim=(2, 3))


def test_pictures_of_two_caches_are_one_set_in_order(tmp_path):
    for name, numbers in (("a", [0.0, 1.0, 2.0]), ("b", [10.0, 11.0])):
        maps = np.array(numbers, np.float16).reshape(1, -1, 1, 1, 1)
        np.save(tmp_path / f"{name}.maps.npy", maps)
        np.save(tmp_path / f"{name}.features.npy", maps.reshape(1, -1, 1).astype(np.float32) + 100)
        words = {"texts": [[str(n)] for n in numbers], "labels": [], "files": [name] * len(numbers)}
        (tmp_path / f"{name}.json").write_text(json.dumps(words))
    pictures = Pictures(tmp_path, "a", "b")
    rows = np.array([0, 2, 3, 4])
    assert pictures.count == 5 and pictures.words.files == ["a", "a", "a", "b", "b"]
    assert pictures.of_tower(_Sums(), rows, 0).flatten().tolist() == [0.0, 2.0, 10.0, 11.0]
    assert pictures.of_tower(None, rows, 0).flatten().tolist() == [100.0, 102.0, 110.0, 111.0]
    alone = Pictures(tmp_path, "b").of_tower(_Sums(), np.array([1]), 0)
    assert alone.flatten().tolist() == [11.0]
