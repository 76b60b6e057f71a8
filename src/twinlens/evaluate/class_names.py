"""Which names the classes of a data set have: from a file, a folder's name, or ImageNet's list.

A class file is one of
- lines, one name a class;
- lines `folder<TAB>name, synonym, synonym` (`label<TAB>...` where labels are numbers);
- JSON: a list of names or of lists of synonyms, an object {folder: name or names}, or a list
  of objects with `label`, `wnid` or `folder`, and `names` or `name`.

Row i is the class with the label number i, unless the file gives numbers itself. Where
labels are words, or pictures lie in folders, they are found by the file's own key (folder,
wnid) or by one of the names.
"""

import functools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from twinlens.errors import ConfigError

# In this order where a data set brings its own; CLIP_benchmark's is the first.
CLASS_FILES = ("classnames.txt", "classes.txt", "classes.tsv", "classes.json")
KEY_FIELDS = ("folder", "wnid", "id", "key")

_WNID = re.compile(r"n\d{8}")

Names = tuple[str, ...]


@dataclass(frozen=True)
class ClassList:
    """The classes in a file's order. `keys` holds "" where the file gives a name only."""

    source: str  # as messages call it
    names: tuple[Names, ...]
    keys: tuple[str, ...]

    @property
    def has_keys(self) -> bool:
        return any(self.keys)

    @functools.cached_property
    def rows(self) -> dict[str, int]:
        """The row of every key and of every name; a key counts before another row's name."""
        found: dict[str, int] = {}
        for row, names in enumerate(self.names):
            for name in names:
                found.setdefault(_plain(name), row)
        keys = [(row, key) for row, key in enumerate(self.keys) if key]
        return found | {_plain(key): row for row, key in keys} | {key: row for row, key in keys}

    def row_of(self, word: str) -> int | None:
        """The class that a folder's name or a label in words means, or None."""
        return self.rows.get(word, self.rows.get(_plain(word)))

    def renamed(self, other: "ClassList") -> "ClassList":
        """With the names of `other`: found by its keys, or else one for each row.

        Raises ConfigError where their numbers differ.
        """
        if other.has_keys:
            return other
        if len(other.names) != len(self.names):
            raise ConfigError(
                f"The class file {other.source} has {len(other.names)} names, but the data has "
                f"{len(self.names)} classes. Give one name for each, in their order."
            )
        return ClassList(other.source, other.names, self.keys)

    def row_of_number(self, label: int) -> int | None:
        """The class of a label number: the file's own numbers where it has some, else its rows."""
        return self._numbers.get(label)

    @functools.cached_property
    def _numbers(self) -> dict[int, int]:
        own = bool(self.keys) and all(key.isdecimal() for key in self.keys)
        return {int(self.keys[row]) if own else row: row for row in range(len(self.names))}


def readable(folder: str) -> str:
    """`annual_crop` as a person writes it."""
    return folder.replace("_", " ").strip()


def _plain(text: str) -> str:
    return readable(text).casefold()


