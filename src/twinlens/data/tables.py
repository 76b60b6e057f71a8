"""Folders of pictures and tables of captions, as parts of one sample a picture.

Reads names and words, no pictures, except where a Parquet file holds the pictures itself:
then each of its row groups is a part, and its pictures are unpacked when it is opened.
"""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from twinlens.data.image import IMAGE_SUFFIXES
from twinlens.data.pairs import (
    TABLE_SUFFIXES,
    BadSample,
    FolderSource,
    TableSource,
    Words,
    words_of,
)
from twinlens.data.parts import Bytes, NothingOpen, OpenPart, Part, Reference
from twinlens.data.spool import SpooledFile, spool_bytes
from twinlens.errors import ConfigError, require_package

IMAGE_FIELDS = ("image", "file", "file_name", "filename", "filepath", "image_path", "path", "img")
TABLE_STEMS = ("captions", "metadata")
LONGEST_CELL = 10_000_000  # characters; the csv module stops at 131,072

_Row = tuple[str, tuple[str, ...], int | None]  # the picture's path, captions, label


def list_table_parts(source: FolderSource | TableSource, number: int) -> list[Part]:
    """The parts of a folder or a table. Raises ConfigError when it cannot be understood."""
    if isinstance(source, TableSource):
        return _table_parts(source, number)
    folder = Path(source.path)
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder.")
    tables = [folder / f"{stem}{suffix}" for stem in TABLE_STEMS for suffix in TABLE_SUFFIXES]
    tables = [path for path in tables if path.is_file()]
    if tables and source.words in ("auto", "table"):
        table = TableSource(
            path=str(tables[0]),
            caption_fields=source.caption_fields,
            label_field=source.label_field,
            templates=source.templates,
        )
        return _table_parts(table, number)
    pictures = sorted(_pictures(folder))
    beside = {name: os.path.splitext(name)[0] + ".txt" for name in pictures}
    with_text = [name for name, text in beside.items() if (folder / text).is_file()]
    if source.words == "text" or (source.words == "auto" and with_text):
        lines: list[_Row] = [(n, _lines(folder / t), None) for n, t in beside.items()]
        return [_RowsPart(number, source.path, folder, lines, source)]
    in_folders = [name for name in pictures if os.sep in name]
    if source.words == "classes" or (source.words == "auto" and in_folders):
        classes = sorted({name.split(os.sep)[0] for name in in_folders})
        numbers = {name: label for label, name in enumerate(classes)}
        samples: list[_Row] = [
            (name, (first.replace("_", " "),), numbers[first])
            for name in in_folders
            for first in (name.split(os.sep)[0],)
        ]
        templates = source.templates or source.class_templates
        words = Words(templates=templates)
        return [_RowsPart(number, source.path, folder, samples, words)]
    raise ConfigError(
        f"{folder} has {len(pictures):,} pictures but no captions: add captions.csv with the "
        f"columns file and caption, a .txt beside each picture, or a folder for each class."
    )


class _RowsPart:
    """A part whose words are known; its pictures are files."""

    slow = False

    def __init__(
        self,
        source: int,
        name: str,
        root: Path,
        samples: list[_Row],
        words: Words | None,
    ) -> None:
        self.source = source
        self.name = name
        self.problems: list[BadSample] = []
        self._root = os.fspath(root)
        self._samples = samples
        self._words = words

    def open(self) -> OpenPart:
        return self

    def __len__(self) -> int:
        return len(self._samples)

    def reference(self, sample: int, *, slot: int) -> Reference:
        name, captions, label = self._samples[sample]
        if self._words is not None:
            captions = self._words.fill(captions)
        path = os.path.join(self._root, name)
        return Reference(self.source, slot, name, Bytes(path), captions=captions, label=label)


def _pictures(folder: Path) -> Iterator[str]:
    """Paths below `folder` of what its suffix says is a picture; hidden ones are left out."""
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith("."):
                yield os.path.relpath(os.path.join(here, name), folder)


