"""The optimiser's settings that every CLIP training shares."""

import math

import torch
from torch import Tensor, nn

MAX_LOG_SCALE = math.log(100)


def parameter_groups(
    modules: dict[nn.Module, float], *, weight_decay: float
) -> list[dict[str, object]]:
    """AdamW groups from {module: learning rate}; what does not need gradients is left out.

    Gains, biases and other vectors are not decayed (Radford et al. 2021, section 2.5).
    """
    groups: list[dict[str, object]] = []
    for module, learning_rate in modules.items():
        trained = [p for p in module.parameters() if p.requires_grad]
        for members, decay in (
            ([p for p in trained if p.ndim >= 2], weight_decay),
            ([p for p in trained if p.ndim < 2], 0.0),
        ):
            if members:
                groups.append({"params": members, "lr": learning_rate, "weight_decay": decay})
    return groups


def warmup_cosine(step: int, *, warmup_steps: int, total_steps: int) -> float:
    """Share of the full learning rate: a straight line up, then half a cosine down to 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


@torch.no_grad()
def clamp_log_scale(log_scale: Tensor) -> None:
    """Keep exp(log_scale) between 1 and 100, in place, after each step.

    Source: Radford et al. 2021, section 2.5; the lower end is OpenCLIP's.
    """
    log_scale.clamp_(0.0, MAX_LOG_SCALE)
