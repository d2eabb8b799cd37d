"""Batch norm's statistics anew, on the pictures that a trained network will see.

Training leaves those of smaller, distorted and mixed views (Touvron et al., 2019): at the input's full size, on lightly
augmented pictures, activations are distributed otherwise. What the split network learns of the full one keeps the
statistics that it was trained with: measured anew, they cost it more than they gave.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .config import Config
from .data import Augmentation, Pictures, random_views, shuffled

BATCHES = 100
BATCH = 32


@contextlib.contextmanager
def fresh_statistics(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within it the batch norms of these modules, and nothing else, measure anew: the mean over all batches."""
    norms = [part for module in modules for part in module.modules() if isinstance(part, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()


@torch.no_grad()
def recalibrate(config: Config, module: nn.Module, train_set: Pictures) -> None:
    """Measures the statistics of a module that takes pictures, such as the full network or its own prefix."""
    light = Augmentation(0.8, 0.1, 0.0, config.full.mirror)
    width, height = config.data.size
    with fresh_statistics([module.eval()]):
        for number, index in enumerate(shuffled(len(train_set), BATCH, config.seed)[:BATCHES]):
            seed = config.seed * BATCHES + number
            module(random_views(train_set, index, (width, height), light, config.data.normalisation, seed).pictures)
