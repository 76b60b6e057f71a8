"""Folders, tables and shards give pairs; what is wrong with a sample is said, never raised."""

import csv
import json
import sys

import numpy as np
import pytest
from PIL import Image

from pair_data import members, number_of, picture, write_shards, write_tar
from twinlens.data.decode import read_pair
from twinlens.data.pairs import (
    BadSample,
    FolderSource,
    ShardSource,
    TableSource,
    source_from_text,
)
from twinlens.data.parts import expand_braces, shard_places
from twinlens.data.shards import index_shard
from twinlens.data.stream import PairStream
from twinlens.errors import ConfigError, MissingExtra


def pairs_of(source):
    stream = PairStream([source], shuffle_buffer=0)
    return [read_pair(reference, source) for reference in stream]


def words_of(source):
    return {pair.key: (pair.captions, pair.label) for pair in pairs_of(source)}


def save(path, number=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(number))


# Folders


def test_a_text_beside_a_picture_is_its_captions_one_a_line(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "trip" / "b.png", 2)
    (tmp_path / "a.txt").write_text("a red square\n\nsomething red\n")
    (tmp_path / "trip" / "b.txt").write_text("a trip")
    first, second = pairs_of(FolderSource(path=str(tmp_path)))
    assert (first.key, first.captions, first.label) == (
        "a.png",
        ("a red square", "something red"),
        None,
    )
    assert (second.key, second.captions) == ("trip/b.png", ("a trip",))
    assert (number_of(first.image), number_of(second.image)) == (1, 2)


def test_a_folder_for_each_class_gives_labels_and_captions_by_template(tmp_path):
    for name in ("hot_dog/1.png", "bicycle/2.png", "bicycle/deep/3.png", "loose.png"):
        save(tmp_path / name)
    found = words_of(FolderSource(path=str(tmp_path), templates=("a {}.", "one {}!")))
    assert found == {
        "bicycle/2.png": (("a bicycle.", "one bicycle!"), 0),
        "bicycle/deep/3.png": (("a bicycle.", "one bicycle!"), 0),
        "hot_dog/1.png": (("a hot dog.", "one hot dog!"), 1),
    }


def test_captions_csv_in_a_folder_is_preferred_to_its_folders(tmp_path):
    save(tmp_path / "cats" / "1.png")
    (tmp_path / "captions.csv").write_text("file,caption\ncats/1.png,a cat\n")
    assert words_of(FolderSource(path=str(tmp_path))) == {"cats/1.png": (("a cat",), None)}


def test_a_folder_without_captions_says_what_to_add(tmp_path):
    save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match=r"1 pictures but no captions: add captions.csv"):
        PairStream([FolderSource(path=str(tmp_path))])


def test_the_shared_photos_are_a_folder_of_labelled_pictures(shared_folder):
    found = pairs_of(source_from_text(str(shared_folder / "data" / "photos")))
    with (shared_folder / "data" / "photos" / "captions.csv").open() as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert {pair.key: pair.captions for pair in found} == {
        name: (row["label"],) for name, row in rows.items()
    }
    assert len({pair.label for pair in found}) == len({row["label"] for row in rows.values()})


# Tables


ROWS = [
    {"file": "a.png", "caption": "a red square"},
    {"file": "b.png", "caption": 'with "quotes", and a comma'},
    {"file": "a.png", "caption": "seen again"},
]


def write_table(folder, suffix):
    path = folder / f"table{suffix}"
    if suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(
                file, ["file", "caption"], delimiter="\t" if suffix == ".tsv" else ","
            )
            writer.writeheader()
            writer.writerows(ROWS)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_rows_of_one_picture_are_one_pair_in_every_kind_of_table(tmp_path, suffix):
    save(tmp_path / "a.png", 1)
    save(tmp_path / "b.png", 2)
    first, second = pairs_of(source_from_text(str(write_table(tmp_path, suffix))))
    assert (first.key, first.captions) == ("a.png", ("a red square", "seen again"))
    assert second.captions == ('with "quotes", and a comma',)
    assert (number_of(first.image), number_of(second.image)) == (1, 2)


def test_columns_and_the_pictures_folder_can_be_named(tmp_path):
    save(tmp_path / "photos" / "a.png")
    (tmp_path / "t.csv").write_text("photo,short,long,kind\na.png,red,a red square,3\n")
    source = TableSource(
        path=str(tmp_path / "t.csv"),
        images=str(tmp_path / "photos"),
        image_field="photo",
        caption_fields=("short", "long"),
        label_field="kind",
    )
    assert words_of(source) == {"a.png": (("red", "a red square"), 3)}


