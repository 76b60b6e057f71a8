"""Whatever stands at a path, as what a program needs of it: model, tokenizer, preprocessing.

A path may be a weights file or folder of any published format, our own checkpoint folder,
or (for tokenizer and preprocessing) a runtime folder with a model.json. What a checkpoint
leaves open and a family's rule fills in is said in an AssumedDefault warning.
"""

import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from twinlens.config import Activation, BertTextConfig, JsonConfig
from twinlens.data.preprocess import Preprocess
from twinlens.data.published_preprocess import preprocess_of_folder
from twinlens.data.tokenizer import Tokenizer, TokenizerConfig, open_tokenizer
from twinlens.data.tokenizer_choice import tokenizer_config_of
from twinlens.errors import CheckpointMismatch, ConfigError
from twinlens.runtime.folder import CONFIG_NAME, load_runtime_config, locate

if TYPE_CHECKING:
    from twinlens.model.clip import Clip
    from twinlens.model.published import Published

# model/checkpoint.py's names, here too so that looking at a folder needs no PyTorch.
MODEL_CONFIG_NAME = "config.json"
WEIGHTS_NAME = "weights.safetensors"
INPUTS_NAME = "inputs.json"
SIGLIP2_VOCABULARY = 256_000  # Gemma's; SigLIP's first has 32,000, its multilingual one 250,000


class AssumedDefault(UserWarning):
    """A checkpoint does not say something, and its family's published rule was taken."""


@dataclass(frozen=True, kw_only=True)
class InputsConfig(JsonConfig):
    """What our own checkpoint folder says of its inputs: `inputs.json`."""

    preprocess: Preprocess
    tokenizer: TokenizerConfig


def load_model(
    path: str | os.PathLike[str],
    *,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    activation: Activation | None = None,
    image_size: int | None = None,
) -> "Clip":
    """The two towers of a checkpoint in PyTorch, in float32 and eval mode. Runs no foreign code.

    `path` is a weights file or a folder: OpenAI's `.pt`, OpenCLIP's `.safetensors`, `.bin` or
    training checkpoint, Hugging Face's CLIP and SigLIP folders, big_vision's `.npz`, our own
    folder; or the name of a model that `twinlens pull` fetched. The keywords say what a file
    does not, or overrule what it does: heads per tower, the activation of both towers, and the
    picture size in pixels (position embeddings are interpolated).

    Raises CheckpointMismatch for weights that are damaged, foreign or contradict what is
    declared beside them; ConfigError for what cannot be known or is not supported; ModelNotFound
    for a path that is not there; MissingExtra without PyTorch.
    """
    model, _ = load_checkpoint_at(
        locate(path),
        vision_heads=vision_heads,
        text_heads=text_heads,
        activation=activation,
        image_size=image_size,
    )
    return model


def load_checkpoint_at(place: Path, **overrides: Any) -> "tuple[Clip, Published | None]":
    """load_model for a path that exists, and what its files say; None for our own folder."""
    if (place / CONFIG_NAME).is_file():
        raise ConfigError(
            f"{place} is a runtime folder: its towers are ONNX files for Embedder(path), not "
            f"PyTorch weights. Give the checkpoint it was converted from."
        )
    from twinlens.model.checkpoint import build_clip, load_checkpoint
    from twinlens.model.published import read_published

    if (folder := _own_folder(place)) is not None:
        if any(value is not None for value in overrides.values()):
            raise ConfigError(f"{folder} says everything itself; nothing can be overruled.")
        return load_checkpoint(folder), None
    published = read_published(place, **overrides)
    _say(published.notes)
    model = build_clip(published.config, published.tensors, source=str(published.source))
    return model, published


def _own_folder(place: Path) -> Path | None:
    """The folder of our own checkpoint, given that or its weights file."""
    folder = place.parent if place.name == WEIGHTS_NAME else place
    whole = (folder / WEIGHTS_NAME).is_file() and (folder / MODEL_CONFIG_NAME).is_file()
    return folder if whole else None


def _inputs_of(place: Path) -> "Published":
    """A published checkpoint, to be asked about its inputs alone."""
    from twinlens.model.published import read_published

    return read_published(place, heads_needed=False)


