"""Plain modules to ONNX, node by node: Conv, Relu, Add, GlobalAveragePool, GlobalMaxPool, Flatten, Gemm and nothing else.

Weights are stored as f16 followed by a Cast; the modules must hold values that f16 can hold (`round_weights`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from .network import Residual

Rounded = TypeVar("Rounded", bound=nn.Module)
OPSET = 13
IR_VERSION = 8


@torch.no_grad()
def round_weights(module: Rounded) -> Rounded:
    """Rounds every parameter to f16 in place, as the file will hold it."""
    for parameter in module.parameters():
        parameter.copy_(parameter.half().float())
    return module


class Graph:
    """One input `[batch, C, H, W]`; `batch` is a number or the name of a free dimension. Counts MACs a sample."""

    def __init__(self, name: str, input_name: str, shape: tuple[int, int, int], batch: int | str) -> None:
        self.name, self.batch = name, batch
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.shapes: dict[str, tuple[int, ...]] = {input_name: shape}
        self.inputs = [self._info(input_name)]
        self.outputs: list[onnx.ValueInfoProto] = []
        self.macs = 0

    def add(self, module: nn.Module, x: str) -> str:
        """Appends `module` applied to the tensor `x`; gives the name of the result."""
        shape = self.shapes[x]
        if isinstance(module, nn.Sequential):
            for child in module:
                x = self.add(child, x)
            return x
        if isinstance(module, Residual):
            y = self.add(module.first, x)
            y = self.add(module.second, self.node("Relu", [y], self.shapes[y]))
            y = self.node("Add", [y, self.add(module.shortcut, x)], self.shapes[y])
            return self.node("Relu", [y], self.shapes[y])
        if isinstance(module, nn.Conv2d):
            assert not isinstance(module.padding, str)
            (kh, kw), (sh, sw), (ph, pw) = module.kernel_size, module.stride, module.padding
            height, width = (shape[1] + 2 * ph - kh) // sh + 1, (shape[2] + 2 * pw - kw) // sw + 1
            self.macs += module.weight.numel() * height * width
            return self.node(
                "Conv", [x, *self._parameters(module)], (module.out_channels, height, width),
                kernel_shape=[kh, kw], strides=[sh, sw], pads=[ph, pw, ph, pw],
            )  # fmt: skip
        if isinstance(module, nn.Linear):
            self.macs += module.weight.numel()
            return self.node("Gemm", [x, *self._parameters(module)], (module.out_features,), transB=1)
        if isinstance(module, nn.ReLU):
            return self.node("Relu", [x], shape)
        if isinstance(module, nn.AdaptiveAvgPool2d):
            return self.node("GlobalAveragePool", [x], (shape[0], 1, 1))
        if isinstance(module, nn.AdaptiveMaxPool2d):
            return self.node("GlobalMaxPool", [x], (shape[0], 1, 1))
        if isinstance(module, nn.Flatten):
            return self.node("Flatten", [x], (int(np.prod(shape)),), axis=1)
        if isinstance(module, nn.Identity):
            return x
        raise TypeError(f"{type(module).__name__} has no plain ONNX form here")

    def output(self, x: str, name: str) -> None:
        """Names the tensor `x`, which must be a node's result, as an output."""
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [name if value == x else value for value in names]
        self.shapes[name] = self.shapes.pop(x)
        self.outputs.append(self._info(name))

    def save(self, path: Path) -> None:
        graph = helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="isthmus-training")
        model.ir_version = IR_VERSION
        onnx.checker.check_model(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(model.SerializeToString())

    def _parameters(self, module: nn.Conv2d | nn.Linear) -> list[str]:
        names = []
        for kind in ("weight", "bias"):
            name = f"{kind}{len(self.weights)}"
            values = getattr(module, kind).detach().cpu().numpy().astype(np.float16)
            self.weights.append(numpy_helper.from_array(values, f"{name}_f16"))
            self.nodes.append(helper.make_node("Cast", [f"{name}_f16"], [name], to=TensorProto.FLOAT))
            names.append(name)
        return names

    def constant(self, values: np.ndarray) -> str:
        """A tensor that never changes, such as a node's new shape."""
        name = f"constant{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def node(self, kind: str, inputs: list[str], shape: tuple[int, ...], **attributes: Any) -> str:
        """Appends a node; gives the name of its result, of this shape without the batch."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        self.shapes[name] = shape
        return name

    def _info(self, name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [self.batch, *self.shapes[name]])
