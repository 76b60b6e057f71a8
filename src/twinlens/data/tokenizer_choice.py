"""Which tokenizer a published model wants, from the files beside its weights.

Follows each family's reference: open_clip and OpenAI use CLIP's own vocabulary unless the
configuration names another tokenizer, Hugging Face reads what lies in the folder. Whatever
is assumed is said in a sentence; what cannot be known is an error. Opens no tokenizer.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from twinlens.data.cleaning import Cleaning
from twinlens.data.clip_bpe import (
    CLIP_VOCABULARY,
    CLIP_VOCABULARY_SIZE,
    read_merges_vocabulary,
    read_vocab_json,
)
from twinlens.data.tokenizer import TokenizerConfig
from twinlens.data.tokenizer_file import TokenizerDefinition, read_definition
from twinlens.errors import ConfigError, MissingExtra, require_package

Family = Literal["openai", "open_clip", "clip", "siglip", "siglip2", "bert", "xlm_roberta"]

# These towers mask what is padded; all others that see every position need full length.
_MASKED: tuple[Family, ...] = ("bert", "xlm_roberta")
_CLEANINGS: dict[Family, Cleaning] = {"siglip": "siglip", "siglip2": "lower"}
_OPEN_CLIP_CLEANINGS: dict[str, Cleaning] = {
    "lower": "clip",
    "whitespace": "whitespace",
    "canonicalize": "canonicalize",
}
# Where a family's files name no pad token, its reference class has these.
_PAD_TOKENS: dict[Family, tuple[str, ...]] = {
    "siglip": ("</s>",),
    "siglip2": ("<pad>",),
    "bert": ("[PAD]",),
    "xlm_roberta": ("<pad>",),
    "open_clip": ("<pad>", "[PAD]"),
}
_END_TOKENS = ("</s>", "<eos>")


@dataclass
class _Model:
    """What the caller knows, what its files name, and what had to be assumed."""

    folder: Path
    family: Family
    context: int
    vocab_size: int
    pad_to_context: bool
    cleaning: Cleaning | None  # asked for by open_clip's configuration
    without_end: bool  # likewise: the end token is written as 0
    settings: dict[str, Any]  # tokenizer_config.json
    names: dict[str, str]  # bos_token, eos_token, pad_token, unk_token
    said: list[str] = field(default_factory=list)

    def config(self, **values: Any) -> TokenizerConfig:
        return TokenizerConfig(context=self.context, pad_to_context=self.pad_to_context, **values)

    def check_ids(self, path: Path, largest: int) -> None:
        if largest >= self.vocab_size:
            raise ConfigError(
                f"{path} has ids up to {largest:,}, but the text tower knows {self.vocab_size:,} "
                f"tokens only. Put the tokenizer of this very model there."
            )

    def pad_id(self, path: Path, ids: Mapping[str, int], end: str | None) -> int:
        """The named pad token, or the family's, which is then said."""
        if (named := self.names.get("pad_token")) is not None:
            if named not in ids:
                raise ConfigError(
                    f"{path} lacks the pad token {named!r} that tokenizer_config.json names. "
                    f"Put the files of one model there."
                )
            return ids[named]
        for token in (*_PAD_TOKENS.get(self.family, ()), end):
            if token is not None and token in ids:
                self.said.append(
                    f"{self.folder} names no pad token: {token} (id {ids[token]}) is used, "
                    f"as the family's own tokenizer does."
                )
                return ids[token]
        raise ConfigError(
            f"{self.folder} names no pad token. Put the model's tokenizer_config.json there."
        )


def tokenizer_config_of(
    folder: Path,
    *,
    family: Family,
    context: int,
    vocab_size: int,
    causal: bool,
    text_cfg: Mapping[str, Any] | None = None,
) -> tuple[TokenizerConfig, list[str]]:
    """How the model in `folder` wants its texts, and a sentence for each thing assumed.

    `causal` says whether the text tower sees earlier positions only. `text_cfg` is that part
    of open_clip_config.json: it may name a tokenizer and its cleaning.
    Raises ConfigError where the ids cannot be known, MissingExtra where reading them needs
    a package that is not installed.
    """
    text_cfg_or_empty = text_cfg or {}
    named = text_cfg_or_empty.get("hf_tokenizer_name") or None
    cleaning, without_end = _open_clip_options(folder, text_cfg_or_empty)
    if named and cleaning is None:
        cleaning = "whitespace"  # what open_clip does to a text before such a tokenizer
    settings, names = _settings(folder)
    if family == "siglip" and _is_gemma(settings, names):
        family = "siglip2"  # the published ones declare model_type siglip
    model = _Model(
        folder=folder,
        family=family,
        context=context,
        vocab_size=vocab_size,
        pad_to_context=not causal and family not in _MASKED,
        cleaning=cleaning,
        without_end=without_end,
        settings=settings,
        names=names,
    )
    if settings.get("padding_side") == "left":
        model.said.append(
            f"{folder} asks for padding on the left; the right is used, as in training."
        )
    by_open_clip = family in ("openai", "open_clip") or text_cfg is not None
    if by_open_clip and not named and vocab_size == CLIP_VOCABULARY_SIZE:
        return _clip_vocabulary(model), model.said
    config = _from_files(model)
    if config is None and family == "clip" and vocab_size == CLIP_VOCABULARY_SIZE:
        config = _clip_vocabulary(model)
    if config is None:
        raise ConfigError(_nothing_found(model, named))
    return config, model.said


