"""The attention block, once, for every transformer tower.

Pre-norm (CLIP, ViT) and post-norm (BERT) differ only in where the two layer norms
stand. Masks are made by the towers. In eval mode attention is written out, because ONNX
Runtime's optimiser recognises this shape and fuses it itself; in training mode PyTorch's
fused kernel computes the same without keeping the scores.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu
from torch.utils.checkpoint import checkpoint

from twinlens.config import Activation, TransformerConfig


class QuickGelu(nn.Module):
    """x * sigmoid(1.702 x): what OpenAI's weights were trained with (CLIP, model.py)."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        if self.training:
            # The same number by one kernel, forward and backward: silu(y) = y * sigmoid(y).
            return silu(1.702 * x) * (1 / 1.702)
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
        if self.training:
            mixed = scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            scores = q @ k.transpose(-1, -2) * head_dim**-0.5  # (batch, head, query, token)
            if mask is not None:
                # The lowest finite number, not -inf: a fully masked row must not become NaN.
                scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
            mixed = scores.softmax(dim=-1) @ v  # (batch, head, query, head_dim)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, -1, width))
        return out


class Block(nn.Module):
    """Attention, then a two-layer perceptron, each with a residual path.

    `recompute` forgets what is inside during training and computes it again for the
    gradients (Chen et al. 2016, arXiv:1604.06174): less memory, a third more time.
    """

    def __init__(self, config: TransformerConfig, *, pre_norm: bool) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.recompute = False
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
        *,
        at: Int64[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch kept width"]:
        """Every token's feature, or that of one token per row alone: the one at position `at`.

        A tower that pools there needs no other from its last block.
        """
        if self.recompute and self.training and torch.is_grad_enabled():
            out: Tensor = checkpoint(self._forward, x, mask, at, use_reentrant=False)
            return out
        return self._forward(x, mask, at)

    def _forward(self, x: Tensor, mask: Tensor | None, at: Tensor | None) -> Tensor:
        queries = None
        if self.pre_norm:
            seen = self.attention_norm(x)
            if at is not None:
                rows = torch.arange(x.shape[0], device=x.device)
                x, queries = x[rows, at][:, None], seen[rows, at][:, None]
                if mask is not None:
                    mask = mask[0, 0, at][:, None, None]  # (batch, head, query, token)
            x = x + self.attention(seen, mask, queries=queries)
            return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]
        assert at is None  # only pre-norm towers pool at one token while training
        x = self.attention_norm(x + self.attention(x, mask))
        return self.mlp_norm(x + self.mlp(x))  # type: ignore[no-any-return]


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
