"""Joins any image tower and any text tower in one space of `dim` numbers.

Knows no tower's insides: `build_tower` picks the class for a config, each tower
gives features of its own width, and one linear projection per side brings them to
`dim`. Losses and the limit on the scale are the training loop's.
Source: Radford et al. 2021, arXiv:2103.00020, figure 3.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from twinlens.config import (
    BertTextConfig,
    ClipConfig,
    ClipTextConfig,
    EfficientNetLiteConfig,
    VitConfig,
)
from twinlens.model.image_conv import EfficientNetLiteTower
from twinlens.model.image_vit import VitTower
from twinlens.model.text_bert import BertTextTower
from twinlens.model.text_clip import ClipTextTower


def build_tower(
    config: VitConfig | EfficientNetLiteConfig | ClipTextConfig | BertTextConfig,
) -> nn.Module:
    """A tower with fresh random weights."""
    match config:
        case VitConfig():
            return VitTower(config)
        case EfficientNetLiteConfig():
            return EfficientNetLiteTower(config)
        case ClipTextConfig():
            return ClipTextTower(config)
        case BertTextConfig():
            return BertTextTower(config)


class Clip(nn.Module):
    """Two towers, two projections, a scale and perhaps a bias."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        self.image_tower = build_tower(config.image)
        self.text_tower = build_tower(config.text)
        has_bias = config.projection_bias
        self.image_projection = nn.Linear(config.image.width, config.dim, bias=has_bias)
        self.text_projection = nn.Linear(config.text.width, config.dim, bias=has_bias)
        for projection in (self.image_projection, self.text_projection):
            nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)
        self.log_scale = nn.Parameter(torch.tensor(config.log_scale_init))
        bias = config.bias_init
        self.bias = None if bias is None else nn.Parameter(torch.tensor(bias))

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        """What cosines are multiplied by before the loss: exp(log_scale)."""
        return self.log_scale.exp()

    @property
    def logit_bias(self) -> Float[Tensor, ""] | None:
        """What is added to the logits, or None (SigLIP has one, CLIP has not)."""
        return self.bias

    def encode_image(
        self, pixel_values: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch dim"]:
        """Image embeddings, not normalised."""
        out: Tensor = self.image_projection(self.image_tower(pixel_values))
        return out

    def encode_text(self, token_ids: Int64[Tensor, "batch token"]) -> Float[Tensor, "batch dim"]:
        """Text embeddings, not normalised."""
        out: Tensor = self.text_projection(self.text_tower(token_ids))
        return out

    def forward(
        self,
        pixel_values: Float[Tensor, "image 3 height width"],
        token_ids: Int64[Tensor, "text token"],
    ) -> Float[Tensor, "image text"]:
        """Logits of every image with every text: scale * cosine (+ bias)."""
        image = nn.functional.normalize(self.encode_image(pixel_values), dim=-1)
        text = nn.functional.normalize(self.encode_text(token_ids), dim=-1)
        logits = self.logit_scale * image @ text.T
        return logits if self.bias is None else logits + self.bias
