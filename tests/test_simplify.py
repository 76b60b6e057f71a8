"""Rewriting a tower changes its speed and not its vectors; rounding it changes them little."""

import numpy as np
import onnx
import pytest
import torch

from twinlens.config import ClipConfig, ClipTextConfig, VitConfig
from twinlens.model.clip import Clip
from twinlens.runtime import graph as graph_module
from twinlens.runtime.export import export_towers
from twinlens.runtime.graph import Graph
from twinlens.runtime.quantize import quantize_image_tower, quantize_text_tower, to_float16
from twinlens.runtime.session import TowerSession
from twinlens.runtime.simplify import simplify_tower
from twinlens.runtime.verify import agreement

SIZE = {"width": 64, "layers": 3, "heads": 2, "mlp_width": 256}


@pytest.fixture(scope="module", params=["quick_gelu", "gelu", "gelu_tanh"])
def folder(request, tmp_path_factory):
    """A small CLIP's exported towers; some channels are twenty times the others."""
    torch.manual_seed(0)
    model = Clip(
        ClipConfig(
            image=VitConfig(image_size=32, patch_size=8, activation=request.param, **SIZE),
            text=ClipTextConfig(vocab_size=2000, context=12, activation=request.param, **SIZE),
            dim=24,
        )
    ).eval()
    with torch.no_grad():
        for tower in (model.image_tower, model.text_tower):
            tower.blocks[1].mlp[0].weight[:2] *= 20
            tower.blocks[1].mlp_norm.weight[:2] *= 10
    folder = tmp_path_factory.mktemp("exported")
    export_towers(model, folder / "image.onnx", folder / "text.onnx")
    return folder


def pixels(count):
    return np.random.default_rng(0).standard_normal((count, 3, 32, 32)).astype(np.float32)


def ids(count, tokens=12):
    return np.random.default_rng(0).integers(1, 1999, (count, tokens))


def kinds(path):
    return [node.op_type for node in onnx.load(path).graph.node]


def test_a_simplified_tower_gives_the_same_vectors_at_any_batch_and_length(folder, tmp_path):
    simplify_tower(folder / "image.onnx", tmp_path / "image.onnx", pixels(1))
    simplify_tower(folder / "text.onnx", tmp_path / "text.onnx", ids(1))
    for name, batches in (
        ("image", [pixels(1), pixels(7)]),
        ("text", [ids(1), ids(5, 3), ids(7, 9)]),
    ):
        before = TowerSession(folder / f"{name}.onnx")
        after = TowerSession(tmp_path / f"{name}.onnx")
        for batch in batches:
            np.testing.assert_allclose(after.run(batch), before.run(batch), atol=2e-5)


def test_products_are_of_one_form_and_slow_layer_norms_are_gone(folder, tmp_path):
    simplify_tower(folder / "image.onnx", tmp_path / "image.onnx", pixels(2))
    after = kinds(tmp_path / "image.onnx")
    assert "LayerNormalization" not in after and "Conv" not in after
    # 3 blocks of q, k, v, out and two of the perceptron; patches and projection.
    assert after.count("Gemm") == 3 * 6 + 2
    assert after.count("MatMul") == 3 * 2  # scores, and what they weigh


def test_only_the_pooled_token_goes_through_the_last_perceptron(folder, tmp_path):
    for name, example in (("image", pixels(2)), ("text", ids(2))):
        simplify_tower(folder / f"{name}.onnx", tmp_path / "tower.onnx", example)
        graph = Graph(tmp_path / "tower.onnx")
        last = [node for node in graph.nodes if node.op_type == "Gemm"][-3:]  # two, projection
        picked = {last[0].input[0]}
        for node in reversed(graph.sorted_nodes(picked)):
            if node.op_type in ("Gather", "GatherND") and picked & set(node.output):
                break
            if picked & set(node.output) and node.op_type != "Softmax":
                picked |= set(node.input)
        else:
            pytest.fail(f"the {name} tower's last perceptron reads every token")


def test_int8_keeps_the_direction_in_spite_of_huge_channels(folder, tmp_path):
    quantize_image_tower(folder / "image.onnx", tmp_path / "image.onnx", [pixels(24)])
    quantize_text_tower(folder / "text.onnx", tmp_path / "text.onnx", [ids(24)])
    for name, batch in (("image", pixels(40)[24:]), ("text", ids(40)[24:])):
        whole, small = folder / f"{name}.onnx", tmp_path / f"{name}.onnx"
        assert small.stat().st_size < 0.5 * whole.stat().st_size
        result = agreement(TowerSession(whole).run, TowerSession(small).run, [batch])
        assert result.mean_cosine > 0.99


def test_int8_vectors_do_not_depend_on_batch_mates(folder, tmp_path):
    quantize_image_tower(folder / "image.onnx", tmp_path / "image.onnx", [pixels(8)])
    quantize_text_tower(folder / "text.onnx", tmp_path / "text.onnx", [ids(8)])
    for name, batch in (("image", pixels(6)), ("text", ids(6))):
        session = TowerSession(tmp_path / f"{name}.onnx")
        alone = np.concatenate([session.run(batch[i : i + 1]) for i in range(6)])
        np.testing.assert_allclose(session.run(batch), alone, atol=1e-6)


def test_float16_is_half_the_bytes_and_nearly_the_same(folder, tmp_path):
    for name, batch in (("image", pixels(6)), ("text", ids(6))):
        whole, half = folder / f"{name}.onnx", tmp_path / f"{name}.onnx"
        to_float16(whole, half)
        assert half.stat().st_size < 0.6 * whole.stat().st_size  # small towers are half graph
        result = agreement(TowerSession(whole).run, TowerSession(half).run, [batch])
        assert result.min_cosine > 0.9999


def test_a_weight_beyond_float16_stays_as_it_is(tmp_path):
    weight = np.full((32, 32), 1e6, dtype=np.float32)
    helper = onnx.helper
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 32])
        for name in ("x", "y")
    ]
    product = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        values[:1],
        values[1:],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    onnx.save(
        helper.make_model(product, ir_version=9, opset_imports=[helper.make_opsetid("", 17)]),
        tmp_path / "large.onnx",
    )
    to_float16(tmp_path / "large.onnx", tmp_path / "half.onnx")
    row = np.ones((1, 32), dtype=np.float32)
    assert TowerSession(tmp_path / "half.onnx").run(row)[0, 0] == 32e6


def test_a_tower_beyond_two_gigabytes_keeps_its_weights_in_a_file_beside_it(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(graph_module, "LARGEST_PROTOBUF_BYTES", 1000)
    simplify_tower(folder / "image.onnx", tmp_path / "image.onnx", pixels(2))
    assert (tmp_path / "image.onnx.data").stat().st_size > 100_000
    wanted = TowerSession(folder / "image.onnx").run(pixels(3))
    np.testing.assert_allclose(
        TowerSession(tmp_path / "image.onnx").run(pixels(3)), wanted, atol=2e-5
    )
    quantize_image_tower(tmp_path / "image.onnx", tmp_path / "int8.onnx", [pixels(8)])
    to_float16(tmp_path / "image.onnx", tmp_path / "half.onnx")
    for name in ("int8", "half"):
        got = TowerSession(tmp_path / f"{name}.onnx").run(pixels(3))
        cosines = (wanted * got).sum(axis=1)
        cosines /= np.linalg.norm(wanted, axis=1) * np.linalg.norm(got, axis=1)
        assert cosines.min() > 0.99
