"""Outside detectors on street photos: ONNX Runtime and the reference decoder against the Rust crate's engine and decoder.

`python models/training/tests/test_detectors.py` prints the comparison and each detector's average precision. It needs
`cargo build --release -p isthmus-models --example boxes`, and photos and weights, which are not part of this repository:
put them in `../shared/data` beside it, or name the folder above `data` in `ISTHMUS_SHARED`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tomli_w
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from isthmus_training.boxes import Detector, overlap

ROOT = Path(__file__).parents[3]
SHARED = Path(os.environ.get("ISTHMUS_SHARED", ROOT.parent / "shared")) / "data"
EXAMPLE = ROOT / "target" / "release" / "examples" / "boxes"

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "channels": "rgb"}
BYTES = {"mean": [0.0, 0.0, 0.0], "std": [1 / 255] * 3, "channels": "bgr"}
FRACTIONS = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0], "channels": "bgr"}
AROUND_ZERO = {"mean": [127 / 255] * 3, "std": [128 / 255] * 3, "channels": "rgb"}

PYRAMID = {"layout": "distribution", "strides": [8, 16, 32, 64], "bins": 8, "iou": 0.6}
FACES = {"layout": "ssd", "background": "first", "iou": 0.3}
FACE_SIZES = {8: (10, 16, 24), 16: (32, 48), 32: (64, 96), 64: (128, 192, 256)}
FACE_PRIORS = [{"stride": stride, "sizes": [[side, side] for side in sides]} for stride, sides in FACE_SIZES.items()]

COCO_NAMES = {0: "person", 2: "car", 3: "motorbike", 5: "bus", 7: "truck"}
"""Classes of COCO detectors, by the names of the photos' boxes."""


@dataclasses.dataclass(frozen=True)
class Network:
    """A detector in `weights`, the size of its input, what goes in and how boxes come out."""

    file: str
    size: tuple[int, int]
    classes: int
    input: dict[str, Any]
    boxes: dict[str, Any]


NETWORKS = [
    Network("picodet_xs/picodet_xs_416.onnx", (416, 416), 80, IMAGENET, PYRAMID),
    Network("picodet_xs/picodet_xs_320.onnx", (320, 320), 80, IMAGENET, PYRAMID),
    Network("yolox_nano/yolox_nano.onnx", (416, 416), 80, BYTES, {"layout": "yolox", "iou": 0.45}),
    Network("fastestdet_coco/FastestDet.onnx", (352, 352), 80, FRACTIONS, {"layout": "fastestdet", "iou": 0.45}),
    Network("ultralight_face/version-RFB-320.onnx", (320, 240), 1, AROUND_ZERO, {**FACES, "boxes": "corners"}),
    Network(
        "ultralight_face/version-slim-320_without_postprocessing.onnx",
        (320, 240),
        1,
        AROUND_ZERO,
        {**FACES, "boxes": "offsets", "clip_priors": True, "priors": FACE_PRIORS},
    ),
]


@dataclasses.dataclass(frozen=True)
class Letterboxed:
    """A picture in its network's size, and how it came there."""

    path: Path
    scale: float
    left: int
    top: int


def letterbox(source: Path, size: tuple[int, int], folder: Path) -> Letterboxed:
    """Grey beside it; lossless, because decoders of JPEG differ."""
    picture = Image.open(source).convert("RGB")
    scale = min(size[0] / picture.width, size[1] / picture.height)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    boxed = Image.new("RGB", size, (114, 114, 114))
    boxed.paste(picture.resize((width, height), Image.Resampling.BILINEAR), (left, top))
    path = folder / f"{source.stem}.png"
    boxed.save(path, compress_level=1)
    return Letterboxed(path, scale, left, top)


def rust(net: Network, confidence: float, pictures: Sequence[Path], folder: Path) -> list[np.ndarray]:
    """Boxes [n, 6] of each picture, by the Rust crate."""
    detector = folder / "detector.toml"
    spec = {"confidence": confidence, **net.boxes}
    detector.write_text(tomli_w.dumps({**net.input, "classes": net.classes, "boxes": spec}))
    command = [EXAMPLE, SHARED / "weights" / net.file, detector, *pictures]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return [np.array(json.loads(line)["boxes"], np.float64).reshape(-1, 6) for line in lines]


