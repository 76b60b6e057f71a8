"""FastViT as MobileCLIP has it (MCi0 to MCi4), in the form it runs in.

Convolutions to the end but for attention in the last stage or two. In training each one is
several branches with batch norms; summed and folded they are one convolution with a bias, and
that is all this tower has: convert_timm.py folds the published weights. Gives pooled features;
the projection to the shared space is clip.py's.
Sources: Vasu et al. 2023, arXiv:2303.14189, figure 2; Vasu et al. 2024, arXiv:2311.17049,
section 4.2; five stages: Faghri et al. 2025, arXiv:2508.20691.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from twinlens.config import FastVitConfig
from twinlens.model.attention import Attention

WIDE_FILTER = 7  # side of the filters before perceptrons, between stages and for positions
ATTENTION_NORM_EPS = 1e-5


def _conv(channels_in: int, channels_out: int, side: int, *, stride: int = 1) -> nn.Conv2d:
    """Every channel filtered by itself; one channel in may become several out."""
    return nn.Conv2d(
        channels_in, channels_out, side, stride=stride, padding=side // 2, groups=channels_in
    )


class ChannelGate(nn.Module):
    """Squeeze and excite: the picture's mean says how much of each channel passes.

    Source: Hu et al. 2018, arXiv:1709.01507, figure 2.
    """

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(width, inner)
        self.excite = nn.Linear(inner, width)

    def forward(
        self, x: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channel height width"]:
        inner = self.squeeze(x.mean(dim=(2, 3))).relu()
        gate: Tensor = self.excite(inner).sigmoid()  # (batch, channel)
        return x * gate[:, :, None, None]


class Perceptron(nn.Module):
    """A wide filter, then two layers per place."""

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        self.filter = _conv(width, width, WIDE_FILTER)
        self.widen = nn.Conv2d(width, expansion * width, 1)
        self.activation = nn.GELU()
        self.narrow = nn.Conv2d(expansion * width, width, 1)

    def forward(
        self, x: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channel height width"]:
        return self.narrow(self.activation(self.widen(self.filter(x))))  # type: ignore[no-any-return]


class FilterBlock(nn.Module):
    """Mix places with one small filter per channel, whose residual path is folded into it."""

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        self.mix = _conv(width, width, 3)
        self.mlp = Perceptron(width, expansion)

    def forward(
        self, x: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channel height width"]:
        x = self.mix(x)
        return x + self.mlp(x)  # type: ignore[no-any-return]


class AttentionBlock(nn.Module):
    """Mix places by attention."""

    def __init__(self, width: int, expansion: int, *, heads: int, norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=ATTENTION_NORM_EPS) if norm else nn.Identity()
        self.attention = Attention(width, heads)
        self.mlp = Perceptron(width, expansion)

    def forward(
        self, x: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channel height width"]:
        places = self.norm(x.flatten(2).transpose(1, 2))  # (batch, place, channel)
        x = x + self.attention(places).transpose(1, 2).reshape(x.shape)
        return x + self.mlp(x)  # type: ignore[no-any-return]


class Downsample(nn.Module):
    """Halve the sides and widen: what leads from one stage to the next."""

    def __init__(self, width_in: int, width_out: int, *, gated: bool) -> None:
        super().__init__()
        self.filter = _conv(width_in, width_out, WIDE_FILTER, stride=2)
        # A quarter of the channels, to the nearest multiple of 8 (timm, make_divisible).
        inner = max(8, (width_out // 4 + 4) // 8 * 8)
        self.gate = ChannelGate(width_out, inner) if gated else nn.Identity()
        self.activation = nn.GELU()
        self.mix = nn.Conv2d(width_out, width_out, 1)

    def forward(
        self, x: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channel_out height_out width_out"]:
        x = self.activation(self.gate(self.filter(x)))
        return self.activation(self.mix(x))  # type: ignore[no-any-return]


class Stage(nn.Module):
    """Blocks of one width, with what comes before them."""

    def __init__(self, config: FastVitConfig, number: int) -> None:
        super().__init__()
        width, last = config.widths[number], len(config.widths)
        attends = number >= last - config.attention_stages
        self.downsample = (
            Downsample(
                config.widths[number - 1], width, gated=number >= last - config.gated_downsamples
            )
            if number > 0
            else nn.Identity()
        )
        # Attention does not know places; a filter over the zeros beyond the edges does.
        self.position = _conv(width, width, WIDE_FILTER) if attends else nn.Identity()
        self.blocks = nn.Sequential(
            *(
                AttentionBlock(
                    width,
                    config.expansion,
                    heads=width // config.head_width,
                    norm=config.attention_norm,
                )
                if attends
                else FilterBlock(width, config.expansion)
                for _ in range(config.layers[number])
            )
        )

    def forward(
        self, x: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channel_out height_out width_out"]:
        return self.blocks(self.position(self.downsample(x)))  # type: ignore[no-any-return]


class FastVitTower(nn.Module):
    """Pixels to one feature vector per image: the mean over the last feature map."""

    def __init__(self, config: FastVitConfig) -> None:
        super().__init__()
        self.config = config
        first, last = config.widths[0], config.widths[-1]
        self.stem = nn.Sequential(
            nn.Conv2d(3, first, 3, stride=2, padding=1),
            nn.GELU(),
            _conv(first, first, 3, stride=2),
            nn.GELU(),
            nn.Conv2d(first, first, 1),
            nn.GELU(),
        )
        self.stages = nn.ModuleList(Stage(config, number) for number in range(len(config.widths)))
        self.head = _conv(last, config.width, 3)
        self.head_gate = ChannelGate(config.width, max(1, (config.width + 8) // 16))
        self.activation = nn.GELU()

    def forward(
        self, pixels: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channel"]:
        """`pixels` are as preprocessed; any height and width will do."""
        x = self.stem(pixels)
        for stage in self.stages:
            x = stage(x)
        x = self.activation(self.head_gate(self.head(x)))
        return torch.mean(x, dim=(2, 3))
