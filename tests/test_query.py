"""Run with: pytest tests/test_query.py"""

import numpy as np
import pytest

from twinlens.errors import QueryError, UnreadableImage
from twinlens.search.query import Term, describe, parse_query, query_vector
from twinlens.testing import FakeEmbedder


def text(words, weight=1.0):
    return Term(weight, "text", words)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "car.jpg"
    path.write_bytes(b"a car")
    return str(path)


def test_words_without_quotes_are_one_text():
    assert parse_query(["a", "red", "car"]) == [text("a red car")]


def test_plus_and_minus_stand_alone_between_the_parts(photo):
    assert parse_query(["a dog", "+", "deep", "snow", "-", photo]) == [
        text("a dog"),
        text("deep snow"),
        Term(-1.0, "image", photo),
    ]


def test_a_query_may_begin_with_minus():
    assert parse_query(["-", "people"]) == [text("people", -1.0)]


def test_a_hyphen_inside_a_text_is_no_operator():
    assert parse_query(["a well-lit room - at night"]) == [text("a well-lit room - at night")]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("2:dog", text("dog", 2.0)),
        ("0.5:a dog", text("a dog", 0.5)),
        (".5: a dog", text("a dog", 0.5)),
        ("16:9 photo", text("16:9 photo")),
        ("a clock at 10:30", text("a clock at 10:30")),
        ("note: dog", text("note: dog")),
    ],
)
def test_a_number_and_colon_in_front_is_a_weight_unless_a_digit_follows(typed, expected):
    assert parse_query([typed]) == [expected]


def test_minus_turns_a_weight_around(photo):
    assert parse_query(["dog", "-", f"0.5:{photo}"])[1] == Term(-0.5, "image", photo)


def test_only_a_picture_file_is_a_picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dog").write_bytes(b"")
    (tmp_path / "my photo.JPG").write_bytes(b"")
    assert parse_query(["dog"]) == [text("dog")]
    assert parse_query(["my", "photo.JPG"]) == [Term(1.0, "image", "my photo.JPG")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the query is empty"),
        (["  "], "the query is empty"),
        (["dog", "+"], "nothing follows the +"),
        (["dog", "-", "+", "cat"], "nothing follows the -"),
        (["2:"], "a weight but no words"),
        (["0:dog"], "the weight 0 makes 'dog' mean nothing"),
        (["missing.jpg"], "missing.jpg is called like a picture, but there is no such file"),
    ],
)
def test_a_query_that_makes_no_sense_is_an_error_that_says_why(words, message):
    with pytest.raises(QueryError) as caught:
        parse_query(words)
    assert message in str(caught.value)


def test_a_described_query_can_be_typed_again():
    words = ["a dog", "+", "2:snow", "-", "0.5:people"]
    assert describe(parse_query(words)) == "a dog + 2:snow - 0.5:people"
    assert parse_query(["-", "people"]) == parse_query(
        describe(parse_query(["-", "people"])).split()
    )


def test_one_text_is_its_own_embedding():
    embedder = FakeEmbedder()
    np.testing.assert_allclose(
        query_vector(embedder, [text("a dog", 3.0)]), embedder.texts(["a dog"])[0], rtol=1e-6
    )


def test_a_sum_has_unit_length_and_the_weights_count():
    embedder = FakeEmbedder()
    dog, snow = embedder.texts(["dog", "snow"])
    expected = 2 * dog - 0.5 * snow
    vector = query_vector(embedder, [text("dog", 2.0), text("snow", -0.5)])
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), rtol=1e-5)


def test_a_picture_is_scaled_before_it_is_added_to_words(photo):
    embedder = FakeEmbedder()
    embedder.image_query_weight = 0.25
    (car,), (red,) = embedder.images([photo]), embedder.texts(["red"])
    expected = red + 0.25 * car
    vector = query_vector(embedder, [text("red"), Term(1.0, "image", photo)])
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), rtol=1e-5)


def test_a_tower_that_the_query_does_not_need_is_not_asked(monkeypatch, photo):
    def fail(*_, **__):
        raise AssertionError("asked")

    with monkeypatch.context() as patch:
        patch.setattr(FakeEmbedder, "images", fail)
        query_vector(FakeEmbedder(), [text("dog")])
    monkeypatch.setattr(FakeEmbedder, "texts", fail)
    query_vector(FakeEmbedder(), [Term(1.0, "image", photo)])


def test_parts_that_cancel_out_are_an_error():
    with pytest.raises(QueryError, match="cancel out: dog - dog"):
        query_vector(FakeEmbedder(), [text("dog"), text("dog", -1.0)])


def test_an_unreadable_picture_in_the_query_is_named(tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"not a photo")
    with pytest.raises(UnreadableImage, match=r"bad\.jpg"):
        query_vector(FakeEmbedder(), [Term(1.0, "image", str(bad))])
