"""Recall@k between pictures and captions, from a similarity matrix.

Source: Karpathy and Fei-Fei 2015, arXiv:1412.2306, section 4.2; an image with several
captions counts as found when any one of them is among its first k.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

Similarity = Float[np.ndarray, "image caption"]
CaptionImages = Sequence[int] | Int[np.ndarray, " caption"]


def text_to_image_recall_at_k(
    similarity: Similarity, image_of_caption: CaptionImages, k: int
) -> float:
    """Share of captions whose image is among the k most similar ones."""
    wanted = similarity[np.asarray(image_of_caption), np.arange(similarity.shape[1])]
    # A tie counts against us: a constant model must not score.
    better = (similarity >= wanted).sum(axis=0) - 1
    return float((better < k).mean())


def image_to_text_recall_at_k(
    similarity: Similarity, image_of_caption: CaptionImages, k: int
) -> float:
    """Share of images of which any caption is among the k most similar ones."""
    own = np.asarray(image_of_caption) == np.arange(similarity.shape[0])[:, None]
    best_own = np.where(own, similarity, -np.inf).max(axis=1, keepdims=True)
    better = ((similarity >= best_own) & ~own).sum(axis=1)
    return float((better < k).mean())


def retrieval_scores(similarity: Similarity, image_of_caption: CaptionImages) -> dict[str, float]:
    """recall@1, 5 and 10 in both directions, each between 0 and 1."""
    return {
        f"{name}_recall@{k}": recall(similarity, image_of_caption, k)
        for name, recall in (
            ("text_to_image", text_to_image_recall_at_k),
            ("image_to_text", image_to_text_recall_at_k),
        )
        for k in (1, 5, 10)
    }
