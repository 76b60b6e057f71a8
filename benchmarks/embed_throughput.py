"""How fast ViT-B/32 embeds, beside PyTorch with the same weights, threads and moment.

    python benchmarks/embed_throughput.py [--quick] [--threads N] [--json PATH]
        [--photos FOLDER] [--mini-fp32 FOLDER --shared FOLDER]

Weights are random (no download), with some channels twelve times the others, as trained
transformers have them. Rounds take turns, so that a busy moment hits all rows; medians are
printed, and the best round in the JSON. End to end reads real JPEG files: decoding alone, the
model alone, and both in Embedder. The ceiling is the fastest large matrix product measured
here. With --mini-fp32 (a recipe's WORK folder) recall@10 of `mini` in int8 and float32.
Needs the extra `train`, transformers and, for its rows, openvino.
"""

import argparse
import copy
import importlib.util
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from twinlens import SAMPLES
from twinlens.data.image import read_image
from twinlens.data.shards import read_shards
from twinlens.data.tokenizer import open_tokenizer
from twinlens.embed import Embedder
from twinlens.evaluate.retrieval import retrieval_scores
from twinlens.runtime.convert import convert
from twinlens.runtime.folder import load_runtime_config, locate
from twinlens.runtime.machine import processor_name, usable_cores
from twinlens.runtime.openvino import OpenVinoSession
from twinlens.runtime.quantize import quantize_image_tower, quantize_text_tower, to_float16
from twinlens.runtime.session import Session, TowerSession, open_session, unit_rows
from twinlens.runtime.simplify import simplify_tower

GFLOP_PER_IMAGE = 8.73  # ViT-B/32 at 224 pixels: 2 x multiply-adds of all products
TOKENS = 16  # of a caption, start and end included
Tower = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Row:
    """One way to run one tower at one batch size."""

    tower: str
    way: str
    batch_size: int
    items_per_second: float
    best_items_per_second: float
    over_pytorch: float  # eager, same batch size
    mean_cosine: float
    min_cosine: float


def random_clip() -> Any:
    """transformers' ViT-B/32 with spread-out random weights and some huge channels."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    model: Any = CLIPModel(CLIPConfig())
    model.eval()
    for tower, width in ((model.vision_model, 768), (model.text_model, 512)):
        outliers = torch.randperm(width)[:4]
        for number, layer in enumerate(tower.encoder.layers):
            attention, mlp = layer.self_attn, layer.mlp
            for linear, std in (
                (attention.q_proj, 0.06),
                (attention.k_proj, 0.06),
                (attention.v_proj, width**-0.5),
                (attention.out_proj, 0.5 * width**-0.5),
                (mlp.fc1, width**-0.5),
                (mlp.fc2, 0.3 * width**-0.5),
            ):
                torch.nn.init.normal_(linear.weight, std=std)
                torch.nn.init.normal_(linear.bias, std=0.1)
            for norm in (layer.layer_norm1, layer.layer_norm2):
                norm.weight.data = torch.exp(0.4 * torch.randn(width))
                norm.bias.data = 0.1 * torch.randn(width)
            if number in (2, 4, 7):
                units = torch.randperm(4 * width)[:3]
                mlp.fc1.weight.data[units] *= 12
                mlp.fc2.weight.data[outliers[:, None], units] *= 15
    return model


def make_towers(model: Any, folder: Path, pixels: np.ndarray) -> dict[str, Path]:
    """Runtime folders of the model by precision."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # assumed defaults: the weights are made up anyway
        model.save_pretrained(folder / "hf")
        convert(folder / "hf", folder / "plain", precision="fp32", name="vit-b-32")
    folders = {name: folder / name for name in ("fp32", "fp16", "int8")}
    for place in folders.values():
        shutil.copytree(folder / "plain", place)
    examples = {"image": pixels[:2], "text": caption_ids(2)}
    for side, example in examples.items():
        file = f"{side}.onnx"
        simplify_tower(folder / "plain" / file, folders["fp32"] / file, example)
        to_float16(folders["fp32"] / file, folders["fp16"] / file)
    quantize_image_tower(
        folder / "plain" / "image.onnx", folders["int8"] / "image.onnx", [pixels[32:]]
    )
    quantize_text_tower(folder / "plain" / "text.onnx", folders["int8"] / "text.onnx")
    return folders


def caption_ids(count: int) -> np.ndarray:
    """Captions of made-up words between CLIP's start and end tokens."""
    ids = np.random.default_rng(0).integers(320, 40_000, (count, TOKENS))
    ids[:, 0], ids[:, -1] = 49_406, 49_407
    return ids


def torch_ways(model: Any, side: str) -> dict[str, Tower]:
    """The reference implementation, with both of its attentions."""

    def way(attention: str) -> Tower:
        own = copy.deepcopy(model)  # switching one model to and fro would be timed too
        own.set_attn_implementation(attention)

        def run(batch: np.ndarray) -> np.ndarray:
            tensor = torch.from_numpy(batch)
            with torch.inference_mode():
                if side == "image":
                    out = own.visual_projection(own.vision_model(tensor).pooler_output)
                else:
                    out = own.text_projection(own.text_model(tensor).pooler_output)
            return out.numpy()  # type: ignore[no-any-return]

        return run

    return {f"PyTorch {name}": way(name) for name in ("eager", "sdpa")}


