"""Turns a path, bytes, a Pillow image or an array into one upright RGB picture.

Knows nothing of models: the size and the normalisation a tower wants are
preprocess.py's. What is decided here, once, for the whole package:

- A JPEG is decoded at the smallest of 1/1, 1/2, 1/4 and 1/8 scale that still leaves
  DRAFT_MARGIN times the wanted size: libjpeg skips most of the work.
- EXIF orientation is applied, so that a photo is seen as people see it.
- Transparency is composited onto white, as browsers and paper do; black would make a
  dark logo on a clear background vanish.
- Of an animation or a multi-picture file the first frame counts.
- Colour profiles are ignored, as in every reference CLIP.
- Only FORMATS are tried: some other Pillow plugins start programs (EPS runs Ghostscript).
"""

import functools
import io
import math
import os
import stat

import numpy as np
from PIL import (  # The plugins register themselves in Image.OPEN when imported.
    AvifImagePlugin,  # noqa: F401
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    Jpeg2KImagePlugin,  # noqa: F401
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

from twinlens.errors import UnreadableImage

ImageSource = str | os.PathLike[str] | bytes | Image.Image | np.ndarray

BinaryFile = io.BytesIO | io.BufferedReader

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")

# What iPhones store; read by pillow-heif (extra `heic`, 27 MB), which adds itself to Image.OPEN.
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs")

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .webp .gif .bmp .tif .tiff .avif"
    " .jp2 .j2k .jpx .ppm .pgm .pbm .pnm .heic .heif".split()
)
"""Lower-case suffixes of the files that a folder scan takes for pictures."""

DEFAULT_MAX_MEGAPIXELS = 180.0

# 12 megapixels to 224 pixels on one core: 127 ms whole, 41 ms with a margin of 2, 32 ms with
# 1. Pixels are then 0.2 and 0.6 of 255 off on average; the features of an EfficientNet-Lite0
# keep a cosine with the whole decode's of 0.998 and 0.993 at worst.
DRAFT_MARGIN = 2

_ORIENTATION_TAG = 0x0112
_TURN_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(
    source: ImageSource,
    *,
    target_size: int | None = None,
    max_megapixels: float = DEFAULT_MAX_MEGAPIXELS,
    exif_orientation: bool = True,
    background: tuple[int, int, int] = (255, 255, 255),
) -> Image.Image:
    """The picture in mode RGB, fully decoded and upright.

    With `target_size` (pixels) a JPEG may come back smaller than it is stored, never
    with a side below `target_size` that was not below it already.
    A Pillow image already upright and RGB is returned as it is, not copied.

    Raises UnreadableImage, whatever goes wrong: missing, truncated, not a picture, or
    more than `max_megapixels` according to its header, which is read before the pixels.
    """
    try:
        image = _decode(source, target_size, max_megapixels)
        if exif_orientation:
            image = _upright(image)
        return _to_rgb(image, background)
    except UnreadableImage:
        raise
    # Hostile bytes make Pillow's decoders raise nearly anything: SyntaxError, struct.error,
    # ZeroDivisionError, MemoryError. None of them may end a run over a million photos.
    except Exception as error:
        raise UnreadableImage(source_name(source), _reason(error)) from error


def source_name(source: object) -> str:
    """How messages call a source: its path, or what kind of thing it is."""
    if isinstance(source, str | os.PathLike):
        return os.fsdecode(source)
    if isinstance(source, bytes):
        return "<bytes>"
    if isinstance(source, Image.Image):
        return "<PIL image>"
    if isinstance(source, np.ndarray):
        return "<array>"
    return f"<{type(source).__name__}>"


def _decode(source: ImageSource, target_size: int | None, max_megapixels: float) -> Image.Image:
    """The first frame's pixels, in whatever mode and orientation they are stored."""
    name = source_name(source)
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        _check_size(source, name, max_megapixels)
        source.load()  # Not drafted: that would change the caller's picture.
        return source
    if isinstance(source, bytes):
        return _decode_file(io.BytesIO(source), name, target_size, max_megapixels)
    if isinstance(source, str | os.PathLike):
        if not stat.S_ISREG(os.stat(source).st_mode):  # Opening a pipe would wait for ever.
            raise UnreadableImage(name, "not a regular file")
        with open(source, "rb") as file:
            return _decode_file(file, name, target_size, max_megapixels)
    raise UnreadableImage(
        name, "expected a path, bytes, a Pillow image or a uint8 array (height, width[, channel])"
    )


