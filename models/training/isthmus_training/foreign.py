"""A network of torchvision or timm as the full one: made by its name, traced, cut in two, written as ONNX.

Tracing (`torch.fx`) turns it into a list of operations, so that any network whose operations can be listed can be cut
at any tensor that all of what follows depends on, whatever its layers are called.
"""

from __future__ import annotations

import difflib
import io
import warnings
from pathlib import Path
from typing import Any, Callable, Iterable, NamedTuple, Sequence

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from .config import LAST_STRIDE
from .graph import IR_VERSION, OPSET
from .network import Section

EXTRA = "pip install isthmus-training[backbones]"


def create(name: str, classes: int, size: tuple[int, int], pretrained: bool = False) -> nn.Module:
    """The network `timm:NAME` or `torchvision:NAME` for pictures of `size` (width, height), with `classes` outputs.

    `pretrained` fetches the weights that the library has for it; the layer that tells the classes starts anew.
    """
    source, _, model = name.partition(":")
    makers = {"timm": _of_timm, "torchvision": _of_torchvision}
    if source not in makers or not model:
        raise ValueError(f"network.backbone: {name!r} is neither timm:NAME nor torchvision:NAME")
    try:
        return makers[source](model, classes, size, pretrained)
    except ModuleNotFoundError as error:
        if error.name not in ("timm", "torchvision"):
            raise
        raise ValueError(f"network.backbone: {name} needs {error.name}, which is not installed: {EXTRA}") from error
    except RuntimeError as error:
        raise ValueError(f"network.backbone: {name}: {error}") from error


def _of_timm(name: str, classes: int, size: tuple[int, int], pretrained: bool) -> nn.Module:
    import timm
    from timm.layers import set_fused_attn

    if not timm.is_model(name):
        raise _unknown("timm", name.partition(".")[0], timm.list_models())
    # Attention in one operation has no form in ONNX of the version that bundles use.
    set_fused_attn(False)
    settings = dict(pretrained=pretrained, num_classes=classes)
    try:
        return timm.create_model(name, img_size=(size[1], size[0]), **settings)
    except TypeError:  # most networks take pictures of any size, and no such setting
        return timm.create_model(name, **settings)


def _of_torchvision(name: str, classes: int, size: tuple[int, int], pretrained: bool) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise _unknown("torchvision", name, known)
    if not pretrained:
        return models.get_model(name, weights=None, num_classes=classes)
    network = models.get_model(name, weights="DEFAULT")
    path, last = [(path, part) for path, part in network.named_modules() if isinstance(part, nn.Linear)][-1]
    network.set_submodule(path, nn.Linear(last.in_features, classes))
    return network


def _unknown(source: str, name: str, known: Sequence[str]) -> ValueError:
    near = difflib.get_close_matches(name, known, 5, 0.5)
    hint = f"; the nearest are {', '.join(near)}" if near else ""
    return ValueError(f"network.backbone: {source} has no {name!r}{hint}")


