"""The result of `twinlens data check` as one HTML file that needs nothing else to be seen.

Figures, sample pictures with their captions, look-alikes and leaks side by side. Names and
captions are escaped, and the page forbids itself scripts and requests: data is anyone's work.
"""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from twinlens.cli.data_command import FIGURES, source_name, spread
from twinlens.cli.thumbnails import encoded
from twinlens.data.check import QUANTILES, Report, Side, sample_rows, thumbnails
from twinlens.html_page import escaped, html_page

SAMPLES = 36
GROUPS_SHOWN = 12  # of look-alikes, and as many leaks
GROUP_PICTURES = 4
THUMBNAIL_PIXELS = 240  # longest side
CAPTIONS_SHOWN = 5
HISTOGRAM_BARS = 30

Numbers = Sequence[int] | Sequence[float]

_STYLE = """
body { max-width: 1400px; }
h2 { margin: 2.2rem 0 .8rem; font-size: 1.15rem; font-weight: 600; }
p { margin: .25rem 0; } .bad { color: var(--bad); }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin-top: 1.2rem; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: .7rem 1rem; min-width: 9rem; }
.tile b { display: block; font-size: 1.4rem; font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line);
  font-weight: 400; } th { color: var(--faint); } td:first-child, th:first-child
  { text-align: left; }
.charts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr)); }
.chart { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: .7rem 1rem; } .chart svg { display: block; width: 100%; height: 80px; }
.chart rect { fill: var(--bar); } .ends { display: flex; justify-content: space-between; }
.pictures { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); }
.group { display: flex; flex-wrap: wrap; gap: .6rem; margin-bottom: 1rem; }
.group figure { width: 190px; }
figure img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain;
  background: var(--mat); }
figcaption { padding: .5rem .7rem .6rem; overflow-wrap: anywhere; font-size: .9em; }
figcaption .faint { font-size: .85em; }
"""


def check_page(report: Report, values: dict[str, Any]) -> str:
    """The page; `values` is the report's to_dict()."""
    parts = _side("Training data", report.data, values["data"])
    if report.against is not None:
        parts += _leaks(report)
        parts += _side("Compared with", report.against, values["against"])
    return html_page("Data check", _STYLE, "\n".join(parts))


def _side(title: str, side: Side, values: dict[str, Any]) -> list[str]:
    names = ", ".join(source_name(source) for source in values["sources"])
    bad = sum(values["bad"].values())
    tiles = {
        "pictures": values["pictures"],
        "captions": values["captions"],
        "different captions": values["distinct_captions"],
        "labels": values["labels"],
        "groups of same files": len(values["same_files"]),
        "groups of look-alikes": len(values["look_alikes"]),
        "bad samples": bad,
    }
    if "captions_cut" in values:
        tiles[f"captions over {values['context']} tokens"] = values["captions_cut"]
    parts = [f"<h1>{title}</h1>", f'<p class="faint">{escaped(names)}</p>', '<div class="tiles">']
    parts += [f'<div class="tile"><b>{n:,}</b>{escaped(name)}</div>' for name, n in tiles.items()]
    parts.append("</div>")
    if bad:
        parts.append("<h2>Bad samples</h2>")
        parts += [
            f'<p><span class="bad">{count:,} &times; {escaped(kind)}</span> '
            f'<span class="faint">first: {escaped(values["bad_first"][kind])}</span></p>'
            for kind, count in values["bad"].items()
        ]
    parts += ["<h2>Figures</h2>", *_figures(values), *_charts(side)]
    if values["most_common_captions"] and values["most_common_captions"][0][1] > 1:
        parts.append("<h2>Captions that come most often</h2>")
        parts += [
            f"<p>{escaped(caption)} <span class='faint'>{count:,} &times;</span></p>"
            for caption, count in values["most_common_captions"]
        ]
    rows = sample_rows(side, SAMPLES)
    groups = [group[:GROUP_PICTURES] for group in side.twins[:GROUPS_SHOWN]]
    shown = thumbnails(side, [*rows, *(r for group in groups for r in group)], THUMBNAIL_PIXELS)
    if groups:
        parts.append(f"<h2>Look-alikes ({len(groups)} of {len(side.twins):,} groups)</h2>")
        for group in groups:
            figures = "".join(_figure(side.names[row], shown.get(row)) for row in group)
            parts.append(f'<div class="group">{figures}</div>')
    parts.append(f'<h2>Samples ({len(rows)} of {len(side.names):,})</h2><div class="pictures">')
    parts += [_figure(side.names[row], shown.get(row)) for row in rows]
    parts.append("</div>")
    return parts


