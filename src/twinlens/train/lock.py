"""Which weights learn: none of a tower, its last layers, or all (LiT).

Source: Zhai et al. 2022, arXiv:2111.07991 (a locked image tower); unlocking the last
layers: OpenCLIP's --lock-image-unlocked-groups. What a layer is: layers.py.
"""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from twinlens.errors import ConfigError
from twinlens.train.layers import layers_of


def lock_tower(tower: nn.Module, unlocked_layers: int, *, side: str) -> None:
    """Only the last `unlocked_layers` layers of `tower` keep learning.

    Raises ConfigError when it has fewer.
    """
    layers = layers_of(tower)
    if unlocked_layers > len(layers):
        raise ConfigError(
            f"The {side} tower has {len(layers)} layers to unlock, not {unlocked_layers}. "
            f"Leave the option out to train all of it."
        )
    locked = {name for layer in layers[: len(layers) - unlocked_layers] for name in layer}
    for name, parameter in tower.named_parameters():
        if name in locked:
            parameter.requires_grad_(False)


def training_mode(model: nn.Module) -> None:
    """`model.train()`, but a locked batch norm keeps the statistics that its weights know."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not any(
            parameter.requires_grad for parameter in module.parameters()
        ):
            module.eval()
