"""What a model is made of, as frozen values that check themselves and survive JSON.

Holds no weights and imports no framework: the towers in `model/` are built from
these, and a checkpoint stores them beside its tensors. `kind` names the tower
family, so that a new family is a new dataclass and one line in `TOWERS`.
"""

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from twinlens.errors import ConfigError

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]

# Not typing.Self: the tests' type checker cannot resolve it on a single method.
ConfigT = TypeVar("ConfigT", bound="JsonConfig")


class JsonConfig:
    """JSON in and out for a frozen dataclass; a key it does not know is an error."""

    @classmethod
    def from_dict(cls: type[ConfigT], values: dict[str, Any]) -> ConfigT:
        """Build from plain JSON values. Raises ConfigError on unknown or missing keys."""
        assert dataclasses.is_dataclass(cls)
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if unknown := sorted(values.keys() - fields.keys()):
            raise ConfigError(
                f"{cls.__name__} does not know {', '.join(map(repr, unknown))}. "
                f"Known: {', '.join(sorted(fields))}."
            )
        required = {
            name
            for name, field in fields.items()
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        }
        if missing := sorted(required - values.keys()):
            raise ConfigError(f"{cls.__name__} needs {', '.join(map(repr, missing))}.")
        hints = typing.get_type_hints(cls)
        arguments = {
            name: _checked(f"{cls.__name__}.{name}", value, hints[name])
            for name, value in values.items()
        }
        return cls(**arguments)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `from_dict` takes back."""
        assert dataclasses.is_dataclass(self) and not isinstance(self, type)
        return dataclasses.asdict(self)

    @classmethod
    def read(cls: type[ConfigT], path: Path) -> ConfigT:
        """Read a JSON file. Raises ConfigError naming the file when it does not fit."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} is not a readable JSON file: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path} must hold a JSON object, not {type(values).__name__}.")
        try:
            return cls.from_dict(values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    def write(self, path: Path) -> None:
        """Write as indented JSON."""
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")


def _checked(name: str, value: Any, hint: Any) -> Any:
    """One JSON value as the annotated type, or ConfigError. bool is not an int here."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in options:
            return value
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, options))}, not {value!r}.")
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        members = [option for option in options if option is not type(None)]
        if all(isinstance(member, type) and issubclass(member, JsonConfig) for member in members):
            return _tower_from_dict(name, value, members)
        return _checked(name, value, members[0])
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or len(value) != len(options):
            raise ConfigError(f"{name} must be a list of {len(options)} values, not {value!r}.")
        return tuple(
            _checked(name, item, option) for item, option in zip(value, options, strict=True)
        )
    if isinstance(hint, type) and issubclass(hint, JsonConfig):
        if isinstance(value, hint):
            return value
        if not isinstance(value, dict):
            raise ConfigError(f"{name} must be a JSON object, not {value!r}.")
        return hint.from_dict(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{name} must be {hint.__name__}, not {value!r}.")
    return value


def _tower_from_dict(name: str, value: Any, members: list[Any]) -> Any:
    """A tower configuration, chosen by its `kind` among the classes allowed here."""
    if isinstance(value, tuple(members)):
        return value
    kinds = {member.kind: member for member in members}
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind not in kinds:
        raise ConfigError(f"{name} must have a kind among {', '.join(kinds)}, not {kind!r}.")
    return kinds[kind].from_dict(value)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(JsonConfig):
    """Sizes that every stack of attention blocks shares."""

    width: int  # channels between blocks
    layers: int
    heads: int  # must divide width
    mlp_width: int  # channels inside the two-layer perceptron
    activation: Activation = "gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        name = type(self).__name__
        for field in ("width", "layers", "heads", "mlp_width"):
            value = getattr(self, field)
            _require(value > 0, f"{name}.{field} must be positive, not {value}.")
        _require(
            self.width % self.heads == 0,
            f"{name}: {self.heads} heads do not divide a width of {self.width}.",
        )


@dataclass(frozen=True, kw_only=True)
class VitConfig(TransformerConfig):
    """A vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929), as CLIP uses it."""

    kind: Literal["vit"] = "vit"
    image_size: int = 224  # pixels, square
    patch_size: int = 32  # pixels; must divide image_size

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self.patch_size > 0 and self.image_size % self.patch_size == 0,
            f"VitConfig: patches of {self.patch_size} px do not tile {self.image_size} px.",
        )

    @property
    def num_patches(self) -> int:
        """Patches in one image."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True, kw_only=True)
class EfficientNetLiteConfig(JsonConfig):
    """The convolutional tower: EfficientNet-Lite0 at any image size."""

    kind: Literal["efficientnet_lite"] = "efficientnet_lite"
    image_size: int = 224  # pixels, square
    stem_width: int = 32  # channels
    head_width: int = 1280  # channels given to the projection

    def __post_init__(self) -> None:
        # Five halvings: a side that 32 divides keeps TensorFlow's padding one-sided.
        _require(
            self.image_size > 0 and self.image_size % 32 == 0,
            f"EfficientNetLiteConfig: image_size must be a multiple of 32, not {self.image_size}.",
        )

    @property
    def width(self) -> int:
        """Channels given to the projection."""
        return self.head_width


@dataclass(frozen=True, kw_only=True)
class ClipTextConfig(TransformerConfig):
    """CLIP's causal text transformer (Radford et al. 2021, section 2.4)."""

    kind: Literal["clip_text"] = "clip_text"
    vocab_size: int = 49408
    context: int = 77  # tokens
    # "argmax": the largest id is the end token. "eos": the first `eos_id`. TRAPS, "Text pooling".
    pool: Literal["argmax", "eos"] = "argmax"
    eos_id: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            (self.pool == "eos") == (self.eos_id is not None),
            "ClipTextConfig: pool 'eos' needs eos_id, and only it does.",
        )


@dataclass(frozen=True, kw_only=True)
class BertTextConfig(TransformerConfig):
    """A BERT-like text tower with mean pooling, as sentence-transformers' MiniLM has it."""

    kind: Literal["bert"] = "bert"
    vocab_size: int = 30522
    context: int = 128  # tokens
    layer_norm_eps: float = 1e-12
    pad_id: int = 0  # positions with this id are masked out


@dataclass(frozen=True, kw_only=True)
class ClipConfig(JsonConfig):
    """Two towers and the space they share."""

    image: VitConfig | EfficientNetLiteConfig
    text: ClipTextConfig | BertTextConfig
    dim: int  # numbers in an embedding
    log_scale_init: float = math.log(1 / 0.07)  # Radford et al. 2021, section 2.5
    bias_init: float | None = None  # SigLIP starts at -10; None: no bias at all
    projection_bias: bool = False  # published CLIPs have none

    def __post_init__(self) -> None:
        _require(self.dim > 0, f"ClipConfig.dim must be positive, not {self.dim}.")
