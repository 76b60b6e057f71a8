"""What the tests of the losses share: seeded unit vectors, gradients, exact comparison."""

import torch
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

EXACT = {"rtol": 0, "atol": 1e-12}


def unit(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    vectors = normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)
    return vectors.to(dtype)


def scalar(value, dtype=torch.float64):
    return torch.tensor(value, dtype=dtype)


def value_and_gradients(loss, *inputs):
    inputs = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    value = loss(*inputs)
    return [value.detach(), *torch.autograd.grad(value, inputs)]


def assert_same(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, **EXACT)


class LargestTensor(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation made."""

    def __init__(self):
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.size = max(self.size, tensor.numel())
        return result
