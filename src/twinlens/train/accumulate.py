"""Gradients of a batch larger than memory: the towers see it in parts, the loss as a whole.

Embeddings of all parts are computed first, without remembering how; the loss of the whole
batch gives each embedding its gradient; then each part goes through the towers again, with
the same random numbers, and takes its embeddings' gradients further. Memory: one part's
activations and all embeddings. Inputs wait in memory up to a limit, beyond it in a file.
Source: Gao et al. 2021, arXiv:2101.06983 (GradCache), section 3.2.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Outputs(NamedTuple):
    """What the towers make of one part: unit embeddings, and the scalars of the loss.

    What is not scalar has rows that belong to the part; what is None is None in all parts.
    """

    image: Float[Tensor, "batch dim"]
    text: Float[Tensor, "caption dim"]
    log_scale: Float[Tensor, ""]
    bias: Float[Tensor, ""] | None
    negative_text: Float[Tensor, "negative dim"] | None = None  # captions that fit no image
    image_like: Float[Tensor, "batch widths"] | None = None  # in teachers' spaces, side by side
    text_like: Float[Tensor, "caption widths"] | None = None


Forward = Callable[..., Outputs]
Loss = Callable[[Outputs], Tensor]


class HeldInputs:
    """Tensors of parts for their second pass, in order: the first in memory, the rest on disk."""

    def __init__(self, folder: Path | None, megabytes: int) -> None:
        self._folder = folder
        self._left = megabytes * 1_000_000
        self._parts: list[tuple[Tensor, ...] | int] = []  # tensors, or how many are in the file
        self._file: IO[bytes] | None = None

    def add(self, tensors: tuple[Tensor, ...]) -> None:
        """Keep one part."""
        size = sum(tensor.nbytes for tensor in tensors)
        if self._folder is None or size <= self._left:
            self._left -= size
            self._parts.append(tensors)
            return
        if self._file is None:
            # Without a name: nothing is left of it, however the process ends.
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (close is ours)
        for tensor in tensors:
            np.save(self._file, tensor.numpy(force=True), allow_pickle=False)
        self._parts.append(len(tensors))

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        if self._file is not None:
            self._file.seek(0)
        for part in self._parts:
            if isinstance(part, int):
                assert self._file is not None
                file = self._file
                yield tuple(
                    torch.from_numpy(np.load(file, allow_pickle=False)) for _ in range(part)
                )
            else:
                yield part

    def close(self) -> None:
        """Give memory and file back."""
        self._parts.clear()
        if self._file is not None:
            self._file.close()


def whole_gradients(
    forward: Forward, loss: Loss, inputs: tuple[Tensor, ...], *, grow: float = 1.0
) -> Tensor:
    """Gradients of a batch that fits, times `grow` (for fp16); returns the loss as it is."""
    value = loss(forward(*inputs))
    torch.autograd.backward([value * grow])
    return value.detach()


def cached_gradients(
    forward: Forward,
    loss: Loss,
    parts: Iterable[tuple[Tensor, ...]],
    *,
    module: nn.Module,
    grow: float = 1.0,
    folder: Path | None = None,
    hold_megabytes: int = 256,
    first: Forward | None = None,
    last_part: Callable[[bool], Any] = lambda last: contextlib.nullcontext(),
) -> Tensor:
    """Gradients of `loss` over all `parts` together, added to the weights' own; returns the loss.

    `forward` takes the tensors of one part; `first`, if given, does the same where no
    gradients are wanted. `last_part(True)` surrounds the second pass of the last part: where
    several processes exchange gradients, they do it there alone.
    """
    held = HeldInputs(folder, hold_megabytes)
    states: list[_RandomState] = []
    seen: list[Outputs] = []
    try:
        with torch.no_grad():
            for part in parts:
                held.add(part)
                states.append(_RandomState())
                seen.append((first or forward)(*part))
        by_output = list(zip(*seen, strict=True))
        leaves = Outputs._make(map(_leaf, by_output))
        value = loss(leaves)
        torch.autograd.backward([value * grow])
        # By part, what the loss wants of each of its outputs.
        wanted = list(zip(*map(_shares, leaves, by_output), strict=True))
        del seen, by_output, leaves
        after = _RandomState()
        with _statistics_kept(module):
            for number, (part, state) in enumerate(zip(held, states, strict=True)):
                last = number == len(states) - 1
                with last_part(last):
                    state.restore()
                    out = forward(*part)
                    pairs = [
                        (tensor, gradient)
                        for tensor, gradient in zip(out, wanted[number], strict=True)
                        if tensor is not None and tensor.requires_grad
                    ]
                    torch.autograd.backward([t for t, _ in pairs], [g for _, g in pairs])
        after.restore()
        return value.detach()
    finally:
        held.close()


def _leaf(parts: tuple[Tensor | None, ...]) -> Tensor | None:
    """One output of all parts, as something that the loss can be differentiated by."""
    first = parts[0]
    if first is None:
        return None
    if first.ndim == 0:  # the same in all parts
        return first.detach().clone().requires_grad_()
    return torch.cat([tensor for tensor in parts if tensor is not None]).requires_grad_()


def _shares(leaf: Tensor | None, parts: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """The part of each in the gradient of a leaf that _leaf made of them."""
    if leaf is None:
        return [None] * len(parts)
    gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
    if leaf.ndim == 0:
        # The scalars were in the loss once, not once per part.
        return [*[torch.zeros_like(gradient)] * (len(parts) - 1), gradient]
    return list(torch.split(gradient, [len(tensor) for tensor in parts if tensor is not None]))


class _RandomState:
    """PyTorch's random numbers at this moment, on the CPU and the current GPU."""

    def __init__(self) -> None:
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]

    def restore(self) -> None:
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda)


@contextlib.contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Batch norms' running statistics moved in the first pass and stay in the second."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, kept, strict=True):
            norm.momentum = momentum
