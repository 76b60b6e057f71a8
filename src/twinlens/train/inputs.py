"""Where a run's batches come from: the loader of the configuration's sources, joined to the loop.

The loop knows `Inputs` and `Batches` only, so a program with data of its own can give it
anything that has what they have.
"""

from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from twinlens.data.parts import list_parts
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
    """Batches without end, each of `TrainConfig.pairs_per_part` pairs, from where it is.

    With `TrainConfig.negative_captions` every batch has `negative_ids`, perhaps without a row.
    """

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
        negatives=config.negative_captions,
        repeat=True,
    )
    return Inputs(
        train=loader,
        pairs_per_epoch=_pairs_per_epoch(config, stream),
        val=_HeldOut(config, preprocess, tokenizer) if config.val else None,
        bad_samples=lambda: loader.bad.total,
    )


def _pairs_per_epoch(config: TrainConfig, stream: PairStream) -> int | None:
    """Rows of all batches of an epoch, or None where counting them would take long."""
    samples = stream.samples_per_epoch()
    if config.captions == "one" or samples is None:
        return samples
    # A sample is as many pairs as it has captions: folders and tables know, shards must be read.
    sources = enumerate(config.data)
    parts = [part for number, source in sources for part in list_parts(source, number)]
    if not all(isinstance(part, Sized) for part in parts):
        return None
    opened = [part.open() for part in parts]
    return sum(len(p.reference(n, slot=0).captions) for p in opened for n in range(len(p)))


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
