"""Does the model mind who is where, what is red, how many, and the word "no"?

Four tasks. `composition` and `counting` draw their pictures (scenes.py), so that they need no
data and what is right is certain; `caption_swaps` changes real captions (caption_changes.py);
`negation` asks of labelled pictures. Every task states what a blind guess would get, and a
tie counts against the model.

Sources: Thrush et al. 2022 (Winoground), arXiv:2204.03162, section 4, for the scores of pairs;
Yuksekgonul et al. 2023 (ARO), arXiv:2210.01936, for changed captions and for the finding that
CLIP reads captions much like bags of words. Negation and counting are posed our own way.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from twinlens.embed import EmbedderLike
from twinlens.errors import ConfigError
from twinlens.evaluate.caption_changes import CHANGES, CaptionChange
from twinlens.evaluate.result import Result
from twinlens.evaluate.scenes import NUMBER_WORDS, PAIR_KINDS, ScenePair, counted_scenes, pairs_of
from twinlens.evaluate.sets import CaptionedSet, LabelledSet
from twinlens.evaluate.tasks import caption_ids, new_result, note, some_of
from twinlens.evaluate.usable import with_vectors
from twinlens.evaluate.vectors import VectorCache, cached_images, cached_texts

if TYPE_CHECKING:
    from twinlens.evaluate.page import Page

PAIRS_PER_KIND = 100
PICTURES_PER_COUNT = 40
DEFAULT_LIMIT = 1000  # pictures
EXAMPLES_KEPT = 24

WINOGROUND_CHANCE = {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6}

WITH = "a photo with {}"
WITHOUT = "a photo with no {}"


def winoground_scores(
    scores: Float[np.ndarray, "pair 2 2"],
) -> dict[str, Bool[np.ndarray, " pair"]]:
    """Text, image and group score of pairs; `scores[p, i, c]`: picture i against caption c.

    Text: each picture prefers its caption. Image: each caption prefers its picture. Group:
    both. By chance 1/4, 1/4 and 1/6: of the 4! orders of four scores, 6, 6 and 4 satisfy them.

    Source: Thrush et al. 2022, arXiv:2204.03162, section 4, equations 1 to 3.
    """
    own_0, own_1 = scores[:, 0, 0], scores[:, 1, 1]
    text = (own_0 > scores[:, 0, 1]) & (own_1 > scores[:, 1, 0])
    image = (own_0 > scores[:, 1, 0]) & (own_1 > scores[:, 0, 1])
    return {"text": text, "image": image, "group": text & image}


def composition(
    embedder: EmbedderLike,
    *,
    pairs_per_kind: int = PAIRS_PER_KIND,
    seed: int = 0,
    cache: VectorCache | None = None,
) -> Result:
    """Winoground's scores on drawn pairs: two controls, swapped attributes, swapped places.

    A low score with a low control says that the drawings are not recognised; a low score with
    a high control that words are not bound to things.
    """
    result = _drawn_result("composition", embedder, len(PAIR_KINDS) * pairs_per_kind * 2)
    result.settings = {"pairs per kind": pairs_per_kind, "seed": seed, "chance": WINOGROUND_CHANCE}
    wrong: list[dict[str, Any]] = []
    for kind in PAIR_KINDS:
        pairs = pairs_of(kind, pairs_per_kind, seed)
        found = winoground_scores(_pair_scores(embedder, pairs, cache))
        for name, hits in found.items():
            note(result, f"{kind}: {name} score", hits, [pair.id for pair in pairs], what="pair")
        missed = [pair for pair, hit in zip(pairs, found["group"], strict=True) if not hit]
        wrong += [{"kind": kind, "id": pair.id} for pair in missed[: EXAMPLES_KEPT // 4]]
    result.details["missed"] = wrong
    return result


def _pair_scores(
    embedder: EmbedderLike, pairs: Sequence[ScenePair], cache: VectorCache | None
) -> Float32[np.ndarray, "pair 2 2"]:
    drawn = [image for pair in pairs for image in pair.images]
    images, _ = cached_images(embedder, drawn, cache=cache)
    captions = [caption for pair in pairs for caption in pair.captions]
    texts = cached_texts(embedder, captions, cache=cache)
    shape = (len(pairs), 2, embedder.dim)
    scores: Float32[np.ndarray, "pair 2 2"] = np.einsum(
        "pid,pcd->pic", images.reshape(shape), texts.reshape(shape)
    )
    return scores


def counting(
    embedder: EmbedderLike,
    *,
    per_count: int = PICTURES_PER_COUNT,
    seed: int = 0,
    cache: VectorCache | None = None,
) -> Result:
    """One to five equal things drawn: is "three red stars" the best of the five captions?"""
    scenes = counted_scenes(per_count, seed)
    images, _ = cached_images(embedder, [scene.image for scene in scenes], cache=cache)
    captions = [caption for scene in scenes for caption in scene.captions]
    texts = cached_texts(embedder, captions, cache=cache)  # the same few come again and again
    texts = texts.reshape(len(scenes), len(NUMBER_WORDS), -1)
    scores = np.einsum("sd,scd->sc", images, texts)
    counts = np.array([scene.count for scene in scenes])
    said, hits = counted(scores, counts)
    ids = [scene.id for scene in scenes]
    result = _drawn_result("counting", embedder, len(scenes))
    result.settings = {
        "pictures per count": per_count,
        "seed": seed,
        "chance": 1 / len(NUMBER_WORDS),
    }
    note(result, "counted right", hits, ids)
    note(result, "mean error", np.abs(said - counts), ids, higher_is_better=False, unit="things")
    for count, word in enumerate(NUMBER_WORDS, start=1):
        rows = np.flatnonzero(counts == count)
        note(result, f"counted right, {word}", hits[rows], [ids[row] for row in rows])
    confusion = np.zeros((len(NUMBER_WORDS), len(NUMBER_WORDS)), dtype=int)
    np.add.at(confusion, (counts - 1, said - 1), 1)
    result.details["confusion"] = {"labels": list(NUMBER_WORDS), "counts": confusion.tolist()}
    return result


def counted(
    scores: Float[np.ndarray, "scene count"], counts: Int[np.ndarray, " scene"]
) -> tuple[Int[np.ndarray, " scene"], Bool[np.ndarray, " scene"]]:
    """The count each picture is given, and whether it is right; column 0 stands for 1."""
    rows = np.arange(len(scores))
    own = scores[rows, counts - 1]
    others = scores.copy()
    others[rows, counts - 1] = -np.inf
    right = own > others.max(axis=1)
    # A wrong answer names the best of the other counts, also where its own ties with it.
    return np.where(right, counts, others.argmax(axis=1) + 1), right


def negation(
    embedder: EmbedderLike,
    data: LabelledSet,
    *,
    affirmed: str = WITH,
    denied: str = WITHOUT,
    limit: int | None = DEFAULT_LIMIT,
    seed: int = 0,
    cache: VectorCache | None = None,
) -> Result:
    """Asks "a photo with a dog" against "a photo with no dog", on pictures with and without dogs.

    Each picture is asked about its own class, and about another one's that is drawn at random.
    A model that ignores "no" gives one answer to both and has half of them right; hence "both
    right" (by chance 1/4), and "told apart": whether the affirmation is preferred more on the
    picture that shows the thing than on the one that does not, whatever the model's leaning
    (by chance 1/2). A picture may show another class's thing unsaid; labels do not tell.

    Raises ConfigError for a set of one class and where no picture can be read.
    """
    if len(data.class_names) < 2:
        raise ConfigError(f"{data.name} has one class: negation needs two.")
    data, images = with_vectors(embedder, some_of(data, limit, seed), cache=cache)
    random = np.random.default_rng(seed)
    classes = len(data.class_names)
    shift = random.integers(1, classes, size=len(data))
    absent = (data.labels + shift) % classes
    difference = cached_texts(
        embedder, [affirmed.format(with_article(name)) for name in data.main_names], cache=cache
    ) - cached_texts(embedder, [denied.format(name) for name in data.main_names], cache=cache)
    leaning = images @ difference.T  # (image, class): above 0 the affirmation is preferred
    rows = np.arange(len(data))
    shown = leaning[rows, data.labels]
    not_shown = leaning[rows, absent]
    result = new_result("negation", embedder, data)
    result.settings = {
        "affirmed": affirmed,
        "denied": denied,
        "limit": limit,
        "seed": seed,
        "chance": {"right": 1 / 2, "both right": 1 / 4, "told apart": 1 / 2},
    }
    ids = list(data.ids)
    note(result, "affirmed where shown", shown > 0, ids)
    note(result, "denied where not shown", not_shown < 0, ids)
    note(result, "both right", (shown > 0) & (not_shown < 0), ids)
    note(result, "told apart", _told_apart(leaning, data.labels, random), ids)
    return result


def _told_apart(
    leaning: Float[np.ndarray, "image label"],
    labels: Int[np.ndarray, " image"],
    random: np.random.Generator,
) -> Float[np.ndarray, " image"]:
    """Whether a picture leans to its class more than one without it, drawn at random, does."""
    order = random.permutation(len(labels))
    told = np.zeros(len(labels))
    for row, label in enumerate(labels.tolist()):
        others = order[labels[order] != label]
        if len(others):
            other = others[row % len(others)]
            told[row] = leaning[row, label] > leaning[other, label]
    return told


def with_article(name: str) -> str:
    """`a dog`, `an owl`; names of many things get one too, for labels do not say which."""
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def caption_swaps(
    embedder: EmbedderLike,
    data: CaptionedSet,
    *,
    changes: Mapping[str, CaptionChange] = CHANGES,
    limit: int | None = DEFAULT_LIMIT,
    seed: int = 0,
    cache: VectorCache | None = None,
) -> Result:
    """Does a picture prefer its caption to one that a small change made wrong? Chance is 1/2.

    Captions that a change does not apply to are left out and counted. Beside each figure is
    the one "without the picture": the mean picture's vector in place of each. What is above a
    half there can be told from the caption alone.

    Raises ConfigError where no change applies to any caption.
    """
    data, images = with_vectors(embedder, some_of(data, limit, seed), cache=cache)
    result = new_result("caption swaps", embedder, data)
    result.settings = {"limit": limit, "seed": seed, "chance": 1 / 2, "captions": {}}
    mean_image = images.mean(axis=0)
    names, owners = caption_ids(data)
    for kind, change in changes.items():
        random = np.random.default_rng(seed)
        changed = [change(caption, random) for caption in data.captions]
        rows = np.array([row for row, text in enumerate(changed) if text], dtype=np.int64)
        result.settings["captions"][kind] = len(rows)
        if not len(rows):
            continue
        wrong = [text for text in changed if text]
        right = [data.captions[row] for row in rows]
        difference = cached_texts(embedder, right, cache=cache) - cached_texts(
            embedder, wrong, cache=cache
        )
        margins = (images[data.owner[rows]] * difference).sum(axis=1)
        ids, clusters = [names[row] for row in rows], [owners[row] for row in rows]
        for name, hits in (
            (kind, margins > 0),
            (f"{kind}, without the picture", difference @ mean_image > 0),
        ):
            note(result, name, hits, ids, what="caption", clusters=clusters)
        worst = [row for row in np.argsort(margins)[: EXAMPLES_KEPT // 4] if margins[row] <= 0]
        result.details[kind] = [
            {"id": clusters[row], "caption": right[row], "preferred": wrong[row]} for row in worst
        ]
    if not result.figures:
        raise ConfigError(
            f"None of the {len(data.captions):,} captions of {data.name} has words that can be "
            f"exchanged ({', '.join(changes)}); the lists of words are English."
        )
    return result


def _drawn_result(task: str, embedder: EmbedderLike, images: int) -> Result:
    model = {"name": embedder.name, "model_id": embedder.model_id, "dim": embedder.dim}
    # The fingerprint is the drawings' own version: raise it when scenes.py draws otherwise.
    data = {"name": "drawn scenes", "images": images, "fingerprint": "scenes-1", "skipped": []}
    return Result(task=task, model=model, data=data)


def composition_page(page: "Page", result: Result) -> None:
    """Drawn pairs that were not told apart."""
    from twinlens.evaluate.page import Shown

    seed, count = result.settings["seed"], result.settings["pairs per kind"]
    missed = {item["id"] for item in result.details["missed"]}
    for kind in PAIR_KINDS:
        shown = [
            Shown(image, caption, "")
            for pair in pairs_of(kind, count, seed)
            if pair.id in missed
            for image, caption in zip(pair.images, pair.captions, strict=True)
        ]
        if shown:
            page.pictures(f"Not told apart: {kind}", shown)


def counting_page(page: "Page", result: Result) -> None:
    """What was said for each number, as a table."""
    confusion = result.details["confusion"]
    rows = [
        [f"{label} drawn", *counts]
        for label, counts in zip(confusion["labels"], confusion["counts"], strict=True)
    ]
    page.table(["", *(f"said {label}" for label in confusion["labels"])], rows)


def caption_swaps_page(page: "Page", result: Result, data: CaptionedSet) -> None:
    """Pictures that preferred a wrong caption most, by kind of change."""
    from twinlens.evaluate.page import Shown

    row_of = {name: row for row, name in enumerate(data.ids)}
    for kind, examples in result.details.items():
        shown = [
            Shown(
                data.images[row_of[item["id"]]], f"preferred: {item['preferred']}", item["caption"]
            )
            for item in examples
        ]
        if shown:
            page.pictures(f"Wrong caption preferred: {kind}", shown)
