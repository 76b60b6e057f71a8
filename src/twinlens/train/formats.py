"""In which order a picture's numbers lie in memory: what convolutions are fastest with.

Convolutional towers are given pictures with the channels of a pixel side by side
(channels_last), and keep their filters so; transformers turn a picture into patches at once
and gain nothing. Sums are then taken in another order, so results differ in the last digits.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from twinlens.model.clip import Clip
from twinlens.model.image_vit import VitTower


def convolves(model: Clip) -> bool:
    """Whether the image tower is made of convolutions."""
    return not isinstance(model.image_tower, VitTower)


def suit_convolutions(model: Clip) -> None:
    """Put the filters of a convolutional image tower into channels_last order, in place.

    Before an optimizer or DistributedDataParallel has seen them: both lay out their own
    memory as the weights lie. FSDP refuses weights that are not contiguous.
    """
    if convolves(model):
        model.image_tower.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def suited(
    pixels: Float[Tensor, "batch 3 height width"], model: Clip
) -> Float[Tensor, "batch 3 height width"]:
    """`pixels` in the order that suits the image tower of `model`."""
    if convolves(model):
        return pixels.contiguous(memory_format=torch.channels_last)
    return pixels
