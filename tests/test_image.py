"""Whatever a folder holds becomes an upright RGB picture, or an UnreadableImage that says why."""

import io
import os
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twinlens.data.image import DRAFT_MARGIN, FORMATS, IMAGE_SUFFIXES, read_image, source_name
from twinlens.errors import UnreadableImage

AWKWARD = Path(__file__).parent.parent.parent / "shared" / "data" / "photos" / "awkward"

WHITE, BLACK, RED, BLUE = (255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 0, 255)


def encoded(image: Image.Image, format_name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def png_header_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0"))


def reason_for(source: object, **options: object) -> str:
    with pytest.raises(UnreadableImage) as caught:
        read_image(source, **options)  # type: ignore[arg-type]
    return caught.value.reason


@pytest.mark.parametrize("format_name", FORMATS)
def test_every_format_is_read_as_the_rgb_it_holds(format_name: str) -> None:
    image = read_image(encoded(Image.new("RGB", (40, 30), RED), format_name))
    assert (image.mode, image.size) == ("RGB", (40, 30))
    red, green, blue = image.getpixel((20, 15))  # type: ignore[misc]
    assert red >= 250 and green <= 5 and blue <= 5


def heic_of(image: Image.Image) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs the extra heic")
    pillow_heif.register_heif_opener()
    return encoded(image, "HEIF", quality=95)


def test_an_iphones_heic_is_read_when_the_extra_is_there() -> None:
    image = read_image(heic_of(Image.new("RGB", (64, 48), RED)))
    assert (image.mode, image.size) == ("RGB", (64, 48))
    red, green, blue = image.getpixel((20, 15))  # type: ignore[misc]
    assert red >= 245 and green <= 10 and blue <= 10


def test_a_heic_without_the_extra_names_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from twinlens.data import image

    monkeypatch.setattr(image, "_heif_is_readable", lambda: False)
    with pytest.raises(UnreadableImage, match=r"pip install 'twinlens\[heic\]'") as caught:
        read_image(b"\0\0\0\x1cftypheic" + bytes(32))
    assert not caught.value.lasting


def test_paths_bytes_pillow_images_and_arrays_give_the_same_picture(tmp_path: Path) -> None:
    array = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    picture = Image.fromarray(array)
    path = tmp_path / "a.png"
    picture.save(path)
    for source in (path, str(path), path.read_bytes(), picture, array):
        np.testing.assert_array_equal(np.asarray(read_image(source)), array)


# --- modes ---


def test_transparent_pixels_become_white_unless_another_background_is_asked_for() -> None:
    clear = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    assert read_image(clear).getpixel((0, 0)) == WHITE
    assert read_image(clear, background=BLACK).getpixel((0, 0)) == BLACK


def test_half_transparent_red_on_white_is_pink() -> None:
    # 255 x 0.5 + 255 x 0.5 red, 0 x 0.5 + 255 x 0.5 the others; alpha 128 is a hair over half.
    assert read_image(Image.new("RGBA", (1, 1), (255, 0, 0, 128))).getpixel((0, 0)) == (
        255,
        127,
        127,
    )


def test_a_transparent_palette_entry_becomes_white() -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([*RED, *BLUE])
    picture.putpixel((1, 0), 1)
    read = read_image(encoded(picture, "GIF", transparency=0))
    assert [read.getpixel((x, 0)) for x in (0, 1)] == [WHITE, BLUE]


def test_a_transparent_colour_key_becomes_white() -> None:
    read = read_image(encoded(Image.new("RGB", (1, 1), RED), "PNG", transparency=RED))
    assert read.getpixel((0, 0)) == WHITE


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV"]
)
def test_every_mode_becomes_rgb(mode: str) -> None:
    assert read_image(Image.new(mode, (3, 2))).mode == "RGB"


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_sixteen_bit_grey_keeps_its_brightness(mode: str) -> None:
    # 65535 is white; 32896 = 128 x 257 is the 16-bit spelling of 128. Pillow clips both to 255.
    picture = Image.new(mode, (3, 1))
    for x, value in enumerate((0, 32896, 65535)):
        picture.putpixel((x, 0), value)
    assert [read_image(picture).getpixel((x, 0)) for x in range(3)] == [BLACK, (128,) * 3, WHITE]


def test_float_pixels_are_stretched_from_their_darkest_to_their_brightest() -> None:
    picture = Image.fromarray(np.array([[-1.0, 0.0, 1.0]], dtype=np.float32))
    greys = [read_image(picture).getpixel((x, 0)) for x in range(3)]
    assert greys == [BLACK, (128,) * 3, WHITE]  # the middle, 127.5, rounds to the even 128


