"""An outside detector's answers in every place of its grids, asked once a picture and kept in files.

A view of a picture looks its answers up: each place of a grid of ours takes those of the teacher's place nearest to it, on
the teacher's grid whose stride is nearest to ours in pixels of the picture. So no teacher runs while a network trains.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from .pictures import Labelled, Tile, covered, decode, fitted, letterbox

SIZE = 416
STRIDES = (8, 16, 32, 64)
HINTED = (16, 32)
BINS = 8
COCO = [
    "person",
    "bicycle",
    "car",
    "motorcycle",
    "airplane",
    "bus",
    "train",
    "truck",
    "boat",
    "traffic light",
    "fire hydrant",
    "stop sign",
    "parking meter",
    "bench",
    "bird",
    "cat",
    "dog",
    "horse",
    "sheep",
    "cow",
    "elephant",
    "bear",
    "zebra",
    "giraffe",
    "backpack",
    "umbrella",
    "handbag",
    "tie",
    "suitcase",
    "frisbee",
    "skis",
    "snowboard",
    "sports ball",
    "kite",
    "baseball bat",
    "baseball glove",
    "skateboard",
    "surfboard",
    "tennis racket",
    "bottle",
    "wine glass",
    "cup",
    "fork",
    "knife",
    "spoon",
    "bowl",
    "banana",
    "apple",
    "sandwich",
    "orange",
    "broccoli",
    "carrot",
    "hot dog",
    "pizza",
    "donut",
    "cake",
    "chair",
    "couch",
    "potted plant",
    "bed",
    "dining table",
    "toilet",
    "tv",
    "laptop",
    "mouse",
    "remote",
    "keyboard",
    "cell phone",
    "microwave",
    "oven",
    "toaster",
    "sink",
    "refrigerator",
    "book",
    "clock",
    "vase",
    "scissors",
    "teddy bear",
    "hair drier",
    "toothbrush",
]
"""The teacher's classes in its order."""
OTHER_NAMES = {"motorbike": "motorcycle", "aeroplane": "airplane", "sofa": "couch", "tvmonitor": "tv"}
CLASSES, FEATURES = len(COCO), 96
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
SIDES = [-(-SIZE // stride) for stride in STRIDES]
PLACES = sum(side * side for side in SIDES)
HINTS = sum((SIZE // stride) ** 2 for stride in HINTED)
SHAPES = {"scores": (PLACES, CLASSES), "boxes": (PLACES, 4), "hints": (HINTS, FEATURES)}
KINDS = {"scores": np.uint8, "boxes": np.float16, "hints": np.float16}
FEATURE_TENSORS = ["hardswish_86.tmp_0", "hardswish_92.tmp_0"]


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a teacher says of the places of a view: `scores` [n, 80] f32, `boxes` [n, 4] f32 in the view, `hints` [m, 96] at
    the places of the hinted strides; and `inside` [n] and `hinted` [m], where a picture is seen at all."""

    scores: np.ndarray
    boxes: np.ndarray
    hints: np.ndarray
    inside: np.ndarray
    hinted: np.ndarray


def column(label: str) -> int:
    """Which of the teacher's scores a class of ours has."""
    name = OTHER_NAMES.get(label, label)
    if name not in COCO:
        raise ValueError(f"the teacher knows no {label}")
    return COCO.index(name)


class Cache:
    """The answers for a list of pictures, in three files of a folder, as far as they are known."""

    def __init__(self, folder: Path, name: str, pictures: Sequence[Labelled]) -> None:
        self.pictures, self.counter = pictures, folder / f"{name}.done"
        folder.mkdir(parents=True, exist_ok=True)
        self.arrays: dict[str, np.ndarray] = {}
        for kind, shape in SHAPES.items():
            file, whole = folder / f"{name}.{kind}", (len(pictures), *shape)
            self.arrays[kind] = np.memmap(file, KINDS[kind], "r+" if file.exists() else "w+", shape=whole)

    @property
    def done(self) -> int:
        return int(self.counter.read_text()) if self.counter.exists() else 0

    def fill(self, model: Path, threads: int) -> None:
        """Asks the detector in `model` about the pictures that are left."""
        if self.done == len(self.pictures):
            return
        teacher = PicoDet(model, threads)
        for at in range(self.done, len(self.pictures)):
            scores, boxes, hints = teacher.answer(decode(self.pictures[at].path))
            # Square roots keep what matters of small scores.
            self.arrays["scores"][at] = np.rint(np.sqrt(scores) * 255)
            self.arrays["boxes"][at], self.arrays["hints"][at] = boxes, hints
            if (at + 1) % 100 == 0 or at + 1 == len(self.pictures):
                self.counter.write_text(str(at + 1))

    def seen(self, at: int, picture: tuple[int, int], tile: Tile, places: Sequence[np.ndarray], strides: Sequence[int]) -> Seen:
        """Of the picture `at`, of this width and height, at a view's `places` [n, 2] of each of its `strides`."""
        own = letterbox(*picture, (SIZE, SIZE))
        found = [_nearest(picture, own, tile, points, stride) for points, stride in zip(places, strides, strict=True)]
        index, inside = (np.concatenate(values) for values in zip(*((i, s) for i, s, _ in found), strict=True))
        hints = [(hint, s) for stride, (_, s, hint) in zip(strides, found, strict=True) if stride in HINTED]
        hint_index, hinted = (np.concatenate(values) for values in zip(*hints, strict=True))
        scores = np.square(self.arrays["scores"][at][index].astype(np.float32) / 255)
        boxes = (self.arrays["boxes"][at][index].astype(np.float32) - np.tile(own.offset, 2)) / own.scale
        if tile.mirrored:
            boxes = np.stack([picture[0] - boxes[:, 2], boxes[:, 1], picture[0] - boxes[:, 0], boxes[:, 3]], 1)
        boxes = boxes * tile.scale + np.tile(tile.offset, 2)
        left, top, right, bottom = tile.seen
        boxes = np.clip(boxes, [left, top, left, top], [right, bottom, right, bottom]).astype(np.float32)
        return Seen(scores, boxes, self.arrays["hints"][at][hint_index].astype(np.float32), inside, hinted)


def _nearest(
    picture: tuple[int, int], own: Tile, tile: Tile, places: np.ndarray, stride: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The teacher's places nearest to a view's, which of them the tile shows, and the same among the hinted ones."""
    shown = covered(tile, places)
    points = (places - np.array(tile.offset)) / tile.scale
    if tile.mirrored:
        points = np.stack([picture[0] - points[:, 0], points[:, 1]], 1)
    points = points * own.scale + np.array(own.offset)
    wished = stride * own.scale / tile.scale
    level = int(np.clip(round(np.log2(wished)) - 3, 0, len(STRIDES) - 1))
    return _index(points, level, STRIDES, SIDES), shown, _index(points, int(np.clip(level - 1, 0, 1)), HINTED, SIDES[1:3])


def _index(points: np.ndarray, level: int, strides: Sequence[int], sides: Sequence[int]) -> np.ndarray:
    side = sides[level]
    column, row = np.clip(points // strides[level], 0, side - 1).astype(np.int64).T
    return sum(s * s for s in sides[:level]) + row * side + column


class PicoDet:
    """A PicoDet (Yu et al., 2021) of COCO's 80 classes at 416 × 416, with the features that its heads read as two more
    outputs."""

    def __init__(self, model: Path, threads: int) -> None:
        graph = onnx.load(model)
        self.outputs = [output.name for output in graph.graph.output]
        for name in FEATURE_TENSORS:
            graph.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        self.session = onnxruntime.InferenceSession(graph.SerializeToString(), options, ["CPUExecutionProvider"])
        self.centres = centres((SIZE, SIZE), STRIDES)

    def answer(self, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scores [3598, 80], boxes [3598, 4] in pixels of the letterboxed picture, and hints [845, 96]."""
        view, _ = fitted(picture, (SIZE, SIZE))
        x = ((view.astype(np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1)[None]
        found = self.session.run(self.outputs + FEATURE_TENSORS, {self.session.get_inputs()[0].name: x})
        levels = len(STRIDES)
        scores = np.concatenate([values[0] for values in found[:levels]])
        bins = np.concatenate([values[0] for values in found[levels : 2 * levels]]).reshape(-1, 4, BINS)
        likely = np.exp(bins - bins.max(2, keepdims=True))
        steps = (likely / likely.sum(2, keepdims=True)) @ np.arange(BINS, dtype=np.float32)
        distances = steps * np.repeat(STRIDES, [side * side for side in SIDES])[:, None]
        boxes = np.concatenate([self.centres - distances[:, :2], self.centres + distances[:, 2:]], 1)
        hints = np.concatenate([values[0].reshape(FEATURES, -1).T for values in found[2 * levels :]])
        return scores, boxes, hints


def centres(size: tuple[int, int], strides: Sequence[int]) -> np.ndarray:
    """The middle (x, y) [n, 2] of each place of the grids over a view of `size`, row by row."""
    return np.concatenate(grids(size, strides))


def grids(size: tuple[int, int], strides: Sequence[int]) -> list[np.ndarray]:
    """The same for each grid."""
    found = []
    for stride in strides:
        rows, columns = np.mgrid[: -(-size[1] // stride), : -(-size[0] // stride)]
        found.append(((np.stack([columns, rows], 2).reshape(-1, 2) + 0.5) * stride).astype(np.float32))
    return found
