"""`compare`: pairs by id, verdicts that are right, what changed, and the command."""

import json

import numpy as np
import pytest
import typer
from scipy import stats
from typer.testing import CliRunner

from twinlens.cli.compare_command import compare_command
from twinlens.errors import ConfigError
from twinlens.evaluate.compare import (
    compare,
    comparison_page,
    comparison_to_dict,
    comparison_to_markdown,
)
from twinlens.evaluate.result import Figure, PerItem, Result, write_results


def _result(model="mini", *, task="retrieval", data="flickr8k", settings=None, **metrics):
    """Metrics are lists of values (ids are numbers), or PerItem."""
    per_item = {
        name: m if isinstance(m, PerItem) else PerItem.of(range(len(m)), m, what="caption")
        for name, m in metrics.items()
    }
    figures = {name: Figure(float(np.mean(item.values))) for name, item in per_item.items()}
    values = {"name": model, "model_id": model}
    return Result(task, values, {"name": data}, settings or {}, figures, per_item)


def _only(first, second):
    (comparison,) = compare([first], [second])
    (metric,) = comparison.metrics
    return metric


def test_a_better_model_is_called_better_with_its_interval():
    metric = _only(_result(hit=[0] * 40 + [1] * 60), _result(hit=[1] * 20 + [0] * 20 + [1] * 60))
    assert metric.better == "B"
    assert metric.difference == pytest.approx(0.2)
    assert 0.1 < metric.low < 0.2 < metric.high < 0.3
    assert metric.verdict.startswith("B is better: +0.200 [0.1")
    assert metric.p == pytest.approx(2 * 0.5**20)
    assert metric.test == "McNemar, exact"


def test_a_worse_model_is_called_worse():
    metric = _only(_result(hit=[1] * 100), _result(hit=[0] * 20 + [1] * 80))
    assert metric.better == "A"
    assert metric.verdict.startswith("A is better: -0.200 [-0.2")


def test_five_lucky_items_are_no_difference():
    # The bootstrap interval leaves 0 out; McNemar's p is 2 / 2 ** 5 = 0.0625.
    metric = _only(_result(hit=[0] * 100), _result(hit=[1] * 5 + [0] * 95))
    assert metric.low > 0
    assert metric.p == 0.0625
    assert metric.better is None
    assert metric.verdict.startswith("no difference shown: +0.050 [")


def test_equal_models_are_the_same_for_every_item():
    metric = _only(_result(hit=[0, 1, 1]), _result(hit=[0, 1, 1]))
    assert metric.verdict == "the same for every caption"
    assert metric.p == 1.0


def test_items_meet_by_id_whatever_their_order():
    a = _result(hit=PerItem(["x", "y", "z", "a only"], [1.0, 0.0, 1.0, 1.0]))
    b = _result(hit=PerItem(["z", "b only", "y", "x"], [1.0, 1.0, 1.0, 0.0]))
    metric = _only(a, b)
    assert (metric.items, metric.only_a, metric.only_b) == (3, 1, 1)
    assert (metric.a, metric.b) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert [change.id for change in metric.gained] == ["y"]
    assert [change.id for change in metric.lost] == ["x"]
    (comparison,) = compare([a], [b])
    assert "hit: 3 images are in both, 1 only in A, 1 only in B." in comparison.notes


def test_an_id_that_comes_twice_meets_its_twin_in_order():
    a = _result(hit=PerItem(["x", "x"], [1.0, 0.0]))
    b = _result(hit=PerItem(["x", "x"], [1.0, 1.0]))
    metric = _only(a, b)
    assert metric.items == 2 and len(metric.gained) == 1 and not metric.lost


def test_items_without_a_value_are_left_out():
    a = _result(hit=PerItem(["x", "y", "z"], [1.0, float("nan"), 0.0]))
    b = _result(hit=PerItem(["x", "y", "z"], [1.0, 1.0, float("nan")]))
    assert _only(a, b).items == 1


