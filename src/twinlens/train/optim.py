"""The optimiser's settings that every CLIP training shares: groups, rates, limits."""

import math

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from twinlens.model.clip import Clip
from twinlens.train.config import OptimizerConfig
from twinlens.train.layers import layers_of

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


def rate_shares(model: Clip, layer_decay: float) -> dict[str, float]:
    """Each parameter's share of the learning rate: 1 at the output, less below.

    Source: BEiT, Bao et al. 2022, arXiv:2106.08254, appendix; what follows a tower's last
    block counts as one layer more, as there.
    """
    shares = {name: 1.0 for name, _ in model.named_parameters()}
    for side in ("image_tower", "text_tower"):
        layers = layers_of(getattr(model, side))
        for depth, names in enumerate(layers):
            for name in names:
                shares[f"{side}.{name}"] = layer_decay ** (len(layers) - depth)
    return shares


def make_optimizer(
    model: Clip, config: OptimizerConfig, follower: nn.Module | None = None
) -> torch.optim.AdamW:
    """AdamW over what learns; `share` in a group is its part of the rate.

    `follower` (teachers.py) learns at the whole rate. A weight without a gradient, because it
    is locked for the time being, is left alone and has no moments.

    Vectors are not decayed: gains, biases, class tokens, the scale (OpenCLIP's rule, which
    decays position embeddings, for they are matrices). Every update runs in one kernel.
    """
    groups: dict[tuple[bool, float, bool], list[Tensor]] = {}
    shares = rate_shares(model, config.layer_decay)
    named = [*model.named_parameters()]
    if follower is not None:
        for name, parameter in follower.named_parameters():
            shares[f"follower.{name}"] = 1.0
            named.append((f"follower.{name}", parameter))
    for name, parameter in named:
        if parameter.requires_grad:
            # Sharded and whole tensors cannot be updated in one call.
            key = (parameter.ndim >= 2, shares[name], isinstance(parameter, DTensor))
            groups.setdefault(key, []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": members,
                "weight_decay": config.weight_decay if decayed else 0.0,
                "share": share,
            }
            for (decayed, share, _), members in groups.items()
        ],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )


def set_rates(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each group its share of `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """The rate of one step, counted from 0, before layers take their shares."""
    warmup = config.steps(config.warmup, total_steps)
    if config.schedule == "cosine":
        share = warmup_cosine(step, warmup_steps=warmup, total_steps=total_steps)
    else:
        share = warmup_constant(
            step,
            warmup_steps=warmup,
            cooldown_steps=config.steps(config.cooldown, total_steps),
            total_steps=total_steps,
        )
    return config.learning_rate * share


def warmup_cosine(step: int, *, warmup_steps: int, total_steps: int) -> float:
    """Share of the full learning rate: a straight line up, then half a cosine down to 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def warmup_constant(
    step: int, *, warmup_steps: int, cooldown_steps: int, total_steps: int
) -> float:
    """Share of the full learning rate: a line up, all of it, a line down to 0 at the end.

    Source of the last part: Zhai et al. 2022, arXiv:2106.04560, section 3.5.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    left = total_steps - step
    return left / (cooldown_steps + 1) if left <= cooldown_steps else 1.0


@torch.no_grad()
def limit_gradients(parameters: list[nn.Parameter], longest: float | None) -> Tensor:
    """Scale all gradients down together if they are longer than `longest`; their length before.

    Shards of a gradient count with the rest of it, wherever that lies.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    whole = [g for g in gradients if not isinstance(g, DTensor)]
    shards = [g.to_local() for g in gradients if isinstance(g, DTensor)]
    device = gradients[0].device
    squares = torch.zeros((), device=device)
    if shards:
        squares = torch.stack(torch._foreach_norm(shards)).square().sum()
        torch.distributed.all_reduce(squares)
    if whole:
        squares = squares + torch.stack(torch._foreach_norm(whole)).square().sum()
    length = squares.sqrt()
    if longest is not None:
        torch._foreach_mul_([*whole, *shards], (longest / (length + 1e-6)).clamp(max=1.0))
    return length


@torch.no_grad()
def clamp_log_scale(log_scale: Tensor) -> None:
    """Keep exp(log_scale) between 1 and 100, in place, after each step.

    Source: Radford et al. 2021, section 2.5; the lower end is OpenCLIP's.
    """
    log_scale.clamp_(0.0, MAX_LOG_SCALE)
