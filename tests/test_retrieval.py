"""Retrieval figures: by eye on small matrices, against slow loops and against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, ndcg_score, top_k_accuracy_score

from twinlens import SAMPLES
from twinlens.errors import ConfigError
from twinlens.evaluate import ranks as ranks_module
from twinlens.evaluate.page import Page
from twinlens.evaluate.ranks import TIE, Ranks, exact_ranks
from twinlens.evaluate.result import Result
from twinlens.evaluate.retrieval import (
    average_precisions,
    best_places,
    discounted_gains,
    image_to_text_recall_at_k,
    recall_at,
    retrieval,
    retrieval_page,
    retrieval_scores,
    text_to_image_recall_at_k,
)
from twinlens.evaluate.sets import CaptionedSet
from twinlens.evaluate.vectors import VectorCache
from twinlens.testing import FakeEmbedder


def unit_rows(count, random, dim=16):
    rows = random.standard_normal((count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def related_case(images=60, captions=200, seed=0):
    """Captions near their image, some images with none and some with many."""
    random = np.random.default_rng(seed)
    owner = random.integers(0, images, captions) // 2 * 2 % images  # odd images have none
    picture = unit_rows(images, random)
    caption = picture[owner] + 1.2 * unit_rows(captions, random)
    return picture, caption / np.linalg.norm(caption, axis=1, keepdims=True), owner


def slow_ranks(images, captions, owner):
    """The places as their definition says them, pair by pair and in float64."""
    scores = images.astype(np.float64) @ captions.T.astype(np.float64)
    image_places, caption_places = [], []
    for caption, image in enumerate(owner):
        least = scores[image, caption] - TIE
        others = [i for i in range(len(images)) if i != image]
        image_places.append(1 + sum(scores[i, caption] >= least for i in others))
        own = [c for c in range(len(owner)) if owner[c] == image]
        own.sort(key=lambda c: -scores[image, c])
        others = [c for c in range(len(owner)) if owner[c] != image]
        above = sum(scores[image, c] >= least for c in others)
        caption_places.append(above + 1 + own.index(caption))
    return image_places, caption_places


def test_caption_counts_only_when_its_image_is_in_the_first_k():
    similarity = np.array([[0.9, 0.5], [0.4, 0.2]])  # rows: images; caption 1 prefers image 0
    assert text_to_image_recall_at_k(similarity, [0, 1], 1) == 0.5
    assert text_to_image_recall_at_k(similarity, [0, 1], 2) == 1.0


def test_an_image_is_found_by_any_one_of_its_captions():
    similarity = np.array([[0.1, 0.8, 0.5], [0.9, 0.7, 0.6]])  # captions 0, 1 -> image 0; 2 -> 1
    assert image_to_text_recall_at_k(similarity, [0, 0, 1], 1) == 0.5
    assert image_to_text_recall_at_k(similarity, [0, 0, 1], 3) == 1.0


def test_a_model_that_gives_one_score_for_all_finds_nothing():
    scores = retrieval_scores(np.zeros((20, 20)), list(range(20)))
    assert set(scores.values()) == {0.0}


@pytest.mark.parametrize("blocks", [(1024, 2048, 64), (3, 2, 2), (16, 8, 5)])
@pytest.mark.parametrize("threads", [1, 2])
def test_ranks_are_those_of_a_slow_loop(monkeypatch, blocks, threads):
    for name, size in zip(
        ("BLOCK_CAPTIONS", "BLOCK_IMAGES", "STRIP_CAPTIONS"), blocks, strict=True
    ):
        monkeypatch.setattr(ranks_module, name, size)
    images, captions, owner = related_case()
    images[7] = images[4]  # twins: neither can be told from the other
    ranks = exact_ranks(images, captions, owner, threads=threads)
    expected = slow_ranks(images, captions, owner)
    assert ranks.image.tolist() == expected[0]
    assert ranks.caption.tolist() == expected[1]


def test_a_twin_comes_before_the_image_itself():
    same = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    ranks = exact_ranks(same, same, [0, 1, 2])
    assert ranks.image.tolist() == ranks.caption.tolist() == [2, 2, 1]


def test_equal_captions_of_one_image_take_places_one_after_the_other():
    east, north = np.eye(2, dtype=np.float32)
    ranks = exact_ranks(np.stack([east, north]), np.stack([east, east, east, north]), [0, 0, 0, 1])
    assert sorted(ranks.caption[:3].tolist()) == [1, 2, 3]
    assert ranks.caption[3] == 1


def test_scores_closer_than_rounding_are_a_tie():
    near = np.float32(1.0) - np.float32(3e-7)  # three steps of float32 below 1
    images = np.array([[near, 0.0], [1.0, 0.0]], dtype=np.float32)
    captions = np.array([[1.0, 0.0]], dtype=np.float32)
    assert exact_ranks(images, captions, [1]).image.tolist() == [2]


def test_a_collapsed_model_finds_nothing():
    same = np.ones((30, 8), dtype=np.float32) / np.float32(np.sqrt(8.0))
    ranks = exact_ranks(same, same, np.arange(30))
    assert set(ranks.image) == set(ranks.caption) == {30}


def test_best_only_counts_the_best_caption_of_each_image():
    images, captions, owner = related_case()
    whole = exact_ranks(images, captions, owner)
    best = exact_ranks(images, captions, owner, best_only=True)
    assert (best.image == whole.image).all()
    for places, other in zip(best_places(whole), best_places(best), strict=True):
        assert (places == other).all()
    with pytest.raises(ConfigError, match="Only the best captions were counted"):
        average_precisions(best)


def test_ranks_and_the_matrix_give_the_same_recall():
    random = np.random.default_rng(3)
    images, owner = unit_rows(40, random), np.repeat(np.arange(40), 5)
    captions = unit_rows(200, random)
    ranks = exact_ranks(images, captions, owner)
    scores = retrieval_scores(images @ captions.T, owner)
    for k in (1, 5, 10):
        assert recall_at(ranks.image, k) == scores[f"text_to_image_recall@{k}"]
        assert recall_at(best_places(ranks)[0], k) == scores[f"image_to_text_recall@{k}"]


def test_figures_are_scikit_learns():
    images, captions, owner = related_case()
    ranks = exact_ranks(images, captions, owner)
    scores = images @ captions.T
    asked = np.unique(owner)
    wanted = owner == asked[:, None]
    assert average_precisions(ranks) == pytest.approx(
        [average_precision_score(w, s) for w, s in zip(wanted, scores[asked], strict=True)]
    )
    assert discounted_gains(ranks).mean() == pytest.approx(ndcg_score(wanted, scores[asked], k=10))
    # From a caption, one image is right: recall@k is a classifier's accuracy.
    every = np.arange(len(images))
    for k in (1, 5, 10):
        expected = top_k_accuracy_score(owner, scores.T, k=k, labels=every)
        assert recall_at(ranks.image, k) == pytest.approx(expected)
        assert 0.0 < expected < 1.0


def test_average_precision_and_ndcg_by_hand():
    # One image's two captions at places 1 and 4, another's only one at 12.
    ranks = Ranks(np.array([1, 1, 1]), np.array([4, 1, 12]), np.array([0, 0, 2]))
    assert average_precisions(ranks).tolist() == [(1 / 1 + 2 / 4) / 2, 1 / 12]
    ideal = 1 + 1 / np.log2(3)
    assert discounted_gains(ranks) == pytest.approx([(1 + 1 / np.log2(5)) / ideal, 0.0])
    places, rows = best_places(ranks)
    assert (places.tolist(), rows.tolist()) == ([1, 12], [0, 2])


def test_progress_ends_at_all_captions(monkeypatch):
    monkeypatch.setattr(ranks_module, "BLOCK_CAPTIONS", 64)
    told = []
    exact_ranks(*related_case(), progress=lambda done, total: told.append((done, total)))
    assert told == [(64, 200), (128, 200), (192, 200), (200, 200)]


@pytest.mark.parametrize(
    ("images", "captions", "owner", "message"),
    [
        (np.eye(2), np.eye(2), [0], "2 captions, but for 1 it is said"),
        (np.eye(2), np.eye(2), [0, 2], "Caption 1 belongs to picture 2, .* only 2 pictures"),
        (np.eye(2), np.eye(3), [0, 1, 1], "have 2 numbers and the captions' 3"),
        (np.eye(2), np.eye(2)[:0], [], "there are 2 and 0"),
        (np.full((2, 2), np.nan), np.eye(2), [0, 1], "vector of picture 0 holds a number"),
    ],
)
def test_what_does_not_fit_is_said(images, captions, owner, message):
    with pytest.raises(ConfigError, match=message):
        exact_ranks(images.astype(np.float32), captions.astype(np.float32), owner)


def small_set(**more):
    given = {
        "name": "small",
        "images": [b"one", b"two", b"three"],
        "ids": ("one", "two", "three"),
        "captions": ("a", "b", "c", "d"),
        "owner": np.array([0, 0, 1, 2]),
    }
    return CaptionedSet(**{**given, **more})


def vectors_where_the_last_two_are_exchanged():
    """Captions a and b lead to image one; c and d each to the other's image."""
    a, _, c, d = FakeEmbedder().texts(["a", "b", "c", "d"])
    b = FakeEmbedder().texts(["b"])[0]
    both = (a + b) / np.linalg.norm(a + b)
    return np.stack([both, d, c])


