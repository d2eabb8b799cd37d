"""Batches of random views with all that is known of what they show."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from ..config import Normalisation
from ..data import _jitter, normalise
from .losses import Places, Targets
from .network import STRIDES
from .pictures import FILL, Labelled, Tile, Zoom, decode, draw, quarters, shown, single
from .teacher import CLASSES, FEATURES, HINTED, Cache, grids

LABELS_OF_TEACHER = {
    "person": 0, "bicycle": 1, "car": 2, "motorbike": 3, "motorcycle": 3, "bus": 5, "train": 6, "truck": 7, "boat": 8,
    "traffic light": 9, "cat": 15, "dog": 16,
}  # fmt: skip
"""Those of COCO's classes, in its order, that are known here by name."""


@dataclasses.dataclass(frozen=True)
class How:
    """How views differ from their pictures: what `zoom` single ones and those of a mosaic have, `mosaic` the fraction of
    views of four pictures, `jitter` of brightness, contrast and saturation."""

    zoom: Zoom = Zoom(0.6, 1.8)
    quarter: Zoom = Zoom(0.5, 1.0)
    mosaic: float = 0.3
    jitter: float = 0.3
    mirror: bool = True


class Source(NamedTuple):
    """Pictures and a teacher's answers for them. Of an epoch's views `share` per picture are of this source."""

    pictures: Sequence[Labelled]
    taught: Cache
    share: float


class TrainSet:
    """All pictures that are learnt from. An epoch has `len` views; which picture a view shows hangs from its index and the
    epoch's seed."""

    def __init__(self, sources: Sequence[Source], labels: Sequence[str], how: How) -> None:
        self.sources, self.labels, self.how = sources, labels, how
        self.columns = [LABELS_OF_TEACHER[label] for label in labels]
        self.counts = [round(len(source.pictures) * source.share) for source in sources]

    def __len__(self) -> int:
        return sum(self.counts)

    def pick(self, index: int, rng: np.random.Generator) -> tuple[Source, int]:
        for source, count in zip(self.sources, self.counts, strict=True):
            if index < count:
                known = source.taught.done
                whole = count == len(source.pictures)
                return source, index if whole else int(rng.integers(known))
            index -= count
        raise IndexError

    def views(
        self, index: Sequence[int], size: tuple[int, int], seed: int, by: Normalisation
    ) -> tuple[torch.Tensor, Targets, Places]:
        """Views [n, 3, H, W] of the pictures at `index`, and what they show."""
        rng = np.random.default_rng(seed)
        points = grids(size, STRIDES)
        places = Places(
            torch.from_numpy(np.concatenate(points)),
            torch.from_numpy(np.repeat(np.array(STRIDES, np.float32), [len(p) for p in points])),
        )
        made = [self._view(int(at), size, points, rng) for at in index]
        x = normalise(torch.from_numpy(np.stack([view.pixels for view in made])), by)
        if self.how.jitter:
            x = _jitter(x, self.how.jitter, rng)
        return x.contiguous(memory_format=torch.channels_last), _joined(made), places

    def _view(self, index: int, size: tuple[int, int], points: list[np.ndarray], rng: np.random.Generator) -> _View:
        view = _View.blank(size, points, len(self.labels))
        how = self.how
        # Mosaics are of what is annotated.
        chosen = [self.pick(index, rng)]
        if rng.random() < how.mosaic:
            chosen += [self.pick(int(rng.integers(len(self))), rng) for _ in range(3)]
        pictures = [decode(source.pictures[at].path) for source, at in chosen]
        sizes = [(picture.shape[1], picture.shape[0]) for picture in pictures]
        if len(chosen) > 1:
            tiles = quarters(rng, sizes, size, how.quarter)
        else:
            tiles = [single(rng, sizes[0], size, how.zoom)]
        for (source, at), picture, tile in zip(chosen, pictures, tiles, strict=True):
            if how.mirror and rng.random() < 0.5:
                tile = dataclasses.replace(tile, mirrored=True)
            draw(view.pixels, picture, tile)
            self._tell(view, source, at, picture, (tile, points))
        return view

    def _tell(self, view: _View, source: Source, at: int, picture: np.ndarray, where: tuple[Tile, list[np.ndarray]]) -> None:
        """Fills in what is known of a tile's picture."""
        tile, points = where
        labelled, size = source.pictures[at], (picture.shape[1], picture.shape[0])
        seen = source.taught.seen(at, size, tile, points, STRIDES)
        view.others[seen.inside], view.frames[seen.inside] = seen.scores[seen.inside], seen.boxes[seen.inside]
        view.scores[seen.inside] = seen.scores[seen.inside][:, self.columns]
        view.hints[seen.hinted], view.hinted[seen.hinted] = seen.hints[seen.hinted], True
        view.known[seen.inside] = labelled.known
        boxes, enough = shown(labelled.boxes, size[0], tile)
        view.things.append(boxes[enough])
        view.classes.append(labelled.classes[enough])


@dataclasses.dataclass
class _View:
    pixels: np.ndarray
    things: list[np.ndarray]
    classes: list[np.ndarray]
    known: np.ndarray
    scores: np.ndarray
    others: np.ndarray
    frames: np.ndarray
    hints: np.ndarray
    hinted: np.ndarray

    @classmethod
    def blank(cls, size: tuple[int, int], points: list[np.ndarray], classes: int) -> _View:
        n, m = (sum(len(p) for p, s in zip(points, STRIDES, strict=True) if s in some) for some in (STRIDES, HINTED))
        return cls(
            np.full((size[1], size[0], 3), FILL, np.uint8),
            [],
            [],
            np.ones((n, classes), bool),
            np.zeros((n, classes), np.float32),
            np.zeros((n, CLASSES), np.float32),
            np.zeros((n, 4), np.float32),
            np.zeros((m, FEATURES), np.float32),
            np.zeros(m, bool),
        )


def _joined(views: Sequence[_View]) -> Targets:
    things = [np.concatenate(view.things) for view in views]
    most = max(1, *(len(boxes) for boxes in things)) if len(things) > 1 else max(1, len(things[0]))
    boxes, classes = np.zeros((len(views), most, 4), np.float32), np.full((len(views), most), -1, np.int64)
    for at, (view, found) in enumerate(zip(views, things, strict=True)):
        boxes[at, : len(found)], classes[at, : len(found)] = found, np.concatenate(view.classes)
    keys = ("known", "scores", "others", "frames", "hints", "hinted")
    rest = {key: torch.from_numpy(np.stack([getattr(view, key) for view in views])) for key in keys}
    return Targets(torch.from_numpy(boxes), torch.from_numpy(classes), **rest)
