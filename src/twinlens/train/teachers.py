"""Checkpoints that a student learns from besides the pairs, and how it is compared with them.

A teacher's similarities are comparable as they are. Its embeddings are not where their width
is another than the student's: then a linear layer per teacher and side, which is trained
along and is no part of the model, leads from the student's space to the teacher's.
Source: Yang et al. 2024 (CLIP-KD), arXiv:2307.12732, section 3.2; as in their code, what a
layer gives is a unit vector again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from twinlens.data.tokenizer import open_tokenizer
from twinlens.errors import ConfigError
from twinlens.model.clip import Clip
from twinlens.train.config import TrainConfig
from twinlens.train.formats import suit_convolutions
from twinlens.train.lock import training_mode
from twinlens.train.start import Start, open_start

_PROBES = ("a photo of two dogs", "Café, 12 €?", "")


@dataclass
class TeacherOutputs:
    """One teacher's unit embeddings of the batch, and its fixed log scale."""

    image: Float[Tensor, "batch dim"]
    text: Float[Tensor, "batch dim"]
    log_scale: Float[Tensor, ""]


class Follower(nn.Module):
    """From the student's unit embeddings to each teacher's space, the teachers side by side."""

    def __init__(self, width: int, teacher_widths: Sequence[int]) -> None:
        super().__init__()
        self.image = nn.ModuleList(_bridge(width, theirs) for theirs in teacher_widths)
        self.text = nn.ModuleList(_bridge(width, theirs) for theirs in teacher_widths)

    def forward(
        self, image: Float[Tensor, "batch dim"], text: Float[Tensor, "caption dim"]
    ) -> tuple[Float[Tensor, "batch widths"], Float[Tensor, "caption widths"]]:
        """Unit vectors of the teachers' widths, one teacher's after another's in each row."""
        return _side_by_side(self.image, image), _side_by_side(self.text, text)


def _bridge(width: int, teacher_width: int) -> nn.Module:
    if width == teacher_width:
        return nn.Identity()
    linear = nn.Linear(width, teacher_width, bias=False)
    nn.init.normal_(linear.weight, std=width**-0.5)
    return linear


def _side_by_side(bridges: nn.ModuleList, embeddings: Tensor) -> Tensor:
    return torch.cat([_crossed(bridge, embeddings) for bridge in bridges], dim=1)


def _crossed(bridge: nn.Module, embeddings: Tensor) -> Tensor:
    if isinstance(bridge, nn.Identity):
        return embeddings
    return normalize(bridge(embeddings), dim=-1)


def open_teachers(config: TrainConfig, student: Start, device: torch.device) -> list[Clip]:
    """The checkpoints to learn from, locked.

    Raises ConfigError for one that wants other pixels or token ids than the student.
    """
    teachers = []
    for name in config.teachers:
        start = open_start(TrainConfig(model=name))
        ours, theirs = student.inputs, start.inputs
        for what in ("image_size", "resize", "mean", "std"):
            mine, other = getattr(ours.preprocess, what), getattr(theirs.preprocess, what)
            if mine != other:
                raise ConfigError(
                    f"The teacher {name} wants pictures of {what} {other}, the student of {mine}: "
                    f"a teacher must see what the student sees. Choose another of the two."
                )
        ids = [
            [open_tokenizer(s.inputs.tokenizer, s.folder).encode(text) for text in _PROBES]
            for s in (student, start)
        ]
        if ids[0] != ids[1] or ours.tokenizer.context > theirs.tokenizer.context:
            raise ConfigError(
                f"The teacher {name} has another tokenizer or a shorter context than the student. "
                f"Choose another of the two."
            )
        teacher = start.model.to(device).requires_grad_(False)
        suit_convolutions(teacher)
        training_mode(teacher)  # for the fused attention; nothing in it is random
        teachers.append(teacher)
    return teachers
