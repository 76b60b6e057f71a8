"""OpenVINO runs the same files to the same vectors, and says what it cannot run."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from twinlens.config import ClipConfig, ClipTextConfig, VitConfig
from twinlens.errors import CheckpointMismatch, ConfigError, MissingExtra
from twinlens.model.clip import Clip
from twinlens.runtime.export import export_towers
from twinlens.runtime.quantize import quantize_image_tower, to_float16
from twinlens.runtime.session import open_session
from twinlens.runtime.simplify import simplify_tower

openvino = pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small CLIP's towers, plain and simplified, in three precisions."""
    torch.manual_seed(0)
    size = {"width": 64, "layers": 2, "heads": 2, "mlp_width": 128, "activation": "quick_gelu"}
    model = Clip(
        ClipConfig(
            image=VitConfig(image_size=32, patch_size=8, **size),
            text=ClipTextConfig(vocab_size=100, context=12, **size),
            dim=24,
        )
    ).eval()
    folder = tmp_path_factory.mktemp("openvino")
    export_towers(model, folder / "image.onnx", folder / "text.onnx")
    simplify_tower(folder / "image.onnx", folder / "simple.onnx", pixels(2))
    to_float16(folder / "simple.onnx", folder / "half.onnx")
    quantize_image_tower(folder / "image.onnx", folder / "int8.onnx", [pixels(8)])
    return folder


def pixels(count):
    return np.random.default_rng(0).standard_normal((count, 3, 32, 32)).astype(np.float32)


@pytest.mark.parametrize("name", ["image", "simple", "half"])
@pytest.mark.parametrize("count", [1, 5])
def test_both_runtimes_give_the_same_vectors(folder, name, count):
    vectors = [
        open_session(folder / f"{name}.onnx", runtime=runtime, threads=1).run(pixels(count))
        for runtime in ("onnxruntime", "openvino")
    ]
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)


def test_both_runtimes_read_the_same_int8_file(folder):
    wanted = open_session(folder / "image.onnx").run(pixels(4))
    for runtime in ("onnxruntime", "openvino"):
        got = open_session(folder / "int8.onnx", runtime=runtime).run(pixels(4))
        cosines = (wanted * got).sum(axis=1)
        cosines /= np.linalg.norm(wanted, axis=1) * np.linalg.norm(got, axis=1)
        assert cosines.min() > 0.99


def test_texts_of_any_length_run(folder):
    ids = np.random.default_rng(0).integers(1, 99, (3, 7))
    wanted = open_session(folder / "text.onnx").run(ids)
    got = open_session(folder / "text.onnx", runtime="openvino")
    np.testing.assert_allclose(got.run(ids), wanted, atol=1e-5)
    assert got.run(np.ones((2, 12), dtype=np.int64)).shape == (2, 24)


def test_a_session_may_be_shared_by_threads(folder):
    session = open_session(folder / "simple.onnx", runtime="openvino", threads=1)
    batches = [pixels(4) * scale for scale in (0.5, 1.0, 2.0, 4.0)] * 4
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(session.run, batches))
    for batch, vectors in zip(batches, together, strict=True):
        np.testing.assert_allclose(vectors, session.run(batch), atol=1e-6)


def test_a_result_survives_the_next_run(folder):
    session = open_session(folder / "simple.onnx", runtime="openvino")
    first = session.run(pixels(2))
    kept = first.copy()
    session.run(-pixels(2))
    np.testing.assert_array_equal(first, kept)


def test_a_damaged_or_missing_file_gets_one_clear_sentence(folder, tmp_path):
    shutil.copy(folder / "simple.onnx", tmp_path / "cut.onnx")
    (tmp_path / "cut.onnx").write_bytes((tmp_path / "cut.onnx").read_bytes()[:3000])
    with pytest.raises(CheckpointMismatch, match="is not an ONNX model that this OpenVINO"):
        open_session(tmp_path / "cut.onnx", runtime="openvino")
    with pytest.raises(CheckpointMismatch, match="Install or convert the model again"):
        open_session(tmp_path / "absent.onnx", runtime="openvino")


def test_an_unknown_runtime_is_refused(folder):
    with pytest.raises(ConfigError, match="must be 'onnxruntime' or 'openvino'"):
        open_session.__wrapped__(folder / "simple.onnx", runtime="tensorrt")


def test_without_the_package_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'twinlens\[openvino\]'"):
        open_session(folder / "simple.onnx", runtime="openvino")
