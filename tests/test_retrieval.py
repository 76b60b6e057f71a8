"""Recall@k on matrices small enough to check by eye."""

import numpy as np

from twinlens.evaluate.retrieval import (
    image_to_text_recall_at_k,
    retrieval_scores,
    text_to_image_recall_at_k,
)


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
