"""Undecoded samples in a reproducible order, which stops anywhere and goes on exactly there.

Every sample has a slot, a number that counts over all epochs and ranks: rank r of w takes
the slots r, r + w, r + 2w, ... A slot's source is chosen by arithmetic on its number, and the
next sample of that source by windows.py. So one seed gives one order, however many ranks or
workers there are, and w ranks with batches of b see what one rank with batches of w times b
does. The exception are sources with slow parts, gzipped or remote, and all with more than
STRIDING_RANKS ranks: where there are at least as many parts as ranks, the parts are dealt
out, so that a rank fetches, unpacks and indexes only its own.

Positions are small and hold no pictures. Decoding is decode.py's, batches train/loader.py's.
"""

import itertools
import os
from collections.abc import Iterator, Sequence, Sized
from typing import Any

from twinlens.data.order import random_share
from twinlens.data.pairs import BadSample, BadSamples, Source, stable_hash
from twinlens.data.parts import Part, Reference, list_parts
from twinlens.data.windows import WindowedSequence
from twinlens.errors import ConfigError

# References in a window; their indexes take about 150 bytes each. All shards of a window must
# be on the disk at once, which counts for remote ones: 100,000 pictures can be 10 GB.
DEFAULT_SHUFFLE_BUFFER = 100_000
# Shards whose headers are read to count their samples: 6 microseconds a member.
MOST_COUNTED = 100

# A rank spends 14 microseconds on every sample that another one takes: 0.1 ms for each of its
# own among 8 ranks, 0.9 ms among 64.
STRIDING_RANKS = 8


