"""Whether model B is really better than model A, and which items changed.

Pairs what two files of `twinlens evaluate` hold: results by task and data set, items by id.
Every metric that both have per item gets its paired difference, an interval and a p
(statistics.py says how); a difference counts as shown when its interval leaves 0 out and its p,
corrected by Holm's method for the number of metrics compared at once, is below 0.05.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from twinlens.errors import ConfigError
from twinlens.evaluate.page import Page
from twinlens.evaluate.plots import bars
from twinlens.evaluate.result import Figure, PerItem, Result, markdown_row, number_text
from twinlens.evaluate.statistics import CONFIDENCE, holm, paired_difference

COMPARISON_SCHEMA = "twinlens.comparison"
COMPARISON_VERSION = 1
ALPHA = 1.0 - CONFIDENCE
CHANGES_ON_PAGE = 25  # gained, and as many lost

# The verdict comes early: on a phone the rest is found by scrolling to the right.
_HEADER = ("metric", "verdict", "B less A", "p", "A", "B", "items")


@dataclass(frozen=True)
class Change:
    """An item and its value under A and B."""

    id: str
    a: float
    b: float


@dataclass(frozen=True)
class MetricComparison:
    """One metric over the items that both results have."""

    metric: str
    what: str  # an item is an "image", a "caption", ...
    items: int  # in both
    only_a: int
    only_b: int
    a: float
    b: float
    difference: float  # b - a
    low: float
    high: float
    p: float
    p_corrected: float
    test: str
    higher_is_better: bool
    gained: tuple[Change, ...]  # better under B, the largest change first
    lost: tuple[Change, ...]

    @property
    def better(self) -> Literal["A", "B"] | None:
        """None: no difference shown."""
        shown = (self.low > 0 or self.high < 0) and self.p_corrected < ALPHA
        if not shown:
            return None
        return "B" if (self.difference > 0) == self.higher_is_better else "A"

    @property
    def verdict(self) -> str:
        """`B is better: +0.021 [0.008, 0.034]`."""
        if not self.gained and not self.lost:
            return f"the same for every {self.what}"
        difference = _signed(self.difference, self.low, self.high)
        if self.better is None:
            return f"no difference shown: {difference}"
        lower = "" if self.higher_is_better else " (lower is better)"
        return f"{self.better} is better: {difference}{lower}"


@dataclass(frozen=True)
class Comparison:
    """Two results of one task on one data set."""

    task: str
    data: str
    model_a: str
    model_b: str
    metrics: tuple[MetricComparison, ...]
    # Figures that both have but not per item, so that nothing can be tested.
    figures: dict[str, tuple[Figure, Figure]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def compare(
    first: Sequence[Result], second: Sequence[Result], *, names: tuple[str, str] = ("A", "B")
) -> list[Comparison]:
    """Each result of `first` with its counterpart in `second`; `names` is for messages.

    Raises ConfigError when no task on no data set is in both, or two such results share no item.
    """
    pairs = _paired_results(first, second)
    if not pairs:
        raise ConfigError(
            f"{names[0]} holds {_titles(first)} and {names[1]} {_titles(second)}: no task on the "
            "same data is in both. Evaluate both models on the same data."
        )
    tested = [_tested(a, b, names) for a, b in pairs]
    corrected = iter(holm([metric["p"] for metrics in tested for metric in metrics]))
    comparisons = []
    for (a, b), metrics in zip(pairs, tested, strict=True):
        compared = tuple(MetricComparison(**m, p_corrected=next(corrected)) for m in metrics)
        only_figures = {
            name: (figure, b.figures[name])
            for name, figure in a.figures.items()
            if name in b.figures and name not in {metric.metric for metric in compared}
        }
        comparisons.append(
            Comparison(
                task=a.task,
                data=_name(a.data) if _name(a.data) == _name(b.data) else _both(a.data, b.data),
                model_a=_name(a.model),
                model_b=_name(b.model),
                metrics=compared,
                figures=only_figures,
                notes=tuple(_notes(a, b)),
            )
        )
    return comparisons


def comparison_to_dict(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """For JSON: everything, all changed ids included; numbers that are none are None."""

    def metric_values(metric: MetricComparison) -> dict[str, Any]:
        values = {**asdict(metric), "better": metric.better, "verdict": metric.verdict}
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}

    return {
        "schema": COMPARISON_SCHEMA,
        "version": COMPARISON_VERSION,
        "correction": "Holm",
        "tests": sum(len(comparison.metrics) for comparison in comparisons),
        "comparisons": [
            {
                "task": comparison.task,
                "data": comparison.data,
                "model_a": comparison.model_a,
                "model_b": comparison.model_b,
                "notes": list(comparison.notes),
                "metrics": [metric_values(metric) for metric in comparison.metrics],
                "only_figures": {
                    name: [None if math.isnan(f.value) else f.value for f in both]
                    for name, both in comparison.figures.items()
                },
            }
            for comparison in comparisons
        ],
    }


def comparison_to_markdown(comparisons: Sequence[Comparison]) -> str:
    """One table, and a sentence on what it states."""
    lines = [
        markdown_row(["task", "data", *_HEADER]),
        "|---|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for comparison in comparisons:
        for row in _rows(comparison):
            lines.append(markdown_row([comparison.task, comparison.data, *map(str, row)]))
    return "\n".join(lines) + f"\n\n{explanation(comparisons)}\n"


def comparison_page(comparisons: Sequence[Comparison]) -> Page:
    """Verdicts, differences as a plot, and the items that changed most."""
    models = dict.fromkeys((c.model_a, c.model_b) for c in comparisons)
    title = "; ".join(f"A: {a}, B: {b}" for a, b in models)
    page = Page(f"Comparison, {title}", explanation(comparisons))
    for comparison in comparisons:
        page.heading(f"{comparison.task}: {comparison.data}")
        for note in comparison.notes:
            page.text(note, mark="bad")
        page.table(_HEADER, _rows(comparison))
        shares = [m for m in comparison.metrics if max(abs(m.a), abs(m.b)) <= 1 and m.low <= m.high]
        if shares:
            page.plot(
                "B less A",
                bars(
                    [metric.metric.replace("_", " ") for metric in shares],
                    [metric.difference for metric in shares],
                    lows=[metric.low for metric in shares],
                    highs=[metric.high for metric in shares],
                    x_label="difference",
                ),
                "Lines are 95 % intervals of the paired difference.",
            )
        for metric in comparison.metrics:
            for kind, changes in (("better", metric.gained), ("worse", metric.lost)):
                if changes:
                    page.table(
                        [metric.what, "A", "B"],
                        [(change.id, change.a, change.b) for change in changes[:CHANGES_ON_PAGE]],
                        title=f"{metric.metric.replace('_', ' ')}: {kind} under B",
                        text=_of(len(changes), CHANGES_ON_PAGE),
                    )
    return page


def explanation(comparisons: Sequence[Comparison]) -> str:
    """What the table's numbers are."""
    tests = sum(len(comparison.metrics) for comparison in comparisons)
    how = f", corrected by Holm's method for {tests} metrics," if tests > 1 else ""
    return (
        "Over the items that both have. In brackets: the 95 % paired bootstrap interval of the "
        f"difference. Better means that it leaves out 0 and p{how} is below {ALPHA:.2f}."
    )


