"""An evaluation as one HTML file that needs nothing else to be seen.

Figures with their intervals, plots, tables and pictures, in the order in which they are added.
Names, captions and ids are escaped, and the page forbids itself scripts and requests: data is
anyone's work. A picture takes about 6 kB: 200 of them 1.3 MB.
"""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from twinlens.data.image import ImageSource, read_image
from twinlens.errors import UnreadableImage
from twinlens.evaluate import plots
from twinlens.evaluate.result import Figure, Result, number_text
from twinlens.html_page import escaped, html_page

THUMBNAIL_PIXELS = 160  # longest side
THUMBNAIL_QUALITY = 80
SETTING_LETTERS = 400  # of a setting that a page shows

_STYLE = """
body { max-width: 1200px; overflow-wrap: anywhere; }
h1 { line-height: 1.25; }
h2 { margin: 2.6rem 0 .3rem; font-size: 1.3rem; font-weight: 600; }
h3 { margin: 1.6rem 0 .5rem; font-size: 1.05rem; font-weight: 600; }
p { margin: .25rem 0; max-width: 75ch; }
.bad { color: var(--bad); } .good { color: var(--good); }
.tiles { display: grid; gap: .8rem; margin-top: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(160px, 1fr)); }
.tile, .plot, .note { background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; padding: .7rem 1rem; }
.tile b { display: block; font-size: 1.4rem; font-weight: 600; }
.tile .faint { font-size: .87em; font-variant-numeric: tabular-nums; }
.track { display: block; width: 100%; height: 8px; margin: .45rem 0 .1rem; overflow: visible; }
.track .ground { fill: var(--mat); } .track .span { fill: var(--bar); opacity: .45; }
.track .value { fill: var(--bar); }
.plots { display: grid; gap: 1rem; margin-top: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); }
.plot { min-width: 0; } .plot h3 { margin: 0 0 .4rem; } .plot p { font-size: .93em; }
.plot.broad { grid-column: 1 / -1; }
.wide { overflow-x: auto; }
.plot svg, .plot img { display: block; width: 100%; height: auto; margin: 0 auto; }
.plot svg text { font-family: system-ui, sans-serif !important; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin-top: .4rem; }
th, td { text-align: right; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--line);
  font-weight: 400; vertical-align: top; } th { color: var(--faint); }
th, td { overflow-wrap: normal; } td.words { min-width: 6rem; overflow-wrap: anywhere; }
.words { text-align: left; }
.pictures { display: grid; gap: .8rem;
  grid-template-columns: repeat(auto-fill, minmax(min(45%, 150px), 1fr)); }
figure.good { border-color: var(--good); } figure.bad { border-color: var(--bad); }
figure.good, figure.bad { color: inherit; border-width: 2px; }
figure img, figure .none { display: block; width: 100%; aspect-ratio: 1; object-fit: contain;
  background: var(--mat); }
figure .none { display: grid; place-items: center; color: var(--faint); font-size: .87em; }
figcaption { padding: .45rem .65rem .55rem; font-size: .9em; }
figcaption .faint { font-size: .92em; }
details { margin-top: .8rem; } summary { cursor: pointer; color: var(--faint); }
@media print { body { background: #fff; } figure, .plot, .tile { break-inside: avoid; } }
"""

# What plots.py draws with, and the page's own name for it.
_COLORS = {
    plots.INK: "--ink",
    plots.FAINT: "--faint",
    plots.LINE: "--line",
    plots.BAR: "--bar",
    plots.BAD: "--bad",
    plots.SERIES[1]: "--orange",
    plots.SERIES[2]: "--green",
    plots.SERIES[3]: "--violet",
    plots.SERIES[5]: "--grey",
}

_SVG_TAG = re.compile(r"<[^>]+>")

Mark = Literal["", "good", "bad"]


@dataclass(frozen=True)
class Shown:
    """A picture with words under it; `image` None is a query of words among pictures."""

    image: ImageSource | None
    caption: str = ""
    note: str = ""  # fainter: a score, an id
    mark: Mark = ""  # a coloured frame


