"""Threads that compute the micro-batches of a step side by side, in the run's precision."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch

from .ranks import Ranks

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """Runs the micro-batches of a step, each on one thread, and lets the fastest thread take the next.

    On a CPU one thread a micro-batch beats many threads an operation: nothing waits for the slowest core at each of
    hundreds of small operations. Gradients meet in the shared parameters, where autograd accumulates under a lock,
    so only the order of additions varies from run to run. A GPU uses one worker.

    `precision` is what convolutions and matrix products run in: f32, bf16, or auto for f32 until it is measured.
    """

    def __init__(self, ranks: Ranks, threads: int, precision: str = "f32", fit: int = 32) -> None:
        """`fit` pictures of a micro-batch suit a processor's thread."""
        self.fit = fit
        self.ranks, self.device, self.precision = ranks, ranks.device, precision
        self.count = threads if self.device.type == "cpu" else 1
        # What runs between the micro-batches is bound by memory: more threads would only wait for each other.
        torch.set_num_threads(1)
        self.pool = ThreadPoolExecutor(self.count, initializer=_start_thread)

    def autocast(self) -> torch.autocast:
        """Convolutions and matrix products in the run's precision. To be entered on the worker."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def micro_batches(self, batch: np.ndarray) -> list[np.ndarray]:
        """A step's pictures in parts that suit the device, and at least one for each process."""
        fit = self.fit if self.device.type == "cpu" else 128
        return np.array_split(batch, max(self.ranks.count, round(len(batch) / fit)))

    def map_own(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """As `map`, but only this process's part of a step's `items`."""
        return self.map(function, self.ranks.own(items))

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        return list(self.pool.map(function, items))


def _start_thread() -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
