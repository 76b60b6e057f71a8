"""The vision transformer tower of CLIP, SigLIP and CLIPA, which differ in how they pool.

Gives pooled features of `config.width`; the projection to the shared space is
clip.py's. Sources: Dosovitskiy et al. 2021, arXiv:2010.11929; CLIP's changes (no patch
bias, a layer norm before the blocks): Radford et al. 2021, section 2.4; pooling by a
learned query: Zhai et al. 2022, arXiv:2106.04560, appendix.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from twinlens.config import VitConfig
from twinlens.model.attention import Attention, Block, init_transformer, make_activation


class QueryPool(nn.Module):
    """One learned query attends to all patches ("map": multi-head attention pooling)."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.query = nn.Parameter(config.width**-0.5 * torch.randn(config.width))
        self.attention = Attention(config.width, config.heads)
        self.mlp_norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, config.mlp_width),
            make_activation(config.activation),
            nn.Linear(config.mlp_width, config.width),
        )

    def forward(
        self, patches: Float[Tensor, "batch patch channel"]
    ) -> Float[Tensor, "batch channel"]:
        queries = self.query.expand(patches.shape[0], 1, -1)
        x = self.attention(patches, queries=queries)[:, 0]  # (batch, channel)
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]


def make_patches(config: VitConfig) -> nn.Module:
    """From pixels to patches, which do not overlap: one matrix, or three with GELU between."""
    width, side = config.width, config.patch_size
    if not config.convolution_stem:
        return nn.Conv2d(3, width, side, stride=side, bias=config.patch_bias)
    return nn.Sequential(
        nn.Conv2d(3, width // 4, side // 4, stride=side // 4),
        nn.GELU(),
        nn.Conv2d(width // 4, width // 4, 2, stride=2),
        nn.GELU(),
        nn.Conv2d(width // 4, width, 2, stride=2),
    )


class VitTower(nn.Module):
    """Pixels to one feature vector per image.

    `patch_dropout` is the share of patches that training leaves out, others for each
    picture (Li et al. 2023, arXiv:2212.00794); the class token always stays.
    """

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_dropout = 0.0
        self.patch = make_patches(config)
        std = config.width**-0.5
        tokens = config.grid**2
        self.class_token = None
        if config.has_class_token:
            self.class_token = nn.Parameter(std * torch.randn(config.width))
            tokens += 1
        self.position = nn.Parameter(std * torch.randn(tokens, config.width))
        self.input_norm = (
            nn.LayerNorm(config.width, eps=config.layer_norm_eps)
            if config.input_norm
            else nn.Identity()
        )
        self.blocks = nn.ModuleList(Block(config, pre_norm=True) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.query_pool = QueryPool(config) if config.pool == "map" else None
        init_transformer(self.blocks, config)

    def forward(
        self, pixels: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channel"]:
        """`pixels` are normalised; height and width are `config.image_size`."""
        if self.training and self.config.pool == "class" and len(self.blocks) > 0:
            x = self._embed(pixels)
            for block in self.blocks[:-1]:
                x = block(x)
            first = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
            return self.pool(self.blocks[-1](x, at=first))
        return self.pool(self.tokens(pixels))

    def tokens(
        self, pixels: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch token channel"]:
        """What the last block gives, before the final norm."""
        x = self._embed(pixels)
        for block in self.blocks:
            x = block(x)
        return x

    def _embed(self, pixels: Tensor) -> Tensor:
        x = self.patch(pixels).flatten(2).transpose(1, 2)  # (batch, patch, channel)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(x.shape[0], 1, -1), x], dim=1)
        x = x + self.position
        if self.training and self.patch_dropout > 0:
            x = self._some_patches(x)
        return self.input_norm(x)  # type: ignore[no-any-return]

    def _some_patches(self, x: Tensor) -> Tensor:
        before = 0 if self.class_token is None else 1
        batch, patches = x.shape[0], x.shape[1] - before
        kept = max(1, round(patches * (1 - self.patch_dropout)))
        order = torch.rand(batch, patches, device=x.device).argsort(dim=1)[:, :kept] + before
        rows = torch.arange(batch, device=x.device)[:, None]
        return torch.cat([x[:, :before], x[rows, order]], dim=1)

    def pool(self, tokens: Float[Tensor, "batch token channel"]) -> Float[Tensor, "batch channel"]:
        """One feature per image from the last block's tokens."""
        if self.query_pool is not None:
            return self.query_pool(self.final_norm(tokens))  # type: ignore[no-any-return]
        if self.config.pool == "class":
            return self.final_norm(tokens[:, 0])  # type: ignore[no-any-return]
        patches = tokens[:, 1:]
        if self.config.norm_after_pool:
            return self.final_norm(patches.mean(dim=1))  # type: ignore[no-any-return]
        return self.final_norm(patches).mean(dim=1)  # type: ignore[no-any-return]
