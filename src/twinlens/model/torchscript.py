"""Gives the weights of a TorchScript module, read as inert nodes, their state dict names.

A module's attributes hold tensors, flags and further modules. Which tensors are parameters or
buffers, and not mere attributes, stands only in the archive's source code, as two lists at the
head of each class: those lists are found as text, and no code is compiled or run.
"""

import re
from collections.abc import Callable
from functools import cache

from twinlens.errors import CheckpointMismatch
from twinlens.model.pickle_reader import TORCHSCRIPT_PREFIX, Node, shown
from twinlens.model.torch_file import StoredTensor

# Modules may be shared, so that a small file can describe endlessly many paths to a weight.
MAX_VISITS = 200_000
MAX_DEPTH = 100
MAX_NAME = 1000  # characters

CLASS_HEAD = re.compile(
    r"^class (\w+)\(\w+\):\n  __parameters__ = \[(.*)\]\n  __buffers__ = \[(.*)\]$", re.MULTILINE
)
QUOTED = re.compile(r'"([^"]*)"')


def module_tensors(
    root: Node, source_code: Callable[[str], str], *, source: str
) -> dict[str, StoredTensor]:
    """Dotted names and tensors of a module and the modules in it, as `state_dict()` has them.

    `source_code` gives the text of one of the archive's code files, "" where there is none;
    then every tensor attribute of its classes counts. Raises CheckpointMismatch for modules
    that contain themselves or are nested or shared beyond reason.
    """
    heads = cache(lambda file: _class_heads(source_code(file)))
    found: dict[str, StoredTensor] = {}
    pending: list[tuple[str, int, Node]] = [("", 0, root)]
    visits = 0
    while pending:
        prefix, depth, node = pending.pop()
        state_names = _state_names(node.name, heads)
        for attribute, value in node.attributes.items():
            visits += 1
            name = prefix + attribute
            if visits > MAX_VISITS or depth > MAX_DEPTH or len(name) > MAX_NAME:
                raise CheckpointMismatch(
                    f"{source} nests its modules beyond reason (at {shown(name)}), so it was "
                    f"not read. Use a file from a source you trust."
                )
            if isinstance(value, StoredTensor):
                if state_names is None or attribute in state_names:
                    found[name] = value
            elif isinstance(value, Node):
                pending.append((f"{name}.", depth + 1, value))
    return found


def _state_names(
    qualified: str, heads: Callable[[str], dict[str, frozenset[str]]]
) -> frozenset[str] | None:
    """Parameters and buffers that the class lists; None where its source is not there."""
    module, _, name = qualified.rpartition(".")
    if not qualified.startswith(TORCHSCRIPT_PREFIX):
        return None
    return heads(module.replace(".", "/") + ".py").get(name)


def _class_heads(code: str) -> dict[str, frozenset[str]]:
    return {
        name: frozenset(QUOTED.findall(parameters) + QUOTED.findall(buffers))
        for name, parameters, buffers in CLASS_HEAD.findall(code)
    }
