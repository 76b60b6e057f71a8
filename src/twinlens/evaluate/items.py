"""From what rows, JSON objects and shard members say of pictures to one checked set.

Every layout gives a list of `Item`; which words are labels, names, captions or groups, what
happens to an item without any, and how a limit picks, is decided here once.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from twinlens.data.image import ImageSource
from twinlens.data.tables import IMAGE_FIELDS
from twinlens.errors import ConfigError
from twinlens.evaluate.class_names import ClassList, Names, class_rows
from twinlens.evaluate.pictures import Picked
from twinlens.evaluate.sets import CaptionedSet, LabelledSet

Kind = Literal["labels", "captions"]

LABEL_FIELDS = ("label", "labels", "fine_label", "class", "class_name", "category", "target")
CAPTION_FIELDS = ("captions", "caption", "text", "txt", "sentences", "sentence")
# Neither groups nor words; `names` and `name` belong to the label.
_OTHER_FIELDS = {"names", "name", "wnid", "id", "key", "url", "coarse_label"}
MOST_GROUP_VALUES = 100  # a column with more is a name or a measurement, not a group


@dataclass
class Item:
    """What is known of one picture."""

    id: str
    place: int  # among the images
    label: int | str | None = None
    names: Names = ()  # of its class, where the item brings them
    captions: tuple[str, ...] = ()
    groups: dict[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class Found:
    """All that a layout holds, before it is known what it is wanted for."""

    name: str
    images: Sequence[ImageSource]
    items: list[Item]
    classes: ClassList | None = None  # the user's, or what lies beside the data
    templates: tuple[str, ...] = ()
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    root: str = ""
    template_key: str = ""


def item_of(values: Mapping[str, Any], identity: str, place: int) -> Item:
    """The item that a table's row or a sample's JSON describes."""
    label = next(
        (found for f in LABEL_FIELDS if (found := _label(values.get(f))) is not None), None
    )
    captions: tuple[str, ...] = ()
    for caption_field in CAPTION_FIELDS:
        captions = captions or _texts(values.get(caption_field))
    known = {*LABEL_FIELDS, *CAPTION_FIELDS, *IMAGE_FIELDS, *_OTHER_FIELDS}
    groups = {
        column: str(value)
        for column, value in values.items()
        if column and column not in known and isinstance(value, str | int | bool)
    }
    names = _texts(values.get("names")) or _texts(values.get("name"))
    if label is None and names:
        label = names[0]
    return Item(identity, place, label, names, captions, groups)


def _label(value: Any) -> int | str | None:
    """Numbers and texts of digits are numbers, other texts are words."""
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int):
        return value
    if not isinstance(value, str) or not value.strip():
        return None
    text = value.strip()
    return int(text) if text.isascii() and text.lstrip("-").isdecimal() else text


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple | np.ndarray):
        return ()
    return tuple(text.strip() for text in value if isinstance(text, str) and text.strip())


def merged(items: Iterable[Item]) -> list[Item]:
    """One item a picture: the captions of all rows with the same id, the rest of the first."""
    found: dict[str, Item] = {}
    for item in items:
        known = found.setdefault(item.id, item)
        if known is not item:
            new = tuple(text for text in item.captions if text not in known.captions)
            known.captions += new
    return list(found.values())


def set_of(found: Found, kind: Kind | None, limit: int | None) -> LabelledSet | CaptionedSet:
    """The set that was asked for; captions where nothing was asked and there are some.

    `limit` takes that many items at even distances, so that sorted classes all stay.
    Raises ConfigError where there is nothing to take, or no labels or captions.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit {limit}: must be at least 1.")
    if not found.items:
        first = f" The first problem: {': '.join(found.skipped[0])}." if found.skipped else ""
        raise ConfigError(f"{found.name} has no pictures that can be used.{first}")
    labels = any(item.label is not None for item in found.items)
    captions = any(item.captions for item in found.items)
    if not labels and not captions:
        raise ConfigError(
            f"{found.name} has pictures but neither labels nor captions: it needs a column or "
            f"field 'label' or 'caption', or one folder for each class."
        )
    if kind == "labels" and not labels:
        raise ConfigError(f"{found.name} has captions but no labels, which this task needs.")
    if kind == "captions" and not captions:
        raise ConfigError(f"{found.name} has labels but no captions, which this task needs.")
    if kind == "captions" or (kind is None and captions):
        return _captioned(found, limit)
    return _labelled(found, limit)


