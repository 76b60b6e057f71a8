"""Embeds several versions of each picture of a set: clean, blurred, with a word on it.

A picture is read once and all its versions are made from that, one after the other, so that
neither pixels nor versions pile up. With a cache the versions' vectors are kept by the
picture's content and the version's name: a second run neither makes nor embeds them.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int
from PIL import Image

from twinlens.data.image import ImageSource, read_image
from twinlens.embed import EmbedderLike
from twinlens.errors import UnreadableImage
from twinlens.evaluate.vectors import VectorCache, content_key

VECTORS_A_WRITE = 256  # lost at most, but for one picture's, when a run is killed


@dataclass(frozen=True, eq=False)
class ViewBatch:
    """Vectors of some versions; version 0 of a picture comes before its others."""

    rows: Int[np.ndarray, " item"]  # of the set
    views: Int[np.ndarray, " item"]
    vectors: Float32[np.ndarray, "item dim"]


class Views:
    """Iterating gives batches; afterwards `unreadable` has the (row, reason) of lost pictures.

    `make(image, row)` gives the versions of a decoded picture, one for each of `names(row)`:
    two versions of a name must be the same whenever the picture is.
    """

    def __init__(
        self,
        embedder: EmbedderLike,
        images: Sequence[ImageSource],
        make: Callable[[Image.Image, int], Iterator[Image.Image]],
        names: Callable[[int], list[str]],
        *,
        cache: VectorCache | None = None,
    ) -> None:
        self._embedder, self._images, self._make, self._names = embedder, images, make, names
        self._cache = cache
        self._count = len(names(0))
        self.unreadable: list[tuple[int, str]] = []

    def __iter__(self) -> Iterator[ViewBatch]:
        """Pictures whose versions are all known come first."""
        missing = []
        for row in range(len(self._images)):
            known = self._known(row)
            if known is None:
                missing.append(row)
            else:
                rows = np.full(self._count, row, dtype=np.int64)
                yield ViewBatch(rows, np.arange(self._count), known)
        yield from self._embedded(np.array(missing, dtype=np.int64))

    def _known(self, row: int) -> Float32[np.ndarray, "item dim"] | None:
        """All the picture's vectors from the cache, or None."""
        keys = self._keys(row)
        if self._cache is None or not keys:
            return None
        found = self._cache.read(self._embedder.model_id, self._embedder.dim, keys)
        if any(key not in found for key in keys):
            return None
        return np.stack([found[key] for key in keys])

    def _embedded(self, missing: Int[np.ndarray, " row"]) -> Iterator[ViewBatch]:
        keys: list[bytes] = []
        vectors: list[Float32[np.ndarray, " dim"]] = []
        keys_of: dict[int, list[bytes]] = {}
        for batch in self._embedder.stream_images(self._versions(missing)):
            places, views = np.divmod(np.array(batch.positions, dtype=np.int64), self._count)
            rows = missing[places]
            yield ViewBatch(rows, views, batch.vectors)
            if self._cache is None:
                continue
            for row, view, vector in zip(rows.tolist(), views.tolist(), batch.vectors, strict=True):
                if row not in keys_of:
                    keys_of = {row: self._keys(row)}  # the stream never comes back to a picture
                if keys_of[row]:
                    keys.append(keys_of[row][view])
                    vectors.append(vector)
            if len(keys) >= VECTORS_A_WRITE:
                self._cache.write(self._embedder.model_id, keys, np.stack(vectors))
                keys, vectors = [], []
        if self._cache is not None and keys:
            self._cache.write(self._embedder.model_id, keys, np.stack(vectors))

    def _versions(self, rows: Int[np.ndarray, " row"]) -> Iterator[ImageSource]:
        for row in rows.tolist():
            try:
                image = read_image(self._images[row])
            except UnreadableImage as error:
                self.unreadable.append((row, error.reason))
                yield from [b""] * self._count  # skipped by the embedder; positions stay right
            else:
                yield from self._make(image, row)

    def _keys(self, row: int) -> list[bytes]:
        """A key per version; none without a cache and where the picture cannot be read."""
        content = None if self._cache is None else content_key(self._images[row])
        if content is None:
            return []
        return [
            hashlib.blake2b(
                content + name.encode("utf-8", "surrogatepass"),
                digest_size=16,
                person=b"twinlens view",
            ).digest()
            for name in self._names(row)
        ]
