"""The field's benchmarks by name, read from where the user has them.

Nothing is fetched: most of them may only be had from their authors. Each entry says which
files it looks for, where its class names come from and which templates fit it. The home
pages are given from memory and were not looked up.
"""

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from twinlens.data.image import ImageSource, read_image
from twinlens.errors import ConfigError, UnreadableImage
from twinlens.evaluate.benchmark_captions import open_coco, open_flickr8k, open_flickr30k
from twinlens.evaluate.benchmark_pixels import (
    CIFAR_HOME,
    folder_with,
    open_cifar10,
    open_cifar100,
    open_mnist,
    open_stl10,
    open_svhn,
)
from twinlens.evaluate.class_names import ClassList, imagenet_classes, readable
from twinlens.evaluate.items import Found, Item, Kind
from twinlens.evaluate.open_set import open_class_folders
from twinlens.evaluate.pictures import Edited

Opener = Callable[[Path, str], Found | None]  # root, split; None: not there

# What OpenAI called the folders whose own names say too little (CLIP_benchmark has the same).
CALTECH_NAMES = {
    "Faces": "off-center face",
    "Faces_easy": "centered face",
    "Leopards": "leopard",
    "Motorbikes": "motorbike",
    "airplanes": "airplane",
    "car_side": "side of a car",
    "cougar_body": "body of a cougar cat",
    "cougar_face": "face of a cougar cat",
    "crocodile_head": "head of a crocodile",
    "flamingo_head": "head of a flamingo",
    "snoopy": "snoopy (cartoon beagle)",
    "yin_yang": "yin and yang symbol",
}
EUROSAT_NAMES = {
    "AnnualCrop": "annual crop land",
    "Forest": "forest",
    "HerbaceousVegetation": "brushland or shrubland",
    "Highway": "highway or road",
    "Industrial": "industrial buildings or commercial buildings",
    "Pasture": "pasture land",
    "PermanentCrop": "permanent crop land",
    "Residential": "residential buildings or homes or apartments",
    "River": "river",
    "SeaLake": "lake or sea",
}
OBJECTNET_BORDER = 2  # pixels; its authors drew a red frame against training on it

_WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class Benchmark:
    """One built-in name."""

    open: Opener
    needs: str  # the files, as the sentence about missing ones has them
    home: str  # where they are to be had; from memory
    classes: str = ""  # where the class names come from
    template_key: str = ""  # a name in templates.py; "" for captions
    splits: tuple[str, ...] = ("test",)  # the first is taken where none is asked for
    kind: Kind = "labels"


def open_benchmark(name: str, *, root: Path | None, split: str | None) -> Found:
    """All of a built-in data set's split.

    Raises ConfigError for a missing root, files that are not there, and unknown splits.
    """
    benchmark = BENCHMARKS[name]
    if root is None:
        raise ConfigError(
            f"{name} is read from where you have it: give the folder that holds {benchmark.needs} "
            f"with --root. Its home is {benchmark.home}."
        )
    wanted = split or benchmark.splits[0]
    if wanted not in benchmark.splits:
        raise ConfigError(
            f"{name} has no split {wanted!r}: choose from {', '.join(benchmark.splits)}."
        )
    found = benchmark.open(root, wanted)
    if found is None:
        raise ConfigError(
            f"{name} needs {benchmark.needs}, but {root} has no such thing. Give the folder that "
            f"holds it with --root; its home is {benchmark.home}."
        )
    found.name = name if split is None else f"{name}/{split}"
    found.template_key = benchmark.template_key
    return found


def _wnid_folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(e.name for e in os.scandir(folder) if e.is_dir() and _WNID.fullmatch(e.name))


