"""int8 for every product with weights in a tower, with ranges fixed by calibration.

Fixed ranges make a vector independent of its batch mates, and leave no range to find at
run time. Transformers have channels that are a hundred times the others: each channel is
divided, and its weights multiplied, by a factor between both sizes (SmoothQuant: Xiao et
al. 2023, arXiv:2211.10438, equation 4), its exponent chosen per product by the error that it
leaves. The products that suffer most stay float when the vectors would differ too much.

Activations are unsigned with a zero point, weights signed with a scale per output: what the
8-bit instructions of processors multiply. The result is plain QuantizeLinear and
DequantizeLinear around Gemm, which ONNX Runtime and OpenVINO both fuse.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int8, Num

from twinlens.errors import CheckpointMismatch
from twinlens.runtime.graph import Graph, attributes_of, observe
from twinlens.runtime.session import TowerSession, unit_rows
from twinlens.runtime.simplify import simplified

EXPONENTS = (0.0, 0.35, 0.5, 0.65, 0.8)
ROWS_KEPT = 384  # rows of activations per product on which exponents are compared
ITEMS_AT_ONCE = 4  # all products' inputs of so many items are in memory together
ENOUGH_COSINE = 0.995  # mean, to float32; below it more products stay float
FLOAT_SHARES = (0.0, 0.05, 0.1, 0.2, 0.35)  # of the products, tried in turn
MIN_TABLE_NUMBERS = 1 << 16  # smaller tables of embeddings are not worth a rounding


@dataclass
class _Input:
    """What calibration saw of one tensor that products read."""

    low: Float32[np.ndarray, " channel"]
    high: Float32[np.ndarray, " channel"]
    kept: list[Float32[np.ndarray, "row channel"]] = field(default_factory=list)


@dataclass(frozen=True)
class _Plan:
    """How the products that share an input are rounded, and the error that leaves."""

    divisor: Float32[np.ndarray, " channel"]
    scale: np.float32
    zero: np.uint8
    error: float  # of the outputs, relative to their size


def quantize_products(
    source: Path,
    target: Path,
    calibration: Sequence[Num[np.ndarray, "batch *shape"]],
) -> None:
    """Write the tower at `source` with its products, and tables of embeddings, in int8.

    `calibration` is inputs like those the tower will see; thirty are enough.

    Raises MissingExtra without `onnx`, CheckpointMismatch for a tower that int8 spoils.
    """
    batches = [
        batch[start : start + ITEMS_AT_ONCE]
        for batch in calibration
        for start in range(0, len(batch), ITEMS_AT_ONCE)
    ]
    wanted = unit_rows(_run(TowerSession(source), batches))
    plans: dict[str, _Plan] = {}
    cosine = 0.0
    for share in FLOAT_SHARES:
        graph = simplified(source, batches[0])
        groups = _products(graph)
        if not plans:
            plans = _plan(graph, groups, batches)
        worst_first = sorted(plans, key=lambda name: -plans[name].error)
        stay = set(worst_first[: round(share * len(plans))])
        for name, products in groups.items():
            if name not in stay:
                _round_products(graph, name, products, plans[name])
        _round_tables(graph)
        graph.save(target)
        got = unit_rows(_run(TowerSession(target), batches))
        cosine = float((wanted * got).sum(axis=1).mean())
        if cosine >= ENOUGH_COSINE:
            return
    if not cosine >= 0.9:
        raise CheckpointMismatch(
            f"{source} does not survive int8: its vectors keep a mean cosine of {cosine:.3f} to "
            f"float32 even with {FLOAT_SHARES[-1]:.0%} of it left float. Use fp16 instead."
        )


def _run(session: TowerSession, batches: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([session.run(batch) for batch in batches])


def _products(graph: Graph) -> dict[str, list[Any]]:
    """The Gemms with constant weights, by what they read. simplify.py made them of one form."""
    groups: dict[str, list[Any]] = {}
    for node in graph.nodes:
        settings = attributes_of(node) if node.op_type == "Gemm" else {"transA": 1}
        turned = settings.get("transA", 0) or settings.get("transB", 0)
        if not turned and graph.shape_of_constant(node.input[1]) is not None:
            groups.setdefault(node.input[0], []).append(node)
    return groups


def _plan(
    graph: Graph, groups: dict[str, list[Any]], batches: Sequence[np.ndarray]
) -> dict[str, _Plan]:
    seen: dict[str, _Input] = {}
    each = max(1, ROWS_KEPT // max(1, len(batches)))
    for values in observe(graph, groups, batches):
        for name, rows in values.items():
            low, high = rows.min(axis=0), rows.max(axis=0)
            now = seen.setdefault(name, _Input(low, high))
            now.low, now.high = np.minimum(now.low, low), np.maximum(now.high, high)
            # The first rows too: a tower's first token is often its strangest.
            places = np.unique(np.linspace(0, len(rows) - 1, min(each, len(rows))).astype(int))
            now.kept.append(rows[places])
    return {name: _best_plan(graph, groups[name], seen[name]) for name in groups}


def _best_plan(graph: Graph, products: list[Any], seen: _Input) -> _Plan:
    rows = np.concatenate(seen.kept)
    weights = [_constant(graph, node.input[1]) for node in products]
    every = np.concatenate(weights, axis=1)
    outputs = rows @ every
    size = float(np.square(outputs).mean()) or 1.0
    largest = np.maximum(np.abs(seen.low), np.abs(seen.high))
    plans = []
    for exponent in EXPONENTS:
        divisor = _divisor(largest, np.abs(every).max(axis=1), exponent)
        scale, zero = _range(seen.low / divisor, seen.high / divisor)
        rounded = (np.clip(np.round(rows / divisor / scale) + zero, 0, 255) - zero) * scale
        whole, scales = _round_weight(every * divisor[:, None])
        error = float(np.square(rounded @ (whole * scales) - outputs).mean()) / size
        plans.append(_Plan(divisor, scale, zero, error))
    return min(plans, key=lambda plan: plan.error)


def _divisor(
    activation: Float32[np.ndarray, " channel"],
    weight: Float32[np.ndarray, " channel"],
    exponent: float,
) -> Float32[np.ndarray, " channel"]:
    if exponent == 0:
        return np.ones_like(activation)
    factors = np.maximum(activation, 1e-5) ** exponent
    factors /= np.maximum(weight, 1e-5) ** (1 - exponent)
    factors /= np.exp(np.log(factors).mean())
    result: Float32[np.ndarray, " channel"] = np.clip(factors, 1e-3, 1e3).astype(np.float32)
    return result


def _range(low: np.ndarray, high: np.ndarray) -> tuple[np.float32, np.uint8]:
    least, most = min(float(low.min()), 0.0), max(float(high.max()), 0.0)
    scale = max(most - least, 1e-12) / 255
    return np.float32(scale), np.uint8(np.clip(round(-least / scale), 0, 255))


def _round_weight(
    weight: Float32[np.ndarray, "channel out"],
) -> tuple[Int8[np.ndarray, "channel out"], Float32[np.ndarray, " out"]]:
    scales = (np.maximum(np.abs(weight).max(axis=0), 1e-12) / 127).astype(np.float32)
    return np.clip(np.round(weight / scales), -127, 127).astype(np.int8), scales


def _constant(graph: Graph, name: str) -> Float32[np.ndarray, "*shape"]:
    value = graph.constant(name)
    assert value is not None  # _products asked
    return value.astype(np.float32, copy=False)


def _round_products(graph: Graph, name: str, products: list[Any], plan: _Plan) -> None:
    rows = name
    if (plan.divisor != 1).any() and not _divide_at_its_maker(graph, name, products, plan):
        rows = graph.add("Mul", [name, graph.add_constant(1 / plan.divisor, "smooth")])
    scale = graph.add_constant(plan.scale, "scale")
    zero = graph.add_constant(plan.zero, "zero")
    whole = graph.add("QuantizeLinear", [rows, scale, zero])
    rounded = graph.add("DequantizeLinear", [whole, scale, zero])
    for node in products:
        weight, scales = _round_weight(_constant(graph, node.input[1]) * plan.divisor[:, None])
        zeros = graph.add_constant(np.zeros(len(scales), dtype=np.int8), "zeros")
        inputs = [graph.add_constant(weight, "int8"), graph.add_constant(scales, "scales"), zeros]
        inputs = [rounded, graph.add("DequantizeLinear", inputs, axis=1)]
        if len(node.input) > 2:
            # The runtimes add a bias inside the product if it is in the product's own unit.
            unit = plan.scale * scales
            bias = np.round(_constant(graph, node.input[2]).astype(np.float64) / unit)
            bias = np.clip(bias, -(2**31) + 1, 2**31 - 1).astype(np.int32)
            parts = [graph.add_constant(bias, "bias"), graph.add_constant(unit, "unit")]
            inputs.append(graph.add("DequantizeLinear", parts, axis=0))
        graph.add("Gemm", inputs, output=node.output[0])
        graph.nodes.remove(node)
    graph.index()


def _divide_at_its_maker(graph: Graph, name: str, products: list[Any], plan: _Plan) -> bool:
    """Put the division into a layer norm's scale and shift, if all that reads it is here."""
    shift = graph.maker.get(name)
    if shift is None or shift.op_type != "Add" or len(graph.readers[name]) != len(products):
        return False
    scale = graph.maker.get(shift.input[0])
    if scale is None or scale.op_type != "Mul" or len(graph.readers[shift.input[0]]) != 1:
        return False
    if any(graph.shape_of_constant(node.input[1]) != plan.divisor.shape for node in (scale, shift)):
        return False
    for node in (scale, shift):
        row = _constant(graph, node.input[1]) / plan.divisor
        node.input[1] = graph.add_constant(row, "smooth")
    return True


def _round_tables(graph: Graph) -> None:
    """Tables of embeddings, one scale per row; only the rows that a text needs are widened."""
    for node in list(graph.nodes):
        if node.op_type != "Gather" or attributes_of(node).get("axis", 0) != 0:
            continue
        shape = graph.shape_of_constant(node.input[0])
        if shape is None or len(shape) != 2 or shape[0] * shape[1] < MIN_TABLE_NUMBERS:
            continue
        table, scales = _round_weight(_constant(graph, node.input[0]).T)
        whole = graph.add("Gather", [graph.add_constant(table.T, "table"), node.input[1]])
        scale = graph.add_constant(scales[:, None], "scales")
        numbers = graph.add("Cast", [whole], to=1)  # TensorProto.FLOAT
        units = graph.add("Gather", [scale, node.input[1]])
        graph.add("Mul", [numbers, units], output=node.output[0])
        graph.nodes.remove(node)
    graph.index()
