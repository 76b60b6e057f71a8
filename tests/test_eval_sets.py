"""Data sets of every layout that `open_set` takes, tiny and made on disk.

PYTHONPATH=src python -m pytest tests/test_eval_sets.py
"""

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twinlens.errors import ConfigError, TwinlensError
from twinlens.evaluate.open_set import open_captioned, open_labelled, open_set
from twinlens.evaluate.pictures import Picked
from twinlens.evaluate.sets import CaptionedSet, LabelledSet

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")


def picture(shade: int = 0) -> bytes:
    """A 4x4 PNG of one grey."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, shade, shade)).save(file, "PNG")
    return file.getvalue()


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def write_tar(path: Path, members: dict[str, bytes | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """A folder per class: two cats, one dog."""
    for number, name in enumerate(("cat/a.png", "cat/b.png", "big_dog/c.png")):
        write(tmp_path / "pets" / name, picture(number))
    return tmp_path / "pets"


def labels_of(data: LabelledSet) -> dict[str, str]:
    """Each picture's main class name."""
    return {i: data.main_names[row] for i, row in zip(data.ids, data.labels, strict=True)}


# A folder per class


def test_folders_are_classes_and_underscores_are_spaces(pets: Path) -> None:
    data = open_labelled(pets)
    assert data.main_names == ("big dog", "cat")
    assert labels_of(data) == {"big_dog/c.png": "big dog", "cat/a.png": "cat", "cat/b.png": "cat"}
    assert data.name == "pets" and len(data) == 3 and data.skipped == ()


def test_a_class_file_of_tabs_gives_folders_synonyms_and_the_order(
    pets: Path, tmp_path: Path
) -> None:
    file = write(tmp_path / "names.tsv", "cat\tcat, house cat\nbig_dog\tdog\n")
    data = open_labelled(pets, classes=file)
    assert data.class_names == (("cat", "house cat"), ("dog",))
    assert labels_of(data)["big_dog/c.png"] == "dog"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.txt", "mastiff\ntabby\n"),
        ("names.json", '["mastiff", ["tabby", "cat of stripes"]]'),
        ("names.json", '[{"label": 1, "names": ["tabby"]}, {"label": 0, "name": "mastiff"}]'),
        ("names.json", '{"cat": "tabby", "big_dog": ["mastiff"]}'),
    ],
)
def test_new_names_for_folders_in_their_order_or_by_their_keys(
    pets: Path, tmp_path: Path, name: str, text: str
) -> None:
    data = open_labelled(pets, classes=write(tmp_path / name, text))
    assert labels_of(data)["big_dog/c.png"] == "mastiff"
    assert labels_of(data)["cat/a.png"] == "tabby"


def test_folders_called_by_numbers_keep_their_own_names(tmp_path: Path) -> None:
    for year in ("1999", "2005", "7"):
        write(tmp_path / "wine" / year / "a.png", picture())
    data = open_labelled(tmp_path / "wine")
    assert data.main_names == ("1999", "2005", "7")
    assert data.labels.tolist() == [0, 1, 2]


def test_folders_of_wnids_get_imagenets_names(tmp_path: Path) -> None:
    write(tmp_path / "few" / "n01440764" / "a.png", picture())
    write(tmp_path / "few" / "n02012849" / "b.png", picture())
    # n01440764 is ImageNet's class 0, n02012849 its class 134; OpenAI calls them so.
    assert open_labelled(tmp_path / "few").main_names == ("tench", "crane bird")


def test_an_empty_class_stays_an_answer_and_is_noted(pets: Path) -> None:
    (pets / "parrot").mkdir()
    data = open_labelled(pets)
    assert data.main_names == ("big dog", "cat", "parrot")
    assert data.empty_classes == ("parrot",)
    assert data.notes == (
        "pets: 'parrot' of 3 classes has no picture; a possible answer all the same.",
    )


def test_two_classes_of_one_name_are_noted(pets: Path, tmp_path: Path) -> None:
    data = open_labelled(pets, classes=write(tmp_path / "n.txt", "pet\npet\n"))
    assert "more than one class is called 'pet'" in data.notes[0]


