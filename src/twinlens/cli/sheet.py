"""A contact sheet of search results as one HTML file that needs nothing else to be seen.

Thumbnails are inside it, links lead to the files. File names and queries are escaped, and
the page forbids itself scripts and requests: a photo's name may be anyone's work.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from twinlens.cli.thumbnails import encoded, small_image
from twinlens.search.photos import Hit
from twinlens.search.query import Term
from twinlens.text import printable

THUMBNAIL_PIXELS = 320  # longest side
QUERY_PIXELS = 160

_STYLE = """
:root { color-scheme: light dark; --page: #f6f6f4; --card: #fff; --ink: #1b1b1a;
  --faint: #6d6d69; --mat: #ebebe7; --line: #e2e2dd; }
@media (prefers-color-scheme: dark) { :root { --page: #161615; --card: #1f1f1e; --ink: #ececea;
  --faint: #9a9a95; --mat: #282826; --line: #30302e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1500px; padding: 2rem clamp(1rem, 4vw, 3rem);
  background: var(--page); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
header { display: flex; align-items: center; gap: 1rem; margin-bottom: 1.75rem; }
header img { height: 72px; max-width: 144px; border-radius: 6px; }
h1 { margin: 0; font-size: 1.6rem; line-height: 1.25; font-weight: 600; overflow-wrap: anywhere; }
header p { margin: .25rem 0 0; color: var(--faint); }
main { display: grid; gap: 1.1rem; grid-template-columns: repeat(auto-fill, minmax(210px, 1fr)); }
figure { margin: 0; overflow: hidden; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
figure a { display: flex; aspect-ratio: 1; align-items: center; justify-content: center;
  background: var(--mat); color: var(--faint); text-decoration: none; }
figure a:focus-visible { outline: 3px solid Highlight; outline-offset: -3px; }
figure img { width: 100%; height: 100%; object-fit: contain; }
figcaption { padding: .6rem .75rem; }
figcaption p { display: flex; gap: .75rem; justify-content: space-between; margin: 0; }
figcaption span { overflow: hidden; white-space: nowrap; text-overflow: ellipsis; }
.faint { color: var(--faint); font-size: .85em; font-variant-numeric: tabular-nums; }
@media print { body { background: #fff; } figure { break-inside: avoid; } }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>{query_images}<div><h1>{title}</h1><p>{subtitle}</p></div></header>
<main>
{figures}
</main>
</body>
</html>
"""


def contact_sheet(title: str, terms: Sequence[Term], hits: Sequence[Hit], indexed: int) -> str:
    """The page for the `hits` of a query; `indexed` photos were searched."""
    queries = [Path(str(term.value)) for term in terms if term.kind == "image"]
    return _PAGE.format(
        title=_text(title),
        style=_STYLE,
        subtitle=f"{len(hits):,} of {indexed:,} photos, the closest first",
        query_images="".join(_image(path, QUERY_PIXELS) for path in queries),
        figures="\n".join(_figure(hit) for hit in hits),
    )


def _figure(hit: Hit) -> str:
    path = hit.path.absolute()
    return (
        f'<figure><a href="{_text(path.as_uri())}">{_image(path, THUMBNAIL_PIXELS)}</a>'
        f'<figcaption title="{_text(str(path))}"><p><span>{_text(path.name)}</span></p>'
        f'<p class="faint"><span>{_text(path.parent.name)}</span>{hit.score:.3f}</p>'
        f"</figcaption></figure>"
    )


def _image(path: Path, longest_side: int) -> str:
    image = small_image(path, longest_side)
    if image is None:
        return "cannot be shown"
    return f'<img alt="{_text(path.name)}" src="data:image/jpeg;base64,{encoded(image, "JPEG")}">'


def _text(text: str) -> str:
    return escape(printable(text))
