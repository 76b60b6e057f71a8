"""Weights come out of every published kind of file, as its own library would give them."""

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from twinlens.errors import CheckpointMismatch
from twinlens.model.archive import find_weights, read_tensors

# PyTorch calls TorchScript deprecated; OpenAI's files are in it all the same.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        assert actual[name].shape == value.shape, name
        assert torch.equal(actual[name], value), name


def some_tensors():
    torch.manual_seed(0)
    return {
        "float": torch.randn(3, 4),
        "half": torch.randn(5).half(),
        "bfloat16": torch.randn(2, 2).bfloat16(),
        "double": torch.randn(2).double(),
        "integers": torch.arange(6),
        "bytes": torch.arange(3, dtype=torch.uint8),
        "flags": torch.tensor([True, False]),
        "float8": torch.randn(4).to(torch.float8_e4m3fn),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
    }


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("mask", torch.arange(3.0), persistent=False)
        self.plain = torch.ones(3)  # an attribute, no part of the state

    def forward(self, x):
        return self.linear(x) * self.mask + self.plain


class Nested(nn.Module):
    """Lists of modules, batch norm's integers, a tied, a half and a transposed weight."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.norm = nn.BatchNorm1d(3)
        self.tied = nn.Linear(3, 3)
        self.tied.weight = self.blocks[0].linear.weight
        self.turned = nn.Parameter(torch.randn(4, 3).t())
        self.thin = nn.Parameter(torch.randn(3).half())
        self.register_buffer("every_second", torch.arange(10)[::2])
        self.register_buffer("absent", None)
        self.size = 7

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return (self.tied(self.norm(x)) * self.thin) @ self.turned


@pytest.fixture(params=["scripted", "traced"])
def torchscript_file(request, tmp_path):
    torch.manual_seed(0)
    module = Nested().eval()
    path = tmp_path / "module.pt"
    if request.param == "scripted":
        torch.jit.script(module).save(str(path))
    else:
        torch.jit.trace(module, torch.randn(2, 3)).save(str(path))
    return path


def test_a_torchscript_module_gives_its_state_dict(torchscript_file):
    tensors = read_tensors(torchscript_file)
    expected = torch.jit.load(torchscript_file).state_dict()
    assert_same(tensors, expected)
    assert tensors["turned"].stride() == expected["turned"].stride() == (1, 3)
    assert "blocks.1.mask" in tensors and "blocks.1.plain" not in tensors


def test_tied_weights_stay_one_memory(torchscript_file):
    tensors = read_tensors(torchscript_file)
    pointers = {tensors[f"{name}.weight"].data_ptr() for name in ("tied", "blocks.0.linear")}
    assert len(pointers) == 1


def test_without_its_source_code_every_tensor_of_a_module_counts(torchscript_file, tmp_path):
    bare = tmp_path / "bare.pt"
    with zipfile.ZipFile(torchscript_file) as old, zipfile.ZipFile(bare, "w") as new:
        for name in old.namelist():
            if "/code/" not in name:
                new.writestr(name, old.read(name))
    expected = read_tensors(torchscript_file)
    tensors = read_tensors(bare)
    extra = tensors.keys() - expected.keys()
    assert extra <= {"blocks.0.plain", "blocks.1.plain"}
    assert_same({name: tensors[name] for name in expected}, expected)


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_torch_save_in_both_layouts(tmp_path, as_zip, protocol):
    path = tmp_path / "weights.whatever"  # found by content, not by extension
    tensors = some_tensors()
    tensors["turned"] = torch.arange(12.0).reshape(3, 4).t()
    tensors["part"] = tensors["float"][1:, 2:]
    torch.save(tensors, path, _use_new_zipfile_serialization=as_zip, pickle_protocol=protocol)
    read = read_tensors(path)
    assert_same(read, tensors)
    assert read["turned"].stride() == (1, 4)
    assert read["part"].untyped_storage().data_ptr() == read["float"].untyped_storage().data_ptr()


def test_safetensors(tmp_path):
    path = tmp_path / "weights.bin"
    save_file(some_tensors(), path)
    assert_same(read_tensors(path), some_tensors())


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_changing_a_tensor_leaves_the_file_as_it_is(tmp_path, kind):
    path = tmp_path / "weights"
    tensors = {"a": torch.zeros(4)}
    if kind == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "zip")
    before = path.read_bytes()
    read_tensors(path)["a"].add_(1)
    assert path.read_bytes() == before
    assert read_tensors(path)["a"].sum() == 0


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "module"])
def test_of_a_training_checkpoint_only_the_weights_are_read(tmp_path, key):
    model = nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    wrapped = {f"module._orig_mod.{name}": value for name, value in model.state_dict().items()}
    checkpoint = {
        "epoch": 3,
        "model": {"name": "ViT-B-32"},
        "metrics": [{"loss": 0.5}],
        "random": np.float64(0.25),
        "ema_state_dict": {"weight": torch.zeros(3, 2)},
        key: wrapped,
        "optimizer": optimizer.state_dict(),
    }
    torch.save(checkpoint, tmp_path / "epoch_3.pt")
    assert_same(read_tensors(tmp_path / "epoch_3.pt"), model.state_dict())


def test_wrappers_within_wrappers_are_unwrapped(tmp_path):
    torch.save({"model": {"state_dict": {"a": torch.ones(1)}}}, tmp_path / "a.pt")
    assert read_tensors(tmp_path / "a.pt").keys() == {"a"}
    torch.save({"model": {"name": "small"}, "a": torch.ones(1)}, tmp_path / "b.pt")
    assert read_tensors(tmp_path / "b.pt").keys() == {"a"}


def test_parameters_with_gradients_and_pickled_metadata_are_read(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    parameters = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    torch.save(parameters, tmp_path / "parameters.pt")
    torch.save(model.state_dict(), tmp_path / "state.pt")  # carries _metadata
    expected = model.state_dict()
    assert_same(read_tensors(tmp_path / "parameters.pt"), expected)
    assert_same(read_tensors(tmp_path / "state.pt"), expected)


def test_a_prefix_is_kept_where_not_all_names_have_it(tmp_path):
    tensors = {"module.a": torch.ones(1), "b": torch.ones(1)}
    torch.save(tensors, tmp_path / "a.pt")
    assert read_tensors(tmp_path / "a.pt").keys() == tensors.keys()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_with_bfloat16_as_big_vision_writes_it(tmp_path, save):
    values = torch.tensor([1.0, -2.5, 3.0e38, 0.15625]).bfloat16()
    arrays = {
        "params/img/head/kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
        "params/img/turned": np.asfortranarray(np.arange(6, dtype=np.float16).reshape(2, 3)),
        "params/b": np.array(-10.0, np.float32),
        # bfloat16 arrays of JAX reach the file as two bytes without meaning.
        "params/t": values.view(torch.int16).numpy().view("V2"),
        "params/big_endian": np.array([1.5, 2.5], ">f4"),
        "opt/0/count": np.array(7),
    }
    save(tmp_path / "siglip.npz", **arrays)
    tensors = read_tensors(tmp_path / "siglip.npz")
    assert tensors.keys() == {"img/head/kernel", "img/turned", "b", "t", "big_endian"}
    assert tensors["img/head/kernel"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert tensors["img/turned"].dtype == torch.float16
    assert tensors["img/turned"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert torch.equal(tensors["t"], values)
    assert tensors["b"].shape == () and tensors["b"] == -10
    assert tensors["big_endian"].tolist() == [1.5, 2.5]


def test_npz_without_a_params_branch_keeps_its_names(tmp_path):
    np.savez(tmp_path / "a.npz", **{"img/kernel": np.ones(2, np.float32), "note": np.array("hi")})
    assert read_tensors(tmp_path / "a.npz").keys() == {"img/kernel"}


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_the_index_of_a_sharded_checkpoint_reads_all_shards(tmp_path, suffix):
    shards = [{"a": torch.ones(2), "b": torch.zeros(3)}, {"c": torch.full((1,), 7.0)}]
    places = {}
    for number, tensors in enumerate(shards):
        name = f"model-{number}.{suffix}"
        save = save_file if suffix == "safetensors" else torch.save
        save(tensors, tmp_path / name)
        places |= dict.fromkeys(tensors, name)
    index = tmp_path / f"model.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 24}, "weight_map": places}))
    assert_same(read_tensors(index), shards[0] | shards[1])

    (tmp_path / f"model-1.{suffix}").unlink()
    with pytest.raises(CheckpointMismatch, match=rf"needs the file model-1\.{suffix}"):
        read_tensors(index)


def test_an_index_that_promises_too_much_is_refused(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}))
    with pytest.raises(CheckpointMismatch, match=r"says that one\.safetensors holds b"):
        read_tensors(index)
    index.write_text('{"weight_map": {}}')
    with pytest.raises(CheckpointMismatch, match="without the weight_map"):
        read_tensors(index)
    index.write_text(json.dumps({"weight_map": {"a": index.name}}))
    with pytest.raises(CheckpointMismatch, match="no weights file"):
        read_tensors(index)


@pytest.mark.parametrize(
    "place", ["../secret.safetensors", "/etc/passwd", "..", "", "a\\b", "sub/x", "C:x", 3, "a\0"]
)
def test_an_index_may_not_name_files_outside_its_folder(tmp_path, place):
    save_file({"a": torch.ones(2)}, tmp_path / "secret.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": place}}))
    with pytest.raises(CheckpointMismatch, match="shard outside its folder"):
        read_tensors(index)


def test_weights_are_found_in_a_folder_by_their_usual_names(tmp_path):
    with pytest.raises(CheckpointMismatch, match=r"holds no weights: looked for model.safetensors"):
        find_weights(tmp_path)
    for name in ("optimizer.pt", "training_args.bin", "config.json", "siglip.npz"):
        (tmp_path / name).touch()
    assert find_weights(tmp_path).name == "siglip.npz"
    (tmp_path / "ViT-B-32.pt").touch()
    with pytest.raises(CheckpointMismatch, match=r"several .*: ViT-B-32\.pt, siglip\.npz\. Give"):
        find_weights(tmp_path)
    for name in (
        "pytorch_model.bin",
        "open_clip_pytorch_model.bin",
        "open_clip_model.safetensors",
        "model.safetensors.index.json",
        "model.safetensors",
    ):
        (tmp_path / name).touch()
        assert find_weights(tmp_path).name == name
    with pytest.raises(CheckpointMismatch, match="is not a folder"):
        find_weights(tmp_path / "model.safetensors")


def test_what_is_no_readable_file_is_said(tmp_path, monkeypatch):
    with pytest.raises(CheckpointMismatch, match="is a folder"):
        read_tensors(tmp_path)
    with pytest.raises(CheckpointMismatch, match="does not exist"):
        read_tensors(tmp_path / "nothing.pt")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointMismatch, match="not a regular file"):
        read_tensors(tmp_path / "pipe")
    (tmp_path / "locked.pt").write_bytes(b"weights")

    def refuse(*_):  # as root, permissions would not stop the test
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointMismatch, match=r"locked\.pt cannot be read: Permission denied"):
        read_tensors(tmp_path / "locked.pt")


def golden_weights(shared_folder):
    kinds = (".safetensors", ".pt", ".bin")
    found = [path for path in (shared_folder / "golden").rglob("*") if path.suffix in kinds]
    assert len(found) >= 13
    return found


def reference(path):
    if path.suffix == ".safetensors":
        return load_file(path)
    with zipfile.ZipFile(path) as archive:
        if any("constants.pkl" in name for name in archive.namelist()):
            return torch.jit.load(path).state_dict()
    loaded = torch.load(path, weights_only=True)
    loaded = loaded.get("state_dict", loaded)
    return {name.removeprefix("module."): value for name, value in loaded.items()}


def test_golden_files_hold_what_their_own_libraries_read(shared_folder):
    for path in golden_weights(shared_folder):
        assert_same(read_tensors(path), reference(path))
        assert find_weights(path.parent).parent == path.parent
