"""How well the model finds held-out captions and pictures, between two steps of training.

Embeds the pairs; what recall is, is passed in (evaluate/ and train/ do not know each other).
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64

from twinlens.train.loader import Batch
from twinlens.train.losses import contrastive_loss
from twinlens.train.objective import Towers

# From similarities (image, caption) and each caption's image to figures by name.
Score = Callable[[Any, Any], dict[str, float]]


@torch.no_grad()
def validate(
    towers: Towers,
    batches: Iterable[Batch],
    *,
    device: torch.device,
    most: int,
    score: Score | None,
) -> dict[str, float]:
    """Figures over the first `most` pictures of `batches`; rows of one group are one.

    `loss` is the contrastive loss of all pictures with their first captions, in nats.
    """
    images: list[torch.Tensor] = []
    texts: list[torch.Tensor] = []
    owners: list[int] = []
    number: dict[int, int] = {}  # of each picture's group, in order of appearance
    towers.eval()
    for batch in batches:
        assert batch.groups is not None
        groups = batch.groups.tolist()
        fresh = [row for row, group in enumerate(groups) if group not in number]
        new = [row for row in fresh if groups.index(groups[row]) == row]  # its first caption
        if len(number) + len(new) > most:
            break
        number |= {groups[row]: len(number) + i for i, row in enumerate(new)}
        owners += [number[group] for group in groups]
        if new:
            images.append(towers.image(batch.pixel_values[new].to(device)).cpu())
        texts.append(towers.text(batch.token_ids.to(device)).cpu())
    if not number:
        return {}
    image, text = torch.cat(images).float(), torch.cat(texts).float()
    owner: Int64[np.ndarray, " caption"] = np.array(owners)
    _, first = np.unique(owner, return_index=True)
    figures = {}
    if len(first) > 1:
        scale = towers.clip.log_scale.detach().float().cpu()
        figures["loss"] = contrastive_loss(image, text[first], scale, chunk=1024).item()
    if score is not None:
        similarity: Float32[np.ndarray, "image caption"] = (image @ text.T).numpy()
        figures |= score(similarity, owner)
    return figures


def goodness(figures: dict[str, float]) -> float | None:
    """What the best checkpoint is chosen by: the mean of all recalls, else the loss; None: none."""
    recalls = [value for name, value in figures.items() if "recall@" in name]
    if recalls:
        return sum(recalls) / len(recalls)
    return -figures["loss"] if "loss" in figures else None
