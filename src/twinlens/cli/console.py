"""What all commands print to people: notes on stderr, and how far long work is.

Results go to stdout and are each command's own business.
"""

import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import typer

from twinlens.text import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from twinlens.search.photos import PhotoIndex
    from twinlens.search.sync import SkippedFile, SyncReport


def note(message: str) -> None:
    """One line to stderr."""
    print(printable(message), file=sys.stderr)


def sync_with_progress(photos: "PhotoIndex") -> "SyncReport":
    """Update the index, with a bar when stderr is a terminal and a line per skipped file."""
    with ExitStack() as stack:
        bar = stack.enter_context(_Bar()) if sys.stderr.isatty() else None
        say = note if bar is None else bar.say

        def on_skip(skipped: "SkippedFile") -> None:
            say(f"skipped {skipped.path}: {skipped.reason}")

        try:
            return photos.sync(progress=bar.update if bar else None, on_skip=on_skip)
        except KeyboardInterrupt as error:
            stack.close()
            note(
                f"stopped; {len(photos):,} photos are indexed and stay so; "
                f"run the same command to continue"
            )
            raise typer.Exit(130) from error


def summary(report: "SyncReport") -> str:
    """`4,981 indexed, 3 skipped (12 new, 1 changed; 2.1 s)`."""
    counts = {
        "new": report.added,
        "changed": report.changed,
        "renamed": report.renamed,
        "removed": report.removed,
    }
    news = ", ".join(f"{count:,} {word}" for word, count in counts.items() if count)
    skipped = len(report.skipped) + report.skipped_before
    return (
        f"{report.indexed:,} indexed, {skipped:,} skipped "
        f"({news or 'nothing new'}; {report.seconds:.1f} s)"
    )


class _Bar:
    """A progress bar that appears with the first file, and goes when it is done."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._started = 0.0

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def update(self, done: int, total: int) -> None:
        if self._progress is None or self._task is None:
            if total == 0:
                return
            from rich import progress
            from rich.console import Console

            self._progress = progress.Progress(
                progress.TextColumn("indexing"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[rate]}"),
                progress.TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._progress.add_task("", total=total, rate="")
            self._started = time.monotonic()
            self._progress.start()
        seconds = time.monotonic() - self._started
        rate = f"{done / seconds:.0f}/s" if done and seconds > 0 else ""
        self._progress.update(self._task, completed=done, rate=rate)

    def say(self, message: str) -> None:
        """A line above the bar."""
        if self._progress is None:
            note(message)
        else:
            self._progress.console.print(
                printable(message), markup=False, highlight=False, soft_wrap=True
            )


class ProgressBar:
    """A bar on stderr, on a terminal only; it appears with the first `update`."""

    def __init__(self, verb: str, *, in_bytes: bool = False) -> None:
        self.moved = False
        self._verb = verb
        self._in_bytes = in_bytes
        self._visible = sys.stderr.isatty()
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()

    def update(self, done: int, total: int | None) -> None:
        self.moved = True
        if not self._visible:
            return
        if self._progress is None or self._task is None:
            from rich import progress
            from rich.console import Console

            counts: list[progress.ProgressColumn] = (
                [progress.DownloadColumn(), progress.TransferSpeedColumn()]
                if self._in_bytes
                else [progress.MofNCompleteColumn()]
            )
            self._progress = progress.Progress(
                progress.TextColumn(self._verb),
                progress.BarColumn(),
                *counts,
                progress.TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._progress.add_task("", total=total)
            self._progress.start()
        self._progress.update(self._task, completed=done, total=total)
