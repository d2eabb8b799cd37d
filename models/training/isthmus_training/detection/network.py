"""The detector: a prefix to stride 16, a trunk to stride 32, a light pyramid and a head on each of its grids.

The prefix is the split network's own head and adapter, with nothing rounded between them: what the full network learns is
then the split one's to begin with.

A place of a grid answers with a score for each class and, for each side of a box around it, a distribution over whole
distances in strides (generalised focal loss, Li et al., 2020).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from ..network import Unsent, block, conv_norm

STRIDES = (8, 16, 32)
BINS = 8


class Answers(NamedTuple):
    """What a detector says of all places of its grids, the finest grid first, row by row: `scores` [N, places, K] before the
    sigmoid and `distances` [N, places, 4, bins] before the softmax."""

    scores: torch.Tensor
    distances: torch.Tensor


def unit(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(*conv_norm(inputs, outputs, kernel, stride), nn.ReLU())


def quiet(layer: nn.Conv2d) -> nn.Conv2d:
    """A layer whose scores begin at a hundredth: nearly all places show nothing."""
    assert layer.bias is not None
    nn.init.constant_(layer.bias, -4.6)
    nn.init.normal_(layer.weight, std=0.01)
    return layer


class Finer(nn.Module):
    """Twice as fine a grid, each place of the coarser one four of it: a 1×1 convolution to four times the channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.spread = unit(inputs, 4 * outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pixel_shuffle(self.spread(x), 2)


class Branch(nn.Module):
    """The head of one grid: convolutions that scores and distances share, then one for each."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.tower = nn.Sequential(unit(channels, channels), unit(channels, channels))
        self.scores = nn.Conv2d(channels, classes, 1)
        self.distances = nn.Conv2d(channels, 4 * BINS, 1)
        quiet(self.scores)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scores [N, h·w, K], distances [N, h·w, 4, bins] and what they are read from."""
        x = self.tower(x)
        scores = self.scores(x).flatten(2).transpose(1, 2)
        distances = self.distances(x).flatten(2).transpose(1, 2)
        return scores, distances.unflatten(2, (4, BINS)), x


class Trunk(nn.Module):
    """Features [N, C, h, w] at stride 16 to the answers of grids at strides 8, 16 and 32."""

    def __init__(self, channels: tuple[int, int], blocks: tuple[int, int], pyramid: tuple[int, int], classes: int) -> None:
        """`channels` and residual `blocks` at strides 16 and 32; the `pyramid`'s channels at stride 8, and at the others."""
        super().__init__()
        middle, coarse = channels
        fine, wide = pyramid
        self.middle = nn.Sequential(*(block(middle, middle, 1) for _ in range(blocks[0])))
        self.coarse = nn.Sequential(*(block(coarse if n else middle, coarse, 1 if n else 2) for n in range(blocks[1])))
        self.from_middle, self.from_coarse = unit(middle, wide, 1), unit(coarse, wide, 1)
        self.up, self.down, self.finer = Finer(wide, wide), unit(wide, wide, 3, 2), Finer(wide, fine)
        self.joined = unit(wide, wide)
        self.branches = nn.ModuleList([Branch(fine, classes), Branch(wide, classes), Branch(wide, classes)])

    def maps(self, features: torch.Tensor) -> list[torch.Tensor]:
        """The pyramid's, finest first."""
        middle = self.middle(features)
        coarse = self.from_coarse(self.coarse(middle))
        joined = self.joined(self.from_middle(middle) + self.up(coarse))
        return [self.finer(joined), joined, coarse + self.down(joined)]

    def forward(self, features: torch.Tensor) -> Answers:
        return self.answers(features)[0]

    def answers(self, features: torch.Tensor) -> tuple[Answers, list[torch.Tensor]]:
        """The answers, and what each grid's are read from."""
        found = [branch(x) for branch, x in zip(self.branches, self.maps(features), strict=True)]
        scores, distances = (torch.cat([parts[at] for parts in found], 1).float() for at in (0, 1))
        return Answers(scores, distances), [last for _, _, last in found]


class Surest(nn.Sequential):
    """Logits [N, K, h, w] of places to the surest's [N, K]. In training they stay as they are: every place learns."""

    def __init__(self) -> None:
        super().__init__(nn.AdaptiveMaxPool2d(1), nn.Flatten())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.training else super().forward(x)


class Detector(nn.Module):
    """The full network: a prefix and a trunk."""

    rectified = True

    def __init__(self, prefix: Unsent, trunk: Trunk, features: int, classes: int) -> None:
        super().__init__()
        self.prefix, self.body = prefix, trunk
        self.features, self.classes = features, classes

    def trunk(self) -> Trunk:
        return self.body

    def exit(self, units: int, inputs: int) -> nn.Sequential:
        """An early exit on so many channels of the device's encoder: of each class, whether one is there. It looks for them
        place by place, at twice the latents' stride, and the surest place answers."""
        places = [nn.Conv2d(inputs, units, 3, 2, 1), nn.ReLU(), nn.Conv2d(units, units, 3, 1, 1), nn.ReLU()]
        last = nn.Conv2d(units, self.classes, 1)
        assert last.bias is not None
        # As sure of one as a place of a picture mostly may be.
        nn.init.constant_(last.bias, -3.0)
        return nn.Sequential(*places, last, Surest())

    def forward(self, x: torch.Tensor) -> Answers:
        return self.body(self.prefix(x))


def expected(distances: torch.Tensor) -> torch.Tensor:
    """Distributions [..., bins] before the softmax to distances in strides."""
    steps = torch.arange(distances.shape[-1], dtype=distances.dtype, device=distances.device)
    return distances.softmax(-1) @ steps


def boxes(distances: torch.Tensor, centres: torch.Tensor, strides: torch.Tensor) -> torch.Tensor:
    """Distances [..., 4] in strides from each of `centres` [n, 2] to a box's sides, as boxes [..., n, 4] in pixels."""
    reach = distances * strides[:, None]
    return torch.cat([centres - reach[..., :2], centres + reach[..., 2:]], -1)
