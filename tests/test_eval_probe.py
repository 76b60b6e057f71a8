"""Probes on vectors made by hand, and beside scikit-learn."""

import numpy as np
import pytest

from twinlens.errors import ConfigError
from twinlens.evaluate.probe import (
    accuracy,
    best_step,
    c_of,
    hits_at,
    knn_scores,
    linear_probe,
    logistic_scores,
    nearest_neighbours,
    parts_of,
    sweep,
)
from twinlens.evaluate.sets import LabelledSet
from twinlens.evaluate.splits import Split, stratified_split
from twinlens.testing import FakeEmbedder


def labelled(labels, classes=None, name="toy"):
    labels = np.asarray(labels)
    classes = classes or int(labels.max()) + 1
    return LabelledSet(
        name=name,
        images=[f"{name}{row}".encode() for row in range(len(labels))],
        labels=labels,
        class_names=tuple((f"class {row}",) for row in range(classes)),
        ids=tuple(f"{name}/{row}" for row in range(len(labels))),
    )


def clusters(labels, spread, seed=0, dim=16):
    """Unit vectors about one axis per class."""
    noise = np.random.default_rng(seed).normal(0, spread, (len(labels), dim))
    vectors = np.eye(dim)[labels] + noise
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_the_grid_is_the_papers():
    assert c_of(0) == pytest.approx(1e-6) and c_of(96) == pytest.approx(1e6)
    assert c_of(48) == 1.0 and c_of(56) == pytest.approx(10.0)


@pytest.mark.parametrize("peak", [0, 13, 50, 96])
def test_the_search_finds_the_only_peak_in_few_tries(peak):
    tried = sweep(lambda step: -float(abs(step - peak)))
    assert best_step(tried) == peak
    assert len(tried) <= 7 + 2 * 4


def test_of_equal_steps_the_most_regularised_is_taken():
    assert best_step({0: 0.5, 16: 0.9, 32: 0.9}) == 16


def test_a_split_is_stratified_and_covers_every_picture_once():
    labels = np.array([0] * 10 + [1] * 5 + [2] * 3)
    split = stratified_split(labels)
    together = np.concatenate([split.train, split.val, split.test])
    assert sorted(together) == list(range(18))
    assert np.bincount(labels[split.test]).tolist() == [2, 1, 1]
    assert np.bincount(labels[split.train]).tolist() == [6, 3, 1]
    assert not np.array_equal(split.test, stratified_split(labels, seed=1).test)


def test_a_class_with_too_few_pictures_is_named():
    with pytest.raises(ConfigError, match=r"The class cat has 2 picture\(s\)"):
        stratified_split(np.array([0, 0, 0, 1, 1]), names=("dog", "cat"))


def test_neighbours_vote_by_their_cosines():
    train = np.array([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]], dtype=np.float32)
    labels = np.array([0, 1, 1])
    image = np.array([[1.0, 0.0]], dtype=np.float32)  # cosines 1, 0.8, 0.6
    votes = knn_scores(train, labels, image, 2, 3)
    # exp((0.8 - 1) / 0.07) + exp((0.6 - 1) / 0.07), up to the best one's exp(1 / 0.07)
    assert votes[0] == pytest.approx([1.0, 0.057433 + 0.003299], abs=1e-5)
    assert knn_scores(train, labels, image, 2, 1)[0].tolist() == [1.0, 0.0]
    with pytest.raises(ConfigError, match="k = 4: must be 1 to 3"):
        knn_scores(train, labels, image, 2, 4)


def test_nearest_neighbours_equal_scikit_learns():
    from sklearn.neighbors import KNeighborsClassifier

    labels = np.arange(200) % 5
    vectors = clusters(labels, 0.5)
    train, test = slice(0, 150), slice(150, 200)
    reference = KNeighborsClassifier(
        n_neighbors=10,
        metric="cosine",
        algorithm="brute",
        weights=lambda distance: np.exp((1.0 - distance) / 0.07),
    ).fit(vectors[train], labels[train])
    own = knn_scores(vectors[train], labels[train], vectors[test], 5, 10)
    own /= own.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(own, reference.predict_proba(vectors[test]), atol=1e-4)


