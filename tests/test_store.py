"""Run with: pytest tests/test_store.py"""

import errno
import os
import sqlite3

import numpy as np
import pytest

from twinlens.errors import IndexBusy, IndexCorrupt, IndexModelMismatch, TwinlensError
from twinlens.search.store import Changes, FileVersion, Index, ModelRecord

MODEL = ModelRecord(model_id="tiny-1:abc", name="tiny", dim=2)


def version(name, digest=b"d"):
    return FileVersion(name.encode(), 10, 1000, digest)


def add(index, *names, value=1.0):
    vectors = [np.array([value, number], dtype=np.float32) for number, _ in enumerate(names)]
    with index.writing():
        index.commit(Changes(embedded=list(zip(map(version, names), vectors, strict=True))))


def contents(index):
    """Path: vector, of all photos that can be found."""
    with index.snapshot():
        vectors, live = index.live_vectors()
        slots = np.flatnonzero(live)
        paths = index.paths(slots)
    return {path.decode(): vectors[slot].tolist() for path, slot in zip(paths, slots, strict=True)}


@pytest.fixture
def index(tmp_path):
    with Index.create(tmp_path, MODEL) as index:
        yield index


def test_what_was_committed_is_there_for_the_next_process(tmp_path, index):
    add(index, "a.jpg", "b.jpg")
    index.close()
    again = Index.open(tmp_path)
    assert contents(again) == {"a.jpg": [1.0, 0.0], "b.jpg": [1.0, 1.0]}
    assert (again.model, len(again)) == (MODEL, 2)
    assert (tmp_path / ".twinlens" / "vectors.f32").stat().st_size == 2 * 2 * 4


