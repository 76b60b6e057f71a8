"""What is no whole, known CLIP is refused in one sentence that says what to do."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from published_model import load
from random_weights import fill
from test_published import OPEN_CLIP, open_clip_folder
from test_published_transformers import TEXT, VISION, flax_parameters, save
from twinlens.errors import CheckpointMismatch, ConfigError, TwinlensError
from twinlens.model import published as published_module

pytestmark = pytest.mark.usefixtures("one_thread")

transformers = pytest.importorskip("transformers")

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return save("CLIP", tmp_path, vision={}, text={"eos_token_id": 2}, projection_dim=20)


def change_config(folder: Path, section: str, **values: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    (config[section] if section else config).update(values)
    path.write_text(json.dumps(config))


def change_weights(path: Path, change: Callable[[Tensors], object]) -> None:
    tensors = {name: value.clone() for name, value in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


def message(path: Path, **overrides: Any) -> str:
    """What loading says; the path of the weights becomes WEIGHTS, its folder FOLDER."""
    with pytest.raises((ConfigError, CheckpointMismatch)) as caught:
        load(path, **overrides)
    folder = path if path.is_dir() else path.parent
    text = str(caught.value)
    for name in ("model.safetensors", "open_clip_model.safetensors"):
        text = text.replace(str(folder / name), "WEIGHTS")
    return text.replace(str(folder), "FOLDER")


@pytest.mark.parametrize(
    ("section", "values", "said"),
    [
        ("vision_config", {"hidden_size": 48}, "image hidden_size 48, while the weights have 36"),
        ("vision_config", {"patch_size": 16}, "image patch_size 16, while the weights have 8"),
        ("text_config", {"num_hidden_layers": 12}, "text num_hidden_layers 12, while the weights"),
        ("text_config", {"vocab_size": 49408}, "text vocab_size 49408, while the weights have 99"),
        ("text_config", {"max_position_embeddings": 77}, "text max_position_embeddings 77, while"),
    ],
)
def test_a_config_json_of_other_weights_is_noticed(
    section: str, values: dict[str, int], said: str, clip: Path
) -> None:
    change_config(clip, section, **values)
    found = message(clip)
    assert found.startswith("WEIGHTS does not belong to the config.json beside it, which says ")
    assert said in found
    assert found.endswith(": put the config.json of these weights there.")


def test_a_config_json_of_another_image_size_is_noticed(clip: Path) -> None:
    change_config(clip, "vision_config", image_size=64)
    assert message(clip) == (
        "WEIGHTS: its position embeddings are for pictures of 32 px, but its configuration says "
        "64 px: put the configuration of these weights there."
    )


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("vision_cfg", "width", 32, "image width 32, while the weights have 24"),
        ("vision_cfg", "layers", 12, "image layers 12, while the weights have 2"),
        ("text_cfg", "context_length", 77, "text context_length 77, while the weights have 9"),
        ("text_cfg", "width", 48, "text width 48, while the weights have 24"),
    ],
)
def test_an_open_clip_configuration_of_other_weights_is_noticed(
    section: str, key: str, value: int, said: str, tmp_path: Path
) -> None:
    # 8 heads divide 48 as they do 24: without a look at the sizes nothing would be noticed.
    given = OPEN_CLIP["norm_before_mean"]["model_cfg"][section]
    folder = open_clip_folder(tmp_path, "norm_before_mean", **{section: {**given, key: value}})
    assert message(folder) == (
        f"WEIGHTS does not belong to the open_clip_config.json beside it, which says {said}: put "
        f"the open_clip_config.json of these weights there."
    )


def test_an_open_clip_configuration_of_another_dim_is_noticed(tmp_path: Path) -> None:
    folder = open_clip_folder(tmp_path, "norm_before_mean", embed_dim=512)
    assert "which says embed_dim 512, while the weights have 20" in message(folder)


def test_a_resnets_configuration_of_another_image_size_is_noticed(tmp_path: Path) -> None:
    given = OPEN_CLIP["resnet_quick_gelu"]["model_cfg"]["vision_cfg"]
    vision = {**given, "image_size": 224}
    folder = open_clip_folder(tmp_path, "resnet_quick_gelu", vision_cfg=vision)
    assert "are for pictures of 64 px, but its configuration says 224 px" in message(folder)


def test_missing_and_unexpected_tensors_are_named(clip: Path) -> None:
    def change(tensors: Tensors) -> None:
        del tensors["text_model.encoder.layers.1.mlp.fc1.bias"]
        tensors["vision_model.encoder.layers.0.lora_a.weight"] = torch.zeros(2, 2)

    change_weights(clip / "model.safetensors", change)
    assert message(clip) == (
        "FOLDER does not fit this model in 2 places: missing text_tower.blocks.1.mlp.0.bias; "
        "unexpected vision_model.encoder.layers.0.lora_a.weight. "
        "Check that the config belongs to these weights."
    )


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ("text", "holds only a text tower: get the whole model's file, which has the image tower"),
        ("vis", "holds only an image tower: get the whole model's file, which has the text tower"),
    ],
)
def test_one_tower_alone_is_called_so(kept: str, said: str, clip: Path) -> None:
    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if not name.startswith(kept)]:
            del tensors[name]

    change_weights(clip / "model.safetensors", change)
    assert message(clip) == f"WEIGHTS {said} too."


def test_half_of_a_tower_is_called_so(clip: Path) -> None:
    def change(tensors: Tensors) -> None:
        del tensors["text_model.embeddings.token_embedding.weight"]

    change_weights(clip / "model.safetensors", change)
    assert message(clip) == (
        "WEIGHTS lacks text_tower.token.weight: it holds only a part of a CLIP, or was cut. Get it "
        "again."
    )


def test_weights_of_something_else_are_called_so(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"bert.embeddings.weight": torch.zeros(2), "cls.bias": torch.zeros(2)}, path)
    assert message(path) == (
        "WEIGHTS holds weights of no CLIP that is known here (its names begin with "
        "bert.embeddings.weight, cls.bias). "
        "Known: OpenAI, OpenCLIP, Hugging Face CLIP and SigLIP, big_vision SigLIP."
    )


def test_naflex_is_refused_by_its_name(tmp_path: Path) -> None:
    vision = {k: v for k, v in VISION.items() if k != "image_size"}
    config = transformers.Siglip2Config(
        vision_config={**vision, "num_patches": 16}, text_config={**TEXT, "projection_size": 36}
    )
    model = transformers.Siglip2Model(config)
    fill(model)
    model.save_pretrained(tmp_path)
    assert message(tmp_path) == (
        "WEIGHTS: SigLIP 2 NaFlex (pictures of any shape) is not supported; its checkpoints of "
        "fixed resolution are."
    )


def test_a_folder_without_config_json_asks_for_it(clip: Path) -> None:
    (clip / "config.json").unlink()
    assert message(clip) == (
        "FOLDER has no config.json, without which these weights cannot be understood. Copy it from "
        "where the weights came from."
    )


def test_other_families_and_activations_are_refused_by_their_name(clip: Path) -> None:
    change_config(clip, "text_config", hidden_act="relu")
    assert message(clip) == (
        "WEIGHTS: activation 'relu' is not supported (known: gelu, gelu_new, gelu_pytorch_tanh, "
        "quick_gelu)."
    )
    change_config(clip, "", model_type="blip")
    assert message(clip) == (
        "WEIGHTS: config.json says model_type 'blip'; known are clip, siglip, metaclip_2, "
        "chinese_clip."
    )


def test_heads_that_do_not_divide_are_refused(clip: Path) -> None:
    assert message(clip, vision_heads=5) == (
        "WEIGHTS: 5 heads do not divide the vision tower's width of 36; pass another vision_heads=."
    )
    change_config(clip, "text_config", num_attention_heads=7)
    assert message(clip) == (
        "WEIGHTS: 7 heads do not divide the text tower's width of 24; pass another text_heads=."
    )


def test_a_resnets_heads_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    folder = open_clip_folder(tmp_path, "resnet_quick_gelu")
    assert message(folder, vision_heads=7) == (
        "WEIGHTS: 7 heads do not divide the vision tower's width of 256; pass another "
        "vision_heads=."
    )


@pytest.mark.parametrize("name", ["vit_medium_patch16_gap_256", "swin_base_patch4_window7_224"])
def test_timms_other_towers_are_refused_by_their_name(name: str, tmp_path: Path) -> None:
    # Of OpenCLIP's own configurations; neither pools by attention.
    vision = {"timm_model_name": name, "timm_pool": "", "image_size": 32}
    folder = open_clip_folder(tmp_path, "siglip_exact", vision_cfg=vision)

    def change(tensors: Tensors) -> None:
        for key in [key for key in tensors if ".attn_pool." in key]:
            del tensors[key]

    change_weights(folder / "open_clip_model.safetensors", change)
    found = message(folder)
    assert found.startswith(f"WEIGHTS: the image tower {name!r} is not supported (")


def test_a_timm_tower_with_more_tokens_than_patches_is_refused(tmp_path: Path) -> None:
    # As Perception Encoder, which pools by attention too but turns its positions besides.
    vision = {"timm_model_name": "vit_pe_core_base_patch16_224", "timm_pool": "map"}
    folder = open_clip_folder(tmp_path, "siglip_exact", vision_cfg=vision)

    def change(tensors: Tensors) -> None:
        tensors["visual.trunk.cls_token"] = torch.zeros(1, 1, 32)
        tensors["visual.trunk.pos_embed"] = torch.zeros(1, 17, 32)

    change_weights(folder / "open_clip_model.safetensors", change)
    found = message(folder)
    assert found.startswith("WEIGHTS: the image tower 'vit_pe_core_base_patch16_224' is not supp")


@pytest.mark.parametrize("text", ["facebook/nllb-200-distilled-600M", "google/mt5-base"])
def test_other_hugging_face_text_towers_are_refused_by_their_name(
    text: str, tmp_path: Path
) -> None:
    text_cfg = {"hf_model_name": text, "hf_pooler_type": "mean_pooler"}
    folder = open_clip_folder(tmp_path, "xlm_roberta_mlp", text_cfg=text_cfg)
    position = "text.transformer.embeddings.position_embeddings.weight"
    change_weights(folder / "open_clip_model.safetensors", lambda tensors: tensors.pop(position))
    assert message(folder) == (
        f"WEIGHTS: the text tower {text!r} with 'mean_pooler' is not supported (known: "
        f"roberta-base, xlm-roberta-base, xlm-roberta-large with 'mean_pooler')."
    )


@pytest.mark.parametrize(
    ("section", "values", "said"),
    [
        ("vision_cfg", {"attentional_pool": True}, "OpenCLIP's option attentional_pool (True)"),
        ("text_cfg", {"embed_cls": True}, "OpenCLIP's option embed_cls (True)"),
        ("vision_cfg", {"pool_type": "none"}, "image pooling 'none'"),
        ("text_cfg", {"pool_type": "first"}, "text pooling 'first'"),
    ],
)
def test_options_of_open_clip_that_change_the_numbers_are_refused(
    section: str, values: dict[str, Any], said: str, tmp_path: Path
) -> None:
    given = OPEN_CLIP["norm_before_mean"]["model_cfg"][section]
    folder = open_clip_folder(tmp_path, "norm_before_mean", **{section: {**given, **values}})
    assert message(folder) == f"WEIGHTS: {said} is not supported."


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("clipa", "an image tower without a norm before its blocks"),
        ("siglip_tanh", "an image tower of timm's"),
        ("xlm_roberta_mlp", "a text tower of Hugging Face's"),
    ],
)
def test_a_lone_file_is_not_taken_for_openais_when_it_cannot_be(
    name: str, what: str, tmp_path: Path
) -> None:
    folder = open_clip_folder(tmp_path, name)
    (folder / "open_clip_config.json").unlink()
    # Said to have GELU and heads, it would load as a CLIP, with a causal mask and other pooling.
    said = {"activation": "gelu", "vision_heads": 2, "text_heads": 2}
    assert message(folder / "open_clip_model.safetensors", **said) == (
        f"WEIGHTS has {what} but no open_clip_config.json beside it, without which it cannot be "
        f"understood: copy that file from where the weights came from."
    )


@pytest.mark.parametrize(
    ("section", "values", "said"),
    [
        ("", {"text_config": "small"}, "text_config must be a JSON object, not 'small'"),
        ("text_config", {"hidden_act": ["gelu"]}, "hidden_act must be a text, not ['gelu']"),
        (
            "vision_config",
            {"num_attention_heads": "12"},
            "num_attention_heads must be a number above 0, not '12'",
        ),
        ("vision_config", {"image_size": {}}, "image_size must be a number of pixels, not {}"),
        ("text_config", {"eos_token_id": []}, "eos_token_id must be a token id, not []"),
        ("text_config", {"layer_norm_eps": "1e-5"}, "layer_norm_eps must be a number from 0 on"),
    ],
)
def test_a_value_of_the_wrong_kind_in_config_json_is_named(
    section: str, values: dict[str, Any], said: str, clip: Path
) -> None:
    change_config(clip, section, **values)
    found = message(clip)
    assert found.startswith(f"FOLDER/config.json: {said}")
    assert found.endswith(". Get the file again, or correct it.")


WRONG = ("x", -1, 0, None, [], [1, 2], {}, True, 1.5, {"a": 1})


def paths_of(section: dict[str, Any], before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    paths = []
    for key, value in section.items():
        paths.append((*before, key))
        if isinstance(value, dict):
            paths += paths_of(value, (*before, key))
    return paths


@pytest.mark.parametrize("name", ["clip", "clipa", "siglip_tanh", "xlm_roberta_mlp"])
def test_no_value_in_a_configuration_escapes_as_another_error(
    name: str, clip: Path, tmp_path: Path
) -> None:
    folder = clip if name == "clip" else open_clip_folder(tmp_path, name)
    path = folder / ("config.json" if name == "clip" else "open_clip_config.json")
    written = path.read_text()
    for keys in paths_of(json.loads(written)):
        for value in WRONG:
            config = json.loads(written)
            section = config
            for key in keys[:-1]:
                section = section[key]
            section[keys[-1]] = value
            path.write_text(json.dumps(config))
            # Many are no mistake: what matters is that nothing else is raised.
            with contextlib.suppress(TwinlensError):
                load(folder)


def damaged(tensors: Tensors, name: str) -> list[Tensors]:
    """The same weights, one tensor of which is gone or of another shape."""
    value = tensors[name]
    whole = {key: tensor for key, tensor in tensors.items() if key != name}
    shapes = [value[None], value[None, None], value.reshape(-1), value.reshape(-1)[:1]]
    if value.ndim:
        shapes += [value[:0], torch.cat([value, value[:1]])]
    others = [other for other in shapes if other.shape != value.shape]
    return [whole, *({**whole, name: other} for other in others)]


@pytest.mark.parametrize(
    "name", ["clip", "siglip_tanh", "resnet_quick_gelu", "xlm_roberta_mlp", "big_vision"]
)
def test_no_missing_or_misshapen_tensor_escapes_as_another_error(
    name: str, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "clip":
        path = clip / "model.safetensors"
        tensors = load_file(path)
    elif name == "big_vision":
        folder = save("Siglip", tmp_path, vision={}, text={"projection_size": 36})
        model = transformers.SiglipModel.from_pretrained(folder)
        flat = flax_parameters(model, stacked=True)
        tensors = {key: torch.from_numpy(value.copy()) for key, value in flat.items()}
        path = tmp_path / "weights.npz"
    else:
        path = open_clip_folder(tmp_path, name) / "open_clip_model.safetensors"
        tensors = load_file(path)
    # The first block stands for the others.
    names = [key for key in tensors if not any(f".{n}." in key for n in range(1, 9))]
    escaped, refused = [], 0
    for key in names:
        for broken in damaged(tensors, key):
            monkeypatch.setattr(published_module, "read_tensors", lambda path, t=broken: dict(t))
            try:
                load(path)
            except TwinlensError as error:
                refused += 1
                assert "\n" not in str(error)
            except Exception as error:
                shape = tuple(broken[key].shape) if key in broken else "gone"
                escaped.append(f"{key} {shape}: {type(error).__name__}: {str(error)[:90]}")
    assert escaped == []
    assert refused > len(names)
