"""An exponential moving average of the weights that learn: steadier than the last ones.

Locked weights and batch norms' statistics are the model's own. Source: Polyak and Juditsky
1992; the short memory at the start is TensorFlow's ExponentialMovingAverage (num_updates).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Averages of a model's learning parameters, by name."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._live = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.values: dict[str, Tensor] = {
            name: p.detach().clone() for name, p in self._live.items()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the model's weights of now."""
        self.updates += 1
        # At first the average remembers little, or it would be of the random start.
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in self.values.items():
            value.lerp_(self._live[name].detach(), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the average's weights until the end of the block."""
        own = {name: p.detach().clone() for name, p in self._live.items()}
        self._set(self.values)
        try:
            yield
        finally:
            self._set(own)

    @torch.no_grad()
    def _set(self, values: dict[str, Tensor]) -> None:
        for name, p in self._live.items():
            p.copy_(values[name])
