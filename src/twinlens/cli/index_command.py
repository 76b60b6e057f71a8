"""`twinlens index FOLDER`: bring a folder's index up to date and say what happened."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from twinlens.cli.console import note, summary, sync_with_progress

if TYPE_CHECKING:
    from twinlens.search.sync import SkippedFile

FolderArgument = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="The photos, folders within included.")
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help="A built-in or pulled model's name, or a checkpoint or model folder; "
        "NAME@256 keeps the first 256 numbers of each vector. "
        "[default: the index's own; mini for a new one]",
        show_default=False,
    ),
]
IndexDirOption = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="Where the index is. [default: FOLDER/.twinlens, or the user's cache "
        "if FOLDER cannot be written to]",
        show_default=False,
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, help="Threads to use. [default: all cores]", show_default=False
    ),
]
RuntimeOption = Annotated[
    Literal["onnxruntime", "openvino"],
    typer.Option(help="What runs the towers; openvino is an extra to install."),
]
MaxMegapixelsOption = Annotated[
    float, typer.Option(metavar="N", min=0.001, help="Skip pictures that are larger than this.")
]


def index_command(
    folder: FolderArgument,
    model: ModelOption = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Forget the index; start over.")] = (
        False
    ),
    max_megapixels: MaxMegapixelsOption = 180.0,
    index_dir: IndexDirOption = None,
    runtime: RuntimeOption = "onnxruntime",
    threads: ThreadsOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what happened as JSON, to stdout.")
    ] = False,
) -> None:
    """Index the photos of FOLDER, or what changed since the last time.

    Files that cannot be read are named and left out. Stop it at any moment: what is
    indexed stays so, and the same command continues.

    \b
      twinlens index photos/
      twinlens index photos/ --rebuild
    """
    from twinlens.search.photos import open_photos

    with open_photos(
        folder,
        model,
        index_dir=index_dir,
        rebuild=rebuild,
        runtime=runtime,
        threads=threads,
        max_megapixels=max_megapixels,
    ) as photos:
        report = sync_with_progress(photos)
        if as_json:
            named = {file.path for file in report.skipped}
            known = [file for file in photos.skipped_files() if file.path not in named]
            result = {
                "folder": str(folder),
                "index": str(photos.index.place.index_dir),
                "model": photos.index.model.model_id,
                "indexed": report.indexed,
                "added": report.added,
                "changed": report.changed,
                "renamed": report.renamed,
                "removed": report.removed,
                "unchanged": report.unchanged,
                "skipped": _named(report.skipped),
                "skipped_before": _named(known),
                "seconds": round(report.seconds, 3),
            }
            print(json.dumps(result, indent=2))
    note(summary(report))
    if report.skipped_before and not as_json:
        note(
            f"{report.skipped_before:,} of the skipped files were named on an earlier run and "
            f"have not changed; --json names them again"
        )


def _named(files: "Sequence[SkippedFile]") -> list[dict[str, str]]:
    return [{"path": str(file.path), "reason": file.reason} for file in files]
