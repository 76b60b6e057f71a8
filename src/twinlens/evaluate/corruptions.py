"""Damages pictures in nine ways and five severities, always the same way for one seed.

Which damage and how much: Hendrycks and Dietterich 2019 (ImageNet-C), arXiv:1903.12261,
section 3; the numbers are those of their code (hendrycks/robustness, imagenet_c/corruptions.py
at 20caed99). They are meant for pictures of 224 pixels, so that every picture is first brought
to a shorter side of REFERENCE_SIDE: a blur of six pixels says nothing of a 12-megapixel photo.

Where ours differ from theirs: `crop`, `grey` and `rotation` are not in ImageNet-C; the blur is
Pillow's (three box blurs); brightness is raised without a round trip through HSV, which is the
same thing; noise is one pattern a picture, made stronger by severity, so that the points of a
curve differ by strength alone. Nothing but Pillow and numpy is needed.
"""

import io
import zlib
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32
from PIL import Image, ImageFilter

from twinlens.errors import ConfigError

REFERENCE_SIDE = 224  # pixels of the shorter side
LONGEST_SIDE = 4 * REFERENCE_SIDE  # a banner of 4000 x 10 must not become 89,600 wide
CORRUPTIONS_VERSION = "corruptions-1"  # raise it when pictures come out otherwise: caches
SEVERITIES = (1, 2, 3, 4, 5)

NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)  # standard deviation; white is 1
BLUR = (1, 2, 3, 4, 6)  # standard deviation in pixels
JPEG = (25, 18, 15, 10, 7)  # quality
PIXELATE = (0.6, 0.5, 0.4, 0.3, 0.25)  # share of the pixels of a side that is left
CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)  # factor
BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5)  # added to the largest channel
CROP = (0.9, 0.8, 0.65, 0.5, 0.35)  # share of each side that is left, anywhere in the picture
GREY = (0.2, 0.4, 0.6, 0.8, 1.0)  # share of the colour that is gone
ROTATION = (5, 10, 20, 45, 90)  # degrees, to the left or to the right

Random = np.random.Generator
Pixels = Float32[np.ndarray, "height width channel"]


def reference_size(image: Image.Image) -> Image.Image:
    """The picture with a shorter side of REFERENCE_SIDE, its shape kept."""
    width, height = image.size
    scale = min(REFERENCE_SIDE / min(width, height), LONGEST_SIDE / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def corrupted(
    image: Image.Image, kind: str, severity: int, *, seed: int = 0, picture: int = 0
) -> Image.Image:
    """An RGB picture, damaged; `kind` is one of KINDS, `severity` 1 to 5, 0 for no damage.

    `picture` is a number of the picture's own: two pictures get different noise, one picture
    the same at every severity. `image` should come from reference_size.

    Raises ConfigError for a kind or a severity that is not there.
    """
    check_kinds([kind], [severity] if severity else [])
    if severity == 0:
        return image
    random = np.random.default_rng([seed, zlib.crc32(kind.encode()), picture])
    return KINDS[kind](image, severity, random)


def check_kinds(kinds: list[str], severities: list[int]) -> None:
    """Raises ConfigError for a kind of damage or a severity that is not there."""
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"{kind!r} is no corruption: choose from {', '.join(KINDS)}.")
    for severity in severities:
        if severity not in SEVERITIES:
            raise ConfigError(f"A corruption's severity is 1, 2, 3, 4 or 5, not {severity}.")


def _noise(image: Image.Image, severity: int, random: Random) -> Image.Image:
    pixels = _pixels(image)
    pattern = random.standard_normal(pixels.shape, dtype=np.float32)
    return _image(pixels + NOISE[severity - 1] * pattern)


def _blur(image: Image.Image, severity: int, random: Random) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(BLUR[severity - 1]))


def _jpeg(image: Image.Image, severity: int, random: Random) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG[severity - 1])
    with Image.open(file) as decoded:
        decoded.load()
        return decoded.convert("RGB")


def _pixelate(image: Image.Image, severity: int, random: Random) -> Image.Image:
    share = PIXELATE[severity - 1]
    small = (max(1, int(image.width * share)), max(1, int(image.height * share)))
    return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX)


def _contrast(image: Image.Image, severity: int, random: Random) -> Image.Image:
    pixels = _pixels(image)
    means = pixels.mean(axis=(0, 1), keepdims=True)
    return _image((pixels - means) * CONTRAST[severity - 1] + means)


def _brightness(image: Image.Image, severity: int, random: Random) -> Image.Image:
    pixels = _pixels(image)
    value = pixels.max(axis=2, keepdims=True)  # HSV's V; hue and saturation are ratios to it
    brighter = np.minimum(value + np.float32(BRIGHTNESS[severity - 1]), 1)
    factor = np.divide(brighter, value, out=np.zeros_like(value), where=value > 0)
    return _image(np.where(value > 0, pixels * factor, brighter))


def _crop(image: Image.Image, severity: int, random: Random) -> Image.Image:
    share = CROP[severity - 1]
    width, height = max(1, round(image.width * share)), max(1, round(image.height * share))
    across, down = random.random(2)  # where it is depends on the picture alone
    left, top = round(across * (image.width - width)), round(down * (image.height - height))
    return image.crop((left, top, left + width, top + height))


def _grey(image: Image.Image, severity: int, random: Random) -> Image.Image:
    return Image.blend(image, image.convert("L").convert("RGB"), GREY[severity - 1])


def _rotation(image: Image.Image, severity: int, random: Random) -> Image.Image:
    """Turned within its frame; the corners get the picture's mean colour."""
    degrees = ROTATION[severity - 1] * (1 if random.random() < 0.5 else -1)
    if abs(degrees) == 90:  # nothing is cut off and nothing filled
        return image.transpose(
            Image.Transpose.ROTATE_90 if degrees > 0 else Image.Transpose.ROTATE_270
        )
    mean = _pixels(image).mean(axis=(0, 1)) * 255
    red, green, blue = (round(float(channel)) for channel in mean)
    return image.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=(red, green, blue))


def _pixels(image: Image.Image) -> Pixels:
    """Values from 0 to 1."""
    return np.asarray(image, dtype=np.float32) / np.float32(255)


def _image(pixels: Pixels) -> Image.Image:
    return Image.fromarray(np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8))


KINDS: dict[str, Callable[[Image.Image, int, Random], Image.Image]] = {
    "blur": _blur,
    "jpeg": _jpeg,
    "noise": _noise,
    "crop": _crop,
    "grey": _grey,
    "brightness": _brightness,
    "contrast": _contrast,
    "pixelate": _pixelate,
    "rotation": _rotation,
}
