"""The `twinlens` command itself: its subcommands, and what an error looks like to a user.

An expected error is one line on stderr and exit code 1; a command typed wrongly is 2, as
typer has it; Ctrl-C is 130. What each subcommand does is in its own file.
"""

import io
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from twinlens import __version__
from twinlens.cli.compare_command import compare_command
from twinlens.cli.console import note
from twinlens.cli.convert_command import convert_command
from twinlens.cli.data_command import data_check_command
from twinlens.cli.evaluate_command import evaluate_app
from twinlens.cli.index_command import index_command
from twinlens.cli.models_command import models_command
from twinlens.cli.pull_command import pull_command
from twinlens.cli.search_command import QueryCommand, search_command
from twinlens.cli.train_command import train_command
from twinlens.errors import TwinlensError

BROKEN_PIPE_EXIT_CODE = 141  # what a shell reports for any tool that SIGPIPE ended


class _Notes(logging.Handler):
    """What the library logs, as notes."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


class _Commands(TyperGroup):
    """Turns errors into a line and an exit code, for all subcommands."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except TwinlensError as error:
            note(f"twinlens: {error}")
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            raise typer.Exit(130) from error
        except BrokenPipeError as error:  # the reader, `head` say, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(BROKEN_PIPE_EXIT_CODE) from error
        except OSError as error:
            where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
            note(f"twinlens: {where}{error.strerror or error}.")
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: it goes into the docs, and rich takes 50 ms to load
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("index")(index_command)
app.command("search", cls=QueryCommand)(search_command)
app.command("convert")(convert_command)
app.command("models")(models_command)
app.command("pull")(pull_command)
app.command("train")(train_command)
app.add_typer(evaluate_app, name="evaluate")
app.command("compare")(compare_command)
data = typer.Typer(rich_markup_mode=None, help="Look after the data that models are trained on.")
data.command("check")(data_check_command)
app.add_typer(data, name="data")


def _print_version(wanted: bool) -> bool:
    if wanted:
        print(f"twinlens {__version__}")
        raise typer.Exit()
    return wanted


@app.callback()
def _twinlens(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Search photos by what is in them, offline."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with SystemExit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name the terminal has no letters for
    with warnings.catch_warnings():
        # A damaged photo is named once, by us; Pillow would add its own lines on the same.
        warnings.filterwarnings("ignore", module="PIL")
        logging.getLogger("PIL").setLevel(logging.CRITICAL)
        # A checkpoint that a command is given is converted before its first use; people wait then.
        logger = logging.getLogger("twinlens")
        logger.setLevel(logging.INFO)
        logger.addHandler(_Notes())
        warnings.showwarning = lambda message, *_, **__: note(f"twinlens: {message}")
        app(
            args=list(sys.argv[1:] if arguments is None else arguments) or ["--help"],
            prog_name="twinlens",
        )
