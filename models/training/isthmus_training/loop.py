"""The training loop, the same for both networks: steps over workers, resuming, measuring, a line for each epoch.

What is learnt is an `Objective`'s: the full network's in `full.py`, that of a stage of the split network in `stages.py`.
"""

from __future__ import annotations

import abc
import copy
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import nn

from . import checkpoint, precision, schedule
from .config import Config
from .data import Augmentation, Sets, Views, normalise, random_views, shuffled
from .ranks import Ranks
from .schedule import Schedule, Throttle
from .teacher import Teacher
from .workers import Workers

Learnt = TypeVar("Learnt", bound=nn.Module)
Size = tuple[int, int]
"""Width and height."""
PROBE = 8
"""Pictures a processor's thread computes at a time while precisions are measured: few, for those that are slow."""


class Common(Protocol):
    """What all training of a run shares, whatever it learns: its settings, the workers that compute it, the `folder` of its
    checkpoints, and how many views an epoch has. `start` is a bundle or another run whose weights it begins with."""

    @property
    def config(self) -> Config: ...
    @property
    def workers(self) -> Workers: ...
    @property
    def folder(self) -> Path: ...
    @property
    def start(self) -> Path | None: ...
    @property
    def epoch(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class Run:
    """What all training of a classifier shares: `Common`, its pictures and its teacher."""

    config: Config
    pictures: Sets
    teacher: Teacher | None
    workers: Workers
    folder: Path
    start: Path | None = None

    @property
    def epoch(self) -> int:
        return len(self.pictures.train)

    @property
    def augmentation(self) -> Augmentation:
        settings = self.config.full
        return Augmentation(settings.scale, settings.jitter, settings.mix, settings.mirror)

    def views(self, part: MicroBatch) -> Views:
        """Random views of a micro-batch's pictures."""
        return random_views(
            self.pictures.train, part.index, part.size, self.augmentation, self.config.data.normalisation, part.seed
        )


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """A part of a step's pictures, for one worker.

    `index` [n] of the pictures; `weight` is their fraction of the step's; `turn` counts steps and the parts of a step;
    whatever is random hangs from `seed`; views have this `size`; `progress` is the fraction of the stage that is over.
    """

    index: np.ndarray
    weight: float
    turn: int
    seed: int
    size: Size
    progress: float


class Settings(schedule.Settings, Protocol):
    """What the configuration says of a stage."""

    @property
    def batch(self) -> int: ...
    @property
    def average(self) -> float: ...


class Objective(abc.ABC, Generic[Learnt]):
    """What a stage of training learns, and by what: the loop's hooks.

    `module` holds all that is learnt, which the groups of `optimiser` list, each with the `rate_factor` that its learning
    rate has of the stage's. `number` is the stage's in a run, by which what is random in it differs from other stages'.
    `averaged` is the part of `module` whose weights are averaged over the steps, where `settings.average` asks for it.
    """

    name: str
    number: int
    settings: Settings
    module: nn.Module
    averaged: Learnt
    optimiser: torch.optim.Optimizer

    @abc.abstractmethod
    def begin_epoch(self) -> None:
        """Puts the modules in training, those that learn; the others not."""

    @abc.abstractmethod
    def backward(self, part: MicroBatch) -> dict[str, torch.Tensor]:
        """Adds a micro-batch's gradients, by its weight in the step. Gives each part of its loss, for the report."""

    @abc.abstractmethod
    def finish(self, kept: Learnt) -> None:
        """Makes what training leaves ready for use: `kept` is `averaged`, or the average of it."""

    @abc.abstractmethod
    def measure(self, kept: Learnt, done: bool) -> dict[str, float]:
        """What is reached on the validation pictures, by name; at the end of a stage, `done`, in more detail."""


class Average(Generic[Learnt]):
    """An exponential moving average of a module's weights and statistics."""

    def __init__(self, module: Learnt, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.module = copy.deepcopy(module).eval()

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 10))
        pairs = list(zip(self.module.state_dict().values(), module.state_dict().values(), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([mine for mine, _ in floats], [theirs for _, theirs in floats], 1 - decay)
        for mine, theirs in pairs:
            if not mine.is_floating_point():
                mine.copy_(theirs)


class Loop(Generic[Learnt]):
    """Trains an objective to the end of its schedule; `file` in the run's folder is the checkpoint that a stopped run
    continues."""

    def __init__(self, objective: Objective[Learnt], run: Common) -> None:
        self.objective, self.run = objective, run
        self.ranks: Ranks = run.workers.ranks
        settings = objective.settings
        self.file = run.folder / f"{objective.name}.pt"
        self.average = Average(objective.averaged, settings.average) if settings.average else None
        self.schedule = Schedule(settings, len(shuffled(run.epoch, settings.batch, 0)))
        self.measuring, self.saving = Throttle(self.schedule, self.ranks), Throttle(self.schedule, self.ranks)
        self.history: list[dict[str, float]] = []

    @property
    def kept(self) -> Learnt:
        """What is measured, and exported in the end."""
        return self.objective.averaged if self.average is None else self.average.module

    def train(self) -> None:
        self._resume()
        if self.run.config.precision == "auto" and not self.schedule.done:
            self._choose_precision()
            self.schedule.resume(self.schedule.step, self.schedule.seconds)
        while not self.schedule.done:
            self._epoch()

    def _resume(self) -> None:
        state = checkpoint.restore(self.file)
        if state is None:
            return
        self.objective.module.load_state_dict(state["module"])
        if self.average is not None:
            self.average.module.load_state_dict(state.get("average") or self.objective.averaged.state_dict())
            self.average.steps = state.get("steps", 0)
        self.history = state["history"]
        steps = len(self.history) * self.schedule.epoch_steps
        self.schedule.resume(steps, sum(values["seconds"] for values in self.history))
        if not self.schedule.done and "optimiser" in state:
            self.objective.optimiser.load_state_dict(state["optimiser"])
            print(f"{self.objective.name}: continues after epoch {len(self.history)}", flush=True)

    def _epoch(self) -> None:
        settings, schedule = self.objective.settings, self.schedule
        self.objective.begin_epoch()
        began, losses = schedule.seconds, []
        for step, batch in enumerate(self._batches()):
            size = scaled(self.run.config.data.size, schedule.scale)
            losses += self._step(step, batch, size)
            if schedule.done:
                break
        self.ranks.average_statistics([self.objective.module, *([self.average.module] if self.average else [])])
        # Asking for the losses waits for a GPU: until here work was only queued there.
        values = {"size": size[0]} | self._means(losses)
        schedule.advance(self.ranks, steps=0)
        seconds = schedule.seconds - began
        if schedule.done:
            self.objective.finish(self.kept)
        if self.measuring.due:
            values |= self.measuring.run(lambda: self.objective.measure(self.kept, schedule.done))
        if self.ranks.first:
            report(self.objective.name, len(self.history) + 1, schedule, (step + 1) * settings.batch / seconds, values)
        self.history.append(values | {"seconds": seconds})
        if self.saving.due:
            self.saving.run(self._save)

    def _batches(self) -> list[np.ndarray]:
        """The epoch's pictures, step by step."""
        seed = self.run.config.seed * 1000 + 100 * self.objective.number + len(self.history)
        return shuffled(self.run.epoch, self.objective.settings.batch, seed)

    def _step(self, step: int, batch: np.ndarray, size: Size) -> list[dict[str, torch.Tensor]]:
        """Learns from a batch. Gives the losses of the micro-batches that were this process's."""
        objective, workers = self.objective, self.run.workers
        for group in objective.optimiser.param_groups:
            group["lr"] = self.schedule.rate * group["rate_factor"]
        losses = workers.map_own(objective.backward, self._parts(step, workers.micro_batches(batch), size))
        self.ranks.add_gradients(objective.module.parameters())
        objective.optimiser.step()
        objective.optimiser.zero_grad()
        if self.average is not None:
            self.average.update(objective.averaged)
        self.schedule.advance(self.ranks)
        return losses

    def _parts(self, step: int, indices: list[np.ndarray], size: Size) -> list[MicroBatch]:
        config, number, epoch, count = self.run.config, self.objective.number, len(self.history), sum(map(len, indices))
        stage = (config.seed, number) if number else (config.seed,)
        seeds = (hash((*stage, epoch, step, at)) & 0xFFFFFFFF for at in range(len(indices)))
        progress = self.schedule.progress
        return [
            MicroBatch(index, len(index) / count, step + at, seed, size, progress)
            for at, (index, seed) in enumerate(zip(indices, seeds, strict=True))
        ]

    def _means(self, losses: list[dict[str, torch.Tensor]]) -> dict[str, float]:
        keys = dict.fromkeys(key for values in losses for key in values)
        means = {key: float(torch.stack([values[key] for values in losses if key in values]).mean()) for key in keys}
        for key, value in means.items():
            if not math.isfinite(value):
                raise ValueError(
                    f"{self.objective.name}: {key} is {value} in epoch {len(self.history) + 1}: a lower learning rate may help"
                )
        return means

    def _save(self) -> None:
        state: dict[str, Any] = {
            "module": self.objective.module.state_dict(),
            "optimiser": self.objective.optimiser.state_dict(),
        }
        if self.average is not None:
            state |= {"average": self.average.module.state_dict(), "steps": self.average.steps}
        checkpoint.save(self.file, state | {"history": self.history}, self.ranks)

    def _choose_precision(self) -> None:
        """Measures the step that is next in each precision, and leaves all that it changes as it was."""
        workers, objective = self.run.workers, self.objective
        objective.begin_epoch()
        parts = self._parts(0, self._probe(self._batches()[0]), scaled(self.run.config.data.size, self.schedule.scale))
        statistics = [(buffer, buffer.clone()) for buffer in objective.module.buffers()]
        devices = [workers.device] if workers.device.type == "cuda" else []

        def step(chosen: str) -> int:
            workers.precision = chosen
            losses = workers.map_own(objective.backward, parts)
            if devices:
                torch.cuda.synchronize(workers.device)
            objective.module.zero_grad()
            return sum(len(part.index) for part in self.ranks.own(parts)) if losses else 0

        with torch.random.fork_rng(devices):
            rates = precision.rates(step)
        for buffer, before in statistics:
            buffer.copy_(before)
        bf16 = self.ranks.agree(float(rates["bf16"] > rates["f32"]))
        workers.precision = "bf16" if bf16 else "f32"
        if self.ranks.first:
            measured = ", ".join(f"{rate:.0f} pictures a second in {name}" for name, rate in rates.items())
            print(f"{objective.name}: trains in {workers.precision} ({measured})", flush=True)

    def _probe(self, batch: np.ndarray) -> list[np.ndarray]:
        """As a step's micro-batches, of fewer pictures where a processor has to compute them."""
        workers = self.run.workers
        if workers.device.type != "cpu":
            return workers.micro_batches(batch)
        few = batch[: PROBE * workers.count * self.ranks.count]
        return np.array_split(few, max(self.ranks.count, len(few) // PROBE))


def scaled(size: list[int], scale: float) -> Size:
    """(width, height) scaled and rounded to what the strides divide."""
    width, height = (max(32, round(side * scale / 32) * 32) for side in size)
    return width, height


def report(stage: str, epoch: int, schedule: Schedule, rate: float, values: dict[str, float]) -> None:
    """One line an epoch: what was measured, pictures a second, when it ends."""
    shown = "  ".join(f"{key} {value:.4f}" for key, value in values.items())
    over, left = 100 * schedule.progress, schedule.minutes_left()
    print(f"{stage} epoch {epoch}  {over:.0f}%  {shown}  {rate:.0f}/s  {left:.1f} min left", flush=True)


@torch.no_grad()
def fractions_right(run: Run, answer: Callable[[torch.Tensor], list[torch.Tensor]], batch: int = 32) -> list[float]:
    """Of each of the logits [n, K] that `answer` gives for pictures [n, 3, H, W], the fraction whose class comes out on top,
    over the validation pictures, which are stored at the input's size."""
    pictures, workers = run.pictures.val, run.workers

    def right(at: int) -> list[int]:
        with torch.no_grad(), workers.autocast():
            x = normalise(torch.as_tensor(pictures.pixels[at : at + batch]), run.config.data.normalisation)
            labels = pictures.labels[at : at + batch].to(workers.device)
            return [int((logits.argmax(1) == labels).sum()) for logits in answer(x.to(workers.device))]

    counts = workers.map(right, range(0, len(pictures), batch))
    return [sum(values) / len(pictures) for values in zip(*counts, strict=True)]