class PairStream:
    """References to the samples of `sources`, an epoch at a time.

    Iterating goes from wherever the stream is to the end of the epoch; iterating again gives
    the next one. An epoch is `epoch_size` slots of all ranks together, or else every sample of
    all sources once (sources with weights: until each has been gone through).

    Raises ConfigError for sources that are not there or cannot be understood, and, while
    iterating, for one without a single usable sample.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        seed: int = 0,
        shuffle_buffer: int = DEFAULT_SHUFFLE_BUFFER,
        rank: int = 0,
        world_size: int = 1,
        epoch_size: int | None = None,
    ) -> None:
        if not sources:
            raise ConfigError("There is no source to take pairs from: name at least one.")
        if not 0 <= rank < world_size:
            raise ConfigError(f"Rank {rank} is not one of {world_size}.")
        if epoch_size is not None and epoch_size < 1:
            raise ConfigError(f"epoch_size must be at least 1, not {epoch_size}.")
        weighted = [source for source in sources if source.weight is not None]
        if weighted and len(weighted) < len(sources):
            missing = next(source.name for source in sources if source.weight is None)
            raise ConfigError(
                f"{missing} has no weight, but another source has: weigh all or none."
            )
        self.sources = tuple(sources)
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.bad = BadSamples()  # shards and tables alone; samples are judged when decoded
        self._epoch_size = epoch_size
        self._parts = [list_parts(source, number) for number, source in enumerate(sources)]
        groups = self._parts if weighted else [list(itertools.chain.from_iterable(self._parts))]
        self._sequences = [
            WindowedSequence(
                parts,
                name=str(number),
                seed=seed,
                window=shuffle_buffer,
                share=_share(parts, rank, world_size),
            )
            for number, parts in enumerate(groups)
        ]
        total = sum(source.weight or 0.0 for source in weighted)
        shares = [(source.weight or 0.0) / total for source in weighted] or [1.0]
        self._thresholds = list(itertools.accumulate(shares))[:-1]
        self._choice_hash = stable_hash("source", seed)
        self._slot = 0
        self._passes_before = [0] * len(groups)
        self._outcomes = [[0, 0] for _ in sources]  # good and bad ones, as reported
        self._settings = {
            "seed": seed,
            "shuffle_buffer": shuffle_buffer,
            "rank": rank,
            "world_size": world_size,
            "data": stable_hash(*(_mark(p) for parts in self._parts for p in parts)),
        }

    def __iter__(self) -> Iterator[Reference]:
        return self

    def __next__(self) -> Reference:
        """Raises StopIteration at the end of an epoch; the next call begins another."""
        while True:
            size = self._epoch_size
            if size is not None and self._slot >= (self.epoch + 1) * size:
                self._end_epoch()
            sequence = self._sequences[self._choose()]
            if not sequence.ready():
                self._collect_problems(sequence)
                self._refuse_empty(sequence)
                if self._epoch_size is None and self._all_passed():
                    self._end_epoch()
                continue
            own = self._slot % self.world_size == self.rank
            reference = None
            if own:
                reference = sequence.take(self._slot)
            elif sequence.share[1] == 1:
                sequence.skip()
            self._slot += 1
            self._collect_problems(sequence)
            if reference is not None:
                return reference

    def report(self, reference: Reference, bad: BadSample | None) -> None:
        """What became of a sample, None when it was good.

        Raises ConfigError when its source turns out to have nothing but bad ones.
        """
        outcomes = self._outcomes[reference.source]
        outcomes[bad is not None] += 1
        if bad is None or outcomes[0]:
            return
        for sequence in self._sequences:
            counts = sequence.pass_counts or {}
            share = 1 if sequence.share[1] > 1 else self.world_size
            if 0 < counts.get(reference.source, 0) <= outcomes[1] * share:
                name = self.sources[reference.source].name
                raise ConfigError(
                    f"Not one sample of {name} can be used: {outcomes[1]:,} were tried. "
                    f"The last was {bad}."
                )

    def samples_per_epoch(self) -> int | None:
        """Slots in an epoch over all ranks, or None where counting them would take long."""
        if self._epoch_size is not None:
            return self._epoch_size
        parts = list(itertools.chain.from_iterable(self._parts))
        shards = [part for part in parts if not isinstance(part, Sized)]
        if len(self._sequences) > 1 or len(shards) > MOST_COUNTED or any(p.slow for p in parts):
            return None
        return sum(len(part.open()) for part in parts)

    def state_dict(self) -> dict[str, Any]:
        """Which sample is next, as plain JSON values; of this rank alone."""
        return {
            **self._settings,
            "epoch": self.epoch,
            "slot": self._slot,
            "passes_before": list(self._passes_before),
            "sequences": [sequence.state_dict() for sequence in self._sequences],
            "bad": self.bad.to_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go where `state` says. Raises ConfigError when it belongs to other data or settings."""
        for setting, value in self._settings.items():
            if state.get(setting) != value:
                if setting == "data":
                    raise ConfigError(
                        "The saved position belongs to other data: shards or tables were added, "
                        "removed or renamed. Continue with the old ones, or start a new run."
                    )
                raise ConfigError(
                    f"The saved position belongs to {setting} {state.get(setting)}, not {value}: "
                    f"continue with the same, or start a new run."
                )
        self.epoch = state["epoch"]
        self._slot = state["slot"]
        self._passes_before = list(state["passes_before"])
        self.bad = BadSamples.from_dict(state["bad"])
        for sequence, saved in zip(self._sequences, state["sequences"], strict=True):
            sequence.load_state_dict(saved)

    def _choose(self) -> int:
        """The sequence of the next slot; by chance, or ranks would never see some sources."""
        if not self._thresholds:
            return 0
        share = random_share(self._slot, self._choice_hash)
        return sum(share >= threshold for threshold in self._thresholds)

    def _all_passed(self) -> bool:
        pairs = zip(self._sequences, self._passes_before, strict=True)
        return all(sequence.passes > before for sequence, before in pairs)

    def _end_epoch(self) -> None:
        self.epoch += 1
        self._passes_before = [sequence.passes for sequence in self._sequences]
        raise StopIteration

    def _collect_problems(self, sequence: WindowedSequence) -> None:
        while sequence.problems:
            self.bad.add(sequence.problems.pop(0))

    def _refuse_empty(self, sequence: WindowedSequence) -> None:
        """After a pass: every source in it must have had something."""
        counts = sequence.pass_counts
        if counts is None:
            return
        for source in sorted(counts):
            if counts[source] == 0:
                first = next(iter(self.bad.first.values()), "its shards are empty")
                raise ConfigError(f"Nothing can be read from {self.sources[source].name}: {first}.")


def _mark(part: Part) -> str:
    """What tells a part from another one, wherever the data is moved or however it is signed."""
    name = os.path.basename(part.name.partition("?")[0])
    return name if part.slow or not isinstance(part, Sized) else f"{name} {len(part)}"


def _share(parts: Sequence[Part], rank: int, world_size: int) -> tuple[int, int]:
    many = world_size > STRIDING_RANKS or any(part.slow for part in parts)
    deal = many and len(parts) >= world_size
    return (rank, world_size) if deal else (0, 1)
