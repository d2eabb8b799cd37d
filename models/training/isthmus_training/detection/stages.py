"""The stages that train a detector's split network: the kit's own, with boxes in place of classes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from .. import warm_start
from ..config import Stage
from ..data import normalise
from ..loop import Loop, MicroBatch
from ..losses import feature_error
from ..recalibrate import fresh_statistics
from ..stages import StageObjective, Weighted
from ..student import Point, Points, Student, latest
from .full import BATCH, on, precision, task_losses
from .losses import Places, Targets, exit_loss
from .network import Answers, Detector
from .run import Run
from .views import empty, letterboxed

SETTLING = 48
"""Views that statistics and scales are measured on."""
RECALL = 0.99
"""Of pictures with something in them, what an exit may not miss where it filters those without."""


class Batch(NamedTuple):
    """Views `x` [N, 3, H, W] and what they show, and the full network's `features`, where the stage learns them."""

    x: torch.Tensor
    targets: Targets
    places: Places
    features: torch.Tensor | None


def train(run: Run, network: Detector) -> None:
    """Runs the enabled stages; `stage1.pt` and so on in the run's folder are the checkpoints that a stopped run continues.
    The split network starts as the full one, or as another run's."""
    config = run.config
    torch.manual_seed(config.seed + 1)
    student = Student(config, network.to(run.workers.device).eval().requires_grad_(False), None)
    if run.start and not warm_start.is_bundle(run.start):
        student.load_state_dict(latest(run.start))
    student.to(run.workers.device).to(memory_format=torch.channels_last)
    if not run.start or warm_start.is_bundle(run.start):
        settle(run, student)
    for number, stage in config.stages.items():
        Loop(DetectorStage(run, number, stage, student, network), run).train()


@torch.no_grad()
def settle(run: Run, student: Student) -> None:
    """Gives each width of a split network that was the full one so far statistics of its own activations, and scales that
    its latents fit into."""
    config, device = run.config, run.workers.device
    size, count = (config.data.size[0], config.data.size[1]), min(SETTLING, run.epoch)
    index = np.random.default_rng(config.seed).permutation(run.epoch)[:count]
    x = run.train.views(index, size, config.seed, config.data.normalisation)[0].to(device)
    with fresh_statistics([student.head.eval(), student.adapter.eval()]):
        for width in config.split.widths:
            latents, _ = student.head(x, width)
            student.quantiser.fit(latents, width)
            student(x, Points.alike((width, config.split.channels[-1], max(config.split.bits)), count, device), False)


class DetectorStage(StageObjective[Batch]):
    """A stage of a detector's split network."""

    def __init__(self, run: Run, number: int, stage: Stage, student: Student, network: Detector) -> None:
        super().__init__(run, number, stage, student)
        self.run, self.network = run, network

    def batch(self, part: MicroBatch) -> Batch:
        run = self.run
        x, targets, places = on(run.train.views(part.index, part.size, part.seed, run.config.data.normalisation), run)
        features = None
        if self.stage.feature:
            with torch.no_grad(), run.workers.autocast():
                features = self.network.prefix(x)
        return Batch(x, targets, places, features)

    def pictures(self, part: MicroBatch) -> torch.Tensor:
        return self.run.train.views(part.index, part.size, part.seed, self.run.config.data.normalisation)[0].to(
            self.run.workers.device
        )

    def losses(
        self, batch: Batch, features: torch.Tensor, exit_logits: torch.Tensor | None, widest: torch.Tensor | None
    ) -> tuple[Weighted, torch.Tensor | None]:
        stage, weights = self.stage, self.run.config.detection
        losses: Weighted = {}
        if stage.exit and exit_logits is not None:
            size = (batch.x.shape[3], batch.x.shape[2])
            losses["exit"] = (stage.exit, exit_loss(exit_logits.float(), batch.targets, size))
        if stage.feature and batch.features is not None:
            losses["feature"] = (stage.feature, feature_error(features, batch.features))
        if stage.task:
            answers = self.student.trunk(features)
            parts = task_losses(answers, batch.targets, batch.places, self.run.train.taught)
            losses |= {key: (stage.task * getattr(weights, key), value) for key, value in parts.items()}
        return losses, None

    def measure(self, kept: Student, done: bool) -> dict[str, float]:
        kept.eval()
        config = self.run.config
        values = {}
        if self.stage.whole:
            values["whole_mAP"], _ = precision(self.run, lambda x: kept.trunk(kept.whole(x)[0]))
        chosen = _sampled(self.run) if done else [_middle(self.run, config.split.widths[-1])]
        for point in chosen:
            width, channels, bits = point
            values[f"mAP_w{width}_c{channels}_b{bits}"], _ = precision(self.run, _answering(kept, point))
        for width in config.split.widths if done else config.split.widths[-1:]:
            values[f"filtered_w{width}"] = filtered(self.run, kept, width)
        return values


def _middle(run: Run, width: int) -> Point:
    split = run.config.split
    return width, split.channels[len(split.channels) // 2], sorted(split.bits)[len(split.bits) // 2]


def _sampled(run: Run) -> list[Point]:
    split = run.config.split
    ends = [(width, split.channels[-1], max(split.bits)) for width in split.widths]
    return [*ends, *(_middle(run, width) for width in split.widths)]


class _answering:
    """What the split network answers at a point."""

    def __init__(self, student: Student, point: Point) -> None:
        self.student, self.point = student, point

    def __call__(self, x: torch.Tensor) -> Answers:
        features, *_ = self.student(x, Points.alike(self.point, len(x), x.device), False)
        return self.student.trunk(features)


def filtered(run: Run, student: Student, width: int) -> float:
    """The fraction of pictures without anything that the exit of a width tells from those with, when it is to keep
    `RECALL` of the latter."""
    size = (run.config.data.size[0], run.config.data.size[1])

    def likely(pixels: np.ndarray) -> np.ndarray:
        with torch.no_grad(), run.workers.autocast():
            x = normalise(torch.from_numpy(pixels), run.config.data.normalisation)
            return student.head(x.to(run.workers.device), width)[1].float().sigmoid().amax(1).cpu().numpy()

    something = [labelled for labelled in run.val if len(labelled.boxes)]
    there = [likely(letterboxed(something[at : at + BATCH], size)[0]) for at in range(0, len(something), BATCH)]
    views = empty(run.val, size, run.config.seed)
    if not len(views) or not there:
        return 0.0
    nothing = [likely(views[at : at + BATCH]) for at in range(0, len(views), BATCH)]
    least = np.quantile(np.concatenate(there), 1 - RECALL, method="lower")
    return float((np.concatenate(nothing) < least).mean())
