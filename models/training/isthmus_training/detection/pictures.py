"""Pictures with boxes: finding them and their annotations, decoding, random training views.

A view is made of tiles, each a scaled part of a picture. Whatever is known of a picture, boxes or a teacher's answers,
follows its tiles into the view.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..data import SUFFIXES

FILL = 114
"""The grey around a picture that does not fill its view."""
FREE_TRIES, FREE_SIDES = 20, (0.3, 0.8)
"""How often a part without anything in it is looked for, and the fractions of a picture's sides that it has."""
LEAST_SIDE = 2.0
LEAST_SEEN = 0.25
"""What a view has to show of a thing's box for it to count: pixels of each side, and a fraction of its area."""


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A picture's file and what is in it: `boxes` [n, 4] (left, top, right, bottom in its pixels) of `classes` [n]; `known`
    [K] says which classes its annotations cover. Without annotations `known` is nowhere true."""

    path: Path
    boxes: np.ndarray
    classes: np.ndarray
    known: np.ndarray


def read(source: Path, labels: Sequence[str], renamed: Mapping[str, str]) -> list[Labelled]:
    """The pictures of a source, whose classes are ours once `renamed`; others are left out.

    `NAME.json` is COCO's format and `NAME.csv` a table of filename, class, xmin, ymin, xmax, ymax; pictures of both lie in
    the folder `NAME`, or beside the file where there is no such folder. A folder with `images`, `labels` and `classes.txt`
    is YOLO's text format. Any other folder holds pictures that nobody annotated, at any depth.
    """
    if source.suffix == ".json":
        return _coco(source, labels, renamed)
    if source.suffix == ".csv":
        return _table(source, labels, renamed)
    if (source / "labels").is_dir():
        return _yolo(source, labels, renamed)
    paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"{source} holds no pictures")
    nothing = _Annotations(labels, renamed, [])
    return [nothing.of(path, []) for path in paths]


class _Annotations:
    """A source's classes as ours."""

    def __init__(self, labels: Sequence[str], renamed: Mapping[str, str], names: Sequence[str]) -> None:
        own = [renamed.get(name, name) for name in names]
        self.ours = {name: labels.index(mine) for name, mine in zip(names, own, strict=True) if mine in labels}
        self.known = np.isin(np.arange(len(labels)), list(self.ours.values()))

    def of(self, path: Path, things: Sequence[tuple[str, Sequence[float]]]) -> Labelled:
        kept = [(self.ours[name], box) for name, box in things if name in self.ours]
        boxes = np.array([box for _, box in kept], np.float32).reshape(-1, 4)
        return Labelled(path, boxes, np.array([label for label, _ in kept], np.int64), self.known)


def _coco(source: Path, labels: Sequence[str], renamed: Mapping[str, str]) -> list[Labelled]:
    content = json.loads(source.read_text("utf-8"))
    names = {category["id"]: category["name"] for category in content["categories"]}
    found: dict[int, list[tuple[str, Sequence[float]]]] = {image["id"]: [] for image in content["images"]}
    for item in content["annotations"]:
        x, y, width, height = item["bbox"]
        found[item["image_id"]].append((names[item["category_id"]], (x, y, x + width, y + height)))
    annotations, folder = _Annotations(labels, renamed, list(names.values())), _folder(source)
    return [annotations.of(folder / image["file_name"], found[image["id"]]) for image in content["images"]]


def _folder(source: Path) -> Path:
    """Where the pictures of a file of annotations lie."""
    named = source.with_suffix("")
    return named if named.is_dir() else source.parent


def _table(source: Path, labels: Sequence[str], renamed: Mapping[str, str]) -> list[Labelled]:
    with source.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found: dict[str, list[tuple[str, Sequence[float]]]] = {row["filename"]: [] for row in rows}
    for row in rows:
        box = [float(row[key]) for key in ("xmin", "ymin", "xmax", "ymax")]
        found[row["filename"]].append((row["class"], box))
    annotations, folder = _Annotations(labels, renamed, sorted({row["class"] for row in rows})), _folder(source)
    return [annotations.of(folder / name, things) for name, things in found.items()]


