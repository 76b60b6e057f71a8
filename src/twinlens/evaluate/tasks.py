"""What the tasks that look for failures share.

What each picture should be nearest to (its class's name, or one of its own captions), a
random part of a set, and figures noted together with the values they are the means of.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int, Shaped

from twinlens.embed import EmbedderLike
from twinlens.errors import ConfigError
from twinlens.evaluate.result import Figure, PerItem, Result
from twinlens.evaluate.sets import AnySet, CaptionedSet, LabelledSet
from twinlens.evaluate.statistics import figure_of
from twinlens.evaluate.templates import choose_templates
from twinlens.evaluate.vectors import VectorCache, cached_texts
from twinlens.evaluate.zero_shot import class_vectors


@dataclass(frozen=True, eq=False)
class Targets:
    """Text vectors, whose they are, and whose each picture wants."""

    vectors: Float32[np.ndarray, "text dim"]
    owner: Int[np.ndarray, " text"]  # a class, or a picture's row
    wanted: Int[np.ndarray, " image"]  # the owner each picture should find
    metric: str  # "accuracy@1" or "image_to_text_recall@1"

    @property
    def chance(self) -> float:
        """The share of pictures that a blind choice of a text gets right."""
        texts = np.bincount(self.owner, minlength=int(self.wanted.max()) + 1)
        return float(texts[self.wanted].mean() / len(self.owner))

    def found(
        self, images: Float32[np.ndarray, "item dim"], rows: Int[np.ndarray, " item"]
    ) -> Bool[np.ndarray, " item"]:
        """Whether the text nearest to each vector is one that the picture at its row wants.

        A tie counts against us: a constant model must not score.
        """
        scores = images @ self.vectors.T
        own = self.owner[None, :] == self.wanted[rows][:, None]
        best_own = np.where(own, scores, -np.inf).max(axis=1)
        best_other = np.where(own, -np.inf, scores).max(axis=1)
        found: Bool[np.ndarray, " item"] = best_own > best_other
        return found


def targets_of(
    embedder: EmbedderLike,
    data: LabelledSet | CaptionedSet,
    templates: Sequence[str] | None = None,
    *,
    cache: VectorCache | None = None,
) -> Targets:
    """A text per class (the mean over `templates`, see templates_for) or per caption."""
    if isinstance(data, CaptionedSet):
        vectors = cached_texts(embedder, data.captions, cache=cache)
        return Targets(vectors, data.owner, np.arange(len(data)), "image_to_text_recall@1")
    templates = templates_for(data, templates)
    vectors = class_vectors(embedder, data.class_names, templates, cache=cache)
    return Targets(vectors, np.arange(len(vectors)), data.labels, "accuracy@1")


def templates_for(data: LabelledSet, templates: Sequence[str] | None) -> tuple[str, ...]:
    """Those asked for; else the data set's own; else the package's default ones."""
    return tuple(templates or choose_templates(data)[1])


def some_of(data: AnySet, limit: int | None, seed: int) -> AnySet:
    """At most `limit` pictures, drawn at random: a folder's first ones are of one class."""
    if limit is None or limit >= len(data):
        return data
    rows = np.random.default_rng(seed).choice(len(data), size=limit, replace=False)
    return data.rows(np.sort(rows))


def new_result(task: str, embedder: EmbedderLike, data: LabelledSet | CaptionedSet) -> Result:
    """Nothing measured yet."""
    model = {"name": embedder.name, "model_id": embedder.model_id, "dim": embedder.dim}
    return Result(task=task, model=model, data=data.describe())


def note(
    result: Result,
    name: str,
    values: Shaped[np.ndarray, " item"] | Sequence[float],
    ids: Sequence[str],
    *,
    what: str = "image",
    clusters: Sequence[str] | None = None,
    higher_is_better: bool = True,
    unit: str = "",
) -> None:
    """The mean of `values` as a figure with its interval, and the values for `compare`.

    `ids` name the items, `clusters` what each belongs to where several belong together.
    """
    numbers = [float(value) for value in values]
    result.figures[name] = figure_of(
        numbers, clusters=clusters, higher_is_better=higher_is_better, unit=unit
    )
    result.per_item[name] = PerItem(
        list(ids), numbers, what, None if clusters is None else list(clusters)
    )


def difference_of_means(a: Figure, b: Figure, *, higher_is_better: bool = True) -> Figure:
    """The mean `a` less the mean `b` of other, independent items, with an interval.

    Each end joins how far the two means' own ends are from them, as if at right angles: Zou
    and Donner 2008, Statistics in Medicine 27, "Construction of confidence limits about effect
    measures", section 2. Unlike a normal approximation it keeps what is lopsided near 0 and 1.
    """
    difference = a.value - b.value
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return Figure(difference, None, None, higher_is_better)
    below = float(np.hypot(a.value - a.low, b.high - b.value))
    above = float(np.hypot(a.high - a.value, b.value - b.low))
    return Figure(difference, difference - below, difference + above, higher_is_better)


def caption_ids(data: CaptionedSet) -> tuple[list[str], list[str]]:
    """A name per caption that no other has ("dog.jpg#0"), and the picture it belongs to."""
    seen: dict[int, int] = {}
    names, owners = [], []
    for owner in data.owner.tolist():
        number = seen.get(owner, 0)
        seen[owner] = number + 1
        owners.append(data.ids[owner])
        names.append(f"{data.ids[owner]}#{number}")
    return names, owners


def readable(data: AnySet, unreadable: Sequence[tuple[int, str]]) -> tuple[AnySet, np.ndarray]:
    """The set without the pictures named, and the rows of those that stay.

    Raises ConfigError where none stays.
    """
    gone = {row for row, _ in unreadable}
    kept = np.array([row for row in range(len(data)) if row not in gone], dtype=np.int64)
    if not len(kept):
        row, reason = unreadable[0]
        raise ConfigError(
            f"None of the {len(data):,} pictures of {data.name} can be read. The first: "
            f"{data.ids[row]}: {reason}."
        )
    return data.without(unreadable), kept
