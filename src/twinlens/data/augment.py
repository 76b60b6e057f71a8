"""Random views of training pairs: another crop, colours and caption each time they come.

What happens to a pair depends on the seed and its slot in the stream alone, not on the
worker that does it or on what came before: a resumed run sees exactly the same views.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32
from PIL import Image, ImageEnhance

from twinlens.config import JsonConfig
from twinlens.data.preprocess import Preprocess
from twinlens.errors import ConfigError

CROP_ATTEMPTS = 10  # before the largest crop of the nearest shape is taken


@dataclass(frozen=True, kw_only=True)
class Augment(JsonConfig):
    """How much views differ. The defaults are OpenCLIP's: crops of at least 90 % of the area."""

    crop_scale: tuple[float, float] = (0.9, 1.0)  # share of the area; (1, 1): no crop at all
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width over height
    flip: float = 0.0  # chance; captions may say left and right
    brightness: float = 0.0  # factor from 1 - x to 1 + x
    contrast: float = 0.0
    saturation: float = 0.0
    jitter_chance: float = 1.0  # that the three above are applied
    grey: float = 0.0  # chance
    caption: str = "random"  # "random" or "first", where a picture has several
    keyword_drop: float = 0.0  # chance that one of several keywords between commas is left out

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ConfigError(f"crop_scale must be two shares up to 1, not {self.crop_scale}.")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ConfigError(f"crop_ratio must be two ratios above 0, not {self.crop_ratio}.")
        for name in ("flip", "jitter_chance", "grey", "keyword_drop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is a chance from 0 to 1, not {getattr(self, name)}.")
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must be from 0 to below 1, not {getattr(self, name)}.")
        if self.caption not in ("random", "first"):
            raise ConfigError(f"caption must be 'random' or 'first', not {self.caption!r}.")

    @property
    def crops(self) -> bool:
        return self.crop_scale != (1.0, 1.0)

    def decode_size(self, preprocess: Preprocess) -> int:
        """Pixels that a decoder must leave so that the smallest crop is not enlarged."""
        return math.ceil(preprocess.resized_side / math.sqrt(self.crop_scale[0]))

    def view(
        self, image: Image.Image, preprocess: Preprocess, random: np.random.Generator
    ) -> Float32[np.ndarray, "3 height width"]:
        """A random view of an RGB picture, ready for the tower.

        A crop is resized to the whole square, as in OpenCLIP and torchvision, whatever shape
        it has; without crops the picture is resized as `preprocess` says.
        """
        if self.crops:
            image = image.crop(self._box(image.size, random))
            preprocess = replace(preprocess, resize="squash", resize_size=None)
        image = preprocess.resized(image)  # what follows is cheapest on few pixels
        if random.random() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if random.random() < self.jitter_chance:
            for strength, kind in (
                (self.brightness, ImageEnhance.Brightness),
                (self.contrast, ImageEnhance.Contrast),
                (self.saturation, ImageEnhance.Color),
            ):
                if strength:
                    image = kind(image).enhance(random.uniform(1 - strength, 1 + strength))
        if random.random() < self.grey:
            image = image.convert("L").convert("RGB")
        return replace(preprocess, resize="squash", resize_size=None)(image)

    def choose(self, captions: tuple[str, ...], random: np.random.Generator) -> str:
        """One of the captions, perhaps without some of its keywords."""
        number = 0 if self.caption == "first" else int(random.integers(len(captions)))
        return self.thinned(captions[number], random)

    def thinned(self, caption: str, random: np.random.Generator) -> str:
        """The caption without some of its keywords; at least one stays."""
        keywords = caption.split(",")
        if not self.keyword_drop or len(keywords) < 2:
            return caption
        draws = random.random(len(keywords))
        kept = [k for k, draw in zip(keywords, draws, strict=True) if draw >= self.keyword_drop]
        return ",".join(kept or [keywords[int(draws.argmax())]]).strip()

    def _box(self, size: tuple[int, int], random: np.random.Generator) -> tuple[int, int, int, int]:
        """A random resized crop (Szegedy et al. 2014, arXiv:1409.4842, section 6)."""
        width, height = size
        low, high = map(math.log, self.crop_ratio)
        for _ in range(CROP_ATTEMPTS):
            area = width * height * random.uniform(*self.crop_scale)
            ratio = math.exp(random.uniform(low, high))
            crop_width = round(math.sqrt(area * ratio))
            crop_height = round(math.sqrt(area / ratio))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                left = int(random.integers(width - crop_width + 1))
                top = int(random.integers(height - crop_height + 1))
                return left, top, left + crop_width, top + crop_height
        ratio = min(max(width / height, self.crop_ratio[0]), self.crop_ratio[1])
        crop_width = max(1, min(width, round(height * ratio)))
        crop_height = max(1, min(height, round(width / ratio)))
        left, top = (width - crop_width) // 2, (height - crop_height) // 2
        return left, top, left + crop_width, top + crop_height


def generator(seed: int, slot: int, purpose: int) -> np.random.Generator:
    """Randomness for one purpose (0: captions, 1 and up: pictures) of the sample in a slot."""
    # The seed sequence is NumPy's own hash: neighbouring slots have nothing in common.
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, slot, purpose))))
