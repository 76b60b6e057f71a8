"""The optimiser's settings against arithmetic."""

import math

import pytest
import torch

from twinlens.train.optim import MAX_LOG_SCALE, clamp_log_scale, parameter_groups, warmup_cosine


def test_the_learning_rate_rises_straight_and_falls_to_zero():
    def rate(step):
        return warmup_cosine(step, warmup_steps=4, total_steps=14)

    assert [rate(s) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert rate(9) == pytest.approx(0.5)
    assert rate(14) == pytest.approx(0.0)


def test_the_scale_never_passes_one_hundred():
    log_scale = torch.tensor(9.0)
    clamp_log_scale(log_scale)
    assert log_scale.item() == pytest.approx(MAX_LOG_SCALE) == pytest.approx(math.log(100))


def test_gains_and_biases_are_not_decayed():
    linear = torch.nn.Linear(2, 3)
    frozen = torch.nn.Linear(2, 3).requires_grad_(False)
    groups = parameter_groups({linear: 0.1, frozen: 0.1}, weight_decay=0.5)
    assert [(g["weight_decay"], len(g["params"])) for g in groups] == [(0.5, 1), (0.0, 1)]
