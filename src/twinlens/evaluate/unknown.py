"""An "I don't know" for zero-shot answers, with a stated share of wrongly accepted pictures.

A picture is accepted where its score reaches a threshold; otherwise the answer is "unknown".
Scores: the best cosine, the best probability (Hendrycks and Gimpel 2017, arXiv:1610.02136),
the margin between the two best cosines. The threshold is set on pictures of none of the
classes as in split conformal prediction (Vovk et al. 2005; Angelopoulos and Bates 2021,
arXiv:2107.07511, section 1): above the k-th highest of n scores, k = floor(rate * (n + 1)),
a further such picture comes with probability at most k / (n + 1), whatever the scores are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from twinlens.embed import EmbedderLike
from twinlens.errors import ConfigError
from twinlens.evaluate.calibration import logit_scale_of, softmax
from twinlens.evaluate.extra import need
from twinlens.evaluate.result import Figure, PerItem, Result
from twinlens.evaluate.sets import LabelledSet
from twinlens.evaluate.splits import Vectors
from twinlens.evaluate.statistics import bootstrap_interval, figure_of
from twinlens.evaluate.tasks import new_result, templates_for
from twinlens.evaluate.usable import with_vectors
from twinlens.evaluate.vectors import Progress, VectorCache
from twinlens.evaluate.zero_shot import class_vectors

if TYPE_CHECKING:
    from twinlens.evaluate.page import Page

Values = Float[np.ndarray, " image"]
Strange = Float[np.ndarray, " strange"]

SCORES = ("cosine", "probability", "margin")
HELD_OUT_SHARE = 0.3
PLOTTED = 2000  # scores kept for the page's histogram


@dataclass(frozen=True)
class Threshold:
    """Accept what scores above `value`.

    Of further pictures of no class at most `expected_rate` are accepted on average over the
    draws of the `calibrated_on` pictures; for 95 % of those draws at most `rate_95`.
    """

    value: float
    expected_rate: float
    rate_95: float
    calibrated_on: int


def accept_threshold(unknown: Values, rate: float) -> Threshold:
    """The lowest threshold that accepts at most `rate` of pictures like the `unknown` ones.

    The true rate given the n unknowns follows Beta(k, n + 1 - k) for continuous scores
    (Vovk 2012, arXiv:1209.2673, section 2), which gives `rate_95`.
    Raises ConfigError for a rate outside 0 to 1, or too few unknowns to promise it.
    """
    if not 0 < rate < 1:
        raise ConfigError(f"a false-accept rate of {rate:g}: must be between 0 and 1.")
    count = len(unknown)
    # 0.07 * 100 is 7.000000000000001, 0.29 * 100 is 28.999999999999996.
    allowed = int(np.floor(rate * (count + 1) + 1e-9))
    if allowed < 1:
        raise ConfigError(
            f"a false-accept rate of {rate:g} cannot be promised from {count} unknown pictures: "
            f"give at least {int(np.ceil(1 / rate - 1e-9)) - 1} for setting the threshold."
        )
    value = float(np.sort(unknown)[count - allowed])
    upper = float(need("scipy.stats").beta.ppf(0.95, allowed, count + 1 - allowed))
    return Threshold(value, allowed / (count + 1), upper, count)


def auroc(known: Values, unknown: Strange) -> float:
    """How often a known picture scores above an unknown one; a tie counts by half."""
    ordered = np.sort(unknown)
    below = np.searchsorted(ordered, known, side="left")
    not_above = np.searchsorted(ordered, known, side="right")
    return float((below + not_above).mean() / (2 * len(ordered)))


def false_positive_rate(known: Values, unknown: Strange, *, at_recall: float = 0.95) -> float:
    """The share of unknown pictures accepted where `at_recall` of the known ones are."""
    needed = int(np.ceil(at_recall * len(known) - 1e-9))
    return float((unknown >= np.sort(known)[len(known) - needed]).mean())


def answer_scores(
    cosines: Float[np.ndarray, "image class"], logit_scale: float
) -> dict[str, Values]:
    """Each of SCORES for each picture. Raises ConfigError for fewer than two classes."""
    if cosines.shape[1] < 2:
        raise ConfigError("a margin needs at least two classes.")
    best = np.partition(cosines.astype(np.float64), -2, axis=1)[:, -2:]
    return {
        "cosine": best[:, 1],
        "probability": softmax(logit_scale * cosines.astype(np.float64)).max(axis=1),
        "margin": best[:, 1] - best[:, 0],
    }


def held_out_classes(
    data: LabelledSet, *, share: float = HELD_OUT_SHARE, seed: int = 0
) -> tuple[LabelledSet, LabelledSet]:
    """The set with fewer classes, and the pictures of the others, which are then unknown.

    Raises ConfigError where fewer than two classes would stay.
    """
    classes = len(data.class_names)
    out = max(1, round(classes * share))
    if classes - out < 2:
        raise ConfigError(
            f"{data.name} has {classes} classes: with {out} held out as unknown, fewer than two "
            f"would stay. Give another data set as the unknown one."
        )
    unknown = np.random.default_rng(seed).permutation(classes)[:out]
    is_unknown = np.isin(data.labels, unknown)
    kept = np.setdiff1d(np.arange(classes), unknown)
    new_label = np.full(classes, -1)
    new_label[kept] = np.arange(len(kept))
    rest = data.rows(np.flatnonzero(~is_unknown))
    known = LabelledSet(
        name=f"{data.name} without {out} classes",
        images=rest.images,
        labels=new_label[rest.labels],
        class_names=tuple(data.class_names[row] for row in kept),
        ids=rest.ids,
        templates=data.templates,
        skipped=data.skipped,
        template_key=data.template_key,
    )
    return known, data.rows(np.flatnonzero(is_unknown))


def unknown(
    embedder: EmbedderLike,
    data: LabelledSet,
    other: LabelledSet | None = None,
    *,
    rate: float = 0.05,
    templates: Sequence[str] | None = None,
    vectors: Vectors | None = None,
    other_vectors: Vectors | None = None,
    cache: VectorCache | None = None,
    progress: Progress | None = None,
    seed: int = 0,
) -> Result:
    """How much a model still answers when it must refuse all but `rate` of strange pictures.

    Strange are the pictures of `other`, whose labels do not matter, or those of HELD_OUT_SHARE
    of the set's own classes. Half of them set the threshold, the other half judge it. The
    figures of each of SCORES: coverage (share of known pictures that are answered), accuracy
    of what is answered, measured false accepts, AUROC, false positives at 95 % recall.
    """
    data, vectors = with_vectors(embedder, data, vectors, cache=cache, progress=progress)
    if other is None:
        known_set, other = held_out_classes(data, seed=seed)
        row_of = {identity: row for row, identity in enumerate(data.ids)}
        vectors, other_vectors = (
            vectors[[row_of[identity] for identity in one.ids]] for one in (known_set, other)
        )
        data = known_set
    other, other_vectors = with_vectors(
        embedder, other, other_vectors, cache=cache, progress=progress
    )
    templates = templates_for(data, templates)
    classes = class_vectors(embedder, data.class_names, templates, cache=cache)
    scale = logit_scale_of(embedder)
    right = ((vectors @ classes.T).argmax(axis=1) == data.labels).astype(np.float64)
    known_scores = answer_scores(vectors @ classes.T, scale)
    strange_scores = answer_scores(other_vectors @ classes.T, scale)
    order = np.random.default_rng(seed).permutation(len(other))
    setting, judging = np.sort(order[::2]), np.sort(order[1::2])
    if not len(judging):
        raise ConfigError(f"{other.name} has one picture only; half of them must set a threshold.")
    result = new_result("unknown", embedder, data)
    result.data["unknown"] = other.describe()
    result.settings = {"rate": rate, "templates": list(templates), "seed": seed}
    result.figures["accuracy@1 of all"] = figure_of(right)
    for name in SCORES:
        strange = strange_scores[name]
        threshold = accept_threshold(strange[setting], rate)
        _report(result, name, threshold, known_scores[name], right, data.ids)
        accepted = (strange[judging] > threshold.value).astype(np.float64)
        label = f"false accepts, {name}"
        result.figures[label] = figure_of(accepted, higher_is_better=False)
        result.per_item[label] = PerItem.of([other.ids[row] for row in judging], accepted)
        _report_ranking(result, name, known_scores[name], strange)
    return result


def unknown_page(page: "Page", result: Result) -> None:
    """Adds a histogram of known and unknown pictures for each score, with its threshold."""
    from twinlens.evaluate import plots

    for name in SCORES:
        entry = result.details[name]
        page.plot(
            f"By {name}",
            plots.histogram(
                {"known": entry["known"], "unknown": entry["unknown"]},
                x_label=name,
                marks={"threshold": entry["threshold"]},
            ),
            entry["promise"],
        )


def _report(
    result: Result,
    name: str,
    threshold: Threshold,
    scores: Values,
    right: Values,
    ids: Sequence[str],
) -> None:
    accepted = scores > threshold.value
    result.figures[f"coverage, {name}"] = figure_of(accepted)
    result.per_item[f"coverage, {name}"] = PerItem.of(ids, accepted)
    label = f"accuracy of what is answered, {name}"
    if accepted.any():
        places = np.flatnonzero(accepted).tolist()
        result.figures[label] = figure_of(right[places])
        result.per_item[label] = PerItem.of([ids[place] for place in places], right[places])
    result.details[name] = {
        "threshold": threshold.value,
        "promise": (
            f"Set on {threshold.calibrated_on:,} unknown pictures: of further ones like them at "
            f"most {threshold.expected_rate:.1%} are accepted on average over such sets, and at "
            f"most {threshold.rate_95:.1%} for 95 of 100 such sets."
        ),
        "expected_rate": threshold.expected_rate,
        "rate_95": threshold.rate_95,
        "calibrated_on": threshold.calibrated_on,
        "known": _some(scores),
    }


def _report_ranking(result: Result, name: str, known: Values, strange: Strange) -> None:
    both = np.concatenate([known, strange])
    is_known = np.arange(len(both)) < len(known)

    def of_rows(rows: Int[np.ndarray, " row"]) -> float:
        marks = is_known[rows]
        if marks.all() or not marks.any():
            return 0.5
        return auroc(both[rows[marks]], both[rows[~marks]])

    low, high = bootstrap_interval(both, of_rows)
    result.figures[f"AUROC, {name}"] = Figure(auroc(known, strange), low, high)
    result.figures[f"false accepts at 95 % coverage, {name}"] = Figure(
        false_positive_rate(known, strange), higher_is_better=False
    )
    result.details[name]["unknown"] = _some(strange)


def _some(values: Values) -> list[float]:
    return [round(float(value), 4) for value in values[:: -(-len(values) // PLOTTED)]]
