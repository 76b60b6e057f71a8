"""Zero-shot classification: the class whose name, put into sentences, is nearest to a picture.

Source: Radford et al. 2021, arXiv:2103.00020, sections 3.1.2 to 3.1.4. The figures are those of
CLIP_benchmark (clip_benchmark/metrics/zeroshot_classification.py, commit b4b6a33): accuracy@1
and @5 are its acc1 and acc5, "mean per-class accuracy" is its mean_per_class_recall, which is
scikit-learn's balanced_accuracy_score. One thing differs: where two classes score the same,
torch's topk takes either and here the wrong one comes first, so that a model which gives one
score for all gets nothing right. No accuracy@5 where five guesses are all there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Float32, Int, Integer

from twinlens.embed import EmbedderLike
from twinlens.errors import ConfigError
from twinlens.evaluate.result import Figure, PerItem, Result
from twinlens.evaluate.sets import LabelledSet
from twinlens.evaluate.statistics import RESAMPLES, figure_of, mean_per_class
from twinlens.evaluate.templates import choose_templates, fill
from twinlens.evaluate.vectors import Progress, VectorCache, cached_texts

if TYPE_CHECKING:
    from twinlens.evaluate.page import Page

BLOCK_NUMBERS = 4_000_000  # scores of a block of pictures with all classes: 16 MB
PAIRS_KEPT = 50  # of classes taken for each other
EXAMPLES_KEPT = 8  # pictures of each such pair
PAIRS_SHOWN = 12
CLASSES_SHOWN = 20
MOST_IN_A_PLOT = 40  # classes; beyond, a matrix is grey dust

ClassNames = Sequence[str] | Sequence[Sequence[str]]


@dataclass(frozen=True, eq=False)
class Answers:
    """What each picture was taken for.

    `place` is its own class's among all, from 1; a tie counts against it. `given` is the
    class that came first; never its own one where `place` is not 1.
    """

    place: Int[np.ndarray, " image"]
    given: Int[np.ndarray, " image"]
    labels: Int[np.ndarray, " image"]
    classes: int


def class_vectors(
    embedder: EmbedderLike,
    class_names: ClassNames,
    templates: Sequence[str],
    *,
    cache: VectorCache | None = None,
) -> Float32[np.ndarray, "class dim"]:
    """A unit vector for each class: the mean over templates and synonyms of unit vectors.

    A class is one name or a sequence of synonyms; `templates` have {} for the name. Each text
    is embedded once. Raises ConfigError for no templates and for a class without a name.
    """
    if not templates:
        raise ConfigError("There are no templates: give at least one, 'a photo of a {}.'")
    synonyms = [(names,) if isinstance(names, str) else tuple(names) for names in class_names]
    if not synonyms or not all(synonyms):
        raise ConfigError("There must be at least one class, and a name for each.")
    sentences = [
        fill(template, name) for names in synonyms for name in names for template in templates
    ]
    vectors = cached_texts(embedder, sentences, cache=cache)
    counts = np.array([len(names) * len(templates) for names in synonyms])
    sums = np.add.reduceat(vectors, np.cumsum(counts) - counts, axis=0)
    # The least float: opposite vectors that cancel out stay zero instead of becoming NaN.
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    means: Float32[np.ndarray, "class dim"] = sums / np.maximum(lengths, np.finfo(np.float32).tiny)
    return means


def answers(
    images: Float[np.ndarray, "image dim"],
    classes: Float[np.ndarray, "class dim"],
    labels: Integer[np.ndarray, " label"],
) -> Answers:
    """From vectors, in blocks of pictures. Raises ConfigError for counts that do not fit."""
    labels = np.asarray(labels, dtype=np.int64)
    if len(images) != len(labels):
        raise ConfigError(f"There are {len(images):,} pictures but {len(labels):,} labels.")
    if len(labels) and (labels.min() < 0 or labels.max() >= len(classes)):
        raise ConfigError(f"A label is no row of the {len(classes):,} classes.")
    place, given = (np.empty(len(images), dtype=np.int64) for _ in range(2))
    rows_a_block = max(1, BLOCK_NUMBERS // len(classes))
    for start in range(0, len(images), rows_a_block):
        block = slice(start, start + rows_a_block)
        scores = images[block] @ classes.T
        every = np.arange(len(scores))
        own = scores[every, labels[block], None]
        place[block] = (scores >= own).sum(axis=1)
        scores[every, labels[block]] = -np.inf
        given[block] = np.where(place[block] == 1, labels[block], scores.argmax(axis=1))
    return Answers(place, given, labels, len(classes))


def accuracy_at(answered: Answers, k: int) -> float:
    """The share of pictures whose class is among the first `k`."""
    return float((answered.place <= k).mean())


def mean_per_class_accuracy(answered: Answers) -> float:
    """Each class's accuracy, then the mean of those; a class without pictures does not count."""
    return mean_per_class(answered.place == 1, answered.labels)(np.arange(len(answered.labels)))