def test_a_picture_outside_the_class_folders_is_skipped_and_named(pets: Path) -> None:
    write(pets / "stray.png", picture())
    assert open_labelled(pets).skipped == (("stray.png", "lies in no class folder"),)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "is not there. Correct --classes"),
        ("", "is empty: write one class name a line"),
        ("a\nb\nc\n", "has 3 names, but there are 2 class folders"),
        ("cat\tcat\n", "The folder 'big_dog' is not in the class file"),
        ("cat\ncow\n", "The folder 'big_dog' is not in the class file"),
        ("cat\tcat\ncat\tdog\n", "names the class 'cat' twice"),
        ("cat\t\nbig_dog\tdog\n", "Class 1 of"),
    ],
)
def test_a_class_file_that_does_not_fit_is_one_sentence(
    pets: Path, tmp_path: Path, text: str | None, sentence: str
) -> None:
    file = tmp_path / "classes.txt"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=sentence) as caught:
        open_labelled(pets, classes=file)
    assert "\n" not in str(caught.value)


def test_test_is_taken_before_train_and_said_so(tmp_path: Path) -> None:
    write(tmp_path / "d" / "train" / "cat" / "a.png", picture())
    write(tmp_path / "d" / "test" / "cat" / "b.png", picture())
    data = open_labelled(tmp_path / "d")
    assert (data.ids, data.name) == (("cat/b.png",), "d/test")
    assert data.notes == ("d has test, train: test was taken (choose with --split).",)
    assert open_labelled(tmp_path / "d", split="train").ids == ("cat/a.png",)


def test_a_limit_is_spread_over_the_classes(tmp_path: Path) -> None:
    for number in range(10):
        write(tmp_path / "d" / ("a" if number < 5 else "b") / f"{number}.png", picture())
    data = open_labelled(tmp_path / "d", limit=4)
    # rows 0 * 10 // 4, 1 * 10 // 4, 2 * 10 // 4, 3 * 10 // 4 = 0, 2, 5, 7
    assert data.ids == ("a/0.png", "a/2.png", "b/5.png", "b/7.png")
    assert data.notes == ("4 of 10 pictures were taken, at even distances.",)
    with pytest.raises(ConfigError, match="limit 0: must be at least 1"):
        open_labelled(tmp_path / "d", limit=0)


def test_an_empty_folder_and_a_missing_path_are_one_sentence_each(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing says what its pictures show"):
        open_set(tmp_path)
    with pytest.raises(ConfigError, match="is not there, and is no built-in name either"):
        open_set(tmp_path / "nothing")
    (tmp_path / "cat").mkdir()
    with pytest.raises(ConfigError, match="has no pictures that can be used"):
        open_set(tmp_path)


# Tables


def test_a_csv_of_labels_has_groups_and_pictures_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "labels.csv", "file,label,place\na.png,cat,in\nb.png,dog,out\nc.png,,in\n")
    write(tmp_path / "a.png", picture(7))
    data = open_labelled(tmp_path)
    assert labels_of(data) == {"a.png": "cat", "b.png": "dog"}
    assert dict(data.groups) == {"place": ("in", "out")}
    assert data.skipped == (("c.png", "no label"),)
    assert data.images[0] == tmp_path / "a.png"


def test_rows_of_one_picture_are_its_captions(tmp_path: Path) -> None:
    text = "file\tcaption\na.png\tone\nb.png\ttwo\na.png\tthree\n"
    data = open_captioned(write(tmp_path / "words.tsv", text))
    assert data.ids == ("a.png", "b.png")
    assert data.captions == ("one", "three", "two")
    assert data.owner.tolist() == [0, 0, 1]
    assert data.captions_per_image.tolist() == [2, 1]


def test_json_lines_with_a_broken_one(tmp_path: Path) -> None:
    lines = '{"image": "a.png", "captions": ["x", "y"]}\n{"image": \n{"image": "b.png"}\n'
    data = open_captioned(write(tmp_path / "d.jsonl", lines))
    assert data.captions == ("x", "y")
    assert data.skipped[0][0] == "d.jsonl, line 2" and "broken JSON" in data.skipped[0][1]
    assert data.skipped[1] == ("b.png", "no caption")


