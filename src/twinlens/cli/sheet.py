"""A contact sheet of search results as one HTML file that needs nothing else to be seen.

Thumbnails are inside it, links lead to the files. File names and queries are escaped, and
the page forbids itself scripts and requests: a photo's name may be anyone's work.
"""

from collections.abc import Sequence
from pathlib import Path

from twinlens.cli.thumbnails import encoded, small_image
from twinlens.html_page import escaped, html_page
from twinlens.search.photos import Hit
from twinlens.search.query import Term

THUMBNAIL_PIXELS = 320  # longest side
QUERY_PIXELS = 160

_STYLE = """
body { max-width: 1500px; }
header { display: flex; align-items: center; gap: 1rem; margin-bottom: 1.75rem; }
header img { height: 72px; max-width: 144px; border-radius: 6px; }
h1 { margin: 0; line-height: 1.25; }
header p { margin: .25rem 0 0; color: var(--faint); }
main { display: grid; gap: 1.1rem; grid-template-columns: repeat(auto-fill, minmax(210px, 1fr)); }
figure a { display: flex; aspect-ratio: 1; align-items: center; justify-content: center;
  background: var(--mat); color: var(--faint); text-decoration: none; }
figure a:focus-visible { outline: 3px solid Highlight; outline-offset: -3px; }
figure img { width: 100%; height: 100%; object-fit: contain; }
figcaption { padding: .6rem .75rem; }
figcaption p { display: flex; gap: .75rem; justify-content: space-between; margin: 0; }
figcaption span { overflow: hidden; white-space: nowrap; text-overflow: ellipsis; }
.faint { font-size: .85em; font-variant-numeric: tabular-nums; }
@media print { body { background: #fff; } figure { break-inside: avoid; } }
"""


def contact_sheet(title: str, terms: Sequence[Term], hits: Sequence[Hit], indexed: int) -> str:
    """The page for the `hits` of a query; `indexed` photos were searched."""
    queries = [Path(str(term.value)) for term in terms if term.kind == "image"]
    images = "".join(_image(path, QUERY_PIXELS) for path in queries)
    subtitle = f"{len(hits):,} of {indexed:,} photos, the closest first"
    figures = "\n".join(_figure(hit) for hit in hits)
    body = (
        f"<header>{images}<div><h1>{escaped(title)}</h1><p>{subtitle}</p></div></header>\n"
        f"<main>\n{figures}\n</main>"
    )
    return html_page(title, _STYLE, body)


def _figure(hit: Hit) -> str:
    path = hit.path.absolute()
    return (
        f'<figure><a href="{escaped(path.as_uri())}">{_image(path, THUMBNAIL_PIXELS)}</a>'
        f'<figcaption title="{escaped(str(path))}"><p><span>{escaped(path.name)}</span></p>'
        f'<p class="faint"><span>{escaped(path.parent.name)}</span>{hit.score:.3f}</p>'
        f"</figcaption></figure>"
    )


def _image(path: Path, longest_side: int) -> str:
    image = small_image(path, longest_side)
    if image is None:
        return "cannot be shown"
    return f'<img alt="{escaped(path.name)}" src="data:image/jpeg;base64,{encoded(image, "JPEG")}">'