def _open_imagenet(
    root: Path, split: str, *, places: tuple[str, ...], all_classes: bool
) -> Found | None:
    """A folder per wnid. Without `all_classes` only those that are there are answers."""
    flat = None
    for place in places:
        folder = root / place.format(split=split)
        if folders := _wnid_folders(folder):
            known = imagenet_classes()
            classes = known if all_classes else _only(known, folders)
            return open_class_folders(folder, "", folders, classes)
        flat = flat or next(folder.glob("ILSVRC2012_val_*"), None)
    if flat is not None:
        raise ConfigError(
            f"{flat.parent} holds ImageNet's pictures without folders, which do not say their "
            f"classes: sort them into one folder per wnid (n01440764, ...) first."
        )
    return None


def _only(classes: ClassList, keys: list[str]) -> ClassList:
    rows = [row for key in keys if (row := classes.row_of(key)) is not None]
    return ClassList(
        classes.source,
        tuple(classes.names[row] for row in rows),
        tuple(classes.keys[row] for row in rows),
    )


def _open_imagenet_v2(root: Path, split: str) -> Found | None:
    """Folders 0 to 999: rows of ImageNet's classes."""
    del split
    places = (root, *sorted(root.glob("imagenetv2-*")), root / "test") if root.is_dir() else ()
    for folder in places:
        names = [e.name for e in os.scandir(folder) if e.is_dir()] if folder.is_dir() else []
        numbers = sorted((name for name in names if name.isdecimal()), key=int)
        if numbers and int(numbers[-1]) < 1000:
            known = imagenet_classes()
            rows = tuple(str(row) for row in range(len(known.names)))
            return open_class_folders(
                folder, "", numbers, ClassList(known.source, known.names, rows)
            )
    return None


def _open_objectnet(root: Path, split: str) -> Found | None:
    """The 113 classes that ImageNet has too, by ObjectNet's names, without the red frame."""
    del split
    base = folder_with(root, "mappings", "objectnet-1.0")
    if base is None or not (base / "images").is_dir():
        return None
    try:
        labels = json.loads((base / "mappings/folder_to_objectnet_label.json").read_text("utf-8"))
        shared = json.loads((base / "mappings/objectnet_to_imagenet_1k.json").read_text("utf-8"))
        names = {folder: label for folder, label in labels.items() if label in shared}
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"ObjectNet's mappings in {base} cannot be read: {error}") from error
    there = sorted(name for name in names if (base / "images" / name).is_dir())
    classes = ClassList(
        "ObjectNet", tuple((names[folder],) for folder in sorted(names)), tuple(sorted(names))
    )
    found = open_class_folders(base / "images", "", there, classes)
    found.images = Edited(found.images, _without_border)
    return found


def _without_border(source: ImageSource) -> ImageSource:
    """The picture inside the frame; what cannot be read stays, to be named later."""
    try:
        image = read_image(source)
    except UnreadableImage:
        return source
    width, height = image.size
    border = OBJECTNET_BORDER
    if min(width, height) <= 2 * border:
        return image
    return image.crop((border, border, width - border, height - border))


def _open_named_folders(
    root: Path,
    split: str,
    *,
    places: tuple[str, ...],
    names: dict[str, str],
    one: str,
    leave_out: tuple[str, ...] = (),
) -> Found | None:
    """A folder per class, one of which is called `one`; `names` renames some of them."""
    del split
    folder = folder_with(root, one, *places)
    if folder is None:
        return None
    folders = sorted(
        e.name
        for e in os.scandir(folder)
        if e.is_dir() and not e.name.startswith(".") and e.name not in leave_out
    )
    classes = ClassList(
        str(folder), tuple((names.get(name, readable(name)),) for name in folders), tuple(folders)
    )
    return open_class_folders(folder, "", folders, classes)


def _open_food101(root: Path, split: str) -> Found | None:
    """meta/classes.txt and meta/test.txt, whose lines are CLASS/NUMBER."""
    folder = folder_with(root, "meta/classes.txt", "food-101")
    if folder is None:
        return None
    lines = _lines(folder / f"meta/{split}.txt")
    names = _lines(folder / "meta/classes.txt")
    pictures = [(f"{line}.jpg", line.split("/")[0]) for line in lines]
    return _listed(folder / "images", pictures, {name: readable(name) for name in names})