def test_a_table_without_a_picture_column_names_those_it_has(tmp_path):
    (tmp_path / "t.csv").write_text("foto,text\na.png,red\n")
    with pytest.raises(ConfigError, match="It has 'foto', 'text': name the right one"):
        PairStream([TableSource(path=str(tmp_path / "t.csv"))])


def test_parquet_may_hold_the_pictures_as_hugging_face_data_sets_do(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"image": {"bytes": picture(n), "path": None}, "text": f"number {n}"} for n in range(5)]
    rows[3]["image"]["bytes"] = None
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet", row_group_size=2)
    found = pairs_of(TableSource(path=str(tmp_path / "t.parquet")))
    assert found[3] == BadSample("no picture", "t/1/1")
    del found[3]
    assert [(number_of(p.image), p.captions) for p in found] == [
        (n, (f"number {n}",)) for n in (0, 1, 2, 4)
    ]


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(MissingExtra, match=r"pip install 'twinlens\[train\]'"):
        PairStream([TableSource(path=str(tmp_path / "t.parquet"))])


# Shards


def test_words_come_from_json_text_and_class_members(tmp_path):
    write_tar(
        tmp_path / "a.tar",
        [
            ("1.jpg", picture(1, suffix="JPEG")),
            ("1.json", b'{"captions": ["one", "uno"], "label": 4}'),
            ("2.webp", picture(2, suffix="WEBP")),
            ("2.txt", b"two\n"),
            ("3.png", picture(3)),
            ("3.cls", b"1"),
            ("4.png", picture(4)),
            ("4.json", b'{"label": "garbage truck"}'),
        ],
    )
    source = ShardSource(shards=(str(tmp_path / "a.tar"),), class_names=("cat", "dog"))
    found = words_of(source)
    assert found["a/1"] == (("one", "uno"), 4)
    assert found["a/2"] == (("two",), None)
    assert found["a/3"] == (("dog",), 1)
    assert found["a/4"][0] == ("garbage truck",)


def test_a_mask_beside_the_picture_is_not_the_picture(tmp_path):
    write_tar(
        tmp_path / "a.tar",
        [("x/1.png", picture(1)), ("x/1.seg.png", picture(9)), ("x/1.txt", b"one")],
    )
    (pair,) = pairs_of(ShardSource(shards=(str(tmp_path / "a.tar"),)))
    assert (pair.key, number_of(pair.image)) == ("a/x/1", 1)


