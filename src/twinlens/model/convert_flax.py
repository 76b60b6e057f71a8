"""Names that Google's big_vision gives its SigLIP weights (.npz), to ours.

Flax keeps a matrix as (in, out), attention's with the heads apart, and a convolution as
(height, width, in, out). What is not known here keeps its name, and
`checkpoint.load_weights` refuses it by that name.
"""

import re
from collections.abc import Iterable

from torch import Tensor

_QKV = ("query", "key", "value")


def big_vision_weights(foreign: dict[str, Tensor]) -> dict[str, Tensor]:
    """Flax names of Google's big_vision SigLIP (.npz): kernels are (in, out), heads apart.

    Blocks are stored one by one ("encoderblock_3") or, when they were compiled as a loop,
    stacked along a first axis ("encoderblock").
    """
    foreign = {name.removeprefix("params/"): value.float() for name, value in foreign.items()}
    # Some early checkpoints hold the positions twice and mean their sum
    # (big_vision, text_transformer.py, load).
    position, second = "txt/pos_embedding", "txt/Encoder_0/pos_embedding"
    both = [foreign[name] for name in (position, second) if name in foreign]
    if len(both) == 2 and both[0].shape == both[1].shape:
        foreign[position] = both[0] + both[1]
        del foreign[second]
    ours: dict[str, Tensor] = {}
    tensors = {  # stored with axes of length 1
        "t": "log_scale",
        "b": "bias",
        "img/pos_embedding": "image_tower.position",
        "img/MAPHead_0/probe": "image_tower.query_pool.query",
        "txt/Embed_0/embedding": "text_tower.token.weight",
        "txt/pos_embedding": "text_tower.position",
    }
    modules = {
        "img/embedding": "image_tower.patch",
        "img/head": "image_projection",
        "img/Transformer/encoder_norm": "image_tower.final_norm",
        "txt/Encoder_0/encoder_norm": "text_tower.final_norm",
        "txt/head": "text_projection",
    }
    stacks = {"img/Transformer": "image_tower", "txt/Encoder_0": "text_tower"}
    block = re.compile(r"(img/Transformer|txt/Encoder_0)/encoderblock_(\d+)/(.+)")
    for name, value in _unstacked(foreign, stacks).items():
        if match := block.fullmatch(name):
            stack, number, inner = match.groups()
            target, tensor = _flax_block(inner, value)
            ours[f"{stacks[stack]}.blocks.{number}.{target}"] = tensor
            continue
        module, _, leaf = name.rpartition("/")
        if name in tensors:
            ours[tensors[name]] = value.squeeze(0) if "pos" in name else value.squeeze()
        elif name.startswith("img/MAPHead_0/"):
            inner = name.removeprefix("img/MAPHead_0/").replace("LayerNorm_0", "LayerNorm_1")
            target, tensor = _flax_block(inner, value)
            ours[f"image_tower.query_pool.{target}"] = tensor
        elif module in modules:
            target, tensor = _flax_leaf(leaf, value)
            ours[f"{modules[module]}.{target}"] = tensor
        else:
            ours[name] = value
    return ours


def _unstacked(foreign: dict[str, Tensor], stacks: Iterable[str]) -> dict[str, Tensor]:
    """Stacked blocks one by one; those that are not as many as the others keep their name."""
    ours = dict(foreign)
    for stack in stacks:
        start = f"{stack}/encoderblock/"
        joined = {k: v for k, v in foreign.items() if k.startswith(start) and v.ndim}
        depth = min(map(len, joined.values()), default=0)
        for name, value in joined.items():
            if len(value) == depth:
                del ours[name]
                for number, part in enumerate(value):
                    ours[f"{stack}/encoderblock_{number}/{name.removeprefix(start)}"] = part
    return ours


def _flax_block(name: str, value: Tensor) -> tuple[str, Tensor]:
    """One tensor of a block, with attention's kernels as plain matrices."""
    module, _, leaf = name.rpartition("/")
    names = {
        "LayerNorm_0": "attention_norm",
        "LayerNorm_1": "mlp_norm",
        "MlpBlock_0/Dense_0": "mlp.0",
        "MlpBlock_0/Dense_1": "mlp.2",
        "MultiHeadDotProductAttention_0/out": "attention.out",
        **{f"MultiHeadDotProductAttention_0/{part}": f"attention.{part}" for part in _QKV},
    }
    if "Attention" in module:
        if module.endswith("/out"):  # kernel (head, head_dim, width)
            value = value.flatten(0, 1) if leaf == "kernel" and value.ndim == 3 else value
        else:  # kernel (width, head, head_dim), bias (head, head_dim)
            axes = {"kernel": 3, "bias": 2}.get(leaf)
            value = value.flatten(value.ndim - 2) if value.ndim == axes else value
    target, value = _flax_leaf(leaf, value)
    return f"{names.get(module, module)}.{target}", value


def _flax_leaf(leaf: str, value: Tensor) -> tuple[str, Tensor]:
    """A kernel (in, out) or (height, width, in, out) as PyTorch's weight; scale, bias."""
    if leaf == "kernel":
        value = value.permute(3, 2, 0, 1) if value.ndim == 4 else value
        return "weight", value.T if value.ndim == 2 else value
    return {"scale": "weight"}.get(leaf, leaf), value
