"""Image search over a folder in three lines of Python; the command line is built on it too.

    photos = twinlens.index("photos/")
    for hit in photos.search("a red bicycle"):
        print(hit.score, hit.path)

Joins the parts: store.py keeps, sync.py updates, query.py understands, exact.py finds.
"""

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32

from twinlens.data.image import DEFAULT_MAX_MEGAPIXELS, IMAGE_SUFFIXES, source_name
from twinlens.embed import EmbedderLike
from twinlens.errors import IndexCorrupt, QueryError, TwinlensError
from twinlens.runtime.relevance import RelevanceRule, find_relevance_rule, read_relevance_rule
from twinlens.search.exact import top_k
from twinlens.search.query import Term, parse_query, query_vector
from twinlens.search.scan import has_pictures
from twinlens.search.store import Index, ModelRecord
from twinlens.search.sync import SkippedFile, SyncReport, sync_folder


@dataclass(frozen=True)
class Hit:
    """A photo that was found. `score` is its cosine with the query, -1 to 1."""

    score: float
    path: Path  # begins with the folder as it was given


class PhotoIndex:
    """A folder, its index and the model that made it. Get one from `index` or `open_photos`."""

    def __init__(
        self,
        index: Index,
        embedder: EmbedderLike,
        folder: Path,
        *,
        max_megapixels: float = DEFAULT_MAX_MEGAPIXELS,
    ) -> None:
        self.index = index
        self.embedder = embedder
        self.folder = folder
        self.max_megapixels = max_megapixels
        self.report = SyncReport()  # of the last `sync`

    def sync(
        self,
        *,
        progress: Callable[[int, int], None] | None = None,
        on_skip: Callable[[SkippedFile], None] | None = None,
    ) -> SyncReport:
        """Take in what changed in the folder since; see `sync_folder`."""
        self.report = sync_folder(
            self.index,
            self.embedder,
            self.folder,
            max_megapixels=self.max_megapixels,
            progress=progress,
            on_skip=on_skip,
        )
        return self.report

    def search(
        self,
        query: str | os.PathLike[str] | Sequence[str] | Sequence[Term],
        top: int = 10,
        *,
        relevance: RelevanceRule | None = None,
    ) -> list[Hit]:
        """The `top` photos closest to the query, best first.

        The query is words, a picture's path, or a list as on the command line:
        `["a dog", "+", "snow", "-", "car.jpg"]`. Terms are taken as they are.
        With `relevance`, see `relevance_rule`, only what answers the query: maybe nothing.

        Raises QueryError where `relevance` cannot judge the query, ConfigError where it was
        measured for another model.
        """
        if isinstance(query, str | os.PathLike):
            query = [os.fspath(query)]
        terms = [term for term in query if isinstance(term, Term)]
        terms = terms or parse_query([word for word in query if isinstance(word, str)])
        if relevance is not None:
            relevance.check_model(self.index.model.model_id)
            _check_words_only(terms)
        vector = query_vector(self.embedder, terms)
        with self.index.snapshot():
            vectors, live = self.index.live_vectors()
            if relevance is not None:
                live = _relevant(relevance, vectors, vector, live)
            slots, scores = top_k(vectors, vector, top, live)
            paths = self.index.paths(slots)
        return [
            Hit(float(score), self.folder / os.fsdecode(path))
            for score, path in zip(scores, paths, strict=True)
        ]

    def relevance_rule(self, path: str | os.PathLike[str] | None = None) -> RelevanceRule:
        """The rule in `path`, by default the one that the model came with.

        Raises ConfigError when there is none, or it was measured for another model.
        """
        model_id = self.index.model.model_id
        if path is not None:
            rule = read_relevance_rule(Path(os.path.expanduser(path)))
        else:
            rule = find_relevance_rule(getattr(self.embedder, "folder", None), model_id)
        rule.check_model(model_id)
        return rule

    def skipped_files(self) -> list[SkippedFile]:
        """The files that the index remembers as unreadable, and why."""
        return [
            SkippedFile(self.folder / os.fsdecode(path), reason)
            for path, reason in self.index.skipped_files()
        ]

    def __len__(self) -> int:
        """Photos that can be found."""
        return len(self.index)

    def close(self) -> None:
        self.index.close()

    def __enter__(self) -> "PhotoIndex":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def index(
    folder: str | os.PathLike[str],
    model: str | os.PathLike[str] | None = None,
    *,
    index_dir: str | os.PathLike[str] | None = None,
    rebuild: bool = False,
    runtime: Literal["onnxruntime", "openvino"] = "onnxruntime",
    threads: int | None = None,
    max_megapixels: float = DEFAULT_MAX_MEGAPIXELS,
) -> PhotoIndex:
    """Index a folder, or what changed in it since the last time, and return it for searching.

    `model` is by default the one the index was made with, and "mini" for a new one.
    Files that could not be read are in the result's `report.skipped`.
    """
    photos = open_photos(
        folder,
        model,
        index_dir=index_dir,
        rebuild=rebuild,
        runtime=runtime,
        threads=threads,
        max_megapixels=max_megapixels,
    )
    photos.sync()
    return photos