def _open_pets(root: Path, split: str) -> Found | None:
    """annotations/test.txt, whose lines begin with BREED_NUMBER."""
    folder = folder_with(root, "annotations/trainval.txt", "oxford-iiit-pet")
    if folder is None:
        return None
    stems = [line.split()[0] for line in _lines(folder / f"annotations/{split}.txt")]
    stems = [stem for stem in stems if not stem.startswith("#")]
    pictures = [(f"{stem}.jpg", stem.rpartition("_")[0]) for stem in stems]
    breeds = sorted({breed for _, breed in pictures}, key=str.casefold)
    return _listed(folder / "images", pictures, {b: readable(b).title() for b in breeds})


def _open_dtd(root: Path, split: str) -> Found | None:
    """labels/test1.txt, the first of its ten partitions, whose lines are CLASS/FILE."""
    folder = folder_with(root, "labels/test1.txt", "dtd")
    if folder is None:
        return None
    lines = _lines(folder / f"labels/{split}1.txt")
    pictures = [(line, line.split("/")[0]) for line in lines]
    textures = sorted({texture for _, texture in pictures})
    return _listed(folder / "images", pictures, {t: readable(t) for t in textures})


def _listed(folder: Path, pictures: list[tuple[str, str]], names: dict[str, str]) -> Found:
    """Pictures named in a list, with the key of each one's class."""
    return Found(
        name="",
        images=[folder / name for name, _ in pictures],
        items=[Item(name, place, label=key) for place, (name, key) in enumerate(pictures)],
        classes=ClassList(
            str(folder.parent), tuple((name,) for name in names.values()), tuple(names)
        ),
        root=str(folder.parent),
    )


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


_IMAGENET_NAMES = "OpenAI's names of ImageNet's classes, which come with twinlens"
_OTHERS = ("test", "train", "val")
_VARIANT = partial(_open_imagenet, all_classes=False)

