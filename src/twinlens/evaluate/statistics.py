"""How sure a figure is: bootstrap intervals, and paired tests between two models.

Needs numpy alone. What is chosen here, once, for all tasks:

- 95 % intervals from 2,000 resamples with a fixed seed: the same values give the same interval.
- For a mean, BCa (bias-corrected, accelerated; Efron 1987, "Better Bootstrap Confidence
  Intervals", JASA 82), which is what scipy.stats.bootstrap does by default. Percentile
  intervals are too high for shares near 1: in 1,000 simulated sets of 200 items with 97 % hits,
  4.8 % of them lay wholly above the truth, and 1.1 % of BCa's, where 2.5 % should.
- For any other statistic the percentile interval: BCa would ask for it once more per item.
- Values all 0 or all 1 teach a bootstrap nothing (it would answer [1, 1]); there the interval
  of Clopper and Pearson 1934 takes over, Biometrika 26: from (0.05 / 2) ** (1 / items) to 1.
- Items that come in clusters, as the captions of one picture do, are resampled by cluster.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, Shaped

from twinlens.errors import ConfigError
from twinlens.evaluate.result import Figure

Values = Sequence[float] | Sequence[int] | Shaped[np.ndarray, " item"]
Clusters = Sequence[Hashable] | Shaped[np.ndarray, " item"]
Statistic = Literal["mean", "median"] | Callable[[Int[np.ndarray, " row"]], float]

CONFIDENCE = 0.95
RESAMPLES = 2000

# With so many independent values a mean's bootstrap distribution is normal: the skewness of
# misses at 1 % moves an end by 0.02 standard errors.
NORMAL_ABOVE = 50_000
# With at least so many items to a different value, the values' counts are drawn: as exact, and
# 0.01 s instead of 3 for half a million hits and misses.
_ITEMS_PER_VALUE = 10
_CHUNK_DRAWS = 4_000_000
_MEDIAN_DRAWS = 200_000_000

_NORMAL = NormalDist()


def bootstrap_interval(
    values: Values,
    statistic: Statistic = "mean",
    *,
    clusters: Clusters | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """The 95 % interval of a statistic of `values`; see this file's head for the method.

    `statistic` may be a function that takes row numbers, some of them several times, and
    returns the figure of those rows: `lambda rows: f1(labels[rows], found[rows])`.
    `clusters` names, per item, what is resampled as one.
    Both ends are NaN where there is only one cluster: nothing is known about its spread.

    Raises ConfigError for no values, values that are NaN, or unequal counts.
    """
    numbers, members = _checked(values, clusters)
    rng = np.random.default_rng(seed)
    if statistic == "mean":
        return _mean_interval(_Clustered.of(numbers, members), rng, resamples)
    if _independent(numbers, members) == 1:
        return float("nan"), float("nan")
    figure: Callable[[Int[np.ndarray, " row"]], float]
    if callable(statistic):
        figure = statistic
    else:
        resamples = _affordable(resamples, len(numbers))

        def figure(rows: Int[np.ndarray, " row"]) -> float:
            return float(np.median(numbers[rows]))

    draws = [figure(rows) for rows in _resampled(len(numbers), members, rng, resamples)]
    low, high = np.quantile(draws, _tails())
    return float(low), float(high)


def figure_of(
    values: Values,
    statistic: Literal["mean", "median"] = "mean",
    *,
    clusters: Clusters | None = None,
    higher_is_better: bool = True,
    unit: str = "",
    seed: int = 0,
) -> Figure:
    """The mean or median of `values` with its interval."""
    low, high = bootstrap_interval(values, statistic, clusters=clusters, seed=seed)
    value = float(np.mean(values) if statistic == "mean" else np.median(values))
    known = not np.isnan(low)
    return Figure(value, low if known else None, high if known else None, higher_is_better, unit)


def mean_per_class(values: Values, labels: Values) -> Callable[[Int[np.ndarray, " row"]], float]:
    """A statistic for bootstrap_interval: each class's mean, then the mean of those.

    A class that a resample has no item of is left out of that resample.
    """
    numbers = np.asarray(values, dtype=np.float64)
    _, classes = np.unique(np.asarray(labels), return_inverse=True)

    def figure(rows: Int[np.ndarray, " row"]) -> float:
        counts = np.bincount(classes[rows])
        sums = np.bincount(classes[rows], weights=numbers[rows])
        return float(np.mean(sums[counts > 0] / counts[counts > 0]))

    return figure


@dataclass(frozen=True)
class PairedDifference:
    """How much more B has than A: `difference` is the mean of b - a, or of the medians'."""

    difference: float
    low: float
    high: float
    p: float  # how often a difference as large would come by chance, if A and B were equal

    def __iter__(self) -> Iterator[float]:
        return iter((self.difference, self.low, self.high, self.p))


