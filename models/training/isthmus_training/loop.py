"""What every training stage shares: workers, schedule, averaged weights, checkpoints, progress."""

from __future__ import annotations

import copy
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Iterable, Sequence, TypeVar

import numpy as np
import torch
from torch import nn

from .ranks import Ranks

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """Runs the micro-batches of a step, each on one thread, and lets the fastest thread take the next.

    On a CPU one thread a micro-batch beats many threads an operation: nothing waits for the slowest core at each of
    hundreds of small operations. Gradients meet in the shared parameters, where autograd accumulates under a lock,
    so only the order of additions varies from run to run. A GPU uses one worker.
    """

    def __init__(self, ranks: Ranks, threads: int, precision: str = "f32") -> None:
        self.ranks, self.device, self.precision = ranks, ranks.device, precision
        self.count = threads if self.device.type == "cpu" else 1
        # What runs between the micro-batches is bound by memory: more threads would only wait for each other.
        torch.set_num_threads(1)
        self.pool = ThreadPoolExecutor(self.count, initializer=_start_thread)

    def autocast(self) -> torch.autocast:
        """Convolutions and matrix products in the run's precision: `f32` or `bf16`. To be entered on the worker."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def micro_batches(self, batch: np.ndarray) -> list[np.ndarray]:
        """A step's pictures in parts that suit the device, and at least one for each process."""
        fit = 32 if self.device.type == "cpu" else 128
        return np.array_split(batch, max(self.ranks.count, round(len(batch) / fit)))

    def share(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """As `map`, but only this process's part of a step's `items`."""
        return self.map(function, self.ranks.share(items))

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        return list(self.pool.map(function, items))


def _start_thread() -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


class Schedule:
    """Learning rate and picture size over a stage: linear warm-up, then a half cosine to zero (SGDR, Loshchilov and
    Hutter, 2016), while `phases` [(length, scale)] resize the input.

    Lengths are in `unit`: epochs, or minutes of training, which end on time on a machine that is shared. `spent` of
    that unit and `seconds` go into checkpoints.
    """

    def __init__(self, peak: float, warmup: float, phases: Sequence[Sequence[float]], unit: str, steps: int) -> None:
        self.peak, self.warmup, self.phases, self.unit = peak, warmup, phases, unit
        self.total = sum(length for length, _ in phases)
        self.per_step = 1 / steps
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
        """The share of the stage that is over."""
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


class Pace:
    """Keeps what is done now and then, such as writing a checkpoint, to one part in twenty of a stage's time."""

    SHARE = 1 / 20

    def __init__(self, schedule: Schedule, ranks: Ranks) -> None:
        self._schedule, self._ranks = schedule, ranks
        self._last, self._took = schedule.seconds, 0.0

    @property
    def due(self) -> bool:
        """Once what it took last is little against the training since then, and at the end."""
        return self._schedule.done or self._took <= self.SHARE * (self._schedule.seconds - self._last)

    def run(self, function: Callable[[], Result]) -> Result:
        """Does it. All processes then know what it took."""
        began = time.monotonic()
        result = function()
        self._last, self._took = self._schedule.seconds, self._ranks.agree(time.monotonic() - began)
        return result


class Average:
    """An exponential moving average of a module's weights and statistics."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.module = copy.deepcopy(module).eval()

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 10))
        pairs = list(zip(self.module.state_dict().values(), module.state_dict().values()))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([mine for mine, _ in floats], [theirs for _, theirs in floats], 1 - decay)
        for mine, theirs in pairs:
            if not mine.is_floating_point():
                mine.copy_(theirs)


def report(stage: str, epoch: int, schedule: Schedule, rate: float, values: dict[str, float], ranks: Ranks) -> None:
    """One line per epoch: what was measured, pictures a second, when it ends."""
    if not ranks.first:
        return
    shown = "  ".join(f"{key} {value:.4f}" for key, value in values.items())
    over, left = 100 * schedule.progress, schedule.minutes_left()
    print(f"{stage} epoch {epoch}  {over:.0f}%  {shown}  {rate:.0f}/s  {left:.1f} min left", flush=True)


def save(path: Path, state: dict[str, Any], ranks: Ranks) -> None:
    """Writes a checkpoint whole or not at all; of several processes the first does, and the others wait for it."""
    if ranks.first:
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, path)
    ranks.wait()


def restore(path: Path) -> dict[str, Any] | None:
    return torch.load(path, map_location="cpu", weights_only=False) if path.exists() else None
