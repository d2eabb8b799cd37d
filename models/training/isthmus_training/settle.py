"""Batch norm's statistics anew, on what the network will see.

Training leaves those of smaller, distorted and mixed views (Touvron et al., 2019): at the input's full size, on lightly
augmented pictures, activations are distributed otherwise.
"""

from __future__ import annotations

from typing import Callable

import numpy as np
import torch
from torch import nn

from .config import Config
from .data import Augmentation, Pictures, random_views, shuffled
from .network import Backbone
from .student import WHOLE, Student, points

BATCHES = 100
BATCH = 32


def settle(config: Config, network: Backbone, student: Student, train_set: Pictures) -> None:
    """Measures the statistics of the full and of the split network, each in all its widths, on the CPU."""
    rng, every = np.random.default_rng(config.seed), points(config)
    by_width = [[point for point in every if point[0] == width] for width in config.split.widths]

    def split(x: torch.Tensor) -> None:
        drawn = [choices[rng.integers(len(choices))] for choices in by_width]
        # What serves full and split network alike is measured on both.
        for point in [WHOLE, *drawn] if config.stage3.enabled and config.stage3.whole else drawn:
            features, _, _ = student(x, point, False)
            student.trunk(features)

    _measure(network, network, config, train_set)
    _measure(student, split, config, train_set)


@torch.no_grad()
def _measure(module: nn.Module, run: Callable[[torch.Tensor], object], config: Config, train_set: Pictures) -> None:
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
        run(random_views(train_set, index, size, light, data.mean, data.std, config.seed * BATCHES + number).pictures)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    module.eval()
