"""A transparent embedder for tests: what it makes of pictures and texts is given as functions."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
from PIL import Image

from twinlens.data.image import ImageSource, read_image, source_name
from twinlens.embed import EmbeddedBatch, Skipped, collect_images
from twinlens.errors import UnreadableImage


class GivenEmbedder:
    """Has the surface of Embedder; vectors are brought to unit length."""

    image_query_weight = 1.0
    context = 64
    name = "given"

    def __init__(
        self,
        image: Callable[[Image.Image], Sequence[float]],
        text: Callable[[str], Sequence[float]],
        *,
        dim: int,
        batch_size: int = 3,  # small, so that versions of a picture fall into different batches
    ) -> None:
        self._image, self._text = image, text
        self.dim, self.batch_size = dim, batch_size
        self.model_id = f"given-1:{dim}"
        self.images_seen = 0

    def images(
        self, sources: Iterable[ImageSource], *, skipped: list[Skipped] | None = None
    ) -> np.ndarray:
        return collect_images(self, sources, skipped)

    def stream_images(
        self, sources: Iterable[ImageSource], *, batch_size: int | None = None
    ) -> Iterator[EmbeddedBatch]:
        places, rows, skipped = [], [], []
        place = -1
        for place, source in enumerate(sources):
            self.images_seen += 1
            try:
                image = read_image(source)
            except UnreadableImage as error:
                skipped.append(Skipped(place, source_name(source), error.reason))
            else:
                places.append(place)
                rows.append(_unit(self._image(image)))
            if (place + 1) % self.batch_size == 0:
                yield self._batch(places, rows, skipped)
                places, rows, skipped = [], [], []
        if places or skipped:
            yield self._batch(places, rows, skipped)

    def _batch(self, places, rows, skipped) -> EmbeddedBatch:
        vectors = np.array(rows, dtype=np.float32).reshape(len(rows), self.dim)
        return EmbeddedBatch(places, vectors, skipped)

    def texts(
        self, texts: Sequence[str], *, long: Literal["truncate", "average"] = "truncate"
    ) -> np.ndarray:
        rows = [_unit(self._text(text)) for text in texts]
        return np.array(rows, dtype=np.float32).reshape(len(rows), self.dim)


def _unit(values: Sequence[float]) -> np.ndarray:
    vector = np.asarray(values, dtype=np.float64)
    return vector / np.linalg.norm(vector)
