"""Run with: pytest tests/test_sync.py"""

import dataclasses
import os

import numpy as np
import pytest

from twinlens.data.image import read_image
from twinlens.errors import IndexBusy, TwinlensError, UnreadableImage
from twinlens.search import sync
from twinlens.search.photos import PhotoIndex
from twinlens.search.store import Index, ModelRecord
from twinlens.testing import FakeEmbedder


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    (folder / "trip").mkdir(parents=True)
    for name in ("a.jpg", "b.PNG", "trip/c.jpeg"):
        (folder / name).write_bytes(name.encode())
    return folder


@pytest.fixture
def photos(folder):
    embedder = FakeEmbedder()
    model = ModelRecord(model_id=embedder.model_id, name="fake", dim=embedder.dim)
    with PhotoIndex(Index.create(folder, model), embedder, folder) as photos:
        yield photos


def update(photos, **options):
    """The report's counts that are not 0, and how many files were embedded."""
    before = photos.embedder.images_seen
    report = photos.sync(**options)
    names = ("added", "changed", "renamed", "removed", "unchanged", "skipped_before")
    counts = {name: getattr(report, name) for name in names if getattr(report, name)}
    return counts, photos.embedder.images_seen - before


def indexed(photos):
    """Path to whether its vector is that of its content, for every photo."""
    with photos.index.snapshot():
        vectors, live = photos.index.live_vectors()
        slots = np.flatnonzero(live)
        paths = [os.fsdecode(path) for path in photos.index.paths(slots)]
    expected = FakeEmbedder().images([photos.folder / path for path in paths])
    return {
        path: np.array_equal(vectors[slot], vector)
        for path, slot, vector in zip(paths, slots, expected, strict=True)
    }


def names(photos):
    now = indexed(photos)
    assert all(now.values())
    return sorted(now)


def test_pictures_in_all_folders_are_indexed_and_nothing_else(photos, folder):
    (folder / "notes.txt").write_text("no picture")
    (folder / "jpg").write_text("a name without a dot is no suffix")
    (folder / ".hidden.jpg").write_bytes(b"left by a Mac")
    (folder / ".git").mkdir()
    (folder / ".git" / "d.jpg").write_bytes(b"d")
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    assert update(photos) == ({"added": 3}, 3)
    assert names(photos) == ["a.jpg", "b.PNG", "trip/c.jpeg"]


def test_a_second_run_opens_no_file(photos, folder, monkeypatch):
    update(photos)
    monkeypatch.setattr(sync._Run, "_read", None)
    assert update(photos) == ({"unchanged": 3}, 0)


def test_only_new_files_are_embedded(photos, folder):
    update(photos)
    (folder / "d.jpg").write_bytes(b"d")
    assert update(photos) == ({"added": 1, "unchanged": 3}, 1)


def test_a_changed_file_is_embedded_again(photos, folder):
    update(photos)
    (folder / "a.jpg").write_bytes(b"other content")
    assert update(photos) == ({"changed": 1, "unchanged": 2}, 1)
    assert names(photos) == ["a.jpg", "b.PNG", "trip/c.jpeg"]


def test_a_change_that_keeps_the_size_is_noticed(photos, folder):
    update(photos)
    (folder / "a.jpg").write_bytes(b"A.jpg")
    os.utime(folder / "a.jpg", (1, 1))
    assert update(photos) == ({"changed": 1, "unchanged": 2}, 1)
    assert all(indexed(photos).values())


def test_a_touched_file_is_not_embedded_again(photos, folder):
    update(photos)
    os.utime(folder / "a.jpg", (1, 1))
    assert update(photos) == ({"unchanged": 3}, 0)


def test_renamed_files_and_folders_are_not_embedded_again(photos, folder):
    update(photos)
    (folder / "trip").rename(folder / "holiday")
    (folder / "a.jpg").rename(folder / "z.jpg")
    assert update(photos) == ({"renamed": 2, "unchanged": 1}, 0)
    assert names(photos) == ["b.PNG", "holiday/c.jpeg", "z.jpg"]


def test_a_file_renamed_over_another_takes_its_place(photos, folder):
    update(photos)
    (folder / "a.jpg").rename(folder / "b.PNG")
    counts, embedded = update(photos)
    assert (counts, embedded) == ({"renamed": 1, "unchanged": 1}, 0)
    assert names(photos) == ["b.PNG", "trip/c.jpeg"]


