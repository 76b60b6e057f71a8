"""Text to token ids by a Hugging Face `tokenizer.json`, through the package `tokenizers`.

Any model that file format knows: CLIP's BPE, SigLIP's unigram, Gemma's BPE, BERT's
WordPiece, XLM-R. What a user types is always text here: special tokens are taken out of
the file's reach before it is opened, and start and end are put around by framed.py. The
package's own switch (encode_special_tokens) does not suffice: a unigram model knows "</s>"
as a piece like any other, and finds it.
"""

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinlens.data.cleaning import Cleaning, clean
from twinlens.data.framed import FramedTokenizer
from twinlens.errors import ConfigError, require_package

# Thai to Burmese, Khmer, and from the CJK radicals on: written without spaces, so that
# every piece may be the end of what is kept.
_UNSPACED = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x2E80, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)


@dataclass(frozen=True)
class TokenizerDefinition:
    """What `tokenizer.json` says, before any package has read it."""

    path: Path
    values: dict[str, Any]
    ids: dict[str, int]  # of every token, special ones included
    special_ids: frozenset[int]  # never found in a text
    start_ids: tuple[int, ...]  # put before every text
    end_ids: tuple[int, ...]
    pad_id: int | None

    @property
    def largest_id(self) -> int:
        """The largest id that a text can have; unused special tokens do not count."""
        frame = {*self.start_ids, *self.end_ids}
        known = (i for i in self.ids.values() if i not in self.special_ids or i in frame)
        return max(known, default=0)


def read_definition(path: Path) -> TokenizerDefinition:
    """Read `tokenizer.json` without the package. Raises ConfigError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        ids = dict(_vocabulary_of(values["model"]))
        added = {token["content"]: token for token in values.get("added_tokens") or []}
        ids |= {name: int(token["id"]) for name, token in added.items()}
        start_ids, end_ids = _frame_of(values.get("post_processor"))
        return TokenizerDefinition(
            path=path,
            values=values,
            ids=ids,
            special_ids=frozenset(token["id"] for token in added.values() if token["special"]),
            start_ids=tuple(start_ids),
            end_ids=tuple(end_ids),
            pad_id=(values.get("padding") or {}).get("pad_id"),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path}: not a tokenizer of the package tokenizers ({type(error).__name__}: {error}). "
            f"Download it again."
        ) from error


class JsonTokenizer(FramedTokenizer):
    """Texts in, padded token ids out, by the rules of a `tokenizer.json`.

    `start_id` and `end_id` None: no such token is put around a text.
    Raises ConfigError for a file that cannot be used, MissingExtra without `tokenizers`.
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
        require_package("tokenizers", extra="tokenizers", purpose=f"{path}")
        import tokenizers

        definition = read_definition(path)
        frame = {*definition.start_ids, *definition.end_ids, start_id, end_id}
        self._never = frozenset(number for number in frame if number is not None)
        text = json.dumps(_without_specials(definition, definition.special_ids | self._never))
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the package raises nothing more precise
            raise ConfigError(f"{path}: tokenizers cannot use it ({error}).") from error
        self.cleaning: Cleaning = cleaning

    def words(self, text: str) -> list[list[int]]:
        """The ids of each word of `text`, without start and end."""
        cleaned = clean(text, self.cleaning)
        encoding = self._tokenizer.encode(cleaned, add_special_tokens=False)
        words: list[list[int]] = []
        last_word, last_start = None, -1
        tokens = zip(encoding.ids, encoding.word_ids, encoding.offsets, strict=True)
        for number, word, (start, _) in tokens:
            # Bytes of one character share its place. Gemma's words are known by spaces only.
            if word != last_word or (start > last_start and begins_word(cleaned, start)):
                words.append([])
            last_word, last_start = word, start
            # CLIP's files name the end token as the unknown one. It stays out of the text.
            if number not in self._never:
                words[-1].append(number)
        return words


def begins_word(text: str, place: int) -> bool:
    """Whether a word may begin at `place`: at a space, after one, or where none are used."""
    if place == 0 or place >= len(text):
        return True
    if text[place].isspace() or text[place - 1].isspace():
        return True
    code = ord(text[place])
    return code >= 0x0E00 and any(low <= code <= high for low, high in _UNSPACED)


def _vocabulary_of(model: dict[str, Any]) -> Sequence[tuple[str, int]]:
    """(token, id) of a model's vocabulary: a dict, or for unigram a list in order of ids."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        return [(str(token), int(number)) for token, number in vocabulary.items()]
    return [(str(piece[0]), number) for number, piece in enumerate(vocabulary)]


def _frame_of(processor: dict[str, Any] | None) -> tuple[list[int], list[int]]:
    """Ids that a post-processor puts before and after a single text."""
    if processor is None:
        return [], []
    if "cls" in processor:  # BertProcessing, RobertaProcessing
        return [int(processor["cls"][1])], [int(processor["sep"][1])]
    if "processors" in processor:  # Sequence: the later ones put theirs outside
        start: list[int] = []
        end: list[int] = []
        for inner in processor["processors"]:
            inner_start, inner_end = _frame_of(inner)
            start, end = inner_start + start, end + inner_end
        return start, end
    before: list[int] = []
    after: list[int] = []
    ids = before
    for item in processor.get("single", []):  # TemplateProcessing; ByteLevel has none
        if "Sequence" in item:
            ids = after
        else:
            ids += processor["special_tokens"][item["SpecialToken"]["id"]]["ids"]
    return before, after


def _without_specials(definition: TokenizerDefinition, hidden: frozenset[int]) -> dict[str, Any]:
    """The definition for text alone: nothing in it finds the tokens of the ids `hidden`."""
    values = dict(definition.values)
    values["truncation"] = values["padding"] = values["post_processor"] = None
    values["added_tokens"] = [
        token for token in values.get("added_tokens") or [] if token["id"] not in hidden
    ]
    model = dict(values["model"])
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        # A piece must keep its row. A name drawn anew each time is one that nobody can type.
        unreachable = uuid.uuid4().hex
        model["vocab"] = [
            [f"{unreachable}{number}", piece[1]]
            if number in hidden and number != model.get("unk_id")
            else piece
            for number, piece in enumerate(vocabulary)
        ]
    elif "merges" not in model or model.get("ignore_merges"):
        # BPE finds only what merges lead to, no special token, unless told to ignore them.
        made = {"".join(pair).replace(" ", "", 1) for pair in model.get("merges", [])}
        model["vocab"] = {
            token: number
            for token, number in vocabulary.items()
            if number not in hidden or token == model.get("unk_token") or token in made
        }
    values["model"] = model
    return values
