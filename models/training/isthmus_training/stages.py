"""The three stages that train the split network.

As in BottleFit (Matsubara et al., 2022): first the trunk's input learns the full network's features, then the server's
side learns the task, then all of it together. Every step runs the widest configuration and random narrower ones (the
sandwich rule, Yu and Huang, 2019).
"""

from __future__ import annotations

import abc
import functools
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from . import full, warm_start
from .config import Config, Stage
from .data import Views, shuffled
from .loop import Common, Loop, MicroBatch, Objective, Run, fractions_right, scaled
from .losses import TaskLoss, feature_error, normalised_channels
from .network import FullNetwork, Inherited
from .recalibrate import BATCH, BATCHES, fresh_statistics
from .student import Point, Points, Student, latest
from .teacher import Answers


def train(run: Run, network: FullNetwork, outputs: nn.Conv2d | None) -> None:
    """Runs the enabled stages; `stage1.pt` and so on in the run's folder are the checkpoints that a stopped run continues.

    `network` is the full one, and `outputs` its layer for the teacher's. The split one starts as that of the bundle in
    `run.start`, or where that lacks such a split, its encoder as the first layers of another's and its trunk as that; or
    its head and adapter as those of the run there. An adapter of another shape starts anew.
    """
    config, workers = run.config, run.workers
    torch.manual_seed(config.seed + 1)
    network = network.to(workers.device).eval().requires_grad_(False)
    student = Student(config, network, outputs)
    if run.start:
        _start(run, run.start, network, student)
    student.to(workers.device).to(memory_format=torch.channels_last)
    workers.ranks.broadcast_weights([student])
    for number, stage in config.stages.items():
        Loop(ClassifierStage(run, number, stage, student, network), run).train()


def _start(run: Run, start: Path, network: FullNetwork, student: Student) -> None:
    if not warm_start.is_bundle(start):
        warm_start.load_run(student, latest(start), start)
        return
    pictures, name = full.plain_views(run.config, run.pictures.train, warm_start.PICTURES), run.config.split.name
    features = network.prefix(pictures.to(run.workers.device)).cpu()
    if warm_start.has_split(start, name):
        warm_start.load_split(student, start, name, pictures, features)
    else:
        warm_start.load_first_layers(student, start, pictures, features)


Weighted = dict[str, tuple[float, torch.Tensor]]
"""Parts of a loss by name, each with its weight."""

Seen = TypeVar("Seen", bound="HasPictures")


class HasPictures(Protocol):
    @property
    def x(self) -> torch.Tensor: ...


class Batch(NamedTuple):
    """Views of pictures, `x` [N, 3, H, W], and what they should give: the full network's `features`, `last` feature map and
    class probabilities `soft`, the outside teacher's `answers`, each where the stage learns it."""

    x: torch.Tensor
    views: Views
    features: torch.Tensor | None
    last: torch.Tensor | None
    soft: torch.Tensor | None
    answers: Answers | None


