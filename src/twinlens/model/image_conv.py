"""The small convolutional tower: EfficientNet-Lite's body; Lite0 is 3.4M parameters, 0.4 GFLOP.

Lite drops squeeze-and-excitation and swish for ReLU6, which int8 loves. Padding is
TensorFlow's SAME (more on the right and bottom at stride 2) because the public
weights were trained with it: symmetric padding shifts every feature map.
Source: Tan and Le 2019, arXiv:1905.11946, table 1; Lite: tensorflow/tpu, efficientnet/lite.
"""

import math

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from twinlens.config import EfficientNetLiteConfig

# kernel, stride of the first block, expansion, channels out, blocks: before scaling
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
BATCH_NORM_EPS = 1e-3


def scaled_channels(channels: int, multiplier: float) -> int:
    """Channels times `multiplier`, to the nearest multiple of 8, never 10% less than asked."""
    wanted = channels * multiplier
    nearest = max(8, int(wanted + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * wanted else nearest + 8


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, and ReLU6 unless `linear`."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        linear: bool = False,
    ) -> None:
        super().__init__()
        # For sides that the stride divides, SAME pads kernel - stride in all.
        total = kernel - stride
        symmetric = total % 2 == 0
        self.extra = None if symmetric else (total // 2, total - total // 2) * 2
        self.conv = nn.Conv2d(
            channels_in,
            channels_out,
            kernel,
            stride=stride,
            padding=total // 2 if symmetric else 0,
            groups=groups,
            bias=False,
        )
        self.norm = nn.BatchNorm2d(channels_out, eps=BATCH_NORM_EPS, momentum=0.01)
        self.linear = linear

    def forward(
        self, x: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channel_out height_out width_out"]:
        if self.extra is not None:
            x = functional.pad(x, self.extra)
        x = self.norm(self.conv(x))
        return x if self.linear else functional.relu6(x)


class InvertedResidual(nn.Module):
    """Widen, filter each channel by itself, narrow (Sandler et al. 2018, arXiv:1801.04381)."""

    def __init__(
        self, channels_in: int, channels_out: int, *, kernel: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        inner = channels_in * expansion
        self.expand = nn.Identity() if expansion == 1 else ConvNorm(channels_in, inner)
        self.depthwise = ConvNorm(inner, inner, kernel, stride=stride, groups=inner)
        self.project = ConvNorm(inner, channels_out, linear=True)
        self.residual = stride == 1 and channels_in == channels_out

    def forward(
        self, x: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channel_out height_out width_out"]:
        out: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + out if self.residual else out


class EfficientNetLiteTower(nn.Module):
    """Pixels to one feature vector per image: the mean over the last feature map."""

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = ConvNorm(3, config.stem_width, 3, stride=2)
        blocks: list[nn.Module] = []
        channels = config.stem_width
        for stage, (kernel, stride, expansion, unscaled, repeats) in enumerate(STAGES):
            channels_out = scaled_channels(unscaled, config.width_multiplier)
            # Lite keeps stem, head and the first and last stage's depth as they are.
            if 0 < stage < len(STAGES) - 1:
                repeats = math.ceil(repeats * config.depth_multiplier)
            for repeat in range(repeats):
                blocks.append(
                    InvertedResidual(
                        channels,
                        channels_out,
                        kernel=kernel,
                        stride=stride if repeat == 0 else 1,
                        expansion=expansion,
                    )
                )
                channels = channels_out
        self.blocks = nn.ModuleList(blocks)
        self.head = ConvNorm(channels, config.head_width)

    def forward(
        self, pixels: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channel"]:
        """`pixels` are normalised; height and width are `config.image_size`."""
        return self.from_block(self.to_block(pixels, len(self.blocks)), len(self.blocks))

    def to_block(
        self, pixels: Float[Tensor, "batch 3 height width"], block: int
    ) -> Float[Tensor, "batch channel height_out width_out"]:
        """The feature map that goes into block number `block`: what a locked part gives."""
        x = self.stem(pixels)
        for module in self.blocks[:block]:
            x = module(x)
        return x  # type: ignore[no-any-return]

    def from_block(
        self, x: Float[Tensor, "batch channel height_in width_in"], block: int
    ) -> Float[Tensor, "batch channel_out"]:
        """The rest of the tower from block number `block` on."""
        for module in self.blocks[block:]:
            x = module(x)
        return self.head(x).mean(dim=(2, 3))  # type: ignore[no-any-return]
