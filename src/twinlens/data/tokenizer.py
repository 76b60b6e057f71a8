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
from twinlens.data.cleaning import Cleaning
from twinlens.errors import ConfigError

_NEEDS_FILE = ("wordpiece", "tokenizer_json", "sentencepiece")


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(JsonConfig):
    """How one model wants its texts; part of model.json.

    `kind` says whose rules and `file` whose vocabulary: None is CLIP's own, which ships with
    the package. `start_token`, `end_token` and `unknown_token` are names in a `vocab.json`;
    the ids are for files that do not say them, and None there means no such token. For
    wordpiece `end_id` stands in for [SEP].
    """

    kind: Literal["wordpiece", "clip_bpe", "tokenizer_json", "sentencepiece"]
    context: int  # tokens, specials included
    file: str | None = None  # beside the file that names it
    merges_file: str | None = None  # beside `file`, when that is a vocab.json
    pad_id: int = 0
    pad_to_context: bool = False  # for towers that see every position and have no mask
    cleaning: Cleaning | None = None  # None: "clip" for clip_bpe, "none" for the others
    specials: Literal["text", "open_clip", "openai"] = "text"  # clip_bpe alone: clip_bpe.py
    start_id: int | None = None
    end_id: int | None = None
    start_token: str = "<|startoftext|>"
    end_token: str = "<|endoftext|>"
    unknown_token: str | None = None

    def __post_init__(self) -> None:
        if self.context < 1:
            raise ConfigError(f"context {self.context}: must be at least 1 token")
        if self.file is None and self.kind in _NEEDS_FILE:
            raise ConfigError(f"A tokenizer of kind {self.kind!r} needs the name of its file.")
        if self.specials != "text" and self.kind != "clip_bpe":
            raise ConfigError(
                f"specials {self.specials!r} is known for kind 'clip_bpe' only, "
                f"not for {self.kind!r}: leave it out."
            )


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


def tokenizer_files(config: TokenizerConfig) -> list[str]:
    """Names of the files that the tokenizer reads: what a copy of the model must have."""
    return [name for name in (config.file, config.merges_file) if name is not None]


def open_tokenizer(config: TokenizerConfig, folder: Path) -> Tokenizer:
    """The tokenizer that `config` names; its files are in `folder`.

    Raises ConfigError for a vocabulary that is missing or does not fit, MissingExtra for a
    kind whose package is not installed.
    """
    if config.kind == "clip_bpe":
        return _open_clip_bpe(config, folder)
    assert config.file is not None
    path = folder / config.file
    if config.kind == "wordpiece":
        from twinlens.data.wordpiece import WordPieceTokenizer

        return WordPieceTokenizer(
            path,
            config.context,
            pad_to_context=config.pad_to_context,
            cleaning=config.cleaning or "none",
            end_id=config.end_id,
        )
    from twinlens.data.sentencepiece_file import SentencePieceTokenizer
    from twinlens.data.tokenizer_file import JsonTokenizer

    kind = JsonTokenizer if config.kind == "tokenizer_json" else SentencePieceTokenizer
    return kind(
        path,
        config.context,
        pad_id=config.pad_id,
        start_id=config.start_id,
        end_id=config.end_id,
        pad_to_context=config.pad_to_context,
        cleaning=config.cleaning or "none",
    )


def _open_clip_bpe(config: TokenizerConfig, folder: Path) -> Tokenizer:
    from twinlens.data import clip_bpe

    if config.file is None:
        vocabulary = clip_bpe.clip_vocabulary()
    elif config.merges_file is None:
        vocabulary = clip_bpe.read_clip_vocabulary(folder / config.file)
    else:
        vocabulary = clip_bpe.read_merges_vocabulary(
            folder / config.file,
            folder / config.merges_file,
            config.start_token,
            config.end_token,
            config.unknown_token,
        )
    return clip_bpe.ClipBpeTokenizer(
        vocabulary,
        config.context,
        pad_id=config.pad_id,
        pad_to_context=config.pad_to_context,
        cleaning=config.cleaning or "clip",
        specials=config.specials,
    )
