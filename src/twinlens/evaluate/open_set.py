"""Finds out what a path holds and opens it as a data set to measure on.

A folder may have one folder per class, a captions.csv / metadata.csv / labels.csv (.tsv,
.jsonl, .parquet), a .txt beside each picture, shards, or Parquet files; any of these may
stand in `test/`, `val/` or `train/`. A file is a table, a Parquet file or a shard. A built-in
name (benchmarks.py) is looked up where the user keeps the data.
"""

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from twinlens.data.image import IMAGE_SUFFIXES
from twinlens.data.pairs import SHARD_SUFFIXES, TABLE_SUFFIXES, FolderSource
from twinlens.data.parts import list_parts
from twinlens.data.tables import IMAGE_FIELDS, LONGEST_CELL
from twinlens.errors import ConfigError
from twinlens.evaluate.class_names import (
    ClassList,
    classes_beside,
    classes_of_folders,
    read_classes,
)
from twinlens.evaluate.items import Found, Item, Kind, item_of, merged, set_of
from twinlens.evaluate.open_parquet import open_parquet
from twinlens.evaluate.open_shards import (
    COUNT_NAME,
    SPLITS,
    benchmark_kind,
    numbered_shards,
    open_shards,
    read_templates_beside,
)
from twinlens.evaluate.sets import CaptionedSet, LabelledSet

TABLE_STEMS = ("captions", "metadata", "labels")
_PARQUET = ".parquet"


def open_set(
    place: str | os.PathLike[str],
    *,
    classes: Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    root: Path | None = None,
    kind: Kind | None = None,
) -> LabelledSet | CaptionedSet:
    """The pictures at a path, a shard pattern or a URL, or of a built-in name below `root`.

    `classes` is a file of class names (class_names.py says which forms it may have).
    `kind` says what the task needs where there are both labels and captions; without it
    captions count. `limit` takes that many pictures at even distances.

    Raises ConfigError, in one sentence, for whatever cannot be understood.
    """
    from twinlens.evaluate import benchmarks  # it uses this file's helpers

    text = os.fspath(place)
    if text in benchmarks.BENCHMARKS and not os.path.exists(text):
        found = benchmarks.open_benchmark(text, root=root, split=split)
        if classes is not None and found.classes is not None:
            found.classes = found.classes.renamed(read_classes(classes))
        return set_of(found, kind, limit)
    wanted = read_classes(classes) if classes is not None else None
    found, own_kind = _found(text, wanted, split)
    return set_of(found, kind or own_kind, limit)


def open_labelled(
    place: str | os.PathLike[str],
    *,
    classes: Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    root: Path | None = None,
) -> LabelledSet:
    """open_set for a task that needs labels."""
    data = open_set(place, classes=classes, split=split, limit=limit, root=root, kind="labels")
    assert isinstance(data, LabelledSet)
    return data


def open_captioned(
    place: str | os.PathLike[str],
    *,
    split: str | None = None,
    limit: int | None = None,
    root: Path | None = None,
) -> CaptionedSet:
    """open_set for a task that needs captions."""
    data = open_set(place, split=split, limit=limit, root=root, kind="captions")
    assert isinstance(data, CaptionedSet)
    return data


def _found(text: str, classes: ClassList | None, split: str | None) -> tuple[Found, Kind | None]:
    path = Path(text)
    lower = text.lower()
    if path.is_dir():
        return _in_folder(path, classes, split)
    if lower.endswith(SHARD_SUFFIXES) or text.startswith(("http://", "https://")):
        return open_shards([text], _file_name(path), classes=classes), None
    if not path.is_file():
        raise ConfigError(
            f"{text} is not there, and is no built-in name either: give a folder, a table "
            f"({', '.join(TABLE_SUFFIXES)}), shards ({', '.join(SHARD_SUFFIXES)}) or one of "
            f"{', '.join(_built_in())}."
        )
    if lower.endswith(_PARQUET):
        return open_parquet([path], _file_name(path), classes=classes), None
    if lower.endswith(TABLE_SUFFIXES):
        return open_table(path, classes=classes), None
    raise ConfigError(
        f"{text} is no data set that can be read: give a folder, a table "
        f"({', '.join(TABLE_SUFFIXES)}) or shards ({', '.join(SHARD_SUFFIXES)})."
    )