def _clip_vocabulary(model: _Model) -> TokenizerConfig:
    """CLIP's own, from the folder or from the package."""
    file = CLIP_VOCABULARY.name if (model.folder / CLIP_VOCABULARY.name).is_file() else None
    if file is None:
        model.said.append(
            f"{model.folder} brings no tokenizer: CLIP's own vocabulary of "
            f"{CLIP_VOCABULARY_SIZE:,} is used, padded with 0."
        )
    return model.config(kind="clip_bpe", file=file, pad_id=0, cleaning=model.cleaning or "clip")


def _from_files(model: _Model) -> TokenizerConfig | None:
    """By the first of the known files whose package is installed; None without any."""
    folder, missing = model.folder, None
    for names, package, read in (
        (("tokenizer.json",), "tokenizers", _from_tokenizer_json),
        (("spiece.model",), "sentencepiece", _from_sentencepiece),
        (("vocab.json", "merges.txt"), None, _from_vocab_json),
        (("vocab.txt",), None, _from_vocab_txt),
    ):
        if not all((folder / name).is_file() for name in names):
            continue
        try:
            if package is not None:
                require_package(package, extra="tokenizers", purpose=f"{folder / names[0]}")
        except MissingExtra as error:
            missing = missing or error
            continue
        if missing is not None:
            model.said.append(
                f"{folder / names[0]} is used, because the package {missing.package!r} that its "
                f"other tokenizer file needs is not installed."
            )
        return read(model)
    if missing is not None:
        raise missing
    return None


def _from_tokenizer_json(model: _Model) -> TokenizerConfig:
    path = model.folder / "tokenizer.json"
    definition = read_definition(path)
    start, end = _frame(model, definition)
    if len(start) > 1 or len(end) > 1:
        raise ConfigError(
            f"{path} puts {len(start)} tokens before and {len(end)} after each text; twinlens "
            f"knows tokenizers with one each at most."
        )
    names = {number: token for token, number in definition.ids.items()}
    pad_id = definition.pad_id
    if pad_id is None or "pad_token" in model.names:
        pad_id = model.pad_id(path, definition.ids, names.get(end[0]) if end else None)
    model.check_ids(path, max(definition.largest_id, pad_id, *start, *end))
    return model.config(
        kind="tokenizer_json",
        file=path.name,
        pad_id=pad_id,
        start_id=start[0] if start else None,
        end_id=0 if model.without_end else end[0] if end else None,
        cleaning=model.cleaning or _CLEANINGS.get(model.family, "none"),
    )


def _frame(model: _Model, definition: TokenizerDefinition) -> tuple[list[int], list[int]]:
    """Start and end as the file has them, unless tokenizer_config.json decides otherwise."""
    start, end = list(definition.start_ids), list(definition.end_ids)
    if model.family not in ("siglip", "siglip2", "open_clip"):
        return start, end  # whose reference classes have a fixed frame
    asked = [model.settings.get(key) for key in ("add_bos_token", "add_eos_token")]
    if any(answer is not None for answer in asked):
        found = [definition.ids.get(model.names.get(key, "")) for key in ("bos_token", "eos_token")]
        frame = [
            [number] if answer and number is not None else []
            for answer, number in zip(asked, found, strict=True)
        ]
        return frame[0], frame[1]
    if not end and model.family != "open_clip":
        tokens = (model.names.get("eos_token", ""), *_END_TOKENS)
        end = [definition.ids[token] for token in tokens if token in definition.ids][:1]
    return start, end


def _from_sentencepiece(model: _Model) -> TokenizerConfig:
    from twinlens.data.sentencepiece_file import SentencePieceTokenizer

    path = model.folder / "spiece.model"
    pieces = SentencePieceTokenizer(path, model.context, pad_id=0, start_id=None, end_id=None)
    model.check_ids(path, pieces.size - 1)
    end = model.names.get("eos_token", "</s>")
    tokens = {*model.names.values(), *_PAD_TOKENS.get(model.family, ()), end}
    ids = {token: number for token in tokens if (number := pieces.id_of(token)) is not None}
    if end not in ids:
        raise ConfigError(
            f"{path} lacks the end token {end}. Name another as eos_token in tokenizer_config.json."
        )
    return model.config(
        kind="sentencepiece",
        file=path.name,
        pad_id=model.pad_id(path, ids, end),
        end_id=0 if model.without_end else ids[end],
        cleaning=model.cleaning or _CLEANINGS.get(model.family, "none"),
    )


