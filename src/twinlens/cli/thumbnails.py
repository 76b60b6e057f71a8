"""Small versions of photos: as JPEG for the contact sheet, as escape codes for a terminal.

Only what a terminal announces in its environment is used. Asking it instead would mean
reading its answer from the keyboard, which fails under tmux, ssh and pipes.
Protocols: https://sw.kovidgoyal.net/kitty/graphics-protocol/ and
https://iterm2.com/documentation-images.html.
"""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from twinlens.errors import UnreadableImage

if TYPE_CHECKING:
    from PIL import Image

Protocol = Literal["kitty", "iterm", "blocks"]

TERMINAL_ROWS = 8  # a thumbnail fits into so many lines
TERMINAL_COLUMNS = 32
TERMINAL_PIXELS = 240  # longest side
KITTY_CHUNK_BYTES = 4096  # the protocol's own limit


def terminal_protocol(environment: Mapping[str, str]) -> Protocol | None:
    """How this terminal shows pictures, or None if it does not say that it can."""
    program = environment.get("TERM_PROGRAM", "")
    term = environment.get("TERM", "")
    if "TMUX" in environment or term.startswith(("screen", "tmux")):
        return None  # they swallow the codes
    if "KITTY_WINDOW_ID" in environment or term in ("xterm-kitty", "xterm-ghostty"):
        return "kitty"
    if program in ("iTerm.app", "WezTerm", "mintty", "vscode"):
        return "iterm"
    return None


def terminal_thumbnail(path: Path, protocol: Protocol) -> str:
    """What to print; a few words in place of a picture that cannot be read."""
    image = small_image(path, TERMINAL_PIXELS)
    if image is None:
        return "        (cannot be shown)"
    if protocol == "kitty":
        return _kitty(image)
    if protocol == "iterm":
        return _iterm(image)
    return _blocks(image)


def small_image(path: Path, longest_side: int) -> "Image.Image | None":
    """The picture, upright, at most this large; None when it cannot be read any more."""
    from twinlens.data.image import read_image

    try:
        image = read_image(path, target_size=longest_side)
    except UnreadableImage:
        return None
    image.thumbnail((longest_side, longest_side))
    return image


def encoded(image: "Image.Image", file_format: Literal["JPEG", "PNG"]) -> str:
    """The picture's file, in base64."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, quality=80)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _cells(image: "Image.Image") -> tuple[int, int]:
    """Columns and rows it fills, taking a character cell to be twice as tall as wide."""
    scale = min(TERMINAL_COLUMNS / image.width, 2 * TERMINAL_ROWS / image.height)
    return max(1, round(image.width * scale)), max(1, round(image.height * scale / 2))


def _kitty(image: "Image.Image") -> str:
    columns, rows = _cells(image)
    data = encoded(image, "PNG")
    codes = []
    for start in range(0, len(data), KITTY_CHUNK_BYTES):
        end = start + KITTY_CHUNK_BYTES
        first = f"f=100,a=T,q=2,c={columns},r={rows}," if start == 0 else ""
        more = int(end < len(data))
        codes.append(f"\x1b_G{first}m={more};{data[start:end]}\x1b\\")
    return "".join(codes)


def _iterm(image: "Image.Image") -> str:
    columns, rows = _cells(image)
    options = f"inline=1;width={columns};height={rows};preserveAspectRatio=1"
    return f"\x1b]1337;File={options}:{encoded(image, 'JPEG')}\a"


def _blocks(image: "Image.Image") -> str:
    """Two pixels a character: an upper half block in one colour, on the other colour."""
    columns, rows = _cells(image)
    pixels = np.asarray(image.resize((columns, 2 * rows)))
    lines = []
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        cells = (
            "\x1b[38;2;{};{};{};48;2;{};{};{}m▀".format(*above, *below)
            for above, below in zip(upper, lower, strict=True)
        )
        lines.append("        " + "".join(cells) + "\x1b[0m")
    return "\n".join(lines)
