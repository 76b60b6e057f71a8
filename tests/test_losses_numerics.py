"""Losses in half precision, at extreme scales, and in bounded memory."""

import math
import weakref

import pytest
import torch

from loss_cases import LargestTensor, scalar, unit
from twinlens.train.losses import (
    classifier_distillation_loss,
    contrastive_distillation_loss,
    contrastive_loss,
    feature_distillation_loss,
    hard_negative_loss,
    sigmoid_loss,
)


def all_losses(image, text, scale, bias, chunk):
    scale, bias = scale.to(torch.float32), bias.to(torch.float32)
    return {
        "contrastive": contrastive_loss(image, text, scale, chunk=chunk),
        "sigmoid": sigmoid_loss(image, text, scale, bias, chunk=chunk),
        "hard": hard_negative_loss(image, text, scale, text[:2], hardness=1.0, chunk=chunk),
        "distilled": contrastive_distillation_loss(
            image, text, scale, text.flip(0), image, scale, chunk=chunk
        ),
        "features": feature_distillation_loss(image, text, text, image),
        "classifier": classifier_distillation_loss(image, text, scale, image @ text.T),
    }


@pytest.mark.parametrize("logit", [25.0, -25.0])
def test_a_sure_answer_right_or_wrong_is_exact_to_the_last_digit(logit):
    # PyTorch's softplus would give ln(1 + e^25) as 25, which is 1.39e-11 less.
    one = torch.ones(1, 1, dtype=torch.float64)
    loss = sigmoid_loss(one, one, scalar(-1e9), scalar(logit))
    expected = math.log1p(math.exp(-25)) + max(0.0, -logit)
    assert loss.item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_embeddings_are_judged_in_float32(dtype, chunk, autocast):
    image, text = unit(8, 16, seed=1, dtype=dtype), unit(8, 16, seed=2, dtype=dtype)
    scale, bias = scalar(math.log(100)), scalar(-10.0)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = all_losses(image, text, scale, bias, chunk)
    wide = all_losses(image.double(), text.double(), scale.double(), bias.double(), None)
    for name in set(ours) - {"classifier"}:  # its teacher logits were rounded above
        assert ours[name].dtype == torch.float32
        # At scale 100 a bfloat16 logit is off by up to 1/4; float32 leaves 1e-5.
        assert ours[name].item() == pytest.approx(wide[name].item(), rel=2e-5), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("bias", [-10.0, -300.0, 300.0])
@pytest.mark.parametrize("opposite", [False, True])
def test_extreme_scales_and_equal_embeddings_stay_finite(dtype, chunk, bias, opposite):
    same = torch.zeros(6, 4, dtype=dtype)
    same[:, 0] = 1
    image, text = same.clone().requires_grad_(), same.clone()
    if opposite:
        text[::2] *= -1
    text.requires_grad_()
    scale = scalar(math.log(100), torch.float32).requires_grad_()
    losses = all_losses(image, text, scale, scalar(bias), chunk)
    for name, loss in losses.items():
        gradients = torch.autograd.grad(loss, [image, text, scale], allow_unused=True)
        for value in (loss, *(g for g in gradients if g is not None)):
            assert value.isfinite().all(), name


@pytest.mark.parametrize("name", ["contrastive", "sigmoid", "hard", "distilled"])
def test_no_tensor_of_a_chunked_loss_is_larger_than_its_chunk(name):
    batch, dim, chunk = 96, 4, 8
    image, text = unit(batch, dim, seed=1).requires_grad_(), unit(batch, dim, seed=2)
    scale, bias = scalar(2.0), scalar(-1.0)
    groups = torch.arange(batch) // 2
    with LargestTensor() as largest:
        loss = {
            "contrastive": lambda: contrastive_loss(image, text, scale, groups, chunk=chunk),
            "sigmoid": lambda: sigmoid_loss(image, text, scale, bias, groups, chunk=chunk),
            "hard": lambda: hard_negative_loss(
                image, text, scale, positives=groups, hardness=0.5, chunk=chunk
            ),
            "distilled": lambda: contrastive_distillation_loss(
                image, text, scale, text, text, scale, chunk=chunk
            ),
        }[name]()
        loss.backward()
    assert largest.size == chunk * batch  # and never batch * batch


@pytest.mark.parametrize("chunk", [None, 8])
def test_a_chunked_loss_keeps_no_similarities_for_the_backward_pass(chunk):
    batch, dim = 96, 4
    image, text = unit(batch, dim, seed=1).requires_grad_(), unit(batch, dim, seed=2)
    kept = weakref.WeakSet()  # of what is still held once the loss is known

    class Held:
        def __init__(self, tensor):
            self.tensor = tensor
            kept.add(self)

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        loss = sigmoid_loss(image, text, scalar(2.0).requires_grad_(), scalar(-1.0), chunk=chunk)
    numbers = sum(held.tensor.numel() for held in kept)
    if chunk is None:
        assert numbers > batch * batch
    else:
        assert numbers == batch * dim + 2  # gradients by images and scale; exp(log_scale)
    loss.backward()


def test_a_chunked_loss_is_the_same_where_nothing_learns():
    inputs = unit(7, 4, seed=1).requires_grad_(), unit(7, 4, seed=2), scalar(2.0)
    whole = contrastive_loss(*inputs)
    with torch.no_grad():
        pieces = contrastive_loss(*inputs, chunk=3)
    assert not pieces.requires_grad
    assert pieces.item() == pytest.approx(whole.item(), abs=1e-12)
