"""Results: what is written is read again, tables, and the sentences for other files."""

import json
import math

import numpy as np
import pytest

from twinlens.errors import ConfigError, MissingExtra
from twinlens.evaluate.extra import need
from twinlens.evaluate.result import (
    SCHEMA_VERSION,
    Figure,
    PerItem,
    Result,
    number_text,
    read_results,
    results_from_json,
    results_to_json,
    to_markdown,
    write_results,
)


def _result(task="retrieval", model="mini", data="flickr8k", **parts):
    return Result(task, {"name": model, "model_id": model}, {"name": data, "images": 2}, **parts)


def test_a_result_reads_as_it_was_written(tmp_path):
    ids = ["a.jpg", "\udcff\x1b[2J.jpg"]  # the second: bytes that are no text
    result = _result(
        settings={"templates": ["a photo of a {}."], "seed": 0},
        figures={
            "recall@1": Figure(0.5, 0.25, 1.0),
            "rank": Figure(3.0, None, None, False, "rank"),
        },
        per_item={
            "recall@1": PerItem(ids, [1.0, 0.0], "caption", clusters=["a", "a"]),
            "rank": PerItem(ids, [1.0, 2.5], "caption", statistic="median"),
        },
        details={"confusion": [[1, 2], [3, 4]]},
    )
    write_results(tmp_path / "r.json", [result, result])
    assert read_results(tmp_path / "r.json") == [result, result]
    assert Result.from_json(result.to_json()) == result


def test_what_is_no_number_is_null_and_numpy_is_plain_json():
    result = _result(
        figures={"x": Figure(math.nan)},
        per_item={"x": PerItem(["a", "b"], [math.nan, math.inf])},
        details={"curve": np.array([0.5, np.nan]), "count": np.int64(3), 7: (1, 2)},
    )
    text = result.to_json()
    values = json.loads(text, parse_constant=pytest.fail)  # called for NaN and Infinity
    assert values["results"][0]["figures"]["x"]["value"] is None
    assert values["results"][0]["details"] == {"curve": [0.5, None], "count": 3, "7": [1, 2]}
    again = Result.from_json(text)
    assert math.isnan(again.figures["x"].value)
    assert all(math.isnan(value) for value in again.per_item["x"].values)


def test_ids_that_metrics_share_are_written_once():
    ids = [f"picture {number}" for number in range(100)]
    items = {f"recall@{k}": PerItem(ids, [1.0] * 100) for k in (1, 5, 10)}
    assert _result(per_item=items).to_json().count('"picture 42"') == 1


def test_arrays_become_items():
    items = PerItem.of(np.arange(2), np.array([True, False]), clusters=np.array([5, 5]))
    assert items == PerItem(["0", "1"], [1.0, 0.0], "image", ["5", "5"])


def test_items_with_unequal_counts_are_refused():
    with pytest.raises(ConfigError, match=r"2 ids, 3 values and 2 clusters"):
        PerItem(["a", "b"], [1.0, 0.0, 1.0])


def test_details_that_json_does_not_know_are_named():
    with pytest.raises(TypeError, match="cannot hold a set"):
        _result(details={"classes": {1, 2}}).to_json()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", r"old\.json is not JSON"),
        ("[]", r"does not hold results of `twinlens evaluate`"),
        ('{"schema": "twinlens.comparison"}', r"does not hold results"),
        ('{"schema": "twinlens.evaluation", "version": 1}', r"damaged.*KeyError: 'results'"),
        ('{"schema": "twinlens.evaluation", "version": 1, "results": [3]}', r"damaged.*TypeError"),
    ],
)
def test_a_file_of_another_kind_gets_one_sentence(text, message):
    with pytest.raises(ConfigError, match=message):
        results_from_json(text, name="old.json")


def test_a_newer_format_is_refused_with_what_to_do():
    newer = results_to_json([_result()]).replace(
        f'"version": {SCHEMA_VERSION}', f'"version": {SCHEMA_VERSION + 1}', 1
    )
    with pytest.raises(ConfigError, match=r"in version 2 .* up to 1: update twinlens"):
        results_from_json(newer)


def test_a_file_that_is_no_text_gets_one_sentence(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="no UTF-8 text"):
        read_results(tmp_path / "x.json")


def test_a_figure_shows_its_interval_and_unit():
    assert str(Figure(0.53421, 0.512, 0.5559)) == "0.534 [0.512, 0.556]"
    assert str(Figure(3.0, 2.0, 4.5, False, "ranks")) == "3 [2, 4.5] ranks"
    assert str(Figure(math.nan)) == "-"
    assert [number_text(value) for value in (12.34, 1234.5)] == ["12.3", "1,234"]


def test_the_table_has_a_column_for_each_model():
    table = to_markdown(
        [
            _result(figures={"recall@1": Figure(0.5, 0.4, 0.6), "recall@5": Figure(0.75)}),
            _result(model="vit-b-32", figures={"recall@1": Figure(0.625)}),
        ]
    )
    assert table.splitlines() == [
        "| task | data | figure | mini | vit-b-32 |",
        "|---|---|---|---:|---:|",
        "| retrieval | flickr8k | recall@1 | 0.500 [0.400, 0.600] | 0.625 |",
        "| retrieval | flickr8k | recall@5 | 0.750 |  |",
    ]


def test_the_same_task_with_other_settings_gets_its_own_row():
    results = [_result(figures={"x": Figure(value)}) for value in (0.1, 0.2, 0.3)]
    tasks = [line.split(" | ")[0] for line in to_markdown(results).splitlines()[2:]]
    assert tasks == ["| retrieval", "| retrieval (2)", "| retrieval (3)"]


def test_a_name_cannot_break_the_table():
    table = to_markdown([_result(data="a|b\n<script>\x1b[2J", figures={"x": Figure(0.5)})])
    assert len(table.splitlines()) == 3
    assert "a\\|b" in table and "<script>" not in table and "\x1b" not in table


def test_a_missing_package_is_named_as_it_is_installed(monkeypatch):
    monkeypatch.setattr("twinlens.evaluate.extra._PACKAGES", {"no_such_thing": "no-such-thing"})
    with pytest.raises(MissingExtra, match=r"'no-such-thing'.*pip install 'twinlens\[evaluate\]'"):
        need("no_such_thing.part")


def test_a_package_with_a_missing_part_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "half_there.py").write_text("import no_such_thing")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_thing"):
        need("half_there")
