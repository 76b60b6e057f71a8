"""The towers: shapes, agreement with slow loops, and that they can learn."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from twinlens.config import (
    BertTextConfig,
    ClipConfig,
    ClipTextConfig,
    EfficientNetLiteConfig,
    TransformerConfig,
    VitConfig,
)
from twinlens.errors import CheckpointMismatch, ConfigError
from twinlens.model.attention import Attention, Block, make_activation
from twinlens.model.checkpoint import load_checkpoint, save_checkpoint
from twinlens.model.clip import Clip, build_tower
from twinlens.model.image_conv import ConvNorm
from twinlens.train.losses import contrastive_loss

SIZES = {"width": 8, "layers": 2, "heads": 2, "mlp_width": 16}
VIT = VitConfig(**SIZES, image_size=32, patch_size=16)
CONV = EfficientNetLiteConfig(image_size=32, head_width=24)
CLIP_TEXT = ClipTextConfig(**SIZES, vocab_size=50, context=6)
BERT = BertTextConfig(**SIZES, vocab_size=50, context=6)
IDS = torch.tensor([[48, 5, 6, 49, 0, 0], [48, 7, 8, 9, 10, 49]])


@pytest.mark.parametrize("image", [VIT, CONV], ids=["vit", "conv"])
@pytest.mark.parametrize("text", [CLIP_TEXT, BERT], ids=["clip", "bert"])
def test_any_image_tower_joins_any_text_tower(image, text):
    model = Clip(ClipConfig(image=image, text=text, dim=4)).eval()
    logits = model(torch.randn(3, 3, 32, 32), IDS)
    assert logits.shape == (3, 2)
    assert logits.abs().max() <= model.logit_scale + 1e-4  # cosines times the scale


def test_the_scale_starts_at_one_over_the_papers_temperature():
    model = Clip(ClipConfig(image=VIT, text=BERT, dim=4))
    assert model.logit_scale.item() == pytest.approx(1 / 0.07, rel=1e-6)
    assert model.logit_bias is None
    assert Clip(
        ClipConfig(image=VIT, text=BERT, dim=4, bias_init=-10.0)
    ).logit_bias.item() == pytest.approx(-10)


@torch.no_grad()
def test_attention_equals_a_loop_over_heads_and_queries():
    torch.manual_seed(0)
    layer = Attention(6, 3)
    x = torch.randn(1, 4, 6)
    mask = torch.ones(4, 4, dtype=torch.bool).tril()[None, None]
    q, k, v = (linear(x)[0] for linear in (layer.query, layer.key, layer.value))
    mixed = torch.zeros(4, 6)
    for head in range(3):
        own = slice(2 * head, 2 * head + 2)
        for i in range(4):
            scores = torch.tensor([float(q[i, own] @ k[j, own]) for j in range(i + 1)])
            weights = (scores / math.sqrt(2)).softmax(0)
            mixed[i, own] = sum(w * v[j, own] for j, w in enumerate(weights))
    torch.testing.assert_close(layer(x, mask)[0], layer.out(mixed), atol=1e-6, rtol=1e-5)


def test_pre_norm_and_post_norm_place_the_norms_differently():
    config = TransformerConfig(**SIZES)
    x = torch.randn(1, 3, 8)
    post = Block(config, pre_norm=False)(x)
    # After a fresh layer norm every token has mean 0 and variance 1; pre-norm has no such end.
    torch.testing.assert_close(post.mean(-1), torch.zeros(1, 3), atol=1e-5, rtol=0)
    assert Block(config, pre_norm=True)(x).mean(-1).abs().max() > 1e-3


def test_activations_are_the_published_formulas():
    x = torch.tensor([1.0, -0.5])
    quick = [1 / (1 + math.exp(-1.702)), -0.5 / (1 + math.exp(0.851))]
    exact = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in (1.0, -0.5)]
    tanh = [
        0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))
        for v in (1.0, -0.5)
    ]
    for name, expected in (("quick_gelu", quick), ("gelu", exact), ("gelu_tanh", tanh)):
        torch.testing.assert_close(make_activation(name)(x), torch.tensor(expected))


def test_padding_does_not_change_a_text():
    for config in (CLIP_TEXT, BERT):
        tower = build_tower(config).eval()
        short, padded = torch.tensor([[48, 5, 49]]), torch.tensor([[48, 5, 49, 0, 0, 0]])
        torch.testing.assert_close(tower(short), tower(padded), atol=1e-6, rtol=1e-5)


def test_pooling_looks_for_the_largest_id_or_for_the_end_token_as_configured():
    by_id = build_tower(ClipTextConfig(**SIZES, vocab_size=50, context=6)).eval()
    by_end = build_tower(
        ClipTextConfig(**SIZES, vocab_size=50, context=6, pool="eos", eos_id=5)
    ).eval()
    by_end.load_state_dict(by_id.state_dict())
    ids = torch.tensor([[48, 5, 49, 3]])
    # A causal tower's feature at a token does not depend on what follows it.
    torch.testing.assert_close(by_end(ids), by_end(torch.tensor([[48, 5]])))
    torch.testing.assert_close(by_id(ids), by_id(torch.tensor([[48, 5, 49]])))
    assert not torch.allclose(by_id(ids), by_end(ids))


def test_stride_two_pads_right_and_bottom_as_tensorflow_does():
    layer = ConvNorm(1, 1, 3, stride=2, linear=True).eval()
    torch.nn.init.ones_(layer.conv.weight)
    layer.norm.eps = 0.0
    # Sums of 3x3 windows that start at 0 and 2, with zeros after the last row and column.
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert layer(x).flatten().tolist() == [45, 39, 66, 50]


def test_a_locked_part_and_the_rest_make_the_whole_tower():
    tower = build_tower(CONV).eval()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(tower.from_block(tower.to_block(x, 5), 5), tower(x))


@pytest.mark.parametrize(
    ("width", "depth", "published"),
    [(1.0, 1.0, 4_652_008), (1.0, 1.1, 5_416_680), (1.1, 1.2, 6_092_072)],
    ids=["Lite0", "Lite1", "Lite2"],
)
def test_the_conv_towers_body_has_the_published_number_of_parameters(width, depth, published):
    # As published with the 1,000-way classifier of 1,281,000.
    config = EfficientNetLiteConfig(width_multiplier=width, depth_multiplier=depth)
    tower = build_tower(config)
    assert sum(p.numel() for p in tower.parameters()) == published - 1_281_000


def test_a_tiny_model_learns_eight_pairs_by_heart():
    torch.manual_seed(0)
    model = Clip(ClipConfig(image=VIT, text=BERT, dim=8))
    pixels = torch.randn(8, 3, 32, 32)
    ids = torch.randint(1, 50, (8, 6))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        loss = contrastive_loss(
            normalize(model.encode_image(pixels), dim=-1),
            normalize(model.encode_text(ids), dim=-1),
            model.log_scale,
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05  # from about ln 8 = 2.08
    assert model(pixels, ids).argmax(dim=1).tolist() == list(range(8))


def test_a_config_survives_json_and_rejects_what_it_does_not_know(tmp_path):
    config = ClipConfig(image=CONV, text=BERT, dim=4)
    config.write(tmp_path / "config.json")
    assert ClipConfig.read(tmp_path / "config.json") == config
    values = config.to_dict()
    values["text"]["dropout"] = 0.1
    with pytest.raises(ConfigError, match="does not know 'dropout'"):
        ClipConfig.from_dict(values)
    with pytest.raises(ConfigError, match="kind among vit, resnet, efficientnet_lite"):
        ClipConfig.from_dict({**config.to_dict(), "image": {"kind": "swin"}})
    with pytest.raises(ConfigError, match=r"ClipConfig.dim must be int, not '4'"):
        ClipConfig.from_dict({**config.to_dict(), "dim": "4"})
    with pytest.raises(ConfigError, match="needs 'dim'"):
        ClipConfig.from_dict({"image": CONV.to_dict(), "text": BERT.to_dict()})


def test_impossible_sizes_are_refused():
    with pytest.raises(ConfigError, match="3 heads do not divide a width of 8"):
        BertTextConfig(**{**SIZES, "heads": 3})
    with pytest.raises(ConfigError, match="a patch of 64 px does not fit in 32 px"):
        VitConfig(**SIZES, image_size=32, patch_size=64)
    with pytest.raises(ConfigError, match="image tower's width of 8 must be the dim, 4"):
        ClipConfig(image=VIT, text=BERT, dim=4, image_projection="none")
    with pytest.raises(ConfigError, match="multiple of 32"):
        EfficientNetLiteConfig(image_size=100)


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    model = Clip(ClipConfig(image=CONV, text=BERT, dim=4)).eval()
    save_checkpoint(model, tmp_path)
    again = load_checkpoint(tmp_path)
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.encode_image(pixels), again.encode_image(pixels))
    assert torch.equal(model.encode_text(IDS), again.encode_text(IDS))


def test_a_truncated_checkpoint_gets_one_clear_sentence(tmp_path):
    save_checkpoint(Clip(ClipConfig(image=CONV, text=BERT, dim=4)), tmp_path)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointMismatch, match="not a whole safetensors file"):
        load_checkpoint(tmp_path)


def test_weights_of_another_shape_are_named(tmp_path):
    save_checkpoint(Clip(ClipConfig(image=CONV, text=BERT, dim=4)), tmp_path)
    ClipConfig(image=CONV, text=BERT, dim=5).write(tmp_path / "config.json")
    with pytest.raises(CheckpointMismatch, match=r"image_projection.weight is \(4, 24\), wanted"):
        load_checkpoint(tmp_path)


def test_shapes_in_annotations_are_executed():
    tower = build_tower(CONV)
    with pytest.raises(Exception, match="pixels"):
        tower(torch.zeros(2, 1, 32, 32))  # one colour channel
    with pytest.raises(Exception, match="similarity"):
        from twinlens.evaluate.retrieval import retrieval_scores

        retrieval_scores(np.zeros(3), [0, 1, 2])
