"""What a model is made of, as frozen values that check themselves and survive JSON.

Holds no weights and imports no framework: the towers in `model/` are built from
these, and a checkpoint stores them beside its tensors. `kind` names the tower
family, so that a new family is a new dataclass and one line in `TOWERS`.
"""

import dataclasses
import itertools
import json
import math
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

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
        if options[-1] is Ellipsis and isinstance(value, (list, tuple)):
            options = options[:1] * len(value)
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
    """A vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929), as CLIP and SigLIP use it.

    pool "class": the class token (CLIP). "mean": over the patches, the class token left out
    (CLIPA). "map": a learned query attends to the patches, no class token (SigLIP).
    """

    kind: Literal["vit"] = "vit"
    image_size: int = 224  # pixels, square
    patch_size: int = 32  # pixels; what does not fill a patch at the right and bottom is not seen
    pool: Literal["class", "mean", "map"] = "class"
    patch_bias: bool = False
    convolution_stem: bool = False  # patches in three steps (MobileCLIP-B), batch norms folded
    input_norm: bool = True  # a layer norm before the blocks (CLIP)
    norm_after_pool: bool = False  # only "mean" can tell the difference

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            0 < self.patch_size <= self.image_size,
            f"VitConfig: a patch of {self.patch_size} px does not fit in {self.image_size} px.",
        )
        _require(
            not self.convolution_stem or (self.patch_size % 4 == 0 and self.width % 4 == 0),
            f"VitConfig: a convolution stem needs a patch_size and a width that 4 divides, not "
            f"{self.patch_size} and {self.width}.",
        )

    @property
    def grid(self) -> int:
        """Patches along one side; SigLIP at 384 px with patches of 14 has 27."""
        return self.image_size // self.patch_size

    @property
    def has_class_token(self) -> bool:
        """Whether a learned token stands before the patches."""
        return self.pool != "map"


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(JsonConfig):
    """CLIP's modified ResNet (Radford et al. 2021, section 2.4): RN50 to RN50x64."""

    kind: Literal["resnet"] = "resnet"
    image_size: int = 224  # pixels, square
    stem_width: int = 64  # channels after the stem
    layers: tuple[int, int, int, int] = (3, 4, 6, 3)  # blocks per stage
    heads: int = 32  # of the attention pool

    def __post_init__(self) -> None:
        for field in ("image_size", "stem_width", "heads"):
            value = getattr(self, field)
            _require(value > 0, f"ResNetConfig.{field} must be positive, not {value}.")
        _require(min(self.layers) > 0, f"ResNetConfig.layers must be positive, not {self.layers}.")
        _require(
            self.image_size % 32 == 0,
            f"ResNetConfig.image_size must be a multiple of 32, not {self.image_size}.",
        )
        _require(
            self.width % self.heads == 0,
            f"ResNetConfig: {self.heads} heads do not divide a width of {self.width}.",
        )

    @property
    def width(self) -> int:
        """Channels of the last stage, which the attention pool gives to the projection."""
        return 32 * self.stem_width

    @property
    def grid(self) -> int:
        """Places along one side of the last feature map."""
        return self.image_size // 32


@dataclass(frozen=True, kw_only=True)
class ConvNextConfig(JsonConfig):
    """ConvNeXt (Liu et al. 2022, arXiv:2201.03545), as OpenCLIP publishes it through timm."""

    kind: Literal["convnext"] = "convnext"
    image_size: int = 256  # pixels, square; any from 32 on, no weight depends on it
    widths: tuple[int, int, int, int] = (128, 256, 512, 1024)  # channels per stage
    layers: tuple[int, int, int, int] = (3, 3, 27, 3)  # blocks per stage
    layer_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        for field in ("widths", "layers"):
            values = getattr(self, field)
            _require(min(values) > 0, f"ConvNextConfig.{field} must be positive, not {values}.")
        # Four halvings after patches of 4: below that, the last stage sees nothing.
        _require(
            self.image_size >= 32,
            f"ConvNextConfig.image_size must be at least 32, not {self.image_size}.",
        )

    @property
    def width(self) -> int:
        """Channels given to the projection."""
        return self.widths[-1]


