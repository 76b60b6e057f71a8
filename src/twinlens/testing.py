"""A stand-in for Embedder that needs no model: it hashes its input to a unit vector.

Equal bytes give equal vectors, everything else is as good as unrelated. For tests of
code that takes an embedder; it ships with the package so that users can do the same.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Literal

import numpy as np
from jaxtyping import Float32
from PIL import Image

from twinlens.data.image import ImageSource, source_name
from twinlens.embed import EmbeddedBatch, Skipped, collect_images


class FakeEmbedder:
    """Has the surface of Embedder; never decodes a picture and never imports a runtime.

    Files count by their content. Content that is empty or starts with b"not a" (as in
    b"not a photo") plays the unreadable picture. `images_seen` counts the pictures asked
    for, so that a test can tell what was embedded again.
    """

    image_query_weight = 1.0

    def __init__(
        self,
        *,
        dim: int = 32,
        name: str = "fake",
        model_id: str | None = None,
        context: int = 64,
        batch_size: int = 16,
    ) -> None:
        self.dim = dim
        self.name = name
        self.model_id = f"{name}-1:{dim}" if model_id is None else model_id
        self.context = context
        self.batch_size = batch_size
        self.images_seen = 0

    def images(
        self, sources: Iterable[ImageSource], *, skipped: list[Skipped] | None = None
    ) -> Float32[np.ndarray, "item dim"]:
        """One row per source; the rows of unreadable ones are NaN."""
        return collect_images(self, sources, skipped)

    def stream_images(
        self, sources: Iterable[ImageSource], *, batch_size: int | None = None
    ) -> Iterator[EmbeddedBatch]:
        """The same in batches and in order."""
        numbered = enumerate(sources)
        while batch := list(islice(numbered, batch_size or self.batch_size)):
            self.images_seen += len(batch)
            positions: list[int] = []
            rows: list[Float32[np.ndarray, " dim"]] = []
            skipped: list[Skipped] = []
            for position, source in batch:
                try:
                    content = _content(source)
                except OSError as error:
                    reason = (error.strerror or str(error)).lower()
                    skipped.append(Skipped(position, source_name(source), reason))
                    continue
                if not content or content.startswith(b"not a"):
                    skipped.append(Skipped(position, source_name(source), "not a picture"))
                    continue
                positions.append(position)
                rows.append(self._vector(content))
            vectors = np.array(rows, dtype=np.float32).reshape(len(rows), self.dim)
            yield EmbeddedBatch(positions, vectors, skipped)

    def texts(
        self, texts: Sequence[str], *, long: Literal["truncate", "average"] = "truncate"
    ) -> Float32[np.ndarray, "item dim"]:
        """One row per text; `long` changes nothing, for no text is too long to hash."""
        if isinstance(texts, str):
            raise TypeError(f"texts() takes a list of strings: texts([{texts!r}])")
        rows = [self._vector(text.encode("utf-8", "surrogatepass")) for text in texts]
        return np.array(rows, dtype=np.float32).reshape(len(rows), self.dim)

    def _vector(self, content: bytes) -> Float32[np.ndarray, " dim"]:
        seed = int.from_bytes(hashlib.blake2b(content, digest_size=16).digest())
        vector = np.random.default_rng(seed).standard_normal(self.dim)
        return (vector / np.linalg.norm(vector)).astype(np.float32)


def _content(source: ImageSource) -> bytes:
    if isinstance(source, bytes):
        return source
    if isinstance(source, Image.Image | np.ndarray):
        return source.tobytes()
    with open(os.fspath(source), "rb") as file:
        return file.read()