class StageObjective(Objective[Student], Generic[Seen]):
    """A stage's losses, each with its weight, over the points that a batch is run at; what they are is its kind's."""

    def __init__(self, run: Common, number: int, stage: Stage, student: Student) -> None:
        self.name, self.number, self.settings = f"stage{number}", number, stage
        self.common, self.stage, self.student = run, stage, student
        self.module = self.averaged = student
        self.optimiser = self._optimiser()
        self.widest: Point = _widest(run.config)

    @abc.abstractmethod
    def batch(self, part: MicroBatch) -> Seen:
        """A micro-batch's pictures and what they should give."""

    @abc.abstractmethod
    def losses(
        self, batch: Seen, features: torch.Tensor, exit_logits: torch.Tensor | None, widest: torch.Tensor | None
    ) -> tuple[Weighted, torch.Tensor | None]:
        """What the trunk's input and the exit cost, each with its weight, and the last feature map where that is needed.
        `widest` is that of the widest point, once it is known."""

    @abc.abstractmethod
    def pictures(self, part: MicroBatch) -> torch.Tensor:
        """Training views without what they should give."""

    def _trained(self, student: Student) -> list[nn.Module]:
        """The parts of it that learn."""
        parts = [getattr(student, part) for part in self.stage.trains]
        if "head" in self.stage.trains:
            parts.append(student.quantiser)
        if self.stage.whole:
            parts.append(student.prefix)
        if self.stage.task and student.outputs is not None:
            parts.append(student.outputs)
        return parts

    def _optimiser(self) -> torch.optim.Optimizer:
        student, stage = self.student, self.stage
        # What the full network has trained learns more slowly.
        slow = [student.trunk, student.outputs, *([] if isinstance(student.prefix, Inherited) else [student.prefix])]
        groups, grouped = [], set()
        parts = self._trained(student)
        if stage.exit_rate != 1 and student.head in parts:
            parts.insert(0, student.exits)
        for part in parts:
            # An inherited encoder stands in the head and in the prefix.
            own = [parameter for parameter in part.parameters() if parameter not in grouped]
            grouped.update(own)
            factor = stage.exit_rate if part is student.exits else stage.trunk_rate if part in slow else 1.0
            groups.append({"params": own, "rate_factor": factor})
        return torch.optim.AdamW(groups, stage.learning_rate, weight_decay=stage.weight_decay, fused=True)

    def begin_epoch(self) -> None:
        self.student.eval().requires_grad_(False)
        for part in self._trained(self.student):
            part.train().requires_grad_(True)

    def backward(self, part: MicroBatch) -> dict[str, torch.Tensor]:
        batch, noise = self.batch(part), part.progress < self.stage.noise
        passes = self._passes(np.random.default_rng(part.seed), len(batch.x), part.turn)
        values: dict[str, torch.Tensor] = {}
        widest_last: torch.Tensor | None = None
        for points in passes:
            with self.common.workers.autocast():
                features, exit_logits, kilobits = (
                    self.student.whole(batch.x) if points is None else self.student(batch.x, points, noise)
                )
                weighted, last = self.losses(batch, features, exit_logits, widest_last)
                weighted = {"rate": (self.stage.rate, kilobits)} | weighted
            loss = functools.reduce(torch.add, (weight * value for weight, value in weighted.values()))
            (loss * (part.weight / len(passes))).backward()
            values = {key: value.detach() for key, (_, value) in weighted.items()} | values
            if self.stage.invariant and widest_last is None and last is not None:
                widest_last = last.detach()
        return values

    def _passes(self, rng: np.random.Generator, count: int, turn: int) -> list[Points | None]:
        """The points that `count` pictures run at, pass by pass; `None` stands for the full network, which sends nothing."""
        config, stage, device = self.common.config, self.stage, self.common.workers.device
        *narrower, widest = config.split.widths
        if stage.whole and turn % 4 == 3:
            return [None]
        if stage.passes == 1:
            # The micro-batches of a step take turns.
            width = widest if turn % 2 == 0 or not narrower else int(rng.choice(narrower))
            return [Points.drawn(config, width, count, rng, device)]
        further = (int(rng.choice(config.split.widths)) for _ in range(stage.passes - 1))
        return [
            Points.alike(self.widest, count, device),
            *(Points.drawn(config, width, count, rng, device) for width in further),
        ]

    @torch.no_grad()
    def finish(self, kept: Student) -> None:
        """An average of weights is given the statistics of its own activations, width by width, and is then what the next
        stage begins with."""
        if kept is self.student:
            return
        config, batch = self.common.config, self.settings.batch
        *narrower, widest = config.split.widths
        size = scaled(config.data.size, self.stage.phases[-1][1])
        with fresh_statistics(self._trained(kept.eval())):
            for turn in range(BATCHES):
                seed = hash((config.seed, self.number, turn)) & 0xFFFFFFFF
                rng = np.random.default_rng(seed)
                index = shuffled(self.common.epoch, min(batch, BATCH), seed)[0]
                x = self.pictures(MicroBatch(index, 1.0, turn, seed, size, 1.0))
                # As often as in training: the widest every other time, the narrower ones in turn.
                for width in (widest, *narrower[turn % max(1, len(narrower)) :][:1]):
                    features, *_ = kept(x, Points.drawn(config, width, len(x), rng, x.device), False)
                    kept.trunk(features)
                if self.stage.whole:
                    features, *_ = kept.whole(x)
                    kept.trunk(features)
        self.student.load_state_dict(kept.state_dict())


