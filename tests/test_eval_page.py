"""Pages and plots: self-contained, small, safe with anyone's names, true to their numbers."""

import base64
import io
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from twinlens.errors import ConfigError
from twinlens.evaluate import plots
from twinlens.evaluate.page import THUMBNAIL_PIXELS, Page, Shown, figures_page
from twinlens.evaluate.result import Figure, Result

HOSTILE = "</figure><script>alert('x')</script>\x1b[2J\" onload=\"\udcff"
SVG = "{http://www.w3.org/2000/svg}"


class _Tags(HTMLParser):
    """Every tag with its attributes, and the text between them."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def named(self, wanted):
        return [attrs for tag, attrs in self.tags if tag == wanted]


@pytest.fixture
def photo():
    noise = np.random.default_rng(0).integers(0, 256, size=(400, 600, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


def _result(**figures):
    return Result(
        "retrieval",
        {"name": "mini"},
        {"name": "flickr8k", "images": 1000, "captions": 5000, "skipped": 0},
        settings={"templates": ["a photo of a {}."]},
        figures=figures,
    )


def _texts(svg):
    return ["".join(node.itertext()) for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def _all_plots(labels, image_format="svg"):
    values = np.linspace(0.1, 0.9, len(labels))
    square = np.outer(values, values)
    kind = {"image_format": image_format}
    return [
        plots.bars(labels, values, lows=values - 0.1, highs=values + 0.1, x_label="x", **kind),
        plots.curves(range(len(values)), {label: values for label in labels}, **kind),
        plots.reliability(values, values, np.ones(len(values)), **kind),
        plots.heatmap(square, labels, labels, **kind),
        plots.histogram({label: values for label in labels}, marks={"cut-off": 0.5}, **kind),
    ]


def test_figures_become_tiles_with_their_intervals():
    page = figures_page("Report", [_result(**{"recall@1": Figure(0.534, 0.512, 0.556)})]).html()
    assert "0.534" in page and "[0.512, 0.556]" in page
    assert "1,000 images, 5,000 captions" in page and "skipped" not in page
    assert "a photo of a {}." in page


def test_the_page_asks_for_nothing_outside_itself(photo):
    page = Page("Report")
    page.figures(_result(x=Figure(0.5, 0.4, 0.6)))
    for drawing in _all_plots(["cat", "dog"]):
        page.plot("Plot", drawing)
    page.plot("PNG", plots.bars(["a"], [1.0], image_format="png"))
    page.pictures("Worst", [Shown(photo, "caption")])
    tags = _Tags(page.html())
    assert not tags.named("script") and not tags.named("link")
    for _, attributes in tags.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href"):
                assert value.startswith(("data:image/", "#"))
    urls = set(re.findall(r"https?://[^\"' ]+", page.html()))
    assert urls <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    policy = next(m["content"] for m in tags.named("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none'")


def test_hostile_names_are_text_everywhere(photo):
    page = Page(HOSTILE, HOSTILE)
    result = _result(**{HOSTILE: Figure(0.5)})
    result.data["name"] = result.model["name"] = HOSTILE
    result.settings[HOSTILE] = HOSTILE
    page.figures(result)
    page.table([HOSTILE], [[HOSTILE]], title=HOSTILE, text=HOSTILE)
    page.pictures(HOSTILE, [Shown(photo, HOSTILE, HOSTILE), Shown(None, HOSTILE)])
    for drawing in _all_plots([HOSTILE, "$x^"]):
        page.plot(HOSTILE, drawing, HOSTILE)
    html = page.html()
    html.encode("utf-8")  # no lone surrogate is left
    tags = _Tags(html)
    assert not tags.named("script")
    assert not any("onload" in attributes for _, attributes in tags.tags)
    assert "\x1b" not in html and "\\x1b[2J" in html


def test_two_hundred_pictures_stay_below_5_megabytes(photo):
    page = Page("Worst")
    # Noise is the worst that a JPEG can be asked for.
    page.pictures("Noise", [Shown(photo, "a caption", "a note")] * 20)
    assert len(page.html()) < 5_000_000 / 10


def test_thumbnails_are_small_and_upright():
    upright = Image.new("RGB", (800, 200), "red")
    exif = upright.getexif()
    exif[0x0112] = 6  # turn by 90 degrees
    buffer = io.BytesIO()
    upright.save(buffer, "JPEG", exif=exif)
    page = Page("x")
    page.pictures("", [Shown(buffer.getvalue(), "turned")])
    (image,) = _Tags(page.html()).named("img")
    small = Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2])))
    assert small.size == (THUMBNAIL_PIXELS // 4, THUMBNAIL_PIXELS)
    assert image["alt"] == "turned"


def test_a_picture_of_the_caller_keeps_its_size():
    image = Image.new("RGB", (400, 400))
    page = Page("x")
    page.pictures("", [Shown(image)])
    assert image.size == (400, 400)


def test_a_picture_that_is_gone_says_so(tmp_path):
    page = Page("x")
    page.pictures("", [Shown(tmp_path / "gone.jpg", "a caption"), Shown(b"not a picture")])
    assert page.html().count("cannot be shown") == 2
    assert "a caption" in page.html()


def test_tables_put_numbers_to_the_right():
    page = Page("x")
    page.table(
        ["name", "items", "share"], [["cat", 12345, 0.5], ["dog", 2, Figure(0.25, 0.0, 1.0)]]
    )
    cells = _Tags(page.html())
    assert [a.get("class") for a in cells.named("td")] == ["words", None, None] * 2
    assert {"12,345", "0.500", "0.250 [0.000, 1.000]"} <= set(cells.words)


def test_neighbouring_plots_share_a_row_and_ids_differ():
    page = Page("x")
    drawing = plots.curves([0, 1], {"a": [0, 1]})
    page.plot("One", drawing)
    page.plot("Two", drawing)
    page.text("between")
    page.plot("Three", drawing)
    html = page.html()
    assert html.count('<div class="plots">') == 2
    ids = [a["id"] for _, a in _Tags(html).tags if "id" in a]
    assert len(ids) == len(set(ids)) > 3
    used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', html))
    assert used and {a or b for a, b in used} <= set(ids)
    assert html.count("<div") == html.count("</div>")


def test_plots_take_the_page_s_colours_for_dark_screens():
    page = Page("x")
    page.plot("One", plots.bars(["a"], [1.0]))
    body = page.html().partition("<body>")[2]
    assert plots.BAR not in body and "var(--bar)" in body and "var(--ink)" in body


def test_a_colour_in_a_label_stays_text():
    page = Page("x")
    page.plot("One", plots.bars([f'{plots.BAR} id="a'], [1.0]))
    assert f'{plots.BAR} id="a' in "".join(_Tags(page.html()).words)


def test_every_plot_is_drawn_twice_alike():
    labels = ["cat", "_dog", "日本 $5"]
    first, second = _all_plots(labels), _all_plots(labels)
    assert first == second
    assert {ElementTree.fromstring(drawing).tag for drawing in first} == {f"{SVG}svg"}


def test_every_plot_can_be_a_png():
    for drawing in _all_plots(["cat", "dog"], "png"):
        assert Image.open(io.BytesIO(drawing)).width >= 700  # 5 inches of 144 pixels


def test_labels_are_text_in_the_svg_and_cut_when_long():
    labels = ["cat", "$5 bill", "a name of more than twenty-four letters"]
    texts = _texts(plots.bars(labels, [1, 2, 3], x_label="share of all"))
    assert {"cat", "$5 bill", "a name of more than twe…", "share of all"} <= set(texts)


def test_bars_are_as_long_as_their_values():
    svg = plots.bars(["a", "b"], [0.25, 0.5], limits=(0, 1)).decode()
    found = re.findall(
        rf'<path d="M ([\d.]+) [\d.]+ \nL ([\d.]+) [^"]*" [^>]*fill: {plots.BAR}', svg
    )
    one, two = (float(end) - float(start) for start, end in found)
    assert two == pytest.approx(2 * one)


def test_a_heat_map_writes_few_values_and_names_no_crowd():
    few = np.array([[5, 1], [0, 7]])
    assert {"5", "1", "0", "7", "cat"} <= set(
        _texts(plots.heatmap(few, ["cat", "dog"], ["c", "d"]))
    )
    many = np.zeros((60, 60))
    assert "class 3" not in _texts(
        plots.heatmap(many, [f"class {i}" for i in range(60)], ["x"] * 60)
    )


def test_a_heat_map_survives_values_that_are_none():
    plots.heatmap(np.array([[np.nan, 1.0], [0.0, 0.0]]), ["a", "b"], ["a", "b"])
    plots.heatmap(np.zeros((2, 2)), ["a", "b"], ["a", "b"])


def test_a_logarithmic_axis_has_plain_numbers():
    shots = [1, 2, 4, 8, 16]
    texts = _texts(plots.curves(shots, {"a": shots}, x_label="shots", log_x=True))
    assert texts[:6] == ["1", "2", "4", "8", "16", "shots"]
    strengths = [10.0**exponent for exponent in range(-6, 7)]
    texts = _texts(plots.curves(strengths, {"a": [0.5] * 13}, log_x=True))
    # Every third or so power of ten, and no mathematics such as $10^{-3}$.
    assert {"1e-06", "1"} <= set(texts) and not any("$" in text for text in texts)


def test_empty_bins_of_a_reliability_diagram_may_be_nan():
    texts = _texts(plots.reliability([0.25, np.nan], [0.5, np.nan], [3, 0]))
    assert {"confidence", "accuracy", "items"} <= set(texts)


def test_a_broad_plot_scrolls_in_its_card():
    names = [f"class {i}" for i in range(20)]
    page = Page("x")
    page.plot("Confusion", plots.heatmap(np.zeros((20, 20)), names, names))
    assert re.search(r'class="plot broad".*min-width: [4-9]\d\dpx', page.html(), re.S)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.bars(["a"], [1, 2]),
        lambda: plots.bars([], []),
        lambda: plots.curves([1, 2], {"a": [1]}),
        lambda: plots.reliability([0.5], [0.5], [1, 2]),
        lambda: plots.heatmap(np.zeros((2, 3)), ["a", "b"], ["a", "b"]),
        lambda: plots.histogram({"a": [np.nan]}),
    ],
)
def test_unequal_counts_get_one_sentence(draw):
    with pytest.raises(ConfigError, match=r"labels and|at least one number"):
        draw()
