"""What all training of a detector shares: its pictures, and a teacher's answers for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..config import Config
from ..workers import Workers
from .pictures import Labelled, read
from .teacher import Cache
from .views import How, Source, TrainSet


@dataclasses.dataclass(frozen=True)
class Run:
    """As `loop.Common`. `train` gives views to learn from, `val` are the pictures that validate."""

    config: Config
    train: TrainSet
    val: Sequence[Labelled]
    workers: Workers
    folder: Path
    start: Path | None = None

    @property
    def epoch(self) -> int:
        return len(self.train)


def renamed(config: Config) -> Mapping[str, str]:
    """What sources call our classes."""
    pairs = (name.partition("=") for name in config.detection.renamed)
    return {theirs: ours for theirs, _, ours in pairs}


def validation(config: Config, data: Path) -> list[Labelled]:
    return read(data / config.detection.val, config.detection.labels, renamed(config))


def training(config: Config, data: Path, answers: Path | None) -> TrainSet:
    """The pictures to learn from, and what is known of a teacher's answers in the folder `answers`, if there is one."""
    settings, names = config.detection, renamed(config)
    sources = []
    for share, paths in ((1.0, settings.boxes), (settings.plain_share, settings.plain)):
        for path in paths:
            pictures = read(data / path, settings.labels, names)
            cache = Cache(answers, path.replace("/", "_").partition(".")[0], pictures) if answers else None
            sources.append(Source(pictures, cache, share))
    full = config.full
    how = How(mosaic=settings.mosaic, empty=settings.empty, jitter=full.jitter, mirror=full.mirror)
    return TrainSet(sources, settings.labels, how)
