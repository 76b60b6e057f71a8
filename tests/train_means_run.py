"""train_run.py for what needs more than it has: negative captions, teachers, a stop midway.

A program: `python tests/train_means_run.py RUN model=... [key=value ...]`. It prints each step;
`kill_after` ends it after that step, with `stall_at` that step never ends.
"""

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from train_run import MemoryBatches, open_memory, tiny_config
from twinlens.config import ClipConfig, ClipTextConfig, VitConfig
from twinlens.data.preprocess import Preprocess
from twinlens.data.tokenizer import TokenizerConfig
from twinlens.model.clip import Clip
from twinlens.runtime.load import InputsConfig
from twinlens.train.config import TrainConfig
from twinlens.train.inputs import Inputs
from twinlens.train.loop import train
from twinlens.train.start import Start, write_start

TEACHER_DIM = 12
_SIZES: dict[str, Any] = {"width": 24, "layers": 1, "heads": 2, "mlp_width": 32}


def write_teacher(folder: Path, dim: int = TEACHER_DIM) -> Path:
    """Another model for the inputs of train_run.tiny_clip."""
    torch.manual_seed(11)
    config = ClipConfig(
        image=VitConfig(**_SIZES, image_size=16, patch_size=8),
        text=ClipTextConfig(**_SIZES, vocab_size=49408, context=8),
        dim=dim,
    )
    inputs = InputsConfig(
        preprocess=Preprocess(image_size=16, resize="squash", mean=(0.5,) * 3, std=(0.5,) * 3),
        tokenizer=TokenizerConfig(kind="clip_bpe", context=8, cleaning="clip"),
    )
    write_start(Start(Clip(config), inputs, Path()), folder)
    return folder


def negatives_of(ids: torch.Tensor, keys: tuple[str, ...]) -> torch.Tensor:
    """Ids 2 and 3 exchanged; the pairs of every third key have none."""
    wrong = ids[[number for number, key in enumerate(keys) if int(key) % 3]].clone()
    wrong[:, [2, 3]] = wrong[:, [3, 2]]
    return wrong


class MoreBatches(MemoryBatches):
    """MemoryBatches with negative captions, of another number in each batch."""

    stall_at: int | None = None  # in the batch of this step, counted from 1

    def batch(self):
        if self.stall_at is not None and self.slot // (self.rows * self.count) == self.stall_at - 1:
            print("stalled", flush=True)
            time.sleep(600)
        batch = super().batch()
        return replace(batch, negative_ids=negatives_of(batch.token_ids, batch.keys))


def open_more(config: TrainConfig, preprocess: Any, tokenizer: Any, team: Any) -> Inputs:
    """train_run.open_memory with MoreBatches."""
    inputs = open_memory(config, preprocess, tokenizer, team)
    batches = MoreBatches(config.pairs_per_part(team.count), team.rank, team.count)
    return replace(inputs, train=batches)


if __name__ == "__main__":
    torch.set_num_threads(1)
    settings = {k: json.loads(v) for k, _, v in (text.partition("=") for text in sys.argv[2:])}
    kill_after = settings.pop("kill_after", None)
    MoreBatches.stall_at = settings.pop("stall_at", None)
    seconds_per_step = settings.pop("seconds_per_step", 0.0)

    def progress(record: Any) -> None:
        print(record.step, flush=True)
        if record.step == kill_after:
            os.kill(os.getpid(), 9)
        time.sleep(seconds_per_step)

    base = tiny_config(Path(settings.pop("model"))).to_dict()
    config = TrainConfig.from_dict({**base, **settings})
    train(config, Path(sys.argv[1]), progress=progress, open_inputs=open_more)
