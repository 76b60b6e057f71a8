"""Retrieval between pictures and captions: how high each finds what belongs to it.

Two ways in. From a similarity matrix, for sets small enough to have one, recall@k. From
vectors, at any size, all figures of both directions out of the places that ranks.py counts.

Recall@k is Karpathy and Fei-Fei's (2015, arXiv:1412.2306, section 4.2): an image with several
captions counts as found when any one of them is among its first k. It is what CLIP_benchmark
reports (clip_benchmark/metrics/zeroshot_retrieval.py, commit 082089f): its
image_retrieval_recall@k is text_to_image_recall@k here, its text_retrieval_recall@k is
image_to_text_recall@k. One thing differs: in a tie torch's topk takes either, and here it
counts against us.

The others, after Manning, Raghavan and Schuetze 2008, chapter 8, with the captions of an image
as its relevant items, all alike, and an image as the one relevant item of each of its captions:
- median rank: of the first item that belongs to the query;
- mAP: the mean over queries of the average precision, as scikit-learn's average_precision_score;
- nDCG@10: gains of 1, discounts log2(place + 1), as scikit-learn's ndcg_score(k=10).
Where scores tie, scikit-learn averages over the orders (nDCG) or puts the tied relevant items
last together (average precision); here the others come first, then the relevant ones.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Float32, Int

from twinlens.errors import ConfigError

if TYPE_CHECKING:
    from twinlens.embed import EmbedderLike
    from twinlens.evaluate.page import Page
    from twinlens.evaluate.ranks import Ranks
    from twinlens.evaluate.result import Figure, Result
    from twinlens.evaluate.sets import CaptionedSet
    from twinlens.evaluate.vectors import Progress, VectorCache

RECALL_AT = (1, 5, 10)
GAIN_UP_TO = 10  # places that nDCG looks at
WORST_KEPT = 24  # queries of each direction
FIRST_KEPT = 3  # what came first for each of them
PLOTTED_PLACES = 100
MEDIAN_RESAMPLES = 200  # of more than this many queries:
MANY_QUERIES = 20_000

Similarity = Float[np.ndarray, "image caption"]
CaptionImages = Sequence[int] | Int[np.ndarray, " caption"]
Places = Int[np.ndarray, " query"]
Values = Float[np.ndarray, " query"]


def text_to_image_recall_at_k(
    similarity: Similarity, image_of_caption: CaptionImages, k: int
) -> float:
    """Share of captions whose image is among the k most similar ones."""
    wanted = similarity[np.asarray(image_of_caption), np.arange(similarity.shape[1])]
    # A tie counts against us: a constant model must not score.
    better = (similarity >= wanted).sum(axis=0) - 1
    return float((better < k).mean())


def image_to_text_recall_at_k(
    similarity: Similarity, image_of_caption: CaptionImages, k: int
) -> float:
    """Share of images of which any caption is among the k most similar ones."""
    own = np.asarray(image_of_caption) == np.arange(similarity.shape[0])[:, None]
    best_own = np.where(own, similarity, -np.inf).max(axis=1, keepdims=True)
    better = ((similarity >= best_own) & ~own).sum(axis=1)
    return float((better < k).mean())


def retrieval_scores(similarity: Similarity, image_of_caption: CaptionImages) -> dict[str, float]:
    """recall@1, 5 and 10 in both directions, each between 0 and 1."""
    return {
        f"{name}_recall@{k}": recall(similarity, image_of_caption, k)
        for name, recall in (
            ("text_to_image", text_to_image_recall_at_k),
            ("image_to_text", image_to_text_recall_at_k),
        )
        for k in (1, 5, 10)
    }


def recall_at(places: Places, k: int) -> float:
    """The share of queries that find what they want among the first `k`."""
    return float((places <= k).mean())


def best_places(ranks: "Ranks") -> tuple[Places, Int[np.ndarray, " query"]]:
    """At which place each image finds the best of its captions, and the rows of those images.

    An image without captions asks for nothing and is not among them.
    """
    images = np.unique(ranks.owner)
    best = np.full(int(images[-1]) + 1, np.iinfo(np.int64).max)
    np.minimum.at(best, ranks.owner, ranks.caption)
    return best[images], images


def average_precisions(ranks: "Ranks") -> Values:
    """Of each image with captions, in the order of best_places().

    The mean, over its captions, of the share of its own among all down to that one.
    """
    places, number, starts, counts = _by_image(ranks)
    means: Values = np.add.reduceat(number / places, starts) / counts
    return means


def discounted_gains(ranks: "Ranks", k: int = GAIN_UP_TO) -> Values:
    """nDCG@k of each image with captions, in the order of best_places()."""
    places, number, starts, _ = _by_image(ranks)
    best = np.add.reduceat(_discount(number, k), starts)
    gains: Values = np.add.reduceat(_discount(places, k), starts) / best
    return gains


def retrieval(
    embedder: "EmbedderLike",
    data: "CaptionedSet",
    *,
    recall_only: bool = False,
    vectors: Float32[np.ndarray, "image dim"] | None = None,
    threads: int | None = None,
    cache: "VectorCache | None" = None,
    progress: "Progress | None" = None,
    counting: "Progress | None" = None,
) -> "Result":
    """Both directions between the set's images and captions.

    `recall_only` leaves out mAP and nDCG of images, which need the place of every caption.
    `vectors` are those of the set's images where they are known already, row by row.
    `progress` is told of images embedded, `counting` of captions compared with all images.

    Raises ConfigError where no image can be read.
    """
    from twinlens.evaluate.ranks import exact_ranks
    from twinlens.evaluate.tasks import caption_ids, new_result
    from twinlens.evaluate.usable import with_vectors
    from twinlens.evaluate.vectors import cached_texts

    data, vectors = with_vectors(embedder, data, vectors, cache=cache, progress=progress)
    captions = cached_texts(embedder, data.captions, cache=cache)
    ranks = exact_ranks(
        vectors, captions, data.owner, best_only=recall_only, threads=threads, progress=counting
    )
    result = new_result("retrieval", embedder, data)
    result.settings = {"recall_only": recall_only}
    names, owners = caption_ids(data)
    ones = ranks.image
    gains = _discount(ones, GAIN_UP_TO)
    _note(result, "text_to_image", ones, 1.0 / ones, gains, names, "caption", owners)
    best, images = best_places(ranks)
    ids = [data.ids[row] for row in images.tolist()]
    if recall_only:
        _note(result, "image_to_text", best, None, None, ids, "image")
    else:
        precisions, gains = average_precisions(ranks), discounted_gains(ranks)
        _note(result, "image_to_text", best, precisions, gains, ids, "image")
    result.details = {
        "recall_curve": {
            "places": list(range(1, PLOTTED_PLACES + 1)),
            "text_to_image": _recall_curve(ones),
            "image_to_text": _recall_curve(best),
        },
        "worst_captions": _worst_captions(data, vectors, captions, ones),
        "worst_images": _worst_images(data, vectors, captions, best, images),
    }
    return result


def retrieval_page(page: "Page", result: "Result", data: "CaptionedSet") -> None:
    """Adds recall at each place and the queries that found what they want furthest down."""
    from twinlens.evaluate import plots
    from twinlens.evaluate.page import Shown

    curve = result.details["recall_curve"]
    lines = {"captions finding images": curve["text_to_image"]}
    lines["images finding a caption"] = curve["image_to_text"]
    drawing = plots.curves(
        curve["places"], lines, x_label="k", y_label="recall@k", y_limits=(0.0, 1.0), log_x=True
    )
    page.plot("Found among the first k", drawing, "The steeper it begins, the better.")
    rows = {identity: row for row, identity in enumerate(data.ids)}
    if result.details["worst_captions"]:
        page.heading(
            "Captions whose image came last", "Framed: the image wanted; beside it what came first."
        )
    for case in result.details["worst_captions"]:
        wanted = [(case["image"], f"wanted: number {case['place']:,}")]
        first = [(one, f"number {place}") for place, one in enumerate(case["first"], start=1)]
        shown = [
            Shown(data.images[rows[one]], words, one, "" if number else "good")
            for number, (one, words) in enumerate(wanted + first)
            if one in rows
        ]
        page.pictures(case["caption"], shown)
    if result.details["worst_images"]:
        shown = [
            Shown(
                data.images[rows[case["image"]]],
                f"first: {case['first'][0]}",
                f"wanted, at {case['place']:,}: {case['caption']}",
            )
            for case in result.details["worst_images"]
            if case["image"] in rows
        ]
        page.pictures("Images whose best caption came last", shown)


def _by_image(
    ranks: "Ranks",
) -> tuple[
    Int[np.ndarray, " caption"],
    Int[np.ndarray, " caption"],
    Int[np.ndarray, " query"],
    Int[np.ndarray, " query"],
]:
    """Places, image by image and the best first; each one's number from 1; starts; counts.

    Raises ConfigError for ranks of the best captions alone.
    """
    if ranks.best_only:
        raise ConfigError("Only the best captions were counted: leave best_only (recall_only) out.")
    order = np.lexsort((ranks.caption, ranks.owner))
    counts = np.bincount(ranks.owner)
    counts = counts[counts > 0]
    starts = np.cumsum(counts) - counts
    number = np.arange(1, len(order) + 1) - np.repeat(starts, counts)
    return ranks.caption[order], number, starts, counts


def _discount(places: Places, k: int) -> Values:
    return np.where(places <= k, 1.0 / np.log2(places + 1.0), 0.0)


def _note(
    result: "Result",
    direction: str,
    places: Places,
    precisions: Values | None,
    gains: Values | None,
    ids: list[str],
    what: str,
    clusters: list[str] | None = None,
) -> None:
    """Adds one direction's figures, and what each query contributed for `compare`."""
    from twinlens.evaluate.result import PerItem
    from twinlens.evaluate.tasks import note

    def add(name: str, values: Values) -> None:
        note(result, f"{direction}_{name}", values, ids, what=what, clusters=clusters)

    for k in RECALL_AT:
        add(f"recall@{k}", (places <= k).astype(np.float64))
    name = f"{direction}_median_rank"
    result.figures[name] = _median(places, clusters)
    result.per_item[name] = PerItem(ids, places.astype(float).tolist(), what, clusters, "median")
    if precisions is not None and gains is not None:
        add("mAP", precisions)
        add(f"nDCG@{GAIN_UP_TO}", gains)


