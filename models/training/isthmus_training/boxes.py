"""Boxes of a detector's outputs, layout by layout: the reference that the Rust crate's decoder is held against.

A specification is the table `[decoders.boxes]` of a bundle's manifest, outputs are arrays without the batch, and a box
is a row of class, score, x0, y0, x1, y1 in pixels of the network's input.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

GREATEST_RATIO = 1e6
"""Greatest number that the exponential of a size becomes."""

ONE_CLASS_A_PLACE = ("yolox", "yolov5", "yolov8", "fastestdet")
"""Layouts whose own programs keep a place's likeliest class alone."""


@dataclasses.dataclass(frozen=True)
class Places:
    """What a layout says: scores [n, K] of every place, and its box [n, 4], corners in pixels."""

    scores: np.ndarray
    corners: np.ndarray


@dataclasses.dataclass(frozen=True)
class Detector:
    """A network that finds boxes: its specification, its input's size (width, height) and its number of classes."""

    spec: Mapping[str, Any]
    size: tuple[int, int]
    classes: int

    def decode(self, outputs: Mapping[str, np.ndarray], threshold: float | None = None) -> np.ndarray:
        """Boxes [n, 6], best first; of equals the lower class, then the earlier place first."""
        spec = self.spec
        names = spec.get("tensors") or list(outputs)
        arrays = [np.asarray(outputs[name], np.float64) for name in names]
        if not all(np.isfinite(array).all() for array in arrays):
            raise ValueError("scores and coordinates must be finite")
        places = LAYOUTS[spec["layout"]](self, arrays)
        scores = places.scores
        if not spec.get("every_class", spec["layout"] not in ONE_CLASS_A_PLACE):
            likeliest = scores.argmax(1)[:, None] == np.arange(scores.shape[1])
            scores = np.where(likeliest, scores, 0)
        threshold = spec["confidence"] if threshold is None else threshold
        place, label = np.nonzero((scores >= threshold) & (scores > 0))
        score = scores[place, label]
        best = np.lexsort((place, label, -score))[: spec.get("candidates", 1000)]
        boxes = np.column_stack([label[best], score[best], places.corners[place[best]]])
        boxes[:, 2:] = boxes[:, 2:].clip(0, np.tile(self.size, 2))
        boxes = boxes[(boxes[:, 2] < boxes[:, 4]) & (boxes[:, 3] < boxes[:, 5])]
        limit = spec.get("limit", 300)
        if "iou" not in spec:
            return boxes[:limit]
        return boxes[suppress(boxes, spec["iou"], spec.get("agnostic", False))[:limit]]


def suppress(boxes: np.ndarray, most: float, agnostic: bool = False) -> list[int]:
    """Which boxes, best first, stay: those that overlap no better one of their class by more than `most`."""
    kept: list[int] = []
    for at, found in enumerate(boxes):
        better = boxes[kept]
        rivals = np.full(len(kept), True) if agnostic else better[:, 0] == found[0]
        if not (overlap(found[2:], better[:, 2:]) > most)[rivals].any():
            kept.append(at)
    return kept