def _lines(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError:
        return ()
    return tuple(line for line in text.splitlines() if line.strip())


def _table_parts(source: TableSource, number: int) -> list[Part]:
    path = Path(source.path)
    root = path.parent if source.images is None else Path(source.images)
    if path.suffix.lower() == ".parquet":
        columns = _parquet_columns(path)
        field = _image_field(source, columns)
        if columns[field] == "bytes":
            groups = _parquet(path).metadata.num_row_groups
            return [_ParquetPart(number, source, field, group) for group in range(groups)]
        rows: Iterable[Mapping[str, Any]] = _parquet(path).read().to_pylist()
    else:
        rows, problems = _text_rows(path)
        first = next(iter(rows), None)
        if first is None:
            raise ConfigError(f"{path} has no rows.")
        field = _image_field(source, first)
        part = _RowsPart(number, source.path, root, _grouped(rows, field, source), None)
        part.problems = problems
        return [part]
    return [_RowsPart(number, source.path, root, _grouped(rows, field, source), None)]


def _grouped(rows: Iterable[Mapping[str, Any]], field: str, source: TableSource) -> list[_Row]:
    """One sample a picture, in the order of first mention, with the captions of all its rows."""
    found: dict[str, tuple[dict[str, None], int | None]] = {}
    for row in rows:
        name = row.get(field)
        if not isinstance(name, str) or not name.strip():
            continue
        captions, label = words_of(row, source)
        known, _ = found.setdefault(name.strip(), ({}, label))
        known.update(dict.fromkeys(captions))
    return [(name, tuple(captions), label) for name, (captions, label) in found.items()]


def _text_rows(path: Path) -> tuple[list[dict[str, Any]], list[BadSample]]:
    problems: list[BadSample] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() in (".csv", ".tsv"):
                csv.field_size_limit(LONGEST_CELL)
                tab = path.suffix.lower() == ".tsv"
                return list(csv.DictReader(file, delimiter="\t" if tab else ",")), problems
            rows = []
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError("not an object")
                    rows.append(row)
                except ValueError as error:
                    problems.append(BadSample("broken JSON", f"{path}, line {number}", str(error)))
            return rows, problems
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} is not a readable table: {error}") from error


def _image_field(source: TableSource, columns: Iterable[str]) -> str:
    names = list(columns)
    wanted = IMAGE_FIELDS if source.image_field is None else (source.image_field,)
    for field in wanted:
        if field in names:
            return field
    raise ConfigError(
        f"{source.path} has no column {' or '.join(map(repr, wanted))} for the pictures. It has "
        f"{', '.join(map(repr, names))}: name the right one as image_field."
    )


def _parquet(path: Path) -> Any:
    require_package("pyarrow", extra="train", purpose="reading Parquet")
    import pyarrow  # type: ignore[import-untyped,unused-ignore]
    from pyarrow import parquet  # type: ignore[import-untyped,unused-ignore]

    try:
        return parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise ConfigError(f"{path} is not a readable Parquet file: {error}") from error


def _parquet_columns(path: Path) -> dict[str, str]:
    """Column names; "bytes" for those that can hold pictures, as Hugging Face datasets do."""
    file = _parquet(path)
    from pyarrow import types  # type: ignore[import-untyped,unused-ignore]

    def holds_bytes(kind: Any) -> bool:
        if types.is_struct(kind):
            return any(child.name == "bytes" for child in kind)
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    return {f.name: "bytes" if holds_bytes(f.type) else "other" for f in file.schema_arrow}


class _ParquetPart:
    """One row group of a Parquet file that holds the pictures' bytes."""

    slow = True

    def __init__(self, source: int, table: TableSource, field: str, group: int) -> None:
        self.source = source
        self.name = f"{table.path}, row group {group}"
        self._table = table
        self._field = field
        self._group = group

    def open(self) -> OpenPart:
        table = self._table
        file = _parquet(Path(table.path))
        import pyarrow  # type: ignore[import-untyped,unused-ignore]

        try:
            rows = file.read_row_group(self._group).to_pylist()
        except (OSError, pyarrow.ArrowException) as error:
            return NothingOpen([BadSample("damaged shard", self.name, str(error))])
        places: list[tuple[int, int]] = []
        words = []
        with spool_bytes() as spool:
            for row in rows:
                picture = row.pop(self._field)
                data = picture.get("bytes") if isinstance(picture, dict) else picture
                places.append((spool.tell(), -1 if data is None else len(data)))
                spool.write(data or b"")
                words.append(words_of(row, table))
        stem = f"{Path(table.path).stem}/{self._group}"
        return _OpenRowGroup(self.source, stem, SpooledFile(spool.name, keep=False), places, words)


class _OpenRowGroup:
    def __init__(
        self,
        source: int,
        stem: str,
        keep: SpooledFile,
        places: list[tuple[int, int]],
        words: list[tuple[tuple[str, ...], int | None]],
    ) -> None:
        self.problems: list[BadSample] = []
        self._source = source
        self._stem = stem
        self._keep = keep
        self._places = places
        self._words = words

    def __len__(self) -> int:
        return len(self._places)

    def reference(self, sample: int, *, slot: int) -> Reference:
        offset, size = self._places[sample]
        captions, label = self._words[sample]
        return Reference(
            self._source,
            slot,
            f"{self._stem}/{sample}",
            None if size < 0 else Bytes(self._keep.path, offset, size),
            captions=captions,
            label=label,
            keep=self._keep,
        )
