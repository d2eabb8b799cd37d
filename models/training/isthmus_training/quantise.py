"""The quantiser: a fixed scale and zero point per width, bit depth and channel.

`q = clamp(round(z / s) + zp, 0, 2^b − 1)`, half to even, and `ẑ = (q − zp) · s`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class Quantiser(nn.Module):
    """Learned scales [widths, depths, C] for latents [N, C, h, w].

    Scales are learned through the straight-through estimator (LSQ, Esser et al., 2019). Latents come out of a batch
    norm, so that `centre` [C], its bias, is their mean: zero points follow from it.
    """

    def __init__(self, widths: Sequence[int], bits: Sequence[int], channels: int, reach: float = 4.0) -> None:
        super().__init__()
        self.widths, self.bits = list(widths), list(bits)
        first = torch.tensor([math.log(2 * reach / 2**depth) for depth in bits])
        self.log_scale = nn.Parameter(first[None, :, None].repeat(len(widths), 1, channels))

    @torch.no_grad()
    def fit(self, latents: torch.Tensor, width: int, reach: float = 4.0) -> None:
        """Gives a width scales that reach so many standard deviations of these latents [N, C, h, w], to either side."""
        for at, depth in enumerate(self.bits):
            spread = latents.std((0, 2, 3)).clamp(min=1e-6)
            self.log_scale[self.widths.index(width), at] = (2 * reach / 2**depth * spread).log()

    def scale(self, width: int, bits: int) -> torch.Tensor:
        """Scales [C]."""
        return self.log_scale[self.widths.index(width), self.bits.index(bits)].exp()

    def forward(
        self, latents: torch.Tensor, centre: torch.Tensor, width: int, bits: torch.Tensor, noise: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Dequantised latents at each picture's `bits` [N], and their rates [N, C] in bits per symbol.

        `noise` adds uniform noise in place of rounding (Ballé et al., 2016), else rounding passes gradients through.
        """
        scales = self.log_scale[self.widths.index(width)].exp()
        depths = (bits[:, None] == torch.tensor(self.bits, device=bits.device)).int().argmax(1)
        scale, most = scales[depths][:, :, None, None], (2**bits - 1)[:, None, None, None]
        zero = zero_point(centre.detach()[:, None, None], scale.detach(), bits[:, None, None, None])
        steps = latents / scale
        q = steps + torch.rand_like(steps) - 0.5 if noise else steps + (steps.round() - steps).detach()
        q = torch.minimum((q + zero).clamp(min=0), most)
        return (q - zero) * scale, rate_bound(latents, scales)[depths]


def zero_point(centre: torch.Tensor, scale: torch.Tensor, bits: int | torch.Tensor) -> torch.Tensor:
    """Puts the mean of each channel in the middle of the alphabet. Whole numbers within it, of the shape that centre,
    scale and bits broadcast to."""
    middle = 2 ** (bits - 1) - (centre / scale).round()
    return torch.minimum(middle.clamp(min=0), torch.as_tensor(2**bits - 1, dtype=middle.dtype, device=middle.device))


def rate_bound(latents: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Bits per symbol [D, C] of latents [N, C, h, w] in units of each of `scales` [D, C], coded channel by channel with
    what the coder's contexts see: the places left and above and the channels before.

    The entropy of a whole number of variance v is at most ½ log2(2πe (v + 1/12)) (Cover and Thomas, 2006, theorem
    8.6.5 and problem 8.7). Here v is what a linear prediction leaves: over channels with their neighbours, in coding
    order, the squared diagonal of the covariance's Cholesky factor. Differentiable, with nothing to learn.
    """
    x = latents - latents.mean((0, 2, 3), keepdim=True)
    left, above = F.pad(x, (1, 0))[..., :-1], F.pad(x, (0, 0, 1, 0))[..., :-1, :]
    # In f64, whatever the convolutions run in: at eight bits variances span six orders of magnitude.
    known = torch.stack([left, above, x], 2).flatten(1, 2).transpose(0, 1).flatten(1).double()
    with torch.autocast(x.device.type, enabled=False):
        covariance = known @ known.T / known.shape[1]
    steps = 1 / scales.double().repeat_interleave(3, 1)
    covariance = covariance * steps[:, :, None] * steps[:, None, :]
    covariance = covariance + torch.eye(len(known), dtype=torch.float64, device=x.device) / 12
    # Without looking whether it went well, for which a GPU's queue would have to drain: the diagonal above sees to that.
    left_over = torch.linalg.cholesky_ex(covariance).L.diagonal(dim1=1, dim2=2)[:, 2::3]
    return 0.5 * torch.log2(2 * math.pi * math.e * left_over.square()).float()


def quantise(latents: np.ndarray, scale: np.ndarray, zero: np.ndarray, bits: int) -> np.ndarray:
    """The runtime's arithmetic, in f32: latents [..., C, h, w] to symbols u8. A NaN quantises to the zero point."""
    steps = np.nan_to_num(np.rint(latents.astype(np.float32) / _column(scale)), nan=0.0)
    return np.clip(steps + _column(zero), 0, 2**bits - 1).astype(np.uint8)


def dequantise(symbols: np.ndarray, scale: np.ndarray, zero: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Symbols [..., c, h, w] of the first c channels to latents f32 [..., C, h, w]; the rest takes the prior mean."""
    c = symbols.shape[-3]
    sent = (symbols.astype(np.float32) - _column(zero[:c])) * _column(scale[:c])
    shape = (*symbols.shape[:-3], len(prior) - c, *symbols.shape[-2:])
    return np.concatenate([sent, np.broadcast_to(_column(prior[c:]), shape)], axis=-3).astype(np.float32)


def _column(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float32)[:, None, None]
