"""What the image vectors alone can tell apart: a linear probe and nearest neighbours.

Linear probe: Radford et al. 2021, arXiv:2103.00020, appendix A.3: L-BFGS logistic regression
of at most 1,000 iterations; the strength of L2 by their parametric binary search on val,
then fitted again to train and val together. Their grid of 96 steps from 1e-6 to 1e6 is
scikit-learn's C here, its inverse, which is the same grid.

k-NN: votes weighted by exp(cosine / 0.07), Wu et al. 2018, arXiv:1805.01978, section 3.4,
as in DINO (Caron et al. 2021, arXiv:2104.14294); k is chosen on val.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from twinlens.embed import EmbedderLike
from twinlens.errors import ConfigError
from twinlens.evaluate.extra import need
from twinlens.evaluate.result import Figure, Result
from twinlens.evaluate.sets import LabelledSet
from twinlens.evaluate.splits import Rows, Split, Vectors, stratified_split
from twinlens.evaluate.statistics import bootstrap_interval, mean_per_class
from twinlens.evaluate.tasks import new_result, note
from twinlens.evaluate.usable import with_vectors
from twinlens.evaluate.vectors import Progress, VectorCache

Labels = Int[np.ndarray, " image"]
Scores = Float[np.ndarray, "image class"]

MAX_ITERATIONS = 1000
STEPS_A_DECADE = 8
LEAST_EXPONENT, DECADES = -6, 12
COARSE_STEPS = 2 * STEPS_A_DECADE  # 1e-6, 1e-4, ..., 1e6

NEIGHBOURS = (1, 5, 10, 20, 50, 100, 200)
KNN_TEMPERATURE = 0.07
_BLOCK_NUMBERS = 4_000_000  # cosines of a block of pictures with all of train: 16 MB


@dataclass(frozen=True, eq=False)
class Parts:
    """Vectors and labels of the three parts. `test_set` says what was measured."""

    train: Vectors
    train_labels: Rows
    val: Vectors
    val_labels: Rows
    test: Vectors
    test_labels: Rows
    test_set: LabelledSet

    @property
    def classes(self) -> int:
        return len(self.test_set.class_names)


def parts_of(
    embedder: EmbedderLike,
    data: LabelledSet,
    *,
    test: LabelledSet | None = None,
    split: Split | None = None,
    vectors: Vectors | None = None,
    test_vectors: Vectors | None = None,
    cache: VectorCache | None = None,
    progress: Progress | None = None,
    seed: int = 0,
) -> Parts:
    """Train, val and test vectors: by `split`, or with val (and test, if not given) split off.

    The shares are a fifth each. `test` must have the classes of `data`, in their order.
    Raises ConfigError for other classes, too few pictures, and unreadable sets. A `split`
    counts the rows of `data` as given; its unreadable pictures drop out.
    """
    all_rows, readable_rows = with_vectors(embedder, data, vectors, cache=cache, progress=progress)
    if split is not None:
        split = _after_skips(split, data, all_rows)
    data = all_rows
    if test is not None and test.main_names != data.main_names:
        raise ConfigError(
            f"{data.name} and {test.name} have different classes ({len(data.class_names)} and "
            f"{len(test.class_names)}): a probe needs the same, in the same order."
        )
    if split is None:
        split = stratified_split(
            data.labels, test_share=0.2 if test is None else 0.0, seed=seed, names=data.main_names
        )
    parts: dict[str, Any] = {}
    for name, rows in (("train", split.train), ("val", split.val)):
        if not len(rows):
            raise ConfigError(f"the part {name} of {data.name} is empty.")
        parts[name] = readable_rows[rows]
        parts[f"{name}_labels"] = data.labels[rows]
    if test is None:
        test_set = data.rows(split.test)
        return Parts(
            **parts, test=readable_rows[split.test], test_labels=test_set.labels, test_set=test_set
        )
    test_set, measured = with_vectors(embedder, test, test_vectors, cache=cache, progress=progress)
    return Parts(**parts, test=measured, test_labels=test_set.labels, test_set=test_set)


def linear_probe(embedder: EmbedderLike, data: LabelledSet, **how: Any) -> Result:
    """Accuracy of a logistic regression on frozen vectors. `how` is what parts_of() takes."""
    parts = parts_of(embedder, data, **how)
    tried = sweep(
        lambda step: accuracy(
            logistic_scores(parts.train, parts.train_labels, parts.val, parts.classes, c_of(step)),
            parts.val_labels,
        )
    )
    best = best_step(tried)
    fitted = np.concatenate([parts.train, parts.val])
    labels = np.concatenate([parts.train_labels, parts.val_labels])
    scores = logistic_scores(fitted, labels, parts.test, parts.classes, c_of(best))
    result = _result("probe", embedder, data, parts, scores)
    result.settings |= {"C": c_of(best), "max_iter": MAX_ITERATIONS}
    result.details["val accuracy by C"] = [[c_of(step), tried[step]] for step in sorted(tried)]
    return result


def nearest_neighbours(
    embedder: EmbedderLike, data: LabelledSet, *, ks: Sequence[int] = NEIGHBOURS, **how: Any
) -> Result:
    """Accuracy of the vote of the k nearest pictures of train; `how` is what parts_of() takes."""
    parts = parts_of(embedder, data, **how)
    ks = sorted({min(k, len(parts.train)) for k in ks})
    tried = {
        k: accuracy(
            knn_scores(parts.train, parts.train_labels, parts.val, parts.classes, k),
            parts.val_labels,
        )
        for k in ks
    }
    best = max(ks, key=lambda k: (tried[k], -k))
    scores = knn_scores(parts.train, parts.train_labels, parts.test, parts.classes, best)
    result = _result("knn", embedder, data, parts, scores)
    result.settings |= {"k": best, "temperature": KNN_TEMPERATURE}
    result.details["val accuracy by k"] = [[k, tried[k]] for k in ks]
    return result


def c_of(step: int) -> float:
    """scikit-learn's C at a step of the grid, 0 to 96: 1e-6 to 1e6, eight steps a decade."""
    return float(10.0 ** (LEAST_EXPONENT + step / STEPS_A_DECADE))


