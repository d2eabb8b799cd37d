"""Batches of random views with all that is known of what they show."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..config import Normalisation
from ..data import _jitter, normalise
from .losses import Places, Targets
from .network import STRIDES
from .pictures import (
    FILL,
    Labelled,
    Tile,
    Zoom,
    covered,
    decode,
    draw,
    fitted,
    free_part,
    magnified,
    quarters,
    shown,
    single,
)
from .teacher import CLASSES, FEATURES, HINTED, Cache, column, grids


@dataclasses.dataclass(frozen=True)
class How:
    """How views differ from their pictures: what `zoom` single ones and those of a mosaic have, `mosaic` the fraction of
    views of four pictures, `empty` of such as show a part of a picture with nothing in it, `jitter` of brightness,
    contrast and saturation."""

    zoom: Zoom = Zoom(0.6, 1.8)
    quarter: Zoom = Zoom(0.5, 1.0)
    mosaic: float = 0.3
    empty: float = 0.0
    jitter: float = 0.3
    mirror: bool = True


class Source(NamedTuple):
    """Pictures and a teacher's answers for them, if there is one. Of an epoch's views `share` a picture are of this source."""

    pictures: Sequence[Labelled]
    taught: Cache | None
    share: float


@dataclasses.dataclass(frozen=True)
class TrainSet:
    """All pictures that are learnt from. An epoch has `len` views; which picture a view shows hangs from its index and the
    epoch's seed."""

    sources: Sequence[Source]
    labels: Sequence[str]
    how: How

    @functools.cached_property
    def columns(self) -> list[int]:
        """The classes' among the teacher's scores."""
        return [column(label) for label in self.labels]

    @functools.cached_property
    def counts(self) -> list[int]:
        """How many of an epoch's views are of each source."""
        return [round(len(source.pictures) * source.share) for source in self.sources]

    def __len__(self) -> int:
        return sum(self.counts)

    @property
    def taught(self) -> bool:
        """Whether a teacher's answers are known."""
        return all(source.taught is not None for source in self.sources)

    def ask(self, teacher: Path, threads: int) -> None:
        """Asks a teacher about every picture that it has not been asked about."""
        for source in self.sources:
            if source.taught is not None:
                source.taught.fill(teacher, threads)

    def pick(self, index: int, rng: np.random.Generator) -> tuple[Source, int]:
        """The source and its picture that an epoch's view shows; of a source of which an epoch shows some, any that the
        teacher knows."""
        for source, count in zip(self.sources, self.counts, strict=True):
            if index < count:
                if source.share == 1:
                    return source, index
                return source, int(rng.integers(len(source.pictures) if source.taught is None else source.taught.done))
            index -= count
        raise IndexError

    def views(
        self, index: Sequence[int] | np.ndarray, size: tuple[int, int], seed: int, by: Normalisation
    ) -> tuple[torch.Tensor, Targets, Places]:
        """Views [n, 3, H, W] of the pictures at `index`, and what they show."""
        rng = np.random.default_rng(seed)
        points = grids(size, STRIDES)
        places = all_places(size)
        made = [self._view(int(at), size, points, rng) for at in index]
        x = normalise(torch.from_numpy(np.stack([view.pixels for view in made])), by)
        if self.how.jitter:
            x = _jitter(x, self.how.jitter, rng)
        return x.contiguous(memory_format=torch.channels_last), _joined(made), places

    def _view(self, index: int, size: tuple[int, int], points: list[np.ndarray], rng: np.random.Generator) -> _View:
        view = _View.blank(size, points, len(self.labels))
        how = self.how
        chosen = [self.pick(index, rng)]
        if rng.random() < how.mosaic:
            chosen += [self.pick(int(rng.integers(len(self))), rng) for _ in range(3)]
        pictures = [decode(source.pictures[at].path) for source, at in chosen]
        sizes = [(picture.shape[1], picture.shape[0]) for picture in pictures]
        tiles = self._tiles(chosen, sizes, size, rng)
        for (source, at), picture, tile in zip(chosen, pictures, tiles, strict=True):
            draw(view.pixels, picture, tile)
            self._tell(view, source, at, picture, (tile, points))
        return view

    def _tiles(
        self, chosen: list[tuple[Source, int]], pictures: list[tuple[int, int]], size: tuple[int, int], rng: np.random.Generator
    ) -> list[Tile]:
        """Where a view of `size` shows the chosen pictures, of these widths and heights."""
        how, labelled = self.how, chosen[0][0].pictures[chosen[0][1]]
        if len(chosen) == 1 and labelled.known.all() and rng.random() < how.empty:
            part = free_part(rng, labelled.boxes, pictures[0])
            if part is not None:
                return [magnified(part, size)]
        tiles = quarters(rng, pictures, size, how.quarter) if len(chosen) > 1 else [single(rng, pictures[0], size, how.zoom)]
        return [dataclasses.replace(tile, mirrored=how.mirror and bool(rng.random() < 0.5)) for tile in tiles]

    def _tell(self, view: _View, source: Source, at: int, picture: np.ndarray, where: tuple[Tile, list[np.ndarray]]) -> None:
        """Fills in what is known of a tile's picture."""
        tile, points = where
        labelled, size = source.pictures[at], (picture.shape[1], picture.shape[0])
        view.known[covered(tile, np.concatenate(points))] = labelled.known
        if source.taught is not None:
            seen = source.taught.seen(at, size, tile, points, STRIDES)
            view.others[seen.inside], view.frames[seen.inside] = seen.scores[seen.inside], seen.boxes[seen.inside]
            view.scores[seen.inside] = seen.scores[seen.inside][:, self.columns]
            view.hints[seen.hinted], view.hinted[seen.hinted] = seen.hints[seen.hinted], True
        boxes, enough = shown(labelled.boxes, size[0], tile)
        view.things.append(boxes[enough])
        view.classes.append(labelled.classes[enough])


def all_places(size: tuple[int, int]) -> Places:
    """Those of the detector's grids over a view of `size`."""
    points = grids(size, STRIDES)
    strides = np.repeat(np.array(STRIDES, np.float32), [len(grid) for grid in points])
    return Places(torch.from_numpy(np.concatenate(points)), torch.from_numpy(strides))


Shown = tuple[Tile, tuple[int, int]]
"""Where a whole picture lies in its view, and its own width and height."""


def letterboxed(pictures: Sequence[Labelled], size: tuple[int, int]) -> tuple[np.ndarray, list[Shown]]:
    """Whole pictures as a network takes them: u8 [n, H, W, 3]."""
    views, tiles = [], []
    for labelled in pictures:
        picture = decode(labelled.path)
        view, tile = fitted(picture, size)
        tiles.append((tile, (picture.shape[1], picture.shape[0])))
        views.append(view)
    return np.stack(views), tiles


def empty(pictures: Sequence[Labelled], size: tuple[int, int], seed: int) -> np.ndarray:
    """Of each picture a part with nothing in it, where one is found: u8 [n, H, W, 3]."""
    views = []
    for at, labelled in enumerate(pictures):
        picture = decode(labelled.path)
        part = free_part(np.random.default_rng([seed, at]), labelled.boxes, (picture.shape[1], picture.shape[0]))
        if part is not None:
            view = np.full((size[1], size[0], 3), FILL, np.uint8)
            draw(view, picture, magnified(part, size))
            views.append(view)
    return np.array(views, np.uint8).reshape(-1, size[1], size[0], 3)


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
