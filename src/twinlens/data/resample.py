"""Resizes an RGB picture bit for bit as PyTorch does a uint8 tensor with antialiasing, in NumPy.

transformers 5 prepares pictures that way (through torchvision), and Pillow's answer differs from
it by up to 3 levels of 255: both filter the rows, round to 8 bits, then filter the columns, but
PyTorch rounds the weights to 16 bits where Pillow keeps 22. Only the part of the result that is
asked for is computed, so a very long picture costs no more memory than a square one.
What to resize to and where to crop is preprocess.py's.

Facts from PyTorch's aten/src/ATen/native/cpu/UpSampleKernel.cpp; tests compare with PyTorch.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int32, Int64, UInt8
from PIL import Image

Interpolation = Literal["bicubic", "bilinear", "nearest", "lanczos"]

# A strip of the picture this high (in the second pass: this wide) is read, filtered and
# forgotten while it is in the cache.
_ROWS_AT_ONCE = 64

# Multiplications in one matrix product: from here on OpenBLAS would wake its other threads,
# which prepare other pictures.
_PRODUCT_SIZE = 2**18

# PyTorch rounds by the largest weight of the whole side, whatever is cropped. It is next to an
# edge or repeats along the side, so that of a huge side the two ends are enough.
_OUTPUTS_LOOKED_AT = 2**15

_EXACT_IN_FLOAT32 = 2**24  # whole numbers up to here; every partial sum must be one

Array = np.ndarray


@dataclass(frozen=True)
class _Block:
    """Neighbouring results along one side, as one matrix over the pixels that they read."""

    outputs: slice
    pixels: slice  # counted from the first pixel that any block reads
    weights: Array  # (output, pixel), whole numbers; float32 where that is exact, else float64


@dataclass(frozen=True)
class _Filter:
    """How one side is resized: a run of results and what each of them reads."""

    first_pixel: int
    end_pixel: int
    precision: int  # bits; weights are multiples of 2^-precision
    offset: Int32[np.ndarray, "output 1"]  # for the 128 taken off every pixel, and for rounding
    blocks: tuple[_Block, ...]


def resize_like_torch(
    image: Image.Image,
    size: tuple[int, int],
    crop: tuple[int, int, int, int],
    interpolation: Interpolation,
) -> UInt8[np.ndarray, "height width 3"]:
    """The part `crop` (left, top, right, bottom) of an RGB picture resized to `size`.

    `size` is (width, height), as in Pillow; `crop` is in pixels of the resized picture and
    lies inside it.
    """
    left, top, right, bottom = crop
    if interpolation == "nearest":
        columns = _nearest(image.width, size[0], left, right)
        rows = _nearest(image.height, size[1], top, bottom)
        window = image.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
        pixels: Array = np.asarray(window)
        pixels = pixels[(rows - rows[0])[:, None], columns - columns[0]]
        return pixels

    across = _filter(image.width, size[0], left, right, interpolation)
    down = _filter(image.height, size[1], top, bottom, interpolation)
    num_rows = down.end_pixel - down.first_pixel
    turned = np.empty((right - left, 3, num_rows), dtype=np.uint8)  # (column, channel, row)
    for start in range(0, num_rows, _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, num_rows)
        upper, lower = down.first_pixel + start, down.first_pixel + stop
        strip = np.asarray(image.crop((across.first_pixel, upper, across.end_pixel, lower)))
        _apply(across, strip.transpose(2, 0, 1), turned[:, :, start:stop])

    result = np.empty((bottom - top, right - left, 3), dtype=np.uint8)
    for start in range(0, right - left, _ROWS_AT_ONCE):
        chosen = slice(start, start + _ROWS_AT_ONCE)
        _apply(down, turned[chosen], result[:, chosen])
    return result


def _apply(
    filter_: _Filter,
    lines: UInt8[np.ndarray, "outer inner pixel"],
    out: UInt8[np.ndarray, "output outer inner"],
) -> None:
    """Writes the filtered lines into `out`, where their pixels come first."""
    centred = lines.astype(np.float32, order="C").reshape(-1, lines.shape[2])
    centred -= 128  # halves the sums, so that more of them are exact in float32
    sums = np.empty((len(out), len(centred)), dtype=np.int32)
    for block in filter_.blocks:
        pixels = centred[:, block.pixels].T
        sums[block.outputs] = block.weights @ pixels.astype(block.weights.dtype, copy=False)
    sums += filter_.offset
    sums >>= filter_.precision  # rounds down, as PyTorch's shift does
    np.clip(sums, 0, 255, out=sums)
    out[...] = sums.reshape(out.shape)


@functools.lru_cache(maxsize=64)
def _filter(
    num_pixels: int, resized: int, first: int, end: int, interpolation: Interpolation
) -> _Filter:
    """Results `first` to `end` of a side of `num_pixels` that becomes `resized` pixels."""
    head = min(_OUTPUTS_LOOKED_AT, resized)
    tail = max(head, resized - _OUTPUTS_LOOKED_AT)
    every = np.concatenate([np.arange(head), np.arange(tail, resized)])
    largest = _weights(num_pixels, resized, every, interpolation)[2].max()
    precision = 0  # as many bits as the largest weight leaves room for in 16
    while precision < 22 and int(0.5 + largest * 2 ** (precision + 1)) < 2**15:
        precision += 1

    starts, ends, weights = _weights(num_pixels, resized, np.arange(first, end), interpolation)
    # Halves go away from zero: C's cast cuts.
    whole = np.trunc(weights * 2**precision + np.copysign(0.5, weights))

    offset = 128 * whole.sum(axis=1, keepdims=True) + 2 ** (precision - 1)

    first_pixel = int(starts.min())
    stretch = max(num_pixels / resized, 1.0)
    side = math.sqrt(_PRODUCT_SIZE / (3 * _ROWS_AT_ONCE * stretch))
    outputs_at_once = max(4, int(side - _KERNELS[interpolation][1]))
    blocks = []
    for start in range(0, end - first, outputs_at_once):
        outputs = slice(start, min(start + outputs_at_once, end - first))
        low, high = int(starts[outputs].min()), int(ends[outputs].max())
        matrix = np.zeros((outputs.stop - start, high - low))
        for row, output in enumerate(range(start, outputs.stop)):
            length = ends[output] - starts[output]
            place = starts[output] - low
            matrix[row, place : place + length] = whole[output, :length]
        largest_sum = 128 * np.abs(matrix).sum(axis=1).max()
        exact = np.float32 if largest_sum <= _EXACT_IN_FLOAT32 else np.float64
        pixels = slice(low - first_pixel, high - first_pixel)
        blocks.append(_Block(outputs, pixels, matrix.astype(exact)))
    return _Filter(first_pixel, int(ends.max()), precision, offset.astype(np.int32), tuple(blocks))


def _weights(
    num_pixels: int,
    resized: int,
    outputs: Int64[np.ndarray, " output"],
    interpolation: Interpolation,
) -> tuple[
    Int64[np.ndarray, " output"],
    Int64[np.ndarray, " output"],
    Float64[np.ndarray, "output pixel"],
]:
    """For each result the first pixel it reads, the end of them, and their weights."""
    scale = num_pixels / resized
    stretch = max(scale, 1.0)  # antialiasing: when shrinking, the filter grows with the scale
    kernel, half_width = _KERNELS[interpolation]
    centres = scale * (outputs + 0.5)
    starts = np.maximum((centres - half_width * stretch + 0.5).astype(np.int64), 0)
    ends = np.minimum((centres + half_width * stretch + 0.5).astype(np.int64), num_pixels)
    offsets = np.arange((ends - starts).max())
    distances = (starts[:, None] + offsets - centres[:, None] + 0.5) * (1.0 / stretch)
    weights = np.where(offsets < (ends - starts)[:, None], kernel(distances), 0.0)
    return starts, ends, weights / weights.sum(axis=1, keepdims=True)


def _nearest(num_pixels: int, resized: int, first: int, end: int) -> Int64[np.ndarray, " output"]:
    """For results `first` to `end` the pixel that each copies; PyTorch's "nearest-exact".

    In float32 with one rounding, as by a fused multiply-add. Where a middle falls between two
    pixels PyTorch's own choice differs with the processor, and ours may.
    """
    scale = np.float64(np.float32(num_pixels) / np.float32(resized))
    places = (scale * (np.arange(first, end) + 0.5) - 0.5).astype(np.float32)
    nearest = np.floor(np.maximum(places, 0) + np.float32(0.5)).astype(np.int64)
    return np.minimum(nearest, num_pixels - 1)


def _bicubic(x: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """Keys's cubic with a = -0.5, as Pillow has it; PyTorch without antialiasing takes -0.75."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _bilinear(x: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    return np.where(np.abs(x) < 1.0, 1.0 - np.abs(x), 0.0)


def _lanczos(x: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    return np.where((x >= -3.0) & (x < 3.0), np.sinc(x) * np.sinc(x / 3.0), 0.0)


_KERNELS: dict[str, tuple[Callable[[Array], Array], float]] = {
    "bicubic": (_bicubic, 2.0),  # and half its width in pixels
    "bilinear": (_bilinear, 1.0),
    "lanczos": (_lanczos, 3.0),
}
