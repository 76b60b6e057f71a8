"""Intervals and tests against scipy, theory, and simulated data whose truth is known."""

import math

import numpy as np
import pytest
from scipy import stats

from twinlens.errors import ConfigError
from twinlens.evaluate import statistics
from twinlens.evaluate.statistics import (
    bootstrap_interval,
    figure_of,
    holm,
    mcnemar_exact,
    mean_per_class,
    paired_difference,
)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def _width(interval):
    return interval[1] - interval[0]


@pytest.mark.parametrize("kind", ["hits", "skewed", "flat"])
def test_a_mean_s_interval_is_scipy_s_bca(kind, rng):
    values = {
        "hits": (rng.random(200) < 0.95).astype(float),
        "skewed": rng.lognormal(size=80),
        "flat": rng.random(600),  # more different values than are counted
    }[kind]
    expected = stats.bootstrap((values,), np.mean, n_resamples=20_000, rng=1).confidence_interval
    found = bootstrap_interval(values, resamples=20_000)
    # Two draws of 20,000 resamples differ by less than a twentieth of the width.
    np.testing.assert_allclose(found, expected, atol=0.05 * _width(expected))


def test_a_median_s_interval_is_scipy_s_percentile_interval(rng):
    values = rng.lognormal(size=101)
    expected = stats.bootstrap(
        (values,), np.median, n_resamples=5000, method="percentile", rng=1
    ).confidence_interval
    found = bootstrap_interval(values, "median", resamples=5000)
    np.testing.assert_allclose(found, expected, atol=0.1 * _width(expected))


@pytest.mark.parametrize("size", [3_000, 60_000])  # drawn, and the normal limit itself
def test_many_values_give_the_normal_interval(size, rng):
    values = rng.random(size)
    error = values.std() / math.sqrt(size)
    expected = values.mean() - 1.96 * error, values.mean() + 1.96 * error
    np.testing.assert_allclose(bootstrap_interval(values), expected, atol=0.1 * error)


def test_a_cluster_of_copies_counts_once(rng):
    hits = rng.random(100) < 0.6
    alone = bootstrap_interval(hits)
    copied = bootstrap_interval(np.repeat(hits, 5), clusters=np.repeat(np.arange(100), 5))
    np.testing.assert_allclose(copied, alone, atol=0.01)
    assert _width(bootstrap_interval(np.repeat(hits, 5))) < 0.6 * _width(alone)


def test_clusters_of_different_sizes_are_drawn_whole(rng):
    names = np.array([f"picture {n}" for n in np.repeat(np.arange(20), np.arange(20) % 5 + 1)])
    values = rng.random(len(names))

    def mean_of(chosen):
        return np.concatenate([values[names == name] for name in chosen]).mean()

    drawn = [mean_of(rng.choice(np.unique(names), 20)) for _ in range(1500)]
    by_rows = bootstrap_interval(
        values, lambda rows: float(values[rows].mean()), clusters=names, resamples=1500
    )
    expected = np.quantile(drawn, [0.025, 0.975])
    np.testing.assert_allclose(by_rows, expected, atol=0.12 * _width(expected))
    # BCa moves the ends by little here.
    np.testing.assert_allclose(
        bootstrap_interval(values, clusters=names), expected, atol=0.15 * _width(expected)
    )


def test_the_truth_is_inside_about_95_times_in_100(rng):
    # 3 standard errors of a coverage of 0.95 in 400 sets are 0.033.
    for items, share in ((100, 0.8), (200, 0.95)):
        inside = 0
        for _ in range(400):
            low, high = bootstrap_interval(rng.random(items) < share, resamples=1000)
            inside += low <= share <= high
        assert inside / 400 == pytest.approx(0.95, abs=0.033)


def test_the_truth_is_inside_where_items_come_in_clusters(rng):
    def coverage(clustered):
        inside = 0
        for _ in range(300):
            easy = np.repeat(rng.beta(0.5, 0.5, size=100), 5)  # pictures differ much
            hits = rng.random(500) < easy
            clusters = np.repeat(np.arange(100), 5) if clustered else None
            low, high = bootstrap_interval(hits, clusters=clusters, resamples=1000)
            inside += low <= 0.5 <= high
        return inside / 300

    assert coverage(clustered=True) > 0.91
    assert coverage(clustered=False) < 0.85  # what the clusters are for


def test_hits_alone_are_not_called_certain():
    # Clopper and Pearson: the share at which 20 hits in 20 have a chance of 2.5 %.
    expected = stats.binomtest(20, 20).proportion_ci(method="exact")
    np.testing.assert_allclose(bootstrap_interval(np.ones(20)), expected)
    expected = stats.binomtest(0, 20).proportion_ci(method="exact")
    np.testing.assert_allclose(bootstrap_interval(np.zeros(20)), expected)


def test_the_same_values_give_the_same_interval(rng):
    values = rng.random(50)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values)


def test_one_item_or_cluster_has_no_interval():
    assert all(math.isnan(end) for end in bootstrap_interval([1.0]))
    assert all(math.isnan(end) for end in bootstrap_interval([1, 2, 3], clusters=["a"] * 3))
    assert all(math.isnan(end) for end in bootstrap_interval([1, 2], "median", clusters=[0, 0]))
    figure = figure_of([1.0])
    assert (figure.value, figure.low, figure.high) == (1.0, None, None)