def _built_in() -> tuple[str, ...]:
    from twinlens.evaluate.benchmarks import BENCHMARKS

    return tuple(BENCHMARKS)


def _file_name(path: Path) -> str:
    """`flickr8k/test-0000`: file names alone are often "test" or "0"."""
    name = re.sub(r"(\.tar|\.tar\.gz|\.tgz|\.\w+)$", "", path.name, flags=re.IGNORECASE)
    return f"{path.absolute().parent.name}/{name}"


def _in_folder(
    folder: Path, classes: ClassList | None, split: str | None
) -> tuple[Found, Kind | None]:
    """What lies in a folder or in the split of it that was asked for."""
    inner, note = _split_folder(folder, split)
    taken = None if inner != folder else split
    name = folder.absolute().name + ("" if inner == folder else f"/{inner.name}")
    kind: Kind | None = None
    if (inner / COUNT_NAME).is_file():
        outer = inner.parent
        kind = benchmark_kind(outer)
        found = open_shards(numbered_shards(inner), name, classes=classes)
    elif shards := _with_suffix(inner, SHARD_SUFFIXES):
        shards, taken_note = _of_split(shards, taken, folder)
        found = open_shards(shards, name, classes=classes)
        note = note or taken_note
    elif files := _with_suffix(inner, (_PARQUET,)) or _with_suffix(inner / "data", (_PARQUET,)):
        files, taken_note = _of_split(files, taken, folder)
        found = open_parquet(files, name, classes=classes)
        note = note or taken_note
    elif tables := [path for path in _tables(inner) if path.is_file()]:
        found = open_table(tables[0], classes=classes, outer=folder)
    else:
        found = _pictures_alone(inner, name, classes, folder)
    found.templates = found.templates or read_templates_beside(inner, folder)
    found.notes += [note] if note else []
    return found, kind


def _tables(folder: Path) -> Iterator[Path]:
    return (folder / f"{stem}{suffix}" for stem in TABLE_STEMS for suffix in TABLE_SUFFIXES)


def _with_suffix(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.name.lower().endswith(suffixes))


def _split_folder(folder: Path, split: str | None) -> tuple[Path, str]:
    """The folder of the split, and a sentence where it was chosen for the user."""
    inside = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if split is not None:
        return (folder / split if split in inside else folder), ""
    there = [name for name in SPLITS if name in inside]
    if not there or set(inside) - set(there) or any(path.is_file() for path in _tables(folder)):
        return folder, ""
    note = _chosen(folder, there[0], there) if len(there) > 1 else ""
    return folder / there[0], note


def _of_split(files: list[Path], split: str | None, folder: Path) -> tuple[list[Path], str]:
    """The files whose names begin with the split's; all of them where names tell no splits."""
    of = {path: re.split(r"[-_.\d]", path.name, maxsplit=1)[0].lower() for path in files}
    if split is not None:
        chosen = [path for path in files if of[path] == split.lower()]
        if not chosen:
            raise ConfigError(
                f"{folder} has no split {split!r}: it has {', '.join(sorted(set(of.values())))}."
            )
        return chosen, ""
    there = [name for name in SPLITS if name in of.values()]
    if len(there) < 2 or set(of.values()) - set(there):
        return files, ""
    return [path for path in files if of[path] == there[0]], _chosen(folder, there[0], there)


def _chosen(folder: Path, taken: str, there: list[str]) -> str:
    return f"{folder.name} has {', '.join(there)}: {taken} was taken (choose with --split)."


def _pictures_alone(inner: Path, name: str, classes: ClassList | None, folder: Path) -> Found:
    """A folder per class, or texts beside the pictures."""
    if _has_texts(inner):
        return _open_texts(inner, name)
    folders = sorted(
        entry.name
        for entry in os.scandir(inner)
        if entry.is_dir() and not entry.name.startswith(".")
    )
    if not folders:
        raise ConfigError(
            f"{folder} has no folder per class, no {TABLE_STEMS[0]}.csv, no texts beside its "
            f"pictures and no shards: nothing says what its pictures show."
        )
    classes = classes or classes_beside(inner, *((folder,) if folder != inner else ()))
    return open_class_folders(inner, name, folders, classes)


