"""Turns pictures and texts into unit vectors of one shared space.

Joins what others do: image.py decodes, preprocess.py and tokenizer.py prepare, the
sessions of runtime/ compute. What is done here is the joining: decoding overlaps the
session, in the way that was measured to be the fastest here if the stream is long; a bad
picture is reported instead of ending the run, and a text beyond the model's context is cut
with a warning or averaged over its parts.
"""

import functools
import logging
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float32
from PIL import Image

from twinlens.data.image import DEFAULT_MAX_MEGAPIXELS, ImageSource, read_image, source_name
from twinlens.data.tokenizer import Tokenizer, open_tokenizer
from twinlens.errors import ConfigError, UnreadableImage
from twinlens.hub.cache import cache_folder
from twinlens.runtime.folder import (
    CONFIG_NAME,
    RuntimeConfig,
    load_runtime_config,
    locate,
    model_identity,
    split_dim,
)
from twinlens.runtime.machine import usable_cores
from twinlens.runtime.plan import LONG_STREAM, Plan, best_plan
from twinlens.runtime.session import Runtime, Session, open_session, unit_rows

Item = TypeVar("Item")
Result = TypeVar("Result")

DEFAULT_BATCH_SIZE = 8  # int8 mini, 2 cores: 4 to 8 keep activations in cache, 16 is 15% slower
TEXT_BATCH_SIZE = 64
BATCHES_AHEAD = 4  # decoded pictures that may wait for the session, in batches
BATCHES_PER_WORKER = 2  # that may wait for whoever reads the stream


class SkippedItemsWarning(UserWarning):
    """Some pictures could not be read; their rows are NaN."""


class TruncatedTextWarning(UserWarning):
    """Some texts were longer than the model reads; says what was cut."""


@dataclass(frozen=True)
class Skipped:
    """A picture that could not be embedded, by its place among the sources given."""

    position: int
    source: str
    reason: str
    lasting: bool = True  # False: the same bytes may be readable tomorrow


@dataclass(frozen=True)
class EmbeddedBatch:
    """Vectors of the pictures at `positions`, row by row, and those left out between them."""

    positions: list[int]
    vectors: Float32[np.ndarray, "item dim"]
    skipped: list[Skipped]


@dataclass(frozen=True)
class _Unread:
    """Stands in for the pixels of a picture that could not be read."""

    source: str
    reason: str
    lasting: bool = True


@runtime_checkable
class EmbedderLike(Protocol):
    """What search and its tests need of an embedder: Embedder or testing.FakeEmbedder."""

    @property
    def model_id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def context(self) -> int: ...
    @property
    def image_query_weight(self) -> float: ...

    def images(
        self, sources: Iterable[ImageSource], *, skipped: list[Skipped] | None = None
    ) -> Float32[np.ndarray, "item dim"]: ...

    def stream_images(
        self, sources: Iterable[ImageSource], *, batch_size: int | None = None
    ) -> Iterator[EmbeddedBatch]: ...

    def texts(
        self, texts: Sequence[str], *, long: Literal["truncate", "average"] = "truncate"
    ) -> Float32[np.ndarray, "item dim"]: ...


