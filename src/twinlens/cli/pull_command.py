"""`twinlens pull NAME`: bring a published model's files to this machine."""

import json
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twinlens.cli.console import ProgressBar, note
from twinlens.text import printable

if TYPE_CHECKING:
    pass


def pull_command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A name from `twinlens models`, OpenCLIP's name for it, or "
            "hf:owner/repo[@revision] for any repository on the hub.",
            show_default=False,
        ),
    ],
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where to put the files. [default: the user's cache, or TWINLENS_CACHE]",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what was pulled as JSON, to stdout.")
    ] = False,
) -> None:
    """Download a published model and print its folder.

    Every file is checked against its published checksum. Stop it at any moment: the same
    command continues where it broke off. HF_ENDPOINT names another hub, HF_TOKEN opens
    models whose licence you have accepted.

    \b
      twinlens pull openai/vit-b-32
      twinlens pull hf:openai/clip-vit-base-patch32 --to models/clip
    """
    from twinlens.hub.cache import read_manifest
    from twinlens.hub.download import readable
    from twinlens.hub.pull import pull

    started = time.monotonic()
    with ProgressBar("pulling", in_bytes=True) as bar:
        try:
            folder = pull(
                name,
                to,
                progress=bar.update,
                on_wait=lambda: note("another pull of this model is running; waiting for it"),
            )
        except KeyboardInterrupt as error:
            bar.close()
            note("stopped; what was fetched is kept; run the same command to continue")
            raise typer.Exit(130) from error
    manifest: dict[str, Any] = read_manifest(folder) or {}
    files = manifest.get("files", {})
    if as_json:
        print(json.dumps({"folder": str(folder), **manifest}, indent=2))
    else:
        print(printable(str(folder)))
    size = readable(sum(file["size_bytes"] for file in files.values()))
    took = f"in {time.monotonic() - started:.1f} s" if bar.moved else "it was here already"
    note(f"pulled {manifest.get('name', name)}: {len(files)} files, {size}, {took}")
    if licence := manifest.get("licence"):
        note(f"licence: {licence}")
    note(f"next: {search_line(manifest.get('name', name) if to is None else str(folder))}")


def search_line(model: str) -> str:
    """A command that uses a model that is here, to be pasted into a shell."""
    return f'twinlens search photos/ "a red bicycle" --model {shlex.quote(model)}'