def test_a_result_has_both_directions_with_intervals_and_each_query():
    vectors = vectors_where_the_last_two_are_exchanged()
    result = retrieval(FakeEmbedder(), small_set(), vectors=vectors)
    figures = {name: figure.value for name, figure in result.figures.items()}
    assert figures["text_to_image_recall@1"] == 0.5
    assert figures["text_to_image_recall@5"] == 1.0
    assert figures["image_to_text_recall@1"] == pytest.approx(1 / 3)
    assert set(figures) == {
        f"{direction}_{name}"
        for direction in ("text_to_image", "image_to_text")
        for name in ("recall@1", "recall@5", "recall@10", "median_rank", "mAP", "nDCG@10")
    }
    for figure in result.figures.values():
        assert figure.low <= figure.value <= figure.high
    item = result.per_item["text_to_image_recall@1"]
    assert item.ids == ["one#0", "one#1", "two#0", "three#0"]
    assert item.clusters == ["one", "one", "two", "three"]
    assert item.values == [1.0, 1.0, 0.0, 0.0]
    assert result.per_item["image_to_text_mAP"].ids == ["one", "two", "three"]
    assert result.per_item["image_to_text_median_rank"].statistic == "median"
    assert {case["image"] for case in result.details["worst_captions"]} == {"two", "three"}
    assert result.details["worst_captions"][0]["place"] >= 2
    assert result.details["worst_images"][0]["first"][0] in ("c", "d")
    assert result.details["recall_curve"]["text_to_image"][:1] == [0.5]
    assert Result.from_json(result.to_json()) == result


