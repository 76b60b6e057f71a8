"""What every tokenizer does alike once a text is a list of words, each a few ids.

Puts them between the start and the end token, cuts, pads, divides, and finds out how much
of a text survives the cut. Knows no vocabulary: a subclass turns a text into words.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int64

from twinlens.errors import ConfigError

# Characters looked back and forth for the exact end of the text that survives. Prefixes do
# not grow evenly: "&am" is two words, "&amp;" one.
_ENTITY_LENGTH = 12
_LOOK_BACK = 64


class FramedTokenizer(ABC):
    """Texts in, token ids out, with one start and one end token at most.

    `end_id` None means that texts end without one. With `pad_to_context` every row has
    the full length: a tower that sees all positions and has no mask was trained so.
    """

    def __init__(
        self,
        *,
        context: int,
        pad_id: int,
        start_id: int | None,
        end_id: int | None,
        pad_to_context: bool = False,
    ) -> None:
        self.context = context
        self.pad_id = pad_id
        self.pad_to_context = pad_to_context
        self._start = [] if start_id is None else [start_id]
        self._end = [] if end_id is None else [end_id]
        self._room = context - len(self._start) - len(self._end)
        if self._room < 1:
            needed = len(self._start) + 1 + len(self._end)
            raise ConfigError(
                f"context {context}: start token, a word and end token need at least {needed}. "
                f"Give the context that the text tower was trained with."
            )

    @abstractmethod
    def words(self, text: str) -> Sequence[Sequence[int]]:
        """The ids of each word of `text`, without start and end."""

    def __call__(self, texts: Sequence[str]) -> Int64[np.ndarray, "item token"]:
        """Ids of every text, cut to the context and padded to it."""
        return self._rows([self.truncate(self.encode(text)) for text in texts], self.context)

    def encode(self, text: str) -> list[int]:
        """All ids of a text, start and end included, however many they are."""
        ids = self._start.copy()
        for word in self.words(text):
            ids.extend(word)
        return ids + self._end

    def truncate(self, ids: list[int]) -> list[int]:
        """At most `context` ids, the last of them still the end token."""
        if len(ids) <= self.context:
            return ids
        return ids[: self.context - len(self._end)] + self._end

    def pad(self, pieces: Sequence[Sequence[int]]) -> Int64[np.ndarray, "item token"]:
        """One row each, filled up to the longest, or to the context where the tower needs it."""
        longest = max((len(ids) for ids in pieces), default=0)
        return self._rows(pieces, max(longest, self.context) if self.pad_to_context else longest)

    def chunks(self, text: str) -> list[list[int]]:
        """The whole text in parts of at most `context` ids, each a text of its own.

        Parts end between words, except within a word that is longer than a part.
        """
        parts: list[list[int]] = [[]]
        for word in self.words(text):
            ids = list(word)
            if parts[-1] and len(parts[-1]) + len(ids) > self._room:
                parts.append([])
            while len(ids) > self._room:
                parts[-1].extend(ids[: self._room])
                ids = ids[self._room :]
                parts.append([])
            parts[-1].extend(ids)
        kept = [part for part in parts if part or len(parts) == 1]
        return [self._start + part + self._end for part in kept]

    def kept_text(self, text: str) -> str:
        """The beginning of `text`, as it was typed, whose words survive truncation whole."""
        words = self.words(text)
        kept = self._words_that_fit(words)
        if kept == len(words):
            return text
        low, high = 0, len(text)  # the shortest beginning with a word too many lies between
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if len(self.words(text[:middle])) > kept else (middle, high)
        latest = min(low + _ENTITY_LENGTH, len(text) - 1)
        fitting = ""  # for texts whose beginning reads otherwise alone: broken or escaped ones
        for end in range(latest, max(-1, low - _LOOK_BACK), -1):
            beginning = self.words(text[:end])
            if beginning == words[:kept]:
                return text[:end].rstrip()
            if end <= low and not fitting and self._words_that_fit(beginning) == len(beginning):
                fitting = text[:end]
        return fitting.rstrip()

    def _words_that_fit(self, words: Iterable[Sequence[int]]) -> int:
        room, fitting = self._room, 0
        for word in words:
            room -= len(word)
            if room < 0:
                break
            fitting += 1
        return fitting

    def _rows(self, pieces: Sequence[Sequence[int]], width: int) -> Int64[np.ndarray, "item token"]:
        rows = np.full((len(pieces), width), self.pad_id, dtype=np.int64)
        for row, ids in zip(rows, pieces, strict=True):
            row[: len(ids)] = ids
        return rows
