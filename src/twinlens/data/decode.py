"""From a reference to a pair: reads the bytes, the words in them, and decodes the picture.

Whatever is wrong with a sample comes back as a BadSample, never as an exception: one bad
picture among a million ends nothing. Runs in any thread or process.
"""

import json
import os
from dataclasses import replace

from twinlens.data.image import DEFAULT_MAX_MEGAPIXELS, read_image
from twinlens.data.pairs import BadSample, Pair, ShardSource, Source, words_of
from twinlens.data.parts import WHOLE_FILE, Bytes, Reference
from twinlens.errors import UnreadableImage

# Members of a sample stand together in a tar: one read fetches all of them, headers included.
LARGEST_GAP_BYTES = 64 * 1024


def read_pair(
    reference: Reference,
    source: Source,
    *,
    target_size: int | None = None,
    max_megapixels: float = DEFAULT_MAX_MEGAPIXELS,
) -> Pair | BadSample:
    """The decoded pair, or what is wrong with it.

    `target_size` (pixels) is what a JPEG may be decoded smaller for; see read_image.
    """
    found = read_words(reference, source)
    if isinstance(found, BadSample):
        return found
    data, captions, label = found
    try:
        image = read_image(data, target_size=target_size, max_megapixels=max_megapixels)
    except UnreadableImage as error:
        return BadSample("unreadable picture", reference.key, error.reason)
    return Pair(reference.key, image, captions, label, source.name)


def read_words(
    reference: Reference, source: Source
) -> tuple[bytes | str, tuple[str, ...], int | None] | BadSample:
    """The picture, still encoded (its bytes or its path), its captions and its label."""
    if reference.image is None:
        return BadSample("no picture", reference.key)
    captions, label = reference.captions, reference.label
    try:
        members = _read([reference.image, *(where for _, where in reference.members)])
    except OSError as error:
        kind = "unreadable picture" if reference.image.size == WHOLE_FILE else "unreachable shard"
        return BadSample(kind, reference.key, (error.strerror or str(error)).lower())
    if reference.members:
        texts = dict(zip((name for name, _ in reference.members), members[1:], strict=True))
        assert isinstance(source, ShardSource)
        words = _words(texts, source)
        if isinstance(words, BadSample):
            return replace(words, name=reference.key)
        captions, label = words
    if not captions:
        return BadSample("no caption", reference.key)
    return members[0], captions, label


def _words(
    texts: dict[str, bytes | str], source: ShardSource
) -> tuple[tuple[str, ...], int | None] | BadSample:
    """Captions and label of a sample in a shard: .json first, .txt without it, .cls for classes."""
    values: dict[str, object] = {}
    if "json" in texts:
        try:
            values = json.loads(texts["json"])
            if not isinstance(values, dict):
                raise ValueError(f"a JSON object was expected, not {type(values).__name__}")
        except ValueError as error:  # UnicodeDecodeError is one, too
            return BadSample("broken JSON", "", str(error))
        except RecursionError:
            return BadSample("broken JSON", "", "nested too deeply")
    if "txt" in texts:
        values.setdefault("txt", _text(texts["txt"]))
    if "cls" in texts:
        values.setdefault(source.label_field, _text(texts["cls"]).strip())
    captions, label = words_of(values, source)
    if not captions and label is not None and 0 <= label < len(source.class_names):
        captions = source.fill([source.class_names[label]])
    return captions, label


def _text(data: bytes | str) -> str:
    return data if isinstance(data, str) else data.decode("utf-8-sig", errors="replace")


def _read(places: list[Bytes]) -> list[bytes | str]:
    """The bytes at every place; for a whole file its path, which read_image takes as well."""
    first = places[0]
    if first.size == WHOLE_FILE:
        os.stat(first.path)
        return [first.path]
    start = min(place.offset for place in places)
    end = max(place.offset + place.size for place in places)
    with open(first.path, "rb", buffering=0) as file:
        if end - start <= sum(place.size for place in places) + LARGEST_GAP_BYTES:
            data = _exactly(file.fileno(), start, end - start)
            return [data[p.offset - start : p.offset - start + p.size] for p in places]
        return [_exactly(file.fileno(), place.offset, place.size) for place in places]


def _exactly(file: int, offset: int, size: int) -> bytes:
    pieces = []
    os.lseek(file, offset, os.SEEK_SET)
    while size > 0:
        piece = os.read(file, size)
        if not piece:
            raise OSError("the file became shorter while it was in use")
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
