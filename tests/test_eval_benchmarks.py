"""Built-in benchmark names, read from tiny files of their real formats.

PYTHONPATH=src python -m pytest tests/test_eval_benchmarks.py
"""

import gzip
import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twinlens.data.image import read_image
from twinlens.errors import ConfigError
from twinlens.evaluate.benchmarks import BENCHMARKS
from twinlens.evaluate.class_names import imagenet_classes
from twinlens.evaluate.open_set import open_captioned, open_labelled
from twinlens.evaluate.sets import LabelledSet

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def write(path: Path, data: bytes | str = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def pixel(data: LabelledSet, row: int, x: int, y: int) -> tuple[int, ...]:
    value = read_image(data.images[row]).getpixel((x, y))
    assert isinstance(value, tuple)
    return value


def planes(side: int, corner: tuple[int, int, int], *, by_column: bool = False) -> bytes:
    """A black picture whose pixel at x = 1, y = 0 is `corner`, as three planes."""
    image = np.zeros((3, side, side), dtype=np.uint8)
    image[(slice(None), 1, 0) if by_column else (slice(None), 0, 1)] = corner
    return image.tobytes()


def test_cifar10_is_planes_behind_a_label(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    write(folder / "batches.meta.txt", "airplane\nautomobile\nbird\n\n")
    records = b"\2" + planes(32, RED) + b"\0" + planes(32, BLUE)
    write(folder / "test_batch.bin", records)
    for number in range(1, 6):
        write(folder / f"data_batch_{number}.bin", bytes([1]) + planes(32, GREEN))
    data = open_labelled("cifar10", root=tmp_path)
    assert data.main_names == ("airplane", "automobile", "bird")
    assert data.labels.tolist() == [2, 0] and data.ids[1] == "test_batch/00001"
    assert (pixel(data, 0, 1, 0), pixel(data, 1, 1, 0)) == (RED, BLUE)
    assert pixel(data, 0, 0, 1) == (0, 0, 0)
    assert data.template_key == "cifar" and data.name == "cifar10"
    train = open_labelled("cifar10", root=tmp_path, split="train")
    assert len(train) == 5 and pixel(train, 4, 1, 0) == GREEN


def test_cifar100_takes_the_fine_label(tmp_path: Path) -> None:
    write(tmp_path / "fine_label_names.txt", "apple\naquarium_fish\n")
    write(tmp_path / "test.bin", b"\1\0" + planes(32, GREEN) + b"\0\1" + planes(32, RED))
    data = open_labelled("cifar100", root=tmp_path)
    assert data.main_names == ("apple", "aquarium fish")
    assert data.labels.tolist() == [0, 1] and pixel(data, 1, 1, 0) == RED


def test_cifar_as_pickles_or_cut_short_is_one_sentence(tmp_path: Path) -> None:
    write(tmp_path / "cifar-10-batches-py" / "batches.meta")
    with pytest.raises(ConfigError, match=r"can run code .*\(cifar-10-binary\.tar\.gz\)"):
        open_labelled("cifar10", root=tmp_path)
    write(tmp_path / "cifar-100-python" / "meta")
    with pytest.raises(ConfigError, match=r"cifar-100-binary\.tar\.gz"):
        open_labelled("cifar100", root=tmp_path)
    write(tmp_path / "batches.meta.txt", "a")
    write(tmp_path / "test_batch.bin", b"\0" * 3000)
    with pytest.raises(ConfigError, match="3,000 bytes, which is no whole number of records"):
        open_labelled("cifar10", root=tmp_path)


def test_stl10_is_stored_by_columns_and_counts_labels_from_one(tmp_path: Path) -> None:
    write(tmp_path / "stl10_binary" / "test_X.bin", planes(96, RED, by_column=True))
    write(tmp_path / "stl10_binary" / "test_y.bin", b"\2")
    write(tmp_path / "stl10_binary" / "class_names.txt", "airplane\nbird\n")
    data = open_labelled("stl10", root=tmp_path)
    assert data.labels.tolist() == [1] and pixel(data, 0, 1, 0) == RED


@pytest.mark.parametrize("packed", [False, True])
def test_mnist_is_idx_plain_or_gzipped(tmp_path: Path, packed: bool) -> None:
    image = np.zeros((2, 3, 4), dtype=np.uint8)
    image[1, 2, 0] = 200  # picture 1, row 2, column 0
    pixels = struct.pack(">IIII", 0x803, 2, 3, 4) + image.tobytes()
    labels = struct.pack(">II", 0x801, 2) + b"\7\3"
    end = ".gz" if packed else ""
    for name, data in (("images-idx3", pixels), ("labels-idx1", labels)):
        content = gzip.compress(data) if packed else data
        write(tmp_path / "MNIST" / "raw" / f"t10k-{name}-ubyte{end}", content)
    found = open_labelled("mnist", root=tmp_path)
    assert [found.main_names[row] for row in found.labels] == ["7", "3"]
    assert pixel(found, 1, 0, 2) == (200, 200, 200)


def test_mnists_unequal_counts_and_cut_files_are_one_sentence(tmp_path: Path) -> None:
    pixels = struct.pack(">IIII", 0x803, 2, 1, 1) + b"\0\0"
    images = write(tmp_path / "t10k-images-idx3-ubyte", pixels)
    write(tmp_path / "t10k-labels-idx1-ubyte", struct.pack(">II", 0x801, 1) + b"\7")
    with pytest.raises(ConfigError, match="has 2 pictures but 1 labels"):
        open_labelled("mnist", root=tmp_path)
    images.write_bytes(pixels[:-1])
    with pytest.raises(ConfigError, match="is no idx file of bytes, or cut short"):
        open_labelled("mnist", root=tmp_path)


def test_svhn_calls_ten_zero(tmp_path: Path) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    pixels = np.zeros((32, 32, 3, 2), dtype=np.uint8)
    pixels[5, 9, :, 1] = RED  # row 5, column 9
    scipy_io.savemat(tmp_path / "test_32x32.mat", {"X": pixels, "y": np.array([[3], [10]])})
    data = open_labelled("svhn", root=tmp_path)
    assert [data.main_names[row] for row in data.labels] == ["three", "zero"]
    assert pixel(data, 1, 9, 5) == RED


def test_imagenets_list_has_1000_classes_in_the_labels_order() -> None:
    classes = imagenet_classes()
    assert len(classes.names) == len(set(classes.keys)) == 1000
    assert list(classes.keys) == sorted(classes.keys)
    # Well-known rows: torchvision and the CLIP notebook call them so.
    known = {0: "tench", 1: "goldfish", 134: "crane bird", 517: "construction crane"}
    assert {row: classes.names[row][0] for row in known} == known
    assert classes.keys[1] == "n01443537"


def test_imagenet_has_all_classes_as_answers(tmp_path: Path) -> None:
    write(tmp_path / "val" / "n01443537" / "x.JPEG")
    data = open_labelled("imagenet", root=tmp_path)
    assert len(data.class_names) == 1000 and data.labels.tolist() == [1]
    assert data.ids == ("n01443537/x.JPEG",)


def test_imagenets_names_can_be_replaced_by_a_file(tmp_path: Path) -> None:
    write(tmp_path / "val" / "n01443537" / "x.JPEG")
    names = write(tmp_path / "n.txt", "\n".join(f"name {row}" for row in range(1000)))
    data = open_labelled("imagenet", root=tmp_path, classes=names)
    assert data.main_names[data.labels[0]] == "name 1"
    with pytest.raises(ConfigError, match="has 1 names, but the data has 1000 classes"):
        open_labelled("imagenet", root=tmp_path, classes=write(tmp_path / "n.txt", "one"))


def test_imagenet_r_and_a_have_only_the_classes_that_are_there(tmp_path: Path) -> None:
    for wnid in ("n01443537", "n02012849"):
        write(tmp_path / "imagenet-r" / wnid / "art.jpg")
        write(tmp_path / "imagenet-a" / wnid / "odd.jpg")
    for name in ("imagenet-r", "imagenet-a"):
        data = open_labelled(name, root=tmp_path)
        assert data.main_names == ("goldfish", "crane bird")
        assert data.labels.tolist() == [0, 1]


def test_imagenet_v2s_folders_are_row_numbers_not_words(tmp_path: Path) -> None:
    for row in ("0", "10", "2"):
        write(tmp_path / "imagenetv2-matched-frequency-format-val" / row / "a.jpeg")
    data = open_labelled("imagenet-v2", root=tmp_path)
    found = dict(zip(data.ids, data.labels.tolist(), strict=True))
    assert found == {"0/a.jpeg": 0, "10/a.jpeg": 10, "2/a.jpeg": 2}
    assert len(data.class_names) == 1000


def test_flat_imagenet_is_one_sentence(tmp_path: Path) -> None:
    write(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(ConfigError, match="without folders, which do not say their classes"):
        open_labelled("imagenet", root=tmp_path)


def test_objectnet_loses_its_frame_and_its_other_classes(tmp_path: Path) -> None:
    framed = Image.new("RGB", (10, 8), RED)
    framed.paste(BLUE, (2, 2, 8, 6))
    file = io.BytesIO()
    framed.save(file, "PNG")
    root = tmp_path / "objectnet-1.0"
    write(root / "images" / "alarm_clock" / "a.png", file.getvalue())
    write(root / "images" / "bath_towel" / "broken.png", b"not a photo")
    write(root / "images" / "air_freshener" / "c.png", file.getvalue())
    labels = {"alarm_clock": "Alarm clock", "bath_towel": "Bath towel", "air_freshener": "Air"}
    write(root / "mappings" / "folder_to_objectnet_label.json", json.dumps(labels))
    shared = {"Alarm clock": "analog clock", "Bath towel": "bath towel"}
    write(root / "mappings" / "objectnet_to_imagenet_1k.json", json.dumps(shared))
    data = open_labelled("objectnet", root=tmp_path)
    assert data.main_names == ("Alarm clock", "Bath towel") and len(data) == 2
    image = read_image(data.images[0])
    assert image.size == (6, 4) and image.getcolors() == [(24, BLUE)]
    assert data.images[1] == root / "images" / "bath_towel" / "broken.png"


def test_caltech_has_openais_names_and_no_background(tmp_path: Path) -> None:
    for name in ("BACKGROUND_Google", "Faces_easy", "accordion", "sea_horse"):
        write(tmp_path / "101_ObjectCategories" / name / "image_0001.jpg")
    data = open_labelled("caltech101", root=tmp_path)
    assert data.main_names == ("centered face", "accordion", "sea horse")
    assert len(data) == 3


def test_eurosat_has_openais_names(tmp_path: Path) -> None:
    write(tmp_path / "2750" / "AnnualCrop" / "AnnualCrop_1.jpg")
    write(tmp_path / "2750" / "SeaLake" / "SeaLake_1.jpg")
    data = open_labelled("eurosat", root=tmp_path)
    assert data.main_names == ("annual crop land", "lake or sea")


def test_lists_say_which_pictures_belong_to_a_split(tmp_path: Path) -> None:
    write(tmp_path / "food-101" / "meta" / "classes.txt", "apple_pie\nwaffles\n")
    write(tmp_path / "food-101" / "meta" / "test.txt", "waffles/12\napple_pie/3\n")
    data = open_labelled("food101", root=tmp_path)
    assert data.main_names == ("apple pie", "waffles") and data.labels.tolist() == [1, 0]
    assert data.images[0] == tmp_path / "food-101" / "images" / "waffles" / "12.jpg"

    write(tmp_path / "annotations" / "trainval.txt", "Abyssinian_1 1 1 1\n")
    lines = "yorkshire_terrier_9 37 2 25\nAbyssinian_201 1 1 1\nbeagle_2 5 2 4\n"
    write(tmp_path / "annotations" / "test.txt", lines)
    data = open_labelled("oxford-pets", root=tmp_path)
    assert data.main_names == ("Abyssinian", "Beagle", "Yorkshire Terrier")
    assert data.labels.tolist() == [2, 0, 1] and data.ids[0] == "yorkshire_terrier_9.jpg"

    write(tmp_path / "labels" / "test1.txt", "zigzagged/z_1.jpg\nbanded/b_2.jpg\n")
    data = open_labelled("dtd", root=tmp_path)
    assert data.main_names == ("banded", "zigzagged") and data.labels.tolist() == [1, 0]


def karpathy(photos: dict[str, tuple[str, list[str]]], **more: str) -> str:
    images = [
        {
            "filename": name,
            "split": split,
            "sentences": [{"raw": text} for text in texts],
            **more,
        }
        for name, (split, texts) in photos.items()
    ]
    return json.dumps({"images": images})


def test_karpathys_file_says_split_and_captions(tmp_path: Path) -> None:
    photos = {"b.jpg": ("test", ["one", "two "]), "a.jpg": ("train", ["three"])}
    write(tmp_path / "dataset_flickr30k.json", karpathy(photos))
    write(tmp_path / "flickr30k-images" / "b.jpg")
    data = open_captioned("flickr30k", root=tmp_path)
    assert data.captions == ("one", "two") and data.ids == ("b.jpg",)
    assert data.images[0] == tmp_path / "flickr30k-images" / "b.jpg"

    write(
        tmp_path / "dataset_coco.json", karpathy({"c.jpg": ("restval", ["x"])}, filepath="val2014")
    )
    write(tmp_path / "val2014" / "c.jpg")
    data = open_captioned("coco", root=tmp_path, split="train")
    assert data.images[0] == tmp_path / "val2014" / "c.jpg"


def test_clip_benchmarks_caption_files_are_read(tmp_path: Path) -> None:
    text = 'image,caption\na.jpg,"A dog , running ."\na.jpg,A man, a plan\n'
    write(tmp_path / "flickr8k_test_karpathy.txt", text)
    write(tmp_path / "Images" / "a.jpg")
    data = open_captioned("flickr8k", root=tmp_path)
    assert data.captions == ("A dog , running .", "A man, a plan")


def test_flickr8ks_own_files_are_read(tmp_path: Path) -> None:
    write(tmp_path / "Flickr8k.token.txt", "a.jpg#0\tone .\na.jpg#1\ttwo .\nb.jpg#0\tthree .\n")
    write(tmp_path / "Flicker8k_Dataset" / "b.jpg")
    names = write(tmp_path / "Flickr_8k.testImages.txt", "b.jpg\n")
    assert open_captioned("flickr8k", root=tmp_path).captions == ("three .",)
    write(names, "b.jpg\nc.jpg\n")
    with pytest.raises(ConfigError, match=r"lists c\.jpg, which has no captions"):
        open_captioned("flickr8k", root=tmp_path)
    names.unlink()
    write(tmp_path / "Flicker8k_Dataset" / "a.jpg")
    data = open_captioned("flickr8k", root=tmp_path)
    assert data.owner.tolist() == [0, 0, 1]
    assert "no list of the split" in data.notes[0]


def test_cocos_own_captions_are_read(tmp_path: Path) -> None:
    values = {
        "images": [{"id": 9, "file_name": "x.jpg"}, {"id": 4, "file_name": "y.jpg"}],
        "annotations": [
            {"image_id": 4, "caption": "a cat\n"},
            {"image_id": 9, "caption": "a dog"},
            {"image_id": 4, "caption": "a tom"},
        ],
    }
    write(tmp_path / "annotations" / "captions_val2017.json", json.dumps(values))
    with pytest.raises(ConfigError, match=r"but not the photo x\.jpg: looked in it and in val2017"):
        open_captioned("coco", root=tmp_path)
    write(tmp_path / "val2017" / "x.jpg")
    data = open_captioned("coco", root=tmp_path)
    assert data.captions == ("a dog", "a cat", "a tom") and data.owner.tolist() == [0, 1, 1]
    assert "not Karpathy's test split" in data.notes[0]


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_what_is_missing_is_one_sentence_each(name: str, tmp_path: Path) -> None:
    """Where nothing is, where no root is given, where the root itself is not there."""
    benchmark = BENCHMARKS[name]
    opener = open_captioned if benchmark.kind == "captions" else open_labelled
    with pytest.raises(ConfigError) as no_root:
        opener(name)
    for root in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError) as nothing:
            opener(name, root=root)
        assert str(root) in str(nothing.value)
        for caught in (no_root, nothing):
            text = str(caught.value)
            assert benchmark.needs in text and "--root" in text and benchmark.home in text
            assert "\n" not in text
    with pytest.raises(ConfigError, match="has no split 'dusk': choose from"):
        opener(name, root=tmp_path, split="dusk")


def test_every_template_key_is_one_that_exists() -> None:
    templates = pytest.importorskip("twinlens.evaluate.templates")
    keys = {benchmark.template_key for benchmark in BENCHMARKS.values()} - {""}
    assert keys <= set(templates.TEMPLATE_SETS)