def sweep(score: Callable[[int], float]) -> dict[int, float]:
    """Scores of the steps that a parametric binary search tries.

    Begins with every second power of ten, then halves the distance to the best step's
    neighbours until it is one step: 7 + 2 * 4 steps, fewer at an end of the grid.
    """
    last = DECADES * STEPS_A_DECADE
    tried = {step: score(step) for step in range(0, last + 1, COARSE_STEPS)}
    distance = COARSE_STEPS // 2
    while distance >= 1:
        middle = best_step(tried)
        for step in (middle - distance, middle + distance):
            if 0 <= step <= last and step not in tried:
                tried[step] = score(step)
        distance //= 2
    return tried


def best_step(tried: dict[int, float]) -> int:
    """The best score's step; of equals the most regularised."""
    return min(tried, key=lambda step: (-tried[step], step))


def logistic_scores(
    train: Float[np.ndarray, "item dim"],
    labels: Int[np.ndarray, " item"],
    measured: Float[np.ndarray, "image dim"],
    classes: int,
    c: float,
) -> Scores:
    """Log odds of each class for the `measured` pictures; -inf for a class that train lacks."""
    model = need("sklearn.linear_model", purpose="a linear probe").LogisticRegression(
        C=c, max_iter=MAX_ITERATIONS
    )
    with warnings.catch_warnings():
        # The iterations are limited on purpose, as in the paper.
        warnings.simplefilter("ignore", need("sklearn.exceptions").ConvergenceWarning)
        model.fit(train, labels)
    found = model.decision_function(measured)
    if found.ndim == 1:  # two classes
        found = np.stack([-found, found], axis=1)
    scores = np.full((len(measured), classes), -np.inf)
    scores[:, model.classes_] = found
    return scores


def knn_scores(
    train: Float[np.ndarray, "item dim"],
    labels: Int[np.ndarray, " item"],
    measured: Float[np.ndarray, "image dim"],
    classes: int,
    k: int,
) -> Scores:
    """The sum of exp(cosine / 0.07) over each class's pictures among the `k` nearest.

    Up to one factor per picture, which keeps the exponential in range and changes no order.
    Raises ConfigError where k is not between 1 and the number of train's pictures.
    """
    if not 1 <= k <= len(train):
        raise ConfigError(f"k = {k}: must be 1 to {len(train):,}, the number of train's pictures.")
    votes = np.zeros((len(measured), classes))
    at_once = max(1, _BLOCK_NUMBERS // len(train))
    for start in range(0, len(measured), at_once):
        cosines = measured[start : start + at_once] @ train.T
        nearest = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
        near = np.take_along_axis(cosines, nearest, axis=1).astype(np.float64)
        weight = np.exp((near - near.max(axis=1, keepdims=True)) / KNN_TEMPERATURE)
        rows = np.arange(start, start + len(cosines))[:, None]
        np.add.at(votes, (np.broadcast_to(rows, nearest.shape), labels[nearest]), weight)
    return votes


def hits_at(scores: Scores, labels: Labels, k: int) -> Float[np.ndarray, " image"]:
    """1 for each picture whose class is among the k best, else 0. A tie counts against it."""
    own = scores[np.arange(len(labels)), labels][:, None]
    better = (scores >= own).sum(axis=1) - 1
    hits: Float[np.ndarray, " image"] = ((better < k) & np.isfinite(own[:, 0])).astype(np.float64)
    return hits


def accuracy(scores: Scores, labels: Labels) -> float:
    """The share of pictures whose own class scores highest."""
    return float(hits_at(scores, labels, 1).mean())


def note_accuracy(result: Result, scores: Scores, data: LabelledSet, prefix: str = "") -> None:
    """accuracy@1, accuracy@5 where there are more classes, and the mean per class."""
    for k in (1, 5):
        if k < scores.shape[1]:
            note(result, f"{prefix}accuracy@{k}", hits_at(scores, data.labels, k), data.ids)
    statistic = mean_per_class(hits_at(scores, data.labels, 1), data.labels)
    low, high = bootstrap_interval(data.labels, statistic)
    known = not np.isnan(low)
    result.figures[f"{prefix}mean per-class accuracy"] = Figure(
        statistic(np.arange(len(data.labels))), low if known else None, high if known else None
    )


def _result(
    task: str, embedder: EmbedderLike, data: LabelledSet, parts: Parts, scores: Scores
) -> Result:
    result = new_result(task, embedder, parts.test_set)
    result.settings = {
        "train": len(parts.train),
        "val": len(parts.val),
        "test": len(parts.test),
        "trained on": data.name,
    }
    note_accuracy(result, scores, parts.test_set)
    return result


def _after_skips(split: Split, data: LabelledSet, kept: LabelledSet) -> Split:
    """The split's rows in the set without its unreadable pictures."""
    if len(kept) == len(data):
        return split
    gone = {identity for identity, _ in kept.skipped} - {i for i, _ in data.skipped}
    place = np.cumsum([identity not in gone for identity in data.ids]) - 1
    return Split(
        *(
            np.array([place[r] for r in rows if data.ids[r] not in gone], dtype=np.int64)
            for rows in (split.train, split.val, split.test)
        )
    )
