"""Foreign weights fit our towers and compute what their own code computed."""

import pytest
import torch

from twinlens.config import BertTextConfig, EfficientNetLiteConfig
from twinlens.errors import CheckpointMismatch
from twinlens.model.checkpoint import load_weights
from twinlens.model.clip import build_tower
from twinlens.model.convert import bert_weights, efficientnet_lite_weights

NORM_LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def foreign_efficientnet_names():
    """The names in the published file, from its structure: 16 blocks, the first not widened."""
    names = ["_conv_stem.weight", *(f"_bn0.{leaf}" for leaf in NORM_LEAVES)]
    for block in range(16):
        parts = [("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
        if block > 0:
            parts.insert(0, ("_expand_conv", "_bn0"))
        for conv, norm in parts:
            names.append(f"_blocks.{block}.{conv}.weight")
            names += [f"_blocks.{block}.{norm}.{leaf}" for leaf in NORM_LEAVES]
    names += ["_conv_head.weight", *(f"_bn1.{leaf}" for leaf in NORM_LEAVES)]
    return [*names, "_fc.weight", "_fc.bias"]


def test_every_name_of_the_published_efficientnet_finds_its_place():
    names = foreign_efficientnet_names()
    assert len(names) == 296  # as many as the file holds
    ours = efficientnet_lite_weights({name: torch.zeros(1) for name in names})
    assert ours.keys() == build_tower(EfficientNetLiteConfig()).state_dict().keys()


def test_bert_weights_compute_what_bert_computes():
    torch.manual_seed(0)
    width, heads, context = 8, 2, 5
    foreign = {
        "embeddings.word_embeddings.weight": torch.randn(20, width),
        "embeddings.position_embeddings.weight": torch.randn(9, width),
        "embeddings.token_type_embeddings.weight": torch.randn(2, width),
        "embeddings.LayerNorm.weight": torch.randn(width),
        "embeddings.LayerNorm.bias": torch.randn(width),
        "embeddings.position_ids": torch.arange(9)[None],
    }
    shapes = {
        "attention.self.query": (width, width),
        "attention.self.key": (width, width),
        "attention.self.value": (width, width),
        "attention.output.dense": (width, width),
        "intermediate.dense": (16, width),
        "output.dense": (width, 16),
    }
    prefix = "encoder.layer.0."
    for name, shape in shapes.items():
        foreign[f"{prefix}{name}.weight"] = torch.randn(shape) / 3
        foreign[f"{prefix}{name}.bias"] = torch.randn(shape[0])
    for name in ("attention.output.LayerNorm", "output.LayerNorm"):
        foreign[f"{prefix}{name}.weight"] = torch.randn(width)
        foreign[f"{prefix}{name}.bias"] = torch.randn(width)
    tower = build_tower(
        BertTextConfig(
            width=width, layers=1, heads=heads, mlp_width=16, vocab_size=20, context=context
        )
    ).eval()
    load_weights(tower, bert_weights(foreign, context=context), source="test")

    def linear(name, x):
        return x @ foreign[f"{prefix}{name}.weight"].T + foreign[f"{prefix}{name}.bias"]

    def norm(name, x):
        weight, bias = foreign[f"{name}.weight"], foreign[f"{name}.bias"]
        return torch.nn.functional.layer_norm(x, (width,), weight, bias, eps=1e-12)

    ids = torch.tensor([[3, 7, 11]])
    x = foreign["embeddings.word_embeddings.weight"][ids[0]]
    x = x + foreign["embeddings.position_embeddings.weight"][:3]
    x = norm("embeddings.LayerNorm", x + foreign["embeddings.token_type_embeddings.weight"][0])
    q, k, v = (linear(f"attention.self.{part}", x) for part in ("query", "key", "value"))
    mixed = torch.cat(
        [
            ((q[:, h] @ k[:, h].T) / 2.0).softmax(-1) @ v[:, h]  # head_dim 4: sqrt is 2
            for h in (slice(0, 4), slice(4, 8))
        ],
        dim=1,
    )
    x = norm(f"{prefix}attention.output.LayerNorm", x + linear("attention.output.dense", mixed))
    inner = torch.nn.functional.gelu(linear("intermediate.dense", x))
    x = norm(f"{prefix}output.LayerNorm", x + linear("output.dense", inner))
    with torch.no_grad():
        torch.testing.assert_close(tower(ids)[0], x.mean(0), atol=1e-5, rtol=1e-5)


def test_weights_that_do_not_fit_are_named():
    tower = build_tower(EfficientNetLiteConfig())
    with pytest.raises(CheckpointMismatch, match=r"some.pth does not fit .* unexpected extra"):
        load_weights(tower, {**tower.state_dict(), "extra": torch.zeros(1)}, source="some.pth")
