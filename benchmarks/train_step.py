"""How many pairs a training step takes per second, beside transformers' CLIPModel; and memory.

    python benchmarks/train_step.py                 # about 10 minutes on 2 cores
    python benchmarks/train_step.py --quick         # small batches, few steps
    python benchmarks/train_step.py --memory        # a batch of 32,768 in parts of 1,024

Speed: both models have the same sizes, activation (quick_gelu), float type, threads, pictures
and captions, the same optimiser (AdamW, fused, in two groups) and a gradient limit of 1. Steps
are taken in turns, so that a busy machine slows all, and a ratio is the median of the ratios
of neighbouring steps. Transformers gets ids padded to 77, as CLIP's reference pads. Ours gets
them as our tokenizer makes them, to the longest caption of the batch (a causal tower cannot
see what follows the end token), and in a third run padded to 77 as well: then what differs is
the last block, which ours computes at the pooled token alone, and smaller things.

Memory: a process of its own for each batch size, whose peak resident set is read at its end;
inputs beyond 64 MB wait on the disk. On a GPU the samples per second and the share of its
peak arithmetic (MFU) of ViT-B/16 in bf16 are measured too; without one, that is not run.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twinlens.config import ClipConfig, ClipTextConfig, TransformerConfig, VitConfig
from twinlens.data.clip_bpe import ClipBpeTokenizer, clip_vocabulary
from twinlens.model.clip import Clip
from twinlens.train.accumulate import cached_gradients, whole_gradients
from twinlens.train.config import OptimizerConfig, TrainConfig
from twinlens.train.objective import Towers, batch_loss
from twinlens.train.optim import clamp_log_scale, limit_gradients, make_optimizer, set_rates
from twinlens.train.start import preset_config

CAPTIONS = (
    "A child in a pink dress is climbing up a set of stairs in an entry way .",
    "A black dog and a spotted dog are fighting",
    "Two dogs of different breeds looking at each other on the road .",
    "A man lays on a bench while his dog sits by him .",
    "A brown dog is running after a black dog on a rocky shore with the sea behind them .",
    "Several climbers in a row are climbing the rock while the man in red watches and holds on .",
)
RATE, LIMIT = 1e-4, 1.0
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L4": 121e12}  # dense bf16

Step = Callable[[], float]


def inputs(batch: int, image_size: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    tokenizer = ClipBpeTokenizer(clip_vocabulary(), 77, pad_to_context=True)
    texts = [CAPTIONS[number % len(CAPTIONS)] for number in range(batch)]
    return torch.randn(batch, 3, image_size, image_size), torch.from_numpy(tokenizer(texts))


def tower_sizes(name: str, image_size: int) -> tuple[ClipConfig, VitConfig, ClipTextConfig]:
    """A preset, and its two towers' configurations."""
    sizes = preset_config(name, image_size=image_size)
    assert isinstance(sizes.image, VitConfig) and isinstance(sizes.text, ClipTextConfig)
    return sizes, sizes.image, sizes.text


def our_step(name: str, pixels: Tensor, ids: Tensor, *, bf16: bool, compiled: bool = False) -> Step:
    sizes, image, text = tower_sizes(name, pixels.shape[-1])
    model = Clip(
        replace(
            sizes,
            image=replace(image, activation="quick_gelu"),
            text=replace(text, activation="quick_gelu"),
        )
    ).to(pixels.device)
    model.train()
    towers = Towers(model, torch.bfloat16 if bf16 else None, pixels.device.type)
    if compiled:
        towers.compile()
    optimizer = make_optimizer(model, OptimizerConfig())
    set_rates(optimizer, RATE)
    config = TrainConfig(model=name)
    parameters = list(model.parameters())

    def step() -> float:
        loss = whole_gradients(towers, lambda out: batch_loss(config, out, None), (pixels, ids))
        limit_gradients(parameters, LIMIT)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clamp_log_scale(model.log_scale)
        return loss.item()

    return step