def _leaks(report: Report) -> list[str]:
    assert report.against is not None
    parts = [f"<h2>Leaks: {len(report.leaks):,}</h2>"]
    if not report.leaks:
        return [*parts, "<p>No picture of the compared data is in the training data.</p>"]
    leaks = report.leaks[:GROUPS_SHOWN]
    mine = thumbnails(report.data, [row for row, _ in leaks], THUMBNAIL_PIXELS)
    theirs = thumbnails(report.against, [row for _, row in leaks], THUMBNAIL_PIXELS)
    for row, other in leaks:
        left = _figure(report.data.names[row], mine.get(row))
        right = _figure(report.against.names[other], theirs.get(other))
        parts.append(f'<div class="group">{left}{right}</div>')
    return parts


def _figures(values: dict[str, Any]) -> list[str]:
    heads = "".join(f"<th>{name}</th>" for name in ("", *QUANTILES))
    rows = []
    for label, key in FIGURES.items():
        if found := values.get(key):
            cells = "".join(f"<td>{found[name]:,g}</td>" for name in QUANTILES)
            rows.append(f"<tr><td>{label}</td>{cells}</tr>")
    return [f'<div class="wide"><table><tr>{heads}</tr>{"".join(rows)}</table></div>']


def _charts(side: Side) -> list[str]:
    charts: dict[str, Numbers] = {
        "Shorter side in pixels": [min(size) for size in side.sizes],
        "Width / height": [width / height for width, height in side.sizes],
        "Words in a caption": side.words,
        "Tokens in a caption": side.tokens,
    }
    drawn = [_chart(title, numbers) for title, numbers in charts.items() if len(set(numbers)) > 1]
    if not drawn:
        return []
    return ["<h2>Distributions</h2>", '<div class="charts">', *drawn, "</div>"]


def _chart(title: str, numbers: Numbers) -> str:
    """A histogram between the least and the most."""
    least, most = min(numbers), max(numbers)
    whole = all(isinstance(number, int) for number in numbers)
    bars = HISTOGRAM_BARS
    if whole:
        bars = min(bars, int(most - least) + 1)
    width = (most - least + whole) / bars or 1.0
    counts = [0] * bars
    for number in numbers:
        counts[min(int((number - least) / width), bars - 1)] += 1
    tallest = max(counts)
    rects = "".join(
        f'<rect x="{place * 100 / bars:.2f}" width="{100 / bars * 0.9:.2f}" '
        f'y="{80 - 80 * count / tallest:.2f}" height="{80 * count / tallest:.2f}"/>'
        for place, count in enumerate(counts)
    )
    return (
        f'<div class="chart">{title}<svg viewBox="0 0 100 80" preserveAspectRatio="none" '
        f'role="img" aria-label="{title}, {spread_of(numbers)}">{rects}</svg>'
        f'<div class="ends faint"><span>{least:,.4g}</span><span>{most:,.4g}</span></div></div>'
    )


def spread_of(numbers: Numbers) -> str:
    """The chart in words, for those who cannot see it."""
    ordered = sorted(numbers)
    least, median, most = (float(ordered[place]) for place in (0, len(ordered) // 2, -1))
    return spread({"least": least, "median": round(median, 3), "most": round(most, 3)})


def _figure(name: str, shown: tuple[Image.Image, tuple[str, ...]] | None) -> str:
    if shown is None:
        return f"<figure><figcaption>{escaped(name)}: cannot be shown</figcaption></figure>"
    image, captions = shown
    lines = "".join(f"<p>{escaped(caption)}</p>" for caption in captions[:CAPTIONS_SHOWN])
    if len(captions) > CAPTIONS_SHOWN:
        lines += f'<p class="faint">and {len(captions) - CAPTIONS_SHOWN} more</p>'
    source = f"data:image/jpeg;base64,{encoded(image, 'JPEG')}"
    return (
        f'<figure><img alt="{escaped(name)}" src="{source}"><figcaption>{lines}'
        f'<p class="faint">{escaped(name)}</p></figcaption></figure>'
    )
