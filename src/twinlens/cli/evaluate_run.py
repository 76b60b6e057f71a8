"""A run of `twinlens evaluate`: the model and the data that a task needs, and what comes out."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from twinlens import __version__
from twinlens.cli.console import ProgressBar, note
from twinlens.cli.evaluate_options import Kind, Shared
from twinlens.errors import ConfigError, require_package
from twinlens.text import printable

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float32

    from twinlens.data.image import ImageSource
    from twinlens.embed import EmbeddedBatch, EmbedderLike, Skipped
    from twinlens.evaluate.page import Page
    from twinlens.evaluate.result import Result
    from twinlens.evaluate.sets import AnySet, CaptionedSet, LabelledSet

SKIPPED_NAMED = 20  # pictures left out; --json names all


@dataclass
class Part:
    """A result, how the report shows it beyond its figures, and what else to print of it."""

    result: "Result"
    show: "Callable[[Page], None] | None" = None
    sentences: list[str] = field(default_factory=list)
    on_page: bool = True  # False: the report says in another way what the sentences do


class Evaluation:
    """A model, a cache and the data that is opened with them. Use it in a `with`.

    Raises at its start what would else be known only after an hour: a folder to write to that
    is not there, unknown templates, packages that are missing (`needs`, by module name).
    """

    def __init__(self, options: Shared, *, needs: Sequence[str] = ()) -> None:
        self.options = options
        self.left_out: list[str] = []  # sentences on tasks that did not run
        self._said: set[tuple[str, str]] = set()
        self._stack = ExitStack()
        _check_outputs(options)
        _check_packages(options, needs)
        self.templates = _templates(options.templates)

    def __enter__(self) -> "Evaluation":
        from twinlens import embed  # by module, so that a test can put a fake in its place
        from twinlens.evaluate.vectors import VectorCache

        options = self.options
        # Tasks embed the same pictures again, so that even --no-cache has one, for the while.
        folder = (
            self._stack.enter_context(tempfile.TemporaryDirectory(prefix="twinlens-"))
            if options.no_cache
            else None
        )
        self.cache = VectorCache(folder)
        self.embedder: EmbedderLike = embed.Embedder(
            options.model,
            runtime=options.runtime,
            threads=options.threads,
            max_megapixels=options.max_megapixels,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def labelled(self, place: str | None = None, split: str | None = None) -> "LabelledSet":
        """The data, or another place's, with labels; its notes are printed."""
        from twinlens.evaluate.sets import LabelledSet

        data = self.opened("labels", place, split)
        assert isinstance(data, LabelledSet)
        return data

    def captioned(self) -> "CaptionedSet":
        """The data, with captions; its notes are printed."""
        from twinlens.evaluate.sets import CaptionedSet

        data = self.opened("captions")
        assert isinstance(data, CaptionedSet)
        return data

    def opened(
        self, kind: Kind | None = None, place: str | None = None, split: str | None = None
    ) -> "LabelledSet | CaptionedSet":
        """The data, or another place's, as `kind` or whatever it has."""
        from twinlens.evaluate.open_set import open_set

        options = self.options
        data = open_set(
            options.data if place is None else place,
            classes=options.classes if kind != "captions" else None,
            split=split if place is not None or split is not None else options.split,
            limit=options.limit,
            root=options.root,
            kind=kind,
        )
        for sentence in data.notes:
            note(sentence)
        self._say_skipped(data.skipped)
        return data

    def others(self, place: str) -> "LabelledSet":
        """The pictures of another place, as one class: their labels and captions do not matter."""
        from twinlens.evaluate.open_set import open_set, pictures_below

        folder = Path(place)
        if folder.is_dir() and (images := pictures_below(folder)):
            return _one_class(
                folder.absolute().name,
                images,
                tuple(path.relative_to(folder).as_posix() for path in images),
                self.options.limit,
            )
        found = open_set(place, root=self.options.root)
        self._say_skipped(found.skipped)
        return _one_class(found.name, found.images, found.ids, self.options.limit)

    def both_kinds(self) -> "list[LabelledSet | CaptionedSet]":
        """The data by its captions, by its labels, or twice where it has both."""
        from twinlens.evaluate.sets import LabelledSet

        first = self.opened()
        if isinstance(first, LabelledSet):
            return [first]
        try:
            return [first, self.opened("labels")]
        except ConfigError as error:
            if self.options.classes is not None:
                raise
            self.leave_out("tasks with labels", error)
            return [first]

    def leave_out(self, what: str, error: ConfigError) -> None:
        """Says now, and in the report, why something was not measured."""
        self.left_out.append(f"{what} left out: {error}")
        note(self.left_out[-1])

    def embedded(self, data: "AnySet") -> "tuple[AnySet, Float32[np.ndarray, 'image dim']]":
        """The set without the pictures that cannot be read, and the others' vectors."""
        from twinlens.evaluate.usable import with_vectors

        with ProgressBar("embedding") as bar:
            found = with_vectors(self.embedder, data, cache=self.cache, progress=bar.update)
        self._say_skipped(found[0].skipped)
        return found

    def some(self, data: "AnySet", limit: int, what: str) -> "AnySet":
        """At most `limit` pictures at random, and said so, unless --limit was given."""
        from twinlens.evaluate.tasks import some_of

        if self.options.limit is not None or len(data) <= limit:
            return data
        note(f"{what}: {limit:,} of {len(data):,} pictures, drawn at random; --limit N takes N")
        return some_of(data, limit, 0)

    def watched(self, verb: str, total: int, stack: ExitStack) -> "EmbedderLike":
        """The embedder with a bar, for tasks that tell of no progress."""
        bar = stack.enter_context(ProgressBar(verb))
        watched = _Watched(self.embedder, lambda done: bar.update(min(done, total), total))
        return cast("EmbedderLike", watched)  # attributes that it passes on are not seen by mypy

    def finish(self, parts: Sequence[Part]) -> None:
        """Prints the results and writes the files that were asked for."""
        from twinlens.evaluate.result import to_markdown, write_results

        results = [part.result for part in parts]
        for result in results:
            self._say_skipped(tuple(map(tuple, result.data.get("skipped") or [])))
        if self._said:
            note(f"{_counted(len(self._said), 'picture')} left out")
        if self.options.json_file is not None:
            write_results(self.options.json_file, results)
        if self.options.html is not None:
            self.options.html.write_text(self._page(parts).html(), encoding="utf-8")
        if self.options.markdown:
            print(to_markdown(results), end="")
        else:
            print("\n\n".join("\n".join(map(printable, _lines(part))) for part in parts))
        if self.options.json_file is not None:
            note(f"JSON: {self.options.json_file}")
        if self.options.html is not None:
            note(f"page: {self.options.html}")

    def _page(self, parts: Sequence[Part]) -> "Page":
        from twinlens.evaluate.page import Page

        data = self.options.data or parts[0].result.data["name"]
        name = Path(data).name or data
        page = Page(
            f"{self.embedder.name} on {name}", f"{self.embedder.model_id}, twinlens {__version__}"
        )
        for sentence in self.left_out:
            page.text(sentence, faint=True)
        for part in parts:
            page.figures(part.result)
            for sentence in part.sentences if part.on_page else []:
                page.text(sentence)
            if part.show is not None:
                part.show(page)
        if self._said:
            rows = sorted(self._said)
            more = len(rows) - SKIPPED_NAMED
            page.heading("Pictures left out", f"{len(rows):,} in all.")
            page.table(
                ["picture", "reason"],
                [list(row) for row in rows[:SKIPPED_NAMED]],
                text=f"{more:,} more are not shown." if more > 0 else "",
            )
        return page

    def _say_skipped(self, skipped: Iterable[Sequence[str]]) -> None:
        for identity, reason in skipped:
            if (identity, reason) in self._said:
                continue
            self._said.add((identity, reason))
            if len(self._said) <= SKIPPED_NAMED:
                note(f"skipped {identity}: {reason}")
            elif len(self._said) == SKIPPED_NAMED + 1:
                note("more are skipped; --json FILE names all")


