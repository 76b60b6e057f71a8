"""Looks through training data before it costs anything: what is in it and what is wrong.

Counts, sizes, captions, bad samples, pictures that are there twice, and pictures of the test
data that are in the training data, too. Every picture is decoded once, whole. Showing the
result is cli/data_command.py's and cli/data_page.py's.
"""

import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from twinlens.data.decode import read_words
from twinlens.data.image import DEFAULT_MAX_MEGAPIXELS, read_image
from twinlens.data.likeness import DEFAULT_THRESHOLD, alike, groups_of, look_hashes
from twinlens.data.pairs import BadSample, Source, stable_hash
from twinlens.data.parts import Reference
from twinlens.data.stream import PairStream
from twinlens.data.tokenizer import Tokenizer
from twinlens.errors import UnreadableImage

QUANTILES = {"least": 0.0, "5%": 0.05, "median": 0.5, "95%": 0.95, "most": 1.0}
COMMON_CAPTIONS = 5
AHEAD = 4  # pictures in work per thread

Progress = Callable[[int, int | None], None]  # pictures done, and of how many if that is known


@dataclass
class Side:
    """What is in one set of sources; one row of the arrays a picture."""

    sources: tuple[Source, ...]
    names: list[str] = field(default_factory=list)  # of each picture: source and key
    slots: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)  # width, height in pixels
    hashes: list[tuple[int, int]] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)  # of the file
    captions_per_picture: list[int] = field(default_factory=list)
    words: list[int] = field(default_factory=list)  # of each caption
    tokens: list[int] = field(default_factory=list)  # of each caption, given a tokenizer
    captions: Counter[str] = field(default_factory=Counter)
    labels: Counter[int] = field(default_factory=Counter)
    bad: dict[str, Any] = field(default_factory=dict)
    copies: list[list[int]] = field(default_factory=list)  # rows whose files are the same
    twins: list[list[int]] = field(default_factory=list)  # rows that look the same


