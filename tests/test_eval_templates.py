"""Template sets, and templates from a file."""

import numpy as np
import pytest

from twinlens.errors import ConfigError
from twinlens.evaluate.sets import LabelledSet
from twinlens.evaluate.templates import (
    TEMPLATE_SETS,
    choose_templates,
    fill,
    find_templates,
    parse_templates,
    read_templates,
)


def a_set(**more):
    return LabelledSet(
        name="pets",
        images=[b"x"],
        labels=np.array([0]),
        class_names=(("cat",),),
        ids=("x",),
        **more,
    )


def test_the_sets_are_as_large_as_openai_published_them():
    # Counted in notebooks/Prompt_Engineering_for_ImageNet.ipynb and data/prompts.md.
    published = {
        "imagenet": 80,
        "short": 7,
        "birdsnap": 1,
        "caltech101": 34,
        "cifar": 18,
        "clevr-counts": 1,
        "country211": 5,
        "dtd": 8,
        "eurosat": 3,
        "fer2013": 6,
        "fgvc-aircraft": 2,
        "flowers102": 1,
        "food101": 1,
        "gtsrb": 3,
        "hateful-memes": 1,
        "kinetics700": 28,
        "kitti": 1,
        "mnist": 1,
        "oxford-pets": 1,
        "patch-camelyon": 1,
        "resisc45": 18,
        "sst2": 1,
        "stanford-cars": 8,
        "stl10": 2,
        "sun397": 2,
        "ucf101": 48,
        "voc2007": 1,
    }
    assert {name: len(TEMPLATE_SETS[name]) for name in published} == published
    assert set(TEMPLATE_SETS) - set(published) == {"plain", "name"}


def test_every_template_has_one_place_for_the_name_and_occurs_once():
    for name, templates in TEMPLATE_SETS.items():
        assert len(set(templates)) == len(templates), name
        assert all(template.count("{}") == 1 for template in templates), name


def test_the_seven_are_among_the_eighty():
    assert set(TEMPLATE_SETS["short"]) <= set(TEMPLATE_SETS["imagenet"])


def test_sets_that_are_put_together_are_in_the_published_order():
    assert TEMPLATE_SETS["ucf101"][:5] == (
        "a photo of a person {}.",
        "a video of a person {}.",
        "a example of a person {}.",
        "a demonstration of a person {}.",
        "a photo of the person {}.",
    )
    assert TEMPLATE_SETS["kinetics700"][6:9] == (
        "a photo of a person practicing {}.",
        "a video of {}.",
        "a video of a person {}.",
    )
    assert TEMPLATE_SETS["resisc45"][5:7] == ("aerial view of {}.", "satellite imagery of a {}.")
    assert TEMPLATE_SETS["dtd"][3:5] == ("a photo of a {} object.", "a photo of the {} texture.")


@pytest.mark.parametrize(
    ("written", "same_as"),
    [("CIFAR_100", "cifar"), ("ImageNet-V2", "imagenet"), ("pets", "oxford-pets")],
)
def test_a_set_is_found_by_the_names_people_use(written, same_as):
    assert find_templates(written) is TEMPLATE_SETS[same_as]


def test_a_name_that_is_neither_set_nor_file_lists_the_sets():
    with pytest.raises(ConfigError, match=r"no-such is neither a file .* short, .* voc2007"):
        find_templates("no-such")


def test_a_file_holds_one_template_a_line_each_counted_once(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("# ours\na photo of {}.\n\n  a {c} on a shelf.\na photo of {}.\n", "utf-8")
    assert find_templates(str(path)) == ("a photo of {}.", "a {} on a shelf.")


def test_a_file_may_be_a_json_list(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('["a photo of {}.", "{}"]', "utf-8")
    assert read_templates(path) == ("a photo of {}.", "{}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a photo.\n", r"line 1: the template 'a photo\.' has no \{\}"),
        ("# none\n", "holds no templates"),
        ('["a {}.", 3]', "list of texts alone"),
        ('["a {}."', "no JSON list"),
        (b"\xff\xfe\x00", "no UTF-8 text"),
    ],
)
def test_a_file_that_is_wrong_is_named_with_the_reason(tmp_path, content, message):
    path = tmp_path / "mine.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message) as raised:
        read_templates(path)
    assert str(path) in str(raised.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.txt cannot be read: no such file"):
        read_templates(tmp_path / "gone.txt")


def test_a_class_name_is_put_in_as_it_is():
    assert fill("a photo of a {}.", "{0.real} \\1") == "a photo of a {0.real} \\1."
    assert parse_templates(["{0.real} of {}"], source="x") == ("{0.real} of {}",)


def test_wanted_templates_come_before_the_sets_own_and_those_before_the_default():
    own = ("my {}",)
    assert choose_templates(a_set(templates=own), "plain") == ("plain", ("a photo of a {}.",))
    assert choose_templates(a_set(templates=own)) == ("the data set's own", own)
    assert choose_templates(a_set(template_key="food101")) == ("food101", TEMPLATE_SETS["food101"])
    assert choose_templates(a_set(template_key="svhn")) == ("short", TEMPLATE_SETS["short"])
    assert choose_templates(a_set()) == ("short", TEMPLATE_SETS["short"])
