"""Batches for training, prepared ahead of the model, with a position that is exact.

Threads read, decode, augment and preprocess; one more puts batches together. All of it is in
the stream's order, so that the number of workers changes nothing but the speed. The position
is that of the last batch handed out, not of what was prepared ahead.

Threads and not processes: Pillow and NumPy leave Python's lock where the time goes.
"""

import queue
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from twinlens.data.augment import Augment, generator
from twinlens.data.decode import read_pair
from twinlens.data.image import DEFAULT_MAX_MEGAPIXELS
from twinlens.data.pairs import BadSample, BadSamples, Source, stable_hash
from twinlens.data.parts import Reference
from twinlens.data.preprocess import Preprocess
from twinlens.data.stream import PairStream
from twinlens.data.tokenizer import Tokenizer
from twinlens.errors import ConfigError
from twinlens.runtime.machine import usable_cores
from twinlens.train.negatives import swapped_words

# Undecoded or decoded samples in work per thread: enough for them to be busy while a batch is
# put together, few enough not to matter beside the batches.
SAMPLES_AHEAD = 8

Groups = Literal["none", "image", "label"]
Negatives = Literal["none", "swap"]


@dataclass(frozen=True)
class Batch:
    """Pictures and captions that belong together row by row."""

    pixel_values: Float[Tensor, "batch 3 height width"]
    token_ids: Int64[Tensor, "batch token"]
    keys: tuple[str, ...]
    groups: Int64[Tensor, " batch"] | None = None  # rows of one group fit each other
    negative_ids: Int64[Tensor, "negative token"] | None = None  # captions that fit no picture

    @property
    def positives(self) -> Bool[Tensor, "batch batch"] | None:
        """Which picture fits which caption; None: only its own."""
        if self.groups is None:
            return None
        return self.groups[:, None] == self.groups[None, :]

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class _Row:
    key: str
    pixels: Float32[np.ndarray, "3 height width"]
    caption: str
    group: int
    negative: str | None = None


