"""What one process of a run holds, and how it comes together from a configuration.

Wrapping for several processes is processes.py's, what happens in a step is loop.py's.
"""

import contextlib
import gc
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from twinlens.data.tokenizer import open_tokenizer
from twinlens.errors import ConfigError
from twinlens.model.attention import Block
from twinlens.model.checkpoint import load_checkpoint
from twinlens.model.clip import Clip
from twinlens.model.image_vit import VitTower
from twinlens.runtime.load import INPUTS_NAME, InputsConfig
from twinlens.train import optim
from twinlens.train.config import FREE_TO_CHANGE, TrainConfig
from twinlens.train.ema import Average
from twinlens.train.formats import suit_convolutions
from twinlens.train.inputs import Inputs, OpenInputs
from twinlens.train.lock import lock_towers, training_mode, unlock_towers
from twinlens.train.lora import add_adapters
from twinlens.train.objective import Towers
from twinlens.train.processes import Processes, exchanging_gradients, shard_towers
from twinlens.train.report import write_environment
from twinlens.train.start import Start, open_start, write_start
from twinlens.train.teachers import Follower, open_teachers

CONFIG_NAME = "config.json"
START_NAME = "start"
FOLLOWER = "follower"  # no tower or projection is called so
Say = Callable[[str], None]


@dataclass
class Run:
    """All that one process of a run holds."""

    config: TrainConfig
    folder: Path
    team: Processes
    start: Start
    clip: Clip
    towers: Towers
    forward: Any  # towers, or DDP around them
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    average: Average | None
    teachers: list[Clip]
    inputs: Inputs
    total_steps: int
    steps_per_epoch: int | None  # None: not known, and `total_steps` was given
    say: Say

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def named_weights(self) -> dict[str, nn.Parameter]:
        """The model's weights, and the follower's, which are the run's and not the model's."""
        named = dict(self.clip.named_parameters())
        if self.towers.follower is not None:
            follower = self.towers.follower.named_parameters()
            named |= {f"{FOLLOWER}.{name}": weight for name, weight in follower}
        return named

    def learn_in(self, step: int) -> None:
        """Let the layers learn that do in `step`, counted from 0; before each step."""
        if not unlock_towers(self.clip, self.config, step, self.total_steps):
            return
        training_mode(self.clip)
        if self.config.compile:
            torch.compiler.reset()  # each lock would count as one of few recompilations
        if self.forward is not self.towers:
            self.forward = None
            gc.collect()
            self.forward = exchanging_gradients(self.towers, self.team)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """This process is the only one to write `folder`; a lock that dies with it."""
    with (folder / ".lock").open("w") as file:
        try:
            import fcntl
        except ImportError:  # Windows: nobody watches there
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"Another process is training in {folder}. Wait for it, or give another --run."
            ) from error
        yield


def prepare_folder(config: TrainConfig, folder: Path, resume: bool) -> None:
    """The configuration, the environment and the model that the run starts from."""
    path = folder / CONFIG_NAME
    begun = any((folder / "checkpoints").glob("step_*"))
    if begun and not resume:
        raise ConfigError(f"{folder} holds a run already: give another --run.")
    now = config.to_dict()
    before = TrainConfig.read(path).to_dict() if path.exists() else {}
    changed = [n for n in now if before.get(n) != now[n] and n not in FREE_TO_CHANGE]
    if begun and changed:
        shown = ", ".join(f"{n} {before.get(n)!r} -> {now[n]!r}" for n in changed[:3])
        raise ConfigError(
            f"{folder} holds a run with other settings ({shown}). Repeat the command that started "
            f"it to continue it, or give another --run."
        )
    if changed or not (folder / START_NAME).exists():
        torch.manual_seed(config.seed)
        start = open_start(config)  # before anything is written: the name may be wrong
        shutil.rmtree(folder / START_NAME, ignore_errors=True)
        write_start(start, folder / START_NAME)
        write_environment(folder)
    partial = path.with_name(f".{path.name}.partial")
    config.write(partial)
    partial.replace(path)


def open_run(
    config: TrainConfig, folder: Path, team: Processes, open_inputs: OpenInputs, say: Say
) -> Run:
    """Everything as it is before the first step; prepare_folder was there before."""
    clip = load_checkpoint(folder / START_NAME)
    start = Start(clip, InputsConfig.read(folder / START_NAME / INPUTS_NAME), folder / START_NAME)
    torch.manual_seed(config.seed)  # adapters start alike in every process
    _choose_weights(clip, config)
    clip.to(team.device)
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if team.device.type == "cuda" else "fp32"
    autocast = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    teachers = open_teachers(config, start, team.device)
    follower = None
    if config.feature_weight:
        torch.manual_seed(config.seed)  # whatever was drawn for the teachers
        widths = [teacher.config.dim for teacher in teachers]
        follower = Follower(clip.config.dim, widths).to(team.device)
    towers = Towers(clip, autocast, team.device.type, follower)
    if config.distribute == "ddp":
        suit_convolutions(clip)
    elif team.count > 1:
        shard_towers(clip, team, bf16=precision == "bf16")
    else:
        raise ConfigError("fsdp shares the weights between processes: start them with torchrun.")
    if config.compile:
        towers.compile()
    optimizer = optim.make_optimizer(clip, config.optimizer, follower)
    average = None if config.ema_decay is None else Average(clip, config.ema_decay)
    # What is to be unlocked later is known to both by now, and waits there without moments.
    lock_towers(clip, config)
    inputs = open_inputs(
        config, start.inputs.preprocess, open_tokenizer(start.inputs.tokenizer, start.folder), team
    )
    steps_per_epoch = _steps_per_epoch(config, inputs.pairs_per_epoch)
    return Run(
        config=config,
        folder=folder,
        team=team,
        start=start,
        clip=clip,
        towers=towers,
        forward=exchanging_gradients(towers, team) if config.distribute == "ddp" else towers,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(team.device.type, enabled=precision == "fp16"),
        average=average,
        teachers=teachers,
        inputs=inputs,
        total_steps=config.steps or max(1, round(config.epochs * (steps_per_epoch or 0))),
        steps_per_epoch=steps_per_epoch,
        say=say,
    )


def _steps_per_epoch(config: TrainConfig, pairs: int | None) -> int | None:
    if pairs is None:
        if config.steps is None:
            raise ConfigError(
                "How many pairs there are is not known before all shards were read. Say how long "
                "to train with --steps instead of --epochs."
            )
        return None
    if pairs < config.batch:
        raise ConfigError(
            f"There are {pairs:,} pairs, less than one batch of {config.batch:,}. Give a smaller "
            f"--batch or more data."
        )
    return pairs // config.batch


def _choose_weights(clip: Clip, config: TrainConfig) -> None:
    """Which weights learn, and what the towers do differently while they do."""
    if config.lora is not None:
        add_adapters(clip, config.lora)
    if config.unlock_every is None:
        lock_towers(clip, config)
    if config.patch_dropout > 0:
        if not isinstance(clip.image_tower, VitTower):
            raise ConfigError(
                f"patch_dropout is for vision transformers; this image tower is "
                f"{clip.config.image.kind!r}."
            )
        clip.image_tower.patch_dropout = config.patch_dropout
    if config.recompute:
        for module in clip.modules():
            if isinstance(module, Block):
                module.recompute = True