class Page:
    """Collects parts; html() is the whole."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self._title = title
        self._parts = [f"<h1>{escaped(title)}</h1>"]
        self._in_plots = False
        self._plots = 0
        if subtitle:
            self.text(subtitle, faint=True)

    def heading(self, title: str, text: str = "") -> None:
        self._add(f"<h2>{escaped(title)}</h2>")
        if text:
            self.text(text, faint=True)

    def text(self, text: str, *, faint: bool = False, mark: Mark = "") -> None:
        kind = "faint" if faint else mark
        self._add(f'<p class="{kind}">{escaped(text)}</p>' if kind else f"<p>{escaped(text)}</p>")

    def figures(self, result: Result) -> None:
        """A heading, what was measured on what, and a tile for each figure."""
        counted = {
            key: result.data[key]
            for key in ("images", "captions", "classes", "skipped")
            if isinstance(result.data.get(key), int) and result.data[key]
        }
        on = ", ".join(f"{count:,} {what}" for what, count in counted.items())
        name, model = (str(values.get("name", "?")) for values in (result.data, result.model))
        self.heading(f"{result.task}: {name}", f"{model}{' on ' if on else ''}{on}")
        tiles = "".join(_tile(name, figure) for name, figure in result.figures.items())
        self._add(f'<div class="tiles">{tiles}</div>')
        if any(figure.low is not None for figure in result.figures.values()):
            self.text("In brackets: 95 % bootstrap intervals.", faint=True)
        if result.settings:
            self._add(_settings(result.settings))

    def plot(self, title: str, image: bytes, text: str = "") -> None:
        """`image` is SVG or PNG, from plots.py; `text` says in a sentence what to see in it.

        SVG becomes part of the page: it must not come from a stranger.
        """
        self._plots += 1
        drawing, width = _drawing(image, title, f"plot{self._plots}-")
        # Wide ones scroll in their card before their letters get too small.
        broad = width > 1.3 * plots.WIDTH * plots.UNITS
        least = 0.85 * width if broad else 0.0
        size = f"min-width: {least:.0f}px; max-width: {1.3 * width:.0f}px"
        words = f'<p class="faint">{escaped(text)}</p>' if text else ""
        part = (
            f'<div class="plot{" broad" if broad else ""}"><h3>{escaped(title)}</h3>'
            f'<div class="wide"><div style="{size}; margin: 0 auto">{drawing}</div></div>'
            f"{words}</div>"
        )
        if not self._in_plots:  # Neighbouring plots share rows.
            self._parts.append('<div class="plots">')
            self._in_plots = True
        self._parts.append(part)

    def table(
        self,
        header: Sequence[str],
        rows: Sequence[Sequence[object]],
        *,
        title: str = "",
        text: str = "",
    ) -> None:
        """Text to the left, numbers (and Figures) to the right."""
        words = [
            all(isinstance(row[place], str) for row in rows) if rows else True
            for place in range(len(header))
        ]
        heads = "".join(_cell("th", name, left) for name, left in zip(header, words, strict=True))
        lines = "".join(
            f"<tr>{''.join(_cell('td', c, left) for c, left in zip(row, words, strict=True))}</tr>"
            for row in rows
        )
        self._titled(title, text)
        self._add(f'<div class="wide"><table><tr>{heads}</tr>{lines}</table></div>')

    def pictures(self, title: str, shown: Sequence[Shown], text: str = "") -> None:
        """A grid; one that cannot be read any more says so in its place."""
        self._titled(title, text)
        self._add(f'<div class="pictures">{"".join(_picture(one) for one in shown)}</div>')

    def html(self) -> str:
        closing = ["</div>"] if self._in_plots else []
        body = "\n".join([*self._parts, *closing])
        return html_page(self._title, _STYLE, body)

    def _titled(self, title: str, text: str) -> None:
        if title:
            self._add(f"<h3>{escaped(title)}</h3>")
        if text:
            self.text(text, faint=True)

    def _add(self, part: str) -> None:
        if self._in_plots:
            self._parts.append("</div>")
            self._in_plots = False
        self._parts.append(part)


def figures_page(title: str, results: Sequence[Result]) -> Page:
    """A page with the figures of all `results`, to which more can be added."""
    page = Page(title)
    for result in results:
        page.figures(result)
    return page


def _tile(name: str, figure: Figure) -> str:
    unit = f" {figure.unit}" if figure.unit else ""
    value = number_text(figure.value, figure.unit)
    parts = f"{escaped(_spaced(name))}<b>{escaped(value + unit)}</b>"
    if figure.low is None or figure.high is None:
        return f'<div class="tile">{parts}</div>'
    ends = [number_text(end, figure.unit) for end in (figure.low, figure.high)]
    if not figure.unit and 0.0 <= figure.low <= figure.high <= 1.0:
        parts += _track(figure.value, figure.low, figure.high)
    return f'<div class="tile">{parts}<span class="faint">[{ends[0]}, {ends[1]}]</span></div>'


def _track(value: float, low: float, high: float) -> str:
    """Where a share and its interval lie between 0 and 1; at least a hair's width of them."""
    return (
        '<svg class="track" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="ground" y="2" width="100" height="4"/>'
        f'<rect class="span" x="{100 * low:.2f}" y="2" width="{100 * (high - low):.2f}" '
        f'height="4"/><rect class="value" x="{min(99.0, 100 * value - 0.5):.2f}" width="1" '
        'height="8"/></svg>'
    )


