"""How many items a session should be given at once: measured here, not assumed.

The best batch size depends on the tower, the runtime, the processor's caches and who else
is on the machine. Two seconds of measuring choose it and a file in the cache remembers it,
under a key of all of these. Knows no model: a session and a way to make a batch.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from twinlens.runtime.machine import processor_name, usable_cores
from twinlens.runtime.session import Runtime, Session

CACHE_NAME = "tuning.json"
FORMAT = 1  # raised when what is measured, or how, changes
CANDIDATES = (1, 2, 4, 8, 16, 32)
FALLBACK_BATCH_SIZE = 8
NOISE = 0.03  # a smaller batch that is slower by less is taken: less to wait for, less memory
HOPELESS = 0.85  # of the best speed: sizes beyond one that is slower than this are not tried
MAX_REMEMBERED = 200  # entries of the cache file, the newest


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The batch size chosen, and what was measured: items per second by batch size."""

    batch_size: int
    images_per_second: float
    measured: dict[int, float]


def tuning_key(fingerprint: str, *, runtime: Runtime, threads: int, callers: int = 1) -> str:
    """What a measurement holds for: this model on this runtime, processor and many threads."""
    try:
        package = version(runtime)
    except PackageNotFoundError:  # onnxruntime-gpu, say
        package = "unknown"
    return (
        f"{fingerprint}|{runtime} {package}|{processor_name()}|{usable_cores()}|{callers}x{threads}"
    )


def best_batch(
    session: Session,
    make_batch: Callable[[int], np.ndarray],
    *,
    key: str,
    cache: Path | None,
    budget_seconds: float = 2.0,
    callers: int = 1,
    candidates: tuple[int, ...] = CANDIDATES,
) -> Tuning:
    """The batch size with the most items per second, as remembered or else measured now.

    `make_batch(size)` gives an input of the real shape. `cache` is a folder, or None to
    remember nothing. `callers` threads call the session at the same time, each with a batch
    of its own. Among sizes that are equal within NOISE the smallest is chosen. A cache that
    cannot be read or written is as none; the budget bounds what is begun, so that a tower
    of two seconds a picture is run once or twice.
    """
    if cache is not None and (found := _recall(cache, key)) is not None:
        return found
    measured = _measure(session, make_batch, budget_seconds, callers, candidates)
    if not measured:
        return Tuning(batch_size=FALLBACK_BATCH_SIZE, images_per_second=0.0, measured={})
    chosen = _choose(measured)
    tuning = Tuning(batch_size=chosen, images_per_second=measured[chosen], measured=measured)
    if cache is not None:
        _remember(cache, key, tuning)
    return tuning


def _choose(measured: dict[int, float]) -> int:
    best = max(measured.values())
    return min(size for size, speed in measured.items() if speed >= best * (1 - NOISE))


def _measure(
    session: Session,
    make_batch: Callable[[int], np.ndarray],
    budget_seconds: float,
    callers: int,
    candidates: tuple[int, ...],
) -> dict[int, float]:
    """Items per second by batch size, the best of several rounds that take turns.

    In turn, so that a busy moment of the machine hits all sizes; the best, because other
    processes only ever take time away.
    """
    end = time.perf_counter() + budget_seconds
    batches: dict[int, np.ndarray] = {}
    speeds: dict[int, float] = {}

    def fits(size: int, runs: int, speed: float) -> bool:
        return time.perf_counter() + runs * callers * size / speed < end

    with ThreadPoolExecutor(callers, thread_name_prefix="twinlens-tune") as pool:

        def speed(batch: np.ndarray) -> float:
            start = time.perf_counter()
            list(pool.map(session.run, [batch] * callers))
            return callers * len(batch) / max(time.perf_counter() - start, 1e-9)

        for size in sorted(candidates):
            # Two runs: the first of a shape is the slower.
            if not fits(size, 2, speeds[max(speeds)] if speeds else float("inf")):
                break
            batches[size] = make_batch(size)
            try:
                speeds[size] = speed(batches[size])
                if fits(size, 1, speeds[size]):
                    speeds[size] = max(speeds[size], speed(batches[size]))
            except (MemoryError, RuntimeError):  # ONNX Runtime's and OpenVINO's "no memory"
                del batches[size]
                break
            if speeds[size] < HOPELESS * max(speeds.values()):
                break
        while batches:
            for size, batch in batches.items():
                if not fits(size, 1, speeds[size]):
                    return speeds
                speeds[size] = max(speeds[size], speed(batch))
    return speeds


def _recall(cache: Path, key: str) -> Tuning | None:
    values: Any = _read(cache).get(key)
    try:
        measured = {int(size): float(speed) for size, speed in values["measured"].items()}
        batch_size, speed = int(values["batch_size"]), float(values["images_per_second"])
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    if batch_size not in measured:
        return None
    return Tuning(batch_size=batch_size, images_per_second=speed, measured=measured)


def _read(cache: Path) -> dict[str, Any]:
    """All that is remembered; nothing when the file is absent, damaged or of another format."""
    try:
        values = json.loads((cache / CACHE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        return {}
    entries = values.get("entries")
    return entries if isinstance(entries, dict) else {}


def _remember(cache: Path, key: str, tuning: Tuning) -> None:
    entries = {name: value for name, value in _read(cache).items() if name != key}
    entries[key] = asdict(tuning)
    newest = dict(list(entries.items())[-MAX_REMEMBERED:])
    text = json.dumps({"format": FORMAT, "entries": newest}, indent=1) + "\n"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".tuning-", dir=cache)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(name, cache / CACHE_NAME)  # a reader sees the old file or the new one
        except BaseException:
            os.unlink(name)
            raise
    except OSError:
        return  # a read-only home: it is measured again next time
