"""Towers in training mode compute what they compute in eval mode, by shorter ways."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from train_run import SIZES, pairs_in_memory, tiny_clip
from twinlens.config import BertTextConfig, ClipTextConfig, VitConfig
from twinlens.model.attention import Block
from twinlens.model.clip import build_tower

IMAGE = [
    VitConfig(**SIZES, image_size=16, patch_size=8),
    VitConfig(**SIZES, image_size=16, patch_size=8, activation="quick_gelu"),
    VitConfig(**SIZES, image_size=16, patch_size=8, pool="mean", norm_after_pool=True),
    VitConfig(**SIZES, image_size=16, patch_size=8, pool="map", input_norm=False),
]
TEXT = [
    ClipTextConfig(**SIZES, vocab_size=49408, context=8),
    ClipTextConfig(**SIZES, vocab_size=49408, context=8, pool="eos", eos_id=49407),
    ClipTextConfig(**SIZES, vocab_size=49408, context=8, pool="last", causal=False),
    BertTextConfig(**SIZES, vocab_size=49408, context=8, pad_id=0),
]


@pytest.mark.parametrize("config", [*IMAGE, *TEXT], ids=lambda config: config.kind)
@pytest.mark.parametrize("recompute", [False, True])
def test_training_mode_changes_neither_features_nor_gradients(config, recompute):
    torch.manual_seed(1)
    tower = build_tower(config).double()
    if hasattr(tower, "position"):
        torch.nn.init.normal_(tower.position, std=0.1)
    pixels, ids = pairs_in_memory(6)
    ids[2, 3] = 49407  # an earlier end
    inputs = pixels.double() if isinstance(config, VitConfig) else ids
    results = []
    for training in (False, True):
        tower.train(training)
        for module in tower.modules():
            if isinstance(module, Block):
                module.recompute = recompute
        tower.zero_grad()
        out = tower(inputs)
        (out * torch.arange(out.numel()).reshape(out.shape)).sum().backward()
        results.append((out.detach(), [p.grad.clone() for p in tower.parameters()]))
    (plain, slow), (trained, fast) = results
    torch.testing.assert_close(trained, plain, rtol=0, atol=1e-12)
    for ours, reference in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-9)


def test_patch_dropout_keeps_the_class_token_and_a_share_of_the_patches():
    tower = build_tower(VitConfig(**SIZES, image_size=32, patch_size=8)).train()
    tower.patch_dropout = 0.75
    seen = []
    tower.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    torch.manual_seed(0)
    pixels = torch.randn(1, 3, 32, 32).expand(3, -1, -1, -1)
    tower(pixels)
    tokens = seen[0]  # (batch, token, channel)
    assert tokens.shape[1] == 1 + 4  # 16 patches, a quarter of them
    assert torch.equal(tokens[0, 0], tokens[1, 0])
    assert not torch.equal(tokens[0, 1:], tokens[1, 1:])  # other patches for each picture
    tower.eval()
    tower(pixels)
    assert seen[1].shape[1] == 17


def test_patches_that_stay_keep_their_positions():
    tower = build_tower(VitConfig(**SIZES, image_size=16, patch_size=8)).train()
    tower.patch_dropout = 1e-9  # all stay, in another order: attention does not mind
    pixels, _ = pairs_in_memory(4)
    shuffled = tower(pixels)
    torch.testing.assert_close(shuffled, tower.eval()(pixels), rtol=0, atol=1e-5)


def test_the_fused_kernel_is_for_training_alone(monkeypatch):
    # ONNX Runtime recognises attention that is written out; golden values were made with it.
    called = []

    def fused(*arguments, **keywords):
        called.append(1)
        return scaled_dot_product_attention(*arguments, **keywords)

    monkeypatch.setattr("twinlens.model.attention.scaled_dot_product_attention", fused)
    clip = tiny_clip().eval()
    clip.encode_image(torch.randn(2, 3, 16, 16))
    assert called == []
    clip.train().encode_image(torch.randn(2, 3, 16, 16))
    assert len(called) == 2