def _yolo(source: Path, labels: Sequence[str], renamed: Mapping[str, str]) -> list[Labelled]:
    names = (source / "classes.txt").read_text("utf-8").split()
    annotations, pictures = _Annotations(labels, renamed, names), []
    for path in sorted(path for path in (source / "images").iterdir() if path.suffix.lower() in SUFFIXES):
        file = source / "labels" / f"{path.stem}.txt"
        lines = file.read_text("utf-8").splitlines() if file.is_file() else []
        with Image.open(path) as picture:
            width, height = picture.size
        things = []
        for number, *values in (line.split() for line in lines if line.strip()):
            x, y, w, h = (float(value) for value in values[:4])
            corners = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
            things.append((names[int(number)], corners))
        pictures.append(annotations.of(path, things))
    return pictures


def decode(path: Path) -> np.ndarray:
    """Upright RGB, u8 [H, W, 3]."""
    with Image.open(path) as picture:
        return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))


@dataclasses.dataclass(frozen=True)
class Tile:
    """Where a view shows a picture: a point (x, y) of the picture, mirrored first where it is, lies at `scale · (x, y) +
    offset`, and is seen within `seen` (left, top, right, bottom in whole pixels of the view)."""

    scale: float
    offset: tuple[float, float]
    seen: tuple[int, int, int, int]
    mirrored: bool = False


def letterbox(width: float, height: float, size: tuple[int, int]) -> Tile:
    """All of a picture in the middle of a view of `size` (width, height): scaled to touch its sides, rounded to whole
    pixels."""
    scale = min(size[0] / width, size[1] / height)
    w, h = (max(1, min(most, math.floor(side * scale + 0.5))) for side, most in zip((width, height), size, strict=True))
    left, top = (size[0] - w) // 2, (size[1] - h) // 2
    return Tile(scale, (left, top), (left, top, left + w, top + h))


def fitted(picture: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, Tile]:
    """All of a picture [H, W, 3] u8 as a network of this input's size takes it, as on the device, and where it lies."""
    view, tile = np.full((size[1], size[0], 3), FILL, np.uint8), letterbox(picture.shape[1], picture.shape[0], size)
    left, top, right, bottom = tile.seen
    whole = Image.fromarray(picture).resize((right - left, bottom - top), Image.Resampling.BILINEAR)
    view[top:bottom, left:right] = np.asarray(whole)
    return view, tile


@dataclasses.dataclass(frozen=True)
class Zoom:
    """How large views show their pictures, over the size at which a whole one just fits: drawn evenly in its logarithm
    between the two."""

    least: float
    most: float

    def drawn(self, rng: np.random.Generator) -> float:
        return float(np.exp(rng.uniform(np.log(self.least), np.log(self.most))))


def single(rng: np.random.Generator, picture: tuple[int, int], size: tuple[int, int], zoom: Zoom) -> Tile:
    """A part of a picture of this width and height, or all of it in some place of the view."""
    scale = min(size[0] / picture[0], size[1] / picture[1]) * zoom.drawn(rng)
    offset, seen = [], []
    for side, length in zip(size, picture, strict=True):
        room = side - length * scale
        at = float(rng.uniform(min(room, 0.0), max(room, 0.0)))
        offset.append(at)
        seen.append((max(0, round(at)), max(1, min(side, round(at + length * scale)))))
    (left, right), (top, bottom) = seen
    return Tile(scale, (offset[0], offset[1]), (left, top, right, bottom))


