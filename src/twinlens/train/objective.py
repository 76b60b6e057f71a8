"""What a step minimises, put together from the run's configuration.

The losses themselves are in losses.py and distributed.py; the towers' embeddings and, with
teachers, theirs go in. Knows nothing of parts, optimisers or files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import normalize

from twinlens.data.tokenizer import open_tokenizer
from twinlens.errors import ConfigError
from twinlens.model.clip import Clip
from twinlens.train.accumulate import Outputs
from twinlens.train.config import TrainConfig
from twinlens.train.distributed import (
    distributed_contrastive_loss,
    distributed_sigmoid_loss,
    gather_with_gradient,
)
from twinlens.train.lock import training_mode
from twinlens.train.losses import contrastive_distillation_loss, matryoshka
from twinlens.train.start import Start, open_start

CHUNK = 2048  # rows of the similarity matrix at once, in batches of more: 32,768^2 are 4 GB
_PROBES = ("a photo of two dogs", "Café, 12 €?", "")


class Towers(nn.Module):
    """A Clip as the loss wants it: unit embeddings in at least float32, and the scalars."""

    def __init__(self, clip: Clip, autocast: torch.dtype | None, device_type: str) -> None:
        super().__init__()
        self.clip = clip
        self._autocast = autocast
        self._device_type = device_type

    def forward(
        self,
        pixel_values: Float[Tensor, "batch 3 height width"],
        token_ids: Int64[Tensor, "caption token"],
    ) -> Outputs:
        # Views of the scalars: what DDP wraps must not return a parameter itself.
        bias = self.clip.bias
        return Outputs(
            self.image(pixel_values),
            self.text(token_ids),
            self.clip.log_scale.view(()),
            None if bias is None else bias.view(()),
        )

    def image(
        self, pixel_values: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch dim"]:
        """Unit embeddings of pictures."""
        with self._cast():
            embeddings = self.clip.encode_image(pixel_values)
        return _unit(embeddings)

    def text(self, token_ids: Int64[Tensor, "caption token"]) -> Float[Tensor, "caption dim"]:
        """Unit embeddings of texts."""
        with self._cast():
            embeddings = self.clip.encode_text(token_ids)
        return _unit(embeddings)

    def _cast(self) -> torch.autocast:
        return torch.autocast(
            self._device_type, dtype=self._autocast, enabled=self._autocast is not None
        )


def _unit(embeddings: Tensor) -> Tensor:
    wide = torch.promote_types(embeddings.dtype, torch.float32)
    return normalize(embeddings.to(wide), dim=-1)


@dataclass
class TeacherOutputs:
    """One teacher's unit embeddings of the batch, and its fixed log scale."""

    image: Tensor
    text: Tensor
    log_scale: Tensor


def batch_loss(
    config: TrainConfig,
    out: Outputs,
    groups: Int64[Tensor, " batch"] | None,
    teachers: Sequence[TeacherOutputs] = (),
) -> Float[Tensor, ""]:
    """This process's part of the whole batch's loss; `out` is its share of the batch.

    Pairs of equal number in `groups` fit each other.
    """
    chunk = CHUNK if len(out.image) > CHUNK else None
    if config.loss == "sigmoid":
        assert out.bias is not None  # start.py saw to it
        loss = partial(
            distributed_sigmoid_loss,
            log_scale=out.log_scale,
            bias=out.bias,
            groups=groups,
            chunk=chunk,
        )
    else:
        loss = partial(
            distributed_contrastive_loss, log_scale=out.log_scale, groups=groups, chunk=chunk
        )
    if config.matryoshka:
        dims = sorted({*config.matryoshka, out.image.shape[1]})
        value = matryoshka(lambda image, text: loss(image, text), out.image, out.text, dims)
    else:
        value = loss(out.image, out.text)
    if out.bias is not None and config.loss != "sigmoid":
        # A softmax does not change with a bias; its gradient is 0 and not absent, which DDP
        # would take for a mistake.
        value = value + 0.0 * out.bias
    if teachers:
        value = value + config.teacher_weight * contrastive_distillation_loss(
            gather_with_gradient(out.image),
            gather_with_gradient(out.text),
            out.log_scale,
            [gather_with_gradient(teacher.image) for teacher in teachers],
            [gather_with_gradient(teacher.text) for teacher in teachers],
            [teacher.log_scale for teacher in teachers],
            chunk=chunk,
        )
    return value


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
        training_mode(teacher)  # for the fused attention; nothing in it is random
        teachers.append(teacher)
    return teachers
