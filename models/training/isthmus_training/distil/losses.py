"""How far a split network's outputs are from the whole one's, by what the outputs are.

Of a detector nearly all places are empty, and what a box is there is of no interest: the values of a box count by how
sure the whole network is of one at its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

TASKS = ("classification", "detection", "segmentation", "regression", "tensors")

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda values: values,
    "sigmoid": torch.sigmoid,
    "softmax": lambda values: values.softmax(-1),
}


class Rows(NamedTuple):
    """A detector's places: scores [N, n, K] and the values that make their boxes [N, n, M], which are of a `form`: centre
    and size in pixels (`centres`), `corners`, distributions of four sides (`bins`), or numbers around 0 (`raw`)."""

    scores: torch.Tensor
    boxes: torch.Tensor
    form: str


class OutputLoss:
    """The loss of outputs against the whole network's, one number for each picture, about 1 where nothing is learnt.

    `boxes` is a detector's table `[decoders.boxes]` of the manifest, by which its outputs are told apart.
    """

    def __init__(self, task: str, boxes: Mapping[str, Any] | None = None) -> None:
        if task not in TASKS:
            raise ValueError(f"task {task}: expected one of {', '.join(TASKS)}")
        self.task, self.boxes = task, dict(boxes or {})
        if task == "detection" and self.boxes.get("layout") not in LAYOUTS:
            raise ValueError(f"layout {self.boxes.get('layout')}: boxes are learnt of {', '.join(LAYOUTS)}")

    def __call__(self, outputs: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> torch.Tensor:
        outputs = [output.float() for output in outputs]
        if self.task == "classification":
            return _divergence(outputs[0], wanted[0], -1)
        if self.task == "segmentation":
            return _divergence(outputs[0], wanted[0], 1)
        if self.task == "detection":
            return self._detection(LAYOUTS[self.boxes["layout"]](self.boxes, outputs), self._rows(wanted))
        return torch.stack([_relative(o, w) for o, w in zip(outputs, wanted, strict=True)]).mean(0)

    def embedded(self, wanted: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What outputs mean as numbers whose squared differences are about the loss, beside the whole network's `wanted`:
        for finding what the outputs hear of the tensors at the cut."""
        if self.task in ("classification", "segmentation"):
            axis = -1 if self.task == "classification" else 1
            return [outputs[0].float().softmax(axis).sqrt()]
        if self.task != "detection":
            return [o.float() / (w.var().clamp(min=1e-9) * w[0].numel()).sqrt() for o, w in zip(outputs, wanted, strict=True)]
        found = []
        targets = self._rows(wanted)
        energy = torch.stack([rows.scores.square().sum() for rows in targets]).sum().sqrt().clamp(min=1e-6)
        for got, want in zip(self._rows(outputs), targets, strict=True):
            sure = want.scores.amax(-1, keepdim=True)
            values = got.boxes.float()
            if got.form == "bins":
                values = values.unflatten(-1, (4, -1)).softmax(-1).sqrt().flatten(-2)
            elif got.form != "raw":
                values = values / _sides(want)
            found += [got.scores.float() / energy, sure * values / energy]
        return found

    def _rows(self, outputs: Sequence[torch.Tensor]) -> list[Rows]:
        return LAYOUTS[self.boxes["layout"]](self.boxes, outputs)

    def _detection(self, outputs: list[Rows], wanted: list[Rows]) -> torch.Tensor:
        scores, energy, boxes, heard = [], [], [], []
        for got, want in zip(outputs, wanted, strict=True):
            sure = want.scores.amax(-1).square()
            scores.append((got.scores - want.scores).square().sum((1, 2)))
            energy.append(want.scores.square().sum((1, 2)))
            boxes.append((_box_error(got, want) * sure).sum(1))
            heard.append(sure.sum(1))
        # A picture without anything in it has next to no energy of its own: the batch's counts as well.
        total, sure = torch.stack(energy).sum(0), torch.stack(heard).sum(0)
        score = torch.stack(scores).sum(0) / (0.5 * total + 0.5 * total.mean()).clamp(min=1e-6)
        return score + torch.stack(boxes).sum(0) / (0.5 * sure + 0.5 * sure.mean()).clamp(min=1e-6)


