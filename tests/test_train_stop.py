"""Ctrl-C and SIGTERM: the step in progress ends and is kept; a second one ends at once."""

import os
import signal
import subprocess
import threading

import pytest

from train_processes import MEANS_PROGRAM, finish, start, start_together
from train_run import losses, write_tiny
from twinlens.train.stop import stop_requests


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("start") / "tiny")


@pytest.fixture(scope="module")
def uninterrupted(model, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    finish(start(run, model, program=MEANS_PROGRAM))
    return run


def until(process, line):
    """Waits for a line of what the process prints."""
    for printed in process.stdout:
        if printed.strip() == line:
            return
    raise AssertionError(process.stderr.read()[-3000:])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_the_step_in_progress_is_kept_and_the_run_goes_on_exactly(
    model, uninterrupted, tmp_path, number
):
    run = tmp_path / "run"
    # save_every is far off: only the signal can have written the checkpoint.
    settings = {"program": MEANS_PROGRAM, "save_every": 100, "validate_every": 100}
    process = start(run, model, seconds_per_step=1.0, **settings)
    until(process, "3")
    process.send_signal(number)
    _, errors = process.communicate(timeout=240)
    last = errors.strip().splitlines()[-1]
    assert "TrainingStopped: Stopped after step" in last and f"as {number.name} asked" in last
    (checkpoint,) = (run / "checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("step_"))
    assert 3 <= step < 12 and f"the same command continues after step {step} of 12" in last
    assert len(losses(run)) == step
    finish(start(run, model, **settings))
    assert losses(run) == losses(uninterrupted)


def test_a_second_ctrl_c_ends_a_step_that_does_not_end(model, tmp_path):
    process = start(tmp_path / "run", model, program=MEANS_PROGRAM, stall_at=4)
    until(process, "stalled")
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)  # the step would take ten minutes
    assert process.returncode == -signal.SIGINT and "KeyboardInterrupt" in errors


def test_a_signal_to_one_process_of_two_stops_both_after_the_same_step(model, tmp_path):
    run = tmp_path / "run"
    settings = {"program": MEANS_PROGRAM, "save_every": 100, "validate_every": 100}
    together = start_together(2, run, model, seconds_per_step=1.0, **settings)
    until(together[0], "3")
    together[1].send_signal(signal.SIGTERM)
    for process in together:
        _, errors = process.communicate(timeout=240)
        assert "Stopped after step" in errors.strip().splitlines()[-1]
    (checkpoint,) = (run / "checkpoints").iterdir()
    assert len(losses(run)) == int(checkpoint.name.removeprefix("step_")) < 12
    finish(*start_together(2, run, model, **settings))
    finish(*start_together(2, tmp_path / "whole", model, **settings))
    assert losses(run) == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)


def test_handlers_are_as_before_after_a_run_and_threads_are_left_alone():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stop_requests() as request:
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.signal == signal.SIGTERM
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    inside = []

    def elsewhere():
        with stop_requests():
            inside.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert inside == [before[0]]


def test_the_same_ctrl_c_twice_under_torchrun_is_one_request(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with stop_requests() as request:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)  # from torchrun, at the same moment
        assert request.signal == signal.SIGINT
