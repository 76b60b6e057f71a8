"""The training loop: from a configuration to a run folder, in one process or many.

A run is a function of its configuration and data alone: on a CPU, killed at any moment and
started again, it logs the same losses to the last bit. Random numbers are drawn anew from
(seed, step, process) in each step, so a checkpoint need not hold them.
Each means it uses is in a file of its own; this one is the order in which they are used.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twinlens.errors import TwinlensError
from twinlens.train import optim, processes, state
from twinlens.train.accumulate import Outputs, cached_gradients, whole_gradients
from twinlens.train.config import TrainConfig
from twinlens.train.inputs import OpenInputs, open_inputs
from twinlens.train.lock import training_mode
from twinlens.train.log import RunLog, StepRecord
from twinlens.train.objective import TeacherOutputs, Towers, batch_loss
from twinlens.train.processes import Processes, joined_processes
from twinlens.train.report import write_report
from twinlens.train.resume import restore_run, save_run
from twinlens.train.run import Run, Say, alone_in, open_run, prepare_folder
from twinlens.train.validate import Score, goodness, validate


@dataclass(frozen=True)
class RunResult:
    """What a run came to."""

    folder: Path
    steps: int
    loss: float | None  # of the last step; None: the run was done already
    best: Path  # a checkpoint folder for Embedder(...) and `twinlens convert`
    best_step: int
    validation: dict[str, float]  # of the best checkpoint


def train(
    config: TrainConfig,
    run_folder: Path,
    *,
    resume: bool = True,
    progress: Callable[[StepRecord], None] = lambda record: None,
    say: Say = lambda message: None,
    score: Score | None = None,
    open_inputs: OpenInputs = open_inputs,
) -> RunResult:
    """Train `config.model` on `config.data`; everything about the run is in `run_folder`.

    A run that was stopped goes on from its last whole checkpoint, unless `resume` is False;
    then a folder with a run in it is refused. `score` turns validation similarities into
    figures (evaluate.retrieval.retrieval_scores). `progress` is told each step, `say` what a
    person should know. Under torchrun each process calls this with the same arguments.

    Raises ConfigError for what cannot be done, what load_model raises for the model it starts
    from, and TwinlensError when the loss is no number any more.
    """
    with joined_processes(config.device) as team, contextlib.ExitStack() as stack:
        if team.first:
            run_folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(alone_in(run_folder))
        _together(team, lambda: prepare_folder(config, run_folder, resume))
        run = open_run(config, run_folder, team, open_inputs, say if team.first else _silent)
        stack.callback(run.inputs.close)
        result = _steps(run, progress, score)
        del run
        return result


def _silent(message: str) -> None:
    """Only the first process speaks."""


def _together(team: Processes, work: Callable[[], None]) -> None:
    """The first process does `work`, the others wait for it; if it fails, all stop."""
    failure: str | None = None
    if team.first:
        try:
            work()
        except Exception as error:
            if team.count == 1:
                raise
            failure = str(error)
            team.agree(failure)
            raise
    failure = team.agree(failure)
    if failure is not None:
        raise TwinlensError(failure)


def _steps(run: Run, progress: Callable[[StepRecord], None], score: Score | None) -> RunResult:
    config, team = run.config, run.team
    done, best = restore_run(run)
    if done and done < run.total_steps:
        run.say(f"continuing after step {done:,} of {run.total_steps:,}")
    log = RunLog(run.folder, done) if team.first else None
    loss: float | None = None
    every = config.validate_every or run.steps_per_epoch or config.save_every
    last_saved = done
    training_mode(run.clip)
    batches = iter(run.inputs.train)
    try:
        for step in range(done, run.total_steps):
            started = time.perf_counter()
            loss, norm, waited = _one_step(run, batches, step)
            if not math.isfinite(loss) or (not math.isfinite(norm) and not run.scaler.is_enabled()):
                raise TwinlensError(
                    f"{'The loss' if not math.isfinite(loss) else 'A gradient'} was no number in "
                    f"step {step + 1:,}; "
                    + (
                        f"the last good checkpoint is "
                        f"{run.checkpoints / state.checkpoint_name(last_saved)}. "
                        if last_saved
                        else "no checkpoint was written before it. "
                    )
                    + "Start a new run with a lower --lr, or precision fp32."
                )
            seconds = time.perf_counter() - started
            last = step + 1 == run.total_steps
            figures: dict[str, float] | None = None
            if run.inputs.val is not None and (last or (step + 1) % every == 0):
                figures = _validate(run, score)
            record = StepRecord(
                step=step + 1,
                total_steps=run.total_steps,
                epoch=(step + 1) * config.batch / (run.inputs.pairs_per_epoch or math.inf),
                loss=loss,
                learning_rate=optim.learning_rate(config.optimizer, step, run.total_steps),
                logit_scale=run.clip.log_scale.exp().item(),
                gradient_norm=norm,
                pairs_per_second=config.batch / seconds,
                data_wait=waited / seconds,
                bad_samples=run.inputs.bad_samples(),
                validation=figures,
            )
            if log is not None:
                log.write(record)
                progress(record)
            if last or figures is not None or (step + 1) % config.save_every == 0:
                better = _better(best, step + 1, figures, run.inputs.val is not None)
                if save_run(run, step + 1, better):
                    last_saved, best = step + 1, better
    finally:
        if hasattr(batches, "close"):
            batches.close()  # a loader's threads end with its iteration
        if log is not None:
            log.close()
    if last_saved < run.total_steps:
        raise TwinlensError(
            f"The last checkpoint could not be written to {run.checkpoints}. Make room, then run "
            f"the same command again: it continues from the one before."
        )
    if team.first:
        write_report(run.folder, config, best.get("figures") or {}, run.say)
    team.wait()
    return RunResult(
        folder=run.folder,
        steps=run.total_steps,
        loss=loss,
        best=run.folder / "best",
        best_step=best["step"],
        validation=best.get("figures") or {},
    )


def _one_step(run: Run, batches: Iterator[Any], step: int) -> tuple[float, float, float]:
    """Move the weights once; the loss, the gradient's length and the seconds without data."""
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
        return pixels, token_ids

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
        processes.average_whole_gradients(run.clip, team)
    trained = [p for p in run.clip.parameters() if p.requires_grad]
    norm = optim.limit_gradients(trained, config.optimizer.clip_norm).item()
    if math.isfinite(value) and (math.isfinite(norm) or run.scaler.is_enabled()):
        run.scaler.step(run.optimizer)
        run.scaler.update()
        optim.clamp_log_scale(run.clip.log_scale)
        if run.average is not None:
            run.average.update()
    run.optimizer.zero_grad(set_to_none=True)
    return value, norm, waited


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


def _validate(run: Run, score: Score | None) -> dict[str, float]:
    assert run.inputs.val is not None
    with run.average.in_place() if run.average is not None else contextlib.nullcontext():
        figures = validate(
            run.towers,
            run.inputs.val,
            device=run.team.device,
            most=run.config.validate_pairs,
            score=score,
        )
    training_mode(run.clip)
    return figures


def _better(
    best: dict[str, Any], step: int, figures: dict[str, float] | None, validates: bool
) -> dict[str, Any]:
    """Which step is the best so far: the last one where nothing is validated."""
    now = None if figures is None else goodness(figures)
    before = best.get("goodness")
    if not best or not validates or (now is not None and (before is None or now > before)):
        return {"step": step, "figures": figures, "goodness": now}
    return best