def test_every_kind_of_bad_sample_is_named_with_its_reason(tmp_path):
    whole = picture(1, (64, 64), "JPEG")
    write_tar(
        tmp_path / "a.tar",
        [
            *(("cut.jpg", whole[: len(whole) // 2]), ("cut.txt", b"cut")),
            *(("mute.png", picture(2)), ("mute.json", b'{"width": 5}')),
            *(("broken.png", picture(3)), ("broken.json", b'{"caption": ')),
            *(("list.png", picture(3)), ("list.json", b"[1]")),
            ("blind.txt", b"no picture here"),
            *(("blank.png", picture(4)), ("blank.txt", b"  \n")),
            *(("good.png", picture(5)), ("good.txt", b"good")),
        ],
    )
    *bad, good = pairs_of(ShardSource(shards=(str(tmp_path / "a.tar"),)))
    assert [(b.kind, b.name) for b in bad] == [
        ("unreadable picture", "a/cut"),
        ("no caption", "a/mute"),
        ("broken JSON", "a/broken"),
        ("broken JSON", "a/list"),
        ("no picture", "a/blind"),
        ("no caption", "a/blank"),
    ]
    assert good.captions == ("good",)
    assert "cut short" in str(bad[0])


@pytest.mark.parametrize("where", ["in a picture", "between members", "in a header", "garbage"])
def test_a_truncated_shard_keeps_what_stands_before_the_damage(tmp_path, where):
    (path,) = write_shards(tmp_path, [3])
    whole = path.read_bytes()
    third = whole.index(b"000002.png")
    end = {"in a picture": third + 530, "between members": third, "in a header": third + 100}
    path.write_bytes(whole[: end[where]] if where in end else whole[:third] + b"\xff" * 2048)
    index = index_shard(path)
    assert index.keys[:2] == ["000000", "000001"]
    assert index.damage.startswith(("cut short", "damaged"))
    stream = PairStream([ShardSource(shards=(str(path),))], shuffle_buffer=0)
    assert len(list(stream)) == len(index.keys)
    assert stream.bad.counts == {"damaged shard": 1}
    assert str(path) in stream.bad.first["damaged shard"]


@pytest.mark.parametrize("seed", range(30))
def test_a_shard_with_random_damage_ends_neither_in_an_error_nor_never(tmp_path, seed):
    (path,) = write_shards(tmp_path, [4])
    random = np.random.default_rng(seed)
    data = np.frombuffer(path.read_bytes(), dtype=np.uint8).copy()
    headers = 512 * random.integers(0, len(data) // 512, 6)
    data[headers + random.integers(0, 512, 6)] = random.integers(0, 256, 6)
    path.write_bytes(data.tobytes())
    index = index_shard(path)
    assert len(index.keys) <= 8 and (index.offsets + index.sizes).max(initial=0) <= len(data)


def test_a_negative_size_in_a_header_is_damage(tmp_path):
    """CVE-2025-8194: tarfile itself would go back and forth for ever."""
    (path,) = write_shards(tmp_path, [2])
    data = bytearray(path.read_bytes())
    at = data.index(b"000001.png")
    data[at + 124 : at + 136] = (-1024).to_bytes(12, "big", signed=True)
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    path.write_bytes(data)
    index = index_shard(path)
    assert index.keys == ["000000"] and index.damage.startswith("damaged")


def test_long_names_and_pax_headers_are_read_as_tarfile_reads_them(tmp_path):
    name = "folder/" + "ü" * 120
    write_tar(tmp_path / "a.tar", [(f"{name}.png", picture(1)), (f"{name}.txt", b"long")])
    (pair,) = pairs_of(ShardSource(shards=(str(tmp_path / "a.tar"),)))
    assert (pair.key, pair.captions) == (f"a/{name}", ("long",))


# Names


def test_braces_expand_as_in_a_shell():
    assert expand_braces("a{08..11}.tar") == ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]
    assert expand_braces("{a,b}{1..2}") == ["a1", "a2", "b1", "b2"]
    assert expand_braces("s{0..6..3}") == ["s0", "s3", "s6"]
    with pytest.raises(ConfigError, match="neither a range"):
        expand_braces("a{b}.tar")


def test_patterns_match_sorted_and_a_missing_one_of_a_range_stays(tmp_path):
    write_shards(tmp_path, [1, 1])
    assert shard_places([f"{tmp_path}/*.tar"]) == [f"{tmp_path}/0000.tar", f"{tmp_path}/0001.tar"]
    assert len(shard_places([f"{tmp_path}/{{0000..0003}}.tar"])) == 4
    with pytest.raises(ConfigError, match="No shard matches"):
        shard_places([f"{tmp_path}/*.tgz"])


def test_a_command_line_argument_is_understood_by_what_is_there(tmp_path):
    write_shards(tmp_path / "shards", [1])
    assert source_from_text(str(tmp_path / "shards")).kind == "shards"
    assert source_from_text(str(tmp_path)).kind == "folder"
    assert source_from_text("pairs.csv").kind == "table"
    assert source_from_text("https://example.com/{0..9}.tar").kind == "shards"
    with pytest.raises(ConfigError, match="is not there, or is no data that can be read"):
        source_from_text(str(tmp_path / "nothing"))


def test_sources_survive_json_and_check_themselves():
    source = ShardSource(shards=("a.tar",), weight=2.0, templates=("a {}",))
    assert ShardSource.from_dict(json.loads(json.dumps(source.to_dict()))) == source
    with pytest.raises(ConfigError, match=r"would run a command.*allow_pipe"):
        ShardSource(shards=("pipe:cat a.tar",))
    with pytest.raises(ConfigError, match="weight must be above zero, not 0"):
        ShardSource(shards=("a.tar",), weight=0.0)
    with pytest.raises(ConfigError, match=r"no \{\} for the caption"):
        FolderSource(path=".", templates=("a photo",))


def test_photos_larger_than_the_limit_are_bad_samples(tmp_path):
    Image.new("RGB", (2000, 1000)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("large")
    source = FolderSource(path=str(tmp_path))
    (reference,) = PairStream([source])
    bad = read_pair(reference, source, max_megapixels=1.0)
    assert bad.kind == "unreadable picture" and "megapixels" in bad.detail


def test_numbers_in_members_are_the_numbers_in_pictures(tmp_path):
    """The helper that the other tests rest on."""
    assert [name for name, _ in members([3])] == ["000003.png", "000003.json"]
    (path,) = write_shards(tmp_path, [300])
    found = pairs_of(ShardSource(shards=(str(path),)))
    assert [number_of(pair.image) for pair in found] == list(range(300))
