"""What a training pair is, and the three kinds of places that pairs come from.

A source is a value: it goes into a training run's config.json. Reading it is left to
parts.py (what there is), stream.py (in which order) and decode.py (bytes to pairs).
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from twinlens.config import JsonConfig
from twinlens.errors import ConfigError

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")

# Looked for in this order where a source names no fields; the first with words in it counts.
CAPTION_FIELDS = ("captions", "caption", "text", "txt", "names", "name", "label")


@dataclass(frozen=True)
class Pair:
    """A picture with the captions that fit it."""

    key: str  # unique within its source
    image: Image.Image  # RGB
    captions: tuple[str, ...]  # at least one
    label: int | None  # pictures of one label fit each other's captions
    source: str  # the source's name


@dataclass(frozen=True)
class BadSample:
    """A sample, or a whole shard, that cannot be used: what is wrong, with which, and how."""

    kind: str  # a few words, the same for every sample with this fault
    name: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.kind}" + (f" ({self.detail})" if self.detail else "")


class BadSamples:
    """Counts bad samples by kind and remembers the first of each."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.first: dict[str, str] = {}

    def add(self, bad: BadSample) -> None:
        self.counts[bad.kind] = self.counts.get(bad.kind, 0) + 1
        self.first.setdefault(bad.kind, str(bad))

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def to_dict(self) -> dict[str, Any]:
        return {"counts": dict(self.counts), "first": dict(self.first)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "BadSamples":
        bad = cls()
        bad.counts, bad.first = dict(values["counts"]), dict(values["first"])
        return bad

    def merged(self, other: "BadSamples") -> "BadSamples":
        """Both counts in one; the first of a kind is this one's."""
        both = BadSamples.from_dict(self.to_dict())
        for kind, count in other.counts.items():
            both.counts[kind] = both.counts.get(kind, 0) + count
            both.first.setdefault(kind, other.first[kind])
        return both


@dataclass(frozen=True, kw_only=True)
class Words(JsonConfig):
    """How a source's words become captions; part of every source.

    `caption_fields` names the fields or columns that hold captions (a text, or a list of
    them), all of which count; by default the first of CAPTION_FIELDS that is there.
    Each caption is put into each template's "{}".
    `weight` is the share of samples drawn from this source, relative to the others'. Where
    no source has one, an epoch is every sample of all of them once.
    """

    weight: float | None = None
    caption_fields: tuple[str, ...] = ()
    label_field: str = "label"
    templates: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.weight is not None and not (self.weight > 0 and math.isfinite(self.weight)):
            raise ConfigError(f"A source's weight must be above zero, not {self.weight}.")
        for template in self.templates:
            if "{}" not in template:
                raise ConfigError(f"The template {template!r} has no {{}} for the caption.")

    def fill(self, captions: Iterable[str]) -> tuple[str, ...]:
        """The captions without blank ones, each in every template."""
        kept = [caption.strip() for caption in captions if caption.strip()]
        if not self.templates:
            return tuple(kept)
        return tuple(template.replace("{}", text) for text in kept for template in self.templates)


@dataclass(frozen=True, kw_only=True)
class FolderSource(Words):
    """A folder of pictures, folders within included.

    words "table": captions.csv (.tsv, .jsonl, .parquet), or metadata.csv, in the folder.
    "text": a .txt beside each picture, one caption a line. "classes": the name of the
    picture's first folder. "auto": the first of these that is there.
    """

    kind: Literal["folder"] = "folder"
    path: str
    words: Literal["auto", "table", "text", "classes"] = "auto"
    class_templates: tuple[str, ...] = ("a photo of a {}",)  # used where `templates` are not

    @property
    def name(self) -> str:
        return self.path


@dataclass(frozen=True, kw_only=True)
class TableSource(Words):
    """A CSV, TSV, JSON Lines or Parquet file with a column of pictures and one of captions.

    The pictures are paths below `images`; Parquet may hold the pictures' bytes instead.
    Several rows with one picture are one pair with several captions.
    """

    kind: Literal["table"] = "table"
    path: str
    images: str | None = None  # a folder; None: the table's own
    image_field: str | None = None  # None: the first of tables.IMAGE_FIELDS

    def __post_init__(self) -> None:
        super().__post_init__()
        if Path(self.path).suffix.lower() not in TABLE_SUFFIXES:
            raise ConfigError(
                f"{self.path} is no table that can be read. Known: {', '.join(TABLE_SUFFIXES)}."
            )

    @property
    def name(self) -> str:
        return self.path


@dataclass(frozen=True, kw_only=True)
class ShardSource(Words):
    """WebDataset shards: tar files, plain or gzipped, in which a sample's members share a key.

    Each of `shards` is a path, a pattern with * or {0000..0009}, an http(s) URL, or, where
    `allow_pipe` says so, "pipe:" and a command whose output is a shard.
    """

    kind: Literal["shards"] = "shards"
    shards: tuple[str, ...]
    class_names: tuple[str, ...] = ()  # of the numbers in .cls members and label fields
    allow_pipe: bool = False  # runs commands: only for configurations that you trust
    allow_private_hosts: bool = False  # URLs that lead to this machine or its network
    timeout_seconds: float = 60.0  # without a byte from the other side
    keep_folder: str | None = None  # where fetched shards stay for later epochs and runs

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.shards:
            raise ConfigError("A source of shards needs at least one path, pattern or URL.")
        commands = [shard for shard in self.shards if shard.startswith("pipe:")]
        if commands and not self.allow_pipe:
            raise ConfigError(
                f"{commands[0]!r} would run a command. If you wrote this configuration or trust "
                f"who did, set allow_pipe to true in it."
            )
        if not self.timeout_seconds > 0:
            raise ConfigError(f"timeout_seconds must be above zero, not {self.timeout_seconds}.")

    @property
    def name(self) -> str:
        return ", ".join(self.shards)


Source = FolderSource | TableSource | ShardSource


def source_from_text(text: str) -> Source:
    """The source that a path, a pattern or a URL on a command line means.

    Raises ConfigError for what is neither a folder, a table nor shards.
    """
    if text.startswith(("http://", "https://", "pipe:")):
        return ShardSource(shards=(text,))
    path = Path(text)
    if path.is_dir():
        shards = sorted(p for p in path.iterdir() if p.name.lower().endswith(SHARD_SUFFIXES))
        return ShardSource(shards=tuple(map(str, shards))) if shards else FolderSource(path=text)
    if text.lower().endswith(TABLE_SUFFIXES):
        return TableSource(path=text)
    if text.lower().endswith(SHARD_SUFFIXES):
        return ShardSource(shards=(text,))
    raise ConfigError(
        f"{text} is not there, or is no data that can be read: give a folder, a table "
        f"({', '.join(TABLE_SUFFIXES)}) or shards ({', '.join(SHARD_SUFFIXES)})."
    )


def words_of(values: Mapping[str, Any], words: Words) -> tuple[tuple[str, ...], int | None]:
    """Captions and label in a JSON object or a table's row. No captions where there are none."""
    captions: list[str] = []
    for field in words.caption_fields or CAPTION_FIELDS:
        captions += _texts(values.get(field))
        if captions and not words.caption_fields:
            break
    return words.fill(captions), label_number(values.get(words.label_field))


def label_number(value: Any) -> int | None:
    """A label as a number: numbers are their own, words get one that is the same everywhere."""
    if isinstance(value, bool) or value is None or value == "":
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    text = str(value).strip()
    if text.lstrip("-").isdecimal() and text.isascii():
        return int(text)
    return stable_hash(text)


def stable_hash(*parts: object) -> int:
    """63 bits that are the same in every process and on every machine."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode("utf-8", "replace"), digest_size=8)
    return int.from_bytes(digest.digest(), "little") >> 1


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value] if value.strip() and not _is_number(value) else []
    if isinstance(value, (list, tuple)):
        return [item for item in value if isinstance(item, str) and item.strip()]
    return []


def _is_number(text: str) -> bool:
    """A CSV's label column holds text even where it means a number."""
    return text.strip().lstrip("-").isdecimal()