def test_recall_only_leaves_out_what_needs_every_caption():
    vectors = vectors_where_the_last_two_are_exchanged()
    whole = retrieval(FakeEmbedder(), small_set(), vectors=vectors)
    some = retrieval(FakeEmbedder(), small_set(), vectors=vectors, recall_only=True)
    left_out = set(whole.figures) - set(some.figures)
    assert left_out == {"image_to_text_mAP", "image_to_text_nDCG@10"}
    assert all(whole.figures[name] == figure for name, figure in some.figures.items())


def test_an_unreadable_picture_goes_with_its_captions():
    data = small_set(images=[b"not a picture", b"two", b"three"])
    result = retrieval(FakeEmbedder(), data)
    assert (result.data["images"], result.data["captions"]) == (2, 2)
    assert result.data["skipped"] == [["one", "not a picture"]]


def test_a_second_run_embeds_nothing(tmp_path):
    embedder, cache = FakeEmbedder(), VectorCache(tmp_path)
    first = retrieval(embedder, small_set(), cache=cache)
    seen = embedder.images_seen
    assert retrieval(embedder, small_set(), cache=cache) == first
    assert embedder.images_seen == seen


def test_the_page_shows_the_lowest_queries_with_their_pictures():
    samples = sorted(SAMPLES.glob("*.jpg"))[:3]
    data = small_set(images=samples, captions=("a", "b", "<c>", "d"))
    a, b, c, d = FakeEmbedder().texts(data.captions)
    both = (a + b) / np.linalg.norm(a + b)
    result = retrieval(FakeEmbedder(), data, vectors=np.stack([both, d, c]))
    page = Page("report")
    retrieval_page(page, result, data)
    html = page.html()
    assert "Captions whose image came last" in html
    assert "&lt;c&gt;" in html and "<c>" not in html
    # Two captions, each with the image wanted and the two others; two images.
    assert html.count("data:image/jpeg") == 2 * 3 + 2
