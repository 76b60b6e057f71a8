"""Finds pictures that are there twice: by their vectors, and by how they look.

The model's opinion and the look hashes of data/likeness.py err in different ways: vectors are
close for two photos of one thing, hashes for two pictures of one layout. Both together are
seldom wrong. `twinlens data check` compares looks alone, for data sets of any size.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt64

from twinlens.data.image import ImageSource, read_image
from twinlens.data.likeness import alike, look_hashes
from twinlens.errors import UnreadableImage
from twinlens.evaluate.vector_space import score_blocks

LOOK_PIXELS = 64  # enough for hashes of 32 x 32


@dataclass(frozen=True)
class Twins:
    """Two rows that are close, with their cosine."""

    first: int
    second: int
    cosine: float


def close_pairs(
    vectors: Float[np.ndarray, "item dim"], limit: float, *, most: int = 10_000
) -> list[Twins]:
    """Pairs of different rows with a cosine of at least `limit`, the closest first.

    At most `most` of them are kept, so that a constant model does not fill the memory.
    """
    found: list[Twins] = []
    for start, scores in score_blocks(vectors, vectors):
        rows, columns = np.nonzero(scores >= limit)
        later = columns > rows + start
        rows, columns = rows[later], columns[later]
        cosines = scores[rows, columns]
        if len(rows) > most:
            keep = np.argsort(-cosines, kind="stable")[:most]
            rows, columns, cosines = rows[keep], columns[keep], cosines[keep]
        found += [
            Twins(start + int(row), int(column), float(cosine))
            for row, column, cosine in zip(rows, columns, cosines, strict=True)
        ]
        if len(found) > most:
            found = sorted(found, key=_by_closeness)[:most]
    return sorted(found, key=_by_closeness)


def _by_closeness(twins: Twins) -> tuple[float, int, int]:
    return -twins.cosine, twins.first, twins.second


def look_alikes(images: Iterable[ImageSource]) -> set[tuple[int, int]]:
    """Pairs of pictures that look the same by data/likeness.py's hashes, whatever a model says.

    Unreadable pictures are in no pair.
    """
    hashes: list[tuple[int, int]] = []
    rows: list[int] = []
    for row, source in enumerate(images):
        try:
            hashes.append(look_hashes(read_image(source, target_size=LOOK_PIXELS)))
        except UnreadableImage:
            continue
        rows.append(row)
    if not hashes:
        return set()
    table: UInt64[np.ndarray, "item 2"] = np.array(hashes, dtype=np.uint64)
    return {(rows[first], rows[second]) for first, second in alike(table).tolist()}
