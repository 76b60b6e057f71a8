"""Low-rank adapters on the linear layers of attention blocks, and back to plain weights.

A locked layer W gains up @ down * alpha / rank, of which only `up` and `down` learn; they
are a few per cent of the weights and are saved apart. Merged, W itself holds the sum and
the model is of the ordinary kind again.
Source: Hu et al. 2022, arXiv:2106.09685, section 4.1.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from twinlens.errors import ConfigError
from twinlens.model.attention import Block
from twinlens.model.clip import Clip
from twinlens.train.config import LoraConfig


class LoraLinear(nn.Module):
    """A locked linear layer and what is added to it; adds nothing at first."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        weight = base.weight
        self.down = nn.Parameter(weight.new_empty(rank, base.in_features))
        self.up = nn.Parameter(weight.new_zeros(base.out_features, rank))
        self.factor = alpha / rank
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))  # as nn.Linear starts

    def forward(self, x: Float[Tensor, "*batch channel"]) -> Float[Tensor, "*batch out"]:
        added = nn.functional.linear(nn.functional.linear(x, self.down), self.up)
        return self.base(x) + added * self.factor  # type: ignore[no-any-return]

    def merged_weight(self) -> Float[Tensor, "out channel"]:
        """The one matrix that does what both parts do."""
        return self.base.weight + self.up @ self.down * self.factor


def add_adapters(model: Clip, config: LoraConfig) -> None:
    """Lock the chosen towers and give each linear layer of their blocks an adapter.

    The scale and the bias of the logits keep learning; both projections are locked.
    Raises ConfigError for a tower without attention blocks.
    """
    model.image_projection.requires_grad_(False)
    model.text_projection.requires_grad_(False)
    for side, tower in (("image", model.image_tower), ("text", model.text_tower)):
        tower.requires_grad_(False)
        if config.towers not in ("both", side):
            continue
        blocks = [module for module in tower.modules() if isinstance(module, Block)]
        if not blocks:
            raise ConfigError(
                f"The {side} tower is convolutional: there are no attention blocks to adapt. "
                f"Choose the other tower, or train it without LoRA."
            )
        for block in blocks:
            for parent in (block.attention, block.mlp):
                for name, child in list(parent.named_children()):
                    if isinstance(child, nn.Linear):
                        setattr(parent, name, LoraLinear(child, config.rank, config.alpha))


@torch.no_grad()
def merged_weights(model: Clip, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """`tensors`, which are named as `model`'s state, under the names of a model without adapters.

    They may be another moment's or an average of `model`'s own.
    """
    merged = dict(tensors)
    for name, module in model.named_modules():
        if not isinstance(module, LoraLinear):
            continue
        weight = merged.pop(f"{name}.base.weight")
        up, down = merged.pop(f"{name}.up"), merged.pop(f"{name}.down")
        # In float64: the sum is rounded once.
        added = up.double() @ down.double() * module.factor
        merged[f"{name}.weight"] = (weight.double() + added).to(weight.dtype)
        if f"{name}.base.bias" in merged:
            merged[f"{name}.bias"] = merged.pop(f"{name}.base.bias")
    return merged
