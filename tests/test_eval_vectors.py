"""Vectors that are kept by content and model.

PYTHONPATH=src python -m pytest tests/test_eval_vectors.py
"""

import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twinlens.errors import ConfigError
from twinlens.evaluate.sets import CaptionedSet, LabelledSet
from twinlens.evaluate.usable import with_vectors
from twinlens.evaluate.vectors import (
    VectorCache,
    VectorCacheWarning,
    cached_images,
    cached_texts,
    content_key,
)
from twinlens.testing import FakeEmbedder


@pytest.fixture
def cache(tmp_path: Path) -> VectorCache:
    return VectorCache(tmp_path / "vectors")


def test_a_second_run_embeds_nothing_and_gives_the_same(cache: VectorCache) -> None:
    embedder = FakeEmbedder()
    images = [b"one", b"two", b"three"]
    first, _ = cached_images(embedder, images, cache=cache)
    assert embedder.images_seen == 3
    second, skipped = cached_images(embedder, images, cache=VectorCache(cache.folder))
    assert embedder.images_seen == 3 and skipped == []
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, FakeEmbedder().images(images))


def test_content_counts_not_the_name(cache: VectorCache, tmp_path: Path) -> None:
    embedder = FakeEmbedder()
    path = tmp_path / "a.jpg"
    path.write_bytes(b"one")
    cached_images(embedder, [path], cache=cache)
    (tmp_path / "moved.jpg").write_bytes(b"one")
    cached_images(embedder, [tmp_path / "moved.jpg", b"one"], cache=cache)
    assert embedder.images_seen == 1
    path.write_bytes(b"changed")
    changed, _ = cached_images(embedder, [path], cache=cache)
    np.testing.assert_array_equal(changed, embedder.images([b"changed"]))


def test_models_do_not_share_vectors(cache: VectorCache) -> None:
    for embedder in (FakeEmbedder(name="a"), FakeEmbedder(name="b", dim=8)):
        cached_images(embedder, [b"one"], cache=cache)
        assert embedder.images_seen == 1
    assert len(list(cache.folder.glob("*.sqlite"))) == 2


def test_pixels_are_told_apart_by_shape_and_turn() -> None:
    grey = np.zeros((2, 8), dtype=np.uint8)
    assert content_key(grey) != content_key(grey.reshape(4, 4))
    upright, turned = Image.new("RGB", (2, 8)), Image.new("RGB", (2, 8))
    turned.getexif()[0x0112] = 6
    assert content_key(upright) != content_key(turned)
    assert content_key(upright) != content_key(Image.new("RGB", (8, 2)))


def test_a_broken_picture_is_left_out_and_named(cache: VectorCache, tmp_path: Path) -> None:
    images = [b"one", b"not a photo", tmp_path / "missing.jpg", b"two"]
    embedder = FakeEmbedder()
    for _ in range(2):  # what was skipped must not come out of the cache as a vector
        vectors, skipped = cached_images(embedder, images, cache=cache)
        np.testing.assert_array_equal(vectors, FakeEmbedder().images([b"one", b"two"]))
        assert [(item.position, item.reason) for item in skipped] == [
            (1, "not a picture"),
            (2, "no such file or directory"),
        ]


def test_a_picture_that_occurs_twice_is_embedded_once(cache: VectorCache) -> None:
    embedder = FakeEmbedder()
    images = [b"one", b"not a photo", b"one", b"not a photo"]
    vectors, skipped = cached_images(embedder, images, cache=cache)
    assert embedder.images_seen == 2
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert [item.position for item in skipped] == [1, 3]


def test_without_a_cache_nothing_is_kept() -> None:
    embedder = FakeEmbedder()
    for _ in range(2):
        vectors, _ = cached_images(embedder, [b"one", b"one"])
    assert embedder.images_seen == 4 and vectors.shape == (2, 32)


def test_progress_counts_known_pictures_as_done(cache: VectorCache) -> None:
    seen: list[tuple[int, int]] = []
    cached_images(FakeEmbedder(), [b"one"], cache=cache)
    cached_images(
        FakeEmbedder(),
        [b"one", b"two", b"three"],
        cache=cache,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 3), (3, 3)]


def test_what_was_embedded_before_an_interruption_is_kept(cache: VectorCache) -> None:
    class Interrupted(FakeEmbedder):
        def stream_images(self, sources, *, batch_size=None):  # type: ignore[no-untyped-def]
            for number, batch in enumerate(super().stream_images(sources, batch_size=batch_size)):
                if number == 2:
                    raise KeyboardInterrupt
                yield batch

    images = [f"picture {number}".encode() for number in range(10)]
    with pytest.raises(KeyboardInterrupt):
        cached_images(Interrupted(batch_size=3), images, cache=cache)
    embedder = FakeEmbedder(batch_size=3)
    cached_images(embedder, images, cache=cache)
    assert embedder.images_seen == 4  # two batches of three were done


