"""Losses of a batch as pure functions of embeddings; no state, no clamp, one process.

Contrastive, sigmoid, with hard negatives, distilled from teachers, and any of them over
nested widths. Several processes are left to distributed.py, the memory of large batches to
blocks.py (through `chunk`), the limits of the learned scale to optim.py.

Three things hold for every function here. Row i of `image` belongs with row i of `text` and
both have unit length. float16 and bfloat16 embeddings are widened to float32 first. And
`positives` says which other pairs fit as well: a mask (image, text), or one group number per
row, where an equal number means that the pairs fit each other. Several captions of one
picture are that picture's embedding repeated, with its number as the group:
`image.repeat_interleave(captions, 0)`; the gradients are those of the (image, text) rectangle.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

from twinlens.errors import ConfigError
from twinlens.train.blocks import (
    contrastive_both_ways,
    distillation_rows,
    hard_negative_rows,
    logits_of,
    sigmoid_rows,
    summed_over_rows,
    widened,
)


def contrastive_loss(
    image: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    log_scale: Float[Tensor, ""],
    positives: Bool[Tensor, "batch batch"] | Int64[Tensor, "batch"] | None = None,
    *,
    chunk: int | None = None,
) -> Float[Tensor, ""]:
    """How badly a batch confuses its own pairs, in nats; lower is better.

    `log_scale` is ln(1 / temperature), a learned scalar. `positives[i, j]` says that
    image i also fits text j (two pictures with the label "dog"): such a pair is no
    negative, and an image's target is shared equally among its positives.
    When every similarity is equal the result is exactly ln(batch).

    `chunk` rows of similarities are held at a time instead of all, for the same value and
    gradients; one such matrix at a batch of 32,768 is 4.3 GB. The gradients are then taken
    with the value, so a second derivative cannot be.

    Raises ConfigError (a ValueError) for a batch of one: there is nothing to confuse it with.

    Source: Radford et al. 2021, arXiv:2103.00020, figure 3; several positives:
    Khosla et al. 2020, arXiv:2004.11362, equation 2. The limit of 100 on the scale is
    the training loop's job, so that this function stays pure.
    """
    image, text = _pairs("contrastive_loss", image, text, at_least=2)
    scale = log_scale.to(image.dtype).exp()
    labels = torch.arange(image.shape[0], device=image.device)
    of_image, of_text, groups = _both_ways(positives)
    return contrastive_both_ways(
        image,
        text,
        labels,
        (of_image, of_text),
        all_image=image,
        all_text=text,
        column_groups=groups,
        scale=scale,
        chunk=chunk,
    )


def sigmoid_loss(
    image: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    log_scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
    positives: Bool[Tensor, "batch batch"] | Int64[Tensor, "batch"] | None = None,
    *,
    chunk: int | None = None,
) -> Float[Tensor, ""]:
    """How badly each (image, text) is judged on its own to fit or not, in nats per image.

    Every one of the batch * batch pairs is a yes-or-no question at the logit
    scale * cosine + bias; the sum is divided by the batch, as in the paper and OpenCLIP.
    `positives` are further yes. When every logit is 0 the result is batch * ln 2.
    It starts well at log_scale = ln 10 and bias = -10, where nearly all is judged "no".

    `chunk`: as in `contrastive_loss`. Raises ConfigError for an empty batch.

    Source: Zhai et al. 2023, arXiv:2303.15343, section 3.2 and algorithm 1. Their t' is
    our `log_scale`, their b our `bias`.
    """
    image, text = _pairs("sigmoid_loss", image, text, at_least=1)
    scale = log_scale.to(image.dtype).exp()
    labels = torch.arange(image.shape[0], device=image.device)
    of_image, _, groups = _both_ways(positives)
    rows, shared = (image, labels, of_image), (text, groups, scale, bias.to(image.dtype))
    return summed_over_rows(sigmoid_rows, chunk, rows, shared) / image.shape[0]


def hard_negative_loss(
    image: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    log_scale: Float[Tensor, ""],
    negative_text: Float[Tensor, "negative dim"] | None = None,
    positives: Bool[Tensor, "batch batch"] | Int64[Tensor, "batch"] | None = None,
    *,
    hardness: float = 0.0,
    chunk: int | None = None,
) -> Float[Tensor, ""]:
    """`contrastive_loss` against harder negatives, in nats; with neither kind it equals it.

    `negative_text` are captions that fit no image of the batch ("the grass eats the
    horse"), any number: every image must tell its own from them too, and they ask for no
    image. `hardness` (their beta, 0 to about 1) gives a negative the weight
    exp(hardness * logit), with mean 1 over a row's negatives; the weights are
    differentiated too, as in the authors' code. A positive is never reweighted.

    When every similarity is equal the result, whatever the hardness, is
    (ln(batch + negative) + ln(batch)) / 2. `chunk`: as in `contrastive_loss`.

    Raises ConfigError for a batch of one and for a negative hardness.

    Source: negative captions: Yuksekgonul et al. 2023 (NegCLIP), arXiv:2210.01936,
    section 4. Weights: Robinson et al. 2021, arXiv:2010.04592, section 3, with
    tau+ = 0; for images and texts Radenovic et al. 2023, arXiv:2301.02280, HN-NCE with
    alpha = 1.
    """
    if hardness < 0:
        raise ConfigError(f"hardness must be 0 or more (0 weighs all alike); got {hardness}.")
    image, text = _pairs("hard_negative_loss", image, text, at_least=2)
    if negative_text is not None:
        negative_text = negative_text.to(image.dtype)
    scale = log_scale.to(image.dtype).exp()
    labels = torch.arange(image.shape[0], device=image.device)
    of_image, of_text, groups = _both_ways(positives)
    block = partial(hard_negative_rows, hardness=hardness)
    by_image = summed_over_rows(
        block, chunk, (image, labels, of_image), (text, groups, scale, negative_text)
    )
    by_text = summed_over_rows(block, chunk, (text, labels, of_text), (image, groups, scale, None))
    return (by_image + by_text) / (2 * image.shape[0])


def contrastive_distillation_loss(
    image: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    log_scale: Float[Tensor, ""],
    teacher_image: Float[Tensor, "batch _"] | Sequence[Float[Tensor, "batch _"]],
    teacher_text: Float[Tensor, "batch _"] | Sequence[Float[Tensor, "batch _"]],
    teacher_log_scale: Float[Tensor, ""] | Sequence[Float[Tensor, ""]],
    *,
    chunk: int | None = None,
) -> Float[Tensor, ""]:
    """How far the batch's own similarities are from a teacher's, in nats; 0 when they agree.

    The teacher's softmax over the batch, from image to texts and from text to images, is
    the target of ours; its embeddings may be of another width and get no gradient. Several
    teachers are given as lists of equal length: the mean of their logits is the target.
    A teacher's bias is not asked for, as a softmax does not notice it.

    OpenCLIP's DistillClipLoss is this plus the teacher's entropy, which has no gradient.
    `chunk`: as in `contrastive_loss`. Raises ConfigError for lists of unequal length.

    Source: contrastive relational distillation of Yang et al. 2024 (CLIP-KD),
    arXiv:2307.12732, section 3.2; Hinton et al. 2015, arXiv:1503.02531, at temperature 1.
    """
    image, text = _pairs("contrastive_distillation_loss", image, text, at_least=2)
    of_image, of_text, log_scales = (
        [tensor.detach().to(image.dtype) for tensor in _listed(given)]
        for given in (teacher_image, teacher_text, teacher_log_scale)
    )
    if not len(of_image) == len(of_text) == len(log_scales) > 0:
        raise ConfigError(
            f"Each teacher brings image embeddings, text embeddings and a log scale, but there "
            f"are {len(of_image)}, {len(of_text)} and {len(log_scales)} of them."
        )
    scale = log_scale.to(image.dtype).exp()
    # Side by side the teachers are one, whose logits are the mean: sum_k (s_k / K) i_k . t_k.
    scales = [teacher.exp() / len(log_scales) for teacher in log_scales]
    teacher_image = torch.cat([s * i for s, i in zip(scales, of_image, strict=True)], dim=1)
    teacher_text = torch.cat(of_text, dim=1)
    by_image = summed_over_rows(
        distillation_rows, chunk, (image, teacher_image), (text, teacher_text, scale)
    )
    by_text = summed_over_rows(
        distillation_rows, chunk, (text, teacher_text), (image, teacher_image, scale)
    )
    return (by_image + by_text) / (2 * image.shape[0])


def feature_distillation_loss(
    image: Float[Tensor, "batch _"],
    text: Float[Tensor, "batch _"],
    teacher_image: Float[Tensor, "batch _"] | Sequence[Float[Tensor, "batch _"]],
    teacher_text: Float[Tensor, "batch _"] | Sequence[Float[Tensor, "batch _"]],
    *,
    kind: Literal["mse", "cosine"] = "mse",
) -> Float[Tensor, ""]:
    """How far each embedding is from the teacher's of the same picture or caption.

    "mse" is the squared distance, "cosine" is 1 - cosine, which is half of it for unit
    vectors and ignores length for others; each is a mean over the batch, summed over the
    two sides, and over several teachers a mean. No unit; 0 when they agree. Unlike most of
    this file it does not look across the batch, so it needs no other rank.

    Raises ConfigError where a teacher's width is not ours: project ours to it first, with a
    layer that is thrown away after training.

    Source: feature distillation of Yang et al. 2024 (CLIP-KD), arXiv:2307.12732,
    section 3.2, where the mean squared error worked best alone. (Their code averages
    over the width too: this is theirs times the width.)
    """
    of_image, of_text = _listed(teacher_image), _listed(teacher_text)
    if not len(of_image) == len(of_text) > 0:
        raise ConfigError(
            f"Each teacher brings image and text embeddings, but there are {len(of_image)} and "
            f"{len(of_text)} of them."
        )
    sides = [(image, teacher) for teacher in of_image] + [(text, teacher) for teacher in of_text]
    distances = []
    for ours, theirs in sides:
        if ours.shape != theirs.shape:
            raise ConfigError(
                f"The teacher's embeddings are {tuple(theirs.shape)} and ours are "
                f"{tuple(ours.shape)}; project ours to the teacher's width first."
            )
        ours, theirs = widened(ours, theirs.detach())
        if kind == "mse":
            distances.append((ours - theirs).square().sum(dim=1).mean())
        else:
            distances.append((1 - functional.cosine_similarity(ours, theirs, dim=1)).mean())
    return torch.stack(distances).sum() / len(of_image)


def classifier_distillation_loss(
    image: Float[Tensor, "batch dim"],
    class_text: Float[Tensor, "label dim"],
    log_scale: Float[Tensor, ""],
    teacher_logits: Float[Tensor, "batch label"],
) -> Float[Tensor, ""]:
    """How far zero-shot labels are from a classifier's, in nats above its entropy.

    The teacher sees the same pictures; its softmax over the labels is the target of
    ours over cosines with the labels' texts. Zero when the two agree exactly.

    Source: Hinton et al. 2015, arXiv:1503.02531, section 2, at temperature 1.
    """
    image, class_text, teacher_logits = widened(image, class_text, teacher_logits)
    ours = logits_of(image, class_text, log_scale.to(image.dtype).exp()).log_softmax(dim=1)
    target = teacher_logits.log_softmax(dim=1)
    return (target.exp() * (target - ours)).sum(dim=1).mean()


def matryoshka(
    loss: Callable[[Tensor, Tensor], Tensor],
    image: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    dims: Sequence[int],
    weights: Sequence[float] | None = None,
) -> Float[Tensor, ""]:
    """Sum of `loss(image, text)` over the first `dims` numbers of each embedding.

    Each prefix is brought back to unit length, so that it can be searched by itself; the
    full width is taken as it is. `weights` default to 1 each, as in the paper: divide
    by their sum to compare with a loss at full width. What else the loss needs is bound
    into it: `matryoshka(lambda i, t: contrastive_loss(i, t, log_scale), ..., [64, 512])`.

    Raises ConfigError for widths that the embeddings have not, none, one twice, or another
    number of weights.

    Source: Kusupati et al. 2022, arXiv:2205.13147, section 3, equation 1.
    """
    width = image.shape[1]
    if not dims or len(set(dims)) < len(dims) or min(dims) < 1 or max(dims) > width:
        raise ConfigError(
            f"Nested widths are different numbers from 1 to {width}, the embeddings' width; "
            f"got {list(dims)}."
        )
    weights = [1.0] * len(dims) if weights is None else weights
    if len(weights) != len(dims):
        raise ConfigError(f"{len(dims)} nested widths need as many weights; got {len(weights)}.")
    # In float16 the smallest length that normalize divides by, 1e-12, would be 0.
    image, text = widened(image, text)
    losses = [
        weight * loss(unit_prefix(image, dim), unit_prefix(text, dim))
        for dim, weight in zip(dims, weights, strict=True)
    ]
    return torch.stack(losses).sum()


def unit_prefix(embeddings: Float[Tensor, "batch dim"], dim: int) -> Float[Tensor, "batch dim_out"]:
    """The first `dim` numbers of each embedding as a unit vector; all of them as they are."""
    if dim == embeddings.shape[1]:
        return embeddings
    return functional.normalize(embeddings[:, :dim], dim=-1)


def _pairs(name: str, image: Tensor, text: Tensor, *, at_least: int) -> tuple[Tensor, ...]:
    """Both in one type of at least float32, after the checks that need no look at the numbers."""
    if image.shape != text.shape:
        raise ConfigError(
            f"{name} needs one text for each image, of the same width; got images "
            f"{tuple(image.shape)} and texts {tuple(text.shape)}."
        )
    if image.shape[0] < at_least:
        few = "at least two pairs to tell apart" if at_least == 2 else "at least one pair"
        raise ConfigError(f"{name} needs {few}; got {image.shape[0]}.")
    return widened(image, text)


def _both_ways(positives: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The rows' marks from image to text, from text to image, and the columns' groups."""
    if positives is None:
        return None, None, None
    if positives.dtype == torch.bool:
        return positives, positives.T, None
    return positives, positives, positives


def _listed(given: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [given] if isinstance(given, Tensor) else list(given)
