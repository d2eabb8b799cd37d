"""The reference decoder of boxes against torchvision's, and random outputs with what it makes of them, which the Rust
crate's own tests read.

`python models/training/tests/test_boxes.py` writes `models/tests/boxes/decoded.json` anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.detection.image_list import ImageList

from isthmus_training.boxes import LAYOUTS, Detector

FILE = Path(__file__).parents[2] / "tests" / "boxes" / "decoded.json"
SIZE = (64, 48)
CLASSES = 3
CELLS = (48, 12, 4)
"""Of strides 8, 16 and 32."""


def test_the_goldens_are_those_of_the_reference() -> None:
    cases = made()
    kept = json.loads(FILE.read_text())
    assert [case["name"] for case in kept] == [case["name"] for case in cases]
    for old, new in zip(kept, cases, strict=True):
        assert {**old, "found": 0} == {**new, "found": 0}
        np.testing.assert_allclose(old["found"], new["found"], atol=1e-3, err_msg=old["name"])


def test_every_layout_has_goldens_with_boxes() -> None:
    kept = json.loads(FILE.read_text())
    assert {case["spec"]["layout"] for case in kept} == set(LAYOUTS)
    assert all(len(case["found"]) >= 4 for case in kept)


def test_offsets_from_priors_are_decoded_as_torchvision_does() -> None:
    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=1 + CLASSES)
    grids = [(20, 20), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)]
    features = [torch.zeros(1, 1, rows, columns) for columns, rows in grids]
    anchors = model.anchor_generator(ImageList(torch.zeros(1, 3, 320, 320), [(320, 320)]), features)
    sizes = [(pairs.clamp(0, 1) * 320).tolist() for pairs in model.anchor_generator._wh_pairs]
    spec = {
        "layout": "ssd",
        "boxes": "offsets",
        "background": "first",
        "activation": "softmax",
        "confidence": 0.4,
        "iou": model.nms_thresh,
        "candidates": 8192,
        "priors": [{"grid": grid, "sizes": size} for grid, size in zip(grids, sizes, strict=True)],
    }
    rng = np.random.default_rng(3)
    count = len(anchors[0])
    logits, offsets = rng.normal(0, 1.5, (count, 1 + CLASSES)), rng.normal(0, 1, (count, 4))
    model.score_thresh, model.topk_candidates = 0.4, count
    heads = {"cls_logits": torch.tensor(logits)[None], "bbox_regression": torch.tensor(offsets)[None]}
    (theirs,) = model.postprocess_detections(heads, anchors, [(320, 320)])
    ours = Detector(spec, (320, 320), CLASSES).decode({"scores": logits, "boxes": offsets})
    assert len(ours) == 300
    np.testing.assert_array_equal(ours[:, 0], theirs["labels"].numpy() - 1)
    np.testing.assert_allclose(ours[:, 1], theirs["scores"], atol=1e-6)
    np.testing.assert_allclose(ours[:, 2:], theirs["boxes"], atol=1e-2)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    output = np.zeros((4 + CLASSES, 5))
    output[2, 3] = value
    with pytest.raises(ValueError, match="finite"):
        Detector({"layout": "yolov8", "confidence": 0.3, "iou": 0.5}, SIZE, CLASSES).decode({"out": output})


def made() -> list[dict[str, Any]]:
    """All cases; values have two digits, which f32 and f64 tell apart from any threshold."""
    rng = np.random.default_rng(5)
    return [case(name, spec, draw(rng)) for name, spec, draw in CASES]


def case(name: str, spec: dict[str, Any], outputs: dict[str, np.ndarray]) -> dict[str, Any]:
    outputs = {key: array.round(2) for key, array in outputs.items()}
    spec = {"confidence": 0.3, **spec}
    found = Detector(spec, SIZE, CLASSES).decode(outputs)
    return {
        "name": name,
        "spec": spec,
        "outputs": [
            {"name": key, "shape": list(array.shape), "values": array.ravel().tolist()} for key, array in outputs.items()
        ],
        "found": found.round(4).tolist(),
    }


def scores(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Few are high."""
    return rng.random(shape) ** 3


