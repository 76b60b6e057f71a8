"""The part of a set whose pictures have vectors: embedded here, or given by the caller."""

import numpy as np
from jaxtyping import Float32

from twinlens.embed import EmbedderLike
from twinlens.errors import ConfigError
from twinlens.evaluate.sets import AnySet
from twinlens.evaluate.tasks import readable
from twinlens.evaluate.vectors import Progress, VectorCache, cached_images


def with_vectors(
    embedder: EmbedderLike,
    data: AnySet,
    vectors: Float32[np.ndarray, "image dim"] | None = None,
    *,
    cache: VectorCache | None = None,
    progress: Progress | None = None,
) -> tuple[AnySet, Float32[np.ndarray, "kept dim"]]:
    """The set without the pictures that cannot be used, and the others' vectors.

    `vectors`, where they are known already, has a row for each of the set's pictures; NaN is
    what Embedder.images() writes for those it could not read.

    Raises ConfigError for another number of rows, and where nothing is left.
    """
    if vectors is None:
        vectors, skipped = cached_images(embedder, data.images, cache=cache, progress=progress)
        data, _ = readable(data, [(item.position, item.reason) for item in skipped])
        return data, vectors
    if len(vectors) != len(data):
        raise ConfigError(
            f"{data.name} has {len(data):,} pictures but {len(vectors):,} vectors were given: "
            "give one for each."
        )
    missing = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    data, kept = readable(data, [(int(row), "it has no vector") for row in missing])
    return data, vectors[kept]
