"""Gradients of a batch in parts against those of the whole batch, in float64."""

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from train_run import pairs_in_memory, tiny_clip
from twinlens.train.accumulate import HeldInputs, Outputs, cached_gradients, whole_gradients
from twinlens.train.config import TrainConfig
from twinlens.train.objective import Towers, batch_loss


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def towers(loss):
    clip = tiny_clip(bias_init=-10.0 if loss == "sigmoid" else None).double().train()
    return clip, Towers(clip, None, "cpu")


@pytest.mark.parametrize("loss", ["contrastive", "sigmoid"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_parts_give_the_gradients_of_the_whole_batch(loss, in_memory, tmp_path):
    config = TrainConfig(model="tiny", loss=loss)
    pixels, ids = pairs_in_memory()
    pixels = pixels.double()
    groups = torch.arange(32) // 2  # several captions of one picture, over the border of parts

    def loss_of(out):
        return batch_loss(config, out, groups)

    clip, whole = towers(loss)
    value = whole_gradients(whole, loss_of, (pixels, ids))
    wanted = gradients(clip)
    clip, parts = towers(loss)
    again = cached_gradients(
        parts,
        loss_of,
        zip(pixels.split(5), ids.split(5), strict=True),  # the last part is smaller
        module=clip,
        folder=None if in_memory else tmp_path,
        hold_megabytes=256 if in_memory else 0,
    )
    assert again.item() == pytest.approx(value.item(), abs=1e-12)
    found = gradients(clip)
    assert found.keys() == wanted.keys() and "log_scale" in found
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-12, msg=name)


def test_a_part_sees_the_same_random_patches_twice():
    # With other patches in the second pass the gradients would be of another function.
    clip, parts = towers("contrastive")
    clip.image_tower.patch_dropout = 0.5
    pixels, ids = pairs_in_memory()
    seen = []

    def forward(pixels, ids):
        out = parts(pixels, ids)
        seen.append(out.image.detach())
        return out

    config = TrainConfig(model="tiny")
    batches = list(zip(pixels.double().split(8), ids.split(8), strict=True))
    cached_gradients(forward, lambda out: batch_loss(config, out, None), batches, module=clip)
    for first, second in zip(seen[:4], seen[4:], strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(parts(*batches[0]).image, seen[0])


def test_inputs_beyond_the_limit_wait_on_the_disk_and_come_back_the_same(tmp_path):
    held = HeldInputs(tmp_path, megabytes=0)
    parts = [(torch.randn(3, 2), torch.arange(4) + number) for number in range(3)]
    for part in parts:
        held.add(part)
    for _ in range(2):
        for kept, part in zip(held, parts, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(kept, part, strict=True))
    assert list(tmp_path.iterdir()) == []  # nothing is left if the process is killed
    held.close()


def test_batch_norms_count_each_part_once():
    norm = nn.BatchNorm1d(4)
    once = nn.BatchNorm1d(4)
    scale = torch.zeros((), requires_grad=True)
    parts = [(torch.randn(6, 4) + 1,) for _ in range(3)]

    def forward(x):
        unit = normalize(norm(x), dim=-1)
        return Outputs(unit, unit, scale.view(()), None)

    config = TrainConfig(model="tiny")
    cached_gradients(forward, lambda out: batch_loss(config, out, None), parts, module=norm)
    for (part,) in parts:
        once(part)
    torch.testing.assert_close(norm.running_mean, once.running_mean)
    assert norm.momentum == 0.1
