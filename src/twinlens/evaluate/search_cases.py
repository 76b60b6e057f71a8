"""Searches whose right answers are known: what a relevance cut-off is chosen and judged on.

A case is a corpus of photos, queries, and which photos answer each query; for some queries
none does, which is what a cut-off must notice. Cases come from captions or from labels, and
are varied here: without the photos that some queries ask for, and with a smaller corpus.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32, Int

from twinlens.errors import ConfigError

# Scores that are held at a time, of some of the queries with all photos: 16 MB.
_CHUNK_SCORES = 4_000_000


@dataclass(frozen=True, eq=False)
class SearchCase:
    """Queries against one corpus. All vectors have unit length.

    Raises ConfigError for unequal counts, an empty corpus and rows that it does not have.
    """

    name: str  # of the data set
    queries: Float32[np.ndarray, "query dim"]
    corpus: Float32[np.ndarray, "item dim"]
    relevant: tuple[Int[np.ndarray, " _"], ...]  # rows of corpus; empty: nothing is relevant
    ids: tuple[str, ...]  # what is asked
    groups: tuple[str, ...]  # queries that ask for the same photos: held out together

    def __post_init__(self) -> None:
        counts = {len(self.queries), len(self.relevant), len(self.ids), len(self.groups)}
        if len(counts) > 1 or not len(self.queries) or not len(self.corpus):
            raise ConfigError(
                f"{self.name}: {len(self.queries):,} queries, relevant photos for "
                f"{len(self.relevant):,}, {len(self.ids):,} ids and {len(self.groups):,} groups, "
                f"in a corpus of {len(self.corpus):,} photos; there must be some, and as many of "
                f"each."
            )
        for query, rows in zip(self.ids, self.relevant, strict=True):
            if len(rows) and not 0 <= rows.min() <= rows.max() < len(self.corpus):
                raise ConfigError(
                    f"{self.name}: the query {query!r} names a photo outside the corpus of "
                    f"{len(self.corpus):,}."
                )

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def relevant_counts(self) -> Int[np.ndarray, " query"]:
        return np.array([len(rows) for rows in self.relevant])

    def chunks(
        self, queries: Int[np.ndarray, " row"] | None = None
    ) -> Iterator[
        tuple[
            Int[np.ndarray, " some"],
            Float32[np.ndarray, "some item"],
            Bool[np.ndarray, "some item"],
        ]
    ]:
        """(rows of queries, their scores, which photos are relevant), some queries at a time."""
        rows = np.arange(len(self)) if queries is None else queries
        at_once = max(1, _CHUNK_SCORES // len(self.corpus))
        for start in range(0, len(rows), at_once):
            some = rows[start : start + at_once]
            truth = np.zeros((len(some), len(self.corpus)), dtype=bool)
            for place, row in enumerate(some):
                truth[place, self.relevant[row]] = True
            yield some, self.queries[some] @ self.corpus.T, truth

    def with_queries(self, rows: Int[np.ndarray, " row"]) -> "SearchCase":
        """Only the queries at `rows`; the corpus stays."""
        return replace(
            self,
            queries=self.queries[rows],
            relevant=tuple(self.relevant[row] for row in rows),
            ids=tuple(self.ids[row] for row in rows),
            groups=tuple(self.groups[row] for row in rows),
        )

    def with_corpus(self, kept: Int[np.ndarray, " kept"]) -> "SearchCase":
        """Only the photos at `kept`; queries may be left with nothing relevant."""
        place = np.full(len(self.corpus), -1)
        place[kept] = np.arange(len(kept))
        relevant = tuple(place[rows][place[rows] >= 0] for rows in self.relevant)
        return replace(self, corpus=self.corpus[kept], relevant=relevant)

    def with_others(self, vectors: Float32[np.ndarray, "other dim"]) -> "SearchCase":
        """A corpus with further photos in it, which answer no query."""
        return replace(self, corpus=np.concatenate([self.corpus, vectors]))


def caption_case(
    name: str,
    images: Float32[np.ndarray, "image dim"],
    captions: Float32[np.ndarray, "caption dim"],
    owner: Int[np.ndarray, " caption"],
    texts: Sequence[str],
    *,
    max_queries: int | None = None,
    seed: int = 0,
) -> SearchCase:
    """Each caption asks for its own photo.

    Other photos may answer it too ("a dog runs over grass"), which nobody wrote down: what
    is measured is then a lower limit of precision and of silence. At most `max_queries`
    captions are drawn, at random.
    """
    rows = np.arange(len(captions))
    if max_queries is not None and len(rows) > max_queries:
        rows = np.sort(np.random.default_rng(seed).choice(rows, max_queries, replace=False))
    return SearchCase(
        name=name,
        queries=captions[rows],
        corpus=images,
        relevant=tuple(owner[row : row + 1] for row in rows),
        ids=tuple(texts[row] for row in rows.tolist()),
        groups=tuple(f"{name}/{owner[row]}" for row in rows),
    )


def label_case(
    name: str,
    images: Float32[np.ndarray, "image dim"],
    labels: Int[np.ndarray, " image"],
    class_vectors: Float32[np.ndarray, "class dim"],
    class_names: Sequence[str],
) -> SearchCase:
    """Each class's name asks for its photos."""
    return SearchCase(
        name=name,
        queries=class_vectors,
        corpus=images,
        relevant=tuple(np.flatnonzero(labels == row) for row in range(len(class_names))),
        ids=tuple(class_names),
        groups=tuple(f"{name}/{text}" for text in class_names),
    )


def with_nothing_relevant(case: SearchCase, *, parts: int = 2, seed: int = 0) -> list[SearchCase]:
    """`parts` cases in which every query is asked once of a corpus without its photos.

    The queries' groups are dealt into parts; each part's photos leave the corpus, and its
    queries are asked of the rest.
    """
    groups, group_of = np.unique(np.array(case.groups), return_inverse=True)
    if len(groups) < parts:
        raise ConfigError(
            f"{case.name} asks for {len(groups)} thing only: a corpus without it would be empty. "
            f"Use a set with more classes or captions."
        )
    part_of = np.random.default_rng(seed).permutation(len(groups)) % parts
    varied = []
    for part in range(parts):
        rows = np.flatnonzero(part_of[group_of] == part)
        wanted = np.concatenate([case.relevant[row] for row in rows])
        kept = np.setdiff1d(np.arange(len(case.corpus)), wanted)
        if len(kept):
            varied.append(case.with_corpus(kept).with_queries(rows))
    return varied


def smaller_corpus(case: SearchCase, size: int, *, seed: int = 0) -> SearchCase:
    """`size` photos drawn at random, the queries that they answer, and as many others.

    A rule that looks at a query's scores among all photos must also serve a small folder.
    """
    rng = np.random.default_rng(seed)
    small = case.with_corpus(np.sort(rng.choice(len(case.corpus), size, replace=False)))
    answered = np.flatnonzero(small.relevant_counts > 0)
    others = np.flatnonzero(small.relevant_counts == 0)
    drawn = rng.permutation(others)[: max(1, len(answered))]
    return small.with_queries(np.sort(np.concatenate([answered, drawn])))


def varied_cases(
    case: SearchCase, *, parts: int = 2, sizes: Sequence[int] = (100,), seed: int = 0
) -> list[SearchCase]:
    """The case itself, with nothing relevant, and with corpora of `sizes` where it has more."""
    cases = [case, *with_nothing_relevant(case, parts=parts, seed=seed)]
    cases += [smaller_corpus(case, size, seed=seed) for size in sizes if size < len(case.corpus)]
    return cases
