"""The vision transformer tower, with CLIP's class token and two outer layer norms.

Gives pooled features of `config.width`; the projection to the shared space is
clip.py's. Source: Dosovitskiy et al. 2021, arXiv:2010.11929; CLIP's changes
(no patch bias, a layer norm before the blocks): Radford et al. 2021, section 2.4.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from twinlens.config import VitConfig
from twinlens.model.attention import Block, init_transformer


class VitTower(nn.Module):
    """Pixels to one feature vector per image."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config = config
        self.patch = nn.Conv2d(
            3, config.width, config.patch_size, stride=config.patch_size, bias=False
        )
        std = config.width**-0.5
        self.class_token = nn.Parameter(std * torch.randn(config.width))
        self.position = nn.Parameter(std * torch.randn(config.num_patches + 1, config.width))
        self.pre_norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.blocks = nn.ModuleList(Block(config, pre_norm=True) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        init_transformer(self.blocks, config)

    def forward(
        self, pixels: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channel"]:
        """`pixels` are normalised; height and width are `config.image_size`."""
        x = self.patch(pixels).flatten(2).transpose(1, 2)  # (batch, patch, channel)
        class_token = self.class_token.expand(x.shape[0], 1, -1)
        x = torch.cat([class_token, x], dim=1) + self.position  # (batch, token, channel)
        x = self.pre_norm(x)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.final_norm(x[:, 0])
        return out
