"""What exact retrieval metrics cost beside the bare matrix product, and in how much memory.

    python benchmarks/retrieval_metrics.py            # 100,000 x 500,000: some 20 minutes
    python benchmarks/retrieval_metrics.py --two      # the first and the third only: 10 minutes
    python benchmarks/retrieval_metrics.py --quick    # 10,000 x 50,000: under a minute

Random unit vectors of 512 numbers, five captions a picture: the worst case, for half of all
pairs score more than an own pair and nothing can be left out. Four things are timed in turn,
round after round, and the fastest round of each counts, by the clock and by processor time,
which is the fairer one where something else is running:

- the bare product in the same blocks with the same threads, each block thrown away;
- the bare product as anyone would write it, in blocks of 4,096 captions, BLAS with all threads;
- exact_ranks(), which is what `twinlens evaluate retrieval` computes;
- exact_ranks(best_only=True), enough for recall.

The peak of memory includes the vectors.
"""

import argparse
import json
import platform
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from twinlens.evaluate.ranks import BLOCK_CAPTIONS, BLOCK_IMAGES, exact_ranks
from twinlens.runtime.machine import processor_name, usable_cores

DIM = 512
CAPTIONS_PER_IMAGE = 5
PLAIN_BLOCK = 4096
GIBIBYTE = 1024**3
PAIRS = (
    ("exact ranks", "bare product"),
    ("best only", "bare product"),
    ("exact ranks", "plain product"),
)

threadpool_limits = import_module("threadpoolctl").threadpool_limits

Vectors = Float32[np.ndarray, "item 512"]


def unit_vectors(count: int, seed: int) -> Vectors:
    vectors = np.random.default_rng(seed).standard_normal((count, DIM), dtype=np.float32)
    for start in range(0, count, PLAIN_BLOCK):
        rows = vectors[start : start + PLAIN_BLOCK]
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return vectors


def bare_product(images: Vectors, captions: Vectors, threads: int) -> None:
    """The blocks of exact_ranks(), each written over by the next."""
    idle = [np.empty(BLOCK_CAPTIONS * BLOCK_IMAGES, dtype=np.float32) for _ in range(threads)]

    def multiply(start: int) -> None:
        memory = idle.pop()
        rows = captions[start : start + BLOCK_CAPTIONS]
        for left in range(0, len(images), BLOCK_IMAGES):
            block = images[left : left + BLOCK_IMAGES]
            out = memory[: len(rows) * len(block)].reshape(len(rows), -1)
            np.matmul(rows, block.T, out=out)
        idle.append(memory)

    with threadpool_limits(limits=1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        list(pool.map(multiply, range(0, len(captions), BLOCK_CAPTIONS)))


def plain_product(images: Vectors, captions: Vectors, threads: int) -> None:
    out = np.empty((min(PLAIN_BLOCK, len(captions)), len(images)), dtype=np.float32)
    with threadpool_limits(limits=threads, user_api="blas"):
        for start in range(0, len(captions), PLAIN_BLOCK):
            rows = captions[start : start + PLAIN_BLOCK]
            np.matmul(rows, images.T, out=out[: len(rows)])


def fastest(
    ways: dict[str, Callable[[], object]], rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds and processor seconds of each way's fastest round; a round runs them in turn."""
    seconds, processor = (dict.fromkeys(ways, float("inf")) for _ in range(2))
    for number in range(rounds):
        for name, way in ways.items():
            start, processor_start = time.perf_counter(), time.process_time()
            way()
            taken = time.perf_counter() - start
            used = time.process_time() - processor_start
            seconds[name] = min(seconds[name], taken)
            processor[name] = min(processor[name], used)
            print(f"round {number + 1}: {name} {taken:.2f} s, {used:.2f} s", file=sys.stderr)
    return seconds, processor


def _key(name: str) -> str:
    return name.replace(" ", "_")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="10,000 x 50,000, three rounds")
    parser.add_argument("--two", action="store_true", help="bare product and exact ranks alone")
    parser.add_argument("--images", type=int, help="100,000, or 10,000 with --quick")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--rounds", type=int, help="1, or 3 with --quick")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers here")
    options = parser.parse_args()
    count = options.images or (10_000 if options.quick else 100_000)
    rounds = options.rounds or (3 if options.quick else 1)
    threads = options.threads
    images = unit_vectors(count, seed=0)
    captions = unit_vectors(count * CAPTIONS_PER_IMAGE, seed=1)
    owner = np.repeat(np.arange(count), CAPTIONS_PER_IMAGE)
    warm = slice(2 * BLOCK_CAPTIONS)
    exact_ranks(images, captions[warm], owner[warm])  # imports what it needs
    peak: list[int] = []  # the first is before the plain product's blocks of up to 1.6 GB

    def ranked() -> None:
        exact_ranks(images, captions, owner, threads=threads)
        peak.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)

    ways: dict[str, Callable[[], object]] = {
        "bare product": lambda: bare_product(images, captions, threads),
        "exact ranks": ranked,
    }
    if not options.two:
        ways["best only"] = lambda: exact_ranks(
            images, captions, owner, best_only=True, threads=threads
        )
        ways["plain product"] = lambda: plain_product(images, captions, threads)
    seconds, processor = fastest(ways, rounds)
    figures = {
        "benchmark": "retrieval_metrics",
        "processor": processor_name() or platform.processor(),
        "images": count,
        "captions": len(captions),
        "threads": threads,
        "rounds": rounds,
        **{f"{_key(name)}_seconds": value for name, value in seconds.items()},
        **{f"{_key(name)}_processor_seconds": value for name, value in processor.items()},
        **{
            f"{_key(name)}_over_{_key(base)}{kind}": values[name] / values[base]
            for kind, values in (("", seconds), ("_processor", processor))
            for name, base in PAIRS
            if name in ways and base in ways
        },
        "peak_gibibytes": peak[0] / GIBIBYTE,
    }
    for name, value in figures.items():
        print(f"{name:42} {value:.3f}" if isinstance(value, float) else f"{name:42} {value}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
