"""Labelled and captioned pictures in WebDataset shards, ours and CLIP_benchmark's.

Ours: each picture's `json` holds `label` and `names`/`name`, or `captions`; the class names
may lie beside the shards. CLIP_benchmark's (LAION-AI/CLIP_benchmark,
clip_benchmark/datasets/builder.py, build_wds_dataset): `test/nshards.txt`, `test/0.tar`, ...,
with a `.cls` number or a `.txt` of one caption a line for each picture; one folder above,
`classnames.txt`, `zeroshot_classification_templates.txt` and `dataset_type.txt`.

Shards are read where they lie; a gzipped one is unpacked to a temporary file first.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from twinlens.data.pairs import ShardSource
from twinlens.data.parts import Bytes, Reference, list_parts
from twinlens.data.spool import SpooledFile
from twinlens.errors import ConfigError
from twinlens.evaluate.class_names import ClassList, classes_beside
from twinlens.evaluate.items import Found, Item, Kind, item_of
from twinlens.evaluate.pictures import FileRanges

SPLITS = ("test", "val", "validation", "valid", "dev", "train")  # in order of preference
COUNT_NAME = "nshards.txt"
TYPE_NAME = "dataset_type.txt"
TEMPLATES_NAME = "zeroshot_classification_templates.txt"


def numbered_shards(folder: Path) -> list[Path]:
    """0.tar, 1.tar, ... as many as nshards.txt says. Raises ConfigError where one is missing."""
    text = _read_text(folder / COUNT_NAME)
    if not text.strip().isdecimal():
        raise ConfigError(f"{folder / COUNT_NAME} must hold one number, not {text.strip()!r}.")
    shards = [folder / f"{number}.tar" for number in range(int(text))]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise ConfigError(
            f"{folder / COUNT_NAME} counts {len(shards)} shards, but {missing[0]} is not there "
            f"({len(missing)} missing). Fetch the data set again."
        )
    return shards


def benchmark_kind(folder: Path) -> Kind:
    """What dataset_type.txt says; without it labels, as CLIP_benchmark has it."""
    path = folder / TYPE_NAME
    kind = _read_text(path).strip().lower() if path.is_file() else "classification"
    if kind not in ("classification", "retrieval"):
        raise ConfigError(
            f"{path} says {kind!r}; only 'classification' and 'retrieval' can be evaluated."
        )
    return "captions" if kind == "retrieval" else "labels"


def read_templates_beside(*folders: Path) -> tuple[str, ...]:
    """CLIP_benchmark's template file, whose {c} becomes {}."""
    for folder in folders:
        if (folder / TEMPLATES_NAME).is_file():
            lines = _read_text(folder / TEMPLATES_NAME).splitlines()
            return tuple(re.sub(r"\{\w*\}", "{}", line.strip()) for line in lines if line.strip())
    return ()


def open_shards(shards: Iterable[str | Path], name: str, *, classes: ClassList | None) -> Found:
    """Everything in these shards (paths, patterns or URLs)."""
    places = tuple(str(shard) for shard in shards)
    reader = _Reader()
    for part in list_parts(ShardSource(shards=places), 0):
        opened = part.open()
        reader.skipped += [
            (bad.name, f"{bad.kind} ({bad.detail})" if bad.detail else bad.kind)
            for bad in opened.problems
        ]
        reader.add(opened.reference(sample, slot=0) for sample in range(len(opened)))
    folder = Path(places[0]).parent
    # Only then is the folder above the data set's; else it holds other sets, with other classes.
    folders = (folder, folder.parent) if folder.name in SPLITS else (folder,)
    return Found(
        name=name,
        images=reader.images(),
        items=reader.items,
        classes=classes or classes_beside(*folders),
        templates=read_templates_beside(*folders),
        skipped=reader.skipped,
        root=str(folder),
    )


class _Reader:
    """Collects where pictures are and what their other members say."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.skipped: list[tuple[str, str]] = []
        self._paths: list[str] = []
        self._ranges: list[tuple[int, int, int]] = []  # file, offset, size
        self._keep: list[SpooledFile] = []

    def images(self) -> FileRanges:
        ranges = np.array(self._ranges, dtype=np.int64).reshape(-1, 3)
        return FileRanges(self._paths, ranges[:, 0], ranges[:, 1], ranges[:, 2], self._keep)

    def add(self, references: Iterable[Reference]) -> None:
        """The samples of one shard, all of which lie in one file."""
        file = None
        try:
            for reference in references:
                if reference.image is None:
                    self.skipped.append((reference.key, "no picture"))
                    continue
                if file is None:
                    file = open(reference.image.path, "rb")  # noqa: SIM115
                    self._paths.append(reference.image.path)
                    self._keep += [reference.keep] if reference.keep else []
                members = {where: _at(file, place) for where, place in reference.members}
                self._add(reference.key, reference.image, members)
        finally:
            if file is not None:
                file.close()

    def _add(self, key: str, image: Bytes, members: dict[str, bytes]) -> None:
        try:
            values = _values(members)
        except (ValueError, RecursionError) as error:
            self.skipped.append((key, f"broken JSON ({error})"))
            return
        self.items.append(item_of(values, key, len(self._ranges)))
        self._ranges.append((len(self._paths) - 1, image.offset, image.size))


def _at(file: Any, place: Bytes) -> bytes:
    file.seek(place.offset)
    data: bytes = file.read(place.size)
    return data


def _values(members: dict[str, bytes]) -> dict[str, Any]:
    """The JSON object, with what .txt and .cls say where it does not. Raises ValueError."""
    values = json.loads(members["json"]) if "json" in members else {}
    if not isinstance(values, dict):
        raise ValueError(f"an object was expected, not {type(values).__name__}")
    if "cls" in members:
        values.setdefault("label", _text(members["cls"]).strip())
    if "txt" in members and not {"captions", "caption"} & values.keys():
        values["captions"] = _text(members["txt"]).splitlines()
    return values


def _text(data: bytes) -> str:
    return data.decode("utf-8-sig", errors="replace")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
