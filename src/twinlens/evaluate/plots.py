"""The plots of an evaluation: SVG with its text as text, or PNG.

Made to be read at 330 pixels, a phone's width, as well as at 460: 360 units wide with letters
of 12. Titles are the page's business. Labels may be anyone's work: nothing in them is taken for
mathematics, and what has no shape is escaped. Colours are this file's constants, so that a page
can find them in the SVG and put its own for dark screens. Needs matplotlib.
"""

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int, Shaped

from twinlens.errors import ConfigError
from twinlens.evaluate.extra import need
from twinlens.text import printable

Format = Literal["svg", "png"]
Limits = tuple[float | int, float | int]
Numbers = Sequence[float] | Sequence[int] | Shaped[np.ndarray, " item"]

# The light colours of page.py's style.
INK = "#1b1b1a"
FAINT = "#6d6d69"
LINE = "#e2e2dd"
BAR = "#5b7fa6"
BAD = "#b3402e"
# Told apart by people who see no red or no green too: their lightness differs, and their markers.
SERIES = (BAR, "#c5792c", "#3f8a63", "#8a63ad", BAD, "#7d7d78")
_MARKERS = "osD^vP"
_DASHES = ("-", "--", "-.", ":")

UNITS = 72  # an inch
WIDTH = 5.0  # inches: 360 units
MOST_CELLS_WRITTEN = 10  # columns of a heat map with their numbers
MOST_LABELS = 40  # rows or columns of a heat map that are named
LABEL_LETTERS = 24
MOST_OWN_TICKS = 8  # values on a logarithmic axis that are written; of more, powers of ten
# So dark at most that black and white letters stay legible on it.
_HEAT_OPACITY = 0.85

_STYLE = {
    "axes.edgecolor": FAINT,
    "axes.labelcolor": FAINT,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.unicode_minus": False,
    "font.family": "sans-serif",
    "font.size": 12.0,
    "grid.color": LINE,
    "legend.fontsize": 11.0,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "twinlens",  # else ids are random: the same plot, the same bytes
    "text.color": INK,
    "text.parse_math": False,  # a class may be called "$5 bill"
    "xtick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.color": FAINT,
    "ytick.labelcolor": INK,
}


def bars(
    labels: Sequence[str],
    values: Numbers,
    *,
    lows: Numbers | None = None,
    highs: Numbers | None = None,
    x_label: str = "",
    limits: Limits | None = None,
    image_format: Format = "svg",
) -> bytes:
    """A horizontal bar for each label, the first on top; `lows` and `highs` draw its interval."""
    numbers = _same_length("bars", labels, values)
    with _canvas(height=0.75 + 0.36 * len(labels), image_format=image_format) as canvas:
        axes, rows = canvas.axes, np.arange(len(labels))
        axes.barh(rows, numbers, color=BAR, height=0.66)
        if lows is not None and highs is not None:
            axes.hlines(rows, np.asarray(lows), np.asarray(highs), color=INK, linewidth=1.6)
        axes.set_yticks(rows, [_label(label) for label in labels])
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.invert_yaxis()
        axes.set_xlabel(printable(x_label))
        if limits is not None:
            axes.set_xlim(limits)
    return canvas.content