class Foreign(nn.Module):
    """The full network over pictures [N, 3, H, W], made of another one: the layers before the cut are its prefix, those
    behind it the trunk.

    `cut` is the layer behind whose output it is cut, `features` the channels there, `rectified` whether none of them goes
    below zero; `last` is the channels of the last feature map, if that has the stride on which a teacher's labels are
    laid.
    """

    def __init__(self, model: nn.Module, name: str, size: tuple[int, int], stride: int, cut: str = "") -> None:
        """Cuts at the end of the layer called `cut`, or of the last whole stage whose output has `stride`."""
        super().__init__()
        x = torch.randn(2, 3, size[1], size[0], generator=torch.Generator().manual_seed(0))
        trace = Trace(model, x, name)
        place = _choose(trace.places, (size[1] // stride, size[0] // stride), cut, name)
        last = [later for later in trace.places if later.at >= place.at and (max(later.shape[1:]) > 1 or later == place)][-1]
        self.prefix, self.body, self.end = trace.section(0, place.at), trace.section(place.at, last.at), trace.section(last.at)
        self.name, self.cut, self.features = name, place.names[-1], place.shape[0]
        self.last = last.shape[0] if last.shape[1:] == (size[1] // LAST_STRIDE, size[0] // LAST_STRIDE) else None
        with torch.no_grad():
            features = self.prefix(x)
            ours, wanted = self.trunk()(features), model(x)
        if not isinstance(ours, torch.Tensor) or ours.ndim != 2:
            raise ValueError(f"network.backbone: {name} does not end in a row of logits")
        if not torch.allclose(ours, wanted, atol=1e-4, rtol=1e-4):
            raise ValueError(f"network.backbone: {name} computes something else once it is traced")
        self.classes, self.rectified = wanted.shape[1], bool((features >= 0).all())

    @torch.no_grad()
    def check(self, sizes: Iterable[tuple[int, int]]) -> None:
        """Refuses where pictures of some of these sizes (width, height) will not do."""
        for width, height in sizes:
            try:
                self(torch.zeros(1, 3, height, width))
            except RuntimeError as error:
                raise ValueError(
                    f"network.backbone: {self.name} does not run at {width}×{height}, which a stage's phases ask for;"
                    " let every phase have the scale 1.0"
                ) from error

    def trunk(self) -> nn.Sequential:
        """What follows the prefix: [N, C', h, w] to logits [N, K], through the last feature map, which its first part
        gives. Shares this network's weights."""
        return nn.Sequential(self.body, self.end)

    def layers(self) -> list[nn.Module]:
        """What runs one after the other from the pictures to the last feature map."""
        return [self.prefix, self.body]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(self.body(self.prefix(x)))


class Place(NamedTuple):
    """A feature map through which every path from the picture to the logits leads: `at` is its operation's position,
    `names` the layers whose output it is, outermost last, `shape` its [C, h, w]."""

    at: int
    names: list[str]
    shape: tuple[int, int, int]


class Trace:
    """A network's operations in order, the picture first, and the places where it can be cut."""

    def __init__(self, model: nn.Module, x: torch.Tensor, name: str) -> None:
        tracer = _trace(model, x, name)
        graph = tracer.graph
        traced = fx.GraphModule(model.eval(), graph)
        for node in graph.nodes:
            # As a function it would do for ever what it did in training.
            if node.target is F.dropout:
                traced.add_submodule(node.name, nn.Dropout(node.kwargs.get("p", 0.5)))
                node.op, node.target, node.args, node.kwargs = "call_module", node.name, node.args[:1], {}
        graph.eliminate_dead_code()
        self.model, self.nodes = traced.eval(), list(graph.nodes)
        shapes = _Shapes(traced)
        with torch.no_grad():
            shapes.run(x)
        self.places = []
        for at in self._separators():
            shape, names = shapes.found.get(self.nodes[at].name), tracer.outputs.get(self.nodes[at].name)
            if names and shape and len(shape) == 4:
                self.places.append(Place(at, names, shape[1:]))

    def section(self, start: int, end: int | None = None) -> Section:
        """From the tensor at `start` to the one at `end`, or to the logits."""
        first, last = self.nodes[start], self.nodes[-1].args[0] if end is None else self.nodes[end]
        needed = {last}
        for node in reversed(self.nodes):
            if node in needed and node is not first:
                needed.update(node.all_input_nodes)
        graph = fx.Graph()
        copies = {first: graph.placeholder("x")}
        for node in self.nodes:
            if node in needed and node is not first:
                copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(copies[last])
        return Section(fx.GraphModule(self.model, graph))

    def _separators(self) -> list[int]:
        """Those that, once made, are all that later operations still need of what depends on the picture."""
        depends, open_, found = {self.nodes[0]}, {self.nodes[0]}, []
        last_use = {used: at for at, node in enumerate(self.nodes) for used in node.all_input_nodes}
        for at, node in enumerate(self.nodes[1:-1], 1):
            if depends.intersection(node.all_input_nodes):
                depends.add(node)
                open_.add(node)
            open_ = {value for value in open_ if last_use.get(value, 0) > at}
            if open_ == {node}:
                found.append(at)
        return found


class _Tracer(fx.Tracer):
    """Notes whose output each operation is. Does not look into batch norms and layers without layers of their own, which
    may do otherwise in training, nor into what timm says cannot be traced. Answers conditions from `decisions`."""

    def __init__(self, decisions: Sequence[bool]) -> None:
        hidden: Sequence[Callable] = ()
        self.hidden: Callable[[nn.Module], bool] = lambda module: False
        try:
            from timm.layers import get_notrace_functions, is_notrace_module

            hidden, self.hidden = get_notrace_functions(), is_notrace_module
        except ModuleNotFoundError:
            pass
        super().__init__(autowrap_functions=tuple(hidden))
        self.outputs: dict[str, list[str]] = {}
        self.decisions = list(reversed(decisions))

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        whole = isinstance(module, _BatchNorm) or not list(module.children()) or self.hidden(module)
        return whole or super().is_leaf_module(module, path)

    def call_module(self, module: nn.Module, forward: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        result = super().call_module(module, forward, args, kwargs)
        if isinstance(result, fx.Proxy):
            self.outputs.setdefault(result.node.name, []).append(self.path_of_module(module))
        return result


    def to_bool(self, condition: fx.Proxy) -> bool:
        if not self.decisions:
            raise _Undecided(condition.node)
        return self.decisions.pop()


class _Undecided(Exception):
    """A condition that depends on the picture."""


def _trace(model: nn.Module, x: torch.Tensor, name: str) -> _Tracer:
    """Traces as often as there are conditions, and decides one at a time as for the picture `x`: most ask for its size."""
    decisions: list[bool] = []
    while True:
        tracer = _Tracer(decisions)
        try:
            # What differs in training is inside of layers, which are not traced; attention that remembers its biases
            # in inference would remember what is no tensor.
            tracer.graph = tracer.trace(model.train())
            return tracer
        except _Undecided as undecided:
            tracer.graph.output(undecided.args[0])
            with torch.no_grad():
                decisions.append(bool(fx.GraphModule(model.eval(), tracer.graph)(x)))
        except Exception as error:
            raise ValueError(f"network.backbone: {name} cannot be traced: {error}") from error


class _Shapes(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[str, tuple[int, ...]] = {}

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        if isinstance(result, torch.Tensor):
            self.found[node.name] = tuple(result.shape)
        return result


def _choose(places: list[Place], grid: tuple[int, int], cut: str, name: str) -> Place:
    """The place called `cut`, or the last whose output has the `grid`, of whole stages such as `layer3` or `blocks.4`."""
    fitting = [place for place in places if place.shape[1:] == grid]
    depth = max(1, min((place.names[-1].count(".") for place in fitting), default=0))
    whole = [place for place in fitting if place.names[-1].count(".") <= depth]
    if not whole:
        shapes = ", ".join(f"{p.names[-1]} {'×'.join(map(str, p.shape))}" for p in places if p.names[-1].count(".") < 2)
        raise ValueError(f"network.backbone: {name} has no cut with the head's grid of {grid[0]}×{grid[1]}; cuts: {shapes}")
    named = [place for place in fitting if cut in place.names] if cut else whole
    if not named:
        near = ", ".join(place.names[-1] for place in whole)
        raise ValueError(f"network.cut: {name} cannot be cut at {cut!r} with the head's grid; it can at {near}")
    return named[-1]


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
    """By the exporter that writes plain operators of old, for `batch` samples: all shapes are constants."""
    buffer, x = io.BytesIO(), torch.zeros(batch, *shape)
    with warnings.catch_warnings():
        # That it is old, and that sizes became constants.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (x,), buffer, input_names=[names[0]], output_names=[names[1]], opset_version=OPSET, dynamo=False
        )
    return onnx.load_from_string(buffer.getvalue())


def _free_batch(model: onnx.ModelProto, other: onnx.ModelProto) -> onnx.ModelProto:
    """Frees the batch dimension of a graph with the help of the same graph for another batch: what differs between them
    is the batch.

    An exporter that is told of a free dimension computes every shape from it at run time, which an engine can hardly
    follow; here all other dimensions stay constants.
    """
    shapes = _shapes(model)
    ours, theirs = _fold_shapes(model.graph, shapes), _fold_shapes(other.graph, _shapes(other))
    differing = {name for name, values in ours.items() if not np.array_equal(values, theirs.get(name))}
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
        taken = {axis: slice(start, end, step) for axis, start, end, step in zip(axes, starts, ends, steps)}
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
    return {picture.name: zeros.shape} | {n: np.shape(v) for n, v in zip(names, session.run(names, {picture.name: zeros}))}


def _fold_shapes(graph: onnx.GraphProto, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Computes what can be computed of shapes and other small constants, and gives all constants by name. Drops nodes
    that do nothing."""
    constants = {weights.name: numpy_helper.to_array(weights) for weights in graph.initializer}
    nodes, same = [], {}
    for node in graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]
        if node.op_type == "Identity" and node.output[0] != graph.output[0].name:
            same[node.output[0]] = node.input[0]
            continue
        value = None
        if node.op_type == "Shape":
            value = np.array(shapes[node.input[0]], np.int64)
        elif node.op_type != "Expand" and all(
            not name or name in constants and constants[name].size <= 64 for name in node.input
        ):
            (value,) = ReferenceEvaluator(node).run(None, {name: constants[name] for name in node.input if name})
        if value is not None:
            constants[node.output[0]] = np.asarray(value)
            graph.initializer.append(numpy_helper.from_array(constants[node.output[0]], node.output[0]))
            continue
        nodes.append(node)
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