def test_a_class_that_train_lacks_is_never_given():
    labels = np.array([0, 0, 2, 2])
    scores = logistic_scores(clusters(labels, 0.1), labels, clusters(labels, 0.1), 3, 1.0)
    assert np.isneginf(scores[:, 1]).all()
    assert accuracy(scores, labels) == 1.0
    assert accuracy(scores, np.array([1, 1, 1, 1])) == 0.0


def test_a_tie_is_a_miss():
    assert hits_at(np.zeros((2, 3)), np.array([0, 2]), 1).tolist() == [0, 0]
    assert hits_at(np.array([[0.1, 0.3, 0.2]]), np.array([2]), 2).tolist() == [1]


def test_the_probe_fits_again_with_val_and_equals_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    labels = np.arange(180) % 3
    vectors, data = clusters(labels, 0.7), labelled(labels)
    result = linear_probe(FakeEmbedder(dim=16), data, vectors=vectors)
    split = stratified_split(labels)
    both = np.concatenate([split.train, split.val])
    reference = LogisticRegression(C=result.settings["C"], max_iter=1000)
    expected = reference.fit(vectors[both], labels[both]).score(
        vectors[split.test], labels[split.test]
    )
    assert result.figures["accuracy@1"].value == pytest.approx(expected)
    assert 0.4 < expected < 1.0
    assert result.task == "probe" and result.data["images"] == len(split.test)
    assert "accuracy@5" not in result.figures
    assert result.per_item["accuracy@1"].ids == [data.ids[row] for row in split.test]


def test_k_is_chosen_on_val_and_measured_on_a_test_set_of_its_own():
    labels, other = np.arange(60) % 3, np.arange(30) % 3
    result = nearest_neighbours(
        FakeEmbedder(dim=16),
        labelled(labels),
        test=labelled(other, name="other"),
        vectors=clusters(labels, 0.1),
        test_vectors=clusters(other, 0.1, seed=1),
        ks=(1, 5, 5000),
    )
    assert result.figures["accuracy@1"].value == 1.0
    assert result.figures["mean per-class accuracy"].value == 1.0
    assert result.data["name"] == "other" and result.settings["trained on"] == "toy"
    assert [k for k, _ in result.details["val accuracy by k"]] == [1, 5, 48]  # 48 are left to train


def test_an_unreadable_picture_leaves_its_part_and_moves_no_other():
    labels = np.array([0, 0, 0, 1, 1, 1])
    vectors = clusters(labels, 0.1)
    vectors[1] = np.nan
    split = Split(np.array([0, 3]), np.array([1, 4]), np.array([2, 5]))
    parts = parts_of(FakeEmbedder(dim=16), labelled(labels), split=split, vectors=vectors)
    np.testing.assert_array_equal(parts.train, vectors[[0, 3]])
    np.testing.assert_array_equal(parts.val, vectors[[4]])
    np.testing.assert_array_equal(parts.test, vectors[[2, 5]])
    assert parts.test_set.ids == ("toy/2", "toy/5")
    assert [identity for identity, _ in parts.test_set.skipped] == ["toy/1"]


def test_what_does_not_fit_is_named():
    data, embedder = labelled([0, 0, 0, 1, 1, 1]), FakeEmbedder(dim=16)
    with pytest.raises(ConfigError, match="6 pictures but 5 vectors"):
        parts_of(embedder, data, vectors=np.zeros((5, 16), dtype=np.float32))
    with pytest.raises(ConfigError, match=r"different classes \(2 and 3\)"):
        parts_of(embedder, data, test=labelled([0, 1, 2], name="other"))
    empty = Split(np.array([0]), np.array([], dtype=np.int64), np.array([1]))
    with pytest.raises(ConfigError, match="the part val of toy is empty"):
        parts_of(embedder, data, split=empty)
