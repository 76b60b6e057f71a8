"""Joins any image tower and any text tower in one space of `dim` numbers.

Knows no tower's insides: `build_tower` picks the class for a config, each tower
gives features of its own width, and a projection per side brings them to `dim`.
Losses and the limit on the scale are the training loop's.
Source: Radford et al. 2021, arXiv:2103.00020, figure 3.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from twinlens.config import (
    BertTextConfig,
    ClipConfig,
    ClipTextConfig,
    ConvNextConfig,
    EfficientNetLiteConfig,
    FastVitConfig,
    Projection,
    ResNetConfig,
    VitConfig,
)
from twinlens.errors import ConfigError
from twinlens.model.image_conv import EfficientNetLiteTower
from twinlens.model.image_convnext import ConvNextTower
from twinlens.model.image_fastvit import FastVitTower
from twinlens.model.image_resnet import ResNetTower
from twinlens.model.image_vit import VitTower
from twinlens.model.text_bert import BertTextTower
from twinlens.model.text_clip import ClipTextTower


def build_tower(
    config: VitConfig
    | ResNetConfig
    | ConvNextConfig
    | EfficientNetLiteConfig
    | FastVitConfig
    | ClipTextConfig
    | BertTextConfig,
) -> nn.Module:
    """A tower with fresh random weights."""
    match config:
        case VitConfig():
            return VitTower(config)
        case ResNetConfig():
            return ResNetTower(config)
        case ConvNextConfig():
            return ConvNextTower(config)
        case FastVitConfig():
            return FastVitTower(config)
        case EfficientNetLiteConfig():
            return EfficientNetLiteTower(config)
        case ClipTextConfig():
            return ClipTextTower(config)
        case BertTextConfig():
            return BertTextTower(config)


def build_projection(kind: Projection, width: int, dim: int) -> nn.Module:
    """From a tower's feature to an embedding, with fresh random weights."""
    match kind:
        case "none":
            return nn.Identity()
        case "mlp":
            inner = (width + dim) // 2
            return nn.Sequential(
                nn.Linear(width, inner, bias=False), nn.GELU(), nn.Linear(inner, dim, bias=False)
            )
        case "mlp_wide":
            return nn.Sequential(
                nn.Linear(width, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim, bias=False)
            )
        case "linear" | "linear_bias":
            linear = nn.Linear(width, dim, bias=kind == "linear_bias")
            nn.init.normal_(linear.weight, std=width**-0.5)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
            return linear


class Clip(nn.Module):
    """Two towers, two projections, a scale and perhaps a bias."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        self.image_tower = build_tower(config.image)
        self.text_tower = build_tower(config.text)
        self.image_projection = build_projection(
            config.image_projection, config.image.width, config.dim
        )
        self.text_projection = build_projection(
            config.text_projection, config.text.width, config.dim
        )
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

    def text_hidden_states(
        self,
        token_ids: Int64[Tensor, "batch token"],
        *,
        layer: Literal["last", "penultimate"] = "last",
        final_norm: bool = True,
    ) -> Float[Tensor, "batch token channel"]:
        """Every token's feature, as text-to-image models are conditioned on.

        Stable Diffusion 1 takes the last layer, Stable Diffusion 2 the penultimate one
        through the final norm, SDXL the penultimate one without it (`final_norm=False`).

        Raises ConfigError for a text tower that is not CLIP's or SigLIP's.
        """
        if not isinstance(self.text_tower, ClipTextTower):
            raise ConfigError(
                f"Hidden states are for CLIP's and SigLIP's text towers; this one is "
                f"{self.config.text.kind!r}."
            )
        return self.text_tower.hidden_states(token_ids, layer=layer, final_norm=final_norm)

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