def test_float_pixels_all_alike_or_not_numbers_are_no_error() -> None:
    for value in (7.0, np.nan, np.inf):
        assert read_image(Image.new("F", (2, 2), value)).mode == "RGB"


def test_grey_and_four_channel_arrays_are_accepted() -> None:
    assert read_image(np.full((2, 2), 9, dtype=np.uint8)).getpixel((0, 0)) == (9, 9, 9)
    assert read_image(np.zeros((2, 2, 4), dtype=np.uint8)).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 2, 3)), "of float64: expected uint8"),
        (np.zeros((3, 8, 8), dtype=np.uint8), "shape (3, 8, 8)"),
        (np.zeros((0, 4, 3), dtype=np.uint8), "nothing to see"),
    ],
)
def test_other_arrays_are_refused_with_what_was_expected(array: np.ndarray, words: str) -> None:
    assert words in reason_for(array)


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    for format_name in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], format_name, save_all=True, append_images=frames[1:])
        red, _, blue = read_image(data).getpixel((4, 4))  # type: ignore[misc]
        assert red > 200 and blue < 50, format_name


# --- orientation ---


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_undone(orientation: int, format_name: str) -> None:
    # Upright: the left half red, the right half blue, wider than high, with a white top row.
    upright = Image.new("RGB", (64, 32), RED)
    upright.paste(BLUE, (32, 0, 64, 32))
    upright.paste(WHITE, (0, 0, 64, 8))
    undo = [None, *(Image.Transpose(value) for value in (0, 3, 1, 5, 2, 6, 4))][orientation - 1]
    stored = upright if undo is None else upright.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format_name == "WEBP" else {}
    read = read_image(encoded(stored, format_name, exif=exif, **options))
    assert read.size == upright.size
    difference = np.abs(np.asarray(read).astype(int) - np.asarray(upright).astype(int))
    assert difference.mean() < 8  # JPEG's ringing at the edges


def test_exif_orientation_can_be_left_alone() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.new("RGB", (64, 32)), "JPEG", exif=exif)
    assert read_image(data).size == (32, 64)
    assert read_image(data, exif_orientation=False).size == (64, 32)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's own, while it opens the file
def test_damaged_exif_does_not_cost_the_photo() -> None:
    for exif in (b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0"):
        assert read_image(encoded(Image.new("RGB", (8, 8)), "JPEG", exif=exif)).size == (8, 8)


# --- draft scaling ---


def test_a_large_jpeg_is_decoded_smaller_but_never_below_the_margin() -> None:
    data = encoded(Image.new("RGB", (4000, 3000)), "JPEG")
    # 3000 / (2 x 224) = 6.7, so a quarter is the smallest scale that leaves enough.
    assert DRAFT_MARGIN == 2
    assert read_image(data, target_size=224).size == (1000, 750)
    assert read_image(data, target_size=187).size == (500, 375)  # 3000 / 374 = 8.02
    assert read_image(data).size == (4000, 3000)


def test_draft_scaling_heeds_the_short_side_and_turns_afterwards() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.new("RGB", (4000, 400)), "JPEG", exif=exif)
    assert read_image(data, target_size=100).size == (200, 2000)  # 400 / 200 = 2: half scale
    assert read_image(data, target_size=224).size == (400, 4000)


def test_the_first_of_several_pictures_in_a_jpeg_is_drafted_too() -> None:
    first, second = Image.new("RGB", (1600, 1200), RED), Image.new("RGB", (1600, 1200), BLUE)
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    read = read_image(data, target_size=300)
    assert read.size == (800, 600)
    assert read.getpixel((0, 0))[0] > 250  # type: ignore[index]


def test_draft_scaling_leaves_the_callers_own_picture_alone(tmp_path: Path) -> None:
    Image.new("RGB", (4000, 3000)).save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as picture:
        assert read_image(picture, target_size=224).size == (4000, 3000)


def test_draft_scaling_changes_a_finished_picture_by_little() -> None:
    # Smooth colour and fine noise, as photos have; both decoded to 224 pixels.
    noise = np.random.default_rng(0).normal(0, 20, (1792, 1792, 3))
    ramp = np.linspace(40, 215, 1792)[None, :, None]
    photo = Image.fromarray(np.clip(ramp + noise, 0, 255).astype(np.uint8))
    data = encoded(photo, "JPEG", quality=90)
    whole, draft = (
        np.asarray(read_image(data, target_size=size).resize((224, 224))).astype(int)
        for size in (None, 224)
    )
    assert np.abs(whole - draft).mean() < 1
    assert np.abs(whole - draft).max() <= 8


# --- what cannot be read ---


