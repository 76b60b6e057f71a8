"""From which score on a photo is an answer: chooses and judges a relevance rule for search.

Scores of different queries are not comparable, so that one cosine for all is only the first
of four candidates (see runtime/relevance.py, which applies the rule that wins). All are
judged by cross-validation over queries: a query's threshold, and a logistic rule's weights,
come from the queries of other groups.

Precision and recall are means over queries (macro averages, Manning, Raghavan and Schütze
2008, Introduction to Information Retrieval, section 13.6). A query that shows something
although nothing is relevant has precision 0; one that shows nothing has no precision. F-beta
is made of these two means: the mean of per-query F would be highest for a rule that never
answers, where every other query has no answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from twinlens.embed import EmbedderLike
from twinlens.errors import ConfigError
from twinlens.evaluate.cutoff_counts import Counts, counted, query_figures
from twinlens.evaluate.cutoff_report import fill_result
from twinlens.evaluate.extra import need
from twinlens.evaluate.result import Result
from twinlens.evaluate.search_cases import SearchCase, caption_case, label_case, varied_cases
from twinlens.evaluate.sets import CaptionedSet, LabelledSet
from twinlens.runtime.relevance import (
    FEATURES,
    KINDS,
    Kind,
    Measured,
    RelevanceRule,
    Scores,
    score_feature,
)

LEAST_ANSWERS = 5  # queries that must show something before their precision is believed
# Best photos per query that a logistic rule is fitted to, beside all relevant ones. Of the rest
# nothing is ever shown, and fitted to them too its line lay worse: on captions and classes
# together F-0.5 0.28 instead of 0.31, and on captions alone it showed something always.
FITTED_BEST = 100
SIMPLER_WITHIN = 0.01  # by which a later kind must beat an earlier, simpler one
MAX_CAPTIONS = 1000  # queries per captioned set

# Stands in for what is known only after a rule was judged.
_UNMEASURED = Measured(data="", queries=0, precision=0.0, recall=0.0, silent_when_relevant=0.0)


@dataclass(frozen=True)
class CutOff:
    """The rule that won, and what it is worth."""

    rule: RelevanceRule
    result: Result


@dataclass(frozen=True)
class Aim:
    """What is wanted: the best F-beta, or a precision and then as much recall as there is.

    `beta` below 1 makes precision count more. Raises ConfigError outside of what is possible.
    """

    beta: float = 0.5
    precision: float | None = None

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ConfigError(f"beta {self.beta:g}: must be above 0; 1 weighs both equally.")
        if self.precision is not None and not 0 < self.precision <= 1:
            raise ConfigError(f"a precision of {self.precision:g} cannot be had: it is 0 to 1.")

    def worth(
        self, precision: Float[np.ndarray, " choice"], recall: Float[np.ndarray, " choice"]
    ) -> Float[np.ndarray, " choice"]:
        """What is to be made largest. NaN precision (no answers at all) is worth nothing.

        With a wanted precision: 1 + recall where it is reached, else how near it came.
        """
        precision = np.nan_to_num(precision)
        if self.precision is not None:
            return np.where(precision >= self.precision, 1.0 + recall, precision)
        square = self.beta**2
        below = square * precision + recall
        above = (1 + square) * precision * recall
        f_beta: Float[np.ndarray, " choice"] = above / np.where(below > 0, below, 1.0)
        return f_beta


def cut_off(
    embedder: EmbedderLike,
    data: LabelledSet | CaptionedSet,
    images: Float32[np.ndarray, "image dim"],
    *,
    aim: Aim | None = None,
    others: Float32[np.ndarray, "other dim"] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> CutOff:
    """A rule for searching like that of `data`: its captions, or its class names, are queries.

    `images` are the vectors of the set's pictures. `others`, of photos that answer none of the
    queries, join the corpus: a labelled set without any is nothing but answers. Each query is
    also asked of a corpus without its photos and of a small one (see `varied_cases`).
    """
    case = case_of(embedder, data, images, seed=seed)
    if others is not None:
        case = case.with_others(others)
    chosen = choose_cutoff(
        varied_cases(case, seed=seed),
        model={"name": embedder.name, "model_id": embedder.model_id, "dim": embedder.dim},
        aim=aim,
        folds=folds,
        seed=seed,
    )
    chosen.result.data |= data.describe()
    return chosen


def case_of(
    embedder: EmbedderLike,
    data: LabelledSet | CaptionedSet,
    images: Float32[np.ndarray, "image dim"],
    *,
    seed: int = 0,
) -> SearchCase:
    """The searches of a set: by at most MAX_CAPTIONS of its captions, or by its classes."""
    if isinstance(data, CaptionedSet):
        rows = np.arange(len(data.captions))
        if len(rows) > MAX_CAPTIONS:  # drawn before they are embedded
            drawn = np.random.default_rng(seed).choice(rows, MAX_CAPTIONS, replace=False)
            rows = np.sort(drawn)
        texts = [data.captions[row] for row in rows]
        return caption_case(data.name, images, embedder.texts(texts), data.owner[rows], texts)
    vectors = embedder.texts(data.main_names)
    return label_case(data.name, images, data.labels, vectors, data.main_names)


def choose_cutoff(
    cases: Sequence[SearchCase],
    *,
    model: dict[str, Any],
    aim: Aim | None = None,
    kinds: Sequence[Kind] = KINDS,
    background: Float32[np.ndarray, " dim"] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> CutOff:
    """The kind of rule that is best on queries it was not fitted to, then fitted to all.

    `model` is what a Result says of it: name, model_id, dim. `background` is the mean vector
    of the photos that a query's scores are compared with; by default of all corpora. A
    simpler kind wins over a later one that is not SIMPLER_WITHIN better. All figures are
    cross-validated; that the best of a few kinds was taken makes them slightly too good.

    Raises ConfigError for no cases, or fewer groups of queries than folds.
    """
    if not cases:
        raise ConfigError("a cut-off needs searches to be chosen on, and there are none.")
    aim = aim or Aim()
    if background is None:
        background = _mean_vector(cases)
    fold_of = _folds(cases, folds, seed)
    relevant = np.concatenate([case.relevant_counts for case in cases])
    tried: dict[Kind, _Tried] = {}
    for kind in kinds:
        start = _bare_rule(kind, model["model_id"], background)
        tried[kind] = _cross_validated(start, cases, fold_of, relevant, aim)
    best = _simplest_good(tried, aim)
    figures = tried[best].figures
    (whole,) = _fitted(_bare_rule(best, model["model_id"], background), cases, [None])
    counts = counted(whole, cases)
    names = ", ".join(dict.fromkeys(case.name for case in cases))
    rule = replace(
        whole,
        threshold=float(counts.grid[_best_threshold(counts, relevant, aim)]),
        background=whole.background if whole.needs_background else (),
        measured=Measured.from_dict({"data": names, "queries": len(relevant), **figures}),
    )
    result = Result(task="cut-off", model=model, data={"name": names})
    result.settings = {
        "aim": {"beta": aim.beta} if aim.precision is None else {"precision": aim.precision},
        "kinds": list(kinds),
        "folds": folds,
        "seed": seed,
    }
    fill_result(result, rule, cases, tried[best].shown, tried[best].hits, counts)
    result.details["kinds"] = {kind: one.figures for kind, one in tried.items()}
    return CutOff(rule, result)


@dataclass(frozen=True, eq=False)
class _Tried:
    """A kind of rule on queries that it was not fitted to."""

    shown: Int[np.ndarray, " query"]
    hits: Int[np.ndarray, " query"]
    figures: dict[str, float | None]


def _mean_vector(cases: Sequence[SearchCase]) -> Float32[np.ndarray, " dim"]:
    total = np.sum([case.corpus.sum(axis=0, dtype=np.float64) for case in cases], axis=0)
    mean: Float32[np.ndarray, " dim"] = (total / sum(len(case.corpus) for case in cases)).astype(
        np.float32
    )
    return mean


def _folds(cases: Sequence[SearchCase], folds: int, seed: int) -> Int[np.ndarray, " query"]:
    """The fold of each query of all cases in turn; a group's queries share one."""
    names = np.array([group for case in cases for group in case.groups])
    groups, group_of = np.unique(names, return_inverse=True)
    if not 2 <= folds <= len(groups):
        raise ConfigError(
            f"{folds} folds of {len(groups)} different things that are asked for: take 2 at least, "
            f"and no more than there are things."
        )
    fold_of: Int[np.ndarray, " query"] = np.random.default_rng(seed).permutation(len(groups))
    return fold_of[group_of] % folds


