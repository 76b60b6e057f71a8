"""What timm's names for image towers say of them that the weights do not show.

OpenCLIP's configuration only names such a tower; its facts are in timm's code. Those of the
ViTs that SigLIP uses are from vision_transformer.py, of ConvNeXt from convnext.py. Weight
names: convert.py and convert_timm.py.
"""

from dataclasses import dataclass

from torch import Tensor

from twinlens.config import Activation
from twinlens.model.convert_timm import is_convnext

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
        # The one ConvNeXt that overrules timm's default.
        eps=1e-5 if name.startswith("convnext_xxlarge") else 1e-6,
    )


def unsupported(foreign: dict[str, Tensor], pool: str) -> str | None:
    """Why these weights, with this `timm_pool`, make no tower that is known here, or None."""
    if "visual.trunk.attn_pool.latent" in foreign:
        return None
    if not is_convnext(foreign):
        return "of timm's, SigLIP's with pooling by attention and ConvNeXt are"
    if pool not in ("", "avg"):
        return f"with timm_pool 'avg' it is, not with {pool!r}"
    return None
