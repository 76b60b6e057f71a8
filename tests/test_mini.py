"""The model that ships, as it ships: does it find the right photos?"""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

import twinlens
from twinlens.embed import Embedder

sys.path.insert(0, str(Path(__file__).parent.parent / "recipes"))

# Each sentence, typed as a user would, and the sample photos that a person would accept.
WANTED = {
    "a red sunset over the ocean": {"endless_sky_sea10"},
    "giraffes between trees": {"gcompris_giraffe"},
    "a brown horse": {"gcompris_horse"},
    "a butterfly on a flower": {"gcompris_butterfly"},
    "a crab": {"gcompris_crab"},
    "a hot air balloon": {"plasma_air_balloon"},
    "a dog": {"plasma_dog", "shared_dog3_01", "lomiri_friends"},
    "a cat": {"plasma_cat", "gcompris_kitten"},
    "a pair of jeans": {"shared_clothing_fe0ae2fe"},
    "a soccer ball on grass": {"plasma_soccer"},
    "a cup of coffee": {"skimage_coffee"},
    "a castle": {"gcompris_neuschwanstein_castle"},
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    with twinlens.index(twinlens.SAMPLES, index_dir=tmp_path_factory.mktemp("index")) as photos:
        yield photos


def test_every_sample_photo_is_credited_and_within_its_limits(photos):
    with (twinlens.SAMPLES / "ATTRIBUTION.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    files = {path.name: path for path in twinlens.SAMPLES.glob("*.jpg")}
    assert {row["file"] for row in rows} == files.keys()
    assert all(row["licence"] and row["source"] and row["author"] for row in rows)
    assert all(row["credit"] for row in rows if row["licence"].startswith("CC-BY"))
    assert sum(path.stat().st_size for path in files.values()) <= 6_000_000
    assert len(photos) == len(files)


def test_most_sentences_find_their_photo_among_the_first_three(photos):
    missed = {}
    for query, wanted in WANTED.items():
        found = [hit.path.stem for hit in photos.search(query, top=3)]
        if not wanted & set(found):
            missed[query] = found
    # Version 2 finds all; on another processor a near tie may fall the other way.
    assert len(missed) <= 1, missed


def test_a_photo_finds_itself_and_can_be_subtracted(photos):
    dog = twinlens.SAMPLES / "plasma_dog.jpg"
    first = photos.search(dog, top=1)[0]
    assert first.path == dog and first.score == pytest.approx(1.0, abs=1e-4)
    without = photos.search(["a dog", "-", str(dog)], top=len(photos))
    assert without[-1].path == dog


def test_one_photo_alone_and_in_a_batch_are_the_same_vector(photos):
    # A quantised tower must not let neighbours in a batch change a picture's vector.
    embedder = photos.embedder
    paths = sorted(twinlens.SAMPLES.glob("plasma_*.jpg"))[:5]
    alone = np.concatenate([embedder.images([path]) for path in paths])
    np.testing.assert_allclose(embedder.images(paths), alone, atol=1e-5)


def test_recall_on_flickr8k_test_is_above_the_floor_of_this_version(shared_folder):
    from mini_report import retrieval

    scores = retrieval(Embedder(), shared_folder, "test")
    # The card's figures less 2 points: rounding differs between processors.
    assert scores["text_to_image_recall@10"] >= 0.724
    assert scores["image_to_text_recall@10"] >= 0.782
