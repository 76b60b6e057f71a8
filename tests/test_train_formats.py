"""Convolutional towers in channels_last order: the same numbers, laid out for convolutions."""

import pytest
import torch
from torch.nn.functional import normalize

from train_run import SIZES, losses, open_memory, tiny_clip, tiny_config
from twinlens.config import (
    ClipConfig,
    ClipTextConfig,
    ConvNextConfig,
    EfficientNetLiteConfig,
    FastVitConfig,
    ResNetConfig,
)
from twinlens.data.preprocess import Preprocess
from twinlens.data.tokenizer import TokenizerConfig
from twinlens.model.checkpoint import load_checkpoint
from twinlens.model.clip import Clip
from twinlens.runtime.load import InputsConfig
from twinlens.train.accumulate import whole_gradients
from twinlens.train.config import OptimizerConfig, TrainConfig
from twinlens.train.formats import suit_convolutions
from twinlens.train.inputs import Inputs
from twinlens.train.lock import training_mode
from twinlens.train.loop import train
from twinlens.train.objective import Towers, batch_loss
from twinlens.train.optim import make_optimizer
from twinlens.train.start import Start, write_start

pytestmark = pytest.mark.usefixtures("one_thread")

LAST = torch.channels_last
TOWERS = [
    ResNetConfig(image_size=64, stem_width=8, layers=(1, 1, 1, 1), heads=4),
    ConvNextConfig(image_size=64, widths=(8, 16, 24, 32), layers=(1, 1, 1, 1)),
    EfficientNetLiteConfig(image_size=64, stem_width=8, head_width=32, width_multiplier=0.25),
    FastVitConfig(image_size=64, widths=(16, 32, 64), layers=(1, 1, 1), attention_stages=1),
]


def convolutional(tower):
    torch.manual_seed(7)
    text = ClipTextConfig(**SIZES, vocab_size=49408, context=8)
    projection = {"image_projection": "linear"} if tower.kind == "resnet" else {}
    return Clip(ClipConfig(image=tower, text=text, dim=8, **projection))


class PlainTowers(Towers):
    """Towers that take pictures as they lie."""

    def image(self, pixel_values):
        return normalize(self.clip.encode_image(pixel_values), dim=-1)


def three_steps(towers, pixels, ids):
    """Losses of three steps: the second is of weights that moved, the third of moments too."""
    optimizer = make_optimizer(towers.clip, OptimizerConfig(learning_rate=1e-4, epsilon=1e-3))
    config = TrainConfig(model="tiny")
    curve = []
    for _ in range(3):
        loss = whole_gradients(towers, lambda out: batch_loss(config, out, None), (pixels, ids))
        curve.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return curve


@pytest.mark.parametrize("tower", TOWERS, ids=lambda tower: tower.kind)
def test_a_step_is_the_same_in_both_orders(tower):
    # In float64: batch norms over eight small maps make 1e-5 out of float32's rounding, and the
    # steps that follow make more of it. What an order got wrong would be far larger.
    pixels = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(1)).double()
    ids = torch.randint(1, 300, (8, 8), generator=torch.Generator().manual_seed(2))
    plain, suited = convolutional(tower).double(), convolutional(tower).double()
    suit_convolutions(suited)
    training_mode(plain)
    training_mode(suited)
    reference = three_steps(PlainTowers(plain, None, "cpu"), pixels, ids)
    ours = three_steps(Towers(suited, None, "cpu"), pixels, ids)
    assert ours == pytest.approx(reference, abs=1e-9) and abs(reference[2] - reference[0]) > 1e-4
    for name, value in plain.state_dict().items():
        other = suited.state_dict()[name]
        torch.testing.assert_close(other, value, rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.parametrize("tower", TOWERS, ids=lambda tower: tower.kind)
def test_filters_and_feature_maps_lie_channels_last(tower):
    clip = convolutional(tower)
    suit_convolutions(clip)
    towers = Towers(clip, None, "cpu")
    convolutions = [m for m in clip.modules() if isinstance(m, torch.nn.Conv2d)]
    seen = []
    for module in convolutions:
        assert module.weight.is_contiguous(memory_format=LAST)
        module.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    towers.image(torch.randn(2, 3, 64, 64))
    maps = [x for pair in seen for x in pair if min(x.shape[1:]) > 1]
    assert len(maps) > 4 and all(x.is_contiguous(memory_format=LAST) for x in maps)


def test_a_transformer_is_left_as_it_is():
    clip = tiny_clip()
    before = [p.stride() for p in clip.parameters()]
    suit_convolutions(clip)
    assert [p.stride() for p in clip.parameters()] == before
    seen = []
    clip.image_tower.patch.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    Towers(clip, None, "cpu").image(torch.randn(2, 3, 16, 16))
    assert seen[0].is_contiguous()


@pytest.mark.parametrize("means", [{"ema_decay": 0.9}, {"accumulate": 2, "hold_megabytes": 0}])
def test_a_run_of_a_convolutional_tower_goes_on_exactly(tmp_path, means):
    # The fused AdamW goes through weights and moments as they lie: both must lie alike.
    class Stop(Exception):
        pass

    def stop(record):
        if record.step == 3:
            raise Stop

    def larger(config, preprocess, tokenizer, team):
        inputs = open_memory(config, preprocess, tokenizer, team)
        inputs.train.pixels = inputs.train.pixels.repeat(1, 1, 2, 2)
        return Inputs(train=inputs.train, pairs_per_epoch=32)

    tower = ResNetConfig(image_size=32, stem_width=8, layers=(1, 1, 1, 1), heads=4)
    inputs = InputsConfig(
        preprocess=Preprocess(image_size=32, resize="squash", mean=(0.5,) * 3, std=(0.5,) * 3),
        tokenizer=TokenizerConfig(kind="clip_bpe", context=8, cleaning="clip"),
    )
    write_start(Start(convolutional(tower), inputs, tmp_path), tmp_path / "model")
    config = tiny_config(tmp_path / "model", steps=6, validate_every=100, **means)
    train(config, tmp_path / "whole", open_inputs=larger)
    with pytest.raises(Stop):
        train(config, tmp_path / "parts", open_inputs=larger, progress=stop)
    train(config, tmp_path / "parts", open_inputs=larger)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    ours, theirs = (load_checkpoint(tmp_path / r / "last").state_dict() for r in ("parts", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