@dataclass(frozen=True, kw_only=True)
class FastVitConfig(JsonConfig):
    """FastViT as MobileCLIP has it (Vasu et al. 2024, arXiv:2311.17049), branches folded."""

    kind: Literal["fastvit"] = "fastvit"
    image_size: int = 256  # pixels, square; any from 32 on, no weight depends on it
    widths: tuple[int, ...] = (64, 128, 256, 512)  # channels per stage
    layers: tuple[int, ...] = (4, 12, 20, 4)  # blocks per stage
    expansion: int = 3  # channels inside the perceptrons, over those outside
    attention_stages: int = 1  # how many of the last stages attend
    attention_norm: bool = False  # a layer norm before attention; a batch norm is folded
    gated_downsamples: int = 2  # before how many of the last stages channels are gated
    head_width: ClassVar[int] = 32  # channels of an attention head

    def __post_init__(self) -> None:
        for field in ("widths", "layers"):
            values = getattr(self, field)
            _require(
                len(values) > 1 and min(values) > 0,
                f"FastVitConfig.{field} must be several positive numbers, not {values}.",
            )
        stages = len(self.widths)
        _require(
            len(self.layers) == stages,
            f"FastVitConfig has {stages} widths but {len(self.layers)} layers.",
        )
        _require(
            self.expansion > 0, f"FastVitConfig.expansion must be positive, not {self.expansion}."
        )
        _require(
            self.image_size >= 32,
            f"FastVitConfig.image_size must be at least 32, not {self.image_size}.",
        )
        # The first stage has no step before it.
        for field, most in (("attention_stages", stages), ("gated_downsamples", stages - 1)):
            value = getattr(self, field)
            _require(0 <= value <= most, f"FastVitConfig.{field} must be 0 to {most}, not {value}.")
        for before, after in itertools.pairwise(self.widths):
            _require(
                after % before == 0,
                f"FastVitConfig: a width of {after} cannot follow one of {before}: no multiple.",
            )
        for width in self.widths[stages - self.attention_stages :]:
            _require(
                width % self.head_width == 0,
                f"FastVitConfig: heads of {self.head_width} do not divide a width of {width}.",
            )

    @property
    def width(self) -> int:
        """Channels given to the projection."""
        return 2 * self.widths[-1]


@dataclass(frozen=True, kw_only=True)
class EfficientNetLiteConfig(JsonConfig):
    """The convolutional tower: EfficientNet-Lite0 to Lite4 at any image size.

    Lite0 is 1.0 and 1.0, Lite1 1.0 and 1.1, Lite2 1.1 and 1.2 (Tan and Le 2019, section 3.3).
    """

    kind: Literal["efficientnet_lite"] = "efficientnet_lite"
    image_size: int = 224  # pixels, square
    stem_width: int = 32  # channels
    head_width: int = 1280  # channels given to the projection
    width_multiplier: float = 1.0  # of the channels between stem and head
    depth_multiplier: float = 1.0  # of the blocks in all stages but the first and last

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
    """CLIP's and SigLIP's text transformer (Radford et al. 2021, section 2.4).

    pool "argmax": at the largest id, which is the end token in CLIP's vocabulary. "eos": at
    the first `eos_id`. "last": at the last position (SigLIP). TRAPS, "Text pooling".
    """

    kind: Literal["clip_text"] = "clip_text"
    vocab_size: int = 49408
    context: int = 77  # tokens
    pool: Literal["argmax", "eos", "last"] = "argmax"
    eos_id: int | None = None
    causal: bool = True  # a token sees only those before it; SigLIP's see all

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            (self.pool == "eos") == (self.eos_id is not None),
            "ClipTextConfig: pool 'eos' needs eos_id, and only it does.",
        )

    @property
    def sees_padding(self) -> bool:
        """Whether what fills a text up to the context changes its feature."""
        return not self.causal or self.pool == "last"


@dataclass(frozen=True, kw_only=True)
class BertTextConfig(TransformerConfig):
    """A BERT-like text tower: MiniLM, Chinese-CLIP's BERT, XLM-R."""

    kind: Literal["bert"] = "bert"
    vocab_size: int = 30522
    context: int = 128  # tokens
    layer_norm_eps: float = 1e-12
    pad_id: int = 0  # positions with this id are masked out
    pool: Literal["mean", "first"] = "mean"  # over real tokens, or the first one ([CLS])

    @property
    def sees_padding(self) -> bool:
        """Never: padding is masked out."""
        return False


# How a tower's feature becomes an embedding. "mlp" is OpenCLIP's for Hugging Face text towers:
# two layers without bias, the inner one halfway between both widths, GELU between them.
# "mlp_wide" is its for timm's image towers: the inner layer twice the dim and with a bias.
Projection = Literal["none", "linear", "linear_bias", "mlp", "mlp_wide"]


@dataclass(frozen=True, kw_only=True)
class ClipConfig(JsonConfig):
    """Two towers and the space they share."""

    image: VitConfig | ResNetConfig | EfficientNetLiteConfig | ConvNextConfig | FastVitConfig
    text: ClipTextConfig | BertTextConfig
    dim: int  # numbers in an embedding
    image_projection: Projection = "linear"
    text_projection: Projection = "linear"
    log_scale_init: float = math.log(1 / 0.07)  # Radford et al. 2021, section 2.5
    bias_init: float | None = None  # SigLIP starts at -10; None: no bias at all

    def __post_init__(self) -> None:
        _require(self.dim > 0, f"ClipConfig.dim must be positive, not {self.dim}.")
        for side in ("image", "text"):
            tower, projection = getattr(self, side), getattr(self, f"{side}_projection")
            _require(
                projection != "none" or tower.width == self.dim,
                f"ClipConfig: without a projection the {side} tower's width of {tower.width} "
                f"must be the dim, {self.dim}.",
            )
