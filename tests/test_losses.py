"""Losses against arithmetic and against OpenCLIP's stored values."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from twinlens.train.losses import classifier_distillation_loss, contrastive_loss
from twinlens.train.optim import MAX_LOG_SCALE, clamp_log_scale, parameter_groups, warmup_cosine


def test_equal_similarities_cost_exactly_ln_batch():
    same = torch.zeros(5, 4, dtype=torch.float64)
    same[:, 0] = 1
    loss = contrastive_loss(same, same, torch.tensor(2.0, dtype=torch.float64))
    assert loss.item() == pytest.approx(math.log(5), abs=1e-12)


def test_two_orthogonal_pairs_cost_what_the_softmax_says():
    pairs = torch.eye(2, dtype=torch.float64)
    loss = contrastive_loss(pairs, pairs, torch.tensor(math.log(3.0), dtype=torch.float64))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-3.0)), abs=1e-12)


def test_a_batch_of_one_is_refused():
    one = torch.ones(1, 3)
    with pytest.raises(ValueError, match="at least two"):
        contrastive_loss(one, one, torch.tensor(0.0))


def test_a_second_picture_of_the_same_thing_is_no_negative():
    # Three identical pairs, all positives of each other: nothing is confused beyond ln 3.
    same = normalize(torch.ones(3, 2, dtype=torch.float64), dim=-1)
    everything = torch.ones(3, 3, dtype=torch.bool)
    scale = torch.tensor(4.0, dtype=torch.float64)
    loss = contrastive_loss(same, same, scale, everything)
    assert loss.item() == pytest.approx(math.log(3), abs=1e-12)


def test_marking_only_the_pairs_equals_marking_nothing():
    generator = torch.Generator().manual_seed(1)
    image, text = (
        normalize(torch.randn(6, 4, generator=generator, dtype=torch.float64), dim=-1)
        for _ in range(2)
    )
    scale = torch.tensor(1.5, dtype=torch.float64)
    with_mask = contrastive_loss(image, text, scale, torch.eye(6, dtype=torch.bool))
    assert with_mask.item() == pytest.approx(contrastive_loss(image, text, scale).item(), abs=1e-12)


def test_distillation_is_zero_when_student_and_teacher_agree():
    image = torch.eye(2, dtype=torch.float64)
    scale = torch.tensor(math.log(2.0), dtype=torch.float64)
    loss = classifier_distillation_loss(image, image, scale, 2.0 * torch.eye(2).double())
    assert loss.item() == pytest.approx(0.0, abs=1e-12)


def test_distillation_is_the_kl_divergence():
    # Student: uniform over two labels. Teacher: softmax(ln 3, 0) = (3/4, 1/4).
    image = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    labels = torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    teacher = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)
    loss = classifier_distillation_loss(image, labels, torch.tensor(0.0).double(), teacher)
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert loss.item() == pytest.approx(expected, abs=1e-12)


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


def test_value_and_gradients_equal_openclips(shared_folder):
    folder = shared_folder / "golden" / "losses"
    inputs, expected = np.load(folder / "inputs.npz"), np.load(folder / "expected.npz")
    image, text = (
        torch.tensor(inputs[f"{side}_features"], requires_grad=True) for side in ("image", "text")
    )
    log_scale = torch.tensor(np.log(inputs["logit_scale"]), requires_grad=True)
    loss = contrastive_loss(image, text, log_scale)
    loss.backward()
    assert loss.item() == pytest.approx(expected["clip_loss"].item(), abs=1e-12)
    np.testing.assert_allclose(image.grad, expected["clip_grad_image_features"], atol=1e-12)
    np.testing.assert_allclose(text.grad, expected["clip_grad_text_features"], atol=1e-12)
    # d/d ln(s) = s * d/ds: the reference differentiates by the multiplier itself.
    by_scale = log_scale.grad.item() / inputs["logit_scale"].item()
    assert by_scale == pytest.approx(expected["clip_grad_logit_scale"].item(), abs=1e-12)
