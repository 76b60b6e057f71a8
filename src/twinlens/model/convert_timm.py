"""Names that timm's ConvNeXt has in OpenCLIP's checkpoints, to ours.

convert.py has renamed the text tower and the outer projection before; what is not known
here keeps its name, and `checkpoint.load_weights` refuses it by that name. timm's vision
transformers are convert.py's, MobileCLIP's towers convert_mobileclip.py's.
"""

import re

from torch import Tensor

TRUNK = "visual.trunk."

_CONVNEXT = (  # patterns of whole modules, and what they are here
    (r"visual\.trunk\.stem\.0", "image_tower.stem"),
    (r"visual\.trunk\.stem\.1", "image_tower.stem_norm"),
    (r"visual\.trunk\.head\.norm", "image_tower.final_norm"),
    # Without an outer projection timm's classifier is it.
    (r"visual\.trunk\.head\.fc", "image_projection"),
    (r"visual\.head\.mlp\.fc1", "image_projection.0"),
    (r"visual\.head\.mlp\.fc2", "image_projection.2"),
)
_CONVNEXT_BLOCK = {
    "conv_dw": "filter",
    "norm": "norm",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
}


def is_convnext(foreign: dict[str, Tensor]) -> bool:
    """Whether the image tower is ConvNeXt as published CLIPs have it.

    Not timm's variants with other stems, response normalisation (version 2), no layer scale,
    perceptrons made of convolutions, or a norm before pooling.
    """
    stem = foreign.get(f"{TRUNK}stem.0.weight")
    first = f"{TRUNK}stages.0.blocks.0."
    mlp = foreign.get(f"{first}mlp.fc1.weight")
    return (
        stem is not None
        and tuple(stem.shape[1:]) == (3, 4, 4)
        and mlp is not None
        and mlp.ndim == 2
        and f"{first}gamma" in foreign
        and f"{first}mlp.grn.weight" not in foreign
        and f"{TRUNK}head.norm.weight" in foreign
    )


def convnext_weights(foreign: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's ConvNeXt under `visual.trunk`, its projection under `visual.head`."""
    ours = {}
    for name, value in foreign.items():
        module, _, leaf = name.rpartition(".")
        ours[_convnext_name(module, leaf)] = value
    return ours


def _convnext_name(module: str, leaf: str) -> str:
    for pattern, target in _CONVNEXT:
        if re.fullmatch(pattern, module):
            return f"{target}.{leaf}"
    if match := re.fullmatch(r"visual\.trunk\.stages\.(\d+)\.downsample\.([01])", module):
        stage, part = match.groups()
        # Their stages begin with the step that leads to them; the first has none.
        return f"image_tower.downsamples.{int(stage) - 1}.{('norm', 'conv')[int(part)]}.{leaf}"
    if match := re.fullmatch(r"visual\.trunk\.stages\.(\d+)\.blocks\.(\d+)(?:\.(.+))?", module):
        stage, block, inner = match.groups()
        prefix = f"image_tower.stages.{stage}.{block}"
        if inner is None and leaf == "gamma":
            return f"{prefix}.layer_scale"
        if inner in _CONVNEXT_BLOCK:
            return f"{prefix}.{_CONVNEXT_BLOCK[inner]}.{leaf}"
    return f"{module}.{leaf}" if module else leaf
