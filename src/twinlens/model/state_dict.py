"""Finds the weights within what a file holds: a state dict, a checkpoint around one, a module.

Takes the value that torch_file.py read and gives names to tensors; also takes off what
training wrappers put before and between the names.
"""

from pathlib import Path

from torch import Tensor

from twinlens.errors import CheckpointMismatch
from twinlens.model.pickle_reader import Node, shown
from twinlens.model.torch_file import StoredTensor, TorchFile
from twinlens.model.torchscript import module_tensors
from twinlens.model.zip_file import check_growth

# Under which a training loop keeps the weights, most telling first. EMA copies come under
# other names, so that the plain weights are found.
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
MAX_WRAPPERS = 4  # of these inside each other
OUTER_PREFIX = "module."  # DataParallel, before all names
# torch.compile, FSDP and activation checkpoints, before any part of a name.
INNER_PARTS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def state_of(file: TorchFile, *, source: Path) -> dict[str, Tensor]:
    """The weights in the file. Raises CheckpointMismatch when it holds none."""
    tree = file.tree
    if isinstance(tree, Node):
        stored = module_tensors(tree, file.source_code, source=str(source))
    else:
        tree = _unwrapped(tree)
        stored = _named_tensors(tree)
    if not stored:
        keys = ", ".join(shown(key) for key in list(tree)[:5]) if isinstance(tree, dict) else ""
        raise CheckpointMismatch(
            f"{source} holds no weights by name{f', only {keys}' if keys else ''}. "
            f"Give a file that holds a state dict."
        )
    # Views of one storage cost nothing here, but each becomes a copy when it is used.
    check_growth(source, sum(value.num_bytes for value in stored.values()))
    return {name: file.read(value) for name, value in stored.items()}


def plain_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without what wrappers put before all of them, or between their parts.

    A change that would make two names one is not made.
    """
    for part in INNER_PARTS:
        tensors = _renamed(tensors, {name: name.replace(part, "") for name in tensors})
    while tensors and all(name.startswith(OUTER_PREFIX) for name in tensors):
        tensors = {name.removeprefix(OUTER_PREFIX): value for name, value in tensors.items()}
    return tensors


def _renamed(tensors: dict[str, Tensor], new_names: dict[str, str]) -> dict[str, Tensor]:
    renamed = {new_names[name]: value for name, value in tensors.items()}
    return renamed if len(renamed) == len(tensors) else tensors


def _unwrapped(tree: object) -> object:
    for _ in range(MAX_WRAPPERS):
        found = tree if isinstance(tree, dict) else {}
        inner = [found[key] for key in WRAPPERS if isinstance(found.get(key), dict)]
        # The same words may hold settings instead: {"model": {"name": ...}, "a.weight": ...}.
        inner = [each for each in inner if _named_tensors(each) or each.keys() & set(WRAPPERS)]
        if not inner:
            break
        tree = inner[0]
    return tree


def _named_tensors(tree: object) -> dict[str, StoredTensor]:
    items = tree.items() if isinstance(tree, dict) else ()
    return {
        name: value
        for name, value in items
        if isinstance(name, str) and isinstance(value, StoredTensor)
    }
