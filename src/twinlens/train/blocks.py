"""The similarity matrix some rows at a time: the sums that every batch loss is made of.

A block takes some rows of a batch and all columns, and returns the sum of those rows'
losses; what the rows mean, the means and the checks are left to losses.py and
distributed.py. With a `chunk`, value and gradient of a block are computed together and the
block is forgotten, so the memory is (chunk, column) numbers and not (row, column). (The
idea is that of Dao et al. 2022, arXiv:2205.14135, without their second computation, as
nothing but a sum leaves the block.)

Embeddings narrower than float32 are widened before they are multiplied, also inside
autocast: at scale 100 a bfloat16 logit is off by a quarter.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from twinlens.errors import ConfigError

Positives = Bool[Tensor, "row column"] | Int64[Tensor, "row"] | None


def widened(*tensors: Tensor) -> tuple[Tensor, ...]:
    """All in the widest type among them, at least float32; what already is stays as it is."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(tensor.to(dtype) for tensor in tensors)


def logits_of(
    rows: Float[Tensor, "row dim"], columns: Float[Tensor, "column dim"], scale: Float[Tensor, ""]
) -> Float[Tensor, "row column"]:
    """scale * cosine, never in less than the type of `rows`, whatever autocast says."""
    with torch.autocast(rows.device.type, enabled=False):
        return (scale * rows) @ columns.T


def summed_over_rows(
    block: Callable[..., Tensor],
    chunk: int | None,
    by_row: Sequence[Tensor | None],
    whole: Sequence[Tensor | None],
) -> Float[Tensor, ""]:
    """block(*by_row, *whole), or the sum of it over pieces of `chunk` rows of `by_row`.

    With a chunk the gradients of a piece are taken as soon as its sum is known, so that
    nothing of its size outlives it, and the backward pass only multiplies them.
    """
    if chunk is None:
        return block(*by_row, *whole)
    if chunk < 1:
        raise ConfigError(f"chunk is a number of rows, at least 1, or None for all; got {chunk}.")
    total: Tensor = _SumOfPieces.apply(  # type: ignore[no-untyped-call]
        block, chunk, len(by_row), torch.is_grad_enabled(), *by_row, *whole
    )
    return total


class _SumOfPieces(torch.autograd.Function):
    """The sum over pieces, and in the same go its gradients by everything that wants one."""

    @staticmethod
    def forward(
        ctx: Any,
        block: Callable[..., Tensor],
        chunk: int,
        num_by_row: int,
        learning: bool,
        *tensors: Tensor | None,
    ) -> Tensor:
        learned = [i for i, want in enumerate(ctx.needs_input_grad[4:]) if want and learning]
        gradients = {i: torch.zeros_like(cast(Tensor, tensors[i])) for i in learned}
        first = cast(Tensor, tensors[0])  # the rows themselves
        total = first.new_zeros(())
        for start in range(0, first.shape[0], chunk):
            rows = slice(start, start + chunk)
            # Row tensors give a piece, the others themselves: views, nothing is copied.
            inputs: list[Any] = [
                tensor if tensor is None else (tensor[rows] if i < num_by_row else tensor).detach()
                for i, tensor in enumerate(tensors)
            ]
            for i in learned:
                inputs[i].requires_grad_()
            with torch.set_grad_enabled(bool(learned)):
                part = block(*inputs)
            total += part.detach()
            if learned:
                found = torch.autograd.grad(part, [inputs[i] for i in learned])
                for i, gradient in zip(learned, found, strict=True):
                    (gradients[i][rows] if i < num_by_row else gradients[i]).add_(gradient)
        ctx.learned = learned
        ctx.num_inputs = 4 + len(tensors)
        ctx.save_for_backward(*gradients.values())
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        wanted: list[Tensor | None] = [None] * ctx.num_inputs
        for i, gradient in zip(ctx.learned, ctx.saved_tensors, strict=True):
            wanted[4 + i] = gradient * upstream
        return tuple(wanted)


def fitting(
    labels: Int64[Tensor, "row"],
    positives: Positives,
    columns: int,
    column_groups: Int64[Tensor, "column"] | None,
) -> Bool[Tensor, "row column"]:
    """Which columns fit each row: its own (`labels`) and those that `positives` adds.

    `positives` is rows of a mask, or each row's group where `column_groups` is given.
    A label outside the columns means that the row's own partner is elsewhere.
    """
    own = labels[:, None] == torch.arange(columns, device=labels.device)
    if positives is None:
        return own
    if column_groups is None:
        return own | positives
    return own | (positives[:, None] == column_groups)


