"""Random boxes and what pycocotools says of them, for the Rust crate's own tests.

`python models/training/tests/test_precision.py` writes `models/tests/boxes/precision.json` anew.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

FILE = Path(__file__).parents[2] / "tests" / "boxes" / "precision.json"

KINDS = {
    "few": {"pictures": 3, "classes": 1, "most": 2},
    "many classes": {"pictures": 12, "classes": 5, "most": 4},
    "crowds": {"pictures": 10, "classes": 2, "most": 5, "crowd": 0.3},
    "equal scores": {"pictures": 10, "classes": 2, "most": 5, "scores": 3},
    "equal overlaps": {"pictures": 8, "classes": 1, "most": 6, "grid": 8.0},
    "more than 100 in a picture": {"pictures": 1, "classes": 1, "most": 160, "least": 150},
    "nothing but crowds": {"pictures": 3, "classes": 1, "most": 2, "crowd": 1.0},
}


def test_the_figures_are_those_of_pycocotools() -> None:
    kept, drawn = json.loads(FILE.read_text()), json.loads(text())
    assert len(kept) == len(drawn)
    for old, new in zip(kept, drawn, strict=True):
        assert old["pictures"] == new["pictures"]
        for figure in ("mean", "at_50", "at_75", "classes"):
            assert old[figure] == pytest.approx(new[figure], abs=1e-12), old["name"]


def text() -> str:
    dice = random.Random(11)
    cases = [case(dice, name, **kind) for name, kind in KINDS.items()]  # type: ignore[arg-type]
    return "[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n"


def case(
    dice: random.Random,
    name: str,
    pictures: int,
    classes: int,
    most: int,
    least: int = 0,
    crowd: float = 0.0,
    scores: int = 1024,
    grid: float = 0.25,
) -> dict[str, Any]:
    """Corners lie on a grid and scores are fractions of a power of two, so that f32 holds them exactly."""

    def snap(value: float) -> float:
        return round(value / grid) * grid

    drawn = []
    for _ in range(pictures):
        truth, found = [], []
        for _ in range(dice.randint(least, most)):
            x, y, w, h = (snap(dice.uniform(low, 90)) for low in (0, 0, grid * 2, grid * 2))
            kind = dice.randrange(classes)
            truth.append([kind, x, y, x + w, y + h, int(dice.random() < crowd)])
            for _ in range(dice.choice((0, 1, 1, 1, 2))):
                moved = [snap(side + dice.gauss(0, 4)) for side in (x, y, x + w, y + h)]
                if moved[0] < moved[2] and moved[1] < moved[3]:
                    said = kind if dice.random() < 0.9 else dice.randrange(classes)
                    found.append([said, (dice.randrange(scores) + 1) / 1024, *moved])
        if dice.random() < 0.5:
            found.append([dice.randrange(classes), (dice.randrange(scores) + 1) / 1024, 0.0, 0.0, 16.0, 16.0])
        drawn.append({"truth": truth, "found": found})
    return {"name": name, "pictures": drawn, **figures(drawn, classes)}


def figures(pictures: list[dict[str, Any]], classes: int) -> dict[str, Any]:
    """COCO's average precision: over overlaps of 0.5 to 0.95, of 0.5, of 0.75, and by class; −1 where there is none."""
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image, picture in enumerate(pictures, 1):
        for kind, x0, y0, x1, y1, crowd in picture["truth"]:
            box, number = [x0, y0, x1 - x0, y1 - y0], len(annotations) + 1
            common = {"image_id": image, "category_id": kind + 1, "bbox": box}
            annotations.append({**common, "id": number, "area": box[2] * box[3], "iscrowd": crowd})
        for kind, score, x0, y0, x1, y1 in picture["found"]:
            box = [x0, y0, x1 - x0, y1 - y0]
            results.append({"image_id": image, "category_id": kind + 1, "bbox": box, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": image} for image in range(1, len(pictures) + 1)],
            "categories": [{"id": kind + 1} for kind in range(classes)],
            "annotations": annotations,
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    by_class = [float(precision[:, :, kind].mean()) for kind in range(classes)]
    mean, at_50, at_75 = (float(value) for value in evaluation.stats[:3])
    return {"mean": mean, "at_50": at_50, "at_75": at_75, "classes": by_class}


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(text())
