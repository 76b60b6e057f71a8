"""ConvNeXt: a ResNet rebuilt after the vision transformer, from convolutions alone.

Patches of 4 pixels, four stages that halve the sides, and in each block one wide filter
per channel and a two-layer perceptron per place. Gives pooled, normalised features of the
last stage's width; the projection to the shared space is clip.py's. Weights: convert_timm.py.
Source: Liu et al. 2022, arXiv:2201.03545, figure 4 and table 9; the scale of each block's
branch: Touvron et al. 2021, arXiv:2103.17239, section 2.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from twinlens.config import ConvNextConfig

STEM_PATCH = 4  # pixels
FILTER = 7  # side of a block's filter
EXPANSION = 4  # channels inside the perceptron, over those outside
LAYER_SCALE_INIT = 1e-6  # a fresh block is nearly the identity


def norm_channels(
    norm: nn.LayerNorm, x: Float[Tensor, "batch channel height width"]
) -> Float[Tensor, "batch channel height width"]:
    """Layer norm over the channels of each place."""
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class ConvNextBlock(nn.Module):
    """Filter each channel by itself, then mix the channels of each place."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.filter = nn.Conv2d(width, width, FILTER, padding=FILTER // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.mlp = nn.Sequential(
            nn.Linear(width, EXPANSION * width), nn.GELU(), nn.Linear(EXPANSION * width, width)
        )
        self.layer_scale = nn.Parameter(torch.full((width,), LAYER_SCALE_INIT))

    def forward(
        self, x: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channel height width"]:
        places = self.filter(x).permute(0, 2, 3, 1)  # (batch, height, width, channel)
        branch: Tensor = self.mlp(self.norm(places)) * self.layer_scale
        return x + branch.permute(0, 3, 1, 2)


class Downsample(nn.Module):
    """Normalise, then halve the sides: what leads from one stage to the next."""

    def __init__(self, width_in: int, width_out: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width_in, eps=eps)
        self.conv = nn.Conv2d(width_in, width_out, 2, stride=2)

    def forward(
        self, x: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channel_out height_out width_out"]:
        return self.conv(norm_channels(self.norm, x))  # type: ignore[no-any-return]


class ConvNextTower(nn.Module):
    """Pixels to one feature vector per image: the normalised mean over the last feature map."""

    def __init__(self, config: ConvNextConfig) -> None:
        super().__init__()
        self.config = config
        eps = config.layer_norm_eps
        self.stem = nn.Conv2d(3, config.widths[0], STEM_PATCH, stride=STEM_PATCH)
        self.stem_norm = nn.LayerNorm(config.widths[0], eps=eps)
        self.downsamples = nn.ModuleList(
            Downsample(config.widths[stage], config.widths[stage + 1], eps) for stage in range(3)
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(ConvNextBlock(width, eps) for _ in range(blocks)))
            for width, blocks in zip(config.widths, config.layers, strict=True)
        )
        self.final_norm = nn.LayerNorm(config.width, eps=eps)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                # As in the paper's appendix A.1.
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self, pixels: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channel"]:
        """`pixels` are normalised. Any height and width from 32 on; what does not fill a patch
        at the right and bottom, or a pair of places in a later stage, is not seen."""
        x = norm_channels(self.stem_norm, self.stem(pixels))
        for number, stage in enumerate(self.stages):
            x = stage(x if number == 0 else self.downsamples[number - 1](x))
        return self.final_norm(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]