def test_a_folder_without_an_index_has_none(tmp_path):
    assert Index.open(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_an_index_killed_before_its_first_transaction_counts_as_none(tmp_path):
    (tmp_path / ".twinlens").mkdir()
    (tmp_path / ".twinlens" / "index.sqlite").touch()
    assert Index.open(tmp_path) is None


def test_a_removed_photo_is_never_found_and_its_slot_is_used_by_the_next_writer(tmp_path, index):
    add(index, "a.jpg", "b.jpg")
    with index.writing():
        index.commit(Changes(removed=[b"a.jpg"]))
        assert list(contents(index)) == ["b.jpg"]
        index.commit(Changes(embedded=[(version("c.jpg"), np.zeros(2, np.float32))]))
    assert index.live_vectors()[1].tolist() == [False, True, True]  # not while that writer ran
    add(index, "d.jpg", value=7.0)
    assert index.live_vectors()[1].tolist() == [True, True, True]
    assert contents(index)["d.jpg"] == [7.0, 0.0]


def test_a_changed_photo_gets_a_new_slot_so_that_a_kill_leaves_the_old_pair(index):
    add(index, "a.jpg")
    add(index, "a.jpg", value=5.0)
    assert contents(index) == {"a.jpg": [5.0, 0.0]}
    assert index.live_vectors()[1].tolist() == [False, True]


def test_vectors_that_no_row_names_are_overwritten(index):
    """What a kill leaves between writing vectors and naming them, with a torn row at the end."""
    add(index, "a.jpg")
    with open(index.place.vectors, "ab") as file:
        file.write(b"\xff" * (2 * 4 + 3))
    assert list(contents(index)) == ["a.jpg"]
    add(index, "b.jpg", "c.jpg", value=3.0)
    assert contents(index) == {"a.jpg": [1.0, 0.0], "b.jpg": [3.0, 0.0], "c.jpg": [3.0, 1.0]}
    assert index.place.vectors.stat().st_size == 3 * 2 * 4


def test_a_commit_that_fails_changes_nothing(index):
    add(index, "a.jpg")
    bad = Changes(
        removed=[b"a.jpg"],
        embedded=[(version("b.jpg")._replace(size_bytes=None), np.zeros(2, np.float32))],
    )
    with index.writing(), pytest.raises(TwinlensError, match="NOT NULL"):
        index.commit(bad)
    assert list(contents(index)) == ["a.jpg"]


def test_a_renamed_photo_keeps_its_vector_and_replaces_what_had_the_name(index):
    add(index, "a.jpg", "b.jpg")
    with index.writing():
        index.commit(Changes(moved=[(b"a.jpg", version("b.jpg"))]))
    assert contents(index) == {"b.jpg": [1.0, 0.0]}


def test_names_need_not_be_text(index):
    name = b"caf\xe9 \xff.jpg"
    with index.writing():
        index.commit(Changes(embedded=[(FileVersion(name, 1, 1, b""), np.ones(2, np.float32))]))
        index.commit(Changes(skipped=[(FileVersion(b"\xfe.jpg", 1, 1, b""), "torn", 180.0)]))
    assert index.paths([0]) == [name]
    assert index.skipped_files() == [(b"\xfe.jpg", "torn")]


def test_another_model_is_refused_with_both_ways_out(tmp_path, index):
    other = ModelRecord(model_id="big-1:def", name="big", dim=4)
    with pytest.raises(IndexModelMismatch) as caught:
        index.check_model(other)
    assert str(caught.value) == (
        f"{tmp_path}/.twinlens was built with tiny (2 numbers per image), but this model is "
        f"big (4). Search with `--model tiny`, or rebuild: "
        f"`twinlens index {tmp_path} --model big --rebuild`."
    )


def test_other_weights_under_the_same_name_are_refused(tmp_path, index):
    with pytest.raises(IndexModelMismatch) as caught:
        index.check_model(ModelRecord(model_id="tiny-1:xyz", name="tiny", dim=2))
    assert "another version of the model tiny (tiny-1:abc; this is tiny-1:xyz)" in str(caught.value)
    assert f"`twinlens index {tmp_path} --rebuild`" in str(caught.value)


def test_missing_vectors_are_noticed_and_the_repair_named(tmp_path, index):
    add(index, "a.jpg", "b.jpg")
    index.close()
    os.truncate(index.place.vectors, 8)
    with pytest.raises(IndexCorrupt) as caught:
        Index.open(tmp_path)
    assert "holds 1 vectors, but 2 are in use" in str(caught.value)
    assert f"`twinlens index {tmp_path} --rebuild`" in str(caught.value)
    index.place.vectors.unlink()
    with pytest.raises(IndexCorrupt, match="is missing"):
        Index.open(tmp_path)


def test_a_file_that_is_no_database_is_called_damaged(tmp_path, index):
    index.close()
    index.place.database.write_bytes(b"this is not a database at all" * 100)
    with pytest.raises(IndexCorrupt, match="start it over"):
        Index.open(tmp_path)


def test_an_index_of_a_later_format_is_left_alone(tmp_path, index):
    index.close()
    with sqlite3.connect(index.place.database) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(IndexCorrupt, match="has format 99, and this twinlens reads 1"):
        Index.open(tmp_path)


def test_only_one_may_write_but_others_may_read_meanwhile(tmp_path, index):
    add(index, "a.jpg")
    second = Index.open(tmp_path)
    with index.writing():
        with pytest.raises(IndexBusy, match="another twinlens is indexing"), second.writing():
            pass
        assert list(contents(second)) == ["a.jpg"]
    with second.writing():
        second.commit(Changes(removed=[b"a.jpg"]))
    assert contents(index) == {}


def test_a_rebuild_by_another_process_leaves_readers_the_old_index_and_stops_writers(
    tmp_path, index
):
    add(index, "a.jpg")
    with Index.create(tmp_path, MODEL) as rebuilt:
        add(rebuilt, "z.jpg", value=9.0)
    assert contents(index) == {"a.jpg": [1.0, 0.0]}
    with pytest.raises(IndexBusy, match="rebuilt the index"), index.writing():
        pass
    assert contents(Index.open(tmp_path)) == {"z.jpg": [9.0, 0.0]}


def test_a_reader_whose_writer_added_vectors_sees_only_committed_ones(tmp_path, index):
    add(index, "a.jpg")
    reader = Index.open(tmp_path)
    assert list(contents(reader)) == ["a.jpg"]
    with open(index.place.vectors, "ab") as file:
        file.write(b"\0" * 8)
    assert list(contents(reader)) == ["a.jpg"]
    add(index, "b.jpg")
    assert sorted(contents(reader)) == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "is full. What was indexed stays so"),
        (OSError(errno.EROFS, "Read-only file system"), "cannot be written to"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
    ],
)
def test_what_the_disk_refuses_is_said_in_a_sentence_and_loses_nothing(
    index, monkeypatch, error, message
):
    add(index, "a.jpg")

    def refuse(descriptor):
        raise error

    with monkeypatch.context() as patch, index.writing():
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(TwinlensError, match=message):
            index.commit(Changes(embedded=[(version("b.jpg"), np.ones(2, np.float32))]))
    assert list(contents(index)) == ["a.jpg"]
    add(index, "b.jpg")
    assert sorted(contents(index)) == ["a.jpg", "b.jpg"]


def test_the_index_of_a_folder_that_cannot_be_written_to_is_in_the_users_cache(
    tmp_path, monkeypatch
):
    photos = tmp_path / "photos"
    photos.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with Index.create(photos, MODEL) as index:
        add(index, "a.jpg")
    assert index.place.index_dir.parent == tmp_path / "cache" / "twinlens"
    assert list(photos.iterdir()) == []
    assert len(Index.open(photos)) == 1


def test_the_index_of_another_folder_is_refused_unless_that_folder_has_moved(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    Index.create(tmp_path / "one", MODEL, tmp_path / "index").close()
    with pytest.raises(TwinlensError, match=r"is the index of \S+one\. Give \S+two an --index-dir"):
        Index.open(tmp_path / "two", tmp_path / "index")
    (tmp_path / "one").rmdir()
    assert Index.open(tmp_path / "two", tmp_path / "index") is not None


def test_an_index_moves_along_with_its_folder(tmp_path):
    (tmp_path / "one").mkdir()
    Index.create(tmp_path / "one", MODEL).close()
    (tmp_path / "one").rename(tmp_path / "two")
    (tmp_path / "one").mkdir()
    assert Index.open(tmp_path / "two") is not None


def test_a_given_index_folder_is_used(tmp_path):
    with Index.create(tmp_path, MODEL, tmp_path / "elsewhere") as index:
        add(index, "a.jpg")
    assert (tmp_path / "elsewhere" / "index.sqlite").exists()
    assert Index.open(tmp_path) is None
    assert len(Index.open(tmp_path, tmp_path / "elsewhere")) == 1
