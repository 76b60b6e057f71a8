"""What a handful of labelled pictures per class adds to the class names.

Prototypes: a class is the mean of its shots' vectors (Snell et al. 2017, arXiv:1703.05175,
with cosines), alone or mixed with its text vector. Tip-Adapter: Zhang et al. 2022,
arXiv:2207.09519, training-free: the shots are a cache that votes with
exp(-beta (1 - cosine)) (equations 4 and 5), added to the text's logits alpha times
(equation 6). Mix, alpha and beta are chosen on val, which costs labels too: results
without any are those of mix 0.5 and of prototypes alone.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from twinlens.embed import EmbedderLike
from twinlens.errors import ConfigError
from twinlens.evaluate.probe import Parts, accuracy, hits_at, parts_of
from twinlens.evaluate.result import Figure, PerItem, Result
from twinlens.evaluate.sets import LabelledSet
from twinlens.evaluate.statistics import RESAMPLES
from twinlens.evaluate.tasks import new_result, note, templates_for
from twinlens.evaluate.zero_shot import class_vectors

if TYPE_CHECKING:
    from twinlens.evaluate.page import Page

Scores = Float[np.ndarray, "image class"]
ClassVectors = Float[np.ndarray, "class dim"]
Shots = Int[np.ndarray, "class shot"]

SHOTS = (1, 2, 4, 8, 16)
DRAWS = 5
MIXES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
CLIP_SCALE = 100.0  # what the paper's cosines with texts are multiplied by
# The paper's search on ImageNet ends at alpha 3 and beta 7. Ours reaches further, for models
# whose cosines between pictures spread more widely than CLIP's need a smaller beta.
ALPHAS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
BETAS = (0.5, 1.0, 2.0, 3.5, 5.5, 8.0, 12.0, 20.0)

METHODS = ("prototypes", "prototypes and text", "Tip-Adapter")


def draw_shots(
    labels: Int[np.ndarray, " image"], classes: int, shots: int, rng: np.random.Generator
) -> Shots:
    """Rows of `shots` pictures of each class, at random, no picture twice.

    Raises ConfigError for a class that has fewer.
    """
    counts = np.bincount(labels, minlength=classes)
    if counts.min() < shots:
        short = int(counts.argmin())
        raise ConfigError(
            f"Class {short} has {counts[short]} picture(s) to draw from and {shots} shots are "
            f"asked for: ask for fewer, or give more pictures."
        )
    return np.stack(
        [rng.permutation(np.flatnonzero(labels == row))[:shots] for row in range(classes)]
    )


def prototypes(vectors: Float[np.ndarray, "image dim"], shots: Shots) -> ClassVectors:
    """The mean of each class's shots, brought to unit length."""
    return _unit(vectors[shots].mean(axis=1))


def mixed(prototype: ClassVectors, text: ClassVectors, share: float) -> ClassVectors:
    """`share` of the prototype and the rest of the text vector, brought to unit length."""
    return _unit(share * prototype + (1.0 - share) * text)


def tip_adapter_logits(
    image: Float[np.ndarray, "image dim"],
    cache: Float[np.ndarray, "class shot dim"],
    text: ClassVectors,
    *,
    alpha: float,
    beta: float,
    text_scale: float = CLIP_SCALE,
) -> Scores:
    """alpha * sum over shots of exp(-beta (1 - cosine)) + text_scale * cosine with the text."""
    by_shots = alpha * _cache_votes(_affinity(image, cache), beta)
    logits: Scores = by_shots + text_scale * (image @ text.T)
    return logits


def few_shot(
    embedder: EmbedderLike,
    data: LabelledSet,
    *,
    shots: Sequence[int] = SHOTS,
    draws: int = DRAWS,
    templates: Sequence[str] | None = None,
    seed: int = 0,
    **how: Any,
) -> Result:
    """Accuracy over the number of shots: zero-shot, prototypes, both mixed, Tip-Adapter.

    Each number of shots is drawn `draws` times from train; a draw's shots contain those of
    the smaller numbers. Numbers that some class of train cannot fill are left out. Intervals
    resample draws and test pictures together (Owen 2007, "The pigeonhole bootstrap"). `how`
    is what parts_of() takes; 0 shots in `details["curve"]` is zero-shot.

    Raises ConfigError where not even the smallest number can be drawn.
    """
    parts = parts_of(embedder, data, seed=seed, **how)
    templates = templates_for(data, templates)
    text = class_vectors(embedder, data.class_names, templates, cache=how.get("cache"))
    if draws < 1 or not shots or min(shots) < 1:
        raise ConfigError("few-shot needs at least one draw and numbers of shots from 1 on.")
    most = int(np.bincount(parts.train_labels, minlength=parts.classes).min())
    possible = sorted(number for number in set(shots) if number <= most) or [min(shots)]
    result = new_result("few-shot", embedder, parts.test_set)
    result.settings = {
        "shots": possible,
        "shots left out": sorted(set(shots) - set(possible)),
        "draws": draws,
        "templates": list(templates),
        "val": len(parts.val),
        "seed": seed,
    }
    zero = hits_at(parts.test @ text.T, parts.test_labels, 1)
    note(result, "zero-shot", zero, parts.test_set.ids)
    curve: dict[str, list[dict[str, float]]] = {}
    chosen: list[dict[str, Any]] = []
    hits: dict[tuple[str, int], list[Float[np.ndarray, " image"]]] = {}
    for draw in range(draws):
        rng = np.random.default_rng([seed, draw])
        drawn = draw_shots(parts.train_labels, parts.classes, possible[-1], rng)
        for number in possible:
            found, settings = _one_draw(parts, text, drawn[:, :number])
            chosen.append({"shots": number, "draw": draw, **settings})
            for method, right in found.items():
                hits.setdefault((method, number), []).append(right)
    for (method, number), rows in hits.items():
        right = np.stack(rows)
        figure = _figure(right, seed)
        name = f"{method}, {number} shot{'s' if number > 1 else ''}"
        result.figures[name] = figure
        result.per_item[name] = PerItem.of(parts.test_set.ids, right.mean(axis=0))
        curve.setdefault(method, []).append(
            {
                "shots": number,
                "accuracy": figure.value,
                "low": figure.value if figure.low is None else figure.low,
                "high": figure.value if figure.high is None else figure.high,
                "spread of draws": float(right.mean(axis=1).std(ddof=1)) if draws > 1 else 0.0,
            }
        )
    result.details = {"curve": curve, "zero-shot": float(zero.mean()), "chosen on val": chosen}
    return result