def load_tokenizer(
    path: str | os.PathLike[str],
    *,
    specials: Literal["text", "open_clip", "openai"] = "text",
) -> Tokenizer:
    """Texts to int64 ids `(item, context)`, as the checkpoint's reference makes them.

    Names of special tokens that a user typed are ordinary text, unless `specials` asks for
    what OpenCLIP's or OpenAI's own tokenizer does with them.

    Raises ConfigError for a checkpoint whose vocabulary is neither beside it nor known.
    """
    config, folder = tokenizer_config(locate(path))
    if specials != "text":
        config = replace(config, specials=specials)
    return open_tokenizer(config, folder)


def tokenizer_config(
    place: Path, published: "Published | None" = None
) -> tuple[TokenizerConfig, Path]:
    """How the model at `place` wants its texts, and the folder of the tokenizer's files."""
    if (place / CONFIG_NAME).is_file():
        return load_runtime_config(place).tokenizer, place
    if _is_vocabulary(place):
        folder = place if place.is_dir() else place.parent
        config, notes = tokenizer_config_of(
            folder, family="open_clip", context=77, vocab_size=49408, causal=True
        )
        _say(notes)
        return config, folder
    if (own := _own_inputs(place)) is not None:
        return own[0].tokenizer, own[1]
    published = published or _inputs_of(place)
    text = published.config.text
    declared = published.declared.get("model_cfg", published.declared).get("text_cfg")
    family: Literal["openai", "open_clip", "clip", "siglip", "siglip2", "bert", "xlm_roberta"]
    match published.family:
        case "siglip" | "big_vision":
            family = "siglip2" if text.vocab_size == SIGLIP2_VOCABULARY else "siglip"
        case "metaclip_2":
            family = "xlm_roberta"
        case "chinese_clip":
            family = "bert"
        case "open_clip" if isinstance(text, BertTextConfig):
            family = "xlm_roberta"
        case _:
            family = published.family
    config, notes = tokenizer_config_of(
        published.folder,
        family=family,
        context=text.context,
        vocab_size=text.vocab_size,
        causal=not text.sees_padding,
        text_cfg=declared,
    )
    _say(notes)
    return config, published.folder


def _is_vocabulary(place: Path) -> bool:
    """A folder (or file) that holds CLIP's vocabulary and no model."""
    name = "bpe_simple_vocab_16e6.txt.gz"
    if place.name == name:
        return True
    suffixes = {".safetensors", ".bin", ".pt", ".pth", ".npz"}
    return (place / name).is_file() and not any(
        entry.suffix in suffixes and entry.stem not in ("expected", "inputs")
        for entry in place.iterdir()
    )


def load_preprocess(path: str | os.PathLike[str]) -> Preprocess:
    """A Pillow picture of any mode to float32 `(3, height, width)`, as the reference does it.

    EXIF orientation is not applied, for no reference does; `Embedder` applies it.

    Raises ConfigError for preprocessing that is not supported.
    """
    return preprocess_config(locate(path))


def preprocess_config(place: Path, published: "Published | None" = None) -> Preprocess:
    """How the model at `place` wants its pictures."""
    if (place / CONFIG_NAME).is_file():
        return load_runtime_config(place).preprocess
    if (own := _own_inputs(place)) is not None:
        return own[0].preprocess
    published = published or _inputs_of(place)
    size = published.config.image.image_size
    preprocess, notes = preprocess_of_folder(
        published.folder, family=published.family, image_size=size
    )
    _say(notes)
    if preprocess.image_size != size:
        raise CheckpointMismatch(
            f"{published.folder}: its preprocessing makes pictures of {preprocess.image_size} px, "
            f"but its image tower takes {size} px. One of its files belongs to another model."
        )
    return preprocess


def _own_inputs(place: Path) -> tuple[InputsConfig, Path] | None:
    folder = _own_folder(place)
    if folder is None:
        return None
    if not (folder / INPUTS_NAME).is_file():
        raise ConfigError(
            f"{folder} has no {INPUTS_NAME}, so its preprocessing and tokenizer are not known."
        )
    return InputsConfig.read(folder / INPUTS_NAME), folder


def _say(notes: "tuple[str, ...] | list[str]") -> None:
    for note in notes:
        warnings.warn(note, AssumedDefault, stacklevel=4)