def test_two_files_that_swap_names_keep_the_right_vectors(photos, folder):
    update(photos)
    (folder / "a.jpg").rename(folder / "x")
    (folder / "b.PNG").rename(folder / "a.jpg")
    (folder / "x").rename(folder / "b.PNG")
    update(photos)
    assert names(photos) == ["a.jpg", "b.PNG", "trip/c.jpeg"]


def test_two_equal_files_renamed_at_once_are_both_recognised(photos, folder):
    (folder / "twin.jpg").write_bytes((folder / "a.jpg").read_bytes())
    update(photos)
    (folder / "a.jpg").rename(folder / "y.jpg")
    (folder / "twin.jpg").rename(folder / "z.jpg")
    assert update(photos) == ({"renamed": 2, "unchanged": 2}, 0)


def test_removed_files_are_never_found_again(photos, folder):
    update(photos)
    (folder / "a.jpg").unlink()
    assert update(photos) == ({"removed": 1, "unchanged": 2}, 0)
    assert names(photos) == ["b.PNG", "trip/c.jpeg"]
    assert [hit.path.name for hit in photos.search("anything", top=10)].count("a.jpg") == 0


def test_a_bad_file_is_named_with_its_reason_and_not_tried_again_until_it_changes(photos, folder):
    (folder / "bad.jpg").write_bytes(b"not a photo")
    told = []
    counts, _ = update(photos, on_skip=told.append)
    assert counts == {"added": 3}
    assert told == photos.report.skipped == [(folder / "bad.jpg", "not a picture")]
    assert update(photos) == ({"unchanged": 3, "skipped_before": 1}, 0)
    assert photos.report.skipped == []
    assert photos.skipped_files() == told
    (folder / "bad.jpg").write_bytes(b"good at last")
    assert update(photos) == ({"added": 1, "unchanged": 3}, 1)
    assert photos.skipped_files() == []


def test_a_photo_that_turns_bad_is_found_no_more(photos, folder):
    update(photos)
    (folder / "a.jpg").write_bytes(b"not a photo any more")
    update(photos)
    assert names(photos) == ["b.PNG", "trip/c.jpeg"]
    assert len(photos) == 2


def test_a_bad_file_is_tried_again_under_a_larger_limit_only(photos, folder):
    (folder / "bad.jpg").write_bytes(b"not a photo")
    update(photos)
    photos.max_megapixels = 100.0
    assert update(photos)[1] == 0
    photos.max_megapixels = 320.0
    assert update(photos)[1] == 1
    assert update(photos)[1] == 0


def test_a_photo_that_only_lacks_a_package_is_tried_every_time(photos, folder):
    stream_images = photos.embedder.stream_images

    def lacking(sources, *, batch_size=None):
        for batch in stream_images(sources, batch_size=batch_size):
            lasting = [dataclasses.replace(item, lasting=False) for item in batch.skipped]
            yield dataclasses.replace(batch, skipped=lasting)

    photos.embedder.stream_images = lacking
    (folder / "iphone.heic").write_bytes(b"not a photo that can be read yet")
    for _ in range(2):
        photos.sync()
        assert [skipped.path.name for skipped in photos.report.skipped] == ["iphone.heic"]
    (folder / "iphone.heic").write_bytes(b"readable")
    photos.sync()
    assert photos.report.skipped == [] and "iphone.heic" in names(photos)


def test_a_file_that_goes_away_before_it_is_read_is_skipped(photos, folder):
    def remove(done, total):
        (folder / "b.PNG").unlink(missing_ok=True)

    counts, _ = update(photos, progress=remove)
    assert counts == {"added": 2}
    assert photos.report.skipped == [(folder / "b.PNG", "gone before it was read")]
    assert photos.skipped_files() == []


def test_a_file_that_may_not_be_read_is_tried_every_time(photos, folder, monkeypatch):
    def refuse(path, mode):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(sync, "open", refuse, raising=False)
        assert update(photos) == ({}, 0)
        assert {reason for _, reason in photos.report.skipped} == {"permission denied"}
    assert update(photos) == ({"added": 3}, 3)