class ClassifierStage(StageObjective[Batch]):
    """A stage of a classifier's split network."""

    def __init__(self, run: Run, number: int, stage: Stage, student: Student, network: FullNetwork) -> None:
        super().__init__(run, number, stage, student)
        self.run, self.network = run, network
        self.labels = run.pictures.train.labels
        self.task = TaskLoss(run.config, self.labels, run.teacher, student.outputs)

    def batch(self, part: MicroBatch) -> Batch:
        stage, workers, teacher = self.stage, self.run.workers, self.run.teacher
        views = self.run.views(part)
        x = views.pictures.to(workers.device)
        features = last = soft = None
        with torch.no_grad(), workers.autocast():
            if stage.feature or stage.last or stage.soft:
                features = self.network.prefix(x)
            if stage.last or stage.soft:
                body, *end = self.network.trunk()
                last = body(features)
            if stage.soft:
                soft = (nn.Sequential(*end)(last).float() / stage.temperature).softmax(1)
        answers = teacher.answers(views) if teacher and (stage.task or stage.soft) else None
        return Batch(x, views, features, last, soft, answers)

    def pictures(self, part: MicroBatch) -> torch.Tensor:
        return self.run.views(part).pictures.to(self.run.workers.device)

    def _exit_loss(self, batch: Batch, logits: torch.Tensor | None) -> Weighted:
        if not self.stage.exit or logits is None:
            return {}
        hard = F.one_hot(self.labels[batch.views.index], logits.shape[1]).float()
        return {"exit": (self.stage.exit, F.cross_entropy(logits, batch.views.mix(hard).to(logits.device)))}

    def losses(
        self, batch: Batch, features: torch.Tensor, exit_logits: torch.Tensor | None, widest: torch.Tensor | None
    ) -> tuple[Weighted, torch.Tensor | None]:
        stage, (body, *end), t = self.stage, self.student.trunk, self.stage.temperature
        last = body(features) if stage.task or stage.soft or stage.last or stage.invariant else None
        losses = self._exit_loss(batch, exit_logits)
        if stage.feature and batch.features is not None:
            losses["feature"] = (stage.feature, feature_error(features, batch.features))
        if last is None:
            return losses, None
        if stage.last and batch.last is not None:
            losses["last"] = (stage.last, feature_error(last, batch.last))
        if stage.task or stage.soft:
            losses["task"] = (stage.task, self.task(last, end, batch.views, batch.answers))
        if stage.soft and batch.soft is not None:
            logits = nn.Sequential(*end)(last).float()
            losses["soft"] = (stage.soft * t * t, F.cross_entropy(logits / t, batch.soft))
        if widest is not None:
            error = (normalised_channels(last) - normalised_channels(widest)).square().mean()
            losses["invariant"] = (stage.invariant, error)
        return losses, last

    def measure(self, kept: Student, done: bool) -> dict[str, float]:
        values = dict(zip(("accuracy", "exit_accuracy"), accuracy(kept, self.widest, self.run), strict=True))
        if self.stage.whole:
            (values["whole_accuracy"],) = accuracy(kept, None, self.run)
        if done:
            for point in _sampled(self.run.config, self.widest):
                width, channels, bits = point
                values[f"accuracy_w{width}_c{channels}_b{bits}"], _ = accuracy(kept, point, self.run)
        return values


def accuracy(student: Student, point: Point | None, run: Run) -> list[float]:
    """Of the whole and of the exit at a point; or of the full network, without one."""
    student.eval()

    def answer(x: torch.Tensor) -> list[torch.Tensor]:
        if point is None:
            features, *_ = student.whole(x)
            return [student.trunk(features)]
        features, exit_logits, _ = student(x, Points.alike(point, len(x), x.device), False)
        return [student.trunk(features), exit_logits]

    return fractions_right(run, answer)


def _widest(config: Config) -> Point:
    """The largest point of the widest head."""
    return config.split.widths[-1], config.split.channels[-1], max(config.split.bits)


def _sampled(config: Config, known: Point) -> list[Point]:
    """Points by which the end of a stage is judged: the largest and the middle one of every width, but for the `known`."""
    split = config.split
    middle = split.channels[len(split.channels) // 2], sorted(split.bits)[len(split.bits) // 2]
    ends = (split.channels[-1], max(split.bits)), middle
    return [point for point in ((width, *end) for width in split.widths for end in ends) if point != known]
