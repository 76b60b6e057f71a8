"""At which place each picture and each caption is found: exact, both ways, in one pass.

Blocks of the similarity matrix are made one after the other and never kept: of 100,000 pictures
and 500,000 captions it would be 200 GB. A place is one more than the number of others that
score at least as high, so that counting is enough and nothing is sorted. Each block serves
both directions while it is in the processor's cache; benchmarks/retrieval_metrics.py measures
what that costs beside the bare product.

A tie counts against us: a model that gives one score for all finds nothing. Two scores are a
tie when they are closer than TIE: what a sum of 512 products in float32 comes to depends on
the order of adding by about 2e-7, and one pair of vectors need not score the same in two blocks.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import numpy as np
from jaxtyping import Float32, Int, Integer, UInt8

from twinlens.errors import ConfigError
from twinlens.runtime.machine import usable_cores

TIE = 1e-6
# A block is captions x pictures: 8 MB, for the product to be efficient (each block packs its
# vectors anew), counted in strips of 512 KB, which stay in a core's own cache for all passes.
BLOCK_CAPTIONS = 1024
BLOCK_IMAGES = 2048
STRIP_CAPTIONS = 64  # at most 255: a strip's counts per picture are bytes
CHUNK_ROWS = 8192  # of vectors that are looked at one by one, before the blocks

Progress = Callable[[int, int], None]  # captions done, captions in all


@dataclass(frozen=True, eq=False)
class Ranks:
    """Places, from 1.

    `image` says at which place a caption finds its own picture among all pictures. `caption`
    says at which place its picture finds it among all captions, the picture's other captions
    included: its best two may be at 1 and 2. With `best_only`, `caption` holds the place of
    the picture's best caption, once for each of its captions.
    """

    image: Int[np.ndarray, " caption"]
    caption: Int[np.ndarray, " caption"]
    owner: Int[np.ndarray, " caption"]  # the row of each caption's picture
    best_only: bool = False


def exact_ranks(
    images: Float32[np.ndarray, "image image_dim"],
    captions: Float32[np.ndarray, "caption caption_dim"],
    owner: Sequence[int] | Integer[np.ndarray, " owned"],
    *,
    best_only: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Ranks:
    """Of unit vectors; row j of `captions` belongs to row `owner[j]` of `images`.

    A picture without captions is only in the others' way. `best_only` counts for each
    picture's best caption alone: enough for recall, and no slower for many captions a picture.
    `threads` are the cores to use, by default all that this process may; without the package
    threadpoolctl (scikit-learn brings it) only the products share them. Beside the vectors it
    takes 9 MB a thread and a few numbers an item, and a copy of the pictures' vectors where
    they do not all have equally many captions.

    Raises ConfigError for counts that do not fit, an owner that is no picture's row, and
    vectors with a number that is none.
    """
    rows = np.asarray(owner, dtype=np.int64)
    _check(images, captions, rows)
    plan = _Plan(images, captions, rows, best_only)
    starts = range(0, len(captions), BLOCK_CAPTIONS)
    cores = threads or usable_cores()
    workers = min(cores, len(starts)) if find_spec("threadpoolctl") else 1
    idle = [_Counter(plan) for _ in range(workers)]
    counters = list(idle)
    image_ranks = np.empty(len(captions), dtype=np.int64)

    def count(start: int) -> int:
        counter = idle.pop()  # as many as threads, so that there is always one
        stop = min(start + BLOCK_CAPTIONS, len(captions))
        image_ranks[start:stop] = counter.count(start, stop)
        idle.append(counter)
        return stop

    with _blas_threads(cores // workers), ThreadPoolExecutor(workers) as pool:
        for done in pool.map(count, starts):
            if progress is not None:
                progress(done, len(captions))
    reached = np.sum([counter.reached for counter in counters], axis=0)
    return Ranks(image_ranks, plan.caption_ranks(reached), rows, best_only)


class _Plan:
    """The scores to beat, in the order in which blocks meet them.

    Pictures are taken by falling number of captions. Level k holds the score of the k-th best
    caption of each picture that has as many: a beginning of that order. So no level is longer
    than need be, and a picture with a thousand captions costs the others nothing.
    """

    def __init__(
        self,
        images: Float32[np.ndarray, "image dim"],
        captions: Float32[np.ndarray, "caption dim"],
        owner: Int[np.ndarray, " caption"],
        best_only: bool,
    ) -> None:
        per_image = np.bincount(owner, minlength=len(images))
        order = np.argsort(-per_image, kind="stable")
        self.images = images[order] if (np.diff(order) != 1).any() else images
        self.captions = captions
        place = np.empty(len(images), dtype=np.int64)
        place[order] = np.arange(len(images))
        own = _own_scores(images, captions, owner)
        self.caption_scores = _to_reach(own)
        # The captions picture by picture in that order, the best of each first.
        self._sorted = np.lexsort((-own, place[owner]))
        self._image = place[owner][self._sorted]
        self._level = np.arange(len(owner)) - np.searchsorted(self._image, self._image)
        self._own_ties = _following_ties(own[self._sorted], self._image)
        self._best_only = best_only
        by_level = np.lexsort((self._image, self._level))
        counts = np.bincount(self._level)[: 1 if best_only else None]
        self._by_level = by_level[: counts.sum()]
        scores = self.caption_scores[self._sorted[self._by_level]]
        self.levels = np.split(scores, np.cumsum(counts)[:-1])

    def caption_ranks(self, reached: Int[np.ndarray, " counted"]) -> Int[np.ndarray, " caption"]:
        """From how many captions reach each score, level after level."""
        # The picture's better captions are places before this one; those that tie are not.
        ranks = reached - self._own_ties[self._by_level]
        ranks = np.maximum(ranks, self._level[self._by_level] + 1)
        by_caption = np.empty(len(self._sorted), dtype=np.int64)
        if self._best_only:
            by_caption[self._sorted] = ranks[self._image]
        else:
            by_caption[self._sorted[self._by_level]] = ranks
        return by_caption


class _Counter:
    """One thread's memory: a block of scores, a strip of comparisons, its pictures' counts."""

    def __init__(self, plan: _Plan) -> None:
        self._plan = plan
        self._scores = np.empty(BLOCK_CAPTIONS * BLOCK_IMAGES, dtype=np.float32)
        self._reached = np.empty(STRIP_CAPTIONS * BLOCK_IMAGES, dtype=np.bool_)
        self._levels = [np.zeros(len(level), dtype=np.int64) for level in plan.levels]

    @property
    def reached(self) -> Int[np.ndarray, " counted"]:
        """How many captions reached each score so far, level after level."""
        return np.concatenate(self._levels)

    def count(self, start: int, stop: int) -> Int[np.ndarray, " block"]:
        """How many pictures reach each of these captions' own score, its own included."""
        captions = self._plan.captions[start:stop]
        to_reach = self._plan.caption_scores[start:stop, None]
        images = self._plan.images
        ranks = np.zeros(stop - start, dtype=np.int64)
        for left in range(0, len(images), BLOCK_IMAGES):
            block = images[left : left + BLOCK_IMAGES]
            scores = self._scores[: len(captions) * len(block)].reshape(len(captions), -1)
            np.matmul(captions, block.T, out=scores)
            for top in range(0, len(captions), STRIP_CAPTIONS):
                rows = slice(top, top + STRIP_CAPTIONS)
                strip = scores[rows]
                hits = self._compare(strip, to_reach[rows])
                ranks[rows] += np.add.reduce(hits, axis=1, dtype=np.uint32)
                self._count_captions(strip, left)
        return ranks

    def _count_captions(self, strip: Float32[np.ndarray, "caption image"], left: int) -> None:
        """Adds a strip's captions to the counts of its pictures, the first of which is `left`."""
        right = left + strip.shape[1]
        for to_reach, counts in zip(self._plan.levels, self._levels, strict=True):
            level = to_reach[left:right]  # shorter where the last pictures have fewer captions
            if not len(level):
                break
            hits = self._compare(strip[:, : len(level)], level)
            counts[left:right] += np.add.reduce(hits, axis=0, dtype=np.uint8)

    def _compare(
        self, scores: Float32[np.ndarray, "caption image"], to_reach: Float32[np.ndarray, "..."]
    ) -> UInt8[np.ndarray, "caption image"]:
        out = self._reached[: scores.size].reshape(scores.shape)
        np.greater_equal(scores, to_reach, out=out)
        return out.view(np.uint8)


