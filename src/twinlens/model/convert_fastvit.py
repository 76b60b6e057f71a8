"""timm's FastViT in OpenCLIP's checkpoints, folded and renamed to our tower.

Published MobileCLIP weights are those of training: each convolution in several branches with
batch norms, layer scales beside. All of it is linear, and summed here, in float64, into one
convolution each, as image_fastvit.py wants it. What is not whole keeps its names, and
`checkpoint.load_weights` refuses it by them.
Source: Ding et al. 2021, arXiv:2101.03697, figure 4.
"""

import re
from collections.abc import Callable

import torch
from torch import Tensor

TRUNK = "visual.trunk."
BATCH_NORM_EPS = 1e-5
Conv = tuple[Tensor, Tensor]  # kernel, bias
Leaves = dict[str, Tensor]


def is_fastvit(foreign: dict[str, Tensor]) -> bool:
    """Whether the image tower is one of MobileCLIP's MCi, folded already or not.

    FastViT's own stages lack the gate before pooling; every MCi has it.
    """
    return f"{TRUNK}final_conv.se.fc1.weight" in foreign


class _Trunk:
    """Tensors by name, in float64, that remember which of them were read."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = {
            name.removeprefix(TRUNK): value
            for name, value in tensors.items()
            if name.startswith(TRUNK)
        }
        self.read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> Tensor:
        value = self.tensors[name]
        self.read.add(name)
        return value.double()


def _batch_norm(trunk: _Trunk, name: str) -> tuple[Tensor, Tensor]:
    """A batch norm at inference as what it multiplies by and adds."""
    scale = trunk[f"{name}.weight"] / (trunk[f"{name}.running_var"] + BATCH_NORM_EPS).sqrt()
    trunk.read.add(f"{name}.num_batches_tracked")
    return scale, trunk[f"{name}.bias"] - trunk[f"{name}.running_mean"] * scale


def _conv_norm(trunk: _Trunk, name: str) -> Conv:
    """A convolution without bias, and the batch norm after it."""
    scale, shift = _batch_norm(trunk, f"{name}.bn")
    return trunk[f"{name}.conv.weight"] * scale[:, None, None, None], shift


def _padded(kernel: Tensor, side: int) -> Tensor:
    """The same filter with zeros around it."""
    return torch.nn.functional.pad(kernel, [(side - kernel.shape[-1]) // 2] * 4)


def _identity(shape: torch.Size) -> Tensor:
    """The kernel of that shape that leaves everything as it is."""
    kernel = torch.zeros(shape, dtype=torch.float64)
    channels, inputs, side, _ = shape
    numbers = torch.arange(channels)
    kernel[numbers, numbers % inputs, side // 2, side // 2] = 1
    return kernel


def _folded(trunk: _Trunk, name: str) -> Conv | None:
    """What timm's own folding left, if it was done before saving."""
    if f"{name}.reparam_conv.weight" not in trunk:
        return None
    return trunk[f"{name}.reparam_conv.weight"], trunk[f"{name}.reparam_conv.bias"]


def _sum_of_branches(trunk: _Trunk, name: str, shape: torch.Size | None = None) -> Conv:
    """Parallel convolutions, perhaps a 1x1 one, perhaps a batch norm alone.

    `shape` is the kernel's where no convolution shows it.
    """
    if folded := _folded(trunk, name):
        return folded
    convs = [_conv_norm(trunk, f"{name}.conv_kxk.0")] if shape is None else []
    while f"{name}.conv_kxk.{len(convs)}.conv.weight" in trunk:
        convs.append(_conv_norm(trunk, f"{name}.conv_kxk.{len(convs)}"))
    if convs:
        shape = convs[0][0].shape
    assert shape is not None
    if f"{name}.conv_scale.conv.weight" in trunk:
        kernel, bias = _conv_norm(trunk, f"{name}.conv_scale")
        convs.append((_padded(kernel, shape[-1]), bias))
    if f"{name}.identity.weight" in trunk:
        scale, shift = _batch_norm(trunk, f"{name}.identity")
        convs.append((_identity(shape) * scale[:, None, None, None], shift))
    return sum(kernel for kernel, _ in convs) + 0 * _identity(shape), _added(convs, shape)


def _added(convs: list[Conv], shape: torch.Size) -> Tensor:
    total = torch.zeros(shape[0], dtype=torch.float64)
    for _, bias in convs:
        total = total + bias
    return total
