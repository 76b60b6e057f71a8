"""What a chosen relevance rule is worth: figures, values per query, tables, and a page."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from twinlens.evaluate.cutoff_counts import Counts, query_figures
from twinlens.evaluate.result import NOT_A_NUMBER, Figure, PerItem, Result
from twinlens.evaluate.search_cases import SearchCase
from twinlens.evaluate.statistics import figure_of
from twinlens.runtime.relevance import RelevanceRule

if TYPE_CHECKING:
    from twinlens.evaluate.page import Page


def fill_result(
    result: Result,
    rule: RelevanceRule,
    cases: Sequence[SearchCase],
    shown: Int[np.ndarray, " query"],
    hits: Int[np.ndarray, " query"],
    counts: Counts,
) -> None:
    """Figures, per_item and details. `shown` and `hits` are cross-validated, `counts` are not."""
    relevant = np.concatenate([case.relevant_counts for case in cases])
    corpora = [_corpus_name(case) for case in cases]
    ids = [f"{text} ({corpora[i]})" for i, case in enumerate(cases) for text in case.ids]
    groups = [group for case in cases for group in case.groups]
    answered, some = shown > 0, relevant > 0

    def note(name: str, values: Any, rows: Any, *, higher_is_better: bool = True) -> None:
        places = np.flatnonzero(rows)
        if len(places):
            clusters = [groups[place] for place in places]
            result.figures[name] = figure_of(
                values[places], clusters=clusters, higher_is_better=higher_is_better
            )
            result.per_item[name] = PerItem.of(
                [ids[place] for place in places], values[places], what="query", clusters=clusters
            )

    note("precision", hits / np.maximum(shown, 1), answered)
    note("recall", hits / np.maximum(relevant, 1), some)
    silent = (~answered).astype(np.float64)
    note("shows nothing, though there is something", silent, some, higher_is_better=False)
    note("shows nothing, and there is nothing", silent, ~some)
    result.figures["threshold"] = Figure(rule.threshold)
    result.data |= {
        "queries": len(relevant),
        "queries with nothing relevant": int((~some).sum()),
        "images": max(len(case.corpus) for case in cases),
    }
    result.details = {
        "rule": rule.to_dict() | {"background": len(rule.background)},
        "corpora": _by_corpus(cases, shown, hits, relevant),
        "curve": _curve(counts, relevant),
    }


def _corpus_name(case: SearchCase) -> str:
    missing = "" if case.relevant_counts.any() else ", nothing relevant"
    return f"{case.name}, {len(case.corpus):,} photos{missing}"


def _by_corpus(
    cases: Sequence[SearchCase],
    shown: Int[np.ndarray, " query"],
    hits: Int[np.ndarray, " query"],
    relevant: Int[np.ndarray, " query"],
) -> list[dict[str, Any]]:
    """The figures of each case, and how many photos its queries show."""
    table, first = [], 0
    for case in cases:
        rows = slice(first, first + len(case))
        first += len(case)
        table.append(
            {"corpus": _corpus_name(case), "queries": len(case)}
            | query_figures(shown[rows], hits[rows], relevant[rows])
            | {"median_shown": float(np.median(shown[rows]))}
        )
    return table


def _curve(counts: Counts, relevant: Int[np.ndarray, " query"]) -> list[dict[str, Any]]:
    """Every tenth threshold of the final rule, on the queries it was fitted to."""
    return [
        {"threshold": float(counts.grid[place])}
        | query_figures(counts.shown[:, place], counts.hits[:, place], relevant)
        for place in range(0, len(counts.grid), 10)
    ]


def cut_off_page(page: "Page", result: Result) -> None:
    """Adds the kinds of rules beside each other, each corpus, and the curve of the final rule."""
    from twinlens.evaluate import plots

    header = ["", "precision", "recall", "silent with something", "silent with nothing"]
    kinds = result.details["kinds"]
    page.table(
        header,
        [[kind, *_cells(row)] for kind, row in kinds.items()],
        title="Kinds of rules, cross-validated",
    )
    page.table(
        header,
        [[row["corpus"], *_cells(row)] for row in result.details["corpora"]],
        title=f"The rule chosen ({result.details['rule']['kind']}) on each corpus",
    )
    curve = result.details["curve"]
    names = ("precision", "recall", "silent_when_nothing")
    series = {
        name.replace("_", " "): [point[name] for point in curve]
        for name in names
        if curve[0][name] is not None
    }
    thresholds = [point["threshold"] for point in curve]
    drawing = plots.curves(thresholds, series, x_label="threshold", y_limits=(0.0, 1.0))
    page.plot("Where the threshold could lie", drawing, "On all queries, not cross-validated.")


def _cells(row: dict[str, Any]) -> list[str]:
    names = ("precision", "recall", "silent_when_relevant", "silent_when_nothing")
    return [NOT_A_NUMBER if row[name] is None else f"{row[name]:.3f}" for name in names]
