"""The processes of one run: who they are, how they share weights, gradients and figures.

One process needs nothing here. Several are started by `torchrun`, which says who is who in
the environment. Losses across processes are distributed.py's.
"""

import contextlib
import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from twinlens.errors import ConfigError
from twinlens.model.attention import Block
from twinlens.model.clip import Clip


@dataclass(frozen=True)
class Processes:
    """This process among all of a run."""

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files."""
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """Mean over all processes."""
        if self.count == 1:
            return value
        value = value.detach().clone()
        dist.all_reduce(value)
        return value / self.count

    def largest(self, value: int) -> int:
        """The largest of all processes' values, in all of them."""
        if self.count == 1:
            return value
        values = torch.tensor(value, device=self.device)
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return int(values.item())

    def every(self, value: Any) -> list[Any]:
        """A plain value of each process, in order of rank, in all of them."""
        if self.count == 1:
            return [value]
        values = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def agree(self, value: Any) -> Any:
        """The first process's value, in all of them."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def wait(self) -> None:
        """Until all processes are here."""
        self.every(None)


@contextlib.contextmanager
def joined_processes(device: Literal["auto", "cpu", "cuda"]) -> Iterator[Processes]:
    """This process's place among those that torchrun started, or alone.

    Raises ConfigError for a GPU that is not there.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("There is no GPU that PyTorch can use here; leave device out.")
    on_gpu = device != "cpu" and torch.cuda.is_available()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    place = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(place)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes(0, 1, place)
        return
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), place)
    finally:
        # Who holds the group (DDP's reducer, in a cycle) must go first, or PyTorch may abort.
        gc.collect()
        dist.destroy_process_group()


def shard_towers(model: Clip, processes: Processes, *, bf16: bool) -> None:
    """Each process keeps a part of both towers' weights and fetches the rest when needed.

    FSDP2 (Zhao et al. 2023, arXiv:2304.11277), block by block. Projections and the scale
    stay whole everywhere: FSDP cannot shard a scalar; see `average_whole_gradients`.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(processes.device.type, (processes.count,))
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32 if bf16 else None
    )
    for tower in (model.image_tower, model.text_tower):
        for module in tower.modules():
            if isinstance(module, Block):
                fully_shard(module, mesh=mesh, mp_policy=policy)
        fully_shard(tower, mesh=mesh, mp_policy=policy)


def exchanging_gradients(module: nn.Module, processes: Processes) -> Any:
    """`module` in DistributedDataParallel, for the weights that learn at this moment.

    It must be made anew when others do: it counts on a gradient of exactly those. What was
    made before must be gone then, or its hooks on the weights stay (gc.collect).
    """
    if processes.count == 1:
        return module
    return nn.parallel.DistributedDataParallel(
        module,
        device_ids=[processes.device.index] if processes.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
    )


def average_whole_gradients(model: nn.Module, processes: Processes) -> None:
    """Means over all processes of the gradients that FSDP has not averaged itself."""
    for parameter in model.parameters():
        if parameter.grad is not None and not isinstance(parameter.grad, DTensor):
            dist.all_reduce(parameter.grad)
            parameter.grad /= processes.count


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded, on the CPU. Every process must ask."""
    tensor = tensor.detach()
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.cpu()


def shared_like(tensor: Tensor, like: Tensor) -> Tensor:
    """`tensor`, which is whole, on `like`'s device and sharded as `like` is."""
    tensor = tensor.to(like.device)
    if isinstance(like, DTensor):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(tensor, like.device_mesh, like.placements)
    return tensor
