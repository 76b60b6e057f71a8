"""Calibration and "unknown" by hand, and beside scikit-learn and scipy."""

import numpy as np
import pytest

from twinlens.errors import ConfigError
from twinlens.evaluate.calibration import (
    brier_scores,
    calibration,
    calibration_page,
    expected_calibration_error,
    fit_temperature,
    log_losses,
    reliability_bins,
    softmax,
)
from twinlens.evaluate.page import Page
from twinlens.evaluate.result import Result
from twinlens.evaluate.sets import LabelledSet
from twinlens.evaluate.unknown import (
    SCORES,
    accept_threshold,
    answer_scores,
    auroc,
    false_positive_rate,
    held_out_classes,
    unknown,
    unknown_page,
)
from twinlens.testing import FakeEmbedder

TEMPLATES = ("a photo of a {}",)


@pytest.fixture(scope="module")
def guesses():
    """500 pictures of 6 classes: logits, and labels drawn from their softmax."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (500, 6))
    labels = np.array([rng.choice(6, p=row) for row in softmax(logits)])
    return logits, labels


def toy(labels, classes):
    return LabelledSet(
        name="toy",
        images=[str(row).encode() for row in range(len(labels))],
        labels=np.asarray(labels),
        class_names=tuple((f"class {row}",) for row in range(classes)),
        ids=tuple(map(str, range(len(labels)))),
    )


def near_text(embedder, labels, classes, noise, seed=0):
    """Unit vectors about the text vector of each label's class, as the tasks embed it."""
    texts = embedder.texts([f"a photo of a class {row}" for row in range(classes)])
    vectors = texts[labels] + np.random.default_rng(seed).normal(0, noise, (len(labels), 32))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_ece_of_four_pictures_by_hand():
    confidence, right = np.array([0.9, 0.8, 0.3, 0.35]), np.array([1.0, 0.0, 0.0, 1.0])
    bins = reliability_bins(confidence, right, bins=2)
    assert bins.confidence == pytest.approx([0.325, 0.85])
    assert bins.accuracy == pytest.approx([0.5, 0.5]) and bins.counts.tolist() == [2, 2]
    assert bins.error == pytest.approx(0.5 * 0.175 + 0.5 * 0.35)
    # Sorted by confidence and cut in the middle: the same pairs here.
    assert reliability_bins(confidence, right, bins=2, binning="mass").error == bins.error


def test_bins_of_equal_mass_hold_equal_numbers(guesses):
    confidence = softmax(guesses[0]).max(axis=1)
    counts = reliability_bins(confidence, np.ones(500), bins=7, binning="mass").counts
    assert counts.sum() == 500 and set(counts) == {71, 72}


def test_an_edge_and_certainty_have_a_bin():
    bins = reliability_bins(np.array([0.0, 0.5, 1.0]), np.ones(3), bins=2)
    assert bins.counts.tolist() == [1, 2]
    assert np.isnan(reliability_bins(np.array([0.9]), np.ones(1), bins=3).accuracy[0])
    with pytest.raises(ConfigError, match="0 bins of 1 pictures"):
        reliability_bins(np.array([0.9]), np.ones(1), bins=0)


@pytest.mark.parametrize(("binning", "strategy"), [("width", "uniform"), ("mass", "quantile")])
def test_bins_equal_scikit_learns_calibration_curve(guesses, binning, strategy):
    from sklearn.calibration import calibration_curve

    logits, labels = guesses
    confidence = softmax(logits).max(axis=1)
    right = (logits.argmax(axis=1) == labels).astype(float)
    accuracy, stated = calibration_curve(right, confidence, n_bins=10, strategy=strategy)
    bins = reliability_bins(confidence, right, bins=10, binning=binning)
    filled = bins.counts > 0
    # Its quantile edges lie between pictures by interpolation; 500 over 10 divide evenly.
    np.testing.assert_allclose(bins.accuracy[filled], accuracy, atol=1e-9)
    np.testing.assert_allclose(bins.confidence[filled], stated, atol=1e-9)


