"""Traced modules to ONNX that the engine runs: any operators, plain shapes, the number of pictures free."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .graph import IR_VERSION, OPSET


@torch.no_grad()
def write(module: nn.Module, names: tuple[str, str], shape: tuple[int, int, int], path: Path) -> int:
    """Writes a module of sections as ONNX, from `names[0]` [N, *shape] to `names[1]`. Gives its MACs a sample.

    Weights that f16 holds exactly are stored as f16 followed by a Cast.
    """
    with FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, *shape))
    model = _free_batch(*(_export(module, names, shape, batch) for batch in (2, 3)))
    _halve(model.graph)
    model.ir_version, model.producer_name, model.producer_version = IR_VERSION, "isthmus-training", ""
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return counter.get_total_flops() // 2


def _export(module: nn.Module, names: tuple[str, str], shape: tuple[int, int, int], batch: int) -> onnx.ModelProto:
    """The module for `batch` samples, all shapes constants, by PyTorch's exporter from TorchScript.

    That exporter is deprecated, and this is the one place that calls it; `pyproject.toml` bounds torch to versions that have
    it. Its successor (`dynamo=True`) cannot write the operator set of bundles, 13: it writes 18, where the pool before a
    classifier is a ReduceMean with its axes as a tensor, and its converter to 13 gives up on that. The engine was tried
    with the graphs of this one.
    """
    x = torch.zeros(batch, *shape)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        # That it is deprecated, and that sizes became constants.
        warnings.simplefilter("ignore")
        path = Path(folder) / "module.onnx"
        torch.onnx.export(
            module, (x,), path, input_names=[names[0]], output_names=[names[1]], opset_version=OPSET, dynamo=False
        )
        return onnx.load(path)


def _free_batch(model: onnx.ModelProto, other: onnx.ModelProto) -> onnx.ModelProto:
    """Frees the batch dimension of a graph with the help of the same graph for another batch: what differs between them
    is the batch.

    An exporter that knows of a free dimension computes every shape from it at run time, which an engine can hardly
    follow; here all other dimensions stay constants.
    """
    shapes = _shapes(model)
    ours, theirs = _fold_shapes(model.graph, shapes), _fold_shapes(other.graph, _shapes(other))
    differing = {name for name, values in ours.items() if name not in theirs or not np.array_equal(values, theirs[name])}
    nodes = []

    def constant(name: str, values: np.ndarray) -> str:
        model.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    for node in model.graph.node:
        nodes.append(node)
        if node.op_type == "Reshape" and node.input[1] in differing:
            wanted, batch = np.array(shapes[node.output[0]], np.int64), ours[node.input[1]] != theirs[node.input[1]]
            # The first dimension can be kept by its place, any other is what is left.
            wanted[batch] = 0 if batch[0] and shapes[node.input[0]][0] == wanted[0] else -1
            node.input[1] = constant(f"{node.output[0]}_shape", wanted)
        elif node.op_type == "Expand" and node.input[1] in differing and shapes[node.output[0]][0] == 2:
            # A class token for each picture, say.
            y, x = node.output[0], model.graph.input[0].name
            first, rest = constant(f"{y}_first", np.array([0])), constant(f"{y}_rest", np.array(shapes[y][1:]))
            nodes[-1:] = [
                helper.make_node("Shape", [x], [f"{y}_of"]),
                helper.make_node("Gather", [f"{y}_of", first], [f"{y}_pictures"], axis=0),
                helper.make_node("Concat", [f"{y}_pictures", rest], [f"{y}_shape"], axis=0),
                helper.make_node("Expand", [node.input[0], f"{y}_shape"], [y]),
            ]
        elif gathered := _gathered(node, shapes, ours):
            nodes.pop()
            x = node.input[0]
            for axis, places in gathered.items():
                y = node.output[0] if axis == max(gathered) else f"{node.output[0]}_{axis}"
                nodes.append(helper.make_node("Gather", [x, constant(f"{y}_places", places)], [y], axis=axis))
                x = y
    used = {name for node in nodes for name in node.input}
    kept = [weights for weights in model.graph.initializer if weights.name in used]
    del model.graph.node[:], model.graph.value_info[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(kept)
    left = {node.op_type for node in nodes if differing.intersection(node.input)}
    if left:
        raise ValueError(f"{', '.join(sorted(left))} depends on the number of pictures")
    for info in (*model.graph.input, *model.graph.output):
        info.type.tensor_type.shape.dim[0].dim_param = "N"
    return model


def _gathered(
    node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]], constants: dict[str, np.ndarray]
) -> dict[int, np.ndarray]:
    """By axis, in order, which places a node takes of its input, where tract stumbles over the node itself: to the
    nearest resized, of a free batch; every second place taken of tokens that were laid out as a grid."""
    shape = shapes.get(node.input[0], ())
    if node.op_type == "Resize" and b"nearest" in [attribute.s for attribute in node.attribute]:
        after = shapes[node.output[0]]
        return {axis: np.arange(after[axis]) * shape[axis] // after[axis] for axis in (2, 3)}
    if node.op_type == "Slice" and len(node.input) == 5 and (constants[node.input[4]] != 1).any():
        starts, ends, axes, steps = (constants[name].tolist() for name in node.input[1:])
        taken = {axis: slice(start, end, step) for axis, start, end, step in zip(axes, starts, ends, steps, strict=True)}
        return {axis: np.arange(shape[axis])[taken[axis]] for axis in sorted(taken)}
    return {}


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that a node gives, by running it."""
    probe, picture = onnx.ModelProto(), model.graph.input[0]
    probe.CopyFrom(model)
    named = {output.name for output in model.graph.output}
    names = [name for node in model.graph.node for name in node.output if name and name not in named]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    zeros = np.zeros([dim.dim_value for dim in picture.type.tensor_type.shape.dim], np.float32)
    names = [*named, *names]
    values = session.run(names, {picture.name: zeros})
    return {picture.name: zeros.shape} | {name: np.shape(value) for name, value in zip(names, values, strict=True)}


def _fold_shapes(graph: onnx.GraphProto, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Computes what can be computed of shapes and other small constants, and gives all constants by name. Drops nodes
    that do nothing."""
    constants = {weights.name: numpy_helper.to_array(weights) for weights in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    same: dict[str, str] = {}
    for node in graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]
        if node.op_type == "Identity" and node.output[0] != graph.output[0].name:
            same[node.output[0]] = node.input[0]
            continue
        known = all(not name or (name in constants and constants[name].size <= 64) for name in node.input)
        if node.op_type == "Shape":
            constants[node.output[0]] = np.array(shapes[node.input[0]], np.int64)
        elif known and node.op_type != "Expand":
            (value,) = ReferenceEvaluator(node).run(None, {name: constants[name] for name in node.input if name})
            constants[node.output[0]] = np.asarray(value)
        else:
            nodes.append(node)
            continue
        graph.initializer.append(numpy_helper.from_array(constants[node.output[0]], node.output[0]))
    del graph.node[:]
    graph.node.extend(nodes)
    return constants


def _halve(graph: onnx.GraphProto) -> None:
    casts = []
    for weights in graph.initializer:
        values = numpy_helper.to_array(weights)
        if values.dtype == np.float32 and values.ndim and np.array_equal(values.astype(np.float16), values):
            name = weights.name
            weights.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_f16"))
            casts.append(helper.make_node("Cast", [weights.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