def test_mean_per_class_weighs_classes_alike():
    labels = [0, 0, 0, 1]
    assert mean_per_class([1, 1, 1, 0], labels)(np.arange(4)) == 0.5
    assert mean_per_class([1, 1, 1, 0], labels)(np.array([0, 0, 1, 2])) == 1.0  # class 1 is absent
    low, high = bootstrap_interval([1, 1, 1, 0], mean_per_class([1, 1, 1, 0], labels))
    assert 0.0 <= low <= 0.5 <= high <= 1.0


@pytest.mark.parametrize(
    ("values", "clusters", "message"),
    [
        ([], None, "nothing was measured"),
        ([1.0, math.nan], None, "1 of 2 values are no number"),
        ([1.0, 2.0], ["a"], "2 values and 1 clusters"),
    ],
)
def test_what_has_no_interval_gets_one_sentence(values, clusters, message):
    with pytest.raises(ConfigError, match=message):
        bootstrap_interval(np.array(values), clusters=clusters)


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (5, 0), (3, 10), (7, 7), (600, 1000)])
def test_mcnemar_is_the_binomial_test_of_the_changed_items(better, worse):
    expected = stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
    assert mcnemar_exact(better, worse) == pytest.approx(expected, rel=1e-9)


def test_many_changed_items_do_not_overflow():
    assert 0.0 <= mcnemar_exact(20_000, 30_000) < 1e-300


def test_hits_are_compared_by_mcnemar(rng):
    a = np.array([1] * 10 + [0] * 90)
    b = np.array([0] * 2 + [1] * 8 + [1] * 9 + [0] * 81)  # 9 gained, 2 lost
    difference, low, high, p = paired_difference(a, b)
    assert difference == pytest.approx(0.07)
    assert p == pytest.approx(stats.binomtest(2, 11).pvalue)
    assert low < 0.07 < high


def test_other_values_are_compared_by_the_permutation_test_of_scipy(rng):
    a = rng.random(60)
    b = a + rng.normal(0.03, 0.1, size=60)
    expected = stats.permutation_test(
        (b, a),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        n_resamples=10_000,
        rng=1,
    )
    # p near 0.02: its standard error is 0.001 in 10,000 permutations.
    assert paired_difference(a, b, resamples=10_000).p == pytest.approx(expected.pvalue, abs=0.006)


def test_a_paired_interval_is_that_of_the_differences(rng):
    a, b = rng.random(100), rng.random(100)
    difference, low, high, _ = paired_difference(a, b)
    assert difference == pytest.approx((b - a).mean())
    assert (low, high) == bootstrap_interval(b - a)


def test_pairing_sees_what_two_intervals_hide(rng):
    hard = rng.random(400)  # items differ much, models by little
    a, b = hard, hard + rng.normal(0.01, 0.02, size=400)
    assert bootstrap_interval(a)[1] > bootstrap_interval(b)[0]
    assert paired_difference(a, b).low > 0


def test_equal_models_are_called_different_5_times_in_100(rng):
    # Whole clusters are easier for one model or the other; items alone would mislead.
    clusters = np.repeat(np.arange(60), 5)
    false_alarms = {"clusters": 0, "items": 0}
    for _ in range(200):
        luck = np.repeat(rng.normal(size=60), 5)
        a, b = rng.normal(size=300), rng.normal(size=300) + luck
        false_alarms["clusters"] += paired_difference(a, b, clusters, resamples=400).p < 0.05
        false_alarms["items"] += paired_difference(a, b, resamples=400).p < 0.05
    # 3 standard errors of 0.05 in 200 are 0.046.
    assert false_alarms["clusters"] / 200 == pytest.approx(0.05, abs=0.046)
    assert false_alarms["items"] > false_alarms["clusters"]


def test_the_same_values_differ_by_nothing():
    assert tuple(paired_difference([0.3, 0.4], [0.3, 0.4])) == (0.0, 0.0, 0.0, 1.0)


def test_medians_are_compared(rng):
    a = rng.integers(1, 40, size=301).astype(float)
    better = paired_difference(a, np.maximum(a - 10, 1), statistic="median", resamples=500)
    assert better.difference == np.median(np.maximum(a - 10, 1)) - np.median(a)
    assert better.high < 0 and better.p < 0.01
    same = paired_difference(a, rng.permutation(a), statistic="median", resamples=500)
    assert same.low <= 0 <= same.high and same.p > 0.05


def test_unequal_counts_are_refused():
    with pytest.raises(ConfigError, match="A has 2 values and B 3"):
        paired_difference([1, 0], [1, 0, 1])


def test_the_normal_limit_agrees_with_drawn_swaps(rng, monkeypatch):
    a, b = rng.random(2000), rng.random(2000) + 0.02
    drawn = paired_difference(a, b, resamples=4000)
    monkeypatch.setattr(statistics, "NORMAL_ABOVE", 1000)
    limit = paired_difference(a, b)
    assert limit.p == pytest.approx(drawn.p, abs=0.02)
    assert (limit.low, limit.high) == pytest.approx((drawn.low, drawn.high), abs=0.001)


def test_holm_by_hand():
    # In order 0.01, 0.03, 0.04: times 3, 2, 1, and never below the one before.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
