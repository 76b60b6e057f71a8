"""MobileCLIP's image towers in OpenCLIP's checkpoints: timm's weights, folded for ours.

They are those of training: each convolution in several branches with batch norms, layer scales
beside. All of it is linear, and summed here, in float64, into one convolution each, as
image_fastvit.py wants it (and image_vit.py, for the stem of MobileCLIP-B). What is not known
keeps its name, and `checkpoint.load_weights` refuses it by that.
Source: Ding et al. 2021, arXiv:2101.03697, figure 4.
"""

import itertools
import re
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from twinlens.errors import CheckpointMismatch

TRUNK = "visual.trunk."
BATCH_NORM_EPS = 1e-5
Leaves = dict[str, Tensor]


def is_fastvit(foreign: dict[str, Tensor]) -> bool:
    """Whether the image tower is a FastViT, folded already or not."""
    return f"{TRUNK}final_conv.se.fc1.weight" in foreign


def fastvit_weights(foreign: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's FastViT under `visual.trunk`; its classifier, if there is one, is the projection.

    Raises CheckpointMismatch for a module that is there in part.
    """
    trunk = _Trunk(foreign)
    ours = {name: value for name, value in foreign.items() if not name.startswith(TRUNK)}
    for source, target, fold in _modules(trunk):
        if not trunk.holds(source):
            continue
        leaves = _whole(fold, trunk, source)
        # Not every transposed or cut tensor is laid out as safetensors and PyTorch want it.
        ours |= {f"{target}.{leaf}": value.float().contiguous() for leaf, value in leaves.items()}
    unread = trunk.tensors.keys() - trunk.read
    return ours | {TRUNK + name: trunk.tensors[name] for name in unread}


def has_convolution_stem(foreign: dict[str, Tensor]) -> bool:
    """Whether the image tower is MobileCLIP-B's ViT."""
    return f"{TRUNK}patch_embed.backbone.2.conv.weight" in foreign


def convolution_stem_weights(foreign: dict[str, Tensor]) -> dict[str, Tensor]:
    """The stem of MobileCLIP-B's ViT folded; the class token is given a position, of zeros.

    Raises CheckpointMismatch for a stem that is there in part.
    """
    trunk = _Trunk(foreign)
    stem, position = "patch_embed.backbone", "pos_embed"
    ours = {name: v for name, v in foreign.items() if not name.startswith(f"{TRUNK}{stem}")}
    convs = [(f"{stem}.0", _conv_norm), (f"{stem}.1", _conv_norm), (f"{stem}.2.conv", _as_it_is)]
    for number, (source, fold) in enumerate(convs):
        leaves = _whole(fold, trunk, source)
        # Ours has an activation between any two.
        ours |= {f"image_tower.patch.{2 * number}.{k}": v.float() for k, v in leaves.items()}
    patches = foreign.get(TRUNK + position)  # (1, patch, width)
    if patches is not None and patches.ndim == 3:
        ours[TRUNK + position] = torch.cat([torch.zeros_like(patches[:, :1]), patches], dim=1)
    return ours


def _whole(fold: "Callable[[_Trunk, str], Leaves]", trunk: "_Trunk", source: str) -> Leaves:
    try:
        return fold(trunk, source)
    except KeyError as error:
        raise CheckpointMismatch(
            f"The checkpoint lacks {TRUNK}{error.args[0]}, without which what belongs to it "
            f"cannot be folded: the file was cut or edited. Get it again."
        ) from error
    except (
        IndexError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:  # what PyTorch says of shapes
        raise CheckpointMismatch(
            f"The checkpoint's tensors of {TRUNK}{source} have shapes that do not belong together: "
            f"the file was edited, or is of a tower that is not known here."
        ) from error


class _Trunk:
    """The tower's tensors by name, in float64; remembers which of them were read."""

    def __init__(self, foreign: dict[str, Tensor]) -> None:
        self.tensors = {
            name.removeprefix(TRUNK): value
            for name, value in foreign.items()
            if name.startswith(TRUNK)
        }
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        value = self.tensors[name]
        self.read.add(name)
        return value.double()

    def holds(self, prefix: str) -> bool:
        return any(name.startswith(f"{prefix}.") for name in self.tensors)


def _modules(trunk: _Trunk) -> Iterator[tuple[str, str, Callable[[_Trunk, str], Leaves]]]:
    """Their module, ours, and how one becomes the other."""
    for number in range(3):
        # Ours has an activation between any two.
        yield f"stem.{number}", f"image_tower.stem.{2 * number}", _conv
    yield "final_conv", "image_tower.head", _conv
    yield "final_conv.se", "image_tower.head_gate", _gate
    yield "head.fc", "image_projection", _as_it_is
    blocks = {
        match.group(0)
        for name in trunk.tensors
        if (match := re.match(r"stages\.\d+\.blocks\.\d+", name))
    }
    for stage in sorted({block.partition(".blocks")[0] for block in blocks}):
        step, target = f"{stage}.downsample.proj", f"image_tower.{stage}"
        if trunk.holds(step):
            yield f"{step}.0", f"{target}.downsample.filter", _large_conv
            yield f"{step}.1", f"{target}.downsample.mix", _conv
        if trunk.holds(f"{step}.0.se"):
            yield f"{step}.0.se", f"{target}.downsample.gate", _gate
        if trunk.holds(f"{stage}.pos_emb"):
            yield f"{stage}.pos_emb", f"{target}.position", _position
    for block in sorted(blocks):
        attends = trunk.holds(f"{block}.token_mixer.qkv")
        yield block, f"image_tower.{block}", _attention_block if attends else _filter_block


def _as_it_is(trunk: _Trunk, name: str) -> Leaves:
    return {"weight": trunk[f"{name}.weight"], "bias": trunk[f"{name}.bias"]}


def _batch_norm(trunk: _Trunk, name: str) -> tuple[Tensor, Tensor]:
    """What a batch norm multiplies each channel by, and what it then adds."""
    leaves = ("weight", "bias", "running_mean", "running_var")
    # Stacked, because numbers of another shape would be spread over all channels unnoticed.
    weight, bias, mean, variance = torch.stack([trunk[f"{name}.{leaf}"] for leaf in leaves])
    scale = weight / (variance + BATCH_NORM_EPS).sqrt()
    trunk.read.add(f"{name}.num_batches_tracked")
    return scale, bias - mean * scale


def _scaled(kernel: Tensor, scale: Tensor) -> Tensor:
    """Each channel out times its number. Raises ValueError for other than one number each."""
    if kernel.shape[:1] != scale.shape:
        raise ValueError(f"{tuple(scale.shape)} numbers for {tuple(kernel.shape)}")
    return kernel * scale.reshape(-1, *[1] * (kernel.ndim - 1))


def _conv_norm(trunk: _Trunk, name: str) -> Leaves:
    """A convolution without bias, and the batch norm after it."""
    scale, shift = _batch_norm(trunk, f"{name}.bn")
    return {"weight": _scaled(trunk[f"{name}.conv.weight"], scale), "bias": shift}


def _identity(kernel: Tensor) -> Tensor:
    """The kernel of that shape that leaves everything as it is."""
    identity = torch.zeros_like(kernel)
    channel = torch.arange(len(kernel))
    middle = kernel.shape[-1] // 2
    identity[channel, channel % kernel.shape[1], middle, middle] = 1
    return identity


def _sum(branches: list[Leaves]) -> Leaves:
    """Parallel convolutions as one, of the first one's size; smaller ones stand in its middle."""
    total = dict(branches[0])
    for branch in branches[1:]:
        margin = (total["weight"].shape[-1] - branch["weight"].shape[-1]) // 2
        if margin < 0:
            raise ValueError(f"a branch has a filter of {branch['weight'].shape[-1]}")
        total["weight"] = total["weight"] + torch.nn.functional.pad(branch["weight"], [margin] * 4)
        total["bias"] = total["bias"] + branch["bias"]
    return total


def _folded(trunk: _Trunk, name: str) -> Leaves | None:
    """What timm's own folding left, where it was done before saving."""
    return _as_it_is(trunk, f"{name}.reparam_conv") if trunk.holds(f"{name}.reparam_conv") else None


def _conv(trunk: _Trunk, name: str) -> Leaves:
    """Several convolutions, perhaps one of 1x1 beside, perhaps a residual path with a norm."""
    if folded := _folded(trunk, name):
        return folded
    branches = [_conv_norm(trunk, f"{name}.conv_kxk.0")]
    for number in itertools.count(1):
        if not trunk.holds(f"{name}.conv_kxk.{number}"):
            break
        branches.append(_conv_norm(trunk, f"{name}.conv_kxk.{number}"))
    if trunk.holds(f"{name}.conv_scale"):
        branches.append(_conv_norm(trunk, f"{name}.conv_scale"))
    if trunk.holds(f"{name}.identity"):
        branches.append(_residual(trunk, f"{name}.identity", branches[0]["weight"]))
    return _sum(branches)


def _residual(trunk: _Trunk, name: str, kernel: Tensor) -> Leaves:
    """A batch norm alone as a convolution with a kernel of that shape."""
    scale, shift = _batch_norm(trunk, name)
    return {"weight": _scaled(_identity(kernel), scale), "bias": shift}


def _large_conv(trunk: _Trunk, name: str) -> Leaves:
    if folded := _folded(trunk, name):
        return folded
    branches = [_conv_norm(trunk, f"{name}.large_conv")]
    if trunk.holds(f"{name}.small_conv"):
        branches.append(_conv_norm(trunk, f"{name}.small_conv"))
    return _sum(branches)


def _position(trunk: _Trunk, name: str) -> Leaves:
    """A filter whose result is added to what it filters."""
    if folded := _folded(trunk, name):
        return folded
    leaves = _as_it_is(trunk, f"{name}.pos_enc")
    return {**leaves, "weight": leaves["weight"] + _identity(leaves["weight"])}


def _gate(trunk: _Trunk, name: str) -> Leaves:
    """Their layers are convolutions of 1x1, ours matrices."""
    first, second = _as_it_is(trunk, f"{name}.fc1"), _as_it_is(trunk, f"{name}.fc2")
    return {
        "squeeze.weight": first["weight"].flatten(1),
        "squeeze.bias": first["bias"],
        "excite.weight": second["weight"].flatten(1),
        "excite.bias": second["bias"],
    }


def _perceptron(trunk: _Trunk, block: str, layer_scale: str) -> Leaves:
    filter_, widen, narrow = (
        _conv_norm(trunk, f"{block}.mlp.conv"),
        _as_it_is(trunk, f"{block}.mlp.fc1"),
        _as_it_is(trunk, f"{block}.mlp.fc2"),
    )
    scale = trunk[f"{block}.{layer_scale}.gamma"].flatten()
    narrow = {leaf: _scaled(value, scale) for leaf, value in narrow.items()}
    parts = {"filter": filter_, "widen": widen, "narrow": narrow}
    return {
        f"mlp.{part}.{leaf}": value
        for part, leaves in parts.items()
        for leaf, value in leaves.items()
    }


def _filter_block(trunk: _Trunk, block: str) -> Leaves:
    """x + scale * (convolutions(x) - norm(x)) is one convolution; then the perceptron."""
    mixer = f"{block}.token_mixer"
    mix = _folded(trunk, mixer)
    if mix is None:
        mix = _conv(trunk, f"{mixer}.mixer")
        norm = _residual(trunk, f"{mixer}.norm.identity", mix["weight"])
        scale = trunk[f"{mixer}.layer_scale.gamma"].flatten()
        mix = {leaf: _scaled(mix[leaf] - norm[leaf], scale) for leaf in mix}
        mix["weight"] = mix["weight"] + _identity(mix["weight"])
    return {
        "mix.weight": mix["weight"],
        "mix.bias": mix["bias"],
        **_perceptron(trunk, block, "layer_scale"),
    }


def _attention_block(trunk: _Trunk, block: str) -> Leaves:
    """A batch norm before attention goes into its matrices, a layer norm cannot."""
    matrix = trunk[f"{block}.token_mixer.qkv.weight"]  # (3 * width, width)
    out = _as_it_is(trunk, f"{block}.token_mixer.proj")
    scale = trunk[f"{block}.layer_scale_1.gamma"].flatten()
    leaves = {f"attention.out.{leaf}": _scaled(value, scale) for leaf, value in out.items()}
    bias = torch.zeros(len(matrix), dtype=torch.float64)
    if f"{block}.norm.running_mean" in trunk.tensors:
        factor, shift = _batch_norm(trunk, f"{block}.norm")
        matrix, bias = matrix * factor, matrix @ shift
    else:
        norm = _as_it_is(trunk, f"{block}.norm")
        leaves |= {f"norm.{leaf}": value for leaf, value in norm.items()}
    parts = zip(("query", "key", "value"), matrix.chunk(3), bias.chunk(3), strict=True)
    for part, rows, numbers in parts:
        leaves |= {f"attention.{part}.weight": rows, f"attention.{part}.bias": numbers}
    return {**leaves, **_perceptron(trunk, block, "layer_scale_2")}
