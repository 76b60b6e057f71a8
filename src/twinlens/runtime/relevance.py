"""Which photos a query really finds: the rule that `twinlens search --relevant` applies.

A cosine alone does not say it: "a dog" may begin where "the joy of summer" ends. A rule turns
the scores of one query against all photos into a value per photo, and photos whose value
reaches `threshold` are relevant; there may be none. Which rule a model has, and how sure it
is, is measured by evaluate/cutoff.py and kept in `relevance.json` beside the model's
`model.json`. Needs numpy alone.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float

from twinlens.config import JsonConfig
from twinlens.errors import ConfigError

RELEVANCE_NAME = "relevance.json"

Kind = Literal["cosine", "z", "background", "logistic"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# What a logistic rule weighs, in the order of its weights.
FEATURES = ("cosine", "z", "gap", "log_rank", "background")

Scores = Float[np.ndarray, "query item"]

# Scores that differ by less say nothing, and would be divided by.
LEAST_SPREAD = 1e-6


@dataclass(frozen=True, kw_only=True)
class Measured(JsonConfig):
    """What a rule was worth on queries that it was not chosen on (cross-validation)."""

    data: str  # names of the sets
    queries: int
    precision: float  # of what was shown, the share that was relevant; a mean over queries
    recall: float  # of what was relevant, the share that was shown; a mean over queries
    silent_when_relevant: float  # share of queries that showed none of what there was
    # Share of queries with nothing relevant that showed nothing; None if there were none.
    silent_when_nothing: float | None = None


@dataclass(frozen=True, kw_only=True)
class RelevanceRule(JsonConfig):
    """A photo is relevant when its value for the query is at least `threshold`.

    kind          value of a photo
    "cosine"      its score
    "z"           its score, less the mean of the query's scores, over their standard deviation
    "background"  its score, less the query's mean score over fixed photos; `background` is the
                  mean of their unit vectors, whose product with the query is just that
    "logistic"    the log odds: `weights` (of FEATURES) times the features, plus `bias`

    Raises ConfigError for weights or a background that the kind lacks.
    """

    format_version: Literal[1] = 1
    model_id: str  # of the model that made the scores; those of another mean something else
    kind: Kind
    threshold: float
    measured: Measured
    weights: tuple[float, ...] = ()
    bias: float = 0.0
    background: tuple[float, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if self.kind == "logistic" and len(self.weights) != len(FEATURES):
            raise ConfigError(
                f"a logistic relevance rule has {len(FEATURES)} weights "
                f"({', '.join(FEATURES)}), not {len(self.weights)}."
            )
        if self.needs_background and not self.background:
            raise ConfigError(f"a {self.kind} relevance rule must hold a background.")

    @property
    def needs_background(self) -> bool:
        """Whether a value depends on the query's mean score over fixed photos."""
        weighs_it = self.kind == "logistic" and self.weights[FEATURES.index("background")] != 0
        return self.kind == "background" or weighs_it

    def background_scores(
        self, queries: Float[np.ndarray, "query dim"]
    ) -> Float[np.ndarray, " query"]:
        """Each query's mean score over the background's photos; 0 without a background."""
        if not self.background:
            return np.zeros(len(queries), dtype=np.float32)
        means: Float[np.ndarray, " query"] = queries @ np.array(self.background, dtype=np.float32)
        return means

    def values(self, scores: Scores, background: Float[np.ndarray, " query"]) -> Scores:
        """What `threshold` is compared with. Each row holds one query's scores for all photos."""
        if self.kind != "logistic":
            return score_feature(self.kind, scores, background)
        value = np.full(scores.shape, self.bias, dtype=np.float32)
        for name, weight in zip(FEATURES, self.weights, strict=True):
            if weight:
                value += np.float32(weight) * score_feature(name, scores, background)
        return value

    def relevant(
        self, scores: Float[np.ndarray, " item"], query: Float[np.ndarray, " dim"]
    ) -> Bool[np.ndarray, " item"]:
        """Whether each photo is relevant to one query. `scores` holds those of all photos."""
        values = self.values(scores[None], self.background_scores(query[None]))[0]
        relevant: Bool[np.ndarray, " item"] = values >= np.float32(self.threshold)
        return relevant

    def check_model(self, model_id: str) -> None:
        """Raises ConfigError when the rule was measured for another model."""
        if self.model_id != model_id:
            raise ConfigError(
                f"the relevance rule was measured for {self.model_id}, but the photos are indexed "
                f"with {model_id}, whose scores mean something else. Measure one for it: "
                f"`twinlens evaluate cut-off`."
            )


def score_feature(name: str, scores: Scores, background: Float[np.ndarray, " query"]) -> Scores:
    """One of FEATURES for every query and photo; a row holds one query's scores for all photos.

    "gap" is the distance to the query's best score, "log_rank" ln(1 + photos that score higher).
    """
    if name == "cosine":
        return scores
    if name == "background":
        difference: Scores = scores - background[:, None]
        return difference
    if scores.shape[1] == 0:
        return scores
    if name == "z":
        spread = scores.std(axis=1, keepdims=True)
        centred = scores - scores.mean(axis=1, keepdims=True)
        z: Scores = np.where(spread > LEAST_SPREAD, centred / np.maximum(spread, LEAST_SPREAD), 0)
        return z
    if name == "gap":
        gap: Scores = scores.max(axis=1, keepdims=True) - scores
        return gap
    assert name == "log_rank", name
    rows = np.sort(scores, axis=1)
    higher = np.empty(scores.shape, dtype=np.float32)
    for row, (ordered, values) in enumerate(zip(rows, scores, strict=True)):
        higher[row] = len(ordered) - np.searchsorted(ordered, values, side="right")
    log_rank: Scores = np.log1p(higher)
    return log_rank


def read_relevance_rule(path: Path) -> RelevanceRule:
    """Raises ConfigError when there is no such file or it holds no rule."""
    if not path.is_file():
        raise ConfigError(f"there is no relevance rule {path}.")
    return RelevanceRule.read(path)


def find_relevance_rule(folder: Path | None, model_id: str) -> RelevanceRule:
    """The rule that the model in `folder` came with.

    Raises ConfigError, which says how to make one, when there is none.
    """
    if folder is None or not (folder / RELEVANCE_NAME).is_file():
        raise ConfigError(
            f"{model_id} came without a relevance rule, so nothing says from which score on a "
            f"photo is relevant. Measure one with `twinlens evaluate cut-off` and give it as "
            f"`--relevance FILE`."
        )
    return read_relevance_rule(folder / RELEVANCE_NAME)
