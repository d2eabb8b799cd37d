"""How good a detector's boxes are: mean average precision as COCO measures it, and F1 of single pictures."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .pictures import Labelled


class Found(NamedTuple):
    """The boxes [n, 4] found in a picture, in its own pixels, with `confidence` [n] and `classes` [n], surest first."""

    boxes: np.ndarray
    confidence: np.ndarray
    classes: np.ndarray

    def above(self, least: float) -> Found:
        kept = self.confidence >= least
        return Found(self.boxes[kept], self.confidence[kept], self.classes[kept])


def overlaps(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of a box [4] and others [n, 4]."""
    low, high = np.maximum(one[:2], others[:, :2]), np.minimum(one[2:], others[:, 2:])
    common = np.clip(high - low, 0, None).prod(1)
    areas = (one[2:] - one[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1)
    return common / np.maximum(areas - common, 1e-9)


def suppressed(scores: np.ndarray, boxes: np.ndarray, least: float, overlap: float = 0.6, limit: int = 100) -> Found:
    """Of scores [n, K] and boxes [n, 4] those of at least `least`, without those that overlap a surer one of their class by
    more than `overlap`."""
    place, label = np.nonzero(scores >= least)
    order = np.argsort(-scores[place, label], kind="stable")[:1000]
    place, label = place[order], label[order]
    found, sure, alive, kept = boxes[place], scores[place, label], np.ones(len(place), bool), []
    for at in range(len(place)):
        if not alive[at]:
            continue
        kept.append(at)
        if len(kept) == limit:
            break
        alive &= (overlaps(found[at], found) <= overlap) | (label != label[at])
    return Found(found[kept], sure[kept], label[kept])


def mean_average_precision(pictures: Sequence[Labelled], found: Sequence[Found], labels: Sequence[str]) -> tuple[float, float]:
    """COCO's mAP over overlaps from 0.5 to 0.95, and at 0.5."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": at} for at in range(len(pictures))],
        "categories": [{"id": at, "name": label} for at, label in enumerate(labels)],
        "annotations": [],
    }
    for at, picture in enumerate(pictures):
        for box, label in zip(picture.boxes, picture.classes, strict=True):
            item = _item(at, box, int(label)) | {"id": len(truth.dataset["annotations"]) + 1, "iscrowd": 0}
            truth.dataset["annotations"].append(item)
    rows = [
        _item(at, box, int(label)) | {"score": float(confidence)}
        for at, boxes in enumerate(found)
        for box, confidence, label in zip(*boxes, strict=True)
    ]
    if not rows:
        return 0.0, 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(rows), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return float(judge.stats[0]), float(judge.stats[1])


def _item(picture: int, box: np.ndarray, label: int) -> dict[str, object]:
    x, y, right, bottom = (float(value) for value in box)
    sides = (right - x, bottom - y)
    return {"image_id": picture, "category_id": label, "bbox": [x, y, *sides], "area": sides[0] * sides[1]}


def f1(found: Found, truth: Labelled, overlap: float = 0.5) -> float:
    """F1 of the boxes found in a picture, surest first, each against the nearest one of its class that is still free; 1
    where nothing is and nothing was found."""
    if not len(found.boxes) and not len(truth.boxes):
        return 1.0
    free = np.ones(len(truth.boxes), bool)
    right = 0
    for box, label in zip(found.boxes, found.classes, strict=True):
        near = overlaps(box, truth.boxes) * (free & (truth.classes == label)) if len(free) else np.zeros(0)
        if len(near) and near.max() >= overlap:
            free[near.argmax()] = False
            right += 1
    return 2 * right / (len(found.boxes) + len(truth.boxes))
