"""Half-size towers: weights stored as float16, computed with as float32.

A runtime widens the weights once, when it opens the file, so that the tower runs at full
speed on any processor. Needs `onnx` (extra `train`). int8 is quantize.py's.
"""

from pathlib import Path

import numpy as np

from twinlens.runtime.graph import Graph

MIN_NUMBERS = 1024  # smaller weights (biases, norms) would save nothing worth a rounding
LARGEST_FLOAT16 = 65504.0


def to_float16(source: Path, target: Path) -> None:
    """Write the tower at `source` with half the bytes; cosine to it above 0.9999.

    A weight with a number that float16 cannot hold stays as it is.

    Raises MissingExtra without `onnx`.
    """
    graph = Graph(source)
    narrow: dict[str, str] = {}
    for node in list(graph.nodes):
        for place, name in enumerate(node.input):
            if name not in narrow:
                narrow[name] = _narrowed(graph, name)
            node.input[place] = narrow[name]
    graph.save(target)


def _narrowed(graph: Graph, name: str) -> str:
    """The name of a tensor that widens a float16 copy, or the same name."""
    shape = graph.shape_of_constant(name)
    if shape is None or np.prod(shape) < MIN_NUMBERS:
        return name
    value = graph.constant(name)
    assert value is not None
    if value.dtype != np.float32 or np.abs(value).max() > LARGEST_FLOAT16:
        return name
    small = graph.add_constant(value.astype(np.float16), "float16")
    return graph.add("Cast", [small], to=1)  # TensorProto.FLOAT
