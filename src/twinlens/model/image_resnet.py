"""CLIP's modified ResNet: three convolutions at the stem, blurred strides, attention pooling.

Every stride is an average pool, so that nothing is skipped between pixels. The pool's
output layer is the projection to the shared space, and so clip.py's: this tower gives
the pool's heads side by side. Source: Radford et al. 2021, section 2.4; the strides:
Zhang 2019, arXiv:1904.11486; the stem: He et al. 2019, arXiv:1812.01187, figure 2.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from twinlens.config import ResNetConfig
from twinlens.model.attention import Attention

EXPANSION = 4  # channels out of a block, over those inside it


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, and ReLU unless `linear`."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        linear: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            channels_in, channels_out, kernel, stride=stride, padding=kernel // 2, bias=False
        )
        self.norm = nn.BatchNorm2d(channels_out)
        self.linear = linear

    def forward(
        self, x: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channel_out height_out width_out"]:
        x = self.norm(self.conv(x))
        return x if self.linear else functional.relu(x)


class Bottleneck(nn.Module):
    """Narrow, filter, widen; the residual path is pooled and widened alike."""

    def __init__(self, channels_in: int, inner: int, *, stride: int) -> None:
        super().__init__()
        channels_out = inner * EXPANSION
        self.narrow = ConvNorm(channels_in, inner)
        self.filter = ConvNorm(inner, inner, 3)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.widen = ConvNorm(inner, channels_out, linear=True)
        self.shortcut = (
            ConvNorm(channels_in, channels_out, linear=True)
            if stride > 1 or channels_in != channels_out
            else None
        )

    def forward(
        self, x: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channel_out height_out width_out"]:
        out = self.widen(self.pool(self.filter(self.narrow(x))))
        if self.shortcut is not None:
            x = self.shortcut(self.pool(x))
        return functional.relu(out + x)


class MeanQueryPool(nn.Module):
    """The mean of all places asks the places and itself for the picture's feature."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        std = config.width**-0.5
        self.position = nn.Parameter(std * torch.randn(config.grid**2 + 1, config.width))
        self.attention = Attention(config.width, config.heads, output=False)

    def forward(
        self, x: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channel"]:
        places = x.flatten(2).transpose(1, 2)  # (batch, place, channel)
        places = torch.cat([places.mean(dim=1, keepdim=True), places], dim=1) + self.position
        return self.attention(places, queries=places[:, :1])[:, 0]  # type: ignore[no-any-return]


class ResNetTower(nn.Module):
    """Pixels to one feature vector per image."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        width = config.stem_width
        self.stem = nn.Sequential(
            ConvNorm(3, width // 2, 3, stride=2),
            ConvNorm(width // 2, width // 2, 3),
            ConvNorm(width // 2, width, 3),
            nn.AvgPool2d(2),
        )
        stages: list[nn.Module] = []
        channels = width
        for stage, blocks in enumerate(config.layers):
            inner = width * 2**stage
            modules = []
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                modules.append(Bottleneck(channels, inner, stride=stride))
                channels = inner * EXPANSION
            stages.append(nn.Sequential(*modules))
        self.stages = nn.ModuleList(stages)
        self.pool = MeanQueryPool(config)

    def forward(
        self, pixels: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channel"]:
        """`pixels` are normalised; height and width are `config.image_size`."""
        x = self.stem(pixels)
        for stage in self.stages:
            x = stage(x)
        return self.pool(x)  # type: ignore[no-any-return]
