"""Does a word written on a picture outweigh what the picture shows?

The name of another class is put on each picture as a paper label. Source: Goh et al. 2021,
"Multimodal Neurons in Artificial Neural Networks", Distill, doi:10.23915/distill.00030,
section "Typographic attacks in the wild". They photographed labels and wrote text over
pictures at a few fixed places; here a white label with black letters lies anywhere on the
picture. A label without a word is the control: whatever it hides it hides in both.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int
from PIL import Image, ImageDraw, ImageFont, features

from twinlens.embed import EmbedderLike
from twinlens.errors import ConfigError
from twinlens.evaluate.corruptions import reference_size
from twinlens.evaluate.result import Figure, Result
from twinlens.evaluate.sets import LabelledSet
from twinlens.evaluate.statistics import paired_difference
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

DEFAULT_LIMIT = 1000  # pictures; each is embedded three times
LABEL_WIDTH = 0.8  # share of the picture's width that the letters fill at most
LETTER_HEIGHT = 0.16  # share of the picture's shorter side, where the width allows
SMALLEST_LETTERS = 8  # pixels
PICTURES_KEPT = 24  # examples in the details

VERSIONS = ("clean", "blank", "attacked")
CLEAN, BLANK, ATTACKED = range(3)
LABELS_VERSION = "labels-1"  # raise it when labels are drawn otherwise: caches


def typographic_attack(
    embedder: EmbedderLike,
    data: LabelledSet,
    *,
    templates: Sequence[str] | None = None,
    limit: int | None = DEFAULT_LIMIT,
    seed: int = 0,
    cache: VectorCache | None = None,
) -> Result:
    """Accuracy without a label, with a blank one and with a wrong class's name on it.

    "written word wins" is the share of labelled pictures that are taken for the written class,
    beside how often that class wins with the blank label. "accuracy lost to the word" is the
    blank label's accuracy less the written one's.

    Raises ConfigError with fewer than two class names that can be written, where no picture
    can be read, and where this Pillow was built without FreeType.
    """
    names = _writable(data)
    data = some_of(data, limit, seed)
    written = wrong_classes(data.labels, names, seed)
    targets = targets_of(embedder, data, templates, cache=cache)
    hits, wins, unreadable = _measure(embedder, data, targets, written, seed, cache)
    data, kept = readable(data, unreadable)
    hits, wins, written = hits[kept], wins[kept], written[kept]
    result = new_result("typographic", embedder, data)
    result.settings = {
        "templates": list(templates_for(data, templates)),
        "limit": limit,
        "seed": seed,
        "chance": targets.chance,
        "classes that cannot be written": len(data.class_names) - len(names),
    }
    ids = list(data.ids)
    note(result, "accuracy@1 clean", hits[:, CLEAN], ids)
    note(result, "accuracy@1 blank label", hits[:, BLANK], ids)
    note(result, "accuracy@1 attacked", hits[:, ATTACKED], ids)
    note(result, "written word wins", wins[:, ATTACKED], ids, higher_is_better=False)
    note(result, "same class wins, blank label", wins[:, BLANK], ids, higher_is_better=False)
    lost = paired_difference(hits[:, ATTACKED], hits[:, BLANK])
    # A single picture has no interval.
    low, high = (None, None) if np.isnan(lost.low) else (lost.low, lost.high)
    result.figures["accuracy lost to the word"] = Figure(lost.difference, low, high, False)
    result.details["fooled"] = _fooled(data, written, hits, wins, kept, seed)
    return result


def wrong_classes(
    labels: Int[np.ndarray, " image"], classes: Int[np.ndarray, " written"], seed: int
) -> Int[np.ndarray, " image"]:
    """A class of `classes` for each picture, drawn at random and never its own."""
    random = np.random.default_rng(seed)
    drawn = classes[random.integers(len(classes), size=len(labels))]
    while len(own := np.flatnonzero(drawn == labels)):
        drawn[own] = classes[random.integers(len(classes), size=len(own))]
    return drawn


def labelled(
    image: Image.Image, word: str, *, across: float, down: float, blank: bool = False
) -> Image.Image:
    """The picture with a paper label on it, `across` and `down` of the room that is left.

    `blank` leaves the word out; the label keeps the size that the word needs.
    Both places are shares from 0 (left, upper edge) to 1.
    """
    font, (left, top, right, bottom) = _fitting(image, word)
    margin = max(2, (bottom - top) // 3)
    width, height = right - left + 2 * margin, bottom - top + 2 * margin
    x = round(across * max(0, image.width - width))
    y = round(down * max(0, image.height - height))
    changed = image.copy()
    pen = ImageDraw.Draw(changed)
    pen.rectangle((x, y, x + width - 1, y + height - 1), fill=(255, 255, 255))
    if not blank:
        pen.text((x + margin - left, y + margin - top), word, font=font, fill=(0, 0, 0))
    return changed


def _fitting(
    image: Image.Image, word: str
) -> tuple[ImageFont.FreeTypeFont, tuple[int, int, int, int]]:
    """The largest font in which the word fits, and the box of its ink."""
    size = max(SMALLEST_LETTERS, round(LETTER_HEIGHT * min(image.size)))
    while True:
        font = _font(size)
        left, top, right, bottom = (round(edge) for edge in font.getbbox(word))
        if right - left <= LABEL_WIDTH * image.width or size <= SMALLEST_LETTERS:
            return font, (left, top, right, bottom)
        size = max(SMALLEST_LETTERS, int(size * 0.9))


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own, which has ASCII alone; nothing of the machine's fonts is used."""
    if not features.check("freetype2"):
        raise ConfigError(
            "This Pillow was built without FreeType and cannot write on pictures: install the "
            "one from PyPI with `pip install --force-reinstall pillow`."
        )
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def can_be_written(word: str) -> bool:
    """Whether Pillow's font has every letter of the word."""
    font = _font(24)
    missing = bytes(font.getmask("\uffff"))  # the box that stands for any missing letter
    return bool(word.strip()) and all(
        letter.isspace() or bytes(font.getmask(letter)) != missing for letter in set(word)
    )


