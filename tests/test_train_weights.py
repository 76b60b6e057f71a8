"""Which weights learn, how fast, and what becomes of them: groups, locks, adapters, averages."""

import pytest
import torch

from train_run import pairs_in_memory, tiny_clip
from twinlens.config import ClipConfig, ClipTextConfig, EfficientNetLiteConfig, ResNetConfig
from twinlens.errors import ConfigError
from twinlens.model.clip import Clip, build_tower
from twinlens.train.config import LoraConfig, OptimizerConfig
from twinlens.train.ema import Average
from twinlens.train.layers import layers_of
from twinlens.train.lock import lock_tower, training_mode
from twinlens.train.lora import LoraLinear, add_adapters, merged_weights
from twinlens.train.optim import (
    learning_rate,
    limit_gradients,
    make_optimizer,
    rate_shares,
    warmup_constant,
)


def test_only_matrices_are_decayed_as_in_openclip():
    clip = tiny_clip(bias_init=-10.0)
    names = {id(p): n for n, p in clip.named_parameters()}
    optimizer = make_optimizer(clip, OptimizerConfig(weight_decay=0.2))
    free = {
        names[id(p)]
        for group in optimizer.param_groups
        if group["weight_decay"] == 0
        for p in group["params"]
    }
    decayed = set(names.values()) - free
    assert {"log_scale", "bias", "image_tower.class_token"} <= free
    assert all(n.endswith(("bias", "norm.weight", "token", "scale")) for n in free)
    assert "image_tower.position" in decayed and "text_tower.token.weight" in decayed


def test_each_layer_below_learns_slower():
    shares = rate_shares(tiny_clip(), 0.5)
    assert shares["image_projection.weight"] == shares["log_scale"] == 1.0
    # Stem, two blocks (the final norm counts with the last one), projection.
    assert shares["image_tower.final_norm.weight"] == 0.5
    assert shares["image_tower.blocks.1.mlp.0.weight"] == 0.5
    assert shares["image_tower.blocks.0.mlp.0.weight"] == 0.25
    assert shares["image_tower.patch.weight"] == shares["image_tower.class_token"] == 0.125
    assert shares["text_tower.token.weight"] == 0.125


@pytest.mark.parametrize(
    "config",
    [ResNetConfig(stem_width=8, layers=(1, 1, 1, 1), heads=4), EfficientNetLiteConfig()],
    ids=lambda config: config.kind,
)
def test_every_weight_of_a_convolutional_tower_is_in_one_layer(config):
    tower = build_tower(config)
    layers = layers_of(tower)
    names = [name for layer in layers for name in layer]
    assert sorted(names) == sorted(n for n, _ in tower.named_parameters())
    assert len(layers) > 4 and all(name.startswith("stem") for name in layers[0])


def test_a_locked_tower_has_no_gradients_but_in_its_last_layers():
    clip = tiny_clip()
    lock_tower(clip.image_tower, 1, side="image")
    lock_tower(clip.text_tower, 0, side="text")
    learns = {n for n, p in clip.named_parameters() if p.requires_grad}
    assert {n.split(".")[2] for n in learns if n.startswith("image_tower.blocks")} == {"1"}
    assert "image_tower.patch.weight" not in learns and "image_projection.weight" in learns
    assert not any(n.startswith("text_tower") for n in learns)
    with pytest.raises(ConfigError, match="has 3 layers to unlock, not 9"):
        lock_tower(clip.image_tower, 9, side="image")


def test_a_locked_batch_norm_keeps_its_statistics():
    sizes = {"width": 16, "layers": 1, "heads": 2, "mlp_width": 32}
    clip = Clip(
        ClipConfig(
            image=ResNetConfig(image_size=32, stem_width=8, layers=(1, 1, 1, 1), heads=4),
            text=ClipTextConfig(**sizes, vocab_size=300, context=8),
            dim=8,
            image_projection="linear",
        )
    )
    lock_tower(clip.image_tower, 0, side="image")
    training_mode(clip)
    before = {n: b.clone() for n, b in clip.named_buffers()}
    clip.encode_image(torch.randn(2, 3, 32, 32))
    assert before and all(torch.equal(before[n], b) for n, b in clip.named_buffers())
    assert clip.text_tower.training


