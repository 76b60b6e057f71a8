"""Zero-shot figures: by hand on a few vectors, and against scikit-learn."""

import re

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    top_k_accuracy_score,
)

from twinlens import SAMPLES
from twinlens.errors import ConfigError
from twinlens.evaluate import zero_shot as module
from twinlens.evaluate.page import Page
from twinlens.evaluate.result import Result
from twinlens.evaluate.sets import LabelledSet
from twinlens.evaluate.vectors import VectorCache
from twinlens.evaluate.zero_shot import (
    accuracy_at,
    answers,
    class_vectors,
    confusion_counts,
    mean_per_class_accuracy,
    zero_shot,
    zero_shot_page,
)
from twinlens.testing import FakeEmbedder

EAST, NORTH, WEST = np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([-1.0, 0.0])
CLASSES = np.array([EAST, NORTH, WEST], dtype=np.float32)


def random_case(images=500, classes=12, seed=0):
    """Vectors with some skill: each picture is its class's direction and twice the noise."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((classes, 24)).astype(np.float32)
    labels = np.minimum(random.geometric(0.3, images) - 1, classes - 1)  # uneven classes
    rows = centres[labels] + 2.0 * random.standard_normal((images, 24)).astype(np.float32)
    return rows.astype(np.float32), centres, labels


def small_set(**more):
    given = {
        "name": "small",
        "images": [b"one", b"two", b"three"],
        "labels": np.array([0, 1, 1]),
        "class_names": (("cat", "kitten"), ("dog",)),
        "ids": ("one", "two", "three"),
    }
    return LabelledSet(**{**given, **more})


def test_a_picture_gets_the_nearest_class_and_its_own_ones_place_is_counted():
    images = np.array([[0.9, 0.1], [0.6, 0.8], [0.1, 0.9], [0.6, 0.8]], dtype=np.float32)
    answered = answers(images, CLASSES, np.array([0, 0, 2, 1]))
    assert answered.given.tolist() == [0, 1, 1, 1]
    assert answered.place.tolist() == [1, 2, 3, 1]
    assert accuracy_at(answered, 1) == 0.5
    assert accuracy_at(answered, 2) == 0.75
    # East: one of two. West: none of one. North: its only one.
    assert mean_per_class_accuracy(answered) == pytest.approx((0.5 + 0.0 + 1.0) / 3)
    assert confusion_counts(answered).tolist() == [[0, 0, 1], [0, 1, 1], [1, 1, 1], [2, 1, 1]]


def test_a_model_that_gives_one_score_for_all_gets_nothing_right():
    answered = answers(np.zeros((6, 2), np.float32), CLASSES, np.array([0, 1, 2, 0, 1, 2]))
    assert accuracy_at(answered, 1) == accuracy_at(answered, 2) == 0.0
    assert (answered.given != answered.labels).all()


def test_figures_are_scikit_learns(monkeypatch):
    monkeypatch.setattr(module, "BLOCK_NUMBERS", 12 * 7)  # seven pictures a block
    images, classes, labels = random_case()
    answered = answers(images, classes, labels)
    scores = images @ classes.T
    every = np.arange(len(classes))
    for k in (1, 5):
        expected = top_k_accuracy_score(labels, scores, k=k, labels=every)
        assert accuracy_at(answered, k) == pytest.approx(expected)
    assert 0.2 < accuracy_at(answered, 1) < 0.95  # else nothing is compared
    given = scores.argmax(axis=1)
    assert mean_per_class_accuracy(answered) == pytest.approx(
        balanced_accuracy_score(labels, given)
    )
    matrix = np.zeros((len(classes), len(classes)))
    own, taken_for, count = confusion_counts(answered).T
    matrix[own, taken_for] = count
    assert (matrix == confusion_matrix(labels, given, labels=every)).all()


def test_a_class_without_pictures_does_not_count_in_the_mean_per_class():
    answered = answers(CLASSES[:2], CLASSES, np.array([0, 1]))
    assert mean_per_class_accuracy(answered) == 1.0


def test_a_class_vector_is_the_unit_mean_over_templates_and_synonyms():
    embedder = FakeEmbedder()
    vectors = class_vectors(embedder, [["cat", "kitten"], ["dog"]], ["a {}", "the {}"])
    cat = embedder.texts(["a cat", "the cat", "a kitten", "the kitten"]).mean(axis=0)
    dog = embedder.texts(["a dog", "the dog"]).mean(axis=0)
    expected = [cat / np.linalg.norm(cat), dog / np.linalg.norm(dog)]
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_a_class_may_be_given_as_one_name():
    embedder = FakeEmbedder()
    np.testing.assert_allclose(
        class_vectors(embedder, ["cat", "dog"], ["{}"]), embedder.texts(["cat", "dog"]), atol=1e-6
    )


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [(["cat"], [], "no templates"), ([[]], ["{}"], "a name for each"), ([], ["{}"], "one class")],
)
def test_no_templates_and_no_names_are_said(names, templates, message):
    with pytest.raises(ConfigError, match=message):
        class_vectors(FakeEmbedder(), names, templates)


def test_labels_that_do_not_fit_are_said():
    with pytest.raises(ConfigError, match="3 pictures but 2 labels"):
        answers(CLASSES, CLASSES, np.array([0, 1]))
    with pytest.raises(ConfigError, match="no row of the 3 classes"):
        answers(CLASSES, CLASSES, np.array([0, 1, 3]))


def test_a_result_has_figures_with_intervals_and_what_each_picture_got():
    data, embedder = small_set(), FakeEmbedder()
    cat, dog = class_vectors(embedder, data.class_names, ["a {}"])
    vectors = np.stack([cat, cat, dog])  # the second is a dog taken for a cat
    result = zero_shot(embedder, data, ["a {}"], vectors=vectors)
    assert result.task == "zero-shot"
    assert set(result.figures) == {"accuracy@1", "mean per-class accuracy"}
    assert result.figures["accuracy@1"].value == pytest.approx(2 / 3)
    assert result.figures["mean per-class accuracy"].value == pytest.approx(0.75)
    for figure in result.figures.values():
        assert figure.low <= figure.value <= figure.high
    assert result.per_item["accuracy@1"].ids == ["one", "two", "three"]
    assert result.per_item["accuracy@1"].values == [1.0, 0.0, 1.0]
    assert result.details["confusion"] == [[0, 0, 1], [1, 0, 1], [1, 1, 1]]
    assert result.details["confused_pairs"] == [
        {"class": "dog", "given": "cat", "images": 1, "share": 0.5, "examples": ["two"]}
    ]
    assert result.details["per_class"][1] == {
        "class": "dog",
        "images": 2,
        "accuracy": 0.5,
        "mostly taken for": "cat",
    }
    assert Result.from_json(result.to_json()) == result


def test_the_mean_per_class_interval_keeps_rare_classes():
    # A class of one picture, always wrong, and one of 99, always right: 0.5 in every resample.
    labels = np.array([0] + [1] * 99)
    data = LabelledSet(
        name="rare",
        images=[b"x"] * 100,
        labels=labels,
        class_names=(("a",), ("b",)),
        ids=tuple(map(str, range(100))),
    )
    embedder = FakeEmbedder()
    vectors = np.repeat(class_vectors(embedder, ["b"], ["{}"]), 100, axis=0)
    figure = zero_shot(embedder, data, ["{}"], vectors=vectors).figures["mean per-class accuracy"]
    assert (figure.value, figure.low, figure.high) == (0.5, 0.5, 0.5)


def test_pictures_that_cannot_be_read_are_left_out_and_named():
    data = small_set(images=[b"one", b"not a picture", b"three"])
    result = zero_shot(FakeEmbedder(), data)
    assert result.data["images"] == 2
    assert result.data["skipped"] == [["two", "not a picture"]]
    assert result.per_item["accuracy@1"].ids == ["one", "three"]


def test_rows_without_a_vector_are_left_out_too():
    vectors = FakeEmbedder().texts(["a", "b", "c"])
    vectors[0] = np.nan
    result = zero_shot(FakeEmbedder(), small_set(), vectors=vectors)
    assert result.data["skipped"] == [["one", "it has no vector"]]
    with pytest.raises(ConfigError, match="3 pictures but 2 vectors"):
        zero_shot(FakeEmbedder(), small_set(), vectors=vectors[:2])


def test_a_set_without_one_readable_picture_is_said():
    with pytest.raises(ConfigError, match="None of the 3 pictures of small can be read"):
        zero_shot(FakeEmbedder(), small_set(images=[b"not a", b"not a", b"not a"]))


def test_a_second_run_embeds_nothing(tmp_path):
    embedder, cache = FakeEmbedder(), VectorCache(tmp_path)
    first = zero_shot(embedder, small_set(), cache=cache)
    seen = embedder.images_seen
    assert zero_shot(embedder, small_set(), cache=cache) == first
    assert embedder.images_seen == seen


def test_the_settings_name_the_templates():
    assert zero_shot(FakeEmbedder(), small_set(), "plain").settings["templates"] == "plain"
    assert zero_shot(FakeEmbedder(), small_set()).settings == {
        "templates": "short",
        "sentences a name": 7,
    }


def test_the_page_shows_the_confused_pairs_as_pictures():
    samples = sorted(SAMPLES.glob("*.jpg"))[:3]
    data = small_set(images=samples, class_names=(("<cat>",), ("dog",)))
    embedder = FakeEmbedder()
    cat, dog = class_vectors(embedder, data.class_names, ["a {}"])
    result = zero_shot(embedder, data, ["a {}"], vectors=np.stack([cat, cat, dog]))
    page = Page("report")
    zero_shot_page(page, result, data)
    html = page.html()
    assert "dog, taken for &lt;cat&gt;" in html
    assert len(re.findall(r'<figure[^>]*><img [^>]*src="data:image/jpeg', html)) == 1
    assert "<cat>" not in html


def test_the_page_of_a_model_without_faults_says_so():
    data, embedder = small_set(), FakeEmbedder()
    cat, dog = class_vectors(embedder, data.class_names, ["a {}"])
    result = zero_shot(embedder, data, ["a {}"], vectors=np.stack([cat, dog, dog]))
    assert accuracy_score([1, 1, 1], result.per_item["accuracy@1"].values) == 1.0
    page = Page("report")
    zero_shot_page(page, result, data)
    assert "Every picture was given its own class." in page.html()
