"""What timm's names for image towers say of them that the weights do not show.

OpenCLIP's configuration only names such a tower; its facts are in timm's code. Those of the
ViTs that SigLIP uses are from vision_transformer.py, of ConvNeXt from convnext.py. Weight
names: convert.py and convert_timm.py.
"""

import re
from dataclasses import dataclass

from torch import Tensor

from twinlens.config import Activation
from twinlens.model.convert_mobileclip import is_fastvit
from twinlens.model.convert_timm import TRUNK, is_convnext

_HEADS = {
    "tiny": 3,
    "small": 6,
    "base": 12,
    "large": 16,
    "so400m": 16,
    "giantopt": 16,
}
# The SigLIP names that are built with tanh-GELU.
_TANH = (
    "vit_base_patch32_siglip_256",
    "vit_large_patch16_siglip_512",
    "vit_so400m_patch16_siglip",
    "vit_giantopt_patch16_siglip",
)

# ViTs with a class token, as MobileCLIP2-L-14 and MobileCLIP-B have.
_CLIP = re.compile(r"vit_(base|large)_patch\d+_clip_\d+")
_CLASS_TOKEN = re.compile(rf"{_CLIP.pattern}|vit_base_mci_\d+")


@dataclass(frozen=True)
class TimmTower:
    """The facts of one name."""

    heads: int | None
    activation: Activation
    eps: float


def timm_tower(name: str) -> TimmTower:
    size = name.removeprefix("vit_").partition("_")[0]
    return TimmTower(
        heads=_HEADS.get(size),
        activation="gelu_tanh" if name.startswith(_TANH) else "gelu",
        # These overrule timm's default.
        eps=1e-5 if name.startswith("convnext_xxlarge") or _CLIP.fullmatch(name) else 1e-6,
    )


def unsupported(name: str, foreign: dict[str, Tensor], pool: str) -> str | None:
    """Why a tower of this name, with this `timm_pool`, is none that is known here, or None."""
    if f"{TRUNK}attn_pool.latent" in foreign:
        # Perception Encoder pools so too, but its positions are rotations, which no weight shows.
        others = {f"{TRUNK}{extra}" for extra in ("cls_token", "reg_token", "norm_pre.weight")}
        return "it has more than SigLIP's towers" if others & foreign.keys() else None
    # Other FastViTs have an activation less, which weights do not show.
    mobile = name.startswith("fastvit_mci") and is_fastvit(foreign)
    class_token = _CLASS_TOKEN.fullmatch(name) and "visual.trunk.cls_token" in foreign
    if not (mobile or class_token or is_convnext(foreign)):
        return "of timm's, SigLIP's with pooling by attention, ConvNeXt and MobileCLIP's are"
    known = ("", "token") if class_token else ("", "avg")
    if pool not in known:
        return f"with timm_pool {known[1]!r} it is, not with {pool!r}"
    return None
