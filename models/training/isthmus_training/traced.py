"""A network of another library as the full one: traced, and cut in two.

Tracing (`torch.fx`) turns it into a list of operations, so that any network whose operations can be listed can be cut
at any tensor that all of what follows depends on, whatever its layers are called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from .config import LAST_STRIDE
from .network import FullNetwork, Section


class TracedBackbone(FullNetwork):
    """The full network made of another one: the layers before the cut are its prefix, those behind it the trunk. `cut` is
    the layer behind whose output it is cut."""

    def __init__(self, model: nn.Module, name: str, size: tuple[int, int], stride: int, cut: str = "") -> None:
        """Cuts at the end of the layer called `cut`, or of the last whole stage whose output has `stride`."""
        super().__init__()
        x = torch.randn(2, 3, size[1], size[0], generator=torch.Generator().manual_seed(0))
        trace = Trace(model, x, name)
        point = _choose(trace.cut_points, (size[1] // stride, size[0] // stride), cut, name)
        last = [later for later in trace.cut_points if later.at >= point.at and (max(later.shape[1:]) > 1 or later == point)][
            -1
        ]
        self.prefix, self.body, self.end = trace.section(0, point.at), trace.section(point.at, last.at), trace.section(last.at)
        self.name, self.cut, self.features = name, point.names[-1], point.shape[0]
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
        return nn.Sequential(self.body, self.end)

    def layers(self) -> Sequence[nn.Module]:
        return [self.prefix, self.body]


class CutPoint(NamedTuple):
    """A feature map through which every path from the picture to the logits leads: `at` is its operation's position,
    `names` the layers whose output it is, outermost last, `shape` its [C, h, w]."""

    at: int
    names: list[str]
    shape: tuple[int, int, int]


class Trace:
    """A network's operations in order, the picture first, and the points where it can be cut."""

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
        self.cut_points = []
        for at in self._separators():
            shape, names = shapes.found.get(self.nodes[at].name), tracer.outputs.get(self.nodes[at].name)
            if names and shape and len(shape) == 4:
                self.cut_points.append(CutPoint(at, names, shape[1:]))

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
        self.hidden: Callable[[Any], bool] = lambda module: False
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


def _choose(points: list[CutPoint], grid: tuple[int, int], cut: str, name: str) -> CutPoint:
    """The cut point called `cut`, or the last whose output has the `grid`, of whole stages such as `layer3` or `blocks.4`."""
    fitting = [point for point in points if point.shape[1:] == grid]
    depth = max(1, min((point.names[-1].count(".") for point in fitting), default=0))
    whole = [point for point in fitting if point.names[-1].count(".") <= depth]
    if not whole:
        shapes = ", ".join(f"{p.names[-1]} {'×'.join(map(str, p.shape))}" for p in points if p.names[-1].count(".") < 2)
        raise ValueError(f"network.backbone: {name} has no cut with the head's grid of {grid[0]}×{grid[1]}; cuts: {shapes}")
    named = [point for point in fitting if cut in point.names] if cut else whole
    if not named:
        near = ", ".join(point.names[-1] for point in whole)
        raise ValueError(f"network.cut: {name} cannot be cut at {cut!r} with the head's grid; it can at {near}")
    return named[-1]
