"""Whether a model that is 80 % sure is right 8 times in 10, and which temperature makes it so.

Probabilities are the softmax of cosines times the model's logit scale. The scale came from
training on pairs, not from classes, so that it is nearly always wrong for classification;
one temperature, fitted on half of the pictures and judged on the other half, mends most of it.

Sources: Guo et al. 2017, arXiv:1706.04599 (ECE, section 2; temperature, section 4.2); bins of
equal mass: Nixon et al. 2019, arXiv:1904.01685; Brier 1950, summed over classes, 0 to 2.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, Int

from twinlens.embed import EmbedderLike
from twinlens.errors import ConfigError
from twinlens.evaluate.result import Figure, PerItem, Result
from twinlens.evaluate.sets import LabelledSet
from twinlens.evaluate.splits import Vectors, stratified_split
from twinlens.evaluate.statistics import bootstrap_interval, figure_of
from twinlens.evaluate.tasks import new_result, templates_for
from twinlens.evaluate.usable import with_vectors
from twinlens.evaluate.vectors import Progress, VectorCache
from twinlens.evaluate.zero_shot import class_vectors

if TYPE_CHECKING:
    from twinlens.evaluate.page import Page

Probabilities = Float[np.ndarray, "image class"]
Logits = Float[np.ndarray, "image class"]
Labels = Int[np.ndarray, " image"]
Binning = Literal["width", "mass"]

BINS = 15  # as in Guo et al.
OPENAI_SCALE = 100.0  # of models that do not say theirs
# 1 / temperature is looked for in this range; the loss is convex in it.
_LEAST_SCALE, _MOST_SCALE = 1e-3, 1e4


@dataclass(frozen=True, eq=False)
class Bins:
    """Pictures by confidence. Means of an empty bin are NaN."""

    confidence: Float[np.ndarray, " bin"]  # mean of what the model said
    accuracy: Float[np.ndarray, " bin"]  # share that was right
    counts: Int[np.ndarray, " bin"]

    @property
    def error(self) -> float:
        """ECE: the mean distance of the two, weighted by counts."""
        filled = self.counts > 0
        gaps = np.abs(self.confidence[filled] - self.accuracy[filled])
        return float((gaps * self.counts[filled]).sum() / self.counts.sum())


def reliability_bins(
    confidence: Float[np.ndarray, " image"],
    right: Float[np.ndarray, " image"],
    *,
    bins: int = BINS,
    binning: Binning = "width",
) -> Bins:
    """Pictures in bins of equal width from 0 to 1, or of (nearly) equal numbers.

    A confidence on an edge belongs to the upper bin, as in scikit-learn's calibration_curve.
    Raises ConfigError for no pictures or fewer than one bin.
    """
    if bins < 1 or not len(confidence):
        raise ConfigError(f"{bins} bins of {len(confidence)} pictures: take at least one of each.")
    if binning == "width":
        edges = np.linspace(0.0, 1.0, bins + 1)
        place = np.searchsorted(edges[1:-1], confidence, side="right")
    else:
        place = np.empty(len(confidence), dtype=np.int64)
        order = np.argsort(confidence, kind="stable")
        place[order] = np.arange(len(order)) * bins // len(order)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 of an empty bin
        means = [
            np.bincount(place, weights=values, minlength=bins) / counts
            for values in (confidence, right)
        ]
    return Bins(means[0], means[1], counts)


def expected_calibration_error(
    probabilities: Probabilities, labels: Labels, *, bins: int = BINS, binning: Binning = "width"
) -> float:
    """How far the best class's probability lies from its accuracy, on average; 0 is best."""
    confidence, right = _answers(probabilities, labels)
    return reliability_bins(confidence, right, bins=bins, binning=binning).error


def brier_scores(probabilities: Probabilities, labels: Labels) -> Float[np.ndarray, " image"]:
    """Each picture's squared distance to the truth, summed over classes: 0 best, 2 worst."""
    own = probabilities[np.arange(len(labels)), labels]
    scores: Float[np.ndarray, " image"] = (probabilities**2).sum(axis=1) - 2 * own + 1
    return scores