def read_classes(path: Path) -> ClassList:
    """The classes in a file. Raises ConfigError for a missing, broken or empty file or name."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"The class file {path} is not there. Correct --classes.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The class file {path} cannot be read: {error}") from error
    if path.suffix.lower() == ".json":
        entries = list(_json_entries(path, text))
    else:
        entries = [_line_entry(line) for line in text.splitlines() if line.strip()]
    if not entries:
        raise ConfigError(f"The class file {path} is empty: write one class name a line.")
    for number, (_, names) in enumerate(entries, 1):
        if not names:
            raise ConfigError(f"Class {number} of {path} has no name: fill it in.")
    keys = [key for key, _ in entries if key]
    if len(set(keys)) < len(keys):
        twice = next(key for place, key in enumerate(keys) if key in keys[:place])
        raise ConfigError(f"{path} names the class {twice!r} twice. Remove one of its lines.")
    return ClassList(
        str(path), tuple(names for _, names in entries), tuple(key for key, _ in entries)
    )


def _line_entry(line: str) -> tuple[str, Names]:
    key, tab, rest = line.partition("\t")
    if not tab:
        return "", (line.strip(),)
    return key.strip(), _clean(rest.split(","))


def _json_entries(path: Path, text: str) -> Iterable[tuple[str, Names]]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"The class file {path} is no JSON: {error}") from error
    if isinstance(values, dict):
        return [(str(key), _names(value)) for key, value in values.items()]
    if not isinstance(values, list):
        raise ConfigError(f"The class file {path} must hold a JSON list or object.")
    if values and all(isinstance(value, dict) for value in values):
        return _object_entries(values)
    return [("", _names(value)) for value in values]


def _object_entries(values: list[dict[str, Any]]) -> Iterable[tuple[str, Names]]:
    """Objects with the labels 0, 1, 2, ... stand in that order; other labels are the keys."""
    labels = [str(value.get("label", "")) for value in values]
    fields: tuple[str, ...] = KEY_FIELDS
    if set(labels) == {str(number) for number in range(len(values))}:
        values = sorted(values, key=lambda value: int(value["label"]))
    elif all(labels):
        fields = ("label",)
    for value in values:
        key = next((str(value[field]) for field in fields if field in value), "")
        yield key, _names(value.get("names", value.get("name")))


def _names(value: Any) -> Names:
    if isinstance(value, str):
        return _clean([value])
    if isinstance(value, list):
        return _clean([name for name in value if isinstance(name, str)])
    return ()


def _clean(names: Iterable[str]) -> Names:
    return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))


@functools.cache
def imagenet_classes() -> ClassList:
    """ImageNet's 1,000 classes in the order of their wnids, which is that of the labels.

    The names are those that OpenAI used for CLIP (openai/CLIP, MIT licence, the notebook
    Prompt_Engineering_for_ImageNet), with which published zero-shot figures are made.
    """
    text = files("twinlens.evaluate").joinpath("imagenet_classes.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines()[1:]]
    return ClassList(
        "ImageNet", tuple((name,) for _, name in rows), tuple(wnid for wnid, _ in rows)
    )


def classes_beside(*folders: Path) -> ClassList | None:
    """The first class file in any of these folders, or None."""
    for folder in folders:
        for name in CLASS_FILES:
            if (folder / name).is_file():
                return read_classes(folder / name)
    return None


def classes_of_folders(
    folders: Sequence[str], classes: ClassList | None
) -> tuple[tuple[Names, ...], dict[str, int]]:
    """The class names, and each folder's row, for folders that each hold one class.

    Without `classes` a folder's own name counts, or ImageNet's name where all are wnids.
    Raises ConfigError for a folder that the class file does not know.
    """
    if classes is None:
        names: list[Names] = [(readable(folder),) for folder in folders]
        if folders and all(_WNID.fullmatch(folder) for folder in folders):
            known = imagenet_classes()
            rows = [known.row_of(folder) for folder in folders]
            if all(row is not None for row in rows):
                names = [known.names[row] for row in rows if row is not None]
        return tuple(names), {folder: row for row, folder in enumerate(folders)}
    found = {folder: classes.row_of(folder) for folder in folders}
    unknown = [folder for folder, row in found.items() if row is None]
    if not unknown:
        return classes.names, {folder: row for folder, row in found.items() if row is not None}
    if classes.has_keys or len(unknown) < len(folders):
        raise ConfigError(
            f"The folder {unknown[0]!r} is not in the class file {classes.source} "
            f"({len(unknown)} of {len(folders)} are not). Add a line "
            f"'{unknown[0]}<TAB>its name' or remove the folder."
        )
    if len(folders) != len(classes.names):
        raise ConfigError(
            f"The class file {classes.source} has {len(classes.names)} names, but there are "
            f"{len(folders)} class folders. Give one name for each, in the folders' order."
        )
    return classes.names, {folder: row for row, folder in enumerate(sorted(folders))}


def class_rows(
    labels: Sequence[int | str], ids: Sequence[str], classes: ClassList | None, name: str
) -> tuple[tuple[Names, ...], list[int]]:
    """The class names, and each picture's row, from labels that are all numbers or all words.

    Without `classes` words name themselves, in alphabetical order. Raises ConfigError for
    numbers without names, and for a label that the classes do not have.
    """
    if all(isinstance(label, int) for label in labels):
        if classes is None:
            raise ConfigError(
                f"The labels of {name} are numbers without names: give a class file with "
                f"--classes FILE (one name a line, the first for label 0)."
            )
        find: Callable[[Any], int | None] = classes.row_of_number
    elif classes is None:
        words = [str(label) for label in labels]
        unique = sorted(set(words))
        places = {word: place for place, word in enumerate(unique)}
        return tuple((readable(word),) for word in unique), [places[word] for word in words]
    else:
        find = classes.row_of
        labels = [str(label) for label in labels]
    rows = []
    for label, identity in zip(labels, ids, strict=True):
        row = find(label)
        if row is None:
            raise ConfigError(
                f"{name}: picture {identity} has the label {label!r}, which is not among the "
                f"{len(classes.names)} classes of {classes.source}. Correct the label or add "
                f"the class."
            )
        rows.append(row)
    return classes.names, rows
