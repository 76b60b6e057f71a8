"""Known published models and the facts about them, each with its source.

The facts are in published.json. A figure whose source is not known is not there. What is
on this machine already is cache.py's business, fetching is pull.py's.
"""

import difflib
import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from twinlens.config import Activation, JsonConfig
from twinlens.errors import ConfigError, ModelNotFound

DATA = Path(__file__).with_name("published.json")

Format = Literal["openai_pt", "open_clip", "transformers", "big_vision"]


@dataclass(frozen=True, kw_only=True)
class Family(JsonConfig):
    """Models that one team made by one recipe."""

    key: str
    title: str
    licence: str
    paper: str


@dataclass(frozen=True, kw_only=True)
class PublishedModel(JsonConfig):
    """One set of weights that its authors published. None: not known, or not one number."""

    name: str  # ours, and stable
    family: str  # a Family's key
    title: str
    format: Format
    repo: str | None = None  # owner/name on the hub; or else
    url: str | None = None  # one file
    sha256: str | None = None  # of the file at `url`
    tokenizer_repo: str | None = None  # where the tokenizer is, if not in `repo`
    open_clip: str | None = None  # what OpenCLIP calls it: architecture/tag
    parameters: float | None = None  # millions, both towers
    dim: int | None = None
    image_size: int | None = None  # pixels, square
    context: int  # tokens
    activation: Activation
    preprocess: str  # a key of `preprocessing()`
    imagenet: float | None = None  # zero-shot top-1, percent
    coco: tuple[float, float] | None = None  # text-to-image, image-to-text recall@1, percent
    flickr30k: tuple[float, float] | None = None  # the same
    figures_source: str | None = None  # a key of `sources()`
    parameters_source: str | None = None
    unsupported: str | None = None  # why it cannot run here; None: it can

    def __post_init__(self) -> None:
        if (self.repo is None) == (self.url is None):
            raise ConfigError(f"{self.name} must have a repo or a url, and not both.")
        if (self.url is None) != (self.sha256 is None):
            raise ConfigError(f"{self.name} needs the SHA-256 of the file at its url.")

    @property
    def supported(self) -> bool:
        return self.unsupported is None

    @property
    def aliases(self) -> tuple[str, ...]:
        """Other names that mean the same weights."""
        return tuple(alias for alias in (self.repo, self.open_clip) if alias)


@functools.cache
def _data() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(DATA.read_text(encoding="utf-8"))
    return data


@functools.cache
def published_models() -> tuple[PublishedModel, ...]:
    """All of them, family by family."""
    return tuple(PublishedModel.from_dict(values) for values in _data()["models"])


@functools.cache
def families() -> dict[str, Family]:
    """By their keys, in the order in which they are shown."""
    listed = [Family.from_dict(values) for values in _data()["families"]]
    return {family.key: family for family in listed}


def sources() -> dict[str, str]:
    """What a figure's source stands for."""
    return dict(_data()["sources"])


def preprocessing() -> dict[str, str]:
    """How each kind of preprocessing makes its pixels, in words."""
    return dict(_data()["preprocessing"])


def find_published(name: str) -> PublishedModel | None:
    """The model with this name or alias, or None.

    Our own name, OpenCLIP's ("ViT-B-32/laion2b_s34b_b79k", also with a colon), or the hub
    repository that it is fetched from, with or without "hf:".
    """
    return _by_name().get(_plain(name))


def get_published(name: str) -> PublishedModel:
    """The model with this name or alias. Raises ModelNotFound with the closest names."""
    model = find_published(name)
    if model is None:
        raise ModelNotFound(f"no published model is known as {name!r}. {suggestion(name)}")
    return model


def suggestion(name: str) -> str:
    """What else somebody who typed this name could type."""
    close = difflib.get_close_matches(_plain(name), _by_name(), n=3, cutoff=0.6)
    near = list(dict.fromkeys(_by_name()[key].name for key in close))
    parts = [f"Did you mean {' or '.join(near)}?"] if near else []
    family = difflib.get_close_matches(_plain(name).split("/")[0], families(), n=1)
    parts.append(f"See `twinlens models{f' {family[0]}' if family and not near else ''}`.")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        parts.append(f"If it is a repository on the hub: `twinlens pull hf:{name}`.")
    return " ".join(parts)


@functools.cache
def _by_name() -> dict[str, PublishedModel]:
    return {
        _plain(name): model
        for model in published_models()
        for name in (*model.aliases, model.name)  # our own name wins
    }


def _plain(name: str) -> str:
    """A name without what people write in different ways."""
    name = name.strip().lower()
    for prefix in ("hf:", "hf-hub:"):
        name = name.removeprefix(prefix)
    # OpenCLIP's "-quickgelu" is a spelling of the architecture; the weights are the same.
    return name.replace(":", "/").replace("-quickgelu", "").replace("_", "-")
