"""Shuffles by arithmetic: an order is a function of its seed, the same on every machine.

No generator's state needs to be saved, and NumPy may change its generators at will.
"""

import numpy as np
from jaxtyping import Int64, UInt64

from twinlens.data.pairs import stable_hash


def shuffled(count: int, *seeds: object) -> Int64[np.ndarray, "{count}"]:
    """The numbers below `count` in an order that `seeds` (numbers or texts) decide."""
    keys = _mixed(np.arange(count, dtype=np.uint64) + np.uint64(stable_hash(*seeds)))
    return np.argsort(keys, kind="stable").astype(np.int64)


def random_share(number: int, seed_hash: int) -> float:
    """A number from 0 up to 1 that belongs to `number` under a seed's stable_hash."""
    value = (number * 0x9E3779B97F4A7C15 + seed_hash) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return ((value ^ (value >> 31)) >> 11) / (1 << 53)


def _mixed(values: UInt64[np.ndarray, "item"]) -> UInt64[np.ndarray, "item"]:
    """splitmix64's finaliser (Steele et al. 2014): neighbours in, unrelated numbers out."""
    values = values * np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed
