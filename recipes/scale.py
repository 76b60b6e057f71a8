"""What training at DataComp's scales would cost, from the speed measured on this machine.

    python recipes/scale.py --price-per-hour 0.10 --loader ../shared/data/flickr8k/train-0000.tar

DataComp (Gadre et al. 2023, arXiv:2304.14108, table 1) fixes model and samples seen: small
and medium are a ViT-B/32 that sees 12.8 and 128 million pairs, large a ViT-B/16 that sees 1.28
billion. Nothing is trained here: hours are the samples over a rate. The rate of this machine
is measured (fp32 on a CPU, bf16 on a GPU); that of GPUs that are not here is arithmetic with
an assumed share of their peak (--mfu), and each such row says so.
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from twinlens.config import ClipTextConfig, VitConfig
from twinlens.runtime.machine import usable_cores

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from data_loader import loader_rate
from train_step import PEAK_FLOPS, inputs, our_step, tower_sizes

IMAGE_SIZE, TEXT_TOKENS = 224, 77
# A backward pass is two products for each of the forward's: by inputs and by weights.
STEP_TO_FORWARD = 3
# mlfoundations/datacomp's README, "Downloading CommonPool": 450 GB of tars for 12.8 million.
BYTES_PER_SAMPLE = 450e9 / 12.8e6
ASSUMED_MFU = 0.35  # of dense bf16; not measured, and lower where the loader is the limit


@dataclass(frozen=True)
class Scale:
    """One of DataComp's: arXiv:2304.14108, table 1; batches: its repository's scale_configs.py."""

    model: str  # a preset
    samples: float  # seen in training, as many as the pool has
    batch: int


SCALES = {
    "small": Scale("vit-b-32", 12.8e6, 4096),
    "medium": Scale("vit-b-32", 128e6, 4096),
    "large": Scale("vit-b-16", 1.28e9, 8192),
}


def forward_flops(image: VitConfig, text: ClipTextConfig, dim: int) -> dict[str, float]:
    """Floating-point operations of one pair's forward pass, a multiply-add counted as two.

    A block of width w and inner width m holds 4 w² + 2 w m weights, each used once a token;
    attention over t tokens is two products of t² w. Patches are one product of 3 p² by w.
    Norms, activations and the softmax are left out: less than a per cent.
    """
    patches = image.grid**2
    tokens = patches + image.has_class_token
    embedding = 2 * 3 * image.patch_size**2 * image.width * patches
    sides: tuple[tuple[str, VitConfig | ClipTextConfig, int, float], ...] = (
        ("image", image, tokens, embedding),
        ("text", text, TEXT_TOKENS, 0.0),
    )
    flops = {}
    for side, tower, length, first in sides:
        weights = tower.layers * (4 * tower.width**2 + 2 * tower.width * tower.mlp_width)
        attention = 2 * tower.layers * length**2 * tower.width
        flops[side] = first + 2 * (weights * length + attention) + 2 * tower.width * dim
    return flops


def step_flops(model: str) -> dict[str, float]:
    """Of one pair: each tower's forward pass, both, and a training step's."""
    sizes, image, text = tower_sizes(model, IMAGE_SIZE)
    flops = forward_flops(image, text, sizes.dim)
    forward = sum(flops.values())
    return {**flops, "forward": forward, "step": STEP_TO_FORWARD * forward}


@dataclass(frozen=True)
class Rate:
    """How fast something trains, and whether anybody saw it."""

    machine: str
    pairs_per_second: float
    measured: bool
    unit: str  # what hours are of: "core-hours" or "GPU-hours"
    units: int
    how: str


def measured_rate(model: str, *, batch: int, steps: int) -> Rate:
    """This machine's step rate, captions padded to 77 tokens; the first step is not counted.

    Random pixels from memory: no loader beside it.
    """
    gpu = torch.cuda.is_available()
    pixels, ids = inputs(batch, IMAGE_SIZE)
    if gpu:
        pixels, ids = pixels.cuda(), ids.cuda()
    step = our_step(model, pixels, ids, bf16=gpu)
    seconds = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        step()  # ends with the loss as a number: a GPU is waited for
        seconds.append(time.perf_counter() - started)
    threads = torch.get_num_threads()
    return Rate(
        machine=torch.cuda.get_device_name() if gpu else f"this machine, {threads} threads",
        pairs_per_second=batch / statistics.median(seconds[1:]),
        measured=True,
        unit="GPU-hours" if gpu else "core-hours",
        units=1 if gpu else threads,
        how=f"{model}, {'bf16' if gpu else 'fp32'}, batch {batch}, median of {steps} steps",
    )


def assumed_rate(gpu: str, flops: float, mfu: float) -> Rate:
    """A GPU that is not here: its peak times an assumed share of it."""
    return Rate(
        machine=f"one {gpu}",
        pairs_per_second=PEAK_FLOPS[gpu] * mfu / flops,
        measured=False,
        unit="GPU-hours",
        units=1,
        how=f"assumed, not measured: {mfu:.0%} of {PEAK_FLOPS[gpu] / 1e12:.0f} TFLOP/s bf16",
    )


def cost(
    scale: Scale,
    rate: Rate,
    *,
    price_per_hour: float | None,
    bytes_per_sample: float,
    loader_ms: float | None,
) -> dict[str, Any]:
    """Hours, money, bytes a second and loader cores of one scale on one machine.

    `price_per_hour` is of the whole of `rate.machine`. `loader_ms` is the processor time, in
    milliseconds, that a pair takes before it reaches the model.
    """
    hours = scale.samples / rate.pairs_per_second / 3600
    return {
        "machine": rate.machine,
        "measured": rate.measured,
        "how": rate.how,
        "pairs_per_second": rate.pairs_per_second,
        "hours": hours,
        rate.unit.replace("-", "_").lower(): hours * rate.units,
        "price": None if price_per_hour is None else hours * price_per_hour,
        "megabytes_per_second": rate.pairs_per_second * bytes_per_sample / 1e6,
        "loader_cores": None if loader_ms is None else rate.pairs_per_second * loader_ms / 1e3,
    }


def notes(
    *,
    batch: int = 32,
    steps: int = 4,
    price_per_hour: float | None = None,
    gpu_price_per_hour: float | None = None,
    mfu: float = ASSUMED_MFU,
    bytes_per_sample: float = BYTES_PER_SAMPLE,
    loader: str | None = None,
    loader_pairs: int = 500,
) -> dict[str, Any]:
    """Every scale on this machine and on the GPUs of PEAK_FLOPS.

    Only medium's model is measured; another's rate is scaled by its operations, and says so.
    """
    base = SCALES["medium"].model
    here = measured_rate(base, batch=batch, steps=steps)
    loading = loader_rate(loader, usable_cores(), loader_pairs) if loader else None
    on_gpu = here.unit == "GPU-hours"
    flops = {model: step_flops(model) for model in {s.model for s in SCALES.values()}}
    found: dict[str, Any] = {}
    for name, scale in SCALES.items():
        own = here
        if scale.model != base:
            slower = flops[base]["step"] / flops[scale.model]["step"]
            own = Rate(
                machine=here.machine,
                pairs_per_second=here.pairs_per_second * slower,
                measured=False,
                unit=here.unit,
                units=here.units,
                how=f"assumed, not measured: {base}'s rate times {slower:.2f}, by operations",
            )
        rates = [own, *(assumed_rate(gpu, flops[scale.model]["step"], mfu) for gpu in PEAK_FLOPS)]
        prices = [gpu_price_per_hour if on_gpu else price_per_hour]
        prices += [gpu_price_per_hour] * len(PEAK_FLOPS)
        found[name] = {
            "model": scale.model,
            "samples": scale.samples,
            "steps": scale.samples / scale.batch,
            "forward_flops": flops[scale.model],
            "total_flops": flops[scale.model]["step"] * scale.samples,
            "disk_terabytes": scale.samples * bytes_per_sample / 1e12,
            "machines": [
                cost(
                    scale,
                    rate,
                    price_per_hour=price,
                    bytes_per_sample=bytes_per_sample,
                    loader_ms=loading["processor_ms"] if loading else None,
                )
                for rate, price in zip(rates, prices, strict=True)
            ],
        }
    achieved = here.pairs_per_second * flops[base]["step"]
    peak = next((f for key, f in PEAK_FLOPS.items() if key in here.machine), None)
    return {
        "recipe": "scale",
        "achieved_gflops": achieved / 1e9,
        "achieved_mfu": None if peak is None else achieved / peak,
        "loader": None if loading is None else {"source": loader, **loading},
        "bytes_per_sample": bytes_per_sample,
        "scales": found,
    }


def _short(value: float) -> str:
    """Two digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def text_of(figures: dict[str, Any]) -> str:
    """The figures for people."""
    lines = []
    for name, scale in figures["scales"].items():
        flops = scale["forward_flops"]
        lines += [
            f"DataComp {name}: {scale['model']}, {scale['samples'] / 1e6:,.1f} million samples, "
            f"{scale['steps']:,.0f} steps",
            f"  forward {flops['image'] / 1e9:.2f} + {flops['text'] / 1e9:.2f} GFLOP a pair; a "
            f"step {STEP_TO_FORWARD} times that, {flops['step'] / 1e9:.1f}; all of it "
            f"{scale['total_flops']:.2e}",
            f"  {scale['disk_terabytes']:.2f} TB of shards "
            f"({figures['bytes_per_sample'] / 1e3:.1f} kB a sample)",
        ]
        for row in scale["machines"]:
            price = "" if row["price"] is None else f", {_short(row['price'])} in money"
            cores = ""
            if row["loader_cores"] is not None:
                cores = f", {_short(row['loader_cores'])} loader cores"
            units = next(
                f"{_short(row[key])} {name}"
                for key, name in (("core_hours", "core-hours"), ("gpu_hours", "GPU-hours"))
                if key in row
            )
            lines.append(
                f"  {row['machine']}: {_short(row['pairs_per_second'])} pairs/s, "
                f"{_short(row['hours'])} hours, {units}{price}; reads "
                f"{_short(row['megabytes_per_second'])} MB/s{cores} [{row['how']}]"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=32, help="[default: %(default)s]")
    parser.add_argument("--steps", type=int, default=4, help="to measure [default: %(default)s]")
    parser.add_argument("--threads", type=int, metavar="N", help="[default: all cores]")
    parser.add_argument("--price-per-hour", type=float, metavar="MONEY", help="of this machine")
    parser.add_argument("--gpu-price-per-hour", type=float, metavar="MONEY", help="of one GPU")
    parser.add_argument(
        "--mfu", type=float, default=ASSUMED_MFU, help="assumed of GPUs [default: %(default)g]"
    )
    parser.add_argument(
        "--bytes-per-sample",
        type=float,
        default=BYTES_PER_SAMPLE,
        help="in shards; DataComp's README has 450 GB for 12.8 million [default: %(default).0f]",
    )
    parser.add_argument(
        "--loader", metavar="SOURCE", help="pairs to measure the loader with, as data_loader.py"
    )
    parser.add_argument("--quick", action="store_true", help="one step of 4, few loaded pairs")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures here")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    figures = notes(
        batch=4 if options.quick else options.batch,
        steps=1 if options.quick else options.steps,
        price_per_hour=options.price_per_hour,
        gpu_price_per_hour=options.gpu_price_per_hour,
        mfu=options.mfu,
        bytes_per_sample=options.bytes_per_sample,
        loader=options.loader,
        loader_pairs=64 if options.quick else 500,
    )
    print(text_of(figures))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
