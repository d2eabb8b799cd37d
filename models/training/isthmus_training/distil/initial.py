"""Where learning starts: the best linear encoder and decoder for what the rest of the network hears, in closed form.

All tensors at the cut are seen as one vector for each place of the latents' grid. The squared error that counts is
weighted by how the outputs depend on each direction of that vector (the outputs' gradients, averaged over pictures); in
that metric the principal components are the latents, and one step of the quantiser suits them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from .network import Adapter, Ratio, TensorEncoder


class Moments:
    """Mean, covariance and the metric of the vectors at places, added up over pictures."""

    def __init__(self, ratios: Sequence[Ratio]) -> None:
        self.ratios, self.places, self.gradients = list(ratios), 0, 0
        self.sum = self.square = self.metric = torch.zeros(())

    def add(self, tensors: Sequence[torch.Tensor]) -> None:
        x = self.vectors(tensors)
        self.sum, self.square, self.places = self.sum + x.sum(0), self.square + x.T @ x, self.places + len(x)

    def add_gradients(self, gradients: Sequence[torch.Tensor]) -> None:
        """Gradients of a random combination of the outputs, whose mean square is what a change does to them."""
        # A coarser tensor's change is shared by the places that it covers.
        shared = [g / ratio.coarser**2 for g, ratio in zip(gradients, self.ratios, strict=True)]
        g = self.vectors(shared)
        self.metric, self.gradients = self.metric + g.T @ g, self.gradients + len(g)

    @staticmethod
    def joined(parts: Sequence[Moments]) -> Moments:
        whole = Moments(parts[0].ratios)
        for part in parts:
            whole.sum, whole.square, whole.metric = whole.sum + part.sum, whole.square + part.square, whole.metric + part.metric
            whole.places, whole.gradients = whole.places + part.places, whole.gradients + part.gradients
        return whole

    def vectors(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Tensors [N, C_i, h_i, w_i] as [places, D], in f64."""
        planes = []
        for tensor, ratio in zip(tensors, self.ratios, strict=True):
            if ratio.coarser > 1:
                planes.append(F.interpolate(tensor, scale_factor=ratio.coarser))
            else:
                planes.append(F.pixel_unshuffle(tensor, ratio.finer))
        return torch.cat([plane.permute(0, 2, 3, 1).flatten(0, 2) for plane in planes], 1).double()