def test_adapters_add_nothing_at_first_and_merge_into_the_same_outputs():
    clip = tiny_clip().double().eval()
    pixels, ids = pairs_in_memory(4)
    pixels = pixels.double()
    plain = clip.encode_image(pixels), clip.encode_text(ids)
    add_adapters(clip, LoraConfig(rank=2, alpha=4.0))
    adapters = [m for m in clip.modules() if isinstance(m, LoraLinear)]
    assert len(adapters) == 2 * 2 * 6  # towers, blocks, linear layers of a block
    assert torch.equal(clip.encode_image(pixels), plain[0])
    learns = {n.split(".")[-1] for n, p in clip.named_parameters() if p.requires_grad}
    assert learns == {"up", "down", "log_scale"}
    torch.manual_seed(0)
    for adapter in adapters:
        torch.nn.init.normal_(adapter.up, std=0.1)
    adapted = clip.encode_image(pixels), clip.encode_text(ids)
    assert not torch.allclose(adapted[0], plain[0], atol=1e-3)
    merged = tiny_clip().double().eval()
    merged.load_state_dict(merged_weights(clip, clip.state_dict()))
    torch.testing.assert_close(merged.encode_image(pixels), adapted[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(merged.encode_text(ids), adapted[1], rtol=0, atol=1e-12)
    weight = adapters[0].merged_weight()
    assert weight.shape == adapters[0].base.weight.shape


def test_adapters_on_one_tower_leave_the_other_locked():
    clip = tiny_clip()
    add_adapters(clip, LoraConfig(towers="text"))
    learns = {n.split(".")[0] for n, p in clip.named_parameters() if p.requires_grad}
    assert learns == {"text_tower", "log_scale"}


def test_a_convolutional_tower_cannot_have_adapters():
    sizes = {"width": 16, "layers": 1, "heads": 2, "mlp_width": 32}
    text = ClipTextConfig(**sizes, vocab_size=300, context=8)
    clip = Clip(ClipConfig(image=EfficientNetLiteConfig(image_size=32), text=text, dim=8))
    with pytest.raises(ConfigError, match="image tower is convolutional"):
        add_adapters(clip, LoraConfig())


def test_the_average_of_two_steps_is_what_arithmetic_says():
    linear = torch.nn.Linear(1, 1, bias=False)
    linear.weight.data.fill_(0.0)
    average = Average(linear, decay=0.9)
    linear.weight.data.fill_(1.0)
    average.update()  # remembers (1 + 1) / (10 + 1) of the old value
    assert average.values["weight"].item() == pytest.approx(1 - 2 / 11)
    with average.in_place():
        assert linear.weight.item() == pytest.approx(1 - 2 / 11)
    assert linear.weight.item() == 1.0


def test_gradients_are_shortened_together_as_pytorch_does():
    ours, theirs = tiny_clip(), tiny_clip()
    pixels, ids = pairs_in_memory(4)
    for model in (ours, theirs):
        model(pixels, ids).square().sum().backward()
    length = limit_gradients([p for p in ours.parameters() if p.grad is not None], 0.5)
    reference = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
    assert length.item() == pytest.approx(reference.item(), rel=1e-5)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_a_constant_rate_rises_stays_and_falls_to_zero():
    rates = [
        warmup_constant(step, warmup_steps=2, cooldown_steps=4, total_steps=10)
        for step in range(11)
    ]
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0])


def test_warmup_is_a_share_of_the_steps_or_a_number_of_them():
    share = OptimizerConfig(learning_rate=1.0, warmup=0.25)
    number = OptimizerConfig(learning_rate=1.0, warmup=25.0)
    for config in (share, number):
        assert learning_rate(config, 24, 100) == 1.0
        assert learning_rate(config, 0, 100) == pytest.approx(1 / 25)