def test_texts_are_kept_and_apart_from_pictures(cache: VectorCache) -> None:
    class Counting(FakeEmbedder):
        def __init__(self) -> None:
            super().__init__()
            self.asked: list[str] = []

        def texts(self, texts, *, long="truncate"):  # type: ignore[no-untyped-def]
            self.asked += texts
            return super().texts(texts, long=long)

    embedder = Counting()
    cached_images(embedder, [b"dog"], cache=cache)
    expected = FakeEmbedder().texts(["dog", "cat", "dog"])
    np.testing.assert_array_equal(
        cached_texts(embedder, ["dog", "cat", "dog"], cache=cache), expected
    )
    assert embedder.asked == ["dog", "cat"]
    np.testing.assert_array_equal(cached_texts(embedder, ["cat"], cache=cache), expected[1:2])
    assert embedder.asked == ["dog", "cat"]
    assert cached_texts(embedder, [], cache=cache).shape == (0, 32)


def test_a_file_that_is_no_database_is_made_anew_with_one_note(cache: VectorCache) -> None:
    embedder = FakeEmbedder()
    cached_images(embedder, [b"one"], cache=cache)
    cache.file(embedder.model_id).write_bytes(b"this is no database" * 100)
    with pytest.warns(VectorCacheWarning, match="was damaged") as warned:
        vectors, _ = cached_images(embedder, [b"one", b"two"], cache=VectorCache(cache.folder))
    assert len(warned) == 1
    np.testing.assert_array_equal(vectors, FakeEmbedder().images([b"one", b"two"]))
    cached_images(embedder, [b"one", b"two"], cache=VectorCache(cache.folder))
    assert embedder.images_seen == 3  # one, then both again, then none


def test_a_changed_row_is_computed_again_with_one_note(cache: VectorCache) -> None:
    embedder = FakeEmbedder()
    images = [b"one", b"two"]
    expected, _ = cached_images(embedder, images, cache=cache)
    with sqlite3.connect(cache.file(embedder.model_id)) as database:
        database.execute("UPDATE vectors SET vector = zeroblob(128)")  # 32 numbers of 4 bytes
    database.close()
    with pytest.warns(VectorCacheWarning, match="damaged rows") as warned:
        vectors, _ = cached_images(embedder, images, cache=VectorCache(cache.folder))
    assert len(warned) == 1
    np.testing.assert_array_equal(vectors, expected)
    cached_images(embedder, images, cache=VectorCache(cache.folder))  # a warning would fail


def test_a_folder_that_cannot_be_used_costs_a_note_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(VectorCacheWarning, match="not kept this time") as warned:
        vectors, _ = cached_images(
            FakeEmbedder(), [b"one"], cache=VectorCache(tmp_path / "file" / "vectors")
        )
    assert len(warned) == 1 and vectors.shape == (1, 32)


def test_two_processes_may_write_at_once(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import sys
        import numpy as np
        from twinlens.evaluate.vectors import VectorCache
        cache = VectorCache(sys.argv[1])
        for number in range(40):
            keys = [f"{sys.argv[2]}-{number}-{row}".encode() for row in range(20)]
            cache.write("model", keys, np.full((20, 4), number, dtype=np.float32))
        """
    )
    command = [sys.executable, "-W", "error", "-c", program, str(tmp_path)]
    started = [subprocess.Popen([*command, name]) for name in ("a", "b")]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    keys = [f"{n}-{number}-{row}".encode() for n in "ab" for number in (0, 39) for row in (0, 19)]
    found = VectorCache(tmp_path).read("model", 4, keys)
    assert [found[key][0] for key in keys] == [0, 0, 39, 39] * 2


def test_the_default_folder_is_in_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWINLENS_CACHE", str(tmp_path))
    assert VectorCache().folder == tmp_path / "vectors"


def test_a_set_comes_back_without_its_broken_pictures() -> None:
    data = LabelledSet(
        name="d",
        images=[b"one", b"not a photo", b"two"],
        labels=np.array([0, 1, 1]),
        class_names=(("cat",), ("dog",)),
        ids=("a", "b", "c"),
        groups={"place": ("in", "in", "out")},
    )
    rest, vectors = with_vectors(FakeEmbedder(), data)
    np.testing.assert_array_equal(vectors, FakeEmbedder().images([b"one", b"two"]))
    assert (rest.ids, rest.labels.tolist()) == (("a", "c"), [0, 1])
    assert rest.groups == {"place": ("in", "out")}
    assert rest.skipped == (("b", "not a picture"),)
    assert rest.describe()["skipped"] == [["b", "not a picture"]]


def test_a_set_without_one_good_picture_is_one_sentence() -> None:
    data = CaptionedSet("d", [b"not a", b"not a b"], ("x", "y"), ("1",), np.array([0]))
    with pytest.raises(
        ConfigError, match=r"None of the 2 pictures of d can be read\. The first: x"
    ):
        with_vectors(FakeEmbedder(), data)
