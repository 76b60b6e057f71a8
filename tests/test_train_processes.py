"""Real processes: killed at any step, and several that train together over gloo."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from train_processes import PROGRAM, SOURCES, finish, start, start_together
from train_run import losses, write_tiny
from twinlens.model.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("start") / "tiny")


@pytest.fixture(scope="module")
def uninterrupted(model, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    finish(start(run, model, accumulate=2, ema_decay=0.9, patch_dropout=0.25))
    return run


def test_kill_9_at_several_steps_changes_no_digit_of_the_loss_curve(model, uninterrupted, tmp_path):
    run = tmp_path / "run"
    # Before the first checkpoint, right after one, and between two: each start does some steps.
    for step in (1, 4, 7, 11):
        process = start(
            run, model, accumulate=2, ema_decay=0.9, patch_dropout=0.25, kill_after=step
        )
        process.communicate(timeout=240)
        assert process.returncode == -signal.SIGKILL
    finish(start(run, model, accumulate=2, ema_decay=0.9, patch_dropout=0.25))
    assert losses(run) == losses(uninterrupted)
    ours, theirs = (load_checkpoint(r / "last").state_dict() for r in (run, uninterrupted))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_kill_9_at_any_moment_leaves_a_run_that_goes_on(model, uninterrupted, tmp_path):
    run = tmp_path / "run"
    random = np.random.default_rng(5)
    for _ in range(3):  # also while a checkpoint is being written
        process = start(run, model, accumulate=2, ema_decay=0.9, patch_dropout=0.25)
        try:
            process.communicate(timeout=4.0 + 4.0 * random.random())
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
    finish(start(run, model, accumulate=2, ema_decay=0.9, patch_dropout=0.25))
    assert losses(run) == losses(uninterrupted)


@pytest.mark.parametrize(
    "means",
    [
        {},
        {"accumulate": 2, "loss": "sigmoid"},
        {"distribute": "fsdp", "ema_decay": 0.9},
        {"distribute": "fsdp", "accumulate": 2},
    ],
    ids=["ddp", "ddp, accumulated, sigmoid", "fsdp, averaged", "fsdp, accumulated"],
)
def test_two_processes_give_the_curve_of_one_with_the_doubled_batch(model, tmp_path, means):
    one, two = tmp_path / "one", tmp_path / "two"
    alone = {name: value for name, value in means.items() if name != "distribute"}
    first = start(one, model, **alone)
    together = start_together(2, two, model, **means)
    finish(first, *together)
    np.testing.assert_allclose(losses(two), losses(one), rtol=2e-4)
    ours, theirs = (load_checkpoint(r / "last").state_dict() for r in (two, one))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=2e-3, msg=name)


@pytest.mark.parametrize("distribute", ["ddp", "fsdp"])
def test_two_processes_that_were_killed_go_on_exactly(model, tmp_path, distribute):
    finish(*start_together(2, tmp_path / "whole", model, distribute=distribute, steps=6))
    run = tmp_path / "run"
    killed = start_together(2, run, model, distribute=distribute, steps=6, kill_after=5)
    killed[0].communicate(timeout=240)
    assert killed[0].returncode == -signal.SIGKILL
    killed[1].kill()  # as torchrun does when one has died
    killed[1].communicate()
    finish(*start_together(2, run, model, distribute=distribute, steps=6))
    np.testing.assert_allclose(losses(run), losses(tmp_path / "whole"), rtol=1e-6)


def test_another_number_of_processes_is_refused_in_one_sentence(model, tmp_path):
    finish(*start_together(2, tmp_path / "run", model, steps=2))
    # The log and checkpoints of two processes' run, continued by one.
    process = start(tmp_path / "run", model, steps=2)
    _, errors = process.communicate(timeout=240)
    assert process.returncode != 0
    assert "has 2 processes, not 1" in errors.splitlines()[-1]


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_when_there_is_room(model, tmp_path):
    program = (
        "import resource, runpy, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))\n"
        f"sys.argv = {[str(PROGRAM), str(tmp_path / 'run'), f'model={json.dumps(str(model))}']!r}\n"
        f"sys.path.insert(0, {str(PROGRAM.parent)!r})\n"
        f"runpy.run_path({str(PROGRAM)!r}, run_name='__main__')\n"
    )
    finish(start(tmp_path / "whole", model))
    # The run's start is there; no file above 2 MB can be written any more, as on a full disk.
    first = start(tmp_path / "run", model, kill_after=1)
    first.communicate(timeout=240)
    full = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
        capture_output=True,
        text=True,
    )
    assert full.returncode != 0
    last = full.stderr.strip().splitlines()[-1]
    assert "The last checkpoint could not be written" in last and "same command again" in last
    finish(start(tmp_path / "run", model))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
