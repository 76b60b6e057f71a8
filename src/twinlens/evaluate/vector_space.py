"""How vectors lie in their space: gap, cone, hubs, evenness.

Unit vectors come in as rows and are gone through in blocks, so that 100,000 of them need no
100,000 x 100,000 matrix. Knows no models and no pictures: geometry.py measures one with these.

Sources: modality gap, Liang et al. 2022, arXiv:2203.02053, section 4; hubs, Radovanovic,
Nanopoulos and Ivanovic 2010, JMLR 11, section 2; alignment and uniformity, Wang and Isola 2020,
arXiv:2005.10242, section 4; effective rank, Roy and Vetterli 2007 (EUSIPCO).
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from twinlens.errors import ConfigError

NEIGHBOURS = 10  # k of the k-occurrence
BLOCK_SCORES = 8_000_000  # similarities at once: 32 MB
UNIFORMITY_TIME = 2.0  # t of Wang and Isola's Gaussian potential

Vectors = Float[np.ndarray, "item dim"]
Images = Float[np.ndarray, "image dim"]
Texts = Float[np.ndarray, "text dim"]
Counts = Int[np.ndarray, " item"]


def modality_gap(images: Images, texts: Texts) -> float:
    """Distance between the mean picture and the mean text, from 0 to 2.

    Source: Liang et al. 2022, section 4.2.
    """
    return float(np.linalg.norm(_mean(images) - _mean(texts)))


def gap_pulls(
    images: Images, texts: Texts
) -> tuple[Float[np.ndarray, " image"], Float[np.ndarray, " text"]]:
    """Each vector's part along the gap: the means of the two arrays differ by modality_gap."""
    gap = _mean(images) - _mean(texts)
    length = float(np.linalg.norm(gap))
    direction = gap / length if length > 0 else gap
    return images @ direction, texts @ direction


def mean_cosine(vectors: Vectors) -> float:
    """Mean cosine of all pairs of different rows: 0 for a ball, towards 1 for a narrow cone.

    Exact, from the sum of the rows: its squared length is the sum over all pairs.

    Raises ConfigError for fewer than two rows.
    """
    count = _at_least_two(vectors)
    total = vectors.sum(axis=0, dtype=np.float64)
    return float((total @ total - _squares(vectors).sum()) / (count * (count - 1)))


def cosines_to_others(vectors: Vectors) -> Float[np.ndarray, " item"]:
    """Each row's mean cosine to all the others; their mean is mean_cosine."""
    count = _at_least_two(vectors)
    total = vectors.sum(axis=0, dtype=np.float64)
    others: Float[np.ndarray, " item"] = vectors @ total - _squares(vectors)
    return others / (count - 1)


def participation_ratio(vectors: Vectors) -> float:
    """How many directions the variance is spread over: from 1 to dim.

    (sum of the covariance's eigenvalues) squared over the sum of their squares, which needs
    no eigenvalues: trace(C)^2 / trace(C^2). 0 where all rows are equal.
    """
    covariance = _covariance(vectors)
    squares = float((covariance**2).sum())
    return float(np.trace(covariance) ** 2 / squares) if squares > 0 else 0.0


def effective_rank(vectors: Vectors) -> float:
    """exp of the entropy of the centred rows' normalised singular values: from 1 to dim.

    Source: Roy and Vetterli 2007, definition 1. 0 where all rows are equal.
    """
    variances = np.clip(np.linalg.eigvalsh(_covariance(vectors)), 0, None)
    lengths = np.sqrt(variances)
    # Of a covariance's eigenvalues the last bits are noise, and their roots are not small.
    lengths[variances <= variances.max() * len(variances) * np.finfo(np.float64).eps] = 0
    if not lengths.any():
        return 0.0
    shares = lengths[lengths > 0] / lengths.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def k_occurrence(
    queries: Float[np.ndarray, "query dim"],
    items: Vectors,
    k: int = NEIGHBOURS,
    *,
    same: bool = False,
) -> Counts:
    """How often each item is among the `k` nearest ones of a query; `same`: none of itself.

    N_k of Radovanovic et al. 2010, section 2. Its mean is k * queries / items. Rows whose
    scores tie at the k-th place count as numpy's partition puts them.

    Raises ConfigError where there are not more than `k` items.
    """
    if len(items) <= k:
        raise ConfigError(f"{len(items)} items have no {k} neighbours: give more, or a smaller k.")
    if same and len(queries) != len(items):
        raise ConfigError(f"{len(queries)} queries and {len(items)} items are not the same rows.")
    counts = np.zeros(len(items), dtype=np.int64)
    for start, scores in score_blocks(queries, items):
        if same:
            rows = np.arange(len(scores))
            scores[rows, start + rows] = -np.inf
        nearest = np.argpartition(scores, -k, axis=1)[:, -k:]
        counts += np.bincount(nearest.ravel(), minlength=len(items))
    return counts