def test_a_missing_file_is_named_with_the_systems_reason(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="no such file or directory") as caught:
        read_image(tmp_path / "gone.jpg")
    assert caught.value.source == str(tmp_path / "gone.jpg")


def test_folders_and_pipes_are_not_opened(tmp_path: Path) -> None:
    assert reason_for(tmp_path) == "not a regular file"
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.jpg")
        assert reason_for(tmp_path / "pipe.jpg") == "not a regular file"


def test_empty_and_foreign_files_say_so() -> None:
    assert reason_for(b"") == "the file is empty"
    assert "not a picture in a known format (JPEG, PNG," in reason_for(b"not a photo")


def test_postscript_is_refused_since_pillow_would_run_ghostscript() -> None:
    data = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
    assert "not a picture in a known format" in reason_for(data)


def test_a_truncated_file_is_an_error_whatever_its_format() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for format_name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM"):
        data = encoded(Image.fromarray(noise), format_name)
        assert "damaged or cut short" in reason_for(data[: len(data) * 6 // 10]), format_name


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # its remarks on metadata
def test_arbitrary_damage_never_raises_anything_else() -> None:
    """Bytes flipped all over small files of every format: a picture or UnreadableImage."""
    generator = np.random.default_rng(0)
    for format_name in FORMATS:
        data = np.frombuffer(encoded(Image.new("RGB", (16, 16), RED), format_name), dtype=np.uint8)
        for _ in range(60):
            damaged = data.copy()
            places = generator.integers(0, len(data), size=4)
            damaged[places] = generator.integers(0, 256, size=4)
            try:
                image = read_image(damaged.tobytes(), target_size=8, max_megapixels=1.0)
            except UnreadableImage as error:
                assert error.reason
            else:
                assert image.mode == "RGB"


def test_a_bomb_is_refused_by_its_header_with_the_option_that_allows_it() -> None:
    assert reason_for(png_header_claiming(20_000, 15_600)) == (
        "312 megapixels, limit 180. Allow it with --max-megapixels 320"
    )
    assert reason_for(png_header_claiming(1500, 1000), max_megapixels=0.5) == (
        "1.5 megapixels, limit 0.5. Allow it with --max-megapixels 10"
    )


def test_a_raised_limit_is_not_undone_by_pillows_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow warns above MAX_IMAGE_PIXELS and refuses twice that; here only ours counts."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for format_name in ("JPEG", "PNG", "BMP", "GIF", "PPM", "JPEG2000"):
        data = encoded(Image.new("RGB", (40, 30)), format_name)
        assert read_image(data).size == (40, 30), format_name
    assert Image.MAX_IMAGE_PIXELS == 100


def test_running_out_of_memory_is_one_pictures_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", exhausted)
    data = encoded(Image.new("RGB", (8, 8)), "BMP")
    assert reason_for(data) == "not enough memory to decode it"


def test_interruption_is_not_taken_for_a_bad_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    data = encoded(Image.new("RGB", (8, 8)), "BMP")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read_image(data)


def test_many_threads_may_read_at_once() -> None:
    data = encoded(Image.new("RGB", (400, 300), RED), "JPEG")
    sizes: list[tuple[int, int]] = []
    threads = [
        threading.Thread(target=lambda: sizes.append(read_image(data, target_size=50).size))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sizes == [(200, 150)] * 16  # 300 / 100 = 3: half scale


def test_names_for_messages() -> None:
    assert source_name(Path("a") / "b.jpg") == os.path.join("a", "b.jpg")
    assert source_name(b"x") == "<bytes>"
    assert source_name(Image.new("L", (1, 1))) == "<PIL image>"
    assert source_name(np.zeros(1)) == "<array>"
    assert source_name(None) == "<NoneType>"


def test_suffixes_are_lower_case_with_their_dot() -> None:
    assert {".jpg", ".jpeg", ".png", ".webp", ".tiff", ".avif"} <= IMAGE_SUFFIXES
    assert all(suffix == suffix.lower() and suffix[0] == "." for suffix in IMAGE_SUFFIXES)


@pytest.mark.skipif(not AWKWARD.is_dir(), reason="needs the shared photos folder")
def test_the_awkward_files_are_read_or_refused_as_listed() -> None:
    readable = {
        "mpo_two_frames.jpg",
        "gif_named.jpg",
        "one_pixel.png",
        "wide_4000x10.png",
        "rgba_alpha.png",
        "cmyk.jpg",
        "exif_rotated_6.jpg",
    }
    for path in sorted(AWKWARD.glob("*.*g")):
        if path.name in readable:
            assert read_image(path, target_size=224).mode == "RGB", path.name
        else:
            assert reason_for(path), path.name
    assert read_image(AWKWARD / "exif_rotated_6.jpg").size == (120, 160)
