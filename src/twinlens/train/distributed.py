"""The batch losses when the batch is spread over processes: each holds some of the pairs.

Each rank compares its own pairs with everyone's and returns its own part of the loss; the
mean of the parts over ranks is the loss of the whole batch in one process. Models, data and
the process group itself are left to others; without a process group, or alone in it, these
are the plain losses.

Gradients, for W ranks: a rank's gradient by its own embeddings is W times that of the whole
batch's loss, because all W parts are differentiated and none is divided. Averaging over ranks,
which DistributedDataParallel and FSDP do to the parameters, takes out exactly that factor, so
the parameters, the scale and the bias get the gradient of the whole batch.

Any other loss of a batch goes the same way at W times the work: gather the embeddings with
`gather_with_gradient` and give the whole to it on every rank.
"""

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from twinlens.errors import ConfigError
from twinlens.train.blocks import (
    contrastive_both_ways,
    hard_negative_rows,
    sigmoid_rows,
    summed_over_rows,
    widened,
)
from twinlens.train.losses import contrastive_loss, hard_negative_loss, sigmoid_loss


def gather_with_gradient(
    tensor: Shaped[Tensor, "batch *rest"], *, process_group: dist.ProcessGroup | None = None
) -> Shaped[Tensor, "everyone *rest"]:
    """Every rank's rows, in the order of ranks; gradients flow back to the rank they came from.

    The backward pass adds up what all ranks want of a row, so every rank must run it.
    Raises ConfigError, on every rank, where ranks hold different sizes.
    """
    if _ranks(process_group) == 1:
        return tensor
    _require_equal_shapes([tensor], None, process_group)
    gathered: Tensor = _Gather.apply(tensor, process_group)  # type: ignore[no-untyped-call]
    return gathered


def gather_uneven(
    tensor: Float[Tensor, "batch dim"], *, process_group: dist.ProcessGroup | None = None
) -> Float[Tensor, "everyone dim"]:
    """`gather_with_gradient` where ranks may hold different numbers of rows, or none."""
    ranks = _ranks(process_group)
    if ranks == 1:
        return tensor
    own = torch.tensor([tensor.shape[0]], device=tensor.device)
    counts = _gather(own, process_group).tolist()
    if max(counts) == 0:
        return tensor
    # As many rows as the longest has; what was added is left out again and gets no gradient.
    even = functional.pad(tensor, (0, 0, 0, max(counts) - tensor.shape[0]))
    everyone: Tensor = _Gather.apply(even, process_group)  # type: ignore[no-untyped-call]
    parts = zip(everyone.chunk(ranks), counts, strict=True)
    return torch.cat([part[:count] for part, count in parts])