BENCHMARKS: dict[str, Benchmark] = {
    "cifar10": Benchmark(
        open_cifar10,
        "cifar-10-batches-bin/ (the binary version: test_batch.bin, ...)",
        CIFAR_HOME,
        "batches.meta.txt",
        "cifar",
        ("test", "train"),
    ),
    "cifar100": Benchmark(
        open_cifar100,
        "cifar-100-binary/ (the binary version: test.bin, ...)",
        CIFAR_HOME,
        "fine_label_names.txt",
        "cifar",
        ("test", "train"),
    ),
    "imagenet": Benchmark(
        partial(_open_imagenet, places=("{split}", "ILSVRC2012/{split}", ""), all_classes=True),
        "val/ with one folder per wnid (n01440764, ...)",
        "https://www.image-net.org",
        _IMAGENET_NAMES,
        "imagenet",
        ("val", "train"),
    ),
    "imagenet-v2": Benchmark(
        _open_imagenet_v2,
        "imagenetv2-matched-frequency-format-val/ with the folders 0 to 999",
        "https://github.com/modestyachts/ImageNetV2",
        _IMAGENET_NAMES,
        "imagenet",
    ),
    "imagenet-r": Benchmark(
        partial(_VARIANT, places=("imagenet-r", "")),
        "imagenet-r/ with one folder per wnid (200 of them)",
        "https://github.com/hendrycks/imagenet-r",
        f"{_IMAGENET_NAMES}; only the classes that have a folder",
        "imagenet",
    ),
    "imagenet-a": Benchmark(
        partial(_VARIANT, places=("imagenet-a", "")),
        "imagenet-a/ with one folder per wnid (200 of them)",
        "https://github.com/hendrycks/natural-adv-examples",
        f"{_IMAGENET_NAMES}; only the classes that have a folder",
        "imagenet",
    ),
    "imagenet-sketch": Benchmark(
        partial(_open_imagenet, places=("sketch", "imagenet-sketch", ""), all_classes=True),
        "sketch/ with one folder per wnid",
        "https://github.com/HaohanWang/ImageNet-Sketch",
        _IMAGENET_NAMES,
        "imagenet",
    ),
    "objectnet": Benchmark(
        _open_objectnet,
        "objectnet-1.0/ with images/ and mappings/",
        "https://objectnet.dev",
        "mappings/folder_to_objectnet_label.json; the 113 classes shared with ImageNet",
        "imagenet",
    ),
    "caltech101": Benchmark(
        partial(
            _open_named_folders,
            places=("101_ObjectCategories", "caltech101/101_ObjectCategories"),
            names=CALTECH_NAMES,
            one="accordion",
            leave_out=("BACKGROUND_Google",),
        ),
        "101_ObjectCategories/ with one folder per class",
        "https://data.caltech.edu/records/mzrjq-6wc02",
        "the folders, 12 of them as OpenAI renamed them; all pictures, no background class",
        "caltech101",
    ),
    "flickr8k": Benchmark(
        open_flickr8k,
        "dataset_flickr8k.json, flickr8k_test_karpathy.txt or Flickr8k.token.txt, and the photos",
        "https://hockenmaier.cs.illinois.edu/8k-pictures.html",
        splits=_OTHERS,
        kind="captions",
    ),
    "flickr30k": Benchmark(
        open_flickr30k,
        "dataset_flickr30k.json or flickr30k_test_karpathy.txt, and the photos",
        "https://shannon.cs.illinois.edu/DenotationGraph",
        splits=_OTHERS,
        kind="captions",
    ),
    "coco": Benchmark(
        open_coco,
        "dataset_coco.json or coco_test_karpathy.json and val2014/, or "
        "annotations/captions_val2017.json and val2017/",
        "https://cocodataset.org",
        splits=(*_OTHERS, "val2017"),
        kind="captions",
    ),
    "food101": Benchmark(
        _open_food101,
        "food-101/ with images/ and meta/",
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101",
        "meta/classes.txt",
        "food101",
        ("test", "train"),
    ),
    "oxford-pets": Benchmark(
        _open_pets,
        "images/ and annotations/ (trainval.txt, test.txt)",
        "https://www.robots.ox.ac.uk/~vgg/data/pets",
        "the pictures' file names",
        "oxford-pets",
        ("test", "trainval"),
    ),
    "dtd": Benchmark(
        _open_dtd,
        "dtd/ with images/ and labels/",
        "https://www.robots.ox.ac.uk/~vgg/data/dtd",
        "the folders",
        "dtd",
        _OTHERS,
    ),
    "eurosat": Benchmark(
        partial(
            _open_named_folders,
            places=("2750", "EuroSAT", "EuroSAT_RGB", "eurosat/2750"),
            names=EUROSAT_NAMES,
            one="AnnualCrop",
        ),
        "EuroSAT_RGB/ or 2750/ with one folder per class (AnnualCrop, ...)",
        "https://github.com/phelber/EuroSAT",
        "as OpenAI renamed the folders; all pictures, for it has no splits",
        "eurosat",
    ),
    "stl10": Benchmark(
        open_stl10,
        "stl10_binary/ (test_X.bin, test_y.bin, class_names.txt)",
        "https://cs.stanford.edu/~acoates/stl10",
        "class_names.txt",
        "stl10",
        ("test", "train"),
    ),
    "mnist": Benchmark(
        open_mnist,
        "t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, plain or .gz",
        "http://yann.lecun.com/exdb/mnist",
        "the digits",
        "mnist",
        ("test", "train"),
    ),
    "svhn": Benchmark(
        open_svhn,
        "test_32x32.mat (format 2, cropped digits)",
        "http://ufldl.stanford.edu/housenumbers",
        "the digits in words",
        "mnist",
        ("test", "train"),
    ),
}
