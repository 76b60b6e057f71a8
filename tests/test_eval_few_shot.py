"""Prototypes and Tip-Adapter by hand, and the curve they make."""

import numpy as np
import pytest

from twinlens.errors import ConfigError
from twinlens.evaluate.few_shot import (
    draw_shots,
    few_shot,
    few_shot_page,
    mixed,
    prototypes,
    tip_adapter_logits,
)
from twinlens.evaluate.page import Page
from twinlens.evaluate.result import Result
from twinlens.evaluate.sets import LabelledSet
from twinlens.testing import FakeEmbedder


def test_a_prototype_is_the_mean_of_its_shots_at_unit_length():
    vectors = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.8, 0.6]])
    found = prototypes(vectors, np.array([[0, 1], [2, 3]]))
    assert found == pytest.approx(np.full((2, 2), 0.5**0.5))
    assert mixed(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]), 0.75)[0] == pytest.approx(
        np.array([3, 1]) / 10**0.5
    )


def test_tip_adapter_is_the_papers_equations():
    image = np.array([[0.6, 0.8]])
    cache = np.array([[[1.0, 0.0], [0.0, 1.0]], [[0.6, 0.8], [-1.0, 0.0]]])
    text = np.array([[0.8, 0.6], [0.6, -0.8]])
    found = tip_adapter_logits(image, cache, text, alpha=2.0, beta=5.0, text_scale=10.0)
    # cosines 0.6 and 0.8, then 1 and -0.6; with the texts 0.96 and -0.28
    by_hand = [
        2 * (np.exp(-5 * 0.4) + np.exp(-5 * 0.2)) + 9.6,
        2 * (1 + np.exp(-5 * 1.6)) - 2.8,
    ]
    assert found[0] == pytest.approx(by_hand)


def test_shots_are_of_their_class_and_different():
    labels = np.array([0, 1, 0, 1, 0, 1, 1])
    drawn = draw_shots(labels, 2, 3, np.random.default_rng(0))
    for row, shots in enumerate(drawn):
        assert set(labels[shots]) == {row} and len(set(shots)) == 3
    with pytest.raises(ConfigError, match=r"Class 0 has 3 picture\(s\)"):
        draw_shots(labels, 2, 4, np.random.default_rng(0))


@pytest.fixture(scope="module")
def measured():
    """Text vectors are random; pictures lie about another random direction per class."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 40)
    centres = rng.normal(size=(4, 32))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    vectors = centres[labels] + rng.normal(0, 0.25, (160, 32))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    data = LabelledSet(
        name="toy",
        images=[str(row).encode() for row in range(160)],
        labels=labels,
        class_names=tuple((f"class {row}",) for row in range(4)),
        ids=tuple(map(str, range(160))),
    )
    return few_shot(
        FakeEmbedder(dim=32), data, vectors=vectors.astype(np.float32), shots=(1, 4, 16, 64)
    )


def test_more_shots_help_where_the_words_do_not(measured):
    curve = measured.details["curve"]["prototypes"]
    assert [point["shots"] for point in curve] == [1, 4, 16]  # 24 a class are left to train
    assert measured.settings["shots left out"] == [64]
    assert curve[0]["accuracy"] < curve[2]["accuracy"] > 0.85
    assert measured.figures["zero-shot"].value < 0.6
    for method in ("prototypes and text", "Tip-Adapter"):
        assert measured.details["curve"][method][2]["accuracy"] > 0.8


def test_the_curve_has_intervals_and_all_draws_are_in_it(measured):
    assert len(measured.details["chosen on val"]) == 3 * 5  # numbers of shots, draws
    for name, figure in measured.figures.items():
        assert figure.low <= figure.value <= figure.high, name
    one = measured.figures["prototypes, 1 shot"]
    assert one.value == pytest.approx(np.mean(measured.per_item["prototypes, 1 shot"].values))
    assert one.high - one.low > 0.05  # 32 pictures and 5 draws of one shot are not sure
    assert Result.from_json(measured.to_json()).figures == measured.figures


def test_the_page_shows_the_curve(measured):
    page = Page("report")
    few_shot_page(page, measured)
    assert "Accuracy over shots" in page.html() and "Tip-Adapter" in page.html()


def test_impossible_numbers_are_refused():
    data = LabelledSet(
        name="toy",
        images=[b"a"] * 8,
        labels=np.repeat(np.arange(2), 4),
        class_names=(("a",), ("b",)),
        ids=tuple("abcdefgh"),
    )
    vectors = np.eye(8, dtype=np.float32)
    with pytest.raises(ConfigError, match=r"has 2 .* 5 shots are asked for"):
        few_shot(FakeEmbedder(dim=8), data, vectors=vectors, shots=(5,))
    with pytest.raises(ConfigError, match="at least one draw"):
        few_shot(FakeEmbedder(dim=8), data, vectors=vectors, draws=0)
