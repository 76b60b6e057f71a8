"""Step 1 of the `mini` recipe: raw shards to cached feature maps and texts.

Every picture is decoded once per view and run through the part of the image tower
that stays locked (LiT, Zhai et al. 2022, arXiv:2111.07991: what is locked need only
be computed once). What later steps read:

    WORK/<set>.json          texts, group and label of every picture
    WORK/<set>.maps.npy      (view, picture, channel, height, width) float16
    WORK/<set>.teacher.npy   (view, picture, 1000) float16, the ImageNet classifier's logits
"""

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image, ImageEnhance
from rich.progress import track

from twinlens.config import EfficientNetLiteConfig
from twinlens.data.image import read_image
from twinlens.data.preprocess import Preprocess
from twinlens.data.shards import read_shards
from twinlens.model.checkpoint import load_weights
from twinlens.model.convert import efficientnet_lite_weights
from twinlens.model.image_conv import EfficientNetLiteTower
from twinlens.runtime.export import export_module

LOCKED_BLOCKS = 5  # of 16; their output for one picture is 40 x 28 x 28
CLOTHING_TRAIN_BELOW = 1200  # keys; the split that the data's README proposes

# TensorFlow's EfficientNet-Lite: (x - 127) / 128 over 0..255.
PREPROCESS = Preprocess(
    image_size=224,
    resize="squash",  # a search must see the whole photo; Flickr8k reached us squashed too
    interpolation="bicubic",
    mean=(127 / 255,) * 3,
    std=(128 / 255,) * 3,
)


@dataclass(frozen=True)
class SetPlan:
    """Where a set's shards lie and how many views of each picture to cache."""

    pattern: str
    views: int


SETS = {
    "flickr_train": SetPlan("flickr8k/train-*.tar", views=3),
    "flickr_val": SetPlan("flickr8k/val-*.tar", views=1),
    "tiny_train": SetPlan("tinyimagenet/train-*.tar.gz", views=2),
    "clothing_train": SetPlan("clothing/all-*.tar.gz", views=2),
}


@dataclass
class PairTexts:
    """The words of one set. `labels` is empty for captioned photos."""

    texts: list[list[str]] = field(default_factory=list)  # every caption or synonym of a picture
    labels: list[int] = field(default_factory=list)
    class_names: list[list[str]] = field(default_factory=list)  # synonyms of each label


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
    names: dict[int, list[str]] = {}
    for sample in read_shards(paths):
        if name == "clothing_train" and int(sample.key) >= CLOTHING_TRAIN_BELOW:
            continue
        images.append(read_image(sample.image))
        if "captions" in sample.info:
            words.texts.append([clean_caption(caption) for caption in sample.info["captions"]])
            continue
        label = sample.info["label"]
        synonyms = [clean_name(s) for s in sample.info.get("names") or [sample.info["name"]]]
        words.texts.append(synonyms)
        words.labels.append(label)
        names[label] = synonyms
    words.class_names = [names.get(label, []) for label in range(max(names, default=-1) + 1)]
    return images, words


def load_teacher(efficientnet: Path) -> tuple[EfficientNetLiteTower, torch.Tensor, torch.Tensor]:
    """The public image tower and its ImageNet classifier (weight, bias)."""
    foreign = torch.load(efficientnet, weights_only=True)
    tower = EfficientNetLiteTower(EfficientNetLiteConfig()).eval()
    load_weights(tower, efficientnet_lite_weights(foreign), source=str(efficientnet))
    return tower, foreign["_fc.weight"], foreign["_fc.bias"]


class _Locked(torch.nn.Module):
    """The locked part's feature map and, from it, the classifier's logits."""

    def __init__(self, efficientnet: Path) -> None:
        super().__init__()
        self.tower, self.weight, self.bias = load_teacher(efficientnet)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = self.tower.to_block(pixels, LOCKED_BLOCKS)
        return maps, self.tower.from_block(maps, LOCKED_BLOCKS) @ self.weight.T + self.bias


def prepare(work: Path, shared: Path, efficientnet: Path) -> None:
    """Cache every set that is not cached yet."""
    work.mkdir(parents=True, exist_ok=True)
    locked = work / "locked.onnx"  # ONNX Runtime fuses batch norm: twice PyTorch's speed
    export_module(
        _Locked(efficientnet),
        torch.zeros(2, 3, PREPROCESS.image_size, PREPROCESS.image_size),
        locked,
        input_name="pixels",
        output_names=["maps", "logits"],
        free_axes={0: "batch"},
    )
    session = onnxruntime.InferenceSession(locked)
    for name, plan in SETS.items():
        if (work / f"{name}.json").exists():
            continue
        images, words = read_set(name, shared)
        maps = np.lib.format.open_memmap(
            work / f"{name}.maps.npy", "w+", np.float16, (plan.views, len(images), 40, 28, 28)
        )
        teacher = np.empty((plan.views, len(images), 1000), np.float16)
        for view in range(plan.views):
            for start in track(range(0, len(images), 64), description=f"{name} view {view}"):
                batch = images[start : start + 64]
                pixels = np.stack(
                    [
                        PREPROCESS(view_of(image, view, start + offset))
                        for offset, image in enumerate(batch)
                    ]
                )
                rows = slice(start, start + len(batch))
                maps[view, rows], teacher[view, rows] = session.run(None, {"pixels": pixels})
        maps.flush()
        np.save(work / f"{name}.teacher.npy", teacher)
        # Written last: its presence says that the set is whole.
        (work / f"{name}.json").write_text(json.dumps(asdict(words)))