def _median(places: Places, clusters: list[str] | None) -> "Figure":
    from twinlens.evaluate.result import Figure
    from twinlens.evaluate.statistics import RESAMPLES, bootstrap_interval

    # 2,000 medians of half a million places would take a minute, and their spread is small.
    resamples = MEDIAN_RESAMPLES if len(places) > MANY_QUERIES else RESAMPLES
    low, high = bootstrap_interval(places, "median", clusters=clusters, resamples=resamples)
    known = not np.isnan(low)
    return Figure(
        float(np.median(places)),
        low if known else None,
        high if known else None,
        higher_is_better=False,
        unit="places",
    )


def _recall_curve(places: Places) -> list[float]:
    counts = np.bincount(np.minimum(places, PLOTTED_PLACES + 1), minlength=PLOTTED_PLACES + 2)
    shares = np.cumsum(counts)[1 : PLOTTED_PLACES + 1] / len(places)
    return [round(share, 6) for share in shares.tolist()]


def _worst_captions(
    data: "CaptionedSet",
    images: Float[np.ndarray, "image dim"],
    captions: Float[np.ndarray, "caption dim"],
    places: Places,
) -> list[dict[str, Any]]:
    """The lowest ones, at most one an image: an odd picture would fill the page."""
    cases: dict[int, dict[str, Any]] = {}
    for row in np.argsort(-places, kind="stable").tolist():
        image = int(data.owner[row])
        if places[row] == 1 or len(cases) == WORST_KEPT:
            break
        if image in cases:
            continue
        scores = images @ captions[row]
        scores[image] = -np.inf
        cases[image] = {
            "caption": data.captions[row],
            "image": data.ids[image],
            "place": int(places[row]),
            "first": [data.ids[other] for other in _first(scores)],
        }
    return list(cases.values())


def _worst_images(
    data: "CaptionedSet",
    images: Float[np.ndarray, "image dim"],
    captions: Float[np.ndarray, "caption dim"],
    places: Places,
    rows: Int[np.ndarray, " query"],
) -> list[dict[str, Any]]:
    cases = []
    for query in np.argsort(-places, kind="stable")[:WORST_KEPT].tolist():
        if places[query] == 1:
            break
        row = int(rows[query])
        scores = captions @ images[row]
        own = np.flatnonzero(data.owner == row)
        best = int(own[scores[own].argmax()])
        scores[own] = -np.inf
        cases.append(
            {
                "image": data.ids[row],
                "caption": data.captions[best],
                "place": int(places[query]),
                "first": [data.captions[other] for other in _first(scores)],
            }
        )
    return cases


def _first(scores: Float[np.ndarray, " item"]) -> list[int]:
    """Rows of the best; those at -inf are none."""
    order = np.argsort(-scores, kind="stable")[:FIRST_KEPT]
    return [row for row in order.tolist() if np.isfinite(scores[row])]