def components(moments: Moments, count: int, floor: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean [D], encoder [count, D], decoder [D, count] and variances [count] of the first components.

    `floor` of the metric is the plain error over each value's variance: what the outputs did not depend on in these
    pictures may still matter.
    """
    mean = moments.sum / moments.places
    covariance = moments.square / moments.places - mean[:, None] * mean[None]
    metric = moments.metric / max(1, moments.gradients)
    plain = torch.diag(1 / covariance.diagonal().clamp(min=1e-9 * float(covariance.diagonal().mean())))
    metric = metric / (metric * covariance).sum().clamp(min=1e-30) + floor * plain / len(plain)
    values, directions = torch.linalg.eigh(metric)
    values = values.clamp(min=1e-12 * float(values.max()))
    root = directions * values.sqrt() @ directions.T
    back = directions / values.sqrt() @ directions.T
    variances, axes = torch.linalg.eigh(root @ covariance @ root)
    axes = axes.flip(1)[:, :count]
    return mean, axes.T @ root, back @ axes, variances.flip(0)[:count].clamp(min=0)


@torch.no_grad()
def start_linear(encoder: nn.Module, adapter: Adapter, moments: Moments, floor: float = 0.3) -> torch.Tensor:
    """Gives the linear parts the closed form's weights. Gives the latents' standard deviations [C]."""
    count = adapter.first.conv.in_channels
    mean, into, out_of, variances = components(moments, count, floor)
    at = 0
    for number, (ratio, decoder) in enumerate(zip(moments.ratios, adapter.linear, strict=True)):
        size = _channels(decoder) * ratio.finer**2
        part = slice(at, at + size)
        if isinstance(encoder, TensorEncoder):
            _fill_encoder(encoder.linear[number], ratio, into[:, part], -into[:, part] @ mean[part])
        _fill_decoder(decoder, ratio, out_of[part], mean[part])
        at += size
    return variances.sqrt().float()


@torch.no_grad()
def rescale(encoder: nn.Module, adapter: Adapter, step: torch.Tensor) -> None:
    """Makes the linear parts give and take the latents in units of `step`."""
    if isinstance(encoder, TensorEncoder):
        for parameter in encoder.linear.parameters():
            parameter.div_(step)
    for layer in adapter.linear:
        assert isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
        layer.weight.mul_(step)


def _channels(decoder: nn.Module) -> int:
    assert isinstance(decoder, (nn.Conv2d, nn.ConvTranspose2d))
    return decoder.out_channels


def _fill_encoder(layer: nn.Module, ratio: Ratio, matrix: torch.Tensor, bias: torch.Tensor) -> None:
    assert isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)) and layer.bias is not None
    outputs = len(matrix)
    if isinstance(layer, nn.ConvTranspose2d):
        layer.weight.copy_(matrix.T[:, :, None, None].expand_as(layer.weight))
    else:
        layer.weight.copy_(matrix.reshape(outputs, -1, ratio.finer, ratio.finer))
    layer.bias.copy_(bias)


def _fill_decoder(layer: nn.Module, ratio: Ratio, matrix: torch.Tensor, mean: torch.Tensor) -> None:
    assert isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)) and layer.bias is not None
    if isinstance(layer, nn.ConvTranspose2d):
        latents = matrix.shape[1]
        layer.weight.copy_(matrix.reshape(-1, ratio.finer, ratio.finer, latents).permute(3, 0, 1, 2))
        # One bias for the places that a transposed convolution tells apart: the tensor's own mean hardly does.
        layer.bias.copy_(mean.reshape(-1, ratio.finer**2).mean(1))
    else:
        layer.weight.copy_((matrix / ratio.coarser**2)[:, :, None, None].expand_as(layer.weight))
        layer.bias.copy_(mean)


def sensitivities(
    meaning: Callable[[Sequence[torch.Tensor]], list[torch.Tensor]], tensors: Sequence[torch.Tensor], seed: int
) -> list[torch.Tensor]:
    """Gradients, with respect to the tensors at the cut, of all that `meaning` makes of them, added up with random signs."""
    generator = torch.Generator().manual_seed(seed)
    inputs = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    total = torch.zeros((), device=inputs[0].device)
    for value in meaning(inputs):
        signs = torch.randint(0, 2, value.shape, generator=generator) * 2.0 - 1.0
        total = total + (value.float() * signs.to(value.device)).sum()
    total.backward()
    return [torch.zeros_like(x) if x.grad is None else x.grad for x in inputs]


def channel_moments(tensor: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Of each channel the mean, the mean square, and the mean square of the gradient, [3, C] in f64."""
    tensor, gradient = tensor.double(), gradient.double()
    axes = (0, 2, 3)
    return torch.stack([tensor.mean(axes), tensor.square().mean(axes), gradient.square().mean(axes)])


def channel_weights(moments: Sequence[torch.Tensor], places: Sequence[int]) -> list[torch.Tensor]:
    """What the squared error of each channel counts, half by what the outputs hear of it, half by its own variance; an
    error of all of the variance is 1. `moments` as of `channel_moments`, of each tensor, `places` those of its map."""
    variances = [(square - mean.square()).clamp(min=1e-12) for mean, square, _ in moments]
    heard = sum(float((own[2] * v).sum()) * n for own, v, n in zip(moments, variances, places, strict=True))
    found = []
    for own, variance, n in zip(moments, variances, places, strict=True):
        plain = 1 / (variance * len(variance) * len(moments))
        found.append((0.5 * own[2] * n / max(heard, 1e-30) + 0.5 * plain).float())
    return found
