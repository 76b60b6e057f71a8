"""A published checkpoint as a model, and what it means to agree with a reference."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from twinlens.model.checkpoint import load_weights
from twinlens.model.clip import Clip
from twinlens.model.published import read_published


def load(path: Path, **overrides: Any) -> Clip:
    published = read_published(path, **overrides)
    model = Clip(published.config)
    load_weights(model, published.tensors, source=str(path))
    return model.eval()


def difference(ours: Any, reference: Any) -> float:
    """The largest difference, relative to the largest number of the reference."""
    ours, reference = (np.asarray(torch.as_tensor(values)) for values in (ours, reference))
    assert ours.shape == reference.shape
    assert np.abs(reference).max() > 0.1  # else anything would agree
    return float(np.abs(ours - reference).max() / np.abs(reference).max())


@torch.no_grad()
def assert_same_features(
    model: Clip,
    pixel_values: torch.Tensor,
    token_ids: torch.Tensor,
    *,
    image: Any,
    text: Any,
    within: float,
) -> None:
    assert difference(model.encode_image(pixel_values), image) < within
    assert difference(model.encode_text(token_ids), text) < within
