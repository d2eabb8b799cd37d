"""When a stage of training is over, how large its steps and pictures are until then, and what may be done beside it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from .ranks import Ranks

Result = TypeVar("Result")


class Settings(Protocol):
    """What the configuration says of a stage's course; `config.Full` and `config.Stage` are such."""

    @property
    def phases(self) -> Sequence[Sequence[float]]: ...
    @property
    def unit(self) -> str: ...
    @property
    def warmup(self) -> float: ...
    @property
    def learning_rate(self) -> float: ...


class Schedule:
    """Learning rate and picture size over a stage: linear warm-up, then a half cosine to zero (SGDR, Loshchilov and
    Hutter, 2016), while the phases [(length, scale)] resize the input.

    Lengths are in the settings' unit: epochs, or minutes of training, which end on time on a machine that is shared.
    `spent` of that unit and `seconds` go into checkpoints.
    """

    def __init__(self, settings: Settings, steps: int) -> None:
        """`steps` are those of an epoch."""
        self.peak, self.warmup = settings.learning_rate, settings.warmup
        self.phases, self.unit = settings.phases, settings.unit
        self.total = sum(length for length, _ in self.phases)
        self.epoch_steps, self.per_step = steps, 1 / steps
        self.step, self.seconds = 0, 0.0
        self._last = time.monotonic()

    def advance(self, ranks: Ranks, steps: int = 1) -> None:
        """To be called after each step, and after what else took time."""
        now = time.monotonic()
        # One clock, or some would be done before the others.
        seconds = ranks.agree(self.seconds + now - self._last)
        self.step, self.seconds, self._last = self.step + steps, seconds, now

    def resume(self, step: int, seconds: float) -> None:
        self.step, self.seconds, self._last = step, seconds, time.monotonic()

    @property
    def spent(self) -> float:
        return self.seconds / 60 if self.unit == "minutes" else self.step * self.per_step

    @property
    def done(self) -> bool:
        return self.spent >= self.total - 1e-9

    @property
    def progress(self) -> float:
        """The fraction of the stage that is over."""
        return min(1.0, self.spent / self.total) if self.total else 1.0

    @property
    def rate(self) -> float:
        if self.spent < self.warmup:
            return self.peak * (self.spent + self.per_step) / (self.warmup + self.per_step)
        past = (self.spent - self.warmup) / max(1e-9, self.total - self.warmup)
        return self.peak * 0.5 * (1 + math.cos(math.pi * min(1.0, past)))

    @property
    def scale(self) -> float:
        return self._scale_at(self.spent)

    def minutes_left(self) -> float:
        """From the pace so far; a step is taken to cost as much as its picture's area."""
        if self.unit == "minutes":
            return max(0.0, self.total - self.spent)
        costs = [self._scale_at((i + 0.5) * self.total / 256) ** 2 for i in range(256)]
        over = round(self.progress * 256)
        return self.seconds / 60 * sum(costs[over:]) / max(1e-9, sum(costs[:over]))

    def _scale_at(self, spent: float) -> float:
        end = 0.0
        for length, scale in self.phases:
            end += length
            if spent < end - 1e-9:
                return scale
        return self.phases[-1][1]


class Throttle:
    """Keeps what is done now and then, such as writing a checkpoint, to one part in twenty of a stage's time."""

    FRACTION = 1 / 20

    def __init__(self, schedule: Schedule, ranks: Ranks) -> None:
        self._schedule, self._ranks = schedule, ranks
        self._last, self._took = schedule.seconds, 0.0

    @property
    def due(self) -> bool:
        """Once what it took last is little against the training since then, and at the end."""
        return self._schedule.done or self._took <= self.FRACTION * (self._schedule.seconds - self._last)

    def run(self, function: Callable[[], Result]) -> Result:
        """Does it. All processes then know what it took."""
        began = time.monotonic()
        result = function()
        self._last, self._took = self._schedule.seconds, self._ranks.agree(time.monotonic() - began)
        return result
