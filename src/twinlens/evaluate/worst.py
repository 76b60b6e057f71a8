"""The worst cases with their pictures: what was wanted, beside what came first instead.

Scores say how often a model fails, these say at what. Two kinds: captions whose picture comes
far down, and pictures that get a wrong class with the highest confidence. Often the data is
wrong and not the model, which is worth knowing too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from twinlens.errors import ConfigError
from twinlens.evaluate.sets import CaptionedSet, LabelledSet
from twinlens.evaluate.vector_space import score_blocks

if TYPE_CHECKING:
    from twinlens.evaluate.page import Page, Shown

DEFAULT_COUNT = 24
FIRST_SHOWN = 3  # pictures that came before the wanted one
CONFIDENCE_SCALE = 100.0  # what CLIP ended its training with: exp(logit scale), at its limit

Images = Float[np.ndarray, "image dim"]
Texts = Float[np.ndarray, "text dim"]


@dataclass(frozen=True)
class WorstCaption:
    """A caption, where its picture came, and which pictures came first."""

    caption: int  # row of the set's captions
    image: int  # the wanted one's row
    rank: int  # 1 is best
    first: tuple[int, ...]  # rows, the best first
    score: float  # cosine to the wanted picture
    first_score: float  # cosine to the best one


@dataclass(frozen=True)
class WorstLabel:
    """A picture, its class, and the wrong one it was given."""

    image: int
    wanted: int
    given: int
    confidence: float  # softmax share of the wrong class, 0 to 1
    wanted_confidence: float


def worst_captions(
    images: Images,
    captions: Texts,
    owner: Int[np.ndarray, " text"],
    count: int = DEFAULT_COUNT,
    *,
    per_image: int = 1,
) -> list[WorstCaption]:
    """The captions whose picture ranks lowest, the worst first; those at rank 1 are none.

    At most `per_image` captions of one picture, so that one odd picture does not fill the
    page. A tie counts against us. Goes through the captions in blocks.
    """
    ranks = np.zeros(len(captions), dtype=np.int64)
    for start, scores in score_blocks(captions, images):
        end = start + len(scores)
        own = scores[np.arange(len(scores)), owner[start:end]]
        ranks[start:end] = (scores >= own[:, None]).sum(axis=1)
    chosen: list[WorstCaption] = []
    taken: dict[int, int] = {}
    for row in np.argsort(-ranks, kind="stable").tolist():
        image = int(owner[row])
        if len(chosen) == count or ranks[row] <= 1:
            break
        if taken.get(image, 0) >= per_image:
            continue
        taken[image] = taken.get(image, 0) + 1
        scores = images @ captions[row]
        own_score = float(scores[image])
        scores[image] = -np.inf  # in a tie it must not be its own rival
        first = np.argsort(-scores, kind="stable")[:FIRST_SHOWN]
        chosen.append(
            WorstCaption(
                row,
                image,
                int(ranks[row]),
                tuple(first.tolist()),
                own_score,
                float(scores[first[0]]),
            )
        )
    return chosen


def worst_labels(
    images: Images,
    classes: Texts,
    labels: Int[np.ndarray, " image"],
    count: int = DEFAULT_COUNT,
    *,
    scale: float = CONFIDENCE_SCALE,
) -> list[WorstLabel]:
    """Pictures given a wrong class with the highest confidence, the surest first.

    `scale` is what cosines are multiplied by before the softmax; it changes confidences, and
    their order between pictures, but no answers.
    """
    wrong: list[WorstLabel] = []
    for start, scores in score_blocks(images, classes):
        logits = scale * scores
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        given = shares.argmax(axis=1)
        wanted = labels[start : start + len(scores)]
        for place in np.flatnonzero(given != wanted).tolist():
            wrong.append(
                WorstLabel(
                    start + place,
                    int(wanted[place]),
                    int(given[place]),
                    float(shares[place, given[place]]),
                    float(shares[place, wanted[place]]),
                )
            )
        wrong = sorted(wrong, key=lambda item: (-item.confidence, item.image))[:count]
    return wrong


def worst_page(
    page: "Page",
    data: LabelledSet | CaptionedSet,
    worst: Sequence[WorstCaption] | Sequence[WorstLabel],
) -> None:
    """Adds the cases to the page: each wanted picture framed, then what came first.

    For labels what came first is a picture of the class that was given, where there is one.

    Raises ConfigError for cases of the other kind of set.
    """
    if not worst:
        page.text("Every query found what it wanted first.")
        return
    labels = isinstance(worst[0], WorstLabel)
    title = "Wrong with the highest confidence" if labels else "Captions whose picture came last"
    page.heading(title, f"{len(worst)} cases, the worst first. Framed: what was asked about.")
    for item in worst:
        if isinstance(data, CaptionedSet) and isinstance(item, WorstCaption):
            heading = f"{data.captions[item.caption]}: its picture is number {item.rank:,}"
            page.pictures(heading, _captioned(data, item))
        elif isinstance(data, LabelledSet) and isinstance(item, WorstLabel):
            wanted, given = data.main_names[item.wanted], data.main_names[item.given]
            page.pictures(f"{wanted}, taken for {given}", _labelled(data, item))
        else:
            raise ConfigError(f"{data.name} and the worst cases given are not of one kind.")


def _captioned(data: CaptionedSet, item: WorstCaption) -> "list[Shown]":
    from twinlens.evaluate.page import Shown

    wanted = Shown(
        data.images[item.image],
        f"wanted: number {item.rank:,}, cosine {item.score:.3f}",
        data.ids[item.image],
        "good",
    )
    return [wanted] + [
        Shown(
            data.images[row],
            f"number {place}" + (f", cosine {item.first_score:.3f}" if place == 1 else ""),
            data.ids[row],
        )
        for place, row in enumerate(item.first, start=1)
    ]


def _labelled(data: LabelledSet, item: WorstLabel) -> "list[Shown]":
    from twinlens.evaluate.page import Shown

    wanted, given = data.main_names[item.wanted], data.main_names[item.given]
    shown = [
        Shown(
            data.images[item.image],
            f"{given} {item.confidence:.0%}, {wanted} {item.wanted_confidence:.0%}",
            data.ids[item.image],
            "good",
        )
    ]
    others = np.flatnonzero(data.labels == item.given)
    if len(others):
        other = int(others[0])
        shown.append(Shown(data.images[other], f"from the class {given}", data.ids[other]))
    return shown


def as_details(
    data: LabelledSet | CaptionedSet, worst: Sequence[WorstCaption] | Sequence[WorstLabel]
) -> list[dict[str, Any]]:
    """The cases by ids and names, for a Result's `details`."""
    return [_details(data, item) for item in worst]


def _details(data: LabelledSet | CaptionedSet, item: WorstCaption | WorstLabel) -> dict[str, Any]:
    if isinstance(item, WorstCaption):
        assert isinstance(data, CaptionedSet)
        return {
            "caption": data.captions[item.caption],
            "wanted": data.ids[item.image],
            "rank": item.rank,
            "first": [data.ids[row] for row in item.first],
        }
    assert isinstance(data, LabelledSet)
    return {
        "id": data.ids[item.image],
        "class": data.main_names[item.wanted],
        "given": data.main_names[item.given],
        "confidence": item.confidence,
    }