def paired_difference(
    a: Values,
    b: Values,
    clusters: Clusters | None = None,
    *,
    statistic: Literal["mean", "median"] = "mean",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> PairedDifference:
    """B's statistic less A's over the same items, its interval, and a two-sided p.

    `a[i]` and `b[i]` belong to the same item. The interval resamples items (clusters), the p
    swaps A and B in items (clusters) at random: Smucker, Allan and Carterette 2007, CIKM,
    "A comparison of statistical significance tests for information retrieval evaluation",
    section 3.4. For hits and misses without clusters that test is McNemar's, and exact here.
    A median's p swaps too, item by item.

    Raises ConfigError for unequal counts, no values or NaN.
    """
    first, members = _checked(a, clusters)
    second, _ = _checked(b, clusters)
    if len(first) != len(second):
        raise ConfigError(
            f"A has {len(first):,} values and B {len(second):,}: a paired comparison takes one "
            "of each per item."
        )
    rng = np.random.default_rng(seed)
    if statistic == "median":
        return _median_difference(first, second, members, rng, resamples)
    grouped = _Clustered.of(second - first, members)
    if _independent(first, members) == 1:
        low = high = float("nan")
    elif np.ptp(second - first) == 0:  # Clopper-Pearson's ends are for shares, not differences.
        low = high = float(second[0] - first[0])
    else:
        low, high = _mean_interval(grouped, rng, resamples)
    if members is None and _only_hits(first) and _only_hits(second):
        better, worse = int((second > first).sum()), int((second < first).sum())
        p = mcnemar_exact(better, worse)
    else:
        p = _swap_p(grouped.sums, rng, resamples)
    return PairedDifference(float((second - first).mean()), low, high, p)


def mcnemar_exact(better: int, worse: int) -> float:
    """The two-sided p that `better` against `worse` changed items are flips of a fair coin.

    Source: McNemar 1947, Psychometrika 12; the exact form is the sign test.
    """
    changed, fewer = better + worse, min(better, worse)
    if better == worse:
        return 1.0
    # Terms by their logarithms: 2 ** -changed is no float above 1,074 changed items.
    term = np.concatenate([[0.0], np.log((changed - np.arange(fewer)) / np.arange(1, fewer + 1))])
    logs = np.cumsum(term) - changed * np.log(2.0)
    return float(min(1.0, 2.0 * np.exp(logs).sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values corrected for their number: below 0.05 in any of them is then 5 % in all.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure",
    Scandinavian Journal of Statistics 6.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


@dataclass(frozen=True)
class _Clustered:
    """Sums and numbers of the items in each cluster, which is all that a mean needs."""

    sums: Float[np.ndarray, " cluster"]
    counts: Float[np.ndarray, " cluster"]

    @classmethod
    def of(
        cls, numbers: Float[np.ndarray, " item"], members: Int[np.ndarray, " item"] | None
    ) -> "_Clustered":
        if members is None:
            return cls(numbers, np.ones(len(numbers)))
        return cls(np.bincount(members, weights=numbers), np.bincount(members).astype(np.float64))

    @property
    def mean(self) -> float:
        return float(self.sums.sum() / self.counts.sum())


def _mean_interval(
    grouped: _Clustered, rng: np.random.Generator, resamples: int
) -> tuple[float, float]:
    clusters = len(grouped.sums)
    if clusters == 1:
        return float("nan"), float("nan")
    mean = grouped.mean
    # Each cluster's pull on the mean, the derivative that jackknife differences approach.
    pull = grouped.sums - mean * grouped.counts
    if not pull.any():
        return _constant_interval(mean, clusters)
    pairs, times = np.unique(
        np.stack([grouped.sums, grouped.counts], axis=1), axis=0, return_counts=True
    )
    few = len(pairs) * _ITEMS_PER_VALUE <= clusters
    if clusters > NORMAL_ABOVE and not few:
        error = float(np.sqrt((pull**2).sum()) / grouped.counts.sum())
        reach = _NORMAL.inv_cdf(_tails()[1]) * error
        return mean - reach, mean + reach
    if few:
        drawn = rng.multinomial(clusters, times / clusters, size=resamples)
        draws = (drawn @ pairs[:, 0]) / (drawn @ pairs[:, 1])
    else:
        draws = _drawn_means(grouped, rng, resamples)
    acceleration = float((pull**3).sum() / (6.0 * (pull**2).sum() ** 1.5))
    return _bca(draws, mean, acceleration)


def _constant_interval(mean: float, clusters: int) -> tuple[float, float]:
    edge = ((1.0 - CONFIDENCE) / 2) ** (1.0 / clusters)
    if mean == 1.0:
        return edge, 1.0
    if mean == 0.0:
        return 0.0, 1.0 - edge
    return mean, mean


def _drawn_means(
    grouped: _Clustered, rng: np.random.Generator, resamples: int
) -> Float[np.ndarray, " resample"]:
    clusters = len(grouped.sums)
    at_once = max(1, _CHUNK_DRAWS // clusters)
    means = []
    for start in range(0, resamples, at_once):
        rows = rng.integers(0, clusters, size=(min(at_once, resamples - start), clusters))
        means.append(grouped.sums[rows].sum(axis=1) / grouped.counts[rows].sum(axis=1))
    return np.concatenate(means)


def _bca(
    draws: Float[np.ndarray, " resample"], estimate: float, acceleration: float
) -> tuple[float, float]:
    """Efron and Tibshirani 1993, An Introduction to the Bootstrap, equations 14.9 to 14.15."""
    # Equal draws count by half: shares have many. The sum of a draw may differ in its last bits.
    near = np.isclose(draws, estimate, rtol=1e-12, atol=1e-15)
    below = (float(((draws < estimate) & ~near).sum()) + 0.5 * float(near.sum())) / len(draws)
    bias = _NORMAL.inv_cdf(min(max(below, 1.0 / len(draws)), 1.0 - 1.0 / len(draws)))
    levels = []
    for tail in _tails():
        shifted = bias + _NORMAL.inv_cdf(tail)
        levels.append(_NORMAL.cdf(bias + shifted / (1.0 - acceleration * shifted)))
    low, high = np.quantile(draws, levels)
    return float(low), float(high)


def _swap_p(
    differences: Float[np.ndarray, " cluster"], rng: np.random.Generator, resamples: int
) -> float:
    """How often random signs bring the sum of `differences` as far from 0 as it is."""
    sizes, times = np.unique(np.abs(differences[differences != 0.0]), return_counts=True)
    observed = abs(float(differences.sum()))
    if len(sizes) == 0 or observed == 0.0:
        return 1.0
    few = len(sizes) * _ITEMS_PER_VALUE <= len(differences)
    if len(differences) > NORMAL_ABOVE and not few:
        return 2.0 * _NORMAL.cdf(-observed / float(np.sqrt((differences**2).sum())))
    if not few:  # A sign each is then drawn faster than binomial counts.
        sizes, times = np.abs(differences), np.ones(len(differences), dtype=np.int64)
    as_far = 0
    at_once = max(1, _CHUNK_DRAWS // len(sizes))
    for start in range(0, resamples, at_once):
        shape = (min(at_once, resamples - start), len(sizes))
        positive = (
            rng.binomial(times, 0.5, size=shape)
            if few
            else rng.integers(0, 2, size=shape, dtype=np.int8)
        )
        sums = (2.0 * positive - times) @ sizes
        as_far += int((np.abs(sums) >= observed * (1.0 - 1e-12)).sum())
    # The data themselves are one of the assignments: p is never 0 (Phipson and Smyth 2010).
    return (as_far + 1) / (resamples + 1)


def _median_difference(
    first: Float[np.ndarray, " item"],
    second: Float[np.ndarray, " item"],
    members: Int[np.ndarray, " item"] | None,
    rng: np.random.Generator,
    resamples: int,
) -> PairedDifference:
    owner = np.arange(len(first)) if members is None else members
    resamples = _affordable(resamples, len(first))
    observed = float(np.median(second) - np.median(first))
    draws, as_far = [], 0
    for rows in _resampled(len(first), members, rng, resamples):
        draws.append(np.median(second[rows]) - np.median(first[rows]))
    for _ in range(resamples):
        swap = rng.random(owner.max() + 1)[owner] < 0.5
        swapped = np.median(np.where(swap, first, second)) - np.median(
            np.where(swap, second, first)
        )
        as_far += int(abs(swapped) >= abs(observed))
    low, high = np.quantile(draws, _tails())
    if _independent(first, members) == 1:
        low = high = np.nan
    return PairedDifference(observed, float(low), float(high), (as_far + 1) / (resamples + 1))


def _resampled(
    items: int,
    members: Int[np.ndarray, " item"] | None,
    rng: np.random.Generator,
    resamples: int,
) -> Iterator[Int[np.ndarray, " row"]]:
    """Row numbers of each resample: items drawn with replacement, or whole clusters."""
    if members is None:
        for _ in range(resamples):
            yield rng.integers(0, items, size=items)
        return
    by_cluster = np.argsort(members, kind="stable")
    counts = np.bincount(members)
    starts = np.cumsum(counts) - counts
    for _ in range(resamples):
        drawn = rng.integers(0, len(counts), size=len(counts))
        lengths = counts[drawn]
        # Row k of a drawn cluster is at its start + k; k counts up within each.
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        yield by_cluster[np.repeat(starts[drawn], lengths) + within]


def _checked(
    values: Values, clusters: Clusters | None
) -> tuple[Float[np.ndarray, " item"], Int[np.ndarray, " item"] | None]:
    """The values as float64 and each one's cluster as a number from 0."""
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.size == 0:
        raise ConfigError("there are no values to take an interval of: nothing was measured.")
    if np.isnan(numbers).any():
        raise ConfigError(
            f"{int(np.isnan(numbers).sum()):,} of {len(numbers):,} values are no number (NaN): "
            "leave those items out first."
        )
    if clusters is None:
        return numbers, None
    if len(clusters) != len(numbers):
        raise ConfigError(
            f"there are {len(numbers):,} values and {len(clusters):,} clusters: give each value "
            "the name of its cluster."
        )
    return numbers, np.unique(np.asarray(clusters), return_inverse=True)[1]


def _independent(
    numbers: Float[np.ndarray, " item"], members: Int[np.ndarray, " item"] | None
) -> int:
    """How many items, or clusters where there are some."""
    return len(numbers) if members is None else int(members.max()) + 1


def _affordable(resamples: int, items: int) -> int:
    """Fewer resamples of very many items: a median takes 8 ms of 500,000."""
    return min(resamples, max(200, _MEDIAN_DRAWS // items))


def _only_hits(numbers: Float[np.ndarray, " item"]) -> bool:
    return bool(np.isin(numbers, (0.0, 1.0)).all())


def _tails() -> tuple[float, float]:
    return (1.0 - CONFIDENCE) / 2, (1.0 + CONFIDENCE) / 2