class Embedder:
    """A model, ready to embed: `Embedder().texts(["a dog"])`.

    `model` is the name of a built-in or pulled model, a runtime folder, or a checkpoint of any
    published format, which is converted once into the user's cache. `dim` keeps that many
    leading numbers of each vector and brings them back to unit length (Matryoshka: Kusupati et
    al. 2022, arXiv:2205.13147); `"NAME@256"` says the same in the name. `runtime` is
    "onnxruntime" or "openvino" (extra `openvino`). `threads` bounds both the decoding threads
    and the session's; by default the cores this process may use. Without a `batch_size` the
    first long stream measures for two seconds what is fastest here, and the user's cache
    remembers it. Each tower is opened at its first use, so a text search never loads the image
    tower. May be shared between threads.

    Raises ModelNotFound for a name or folder that holds no model, ConfigError for one that
    does not fit this version and for fewer than one thread, what load_model raises for a
    checkpoint.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = "mini",
        *,
        dim: int | None = None,
        runtime: Runtime = "onnxruntime",
        threads: int | None = None,
        max_megapixels: float = DEFAULT_MAX_MEGAPIXELS,
        batch_size: int | None = None,
    ) -> None:
        for option, value in (("threads", threads), ("batch_size", batch_size), ("dim", dim)):
            if value is not None and value < 1:
                raise ConfigError(f"{option} {value}: must be at least 1")
        name, named_dim = split_dim(model)
        self.folder: Path = _ready(name)
        self.config: RuntimeConfig = load_runtime_config(self.folder)
        self.dim: int = dim or named_dim or self.config.dim  # numbers per vector
        if self.dim > self.config.dim:
            raise ConfigError(
                f"{self.config.name} gives {self.config.dim} numbers per vector; {self.dim} "
                f"cannot be kept."
            )
        self.runtime: Runtime = runtime
        self.threads = threads or usable_cores()
        self.max_megapixels = max_megapixels
        self.batch_size = batch_size or DEFAULT_BATCH_SIZE
        self._measures = batch_size is None  # an explicit size is taken as it is
        self._sessions: dict[tuple[str, int], Session] = {}
        self._opening = threading.Lock()

    @property
    def name(self) -> str:
        """As --model takes it: `mini`, or `mini@64` for vectors that were cut off."""
        cut = self.dim < self.config.dim
        return f"{self.config.name}@{self.dim}" if cut else self.config.name

    @property
    def context(self) -> int:
        """Tokens the text tower reads, its start and end included."""
        return self.config.tokenizer.context

    @property
    def image_query_weight(self) -> float:
        """What an image's vector is multiplied by before it is added to a text's."""
        return self.config.image_query_weight

    @functools.cached_property
    def model_id(self) -> str:
        """Name, version and fingerprint; two models with one id give the same vectors."""
        identity = model_identity(self.folder, self.config)
        return identity if self.dim == self.config.dim else f"{identity}@{self.dim}"

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        return open_tokenizer(self.config.tokenizer, self.folder)

    @property
    def image_session(self) -> Session:
        """The image tower alone: preprocessed pixels in, vectors of any length out."""
        return self._open_once(self.config.image_file)

    @property
    def text_session(self) -> Session:
        """The text tower alone: padded token ids in, vectors of any length out."""
        return self._open_once(self.config.text_file)

    def images(
        self, sources: Iterable[ImageSource], *, skipped: list[Skipped] | None = None
    ) -> Float32[np.ndarray, "item dim"]:
        """One unit vector per path, encoded bytes, Pillow image or uint8 array.

        The row of a picture that cannot be read is NaN. Such pictures are appended to
        `skipped`, or named in one SkippedItemsWarning when no list is given.
        """
        return collect_images(self, sources, skipped)

    def stream_images(
        self, sources: Iterable[ImageSource], *, batch_size: int | None = None
    ) -> Generator[EmbeddedBatch, None, None]:
        """The same for any number of pictures: batch by batch, in order, in bounded memory.

        `sources` is read only a few batches ahead. Leaving the loop early cancels what
        has not begun; at most one picture per thread is waited for.
        """
        size = batch_size or self.batch_size
        if batch_size is None and self._measures:
            beginning = list(islice(sources := iter(sources), LONG_STREAM))
            sources = chain(beginning, sources)
            if len(beginning) == LONG_STREAM:
                plan = self._plan
                size = plan.batch_size
                if plan.workers > 1:
                    yield from self._stream_by_workers(sources, plan)
                    return
        prepared = _map_ahead(
            self._prepare, sources, workers=self.threads, ahead=BATCHES_AHEAD * size
        )
        numbered = enumerate(prepared)
        try:
            while batch := list(islice(numbered, size)):
                yield self._embedded(batch, self.image_session)
        finally:
            prepared.close()

    def _stream_by_workers(
        self, sources: Iterable[ImageSource], plan: Plan
    ) -> Generator[EmbeddedBatch, None, None]:
        """Each worker decodes and runs a batch of its own."""
        session = self._open_once(self.config.image_file, plan.threads)
        numbered = enumerate(sources)
        batches = iter(lambda: list(islice(numbered, plan.batch_size)), [])

        def embed(batch: list[tuple[int, ImageSource]]) -> EmbeddedBatch:
            prepared = [(place, self._prepare(source)) for place, source in batch]
            return self._embedded(prepared, session)

        ahead = plan.workers * BATCHES_PER_WORKER
        done = _map_ahead(embed, batches, workers=plan.workers, ahead=ahead)
        try:
            yield from done
        finally:
            done.close()

    @functools.cached_property
    def _plan(self) -> Plan:
        config = self.config
        side = config.preprocess.image_size
        return best_plan(
            lambda threads: self._open_once(config.image_file, threads),
            lambda size: np.zeros((size, 3, side, side), dtype=np.float32),
            fingerprint=self.model_id,
            runtime=self.runtime,
            cores=self.threads,
            cache=cache_folder(),
        )

    def texts(
        self, texts: Sequence[str], *, long: Literal["truncate", "average"] = "truncate"
    ) -> Float32[np.ndarray, "item dim"]:
        """One unit vector per text.

        A text beyond the context is cut, and a TruncatedTextWarning says where; or, with
        `long="average"`, embedded in parts whose vectors are averaged by their length.
        """
        if isinstance(texts, str):
            raise TypeError(f"texts() takes a list of strings: texts([{texts!r}])")
        if long not in ("truncate", "average"):
            raise ValueError(f"long={long!r}: must be 'truncate' or 'average'")
        if long == "average":
            return self._average_texts(texts)
        ids = [self._tokenizer.encode(text) for text in texts]
        if too_long := [place for place in range(len(ids)) if len(ids[place]) > self.context]:
            first = too_long[0]
            kept = self._tokenizer.kept_text(texts[first])
            warnings.warn(
                f"{len(too_long)} of {len(texts)} texts exceed the {self.context} tokens that"
                f" {self.name} reads. Text {first} has {len(ids[first])}: kept up to"
                f" {_excerpt(kept, from_end=True)}, cut {_excerpt(texts[first][len(kept) :])}."
                ' Shorten it, or use long="average" to embed all of it.',
                TruncatedTextWarning,
                stacklevel=2,
            )
        return self._text_vectors([self._tokenizer.truncate(piece) for piece in ids])

    def _average_texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "item dim"]:
        parts = [self._tokenizer.chunks(text) for text in texts]
        vectors = self._text_vectors([part for text_parts in parts for part in text_parts])
        # By words, so that three left over for the last part do not count as much as a page.
        frame = len(self._tokenizer.encode(""))  # start and end, which every part has
        words = [max(1, len(part) - frame) for text_parts in parts for part in text_parts]
        weights = np.array(words, dtype=np.float32).reshape(-1, 1)
        sums = np.zeros((len(texts), self.dim), dtype=np.float32)
        owners = np.repeat(np.arange(len(texts)), [len(text_parts) for text_parts in parts])
        np.add.at(sums, owners, vectors * weights)
        return unit_rows(sums)

    def _text_vectors(self, pieces: list[list[int]]) -> Float32[np.ndarray, "item dim"]:
        """Texts of like length share a batch, so that little of it is padding."""
        vectors = np.empty((len(pieces), self.dim), dtype=np.float32)
        order = sorted(range(len(pieces)), key=lambda place: len(pieces[place]))
        for start in range(0, len(order), TEXT_BATCH_SIZE):
            places = order[start : start + TEXT_BATCH_SIZE]
            batch = self._tokenizer.pad([pieces[place] for place in places])
            vectors[places] = unit_rows(self.text_session.run(batch)[:, : self.dim])
        return vectors

    def _prepare(self, source: ImageSource) -> "_Prepared":
        preprocess = self.config.preprocess
        try:
            image = read_image(
                source, target_size=preprocess.resized_side, max_megapixels=self.max_megapixels
            )
            return preprocess(image)
        except UnreadableImage as error:
            return _Unread(error.source, error.reason, error.lasting)
        except Exception as error:  # out of memory while resizing, say
            return _Unread(source_name(source), str(error) or type(error).__name__)

    def _embedded(self, batch: "list[tuple[int, _Prepared]]", session: Session) -> EmbeddedBatch:
        good = [(place, item) for place, item in batch if not isinstance(item, _Unread)]
        vectors = np.empty((0, self.dim), dtype=np.float32)
        if good:
            vectors = unit_rows(session.run(np.stack([p for _, p in good]))[:, : self.dim])
        return EmbeddedBatch(
            positions=[place for place, _ in good],
            vectors=vectors,
            skipped=[
                Skipped(place, item.source, item.reason, item.lasting)
                for place, item in batch
                if isinstance(item, _Unread)
            ],
        )

    def _open_once(self, file_name: str, threads: int | None = None) -> Session:
        key = (file_name, threads or self.threads)
        with self._opening:
            if key not in self._sessions:
                self._sessions[key] = open_session(
                    self.folder / file_name, runtime=self.runtime, threads=key[1]
                )
            return self._sessions[key]


_Prepared = Float32[np.ndarray, "3 height width"] | _Unread


def collect_images(
    embedder: EmbedderLike, sources: Iterable[ImageSource], skipped: list[Skipped] | None
) -> Float32[np.ndarray, "item dim"]:
    """All of a stream's rows in one array, NaN where a picture was skipped."""
    if isinstance(sources, str | bytes | os.PathLike | Image.Image) or (
        isinstance(sources, np.ndarray) and sources.ndim != 4
    ):
        raise TypeError("images() takes a list of pictures: images([picture])")
    sources = list(sources)
    vectors = np.full((len(sources), embedder.dim), np.nan, dtype=np.float32)
    bad: list[Skipped] = []
    for batch in embedder.stream_images(sources):
        vectors[batch.positions] = batch.vectors
        bad += batch.skipped
    if skipped is not None:
        skipped += bad
    elif bad:
        named = "; ".join(f"{item.source}: {item.reason}" for item in bad[:3])
        more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
        warnings.warn(
            f"skipped {len(bad)} of {len(sources)} pictures, their rows are NaN: {named}{more}",
            SkippedItemsWarning,
            stacklevel=3,
        )
    return vectors


def _map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, ahead: int
) -> Generator[Result, None, None]:
    """Results in order, computed in threads at most `ahead` items before they are asked for."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="twinlens-decode")
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _excerpt(text: str, *, from_end: bool = False) -> str:
    """A quotation short enough for a warning."""
    text = " ".join(text.split())
    if len(text) <= 40:
        return repr(text)
    return repr(f"…{text[-40:]}" if from_end else f"{text[:40]}…")


def _ready(model: str | os.PathLike[str]) -> Path:
    """The runtime folder of a model; a checkpoint is converted at its first use."""
    place = locate(model)
    if (place / CONFIG_NAME).is_file():
        return place
    from twinlens.runtime.convert import ready_folder  # by now it may take a minute anyway

    return ready_folder(model, say=logging.getLogger("twinlens").info)
