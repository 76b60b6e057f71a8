"""Any checkpoint becomes a model, a tokenizer and preprocessing, or one clear sentence."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import twinlens
from twinlens.errors import ConfigError, ModelNotFound
from twinlens.runtime.folder import BUILT_IN, lasting_name, locate, split_dim
from twinlens.runtime.load import INPUTS_NAME, AssumedDefault

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


def test_our_own_folder_gives_back_model_tokenizer_and_preprocessing(own_folder, tiny_clip):
    model = twinlens.load_model(own_folder)
    ids = twinlens.load_tokenizer(own_folder)(["a red car", "snow"])
    assert ids.shape == (2, 12) and ids.dtype == np.int64
    pixels = twinlens.load_preprocess(own_folder)(Image.new("RGB", (50, 20), (255, 255, 255)))
    assert pixels.shape == (3, 32, 32) and (pixels == 1.0).all()
    with torch.inference_mode():
        wanted = tiny_clip.encode_text(torch.from_numpy(ids))
        assert torch.equal(model.encode_text(torch.from_numpy(ids)), wanted)
    assert model.logit_scale.item() == pytest.approx(1 / 0.07)
    assert model.logit_bias is None
    assert torch.equal(
        twinlens.load_model(own_folder / "weights.safetensors").log_scale, model.log_scale
    )


def test_our_own_folder_takes_no_overrides(own_folder):
    with pytest.raises(ConfigError, match="nothing can be overruled"):
        twinlens.load_model(own_folder, vision_heads=4)


def test_a_folder_without_inputs_says_so(own_folder):
    (own_folder / INPUTS_NAME).unlink()
    with pytest.raises(ConfigError, match=r"has no inputs\.json"):
        twinlens.load_tokenizer(own_folder)


def test_a_runtime_folder_has_a_tokenizer_and_preprocessing_but_no_pytorch_model():
    assert twinlens.load_tokenizer("mini")(["a dog"]).shape == (1, 128)
    assert twinlens.load_preprocess("mini").image_size == 256
    with pytest.raises(ConfigError, match="is a runtime folder"):
        twinlens.load_model("mini")


def test_an_unknown_name_is_answered_with_what_to_do():
    with pytest.raises(ModelNotFound, match=r"built-in model \(mini\).*`twinlens models`"):
        twinlens.load_model("no-such-model")
    with pytest.raises(ModelNotFound, match="twinlens pull openai/vit-b-32"):
        twinlens.load_model("openai/vit-b-32")


def test_a_folder_called_like_a_built_in_model_does_not_take_its_place(tmp_path, monkeypatch):
    (tmp_path / "mini").mkdir()
    monkeypatch.chdir(tmp_path)
    assert locate("mini") == BUILT_IN / "mini"
    assert locate("./mini").resolve() == tmp_path / "mini"


def test_a_name_may_say_how_many_dimensions_to_keep(tmp_path, monkeypatch):
    assert split_dim("mini@128") == ("mini", 128)
    assert split_dim("hf:owner/repo@main") == ("hf:owner/repo@main", None)
    assert split_dim("mini") == ("mini", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model@2").mkdir()
    assert split_dim("model@2") == ("model@2", None)  # a folder that is really called so
    assert lasting_name("mini@128") == "mini@128"
    assert lasting_name("model@2") == str(tmp_path / "model@2")


def test_golden_folders_give_the_references_inputs(shared_folder):
    for case in ("openclip_vit", "hf_clip_quick_gelu_eos2", "hf_clip_gelu_eos49407"):
        folder = shared_folder / "golden" / case
        inputs = np.load(folder / "inputs.npz")
        with pytest.warns(AssumedDefault, match="CLIP's own vocabulary of 49,408 is used"):
            tokenizer = twinlens.load_tokenizer(folder)
        texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
        assert (tokenizer(texts) == inputs["token_ids"]).all()
        preprocess = twinlens.load_preprocess(folder)
        for number, wanted in enumerate(inputs["pixel_values"]):
            with Image.open(folder / "images" / f"{number}.png") as image:
                assert (preprocess(image) == wanted).all()


def test_what_a_lone_file_does_not_say_is_said(shared_folder, tmp_path):
    shutil.copy(shared_folder / "golden" / "openai_vit" / "model.pt", tmp_path / "model.pt")
    with pytest.warns(AssumedDefault, match="heads of 64, quick_gelu"):
        model = twinlens.load_model(tmp_path / "model.pt")
    assert (model.config.image.heads, model.config.image.activation) == (2, "quick_gelu")
    with pytest.warns(AssumedDefault, match="as for OpenAI's CLIP"):
        preprocess = twinlens.load_preprocess(tmp_path / "model.pt")
    assert (preprocess.mean, preprocess.std) == (OPENAI_MEAN, OPENAI_STD)
    assert (preprocess.resize, preprocess.image_size) == ("shortest", 32)
    with pytest.raises(ConfigError, match="knows 1,000 tokens"):
        twinlens.load_tokenizer(tmp_path)


def test_inputs_need_no_head_counts(shared_folder):
    folder = shared_folder / "golden" / "openclip_siglip"
    with pytest.raises(ConfigError, match="pass vision_heads="):
        twinlens.load_model(folder)
    assert twinlens.load_preprocess(folder).resize == "squash"
    assert twinlens.load_model(folder, vision_heads=4).logit_bias is not None


def test_specials_a_user_typed_are_text_unless_asked_otherwise(shared_folder):
    folder = shared_folder / "golden" / "tokenizer"
    safe = twinlens.load_tokenizer(folder)(["a <|endoftext|> b", "x<end_of_text>y"])
    for row in safe.tolist():
        assert row.count(49406) == 1 and row[: row.index(49407)].count(49406) == 1
        assert set(row[row.index(49407) + 1 :]) <= {0}
    tokenizer = twinlens.load_tokenizer(folder, specials="openai")
    assert tokenizer(["a <|endoftext|> b"])[0].tolist().count(49407) == 2
