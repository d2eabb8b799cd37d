"""A detector's trunk as ONNX."""

from __future__ import annotations

import numpy as np
from torch import nn

from ..graph import Graph
from .network import BINS, STRIDES, Branch, Finer, Trunk


def add(graph: Graph, trunk: Trunk, features: str) -> None:
    """Appends a trunk without batch norms, applied to the tensor `features`, with its outputs: `scores` [places, K] after
    the sigmoid and `distances` [places, 4 · bins], over all grids, the finest first."""
    middle = graph.add(trunk.middle, features)
    coarse = graph.add(trunk.from_coarse, graph.add(trunk.coarse, middle))
    joined = _sum(graph, graph.add(trunk.from_middle, middle), _finer(graph, trunk.up, coarse))
    joined = graph.add(trunk.joined, joined)
    coarse = _sum(graph, coarse, graph.add(trunk.down, joined))
    scores, distances = [], []
    for branch, x in zip(trunk.branches, (_finer(graph, trunk.finer, joined), joined, coarse), strict=True):
        assert isinstance(branch, Branch)
        x = graph.add(branch.tower, x)
        scores.append(_rows(graph, branch.scores, x))
        distances.append(_rows(graph, branch.distances, x))
    logits = _joined(graph, scores)
    graph.output(graph.node("Sigmoid", [logits], graph.shapes[logits]), "scores")
    graph.output(_joined(graph, distances), "distances")
    assert len(scores) == len(STRIDES) and graph.shapes["distances"][1] == 4 * BINS


def _sum(graph: Graph, a: str, b: str) -> str:
    return graph.node("Add", [a, b], graph.shapes[a])


def _finer(graph: Graph, finer: Finer, x: str) -> str:
    x = graph.add(finer.spread, x)
    channels, height, width = graph.shapes[x]
    return graph.node("DepthToSpace", [x], (channels // 4, 2 * height, 2 * width), blocksize=2, mode="CRD")


def _rows(graph: Graph, layer: nn.Conv2d, x: str) -> str:
    """A layer's outputs, one row for each place."""
    x = graph.add(layer, x)
    channels, height, width = graph.shapes[x]
    shape = graph.constant(np.array([0, channels, height * width], np.int64))
    x = graph.node("Reshape", [x, shape], (channels, height * width))
    return graph.node("Transpose", [x], (height * width, channels), perm=[0, 2, 1])


def _joined(graph: Graph, parts: list[str]) -> str:
    places = sum(graph.shapes[part][0] for part in parts)
    return graph.node("Concat", parts, (places, graph.shapes[parts[0]][1]), axis=1)
