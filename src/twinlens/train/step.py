"""One step of a run: the next batch's gradients, and the weights moved by them once."""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from twinlens.errors import ConfigError
from twinlens.train import optim, processes
from twinlens.train.accumulate import Outputs, cached_gradients, whole_gradients
from twinlens.train.loader import Batch
from twinlens.train.objective import Towers, batch_loss
from twinlens.train.run import Run
from twinlens.train.teachers import TeacherOutputs


@dataclass(frozen=True)
class Moved:
    """What a step came to."""

    loss: float  # of the whole batch, over all processes
    gradient_norm: float  # before it was limited
    waited: float  # seconds without data

    def problem(self, *, rescaled: bool) -> str | None:
        """What was no number, if anything; with fp16 a gradient may be, and is passed over."""
        if not math.isfinite(self.loss):
            return "The loss"
        if not math.isfinite(self.gradient_norm) and not rescaled:
            return "A gradient"
        return None


def one_step(run: Run, batches: Iterator[Batch], step: int) -> Moved:
    """Take step `step`, counted from 0; the weights stay where something was no number."""
    config, team = run.config, run.team
    # Other numbers in each step and process, the same ones whenever it is repeated.
    torch.manual_seed((config.seed * 1_000_003 + step) * 4096 + team.rank)
    optim.set_rates(run.optimizer, optim.learning_rate(config.optimizer, step, run.total_steps))
    groups: list[Tensor] = []
    taught: list[list[Outputs]] = []
    waited = 0.0

    def part() -> tuple[Tensor, ...]:
        nonlocal waited
        started = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - started
        pixels = batch.pixel_values.to(team.device, non_blocking=True)
        token_ids = batch.token_ids.to(team.device, non_blocking=True)
        if batch.groups is not None:
            groups.append(batch.groups.to(team.device))
        if run.teachers:
            with torch.no_grad():
                taught.append(
                    [Towers(t, None, team.device.type)(pixels, token_ids) for t in run.teachers]
                )
        if config.negative_captions == "none":
            return pixels, token_ids
        return pixels, token_ids, _negative_ids(batch).to(team.device, non_blocking=True)

    def loss_of(out: Outputs) -> Tensor:
        return batch_loss(config, out, torch.cat(groups) if groups else None, _joined(taught))

    grow = run.scaler.scale(torch.ones((), device=team.device)).item()
    if config.accumulate == 1:
        loss = whole_gradients(run.forward, loss_of, part(), grow=grow)
    else:
        loss = cached_gradients(
            run.forward,
            loss_of,
            (part() for _ in range(config.accumulate)),
            module=run.clip,
            grow=grow,
            folder=run.folder,
            hold_megabytes=config.hold_megabytes,
            first=run.towers,
            last_part=lambda last: _exchange(run, last),
        )
    value = team.mean(loss).item()
    run.scaler.unscale_(run.optimizer)
    if config.distribute == "fsdp":
        processes.average_whole_gradients(run.towers, team)
    trained = [p for p in run.towers.parameters() if p.requires_grad]
    norm = optim.limit_gradients(trained, config.optimizer.clip_norm).item()
    moved = Moved(value, norm, waited)
    if moved.problem(rescaled=run.scaler.is_enabled()) is None:
        run.scaler.step(run.optimizer)
        run.scaler.update()
        optim.clamp_log_scale(run.clip.log_scale)
        if run.average is not None:
            run.average.update()
    run.optimizer.zero_grad(set_to_none=True)
    return moved


def _negative_ids(batch: Batch) -> Tensor:
    if batch.negative_ids is None:
        raise ConfigError(
            "The data brings no negative captions. Give batches with negative_ids, or leave "
            "negative_captions out."
        )
    return batch.negative_ids


def _joined(taught: list[list[Outputs]]) -> list[TeacherOutputs]:
    """Each teacher's embeddings of all parts."""
    return [
        TeacherOutputs(
            torch.cat([out.image for out in outs]),
            torch.cat([out.text for out in outs]),
            outs[0].log_scale.detach(),
        )
        for outs in zip(*taught, strict=True)
    ]


@contextlib.contextmanager
def _exchange(run: Run, last: bool) -> Iterator[None]:
    """Processes exchange gradients in the last part only."""
    if isinstance(run.forward, nn.parallel.DistributedDataParallel) and not last:
        with run.forward.no_sync():
            yield
        return
    if run.config.distribute == "fsdp":
        for tower in (run.clip.image_tower, run.clip.text_tower):
            tower.set_requires_gradient_sync(last)  # type: ignore[operator]
    yield
