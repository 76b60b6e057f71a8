"""Measures how one model's pictures and texts lie in their space: gap, cone, hubs, twins.

The figures explain what scores do not: a picture that is found by everything, a space of which
a tenth is used, pictures that are there twice. None of them says by itself that a model is good
or bad; vector_space.py has their definitions and sources.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Float32, Int

from twinlens.embed import EmbedderLike
from twinlens.evaluate.result import Figure, Result
from twinlens.evaluate.sets import CaptionedSet, LabelledSet
from twinlens.evaluate.statistics import bootstrap_interval, figure_of
from twinlens.evaluate.tasks import (
    Targets,
    caption_ids,
    difference_of_means,
    new_result,
    note,
    some_of,
    targets_of,
)
from twinlens.evaluate.twins import close_pairs, look_alikes
from twinlens.evaluate.usable import with_vectors
from twinlens.evaluate.vector_space import (
    NEIGHBOURS,
    alignment,
    cosines_to_others,
    effective_rank,
    gap_pulls,
    k_occurrence,
    participation_ratio,
    potentials,
    skewness,
)
from twinlens.evaluate.vectors import VectorCache

if TYPE_CHECKING:
    from twinlens.evaluate.page import Page

DEFAULT_LIMIT = 10_000  # pictures; some figures take time that grows with their square
# OpenAI's ViT-B/32 has 1 such pair among 1,215 photos of Flickr8k (34 at 0.90), but 1,317 among
# 2,000 photos of products, which all look alike to it (168 at 0.97): raise it for such data.
TWIN_COSINE = 0.95
HUBS_KEPT = 12
TWINS_KEPT = 200

Images = Float32[np.ndarray, "image dim"]


def geometry(
    embedder: EmbedderLike,
    data: LabelledSet | CaptionedSet,
    *,
    templates: Sequence[str] | None = None,
    limit: int | None = DEFAULT_LIMIT,
    twin_cosine: float = TWIN_COSINE,
    looks: bool = True,
    seed: int = 0,
    cache: VectorCache | None = None,
) -> Result:
    """Gap, anisotropy, hubness, alignment, uniformity and near duplicates.

    Texts are the captions, or a vector per class. `limit` bounds pictures and texts. With
    `looks` every picture is decoded once more, to say which twins look alike too. What cannot
    be measured on so few items is left out and named in `details["left out"]`.

    Raises ConfigError where no picture can be read.
    """
    data = some_of(data, limit, seed)
    data, images = with_vectors(embedder, data, cache=cache)
    targets = targets_of(embedder, data, templates, cache=cache)
    result = new_result("geometry", embedder, data)
    result.settings = {
        "limit": limit,
        "twin cosine": twin_cosine,
        "neighbours": NEIGHBOURS,
        "seed": seed,
    }
    result.details["left out"] = []
    texts = _some(targets.vectors, limit, seed)
    _note_gap(result, images, texts)
    _note_spread(result, {"images": images, "texts": texts})
    _note_alignment(result, images, targets, data)
    ids = list(data.ids)
    _note_hubs(result, "text to image", texts, images, ids, same=False)
    _note_hubs(result, "image to image", images, images, ids, same=True)
    _note_twins(result, images, data, twin_cosine, looks)
    return result


def _some(
    vectors: Float32[np.ndarray, "text dim"], limit: int | None, seed: int
) -> Float32[np.ndarray, "part dim"]:
    if limit is None or len(vectors) <= limit:
        return vectors
    rows = np.random.default_rng(seed).choice(len(vectors), size=limit, replace=False)
    return vectors[np.sort(rows)]


def _note_gap(result: Result, images: Images, texts: Float32[np.ndarray, "text dim"]) -> None:
    """The interval is that of the vectors' parts along the gap that was found."""
    ours, theirs = gap_pulls(images, texts)
    result.figures["modality gap"] = difference_of_means(
        figure_of(ours), figure_of(theirs), higher_is_better=False
    )


def _note_spread(result: Result, sides: dict[str, Float32[np.ndarray, "item dim"]]) -> None:
    for side, vectors in sides.items():
        if len(vectors) < 2:
            result.details["left out"].append(f"spread of {side}: there is only one")
            continue
        cosines = of_pairs(cosines_to_others(vectors))
        result.figures[f"mean cosine, {side}"] = cosines
        result.figures[f"participation ratio, {side}"] = Figure(participation_ratio(vectors))
        result.figures[f"effective rank, {side}"] = Figure(effective_rank(vectors))
        even = of_pairs(potentials(vectors))
        low, high = (None if end is None else _log(end) for end in (even.low, even.high))
        result.figures[f"uniformity, {side}"] = Figure(_log(even.value), low, high, False)


def of_pairs(per_row: Float[np.ndarray, " item"]) -> Figure:
    """A mean over pairs from each row's mean over its pairs, with an interval.

    A resample of rows would pair rows with themselves. Instead the rows' own means are
    resampled, and their deviation is doubled, for each row is in two places of a pair
    (Hoeffding 1948, section 7: the variance of a U-statistic of pairs is four times that).
    """
    value = float(per_row.mean())
    low, high = bootstrap_interval(per_row)
    if np.isnan(low):
        return Figure(value, None, None, False)
    return Figure(value, value - 2 * (value - low), value + 2 * (high - value), False)


