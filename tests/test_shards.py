"""Shards give pictures with their words, in order, whatever else is in the tar."""

import io
import json
import tarfile

import pytest

from twinlens.data.shards import read_shards


def write_shard(path, members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize(("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz")])
def test_plain_and_gzipped_shards_read_alike(tmp_path, name, mode):
    members = []
    for key in ("000000", "000001"):
        members += [(f"{key}.jpg", key.encode()), (f"{key}.json", json.dumps({"k": key}).encode())]
    write_shard(tmp_path / name, members, mode)
    samples = list(read_shards([tmp_path / name]))
    assert [(s.key, s.image, s.info["k"]) for s in samples] == [
        ("000000", b"000000", "000000"),
        ("000001", b"000001", "000001"),
    ]


def test_a_key_without_a_picture_is_passed_over_and_lends_nothing_to_the_next(tmp_path):
    write_shard(
        tmp_path / "a.tar",
        [("1.json", b'{"n": 1}'), ("2.jpg", b"two"), ("2.txt", b"x"), ("2.json", b'{"n": 2}')],
    )
    (sample,) = read_shards([tmp_path / "a.tar"])
    assert (sample.key, sample.image, sample.info) == ("2", b"two", {"n": 2})


def test_a_shard_cut_short_is_an_error(tmp_path):
    write_shard(tmp_path / "a.tar", [("1.jpg", b"x" * 5000), ("1.json", b"{}")])
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:2000])
    with pytest.raises((tarfile.TarError, OSError)):
        list(read_shards([tmp_path / "a.tar"]))


def test_the_real_captions_come_five_to_a_photo(shared_folder):
    samples = read_shards([shared_folder / "data" / "flickr8k" / "val-0001.tar"])
    assert all(len(sample.info["captions"]) == 5 for sample in samples)
