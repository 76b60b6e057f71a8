"""Hugging Face folders give the features that transformers gives, at tiny sizes.

Each test lets transformers write a folder, changes its config.json as published ones differ,
and lets both read it. big_vision's .npz is written here from a transformers model, whose
conversion of the published files is the inverse (convert_siglip_to_hf.py).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from published_model import assert_same_features, difference, load
from random_weights import fill, uniform
from twinlens.config import BertTextConfig, ClipTextConfig, VitConfig
from twinlens.model.published import read_published

pytestmark = pytest.mark.usefixtures("one_thread")

transformers = pytest.importorskip("transformers")

TIGHT = 1e-5


VISION = {
    "hidden_size": 36,
    "intermediate_size": 50,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "vocab_size": 99,
    "hidden_size": 24,
    "intermediate_size": 70,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 9,
}
# Of three texts: the end token is neither the largest id nor, in the first, seen only once.
IDS = torch.tensor(
    [
        [90, 12, 40, 55, 40, 91, 7, 98, 40],
        [90, 97, 33, 40, 3, 3, 3, 3, 3],
        [90, 40, 95, 3, 3, 3, 3, 3, 3],
    ]
)


def save(name: str, folder: Path, *, vision: Any, text: Any, **top: Any) -> Path:
    """A folder that transformers wrote: random weights and the configuration of their shape."""
    settings = {"vision_config": {**VISION, **vision}, "text_config": {**TEXT, **text}, **top}
    model = getattr(transformers, f"{name}Model")(
        getattr(transformers, f"{name}Config")(**settings)
    )
    fill(model)
    model.save_pretrained(folder)
    return folder


def strip(folder: Path, keys: set[str]) -> Path:
    """Take keys out of both sections of config.json: their defaults apply."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for section in ("vision_config", "text_config"):
        config[section] = {k: v for k, v in config[section].items() if k not in keys}
    path.write_text(json.dumps(config))
    return folder


def features(output: Any) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def assert_as_transformers(name: str, folder: Path, ids: torch.Tensor = IDS, **mask: Any) -> Any:
    reference = getattr(transformers, f"{name}Model").from_pretrained(folder).eval()
    model = load(folder)
    size = model.config.image.image_size
    pixels = uniform("pixel_values", (2, 3, size, size)) * 2
    with torch.no_grad():
        image = features(reference.get_image_features(pixel_values=pixels))
        text = features(reference.get_text_features(input_ids=ids, **mask))
    assert_same_features(model, pixels, ids, image=image, text=text, within=TIGHT)
    assert model.logit_scale.item() == pytest.approx(reference.logit_scale.exp().item())
    return model


@pytest.mark.parametrize("end", [2, 40, 98])
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_clip_pools_at_the_end_token_or_with_2_at_the_largest_id(
    end: int, activation: str, tmp_path: Path
) -> None:
    act = {"hidden_act": activation}
    save("CLIP", tmp_path, vision=act, text={**act, "eos_token_id": end}, projection_dim=20)
    ids = IDS if end == 40 else IDS.where(IDS != 98, 5)
    ids = ids.where(ids != 97, 98) if end == 98 else ids
    model = assert_as_transformers("CLIP", tmp_path, ids)
    text = model.config.text
    assert isinstance(text, ClipTextConfig)
    assert (text.pool, text.eos_id) == (("argmax", None) if end == 2 else ("eos", end))


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh"])
def test_both_names_of_tanh_gelu_are_known(activation: str, tmp_path: Path) -> None:
    act = {"hidden_act": activation}
    save("CLIP", tmp_path, vision=act, text={**act, "eos_token_id": 2}, projection_dim=20)
    assert_as_transformers("CLIP", tmp_path)


def test_metaclip_2_looks_for_end_token_2_itself(tmp_path: Path) -> None:
    save("MetaClip2", tmp_path, vision={}, text={"eos_token_id": 2}, projection_dim=20)
    ids = IDS.where(IDS != 40, 2)
    model = assert_as_transformers("MetaClip2", tmp_path, ids)
    text = model.config.text
    assert isinstance(text, ClipTextConfig) and (text.pool, text.eos_id) == ("eos", 2)


def test_chinese_clip_reads_its_first_token_and_not_the_padding(tmp_path: Path) -> None:
    text = {"max_position_embeddings": 16, "type_vocab_size": 2}
    save("ChineseCLIP", tmp_path, vision={}, text=text, projection_dim=20)
    ids = IDS.where(IDS != 3, 0)
    model = assert_as_transformers("ChineseCLIP", tmp_path, ids, attention_mask=(ids != 0).long())
    text_config = model.config.text
    assert isinstance(text_config, BertTextConfig) and text_config.pool == "first"