def _bare_rule(kind: Kind, model_id: str, background: Float32[np.ndarray, " dim"]) -> RelevanceRule:
    return RelevanceRule(
        model_id=model_id,
        kind=kind,
        threshold=0.0,
        measured=_UNMEASURED,
        weights=(0.0,) * len(FEATURES) if kind == "logistic" else (),
        background=tuple(round(float(value), 6) for value in background),
    )


def _cross_validated(
    start: RelevanceRule,
    cases: Sequence[SearchCase],
    fold_of: Int[np.ndarray, " query"],
    relevant: Int[np.ndarray, " query"],
    aim: Aim,
) -> _Tried:
    shown, hits = np.zeros(len(fold_of), dtype=np.int64), np.zeros(len(fold_of), dtype=np.int64)
    splits = [fold_of != fold for fold in range(fold_of.max() + 1)]
    counts: Counts | None = None
    for rule, training in zip(_fitted(start, cases, splits), splits, strict=True):
        if counts is None or start.kind == "logistic":  # the others are the same in every fold
            counts = counted(rule, cases)
        place = _best_threshold(counts, relevant, aim, training)
        shown[~training] = counts.shown[~training, place]
        hits[~training] = counts.hits[~training, place]
    return _Tried(shown, hits, query_figures(shown, hits, relevant))