def free_part(rng: np.random.Generator, boxes: np.ndarray, picture: tuple[int, int]) -> np.ndarray | None:
    """A random part [4] of a picture of this width and height in which nothing lies, if one is found."""
    sides = np.array(picture, np.float32)
    for _ in range(FREE_TRIES):
        part = sides * rng.uniform(*FREE_SIDES, 2)
        corner = rng.uniform(0, 1, 2) * (sides - part)
        found = np.concatenate([corner, corner + part]).astype(np.float32)
        if not ((boxes[:, :2] < found[2:]) & (boxes[:, 2:] > found[:2])).all(1).any():
            return found
    return None


def magnified(part: np.ndarray, size: tuple[int, int]) -> Tile:
    """A part [4] of a picture in the middle of a view of `size`, and nothing else of it."""
    left, top, right, bottom = (float(value) for value in part)
    within = letterbox(right - left, bottom - top, size)
    x, y = within.offset
    return dataclasses.replace(within, offset=(x - left * within.scale, y - top * within.scale))


def quarters(rng: np.random.Generator, pictures: Sequence[tuple[int, int]], size: tuple[int, int], zoom: Zoom) -> list[Tile]:
    """Four pictures around a point of the view (the mosaic of YOLOv4, Bochkovskiy et al., 2020)."""
    middle = [round(float(rng.uniform(0.35, 0.65)) * side) for side in size]
    tiles = []
    for at, picture in enumerate(pictures):
        scale = min(size[0] / picture[0], size[1] / picture[1]) * zoom.drawn(rng)
        offset, seen = [], []
        for axis, after in enumerate((at % 2 == 1, at >= 2)):
            length, centre = picture[axis] * scale, middle[axis]
            offset.append(float(centre if after else centre - length))
            ends = (centre, min(size[axis], round(centre + length))) if after else (max(0, round(centre - length)), centre)
            seen.append(ends)
        (left, right), (top, bottom) = seen
        tiles.append(Tile(scale, (offset[0], offset[1]), (left, top, right, bottom)))
    return tiles


def draw(view: np.ndarray, picture: np.ndarray, tile: Tile) -> None:
    """Draws a picture [H, W, 3] u8 into the view [h, w, 3] u8 where the tile says."""
    left, top, right, bottom = tile.seen
    if right <= left or bottom <= top:
        return
    height, width = picture.shape[:2]
    (x, y), s = tile.offset, tile.scale
    box = (max(0.0, (left - x) / s), max(0.0, (top - y) / s), min(width, (right - x) / s), min(height, (bottom - y) / s))
    if tile.mirrored:
        box = (width - box[2], box[1], width - box[0], box[3])
    part = np.asarray(Image.fromarray(picture).resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=box))
    view[top:bottom, left:right] = part[:, ::-1] if tile.mirrored else part


def covered(tile: Tile, places: np.ndarray) -> np.ndarray:
    """Which of a view's places [n, 2] the tile shows, [n]."""
    left, top, right, bottom = tile.seen
    x, y = places.T
    return (x >= left) & (x < right) & (y >= top) & (y < bottom)


def moved(boxes: np.ndarray, width: int, tile: Tile) -> np.ndarray:
    """Boxes [n, 4] of a picture of this width where the view has them, not cut at what it shows."""
    if tile.mirrored:
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
    return boxes * tile.scale + np.array([*tile.offset, *tile.offset], np.float32)


def shown(boxes: np.ndarray, width: int, tile: Tile) -> tuple[np.ndarray, np.ndarray]:
    """Boxes as the view has them, cut at what it shows, and which of them [n] it shows enough of."""
    whole = moved(boxes, width, tile)
    left, top, right, bottom = tile.seen
    cut = np.clip(whole, [left, top, left, top], [right, bottom, right, bottom]).astype(np.float32)
    sides, areas = cut[:, 2:] - cut[:, :2], (whole[:, 2:] - whole[:, :2]).prod(1)
    return cut, (sides >= LEAST_SIDE).all(1) & (sides.prod(1) >= LEAST_SEEN * areas)
