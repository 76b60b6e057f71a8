"""`twinlens compare A.json B.json`: is B better than A, and what changed?"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinlens.cli.console import note
from twinlens.text import printable

if TYPE_CHECKING:
    from twinlens.evaluate.compare import Change, Comparison, MetricComparison

MOST_NAMED = 5  # changed items of a kind; --json names all


def compare_command(
    first: Annotated[
        Path,
        typer.Argument(metavar="A.json", help="What `twinlens evaluate --json` wrote of a model."),
    ],
    second: Annotated[
        Path, typer.Argument(metavar="B.json", help="The same of another model, on the same data.")
    ],
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Write everything as JSON, all changed items included.",
            show_default=False,
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Write a page with the differences and what changed most.",
            show_default=False,
        ),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the verdicts as a Markdown table.")
    ] = False,
) -> None:
    """Tell whether model B is really better than model A, and which items changed.

    Items are paired by their ids. B counts as better when the 95 % paired bootstrap interval of
    the difference leaves out 0 and its p, corrected for the number of metrics, is below 0.05.

    \b
      twinlens evaluate retrieval photos.csv --model mini --json a.json
      twinlens evaluate retrieval photos.csv --model vit-b-32 --json b.json
      twinlens compare a.json b.json --html compared.html
    """
    from twinlens.errors import ConfigError
    from twinlens.evaluate.compare import (
        compare,
        comparison_page,
        comparison_to_dict,
        comparison_to_markdown,
    )
    from twinlens.evaluate.result import read_results

    for file in (json_file, html):
        if file is not None and not file.absolute().parent.is_dir():
            raise ConfigError(
                f"{file.parent} is not a folder: {file.name} cannot be written there."
            )
    comparisons = compare(
        read_results(first), read_results(second), names=(str(first), str(second))
    )
    if json_file is not None:
        values = json.dumps(comparison_to_dict(comparisons), indent=1, allow_nan=False)
        json_file.write_text(values + "\n", encoding="utf-8")
        note(f"JSON: {json_file}")
    if html is not None:
        html.write_text(comparison_page(comparisons).html(), encoding="utf-8")
        note(f"page: {html}")
    if markdown:
        print(comparison_to_markdown(comparisons), end="")
    else:
        print("\n\n".join("\n".join(map(printable, _lines(one))) for one in comparisons))


def _lines(comparison: "Comparison") -> list[str]:
    """A comparison for people."""
    models = f"A: {comparison.model_a}, B: {comparison.model_b}"
    lines = [f"{comparison.task} on {comparison.data}   {models}"]
    lines += [f"  note: {text}" for text in comparison.notes]
    for metric in comparison.metrics:
        lines += _metric_lines(metric)
    for name, (a, b) in comparison.figures.items():
        lines.append(f"  {name.replace('_', ' ')}: {a} against {b}, not tested: no value per item")
    if not comparison.metrics and not comparison.figures:
        lines.append("  nothing that both were measured by")
    return lines


def _metric_lines(metric: "MetricComparison") -> list[str]:
    from twinlens.evaluate.compare import p_text
    from twinlens.evaluate.result import number_text

    values = f"{number_text(metric.a)} to {number_text(metric.b)}"
    p = f"{_p('p', p_text(metric.p))} ({metric.test})"
    if metric.p_corrected != metric.p:
        p += f", {_p('corrected', p_text(metric.p_corrected))}"
    lines = [
        f"  {metric.metric.replace('_', ' ')}: {metric.verdict}",
        f"    {values} over {metric.items:,} {metric.what}s; {p}",
    ]
    for kind, changes in (("better", metric.gained), ("worse", metric.lost)):
        if changes:
            lines.append(f"    {kind} under B: {len(changes):,}: {_named(changes)}")
    return lines


def _p(name: str, text: str) -> str:
    return f"{name} {text}" if text.startswith("<") else f"{name} = {text}"


def _named(changes: "tuple[Change, ...]") -> str:
    names = ", ".join(change.id for change in changes[:MOST_NAMED])
    return names if len(changes) <= MOST_NAMED else f"{names}, ..."
