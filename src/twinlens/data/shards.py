"""Reads image-text samples from WebDataset-style tar shards, plain or gzipped.

A shard is a tar file in which the members of one sample stand together and share a
key: `000123.jpg`, `000123.json`. Pictures stay bytes here; decoding is image.py's.
"""

import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinlens.data.image import IMAGE_SUFFIXES


@dataclass(frozen=True)
class Sample:
    """One picture, still encoded, with what its shard says of it."""

    key: str
    image: bytes
    info: dict[str, Any]


def read_shards(paths: Iterable[Path]) -> Iterator[Sample]:
    """Every sample of every shard, in order.

    A key without both a picture and a JSON object is passed over: shards may carry
    other members too. Raises OSError or tarfile.TarError for a shard cut short.
    """
    for path in paths:
        with tarfile.open(path, "r|*") as tar:  # a stream: gzip cannot seek
            key, image, info = "", None, None
            for member in tar:
                stem, _, suffix = member.name.rpartition(".")
                if stem != key:
                    key, image, info = stem, None, None
                file = tar.extractfile(member)
                if file is None:
                    continue
                if f".{suffix.lower()}" in IMAGE_SUFFIXES:
                    image = file.read()
                elif suffix == "json":
                    info = json.loads(file.read())
                if image is not None and info is not None:
                    yield Sample(key, image, info)
                    image, info = None, None
