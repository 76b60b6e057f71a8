"""Turns an RGB picture into the float32 pixels an image tower was trained on.

Decoding is image.py's. Follows torchvision's Resize, CenterCrop and Normalize on Pillow
images, which OpenAI and OpenCLIP use, to the last bit.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float32
from PIL import Image

from twinlens.config import JsonConfig
from twinlens.errors import ConfigError

_RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}

# Above this ratio of long to short side the crop is taken before resizing: 4000x10 pixels
# would otherwise become 89,600x224 on the way to 224x224.
_LONGEST_RATIO = 8


@dataclass(frozen=True, kw_only=True)
class Preprocess(JsonConfig):
    """How one model wants its pictures; part of model.json."""

    image_size: int  # pixels, square
    resize: Literal["squash", "shortest"]  # the whole picture, or its centre square
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: tuple[float, float, float]  # of red, green, blue, on a scale of 0 to 1
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ConfigError(f"image_size {self.image_size}: must be at least 1 pixel")
        if not all(map(math.isfinite, (*self.mean, *self.std))):
            raise ConfigError(f"mean {self.mean}, std {self.std}: must be finite numbers")
        if min(self.std) <= 0:
            raise ConfigError(f"std {self.std}: must be above zero")

    def __call__(self, image: Image.Image) -> Float32[np.ndarray, "3 height width"]:
        """Resized, cropped and normalised; height and width are both `image_size`."""
        pixels = np.asarray(self.resized(image), dtype=np.float32)  # (height, width, channel)
        mean = np.array(self.mean, dtype=np.float32)
        std = np.array(self.std, dtype=np.float32)
        normalised = (pixels / np.float32(255) - mean) / std
        return np.ascontiguousarray(normalised.transpose(2, 0, 1))

    def resized(self, image: Image.Image) -> Image.Image:
        """The square RGB picture of `image_size` that the tower sees, still 8 bits."""
        if image.mode != "RGB":
            raise ConfigError(f"mode {image.mode}: read_image() makes pictures RGB first")
        square = (self.image_size, self.image_size)
        resampling = _RESAMPLING[self.interpolation]
        if self.resize == "squash":
            return image.resize(square, resampling)

        width, height = image.size
        short = min(width, height)
        # int() cuts and round() goes half to even, as in torchvision; others floor the crop.
        resized_width = int(self.image_size * width / short)
        resized_height = int(self.image_size * height / short)
        left = round((resized_width - self.image_size) / 2)
        top = round((resized_height - self.image_size) / 2)
        crop = (left, top, left + self.image_size, top + self.image_size)
        if max(width, height) <= _LONGEST_RATIO * short:
            return image.resize((resized_width, resized_height), resampling).crop(crop)
        # The same crop in the source's pixels; Pillow's filter still sees beyond its edges.
        x_scale, y_scale = width / resized_width, height / resized_height
        box = (crop[0] * x_scale, crop[1] * y_scale, crop[2] * x_scale, crop[3] * y_scale)
        return image.resize(square, resampling, box=box)