def test_brier_and_log_loss_equal_scikit_learns(guesses):
    from sklearn.metrics import brier_score_loss, log_loss

    logits, labels = guesses
    probabilities = softmax(logits)
    one_hot = np.eye(6)[labels]
    by_class = [brier_score_loss(one_hot[:, row], probabilities[:, row]) for row in range(6)]
    assert brier_scores(probabilities, labels).mean() == pytest.approx(sum(by_class))
    assert log_losses(logits, labels).mean() == pytest.approx(log_loss(labels, probabilities))


def test_a_probability_of_zero_has_a_finite_loss():
    assert log_losses(np.array([[2000.0, 0.0]]), np.array([1]))[0] == pytest.approx(2000.0)


@pytest.mark.parametrize("factor", [0.2, 1.0, 5.0])
def test_the_temperature_that_was_applied_is_found(guesses, factor):
    logits, labels = guesses
    found = fit_temperature(logits * factor, labels)
    # Labels were drawn at temperature 1: within a tenth with 500 of them.
    assert found == pytest.approx(factor, rel=0.15)


def test_the_temperature_is_where_scipys_minimum_is(guesses):
    from scipy.optimize import minimize_scalar

    logits, labels = guesses
    best = minimize_scalar(
        lambda t: log_losses(logits / t, labels).mean(), bounds=(0.1, 10), method="bounded"
    )
    assert fit_temperature(logits, labels) == pytest.approx(best.x, rel=1e-4)


def test_calibrated_guesses_have_a_small_error_and_sharpened_ones_a_large(guesses):
    logits, labels = guesses
    assert expected_calibration_error(softmax(logits), labels) < 0.06
    assert expected_calibration_error(softmax(5 * logits), labels) > 0.15


def test_a_temperature_from_one_half_mends_the_other():
    embedder, labels = FakeEmbedder(dim=32), np.arange(400) % 8
    vectors = near_text(embedder, labels, 8, 0.5)
    result = calibration(embedder, toy(labels, 8), TEMPLATES, vectors=vectors, logit_scale=200.0)
    figures = result.figures
    assert figures["ECE after temperature"].value < figures["ECE"].value - 0.02
    assert figures["log loss after temperature"].value < figures["log loss"].value
    assert result.details["temperature"] > 1.5  # 200 was too sure
    assert result.details["fitted logit scale"] == pytest.approx(
        200 / result.details["temperature"]
    )
    assert result.data["images"] == result.settings["fitted on"] == 200
    again = Result.from_json(result.to_json())
    assert again.figures == figures
    page = Page("report")
    calibration_page(page, again)
    assert "As the model says" in page.html() and "After temperature" in page.html()


def test_auroc_and_false_positives_equal_scikit_learns():
    from sklearn.metrics import roc_auc_score, roc_curve

    rng = np.random.default_rng(0)
    known, strange = rng.normal(1, 1, 300).round(1), rng.normal(0, 1, 200).round(1)  # with ties
    truth, both = np.repeat([1, 0], [300, 200]), np.concatenate([known, strange])
    assert auroc(known, strange) == pytest.approx(roc_auc_score(truth, both))
    false, true, _ = roc_curve(truth, both, drop_intermediate=False)
    assert false_positive_rate(known, strange) == pytest.approx(false[np.argmax(true >= 0.95)])


def test_the_threshold_is_the_kth_highest_unknown():
    from scipy.stats import beta

    scores = np.arange(1.0, 40.0)  # 39 of them: k = floor(0.05 * 40) = 2
    found = accept_threshold(scores, 0.05)
    assert (scores > found.value).sum() == 1 and found.value == 38.0
    assert found.expected_rate == pytest.approx(2 / 40)
    assert beta(2, 38).cdf(found.rate_95) == pytest.approx(0.95)


