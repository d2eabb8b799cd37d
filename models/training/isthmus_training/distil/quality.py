"""How good an answer is beside the whole network's: without labels, that is the truth there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ..boxes import Detector, overlap

LEAST = 0.05
"""Boxes of less confidence are of no interest even where there are no others."""


class Judgement(NamedTuple):
    """Of one answer: quality 0..=1, confidence 0..=1, bytes of the reply, and the `label` that a classifier would have had
    to give."""

    quality: float
    confidence: float
    reply: int
    label: int = 0


class Judge:
    """Holds a decoder's outputs for one picture against the whole network's."""

    def __init__(self, decoder: Mapping[str, Any], size: tuple[int, int]) -> None:
        self.decoder, self.task = decoder, decoder["task"]
        if self.task == "detection":
            self.detector = Detector(decoder["boxes"], size, len(decoder["labels"]))
            self.least = decoder.get("quality", decoder["boxes"])["confidence"]

    def __call__(self, outputs: list[np.ndarray], wanted: list[np.ndarray]) -> Judgement:
        """`outputs` and `wanted` are without the batch."""
        if self.task == "detection":
            return self._boxes(self._decoded(outputs), self._decoded(wanted))
        if self.task == "classification":
            likely = _softmax(outputs[0].ravel())
            right = float(outputs[0].argmax() == wanted[0].argmax())
            return Judgement(right, float(likely.max()), 4 * outputs[0].size, int(wanted[0].argmax()))
        if self.task == "segmentation":
            likely = _softmax(outputs[0]).max(0)
            return Judgement(_overlaps(outputs[0].argmax(0), wanted[0].argmax(0)), float(likely.mean()), likely.size)
        size = sum(output.nbytes for output in outputs)
        pairs = list(zip(outputs, wanted, strict=True))
        if self.task == "regression":
            return Judgement(float(np.mean([_near(o, w) for o, w in pairs])), 1.0, size)
        error = np.mean([np.square(o - w).mean() / max(1e-12, float(w.var())) for o, w in pairs])
        return Judgement(float(1 / (1 + error)), 1.0, size)

    def _decoded(self, outputs: list[np.ndarray]) -> np.ndarray:
        names = [output["name"] for output in self.decoder["outputs"]]
        return self.detector.decode(dict(zip(names, outputs, strict=True)), min(LEAST, self.least))

    def _boxes(self, found: np.ndarray, wanted: np.ndarray) -> Judgement:
        sure, truth = found[found[:, 1] >= self.least], wanted[wanted[:, 1] >= self.least]
        confidence = sure[:, 1].mean() if len(sure) else 1 - found[:, 1].max(initial=0.0)
        return Judgement(f1(sure, truth), float(confidence), 12 * len(sure))


def f1(found: np.ndarray, truth: np.ndarray) -> float:
    """Of boxes [n, 6] (class, score, corners), best first, against those of the truth, at an overlap of a half."""
    if not len(found) and not len(truth):
        return 1.0
    free, right = np.full(len(truth), True), 0
    for box in found:
        fits = np.where(free & (truth[:, 0] == box[0]), overlap(box[2:], truth[:, 2:]), 0) if len(truth) else np.zeros(0)
        if len(fits) and fits.max() >= 0.5:
            free[fits.argmax()] = False
            right += 1
    return 2 * right / (len(found) + len(truth))


def _overlaps(found: np.ndarray, truth: np.ndarray) -> float:
    """Mean intersection over union of the classes that occur in either map."""
    classes = np.union1d(found, truth)
    return float(np.mean([((found == c) & (truth == c)).sum() / ((found == c) | (truth == c)).sum() for c in classes]))


def _near(found: np.ndarray, wanted: np.ndarray) -> float:
    low, high = np.minimum(found, wanted), np.maximum(found, wanted)
    return float(((low > 0) & (high < 1.25 * low) | (low == high)).mean())


def _softmax(values: np.ndarray) -> np.ndarray:
    exponentials = np.exp(values - values.max(0))
    return np.asarray(exponentials / exponentials.sum(0))
