"""The part of an ONNX network behind a cut as a module of torch, through which gradients flow: frozen, and made fast.

Two things make networks of ONNX files slow in torch. Activations come as four or five nodes each; and of depthwise
convolutions the gradient is computed many times slower than the convolution itself. The gradient with respect to the
input is a depthwise convolution too, with the kernel turned around, and is computed as one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import fx, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

TOLERANCE = 1e-3


def convert(model: onnx.ModelProto) -> fx.GraphModule:
    """The network as a frozen module that takes and gives what the file's does."""
    try:
        import onnx2torch
    except ImportError as error:
        raise ValueError("distilling needs onnx2torch: pip install 'isthmus-training[distil]'") from error
    try:
        module = onnx2torch.convert(model).eval().requires_grad_(False)
    except NotImplementedError as error:
        raise ValueError(f"the network behind the cut cannot be converted for training: {error}") from error
    join_hard_swish(module)
    replace_depthwise(module)
    return module


def options(threads: int) -> onnxruntime.SessionOptions:
    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads, chosen.log_severity_level = threads, 3
    return chosen


def session(model: onnx.ModelProto, threads: int = 1) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model.SerializeToString(), options(threads), ["CPUExecutionProvider"])


@torch.no_grad()
def check(module: nn.Module, model: onnx.ModelProto, inputs: list[np.ndarray]) -> float:
    """How far the module's outputs are from ONNX Runtime's, over their largest value; refused where it is far."""
    runner = session(model)
    wanted = runner.run(None, {value.name: x for value, x in zip(runner.get_inputs(), inputs, strict=True)})
    got = module(*map(torch.from_numpy, inputs))
    got = [got] if isinstance(got, torch.Tensor) else got
    far = max(float(np.abs(g.numpy() - w).max() / max(1e-9, np.abs(w).max())) for g, w in zip(got, wanted, strict=True))
    if not far <= TOLERANCE:
        raise ValueError(f"the converted network is {far:.1e} of its outputs' range away from the file's")
    return far


def join_hard_swish(module: fx.GraphModule) -> int:
    """Makes one call of every `x * clip(x + 3, 0, 6) / 6`. Gives how many there were."""
    parts = dict(module.named_modules())

    def operation(node: Any) -> str:
        if not isinstance(node, fx.Node) or node.op != "call_module":
            return ""
        part = parts[str(node.target)]
        function = getattr(part, "math_op_function", None)
        return type(part).__name__ if function is None else function.__name__.removeprefix("_onnx_")

    def constant(node: Any) -> float | None:
        if not isinstance(node, fx.Node) or node.op != "get_attr":
            return None
        value = module.get_buffer(str(node.target))
        return float(value) if value.numel() == 1 else None

    count = 0
    for node in list(module.graph.nodes):
        if operation(node) != "div" or constant(node.args[1]) != 6 or operation(node.args[0]) != "mul":
            continue
        x, clip = node.args[0].args
        if operation(clip) != "ReLU6":
            continue
        add = clip.args[0]
        if operation(add) != "add" or add.args[0] is not x or constant(add.args[1]) != 3:
            continue
        with module.graph.inserting_before(node):
            node.replace_all_uses_with(module.graph.call_function(F.hardswish, (x,)))
        count += 1
    module.graph.eliminate_dead_code()
    module.recompile()
    module.delete_all_unused_submodules()
    return count


def replace_depthwise(module: nn.Module) -> int:
    """Puts a `Depthwise` in the place of every depthwise convolution that it can stand for. Gives how many those are."""
    found = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Conv2d) and _is_depthwise(part)]
    for name, part in found:
        module.set_submodule(name, Depthwise(part))
    return len(found)


def _is_depthwise(conv: nn.Conv2d) -> bool:
    alike = conv.groups == conv.in_channels == conv.out_channels > 1 and conv.dilation == (1, 1)
    square = len(set(conv.kernel_size)) == len(set(conv.stride)) == 1 and conv.padding_mode == "zeros"
    padded = not isinstance(conv.padding, str) and conv.padding == (conv.kernel_size[0] // 2,) * 2
    return alike and square and padded and conv.kernel_size[0] % 2 == 1


class Depthwise(nn.Module):
    """A frozen depthwise convolution whose gradient is computed as one, too."""

    weight: torch.Tensor
    bias: torch.Tensor
    turned: torch.Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        weight = conv.weight.detach()
        self.stride = conv.stride[0]
        self.register_buffer("weight", weight.clone())
        self.register_buffer("bias", torch.zeros(len(weight)) if conv.bias is None else conv.bias.detach().clone())
        self.register_buffer("turned", weight.flip(2, 3).clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        weights = (part.to(x.dtype) for part in (self.weight, self.bias, self.turned))
        result: torch.Tensor = _DepthwiseFunction.apply(x, *weights, self.stride)
        return result


class _DepthwiseFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, turned: torch.Tensor, stride: int
    ) -> torch.Tensor:
        ctx.save_for_backward(turned)
        ctx.stride, ctx.size = stride, x.shape[2:]
        return F.conv2d(x, weight, bias, stride, weight.shape[-1] // 2, 1, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (turned,) = ctx.saved_tensors
        if ctx.stride > 1:
            spread = gradient.new_zeros(*gradient.shape[:2], *ctx.size).contiguous(memory_format=torch.channels_last)
            spread[:, :, :: ctx.stride, :: ctx.stride] = gradient
            gradient = spread
        return F.conv2d(gradient, turned, None, 1, turned.shape[-1] // 2, 1, len(turned)), None, None, None, None
