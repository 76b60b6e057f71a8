"""The training loop: from a configuration to a run folder, in one process or many.

A run is a function of its configuration and data alone: on a CPU, killed at any moment and
started again, it logs the same losses to the last bit. Random numbers are drawn anew from
(seed, step, process) in each step, so a checkpoint need not hold them.
Each means it uses is in a file of its own; this one is the order in which they are used.
"""

import contextlib
import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinlens.errors import TrainingStopped, TwinlensError
from twinlens.train import optim, state
from twinlens.train.config import TrainConfig
from twinlens.train.inputs import OpenInputs, open_inputs
from twinlens.train.lock import training_mode
from twinlens.train.log import RunLog, StepRecord
from twinlens.train.processes import Processes, joined_processes
from twinlens.train.report import write_report
from twinlens.train.resume import restore_run, save_run
from twinlens.train.run import Run, Say, alone_in, open_run, prepare_folder
from twinlens.train.step import Moved, one_step
from twinlens.train.stop import stop_requests
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
    from, and TrainingStopped when the loss is no number any more, or when Ctrl-C or SIGTERM
    asked for an end: then the step in progress is finished and saved. A second one ends at once.
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
        with stop_requests() as request:
            for step in range(done, run.total_steps):
                started = time.perf_counter()
                run.learn_in(step)
                moved = one_step(run, batches, step)
                seconds = time.perf_counter() - started
                loss = moved.loss
                _require_numbers(run, moved, step, last_saved)
                last = step + 1 == run.total_steps
                figures: dict[str, float] | None = None
                if run.inputs.val is not None and (last or (step + 1) % every == 0):
                    figures = _validate(run, score)
                if log is not None:
                    record = _record(run, moved, step, seconds, figures)
                    log.write(record)
                    progress(record)
                asked = team.largest(request.signal or 0)
                due = last or figures is not None or (step + 1) % config.save_every == 0
                if due or asked:
                    better = _better(best, step + 1, figures, run.inputs.val is not None)
                    if save_run(run, step + 1, better):
                        last_saved, best = step + 1, better
                if asked and not last:
                    raise _interrupted(run, step, last_saved, asked)
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


def _require_numbers(run: Run, moved: Moved, step: int, last_saved: int) -> None:
    problem = moved.problem(rescaled=run.scaler.is_enabled())
    if problem is None:
        return
    kept = "no checkpoint was written before it"
    if last_saved:
        place = run.checkpoints / state.checkpoint_name(last_saved)
        kept = f"the last good checkpoint is {place}"
    raise TrainingStopped(
        f"{problem} was no number in step {step + 1:,}; {kept}. Start a new run with a lower "
        f"--lr, or precision fp32.",
        step=step + 1,
    )


def _interrupted(run: Run, step: int, last_saved: int, asked: int) -> TrainingStopped:
    where = f"continues after step {last_saved:,} of {run.total_steps:,}"
    if not last_saved:
        where = "begins anew: no checkpoint could be written"
    return TrainingStopped(
        f"Stopped after step {step + 1:,}, as {signal.Signals(asked).name} asked; the same "
        f"command {where} (run folder {run.folder}).",
        step=step + 1,
        signal=asked,
    )


def _record(
    run: Run, moved: Moved, step: int, seconds: float, figures: dict[str, float] | None
) -> StepRecord:
    config = run.config
    return StepRecord(
        step=step + 1,
        total_steps=run.total_steps,
        epoch=(step + 1) * config.batch / (run.inputs.pairs_per_epoch or math.inf),
        loss=moved.loss,
        learning_rate=optim.learning_rate(config.optimizer, step, run.total_steps),
        logit_scale=run.clip.log_scale.exp().item(),
        gradient_norm=moved.gradient_norm,
        pairs_per_second=config.batch / seconds,
        data_wait=moved.waited / seconds,
        bad_samples=run.inputs.bad_samples(),
        validation=figures,
    )


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
