"""Scores by group: the right items in each, honest about small groups, no causes."""

import numpy as np
import pytest

from twinlens.errors import ConfigError
from twinlens.evaluate.groups import group_differences, scores_by_group, sentences
from twinlens.evaluate.result import Figure, PerItem, Result
from twinlens.evaluate.sets import CaptionedSet, LabelledSet
from twinlens.evaluate.tasks import difference_of_means


def result_of(values, ids, clusters=None, metric="accuracy@1"):
    model = {"name": "given", "model_id": "given-1", "dim": 2}
    result = Result(task="zero-shot", model=model, data={"name": "photos"})
    result.per_item[metric] = PerItem(list(ids), list(values), "image", clusters)
    return result


def photos(groups, labels=None):
    count = len(groups)
    return LabelledSet(
        "photos",
        [b"x"] * count,
        np.zeros(count, dtype=int) if labels is None else np.array(labels),
        (("cat",), ("dog",)),
        tuple(f"{row}.jpg" for row in range(count)),
        groups={"country": tuple(groups)},
    )


def test_each_group_has_the_mean_of_its_own_items():
    scores = scores_by_group([1, 1, 0, 1, 0, 0], ["b", "a", "b", "a", "b", "a"], smallest=1)
    assert [score.group for score in scores] == ["a", "b"]
    assert scores[0].score.value == pytest.approx(2 / 3)
    assert scores[1].score.value == pytest.approx(1 / 3)
    assert scores[0].difference.value == pytest.approx(1 / 3)
    assert scores[1].difference.value == pytest.approx(-1 / 3)


def test_the_difference_of_two_shares_agrees_with_the_normal_approximation():
    random = np.random.default_rng(0)
    values = np.concatenate([random.random(900) < 0.7, random.random(600) < 0.5]).astype(float)
    groups = ["a"] * 900 + ["b"] * 600
    difference = scores_by_group(values, groups)[0].difference
    a, b = values[:900].mean(), values[900:].mean()
    reach = 1.96 * np.sqrt(a * (1 - a) / 900 + b * (1 - b) / 600)
    assert difference.value == pytest.approx(a - b)
    assert difference.low == pytest.approx(a - b - reach, abs=0.005)
    assert difference.high == pytest.approx(a - b + reach, abs=0.005)


def test_the_ends_of_a_difference_join_those_of_its_means():
    a, b = Figure(0.9, 0.86, 0.92), Figure(0.5, 0.47, 0.53)
    difference = difference_of_means(a, b)
    # Below: hypot(0.04, 0.03) = 0.05; above: hypot(0.02, 0.03) = 0.036056.
    assert difference.value == pytest.approx(0.4)
    assert difference.low == pytest.approx(0.35)
    assert difference.high == pytest.approx(0.436056, abs=1e-6)
    assert difference_of_means(a, Figure(0.5)).low is None


def test_a_group_that_is_too_small_is_said_and_not_compared():
    groups = ["large"] * 30 + ["other"] * 30 + ["small"] * 3
    data = photos(groups)
    found = group_differences(result_of([1.0] * 30 + [0.0] * 33, data.ids), data)
    assert found.details["too small"] == ["small"]
    assert "accuracy@1, small" not in found.figures
    assert found.figures["accuracy@1, large"].value == 1.0
    assert found.figures["largest difference"].value == 1.0
    small = found.details["sentences"][2]
    assert small == "small: 3 pictures are too few to compare (fewer than 20)."
    assert "accuracy@1 is higher than elsewhere" in found.details["sentences"][0]


def test_no_difference_is_claimed_where_the_interval_holds_zero():
    values = [1.0, 0.0] * 40
    said = sentences(scores_by_group(values, ["a"] * 40 + ["b"] * 40), "accuracy@1", 20)
    assert all("no difference shown" in sentence for sentence in said)


def test_words_name_no_cause():
    values = [1.0] * 40 + [0.0] * 40
    said = " ".join(sentences(scores_by_group(values, ["a"] * 40 + ["b"] * 40), "accuracy@1", 20))
    assert "a: accuracy@1 is higher" in said and "b: accuracy@1 is lower" in said
    assert not any(word in said for word in ("because", "due to", "cause", "bias", "unfair"))


def test_captions_of_one_picture_count_as_one():
    groups = ["a", "b"] * 5
    data = CaptionedSet(
        "captions",
        [b"x"] * 10,
        tuple(f"{row}.jpg" for row in range(10)),
        tuple(f"caption {row}" for row in range(50)),
        np.repeat(np.arange(10), 5),
        groups={"country": tuple(groups)},
    )
    owners = [data.ids[owner] for owner in data.owner]
    result = result_of([0.5] * 50, [f"{row}" for row in range(50)], owners, "rank")
    found = group_differences(result, data, smallest=5)
    assert [group["images"] for group in found.details["groups"]] == [5, 5]
    assert [group["items"] for group in found.details["groups"]] == [25, 25]
    assert group_differences(result, data, smallest=6).details["too small"] == ["a", "b"]


def test_classes_are_groups_too():
    data = photos(["x"] * 40, labels=[0] * 20 + [1] * 20)
    found = group_differences(result_of([1.0] * 20 + [0.5] * 20, data.ids), data, column="class")
    assert found.figures["accuracy@1, cat"].value == 1.0
    assert found.figures["dog less others"].value == -0.5


def test_pictures_that_were_skipped_are_in_no_group():
    data = photos(["a"] * 20 + ["b"] * 21)
    found = group_differences(result_of([1.0] * 40, data.ids[:40]), data)
    assert [group["images"] for group in found.details["groups"]] == [20, 20]


def test_what_is_missing_is_named():
    data = photos(["a", "b"])
    with pytest.raises(ConfigError, match="no column 'camera'; there are: country, class"):
        group_differences(result_of([1.0, 0.0], data.ids), data, column="camera")
    with pytest.raises(ConfigError, match="no values per item of 'rank'; there are: accuracy@1"):
        group_differences(result_of([1.0, 0.0], data.ids), data, metric="rank")
    with pytest.raises(ConfigError, match=r"'other.jpg' is in the result but not in photos"):
        group_differences(result_of([1.0, 0.0], ["0.jpg", "other.jpg"]), data)
    with pytest.raises(ConfigError, match="2 values and 1 groups"):
        scores_by_group([1.0, 0.0], ["a"])