def their_step(name: str, pixels: Tensor, ids: Tensor, *, bf16: bool) -> Step:
    from transformers import CLIPConfig, CLIPModel

    sizes, image, text = tower_sizes(name, pixels.shape[-1])
    sides: dict[str, dict[str, Any]] = {
        side: {
            "hidden_size": tower.width,
            "intermediate_size": tower.mlp_width,
            "num_hidden_layers": tower.layers,
            "num_attention_heads": tower.heads,
            "hidden_act": "quick_gelu",
        }
        for side, tower in (("vision", image), ("text", text))
    }
    sides["vision"] |= {"image_size": pixels.shape[-1], "patch_size": image.patch_size}
    sides["text"] |= {"eos_token_id": 49407, "bos_token_id": 49406, "pad_token_id": 0}
    model = CLIPModel(
        CLIPConfig(
            vision_config=sides["vision"], text_config=sides["text"], projection_dim=sizes.dim
        )
    )
    model.to(pixels.device)  # type: ignore[arg-type]
    model.train()
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    free = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.2}, {"params": free, "weight_decay": 0.0}],
        lr=RATE,
        betas=(0.9, 0.98),
        eps=1e-6,
        fused=True,
    )

    def step() -> float:
        with torch.autocast(pixels.device.type, dtype=torch.bfloat16, enabled=bf16):
            loss = model(input_ids=ids, pixel_values=pixels, return_loss=True).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), LIMIT)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)
        return float(loss.item())

    return step


def compare(name: str, batch: int, rounds: int, *, bf16: bool, compiled: bool) -> dict[str, Any]:
    """Seconds of each step, in turns; the first of each is not counted."""
    pixels, ids = inputs(batch, 224)
    end = int(ids.argmax(dim=1).max()) + 1
    short = ids[:, :end].contiguous()
    steps = {
        "same_ids": our_step(name, pixels, ids, bf16=bf16, compiled=compiled),
        "ours": our_step(name, pixels, short, bf16=bf16, compiled=compiled),
        "transformers": their_step(name, pixels, ids, bf16=bf16),
    }
    seconds: dict[str, list[float]] = {who: [] for who in steps}
    for number in range(rounds + 1):
        for who in steps if number % 2 else reversed(steps):
            start = time.perf_counter()
            steps[who]()
            if number:
                seconds[who].append(time.perf_counter() - start)
    theirs = seconds["transformers"]
    return {
        "model": name,
        "batch": batch,
        "precision": "bf16" if bf16 else "fp32",
        "compiled": compiled,
        "tokens": {"ours": end, "same_ids": int(ids.shape[1]), "transformers": int(ids.shape[1])},
        "pairs_per_second": {
            who: batch / statistics.median(taken) for who, taken in seconds.items()
        },
        "ratio": {
            who: statistics.median(t / o for o, t in zip(seconds[who], theirs, strict=True))
            for who in ("ours", "same_ids")
        },
    }