def _fitted(
    start: RelevanceRule,
    cases: Sequence[SearchCase],
    splits: Sequence[Bool[np.ndarray, " query"] | None],
) -> list[RelevanceRule]:
    """`start` with weights from the queries of each split (None: of all), where it has any."""
    if start.kind != "logistic":
        return [start] * len(splits)
    pairs = _fitting_pairs(start, cases)
    spread = np.maximum(pairs.features.std(axis=0), 1e-9)
    fitted = []
    for split in splits:
        kept = slice(None) if split is None else split[pairs.query]
        if len(np.unique(pairs.relevant[kept])) < 2:
            raise ConfigError("every photo of the corpus is relevant, or none: nothing to learn.")
        model = need("sklearn.linear_model").LogisticRegression(max_iter=1000)
        model.fit(pairs.features[kept] / spread, pairs.relevant[kept])
        weights = tuple(float(weight) for weight in model.coef_[0] / spread)
        fitted.append(replace(start, weights=weights, bias=float(model.intercept_[0])))
    return fitted


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Photos with their queries: the best of each, and all relevant ones."""

    features: Float[np.ndarray, "pair feature"]
    relevant: Bool[np.ndarray, " pair"]
    query: Int[np.ndarray, " pair"]  # counted through all cases


def _fitting_pairs(rule: RelevanceRule, cases: Sequence[SearchCase]) -> _Pairs:
    features, relevant, query = [], [], []
    first = 0
    for case in cases:
        for rows, scores, truth in case.chunks():
            best = scores >= _nth_best(scores, FITTED_BEST)[:, None]
            taken = np.nonzero(truth | best)
            background = rule.background_scores(case.queries[rows])
            features.append(
                np.stack([score_feature(f, scores, background)[taken] for f in FEATURES], axis=1)
            )
            relevant.append(truth[taken])
            query.append(first + rows[taken[0]])
        first += len(case)
    return _Pairs(
        np.concatenate(features),
        np.concatenate(relevant),
        np.concatenate(query),
    )


def _nth_best(scores: Scores, nth: int) -> Float[np.ndarray, " query"]:
    last = max(0, scores.shape[1] - nth)
    best: Float[np.ndarray, " query"] = np.partition(scores, last, axis=1)[:, last]
    return best


def _best_threshold(
    counts: Counts,
    relevant: Int[np.ndarray, " query"],
    aim: Aim,
    training: Bool[np.ndarray, " query"] | None = None,
) -> int:
    """The place in the grid of the threshold that serves the `training` queries (None: all)."""
    rows = np.ones(len(relevant), dtype=bool) if training is None else training
    shown, hits, relevant = counts.shown[rows], counts.hits[rows], relevant[rows]
    answered = (shown > 0).sum(axis=0)
    precision = (hits / np.maximum(shown, 1)).sum(axis=0) / np.maximum(answered, 1)
    some = relevant > 0
    recall = (hits[some] / relevant[some, None]).mean(axis=0) if some.any() else 0.0 * precision
    worth = aim.worth(precision, recall)
    worth[answered < min(LEAST_ANSWERS, answered.max())] = -1.0
    # Of equals the middle: the highest would just exclude the next photo like the lowest answer.
    highest = len(worth) - 1 - int(np.argmax(worth[::-1]))
    others = np.flatnonzero(worth[:highest] < worth[highest])
    lowest = int(others[-1]) + 1 if len(others) else 0
    middle = (counts.grid[lowest] + counts.grid[highest]) / 2
    return lowest + int(np.abs(counts.grid[lowest : highest + 1] - middle).argmin())


def _simplest_good(tried: dict[Kind, _Tried], aim: Aim) -> Kind:
    worth = {
        kind: float(
            aim.worth(
                np.array([one.figures["precision"]], dtype=np.float64),
                np.array([one.figures["recall"]], dtype=np.float64),
            )[0]
        )
        for kind, one in tried.items()
    }
    enough = max(worth.values()) - SIMPLER_WITHIN
    return next(kind for kind in worth if worth[kind] >= enough)
