"""How a long stream of pictures is shared among the cores: measured, then remembered.

Two ways compete: one session with all threads, fed by decoding threads beside it; and one
session of a single thread that as many workers as there are cores call, each decoding and
running a batch of its own. Which wins depends on tower, runtime and machine.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from twinlens.runtime.session import Runtime, Session
from twinlens.runtime.tune import Tuning, best_batch, tuning_key

# Pictures in a stream for which two seconds of measuring, once per machine, may pay.
LONG_STREAM = 256
BUDGET_SECONDS = 1.0  # for each way


@dataclass(frozen=True)
class Plan:
    """`workers` threads run batches of `batch_size` on a session of `threads` threads."""

    workers: int
    threads: int
    batch_size: int
    images_per_second: float


def best_plan(
    open_with: Callable[[int], Session],
    make_batch: Callable[[int], np.ndarray],
    *,
    fingerprint: str,
    runtime: Runtime,
    cores: int,
    cache: Path | None,
) -> Plan:
    """The faster way on this machine. `open_with(threads)` opens the image tower."""
    shapes = {(1, cores), (cores, 1)}  # workers and threads; the same on one core
    plans = []
    for workers, threads in sorted(shapes):
        session = open_with(threads)
        if workers > 1 and getattr(session, "device", "cpu") == "cuda":
            continue  # the card is one; callers would only wait for each other
        tuning: Tuning = best_batch(
            session,
            make_batch,
            key=tuning_key(fingerprint, runtime=runtime, threads=threads, callers=workers),
            cache=cache,
            budget_seconds=BUDGET_SECONDS,
            callers=workers,
        )
        plans.append(Plan(workers, threads, tuning.batch_size, tuning.images_per_second))
    return max(plans, key=lambda plan: plan.images_per_second)