def distributed_contrastive_loss(
    image: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    log_scale: Float[Tensor, ""],
    groups: Int64[Tensor, "batch"] | None = None,
    *,
    chunk: int | None = None,
    process_group: dist.ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    """This rank's part, in nats, of `contrastive_loss` over the batches of all ranks.

    Its own images against everyone's texts and its own texts against everyone's images:
    memory (batch, everyone), or (chunk, everyone), and never the square of everyone. Pairs
    with an equal number in `groups` fit each other, on whichever ranks they are. When every
    similarity is equal the result is ln(everyone).

    One gather there, one reduce-scatter back. Raises ConfigError, on every rank, where
    ranks hold different numbers of pairs, or some have groups and others not: drop the
    incomplete last batch.

    Source: the local loss of OpenCLIP (its `--local-loss --gather-with-grad`), whose labels
    start at rank * batch.
    """
    ranks = _ranks(process_group)
    if ranks == 1:
        return contrastive_loss(image, text, log_scale, groups, chunk=chunk)
    _require_equal_shapes([image, text], groups, process_group)
    image, text = widened(image, text)
    batch = image.shape[0]
    # Side by side in one message.
    sides: Tensor = _Gather.apply(  # type: ignore[no-untyped-call]
        torch.cat([image, text], dim=1), process_group
    )
    all_image, all_text = sides.chunk(2, dim=1)
    first = dist.get_rank(process_group) * batch
    return contrastive_both_ways(
        image,
        text,
        torch.arange(first, first + batch, device=image.device),
        (groups, groups),
        all_image=all_image,
        all_text=all_text,
        column_groups=_gathered_groups(groups, process_group),
        scale=log_scale.to(image.dtype).exp(),
        chunk=chunk,
    )


def distributed_hard_negative_loss(
    image: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    log_scale: Float[Tensor, ""],
    negative_text: Float[Tensor, "negative dim"] | None = None,
    groups: Int64[Tensor, "batch"] | None = None,
    *,
    hardness: float = 0.0,
    chunk: int | None = None,
    process_group: dist.ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    """This rank's part, in nats, of `hard_negative_loss` over the batches of all ranks.

    Everyone's negative captions are told apart by every image; ranks may hold different
    numbers of them, but all must give some tensor or none. A row's weights are over its
    negatives on all ranks, so this too is its own rows against everyone's columns.

    Memory, `groups` and errors: as in `distributed_contrastive_loss`.
    """
    if _ranks(process_group) == 1:
        return hard_negative_loss(
            image, text, log_scale, negative_text, groups, hardness=hardness, chunk=chunk
        )
    if hardness < 0:
        raise ConfigError(f"hardness must be 0 or more (0 weighs all alike); got {hardness}.")
    _require_equal_shapes([image, text], groups, process_group)
    image, text = widened(image, text)
    if negative_text is not None:
        negative_text = gather_uneven(negative_text.to(image.dtype), process_group=process_group)
    batch = image.shape[0]
    sides: Tensor = _Gather.apply(  # type: ignore[no-untyped-call]
        torch.cat([image, text], dim=1), process_group
    )
    all_image, all_text = sides.chunk(2, dim=1)
    first = dist.get_rank(process_group) * batch
    labels = torch.arange(first, first + batch, device=image.device)
    column_groups = _gathered_groups(groups, process_group)
    scale = log_scale.to(image.dtype).exp()
    block = partial(hard_negative_rows, hardness=hardness)
    by_image = summed_over_rows(
        block, chunk, (image, labels, groups), (all_text, column_groups, scale, negative_text)
    )
    by_text = summed_over_rows(
        block, chunk, (text, labels, groups), (all_image, column_groups, scale, None)
    )
    return (by_image + by_text) / (2 * batch)


def distributed_sigmoid_loss(
    image: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    log_scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
    groups: Int64[Tensor, "batch"] | None = None,
    *,
    chunk: int | None = None,
    process_group: dist.ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    """This rank's part, in nats per image, of `sigmoid_loss` over the batches of all ranks.

    The texts go around the ring of ranks, one neighbour at a time; each rank judges its own
    images against the texts that it holds at the moment and passes them on. Memory for
    similarities is (batch, batch) of one rank, or (chunk, batch), and never a multiple of
    it: only the gradients of each hop are kept, twice (everyone, dim).

    `groups` and errors: as in `distributed_contrastive_loss`.

    Source: Zhai et al. 2023, arXiv:2303.15343, section 3.3 and figure 1.
    """
    ranks = _ranks(process_group)
    if ranks == 1:
        return sigmoid_loss(image, text, log_scale, bias, groups, chunk=chunk)
    _require_equal_shapes([image, text], groups, process_group)
    image, text = widened(image, text)
    batch, rank = image.shape[0], dist.get_rank(process_group)
    all_groups = _gathered_groups(groups, process_group)
    scale, bias = log_scale.to(image.dtype).exp(), bias.to(image.dtype)
    own = torch.arange(batch, device=image.device)
    chunk = batch if chunk is None else chunk
    parts = []
    for hop in range(ranks):
        text_groups = None if all_groups is None else all_groups.chunk(ranks)[(rank - hop) % ranks]
        # After the first hop an image's own text is no longer among the columns.
        rows = (image, own + hop * batch, groups)
        shared = (text, text_groups, scale, bias)
        parts.append(summed_over_rows(sigmoid_rows, chunk, rows, shared))
        if hop < ranks - 1:
            text = _PassOn.apply(text, process_group)  # type: ignore[no-untyped-call]
    return torch.stack(parts).sum() / batch


def _ranks(process_group: dist.ProcessGroup | None) -> int:
    """How many processes share the batch; one where no process group was started."""
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size(process_group)


def _gather(tensor: Tensor, process_group: dist.ProcessGroup | None) -> Tensor:
    """Everyone's rows under each other, without a gradient."""
    ranks = dist.get_world_size(process_group)
    everyone = tensor.new_empty((ranks * tensor.shape[0], *tensor.shape[1:]))
    dist.all_gather(list(everyone.chunk(ranks)), tensor.contiguous(), group=process_group)
    return everyone


def _gathered_groups(
    groups: Tensor | None, process_group: dist.ProcessGroup | None
) -> Tensor | None:
    return None if groups is None else _gather(groups, process_group)


def _require_equal_shapes(
    tensors: list[Tensor], groups: Tensor | None, process_group: dist.ProcessGroup | None
) -> None:
    """Raises the same ConfigError on every rank where shapes differ, instead of hanging later.

    One small message per loss; it cannot be remembered, as the rank whose batch is short
    would then be the only one to ask.
    """
    rows = [len(tensor) for tensor in tensors]
    numbers = [tensor[0].numel() if len(tensor) else 0 for tensor in tensors]
    mine = torch.tensor([[*rows, *numbers, groups is not None]], dtype=torch.int64)
    everyone = _gather(mine.to(tensors[0].device), process_group).tolist()
    for rank, other in enumerate(everyone):
        if other != everyone[0]:
            raise ConfigError(
                f"A loss across processes needs batches of equal size on every rank, but rank 0 "
                f"holds {_words(everyone[0])} and rank {rank} {_words(other)}; drop the "
                f"incomplete last batch, and give groups on all ranks or on none."
            )
    if len(set(rows)) > 1 or len(set(numbers)) > 1 or min(rows) == 0:
        raise ConfigError(
            f"A loss across processes needs at least one pair on every rank and one text for "
            f"each image, of the same width; every rank holds {_words(everyone[0])}."
        )


def _words(facts: list[int]) -> str:
    """'4 rows of 16 numbers with groups'."""
    *shapes, grouped = facts
    tensors = len(shapes) // 2
    each = [f"{shapes[i]} rows of {shapes[tensors + i]} numbers" for i in range(tensors)]
    return " and ".join(dict.fromkeys(each)) + (" with groups" if grouped else "")


class _Gather(torch.autograd.Function):
    """Everyone's rows; backward, the sum over ranks of the gradients of one's own rows."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, process_group: dist.ProcessGroup | None) -> Tensor:
        ctx.process_group = process_group
        return _gather(tensor, process_group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        shares = list(gradient.contiguous().chunk(dist.get_world_size(ctx.process_group)))
        own = torch.empty_like(shares[0])
        dist.reduce_scatter(own, shares, group=ctx.process_group)
        return own, None


class _PassOn(torch.autograd.Function):
    """The previous rank's tensor while the next one gets ours; backward, the other way round."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, process_group: dist.ProcessGroup | None) -> Tensor:
        ctx.process_group = process_group
        return _shifted(tensor, 1, process_group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _shifted(gradient, -1, ctx.process_group), None


def _shifted(tensor: Tensor, by: int, process_group: dist.ProcessGroup | None) -> Tensor:
    """What the rank `by` places before sends, while ours goes to the one as far behind."""
    rank, ranks = dist.get_rank(process_group), dist.get_world_size(process_group)
    tensor = tensor.contiguous()
    received = torch.empty_like(tensor)
    exchange = [
        dist.P2POp(dist.isend, tensor, group=process_group, group_peer=(rank + by) % ranks),
        dist.P2POp(dist.irecv, received, group=process_group, group_peer=(rank - by) % ranks),
    ]
    for request in dist.batch_isend_irecv(exchange):
        request.wait()
    return received
