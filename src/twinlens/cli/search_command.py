"""`twinlens search FOLDER QUERY`: update the index, then show the photos closest to a query."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from twinlens.cli.console import note, summary, sync_with_progress
from twinlens.cli.index_command import (
    FolderArgument,
    IndexDirOption,
    MaxMegapixelsOption,
    ModelOption,
    RuntimeOption,
    ThreadsOption,
)
from twinlens.errors import IndexBusy, TwinlensError
from twinlens.text import printable

if TYPE_CHECKING:
    from twinlens.search.photos import Hit


class QueryCommand(TyperCommand):
    """Lets `-0.5:dog` be typed, which would look like an option: it is `-` and `0.5:dog`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        split: list[str] = []
        for argument in args:
            split += ["-", argument[1:]] if re.match(r"-\.?\d[\d.]*:", argument) else [argument]
        return super().parse_args(ctx, split)


def search_command(
    folder: FolderArgument,
    query: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="QUERY",
            help="Words or a picture's path; several with + and - between them, each with a "
            "weight if you like, as in 2:dog.",
            show_default=False,
        ),
    ] = None,
    top: Annotated[
        int, typer.Option("--top", "-n", metavar="N", min=1, help="How many to show.")
    ] = 10,
    add: Annotated[
        list[str] | None,
        typer.Option("--add", "-a", metavar="QUERY", help="More of this.", show_default=False),
    ] = None,
    subtract: Annotated[
        list[str] | None,
        typer.Option("--subtract", "-s", metavar="QUERY", help="Less of this.", show_default=False),
    ] = None,
    relevant: Annotated[
        bool,
        typer.Option(
            "--relevant",
            help="Show only what answers QUERY, which may be nothing; for queries in words.",
        ),
    ] = False,
    relevance: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The rule for --relevant, which it implies. [default: the model's own]",
            show_default=False,
        ),
    ] = None,
    no_index: Annotated[
        bool, typer.Option("--no-index", help="Search the index as it is; look for no changes.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write a contact sheet, a single file.", show_default=False
        ),
    ] = None,
    open_best: Annotated[
        bool, typer.Option("--open", help="Open the contact sheet, or else the best photo.")
    ] = False,
    thumbnails: Annotated[
        bool | None,
        typer.Option(
            help="Show the photos in the terminal. [default: where it can show pictures]",
            show_default=False,
        ),
    ] = None,
    model: ModelOption = None,
    max_megapixels: MaxMegapixelsOption = 180.0,
    index_dir: IndexDirOption = None,
    runtime: RuntimeOption = "onnxruntime",
    threads: ThreadsOption = None,
) -> None:
    """Find the photos of FOLDER that are closest to QUERY.

    What is new in FOLDER is indexed first. The score is a cosine: only its order
    means something, and good matches of words are often near 0.3. Which of them
    answer QUERY is for --relevant to say.

    \b
      twinlens search photos/ "a red sunset over the ocean"
      twinlens search photos/ beach.jpg + "a dog" - people
      twinlens search photos/ "a birthday cake" --top 50 --html cakes.html --open
      twinlens search photos/ "a fire engine" --relevant
    """
    from twinlens.search.photos import open_photos
    from twinlens.search.query import describe, parse_query, parse_term

    terms = parse_query(query or []) if query or not (add or subtract) else []
    terms += [parse_term(text) for text in add or []]
    terms += [parse_term(text, sign=-1.0) for text in subtract or []]
    with open_photos(
        folder,
        model,
        index_dir=index_dir,
        create=not no_index,
        runtime=runtime,
        threads=threads,
        max_megapixels=max_megapixels,
    ) as photos:
        # Before the photos are indexed: without a rule there is nothing to wait for.
        rule = photos.relevance_rule(relevance) if relevant or relevance is not None else None
        if not no_index:
            try:
                report = sync_with_progress(photos)
                if report.added or report.changed or report.renamed or report.removed:
                    note(summary(report))
            except IndexBusy:
                note(f"another twinlens is indexing {folder}; searching what it has so far")
        hits = photos.search(terms, top, relevance=rule)
        model_id = photos.index.model.model_id
        indexed = len(photos)
    title = describe(terms)
    if as_json:
        results = [
            {"rank": rank, "score": round(hit.score, 6), "path": str(hit.path)}
            for rank, hit in enumerate(hits, start=1)
        ]
        answer = {"query": title, "model": model_id, "indexed": indexed, "results": results}
        if rule is not None:
            answer["relevance"] = {"kind": rule.kind, "threshold": rule.threshold}
        print(json.dumps(answer, indent=2))
    else:
        _print_table(hits, thumbnails)
    if not indexed:
        note("no photos are indexed")
    elif not hits:
        note(f"none of the {indexed:,} photos is relevant to {title!r}")
    if html is not None:
        from twinlens.cli.sheet import contact_sheet

        html.write_text(contact_sheet(title, terms, hits, indexed), encoding="utf-8")
        note(f"wrote {html}")
    if open_best and (html is not None or hits):
        _open_with_viewer(html if html is not None else hits[0].path)


def _print_table(hits: "list[Hit]", thumbnails: bool | None) -> None:
    """A line per photo, score and path; beneath it, where that is possible, the photo."""
    from twinlens.cli.thumbnails import terminal_protocol, terminal_thumbnail

    protocol = None
    if thumbnails is not False and sys.stdout.isatty():
        protocol = terminal_protocol(os.environ) or ("blocks" if thumbnails else None)
    if hits:
        print(" score  photo")
    for hit in hits:
        print(f"{hit.score:6.3f}  {printable(str(hit.path))}")
        if protocol is not None:
            print(terminal_thumbnail(hit.path, protocol))


def _open_with_viewer(path: Path) -> None:
    target = str(path.absolute())  # absolute, so that no name looks like an option
    if sys.platform == "win32":
        os.startfile(target)
        return
    viewer = "open" if sys.platform == "darwin" else "xdg-open"
    if shutil.which(viewer) is None:
        raise TwinlensError(f"--open needs the program {viewer}, which is not installed.")
    subprocess.Popen(
        [viewer, target], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=True
    )
