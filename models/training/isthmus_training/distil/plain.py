"""The learnt networks as ONNX: Conv, ConvTranspose, Relu and Add, in the operator set of the file that they join."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, compose, helper, numpy_helper
from torch import nn

from ..network import SlimConv
from .network import Adapter, Block, PictureEncoder, Shape, Slim, Split, TensorEncoder


class Nodes:
    """A graph in the making. Weights are rounded to f16 and stored as such, followed by a Cast, as in all bundles."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        name = f"learnt{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def total(self, names: list[str]) -> str:
        first, *others = names
        for name in others:
            first = self.node("Add", [first, name])
        return first

    def convolution(self, layer: nn.Module, x: str) -> str:
        assert isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)) and layer.bias is not None
        size, stride = list(layer.kernel_size), list(layer.stride)
        inputs = [x, self._weight(layer.weight), self._weight(layer.bias)]
        if isinstance(layer, nn.ConvTranspose2d):
            return self.node("ConvTranspose", inputs, kernel_shape=size, strides=stride)
        padding = [int(side) for side in layer.padding]
        return self.node("Conv", inputs, kernel_shape=size, strides=stride, pads=padding * 2)

    def slim(self, layer: nn.Module, x: str, width: int) -> str:
        assert isinstance(layer, (Slim, SlimConv))
        return self.convolution(layer.plain(width), x)

    def block(self, block: nn.Module, x: str, width: int) -> str:
        assert isinstance(block, Block)
        y = self.node("Relu", [self.slim(block.first, x, width)])
        return self.node("Relu", [self.total([self.slim(block.second, y, width), x])])

    def model(self, name: str, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, name, inputs, outputs, self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])

    def _weight(self, values: torch.Tensor) -> str:
        name = f"weight{len(self.weights)}"
        halves = values.detach().cpu().numpy().astype(np.float16)
        self.weights.append(numpy_helper.from_array(halves, f"{name}_f16"))
        self.nodes.append(helper.make_node("Cast", [f"{name}_f16"], [name], to=TensorProto.FLOAT))
        return name


def opset_of(model: onnx.ModelProto) -> int:
    return next(int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def _values(name: str, batch: int | str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *shape])


def head(split: Split, width: int, prefix: onnx.ModelProto, picture: Shape, latents: Shape) -> onnx.ModelProto:
    """`picture` [1, 3, H, W] to `latents` [1, C, h, w] at one width, behind the network's own first layers if the encoder
    learnt to be."""
    encoder, nodes = split.encoder, Nodes(opset_of(prefix))
    if isinstance(encoder, PictureEncoder):
        x = "picture"
        for layer in encoder.encoder.layers:
            x = nodes.node("Relu", [nodes.slim(layer, x, width)])
        _named(nodes, nodes.slim(encoder.last, x, width), "latents")
        return _finished(nodes.model("head", [_values("picture", 1, picture)], [_values("latents", 1, latents)]))
    assert isinstance(encoder, TensorEncoder)
    names = [f"cut{number}" for number in range(len(encoder.linear))]
    pairs = list(zip(encoder.stems, names, strict=True))
    x = nodes.node("Relu", [nodes.total([nodes.slim(stem, name, width) for stem, name in pairs])])
    for block in encoder.blocks:
        x = nodes.block(block, x, width)
    direct = [nodes.convolution(layer, name) for layer, name in zip(encoder.linear, names, strict=True)]
    _named(nodes, nodes.total([nodes.slim(encoder.last, x, width), *direct]), "latents")
    first = _single(prefix)
    shapes = [[dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in first.graph.output]
    inputs = [_values(name, 1, tuple(shape[1:])) for name, shape in zip(names, shapes, strict=True)]
    second = nodes.model("head", inputs, [_values("latents", 1, latents)])
    second.ir_version = first.ir_version
    io_map = [(output.name, name) for output, name in zip(first.graph.output, names, strict=True)]
    del second.opset_import[:]
    second.opset_import.extend(first.opset_import)
    return _finished(compose.merge_models(first, second, io_map=io_map))


def _single(prefix: onnx.ModelProto) -> onnx.ModelProto:
    """The prefix for one picture, its input named as in all bundles; outputs of which another is made stay as well."""
    single = copy.deepcopy(prefix)
    graph = single.graph
    name = graph.input[0].name
    for node in graph.node:
        node.input[:] = ["picture" if value == name else value for value in node.input]
    graph.input[0].name = "picture"
    for value in [*graph.input, *graph.output]:
        value.type.tensor_type.shape.dim[0].Clear()
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del graph.value_info[:]
    return single


def adapter(adapter: Adapter, latents: Shape, shapes: list[Shape]) -> onnx.ModelProto:
    """`latents` [N, C, h, w] to `features0`, `features1`, …"""
    nodes = Nodes(13)
    x = nodes.node("Relu", [nodes.slim(adapter.first, "latents", 100)])
    for block in adapter.blocks:
        x = nodes.block(block, x, 100)
    names = [f"features{number}" for number in range(len(shapes))]
    for name, linear, end in zip(names, adapter.linear, adapter.ends, strict=True):
        _named(nodes, nodes.total([nodes.convolution(linear, "latents"), nodes.convolution(end, x)]), name)
    outputs = [_values(name, "N", shape) for name, shape in zip(names, shapes, strict=True)]
    return _finished(nodes.model("adapter", [_values("latents", "N", latents)], outputs))


def _named(nodes: Nodes, old: str, name: str) -> None:
    for node in nodes.nodes:
        node.output[:] = [name if value == old else value for value in node.output]


def _finished(model: onnx.ModelProto) -> onnx.ModelProto:
    model.ir_version, model.producer_name = min(model.ir_version, 8), "isthmus-training"
    model = onnx.shape_inference.infer_shapes(model)
    onnx.checker.check_model(model)
    return model
