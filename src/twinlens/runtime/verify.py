"""Proves that an exported tower computes what the original does, in cosines.

Knows no model: two callables from a batch to embeddings, and batches to feed both.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Num

from twinlens.runtime.session import unit_rows

Tower = Callable[[Num[np.ndarray, "batch *shape"]], Float32[np.ndarray, "batch dim"]]


@dataclass(frozen=True)
class Agreement:
    """How close two towers' unit embeddings are, over `items` inputs."""

    items: int
    mean_cosine: float
    min_cosine: float
    max_difference: float  # largest difference of one number of a unit embedding


def agreement(reference: Tower, candidate: Tower, batches: Iterable[np.ndarray]) -> Agreement:
    """Run both towers on every batch. Raises ValueError when there is no batch."""
    cosines, differences = [], []
    for batch in batches:
        wanted, got = unit_rows(reference(batch)), unit_rows(candidate(batch))
        cosines.append((wanted * got).sum(axis=1))
        differences.append(np.abs(wanted - got).max(initial=0.0))
    every = np.concatenate(cosines)
    return Agreement(
        items=len(every),
        mean_cosine=float(every.mean()),
        min_cosine=float(every.min()),
        max_difference=float(max(differences)),
    )