def skewness(values: Float[np.ndarray, " item"] | Counts) -> float:
    """The third standardised moment, 0 for symmetric values; as scipy.stats.skew has it.

    Of k-occurrences: above 1 a few items are neighbours of very many (Radovanovic et al. call
    it hubness). 0 where all values are equal.
    """
    deviations = np.asarray(values, dtype=np.float64) - np.mean(values)
    spread = float((deviations**2).mean())
    return float((deviations**3).mean() / spread**1.5) if spread > 0 else 0.0


def alignment(images: Vectors, texts: Vectors) -> Float[np.ndarray, " item"]:
    """Squared distance of each pair (row i with row i); lower is better, 0 to 4.

    Source: Wang and Isola 2020, section 4.1.1, their alpha = 2.
    """
    cosines: Float[np.ndarray, " item"] = (images * texts).sum(axis=1, dtype=np.float64)
    return 2.0 - 2.0 * cosines


def uniformity(vectors: Vectors) -> float:
    """ln of the mean of exp(-2 d^2) over pairs of different rows; lower is more even.

    From -4 at best on a large sphere (pairs at right angles) to 0 for equal rows.
    Source: Wang and Isola 2020, section 4.1.2, t = 2.
    """
    return float(np.log(potentials(vectors).mean()))


def potentials(vectors: Vectors) -> Float[np.ndarray, " item"]:
    """Each row's mean of exp(-2 d^2) to all the others."""
    count = _at_least_two(vectors)
    sums = []
    for start, scores in score_blocks(vectors, vectors):
        potential = np.exp(-UNIFORMITY_TIME * (2.0 - 2.0 * scores))
        rows = np.arange(len(scores))
        potential[rows, start + rows] = 0.0
        sums.append(potential.sum(axis=1, dtype=np.float64))
    return np.concatenate(sums) / (count - 1)


def score_blocks(
    queries: Float[np.ndarray, "query dim"], items: Vectors
) -> Iterator[tuple[int, Float[np.ndarray, "part item"]]]:
    """First row and cosines of one block of queries after the other; the block may be changed."""
    at_once = max(1, BLOCK_SCORES // len(items))
    for start in range(0, len(queries), at_once):
        yield start, queries[start : start + at_once] @ items.T


def _mean(vectors: Vectors) -> Float[np.ndarray, " dim"]:
    mean: Float[np.ndarray, " dim"] = vectors.mean(axis=0, dtype=np.float64)
    return mean


def _squares(vectors: Vectors) -> Float[np.ndarray, " item"]:
    """Squared lengths: 1, but for float32's last bits."""
    squares: Float[np.ndarray, " item"] = np.einsum("id,id->i", vectors, vectors, dtype=np.float64)
    return squares


def _covariance(vectors: Vectors) -> Float[np.ndarray, "dim dim"]:
    _at_least_two(vectors)
    centred = vectors.astype(np.float64) - _mean(vectors)
    products: Float[np.ndarray, "dim dim"] = centred.T @ centred
    return products / len(vectors)


def _at_least_two(vectors: Vectors) -> int:
    if len(vectors) < 2:
        raise ConfigError(f"{len(vectors)} vectors have no pairs: geometry needs at least two.")
    return len(vectors)