def open_photos(
    folder: str | os.PathLike[str],
    model: str | os.PathLike[str] | None = None,
    *,
    index_dir: str | os.PathLike[str] | None = None,
    create: bool = True,
    rebuild: bool = False,
    runtime: Literal["onnxruntime", "openvino"] = "onnxruntime",
    threads: int | None = None,
    max_megapixels: float = DEFAULT_MAX_MEGAPIXELS,
) -> PhotoIndex:
    """A folder's index as it is, without looking for changes.

    A new one is empty; with `create=False` it is an error that there is none yet.
    `rebuild` empties the one there is.

    Raises IndexModelMismatch when `model` is not what the index was made with.
    """
    from twinlens import embed  # by module, so that a test can put a fake in its place
    from twinlens.runtime.folder import DEFAULT_MODEL, lasting_name

    folder = Path(os.path.expanduser(folder))
    _check_folder(folder)
    place = None if index_dir is None else Path(os.path.expanduser(index_dir))
    try:
        stored = Index.open(folder, place)
    except IndexCorrupt:
        if not rebuild:
            raise
        stored = None
    if model is None:
        model = stored.model.name if stored is not None else DEFAULT_MODEL
    if stored is None and not create:
        raise TwinlensError(
            f"{folder} has no index yet. Make one: `twinlens index {shlex.quote(str(folder))}`."
        )
    if (stored is None or rebuild) and not has_pictures(folder):
        raise TwinlensError(
            f"{folder} holds no pictures. Looked, in its folders too, for "
            f"{', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    embedder = embed.Embedder(
        model, runtime=runtime, threads=threads, max_megapixels=max_megapixels
    )
    # A model's own name need not find it again; what was typed does, from anywhere.
    record = ModelRecord(model_id=embedder.model_id, name=lasting_name(model), dim=embedder.dim)
    if stored is not None and rebuild:
        stored.close()
        stored = None
    if stored is None:
        stored = Index.create(folder, record, place)
    stored.check_model(record)
    return PhotoIndex(stored, embedder, folder, max_megapixels=max_megapixels)


def _check_words_only(terms: Sequence[Term]) -> None:
    """Raises QueryError for what a relevance rule was not measured for."""
    for term in terms:
        if term.kind == "image":
            raise QueryError(
                f"there is no rule for which photos are relevant to a picture "
                f"({source_name(term.value)}): it is measured for words, and scores between "
                f"pictures are of another size. Search without --relevant."
            )
        if term.weight < 0:
            raise QueryError(
                f"there is no rule for which photos are relevant without something "
                f"({source_name(term.value)}): it is measured for words alone. "
                f"Search without --relevant."
            )


def _relevant(
    rule: RelevanceRule,
    vectors: Float32[np.ndarray, "slot dim"],
    query: Float[np.ndarray, " dim"],
    live: Bool[np.ndarray, " slot"],
) -> Bool[np.ndarray, " slot"]:
    """The slots in use whose photos answer the query."""
    scores = np.asarray(vectors) @ query
    slots = np.flatnonzero(live & np.isfinite(scores))
    relevant = np.zeros_like(live)
    if len(slots):
        relevant[slots[rule.relevant(scores[slots], query)]] = True
    return relevant


def _check_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    if folder.exists():
        raise TwinlensError(
            f"{folder} is a file. Give the folder to search first, then the query: "
            f"`twinlens search FOLDER {shlex.quote(str(folder))}`."
        )
    raise TwinlensError(f"there is no folder {folder}.")
