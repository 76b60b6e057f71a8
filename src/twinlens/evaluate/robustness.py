"""How much a model loses when pictures are blurred, compressed, noisy, cropped or grey.

Every picture is embedded clean and with each kind of damage at each severity, all from one
picture of corruptions.REFERENCE_SIDE pixels: the clean figure is of that smaller picture too,
so that a curve's first point differs from the others by the damage alone. It may therefore lie
a little off what `zero-shot` reports on the originals.

Source: Hendrycks and Dietterich 2019, arXiv:1903.12261. They report errors relative to those
of AlexNet (mCE); there is no such reference for other data, so that here it is the share of
the model's own clean score that is lost.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from twinlens.embed import EmbedderLike
from twinlens.evaluate.corruptions import (
    CORRUPTIONS_VERSION,
    KINDS,
    SEVERITIES,
    check_kinds,
    corrupted,
    reference_size,
)
from twinlens.evaluate.result import Figure, Result
from twinlens.evaluate.sets import CaptionedSet, LabelledSet
from twinlens.evaluate.statistics import bootstrap_interval, figure_of
from twinlens.evaluate.tasks import (
    Targets,
    new_result,
    note,
    readable,
    some_of,
    targets_of,
    templates_for,
)
from twinlens.evaluate.vectors import VectorCache
from twinlens.evaluate.views import Views

if TYPE_CHECKING:
    from twinlens.evaluate.page import Page

DEFAULT_LIMIT = 500  # pictures; each is embedded 46 times

CURVES_A_PLOT = 3  # with their intervals

Scores = Float[np.ndarray, "image view"]


def robustness(
    embedder: EmbedderLike,
    data: LabelledSet | CaptionedSet,
    *,
    kinds: Sequence[str] = tuple(KINDS),
    severities: Sequence[int] = SEVERITIES,
    templates: Sequence[str] | None = None,
    limit: int | None = DEFAULT_LIMIT,
    seed: int = 0,
    cache: VectorCache | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Accuracy (or recall@1 from picture to caption) at every severity of every damage.

    `limit` pictures are drawn at random (None: all). For each kind the figure is the mean
    over severities; `details["curves"]` holds each severity's, 0 being the clean picture.
    `progress(done, all)` is told of pictures.

    Raises ConfigError for unknown kinds and severities and where no picture can be read.
    """
    kinds, severities = list(kinds), sorted(severities)
    check_kinds(kinds, severities)
    data = some_of(data, limit, seed)
    targets = targets_of(embedder, data, templates, cache=cache)
    hits, cosines, unreadable = _measure(
        embedder, data, targets, (kinds, severities, seed), cache, progress
    )
    data, kept = readable(data, unreadable)
    hits, cosines = hits[kept], cosines[kept]
    result = new_result("robustness", embedder, data)
    result.settings = {
        "kinds": kinds,
        "severities": severities,
        "limit": limit,
        "seed": seed,
        "metric": targets.metric,
        "chance": targets.chance,
    }
    if isinstance(data, LabelledSet):
        result.settings["templates"] = list(templates_for(data, templates))
    _fill(result, hits, cosines, list(data.ids), kinds, severities, targets.metric)
    return result