def one_big_step(batch: int, part: int) -> None:
    """One step of a ViT-Ti at 32 px; prints the peak memory of this process in MB, and seconds."""
    sizes = preset_config("vit-ti-16", image_size=32)
    model = Clip(sizes)
    model.train()
    towers = Towers(model, None, "cpu")
    optimizer = make_optimizer(model, OptimizerConfig())
    config = TrainConfig(model="vit-ti-16")
    generator = torch.Generator().manual_seed(0)
    _, ids = inputs(part, 32)
    ids = ids[:, :16].contiguous()
    ids[:, -1] = ids.max()  # every text ends there
    parts = ((torch.randn(part, 3, 32, 32, generator=generator), ids) for _ in range(batch // part))
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        loss = cached_gradients(
            towers,
            lambda out: batch_loss(config, out, None),
            parts,
            module=model,
            folder=Path(folder),
            hold_megabytes=64,
        )
    limit_gradients(list(model.parameters()), LIMIT)
    optimizer.step()
    figures = {
        "batch": batch,
        "loss": loss.item(),
        "seconds": time.perf_counter() - start,
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(figures))


def memory(largest: int, part: int) -> dict[str, Any]:
    """Peak memory of one part's batch and of the largest one, each in a fresh process."""
    found = []
    for batch in (part, largest):
        output = subprocess.run(
            [sys.executable, __file__, "--big-step", str(batch), str(part)],
            check=True,
            capture_output=True,
            text=True,
            # What is freed leaves the process at once: otherwise this would measure how glibc
            # puts pieces of many sizes side by side.
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"},
        ).stdout
        found.append(json.loads(output))
    dim = preset_config("vit-ti-16").dim
    # Embeddings of both sides, once as they are and once as their gradients, in float32.
    embeddings = largest * dim * 4 * 2 * 2 / 2**20
    small, large = (run["peak_megabytes"] for run in found)
    return {"runs": found, "embeddings_megabytes": embeddings, "beyond_megabytes": large - small}


def mfu(batch: int, parts: int, rounds: int) -> dict[str, Any]:
    """ViT-B/16 in bf16 on this GPU: pairs per second, and the share of its peak."""
    name = torch.cuda.get_device_name()
    peak = next((flops for key, flops in PEAK_FLOPS.items() if key in name), None)
    sizes, image, text = tower_sizes("vit-b-16", 224)
    model = Clip(sizes).cuda()
    model.train()
    towers = Towers(model, torch.bfloat16, "cuda")
    towers.compile()
    optimizer = make_optimizer(model, OptimizerConfig())
    config = TrainConfig(model="vit-b-16")
    pixels, ids = (tensor.cuda() for tensor in inputs(batch // parts, 224))
    parameters = list(model.parameters())
    # Multiplications and additions of matrices, forward: 2 per weight and token, and attention.
    flops = 0.0
    sides: tuple[tuple[TransformerConfig, int], ...] = ((image, 197), (text, 77))
    for tower, tokens in sides:
        weights = tower.layers * (4 * tower.width**2 + 2 * tower.width * tower.mlp_width)
        flops += 2 * weights * tokens + 4 * tower.layers * tokens**2 * tower.width
    seconds = []
    for _ in range(rounds + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        if parts == 1:
            whole_gradients(towers, lambda out: batch_loss(config, out, None), (pixels, ids))
        else:
            cached_gradients(
                towers,
                lambda out: batch_loss(config, out, None),
                ((pixels, ids) for _ in range(parts)),
                module=model,
            )
        limit_gradients(parameters, LIMIT)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    rate = batch / statistics.median(seconds[2:])
    # Useful work is one forward and one backward (twice the forward); the second forward of
    # accumulation is not counted as useful.
    return {
        "gpu": name,
        "batch": batch,
        "parts": parts,
        "pairs_per_second": rate,
        "mfu": None if peak is None else 3 * flops * rate / peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small batches and few steps")
    parser.add_argument("--memory", action="store_true", help="measure memory and not speed")
    parser.add_argument("--bf16", action="store_true", help="both in bfloat16 autocast")
    parser.add_argument("--compile", action="store_true", help="ours with torch.compile")
    parser.add_argument("--threads", type=int, default=None, metavar="N")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers here")
    parser.add_argument("--big-step", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.big_step:
        one_big_step(*options.big_step)
        return
    figures: dict[str, Any] = {"benchmark": "train_step", "threads": torch.get_num_threads()}
    if options.memory:
        largest, part = (4096, 256) if options.quick else (32_768, 1024)
        figures["memory"] = memory(largest, part)
        print(json.dumps(figures["memory"], indent=2))
    else:
        quick = options.quick
        plan = [("vit-b-32", 16 if quick else 32), ("vit-ti-16", 16 if quick else 64)]
        figures["speed"] = []
        for name, batch in plan:
            row = compare(
                name, batch, 3 if quick else 9, bf16=options.bf16, compiled=options.compile
            )
            figures["speed"].append(row)
            speed, ratio = row["pairs_per_second"], row["ratio"]
            print(
                f"{name} batch {batch} {row['precision']}: transformers "
                f"{speed['transformers']:.2f} pairs/s; ours {speed['ours']:.2f}, "
                f"{ratio['ours']:.2f} times; ours with 77 tokens as well "
                f"{speed['same_ids']:.2f}, {ratio['same_ids']:.2f} times",
                flush=True,
            )
        if torch.cuda.is_available():
            figures["gpu"] = [mfu(1024, 1, 5), mfu(4096, 4, 5)]
            print(json.dumps(figures["gpu"], indent=2))
        else:
            print("no GPU here: MFU was not measured")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
