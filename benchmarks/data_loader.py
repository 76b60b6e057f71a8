"""Pairs a second that the training loader alone prepares, beside what a training step takes.

    python benchmarks/data_loader.py ../shared/data/flickr8k/train-{0000..0005}.tar photos/
    python benchmarks/data_loader.py --quick --json ../shared/data/flickr8k/train-0000.tar

Every pair is read, decoded, cropped at random, preprocessed to 224 pixels and tokenized. The
step is forward, backward and AdamW of a ViT-B/32 CLIP on the same cores, without the loader.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from twinlens.config import ClipConfig, ClipTextConfig, VitConfig
from twinlens.data.augment import Augment
from twinlens.data.pairs import source_from_text
from twinlens.data.preprocess import Preprocess
from twinlens.data.stream import PairStream
from twinlens.data.tokenizer import TokenizerConfig, open_tokenizer
from twinlens.model.clip import Clip
from twinlens.runtime.machine import usable_cores
from twinlens.train.loader import BatchLoader
from twinlens.train.losses import contrastive_loss

BATCH = 16
PREPROCESS = Preprocess(
    image_size=224,
    resize="shortest",
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)


def loader_rate(source: str, workers: int, limit: int) -> dict[str, float]:
    """Pairs a second, and milliseconds of processor time for each."""
    tokenizer = open_tokenizer(TokenizerConfig(kind="clip_bpe", context=77), Path())
    stream = PairStream([source_from_text(source)])
    loader = BatchLoader(stream, PREPROCESS, tokenizer, Augment(), BATCH, workers, repeat=True)
    batches = iter(loader)
    next(batches)
    started, used, pairs = time.perf_counter(), time.process_time(), 0
    while pairs < limit:
        pairs += len(next(batches))
    seconds, used = time.perf_counter() - started, time.process_time() - used
    return {"pairs_per_second": pairs / seconds, "processor_ms": used / pairs * 1e3}


def step_rate(cores: int, steps: int) -> float:
    """Pairs a second of a ViT-B/32 CLIP's training step."""
    torch.set_num_threads(cores)
    image = VitConfig(width=768, layers=12, heads=12, mlp_width=3072)
    text = ClipTextConfig(width=512, layers=12, heads=8, mlp_width=2048)
    clip = Clip(ClipConfig(image=image, text=text, dim=512)).train()
    optimizer = torch.optim.AdamW(clip.parameters(), 1e-4)
    pixels, ids = torch.randn(BATCH, 3, 224, 224), torch.randint(1, 49407, (BATCH, 77))
    started = 0.0
    for step in range(steps + 1):
        if step == 1:  # the first one allocates
            started = time.perf_counter()
        normalize = torch.nn.functional.normalize
        pair = normalize(clip.encode_image(pixels)), normalize(clip.encode_text(ids))
        contrastive_loss(*pair, clip.log_scale).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    return BATCH * steps / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs="+", metavar="SOURCE")
    parser.add_argument("--quick", action="store_true", help="fewer pairs and steps")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    cores = usable_cores()
    limit = 500 if arguments.quick else 4000
    rates = {source: loader_rate(source, cores, limit) for source in arguments.sources}
    step = step_rate(cores, 2 if arguments.quick else 6)
    if arguments.json:
        print(json.dumps({"cores": cores, "step_pairs_per_second": step, "loader": rates}))
        return
    print(f"training step, ViT-B/32: {step:.1f} pairs/s on {cores} cores")
    for source, rate in rates.items():
        ahead = rate["pairs_per_second"] / step
        print(
            f"loader, {source}: {rate['pairs_per_second']:.0f} pairs/s, {ahead:.0f} times the "
            f"step's; {rate['processor_ms']:.2f} ms of one core for each"
        )


if __name__ == "__main__":
    main()
