"""Batch norm's statistics of the full network anew, on what it will see, once its training is over.

Training leaves those of smaller, distorted and mixed views (Touvron et al., 2019): at the input's full size, on lightly
augmented pictures, activations are distributed otherwise. What the split network learns of it keeps the statistics that
it was trained with: measured anew, they cost it more than they gave.
"""

from __future__ import annotations

import torch
from torch import nn

from .config import Config
from .data import Augmentation, Pictures, random_views, shuffled

BATCHES = 100
BATCH = 32


@torch.no_grad()
def settle(config: Config, module: nn.Module, train_set: Pictures) -> None:
    """Measures the statistics of a module that takes pictures, such as the full network or its own prefix."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None  # the mean over all batches
    light = Augmentation(0.8, 0.1, 0.0, config.full.mirror)
    for number, index in enumerate(shuffled(len(train_set), BATCH, config.seed)[:BATCHES]):
        size, data = tuple(config.data.size), config.data
        module(random_views(train_set, index, size, light, data.mean, data.std, config.seed * BATCHES + number).pictures)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    module.eval()
