"""Geometry of vectors by hand, against slow loops and against scipy."""

import numpy as np
import pytest
from PIL import Image

from twinlens.errors import ConfigError
from twinlens.evaluate.geometry import geometry, of_pairs
from twinlens.evaluate.sets import CaptionedSet, LabelledSet
from twinlens.evaluate.twins import Twins, close_pairs, look_alikes
from twinlens.evaluate.vector_space import (
    alignment,
    cosines_to_others,
    effective_rank,
    gap_pulls,
    k_occurrence,
    mean_cosine,
    modality_gap,
    participation_ratio,
    skewness,
    uniformity,
)
from twinlens.testing import FakeEmbedder


def unit(rows, dim, seed=0, shift=0.0):
    vectors = np.random.default_rng(seed).standard_normal((rows, dim)) + shift
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks, the last one short."""
    monkeypatch.setattr("twinlens.evaluate.vector_space.BLOCK_SCORES", 7 * 50)


def test_the_gap_is_the_distance_of_the_means():
    images = np.array([[1.0, 0.0], [0.0, 1.0]])  # mean (0.5, 0.5)
    texts = np.array([[-1.0, 0.0], [0.0, 1.0]])  # mean (-0.5, 0.5)
    assert modality_gap(images, texts) == pytest.approx(1.0)
    assert modality_gap(images, images) == 0.0
    ours, theirs = gap_pulls(images, texts)
    assert (ours.tolist(), theirs.tolist()) == ([1.0, 0.0], [-1.0, 0.0])


def test_the_mean_cosine_is_that_of_all_pairs():
    vectors = unit(50, 8, shift=0.3)
    cosines = vectors @ vectors.T
    pairs = cosines[~np.eye(50, dtype=bool)]
    assert mean_cosine(vectors) == pytest.approx(pairs.mean(), abs=1e-6)
    each = (cosines.sum(axis=1) - 1) / 49
    np.testing.assert_allclose(cosines_to_others(vectors), each, atol=1e-6)
    # Three at right angles: no pair has anything in common.
    assert mean_cosine(np.eye(3)) == pytest.approx(0.0)
    with pytest.raises(ConfigError, match="1 vectors have no pairs"):
        mean_cosine(np.eye(3)[:1])


def test_dimensions_are_counted_by_their_variance():
    # Variances 4, 4, 0: two directions used evenly. 4, 1: 25 / 17 by participation.
    even = np.array([[2.0, 2.0, 0], [2.0, -2.0, 0], [-2.0, 2.0, 0], [-2.0, -2.0, 0]])
    assert participation_ratio(even) == pytest.approx(2.0)
    assert effective_rank(even) == pytest.approx(2.0)
    uneven = even * [1.0, 0.5, 1.0]
    assert participation_ratio(uneven) == pytest.approx(25 / 17)
    # Singular values 2 and 1: shares 2/3 and 1/3; entropy ln 3 - (2/3) ln 2.
    assert effective_rank(uneven) == pytest.approx(3 / 2 ** (2 / 3))
    constant = np.ones((4, 3))
    assert participation_ratio(constant) == 0.0 and effective_rank(constant) == 0.0


def test_occurrences_are_those_of_a_slow_loop(small_blocks):
    queries, items = unit(50, 6, seed=1), unit(50, 6, seed=2)
    expected = np.zeros(50, dtype=int)
    for row, scores in enumerate(queries @ items.T):
        expected[np.argsort(-scores)[:4]] += 1
        assert row < 50
    assert k_occurrence(queries, items, 4).tolist() == expected.tolist()
    own = np.zeros(50, dtype=int)
    for row, scores in enumerate(items @ items.T):
        order = [other for other in np.argsort(-scores) if other != row]
        own[order[:4]] += 1
    assert k_occurrence(items, items, 4, same=True).tolist() == own.tolist()
    assert own.sum() == 4 * 50


def test_a_hub_is_counted_by_all():
    items = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    queries = np.array([[0.9, 0.1], [0.9, -0.1], [1.0, 0.0]])
    assert k_occurrence(queries, items, 1).tolist() == [3, 0, 0]
    with pytest.raises(ConfigError, match="3 items have no 3 neighbours"):
        k_occurrence(queries, items, 3)


def test_skewness_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(0).poisson(2, 400)
    assert skewness(values) == pytest.approx(stats.skew(values))
    # Deviations -1, -1, -1, 3: third moment 24 / 4, variance 12 / 4.
    assert skewness(np.array([0, 0, 0, 4])) == pytest.approx(6 / 3**1.5)
    assert skewness(np.array([2, 2, 2])) == 0.0


def test_alignment_and_uniformity_are_means_over_pairs(small_blocks):
    images, texts = unit(50, 5, seed=3), unit(50, 5, seed=4)
    squared = ((images - texts) ** 2).sum(axis=1)
    np.testing.assert_allclose(alignment(images, texts), squared, atol=1e-5)
    distances = ((images[:, None] - images[None]) ** 2).sum(axis=2)
    expected = np.log(np.exp(-2 * distances)[~np.eye(50, dtype=bool)].mean())
    assert uniformity(images) == pytest.approx(expected, abs=1e-5)
    # At right angles the squared distance is 2: exp(-4) for every pair.
    assert uniformity(np.eye(4)) == pytest.approx(-4.0)
    assert uniformity(np.ones((3, 1))) == pytest.approx(0.0)


def test_the_interval_of_a_mean_over_pairs_covers_the_truth():
    """The mean cosine of vectors around the axis (1, 0): known, for there are few of them."""
    random = np.random.default_rng(1)
    turns = np.linspace(-1.0, 1.0, 21)  # equally likely: the expectation is over these
    population = np.stack([np.cos(turns), np.sin(turns)], axis=1)
    truth = float((population.mean(axis=0) ** 2).sum())
    inside = 0
    for _ in range(100):
        sample = population[random.integers(21, size=60)]
        figure = of_pairs(cosines_to_others(sample))
        inside += figure.low <= truth <= figure.high
    assert 88 <= inside <= 100  # 95 expected, a standard deviation of 2.2


def test_close_pairs_are_found_across_blocks(small_blocks):
    vectors = unit(50, 16)
    vectors[49] = vectors[3]
    vectors[10] = vectors[11]
    found = close_pairs(vectors, 0.99)
    assert {(pair.first, pair.second) for pair in found} == {(3, 49), (10, 11)}
    assert all(pair.cosine == pytest.approx(1.0, abs=1e-5) for pair in found)


def test_a_constant_model_fills_no_memory(small_blocks):
    vectors = np.tile(np.array([[1.0, 0.0]]), (50, 1))
    found = close_pairs(vectors, 0.9, most=5)
    assert len(found) == 5 and found[0] == Twins(0, 1, 1.0)


def scene(seed, size=(64, 48)):
    noise = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def test_pictures_that_look_alike_are_found_whatever_a_model_says():
    images = [scene(0), b"broken", scene(1), scene(0, (128, 96))]
    assert look_alikes(images) == {(0, 3)}
    assert look_alikes([b"broken"]) == set()


def test_the_task_names_hubs_twins_and_what_it_leaves_out():
    images = [scene(seed) for seed in range(20)]
    images[7] = scene(4)  # the same picture twice
    data = CaptionedSet(
        "scenes",
        [*images, b""],
        tuple(f"{row}.png" for row in range(21)),
        tuple(f"caption {row}" for row in range(42)),
        np.repeat(np.arange(21), 2),
    )
    result = geometry(FakeEmbedder(dim=24), data)
    assert result.data["images"] == 20 and result.data["skipped"][0][0] == "20.png"
    assert len(result.per_item["alignment"].ids) == 40
    assert result.figures["has a near duplicate"].value == 0.1
    twins = result.details["near duplicates"]
    assert twins["pairs"] == 1
    assert twins["shown"][0]["ids"] == ["4.png", "7.png"] and twins["shown"][0]["looks alike"]
    hubs = result.details["hubs, text to image"]
    assert hubs["expected"] == 10 * 40 / 20
    assert sum(count * pictures for count, pictures in enumerate(hubs["counts"])) == 400
    assert hubs["largest"][0]["count"] >= hubs["expected"]
    assert result.details["left out"] == []
    # Random directions: no narrow cone. Two equal rows of 20 give 2 / 380 of the pairs 1.
    assert abs(result.figures["mean cosine, images"].value) < 0.1
    gap = result.figures["modality gap"]
    assert gap.low < gap.value < gap.high


def test_few_pictures_have_no_hubs_and_a_class_is_a_text():
    data = LabelledSet(
        "few",
        [scene(seed) for seed in range(5)],
        np.array([0, 0, 1, 1, 0]),
        (("cat",), ("dog",)),
        tuple("abcde"),
    )
    result = geometry(FakeEmbedder(), data, looks=False)
    assert "hubness, text to image" not in result.figures
    assert result.details["left out"] == [
        "hubs, text to image: 5 pictures have no 10 neighbours",
        "hubs, image to image: 5 pictures have no 10 neighbours",
    ]
    assert len(result.per_item["alignment"].ids) == 5
