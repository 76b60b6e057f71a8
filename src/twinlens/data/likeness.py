"""Which pictures look the same, by hashes of how they look: copies, resized or re-encoded.

Two hashes of 64 bits. The difference hash says whether brightness rises from one ninth of
the width to the next; the DCT hash which of the lowest frequencies are above their median.
Either alone takes some different pictures for the same; both together seldom do.
Crops, mirrored pictures and other photos of the same thing are not found this way.

Sources: Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions"
(DCT); N. Krawetz 2013, "Kind of Like That" (differences).
"""

import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64, UInt64
from PIL import Image

GRID = 8  # rows and columns of either hash
DCT_SIDE = 32  # pixels that the DCT is taken of
BITS = GRID * GRID

# Of 64 bits that may differ in each hash. Measured on 1,000 photos of Flickr8k (192 px):
# see docs/data.md.
DEFAULT_THRESHOLD = 8

# Rows compared at once: 64 MB of differences.
BLOCK_PAIRS = 8_000_000

_FREQUENCIES = np.arange(DCT_SIDE)
_DCT = np.cos(
    np.pi / DCT_SIDE * _FREQUENCIES[:GRID, None] * (_FREQUENCIES[None, :] + 0.5)
)  # (frequency, pixel)


def look_hashes(image: Image.Image) -> tuple[int, int]:
    """The difference hash and the DCT hash of a picture."""
    grey = image.convert("L")
    # Averages over areas: what is left does not depend on the size the picture is stored in.
    columns = np.asarray(grey.resize((GRID + 1, GRID), Image.Resampling.BOX), dtype=np.int16)
    small = np.asarray(grey.resize((DCT_SIDE, DCT_SIDE), Image.Resampling.BOX), dtype=np.float64)
    frequencies = (_DCT @ small @ _DCT.T).ravel()
    frequencies[0] = 0.0  # the average brightness says nothing about the picture
    # Rounded: a flat picture's frequencies are noise in the last bits.
    frequencies = np.round(frequencies, 6)
    return _packed(np.diff(columns, axis=1) > 0), _packed(frequencies > np.median(frequencies))


def alike(
    hashes: UInt64[np.ndarray, "item 2"], threshold: int = DEFAULT_THRESHOLD
) -> Int64[np.ndarray, "pair 2"]:
    """All pairs of rows (first below second) with at most `threshold` bits apart in either hash.

    Finds every one: of threshold + 1 pieces of a hash at least one must be equal, so that only
    rows which share a piece of both hashes are compared.
    """
    whole, inverse = np.unique(hashes, axis=0, return_inverse=True)
    order = np.argsort(inverse.ravel(), kind="stable")
    bounds = np.searchsorted(inverse.ravel()[order], np.arange(len(whole) + 1))
    rows_of = [order[bounds[i] : bounds[i + 1]] for i in range(len(whole))]
    pairs = [_within(rows) for rows in rows_of if len(rows) > 1]
    for left, right in _near(whole, threshold).tolist():
        a, b = np.meshgrid(rows_of[left], rows_of[right], indexing="ij")
        pairs.append(np.stack([a.ravel(), b.ravel()], axis=1))
    if not pairs:
        return np.zeros((0, 2), dtype=np.int64)
    return np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0).astype(np.int64)


def groups_of(pairs: Int64[np.ndarray, "pair 2"]) -> list[list[int]]:
    """Rows that hang together by `pairs`, each group sorted, in the order of their first rows."""
    parent: dict[int, int] = {}

    def root(row: int) -> int:
        parent.setdefault(row, row)
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for left, right in pairs.tolist():
        left, right = sorted((root(left), root(right)))
        parent[right] = left
    members: dict[int, list[int]] = {}
    for row in sorted(parent):
        members.setdefault(root(row), []).append(row)
    return list(members.values())


def _packed(bits: np.ndarray) -> int:
    return int.from_bytes(np.packbits(bits.ravel()).tobytes(), "big")


def _within(rows: np.ndarray) -> Int64[np.ndarray, "pair 2"]:
    """A chain through equal rows: enough for groups, where all pairs could be millions."""
    if len(rows) > 100:
        return np.stack([rows[:-1], rows[1:]], axis=1)
    left, right = np.triu_indices(len(rows), 1)
    return np.stack([rows[left], rows[right]], axis=1)


def _near(hashes: UInt64[np.ndarray, "item 2"], threshold: int) -> Int64[np.ndarray, "pair 2"]:
    """Pairs of different rows; `hashes` has no row twice."""
    found = [np.zeros((0, 2), dtype=np.int64)]
    # With a threshold of 0 there is nothing left to find, and pieces are 64 bits wide.
    pieces = list(_pieces(threshold + 1)) if threshold else []
    for (shift, width), (other_shift, other_width) in itertools.product(pieces, pieces):
        left_piece = (hashes[:, 0] >> np.uint64(shift)) & np.uint64((1 << width) - 1)
        right_piece = (hashes[:, 1] >> np.uint64(other_shift)) & np.uint64((1 << other_width) - 1)
        key = (left_piece << np.uint64(other_width)) | right_piece
        order = np.argsort(key, kind="stable")
        for left, right in _same_key(key[order]):
            a, b = order[left], order[right]
            close = np.bitwise_count(hashes[a] ^ hashes[b]).max(axis=1) <= threshold
            found.append(np.stack([a[close], b[close]], axis=1))
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def _pieces(count: int) -> Iterator[tuple[int, int]]:
    """Shift and width of `count` pieces of BITS bits."""
    edges = np.linspace(0, BITS, count + 1).astype(int).tolist()
    for start, end in itertools.pairwise(edges):
        yield start, end - start


def _same_key(keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places (left, right) of all pairs of equal values in a sorted array, in blocks."""
    count = len(keys)
    ends = np.searchsorted(keys, keys, side="right")  # where the run of each place ends
    start = 0
    partners = ends - np.arange(count) - 1
    totals = np.concatenate([[0], np.cumsum(partners)])
    while start < count:
        stop = int(np.searchsorted(totals, totals[start] + BLOCK_PAIRS, side="right")) - 1
        stop = min(max(stop, start + 1), count)
        repeats = partners[start:stop]
        left = np.repeat(np.arange(start, stop), repeats)
        offsets = np.arange(len(left)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        yield left, left + 1 + offsets
        start = stop