def _measure(
    embedder: EmbedderLike,
    data: LabelledSet | CaptionedSet,
    targets: Targets,
    damage: tuple[list[str], list[int], int],
    cache: VectorCache | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[Scores, Scores, list[tuple[int, str]]]:
    """Hits and cosines to the clean picture: a column for it, then one a kind and severity."""
    kinds, severities, seed = damage

    def make(image: Image.Image, row: int) -> Iterator[Image.Image]:
        image = reference_size(image)
        yield image
        for kind in kinds:
            for severity in severities:
                yield corrupted(image, kind, severity, seed=seed, picture=row)

    def names(row: int) -> list[str]:
        damaged = [f"{kind} {severity}" for kind in kinds for severity in severities]
        return [f"{CORRUPTIONS_VERSION} {name} {seed} {row}" for name in ["clean", *damaged]]

    count = 1 + len(kinds) * len(severities)
    done = 0
    hits = np.zeros((len(data), count))
    cosines = np.zeros((len(data), count))
    clean = np.zeros((len(data), embedder.dim), dtype=np.float32)
    views = Views(embedder, data.images, make, names, cache=cache)
    for batch in views:
        first = batch.views == 0
        clean[batch.rows[first]] = batch.vectors[first]
        hits[batch.rows, batch.views] = targets.found(batch.vectors, batch.rows)
        cosines[batch.rows, batch.views] = (batch.vectors * clean[batch.rows]).sum(axis=1)
        done += len(batch.rows)
        if progress is not None:
            progress(done // count, len(data))
    return hits, cosines, views.unreadable


def _fill(
    result: Result,
    hits: Scores,
    cosines: Scores,
    ids: list[str],
    kinds: list[str],
    severities: list[int],
    metric: str,
) -> None:
    clean, damaged = hits[:, 0], hits[:, 1:].mean(axis=1)
    note(result, f"{metric} clean", clean, ids)
    note(result, f"{metric} damaged, mean", damaged, ids)
    result.figures["relative loss"] = relative_loss(clean, damaged)
    note(result, "cosine to the clean vector", cosines[:, 1:].mean(axis=1), ids)
    curves: dict[str, Any] = {}
    for place, kind in enumerate(kinds):
        columns = [1 + place * len(severities) + step for step in range(len(severities))]
        note(result, f"{metric} {kind}", hits[:, columns].mean(axis=1), ids)
        figures = [figure_of(hits[:, column]) for column in [0, *columns]]
        curves[kind] = {
            "severity": [0, *severities],
            "score": [figure.value for figure in figures],
            "low": [figure.low for figure in figures],
            "high": [figure.high for figure in figures],
            "cosine to clean": [1.0, *cosines[:, columns].mean(axis=0).tolist()],
            "relative loss": relative_loss(clean, hits[:, columns].mean(axis=1)).value,
        }
    result.details["curves"] = curves


def relative_loss(
    clean: Float[np.ndarray, " image"], damaged: Float[np.ndarray, " image"]
) -> Figure:
    """Which share of the clean score is lost, 0 for none; NaN where the clean score is 0.

    Pictures are resampled with both of their values.
    """

    def loss(rows: np.ndarray) -> float:
        before = float(clean[rows].mean())
        # A resample without any clean hit has nothing to lose.
        return 1.0 - float(damaged[rows].mean()) / before if before > 0 else 0.0

    if not clean.any():
        return Figure(float("nan"), None, None, higher_is_better=False)
    low, high = bootstrap_interval(clean, loss)
    known = not np.isnan(low)
    everything = np.arange(len(clean))
    return Figure(loss(everything), low if known else None, high if known else None, False)


def robustness_page(page: "Page", result: Result, data: LabelledSet | CaptionedSet) -> None:
    """The curves, and what the damage of the middle severity looks like on one picture."""
    from twinlens.evaluate.page import Shown
    from twinlens.evaluate.plots import curves

    found, metric = result.details["curves"], result.settings["metric"]
    kinds = list(found.items())
    for start in range(0, len(kinds), CURVES_A_PLOT):
        part = kinds[start : start + CURVES_A_PLOT]
        page.plot(
            f"What damage costs: {', '.join(kind for kind, _ in part)}",
            curves(
                part[0][1]["severity"],
                {kind: curve["score"] for kind, curve in part},
                bands={kind: (curve["low"], curve["high"]) for kind, curve in part},
                x_label="severity (0: clean)",
                y_label=metric,
            ),
            f"Severity 0 is the clean picture; a blind guess has {result.settings['chance']:.3f}.",
        )
    severities = result.settings["severities"]
    middle = severities[len(severities) // 2]
    seed = result.settings["seed"]
    shown = _example(data)
    if shown is not None:
        row, image = shown
        kinds = result.settings["kinds"]
        page.pictures(
            f"The damage, at severity {middle}",
            [Shown(image, "clean", data.ids[row])]
            + [
                Shown(corrupted(image, kind, middle, seed=seed, picture=row), kind, data.ids[row])
                for kind in kinds
            ],
        )


def _example(data: LabelledSet | CaptionedSet) -> tuple[int, Image.Image] | None:
    """The first picture that can be read, and its row."""
    from twinlens.data.image import read_image
    from twinlens.errors import UnreadableImage

    for row in range(len(data)):
        try:
            return row, reference_size(read_image(data.images[row]))
        except UnreadableImage:
            continue
    return None
