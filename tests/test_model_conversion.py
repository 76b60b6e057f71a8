"""A checkpoint becomes a runtime folder that computes the same, or nothing at all."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

import twinlens
from twinlens.errors import CheckpointMismatch, ConfigError
from twinlens.runtime import convert as convert_module
from twinlens.runtime import export
from twinlens.runtime.convert import convert, ready_folder
from twinlens.runtime.folder import load_runtime_config

PHOTOS = sorted(twinlens.SAMPLES.glob("*.jpg"))[:5]


def unit(features: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(features, dim=-1).numpy()


def test_a_converted_checkpoint_embeds_as_pytorch_does(own_folder, tiny_clip, tmp_path):
    steps: list[str] = []
    result = convert(own_folder, tmp_path / "runtime", say=steps.append)
    assert result.image.min_cosine > 0.99999 and result.text.min_cosine > 0.99999
    assert result.image.items == 61 and any("exporting" in step for step in steps)
    embedder = twinlens.Embedder(tmp_path / "runtime")
    assert (embedder.name, embedder.dim, embedder.context) == ("own", 8, 12)
    ids = twinlens.load_tokenizer(own_folder)(["a dog", "two cats on a sofa"])
    with torch.inference_mode():
        wanted = unit(tiny_clip.encode_text(torch.from_numpy(ids)))
    np.testing.assert_allclose(embedder.texts(["a dog", "two cats on a sofa"]), wanted, atol=1e-5)
    assert embedder.images(PHOTOS).shape == (5, 8)


def test_a_checkpoint_itself_is_converted_once_for_an_embedder(
    own_folder,
    tmp_path,
    monkeypatch,
):
    monkeypatch.setenv("TWINLENS_CACHE", str(tmp_path / "cache"))
    steps: list[str] = []
    first = ready_folder(own_folder, say=steps.append)
    assert first.is_relative_to(tmp_path / "cache") and "converting" in steps[0]
    steps.clear()
    assert ready_folder(own_folder, say=steps.append) == first and steps == []
    identity = twinlens.Embedder(own_folder).model_id
    assert identity.startswith("own-1:")
    # Other weights in the same place are another model.
    weights = own_folder / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert ready_folder(own_folder) != first
    assert twinlens.Embedder(own_folder).model_id != identity


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_smaller_precisions_stay_near(precision, own_folder, tmp_path):
    whole = convert(own_folder, tmp_path / "fp32")
    small = convert(own_folder, tmp_path / precision, precision=precision)
    assert small.size_bytes < 0.65 * whole.size_bytes
    limit = {"fp16": 0.9999, "int8": 0.99}[precision]
    assert small.image.mean_cosine > limit and small.text.mean_cosine > limit
    assert load_runtime_config(tmp_path / precision).precision == precision
    one, other = twinlens.Embedder(tmp_path / "fp32"), twinlens.Embedder(tmp_path / precision)
    assert one.model_id != other.model_id


def test_an_export_that_differs_is_refused_and_nothing_is_left(
    own_folder,
    tmp_path,
    monkeypatch,
):
    real = export.export_towers

    def faulty(model, image, text, **options):
        real(model, image, text, **options)
        graph = onnx.load(text)
        for tensor in graph.graph.initializer:  # a wrong end token, say
            if tensor.name.endswith("position"):
                array = onnx.numpy_helper.to_array(tensor)[::-1]
                tensor.CopyFrom(onnx.numpy_helper.from_array(array.copy(), tensor.name))
        onnx.save(graph, text)

    monkeypatch.setattr(export, "export_towers", faulty)
    with pytest.raises(CheckpointMismatch, match=r"text tower in fp32 differs"):
        convert(own_folder, tmp_path / "out" / "runtime")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_image_tower_that_fixed_ranges_spoil_gets_ranges_by_row(
    own_folder, tmp_path, monkeypatch
):
    real = convert_module.agreement
    calls: list[int] = []

    def spoilt(*arguments):
        calls.append(1)
        result = real(*arguments)
        # fp32 against PyTorch comes first, then the int8 image tower with fixed ranges.
        return replace(result, mean_cosine=0.9) if len(calls) == 2 else result

    monkeypatch.setattr(convert_module, "agreement", spoilt)
    steps: list[str] = []
    result = convert(own_folder, tmp_path / "int8", precision="int8", say=steps.append)
    assert any("Ranges are not fixed then" in step for step in steps)
    assert result.image.mean_cosine > 0.99 and result.image.items == 21
    for side in ("image", "text"):
        graph = onnx.load(tmp_path / "int8" / f"{side}.onnx").graph
        assert [node.op_type for node in graph.node].count("MatMulNBits") >= 6


def test_a_target_that_is_there_is_not_touched_unless_asked(own_folder, tmp_path):
    target = tmp_path / "photos"
    target.mkdir()
    (target / "dear.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        convert(own_folder, target)
    assert (target / "dear.txt").read_text() == "mine"
    with pytest.raises(ConfigError, match="is a runtime folder already"):
        convert("mini", tmp_path / "again")


def test_fewer_dimensions_are_a_prefix_of_unit_length():
    whole, half = twinlens.Embedder("mini"), twinlens.Embedder("mini@100")
    assert half.dim == 100 and half.model_id == f"{whole.model_id}@100"
    assert (whole.name, half.name) == ("mini", "mini@100")
    full = whole.texts(["a dog", "a red car"])[:, :100]
    wanted = full / np.linalg.norm(full, axis=1, keepdims=True)
    np.testing.assert_allclose(half.texts(["a dog", "a red car"]), wanted, atol=1e-6)
    assert np.linalg.norm(half.images(PHOTOS), axis=1) == pytest.approx(1, abs=1e-5)
    with pytest.raises(ConfigError, match="gives 384 numbers per vector; 500 cannot be kept"):
        twinlens.Embedder("mini", dim=500)


def test_the_whole_way_on_a_command_line(own_folder, tmp_path, capsys):
    from twinlens.cli.main import main

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        return stop.value.code, capsys.readouterr()

    code, said = run("convert", own_folder, tmp_path / "model", "--json")
    assert code == 0 and "exporting both towers" in said.err
    assert json.loads(said.out)["image"]["items"] == 61
    code, said = run("convert", own_folder, tmp_path / "model")
    assert code == 1 and "is there already" in said.err
    (own_folder / "weights.safetensors").write_bytes(b"no weights")
    code, said = run("convert", own_folder, tmp_path / "other")
    assert code == 1 and said.err.count("\n") <= 2 and "weights.safetensors" in said.err


def test_the_sample_captions_fill_the_context_and_include_an_empty_one(own_folder):
    preprocess = twinlens.load_preprocess(own_folder)
    samples = convert_module.Samples(
        replace(preprocess, image_size=8), twinlens.load_tokenizer(own_folder)
    )
    assert samples.pixels.shape == (61, 3, 8, 8) and samples.ids.shape == (63, 12)
    assert (samples.ids[-1] != 0).all() and (samples.ids[-2][2:] == 0).all()