def test_photos_in_a_folder_that_cannot_be_read_stay_indexed(photos, folder, monkeypatch):
    update(photos)
    scandir = os.scandir

    def refuse(path):
        if os.fsencode(path).endswith(b"trip/"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        assert update(photos) == ({"unchanged": 2}, 0)
    assert photos.report.skipped == [(folder / "trip", "folder cannot be read: Permission denied")]
    assert len(photos) == 3


def test_links_are_followed_but_loops_end_and_nothing_is_listed_twice(photos, folder, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "o.jpg").write_bytes(b"o")
    (outside / "back").symlink_to(folder)
    (folder / "linked").symlink_to(outside)
    (folder / "trip" / "up").symlink_to(folder)
    (folder / "same").symlink_to(folder / "trip")
    (folder / "self").symlink_to("self")
    (folder / "nowhere.jpg").symlink_to("missing.jpg")
    assert update(photos)[0] == {"added": 4}
    assert names(photos) == ["a.jpg", "b.PNG", "linked/o.jpg", "trip/c.jpeg"]
    assert photos.report.skipped == [(folder / "nowhere.jpg", "no such file or directory")]


def test_names_that_are_no_text_survive(photos, folder):
    name = os.fsdecode(b"caf\xe9 \xff.jpg")
    (folder / name).write_bytes(b"odd")
    update(photos)
    assert name in names(photos)
    assert update(photos) == ({"unchanged": 4}, 0)


def test_a_time_beyond_sqlites_integers_does_no_harm(photos, folder):
    os.utime(folder / "a.jpg", ns=(2**63 + 10**9, 2**63 + 10**9))
    assert update(photos)[0] == {"added": 3}
    assert update(photos) == ({"unchanged": 3}, 0)


def test_an_interruption_keeps_what_was_embedded_and_the_rest_follows(photos, folder):
    for number in range(40):
        (folder / f"{number:02}.jpg").write_bytes(b"%d" % number)

    def interrupt(done, total):
        if done == 32:  # two batches of 16
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        photos.sync(progress=interrupt)
    assert len(photos) == 32
    assert update(photos) == ({"added": 11, "unchanged": 32}, 11)


def test_progress_counts_every_file_to_the_end(photos, folder):
    update(photos)
    (folder / "a.jpg").rename(folder / "z.jpg")
    (folder / "bad.jpg").write_bytes(b"not a photo")
    (folder / "new.jpg").write_bytes(b"new")
    told = []
    photos.sync(progress=lambda done, total: told.append((done, total)))
    assert (told[0], told[-1]) == ((0, 3), (3, 3))


def test_an_empty_folder_does_not_empty_its_index(photos, folder):
    update(photos)
    for path in folder.rglob("*.*"):
        if path.is_file() and ".twinlens" not in path.parts:
            path.unlink()
    with pytest.raises(TwinlensError, match="holds no pictures now, but 3 are indexed"):
        photos.sync()
    assert len(photos) == 3


def test_while_another_writes_only_a_folder_with_changes_is_refused(photos, folder):
    update(photos)
    with Index.open(folder).writing():
        assert update(photos) == ({"unchanged": 3}, 0)
        (folder / "d.jpg").write_bytes(b"d")
        with pytest.raises(IndexBusy):
            photos.sync()


def test_every_awkward_file_is_passed_and_each_bad_one_named_once(shared_folder, tmp_path):
    class DecodingEmbedder(FakeEmbedder):
        """Reads pictures as Embedder does, and then hashes them."""

        def stream_images(self, sources, *, batch_size=None):
            def decoded():
                for source in sources:
                    try:
                        yield read_image(source, target_size=32)
                    except UnreadableImage as error:
                        yield b"not a picture: " + str(error).encode()

            return super().stream_images(decoded(), batch_size=batch_size)

    folder = shared_folder / "data" / "photos" / "awkward"
    embedder = DecodingEmbedder()
    model = ModelRecord(model_id=embedder.model_id, name="fake", dim=embedder.dim)
    with Index.create(folder, model, tmp_path) as index:
        report = sync.sync_folder(index, embedder, folder)
    assert sorted(path.name for path, _ in report.skipped) == [
        "text.png",
        "truncated.jpg",
        "zero_bytes.jpg",
    ]
    assert (report.added, report.indexed) == (7, 7)