class _Watched:
    """An embedder that tells how many pictures it has embedded; else it is the one within."""

    def __init__(self, embedder: "EmbedderLike", tell: Callable[[int], None]) -> None:
        self._embedder = embedder
        self._tell = tell
        self._done = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._embedder, name)

    def images(
        self, sources: "Iterable[ImageSource]", *, skipped: "list[Skipped] | None" = None
    ) -> "Float32[np.ndarray, 'item dim']":
        from twinlens.embed import collect_images

        return collect_images(cast("EmbedderLike", self), sources, skipped)

    def stream_images(
        self, sources: "Iterable[ImageSource]", *, batch_size: int | None = None
    ) -> "Iterator[EmbeddedBatch]":
        for batch in self._embedder.stream_images(sources, batch_size=batch_size):
            self._done += len(batch.positions) + len(batch.skipped)
            self._tell(self._done)
            yield batch


def _one_class(
    name: str, images: "Sequence[ImageSource]", ids: tuple[str, ...], limit: int | None
) -> "LabelledSet":
    """At most `limit` of the pictures, at even distances."""
    import numpy as np

    from twinlens.evaluate.sets import LabelledSet

    every = LabelledSet(
        name=name,
        images=images,
        labels=np.zeros(len(images), dtype=np.int64),
        class_names=(("something else",),),
        ids=ids,
    )
    if limit is None or limit >= len(images):
        return every
    return every.rows(np.arange(limit) * len(images) // limit)


def _check_outputs(options: Shared) -> None:
    for file in (options.json_file, options.html):
        check_folder(file)


def check_folder(file: Path | None) -> None:
    """Raises ConfigError where a file's folder is not there."""
    if file is not None and not file.absolute().parent.is_dir():
        raise ConfigError(f"{file.parent} is not a folder: {file.name} cannot be written there.")


def _check_packages(options: Shared, needs: Sequence[str]) -> None:
    if options.html is not None:
        require_package("matplotlib", extra="evaluate", purpose="--html")
    if needs:
        from twinlens.evaluate.extra import need

        for module in needs:
            need(module)


def _templates(wanted: str | None) -> tuple[str, ...] | None:
    if wanted is None:
        return None
    from twinlens.evaluate.templates import find_templates

    return find_templates(wanted)


def _lines(part: Part) -> list[str]:
    """A result for people: `  accuracy@1   0.534  [0.512, 0.556]`."""
    from twinlens.evaluate.result import number_text

    result = part.result
    counts = [
        _counted(result.data[what], singular)
        for what, singular in (("images", "picture"), ("captions", "caption"))
        if isinstance(result.data.get(what), int)
    ]
    if isinstance(result.data.get("classes"), int):
        counts.append(f"{result.data['classes']:,} classes")
    lines = [f"{result.title}{': ' if counts else ''}{', '.join(counts)}"]
    rows = []
    for name, figure in result.figures.items():
        interval = ""
        if figure.low is not None and figure.high is not None:
            low, high = (number_text(end, figure.unit) for end in (figure.low, figure.high))
            interval = f"[{low}, {high}]"
        rows.append((name.replace("_", " "), number_text(figure.value, figure.unit), interval))
    name_width, value_width = (
        max((len(row[column]) for row in rows), default=0) for column in (0, 1)
    )
    for (name, value, interval), figure in zip(rows, result.figures.values(), strict=True):
        text = f"  {name:{name_width}}  {value:>{value_width}}  {interval} {figure.unit}"
        lines.append(text.rstrip())
    return lines + [f"  {sentence}" for sentence in part.sentences]


def _counted(count: int, singular: str) -> str:
    return f"{count:,} {singular}" if count == 1 else f"{count:,} {singular}s"
