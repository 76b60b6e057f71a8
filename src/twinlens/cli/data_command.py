"""`twinlens data ...`: what concerns training data. `check` looks it through."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twinlens.cli.console import ProgressBar, note
from twinlens.text import printable

if TYPE_CHECKING:
    from twinlens.data.pairs import Source

MOST_NAMED = 5  # pictures or groups that a list names; --json names all


def data_check_command(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Folders, tables (.csv, .tsv, .jsonl, .parquet), shards (.tar, .tar.gz; also a "
            "pattern or URL), or a .json file with a source's settings.",
            show_default=False,
        ),
    ],
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            metavar="SOURCE",
            help="Data to test with: tells which of its pictures are in SOURCE. Repeatable.",
            show_default=False,
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Write a page with the figures, sample pictures, look-alikes and leaks.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            help="Count captions in this model's tokens.",
            show_default=False,
        ),
    ] = None,
    threshold: Annotated[
        int | None,
        typer.Option(
            metavar="BITS",
            min=0,
            max=16,
            help="How different look-alikes may be: bits of 64. [default: 8]",
            show_default=False,
        ),
    ] = None,
    max_megapixels: Annotated[
        float, typer.Option(metavar="N", min=0.001, help="Count larger pictures as bad.")
    ] = 180.0,
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Threads to use. [default: all cores]", show_default=False
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything as JSON, all names included.")
    ] = False,
) -> None:
    """Look training data through: counts, sizes, captions, duplicates, leaks, bad samples.

    Exit code 3 when a picture of --against is in SOURCE, 0 otherwise, whatever else is found.

    \b
      twinlens data check photos/
      twinlens data check 'train-{0000..0005}.tar' --against test.tar --html check.html
    """
    from twinlens.data.check import check_data
    from twinlens.data.likeness import DEFAULT_THRESHOLD
    from twinlens.errors import ConfigError
    from twinlens.runtime.machine import usable_cores

    tokenizer = None
    if model is not None:
        from twinlens.runtime.load import load_tokenizer

        tokenizer = load_tokenizer(model)
    if html is not None and not html.absolute().parent.is_dir():
        raise ConfigError(f"{html.parent} is not a folder: the page cannot be written there.")
    with ProgressBar("checking") as bar:
        report = check_data(
            [source for text in sources for source in read_sources(text)],
            [source for text in against or () for source in read_sources(text)],
            tokenizer=tokenizer,
            threshold=DEFAULT_THRESHOLD if threshold is None else threshold,
            threads=threads or usable_cores(),
            max_megapixels=max_megapixels,
            progress=bar.update,
        )
    values = report.to_dict()
    if html is not None:
        from twinlens.cli.data_page import check_page

        html.write_text(check_page(report, values), encoding="utf-8")
        note(f"page: {html}")
    if as_json:
        print(json.dumps(values, indent=2))
    else:
        for side in ("data", "against"):
            if side in values:
                print("\n".join(_lines(side, values[side])))
        if "leaks" in values:
            print("\n".join(_leak_lines(values["leaks"])))
    if values.get("leaks"):
        raise typer.Exit(3)


def read_sources(text: str) -> "list[Source]":
    """The sources that an argument means: a place, or a JSON file with one's settings or several.

    Raises ConfigError for what is neither.
    """
    from twinlens.data.pairs import FolderSource, ShardSource, TableSource, source_from_text
    from twinlens.errors import ConfigError

    if not text.endswith(".json"):
        return [source_from_text(text)]
    try:
        values = json.loads(Path(text).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{text} is not a readable JSON file: {error}") from error
    kinds: dict[Any, Any] = {"folder": FolderSource, "table": TableSource, "shards": ShardSource}
    found: list[Source] = []
    for item in values if isinstance(values, list) else [values]:
        kind = item.get("kind") if isinstance(item, dict) else None
        if kind not in kinds:
            raise ConfigError(f"{text}: a source's kind must be one of {', '.join(kinds)}.")
        found.append(kinds[kind].from_dict(item))
    return found


def _lines(side: str, values: dict[str, Any]) -> list[str]:
    """The figures of one side for people."""
    names = ", ".join(source_name(source) for source in values["sources"])
    bad = sum(values["bad"].values())
    lines = [f"{side}: {printable(names)}", f"  pictures         {values['pictures']:,} usable"]
    lines[-1] += f", {bad:,} bad" if bad else ", none bad"
    for kind, count in values["bad"].items():
        lines.append(f"    {count:,} x, first: {printable(values['bad_first'][kind])}")
    for label, key in FIGURES.items():
        if values.get(key):
            lines.append(f"  {label:16} {spread(values[key])}")
    lines.append(
        f"  captions         {values['captions']:,}, {values['distinct_captions']:,} different"
    )
    if values.get("captions_cut"):
        lines.append(
            f"  too long         {values['captions_cut']:,} captions have more than "
            f"{values['context']} tokens; what follows is cut"
        )
    if values["labels"]:
        lines.append(f"  labels           {values['labels']:,}")
    for label, key in (("same files", "same_files"), ("look-alikes", "look_alikes")):
        groups = values[key]
        lines.append(f"  {label:16} {len(groups):,} groups" if groups else f"  {label:16} none")
        lines += [f"    {printable(', '.join(group[:4]))}" for group in groups[:MOST_NAMED]]
        if len(groups) > MOST_NAMED:
            lines.append(f"    and {len(groups) - MOST_NAMED:,} more: --json names them")
    return lines


FIGURES = {
    "width": "width",
    "height": "height",
    "width / height": "aspect_ratio",
    "captions each": "captions_per_picture",
    "words": "words_per_caption",
    "tokens": "tokens_per_caption",
    "pictures a label": "pictures_per_label",
}
"""What people read, and the key of its quantiles in the report."""


def spread(quantiles: dict[str, float]) -> str:
    """`192 (96 to 640)`: the median between the least and the most."""
    least, median, most = (f"{quantiles[name]:,g}" for name in ("least", "median", "most"))
    return median if least == most else f"{median} ({least} to {most})"


def source_name(source: dict[str, Any]) -> str:
    """What a source's settings call it."""
    return ", ".join(source["shards"]) if "shards" in source else str(source["path"])


def _leak_lines(leaks: list[list[str]]) -> list[str]:
    if not leaks:
        return ["leaks: none: no picture of --against is in the data"]
    lines = [f"leaks: {len(leaks):,} pictures of the data look like one of --against"]
    lines += [f"    {printable(mine)} = {printable(other)}" for mine, other in leaks[:MOST_NAMED]]
    if len(leaks) > MOST_NAMED:
        lines.append(f"    and {len(leaks) - MOST_NAMED:,} more: --json names them")
    return lines