def curves(
    x: Numbers,
    series: Mapping[str, Numbers],
    *,
    bands: Mapping[str, tuple[Numbers, Numbers]] | None = None,
    x_label: str = "",
    y_label: str = "",
    y_limits: Limits | None = None,
    log_x: bool = False,
    image_format: Format = "svg",
) -> bytes:
    """A line for each name over `x`; `bands` holds the (low, high) ends of a name's intervals."""
    for values in series.values():
        _same_length("curves", x, values)
    # Every second name needs a line of the legend.
    height = 3.2 + 0.22 * ((len(series) + 1) // 2)
    with _canvas(height=height, image_format=image_format) as canvas:
        axes = canvas.axes
        for place, (name, values) in enumerate(series.items()):
            color = SERIES[place % len(SERIES)]
            axes.plot(
                np.asarray(x),
                np.asarray(values),
                label=_label(name),
                color=color,
                linewidth=1.8,
                linestyle=_DASHES[place // len(SERIES) % len(_DASHES)],
                marker=_MARKERS[place % len(_MARKERS)] if len(x) <= 20 else None,
                markersize=5,
            )
            if bands and name in bands:
                low, high = bands[name]
                axes.fill_between(np.asarray(x), low, high, color=color, alpha=0.18, linewidth=0)
        axes.set_xlabel(printable(x_label))
        axes.set_ylabel(printable(y_label))
        if log_x:
            _log_axis(axes, x)
        if y_limits is not None:
            axes.set_ylim(y_limits)
        if len(series) > 1:
            canvas.legend()
    return canvas.content


def _log_axis(axes: Any, x: Numbers) -> None:
    """A logarithmic x axis whose ticks are plain numbers: matplotlib's own are mathematics."""
    ticker = need("matplotlib.ticker")
    axes.set_xscale("log")
    few = len(x) <= MOST_OWN_TICKS
    axes.xaxis.set_major_locator(ticker.FixedLocator(x) if few else ticker.LogLocator(numticks=5))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())


def reliability(
    confidences: Numbers, accuracies: Numbers, counts: Numbers, *, image_format: Format = "svg"
) -> bytes:
    """Accuracy over stated confidence, an equally wide bin each, and how many are in each bin.

    Values of empty bins (count 0) may be NaN and are not drawn. The diagonal is what a
    calibrated model shows; a bar below it is too sure of itself.

    Source: Guo et al. 2017, arXiv:1706.04599, figure 1.
    """
    shares = _same_length("reliability", confidences, accuracies)
    numbers = _same_length("reliability", confidences, counts)
    with _canvas(height=4.6, image_format=image_format, rows=(3.2, 1.0)) as canvas:
        above, below = canvas.all_axes
        edges = np.linspace(0.0, 1.0, len(shares) + 1)
        filled = numbers > 0
        middles, width = (edges[:-1] + edges[1:])[filled] / 2, 0.9 / len(shares)
        above.bar(middles, shares[filled], width=width, color=BAR, label="accuracy")
        above.plot([0, 1], [0, 1], color=FAINT, linestyle="--", label="calibrated")
        stated = np.asarray(confidences, dtype=np.float64)[filled]
        above.plot(stated, shares[filled], "o", color=BAD, markersize=4, label="mean of the bin")
        above.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        above.tick_params(labelbottom=False)
        below.bar(middles, numbers[filled], width=width, color=FAINT)
        below.set(xlim=(0, 1), xlabel="confidence", ylabel="items")
        below.yaxis.set_major_locator(need("matplotlib.ticker").MaxNLocator(2, integer=True))
        canvas.legend()
    return canvas.content


def heatmap(
    matrix: Float[np.ndarray, "row column"] | Int[np.ndarray, "row column"],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    *,
    x_label: str = "",
    y_label: str = "",
    most: float | None = None,
    image_format: Format = "svg",
) -> bytes:
    """A cell for each value, from clear (0 and less) to dark (`most`, or the largest).

    Up to MOST_CELLS_WRITTEN columns have their values written; above MOST_LABELS no names.
    """
    _same_length("a heat map", row_labels, matrix)
    _same_length("a heat map", column_labels, matrix.T)
    rows, columns = matrix.shape
    largest = float(np.nanmax(matrix)) if most is None and matrix.size else most
    share = np.clip(np.nan_to_num(matrix / (largest or 1.0)), 0.0, 1.0)
    red_green_blue = [int(BAR[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    pixels = np.zeros((rows, columns, 4))
    pixels[..., :3] = red_green_blue
    pixels[..., 3] = _HEAT_OPACITY * share
    named = max(rows, columns) <= MOST_LABELS
    cell = 0.42 if columns <= MOST_CELLS_WRITTEN else 0.24
    width = max(WIDTH, 2.0 + cell * columns) if named else WIDTH
    height = 1.8 + (cell * rows if named else 3.2)
    with _canvas(height=height, width=width, image_format=image_format) as canvas:
        axes = canvas.axes
        axes.imshow(pixels, aspect="auto", interpolation="nearest")
        axes.grid(visible=False)
        axes.set_xlabel(printable(x_label))
        axes.set_ylabel(printable(y_label))
        if named:
            axes.set_xticks(range(columns), [_label(n) for n in column_labels], rotation=90)
            axes.set_yticks(range(rows), [_label(n) for n in row_labels])
        if named and columns <= MOST_CELLS_WRITTEN:
            whole = bool(np.all(np.isnan(matrix) | (matrix == np.rint(matrix))))
            for (row, column), value in np.ndenumerate(matrix):
                text = f"{value:.0f}" if whole and not np.isnan(value) else f"{value:.2f}"
                axes.text(column, row, text, ha="center", va="center", fontsize=11)
    return canvas.content


def histogram(
    series: Mapping[str, Numbers],
    *,
    bins: int = 40,
    x_label: str = "",
    marks: Mapping[str, float] | None = None,
    image_format: Format = "svg",
) -> bytes:
    """Shares of each name's values over common bins; `marks` are named upright lines."""
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in series.items()}
    finite = {name: values[np.isfinite(values)] for name, values in arrays.items()}
    together = np.concatenate([*finite.values(), np.zeros(0)])
    if together.size == 0:
        raise ConfigError("a histogram needs at least one number, and there is none.")
    edges = np.histogram_bin_edges(together, bins=bins)
    lines = len(finite) + len(marks or {})
    with _canvas(height=3.0 + 0.22 * ((lines + 1) // 2), image_format=image_format) as canvas:
        axes = canvas.axes
        for place, (name, values) in enumerate(finite.items()):
            counts = np.histogram(values, bins=edges)[0] / max(1, len(values))
            color = SERIES[place % len(SERIES)]
            axes.stairs(counts, edges, fill=True, color=color, alpha=0.45, label=_label(name))
            axes.stairs(counts, edges, color=color, linewidth=1.4)
        for place, (name, position) in enumerate((marks or {}).items()):
            style = _DASHES[(place + 1) % len(_DASHES)]
            axes.axvline(position, color=INK, linewidth=1.4, linestyle=style, label=_label(name))
        axes.set_xlabel(printable(x_label))
        axes.set_ylabel("share")
        if lines > 1:
            canvas.legend()
    return canvas.content


@dataclass
class _Canvas:
    figure: Any
    all_axes: list[Any]
    content: bytes = b""

    @property
    def axes(self) -> Any:
        return self.all_axes[0]

    def legend(self) -> None:
        """Above the plot: inside, it would hide a curve on some data."""
        handles, labels = self.axes.get_legend_handles_labels()
        self.figure.legend(
            handles, labels, loc="outside upper left", ncols=2, columnspacing=1.2, handlelength=1.8
        )


@contextmanager
def _canvas(
    *,
    height: float,
    image_format: Format,
    width: float = WIDTH,
    rows: tuple[float, ...] = (1.0,),
) -> Iterator[_Canvas]:
    """Axes to draw on, saved when the block ends; sizes in inches, `rows` their proportions."""
    matplotlib = need("matplotlib", purpose="drawing a plot")
    figure_class = need("matplotlib.figure").Figure
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # Letters that matplotlib's own font lacks are still text in an SVG; browsers have them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = figure_class(figsize=(width, height), layout="constrained")
        figure.patch.set_visible(image_format == "png")
        axes = figure.subplots(len(rows), 1, squeeze=False, height_ratios=rows)[:, 0].tolist()
        for one in axes:
            one.patch.set_visible(False)
        canvas = _Canvas(figure, axes)
        yield canvas
        buffer = io.BytesIO()
        if image_format == "svg":
            figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        else:
            figure.savefig(buffer, format="png", dpi=2 * UNITS, metadata={"Software": None})
        canvas.content = buffer.getvalue()


def _label(text: str) -> str:
    """Short enough to leave room for the plot."""
    text = printable(text)
    # matplotlib leaves names that start with an underscore out of legends.
    text = text if not text.startswith("_") else f"\u200b{text}"
    return text if len(text) <= LABEL_LETTERS else text[: LABEL_LETTERS - 1] + "…"


def _same_length(what: str, names: Any, values: Any) -> Float[np.ndarray, "..."]:
    numbers = np.asarray(values, dtype=np.float64)
    if len(names) != len(numbers) or len(numbers) == 0:
        raise ConfigError(
            f"{what} cannot be drawn from {len(names)} labels and {len(numbers)} values: "
            "it takes one value for each label, and at least one."
        )
    return numbers