@pytest.mark.parametrize(("rate", "least"), [(0.05, 19), (0.01, 99), (0.1, 9)])
def test_too_few_unknowns_promise_nothing(rate, least):
    assert accept_threshold(np.arange(float(least)), rate).value == least - 1
    with pytest.raises(ConfigError, match=f"give at least {least} "):
        accept_threshold(np.arange(float(least - 1)), rate)


def test_a_rate_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="must be between 0 and 1"):
        accept_threshold(np.arange(100.0), 5.0)


def test_the_promise_holds_over_many_draws():
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(2000):
        found = accept_threshold(rng.random(59), 0.05)  # k = 3
        rates.append(1.0 - found.value)  # of a uniform score, the share above
    # The mean is k / (n + 1) = 0.05 with a standard error of 0.028 / sqrt(2000) = 0.0006.
    assert np.mean(rates) == pytest.approx(0.05, abs=0.003)
    assert np.mean(np.array(rates) <= found.rate_95) == pytest.approx(0.95, abs=0.02)


def test_three_scores_of_an_answer():
    found = answer_scores(np.array([[0.1, 0.4, 0.3]]), 10.0)
    assert found["cosine"][0] == pytest.approx(0.4)
    assert found["margin"][0] == pytest.approx(0.1)
    assert found["probability"][0] == pytest.approx(1 / (1 + np.exp(-1) + np.exp(-3)))


def test_held_out_classes_leave_the_names_and_take_their_pictures():
    labels = np.arange(40) % 10
    known, strange = held_out_classes(toy(labels, 10))
    assert len(known.class_names) == 7 and len(known) == 28 and len(strange) == 12
    for row, identity in zip(known.labels, known.ids, strict=True):
        assert known.class_names[row] == (f"class {labels[int(identity)]}",)
    assert not set(known.ids) & set(strange.ids)
    with pytest.raises(ConfigError, match="has 2 classes"):
        held_out_classes(toy([0, 1], 2))


def test_what_is_near_no_class_is_refused_and_the_rest_answered():
    embedder, labels = FakeEmbedder(dim=32), np.arange(600) % 10
    vectors = near_text(embedder, labels, 10, 0.12)
    result = unknown(embedder, toy(labels, 10), vectors=vectors, rate=0.05, templates=TEMPLATES)
    figures = result.figures
    assert figures["coverage, cosine"].value > 0.95
    assert figures["accuracy of what is answered, cosine"].value > 0.95
    assert figures["AUROC, cosine"].value > 0.98
    for name in SCORES:
        # 90 strange pictures judge it: 5 % is 4.5 of them, and 15 are very rare.
        assert figures[f"false accepts, {name}"].value < 15 / 90
        assert result.details[name]["calibrated_on"] == 90
    assert (
        "5.0%" in result.details["cosine"]["promise"]
        or "4.4%" in (result.details["cosine"]["promise"])
    )  # floor(0.05 * 91) / 91
    assert Result.from_json(result.to_json()).details["cosine"] == result.details["cosine"]


def test_another_set_may_be_the_unknown_one():
    embedder, labels = FakeEmbedder(dim=32), np.arange(100) % 5
    vectors = near_text(embedder, labels, 5, 0.12)
    strange = toy(np.zeros(80, dtype=int), 1)
    rows = np.random.default_rng(5).normal(size=(80, 32)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    result = unknown(
        embedder, toy(labels, 5), strange, vectors=vectors, other_vectors=rows, templates=TEMPLATES
    )
    assert result.data["images"] == 100 and result.data["unknown"]["images"] == 80
    assert result.figures["AUROC, cosine"].value > 0.95
    assert result.settings["rate"] == 0.05
    page = Page("report")
    unknown_page(page, Result.from_json(result.to_json()))
    assert "By margin" in page.html() and "Set on 40 unknown pictures" in page.html()
