"""The split network: a head for the device, and an adapter and trunk for the server; and its operating points."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from . import checkpoint
from .config import Config
from .network import Adapter, AnyPrefix, Encoder, Features, Head, Inherited, Unsent
from .quantise import Quantiser

Point = tuple[int, int, int]
"""An operating point: width, channels, bits."""


class Points(NamedTuple):
    """An operating point for each picture of a batch: one `width`, of each picture the `channels` [N] and `bits` [N]."""

    width: int
    channels: torch.Tensor
    bits: torch.Tensor

    @classmethod
    def alike(cls, point: Point, count: int, device: torch.device) -> Points:
        """The same one for all of `count` pictures."""
        width, channels, bits = point
        return cls(width, torch.full((count,), channels, device=device), torch.full((count,), bits, device=device))

    @classmethod
    def drawn(cls, config: Config, width: int, count: int, rng: np.random.Generator, device: torch.device) -> Points:
        """Channels and bits drawn for each picture: batch norm then sees what it will serve, all of them."""
        channels, bits = (torch.from_numpy(rng.choice(v, count)).to(device) for v in (config.split.channels, config.split.bits))
        return cls(width, channels, bits)


class Whole(Protocol):
    """What the split network has to know of the full one; `FullNetwork` and the detector are such."""

    features: int
    rectified: bool

    @property
    def prefix(self) -> AnyPrefix: ...
    def trunk(self) -> Any: ...
    def exit(self, units: int, inputs: int) -> nn.Sequential: ...


class Student(nn.Module):
    """The split network, and the full one around the same trunk.

    `outputs` learns the teacher's outputs, as in the full network, and is not exported.
    """

    def __init__(self, config: Config, network: Whole, outputs: nn.Conv2d | None) -> None:
        super().__init__()
        split, latents = config.split, config.split.channels[-1]
        prefix = copy.deepcopy(network.prefix)
        if isinstance(prefix, Inherited):
            prefix.encoder.inherit()
        if isinstance(prefix, (Inherited, Unsent)):
            encoder = prefix.encoder
        else:
            encoder = Encoder(split.head, split.strides, split.widths)
        self.head = Head(encoder, latents, functools.partial(network.exit, split.exit_units), split.widths)
        self.quantiser = Quantiser(split.widths, split.bits, latents)
        adapted, stride = split.widths[-1:] if split.adapter_shared else split.widths, config.trunk_stride // split.stride
        features = Features(network.features, network.rectified, stride)
        self.adapter = Adapter(latents, split.adapter_units, split.adapter_blocks, features, adapted)
        if isinstance(prefix, Unsent):
            prefix.hand_down(self.head, self.adapter)
            # The full network is the split one's widest point without rounding.
            prefix.latent, prefix.adapter = self.head.latent, self.adapter
        self.prefix = prefix
        self.trunk = copy.deepcopy(network.trunk())
        self.outputs = copy.deepcopy(outputs)

    @property
    def exits(self) -> nn.ModuleDict:
        """The head's, by width."""
        return self.head.exits

    def forward(self, x: torch.Tensor, points: Points, noise: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pictures to the trunk's features [N, C', h, w], the exit's logits [N, K], and kilobits a picture []."""
        width, channels, bits = points
        # Quantising and rates are counted in f32, whatever precision the convolutions run in.
        latents, exit_logits = (values.float() for values in self.head(x, width))
        centre = self.head.centre(width)
        values, rates = self.quantiser(latents, centre, width, bits, noise)
        sent = torch.arange(values.shape[1], device=x.device) < channels[:, None]
        values = torch.where(sent[:, :, None, None], values, centre[:, None, None])
        places = values.shape[2] * values.shape[3]
        return self.adapter(values, width), exit_logits, (rates * sent).sum(1).mean() * places / 1000

    def whole(self, x: torch.Tensor) -> tuple[torch.Tensor, None, torch.Tensor]:
        """The same for the full network around the trunk, which has no exit and sends nothing."""
        return self.prefix(x), None, x.new_zeros(())


def restore(config: Config, network: Whole, outputs: nn.Conv2d | None, folder: Path) -> Student:
    """The split network of a run's last stage that has a checkpoint."""
    student = Student(config, network, outputs)
    student.load_state_dict(latest(folder))
    return student


def latest(folder: Path) -> dict[str, torch.Tensor]:
    """Its weights, or the average of them where the stage averages."""
    for number in (4, 3, 2, 1):
        if state := checkpoint.restore(folder / f"stage{number}.pt"):
            return state.get("average", state["module"])
    raise ValueError(f"{folder} holds no checkpoint of a stage, such as stage3.pt: train the split network first")
