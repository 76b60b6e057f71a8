"""What a training run is, as a value that checks itself and lies in the run folder as JSON.

Where the pairs come from is said in the terms of data/pairs.py; how pictures are varied,
in those of data/augment.py. Nothing here reads data or holds weights.
"""

from dataclasses import dataclass, field
from typing import Literal

from twinlens.config import JsonConfig
from twinlens.data.augment import Augment
from twinlens.data.pairs import Source
from twinlens.data.stream import DEFAULT_SHUFFLE_BUFFER
from twinlens.errors import ConfigError

# May differ between the command that starts a run and the one that continues it: none of
# them changes a single number of the loss curve.
FREE_TO_CHANGE = frozenset({"save_every", "keep", "workers", "compile", "hold_megabytes"})


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(JsonConfig):
    """AdamW and how its rate moves; the defaults are CLIP's (Radford et al. 2021, table 19)."""

    learning_rate: float = 5e-4  # at its highest
    weight_decay: float = 0.2  # of matrices; vectors, norms, biases and the scale have none
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-6
    layer_decay: float = 1.0  # each layer learns this much slower than the one above it
    clip_norm: float | None = 1.0  # longest gradient; None: as it comes
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: float = 0.1  # steps in a straight line up: a share of all below 1, else a number
    cooldown: float = 0.0  # the same for a constant rate's line down to 0 at the end

    def __post_init__(self) -> None:
        for name in ("learning_rate", "epsilon"):
            value = getattr(self, name)
            _require(value > 0, f"OptimizerConfig.{name} must be above 0, not {value}.")
        for name in ("weight_decay", "warmup", "cooldown"):
            value = getattr(self, name)
            _require(value >= 0, f"OptimizerConfig.{name} must not be negative, not {value}.")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"OptimizerConfig.{name} must be in [0, 1), not {value}.")
        _require(
            0 < self.layer_decay <= 1,
            f"OptimizerConfig.layer_decay must be above 0 and at most 1, not {self.layer_decay}.",
        )
        _require(
            self.clip_norm is None or self.clip_norm > 0,
            f"OptimizerConfig.clip_norm must be above 0 or null, not {self.clip_norm}.",
        )

    def steps(self, value: float, total_steps: int) -> int:
        """`warmup` or `cooldown` in steps."""
        return min(total_steps, round(value * total_steps) if value < 1 else round(value))


