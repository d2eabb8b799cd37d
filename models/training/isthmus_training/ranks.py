"""Processes that train one network together, as `torchrun` starts them: one a GPU, or some on CPUs.

Each computes some of a step's micro-batches, and their gradients are added up before the step, so that what is learnt
does not hang on how many there are, but for the order of additions and for batch norm's running statistics, of which
each process has its own until an epoch ends.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from torch import distributed, nn

Item = TypeVar("Item")


def leave() -> None:
    """Ends what ties this process to those that it trained with: threads of it that are left when a process ends abort it."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


class Ranks:
    """This process and those that it trains with: itself alone unless `torchrun` says otherwise."""

    def __init__(self, kind: str) -> None:
        """`kind` is the device's, `cpu` or `cuda`; `device` is this process's own."""
        self.count, self.rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        self.device = torch.device(kind)
        if self.count == 1:
            return
        if kind == "cuda":
            self.device = torch.device(kind, int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(self.device)
        if not distributed.is_initialized():
            distributed.init_process_group("nccl" if kind == "cuda" else "gloo")

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and says what they do."""
        return self.rank == 0

    def own(self, items: Iterable[Item]) -> list[Item]:
        """Which of a step's `items`, the same in every process, are this one's to do."""
        return list(items)[self.rank :: self.count]

    def barrier(self) -> None:
        """Until all are here."""
        if self.count > 1:
            distributed.barrier()

    def agree(self, value: float) -> float:
        """The first process's `value`."""
        if self.count == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=self.device)
        distributed.broadcast(shared, 0)
        return shared.item()

    @torch.no_grad()
    def broadcast_weights(self, modules: Sequence[nn.Module]) -> None:
        """Gives all processes the first one's weights and statistics."""
        if self.count > 1:
            for module in modules:
                for value in module.state_dict().values():
                    shared = value.contiguous()
                    distributed.broadcast(shared, 0)
                    value.copy_(shared)

    @torch.no_grad()
    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Adds up all processes' gradients. What none of them has used keeps no gradient."""
        if self.count == 1:
            return
        learnt = [parameter for parameter in parameters if parameter.requires_grad]
        used = torch.tensor([float(parameter.grad is not None) for parameter in learnt], device=self.device)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in learnt]
        flat = torch.cat([used, *(gradient.reshape(-1) for gradient in gradients)])
        distributed.all_reduce(flat)
        used, *sums = flat.split([len(learnt), *(gradient.numel() for gradient in gradients)])
        for parameter, gradient, total, by in zip(learnt, gradients, sums, used.tolist(), strict=True):
            parameter.grad = gradient.copy_(total.view_as(gradient)) if by else None

    @torch.no_grad()
    def average_statistics(self, modules: Sequence[nn.Module]) -> None:
        """Gives all processes the mean of what each has measured: buffers, such as batch norm's statistics."""
        if self.count > 1:
            for module in modules:
                for buffer in module.buffers():
                    if buffer.is_floating_point():
                        distributed.all_reduce(buffer)
                        buffer.div_(self.count)
