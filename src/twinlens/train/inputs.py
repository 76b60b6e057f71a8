"""Where a run's batches come from: the loader of the configuration's sources, joined to the loop.

The loop knows `Inputs` and `Batches` only, so a program with data of its own can give it
anything that has what they have.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from twinlens.data.preprocess import Preprocess
from twinlens.data.stream import PairStream
from twinlens.data.tokenizer import Tokenizer
from twinlens.errors import ConfigError
from twinlens.train.config import TrainConfig
from twinlens.train.loader import Batch, BatchLoader
from twinlens.train.processes import Processes

VALIDATION_BATCH = 64  # captions


@runtime_checkable
class Batches(Protocol):
    """Batches without end, each of `TrainConfig.pairs_per_part` pairs, from where it is."""

    def __iter__(self) -> Iterator[Batch]: ...
    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch that was taken, as plain JSON values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Inputs:
    """All that one process of a run reads."""

    train: Batches
    pairs_per_epoch: int | None  # of all processes; None: not known before it was read
    val: Iterable[Batch] | None = None  # from the beginning each time it is iterated
    bad_samples: Callable[[], int] = lambda: 0
    close: Callable[[], None] = lambda: None


OpenInputs = Callable[[TrainConfig, Preprocess, Tokenizer, Processes], Inputs]


def open_inputs(
    config: TrainConfig, preprocess: Preprocess, tokenizer: Tokenizer, team: Processes
) -> Inputs:
    """The loader of `config.data`, and of `config.val` without augmentation.

    Raises ConfigError for sources that are missing or cannot be read.
    """
    if not config.data:
        raise ConfigError("There is nothing to learn from: give --images, --shards or `data`.")
    stream = PairStream(
        config.data,
        seed=config.seed,
        shuffle_buffer=config.shuffle_buffer,
        rank=team.rank,
        world_size=team.count,
    )
    loader = BatchLoader(
        stream,
        preprocess,
        tokenizer,
        config.augment,
        config.pairs_per_part(team.count),
        config.workers,
        seed=config.seed,
        captions=config.captions,
        groups="none" if config.positives == "pair" else config.positives,
        repeat=True,
    )
    # With all captions, a sample is as many pairs as it has captions, which nobody counted.
    pairs = stream.samples_per_epoch() if config.captions == "one" else None
    return Inputs(
        train=loader,
        pairs_per_epoch=pairs,
        val=_HeldOut(config, preprocess, tokenizer) if config.val else None,
        bad_samples=lambda: loader.bad.total,
    )


class _HeldOut:
    """The validation pairs with all their captions, from the beginning each time."""

    def __init__(self, config: TrainConfig, preprocess: Preprocess, tokenizer: Tokenizer) -> None:
        self._config = config
        self._preprocess = preprocess
        self._tokenizer = tokenizer
        next(iter(PairStream(config.val)))  # a wrong path is to be found now, not after an epoch

    def __iter__(self) -> Iterator[Batch]:
        return iter(
            BatchLoader(
                PairStream(self._config.val),
                self._preprocess,
                self._tokenizer,
                None,
                VALIDATION_BATCH,
                self._config.workers,
                captions="all",
                groups="image",
                keep_last=True,
            )
        )
