"""Step 1 of the `mini` recipe: raw shards to cached feature maps and texts.

Every picture is decoded once per view and run through the part of the image tower
that stays locked (LiT, Zhai et al. 2022, arXiv:2111.07991: what is locked need only
be computed once). What later steps read:

    WORK/<set>.json          texts, group and label of every picture
    WORK/<set>.maps.npy      (view, picture, channel, height, width) float16
    WORK/<set>.features.npy  (view, picture, channel) float32, of the tower before training
"""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
import torch
from jaxtyping import Float
from PIL import Image, ImageEnhance
from rich.progress import track
from torch import Tensor

from mini_drawings import drawings
from twinlens.config import EfficientNetLiteConfig
from twinlens.data.image import read_image
from twinlens.data.preprocess import Preprocess
from twinlens.data.shards import read_shards
from twinlens.errors import UnreadableImage
from twinlens.model.checkpoint import load_weights
from twinlens.model.convert import efficientnet_lite_weights
from twinlens.model.image_conv import EfficientNetLiteTower
from twinlens.runtime.export import export_module

LOCKED_BLOCKS = 11  # of 21; their output for one picture is 88 x 16 x 16
BATCH = 32
CLOTHING_TRAIN_BELOW = 1200  # keys; the split that the data's README proposes

# Lite2 is made for 260 pixels; 256 halves five times without a rest.
IMAGE = EfficientNetLiteConfig(image_size=256, width_multiplier=1.1, depth_multiplier=1.2)
# TensorFlow's EfficientNet-Lite: (x - 127) / 128 over 0..255.
PREPROCESS = Preprocess(
    image_size=IMAGE.image_size,
    resize="squash",  # a search must see the whole photo; Flickr8k reached us squashed too
    interpolation="bicubic",
    mean=(127 / 255,) * 3,
    std=(128 / 255,) * 3,
)


@dataclass(frozen=True)
class SetPlan:
    """Where a set's shards lie ("": not in shards) and how many views of a picture to cache."""

    pattern: str
    views: int


SETS = {
    "flickr_train": SetPlan("flickr8k/train-*.tar", views=4),
    "flickr_val": SetPlan("flickr8k/val-*.tar", views=1),
    "flickr_more": SetPlan("flickr8k/val-*.tar", views=4),  # for the last stage
    "tiny_train": SetPlan("tinyimagenet/train-*.tar.gz", views=2),
    "clothing_train": SetPlan("clothing/all-*.tar.gz", views=3),
    "drawings": SetPlan("", views=1),
}


@dataclass
class PairTexts:
    """The words of one set. `labels` is empty for captioned photos, `files` for all others."""

    texts: list[list[str]] = field(default_factory=list)  # every caption or synonym of a picture
    labels: list[int] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


def clean_name(name: str) -> str:
    """A label as one would type it: `T-Shirt`, `garbage_truck` to `t-shirt`, `garbage truck`."""
    return re.sub(r"\s+", " ", name.replace("_", " ")).strip().lower()


def clean_caption(caption: str) -> str:
    """Flickr8k's old tokenisation undone: no space before punctuation, no final stop."""
    return re.sub(r"\s+([.,!?;:'])", r"\1", caption).strip().rstrip(" .")


def view_of(image: Image.Image, view: int, seed: int) -> Image.Image:
    """View 0 is the picture, 1 its mirror image, higher ones random crops of either."""
    if view == 0:
        return image
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if view == 1:
        return mirrored
    random = np.random.default_rng((seed, view))
    share = random.uniform(0.65, 0.95)  # of each side: less would cut captioned things off
    width, height = int(image.width * share), int(image.height * share)
    left = random.integers(0, image.width - width + 1)
    top = random.integers(0, image.height - height + 1)
    chosen = image if random.random() < 0.5 else mirrored
    crop = chosen.crop((int(left), int(top), int(left) + width, int(top) + height))
    crop = ImageEnhance.Brightness(crop).enhance(random.uniform(0.75, 1.25))
    return ImageEnhance.Color(crop).enhance(random.uniform(0.7, 1.3))