def test_a_table_with_both_gives_what_the_task_needs(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", "file,label,caption\na.png,cat,a cat sleeps\n")
    assert isinstance(open_set(path), CaptionedSet)
    assert open_labelled(path).main_names == ("cat",)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("file,label\na.png,3\n", "are numbers without names: give a class file"),
        ("file,size\na.png,3\n", "neither labels nor captions"),
        ("name,label\na.png,cat\n", "no column for the pictures"),
        ("file,label\n", "has no rows"),
    ],
)
def test_a_table_that_does_not_do_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        open_labelled(write(tmp_path / "d.csv", text))


def test_a_wrong_label_names_the_picture(tmp_path: Path) -> None:
    names = write(tmp_path / "names.txt", "cat\ndog\n")
    path = write(tmp_path / "d.csv", "file,label\na.png,1\nb.png,2\n")
    with pytest.raises(ConfigError, match=r"picture b\.png has the label 2, which is not among"):
        open_labelled(path, classes=names)
    path = write(tmp_path / "d.csv", "file,label\na.png,Cat\nb.png,cow\n")
    with pytest.raises(ConfigError, match=r"picture b\.png has the label 'cow'"):
        open_labelled(path, classes=names)


def test_labels_and_captions_are_not_taken_for_each_other(tmp_path: Path, pets: Path) -> None:
    with pytest.raises(ConfigError, match="has labels but no captions"):
        open_captioned(pets)
    path = write(tmp_path / "d.csv", "file,caption\na.png,a cat\n")
    with pytest.raises(ConfigError, match="has captions but no labels"):
        open_labelled(path)


def test_texts_beside_pictures_are_captions(tmp_path: Path) -> None:
    write(tmp_path / "d" / "a.png", picture())
    write(tmp_path / "d" / "a.txt", "one\n\ntwo\n")
    data = open_captioned(tmp_path / "d")
    assert data.captions == ("one", "two") and data.ids == ("a.png",)


# Shards


def test_our_shards_name_their_classes_themselves(tmp_path: Path) -> None:
    members = {
        "000.png": picture(1),
        "000.json": json.dumps({"label": 7, "names": ["tench", "Tinca tinca"], "kids": False}),
        "001.png": picture(2),
        "001.json": json.dumps({"label": 3, "name": "church", "kids": True}),
        "002.png": picture(3),
        "002.json": "{broken",
    }
    data = open_labelled(write_tar(tmp_path / "d" / "val-0000.tar", members))
    assert data.name == "d/val-0000"
    assert data.class_names == (("church",), ("tench", "Tinca tinca"))  # in the labels' order
    assert data.labels.tolist() == [1, 0]
    assert list(data.images) == [picture(1), picture(2)]
    assert dict(data.groups) == {"kids": ("False", "True")}
    assert data.skipped[0][0] == "val-0000/002" and "broken JSON" in data.skipped[0][1]


def test_one_label_with_two_names_is_one_sentence(tmp_path: Path) -> None:
    members = {
        "0.png": picture(),
        "0.json": '{"label": 1, "name": "cat"}',
        "1.png": picture(),
        "1.json": '{"label": 1, "name": "dog"}',
    }
    with pytest.raises(ConfigError, match="label 1 is called 'cat' at d/0 but 'dog' at d/1"):
        open_labelled(write_tar(tmp_path / "d.tar", members))


def test_a_gzipped_shard_is_the_same(tmp_path: Path) -> None:
    plain = write_tar(tmp_path / "d.tar", {"0.png": picture(5), "0.json": '{"captions": ["x"]}'})
    packed = write(tmp_path / "d.tar.gz", gzip.compress(plain.read_bytes()))
    data = open_captioned(packed)
    assert list(data.images) == [picture(5)] and data.captions == ("x",)