def _labelled(found: Found, limit: int | None) -> LabelledSet:
    items = _usable(found, [item.label is not None for item in found.items], "no label")
    classes = found.classes or _classes_in(items, found.name)
    labels = [item.label for item in items if item.label is not None]
    names, rows = class_rows(labels, [item.id for item in items], classes, found.name)
    kept = _spread(len(items), limit)
    full = LabelledSet(
        name=found.name,
        images=_images(found, items),
        labels=np.array(rows, dtype=np.int64),
        class_names=names,
        ids=tuple(item.id for item in items),
        templates=found.templates,
        groups=_groups(items),
        skipped=tuple(found.skipped),
        notes=(*found.notes, *_limit_note(kept, len(items))),
        root=found.root,
        template_key=found.template_key,
    )
    return with_class_notes(full).rows(kept) if len(kept) < len(items) else with_class_notes(full)


def with_class_notes(data: LabelledSet) -> LabelledSet:
    """With a sentence on classes without pictures, and on two classes of one name."""
    notes = list(data.notes)
    if empty := data.empty_classes:
        notes.append(
            f"{data.name}: {_some(empty)} of {len(data.class_names)} classes "
            f"{'has' if len(empty) == 1 else 'have'} no picture; a possible answer all the same."
        )
    counts = Counter(data.main_names)
    if twice := [name for name, count in counts.items() if count > 1]:
        notes.append(
            f"{data.name}: more than one class is called {_some(twice)}; no model can tell "
            f"them apart by name."
        )
    return replace(data, notes=tuple(notes))


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:3]))
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _captioned(found: Found, limit: int | None) -> CaptionedSet:
    items = _usable(found, [bool(item.captions) for item in found.items], "no caption")
    kept = _spread(len(items), limit)
    full = CaptionedSet(
        name=found.name,
        images=_images(found, items),
        ids=tuple(item.id for item in items),
        captions=tuple(text for item in items for text in item.captions),
        owner=np.repeat(np.arange(len(items)), [len(item.captions) for item in items]),
        groups=_groups(items),
        skipped=tuple(found.skipped),
        notes=(*found.notes, *_limit_note(kept, len(items))),
        root=found.root,
    )
    return full.rows(kept) if len(kept) < len(items) else full


def _usable(found: Found, good: list[bool], reason: str) -> list[Item]:
    found.skipped += [
        (item.id, reason) for item, fine in zip(found.items, good, strict=True) if not fine
    ]
    return [item for item, fine in zip(found.items, good, strict=True) if fine]


def _images(found: Found, items: list[Item]) -> Sequence[ImageSource]:
    places = [item.place for item in items]
    if places == list(range(len(found.images))):
        return found.images
    return Picked(found.images, places)


def _spread(count: int, limit: int | None) -> np.ndarray:
    """`limit` of the rows 0 to count - 1, at even distances, the first among them."""
    taken = count if limit is None else min(limit, count)
    return np.arange(taken) * count // taken


def _limit_note(kept: np.ndarray, count: int) -> tuple[str, ...]:
    if len(kept) == count:
        return ()
    return (f"{len(kept):,} of {count:,} pictures were taken, at even distances.",)


def _classes_in(items: list[Item], name: str) -> ClassList | None:
    """The classes that the items name themselves, in the order of their labels."""
    named: dict[int | str, tuple[Names, str]] = {}
    for item in items:
        if not item.names or item.label is None:
            return None
        names, first = named.setdefault(item.label, (item.names, item.id))
        if names != item.names:
            raise ConfigError(
                f"{name}: the label {item.label!r} is called {names[0]!r} at {first} but "
                f"{item.names[0]!r} at {item.id}. Correct one, or give --classes FILE."
            )
    numbers = all(isinstance(label, int) for label in named)
    labels = sorted(named, key=None if numbers else str)  # type: ignore[type-var,arg-type,unused-ignore]
    return ClassList(
        f"the names in {name}",
        tuple(named[label][0] for label in labels),
        tuple(str(label) for label in labels),
    )


def _groups(items: list[Item]) -> dict[str, tuple[str, ...]]:
    """Columns that have few values; a picture without one has ""."""
    columns = dict.fromkeys(column for item in items for column in item.groups)
    groups = {c: tuple(item.groups.get(c, "") for item in items) for c in columns}
    return {c: values for c, values in groups.items() if 1 < len(set(values)) <= MOST_GROUP_VALUES}
