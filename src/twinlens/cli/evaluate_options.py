"""The options that all tasks of `twinlens evaluate` share.

They are declared once, as the fields of `Shared`; `task` adds them to those that a command
declares itself.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from twinlens.cli.index_command import MaxMegapixelsOption, RuntimeOption, ThreadsOption

DataArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A folder with one folder per class, a folder or table of pictures with labels or "
        "captions (.csv, .tsv, .jsonl, .parquet), shards (.tar), or a benchmark's name with "
        "--root.",
    ),
]
Kind = Literal["labels", "captions"]


@dataclass(frozen=True, kw_only=True)
class Shared:
    """The options that tasks share; one that a task lacks keeps its default."""

    data: DataArgument
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            help="A built-in or pulled model's name, or a checkpoint or model folder; NAME@256 "
            "keeps the first 256 numbers of each vector.",
        ),
    ] = "mini"
    classes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Names of the classes: one a line, or lines of folder<TAB>name, synonym, ...; "
            "or JSON.",
            show_default=False,
        ),
    ] = None
    templates: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Sentences to put class names into: imagenet, short, plain, a data set's "
            "(food101, ...) or a file with one a line. [default: the data's own, else short]",
            show_default=False,
        ),
    ] = None
    kind: Annotated[
        Kind | None,
        typer.Option(
            "--as",
            help="Which to measure by where DATA has both. [default: captions]",
            show_default=False,
        ),
    ] = None
    split: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Which part of DATA. [default: test, val or train, the first there is]",
            show_default=False,
        ),
    ] = None
    root: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Where you keep the benchmark named.", show_default=False
        ),
    ] = None
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Take N pictures, at even distances. [default: all]",
            show_default=False,
        ),
    ] = None
    no_cache: Annotated[
        bool,
        typer.Option("--no-cache", help="Embed anew, and keep no vectors for the next evaluation."),
    ] = False
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Write everything as JSON, for `twinlens compare` too.",
            show_default=False,
        ),
    ] = None
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write a report with plots and pictures, a single file.",
            show_default=False,
        ),
    ] = None
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print a Markdown table instead.")
    ] = False
    max_megapixels: MaxMegapixelsOption = 180.0
    runtime: RuntimeOption = "onnxruntime"
    threads: ThreadsOption = None


def task(*, without: Sequence[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes `def command(shared: Shared, own options)` a command with all of their options.

    The shared ones named in `without` are not offered. One that the command declares too is
    declared as the command does, and handed over within `shared`.
    """

    def adopt(command: Callable[..., None]) -> Callable[..., None]:
        own = dict(list(inspect.signature(command).parameters.items())[1:])
        offered = {
            name: own.get(name, parameter)
            for name, parameter in inspect.signature(Shared).parameters.items()
            if name not in without
        }
        only_own = {name: parameter for name, parameter in own.items() if name not in offered}

        def run(**options: Any) -> None:
            given = {name: options.pop(name) for name in offered}
            command(Shared(**given), **options)

        # DATA first, then what is the task's own, then what all have.
        data = offered.pop("data")
        parameters = [data, *only_own.values(), *offered.values()]
        parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
        offered["data"] = data
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return adopt
