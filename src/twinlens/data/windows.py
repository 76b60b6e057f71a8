"""One endless sequence of samples out of many parts, shuffled window by window.

A pass over the parts goes through them in an order of its own; what they hold is cut into
windows, and each window is shuffled. A window holds references, not pictures, and is a
function of the seed and of where it starts: a few small numbers say which sample is next.
Which rank takes it, and from which of several sequences, is stream.py's.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from twinlens.data.order import shuffled
from twinlens.data.pairs import BadSample
from twinlens.data.parts import OpenPart, Part, Reference

FETCH_AHEAD = 2  # slow parts that are fetched beyond the one that is needed


class WindowedSequence:
    """The samples of `parts`, over and over.

    A `window` of 0 or 1 leaves everything in its order. `share` (rank, world size) keeps only
    every world-size-th part.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        *,
        name: str,
        seed: int,
        window: int,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.passes = 0  # finished ones, over all parts
        self.problems: list[BadSample] = []  # of parts, as they are met; the caller empties it
        self.pass_counts: dict[int, int] | None = None  # samples by source, in a whole pass
        self.share = share
        self._parts = parts
        self._name = name
        self._seed = seed
        self._window = window
        self._begin_pass(0)

    def ready(self) -> bool:
        """Whether a sample is there; False, once, at the end of each pass."""
        if self._taken < len(self._order):
            return True
        self._fill(self._next_start, lost=())
        if len(self._order):
            return True
        self._note_problems()
        if self._whole:
            self.pass_counts = self._counts
        self._begin_pass(self.passes + 1)
        return False

    def skip(self) -> None:
        """Leave the next sample to another rank. Only after ready()."""
        self._note_problems()
        self._taken += 1

    def take(self, slot: int) -> Reference:
        """The next sample. Only after ready()."""
        row = int(self._order[self._taken])
        self.skip()
        return self._open[self._ordinals[row]].reference(int(self._samples[row]), slot=slot)

    def state_dict(self) -> dict[str, Any]:
        """Which sample is next."""
        if self._taken == len(self._order):
            part, sample = self._next_start
            return {"pass": self.passes, "part": part, "sample": sample, "taken": 0, "lost": []}
        part, sample = self._start
        lost = self._lost if self._taken else []
        return {
            "pass": self.passes,
            "part": part,
            "sample": sample,
            "taken": self._taken,
            "lost": list(lost),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go where `state` says."""
        self._begin_pass(state["pass"])
        self._next_start = state["part"], state["sample"]
        self._whole = not (state["part"] or state["sample"] or state["taken"])
        if state["taken"]:
            self._fill(self._next_start, lost=state["lost"])
            self._taken = state["taken"]
            self._unnoted.clear()  # they were counted before the state was saved

    def _begin_pass(self, passes: int) -> None:
        self.passes = passes
        order = np.arange(len(self._parts))
        if self._window > 1:
            order = shuffled(len(self._parts), "parts", self._name, self._seed, passes)
        rank, world_size = self.share
        self._part_order = order[rank::world_size].tolist()
        self._open: dict[int, OpenPart] = {}
        self._opening: dict[int, Future[OpenPart]] = {}
        self._counts: dict[int, int] = {}
        self._whole = True
        self._start = self._next_start = (0, 0)
        self._clear_window()

    def _clear_window(self) -> None:
        self._taken = 0
        self._order = self._ordinals = self._samples = np.zeros(0, dtype=np.int64)
        self._lost = list[int]()  # parts of this window that could not be had
        self._unnoted = list[BadSample]()

    def _note_problems(self) -> None:
        if self._unnoted:
            self.problems += self._unnoted
            self._unnoted.clear()

    def _fill(self, start: tuple[int, int], *, lost: Sequence[int]) -> None:
        """Open the window that begins at `start`, as if the parts in `lost` were empty."""
        self._clear_window()
        self._start = start
        part, sample = start
        self._open = {ordinal: self._open[ordinal] for ordinal in self._open if ordinal >= part}
        room = self._window if self._window > 1 else 1
        ordinals, samples = [], []
        while part < len(self._part_order) and room > 0:
            if part in lost:
                self._lost.append(part)
                part, sample = part + 1, 0
                continue
            opened = self._opened(part)
            if sample == 0:
                self._unnoted += opened.problems
                source = self._parts[self._part_order[part]].source
                self._counts[source] = self._counts.get(source, 0) + len(opened)
                if opened.problems and not len(opened):
                    self._lost.append(part)
            count = len(opened) - sample
            if self._window > 1:
                count = min(count, room)
            ordinals.append(np.full(count, part))
            samples.append(np.arange(sample, sample + count))
            room -= count
            sample += count
            if sample == len(opened):
                part, sample = part + 1, 0
        self._next_start = part, sample
        if not ordinals:
            return
        self._ordinals, self._samples = np.concatenate(ordinals), np.concatenate(samples)
        self._order = np.arange(len(self._samples))
        if self._window > 1:
            seeds = ("window", self._name, self._seed, self.passes, *start)
            self._order = shuffled(len(self._samples), *seeds)

    def _opened(self, ordinal: int) -> OpenPart:
        if ordinal in self._open:
            return self._open[ordinal]
        for ahead in range(ordinal, min(ordinal + 1 + FETCH_AHEAD, len(self._part_order))):
            part = self._parts[self._part_order[ahead]]
            if part.slow and ahead not in self._open and ahead not in self._opening:
                self._opening[ahead] = _in_background(part)
        future = self._opening.pop(ordinal, None)
        part = self._parts[self._part_order[ordinal]]
        self._open[ordinal] = part.open() if future is None else future.result()
        return self._open[ordinal]


def _in_background(part: Part) -> "Future[OpenPart]":
    future: Future[OpenPart] = Future()

    def run() -> None:
        try:
            future.set_result(part.open())
        except BaseException as error:
            future.set_exception(error)

    # A daemon: a server that hangs must not keep the process from ending.
    threading.Thread(target=run, daemon=True, name="twinlens-fetch").start()
    return future
