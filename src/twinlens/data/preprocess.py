"""Turns a picture into the float32 pixels an image tower was trained on.

Three libraries prepare pictures for published CLIPs, and each gives other pixels; `reference`
says whose are reproduced, to the last bit (tests compare with stored outputs of each):

- "open_clip", and OpenAI's: Pillow resizes the picture in its own mode (a palette by nearest
  neighbour, alpha premultiplied); RGB afterwards, alpha dropped; crop margins rounded.
- "transformers": RGB first, transparency onto white; resized as PyTorch does (resample.py);
  crop margins cut. What transformers 5 does by default.
- "transformers_pillow": the same with Pillow's resize; what it does without torchvision.

Decoding is image.py's, which also applies EXIF orientation; no reference does, nor does this.
What a checkpoint folder asks for is read by published_preprocess.py.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float32
from PIL import Image

from twinlens.config import JsonConfig
from twinlens.data.resample import Interpolation, resize_like_torch
from twinlens.errors import ConfigError, UnreadableImage

Reference = Literal["open_clip", "transformers", "transformers_pillow"]

_RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
}

# Above this ratio of long to short side only what the crop shows is resized: 4000x10 pixels
# would otherwise become 89,600x224 on the way to 224x224. At this ratio it is 6 MB.
_LONGEST_RATIO = 32

_WIDEST_FILTER = 3  # pixels to either side: Lanczos
_PREMULTIPLIED = {"RGBA": "RGBa", "LA": "La"}

# Later than models and indexes that exist; see __repr__.
_ADDED_LATER = ("reference", "resize_size", "fill")


@dataclass(frozen=True, kw_only=True, repr=False)
class Preprocess(JsonConfig):
    """How one model wants its pictures; part of model.json."""

    image_size: int  # pixels, square
    # The whole picture, its centre, or the whole picture between bars of `fill`.
    resize: Literal["squash", "shortest", "longest"]
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float]  # of red, green, blue, on a scale of 0 to 1
    std: tuple[float, float, float]
    reference: Reference = "open_clip"
    resize_size: int | None = None  # pixels before the crop; None: image_size
    fill: int = 0  # 0 to 255, in each channel of the picture's own mode

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ConfigError(f"image_size {self.image_size}: must be at least 1 pixel")
        if not all(map(math.isfinite, (*self.mean, *self.std))):
            raise ConfigError(f"mean {self.mean}, std {self.std}: must be finite numbers")
        if min(self.std) <= 0:
            raise ConfigError(f"std {self.std}: must be above zero")
        if self.resized_side < self.image_size:
            raise ConfigError(
                f"resize_size {self.resize_size}: must not be below image_size {self.image_size}, "
                f"which is cut out of it"
            )
        if not 0 <= self.fill <= 255:
            raise ConfigError(f"fill {self.fill}: must be a level from 0 to 255")
        if self.resize == "longest" and (
            self.reference != "open_clip" or self.resized_side != self.image_size
        ):
            raise ConfigError(
                "resize 'longest' pads to image_size as open_clip does: it takes reference "
                "'open_clip' and no resize_size"
            )

    def __repr__(self) -> str:
        """Fields added later show only where they say something.

        An index names its model by a digest that this is part of (model_identity): without
        the rule, every index built before a new field would have to be built again.
        """
        shown = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in dataclasses.fields(self)
            if field.name not in _ADDED_LATER or getattr(self, field.name) != field.default
        ]
        return f"Preprocess({', '.join(shown)})"

    @property
    def resized_side(self) -> int:
        """Pixels of the side that is resized before the crop: what a decoder must leave."""
        return self.image_size if self.resize_size is None else self.resize_size

    def __call__(self, image: Image.Image) -> Float32[np.ndarray, "3 height width"]:
        """Resized, cropped and normalised; height and width are both `image_size`.

        Takes a picture of any mode that Pillow can make RGB. Raises UnreadableImage for another.
        """
        pixels = np.asarray(self.resized(image), dtype=np.float32)  # (height, width, channel)
        mean = np.array(self.mean, dtype=np.float32)
        std = np.array(self.std, dtype=np.float32)
        if self.reference == "transformers":  # joins both steps; the last bit differs
            pixels -= mean * np.float32(255)
            pixels /= std * np.float32(255)
        elif self.reference == "transformers_pillow":  # multiplies, and in float64 at first
            pixels = (pixels.astype(np.float64) * (1 / 255)).astype(np.float32)
            pixels = (pixels - mean) / std
        else:
            pixels = (pixels / np.float32(255) - mean) / std
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def resized(self, image: Image.Image) -> Image.Image:
        """The square RGB picture of `image_size` that the tower sees, still 8 bits."""
        try:
            if self.reference == "open_clip":
                image = self._resize_with_pillow(image)
                return image if image.mode == "RGB" else image.convert("RGB")
            image = _onto_white(image)
        except ValueError as error:  # Pillow knows no way from LAB to RGB, say.
            raise UnreadableImage(
                "<PIL image>", f"mode {image.mode} cannot be made RGB ({error})"
            ) from error
        if self.reference == "transformers_pillow":
            return self._resize_with_pillow(image)
        size = self._resized_size(*image.size)
        pixels = resize_like_torch(image, size, self._crop(size), self.interpolation)
        return Image.fromarray(pixels)

    def _resize_with_pillow(self, image: Image.Image) -> Image.Image:
        square = (self.image_size, self.image_size)
        resampling = _RESAMPLING[self.interpolation]
        width, height = image.size
        size = self._resized_size(width, height)
        if self.resize == "longest":
            return self._padded(image.resize(size, resampling))
        if size == square:
            return image.resize(square, resampling)
        crop = self._crop(size)
        if self.resize == "squash" or max(width, height) <= _LONGEST_RATIO * min(width, height):
            return image.resize(size, resampling).crop(crop)
        return _resize_crop(image, size, crop, resampling)

    def _resized_size(self, width: int, height: int) -> tuple[int, int]:
        """What a picture of this size becomes before the crop or the bars."""
        side = self.resized_side
        if self.resize == "squash":
            return side, side
        if self.resize == "longest":  # open_clip rounds here, and fails where a side becomes 0
            ratio = max(width / side, height / side)
            return max(1, round(width / ratio)), max(1, round(height / ratio))
        short = min(width, height)
        return int(side * width / short), int(side * height / short)  # cut, as in torchvision

    def _crop(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """The centre of `image_size`: left, top, right, bottom."""
        # round() goes half to even.
        whole = round if self.reference == "open_clip" else math.floor
        left, top = (whole((side - self.image_size) / 2) for side in size)
        return left, top, left + self.image_size, top + self.image_size

    def _padded(self, image: Image.Image) -> Image.Image:
        """In the middle of a square of `fill`, in its own mode; an odd rest goes to the end."""
        bands = len(image.getbands())
        colour = self.fill if bands == 1 else (self.fill,) * bands
        padded = Image.new(image.mode, (self.image_size, self.image_size), colour)
        if image.mode == "P":
            padded.putpalette(image.getpalette() or [])
        left, top = ((self.image_size - side) // 2 for side in image.size)
        padded.paste(image, (left, top))
        return padded


def _resize_crop(
    image: Image.Image,
    size: tuple[int, int],
    crop: tuple[int, int, int, int],
    resampling: Image.Resampling,
) -> Image.Image:
    """`crop` of the picture resized to `size`, without resizing more than it shows.

    At most 2 levels of 255 from cropping afterwards (alpha aside): Pillow takes fractions of the
    source's pixels in float32, so coordinates are made small first. By nearest neighbour, a
    result halfway between two pixels may copy the other one.
    """
    spans = []
    for side, resized, first, end in zip(image.size, size, crop[:2], crop[2:], strict=True):
        scale = side / resized
        margin = _WIDEST_FILTER * max(scale, 1.0) + 1
        low, high = int(max(0, first * scale - margin)), int(min(side, end * scale + margin) + 1)
        high = min(high, side)
        spans.append((low, high, first * scale - low, end * scale - low))
    (left, right, x_from, x_to), (top, bottom, y_from, y_to) = spans
    width, height = crop[2] - crop[0], crop[3] - crop[1]
    mode = image.mode
    image = image.crop((left, top, right, bottom))
    if mode in _PREMULTIPLIED and resampling != Image.Resampling.NEAREST:
        image = image.convert(_PREMULTIPLIED[mode])  # once, not before either step
    # Two calls: Pillow 13 would take the columns of a tall picture first, and with the 8 bits in
    # between that is up to 28 levels away from the whole picture resized.
    image = image.resize((width, image.height), resampling, box=(x_from, 0, x_to, image.height))
    image = image.resize((width, height), resampling, box=(0, y_from, width, y_to))
    return image if image.mode == mode else image.convert(mode)


def _onto_white(image: Image.Image) -> Image.Image:
    """In RGB, as transformers 5 makes it: what it takes for transparent lies on white."""
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")
