"""The failure page shows the cases that are worst, with what was wanted and what came first."""

import numpy as np
import pytest
from PIL import Image

from twinlens.errors import ConfigError
from twinlens.evaluate.page import Page
from twinlens.evaluate.sets import CaptionedSet, LabelledSet
from twinlens.evaluate.worst import (
    as_details,
    worst_captions,
    worst_labels,
    worst_page,
)

IMAGES = np.eye(4)
# Row: a caption's cosine to each picture.
CAPTIONS = np.array(
    [
        [0.9, 0.1, 0.2, 0.3],  # of 0: first
        [0.7, 0.1, 0.6, 0.5],  # of 1: last, behind 0, 2, 3
        [0.6, 0.2, 0.5, 0.4],  # of 1: last too
        [0.5, 0.1, 0.5, 0.2],  # of 2: a tie with 0 counts as second
        [0.4, 0.3, 0.2, 0.3],  # of 3: a tie with 1, behind 0: third
    ]
)
OWNER = np.array([0, 1, 1, 2, 3])


def captioned():
    return CaptionedSet(
        "photos",
        [Image.new("RGB", (8, 8), (50 * row, 0, 0)) for row in range(4)],
        ("a.jpg", "b.jpg", "c.jpg", "d.jpg"),
        ("first", "<b>last</b>", "last too", "tie", "third"),
        OWNER,
    )


def labelled(labels=(0, 0, 1, 1)):
    return LabelledSet(
        "pets",
        [Image.new("RGB", (8, 8), (50 * row, 0, 0)) for row in range(4)],
        np.array(labels),
        (("cat", "tabby"), ("dog",)),
        ("a.jpg", "b.jpg", "c.jpg", "d.jpg"),
    )


def test_captions_come_by_the_rank_of_their_picture():
    worst = worst_captions(IMAGES, CAPTIONS, OWNER)
    assert [(item.caption, item.rank) for item in worst] == [(1, 4), (4, 3), (3, 2)]
    assert worst[0].first == (0, 2, 3) and worst[0].image == 1
    assert (worst[0].score, worst[0].first_score) == (0.1, 0.7)
    assert worst[2].first[0] == 0  # not the wanted picture itself, which it ties with
    assert worst_captions(IMAGES, CAPTIONS[:1], OWNER[:1]) == []


def test_one_picture_does_not_fill_the_page_unless_asked():
    rows = [item.caption for item in worst_captions(IMAGES, CAPTIONS, OWNER, per_image=2)]
    assert rows == [1, 2, 4, 3]
    assert len(worst_captions(IMAGES, CAPTIONS, OWNER, count=1)) == 1


def test_blocks_give_the_same(monkeypatch):
    whole = worst_captions(IMAGES, CAPTIONS, OWNER)
    monkeypatch.setattr("twinlens.evaluate.vector_space.BLOCK_SCORES", 8)
    assert worst_captions(IMAGES, CAPTIONS, OWNER) == whole


def test_labels_come_by_the_confidence_in_the_wrong_class():
    images = np.array([[0.9, 0.1], [0.4, 0.6], [0.9, 0.1], [0.2, 0.8]])
    worst = worst_labels(images, np.eye(2), np.array([0, 0, 1, 1]), scale=1.0)
    assert [(item.image, item.wanted, item.given) for item in worst] == [(2, 1, 0), (1, 0, 1)]
    # Softmax of 0.9 and 0.1: 1 / (1 + exp(-0.8)).
    assert worst[0].confidence == pytest.approx(1 / (1 + np.exp(-0.8)))
    assert worst[0].wanted_confidence == pytest.approx(1 / (1 + np.exp(0.8)))


def test_the_page_shows_what_was_wanted_and_what_came_first():
    page = Page("Failures")
    data = captioned()
    worst_page(page, data, worst_captions(IMAGES, CAPTIONS, OWNER, count=1))
    html = page.html()
    assert "&lt;b&gt;last&lt;/b&gt;: its picture is number 4" in html
    assert "<b>last" not in html
    assert html.count("<img") == 4  # the wanted one and three that came before it
    assert "b.jpg" in html and 'class="good"' in html


def test_the_page_shows_a_picture_of_the_class_that_was_given():
    images = np.array([[0.9, 0.1], [0.4, 0.6], [0.9, 0.1], [0.2, 0.8]])
    data = labelled()
    page = Page("Failures")
    worst = worst_labels(images, np.eye(2), data.labels, scale=1.0)
    worst_page(page, data, worst)
    html = page.html()
    assert "dog, taken for cat" in html and "cat 69%, dog 31%" in html
    assert "from the class cat" in html
    assert as_details(data, worst)[0] == {
        "id": "c.jpg",
        "class": "dog",
        "given": "cat",
        "confidence": worst[0].confidence,
    }


def test_no_failures_are_said():
    page = Page("Failures")
    worst_page(page, captioned(), [])
    assert "Every query found what it wanted first." in page.html()


def test_cases_of_another_kind_are_refused():
    with pytest.raises(ConfigError, match="photos and the worst cases given are not of one kind"):
        worst_page(Page("x"), captioned(), worst_labels(np.eye(2), np.eye(2), np.array([1, 0])))