@pytest.mark.parametrize("image_size", [32, 30])  # 30 px: a rest of 2 px that no patch sees
@pytest.mark.parametrize("projection", [36, 24])
def test_siglip_of_any_width_and_of_a_size_that_patches_do_not_fill(
    image_size: int, projection: int, tmp_path: Path
) -> None:
    vision = {"image_size": image_size, "patch_size": 8 if image_size == 32 else 7}
    vision["hidden_size"] = projection
    save("Siglip", tmp_path, vision=vision, text={"projection_size": projection})
    model = assert_as_transformers("Siglip", tmp_path)
    image = model.config.image
    assert isinstance(image, VitConfig) and image.image_size == image_size and image.grid == 4
    assert model.logit_bias is not None


@pytest.mark.parametrize("name", ["CLIP", "Siglip", "MetaClip2", "ChineseCLIP"])
def test_what_config_json_leaves_out_is_what_transformers_takes(name: str, tmp_path: Path) -> None:
    # Sizes cannot be left out of so small a model; everything else can. 12 heads, by default.
    sides = {"num_attention_heads": 12, "hidden_size": 36, "vocab_size": 99}
    sizes = {"projection_size": 36} if name == "Siglip" else {}
    heads = 8 if name in ("CLIP", "MetaClip2") else 12
    text = {**sides, **sizes, "num_attention_heads": heads, "hidden_size": 3 * heads}
    save(name, tmp_path, vision=sides, text=text)
    default = "hidden_act layer_norm_eps num_attention_heads eos_token_id pad_token_id bos_token_id"
    strip(tmp_path, set(default.split()))
    config = json.loads((tmp_path / "config.json").read_text())
    assert not any(key in section for section in config.values() for key in default.split()
                   if isinstance(section, dict))  # fmt: skip
    ids, mask = IDS, {}
    if name == "ChineseCLIP":
        ids = IDS.where(IDS != 3, 0)
        mask = {"attention_mask": (ids != 0).long()}
    assert_as_transformers(name, tmp_path, ids, **mask)


@pytest.mark.parametrize("given", [{"hidden_act": "gelu"}, {"eos_token_id": 40}])
def test_old_configurations_count_what_is_under_config_dict(
    given: Mapping[str, Any], tmp_path: Path
) -> None:
    # Written in full there, and contradicting the section that newer files have.
    save("CLIP", tmp_path, vision={}, text={"eos_token_id": 2}, projection_dim=20)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["text_config_dict"] = {**TEXT, **given}
    path.write_text(json.dumps(config))
    model = assert_as_transformers("CLIP", tmp_path)
    text = model.config.text
    # eos_token_id 2 of the other section does not count: 49407 is the default.
    assert isinstance(text, ClipTextConfig) and text.eos_id == given.get("eos_token_id", 49407)


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    folder = save("CLIP", tmp_path, vision={}, text={"eos_token_id": 2})
    model = transformers.CLIPModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert_as_transformers("CLIP", folder)


