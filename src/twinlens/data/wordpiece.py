"""Text to token ids as BERT's uncased WordPiece does it, from a vocab.txt alone.

Gives the ids of Hugging Face's BertWordPieceTokenizer without that package's 58 MB, with
two deliberate exceptions: special tokens typed by a user ("[SEP]") are ordinary text here,
so nobody ends a caption early by writing one; and characters that Unicode gained since
2015 follow Python's own tables, which are newer than that library's.
"""

import os
import unicodedata

from twinlens.data.cleaning import Cleaning, clean
from twinlens.data.framed import FramedTokenizer
from twinlens.errors import ConfigError

_LONGEST_WORD = 100  # characters; BERT gives up on longer ones
_CACHED_WORDS = 50_000  # about 10 MB; captions repeat a few thousand words

# The third last starts at 0x2B820 in Google's code, at 0x2B920 in Hugging Face's.
_CJK_RANGES = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


class WordPieceTokenizer(FramedTokenizer):
    """Texts in, padded token ids out; `context` counts [CLS] and [SEP] too.

    `end_id` stands in for [SEP]: CLIPA, as open_clip has it, was trained without that token.
    Raises ConfigError for a vocabulary without the special tokens or an impossible context.
    """

    def __init__(
        self,
        vocab_path: str | os.PathLike[str],
        context: int,
        *,
        pad_to_context: bool = False,
        cleaning: Cleaning = "none",
        end_id: int | None = None,
    ) -> None:
        try:
            with open(vocab_path, encoding="utf-8") as file:
                self._ids = {line.rstrip("\r\n"): number for number, line in enumerate(file)}
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{os.fspath(vocab_path)}: not a readable vocabulary ({error})"
            ) from error
        specials = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
        if missing := [token for token in specials if token not in self._ids]:
            raise ConfigError(f"{os.fspath(vocab_path)}: the vocabulary lacks {', '.join(missing)}")
        pad_id, self._unknown_id, start_id, own_end_id = (self._ids[token] for token in specials)
        super().__init__(
            context=context,
            pad_id=pad_id,
            start_id=start_id,
            end_id=own_end_id if end_id is None else end_id,
            pad_to_context=pad_to_context,
        )
        self.cleaning: Cleaning = cleaning
        self._pieces_of_word: dict[str, tuple[int, ...]] = {}

    @property
    def size(self) -> int:
        """Pieces in the vocabulary: ids are below it."""
        return len(self._ids)

    def words(self, text: str) -> list[tuple[int, ...]]:
        """The ids of each word of `text`, without [CLS] and [SEP]."""
        if self.cleaning != "none":
            text = clean(text, self.cleaning)
        return [self._pieces(word) for word in _words(text)]

    def kept_text(self, text: str) -> str:
        """The beginning of `text`, as it was typed, whose words survive truncation whole."""
        if self.cleaning != "none":
            return super().kept_text(text)
        # One character at a time makes a word here, so its place is found without searching.
        words = self.words(text)
        kept_words = self._words_that_fit(words)
        if kept_words == len(words):
            return text
        words_begun, inside_word = 0, False
        for position, character in enumerate(text):
            for normalised in _NORMALISED[ord(character)]:
                if normalised == " ":
                    inside_word = False
                elif not inside_word:
                    inside_word = True
                    words_begun += 1
                    if words_begun > kept_words:
                        return text[:position].rstrip()
        return text

    def _pieces(self, word: str) -> tuple[int, ...]:
        pieces = self._pieces_of_word.get(word)
        if pieces is None:
            pieces = self._split(word)
            if len(self._pieces_of_word) >= _CACHED_WORDS:
                self._pieces_of_word.clear()
            self._pieces_of_word[word] = pieces
        return pieces

    def _split(self, word: str) -> tuple[int, ...]:
        """The longest known piece from the left, again and again; [UNK] when one is missing."""
        if len(word) > _LONGEST_WORD:
            return (self._unknown_id,)
        pieces: list[int] = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            for end in range(len(word), start, -1):
                piece = self._ids.get(prefix + word[start:end])
                if piece is not None:
                    pieces.append(piece)
                    start = end
                    break
            else:
                return (self._unknown_id,)
        return tuple(pieces)


class _Normalised(dict[int, str]):
    """What each character becomes: lower case without accents, spaces where words part.

    A table for str.translate, filled as characters are met. One character at a time is
    enough for everything BERT does to a text before looking words up.
    """

    def __missing__(self, codepoint: int) -> str:
        self[codepoint] = _normalise(chr(codepoint))
        return self[codepoint]


_NORMALISED = _Normalised()


def _words(text: str) -> list[str]:
    return text.translate(_NORMALISED).split()


def _normalise(character: str) -> str:
    if character in "\t\n\r":
        return " "
    # Control, format, private use, surrogate: invisible. Unassigned ones (Cn) stay.
    if unicodedata.category(character) in ("Cc", "Cf", "Co", "Cs") or character == "\ufffd":
        return ""
    if character.isspace():
        return " "
    result = ""
    for part in unicodedata.normalize("NFD", character):
        if unicodedata.category(part) != "Mn":  # accents
            # One by one: lower() of a whole word would make a final sigma of its last letter.
            result += "".join(
                f" {lower} " if _is_punctuation(lower) else lower for lower in part.lower()
            )
    if any(low <= ord(character) <= high for low, high in _CJK_RANGES):
        return f" {result} "
    return result


def _is_punctuation(character: str) -> bool:
    """ASCII symbols such as $ and + count, though Unicode does not call them so."""
    if character.isascii():
        return character.isprintable() and not character.isalnum() and character != " "
    return unicodedata.category(character).startswith("P")