def test_shards_of_several_splits_in_one_folder(tmp_path: Path) -> None:
    for split, label in (("train", "a"), ("val", "b")):
        members = {"0.png": picture(), "0.json": json.dumps({"label": label})}
        write_tar(tmp_path / f"{split}-0000.tar", members)
    assert open_labelled(tmp_path).main_names == ("b",)
    assert open_labelled(tmp_path, split="train").main_names == ("a",)
    with pytest.raises(ConfigError, match="has no split 'test': it has train, val"):
        open_labelled(tmp_path, split="test")


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """CLIP_benchmark's layout with two shards of one picture each."""
    root = tmp_path / "wds_pets"
    write(root / "test" / "nshards.txt", "2\n")
    write_tar(root / "test" / "0.tar", {"s0.webp": picture(1), "s0.cls": "1"})
    write_tar(root / "test" / "1.tar", {"s1.jpg": picture(2), "s1.cls": "0"})
    write(root / "classnames.txt", "cat\ndog\n")
    write(root / "zeroshot_classification_templates.txt", "a photo of a {c}.\n\na {c}\n")
    write(root / "train" / "nshards.txt", "0")
    return root


def test_clip_benchmarks_layout_loads_as_it_is(benchmark: Path) -> None:
    data = open_labelled(benchmark)
    assert labels_of(data) == {"0/s0": "dog", "1/s1": "cat"}
    assert data.templates == ("a photo of a {}.", "a {}")
    assert list(data.images) == [picture(1), picture(2)]


def test_clip_benchmarks_retrieval_sets_have_a_caption_a_line(benchmark: Path) -> None:
    write(benchmark / "dataset_type.txt", "retrieval\n")
    write(benchmark / "test" / "nshards.txt", "1")
    write_tar(benchmark / "test" / "0.tar", {"s0.jpg": picture(), "s0.txt": "a dog\nit runs"})
    data = open_set(benchmark, split="test")
    assert isinstance(data, CaptionedSet) and data.captions == ("a dog", "it runs")


def test_clip_benchmarks_shards_must_all_be_there(benchmark: Path) -> None:
    (benchmark / "test" / "1.tar").unlink()
    with pytest.raises(ConfigError, match=r"counts 2 shards, but 1\.tar is not there"):
        open_set(benchmark)
    write(benchmark / "dataset_type.txt", "multilabel")
    with pytest.raises(ConfigError, match="says 'multilabel'; only"):
        open_set(benchmark)


def test_numbers_without_a_class_file_are_one_sentence(benchmark: Path) -> None:
    (benchmark / "classnames.txt").unlink()
    with pytest.raises(ConfigError, match="are numbers without names: give a class file"):
        open_labelled(benchmark)
    write(benchmark / "classnames.txt", "cat\n")
    with pytest.raises(ConfigError, match="picture 0/s0 has the label 1, which is not among the 1"):
        open_labelled(benchmark)


def test_a_shard_cut_short_gives_what_is_there_and_names_the_rest(tmp_path: Path) -> None:
    members = {}
    for number in range(2):
        members[f"{number}.png"] = picture(number)
        members[f"{number}.json"] = '{"label": "cat"}'
    path = write_tar(tmp_path / "d.tar", members)
    path.write_bytes(path.read_bytes()[:2100])  # a header and a block for each of two members
    data = open_labelled(path)
    assert len(data) == 1
    assert any("damaged shard" in reason for _, reason in data.skipped)


# Parquet


