"""What is done to an ONNX file before it is learnt from: tidied, its batch freed, cut into prefix and trunk, counted."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.utils import Extractor


class Cut(NamedTuple):
    """The two parts of a network: `prefix` gives the tensors in `at` (and their `shapes`, without the batch), `trunk`
    makes its outputs of them."""

    prefix: onnx.ModelProto
    trunk: onnx.ModelProto
    at: list[str]
    shapes: list[tuple[int, ...]]


def read(path: Path) -> onnx.ModelProto:
    """The network of a file, with constants among the initialisers, no initialiser among the inputs, and a free batch."""
    model = onnx.load(path)
    graph = model.graph
    known = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in known]
    if len(inputs) != 1:
        raise ValueError(f"{path}: the network has {len(inputs)} inputs, expected the picture alone")
    del graph.input[:]
    graph.input.extend(inputs)
    nodes = []
    for node in graph.node:
        constant = next((a.t for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
        if constant is None:
            nodes.append(node)
            continue
        tensor = copy.deepcopy(constant)
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    _free_batch(model)
    model = onnx.shape_inference.infer_shapes(model)
    _spell_out_padding(model)
    return model


def _free_batch(model: onnx.ModelProto) -> None:
    graph = model.graph
    del graph.value_info[:]
    for value in [*graph.input, *graph.output]:
        value.type.tensor_type.shape.dim[0].Clear()
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    shapes = {node.input[1] for node in graph.node if node.op_type == "Reshape"}
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        # A batch of one that a shape spells out becomes the batch that comes in.
        if tensor.name in shapes and values.ndim == 1 and len(values) > 1 and values[0] == 1:
            values = np.concatenate([np.zeros(1, values.dtype), values[1:]])
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _spell_out_padding(model: onnx.ModelProto) -> None:
    """Numbers in the place of `auto_pad`, which few converters know."""
    weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        automatic = given.get("auto_pad", b"NOTSET")
        if node.op_type not in ("Conv", "MaxPool", "AveragePool") or automatic == b"NOTSET":
            continue
        kernel = given.get("kernel_shape") or weights[node.input[1]][2:]
        before, after = [], []
        if automatic != b"VALID":
            sides = shape_of(model, node.input[0])[1:]
            ones = [1] * len(kernel)
            for side, size, stride, gap in zip(
                sides, kernel, given.get("strides", ones), given.get("dilations", ones), strict=True
            ):
                padding = max(0, (-(-side // stride) - 1) * stride + (size - 1) * gap + 1 - side)
                less, more = padding // 2, padding - padding // 2
                before.append(less if automatic == b"SAME_UPPER" else more)
                after.append(more if automatic == b"SAME_UPPER" else less)
        kept = [attribute for attribute in node.attribute if attribute.name not in ("auto_pad", "pads")]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute("pads", before + after or [0] * (2 * len(kernel)))])


def cut(model: onnx.ModelProto, at: Sequence[str]) -> Cut:
    """Cuts a network that `read` gave at the tensors named in `at`, which have to separate its outputs from the picture."""
    picture, outputs = model.graph.input[0].name, [output.name for output in model.graph.output]
    makers = {name: node for node in model.graph.node for name in node.output}
    for name in at:
        if name not in makers:
            raise ValueError(f"no node of the network gives {name}")
    for output in outputs:
        if around := _path_around(makers, output, picture, set(at)):
            raise ValueError(f"{', '.join(at)} are no cut: {output} depends on the picture past them, through {around}")
    extractor = Extractor(model)
    prefix, trunk = extractor.extract_model([picture], list(at)), extractor.extract_model(list(at), outputs)
    return Cut(prefix, trunk, list(at), [shape_of(prefix, name) for name in at])


def _path_around(makers: dict[str, onnx.NodeProto], output: str, picture: str, at: set[str]) -> str | None:
    """A tensor made from the picture on whose path to `output` no tensor of `at` lies."""
    waiting, seen = [output], set(at)
    while waiting:
        name = waiting.pop()
        if name in seen or name not in makers:
            continue
        seen.add(name)
        if picture in makers[name].input:
            return name
        waiting.extend(makers[name].input)
    return None


def shape_of(model: onnx.ModelProto, name: str) -> tuple[int, ...]:
    """A tensor's shape without the batch."""
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    dims = next((list(v.type.tensor_type.shape.dim) for v in values if v.name == name), [])
    shape = tuple(dim.dim_value for dim in dims[1:])
    if not shape or not all(shape):
        raise ValueError(f"the shape of {name} is not known: a height and a width have to be fixed in the file")
    return shape


def resized(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network over pictures of any height and width, where its nodes allow them."""
    free = copy.deepcopy(model)
    del free.graph.value_info[:]
    for value in [*free.graph.input, *free.graph.output]:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            dim.Clear()
            dim.dim_param = f"{value.name}_{axis}" if axis else "N"
    return free


def with_outputs(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """The same network that also gives the tensors in `names`, before its own outputs."""
    more = copy.deepcopy(model)
    own = list(more.graph.output)
    del more.graph.output[:]
    more.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    more.graph.output.extend(own)
    return more


def macs(model: onnx.ModelProto) -> int:
    """Multiplications of its convolutions and matrices for one picture."""
    inferred = onnx.shape_inference.infer_shapes(model)
    weights = {tensor.name: list(tensor.dims) for tensor in inferred.graph.initializer}
    count = 0
    for node in inferred.graph.node:
        # Weights in f16 come through a Cast.
        if node.op_type == "Cast" and node.input[0] in weights:
            weights[node.output[0]] = weights[node.input[0]]
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or node.input[1] not in weights:
            continue
        if node.op_type == "Conv":
            places = math.prod(shape_of(inferred, node.output[0])[1:])
        elif node.op_type == "ConvTranspose":
            places = math.prod(shape_of(inferred, node.input[0])[1:])
        else:
            places = math.prod(shape_of(inferred, node.output[0])[:-1])
        count += math.prod(weights[node.input[1]]) * places
    return count


def parameters(model: onnx.ModelProto) -> int:
    """Values of its floating-point initialisers."""
    return sum(
        math.prod(t.dims) for t in model.graph.initializer if t.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    )
