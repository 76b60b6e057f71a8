"""How fast a folder of photos is embedded, beside the loop one would write by hand.

    python benchmarks/index_folder.py            # a few minutes
    python benchmarks/index_folder.py --quick    # half a minute, rougher

Makes one folder of 12-megapixel JPEGs and one of 500x375 from the sample photos, always
the same, then embeds each folder both ways in turn with the same model, the same batches
and the same number of threads for the session:

- plain: Image.open, convert to RGB, resize, normalise, one picture after the other, and
  the session between batches;
- twinlens: Embedder.stream_images, which decodes JPEGs at a fraction of their size, in
  threads, while the session runs.

Files come from the page cache, freshly written, so no disk is measured. The least cosine
between the two ways' vectors shows what the speed costs.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

from twinlens import SAMPLES
from twinlens.embed import Embedder
from twinlens.runtime.session import unit_rows


@dataclass(frozen=True)
class Folder:
    name: str
    size: tuple[int, int]  # width and height in pixels
    images: int
    quick_images: int


FOLDERS = (
    Folder("12 megapixels", (4000, 3000), images=48, quick_images=16),
    Folder("500x375", (500, 375), images=384, quick_images=128),
)


@dataclass(frozen=True)
class Row:
    """One folder's outcome; speeds are medians over the rounds."""

    folder: str
    images: int
    mean_megabytes: float
    plain_images_per_second: float
    twinlens_images_per_second: float
    ratio: float
    least_cosine: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="mini", help="built-in name or model folder")
    parser.add_argument("--threads", type=int, help="for decoding and session (default: cores)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each way (default: 3)")
    parser.add_argument("--quick", action="store_true", help="fewer pictures, one round")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers here")
    options = parser.parse_args()

    rounds = 1 if options.quick else options.rounds
    embedder = Embedder(options.model, threads=options.threads)
    samples = sorted(SAMPLES.glob("*.jpg"))
    if not samples:
        sys.exit(f"No sample photos in {SAMPLES} to make the folders from.")
    embed_plainly(embedder, samples[:1])  # opens the session, which is not measured
    rows = []
    for folder in FOLDERS:
        with tempfile.TemporaryDirectory() as path:
            count = folder.quick_images if options.quick else folder.images
            print(f"writing {count} photos of {folder.name}", file=sys.stderr)
            photos = write_photos(Path(path), samples, count, folder.size)
            print(f"embedding them both ways, {rounds}x", file=sys.stderr)
            rows.append(measure(embedder, folder.name, photos, rounds))
    print_table(rows, embedder)
    if options.json:
        options.json.write_text(json.dumps(report(rows, embedder), indent=2) + "\n")


def write_photos(
    folder: Path, samples: list[Path], count: int, size: tuple[int, int]
) -> list[Path]:
    """Samples enlarged, with fine noise, so that a JPEG is about as big as a camera's."""
    noise = np.random.default_rng(0).normal(0, 6, (size[1], size[0], 1)).astype(np.int16)
    paths = []
    for number in range(count):
        with Image.open(samples[number % len(samples)]) as sample:
            photo = sample.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        grain = np.roll(noise, number * 97, axis=(0, 1))
        pixels = np.clip(np.asarray(photo, dtype=np.int16) + grain, 0, 255).astype(np.uint8)
        paths.append(folder / f"{number:04}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=90)
    return paths


def embed_plainly(embedder: Embedder, photos: list[Path]) -> np.ndarray:
    """The loop one would write by hand, around the same session and preprocessing."""
    vectors = []
    for start in range(0, len(photos), embedder.batch_size):
        batch = []
        for path in photos[start : start + embedder.batch_size]:
            with Image.open(path) as image:
                batch.append(embedder.config.preprocess(image.convert("RGB")))
        vectors.append(embedder.image_session.run(np.stack(batch)))
    return unit_rows(np.concatenate(vectors))


def embed_with_twinlens(embedder: Embedder, photos: list[Path]) -> np.ndarray:
    return np.concatenate([batch.vectors for batch in embedder.stream_images(photos)])


def measure(embedder: Embedder, name: str, photos: list[Path], rounds: int) -> Row:
    plain_seconds, twinlens_seconds = [], []
    for _ in range(rounds):  # in turn, so that a busy moment of the machine hits both
        seconds, plain = timed(embed_plainly, embedder, photos)
        plain_seconds.append(seconds)
        seconds, ours = timed(embed_with_twinlens, embedder, photos)
        twinlens_seconds.append(seconds)
    plain_speed = len(photos) / statistics.median(plain_seconds)
    twinlens_speed = len(photos) / statistics.median(twinlens_seconds)
    return Row(
        folder=name,
        images=len(photos),
        mean_megabytes=statistics.mean(path.stat().st_size for path in photos) / 1e6,
        plain_images_per_second=plain_speed,
        twinlens_images_per_second=twinlens_speed,
        ratio=twinlens_speed / plain_speed,
        least_cosine=float((plain * ours).sum(axis=1).min()),
    )


def timed(
    embed: Callable[[Embedder, list[Path]], np.ndarray], embedder: Embedder, photos: list[Path]
) -> tuple[float, np.ndarray]:
    start = time.perf_counter()
    vectors = embed(embedder, photos)
    return time.perf_counter() - start, vectors


def report(rows: list[Row], embedder: Embedder) -> dict[str, object]:
    packages = ("numpy", "onnxruntime", "pillow")
    return {
        "benchmark": "index_folder",
        "model_id": embedder.model_id,
        "threads": embedder.threads,
        "batch_size": embedder.batch_size,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "rows": [asdict(row) for row in rows],
    }


def print_table(rows: list[Row], embedder: Embedder) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"images per second, {embedder.model_id}, {embedder.threads} threads")
    for heading in ("folder", "images", "MB each", "plain", "twinlens", "ratio", "least cosine"):
        table.add_column(heading, justify="left" if heading == "folder" else "right")
    for row in rows:
        table.add_row(
            row.folder,
            str(row.images),
            f"{row.mean_megabytes:.2f}",
            f"{row.plain_images_per_second:.1f}",
            f"{row.twinlens_images_per_second:.1f}",
            f"{row.ratio:.1f}x",
            f"{row.least_cosine:.4f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