def test_results_without_a_common_item_are_refused():
    a = _result(hit=PerItem(["x"], [1.0], "caption"))
    b = _result(hit=PerItem(["y"], [1.0], "caption"))
    with pytest.raises(
        ConfigError, match=r"A \(retrieval on .* no caption in common .*'x'.*same data"
    ):
        compare([a], [b])


def test_files_without_a_common_task_are_refused():
    with pytest.raises(ConfigError, match=r"a\.json holds retrieval on flickr8k and b\.json probe"):
        compare([_result()], [_result(task="probe")], names=("a.json", "b.json"))
    with pytest.raises(ConfigError, match="holds nothing"):
        compare([], [_result()])


def test_results_of_a_file_meet_by_task_data_and_settings():
    first = [
        _result(hit=[0, 0], settings={"k": 1}),
        _result(hit=[0, 1], settings={"k": 5}),
        _result(task="probe", hit=[1, 1]),
        _result(task="only in A", hit=[1]),
    ]
    second = [
        _result(task="probe", hit=[1, 1]),
        _result(hit=[1, 1], settings={"k": 5}),
        _result(hit=[0, 0], settings={"k": 1}),
    ]
    found = [(c.task, c.metrics[0].a, c.metrics[0].b) for c in compare(first, second)]
    assert found == [("retrieval", 0.0, 0.0), ("retrieval", 0.5, 1.0), ("probe", 1.0, 1.0)]


def test_p_values_are_corrected_for_all_metrics_at_once():
    base = _result(one=[0] * 50, two=[0] * 50)
    other = _result(one=[1] * 7 + [0] * 43, two=[1] * 6 + [0] * 44)
    (comparison,) = compare([base], [other])
    one, two = comparison.metrics
    # Holm of 2/2**7 and 2/2**6: the smaller one twice, the larger one once (and not below it).
    assert (one.p, two.p) == pytest.approx((2 / 128, 2 / 64))
    assert (one.p_corrected, two.p_corrected) == pytest.approx((4 / 128, 4 / 128))
    assert one.better == two.better == "B"
    base.per_item["three"] = other.per_item["three"] = PerItem.of(range(2), [0, 1])
    (comparison,) = compare([base], [other])
    assert comparison.metrics[0].p_corrected == pytest.approx(6 / 128)
    assert comparison.metrics[1].p_corrected == pytest.approx(4 / 64)
    assert comparison.metrics[1].better is None  # what one test would have called better


def test_lower_ranks_are_better():
    ranks = np.arange(1.0, 102.0)
    a = _result(rank=PerItem.of(range(101), ranks + 20, statistic="median"))
    b = _result(rank=PerItem.of(range(101), ranks, statistic="median"))
    for result in (a, b):
        result.figures["rank"] = Figure(0.0, higher_is_better=False)
    metric = _only(a, b)
    assert metric.difference == -20.0 and metric.better == "B"
    assert metric.verdict.endswith("(lower is better)")
    assert len(metric.gained) == 101 and not metric.lost


def test_captions_of_a_picture_are_resampled_together():
    rng = np.random.default_rng(3)
    pictures = np.repeat(np.arange(40), 5)
    gained = np.repeat(rng.random(40) < 0.3, 5)

    def compared(clusters):
        make = lambda v: PerItem.of(range(200), v, what="caption", clusters=clusters)  # noqa: E731
        return _only(_result(hit=make(np.zeros(200))), _result(hit=make(gained)))

    alone, together = compared(None), compared(pictures)
    assert together.high - together.low > 1.8 * (alone.high - alone.low)
    assert together.test == "paired swaps" and together.p > alone.p


def test_what_differs_besides_the_model_is_noted():
    a = _result(hit=[0, 1], settings={"templates": "short", "seed": 0})
    b = _result(hit=[0, 1], settings={"templates": "long", "seed": 0})
    a.data["fingerprint"], b.data["fingerprint"] = "1", "2"
    (comparison,) = compare([a], [b])
    assert "A and B were evaluated with different settings: templates." in comparison.notes
    assert "A and B are the same model." in comparison.notes
    assert any("data differ" in note for note in comparison.notes)


