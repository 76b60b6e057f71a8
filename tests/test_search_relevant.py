"""`twinlens search --relevant`: with a fake embedder, whose scores are worked out here again."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from twinlens import embed
from twinlens.errors import ConfigError, QueryError
from twinlens.runtime.relevance import RELEVANCE_NAME, Measured, RelevanceRule
from twinlens.search.photos import index
from twinlens.testing import FakeEmbedder

COLOURS = {"red.png": (250, 0, 0), "green.png": (0, 250, 0), "trip/blue.png": (0, 0, 250)}
MEASURED = Measured(data="x", queries=9, precision=0.9, recall=0.5, silent_when_relevant=0.1)


@pytest.fixture(autouse=True)
def fake_embedder(monkeypatch, tmp_path):
    """A fake that lives in a model folder, as the real one does."""

    def make(model="mini", *, runtime="onnxruntime", threads=None, max_megapixels=180.0):
        embedder = FakeEmbedder(name=os.fspath(model))
        embedder.folder = tmp_path / "model"
        return embedder

    (tmp_path / "model").mkdir()
    monkeypatch.setattr(embed, "Embedder", make)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, colour in COLOURS.items():
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), colour).save(path)
    return tmp_path / "photos"


@pytest.fixture
def scores(folder):
    """The photos' cosines with "a dog", best first."""
    fake = FakeEmbedder(name="mini")
    (query,) = fake.texts(["a dog"])
    paths = [folder / name for name in COLOURS]
    return sorted((float(row @ query) for row in fake.images(paths)), reverse=True)


def write_rule(path, kind="cosine", threshold=0.0, model_id="mini-1:32", **other):
    RelevanceRule(
        model_id=model_id, kind=kind, threshold=threshold, measured=MEASURED, **other
    ).write(path)
    return path


def test_only_what_reaches_the_models_own_threshold_is_shown(run, folder, scores):
    write_rule(folder.parent / "model" / RELEVANCE_NAME, threshold=(scores[0] + scores[1]) / 2)
    everything = run("search", "photos", "a dog").out.splitlines()
    result = run("search", "photos", "a dog", "--relevant")
    assert (result.code, result.err) == (0, "")
    assert len(everything) == 1 + 3
    assert result.out.splitlines() == everything[:2]


def test_top_still_limits_what_is_relevant(run, folder):
    rule = write_rule(folder.parent / "all.json", threshold=-1.0)
    command = ("search", "photos", "a dog", "--relevance", rule, "--json")
    assert len(json.loads(run(*command).out)["results"]) == 3
    assert len(json.loads(run(*command, "--top", "2").out)["results"]) == 2


def test_a_query_with_nothing_relevant_says_so_in_one_line(run, folder):
    write_rule(folder.parent / "model" / RELEVANCE_NAME, threshold=1.5)
    run("index", "photos")
    result = run("search", "photos", "a dog", "--relevant")
    assert (result.code, result.out) == (0, "")
    assert result.err == "none of the 3 photos is relevant to 'a dog'\n"
    found = json.loads(run("search", "photos", "a dog", "--relevant", "--json").out)
    assert found["results"] == []
    assert found["relevance"] == {"kind": "cosine", "threshold": 1.5}


def test_a_z_rule_looks_at_all_photos_of_the_folder(run, folder, scores):
    z = (np.array(scores) - np.mean(scores)) / np.std(scores)
    rule = write_rule(folder.parent / "z.json", kind="z", threshold=float(z[1] + z[2]) / 2)
    found = json.loads(run("search", "photos", "a dog", "--relevance", rule, "--json").out)
    assert [hit["score"] for hit in found["results"]] == pytest.approx(scores[:2], abs=1e-5)


def test_a_deleted_photo_is_neither_shown_nor_compared_with(folder, scores):
    rule = RelevanceRule(model_id="mini-1:32", kind="z", threshold=0.9, measured=MEASURED)
    with index(folder) as photos:
        best = photos.search("a dog", 1)[0].path
        best.unlink()
        photos.sync()
        # Of two photos one has z 1 and the other -1, whatever their scores.
        (only,) = photos.search("a dog", relevance=rule)
    assert only.path != best and only.score == pytest.approx(scores[1], abs=1e-5)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (["photos/red.png"], "relevant to a picture (photos/red.png): it is measured for words"),
        (["a dog", "+", "photos/red.png"], "relevant to a picture (photos/red.png)"),
        (["a dog", "-", "snow"], "relevant without something (snow)"),
    ],
)
def test_queries_that_no_rule_was_measured_for_are_refused(run, folder, query, message):
    write_rule(folder.parent / "model" / RELEVANCE_NAME)
    run("index", "photos")
    result = run("search", "photos", *query, "--relevant")
    assert (result.code, result.out) == (1, "")
    assert message in result.err and "Search without --relevant" in result.err


def test_a_model_without_a_rule_says_how_to_get_one(run, folder):
    result = run("search", "photos", "a dog", "--relevant")
    assert result.code == 1 and result.err.count("\n") == 1
    assert "mini-1:32 came without a relevance rule" in result.err
    assert "`twinlens evaluate cut-off`" in result.err and "`--relevance FILE`" in result.err


def test_another_models_rule_and_a_missing_file_are_refused(run, folder):
    other = write_rule(folder.parent / "other.json", model_id="other-1:32")
    assert "measured for other-1:32, but the photos are indexed with mini-1:32" in (
        run("search", "photos", "a dog", "--relevance", other).err
    )
    assert "there is no relevance rule gone.json" in (
        run("search", "photos", "a dog", "--relevance", "gone.json").err
    )
    rule = RelevanceRule(model_id="x", kind="cosine", threshold=0.0, measured=MEASURED)
    with index(folder) as photos:
        with pytest.raises(ConfigError, match="measured for x"):
            photos.search("a dog", relevance=rule)
        own = RelevanceRule(model_id="mini-1:32", kind="cosine", threshold=0.0, measured=MEASURED)
        with pytest.raises(QueryError, match="to a picture"):
            photos.search(folder / "red.png", relevance=own)
