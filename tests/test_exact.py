"""Run with: pytest tests/test_exact.py"""

import numpy as np

from twinlens.search.exact import top_k

VECTORS = np.array([[1, 0], [0, 1], [0.6, 0.8], [-1, 0]], dtype=np.float32)
EAST = np.array([1, 0], dtype=np.float32)


def test_rows_come_best_first_with_their_dot_products():
    rows, scores = top_k(VECTORS, EAST, k=2)
    assert rows.tolist() == [0, 2]
    np.testing.assert_allclose(scores, [1.0, 0.6])


def test_asking_for_more_than_there_is_gives_all():
    rows, _ = top_k(VECTORS, EAST, k=100)
    assert rows.tolist() == [0, 2, 1, 3]


def test_equal_scores_keep_the_order_of_rows_even_at_the_cut():
    vectors = np.array([[0, 1], [1, 0], [0, 1], [1, 0], [1, 0]], dtype=np.float32)
    for k, expected in [(1, [1]), (2, [1, 3]), (3, [1, 3, 4]), (4, [1, 3, 4, 0])]:
        assert top_k(vectors, EAST, k)[0].tolist() == expected


def test_rows_that_are_not_live_are_never_returned():
    live = np.array([False, True, True, False])
    assert top_k(VECTORS, EAST, k=4, live=live)[0].tolist() == [2, 1]


def test_a_row_of_nan_is_never_returned():
    vectors = VECTORS.copy()
    vectors[0] = np.nan
    assert top_k(vectors, EAST, k=4)[0].tolist() == [2, 1, 3]


def test_no_rows_and_no_k_give_nothing():
    assert top_k(VECTORS[:0], EAST, k=3)[0].tolist() == []
    assert top_k(VECTORS, EAST, k=0)[0].tolist() == []


def test_agrees_with_sorting_everything():
    random = np.random.default_rng(0)
    vectors = random.standard_normal((1000, 8)).astype(np.float32)
    query = vectors[7]
    rows, scores = top_k(vectors, query, k=25)
    everything = np.argsort(-(vectors @ query), kind="stable")
    assert rows.tolist() == everything[:25].tolist()
    np.testing.assert_array_equal(scores, (vectors @ query)[rows])