def logits(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(-1.5, 1.5, shape)


def placed(rng: np.random.Generator, count: int) -> np.ndarray:
    """Centres and sizes in pixels."""
    return np.column_stack([rng.uniform(0, 64, count), rng.uniform(0, 48, count), rng.uniform(4, 40, (count, 2))])


def cornered(rng: np.random.Generator, count: int) -> np.ndarray:
    boxes = placed(rng, count)
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)


def in_cells(rng: np.random.Generator, draw: Callable[..., np.ndarray]) -> np.ndarray:
    return np.concatenate([rng.normal(0.5, 0.3, (64, 2)), rng.normal(0, 0.6, (64, 2)), draw(rng, 64, 1 + CLASSES)], 1)


def levels(rng: np.random.Generator, draw: Callable[..., np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return [draw(rng, n, CLASSES) for n in CELLS], [rng.normal(0, 2, (n, 16)) for n in CELLS]


def by_level(rng: np.random.Generator) -> dict[str, np.ndarray]:
    said, sides = levels(rng, scores)
    named = {f"scores {level}": array for level, array in enumerate(said)}
    return {**named, **{f"sides {level}": array for level, array in enumerate(sides)}}


def in_two(rng: np.random.Generator) -> dict[str, np.ndarray]:
    said, sides = levels(rng, logits)
    return {"scores": np.concatenate(said), "sides": np.concatenate(sides).T}


def in_one(rng: np.random.Generator) -> dict[str, np.ndarray]:
    said, sides = levels(rng, scores)
    return {"out": np.concatenate([np.concatenate(said), np.concatenate(sides)], 1)}


def offsets(rng: np.random.Generator, count: int, draw: Callable[..., np.ndarray], columns: int) -> dict[str, np.ndarray]:
    return {"scores": draw(rng, count, columns), "boxes": rng.normal(0, 1, (count, 4))}


def three(rng: np.random.Generator) -> dict[str, np.ndarray]:
    labels = rng.integers(1, 1 + CLASSES, 30).astype(np.float64)
    sides = np.array([48, 64, 48, 64])
    return {
        "boxes": cornered(rng, 30)[:, [1, 0, 3, 2]] / sides,
        "classes": labels,
        "n": np.array([30.0]),
        "scores": scores(rng, 30),
    }


STRIDES = {"strides": [8, 16, 32], "bins": 4, "iou": 0.5}
FINE = {"stride": 8, "sizes": [[10, 10], [16, 24]]}
CASES: list[tuple[str, dict[str, Any], Callable[[np.random.Generator], dict[str, np.ndarray]]]] = [
    ("yolox", {"layout": "yolox", "iou": 0.45}, lambda rng: {"out": in_cells(rng, scores)}),
    (
        "yolox, logits of every class, turned",
        {"layout": "yolox", "iou": 0.3, "activation": "sigmoid", "every_class": True, "confidence": 0.1},
        lambda rng: {"out": in_cells(rng, logits).T},
    ),
    (
        "yolov5",
        {"layout": "yolov5", "iou": 0.4},
        lambda rng: {"out": np.concatenate([placed(rng, 90), scores(rng, 90, 1 + CLASSES) ** 0.5], 1)},
    ),
    (
        "yolov8",
        {"layout": "yolov8", "iou": 0.5},
        lambda rng: {"out": np.concatenate([placed(rng, 80), scores(rng, 80, CLASSES)], 1).T},
    ),
    (
        "yolov8, rows of logits, any class suppressing any",
        {"layout": "yolov8", "iou": 0.4, "activation": "sigmoid", "agnostic": True, "limit": 9},
        lambda rng: {"out": np.concatenate([placed(rng, 60), logits(rng, 60, CLASSES)], 1)},
    ),
    ("distribution by level", {"layout": "distribution", **STRIDES, "candidates": 40}, by_level),
    ("distribution in two tensors", {"layout": "distribution", **STRIDES, "activation": "sigmoid"}, in_two),
    ("distribution in one tensor", {"layout": "distribution", **STRIDES, "offset": 0.0, "every_class": False}, in_one),
    (
        "ssd, corners",
        {"layout": "ssd", "boxes": "corners", "background": "first", "iou": 0.4},
        lambda rng: {"scores": scores(rng, 60, 1 + CLASSES), "boxes": cornered(rng, 60) / np.array([64, 48, 64, 48])},
    ),
    (
        "ssd, centres in pixels, scores turned",
        {"layout": "ssd", "boxes": "centres", "normalised": False, "activation": "sigmoid", "iou": 0.4},
        lambda rng: {"scores": logits(rng, CLASSES, 60), "boxes": placed(rng, 60)},
    ),
    (
        "ssd, offsets from a grid of 8 pixels and one of 32",
        {
            "layout": "ssd",
            "boxes": "offsets",
            "background": "first",
            "iou": 0.3,
            "clip_priors": True,
            "priors": [FINE, {"stride": 32, "sizes": [[80, 50]]}],
        },
        lambda rng: offsets(rng, 100, scores, 1 + CLASSES),
    ),
    (
        "ssd, offsets from grids by their cells",
        {
            "layout": "ssd",
            "boxes": "offsets",
            "background": "last",
            "activation": "softmax",
            "iou": 0.3,
            "variances": [0.2, 0.4],
            "priors": [{"grid": [5, 4], "sizes": [[12, 20]]}, {"grid": [1, 1], "sizes": [[30, 40], [50, 20]]}],
        },
        lambda rng: offsets(rng, 22, lambda rng, *shape: logits(rng, *shape) * 1.5, 1 + CLASSES),
    ),
    (
        "ssd, offsets from given priors",
        {"layout": "ssd", "boxes": "offsets", "iou": 0.3},
        lambda rng: {**offsets(rng, 40, scores, CLASSES), "priors": rng.uniform(0.05, 0.95, (40, 4))},
    ),
    (
        "detr",
        {"layout": "detr", "confidence": 0.4},
        lambda rng: {"logits": rng.normal(0, 2, (20, 1 + CLASSES)), "boxes": rng.uniform(0.05, 0.95, (20, 4))},
    ),
    (
        "detr, sigmoid",
        {"layout": "detr", "activation": "sigmoid", "confidence": 0.4},
        lambda rng: {"logits": logits(rng, 20, CLASSES), "boxes": rng.uniform(0.05, 0.95, (20, 4))},
    ),
    (
        "fastestdet",
        {"layout": "fastestdet", "iou": 0.45},
        lambda rng: {
            "out": np.concatenate([scores(rng, 1, 6, 8), rng.normal(0, 0.8, (4, 6, 8)), scores(rng, CLASSES, 6, 8)], 0),
        },
    ),
    (
        "centernet",
        {"layout": "centernet"},
        lambda rng: {
            "heat": scores(rng, CLASSES, 12, 16),
            "size": rng.uniform(0.5, 6, (2, 12, 16)),
            "offset": rng.random((2, 12, 16)),
        },
    ),
    (
        "centernet, logits and a stride of 8",
        {"layout": "centernet", "stride": 8, "activation": "sigmoid", "iou": 0.5},
        lambda rng: {
            "heat": logits(rng, CLASSES, 6, 8),
            "size": rng.uniform(0.5, 6, (2, 6, 8)),
            "offset": rng.random((2, 6, 8)),
        },
    ),
    (
        "corners in one tensor",
        {"layout": "corners"},
        lambda rng: {"out": np.column_stack([cornered(rng, 25), scores(rng, 25), rng.integers(0, CLASSES, 25)])},
    ),
    (
        "corners in three tensors",
        {
            "layout": "corners",
            "columns": ["y0", "x0", "y1", "x1"],
            "normalised": True,
            "first_class": 1,
            "tensors": ["boxes", "scores", "classes"],
            "iou": 0.5,
        },
        three,
    ),
]


if __name__ == "__main__":
    FILE.write_text("[\n" + ",\n".join(json.dumps(case) for case in made()) + "\n]\n")