def _decode_file(
    file: BinaryFile, name: str, target_size: int | None, max_megapixels: float
) -> Image.Image:
    image = _open(file, name)
    _check_size(image, name, max_megapixels)
    if target_size is not None:
        image.draft(None, (DRAFT_MARGIN * target_size, DRAFT_MARGIN * target_size))
    image.load()  # Pillow opens lazily: a truncated file fails here, not at _open().
    return image


def _open(file: BinaryFile, name: str) -> Image.Image:
    """Image.open for FORMATS only, without its own limit on the number of pixels.

    Image.open warns above 89 megapixels and refuses 179, limits that live in a global
    of Pillow's; neither changing that global nor silencing warnings is safe between
    threads. So the registered openers are called directly and _check_size is the limit.
    (Inside their own openers WebP still refuses 179 megapixels and TIFF single tiles of 89.)
    """
    prefix = file.read(16)
    if not prefix:
        raise UnreadableImage(name, "the file is empty")
    formats = ("HEIF",) if prefix[4:8] == b"ftyp" and prefix[8:12] in HEIF_BRANDS else FORMATS
    if formats is not FORMATS and not _heif_is_readable():
        raise UnreadableImage(
            name,
            "HEIC photos need one more package: pip install 'twinlens[heic]'",
            lasting=False,
        )
    for format_name in formats:
        opener, accepts = Image.OPEN[format_name]
        accepted = accepts(prefix) if accepts else True
        if isinstance(accepted, str):  # Recognised, but this Pillow was built without it.
            raise UnreadableImage(name, accepted)
        if accepted:
            file.seek(0)
            return opener(file, "")  # Without a file name Pillow does not map it into memory.
    raise UnreadableImage(name, f"not a picture in a known format ({', '.join(FORMATS)})")


@functools.cache
def _heif_is_readable() -> bool:
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _check_size(image: Image.Image, name: str, max_megapixels: float) -> None:
    width, height = image.size
    if width * height == 0:
        raise UnreadableImage(name, f"{width}x{height} pixels: there is nothing to see")
    megapixels = width * height / 1e6
    if megapixels > max_megapixels:
        enough = math.ceil(megapixels / 10) * 10
        size = f"{megapixels:,.0f}" if megapixels >= 10 else f"{megapixels:.2g}"
        raise UnreadableImage(
            name,
            f"{size} megapixels, limit {max_megapixels:g}. Allow it with --max-megapixels {enough}",
        )


def _from_array(array: np.ndarray) -> Image.Image:
    channels = array.shape[2:]
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in ((), (3,), (4,)):
        raise UnreadableImage(
            source_name(array),
            f"shape {array.shape} of {array.dtype}: expected uint8 values 0 to 255 of shape"
            " (height, width), (height, width, 3) or (height, width, 4)",
        )
    if array.size == 0:
        raise UnreadableImage(source_name(array), f"shape {array.shape}: there is nothing to see")
    return Image.fromarray(array)


def _upright(image: Image.Image) -> Image.Image:
    """The decoded picture, turned as its EXIF orientation asks.

    Called after load(): Pillow turns TIFFs by itself there and drops their tag.
    """
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
        turn = _TURN_UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    except Exception:  # Damaged metadata is no reason to lose a photo whose pixels are fine.
        turn = None
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        image = _wide_to_grey(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (*background, 255))
        image = Image.alpha_composite(canvas, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _wide_to_grey(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float pixels to 8 bits; Pillow's own conversion clips at 255.

    Whole numbers within 16 bits keep their absolute brightness. Everything else has no
    agreed range, so its darkest value becomes black and its brightest white.
    """
    pixels = np.nan_to_num(np.asarray(image).astype(np.float64))
    low, high = float(pixels.min()), float(pixels.max())
    if image.mode != "F" and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    scaled = (pixels - low) * (255.0 / (high - low)) if high > low else np.zeros_like(pixels)
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()  # "no such file or directory", "permission denied"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    return f"damaged or cut short ({str(error) or type(error).__name__})"
