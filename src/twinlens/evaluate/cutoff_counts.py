"""How many photos a relevance rule shows at each threshold, and how many of them are relevant.

All thresholds at once, some queries at a time: what cutoff.py chooses by.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int

from twinlens.evaluate.search_cases import SearchCase
from twinlens.runtime.relevance import RelevanceRule

THRESHOLDS = 200  # quantiles; with the middles between them twice as many are tried
SAMPLED_QUERIES = 300  # per case, from which those quantiles come


@dataclass(frozen=True, eq=False)
class Counts:
    """Per query and threshold: how many photos are shown, and how many of these are relevant."""

    grid: Float32[np.ndarray, " threshold"]  # ascending
    shown: Int[np.ndarray, "query threshold"]
    hits: Int[np.ndarray, "query threshold"]


def counted(rule: RelevanceRule, cases: Sequence[SearchCase]) -> Counts:
    """Counts for the queries of all cases in turn; the rule's own threshold is not looked at."""
    grid = _threshold_grid(rule, cases)
    shown, hits = [], []
    for case in cases:
        for rows, scores, truth in case.chunks():
            values = rule.values(scores, rule.background_scores(case.queries[rows]))
            reached = np.searchsorted(grid, values, side="right")  # thresholds met, from the first
            reached += np.arange(len(rows))[:, None] * (len(grid) + 1)
            shown.append(_from_each_on(reached, len(rows), len(grid)))
            hits.append(_from_each_on(reached[truth], len(rows), len(grid)))
    return Counts(grid, np.concatenate(shown), np.concatenate(hits))


def _from_each_on(
    reached: Int[np.ndarray, "..."], queries: int, thresholds: int
) -> Int[np.ndarray, "query threshold"]:
    """How many photos of each query meet each threshold, from how many each of them meets."""
    counts = np.bincount(reached.ravel(), minlength=queries * (thresholds + 1))
    counts = counts.reshape(queries, thresholds + 1)
    at_least: Int[np.ndarray, "query threshold"] = counts[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]
    return at_least


def _threshold_grid(
    rule: RelevanceRule, cases: Sequence[SearchCase]
) -> Float32[np.ndarray, " threshold"]:
    """Quantiles of the values at which something changes, and the middles between them.

    Those are values of relevant photos, and of each query's best photo and best irrelevant one.
    """
    deciding = []
    for case in cases:
        step = -(-len(case) // SAMPLED_QUERIES)
        for rows, scores, truth in case.chunks(np.arange(0, len(case), step)):
            values = rule.values(scores, rule.background_scores(case.queries[rows]))
            irrelevant = np.where(truth, -np.inf, values).max(axis=1)
            deciding += [values[truth], values.max(axis=1), irrelevant[np.isfinite(irrelevant)]]
    levels = np.linspace(0, 1, THRESHOLDS)
    quantiles = np.unique(np.quantile(np.concatenate(deciding), levels))
    middles = (quantiles[1:] + quantiles[:-1]) / 2
    return np.unique(np.concatenate([quantiles, middles]).astype(np.float32))


def query_figures(
    shown: Int[np.ndarray, " query"],
    hits: Int[np.ndarray, " query"],
    relevant: Int[np.ndarray, " query"],
) -> dict[str, float | None]:
    """Measured's figures. Precision is 0 where no query shows anything."""
    answered, some = shown > 0, relevant > 0
    silent = ~answered
    return {
        "precision": float((hits[answered] / shown[answered]).mean()) if answered.any() else 0.0,
        "recall": float((hits[some] / relevant[some]).mean()) if some.any() else 0.0,
        "silent_when_relevant": float(silent[some].mean()) if some.any() else 0.0,
        "silent_when_nothing": None if some.all() else float(silent[~some].mean()),
    }