def flax_parameters(model: Any, *, stacked: bool) -> dict[str, np.ndarray]:
    """A SigLIP under big_vision's names: kernels (in, out), attention's with heads apart."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    flat = {"params/t": state["logit_scale"].reshape(1), "params/b": state["logit_bias"].reshape(1)}

    def norm(ours: str, theirs: str) -> None:
        flat[f"{ours}/scale"], flat[f"{ours}/bias"] = (
            state[f"{theirs}.weight"],
            state[f"{theirs}.bias"],
        )

    def dense(ours: str, theirs: str) -> None:
        flat[f"{ours}/kernel"], flat[f"{ours}/bias"] = (
            state[f"{theirs}.weight"].T,
            state[f"{theirs}.bias"],
        )

    def attention(ours: str, parts: dict[str, tuple[np.ndarray, np.ndarray]], heads: int) -> None:
        for part, (matrix, bias) in parts.items():
            width = len(bias)
            if part == "out":
                kernel = matrix.T.reshape(heads, width // heads, width)
            else:
                kernel = matrix.T.reshape(width, heads, width // heads)
                bias = bias.reshape(heads, width // heads)
            flat[f"{ours}/{part}/kernel"], flat[f"{ours}/{part}/bias"] = kernel, bias

    def blocks(ours: str, theirs: str, config: Any) -> None:
        for number in range(config.num_hidden_layers):
            mine, layer = f"{ours}/encoderblock_{number}", f"{theirs}.encoder.layers.{number}"
            norm(f"{mine}/LayerNorm_0", f"{layer}.layer_norm1")
            norm(f"{mine}/LayerNorm_1", f"{layer}.layer_norm2")
            dense(f"{mine}/MlpBlock_0/Dense_0", f"{layer}.mlp.fc1")
            dense(f"{mine}/MlpBlock_0/Dense_1", f"{layer}.mlp.fc2")
            names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
            parts = {
                part: (
                    state[f"{layer}.self_attn.{name}.weight"],
                    state[f"{layer}.self_attn.{name}.bias"],
                )
                for part, name in names.items()
            }
            attention(f"{mine}/MultiHeadDotProductAttention_0", parts, config.num_attention_heads)
        if stacked:  # one loop over the blocks, compiled once
            starts = [f"{ours}/encoderblock_{n}/" for n in range(config.num_hidden_layers)]
            for name in [key for key in flat if key.startswith(starts[0])]:
                inner = name.removeprefix(starts[0])
                flat[f"{ours}/encoderblock/{inner}"] = np.stack(
                    [flat.pop(s + inner) for s in starts]
                )

    vision, text, head = "vision_model", "text_model", "vision_model.head"
    patches = state[f"{vision}.embeddings.patch_embedding.weight"]
    flat["params/img/embedding/kernel"] = patches.transpose(2, 3, 1, 0)
    flat["params/img/embedding/bias"] = state[f"{vision}.embeddings.patch_embedding.bias"]
    flat["params/img/pos_embedding"] = state[f"{vision}.embeddings.position_embedding.weight"][None]
    blocks("params/img/Transformer", vision, model.config.vision_config)
    norm("params/img/Transformer/encoder_norm", f"{vision}.post_layernorm")
    flat["params/img/MAPHead_0/probe"] = state[f"{head}.probe"]
    norm("params/img/MAPHead_0/LayerNorm_0", f"{head}.layernorm")
    dense("params/img/MAPHead_0/MlpBlock_0/Dense_0", f"{head}.mlp.fc1")
    dense("params/img/MAPHead_0/MlpBlock_0/Dense_1", f"{head}.mlp.fc2")
    matrices = np.split(state[f"{head}.attention.in_proj_weight"], 3)
    biases = np.split(state[f"{head}.attention.in_proj_bias"], 3)
    parts = dict(zip(("query", "key", "value"), zip(matrices, biases, strict=True), strict=True))
    out = f"{head}.attention.out_proj"
    parts["out"] = (state[f"{out}.weight"], state[f"{out}.bias"])
    heads = model.config.vision_config.num_attention_heads
    attention("params/img/MAPHead_0/MultiHeadDotProductAttention_0", parts, heads)
    flat["params/txt/Embed_0/embedding"] = state[f"{text}.embeddings.token_embedding.weight"]
    flat["params/txt/pos_embedding"] = state[f"{text}.embeddings.position_embedding.weight"][None]
    blocks("params/txt/Encoder_0", text, model.config.text_config)
    norm("params/txt/Encoder_0/encoder_norm", f"{text}.final_layer_norm")
    dense("params/txt/head", f"{text}.head")
    return flat


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("doubled", [False, True])
def test_a_big_vision_file_is_the_same_model_as_its_conversion(
    stacked: bool, doubled: bool, tmp_path: Path
) -> None:
    folder = save("Siglip", tmp_path, vision={}, text={"projection_size": 36})
    reference = transformers.SiglipModel.from_pretrained(folder).eval()
    flat = flax_parameters(reference, stacked=stacked)
    if doubled:  # early files hold part of the text positions elsewhere: they add up
        part = uniform("second positions", (1, 9, 24)).numpy()
        flat["params/txt/Encoder_0/pos_embedding"] = part
        flat["params/txt/pos_embedding"] = flat["params/txt/pos_embedding"] - part
    path = tmp_path / "webli_en_b16_224.npz"
    np.savez(path, **flat)
    ours = load(path)
    # Alone in its folder: the heads are in its shapes, and the rest is the family's rule.
    pixels = uniform("pixel_values", (2, 3, 32, 32)) * 2
    with torch.no_grad():
        image = features(reference.get_image_features(pixel_values=pixels))
        text = features(reference.get_text_features(input_ids=IDS))
        assert_same_features(ours, pixels, IDS, image=image, text=text, within=TIGHT)
        logits = reference(input_ids=IDS, pixel_values=pixels).logits_per_image
        assert difference(ours(pixels, IDS), logits) < TIGHT
    assert read_published(path).config.image == read_published(folder).config.image
