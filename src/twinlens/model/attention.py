"""The attention block, once, for every transformer tower.

Pre-norm (CLIP, ViT) and post-norm (BERT) differ only in where the two layer norms
stand. Masks are made by the towers. Attention is written out, not called as a fused
kernel, because ONNX Runtime's optimiser recognises this shape and fuses it itself.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from twinlens.config import Activation, TransformerConfig


class QuickGelu(nn.Module):
    """x * sigmoid(1.702 x): what OpenAI's weights were trained with (CLIP, model.py)."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return x * torch.sigmoid(1.702 * x)


def make_activation(name: Activation) -> nn.Module:
    """The non-linearity of that name; which one is right belongs to the weights."""
    match name:
        case "gelu":
            return nn.GELU()
        case "gelu_tanh":
            return nn.GELU(approximate="tanh")
        case "quick_gelu":
            return QuickGelu()


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, arXiv:1706.03762, section 3.2).

    Without `output` the heads are left as they are, side by side: a pooling tower whose
    output layer is the projection to the shared space.
    """

    def __init__(self, width: int, heads: int, *, output: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width) if output else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "batch token width"],
        mask: Bool[Tensor, "#batch #head #query token"] | None = None,
        *,
        queries: Float[Tensor, "batch query width"] | None = None,
    ) -> Float[Tensor, "batch query width"]:
        """`mask` is True where a query may look; without `queries`, `x` asks itself."""
        asking = x if queries is None else queries
        batch, _, width = asking.shape
        head_dim = width // self.heads
        q, k, v = (
            linear(tokens).view(batch, -1, self.heads, head_dim).transpose(1, 2)
            for linear, tokens in ((self.query, asking), (self.key, x), (self.value, x))
        )  # each (batch, head, token, head_dim)
        scores = q @ k.transpose(-1, -2) * head_dim**-0.5  # (batch, head, query, token)
        if mask is not None:
            # The lowest finite number, not -inf: a fully masked row must not become NaN.
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        mixed = scores.softmax(dim=-1) @ v  # (batch, head, query, head_dim)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, -1, width))
        return out


class Block(nn.Module):
    """Attention, then a two-layer perceptron, each with a residual path."""

    def __init__(self, config: TransformerConfig, *, pre_norm: bool) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.attention = Attention(config.width, config.heads)
        self.attention_norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, config.mlp_width),
            make_activation(config.activation),
            nn.Linear(config.mlp_width, config.width),
        )
        self.mlp_norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)

    def forward(
        self,
        x: Float[Tensor, "batch token width"],
        mask: Bool[Tensor, "#batch #head #query token"] | None = None,
    ) -> Float[Tensor, "batch token width"]:
        if self.pre_norm:
            x = x + self.attention(self.attention_norm(x), mask)
            x = x + self.mlp(self.mlp_norm(x))
        else:
            x = self.attention_norm(x + self.attention(x, mask))
            x = self.mlp_norm(x + self.mlp(x))
        return x


def init_transformer(blocks: nn.ModuleList, config: TransformerConfig) -> None:
    """OpenAI CLIP's initial weights for a stack of blocks (CLIP, initialize_parameters)."""
    attention_std = config.width**-0.5
    out_std = attention_std * (2 * config.layers) ** -0.5
    for block in blocks:
        assert isinstance(block, Block)
        for linear in (block.attention.query, block.attention.key, block.attention.value):
            nn.init.normal_(linear.weight, std=attention_std)
            nn.init.zeros_(linear.bias)
        out = block.attention.out
        assert isinstance(out, nn.Linear)
        nn.init.normal_(out.weight, std=out_std)
        nn.init.zeros_(out.bias)
        first, _, second = block.mlp
        assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
        nn.init.normal_(first.weight, std=(2 * config.width) ** -0.5)
        nn.init.zeros_(first.bias)
        nn.init.normal_(second.weight, std=out_std)
        nn.init.zeros_(second.bias)