@dataclass(frozen=True, kw_only=True)
class LoraConfig(JsonConfig):
    """Low-rank adapters instead of whole weights (Hu et al. 2022, arXiv:2106.09685)."""

    kind: Literal["lora"] = "lora"
    rank: int = 8
    alpha: float = 16.0  # what an adapter adds is multiplied by alpha / rank
    towers: Literal["both", "image", "text"] = "both"

    def __post_init__(self) -> None:
        _require(self.rank > 0, f"LoraConfig.rank must be positive, not {self.rank}.")
        _require(self.alpha > 0, f"LoraConfig.alpha must be above 0, not {self.alpha}.")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(JsonConfig):
    """One run: the model it starts from, its pairs, and how it learns from them.

    `batch` is the pairs that one step tells apart, over all processes. Each process takes
    its share of them in `accumulate` parts, one after another, which costs time and saves
    memory: the loss and its gradients are those of the whole batch.
    """

    model: str  # a preset's name (start.py), or a checkpoint's path or name
    data: tuple[Source, ...] = ()
    val: tuple[Source, ...] = ()  # recall is measured here; the best checkpoint is chosen by it
    image_size: int | None = None  # pixels; None: the model's own
    augment: Augment = field(default_factory=Augment)
    captions: Literal["one", "all"] = "one"  # of a picture's captions, in one step
    # What is no negative of each other: pairs of one picture, of one label (or picture), or
    # nothing but a pair itself.
    positives: Literal["label", "image", "pair"] = "label"
    shuffle_buffer: int = DEFAULT_SHUFFLE_BUFFER

    epochs: float = 10.0
    steps: int | None = None  # instead of epochs
    batch: int = 256
    accumulate: int = 1
    hold_megabytes: int = 256  # inputs kept in memory while accumulating; the rest go to disk
    seed: int = 0

    loss: Literal["contrastive", "sigmoid"] = "contrastive"
    hardness: float = 0.0  # of the contrastive loss: a negative weighs exp(hardness * its logit)
    # Captions made wrong, by exchanging two words, that a picture must tell from its own.
    negative_captions: Literal["none", "swap"] = "none"
    matryoshka: tuple[int, ...] = ()  # dims that must be good alone, besides the whole
    teachers: tuple[str, ...] = ()  # checkpoints to learn from besides the pairs
    teacher_weight: float = 1.0  # of the distance to their similarities
    feature_weight: float = 0.0  # of the distance to their embeddings themselves
    feature_kind: Literal["mse", "cosine"] = "mse"
    optimizer: OptimizerConfig = OptimizerConfig()

    lora: LoraConfig | None = None
    unlocked_image_layers: int | None = None  # only the last so many learn; 0: none; None: all
    unlocked_text_layers: int | None = None
    # Until each locked tower's next layer learns too: a share of all steps below 1, else a
    # number of steps. None: the locked ones stay locked.
    unlock_every: float | None = None
    patch_dropout: float = 0.0  # share of patches left out in training
    ema_decay: float | None = None  # the saved weights are an average of the steps'

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 on a GPU
    recompute: bool = False  # forget activations and compute them again (gradient checkpointing)
    compile: bool = False  # torch.compile
    distribute: Literal["ddp", "fsdp"] = "ddp"
    workers: int = 2  # that read and decode pictures, per process

    save_every: int = 500  # steps
    keep: int = 2  # last checkpoints, besides the best one
    validate_every: int | None = None  # steps; None: once per epoch
    validate_pairs: int = 5000  # at most so many pictures of `val`

    def __post_init__(self) -> None:
        positive = ("batch", "accumulate", "shuffle_buffer", "save_every", "keep", "validate_pairs")
        for name in (*positive, "steps", "validate_every", "image_size"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"TrainConfig.{name} must be positive: {value}.")
        for name in ("unlocked_image_layers", "unlocked_text_layers", "workers", "hold_megabytes"):
            value = getattr(self, name)
            _require(
                value is None or value >= 0, f"TrainConfig.{name} must not be negative: {value}."
            )
        for name in ("hardness", "teacher_weight", "feature_weight"):
            value = getattr(self, name)
            _require(value >= 0, f"TrainConfig.{name} must not be negative: {value}.")
        _require(self.epochs > 0, f"TrainConfig.epochs must be above 0, not {self.epochs}.")
        _require(self.batch > 1, "TrainConfig.batch must be at least 2: pairs are told apart.")
        _require(
            self.batch % self.accumulate == 0,
            f"TrainConfig: a batch of {self.batch} cannot be taken in {self.accumulate} equal "
            f"parts. Change batch or accumulate.",
        )
        _require(
            0 <= self.patch_dropout < 1,
            f"TrainConfig.patch_dropout must be in [0, 1), not {self.patch_dropout}.",
        )
        _require(
            self.ema_decay is None or 0 < self.ema_decay < 1,
            f"TrainConfig.ema_decay must be between 0 and 1, not {self.ema_decay}.",
        )
        _require(
            not (self.distribute == "fsdp" and self.precision == "fp16"),
            "TrainConfig: fsdp is for bf16 or fp32, not fp16: its gradients are not rescaled.",
        )
        _require(
            self.lora is None
            or (self.unlocked_image_layers is None and self.unlocked_text_layers is None),
            "TrainConfig: lora locks every weight of its towers already; leave unlocked_*_layers "
            "out.",
        )
        _require(
            self.loss == "contrastive" or (self.hardness == 0 and self.negative_captions == "none"),
            "TrainConfig: hardness and negative_captions are of the contrastive loss; leave them "
            "out with the sigmoid one.",
        )
        _require(
            self.feature_weight == 0 or bool(self.teachers),
            "TrainConfig.feature_weight is for teachers' embeddings, but there are no teachers. "
            "Name one, or leave it out.",
        )
        self._check_unlocking()

    def _check_unlocking(self) -> None:
        if self.unlock_every is None:
            return
        _require(
            self.unlock_every > 0,
            f"TrainConfig.unlock_every must be above 0, not {self.unlock_every}.",
        )
        _require(
            self.unlocked_image_layers is not None or self.unlocked_text_layers is not None,
            "TrainConfig.unlock_every needs a locked tower: say with unlocked_image_layers or "
            "unlocked_text_layers how many layers learn at first.",
        )
        # FSDP decides once, when it shards, which gradients it reduces.
        _require(
            self.distribute != "fsdp",
            "TrainConfig: unlock_every is for one process or ddp; fsdp cannot unlock weights that "
            "it has shared out. Leave one of the two out.",
        )

    def pairs_per_part(self, processes: int) -> int:
        """Pairs that one process takes through the towers at once."""
        parts = processes * self.accumulate
        if self.batch % parts:
            raise ConfigError(
                f"A batch of {self.batch} cannot be shared by {processes} processes with "
                f"{self.accumulate} parts each: make it a multiple of {parts}."
            )
        return self.batch // parts
