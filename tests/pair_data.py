"""Small pictures, shards and folders whose content can be checked by eye."""

import io
import json
import tarfile

from PIL import Image

CAPTION = "picture {}"


def picture(number, size=(24, 16), suffix="PNG"):
    """Bytes of a picture whose every pixel's red, green and blue say its number."""
    buffer = io.BytesIO()
    colour = (number % 256, number // 256 % 256, 7)
    Image.new("RGB", size, colour).save(buffer, suffix)
    return buffer.getvalue()


def number_of(image):
    red, green, _ = image.getpixel((0, 0))
    return red + 256 * green


def write_tar(path, members, mode="w"):
    """`members`: (name, bytes) in order."""
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def members(numbers, captions=1):
    """A picture and its captions as JSON for every number."""
    found = []
    for number in numbers:
        texts = [f"{CAPTION.format(number)} caption {i}" for i in range(captions)]
        words = {"captions": texts} if captions > 1 else {"caption": CAPTION.format(number)}
        found += [
            (f"{number:06d}.png", picture(number)),
            (f"{number:06d}.json", json.dumps(words).encode()),
        ]
    return found


def write_shards(folder, counts, **options):
    """Shards 0000.tar, 0001.tar, ... with so many samples each, numbered through."""
    folder.mkdir(exist_ok=True, parents=True)
    first, paths = 0, []
    for shard, count in enumerate(counts):
        path = folder / f"{shard:04d}.tar"
        paths.append(write_tar(path, members(range(first, first + count), **options)))
        first += count
    return paths


def number_of_key(key):
    """`0003/000123` is 123."""
    return int(key.rpartition("/")[2])