def confusion_counts(answered: Answers) -> Int[np.ndarray, "pair 3"]:
    """Rows of class, given class, pictures; only those that occur, by class and given class."""
    codes, counts = np.unique(
        answered.labels * answered.classes + answered.given, return_counts=True
    )
    return np.stack([codes // answered.classes, codes % answered.classes, counts], axis=1)


def zero_shot(
    embedder: EmbedderLike,
    data: LabelledSet,
    templates: str | Sequence[str] | None = None,
    *,
    vectors: Float32[np.ndarray, "image dim"] | None = None,
    cache: VectorCache | None = None,
    progress: Progress | None = None,
) -> Result:
    """Classifies the set's pictures by its class names.

    `templates` is what choose_templates() takes, or the templates themselves. `vectors` are
    those of the set's pictures where they are known already, row by row.

    Raises ConfigError where no picture can be read, and what choose_templates() raises.
    """
    # Not above: what usable.py needs takes class_vectors() from here.
    from twinlens.evaluate.usable import with_vectors

    if templates is None or isinstance(templates, str):
        templates_name, templates = choose_templates(data, templates)
    else:
        templates_name = "given"
    data, vectors = with_vectors(embedder, data, vectors, cache=cache, progress=progress)
    classes = class_vectors(embedder, data.class_names, templates, cache=cache)
    answered = answers(vectors, classes, data.labels)
    result = Result(
        task="zero-shot",
        model={"name": embedder.name, "model_id": embedder.model_id, "dim": embedder.dim},
        data=data.describe(),
        settings={"templates": templates_name, "sentences a name": len(templates)},
    )
    for k in (1, 5):
        if k < len(data.class_names):
            values = (answered.place <= k).astype(float).tolist()
            result.figures[f"accuracy@{k}"] = figure_of(values)
            result.per_item[f"accuracy@{k}"] = PerItem(list(data.ids), values)
    result.figures["mean per-class accuracy"] = Figure(
        mean_per_class_accuracy(answered), *_per_class_interval(answered)
    )
    result.details = {"templates": list(templates), **_details(data, answered)}
    return result


def zero_shot_page(page: "Page", result: Result, data: LabelledSet) -> None:
    """Adds the worst classes and pictures of those most often taken for each other.

    `data` is the set that was measured; pictures that could not be read may still be in it.
    """
    _add_matrix(page, result)
    worst = sorted(result.details["per_class"], key=lambda row: (row["accuracy"], -row["images"]))
    page.table(
        ["class", "pictures", "right", "mostly taken for"],
        [
            [row["class"], row["images"], f"{row['accuracy']:.0%}", row["mostly taken for"]]
            for row in worst[:CLASSES_SHOWN]
        ],
        title="Classes, the worst first",
    )
    _add_pairs(page, result, data)


def _per_class_interval(answered: Answers) -> tuple[float, float]:
    """The 95 % percentile interval from resamples within each class.

    Resamples of all pictures would lose rare classes, and the mean would be of the others.
    So many hits among a class's n pictures drawn with replacement are binomial.
    """
    images = np.bincount(answered.labels, minlength=answered.classes)
    right = np.bincount(answered.labels[answered.place == 1], minlength=answered.classes)
    right, images = right[images > 0], images[images > 0]
    drawn = np.random.default_rng(0).binomial(images, right / images, (RESAMPLES, len(images)))
    low, high = np.quantile((drawn / images).mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def _details(data: LabelledSet, answered: Answers) -> dict[str, Any]:
    names = data.main_names
    counts = confusion_counts(answered)
    images = np.bincount(answered.labels, minlength=answered.classes)
    right = np.zeros(answered.classes, dtype=np.int64)
    right[counts[counts[:, 0] == counts[:, 1], 0]] = counts[counts[:, 0] == counts[:, 1], 2]
    wrong = counts[counts[:, 0] != counts[:, 1]]
    wrong = wrong[np.argsort(-wrong[:, 2], kind="stable")]
    most: dict[int, str] = {}
    for own, given, _ in wrong.tolist():
        most.setdefault(own, names[given])
    return {
        "classes": list(names),
        "confusion": counts.tolist(),  # class, given class, pictures
        "per_class": [
            {
                "class": names[row],
                "images": int(images[row]),
                "accuracy": float(right[row] / images[row]),
                "mostly taken for": most.get(row, ""),
            }
            for row in np.flatnonzero(images).tolist()
        ],
        "confused_pairs": [
            {
                "class": names[own],
                "given": names[given],
                "images": count,
                "share": count / int(images[own]),
                "examples": _examples(data, answered, own, given),
            }
            for own, given, count in wrong[:PAIRS_KEPT].tolist()
        ],
        "empty_classes": list(data.empty_classes),
    }


def _examples(data: LabelledSet, answered: Answers, own: int, given: int) -> list[str]:
    """Ids of pictures of one class taken for another, those furthest down first."""
    rows = np.flatnonzero((answered.labels == own) & (answered.given == given))
    rows = rows[np.argsort(-answered.place[rows], kind="stable")]
    return [data.ids[row] for row in rows[:EXAMPLES_KEPT].tolist()]


def _add_matrix(page: "Page", result: Result) -> None:
    from twinlens.evaluate import plots

    names = result.details["classes"]
    if len(names) > MOST_IN_A_PLOT:
        return
    matrix = np.zeros((len(names), len(names)))
    for own, given, count in result.details["confusion"]:
        matrix[own, given] = count
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    drawing = plots.heatmap(shares, names, names, x_label="taken for", y_label="class", most=1.0)
    page.plot(
        "What each class was taken for", drawing, "Shares of each row; the diagonal is right."
    )


def _add_pairs(page: "Page", result: Result, data: LabelledSet) -> None:
    from twinlens.evaluate.page import Shown

    pairs = result.details["confused_pairs"][:PAIRS_SHOWN]
    if not pairs:
        page.text("Every picture was given its own class.")
        return
    rows = {identity: row for row, identity in enumerate(data.ids)}
    page.heading("Most often taken for another class", "The pictures that were furthest off.")
    for pair in pairs:
        shown = [
            Shown(data.images[rows[identity]], note=identity, mark="bad")
            for identity in pair["examples"]
            if identity in rows
        ]
        page.pictures(
            f"{pair['class']}, taken for {pair['given']}",
            shown,
            f"{pair['images']:,} of its pictures, {pair['share']:.0%}",
        )