def _log(value: float) -> float:
    # Below 0 an interval's end may come, where hardly any pair is near another.
    return float(np.log(max(value, np.finfo(np.float64).tiny)))


def _note_alignment(
    result: Result, images: Images, targets: Targets, data: LabelledSet | CaptionedSet
) -> None:
    """Squared distance of pictures to their captions, or to their class's text."""
    if isinstance(data, CaptionedSet):
        ids, clusters = caption_ids(data)
        values = alignment(images[targets.owner], targets.vectors)
        note(
            result,
            "alignment",
            values,
            ids,
            what="caption",
            clusters=clusters,
            higher_is_better=False,
        )
    else:
        values = alignment(images, targets.vectors[targets.wanted])
        note(result, "alignment", values, list(data.ids), higher_is_better=False)


def _note_hubs(
    result: Result,
    direction: str,
    queries: Float32[np.ndarray, "query dim"],
    images: Images,
    ids: list[str],
    *,
    same: bool,
) -> None:
    """Skewness of the k-occurrence, the share of pictures nobody finds, and the largest hubs."""
    if len(images) <= NEIGHBOURS + same:
        result.details["left out"].append(
            f"hubs, {direction}: {len(images)} pictures have no {NEIGHBOURS} neighbours"
        )
        return
    counts = k_occurrence(queries, images, NEIGHBOURS, same=same)
    skew = _skewness_of(counts)
    result.figures[f"hubness, {direction}"] = skew
    note(result, f"never found, {direction}", counts == 0, ids, higher_is_better=False)
    largest = np.argsort(-counts, kind="stable")[:HUBS_KEPT]
    expected = NEIGHBOURS * len(queries) / len(images)
    result.details[f"hubs, {direction}"] = {
        "expected": expected,
        "largest": [{"id": ids[row], "count": int(counts[row])} for row in largest],
        "counts": np.bincount(counts).tolist(),  # place n: pictures that n queries find
    }


def _skewness_of(counts: Int[np.ndarray, " item"]) -> Figure:
    low, high = bootstrap_interval(counts, lambda rows: skewness(counts[rows]))
    return Figure(skewness(counts), low, high, higher_is_better=False)


def _note_twins(
    result: Result,
    images: Images,
    data: LabelledSet | CaptionedSet,
    limit: float,
    looks: bool,
) -> None:
    pairs = close_pairs(images, limit)
    alike = look_alikes(data.images) if looks else set()
    paired = np.zeros(len(images))
    for pair in pairs:
        paired[[pair.first, pair.second]] = 1.0
    note(result, "has a near duplicate", paired, list(data.ids), higher_is_better=False)
    kept: list[dict[str, Any]] = [
        {
            "ids": [data.ids[pair.first], data.ids[pair.second]],
            "cosine": pair.cosine,
            "looks alike": (pair.first, pair.second) in alike if looks else None,
        }
        for pair in pairs[:TWINS_KEPT]
    ]
    near = {(pair.first, pair.second) for pair in pairs}
    result.details["near duplicates"] = {
        "pairs": len(pairs),
        "shown": kept,
        # What a model puts apart though it looks the same: usually a flip side of its training.
        "look alike only": [
            [data.ids[first], data.ids[second]] for first, second in sorted(alike - near)
        ][:TWINS_KEPT],
    }


def geometry_page(page: "Page", result: Result, data: LabelledSet | CaptionedSet) -> None:
    """How often pictures are found, the largest hubs, and pictures that are there twice."""
    from twinlens.evaluate.page import Shown
    from twinlens.evaluate.plots import bars

    row_of = {name: row for row, name in enumerate(data.ids)}
    for direction in ("text to image", "image to image"):
        hubs = result.details.get(f"hubs, {direction}")
        if hubs is None:
            continue
        labels, shares = _in_bins(hubs["counts"])
        page.plot(
            f"How often a picture is found, {direction}",
            bars(labels, shares, x_label="share of pictures"),
            f"Times that a picture is among the {NEIGHBOURS} nearest of a query; "
            f"{hubs['expected']:.1f} on average.",
        )
        page.pictures(
            f"Found most often, {direction}",
            [
                Shown(data.images[row_of[hub["id"]]], f"{hub['count']:,} times", hub["id"])
                for hub in hubs["largest"]
            ],
        )
    twins = result.details["near duplicates"]["shown"][:HUBS_KEPT]
    if twins:
        page.pictures(
            "Near duplicates, side by side",
            [
                Shown(data.images[row_of[name]], f"cosine {twin['cosine']:.3f}", name)
                for twin in twins
                for name in twin["ids"]
            ],
        )


def _in_bins(counts: list[int]) -> tuple[list[str], list[float]]:
    """Shares of pictures found 0, 1 to 5, 6 to 10, ... times, in at most eight bins."""
    edges = [0, 1, 6, 11, 21, 51, 101, 501]
    labels, shares, total = [], [], sum(counts)
    for start, end in zip(edges, [*edges[1:], len(counts)], strict=True):
        if start >= len(counts):
            break
        last = min(end, len(counts)) if start != edges[-1] else len(counts)
        labels.append(str(start) if end == start + 1 else f"{start} to {last - 1}")
        shares.append(sum(counts[start:last]) / total)
    return labels, shares
