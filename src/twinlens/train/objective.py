"""What a step minimises, put together from the run's configuration.

The losses themselves are in losses.py and distributed.py; the towers' embeddings and, with
teachers (teachers.py), theirs go in. Knows nothing of parts, optimisers or files.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import normalize

from twinlens.model.clip import Clip
from twinlens.train.accumulate import Outputs
from twinlens.train.config import TrainConfig
from twinlens.train.distributed import (
    distributed_contrastive_loss,
    distributed_hard_negative_loss,
    distributed_sigmoid_loss,
    gather_with_gradient,
)
from twinlens.train.formats import suited
from twinlens.train.losses import (
    contrastive_distillation_loss,
    feature_distillation_loss,
    matryoshka,
    unit_prefix,
)
from twinlens.train.teachers import Follower, TeacherOutputs

CHUNK = 2048  # rows of the similarity matrix at once, in batches of more: 32,768^2 are 4 GB


class Towers(nn.Module):
    """A Clip as the loss wants it: unit embeddings in at least float32, and the scalars.

    `follower` leads from them to teachers' spaces; it learns as the model does.
    """

    def __init__(
        self,
        clip: Clip,
        autocast: torch.dtype | None,
        device_type: str,
        follower: Follower | None = None,
    ) -> None:
        super().__init__()
        self.clip = clip
        self.follower = follower
        self._autocast = autocast
        self._device_type = device_type

    def forward(
        self,
        pixel_values: Float[Tensor, "batch 3 height width"],
        token_ids: Int64[Tensor, "caption token"],
        negative_ids: Int64[Tensor, "negative token"] | None = None,
    ) -> Outputs:
        image = self.image(pixel_values)
        negative_text = None
        if negative_ids is None:
            text = self.text(token_ids)
        else:
            # One pass for both, which also works where a batch has no negative caption.
            captions = token_ids.shape[0]
            both = self.text(torch.cat([token_ids, negative_ids]))
            text, negative_text = both[:captions], both[captions:]
        like = (None, None) if self.follower is None else self.follower(image, text)
        # Views of the scalars: what DDP wraps must not return a parameter itself.
        bias = self.clip.bias
        return Outputs(
            image,
            text,
            self.clip.log_scale.view(()),
            None if bias is None else bias.view(()),
            negative_text,
            *like,
        )

    def image(
        self, pixel_values: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch dim"]:
        """Unit embeddings of pictures."""
        with self._cast():
            embeddings = self.clip.encode_image(suited(pixel_values, self.clip))
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
    loss = _pair_loss(config, out, groups, chunk)
    if config.matryoshka:
        dims = sorted({*config.matryoshka, out.image.shape[1]})
        value = matryoshka(loss, out.image, out.text, dims)
    else:
        value = loss(out.image, out.text)
    if out.bias is not None and config.loss != "sigmoid":
        # A softmax does not change with a bias; its gradient is 0 and not absent, which DDP
        # would take for a mistake.
        value = value + 0.0 * out.bias
    if teachers and config.teacher_weight:
        value = value + config.teacher_weight * contrastive_distillation_loss(
            gather_with_gradient(out.image),
            gather_with_gradient(out.text),
            out.log_scale,
            [gather_with_gradient(teacher.image) for teacher in teachers],
            [gather_with_gradient(teacher.text) for teacher in teachers],
            [teacher.log_scale for teacher in teachers],
            chunk=chunk,
        )
    if teachers and config.feature_weight:
        value = value + config.feature_weight * _feature_distance(config, out, teachers)
    return value


def _pair_loss(
    config: TrainConfig, out: Outputs, groups: Tensor | None, chunk: int | None
) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of the pairs as a function of embeddings, which may be prefixes of `out`'s."""
    if config.loss == "sigmoid":
        assert out.bias is not None  # start.py saw to it
        return partial(
            distributed_sigmoid_loss,
            log_scale=out.log_scale,
            bias=out.bias,
            groups=groups,
            chunk=chunk,
        )
    if config.hardness == 0 and out.negative_text is None:
        return partial(
            distributed_contrastive_loss, log_scale=out.log_scale, groups=groups, chunk=chunk
        )

    def against_hard_negatives(image: Tensor, text: Tensor) -> Tensor:
        negatives = out.negative_text
        return distributed_hard_negative_loss(
            image,
            text,
            out.log_scale,
            None if negatives is None else unit_prefix(negatives, image.shape[1]),
            groups,
            hardness=config.hardness,
            chunk=chunk,
        )

    return against_hard_negatives


def _feature_distance(
    config: TrainConfig, out: Outputs, teachers: Sequence[TeacherOutputs]
) -> Tensor:
    """The mean over teachers of feature_distillation_loss, each in its own space."""
    assert out.image_like is not None and out.text_like is not None  # run.py made a follower
    widths = [teacher.image.shape[1] for teacher in teachers]
    distances = [
        feature_distillation_loss(
            image, text, teacher.image, teacher.text, kind=config.feature_kind
        )
        for image, text, teacher in zip(
            torch.split(out.image_like, widths, dim=1),
            torch.split(out.text_like, widths, dim=1),
            teachers,
            strict=True,
        )
    ]
    return torch.stack(distances).mean()