class BatchLoader:
    """The batches of a stream's epoch; iterating again gives the next epoch's.

    captions "one": a row a picture, with one of its captions. "all": a row a caption, each with
    a view of its own. `groups` says which rows are no negatives of each other: "image", those
    of one picture; "label", those of one label, or picture where there is none. `negatives`
    "swap": each caption that can be made wrong by exchanging two words brings that as well.

    `repeat`: one iteration never ends, and batches reach over the ends of epochs. Otherwise an
    epoch's last rows are dropped where they do not fill a batch, unless `keep_last`.

    Memory: at most `ahead` finished batches, two that are being made, and SAMPLES_AHEAD
    pictures a worker.

    Raises ConfigError, while iterating, for a source without a usable sample and for an epoch
    that does not fill a batch.
    """

    def __init__(
        self,
        stream: PairStream,
        preprocess: Preprocess,
        tokenizer: Tokenizer,
        augment: Augment | None,
        batch_size: int,
        workers: int | None = None,
        *,
        seed: int = 0,
        captions: Literal["one", "all"] = "one",
        groups: Groups = "none",
        negatives: Negatives = "none",
        repeat: bool = False,
        keep_last: bool = False,
        ahead: int = 2,
        max_megapixels: float = DEFAULT_MAX_MEGAPIXELS,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {batch_size}.")
        self.stream = stream
        self.batch_size = batch_size
        self._maker = _RowMaker(
            stream.sources, preprocess, augment, seed, captions, groups, negatives, max_megapixels
        )
        self._tokenizer = tokenizer
        self._workers = workers or usable_cores()
        self._groups = groups
        self._negatives = negatives
        self._repeat = repeat
        self._keep_last = keep_last
        self._ahead = ahead
        self._position: dict[str, Any] = {
            "stream": stream.state_dict(),
            "rows": 0,
            "bad": BadSamples().to_dict(),
        }

    @property
    def bad(self) -> BadSamples:
        """What was left out before the last batch that was handed out, by kind."""
        samples = BadSamples.from_dict(self._position["bad"])
        return samples.merged(BadSamples.from_dict(self._position["stream"]["bad"]))

    def state_dict(self) -> dict[str, Any]:
        """Where the batch after the last one handed out begins, as plain JSON values."""
        return self._position

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go where `state` says. Raises ConfigError when it belongs to other data or settings."""
        self.stream.load_state_dict(state["stream"])
        self._position = state

    def __iter__(self) -> Iterator[Batch]:
        if self.stream.state_dict() != self._position["stream"]:  # an iteration was given up
            self.stream.load_state_dict(self._position["stream"])
        finished: queue.Queue[_Finished] = queue.Queue(maxsize=max(1, self._ahead))
        stop = threading.Event()
        maker = threading.Thread(
            target=self._make,
            args=(self._position, finished, stop),
            daemon=True,
            name="twinlens-batches",
        )
        maker.start()
        try:
            while True:
                batch, position, error = finished.get()
                if error is not None:
                    raise error
                self._position = position
                if batch is None:
                    return
                yield batch
        finally:
            stop.set()
            while maker.is_alive():  # it may be waiting for room
                _empty(finished)
                maker.join(0.01)

    def _make(
        self, start: dict[str, Any], finished: "queue.Queue[_Finished]", stop: threading.Event
    ) -> None:
        """Fill the queue until the end of the iteration; the last entry has no batch."""
        try:
            with ThreadPoolExecutor(self._workers, "twinlens-decode") as pool:
                try:
                    position = start
                    for rows, position in self._batches(start, pool, stop):
                        if stop.is_set():
                            return
                        if rows:
                            finished.put((self._collate(rows), position, None))
                    finished.put((None, position, None))
                finally:
                    pool.shutdown(wait=True, cancel_futures=True)
        except BaseException as error:
            finished.put((None, start, error))

    def _batches(
        self, start: dict[str, Any], pool: ThreadPoolExecutor, stop: threading.Event
    ) -> "Iterator[tuple[list[_Row], dict[str, Any]]]":
        """Rows of each batch and the position after it; at last no rows and the end's position."""
        bad = BadSamples.from_dict(start["bad"])
        skip = start["rows"]
        rows: list[_Row] = []
        made = unused_ends = 0
        for reference, before, future in self._submitted(pool, stop):
            if reference is None:  # the end of an epoch
                if self._repeat:
                    if unused_ends:  # the first may be of an epoch that was all but over
                        raise ConfigError(
                            f"A whole epoch had no usable sample for process {self.stream.rank} "
                            f"of {self.stream.world_size}: take more data, or fewer processes."
                        )
                    unused_ends += 1
                    continue
                if rows and self._keep_last:
                    yield rows, {"stream": before, "rows": 0, "bad": bad.to_dict()}
                elif not made and not start["rows"] and _begins_epoch(start["stream"]):
                    raise ConfigError(
                        f"An epoch has {len(rows):,} usable rows, which do not fill one batch "
                        f"of {self.batch_size:,}: make the batch smaller."
                    )
                yield [], {"stream": before, "rows": 0, "bad": bad.to_dict()}
                return
            assert future is not None
            outcome = future.result()
            failed = outcome if isinstance(outcome, BadSample) else None
            self.stream.report(reference, failed)
            if failed is not None:
                bad.add(failed)
                skip = 0
                continue
            assert not isinstance(outcome, BadSample)
            unused_ends = 0
            for number, row in enumerate(outcome):
                if number < skip:
                    continue
                rows.append(row)
                if len(rows) == self.batch_size:
                    made += 1
                    position = {"stream": before, "rows": number + 1, "bad": bad.to_dict()}
                    yield rows, position
                    rows = []
            skip = 0

    def _submitted(
        self, pool: ThreadPoolExecutor, stop: threading.Event
    ) -> "Iterator[tuple[Reference | None, dict[str, Any], Future[list[_Row] | BadSample] | None]]":
        """Samples in order, with the stream's position before each, decoding ahead of the reader.

        At the end of an epoch a None, with the position after it.
        """
        waiting: deque[Any] = deque()
        depth = SAMPLES_AHEAD * self._workers
        ended = False
        while not stop.is_set():
            while len(waiting) < depth and not ended:
                before = self.stream.state_dict()
                reference = next(self.stream, None)
                if reference is None:
                    waiting.append((None, self.stream.state_dict(), None))
                    ended = not self._repeat
                else:
                    waiting.append((reference, before, pool.submit(self._maker, reference)))
            yield waiting.popleft()

    def _collate(self, rows: list[_Row]) -> Batch:
        pixels = np.stack([row.pixels for row in rows])
        groups = None
        if self._groups != "none":
            groups = torch.tensor([row.group for row in rows], dtype=torch.int64)
        negatives = [row.negative for row in rows if row.negative is not None]
        # Together, so that all have as many ids as the longest.
        ids = torch.from_numpy(self._tokenizer([*(row.caption for row in rows), *negatives]))
        return Batch(
            torch.from_numpy(pixels),
            ids[: len(rows)],
            tuple(row.key for row in rows),
            groups,
            None if self._negatives == "none" else ids[len(rows) :],
        )


_Finished = tuple[Batch | None, dict[str, Any], BaseException | None]


@dataclass(frozen=True)
class _RowMaker:
    """One sample's rows; called by the workers."""

    sources: tuple[Source, ...]
    preprocess: Preprocess
    augment: Augment | None
    seed: int
    captions: Literal["one", "all"]
    groups: Groups
    negatives: Negatives
    max_megapixels: float

    def __call__(self, reference: Reference) -> list[_Row] | BadSample:
        augment = self.augment
        size = self.preprocess.resized_side
        if augment is not None:
            size = augment.decode_size(self.preprocess)
        source = self.sources[reference.source]
        pair = read_pair(reference, source, target_size=size, max_megapixels=self.max_megapixels)
        if isinstance(pair, BadSample):
            return pair
        group = stable_hash("image", reference.source, reference.key)
        if self.groups == "label" and pair.label is not None:
            group = stable_hash("label", reference.source, pair.label)
        words = generator(self.seed, reference.slot, 0)
        if self.captions == "all":
            captions = pair.captions
            if augment is not None:
                captions = tuple(augment.thinned(caption, words) for caption in captions)
        elif augment is None:
            captions = pair.captions[:1]
        else:
            captions = (augment.choose(pair.captions, words),)
        wrong: list[str | None] = [None] * len(captions)
        if self.negatives == "swap":
            wrong = [swapped_words(caption, words) for caption in captions]
        rows: list[_Row] = []
        for number, (caption, negative) in enumerate(zip(captions, wrong, strict=True)):
            if augment is not None:
                random = generator(self.seed, reference.slot, 1 + number)
                pixels = augment.view(pair.image, self.preprocess, random)
            else:
                pixels = self.preprocess(pair.image) if number == 0 else rows[0].pixels
            rows.append(_Row(reference.key, pixels, caption, group, negative))
        return rows


def _begins_epoch(state: dict[str, Any]) -> bool:
    return not any(s["taken"] or s["part"] or s["sample"] for s in state["sequences"])


def _empty(finished: "queue.Queue[_Finished]") -> None:
    while True:
        try:
            finished.get_nowait()
        except queue.Empty:
            return