def p_text(p: float) -> str:
    """`p < 0.001` or `p = 0.024`, without the p: `< 0.001`, `0.024`."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _rows(comparison: Comparison) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = [
        (
            metric.metric.replace("_", " "),
            metric.verdict.partition(":")[0],
            _signed(metric.difference, metric.low, metric.high),
            p_text(metric.p_corrected),
            metric.a,
            metric.b,
            f"{metric.items:,} {metric.what}s",
        )
        for metric in comparison.metrics
    ]
    rows += [
        (name.replace("_", " "), "not tested: no value per item", "", "", a.value, b.value, "")
        for name, (a, b) in comparison.figures.items()
    ]
    return [tuple(number_text(v) if isinstance(v, float) else v for v in row) for row in rows]


def _tested(a: Result, b: Result, names: tuple[str, str]) -> list[dict[str, Any]]:
    """MetricComparison's fields but for the corrected p, for each metric of both."""
    compared = []
    for metric, items in a.per_item.items():
        if metric not in b.per_item:
            continue
        pairing = _paired_items(items, b.per_item[metric])
        if not pairing.rows_a:
            raise ConfigError(
                f"{names[0]} ({a.title}) and {names[1]} ({b.title}) have no {items.what} in "
                f"common for {metric}, by their ids: {items.ids[0] if items.ids else 'none'!r} is "
                "one of A's. Evaluate both models on the same data."
            )
        compared.append(_compared(metric, items, b.per_item[metric], pairing, a.figures))
    return compared