def _own_scores(
    images: Float32[np.ndarray, "image dim"],
    captions: Float32[np.ndarray, "caption dim"],
    owner: Int[np.ndarray, " caption"],
) -> Float32[np.ndarray, " caption"]:
    own = np.empty(len(captions), dtype=np.float32)
    for start in range(0, len(captions), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        own[rows] = np.einsum("ij,ij->i", captions[rows], images[owner[rows]])
    return own


def _to_reach(own: Float32[np.ndarray, " caption"]) -> Float32[np.ndarray, " caption"]:
    return own - np.float32(TIE)


def _following_ties(
    scores: Float32[np.ndarray, " caption"], image: Int[np.ndarray, " caption"]
) -> Int[np.ndarray, " caption"]:
    """How many of the captions after each one are of the same picture and tie with it."""
    ties = np.zeros(len(scores), dtype=np.int64)
    for step in range(1, len(scores)):
        tied = (image[step:] == image[:-step]) & (scores[step:] >= _to_reach(scores[:-step]))
        if not tied.any():
            break
        ties[:-step] += tied
    return ties


@contextmanager
def _blas_threads(count: int) -> Iterator[None]:
    """Lets each product take `count` cores, where threadpoolctl is there to say so."""
    if not find_spec("threadpoolctl"):
        yield
        return
    with import_module("threadpoolctl").threadpool_limits(limits=count, user_api="blas"):
        yield


def _check(
    images: Float32[np.ndarray, "image image_dim"],
    captions: Float32[np.ndarray, "caption caption_dim"],
    owner: Int[np.ndarray, " owned"],
) -> None:
    if not len(images) or not len(captions):
        raise ConfigError(
            f"Retrieval needs pictures and captions: there are {len(images):,} and "
            f"{len(captions):,}."
        )
    if images.shape[1] != captions.shape[1]:
        raise ConfigError(
            f"The pictures' vectors have {images.shape[1]} numbers and the captions' "
            f"{captions.shape[1]}: take both from one model."
        )
    if len(owner) != len(captions):
        raise ConfigError(
            f"There are {len(captions):,} captions, but for {len(owner):,} it is said to which "
            f"picture they belong: give one row number for each."
        )
    if owner.min() < 0 or owner.max() >= len(images):
        wrong = int(np.flatnonzero((owner < 0) | (owner >= len(images)))[0])
        raise ConfigError(
            f"Caption {wrong} belongs to picture {owner[wrong]}, but there are only "
            f"{len(images):,} pictures (0 to {len(images) - 1:,})."
        )
    for what, vectors in (("picture", images), ("caption", captions)):
        for start in range(0, len(vectors), CHUNK_ROWS):
            bad = np.flatnonzero(~np.isfinite(vectors[start : start + CHUNK_ROWS]).all(axis=1))
            if len(bad):
                raise ConfigError(
                    f"The vector of {what} {start + int(bad[0])} holds a number that is none: "
                    f"leave out what could not be embedded."
                )
