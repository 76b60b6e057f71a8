"""Which weights learn: none of a tower, its last layers, or all; and more of them over time.

Source: Zhai et al. 2022, arXiv:2111.07991 (a locked image tower); unlocking the last
layers: OpenCLIP's --lock-image-unlocked-groups; a layer more at a time, from the last to the
first: Howard and Ruder 2018, arXiv:1801.06146, section 3.3. What a layer is: layers.py.
"""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from twinlens.errors import ConfigError
from twinlens.model.clip import Clip
from twinlens.train.config import TrainConfig
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


def lock_towers(clip: Clip, config: TrainConfig) -> None:
    """lock_tower for the towers that `config` locks, as they are before the first step."""
    for side in ("image", "text"):
        unlocked = getattr(config, f"unlocked_{side}_layers")
        if unlocked is not None:
            lock_tower(getattr(clip, f"{side}_tower"), unlocked, side=side)


def unlock_towers(clip: Clip, config: TrainConfig, step: int, total_steps: int) -> bool:
    """Let those layers learn that learn in step `step`, counted from 0; whether any is new.

    It depends on the step alone, so a run that goes on needs no memory of it.
    """
    if config.unlock_every is None:
        return False
    changed = False
    more = step // unlock_steps(config.unlock_every, total_steps)
    for side in ("image", "text"):
        unlocked = getattr(config, f"unlocked_{side}_layers")
        if unlocked is None:
            continue
        tower = getattr(clip, f"{side}_tower")
        layers = layers_of(tower)
        parameters = dict(tower.named_parameters())
        for layer in layers[max(0, len(layers) - unlocked - more) :]:
            for name in layer:
                changed |= not parameters[name].requires_grad
                parameters[name].requires_grad_(True)
    return changed


def unlock_steps(unlock_every: float, total_steps: int) -> int:
    """Steps from one layer to the next."""
    share = unlock_every * total_steps if unlock_every < 1 else unlock_every
    return max(1, round(share))


def training_mode(model: nn.Module) -> None:
    """`model.train()`, but a locked batch norm keeps the statistics that its weights know."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not any(
            parameter.requires_grad for parameter in module.parameters()
        ):
            module.eval()