def read_set(name: str, shared: Path) -> tuple[list[Image.Image], PairTexts]:
    """Decode one set whole and collect its words."""
    paths = sorted((shared / "data").glob(SETS[name].pattern))
    if not paths:
        raise SystemExit(f"no shard matches {SETS[name].pattern} in {shared / 'data'}")
    images, words = [], PairTexts()
    for sample in read_shards(paths):
        if name == "clothing_train" and int(sample.key) >= CLOTHING_TRAIN_BELOW:
            continue
        images.append(read_image(sample.image))
        if "captions" in sample.info:
            words.texts.append([clean_caption(caption) for caption in sample.info["captions"]])
            words.files.append(sample.info["file"])
            continue
        synonyms = sample.info.get("names") or [sample.info["name"]]
        words.texts.append([clean_name(name) for name in synonyms])
        words.labels.append(sample.info["label"])
    return images, words


def read_drawings(extra: Path) -> tuple[list[Image.Image], PairTexts]:
    """Drawings, small at once: some are posters. Those of one name share a label."""
    images, words = [], PairTexts()
    numbers: dict[str, int] = {}
    for path, texts in drawings(extra):
        try:
            image = read_image(path)
        except UnreadableImage:
            continue
        image.thumbnail((PREPROCESS.image_size * 2,) * 2)
        images.append(image)
        words.texts.append(texts)
        words.labels.append(numbers.setdefault(texts[0], len(numbers)))
    return images, words


class Teacher(NamedTuple):
    """The public image tower and its ImageNet classifier."""

    tower: EfficientNetLiteTower
    weight: Float[Tensor, "label channel"]
    bias: Float[Tensor, " label"]


def load_teacher(efficientnet: Path) -> Teacher:
    """The tower that `mini` starts from and is kept close to."""
    foreign = torch.load(efficientnet, weights_only=True)
    tower = EfficientNetLiteTower(IMAGE).eval()
    load_weights(tower, efficientnet_lite_weights(foreign), source=str(efficientnet))
    return Teacher(tower, foreign["_fc.weight"], foreign["_fc.bias"])


class _Locked(torch.nn.Module):
    """The locked part's feature map and, from it, the locked tower's features."""

    def __init__(self, tower: EfficientNetLiteTower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.tower.to_block(pixels, LOCKED_BLOCKS)
        return maps, self.tower.from_block(maps, LOCKED_BLOCKS)


def prepare(work: Path, shared: Path, extra: Path, tower: EfficientNetLiteTower) -> None:
    """Cache every set that is not cached yet."""
    work.mkdir(parents=True, exist_ok=True)
    locked = work / "locked.onnx"  # ONNX Runtime fuses batch norm: twice PyTorch's speed
    size = PREPROCESS.image_size
    export_module(
        _Locked(tower),
        torch.zeros(2, 3, size, size),
        locked,
        input_name="pixels",
        output_names=["maps", "features"],
        free_axes={0: "batch"},
    )
    session = onnxruntime.InferenceSession(locked)
    for name, plan in SETS.items():
        if (work / f"{name}.json").exists():
            continue
        images, words = read_drawings(extra) if name == "drawings" else read_set(name, shared)
        shape = session.run(None, {"pixels": np.zeros((1, 3, size, size), np.float32)})[0].shape[1:]
        maps = np.lib.format.open_memmap(
            work / f"{name}.maps.npy", "w+", np.float16, (plan.views, len(images), *shape)
        )
        features = np.empty((plan.views, len(images), tower.config.width), np.float32)

        def pixels_of(part: tuple[int, int], images: list[Image.Image] = images) -> np.ndarray:
            view, start = part
            batch = enumerate(images[start : start + BATCH], start)
            return np.stack([PREPROCESS(view_of(image, view, row)) for row, image in batch])

        parts = [(v, s) for v in range(plan.views) for s in range(0, len(images), BATCH)]
        with ThreadPoolExecutor(1) as reader:  # one batch ahead of the tower
            ahead = reader.submit(pixels_of, parts[0])
            for number, (view, start) in enumerate(track(parts, description=name)):
                pixels = ahead.result()
                if number + 1 < len(parts):
                    ahead = reader.submit(pixels_of, parts[number + 1])
                rows = slice(start, start + len(pixels))
                maps[view, rows], features[view, rows] = session.run(None, {"pixels": pixels})
        maps.flush()
        np.save(work / f"{name}.features.npy", features)
        # Written last: its presence says that the set is whole.
        (work / f"{name}.json").write_text(json.dumps(asdict(words)))