def _from_vocab_json(model: _Model) -> TokenizerConfig:
    path, merges_path = model.folder / "vocab.json", model.folder / "merges.txt"
    start = model.names.get("bos_token", "<|startoftext|>")
    end = model.names.get("eos_token", "<|endoftext|>")
    unknown = model.names.get("unk_token")
    ids = read_vocab_json(path)
    model.check_ids(path, max(ids.values(), default=0))
    read_merges_vocabulary(path, merges_path, start, end, unknown)  # raises if it does not fit
    return model.config(
        kind="clip_bpe",
        file=path.name,
        merges_file=merges_path.name,
        pad_id=model.pad_id(path, ids, end),
        start_token=start,
        end_token=end,
        unknown_token=unknown,
        cleaning=model.cleaning or "nfc",
    )


def _from_vocab_txt(model: _Model) -> TokenizerConfig:
    from twinlens.data.wordpiece import WordPieceTokenizer

    path = model.folder / "vocab.txt"
    for key in ("do_lower_case", "strip_accents", "tokenize_chinese_chars"):
        if model.settings.get(key) is False:
            raise ConfigError(
                f"{model.folder / 'tokenizer_config.json'} says {key} false, which twinlens "
                f"does from a tokenizer.json only. Put the model's tokenizer.json there."
            )
    if "do_lower_case" not in model.settings:
        model.said.append(f"{path} is read as BERT's uncased WordPiece: nothing there says more.")
    pieces = WordPieceTokenizer(path, model.context)
    model.check_ids(path, pieces.size - 1)
    return model.config(
        kind="wordpiece",
        file=path.name,
        pad_id=pieces.pad_id,
        end_id=0 if model.without_end else None,
        cleaning=model.cleaning or "none",
    )


def _nothing_found(model: _Model, named: str | None) -> str:
    if named is not None:
        return (
            f"{model.folder} has no tokenizer files, but its open_clip_config.json names {named}. "
            f"Put the tokenizer.json of {named} there."
        )
    if model.family in ("siglip", "siglip2"):
        return (
            f"{model.folder} has no tokenizer files, and SigLIP's vocabularies do not ship with "
            f"twinlens. Put the tokenizer.json or spiece.model of the published model there."
        )
    if model.family in _MASKED:
        return (
            f"{model.folder} has no tokenizer files. Put the tokenizer.json of the published "
            f"model there."
        )
    return (
        f"{model.folder} has no tokenizer files, and its text tower knows {model.vocab_size:,} "
        f"tokens, not the {CLIP_VOCABULARY_SIZE:,} of CLIP's own vocabulary. Put the model's "
        f"tokenizer.json, or its vocab.json and merges.txt, there."
    )


def _open_clip_options(folder: Path, text_cfg: Mapping[str, Any]) -> tuple[Cleaning | None, bool]:
    """Cleaning, and whether the end token is taken out, as `tokenizer_kwargs` asks for."""
    options = {k: v for k, v in (text_cfg.get("tokenizer_kwargs") or {}).items() if v is not None}
    clean = options.pop("clean", None)
    without_end = bool(options.pop("strip_sep_token", False))
    if (mode := text_cfg.get("tokenizer_mode")) is not None:
        options["tokenizer_mode"] = mode  # CLIPS adds a class token of its own
    if clean is not None and clean not in _OPEN_CLIP_CLEANINGS:
        options["clean"] = clean
    if unknown := {key: value for key, value in options.items() if value}:
        raise ConfigError(
            f"{folder}: twinlens does not know open_clip's tokenizer options {unknown}, and would "
            f"give other ids without them."
        )
    return (None if clean is None else _OPEN_CLIP_CLEANINGS[clean]), without_end


def _settings(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """tokenizer_config.json, and the special tokens that it or special_tokens_map.json names."""
    found = []
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        try:
            values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} is not a readable JSON file: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path} must hold a JSON object, not {type(values).__name__}.")
        found.append(values)
    names = {}
    for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
        token = found[0].get(key) or found[1].get(key)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            names[key] = token
    return found[0], names


def _is_gemma(settings: dict[str, Any], names: dict[str, str]) -> bool:
    """Whether this is SigLIP 2's tokenizer, which keeps punctuation."""
    written_for = str(settings.get("tokenizer_class", ""))
    return written_for.startswith(("Gemma", "Siglip2")) or names.get("eos_token") == "<eos>"