def our_ways(folders: dict[str, Path], side: str, threads: int) -> dict[str, Tower]:
    """Both runtimes in all precisions, and OpenVINO in bfloat16."""
    ways: dict[str, Tower] = {}
    for precision, folder in folders.items():
        path = folder / f"{side}.onnx"
        ways[f"ONNX Runtime {precision}"] = TowerSession(path, threads=threads).run
        # OpenVINO does not know the block-wise products of the int8 text tower.
        if importlib.util.find_spec("openvino") and (side, precision) != ("text", "int8"):
            ways[f"OpenVINO {precision}"] = OpenVinoSession(path, threads=threads).run
            if precision == "fp32":
                session = OpenVinoSession(path, threads=threads, numbers="bfloat16")
                ways["OpenVINO bf16"] = session.run
    return ways


def measure(
    side: str, ways: dict[str, Tower], inputs: np.ndarray, sizes: tuple[int, ...], rounds: int
) -> list[Row]:
    wanted = unit_rows(ways["PyTorch eager"](inputs))
    cosines = {name: (wanted * unit_rows(run(inputs))).sum(axis=1) for name, run in ways.items()}
    rows = []
    for size in sizes:
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for round_number in range(rounds * (3 if size == 1 else 1) + 1):
            for name, run in ways.items():
                start = time.perf_counter()
                run(inputs[:size])
                if round_number:  # the first of a shape is slower
                    seconds[name].append(time.perf_counter() - start)
        eager = statistics.median(seconds["PyTorch eager"])
        for name, taken in seconds.items():
            middle = statistics.median(taken)
            rows.append(
                Row(
                    tower=side,
                    way=name,
                    batch_size=size,
                    items_per_second=size / middle,
                    best_items_per_second=size / min(taken),
                    over_pytorch=eager / middle,
                    mean_cosine=float(cosines[name].mean()),
                    min_cosine=float(cosines[name].min()),
                )
            )
    return rows


def ceiling(rounds: int) -> dict[str, float]:
    """Billions of operations a second in the fastest large product of this machine."""
    whole = torch.randint(-100, 100, (2048, 2048), dtype=torch.int8)
    numbers = torch.randn(2048, 2048)
    products: dict[str, Callable[[], object]] = {
        "fp32": lambda: numbers @ numbers,
        "int8": lambda: torch._int_mm(whole, whole),
    }
    speeds = {}
    for name, product in products.items():
        taken = []
        for _ in range(rounds + 2):
            start = time.perf_counter()
            product()
            taken.append(time.perf_counter() - start)
        speeds[name] = 2 * 2048**3 / min(taken) / 1e9
    return speeds