def _settings(settings: dict[str, Any]) -> str:
    rows = "".join(
        f'<tr><td class="words">{escaped(key)}</td>'
        f'<td class="words">{escaped(_short(value))}</td></tr>'
        for key, value in settings.items()
    )
    return (
        f'<details><summary>Settings</summary><div class="wide"><table>{rows}</table></div>'
        "</details>"
    )


def _short(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= SETTING_LETTERS else text[:SETTING_LETTERS] + "…"


def _cell(tag: str, value: object, left: bool) -> str:
    if isinstance(value, float):
        text = number_text(value)
    else:
        text = f"{value:,}" if type(value) is int else str(value)
    return f"<{tag}{' class=words' if left else ''}>{escaped(text)}</{tag}>"


def _picture(shown: Shown) -> str:
    name = shown.caption or shown.note
    source = None if shown.image is None else _thumbnail(shown.image)
    if shown.image is None:
        image = ""
    elif source is None:
        image = '<div class="none">cannot be shown</div>'
    else:
        image = f'<img alt="{escaped(name)}" src="{source}">'
    words = f"<p>{escaped(shown.caption)}</p>" if shown.caption else ""
    words += f'<p class="faint">{escaped(shown.note)}</p>' if shown.note else ""
    kind = f' class="{shown.mark}"' if shown.mark else ""
    return f"<figure{kind}>{image}<figcaption>{words}</figcaption></figure>"


def _thumbnail(image: ImageSource) -> str | None:
    """A data URI, or None for what cannot be read any more."""
    try:
        small = read_image(image, target_size=THUMBNAIL_PIXELS).copy()
    except UnreadableImage:
        return None
    small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=THUMBNAIL_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _drawing(image: bytes, title: str, prefix: str) -> tuple[str, float]:
    """The plot's HTML and its width in units (pixels at the size it was drawn for)."""
    if image.startswith(b"\x89PNG"):
        width = int.from_bytes(image[16:20]) / 2  # the header's first number; two pixels a unit
        source = f"data:image/png;base64,{base64.b64encode(image).decode('ascii')}"
        return f'<img alt="{escaped(title)}" src="{source}">', width
    text = re.sub(r"<([?!].*?|metadata>.*?</metadata)>", "", image.decode("utf-8"), flags=re.S)
    found = re.search(r'viewBox="\S+ \S+ (\S+) \S+"', text)
    width = float(found[1]) if found else plots.WIDTH * plots.UNITS
    # Its own size and its prolog would be in the way; the page's style says how large it is.
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"([^>]*?) width="[^"]*"', r"\1\2", text, count=1)
    label = f'<svg role="img" aria-label="{escaped(title)}"'
    return _SVG_TAG.sub(partial(_adopted, prefix), text).replace("<svg", label, 1).strip(), width


def _adopted(prefix: str, tag: re.Match[str]) -> str:
    """An SVG's tag with the page's colours, and ids that no other plot of the page has."""
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}", tag[0])
    for color, name in _COLORS.items():
        text = text.replace(color, f"var({name})")
    return text


def _spaced(name: str) -> str:
    """`text to image recall@1` for `text_to_image_recall@1`."""
    return name.replace("_", " ")
