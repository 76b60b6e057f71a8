"""What is exported is what was trained, what is quantised is close, what is broken says so."""

import json

import numpy as np
import onnxruntime
import pytest
import torch

from twinlens.config import BertTextConfig, ClipConfig, EfficientNetLiteConfig
from twinlens.errors import CheckpointMismatch, ConfigError, MissingExtra, ModelNotFound
from twinlens.model.clip import Clip
from twinlens.runtime.export import export_towers
from twinlens.runtime.folder import (
    BUILT_IN,
    CONFIG_NAME,
    load_runtime_config,
    locate,
    model_identity,
)
from twinlens.runtime.quantize import quantize_image_tower, quantize_text_tower
from twinlens.runtime.session import TowerSession
from twinlens.runtime.verify import agreement


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A small random model, and its two towers as ONNX files."""
    torch.manual_seed(0)
    model = Clip(
        ClipConfig(
            image=EfficientNetLiteConfig(image_size=64, head_width=64),
            text=BertTextConfig(
                width=32, layers=2, heads=2, mlp_width=64, vocab_size=2000, context=12
            ),
            dim=16,
            image_projection="linear_bias",
            text_projection="linear_bias",
        )
    ).eval()
    folder = tmp_path_factory.mktemp("exported")
    export_towers(model, folder / "image.onnx", folder / "text.onnx")
    return model, folder


def pixels(count):
    return np.random.default_rng(0).standard_normal((count, 3, 64, 64)).astype(np.float32)


def ids(count, tokens):
    return np.random.default_rng(0).integers(1, 60, (count, tokens))


def test_exported_towers_equal_pytorch_at_any_batch_and_length(exported):
    model, folder = exported
    image, text = TowerSession(folder / "image.onnx"), TowerSession(folder / "text.onnx")
    for count in (1, 5):
        with torch.inference_mode():
            wanted = model.encode_image(torch.from_numpy(pixels(count))).numpy()
        np.testing.assert_allclose(image.run(pixels(count)), wanted, atol=1e-5)
    for tokens in (3, 12):
        padded = ids(2, tokens)
        padded[0, 2:] = 0  # the mask is made inside the graph
        with torch.inference_mode():
            wanted = model.encode_text(torch.from_numpy(padded)).numpy()
        np.testing.assert_allclose(text.run(padded), wanted, atol=1e-5)


def test_int8_towers_are_smaller_and_point_the_same_way(exported, tmp_path):
    _, folder = exported
    quantize_image_tower(folder / "image.onnx", tmp_path / "image.onnx", [pixels(4), pixels(4)])
    quantize_text_tower(folder / "text.onnx", tmp_path / "text.onnx")
    for name, batch in (("image", pixels(6)), ("text", ids(6, 9))):
        small, whole = tmp_path / f"{name}.onnx", folder / f"{name}.onnx"
        assert small.stat().st_size < 0.5 * whole.stat().st_size
        result = agreement(TowerSession(whole).run, TowerSession(small).run, [batch])
        assert result.items == 6
        assert result.mean_cosine > 0.98


def test_a_text_alone_and_among_others_is_the_same_vector(exported, tmp_path):
    _, folder = exported
    quantize_text_tower(folder / "text.onnx", tmp_path / "text.onnx")
    session = TowerSession(tmp_path / "text.onnx")
    together = session.run(ids(6, 9))
    alone = np.concatenate([session.run(ids(6, 9)[i : i + 1]) for i in range(6)])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_agreement_measures_angles_and_not_lengths():
    right = np.array([[1.0, 0.0], [0.0, 2.0]], dtype=np.float32)
    turned = np.array([[5.0, 0.0], [3.0, 0.0]], dtype=np.float32)
    result = agreement(lambda batch: right, lambda batch: turned, [np.zeros((2, 1))])
    assert (result.mean_cosine, result.min_cosine) == (0.5, 0.0)
    assert result.max_difference == 1.0


def test_an_unknown_model_is_answered_with_those_there_are():
    with pytest.raises(ModelNotFound, match=r"'nosuch' is neither a built-in model \(mini\)"):
        locate("nosuch")


def test_a_truncated_tower_gets_one_clear_sentence(exported, tmp_path):
    _, folder = exported
    cut = tmp_path / "image.onnx"
    cut.write_bytes((folder / "image.onnx").read_bytes()[:5000])
    with pytest.raises(CheckpointMismatch, match="is not an ONNX model"):
        TowerSession(cut)
    with pytest.raises(CheckpointMismatch, match="Install or convert the model again"):
        TowerSession(tmp_path / "absent.onnx")


def test_a_model_folder_with_an_unknown_key_is_refused_by_name(tmp_path):
    values = json.loads((BUILT_IN / "mini" / CONFIG_NAME).read_text())
    (tmp_path / CONFIG_NAME).write_text(json.dumps({**values, "flavour": "vanilla"}))
    with pytest.raises(ConfigError, match="does not know 'flavour'"):
        load_runtime_config(tmp_path)
    (tmp_path / CONFIG_NAME).write_text("{")
    with pytest.raises(ConfigError, match="not a readable JSON file"):
        load_runtime_config(tmp_path)


def test_minis_files_are_whole_small_and_identified_by_content():
    folder = locate("mini")
    config = load_runtime_config(folder)
    towers = sum((folder / name).stat().st_size for name in (config.image_file, config.text_file))
    assert towers <= 32_000_000
    assert model_identity(folder, config).startswith(f"mini-{config.version}:")
    for name in (config.image_file, config.text_file):
        onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])


def test_shapes_in_annotations_are_executed(exported):
    _, folder = exported
    with pytest.raises(Exception, match="calibration"):
        quantize_image_tower(folder / "image.onnx", folder / "x.onnx", 3)


def test_a_missing_extra_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"needs .*'onnx'.* pip install 'twinlens\[train\]'"):
        quantize_text_tower(tmp_path / "a.onnx", tmp_path / "b.onnx")


def test_a_model_of_a_later_format_is_refused(tmp_path):
    values = json.loads((BUILT_IN / "mini" / CONFIG_NAME).read_text())
    (tmp_path / CONFIG_NAME).write_text(json.dumps({**values, "format_version": 2}))
    with pytest.raises(ConfigError, match="format_version must be one of 1, not 2"):
        load_runtime_config(tmp_path)
