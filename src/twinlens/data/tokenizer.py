"""What a tokenizer is to everyone else, and which one a model folder wants.

The tokenizers themselves are in files of their own; this one knows them by name only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from twinlens.config import JsonConfig
from twinlens.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(JsonConfig):
    """How one model wants its texts; part of model.json."""

    kind: Literal["wordpiece"]
    context: int  # tokens, specials included
    file: str | None = None  # beside the file that names it
    pad_id: int = 0

    def __post_init__(self) -> None:
        if self.context < 1:
            raise ConfigError(f"context {self.context}: must be at least 1 token")


@runtime_checkable
class Tokenizer(Protocol):
    """Texts in, token ids out."""

    context: int  # tokens, specials included
    pad_id: int

    def __call__(self, texts: Sequence[str]) -> Int64[np.ndarray, "item token"]:
        """Ids of every text, cut to the context and padded to it."""
        ...

    def encode(self, text: str) -> list[int]:
        """All ids of a text, start and end included, however many they are."""
        ...

    def truncate(self, ids: list[int]) -> list[int]:
        """At most `context` ids, the last of them still the end token."""
        ...

    def pad(self, pieces: Sequence[Sequence[int]]) -> Int64[np.ndarray, "item token"]:
        """One row each, filled up to the longest, or to the context where the tower needs it."""
        ...

    def chunks(self, text: str) -> list[list[int]]:
        """The whole text in parts of at most `context` ids, each a text of its own."""
        ...

    def kept_text(self, text: str) -> str:
        """The beginning of `text`, as it was typed, whose words survive truncation whole."""
        ...


def open_tokenizer(config: TokenizerConfig, folder: Path) -> Tokenizer:
    """The tokenizer that `config` names; its files are in `folder`.

    Raises ConfigError for a vocabulary that is missing or does not fit.
    """
    from twinlens.data.wordpiece import WordPieceTokenizer

    assert config.file is not None
    return WordPieceTokenizer(folder / config.file, config.context)