def end_to_end(folder: Path, photos: list[Path], threads: int, rounds: int) -> dict[str, float]:
    """Photos per second: decoded alone, through the model alone, and both.

    The model alone is the faster of its two ways: all threads on a batch, or one each.
    """
    embedder = Embedder(folder, threads=threads)
    session: Session = embedder.image_session
    size = embedder.batch_size
    batch = np.stack([prepared(embedder, path) for path in photos[:size]])

    def decode() -> None:
        # Embedder's own loop with a session that costs nothing.
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(lambda path: prepared(embedder, path), photos):
                pass

    single = open_session(folder / embedder.config.image_file, threads=1)

    def model() -> None:
        for _ in range(0, len(photos), size):
            session.run(batch)

    def model_by_threads() -> None:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(single.run, [batch] * (len(photos) // size)):
                pass

    def pipeline() -> None:
        for _ in embedder.stream_images(photos):
            pass

    parts: dict[str, Callable[[], None]] = {
        "decode": decode,
        "model": model,
        "model_by_threads": model_by_threads,
        "pipeline": pipeline,
    }
    pipeline()  # what is measured once per machine is measured here
    taken: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):
        for name, part in parts.items():
            start = time.perf_counter()
            part()
            taken[name].append(time.perf_counter() - start)
    speeds = {name: len(photos) / statistics.median(values) for name, values in taken.items()}
    speeds["model"] = max(speeds["model"], speeds.pop("model_by_threads"))
    speeds["of_slower"] = speeds["pipeline"] / min(speeds["decode"], speeds["model"])
    # Decoding and the model share the cores: no order of work can be faster than this.
    limit = 1 / (1 / speeds["decode"] + 1 / speeds["model"])
    speeds["of_shared_cores"] = speeds["pipeline"] / limit
    return speeds


def prepared(embedder: Embedder, path: Path) -> np.ndarray:
    preprocess = embedder.config.preprocess
    return preprocess(read_image(path, target_size=preprocess.image_size))


def mini_recall(work: Path, shared: Path) -> dict[str, dict[str, float]]:
    """Flickr8k val with the shipped int8 towers and the recipe's float32 ones."""
    folder = locate("mini")
    config = load_runtime_config(folder)
    samples = list(read_shards(sorted((shared / "data").glob("flickr8k/val-*.tar"))))
    pixels = np.stack([config.preprocess(read_image(sample.image)) for sample in samples])
    captions = [text for sample in samples for text in sample.info["captions"]]
    owner = np.repeat(np.arange(len(samples)), [len(s.info["captions"]) for s in samples])
    tokenizer = open_tokenizer(config.tokenizer, folder)
    ids = tokenizer(captions)
    towers = {
        "int8": (folder / config.image_file, folder / config.text_file),
        "fp32": (work / "image.fp32.onnx", work / "text.fp32.onnx"),
    }
    scores = {}
    for precision, paths in towers.items():
        image, text = (
            unit_rows(np.concatenate([session.run(x[i : i + 32]) for i in range(0, len(x), 32)]))
            for session, x in zip(map(TowerSession, paths), (pixels, ids), strict=True)
        )
        scores[precision] = retrieval_scores(image @ text.T, owner)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds and photos")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--photos", type=Path, help="folder of JPEG files; default: the samples")
    parser.add_argument("--mini-fp32", type=Path, help="WORK folder of recipes/mini.py")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    options = parser.parse_args()
    rounds = 3 if options.quick else 9
    torch.set_num_threads(options.threads)
    photos = sorted((options.photos or SAMPLES).glob("*.jpg"))
    wanted = 320  # long enough for Embedder to measure how it shares the cores
    photos = (photos * (wanted // max(1, len(photos)) + 1))[:wanted]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = random_clip()
        mini = Embedder("mini").config.preprocess
        pixels = np.stack([mini(read_image(path, target_size=224)) for path in photos[:48]])
        folders = make_towers(model, folder, pixels)
        report: dict[str, Any] = {
            "benchmark": "embed_throughput",
            "processor": processor_name(),
            "threads": options.threads,
            "python": platform.python_version(),
            "packages": {p: version(p) for p in ("torch", "transformers", "onnxruntime", "numpy")},
            "ceiling_gops": ceiling(rounds),
            "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        }
        inputs = {"image": pixels[:32], "text": caption_ids(32)}
        sizes = (1, 8) if options.quick else (1, 8, 32)
        rows: list[Row] = []
        for side, batch in inputs.items():
            ways = torch_ways(model, side) | our_ways(folders, side, options.threads)
            rows += measure(side, ways, batch, sizes, rounds)
        report["rows"] = [asdict(row) for row in rows]
        report["end_to_end"] = {
            precision: end_to_end(
                folders[precision], photos, options.threads, 1 if options.quick else 3
            )
            for precision in (("int8",) if options.quick else ("fp32", "int8"))
        }
        again = ceiling(rounds)  # a busy moment at the start would flatter every share
        report["ceiling_gops"] = {k: max(v, again[k]) for k, v in report["ceiling_gops"].items()}
    if options.mini_fp32 and options.shared.is_dir():
        report["mini"] = mini_recall(options.mini_fp32, options.shared)
    print_report(report, rows)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def print_report(report: dict[str, Any], rows: list[Row]) -> None:
    limits = report["ceiling_gops"]
    print(f"{report['processor']}, {report['threads']} threads, {report['packages']}")
    if (load := report["load_before"]) is not None and load > 1.5 * report["threads"]:
        print(f"The machine was busy (load {load:.1f}): these figures are not worth keeping.")
    print(f"ceiling: fp32 {limits['fp32']:.0f} GFLOP/s, int8 {limits['int8']:.0f} GOP/s")
    print(f"{'tower':6}{'way':20}{'batch':>6}{'items/s':>9}{'x eager':>9}{'cosine':>9}{'least':>9}")
    for row in rows:
        print(
            f"{row.tower:6}{row.way:20}{row.batch_size:6}{row.items_per_second:9.1f}"
            f"{row.over_pytorch:9.2f}{row.mean_cosine:9.5f}{row.min_cosine:9.5f}",
            end="",
        )
        kind = row.way.rsplit(" ", 1)[1]
        if row.tower == "image" and kind in limits:
            share = row.items_per_second * GFLOP_PER_IMAGE / limits[kind]
            print(f"  {share:.0%} of the ceiling", end="")
        print()
    for precision, speeds in report["end_to_end"].items():
        print(
            f"end to end, {precision}: decode {speeds['decode']:.0f}/s, model "
            f"{speeds['model']:.1f}/s, both {speeds['pipeline']:.1f}/s: {speeds['of_slower']:.0%} "
            f"of the slower, {speeds['of_shared_cores']:.0%} of what shared cores allow"
        )
    for precision, scores in report.get("mini", {}).items():
        shown = {name: round(value, 4) for name, value in scores.items() if "@10" in name}
        print(f"mini {precision}, Flickr8k val: {shown}")


if __name__ == "__main__":
    main()
