"""Text to token ids by a SentencePiece model (`spiece.model`), through `sentencepiece`.

SigLIP's vocabulary is published so. "</s>" in a text is text: SentencePiece finds no control
pieces in what it reads.
"""

from pathlib import Path

from twinlens.data.cleaning import Cleaning, clean
from twinlens.data.framed import FramedTokenizer
from twinlens.data.tokenizer_file import begins_word
from twinlens.errors import ConfigError, require_package

_SPACE = "▁"  # how SentencePiece writes one


class SentencePieceTokenizer(FramedTokenizer):
    """Texts in, padded token ids out, by the pieces of a SentencePiece model.

    `start_id` and `end_id` None: no such token is put around a text.
    Raises ConfigError for a file that cannot be used, MissingExtra without `sentencepiece`.
    """

    def __init__(
        self,
        path: Path,
        context: int,
        *,
        pad_id: int,
        start_id: int | None,
        end_id: int | None,
        pad_to_context: bool = False,
        cleaning: Cleaning = "none",
    ) -> None:
        super().__init__(
            context=context,
            pad_id=pad_id,
            start_id=start_id,
            end_id=end_id,
            pad_to_context=pad_to_context,
        )
        require_package("sentencepiece", extra="tokenizers", purpose=f"{path}")
        import sentencepiece

        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"{path}: not a readable SentencePiece model ({error}). Download it again."
            ) from error
        self.cleaning: Cleaning = cleaning

    @property
    def size(self) -> int:
        """Pieces in the vocabulary: ids are below it."""
        return int(self._model.get_piece_size())

    def id_of(self, piece: str) -> int | None:
        """The id of a piece, None for one that the vocabulary lacks."""
        number = int(self._model.piece_to_id(piece))
        return number if self._model.id_to_piece(number) == piece else None

    def words(self, text: str) -> list[list[int]]:
        """The ids of each word of `text`, without start and end."""
        # A typed "▁" would be read as the space that it stands for.
        ids = self._model.encode(clean(text.replace(_SPACE, " "), self.cleaning), out_type=int)
        words: list[list[int]] = []
        for number in ids:
            piece = self._model.id_to_piece(number)
            if not words or piece.startswith(_SPACE) or begins_word(f"a{piece}", 1):
                words.append([])
            words[-1].append(number)
        return words
