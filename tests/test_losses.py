"""Losses against arithmetic, loops over pairs, and OpenCLIP's stored values."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from loss_cases import assert_same, scalar, unit, value_and_gradients
from twinlens.errors import ConfigError
from twinlens.train.losses import (
    contrastive_distillation_loss,
    contrastive_loss,
    hard_negative_loss,
    sigmoid_loss,
)

GROUPS = torch.tensor([0, 1, 0, 2, 1, 0, 3])


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


@pytest.mark.parametrize("name", ["clip", "clip_bias", "siglip"])
@pytest.mark.parametrize("chunk", [None, 1, 3, 8, 100])
def test_values_and_gradients_equal_openclips(shared_folder, name, chunk):
    folder = shared_folder / "golden" / "losses"
    inputs, expected = np.load(folder / "inputs.npz"), np.load(folder / "expected.npz")
    scale = inputs["logit_scale"].item()
    features = [torch.tensor(inputs[f"{side}_features"]) for side in ("image", "text")]
    bias = [torch.tensor(inputs["logit_bias"])] if name == "siglip" else []
    loss = sigmoid_loss if name == "siglip" else contrastive_loss
    ours = value_and_gradients(
        lambda *given: loss(*given, chunk=chunk), *features, scalar(math.log(scale)), *bias
    )
    # d/d ln(s) = s * d/ds: the reference differentiates by the multiplier itself.
    ours[3] = ours[3] / scale
    keys = ["loss", "grad_image_features", "grad_text_features", "grad_logit_scale"]
    keys += ["grad_logit_bias"] if bias else []
    assert_same(ours, [torch.tensor(expected[f"{name}_{key}"]) for key in keys])


@pytest.mark.parametrize("chunk", [1, 3, 7, 50])
@pytest.mark.parametrize("marks", ["none", "mask", "groups"])
def test_chunks_change_neither_value_nor_gradient(chunk, marks):
    mask = torch.rand(7, 7, generator=torch.Generator().manual_seed(5)) < 0.3  # not symmetric
    positives = {"none": None, "mask": mask, "groups": GROUPS}[marks]
    image, text, scale, bias = unit(7, 5, seed=1), unit(7, 5, seed=2), scalar(2.5), scalar(-3.0)
    negatives, teacher = unit(4, 5, seed=3), (unit(7, 9, seed=4), unit(7, 9, seed=5), scalar(3.0))
    for loss, inputs in [
        (lambda *g, chunk: contrastive_loss(*g, positives, chunk=chunk), (image, text, scale)),
        (lambda *g, chunk: sigmoid_loss(*g, positives, chunk=chunk), (image, text, scale, bias)),
        (
            lambda *g, chunk: hard_negative_loss(*g, positives, hardness=0.5, chunk=chunk),
            (image, text, scale, negatives),
        ),
        (
            lambda *g, chunk: contrastive_distillation_loss(*g, *teacher, chunk=chunk),
            (image, text, scale),
        ),
    ]:
        whole = value_and_gradients(lambda *g, loss=loss: loss(*g, chunk=None), *inputs)
        pieces = value_and_gradients(lambda *g, loss=loss: loss(*g, chunk=chunk), *inputs)
        assert_same(pieces, whole)


def test_an_impossible_chunk_is_named():
    with pytest.raises(ConfigError, match="at least 1, or None for all; got 0"):
        contrastive_loss(unit(3, 2), unit(3, 2), scalar(0.0), chunk=0)


def test_every_loss_wants_one_text_for_each_image():
    with pytest.raises(ConfigError, match=r"images \(3, 2\) and texts \(4, 2\)"):
        contrastive_loss.__wrapped__(unit(3, 2), unit(4, 2), scalar(0.0))


@pytest.mark.parametrize("loss", [contrastive_loss, sigmoid_loss])
@pytest.mark.parametrize("chunk", [None, 2])
def test_groups_say_the_same_as_their_mask(loss, chunk):
    inputs = [unit(7, 4, seed=1), unit(7, 4, seed=2), scalar(2.0)]
    inputs += [scalar(-1.0)] if loss is sigmoid_loss else []
    mask = GROUPS[:, None] == GROUPS[None]
    by_groups = value_and_gradients(lambda *g: loss(*g, GROUPS, chunk=chunk), *inputs)
    by_mask = value_and_gradients(lambda *g: loss(*g, mask), *inputs)
    assert_same(by_groups, by_mask)


def test_a_pair_fits_itself_without_being_marked():
    inputs = unit(4, 3, seed=1), unit(4, 3, seed=2), scalar(1.0)
    nothing = torch.zeros(4, 4, dtype=torch.bool)
    assert contrastive_loss(*inputs, nothing) == contrastive_loss(*inputs)


def test_a_mask_is_read_from_image_to_text():
    # Image 0 also fits text 1; image 1 does not fit text 0. By hand, at scale 1:
    image, text = torch.eye(2).double(), normalize(torch.tensor([[2.0, 1], [0, 1]]).double(), dim=1)
    cosine = (image @ text.T).numpy()
    row, column = np.log(np.exp(cosine).sum(1)), np.log(np.exp(cosine).sum(0))
    by_image = (row[0] - cosine[0].mean()) + (row[1] - cosine[1, 1])
    by_text = (column[0] - cosine[0, 0]) + (column[1] - cosine[:, 1].mean())
    mask = torch.tensor([[True, True], [False, True]])
    loss = contrastive_loss(image, text, scalar(0.0), mask)
    assert loss.item() == pytest.approx((by_image + by_text) / 4, abs=1e-12)


def test_several_captions_of_a_picture_have_the_gradients_of_the_rectangle():
    # 3 pictures, 2 captions each. Written out: every picture against 6 captions, its two
    # sharing the target; every caption against 3 pictures. Repeating the pictures adds
    # a constant, ln 2 in half of the loss: each caption must choose between two copies.
    def rectangle(image, text, log_scale):
        logits = log_scale.exp() * image @ text.T
        target = torch.eye(3, dtype=torch.float64).repeat_interleave(2, 1) / 2
        by_image = -(target * logits.log_softmax(1)).sum(1).mean()
        by_text = -(2 * target * logits.log_softmax(0)).sum(0).mean()
        return (by_image + by_text) / 2

    def repeated(image, text, log_scale):
        groups = torch.arange(3).repeat_interleave(2)
        return contrastive_loss(image.repeat_interleave(2, 0), text, log_scale, groups)

    inputs = unit(3, 4, seed=1), unit(6, 4, seed=2), scalar(2.0)
    ours, theirs = value_and_gradients(repeated, *inputs), value_and_gradients(rectangle, *inputs)
    assert ours[0].item() - math.log(2) / 2 == pytest.approx(theirs[0].item(), abs=1e-12)
    assert_same(ours[1:], theirs[1:])


def test_the_sigmoid_loss_is_a_sum_of_yes_or_no_questions():
    image, text = unit(5, 3, seed=1), unit(5, 3, seed=2)
    groups = [0, 1, 0, 2, 2]
    total = 0.0
    for i, j in itertools.product(range(5), range(5)):
        logit = 7.0 * float(image[i] @ text[j]) - 2.0
        total += math.log1p(math.exp(-logit if groups[i] == groups[j] else logit))
    loss = sigmoid_loss(image, text, scalar(math.log(7)), scalar(-2.0), torch.tensor(groups))
    assert loss.item() == pytest.approx(total / 5, abs=1e-12)


def test_logits_of_zero_cost_ln_two_a_question():
    pairs = torch.zeros(6, 2, dtype=torch.float64)
    loss = sigmoid_loss(pairs, pairs, scalar(1.0), scalar(0.0))
    assert loss.item() == pytest.approx(6 * math.log(2), abs=1e-12)


def test_without_anything_harder_it_is_the_contrastive_loss():
    inputs = unit(7, 4, seed=1), unit(7, 4, seed=2), scalar(3.0)
    for positives in (None, GROUPS):
        ours = value_and_gradients(
            lambda *g, p=positives: hard_negative_loss(*g, positives=p), *inputs
        )
        plain = value_and_gradients(lambda *g, p=positives: contrastive_loss(*g, p), *inputs)
        assert_same(ours, plain)


@pytest.mark.parametrize("hardness", [0.0, 0.7])
def test_equal_similarities_cost_ln_of_what_there_is_to_choose_from(hardness):
    same = torch.zeros(5, 3, dtype=torch.float64)
    same[:, 0] = 1
    loss = hard_negative_loss(same, same, scalar(4.0), same[:2], hardness=hardness)
    assert loss.item() == pytest.approx((math.log(7) + math.log(5)) / 2, abs=1e-12)


def test_hard_negatives_weigh_as_in_robinsons_formula():
    image, text, negative = unit(4, 3, seed=1), unit(4, 3, seed=2), unit(2, 3, seed=3)
    scale, beta = 5.0, 0.6
    texts = np.concatenate([text.numpy(), negative.numpy()])

    def row(logits, own):
        others = np.exp(np.delete(logits, own))
        weights = others**beta / (others**beta).mean()
        return -math.log(np.exp(logits[own]) / (np.exp(logits[own]) + (weights * others).sum()))

    by_image = [row(scale * texts @ image[i].numpy(), i) for i in range(4)]
    by_text = [row(scale * image.numpy() @ text[i].numpy(), i) for i in range(4)]
    loss = hard_negative_loss(image, text, scalar(math.log(scale)), negative, hardness=beta)
    expected = (np.mean(by_image) + np.mean(by_text)) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-12)


def test_a_batch_of_nothing_but_positives_has_no_hard_negatives():
    inputs = unit(3, 2, seed=1), unit(3, 2, seed=2), scalar(4.0)
    one_group = torch.zeros(3, dtype=torch.int64)
    ours = value_and_gradients(
        lambda *g: hard_negative_loss(*g, positives=one_group, hardness=0.5), *inputs
    )
    plain = value_and_gradients(lambda *g: contrastive_loss(*g, one_group), *inputs)
    assert_same(ours, plain)


def test_a_negative_hardness_is_refused():
    with pytest.raises(ConfigError, match=r"0 or more .* got -1"):
        hard_negative_loss(unit(3, 2), unit(3, 2), scalar(0.0), hardness=-1.0)