@dataclass
class Report:
    """The result of a check. `leaks` are rows of `data` and of `against` that look the same."""

    data: Side
    against: Side | None
    leaks: list[tuple[int, int]]
    context: int | None  # tokens that the tokenizer keeps

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values; pictures by name."""
        result = {"data": _summary(self.data, self.context)}
        if self.against is not None:
            result["against"] = _summary(self.against, self.context)
            result["leaks"] = [  # type: ignore[assignment]
                [self.data.names[row], self.against.names[other]] for row, other in self.leaks
            ]
        return result


@dataclass(frozen=True)
class _Looked:
    size: tuple[int, int]
    hashes: tuple[int, int]
    digest: bytes
    captions: tuple[str, ...]
    label: int | None


def check_data(
    sources: Sequence[Source],
    against: Sequence[Source] = (),
    *,
    tokenizer: Tokenizer | None = None,
    threshold: int = DEFAULT_THRESHOLD,
    threads: int = 2,
    max_megapixels: float = DEFAULT_MAX_MEGAPIXELS,
    progress: Progress | None = None,
) -> Report:
    """Look at every pair of `sources`, and compare their pictures with those of `against`.

    Raises ConfigError for sources that cannot be understood or are empty; one with nothing but
    bad samples is only counted.
    """
    data = _look_through(sources, tokenizer, threads, max_megapixels, progress)
    other = None
    if against:
        other = _look_through(against, tokenizer, threads, max_megapixels, progress)
    sides = [data] if other is None else [data, other]
    hashes = np.array([h for side in sides for h in side.hashes], dtype=np.uint64).reshape(-1, 2)
    pairs = alike(hashes, threshold)
    count = len(data.names)
    data.twins = groups_of(pairs[(pairs < count).all(axis=1)])
    leaks: list[tuple[int, int]] = []
    if other is not None:
        other.twins = groups_of(pairs[(pairs >= count).all(axis=1)] - count)
        for group in groups_of(pairs):  # a chain through equal pictures may not name each pair
            mine = [row for row in group if row < count]
            theirs = [row - count for row in group if row >= count]
            if mine and theirs:
                leaks += _leaks_of(mine, theirs, data, other, threshold)
    return Report(data, other, sorted(leaks), None if tokenizer is None else tokenizer.context)


def thumbnails(
    side: Side, rows: Sequence[int], longest_side: int
) -> dict[int, tuple[Image.Image, tuple[str, ...]]]:
    """Small pictures and captions of some rows, read again; without what cannot be."""
    wanted = {side.slots[row]: row for row in rows}
    found: dict[int, tuple[Image.Image, tuple[str, ...]]] = {}
    for reference in PairStream(side.sources, shuffle_buffer=0):
        if len(found) == len(wanted):
            break
        if reference.slot not in wanted:
            continue
        read = read_words(reference, side.sources[reference.source])
        if isinstance(read, BadSample):
            continue
        try:
            image = read_image(read[0], target_size=longest_side)
        except UnreadableImage:
            continue
        image.thumbnail((longest_side, longest_side))
        found[wanted[reference.slot]] = (image, read[1])
    return found


def sample_rows(side: Side, count: int) -> list[int]:
    """Some rows from all over the data, always the same ones."""
    rows = sorted(range(len(side.names)), key=lambda row: stable_hash(side.names[row]))
    return rows[:count]


def _look_through(
    sources: Sequence[Source],
    tokenizer: Tokenizer | None,
    threads: int,
    max_megapixels: float,
    progress: Progress | None,
) -> Side:
    side = Side(tuple(sources))
    stream = PairStream(sources, shuffle_buffer=0)
    total = stream.samples_per_epoch() if progress else None
    bad = stream.bad
    done = 0
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[Reference, Future[_Looked | BadSample]]] = deque()
        more = True
        while more or waiting:
            while more and len(waiting) < AHEAD * threads:
                reference = next(stream, None)
                if reference is None:
                    more = False
                else:
                    source = sources[reference.source]
                    job = pool.submit(_look, reference, source, max_megapixels)
                    waiting.append((reference, job))
            if not waiting:
                break
            reference, job = waiting.popleft()
            looked = job.result()
            if isinstance(looked, BadSample):
                bad.add(looked)
            else:
                _add(side, reference, looked, tokenizer)
            done += 1
            if progress is not None:
                progress(done, total)
    side.bad = bad.to_dict()
    copies: dict[bytes, list[int]] = {}
    for row, digest in enumerate(side.digests):
        copies.setdefault(digest, []).append(row)
    side.copies = [rows for rows in copies.values() if len(rows) > 1]
    return side


def _look(reference: Reference, source: Source, max_megapixels: float) -> _Looked | BadSample:
    read = read_words(reference, source)
    if isinstance(read, BadSample):
        return read
    data, captions, label = read
    try:
        if isinstance(data, str):
            with open(data, "rb") as file:
                data = file.read()
        image = read_image(data, max_megapixels=max_megapixels)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        return BadSample("unreadable picture", reference.key, reason)
    except UnreadableImage as error:
        return BadSample("unreadable picture", reference.key, error.reason)
    digest = hashlib.blake2b(data, digest_size=16).digest()
    return _Looked(image.size, look_hashes(image), digest, captions, label)


def _add(side: Side, reference: Reference, looked: _Looked, tokenizer: Tokenizer | None) -> None:
    name = reference.key
    if len(side.sources) > 1:
        name = f"{os.path.basename(side.sources[reference.source].name)}: {name}"
    side.names.append(name)
    side.slots.append(reference.slot)
    side.sizes.append(looked.size)
    side.hashes.append(looked.hashes)
    side.digests.append(looked.digest)
    side.captions_per_picture.append(len(looked.captions))
    side.words += [len(caption.split()) for caption in looked.captions]
    if tokenizer is not None:
        side.tokens += [len(tokenizer.encode(caption)) for caption in looked.captions]
    side.captions.update(looked.captions)
    if looked.label is not None:
        side.labels[looked.label] += 1


def _leaks_of(
    mine: list[int], theirs: list[int], data: Side, other: Side, threshold: int
) -> list[tuple[int, int]]:
    """Pairs of one group across both sides, compared directly."""
    left = np.array([data.hashes[row] for row in mine], dtype=np.uint64)
    right = np.array([other.hashes[row] for row in theirs], dtype=np.uint64)
    found = []
    for place, row in enumerate(mine):
        close = np.bitwise_count(left[place] ^ right).max(axis=1) <= threshold
        found += [(row, theirs[i]) for i in np.flatnonzero(close).tolist()]
    return found


def _summary(side: Side, context: int | None) -> dict[str, Any]:
    names = side.names
    widths = np.array([size[0] for size in side.sizes])
    heights = np.array([size[1] for size in side.sizes])
    result: dict[str, Any] = {
        "sources": [source.to_dict() for source in side.sources],
        "pictures": len(names),
        "bad": side.bad["counts"],
        "bad_first": side.bad["first"],
        "width": quantiles(widths),
        "height": quantiles(heights),
        "aspect_ratio": quantiles(widths / heights if len(widths) else widths),
        "captions": sum(side.captions.values()),
        "distinct_captions": len(side.captions),
        "captions_per_picture": quantiles(np.array(side.captions_per_picture)),
        "words_per_caption": quantiles(np.array(side.words)),
        "most_common_captions": side.captions.most_common(COMMON_CAPTIONS),
        "labels": len(side.labels),
        "pictures_per_label": quantiles(np.array(list(side.labels.values()))),
        "same_files": [[names[row] for row in rows] for rows in side.copies],
        "look_alikes": [[names[row] for row in rows] for rows in side.twins],
    }
    if context is not None:
        tokens = np.array(side.tokens)
        result["tokens_per_caption"] = quantiles(tokens)
        result["context"] = context
        result["captions_cut"] = int((tokens > context).sum()) if len(tokens) else 0
    return result


def quantiles(values: np.ndarray) -> dict[str, float] | None:
    """Least, 5 %, median, 95 % and most; None of nothing."""
    if not len(values):
        return None
    found = np.quantile(values, list(QUANTILES.values()), method="nearest")
    return {name: round(float(value), 3) for name, value in zip(QUANTILES, found, strict=True)}