def _box_error(got: Rows, want: Rows) -> torch.Tensor:
    """The error of boxes at each place [N, n]."""
    if got.form == "bins":
        sides = (4, got.boxes.shape[-1] // 4)
        return _divergence_at(got.boxes.unflatten(-1, sides), want.boxes.unflatten(-1, sides), -1).sum(-1)
    scale = _sides(want) if got.form != "raw" else 1
    # Bounded where it is large: there it no longer matters how wrong a box is.
    return F.smooth_l1_loss(got.boxes / scale, want.boxes / scale, reduction="none").sum(-1)


def _sides(rows: Rows) -> torch.Tensor:
    """Width, height, width, height of the boxes [N, n, 4], at least a thousandth of the largest."""
    boxes = rows.boxes
    sides = boxes[..., 2:] if rows.form == "centres" else boxes[..., 2:] - boxes[..., :2]
    return torch.maximum(sides, sides.amax() / 1000).clamp(min=1e-6).repeat(1, 1, 2)


def _one_tensor(spec: Mapping[str, Any], outputs: Sequence[torch.Tensor]) -> list[Rows]:
    values = outputs[0].float()
    # More places than columns, whichever way they lie.
    values = values if values.shape[1] > values.shape[2] else values.transpose(1, 2)
    activate = ACTIVATIONS[spec.get("activation", "none")]
    form = "raw" if spec["layout"] == "yolox" else "centres"
    if spec["layout"] == "yolov8":
        return [Rows(activate(values[..., 4:]), values[..., :4], form)]
    return [Rows(activate(values[..., 4:5]) * activate(values[..., 5:]), values[..., :4], form)]


def _distribution(spec: Mapping[str, Any], outputs: Sequence[torch.Tensor]) -> list[Rows]:
    activate, sides = ACTIVATIONS[spec.get("activation", "none")], 4 * int(spec["bins"])
    if len(outputs) == 1:
        values = outputs[0].float()
        return [Rows(activate(values[..., :-sides]), values[..., -sides:], "bins")]
    half = len(outputs) // 2
    return [
        Rows(activate(scores.float()), boxes.float(), "bins")
        for scores, boxes in zip(outputs[:half], outputs[half:], strict=True)
    ]


def _two_tensors(spec: Mapping[str, Any], outputs: Sequence[torch.Tensor]) -> list[Rows]:
    detr = spec["layout"] == "detr"
    activation = spec.get("activation", "softmax" if detr else "none")
    boxes = outputs[1].float()
    scores = outputs[0].float() if outputs[0].shape[1] == boxes.shape[1] else outputs[0].float().transpose(1, 2)
    scores = ACTIVATIONS[activation](scores)
    background = spec.get("background") or ("last" if detr and activation == "softmax" else None)
    if background:
        scores = scores[..., 1:] if background == "first" else scores[..., :-1]
    form = {"offsets": "raw", "corners": "corners"}.get(spec.get("boxes", "centres"), "centres")
    return [Rows(scores, boxes, form)]


def _fastestdet(spec: Mapping[str, Any], outputs: Sequence[torch.Tensor]) -> list[Rows]:
    values = outputs[0].float().flatten(2).transpose(1, 2)
    scores = values[..., :1].clamp(min=1e-6) ** 0.6 * values[..., 5:].clamp(min=1e-6) ** 0.4
    return [Rows(scores, values[..., 1:5], "raw")]


def _centernet(spec: Mapping[str, Any], outputs: Sequence[torch.Tensor]) -> list[Rows]:
    heat, size, offset = (output.float().flatten(2).transpose(1, 2) for output in outputs)
    return [Rows(ACTIVATIONS[spec.get("activation", "none")](heat), torch.cat([size, offset], -1), "raw")]


LAYOUTS: dict[str, Callable[[Mapping[str, Any], Sequence[torch.Tensor]], list[Rows]]] = {
    "yolox": _one_tensor,
    "yolov5": _one_tensor,
    "yolov8": _one_tensor,
    "distribution": _distribution,
    "ssd": _two_tensors,
    "detr": _two_tensors,
    "fastestdet": _fastestdet,
    "centernet": _centernet,
}


def _divergence(logits: torch.Tensor, wanted: torch.Tensor, axis: int) -> torch.Tensor:
    found = _divergence_at(logits, wanted, axis)
    return found.reshape(len(found), -1).mean(1)


def _divergence_at(logits: torch.Tensor, wanted: torch.Tensor, axis: int) -> torch.Tensor:
    log_wanted = F.log_softmax(wanted.float(), axis)
    return (log_wanted.exp() * (log_wanted - F.log_softmax(logits, axis))).sum(axis)


def _relative(output: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return (output - wanted).square().flatten(1).mean(1) / wanted.float().var().clamp(min=1e-9)


def feature_loss(
    tensors: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor], scales: Sequence[torch.Tensor]
) -> torch.Tensor:
    """The squared error of the tensors at the cut, each channel by its weight in `scales` [C_i]; a number for each picture."""
    parts = [
        ((got.float() - want.float()).square().mean((2, 3)) * scale).sum(1)
        for got, want, scale in zip(tensors, wanted, scales, strict=True)
    ]
    return torch.stack(parts).sum(0)
