"""Position embeddings for another image size than the one they were trained at.

The grid of patches is resized like a small picture; tokens that are not patches stay.
Source: OpenCLIP's resize_pos_embed (bicubic, antialiased).
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from twinlens.config import ClipConfig, ResNetConfig, VitConfig
from twinlens.errors import ConfigError


def resize_positions(
    position: Float[Tensor, "token channel"], grid: int, *, extra: int
) -> Float[Tensor, "new_token channel"]:
    """For `grid` x `grid` patches; the first `extra` tokens are no patches."""
    first, patches = position[:extra], position[extra:]
    old = round(len(patches) ** 0.5)
    square = patches.reshape(1, old, old, -1).permute(0, 3, 1, 2)  # (1, channel, old, old)
    resized = torch.nn.functional.interpolate(
        square.float(), size=(grid, grid), mode="bicubic", antialias=True, align_corners=False
    )
    patches = resized.permute(0, 2, 3, 1).flatten(0, 2).to(position.dtype)
    return torch.cat([first, patches])


def resize_image_positions(
    config: ClipConfig, tensors: dict[str, Tensor], image_size: int
) -> tuple[ClipConfig, dict[str, Tensor]]:
    """The same model for pictures of another size, in pixels; as many patches, the same tensors.

    Raises ConfigError for a size that the tower cannot take.
    """
    image = config.image
    match image:
        case VitConfig():
            name, extra = "image_tower.position", int(image.has_class_token)
        case ResNetConfig():
            name, extra = "image_tower.pool.position", 1
        case _:
            raise ConfigError(f"A {image.kind!r} tower has no positions to interpolate.")
    resized = replace(image, image_size=image_size)
    if resized.grid == image.grid:
        return replace(config, image=resized), tensors
    position = resize_positions(tensors[name], resized.grid, extra=extra)
    return replace(config, image=resized), {**tensors, name: position}
