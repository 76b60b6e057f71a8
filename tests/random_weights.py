"""Random weights that need no file: each is a function of its name and shape alone.

They come from the raw stream of PCG64, which NumPy promises never to change, so that a
reference can be run once, elsewhere, on the very weights that a test makes here.
"""

import zlib

import numpy as np
import torch


def uniform(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """32 levels between -1 and 1, exact in float16, standard deviation 0.58."""
    size = int(np.prod(shape))
    levels = np.random.PCG64(zlib.crc32(name.encode())).random_raw(size) >> np.uint64(59)
    return torch.from_numpy(((levels.astype(np.float32) - 15.5) / 16).reshape(shape))


def weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A weight that keeps a network lively: no bias, norm or running statistic is trivial."""
    noise = uniform(name, shape)
    if name.endswith(("logit_scale", "logit_bias")):
        return noise + (2.0 if name.endswith("scale") else -3.0)
    if len(shape) < 2:
        return 1 + 0.5 * noise if name.endswith(("weight", "running_var")) else 0.5 * noise
    fan_in = int(np.prod(shape[1:]))
    return noise * min(0.5, 2.3 * fan_in**-0.5)


def fill(model: torch.nn.Module) -> None:
    """Give a reference's model these weights, by its own names."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.copy_(weight(name, tuple(value.shape)))