def test_figures_without_items_are_shown_and_not_tested():
    a, b = _result(hit=[0, 1]), _result(hit=[1, 1])
    a.figures["mean per class"], b.figures["mean per class"] = Figure(0.25), Figure(0.75)
    comparisons = compare([a], [b])
    assert comparisons[0].figures == {"mean per class": (Figure(0.25), Figure(0.75))}
    table = comparison_to_markdown(comparisons)
    assert "| mean per class | not tested: no value per item |  |  | 0.250 | 0.750 |  |" in table


def test_the_largest_changes_come_first():
    metric = _only(_result(score=[0.5, 0.5, 0.5, 0.5]), _result(score=[0.6, 0.9, 0.5, 0.1]))
    assert [(change.id, change.b) for change in metric.gained] == [("1", 0.9), ("0", 0.6)]
    assert [change.id for change in metric.lost] == ["3"]


def test_everything_is_in_the_json_and_it_has_no_nan():
    values = comparison_to_dict(compare([_result(hit=[1])], [_result(hit=[0])]))
    text = json.dumps(values, allow_nan=False)
    (metric,) = json.loads(text)["comparisons"][0]["metrics"]
    assert metric["low"] is None  # one item has no interval
    assert metric["lost"] == [{"id": "0", "a": 1.0, "b": 0.0}]
    assert metric["better"] is None


def test_real_intervals_agree_with_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.random(300) < 0.5, rng.random(300) < 0.6
    metric = _only(_result(hit=a), _result(hit=b))
    differences = b.astype(float) - a
    expected = stats.bootstrap((differences,), np.mean, rng=1).confidence_interval
    assert (metric.low, metric.high) == pytest.approx(tuple(expected), abs=0.01)
    changed = int((a != b).sum())
    assert metric.p == pytest.approx(stats.binomtest(int((b & ~a).sum()), changed).pvalue)


def test_the_page_names_what_changed_and_escapes_it():
    hostile = "<script>alert(1)</script>.jpg"
    a = _result("<b>A</b>", hit=PerItem([hostile, "x.jpg"], [0.0, 1.0]))
    b = _result(hit=PerItem([hostile, "x.jpg"], [1.0, 1.0]))
    page = comparison_page(compare([a], [b])).html()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;.jpg" in page
    assert "<script>" not in page and "<b>A" not in page
    assert "hit: better under B" in page


@pytest.fixture
def run_compare(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    app.command()(compare_command)
    write_results(tmp_path / "a.json", [_result("mini", hit=[0] * 40 + [1] * 60)])
    write_results(tmp_path / "b.json", [_result("big", hit=[1] * 20 + [0] * 20 + [1] * 60)])
    return lambda *arguments: CliRunner().invoke(app, ["a.json", "b.json", *arguments])


def test_the_command_says_who_is_better_and_what_changed(run_compare):
    lines = run_compare().stdout.splitlines()
    assert lines[0] == "retrieval on flickr8k   A: mini, B: big"
    assert lines[1].startswith("  hit: B is better: +0.200 [0.1")
    assert lines[2] == "    0.600 to 0.800 over 100 captions; p < 0.001 (McNemar, exact)"
    assert lines[3] == "    better under B: 20: 0, 1, 2, 3, 4, ..."


def test_the_command_writes_json_a_page_and_markdown(run_compare, tmp_path):
    result = run_compare("--json", "c.json", "--html", "c.html", "--markdown")
    assert result.exit_code == 0
    assert result.stdout.startswith("| task | data | metric |")
    values = json.loads((tmp_path / "c.json").read_text())
    assert len(values["comparisons"][0]["metrics"][0]["gained"]) == 20
    assert "B is better" in (tmp_path / "c.html").read_text()


def test_the_command_refuses_a_folder_that_is_not_there_before_it_compares(run_compare):
    result = run_compare("--html", "nowhere/c.html")
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception) == "nowhere is not a folder: c.html cannot be written there."
