"""Text to token ids as CLIP does it: byte-pair encoding of words, from a vocabulary of merges.

Gives the ids of OpenAI's and open_clip's SimpleTokenizer and, for a `vocab.json` with its
`merges.txt`, of Hugging Face's CLIPTokenizer, with one deliberate exception: the names of
special tokens that a user types ("<|endoftext|>") are ordinary text here, or an early end
token would decide where the text tower pools. `specials` brings back what each reference does.
The vocabulary of the published models ships with this package (MIT, see NOTICE).
"""

import functools
import gzip
import heapq
import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal

from twinlens.data.cleaning import Cleaning, clean
from twinlens.data.framed import FramedTokenizer
from twinlens.errors import ConfigError

Specials = Literal["text", "open_clip", "openai"]

CLIP_VOCABULARY = Path(__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
CLIP_VOCABULARY_SIZE = 49_408
# 512 single bytes and 2 specials fill the rest; the file holds five times more than that.
_CLIP_MERGES = CLIP_VOCABULARY_SIZE - 512 - 2

_END_OF_WORD = "</w>"
_WORD = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_SPECIAL_NAMES: dict[Specials, tuple[str, ...]] = {
    "text": (),
    "open_clip": ("<start_of_text>", "<end_of_text>"),
    "openai": ("<|startoftext|>", "<|endoftext|>"),
}
_CACHED_WORDS = 50_000  # about 10 MB; captions repeat a few thousand words
_LONGEST_CACHED_WORD = 64  # characters: a cache of endless ones would not be bounded

Pair = tuple[int, int]


@dataclass(frozen=True)
class BpeVocabulary:
    """Ids of single bytes, within a word and at its end, and which pairs of ids become one."""

    byte_ids: tuple[int | None, ...]
    last_byte_ids: tuple[int | None, ...]
    merges: dict[Pair, tuple[int, int]]  # (left, right) -> (rank, merged)
    start_id: int
    end_id: int
    unknown_id: int | None = None  # for bytes that the vocabulary lacks


class ClipBpeTokenizer(FramedTokenizer):
    """Texts in, padded token ids out; `context` counts the start and the end token too.

    `cleaning` is what the family does first (cleaning.py). `specials` says whose names of
    special tokens, found in a text, become these tokens: nobody's ("text"), open_clip's or
    OpenAI's, each bit for bit as the reference.
    """

    def __init__(
        self,
        vocabulary: BpeVocabulary,
        context: int = 77,
        *,
        pad_id: int = 0,
        pad_to_context: bool = False,
        cleaning: Cleaning = "clip",
        specials: Specials = "text",
    ) -> None:
        super().__init__(
            context=context,
            pad_id=pad_id,
            start_id=vocabulary.start_id,
            end_id=vocabulary.end_id,
            pad_to_context=pad_to_context,
        )
        self.cleaning: Cleaning = cleaning
        self.vocabulary = vocabulary
        start_and_end = (vocabulary.start_id,), (vocabulary.end_id,)
        self._special_words: dict[str, tuple[int, ...]] = dict(
            zip(_SPECIAL_NAMES[specials], start_and_end, strict=False)
        )
        self._find_words = _word_pattern(specials, ignore_case=cleaning != "nfc").findall
        self._ids_of_word: dict[str, tuple[int, ...]] = {}

    def words(self, text: str) -> list[tuple[int, ...]]:
        """The ids of each word of `text`, without start and end."""
        known = self._ids_of_word
        found = self._find_words(clean(text, self.cleaning))
        return [known.get(word) or self._ids(word) for word in found]

    def _ids(self, word: str) -> tuple[int, ...]:
        ids = self._special_words.get(word)
        if ids is None:
            ids = _merge(self._bytes(word), self.vocabulary.merges)
        if len(word) <= _LONGEST_CACHED_WORD:
            if len(self._ids_of_word) >= _CACHED_WORDS:
                self._ids_of_word.clear()
            self._ids_of_word[word] = ids
        return ids

    def _bytes(self, word: str) -> list[int]:
        *inner, last = word.encode("utf-8")
        vocabulary = self.vocabulary
        ids = [vocabulary.byte_ids[byte] for byte in inner] + [vocabulary.last_byte_ids[last]]
        # CLIP's folders name the end token as the unknown one. It stays out of the text.
        unknown = vocabulary.unknown_id
        if unknown in (vocabulary.start_id, vocabulary.end_id):
            unknown = None
        known = (unknown if number is None else number for number in ids)
        return [number for number in known if number is not None]


def _word_pattern(specials: Specials, *, ignore_case: bool) -> Any:
    import regex  # 15 ms, and the model inside the package does without

    names = [regex.escape(name) for name in _SPECIAL_NAMES[specials]]
    # The references ignore case; Hugging Face's, after NFC, does not.
    return regex.compile("|".join([*names, _WORD]), regex.IGNORECASE if ignore_case else 0)


def _merge(ids: list[int], merges: dict[Pair, tuple[int, int]]) -> tuple[int, ...]:
    """The pair of the lowest rank becomes one, the leftmost first, until no pair has a rank.

    A heap of candidate pairs keeps a word of a million letters from taking quadratic time.
    """
    size = len(ids)
    following, preceding = list(range(1, size + 1)), list(range(-1, size - 1))
    heap = [
        (*merges[pair], place, pair) for place, pair in enumerate(pairwise(ids)) if pair in merges
    ]
    # (rank, merged id, place of the left half, the pair): rank decides, then the place.
    heapq.heapify(heap)
    gone = bytearray(size)
    while heap:
        _, merged, left, pair = heapq.heappop(heap)
        right = following[left]
        if gone[left] or right >= size or (ids[left], ids[right]) != pair:
            continue  # one of its halves was merged with another neighbour meanwhile
        ids[left] = merged
        gone[right] = 1
        after = following[right]
        following[left] = after
        if after < size:
            preceding[after] = left
        for first, second in ((preceding[left], left), (left, after)):
            if first >= 0 and second < size and (ids[first], ids[second]) in merges:
                new = (ids[first], ids[second])
                heapq.heappush(heap, (*merges[new], first, new))
    return tuple(number for number, is_gone in zip(ids, gone, strict=True) if not is_gone)


def _byte_symbols() -> list[str]:
    """The visible character that stands for each byte, as in GPT-2's vocabularies."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in visible]
    stand_ins = {byte: chr(256 + place) for place, byte in enumerate(hidden)}
    return [stand_ins.get(byte, chr(byte)) for byte in range(256)]


@functools.cache  # loading takes 0.1 s, and several models share it
def clip_vocabulary() -> BpeVocabulary:
    """CLIP's own vocabulary, as it ships with this package."""
    return read_clip_vocabulary(CLIP_VOCABULARY)


def read_clip_vocabulary(path: Path) -> BpeVocabulary:
    """CLIP's own vocabulary from a `bpe_simple_vocab_16e6.txt.gz`. Raises ConfigError."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            lines = [line.rstrip("\n") for line in islice(file, 1, _CLIP_MERGES + 1)]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a readable vocabulary ({error}). Copy it again.") from error
    if len(lines) < _CLIP_MERGES:
        raise ConfigError(
            f"{path}: {len(lines):,} merges, CLIP's vocabulary needs {_CLIP_MERGES:,}. "
            f"Copy it again."
        )
    merges = _split_merges(lines, path)
    symbols = _byte_symbols()
    # The ids of single bytes go by the order of their symbols, not of the bytes.
    tokens = sorted(symbols)
    tokens += [symbol + _END_OF_WORD for symbol in tokens]
    tokens += [left + right for left, right in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    ids = {token: number for number, token in enumerate(tokens)}
    return _vocabulary(ids, merges, path, tokens[-2], tokens[-1], None)


def read_merges_vocabulary(
    vocab_path: Path, merges_path: Path, start: str, end: str, unknown: str | None
) -> BpeVocabulary:
    """A vocabulary from Hugging Face's `vocab.json` and `merges.txt`. Raises ConfigError."""
    ids = read_vocab_json(vocab_path)
    try:
        text = merges_path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{merges_path}: not a readable list of merges ({error})") from error
    lines = [line for line in text.split("\n") if line.strip() and not line.startswith("#version")]
    merges = _split_merges([line.rstrip("\r") for line in lines], merges_path)
    return _vocabulary(ids, merges, vocab_path, start, end, unknown)


def read_vocab_json(path: Path) -> dict[str, int]:
    """Token -> id of a Hugging Face `vocab.json`. Raises ConfigError."""
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a readable vocabulary ({error})") from error
    if not isinstance(ids, dict) or not all(type(number) is int for number in ids.values()):
        raise ConfigError(f"{path}: a vocabulary must be a JSON object of tokens and their ids.")
    return ids


def _split_merges(lines: Iterable[str], path: Path) -> list[tuple[str, str]]:
    merges = []
    for line in lines:
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise ConfigError(
                f"{path}: {line!r} is not a merge of two tokens. Copy the file again."
            )
        merges.append((left, right))
    return merges


def _vocabulary(
    ids: dict[str, int],
    merges: list[tuple[str, str]],
    path: Path,
    start: str,
    end: str,
    unknown: str | None,
) -> BpeVocabulary:
    if missing := [token for token in (start, end) if token not in ids]:
        raise ConfigError(
            f"{path}: the vocabulary lacks {' and '.join(missing)}. Name its start and end tokens "
            f"in tokenizer_config.json (bos_token, eos_token)."
        )
    symbols = _byte_symbols()
    if not any(symbol + _END_OF_WORD in ids for symbol in symbols):
        raise ConfigError(
            f"{path}: no token ends with {_END_OF_WORD}, so this is not a vocabulary of CLIP's "
            f"kind. Put the model's tokenizer.json beside it."
        )
    ranked: dict[Pair, tuple[int, int]] = {}
    for rank, (left, right) in enumerate(merges):
        try:
            ranked.setdefault((ids[left], ids[right]), (rank, ids[left + right]))
        except KeyError as error:
            raise ConfigError(
                f"{path}: the vocabulary lacks {error}, which the merges need. "
                f"Copy both files from the same model."
            ) from error
    return BpeVocabulary(
        byte_ids=tuple(ids.get(symbol) for symbol in symbols),
        last_byte_ids=tuple(ids.get(symbol + _END_OF_WORD) for symbol in symbols),
        merges=ranked,
        start_id=ids[start],
        end_id=ids[end],
        unknown_id=None if unknown is None else ids.get(unknown),
    )