def _writable(data: LabelledSet) -> Int[np.ndarray, " written"]:
    rows = [row for row, name in enumerate(data.main_names) if can_be_written(name)]
    if len(rows) < 2:
        raise ConfigError(
            f"{data.name} has {len(data.class_names)} classes, and the names of {len(rows)} can be "
            f"written with Pillow's own font, which has English letters alone: a wrong name takes "
            f"two."
        )
    return np.array(rows, dtype=np.int64)


def _measure(
    embedder: EmbedderLike,
    data: LabelledSet,
    targets: Targets,
    written: Int[np.ndarray, " image"],
    seed: int,
    cache: VectorCache | None,
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, str]]]:
    """Per picture and version: whether its own class was found, and whether the written one."""
    hits, wins = np.zeros((len(data), 3)), np.zeros((len(data), 3))
    attacked = Targets(targets.vectors, targets.owner, written, targets.metric)

    def names(row: int) -> list[str]:
        word = data.main_names[written[row]]
        return [f"{LABELS_VERSION} {version} {word} {seed} {row}" for version in VERSIONS]

    def make(image: Image.Image, row: int) -> Iterator[Image.Image]:
        return _versions(data, written, seed, image, row)

    views = Views(embedder, data.images, make, names, cache=cache)
    for batch in views:
        hits[batch.rows, batch.views] = targets.found(batch.vectors, batch.rows)
        wins[batch.rows, batch.views] = attacked.found(batch.vectors, batch.rows)
    return hits, wins, views.unreadable


def _versions(
    data: LabelledSet, written: Int[np.ndarray, " image"], seed: int, image: Image.Image, row: int
) -> Iterator[Image.Image]:
    """Clean, with a blank label, with a written one."""
    image = reference_size(image)
    across, down = _place(row, seed)
    word = data.main_names[written[row]]
    yield image
    for blank in (True, False):
        yield labelled(image, word, across=across, down=down, blank=blank)


def _place(row: int, seed: int) -> tuple[float, float]:
    """Where the label of the picture at a row lies, across and down."""
    across, down = np.random.default_rng([seed, row]).random(2).tolist()
    return across, down


def _fooled(
    data: LabelledSet,
    written: np.ndarray,
    hits: np.ndarray,
    wins: np.ndarray,
    kept: np.ndarray,
    seed: int,
) -> list[dict[str, Any]]:
    """The first pictures that were right with a blank label and read with a written one."""
    rows = np.flatnonzero((hits[:, BLANK] == 1) & (wins[:, ATTACKED] == 1))[:PICTURES_KEPT]
    return [
        {
            "id": data.ids[row],
            "class": data.main_names[data.labels[row]],
            "written": data.main_names[written[row]],
            "place": _place(int(kept[row]), seed),
        }
        for row in rows
    ]


def typographic_page(page: "Page", result: Result, data: LabelledSet) -> None:
    """Pictures that a written word turned into something else, as the model saw them."""
    from twinlens.data.image import read_image
    from twinlens.evaluate.page import Shown

    row_of = {name: row for row, name in enumerate(data.ids)}
    shown = []
    for item in result.details["fooled"]:
        image = reference_size(read_image(data.images[row_of[item["id"]]]))
        across, down = item["place"]
        changed = labelled(image, item["written"], across=across, down=down)
        shown.append(Shown(changed, f"{item['class']}, taken for {item['written']}", item["id"]))
    if shown:
        page.pictures("A written word won", shown)