def reference(net: Network, confidence: float, pictures: Sequence[Path]) -> list[np.ndarray]:
    """The same by ONNX Runtime and the reference decoder."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(SHARED / "weights" / net.file, options)
    (name,) = (given.name for given in session.get_inputs())
    detector = Detector({"confidence": confidence, **net.boxes}, net.size, net.classes)
    mean, std = (np.array(net.input[key], np.float32) for key in ("mean", "std"))
    found = []
    for path in pictures:
        pixels = np.asarray(Image.open(path), np.float32)[..., :: -1 if net.input["channels"] == "bgr" else 1]
        given = ((pixels / 255 - mean) / std).transpose(2, 0, 1)[None]
        outputs = session.run(None, {name: np.ascontiguousarray(given, np.float32)})
        found.append(detector.decode({str(at): output[0] for at, output in enumerate(outputs)}))
    return found


def differences(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Least overlap and greatest difference of scores of boxes that should be the same."""
    least, greatest = 1.0, 0.0
    assert len(ours) == len(theirs), (ours, theirs)
    for found in theirs:
        same = ours[ours[:, 0] == found[0]]
        assert len(same), found
        overlaps = overlap(found[2:], same[:, 2:])
        nearest = np.lexsort((abs(same[:, 1] - found[1]), -overlaps.round(3)))[0]
        least = min(least, float(overlaps[nearest]))
        greatest = max(greatest, abs(float(same[nearest, 1] - found[1])))
    return least, greatest


def needed() -> None:
    """Skips where there is nothing to run."""
    if not (SHARED / "weights").is_dir():
        pytest.skip("no shared weights; set ISTHMUS_SHARED to the folder that holds data/weights")
    if not EXAMPLE.is_file():
        pytest.skip("no example; cargo build --release -p isthmus-models --example boxes")


@pytest.mark.parametrize("net", NETWORKS, ids=lambda net: Path(net.file).stem)
def test_the_crate_gives_the_references_boxes(net: Network, tmp_path: Path) -> None:
    needed()
    least, greatest, count = compare(net, photos()[:24], tmp_path)
    assert count >= 5
    assert least >= 0.99
    assert greatest <= 1e-3


def photos() -> list[Path]:
    return sorted((SHARED / "highway" / "val").glob("*.jpg"))


def compare(net: Network, sources: Sequence[Path], folder: Path) -> tuple[float, float, int]:
    """Least overlap, greatest difference of scores, and boxes."""
    pictures = [letterbox(source, net.size, folder).path for source in sources]
    ours, theirs = rust(net, 0.35, pictures, folder), reference(net, 0.35, pictures)
    pairs = [differences(one, other) for one, other in zip(ours, theirs, strict=True)]
    return min(least for least, _ in pairs), max(greatest for _, greatest in pairs), sum(map(len, theirs))


def precision(net: Network, folder: Path) -> list[float]:
    """COCO's figures of the Rust crate's boxes of all photos."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(SHARED / "highway" / "val.json")
    kinds = {kind["name"]: kind["id"] for kind in truth.dataset["categories"]}
    images = truth.dataset["images"]
    boxed = [letterbox(SHARED / "highway" / "val" / image["file_name"], net.size, folder) for image in images]
    results = []
    for image, picture, found in zip(images, boxed, rust(net, 0.01, [it.path for it in boxed], folder), strict=True):
        for label, score, *corners in found:
            if int(label) not in COCO_NAMES:
                continue
            sides = np.array([image["width"], image["height"]] * 2)
            shift = np.array([picture.left, picture.top] * 2)
            x0, y0, x1, y1 = ((np.array(corners) - shift) / picture.scale).clip(0, sides).tolist()
            kind = kinds[COCO_NAMES[int(label)]]
            box = [x0, y0, x1 - x0, y1 - y0]
            results.append({"image_id": image["id"], "category_id": kind, "bbox": box, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [round(float(figure), 4) for figure in evaluation.stats[:2]]


def main() -> None:
    import tempfile

    for net in NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            least, greatest, count = compare(net, photos()[:24], Path(folder))
            print(f"{net.file}: {count} boxes in 24 photos, IoU at least {least:.5f}, scores within {greatest:.1e}")
            if net.classes == 80:
                print(f"{net.file}: mAP and AP50 of the photos {precision(net, Path(folder))}")


if __name__ == "__main__":
    main()
