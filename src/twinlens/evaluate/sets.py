"""What evaluation measures on: pictures with labels, or pictures with captions.

Both are values whose pictures are read one by one when asked for, so that 100,000 of them
need no memory. Where they come from is open_set.py's and benchmarks.py's; their vectors
are vectors.py's.
"""

import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int

from twinlens.data.image import ImageSource
from twinlens.errors import ConfigError
from twinlens.evaluate.pictures import Picked

Groups = Mapping[str, tuple[str, ...]]
Rows = Int[np.ndarray, " kept"]


@dataclass(frozen=True, eq=False)
class LabelledSet:
    """Pictures, each of one class.

    Raises ConfigError where the parts do not fit each other: counts, labels, empty names.
    """

    name: str
    images: Sequence[ImageSource]  # whatever read_image takes
    labels: Int[np.ndarray, " image"]  # rows of class_names
    class_names: tuple[tuple[str, ...], ...]  # synonyms; the first is the main one
    ids: tuple[str, ...]  # stable names of the pictures: shown on pages, paired by `compare`
    templates: tuple[str, ...] = ()  # the data set's own, with {} for the class name
    groups: Groups = field(default_factory=dict)  # column -> a value for each picture
    skipped: tuple[tuple[str, str], ...] = ()  # (id, reason) of pictures left out so far
    notes: tuple[str, ...] = ()  # sentences that the user should see once
    root: str = ""  # where it was read from; no part of the fingerprint
    template_key: str = ""  # which of templates.py's sets fits, where there is one

    def __post_init__(self) -> None:
        _check_images(self.name, self.images, self.ids, self.groups)
        _check_count(self.name, "labels", len(self.labels), len(self.images))
        if not self.class_names:
            raise ConfigError(f"{self.name} has no classes: give their names with --classes FILE.")
        for row, names in enumerate(self.class_names):
            if not names or not all(name.strip() for name in names):
                raise ConfigError(f"Class {row} of {self.name} has no name: fill it in.")
        outside = np.flatnonzero((self.labels < 0) | (self.labels >= len(self.class_names)))
        if len(outside):
            row = int(outside[0])
            raise ConfigError(
                f"{self.name}: picture {self.ids[row]} has the label {self.labels[row]}, but there "
                f"are only {len(self.class_names)} class names (labels 0 to "
                f"{len(self.class_names) - 1}). Correct the label or add the class's name."
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def main_names(self) -> tuple[str, ...]:
        """One name a class."""
        return tuple(names[0] for names in self.class_names)

    @property
    def empty_classes(self) -> tuple[str, ...]:
        """Names of the classes that no picture has."""
        counts = np.bincount(self.labels, minlength=len(self.class_names))
        return tuple(self.class_names[row][0] for row in np.flatnonzero(counts == 0))

    def rows(self, rows: Rows) -> "LabelledSet":
        """The pictures at these rows; all classes stay."""
        return _rows(self, rows, labels=self.labels[rows])

    def without(self, skipped: Iterable[tuple[int, str]]) -> "LabelledSet":
        """Without the pictures at these (row, reason), which `skipped` then names."""
        return _without(self, skipped)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Equal for two sets with the same ids, labels and class names, in the same order."""
        return _digest([*self.ids, *map(str, self.labels.tolist()), *map(str, self.class_names)])

    def describe(self) -> dict[str, Any]:
        """What a Result's `data` holds."""
        return _described(self, classes=len(self.class_names))


@dataclass(frozen=True, eq=False)
class CaptionedSet:
    """Pictures with any number of captions each.

    Raises ConfigError where the parts do not fit each other.
    """

    name: str
    images: Sequence[ImageSource]
    ids: tuple[str, ...]
    captions: tuple[str, ...]
    owner: Int[np.ndarray, " caption"]  # the row of each caption's picture
    groups: Groups = field(default_factory=dict)  # column -> a value for each picture
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    root: str = ""

    def __post_init__(self) -> None:
        _check_images(self.name, self.images, self.ids, self.groups)
        if not self.captions:
            raise ConfigError(f"{self.name} has no captions.")
        if len(self.owner) != len(self.captions):
            raise ConfigError(
                f"{self.name} has {len(self.captions):,} captions but says for {len(self.owner):,} "
                f"to which picture they belong."
            )
        outside = np.flatnonzero((self.owner < 0) | (self.owner >= len(self.images)))
        if len(outside):
            row = int(outside[0])
            raise ConfigError(
                f"{self.name}: caption {row} belongs to picture {self.owner[row]}, but there are "
                f"only {len(self.images):,} pictures."
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def captions_per_image(self) -> Int[np.ndarray, " image"]:
        """How many captions each picture has."""
        return np.bincount(self.owner, minlength=len(self.images))

    def rows(self, rows: Rows) -> "CaptionedSet":
        """The pictures at these rows, with their captions in the order they had."""
        place = np.full(len(self.images), -1)
        place[rows] = np.arange(len(rows))
        kept = np.flatnonzero(place[self.owner] >= 0)
        captions = tuple(self.captions[row] for row in kept)
        return _rows(self, rows, captions=captions, owner=place[self.owner[kept]])

    def without(self, skipped: Iterable[tuple[int, str]]) -> "CaptionedSet":
        """Without the pictures at these (row, reason) and without their captions."""
        return _without(self, skipped)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Equal for two sets with the same ids and captions, in the same order."""
        return _digest([*self.ids, *self.captions, *map(str, self.owner.tolist())])

    def describe(self) -> dict[str, Any]:
        """What a Result's `data` holds."""
        return _described(self, captions=len(self.captions))


AnySet = TypeVar("AnySet", LabelledSet, CaptionedSet, LabelledSet | CaptionedSet)


def _check_images(
    name: str, images: Sequence[ImageSource], ids: tuple[str, ...], groups: Groups
) -> None:
    if not len(images):
        raise ConfigError(f"{name} has no pictures that can be used.")
    _check_count(name, "ids", len(ids), len(images))
    for column, values in groups.items():
        _check_count(name, f"values of the group {column!r}", len(values), len(images))


def _check_count(name: str, what: str, count: int, images: int) -> None:
    if count != images:
        raise ConfigError(
            f"{name} has {images:,} pictures but {count:,} {what}: there must be one for each."
        )


def _rows(data: AnySet, rows: Rows, **own: Any) -> AnySet:
    """`own` are the parts that the other kind of set does not have, already picked."""
    return replace(
        data,
        images=Picked(data.images, rows),
        ids=tuple(data.ids[row] for row in rows),
        groups={
            column: tuple(values[row] for row in rows) for column, values in data.groups.items()
        },
        **own,
    )


def _without(data: AnySet, skipped: Iterable[tuple[int, str]]) -> AnySet:
    reasons = dict(skipped)
    if not reasons:
        return data
    kept = data.rows(np.delete(np.arange(len(data)), list(reasons)))
    named = tuple((data.ids[row], reason) for row, reason in sorted(reasons.items()))
    return replace(kept, skipped=data.skipped + named)


def _described(data: LabelledSet | CaptionedSet, **counted: int) -> dict[str, Any]:
    return {
        "name": data.name,
        "images": len(data),
        **counted,
        "fingerprint": data.fingerprint,
        "skipped": [list(item) for item in data.skipped],
    }


def _digest(texts: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
