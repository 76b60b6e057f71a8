"""Contrastive losses as pure functions of embeddings; no state, no device, no clamp."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def contrastive_loss(
    image: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    log_scale: Float[Tensor, ""],
    positives: Bool[Tensor, "batch batch"] | None = None,
) -> Float[Tensor, ""]:
    """How badly a batch confuses its own pairs, in nats; lower is better.

    Row i of `image` belongs with row i of `text`; both are unit vectors.
    `log_scale` is ln(1 / temperature), a learned scalar. `positives[i, j]` says that
    image i also fits text j (two pictures with the label "dog"): such a pair is no
    negative, and an image's target is shared equally among its positives.
    When every similarity is equal the result is exactly ln(batch).

    Raises ValueError for a batch of one: there is nothing to confuse it with.

    Source: Radford et al. 2021, arXiv:2103.00020, figure 3; several positives:
    Khosla et al. 2020, arXiv:2004.11362, equation 2. The limit of 100 on the scale is
    the training loop's job, so that this function stays pure.
    """
    batch = image.shape[0]
    if batch < 2:
        raise ValueError("contrastive_loss needs at least two pairs to tell apart.")
    logits = log_scale.exp() * image @ text.T  # (image, text)
    if positives is None:
        target = torch.eye(batch, dtype=logits.dtype, device=logits.device)
    else:
        target = positives.to(logits.dtype)
    by_image = target / target.sum(dim=1, keepdim=True)
    by_text = target / target.sum(dim=0, keepdim=True)
    image_loss = -(by_image * logits.log_softmax(dim=1)).sum(dim=1).mean()
    text_loss = -(by_text * logits.log_softmax(dim=0)).sum(dim=0).mean()
    return (image_loss + text_loss) / 2


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
    ours = (log_scale.exp() * image @ class_text.T).log_softmax(dim=1)
    target = teacher_logits.log_softmax(dim=1)
    return (target.exp() * (target - ours)).sum(dim=1).mean()