def write_parquet(path: Path, columns: dict[str, list[object]], **features: object) -> Path:
    """As Hugging Face's datasets writes it, in row groups of two."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table(columns)
    if features:
        text = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": text})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=2)
    return path


def test_hugging_faces_parquet_names_its_classes_in_the_schema(tmp_path: Path) -> None:
    pictures = [{"bytes": picture(n), "path": f"{n}.png"} for n in range(5)]
    write_parquet(
        tmp_path / "data" / "test-00000-of-00001.parquet",
        {"image": pictures, "label": [1, 0, 1, 1, 0]},
        label={"_type": "ClassLabel", "names": ["cat", "big_dog"]},
        image={"_type": "Image"},
    )
    data = open_labelled(tmp_path)
    assert data.main_names == ("cat", "big dog")
    assert data.labels.tolist() == [1, 0, 1, 1, 0]
    assert [data.images[row] for row in (4, 0, 3, -1)] == [picture(n) for n in (4, 0, 3, 4)]
    assert data.ids[3] == "test-00000-of-00001/3/3.png"


def test_parquet_captions_may_be_lists(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path / "d.parquet",
        {"image": [{"bytes": picture(), "path": None}], "caption": [["one", "two"]]},
    )
    assert open_captioned(path).captions == ("one", "two")


def test_what_is_no_parquet_is_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(TwinlensError, match="is not a readable Parquet file"):
        open_set(write(tmp_path / "d.parquet", "text"))


# The values


def test_counts_that_differ_are_one_sentence() -> None:
    parts = {"name": "d", "images": [b"x", b"y"], "class_names": (("cat",),), "ids": ("a", "b")}
    with pytest.raises(ConfigError, match="d has 2 pictures but 1 labels: there must be one"):
        LabelledSet(labels=np.array([0]), **parts)
    with pytest.raises(ConfigError, match="picture b has the label 1, but there are only 1 class"):
        LabelledSet(labels=np.array([0, 1]), **parts)
    with pytest.raises(ConfigError, match="2 pictures but 1 ids"):
        LabelledSet(labels=np.array([0, 0]), **{**parts, "ids": ("a",)})
    with pytest.raises(ConfigError, match="Class 0 of d has no name"):
        LabelledSet(labels=np.array([0, 0]), **{**parts, "class_names": ((" ",),)})
    with pytest.raises(ConfigError, match="3 captions but says for 2"):
        CaptionedSet("d", [b"x"], ("a",), ("1", "2", "3"), np.array([0, 0]))
    with pytest.raises(ConfigError, match="caption 1 belongs to picture 5"):
        CaptionedSet("d", [b"x"], ("a",), ("1", "2"), np.array([0, 5]))


def test_leaving_pictures_out_takes_their_captions_along() -> None:
    data = CaptionedSet(
        "d", [b"x", b"y", b"z"], ("x", "y", "z"), ("1", "2", "3", "4"), np.array([2, 0, 1, 2])
    )
    rest = data.without([(1, "damaged")])
    assert rest.ids == ("x", "z") and list(rest.images) == [b"x", b"z"]
    assert rest.captions == ("1", "2", "4") and rest.owner.tolist() == [1, 0, 1]
    assert rest.skipped == (("y", "damaged"),)


def test_a_fingerprint_tells_sets_apart(pets: Path) -> None:
    whole = open_labelled(pets)
    assert whole.fingerprint == open_labelled(pets).fingerprint
    assert whole.fingerprint != open_labelled(pets, limit=2).fingerprint


def test_a_pick_of_a_pick_reads_the_right_pictures() -> None:
    first = Picked([b"a", b"b", b"c", b"d"], [3, 1, 0])
    assert list(Picked(first, [2, 0])) == [b"a", b"d"]
    assert first[1:] == [b"b", b"a"] and first[-1] == b"a"
    with pytest.raises(IndexError):
        first[3]


# The data that this project shares


@needs_shared
@pytest.mark.parametrize(
    ("place", "count", "classes", "first"),
    [
        ("imagenette/val-0000.tar", 1000, 10, "tench"),
        ("tinyimagenet", 2000, 200, "goldfish"),
        ("clothing", 1500, 17, "Blazer"),
        ("scenes", 1200, 6, "buildings"),
        ("photos", 120, 20, "Blazer"),
    ],
)
def test_shared_labelled_sets_load(place: str, count: int, classes: int, first: str) -> None:
    data = open_labelled(SHARED / place)
    assert (len(data), len(data.class_names), data.main_names[0]) == (count, classes, first)
    assert data.empty_classes == () and data.skipped == ()


@needs_shared
def test_shared_flickr8k_loads() -> None:
    data = open_captioned(SHARED / "flickr8k")
    assert (len(data), len(data.captions)) == (1000, 5000)
    assert set(data.captions_per_image.tolist()) == {5}
