"""Losses that learn from teachers or at several widths, against arithmetic."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from loss_cases import EXACT, assert_same, scalar, unit, value_and_gradients
from twinlens.errors import ConfigError
from twinlens.train.losses import (
    classifier_distillation_loss,
    contrastive_distillation_loss,
    contrastive_loss,
    feature_distillation_loss,
    matryoshka,
)


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


def test_a_student_that_agrees_with_its_teacher_has_nothing_to_learn():
    image, text, scale = unit(4, 3, seed=1), unit(4, 3, seed=2), scalar(2.0)
    value, *gradients = value_and_gradients(
        lambda *g: contrastive_distillation_loss(*g, image, text, scale), image, text, scale
    )
    torch.testing.assert_close(value, scalar(0.0), **EXACT)
    for gradient in gradients:
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), **EXACT)


def test_the_teachers_logits_are_averaged_and_openclips_loss_is_ours_plus_their_entropy():
    image, text = unit(4, 3, seed=1).numpy(), unit(4, 3, seed=2).numpy()
    # Two teachers of other widths, each with its own scale.
    teachers = [(unit(4, 5, seed=3), unit(4, 5, seed=4), scalar(1.0))]
    teachers += [(unit(4, 6, seed=5), unit(4, 6, seed=6), scalar(2.0))]
    logits = np.mean([s.exp().item() * (i @ t.T).numpy() for i, t, s in teachers], axis=0)

    def log_softmax(rows):
        return rows - np.log(np.exp(rows).sum(1, keepdims=True))

    cross_entropies, entropies = [], []
    for ours, theirs in ((3.0 * image @ text.T, logits), (3.0 * text @ image.T, logits.T)):
        share = np.exp(log_softmax(theirs))
        cross_entropies.append(-(share * log_softmax(ours)).sum(1).mean())
        entropies.append(-(share * log_softmax(theirs)).sum(1).mean())
    loss = contrastive_distillation_loss(
        torch.tensor(image),
        torch.tensor(text),
        scalar(math.log(3)),
        *(list(parts) for parts in zip(*teachers, strict=True)),
    )
    openclips = np.mean(cross_entropies)
    assert loss.item() + np.mean(entropies) == pytest.approx(openclips, abs=1e-12)


def test_a_teacher_without_texts_is_named():
    pairs, one = unit(2, 3), [unit(2, 3)]
    with pytest.raises(ConfigError, match="there are 2, 1 and 1"):
        contrastive_distillation_loss(pairs, pairs, scalar(0.0), one * 2, one, [scalar(0.0)])
    with pytest.raises(ConfigError, match="there are 2 and 1"):
        feature_distillation_loss(pairs, pairs, one * 2, one)


def test_feature_distance_is_that_of_the_plane():
    # Images 90 degrees from the teacher's, texts equal: |a - b|^2 = 2, 1 - cosine = 1.
    ours, theirs = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.0, 1.0]]).double()
    assert feature_distillation_loss(ours, ours, theirs, ours).item() == 2
    assert feature_distillation_loss(ours, ours, theirs, ours, kind="cosine").item() == 1
    two = feature_distillation_loss(ours, ours, [theirs, ours], [ours, ours])
    assert two.item() == 1  # the mean over the teachers


def test_a_wider_teacher_needs_a_projection():
    ours = unit(2, 3)
    with pytest.raises(ConfigError, match=r"\(2, 4\) and ours are \(2, 3\); project"):
        feature_distillation_loss(ours, ours, unit(2, 4), unit(2, 4))


def test_teachers_get_no_gradient():
    teacher = unit(3, 2, seed=1).requires_grad_()
    ours = unit(3, 2, seed=2).requires_grad_()
    scale = scalar(1.0)
    logit = contrastive_distillation_loss(ours, ours, scale, teacher, teacher, scale)
    (logit + feature_distillation_loss(ours, ours, teacher, teacher)).backward()
    assert teacher.grad is None and ours.grad is not None


def test_nested_widths_are_renormalised_and_weighted():
    image, text, scale = unit(4, 6, seed=1), unit(4, 6, seed=2), scalar(2.0)

    def loss(image, text):
        return contrastive_loss(image, text, scale)

    def at(dim):
        return loss(normalize(image[:, :dim], dim=1), normalize(text[:, :dim], dim=1))

    summed = matryoshka(loss, image, text, [2, 3, 6])
    torch.testing.assert_close(summed, at(2) + at(3) + at(6), **EXACT)
    weighted = matryoshka(loss, image, text, [2, 6], [0.5, 2.0])
    torch.testing.assert_close(weighted, 0.5 * at(2) + 2 * at(6), **EXACT)


def test_the_full_width_alone_is_the_loss_itself():
    inputs = unit(4, 6, seed=1), unit(4, 6, seed=2)

    def loss(image, text):
        return contrastive_loss(image, text, scalar(2.0))

    nested = value_and_gradients(lambda *g: matryoshka(loss, *g, [6]), *inputs)
    assert_same(nested, value_and_gradients(loss, *inputs))


def test_impossible_nested_widths_are_named():
    def loss(image, text):
        raise AssertionError

    pairs = unit(2, 6)
    for dims in ([], [0, 6], [7], [3, 3]):
        with pytest.raises(ConfigError, match="different numbers from 1 to 6"):
            matryoshka(loss, pairs, pairs, dims)
    with pytest.raises(ConfigError, match="2 nested widths need as many weights; got 1"):
        matryoshka(loss, pairs, pairs, [3, 6], [1.0])


def test_a_prefix_of_zeros_gives_no_nan_even_in_half_precision():
    pairs = torch.zeros(3, 4, dtype=torch.float16)
    pairs[:, 3] = 1
    pairs.requires_grad_()
    loss = matryoshka(
        lambda i, t: contrastive_loss(i, t, scalar(0.0, torch.float32)), pairs, pairs, [2]
    )
    loss.backward()
    assert loss.item() == pytest.approx(math.log(3), rel=1e-6)
    assert pairs.grad.isfinite().all()