def few_shot_page(page: "Page", result: Result) -> None:
    """Adds the curves over the number of shots."""
    from twinlens.evaluate import plots

    curve = result.details["curve"]
    shots = [point["shots"] for point in curve[METHODS[0]]]
    series = {name: [point["accuracy"] for point in points] for name, points in curve.items()}
    series["zero-shot"] = [result.details["zero-shot"]] * len(shots)
    bands = {
        name: ([p["low"] for p in points], [p["high"] for p in points])
        for name, points in curve.items()
    }
    drawing = plots.curves(
        shots, series, bands=bands, x_label="shots per class", y_label="accuracy", log_x=True
    )
    page.plot("Accuracy over shots", drawing, "Bands: 95 %, over draws and pictures.")


def _one_draw(
    parts: Parts, text: ClassVectors, shots: Shots
) -> tuple[dict[str, Float[np.ndarray, " image"]], dict[str, float]]:
    """Hits on test for each method, and what was chosen on val."""
    own = prototypes(parts.train, shots)
    share = max(
        MIXES,
        key=lambda s: (accuracy(parts.val @ mixed(own, text, s).T, parts.val_labels), -s),
    )
    cache = parts.train[shots]
    alpha, beta = _search_tip(parts, cache, text)
    scores = {
        METHODS[0]: parts.test @ own.T,
        METHODS[1]: parts.test @ mixed(own, text, share).T,
        METHODS[2]: tip_adapter_logits(parts.test, cache, text, alpha=alpha, beta=beta),
    }
    found = {name: hits_at(values, parts.test_labels, 1) for name, values in scores.items()}
    return found, {"mix": share, "alpha": alpha, "beta": beta}


def _search_tip(
    parts: Parts, cache: Float[np.ndarray, "class shot dim"], text: ClassVectors
) -> tuple[float, float]:
    """The alpha and beta that are best on val; of equals the smallest alpha, then beta."""
    affinity = _affinity(parts.val, cache)
    by_text = CLIP_SCALE * (parts.val @ text.T)
    best, choice = -1.0, (0.0, BETAS[0])
    votes = {beta: _cache_votes(affinity, beta) for beta in BETAS}
    for alpha in ALPHAS:
        for beta in BETAS:
            found = accuracy(alpha * votes[beta] + by_text, parts.val_labels)
            if found > best:
                best, choice = found, (alpha, beta)
    return choice


def _affinity(
    image: Float[np.ndarray, "image dim"], cache: Float[np.ndarray, "class shot dim"]
) -> Float[np.ndarray, "image class shot"]:
    classes, shots, dim = cache.shape
    cosines: Float[np.ndarray, "image cached"] = image @ cache.reshape(-1, dim).T
    return cosines.reshape(len(image), classes, shots)


def _cache_votes(affinity: Float[np.ndarray, "image class shot"], beta: float) -> Scores:
    votes: Scores = np.exp(-beta * (1.0 - affinity)).sum(axis=2)
    return votes


def _figure(right: Float[np.ndarray, "draw image"], seed: int) -> Figure:
    """The mean, with a pigeonhole bootstrap over draws and pictures."""
    draws, images = right.shape
    rng = np.random.default_rng(seed)
    by_draw = rng.multinomial(draws, np.full(draws, 1 / draws), size=RESAMPLES) / draws
    by_image = rng.multinomial(images, np.full(images, 1 / images), size=RESAMPLES) / images
    means = ((by_draw @ right) * by_image).sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Figure(float(right.mean()), float(low), float(high))


def _unit(rows: Float[np.ndarray, "class dim"]) -> ClassVectors:
    # The least float: opposite vectors that cancel out stay zero instead of becoming NaN.
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: ClassVectors = rows / np.maximum(lengths, np.finfo(np.float32).tiny)
    return unit