def log_losses(logits: Logits, labels: Labels) -> Float[np.ndarray, " image"]:
    """Each picture's negative log-likelihood, in nats. From logits: a probability may be 0."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    own = shifted[np.arange(len(labels)), labels]
    losses: Float[np.ndarray, " image"] = np.log(np.exp(shifted).sum(axis=1)) - own
    return losses


def softmax(logits: Logits) -> Probabilities:
    """Probabilities of the classes; each row sums to 1."""
    exponent = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: Probabilities = exponent / exponent.sum(axis=1, keepdims=True)
    return probabilities


def fit_temperature(logits: Logits, labels: Labels) -> float:
    """The temperature by which logits are to be divided for the least log loss.

    The loss is convex in 1 / temperature, so bisection of its slope finds the only minimum;
    kept to the range 1e-4 to 1e3, whose upper end stands for logits that say nothing.
    """
    logits = np.asarray(logits, dtype=np.float64)
    own = logits[np.arange(len(labels)), labels].mean()

    def slope(scale: float) -> float:
        return float((softmax(scale * logits) * logits).sum(axis=1).mean() - own)

    low, high = np.log(_LEAST_SCALE), np.log(_MOST_SCALE)
    for _ in range(60):  # 16 nats wide at first, then 1e-17
        middle = (low + high) / 2
        low, high = (low, middle) if slope(float(np.exp(middle))) > 0 else (middle, high)
    return float(np.exp(-(low + high) / 2))


def logit_scale_of(embedder: EmbedderLike) -> float:
    """What the model multiplies cosines by; OPENAI_SCALE where it does not say."""
    config = getattr(embedder, "config", None)
    return float(getattr(config, "logit_scale", OPENAI_SCALE))


def calibration(
    embedder: EmbedderLike,
    data: LabelledSet,
    templates: tuple[str, ...] | None = None,
    *,
    logit_scale: float | None = None,
    bins: int = BINS,
    vectors: Vectors | None = None,
    cache: VectorCache | None = None,
    progress: Progress | None = None,
    seed: int = 0,
) -> Result:
    """How well zero-shot probabilities mean what they say, before and after a temperature.

    The temperature is fitted on half of each class's pictures; all figures are of the other
    half. `details["temperature"]` divides logits; `details["fitted logit scale"]` is what to
    multiply cosines by instead of the model's own.
    """
    data, vectors = with_vectors(embedder, data, vectors, cache=cache, progress=progress)
    templates = templates_for(data, templates)
    classes = class_vectors(embedder, data.class_names, templates, cache=cache)
    scale = logit_scale_of(embedder) if logit_scale is None else logit_scale
    logits = scale * (vectors.astype(np.float64) @ classes.T.astype(np.float64))
    split = stratified_split(
        data.labels, val_share=0.0, test_share=0.5, seed=seed, names=data.main_names
    )
    temperature = fit_temperature(logits[split.train], data.labels[split.train])
    measured = data.rows(split.test)
    result = new_result("calibration", embedder, measured)
    result.settings = {
        "templates": list(templates),
        "logit_scale": scale,
        "bins": bins,
        "fitted on": len(split.train),
        "seed": seed,
    }
    result.details = {"temperature": temperature, "fitted logit scale": scale / temperature}
    for name, divisor in (("", 1.0), (" after temperature", temperature)):
        _measure(result, logits[split.test] / divisor, measured, bins, name)
    result.figures["temperature"] = Figure(temperature)
    return result


def calibration_page(page: "Page", result: Result) -> None:
    """Adds the reliability diagrams before and after."""
    from twinlens.evaluate import plots

    for name, title in (("", "As the model says"), (" after temperature", "After temperature")):
        bins = result.details["reliability" + name]["width"]
        page.plot(
            title,
            plots.reliability(
                _numbers(bins["confidence"]), _numbers(bins["accuracy"]), bins["counts"]
            ),
            f"ECE {result.figures['ECE' + name]}",
        )


def _measure(result: Result, logits: Logits, data: LabelledSet, bins: int, name: str) -> None:
    probabilities = softmax(logits)
    confidence, right = _answers(probabilities, data.labels)
    details: dict[str, Any] = {}
    names: dict[Binning, str] = {"width": "ECE", "mass": "ECE, bins of equal mass"}
    for binning, figure in names.items():
        binned = reliability_bins(confidence, right, bins=bins, binning=binning)
        low, high = bootstrap_interval(confidence, _error_of_rows(confidence, right, bins, binning))
        known = not np.isnan(low)
        result.figures[figure + name] = Figure(
            binned.error, low if known else None, high if known else None, higher_is_better=False
        )
        details[binning] = {
            "confidence": binned.confidence.tolist(),
            "accuracy": binned.accuracy.tolist(),
            "counts": binned.counts.tolist(),
        }
    result.details["reliability" + name] = details
    for metric, values in (
        ("Brier score", brier_scores(probabilities, data.labels)),
        ("log loss", log_losses(logits, data.labels)),
    ):
        result.figures[metric + name] = figure_of(values, higher_is_better=False)
        result.per_item[metric + name] = PerItem.of(data.ids, values)
    if not name:  # a temperature changes no order
        result.figures["accuracy@1"] = figure_of(right)
        result.per_item["accuracy@1"] = PerItem.of(data.ids, right)


def _error_of_rows(
    confidence: Float[np.ndarray, " image"],
    right: Float[np.ndarray, " image"],
    bins: int,
    binning: Binning,
) -> Any:
    """ECE of resampled rows. It is biased upwards in small samples, and in resamples again."""

    def error(rows: Int[np.ndarray, " row"]) -> float:
        return reliability_bins(confidence[rows], right[rows], bins=bins, binning=binning).error

    return error


def _answers(
    probabilities: Probabilities, labels: Labels
) -> tuple[Float[np.ndarray, " image"], Float[np.ndarray, " image"]]:
    """Each picture's best probability, and 1 where it is its own class's."""
    right = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    return probabilities.max(axis=1), right


def _numbers(values: list[float | None]) -> list[float]:
    """A list that was JSON: null stands for NaN."""
    return [float("nan") if value is None else value for value in values]