def open_class_folders(
    root: Path,
    name: str,
    folders: list[str],
    classes: ClassList | None,
    *,
    leave_out: Iterable[str] = (),
) -> Found:
    """Pictures below folders that are classes; folders inside a class's belong to it."""
    kept = [folder for folder in folders if folder not in set(leave_out)]
    names, rows = classes_of_folders(kept, classes)
    paths: list[Path] = []
    items: list[Item] = []
    for folder in kept:
        for path in pictures_below(root / folder):
            identity = path.relative_to(root).as_posix()
            items.append(Item(identity, len(paths), label=folder))
            paths.append(path)
    keys = [""] * len(names)
    for folder, row in rows.items():
        keys[row] = folder
    skipped = [
        (path.name, "lies in no class folder") for path in _with_suffix(root, tuple(IMAGE_SUFFIXES))
    ]
    return Found(
        name=name,
        images=paths,
        items=items,
        classes=ClassList(str(root), names, tuple(keys)),
        skipped=skipped,
        root=str(root),
    )


def pictures_below(folder: Path) -> list[Path]:
    """Pictures in a folder and the folders inside, sorted; hidden ones are left out."""
    found = []
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(here, name)
            for name in sorted(files)
            if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")
        ]
    return found


def _has_texts(folder: Path) -> bool:
    """Whether a picture in the folder itself has a .txt of its own name beside it."""
    pictures = _with_suffix(folder, tuple(IMAGE_SUFFIXES))
    return any(path.with_suffix(".txt").is_file() for path in pictures)


def _open_texts(folder: Path, name: str) -> Found:
    """One caption a line of the text beside each picture, as training reads them."""
    (part,) = list_parts(FolderSource(path=str(folder), words="text"), 0)
    opened = part.open()
    references = [opened.reference(sample, slot=0) for sample in range(len(opened))]
    return Found(
        name=name,
        images=[folder / reference.key for reference in references],
        items=[
            Item(Path(reference.key).as_posix(), place, captions=reference.captions)
            for place, reference in enumerate(references)
        ],
        root=str(folder),
    )


def open_table(path: Path, *, classes: ClassList | None, outer: Path | None = None) -> Found:
    """A CSV, TSV or JSON Lines file; pictures lie below its folder.

    Rows with the same picture are one item with all their captions. Names of classes that are
    numbers may lie beside it, or in `outer`.
    """
    if path.suffix.lower() == _PARQUET:
        return open_parquet([path], _file_name(path), classes=classes)
    skipped: list[tuple[str, str]] = []
    rows = list(_rows(path, skipped))
    if not rows:
        raise ConfigError(f"{path} has no rows.")
    field = next((name for name in IMAGE_FIELDS if name in rows[0][1]), None)
    if field is None:
        raise ConfigError(
            f"{path} has no column for the pictures: name it {', '.join(IMAGE_FIELDS[:3])}. "
            f"It has {', '.join(map(repr, rows[0][1]))}."
        )
    items = []
    for where, row in rows:
        identity = row.get(field)
        if isinstance(identity, str) and identity.strip():
            items.append(item_of(row, identity.strip(), 0))
        else:
            skipped.append((where, "names no picture"))
    items = merged(items)
    for place, item in enumerate(items):
        item.place = place
    if classes is None and any(isinstance(item.label, int) for item in items):
        classes = classes_beside(path.parent, outer or path.parent)
    return Found(
        name=_file_name(path),
        images=[path.parent / item.id for item in items],
        items=items,
        classes=classes,
        skipped=skipped,
        root=str(path.parent),
    )


def _rows(path: Path, skipped: list[tuple[str, str]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each row and how messages call it; a broken line of JSON is skipped and named."""
    csv.field_size_limit(LONGEST_CELL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() in (".csv", ".tsv"):
                table = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
                for row in table:
                    yield f"{path.name}, line {table.line_num}", row
                return
            for number, line in enumerate(file, 1):
                where = f"{path.name}, line {number}"
                if not line.strip():
                    continue
                try:
                    values = json.loads(line)
                except ValueError as error:
                    skipped.append((where, f"broken JSON ({error})"))
                    continue
                if isinstance(values, dict):
                    yield where, values
                else:
                    skipped.append((where, "broken JSON (not an object)"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} is not a readable table: {error}") from error