def contrastive_rows(
    rows: Float[Tensor, "row dim"],
    labels: Int64[Tensor, "row"],
    positives: Positives,
    columns: Float[Tensor, "column dim"],
    column_groups: Int64[Tensor, "column"] | None,
    scale: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Sum over rows of the cross entropy against an equal share for each fitting column."""
    logits = logits_of(rows, columns, scale)
    if positives is None:
        return functional.cross_entropy(logits, labels, reduction="sum")
    fits = fitting(labels, positives, columns.shape[0], column_groups).to(logits.dtype)
    return functional.cross_entropy(logits, fits / fits.sum(dim=1, keepdim=True), reduction="sum")


def contrastive_both_ways(
    image: Float[Tensor, "row dim"],
    text: Float[Tensor, "row dim"],
    labels: Int64[Tensor, "row"],
    positives: tuple[Positives, Positives],
    *,
    all_image: Float[Tensor, "column dim"],
    all_text: Float[Tensor, "column dim"],
    column_groups: Int64[Tensor, "column"] | None,
    scale: Float[Tensor, ""],
    chunk: int | None,
) -> Float[Tensor, ""]:
    """Mean contrastive loss of some images against all texts and their texts against all images.

    `positives` are those of the images' rows and those of the texts' rows.
    """
    of_image, of_text = positives
    by_image = summed_over_rows(
        contrastive_rows, chunk, (image, labels, of_image), (all_text, column_groups, scale)
    )
    by_text = summed_over_rows(
        contrastive_rows, chunk, (text, labels, of_text), (all_image, column_groups, scale)
    )
    return (by_image + by_text) / (2 * labels.shape[0])


def sigmoid_rows(
    rows: Float[Tensor, "row dim"],
    labels: Int64[Tensor, "row"],
    positives: Positives,
    columns: Float[Tensor, "column dim"],
    column_groups: Int64[Tensor, "column"] | None,
    scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Sum over all (row, column) of the cost of deciding "fits" or "does not" on its own."""
    logits = logits_of(rows, columns, scale) + bias
    fits = fitting(labels, positives, columns.shape[0], column_groups)
    # Not softplus: PyTorch's becomes the identity above 20, which is 2e-9 off.
    return -functional.logsigmoid(torch.where(fits, logits, -logits)).sum()


def hard_negative_rows(
    rows: Float[Tensor, "row dim"],
    labels: Int64[Tensor, "row"],
    positives: Positives,
    columns: Float[Tensor, "column dim"],
    column_groups: Int64[Tensor, "column"] | None,
    scale: Float[Tensor, ""],
    negatives: Float[Tensor, "negative dim"] | None,
    *,
    hardness: float,
) -> Float[Tensor, ""]:
    """`contrastive_rows` with negatives weighted by exp(hardness * logit), mean weight 1."""
    fits = fitting(labels, positives, columns.shape[0], column_groups)
    if negatives is not None:
        columns = torch.cat([columns, negatives])
        fits = functional.pad(fits, (0, negatives.shape[0]))  # none of them fits
    logits = logits_of(rows, columns, scale)
    # Finite, so that a row without negatives has no inf - inf; far below any logit.
    nothing = torch.finfo(logits.dtype).min / 4
    among_fitting = logits.masked_fill(~fits, nothing).logsumexp(dim=1)
    harder = ((1 + hardness) * logits).masked_fill(fits, nothing).logsumexp(dim=1)
    if hardness:
        # ln sum(weight * exp(logit)) where weight = exp(hardness * logit) / its mean.
        weights = (hardness * logits).masked_fill(fits, nothing).logsumexp(dim=1)
        count = (~fits).sum(dim=1)
        weighted = harder - weights + count.clamp(min=1).to(logits.dtype).log()
        harder = torch.where(count > 0, weighted, nothing)
    share = fits.to(logits.dtype) / fits.sum(dim=1, keepdim=True)
    return (torch.logaddexp(among_fitting, harder) - (share * logits).sum(dim=1)).sum()


def distillation_rows(
    rows: Float[Tensor, "row dim"],
    teacher_rows: Float[Tensor, "row teacher_dim"],
    columns: Float[Tensor, "column dim"],
    teacher_columns: Float[Tensor, "column teacher_dim"],
    scale: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Sum over rows of KL(teacher || ours); the teacher's scale is already in its embeddings."""
    ours = logits_of(rows, columns, scale).log_softmax(dim=1)
    teacher = logits_of(teacher_rows, teacher_columns, torch.ones_like(scale))
    return functional.kl_div(ours, teacher.log_softmax(dim=1), reduction="sum", log_target=True)
