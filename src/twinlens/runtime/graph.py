"""An ONNX graph that can be taken apart and put together: who makes what, who reads it.

Knows nothing of what a graph computes. Nodes may be added in any order: `save` sorts them
and leaves out what no output needs. Needs `onnx` (extra `train`).
"""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from twinlens.errors import require_package

LARGEST_PROTOBUF_BYTES = 2**31 - 2**24  # beyond, weights go into a file of their own


class Graph:
    """One ONNX model. Names of tensors are strings; "" is an input left out."""

    def __init__(self, path: Path) -> None:
        """Raises MissingExtra without `onnx`."""
        require_package("onnx", extra="train", purpose="rewriting a tower")
        import onnx

        self.model = onnx.load(path)  # weights in a file beside it come along
        self.constants: dict[str, Any] = {
            tensor.name: tensor for tensor in self.model.graph.initializer
        }
        self.nodes: list[Any] = []
        self.inputs: list[str] = [
            value.name for value in self.model.graph.input if value.name not in self.constants
        ]
        self.outputs: list[str] = [value.name for value in self.model.graph.output]
        self._arrays: dict[str, np.ndarray] = {}
        self._names = 0
        self._taken = set(self.constants)
        for node in self.model.graph.node:
            self._taken.update(node.input, node.output)
        same: dict[str, str] = {}
        for node in self.model.graph.node:
            for place, name in enumerate(node.input):
                node.input[place] = same.get(name, name)
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                tensor = node.attribute[0].t
                tensor.name = node.output[0]
                self.constants[tensor.name] = tensor
            elif node.op_type == "Identity" and node.output[0] not in self.outputs:
                same[node.output[0]] = node.input[0]
            else:
                self.nodes.append(node)
        self.index()

    def index(self) -> None:
        """Look up makers and readers anew, after nodes were changed."""
        self.maker = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def constant(self, name: str) -> np.ndarray | None:
        """The value of a constant tensor, or None for one that is computed."""
        if name not in self.constants:
            return None
        if name not in self._arrays:
            from onnx import numpy_helper

            self._arrays[name] = numpy_helper.to_array(self.constants[name])
        return self._arrays[name]

    def shape_of_constant(self, name: str) -> tuple[int, ...] | None:
        """The same without reading its numbers."""
        tensor = self.constants.get(name)
        return None if tensor is None else tuple(tensor.dims)

    def add_constant(self, value: np.ndarray | np.generic, hint: str = "constant") -> str:
        """Store an array; its new name."""
        from onnx import numpy_helper

        name = self.new_name(hint)
        array = np.asarray(value)
        # ascontiguousarray would make a scalar a row of one.
        array = array if array.ndim == 0 else np.ascontiguousarray(array)
        self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def add(self, kind: str, inputs: Iterable[str], *, output: str = "", **attributes: Any) -> str:
        """Add a node with one output; the output's name."""
        from onnx import helper

        output = output or self.new_name(kind)
        node = helper.make_node(kind, list(inputs), [output], name=f"{output}/node", **attributes)
        self.nodes.append(node)
        return output

    def new_name(self, hint: str) -> str:
        """A name that no tensor has: the file may have been rewritten here before."""
        while True:
            self._names += 1
            name = f"{hint}_{self._names}"
            if name not in self._taken:
                return name

    def save(self, path: Path, *, also: Iterable[str] = ()) -> None:
        """Write what the outputs need; weights beyond two gigabytes go to `path.data`.

        `also` names tensors that become outputs of the written file alone.
        """
        import onnx

        graph = self.model.graph
        declared = list(graph.output)
        also = [name for name in also if name not in self.outputs]
        nodes = self.sorted_nodes([*self.outputs, *also])
        used = {name for node in nodes for name in node.input} | set(self.outputs)
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(nodes)
        kept = [tensor for name, tensor in self.constants.items() if name in used]
        graph.initializer.extend(kept)
        graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in also)
        if self.model.ByteSize() < LARGEST_PROTOBUF_BYTES:
            onnx.save(self.model, path)
        else:
            data = f"{path.name}.data"
            (path.parent / data).unlink(missing_ok=True)  # onnx would append
            onnx.save(self.model, path, save_as_external_data=True, location=data)
            # onnx.save has moved the numbers out of these very tensors.
            self.constants = {t.name: t for t in onnx.load(path).graph.initializer}
        del graph.node[:], graph.initializer[:], graph.output[:]
        graph.output.extend(declared)

    def sorted_nodes(self, outputs: Iterable[str]) -> list[Any]:
        """Makers before readers, and only what an output needs."""
        self.index()
        done: set[str] = set()
        ordered: list[Any] = []
        waiting = list(outputs)[::-1]
        while waiting:
            name = waiting[-1]
            node = self.maker.get(name)
            if node is None or node.output[0] in done:
                waiting.pop()
                continue
            missing = [
                other
                for other in node.input
                if other in self.maker and self.maker[other].output[0] not in done
            ]
            if missing:
                waiting += missing
                continue
            waiting.pop()
            done.add(node.output[0])
            ordered.append(node)
        return ordered


def attributes_of(node: Any) -> dict[str, Any]:
    """A node's attributes as plain values."""
    from onnx import helper

    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def observe(
    graph: Graph, names: Iterable[str], batches: Iterable[np.ndarray]
) -> Iterator[dict[str, np.ndarray]]:
    """What the named tensors are for each batch."""
    import onnxruntime

    names = list(dict.fromkeys(names))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "observed.onnx"
        graph.save(path, also=names)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for batch in batches:
            values = session.run(names, {graph.inputs[0]: batch})
            yield dict(zip(names, values, strict=True))
