"""Benchmarks of captioned photos: Flickr8k, Flickr30k, COCO.

Three kinds of caption files are known, whichever lies there:
- Karpathy's `dataset_NAME.json` (Karpathy and Fei-Fei 2015, arXiv:1412.2306), which has the
  splits that everybody reports;
- CLIP_benchmark's `NAME_SPLIT_karpathy.txt` (`image,caption` a line) and `.json` (COCO's
  format);
- the data sets' own: `Flickr8k.token.txt` with `Flickr_8k.testImages.txt`, Kaggle's
  `captions.txt`, COCO's `annotations/captions_val2017.json`.

All captions of a photo count: some of COCO's have six or seven. Every `open_*` returns None
where nothing of this is there.
"""

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from twinlens.errors import ConfigError
from twinlens.evaluate.items import Found, Item

PHOTO_FOLDERS = (
    "Images images Flicker8k_Dataset Flickr8k_Dataset flickr30k-images flickr30k_images "
    "flickr8k-images"
).split()

Captions = dict[str, list[str]]  # by the photo's path below its folder


def open_flickr8k(root: Path, split: str) -> Found | None:
    """Karpathy's or the data set's own split lists: 1,000 test photos with 5 captions each."""
    found = _karpathy(root, "flickr8k", split)
    if found is not None:
        return found
    lists = [root / folder / f"Flickr_8k.{_own_split(split)}Images.txt" for folder in ("", "text")]
    listed = next((path for path in lists if path.is_file()), None)
    for path in (root / "Flickr8k.token.txt", root / "text/Flickr8k.token.txt"):
        if path.is_file():
            return _in_list(root, _tokens(path), listed)
    if (root / "captions.txt").is_file():
        return _in_list(root, _image_commas(root / "captions.txt"), listed)
    return None


def open_flickr30k(root: Path, split: str) -> Found | None:
    """Karpathy's split: 1,000 test photos with 5 captions each."""
    return _karpathy(root, "flickr30k", split)


def open_coco(root: Path, split: str) -> Found | None:
    """Karpathy's 5,000 test photos of val2014; else, and for split val2017, COCO's own 5,000."""
    if split != "val2017":
        found = _karpathy(root, "coco", split)
        if found is not None:
            return found
    for folder in (root / "annotations", root):
        path = folder / "captions_val2017.json"
        if path.is_file() and split in ("test", "val2017"):
            captions = _coco_json(path)
            found = _photos(root, captions, ("val2017", "images/val2017"))
            found.notes.append("coco: the 5,000 photos of val2017, not Karpathy's test split.")
            return found
    return None


def _karpathy(root: Path, name: str, split: str) -> Found | None:
    folders = (*PHOTO_FOLDERS, "val2014", "train2014")
    for path in (root / f"dataset_{name}.json", root / f"karpathy/dataset_{name}.json"):
        if path.is_file():
            return _photos(root, _karpathy_json(path, split), folders)
    if (path := root / f"{name}_{split}_karpathy.txt").is_file():
        return _photos(root, _image_commas(path), folders)
    if (path := root / f"{name}_{split}_karpathy.json").is_file():
        return _photos(root, _coco_json(path), folders)
    return None


def _photos(root: Path, captions: Mapping[str, list[str]], folders: Iterable[str]) -> Found:
    """The photos with these captions, in the first folder that has the first of them."""
    if not captions:
        raise ConfigError(f"The caption file below {root} names no photos of this split.")
    first = next(iter(captions))
    places = [root, *(root / folder for folder in folders)]
    folder = next((place for place in places if (place / first).is_file()), None)
    if folder is None:
        raise ConfigError(
            f"The captions below {root} are there, but not the photo {first}: looked in it and in "
            f"{', '.join(folders)}."
        )
    return Found(
        name="",
        images=[folder / name for name in captions],
        items=[
            Item(name, place, captions=tuple(texts))
            for place, (name, texts) in enumerate(captions.items())
        ],
        root=str(root),
    )


def _in_list(root: Path, captions: Captions, listed: Path | None) -> Found:
    if listed is None:
        found = _photos(root, captions, PHOTO_FOLDERS)
        found.notes.append(
            f"flickr8k: no list of the split is below {root} (Flickr_8k.testImages.txt), so all "
            f"{len(captions):,} photos were taken."
        )
        return found
    wanted = [line.strip() for line in _read(listed).splitlines() if line.strip()]
    missing = [name for name in wanted if name not in captions]
    if missing:
        raise ConfigError(
            f"{listed} lists {missing[0]}, which has no captions ({len(missing)} such photos)."
        )
    return _photos(root, {name: captions[name] for name in wanted}, PHOTO_FOLDERS)


def _own_split(split: str) -> str:
    return {"val": "dev"}.get(split, split)


def _karpathy_json(path: Path, split: str) -> Captions:
    """`restval` belongs to train, as everybody has it."""
    wanted = {"train": ("train", "restval")}.get(split, (split,))
    try:
        return {
            "/".join(filter(None, (image.get("filepath"), image["filename"]))): [
                sentence["raw"].strip() for sentence in image["sentences"]
            ]
            for image in json.loads(_read(path))["images"]
            if image["split"] in wanted
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is not Karpathy's format: {error!r}") from error


def _coco_json(path: Path) -> Captions:
    try:
        values = json.loads(_read(path))
        names: dict[Any, str] = {image["id"]: image["file_name"] for image in values["images"]}
        captions: Captions = {name: [] for name in names.values()}
        for note in values["annotations"]:
            captions[names[note["image_id"]]].append(note["caption"].strip())
        return captions
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is not COCO's caption format: {error!r}") from error


def _image_commas(path: Path) -> Captions:
    """`image,caption` below a header line. The caption may hold commas that nobody quoted."""
    captions: Captions = {}
    for line in _read(path).splitlines()[1:]:
        name, comma, text = line.partition(",")
        if comma and text.strip():
            quoted = next(csv.reader([text])) if text.startswith('"') else [text]
            captions.setdefault(name.strip(), []).append(",".join(quoted).strip())
    return captions


def _tokens(path: Path) -> Captions:
    """`photo.jpg#0<TAB>caption`."""
    captions: Captions = {}
    for line in _read(path).splitlines():
        name, tab, text = line.partition("\t")
        if tab:
            captions.setdefault(name.rpartition("#")[0], []).append(text.strip())
    return captions


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