def overlap(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of a box [4] with others [n, 4]."""
    sides = (np.minimum(one[2:], others[:, 2:]) - np.maximum(one[:2], others[:, :2])).clip(0)
    both = sides.prod(1)
    return both / ((one[2:] - one[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1) - both)


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def softmax(values: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    exponentials = np.exp(values - values.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda values: values,
    "sigmoid": sigmoid,
    "softmax": softmax,
}


def activate(spec: Mapping[str, Any], values: np.ndarray) -> np.ndarray:
    return ACTIVATIONS[spec.get("activation", "none")](values)


def around(centre: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Corners [n, 4] of boxes by their centres [n, 2] and sides [n, 2]."""
    return np.concatenate([centre - sides / 2, centre + sides / 2], 1)


def ratio(values: np.ndarray) -> np.ndarray:
    """exp(values), bounded."""
    with np.errstate(over="ignore"):
        return np.minimum(np.exp(values), GREATEST_RATIO)


def rows(array: np.ndarray, columns: int, columns_first: bool = False) -> np.ndarray:
    """[n, columns], whichever way it lies."""
    first, last = array.shape
    turned = first == columns and (columns_first or last != columns)
    array = array.T if turned else array
    assert array.shape[1] == columns, (array.shape, columns)
    return array


def cells(size: tuple[int, int], strides: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Column and row [n, 2] of every cell, row by row, and its stride [n, 1]."""
    grids, steps = [], []
    for stride in strides:
        columns, lines = (-(-side // stride) for side in size)
        y, x = np.mgrid[:lines, :columns]
        grids.append(np.stack([x.ravel(), y.ravel()], 1))
        steps.append(np.full((lines * columns, 1), stride))
    return np.concatenate(grids), np.concatenate(steps)


def yolox(net: Detector, outputs: list[np.ndarray]) -> Places:
    grid, stride = cells(net.size, net.spec.get("strides", (8, 16, 32)))
    (output,) = outputs
    values = output if output.shape[0] == len(grid) else output.T
    scores = activate(net.spec, values[:, 4:5]) * activate(net.spec, values[:, 5:])
    return Places(scores, around((values[:, :2] + grid) * stride, ratio(values[:, 2:4]) * stride))


def yolov5(net: Detector, outputs: list[np.ndarray]) -> Places:
    values = rows(outputs[0], 5 + net.classes)
    scores = activate(net.spec, values[:, 4:5]) * activate(net.spec, values[:, 5:])
    return Places(scores, around(values[:, :2], values[:, 2:4]))


def yolov8(net: Detector, outputs: list[np.ndarray]) -> Places:
    values = rows(outputs[0], 4 + net.classes, columns_first=True)
    return Places(activate(net.spec, values[:, 4:]), around(values[:, :2], values[:, 2:4]))


def distribution(net: Detector, outputs: list[np.ndarray]) -> Places:
    spec, bins = net.spec, net.spec["bins"]
    grid, stride = cells(net.size, spec["strides"])
    if len(outputs) == 1:
        together = rows(outputs[0], net.classes + 4 * bins)
        scores, sides = together[:, : net.classes], together[:, net.classes :]
    else:
        half = len(outputs) // 2
        scores = np.concatenate([rows(output, net.classes) for output in outputs[:half]])
        sides = np.concatenate([rows(output, 4 * bins) for output in outputs[half:]])
    # Left, top, right and bottom, in cells.
    distances = softmax(sides.reshape(-1, 4, bins)) @ np.arange(bins) * stride
    centre = (grid + spec.get("offset", 0.5)) * stride
    return Places(activate(spec, scores), np.concatenate([centre - distances[:, :2], centre + distances[:, 2:]], 1))


def pairs(net: Detector, outputs: list[np.ndarray]) -> Places:
    spec, background = net.spec, net.spec.get("background")
    boxes = rows(outputs[1], 4)
    scores = outputs[0] if outputs[0].shape[0] == len(boxes) else outputs[0].T
    scores = activate(spec, scores)
    if background:
        scores = scores[:, 1:] if background == "first" else scores[:, :-1]
    size = np.array(net.size)
    if spec["boxes"] == "offsets":
        given = priors(net) if spec.get("priors") else rows(outputs[2], 4)
        of_centre, of_size = spec.get("variances", (0.1, 0.2))
        centre = given[:, :2] + boxes[:, :2] * of_centre * given[:, 2:]
        boxes = around(centre, given[:, 2:] * ratio(boxes[:, 2:] * of_size))
    elif spec["boxes"] == "centres":
        boxes = around(boxes[:, :2], boxes[:, 2:])
    if spec["boxes"] == "offsets" or spec.get("normalised", True):
        boxes = boxes * np.tile(size, 2)
    return Places(scores, boxes)


def priors(net: Detector) -> np.ndarray:
    """Centres and sizes [n, 4] as parts of the input's sides: level by level, row by row, size by size."""
    size, made = np.array(net.size), []
    for level in net.spec["priors"]:
        if "stride" in level:
            step = level["stride"] / size
            columns, lines = (-(-side // level["stride"]) for side in net.size)
        else:
            columns, lines = level["grid"]
            step = 1 / np.array(level["grid"])
        for row in range(lines):
            for column in range(columns):
                centre = (np.array([column, row]) + 0.5) * step
                made += [np.concatenate([centre, np.array(sides) / size]) for sides in level["sizes"]]
    return np.clip(made, 0, 1) if net.spec.get("clip_priors") else np.array(made)


def detr(net: Detector, outputs: list[np.ndarray]) -> Places:
    activation = net.spec.get("activation", "softmax")
    background = {"background": "last"} if activation == "softmax" else {}
    spec = {**net.spec, "boxes": "centres", "activation": activation, **background}
    return pairs(dataclasses.replace(net, spec=spec), outputs)


def fastestdet(net: Detector, outputs: list[np.ndarray]) -> Places:
    channels, lines, columns = outputs[0].shape
    values = outputs[0].reshape(channels, -1).T
    grid, _ = cells((columns, lines), (1,))
    scores = values[:, :1].clip(0) ** 0.6 * values[:, 5:].clip(0) ** 0.4
    centre = (grid + np.tanh(values[:, 1:3])) * np.array(net.size) / (columns, lines)
    return Places(scores, around(centre, sigmoid(values[:, 3:5]) * np.array(net.size)))


def centernet(net: Detector, outputs: list[np.ndarray]) -> Places:
    heat, size, offset = outputs
    stride = net.spec.get("stride", 4)
    heat = activate(net.spec, heat)
    padded = np.pad(heat, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    lines, columns = heat.shape[1:]
    near = [padded[:, y : y + lines, x : x + columns] for y in range(3) for x in range(3)]
    peaks = np.where(heat == np.max(near, 0), heat, 0)
    grid, _ = cells((columns, lines), (1,))
    centre = (grid + offset.reshape(2, -1).T) * stride
    return Places(peaks.reshape(len(heat), -1).T, around(centre, size.reshape(2, -1).T * stride))


def corners(net: Detector, outputs: list[np.ndarray]) -> Places:
    spec = net.spec
    usual = ["x0", "y0", "x1", "y1", "score", "class"]
    columns = spec.get("columns") or (usual if len(outputs) == 1 else usual[:4])
    table = rows(outputs[0], len(columns))
    boxes = table[:, [columns.index(name) for name in usual[:4]]]
    if len(outputs) == 1:
        score, label = table[:, columns.index("score")], table[:, columns.index("class")]
    else:
        score, label = outputs[1].ravel(), outputs[2].ravel()
    is_class = label[:, None] - spec.get("first_class", 0) == np.arange(net.classes)
    if spec.get("normalised", False):
        boxes = boxes * np.tile(net.size, 2)
    return Places(np.where(is_class, score[:, None], 0), boxes)


LAYOUTS: dict[str, Callable[[Detector, list[np.ndarray]], Places]] = {
    "yolox": yolox,
    "yolov5": yolov5,
    "yolov8": yolov8,
    "distribution": distribution,
    "ssd": pairs,
    "detr": detr,
    "fastestdet": fastestdet,
    "centernet": centernet,
    "corners": corners,
}
