"""How long a first query takes, from typing it to the answer, over 10,000 indexed photos.

    python benchmarks/cold_search.py            # a few minutes, most of it indexing
    python benchmarks/cold_search.py --quick    # 500 photos

Makes a folder of distinct small photos, indexes it, then starts `twinlens search` as a
fresh process again and again. Beside it, in the same run, a fresh process that only opens
the text tower and embeds the same query: what is left is the cost of searching.
Files come from the page cache; the first run of each is not counted.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from twinlens import SAMPLES

QUERY = "a red sunset over the ocean"
BARE = f"""
from twinlens.embed import Embedder
Embedder().texts([{QUERY!r}])
"""


def write_photos(folder: Path, count: int) -> None:
    """Distinct 160x120 photos: samples, each time under other noise."""
    random = np.random.default_rng(0)
    samples = []
    for path in sorted(SAMPLES.glob("*.jpg")):
        with Image.open(path) as image:
            samples.append(np.asarray(image.convert("RGB").resize((160, 120)), dtype=np.int16))
    for number in range(count):
        noise = random.integers(-12, 13, (120, 160, 1), dtype=np.int16)
        pixels = np.clip(samples[number % len(samples)] + noise, 0, 255).astype(np.uint8)
        part = folder / f"{number // 1000:03}"
        part.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(part / f"{number:06}.jpg", quality=85)


def seconds_of(command: list[str], runs: int) -> list[float]:
    """Wall time of each run but the first."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return times[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="500 photos, 3 runs")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers here")
    options = parser.parse_args()
    count, runs = (500, 3) if options.quick else (10_000, 11)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_photos(folder, count)
        command = [sys.executable, "-m", "twinlens"]
        start = time.perf_counter()
        subprocess.run([*command, "index", str(folder)], check=True)
        index_seconds = time.perf_counter() - start
        search = seconds_of([*command, "search", str(folder), QUERY], runs)
        bare = seconds_of([sys.executable, "-c", BARE], runs)
    figures = {
        "benchmark": "cold_search",
        "photos": count,
        "index_seconds": index_seconds,
        "runs": runs,
        "search_seconds_median": statistics.median(search),
        "search_seconds_max": max(search),
        "bare_embedding_seconds_median": statistics.median(bare),
    }
    for name, value in figures.items():
        print(f"{name:32} {value:.3f}" if isinstance(value, float) else f"{name:32} {value}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
