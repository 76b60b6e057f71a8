"""Stratified parts of a labelled set: what probes, few-shot and calibration begin with."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int

from twinlens.errors import ConfigError

Vectors = Float32[np.ndarray, "_ dim"]  # a function may take those of two sets
Rows = Int[np.ndarray, " _"]


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of a set for fitting, for choosing what is not fitted, and for measuring."""

    train: Rows
    val: Rows
    test: Rows


def stratified_split(
    labels: Int[np.ndarray, " image"],
    *,
    val_share: float = 0.2,
    test_share: float = 0.2,
    seed: int = 0,
    names: tuple[str, ...] = (),
) -> Split:
    """Each class's pictures dealt at random into train, val and test, each gets one at least.

    A share of 0 leaves that part empty. `names` are the classes', for messages.
    Raises ConfigError for a class that has too few pictures for the parts that are asked for.
    """
    rng = np.random.default_rng(seed)
    parts: dict[str, list[Rows]] = {"train": [], "val": [], "test": []}
    least = 1 + (val_share > 0) + (test_share > 0)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        if len(rows) < least:
            name = names[label] if names else f"number {label}"
            raise ConfigError(
                f"The class {name} has {len(rows)} picture(s); a split into {least} parts needs "
                f"as many. Add some, leave the class out, or give the parts yourself."
            )
        test = _share(len(rows), test_share)
        val = _share(len(rows), val_share)
        while test + val > len(rows) - 1:
            test, val = (test - 1, val) if test > val else (test, val - 1)
        parts["test"].append(rows[:test])
        parts["val"].append(rows[test : test + val])
        parts["train"].append(rows[test + val :])
    return Split(**{name: np.sort(np.concatenate(rows)) for name, rows in parts.items()})


def _share(count: int, share: float) -> int:
    return max(1, round(count * share)) if share > 0 else 0
