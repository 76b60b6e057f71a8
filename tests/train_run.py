"""Small runs for the tests of training: a tiny model, data in memory, and how to start them.

Also a program: `python tests/train_run.py RUN [key=value ...]` trains on the data in memory,
so that a test can kill it, or start it twice under torchrun's variables.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from twinlens.config import ClipConfig, ClipTextConfig, VitConfig
from twinlens.data.preprocess import Preprocess
from twinlens.data.tokenizer import TokenizerConfig
from twinlens.model.clip import Clip
from twinlens.runtime.load import InputsConfig
from twinlens.train.config import LoraConfig, OptimizerConfig, TrainConfig
from twinlens.train.inputs import Inputs
from twinlens.train.loader import Batch
from twinlens.train.loop import train
from twinlens.train.start import Start, write_start

PAIRS = 32
SIZES: dict[str, Any] = {"width": 16, "layers": 2, "heads": 2, "mlp_width": 32}


def tiny_clip(**changes: Any) -> Clip:
    torch.manual_seed(7)
    config = ClipConfig(
        image=VitConfig(**SIZES, image_size=16, patch_size=8),
        text=ClipTextConfig(**SIZES, vocab_size=49408, context=8),
        dim=8,
        **changes,
    )
    return Clip(config)


def write_tiny(folder: Path, **changes: Any) -> Path:
    """tiny_clip as a checkpoint folder."""
    inputs = InputsConfig(
        preprocess=Preprocess(image_size=16, resize="squash", mean=(0.5,) * 3, std=(0.5,) * 3),
        tokenizer=TokenizerConfig(kind="clip_bpe", context=8, cleaning="clip"),
    )
    write_start(Start(tiny_clip(**changes), inputs, Path()), folder)
    return folder


def pairs_in_memory(count: int = PAIRS) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures of noise, and token ids that have nothing to do with them."""
    random = np.random.default_rng(3)
    pixels = random.standard_normal((count, 3, 16, 16)).astype(np.float32)
    ids = random.integers(1, 300, (count, 8))
    ids[:, 0], ids[:, 6], ids[:, 7] = 49406, 49407, 0
    return torch.from_numpy(pixels), torch.from_numpy(ids)


class MemoryBatches:
    """Batches of pairs_in_memory in an order of its own for each epoch; rank r takes each r-th."""

    def __init__(self, rows: int, rank: int, count: int) -> None:
        self.rows, self.rank, self.count = rows, rank, count
        self.pixels, self.ids = pairs_in_memory()
        self.slot = 0

    def __iter__(self):
        while True:
            yield self.batch()

    def batch(self) -> Batch:
        slots = self.slot + self.rank + self.count * np.arange(self.rows)
        self.slot += self.rows * self.count
        chosen = [
            int(np.random.default_rng(slot // PAIRS).permutation(PAIRS)[slot % PAIRS])
            for slot in slots
        ]
        return Batch(
            self.pixels[chosen],
            self.ids[chosen],
            tuple(map(str, chosen)),
            torch.tensor(chosen),
        )

    def state_dict(self) -> dict[str, Any]:
        return {"slot": self.slot}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.slot = state["slot"]


def open_memory(config: TrainConfig, preprocess: Any, tokenizer: Any, team: Any) -> Inputs:
    """The data in memory as a run's inputs; it is held out as well."""
    batches = MemoryBatches(config.pairs_per_part(team.count), team.rank, team.count)
    pixels, ids = pairs_in_memory()
    whole = Batch(pixels, ids, tuple(map(str, range(PAIRS))), torch.arange(PAIRS))
    return Inputs(train=batches, pairs_per_epoch=PAIRS, val=[whole])


def tiny_config(model: Path, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "model": str(model),
        "batch": 8,
        "epochs": 3.0,
        "device": "cpu",
        "save_every": 2,
        "validate_every": 6,
        "optimizer": OptimizerConfig(learning_rate=1e-3, warmup=2.0),
    }
    return TrainConfig(**{**settings, **changes})


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


if __name__ == "__main__":
    torch.set_num_threads(1)
    settings = {k: json.loads(v) for k, _, v in (text.partition("=") for text in sys.argv[2:])}
    kill_after = settings.pop("kill_after", None)
    if "lora" in settings:
        settings["lora"] = LoraConfig(**settings["lora"])

    def progress(record: Any) -> None:
        if record.step == kill_after:
            os.kill(os.getpid(), 9)

    folder = Path(sys.argv[1])
    config = tiny_config(Path(settings.pop("model")), **settings)
    train(config, folder, progress=progress, open_inputs=open_memory)