def _compared(
    metric: str, first: PerItem, second: PerItem, pairing: "_Pairing", figures: dict[str, Figure]
) -> dict[str, Any]:
    a = np.array(first.values, dtype=np.float64)[pairing.rows_a]
    b = np.array(second.values, dtype=np.float64)[pairing.rows_b]
    clusters = None
    if first.clusters is not None:
        clusters = [first.clusters[row] for row in pairing.rows_a]
    found = paired_difference(a, b, clusters, statistic=first.statistic)
    higher_is_better = figures[metric].higher_is_better if metric in figures else True
    middle = np.median if first.statistic == "median" else np.mean
    changes = [
        Change(first.ids[pairing.rows_a[row]], float(a[row]), float(b[row]))
        for row in np.argsort(-np.abs(b - a), kind="stable")
        if a[row] != b[row]
    ]
    hits = clusters is None and bool(np.isin(np.concatenate([a, b]), (0.0, 1.0)).all())
    return {
        "metric": metric,
        "what": first.what,
        "items": len(a),
        "only_a": pairing.only_a,
        "only_b": pairing.only_b,
        "a": float(middle(a)),
        "b": float(middle(b)),
        "difference": found.difference,
        "low": found.low,
        "high": found.high,
        "p": found.p,
        "test": "McNemar, exact" if hits and first.statistic == "mean" else "paired swaps",
        "higher_is_better": higher_is_better,
        "gained": tuple(change for change in changes if (change.b > change.a) == higher_is_better),
        "lost": tuple(change for change in changes if (change.b > change.a) != higher_is_better),
    }


@dataclass(frozen=True)
class _Pairing:
    """Row `rows_a[i]` of A and row `rows_b[i]` of B are the same item."""

    rows_a: list[int]
    rows_b: list[int]
    only_a: int
    only_b: int


def _paired_items(a: PerItem, b: PerItem) -> _Pairing:
    """By id, in A's order; the second of an id that comes twice meets the other's second.

    An item whose value is NaN on either side counts as not there.
    """
    place = {key: row for row, key in enumerate(_keys(b.ids)) if not math.isnan(b.values[row])}
    rows_a, rows_b, only_a = [], [], 0
    for row, key in enumerate(_keys(a.ids)):
        if math.isnan(a.values[row]) or key not in place:
            only_a += 1
            continue
        rows_a.append(row)
        rows_b.append(place[key])
    return _Pairing(rows_a, rows_b, only_a, len(b.ids) - len(rows_b))


def _keys(ids: Iterable[str]) -> Iterable[tuple[str, int]]:
    seen: Counter[str] = Counter()
    for name in ids:
        yield name, seen[name]
        seen[name] += 1


def _paired_results(first: Sequence[Result], second: Sequence[Result]) -> list[tuple[Result, ...]]:
    """Those of the same task and data set, those of equal settings first, then in order."""
    if len(first) == 1 and len(second) == 1 and first[0].task == second[0].task:
        return [(first[0], second[0])]  # Whether their data fit is told by the ids.
    waiting: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in second:
        waiting[result.task, _name(result.data)].append(result)
    chosen: dict[int, Result] = {}
    for equal_settings in (True, False):
        for place, result in enumerate(first):
            if place in chosen:
                continue
            candidates = waiting[result.task, _name(result.data)]
            for candidate in candidates:
                if candidate.settings == result.settings or not equal_settings:
                    chosen[place] = candidate
                    candidates.remove(candidate)
                    break
    return [(first[place], chosen[place]) for place in sorted(chosen)]


def _notes(a: Result, b: Result) -> Iterable[str]:
    """What makes a comparison less than it seems."""
    prints = [result.data.get("fingerprint") for result in (a, b)]
    if None not in prints and prints[0] != prints[1]:
        yield "The data differ between A and B; only the items with the same id are compared."
    keys = sorted(a.settings.keys() | b.settings.keys())
    different = [key for key in keys if a.settings.get(key) != b.settings.get(key)]
    if different:
        yield f"A and B were evaluated with different settings: {', '.join(different)}."
    if a.model.get("model_id") is not None and a.model.get("model_id") == b.model.get("model_id"):
        yield "A and B are the same model."
    for metric, items in a.per_item.items():
        if metric in b.per_item:
            pairing = _paired_items(items, b.per_item[metric])
            if pairing.only_a or pairing.only_b:
                yield (
                    f"{metric.replace('_', ' ')}: {len(pairing.rows_a):,} {items.what}s are in "
                    f"both, {pairing.only_a:,} only in A, {pairing.only_b:,} only in B."
                )


def _signed(difference: float, low: float, high: float) -> str:
    """`+0.021 [0.008, 0.034]`; no interval where there is none."""
    text = f"{'+' if difference > 0 else ''}{number_text(difference)}"
    if math.isnan(low):
        return text
    return f"{text} [{number_text(low)}, {number_text(high)}]"


def _of(count: int, most: int) -> str:
    return f"{count:,}" if count <= most else f"{count:,}; the first {most}"


def _titles(results: Sequence[Result]) -> str:
    return ", ".join(f"{result.task} on {_name(result.data)}" for result in results) or "nothing"


def _both(a: dict[str, Any], b: dict[str, Any]) -> str:
    return f"{_name(a)} / {_name(b)}"


def _name(values: dict[str, Any]) -> str:
    return str(values.get("name", "?"))
