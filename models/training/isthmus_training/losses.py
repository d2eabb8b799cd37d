"""What networks are trained by: labels, an outside teacher's answers, another network's features."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional as F

from .config import Config
from .data import Views
from .network import FullNetwork
from .teacher import Answers, OnlineTeacher, Teacher


class TaskLoss:
    """Cross-entropy with the mixed hard labels and, given a teacher, with its soft ones (Hinton et al., 2015).

    The teacher's outputs are learnt for the whole view and, through the layer `outputs`, for each cell of the last feature
    map (token labelling, Jiang et al., 2021): many more answers per picture than one class of a few. A network without
    such a map, or with a teacher that sees the views (`outputs` none), gives the answer for the view alone.
    """

    def __init__(self, config: Config, labels: torch.Tensor, teacher: Teacher | None, outputs: nn.Module | None) -> None:
        """`labels` [n] are those of all training pictures."""
        self.smoothing, self.weights = config.full.smoothing, config.distil
        self.labels, self.teacher, self.outputs = labels, teacher, outputs

    def __call__(self, last: torch.Tensor, end: Iterable[nn.Module], views: Views, answers: Answers | None) -> torch.Tensor:
        """Of the logits that the layers in `end` make of the `last` feature map [N, C'', H/32, W/32]; `answers` are the
        teacher's."""
        logits = nn.Sequential(*end)(last).float()
        hard = F.one_hot(self.labels[views.index], logits.shape[1]) * (1 - self.smoothing) + self.smoothing / logits.shape[1]
        loss = F.cross_entropy(logits, views.mix(hard).to(last.device))
        if self.teacher is None or answers is None:
            return loss
        weights = self.weights
        loss = weights.hard * loss
        loss = loss + weights.classes * self._soft(logits, answers.whole[:, self.teacher.columns], views, answers.mixed)
        if self.outputs is None or answers.cells is None:
            return loss
        outputs = self.outputs(last).float()
        loss = loss + weights.outputs * self._soft(outputs.mean((2, 3)), answers.whole, views, answers.mixed)
        return loss + weights.cells * self._soft(outputs, answers.cells, views, answers.mixed)

    def _soft(self, logits: torch.Tensor, wanted: torch.Tensor, views: Views, mixed: bool) -> torch.Tensor:
        t = self.weights.temperature
        likely = (wanted / t).softmax(1)
        return t * t * F.cross_entropy(logits / t, (likely if mixed else views.mix(likely)).to(logits.device))


def outputs_for(network: FullNetwork, teacher: Teacher | None) -> nn.Conv2d | None:
    """The layer for a teacher's outputs, if it has them for each place and the network such a map."""
    return outputs_layer(network, teacher.outputs) if teacher and teacher.outputs and network.last else None


def outputs_layer(network: FullNetwork, count: int) -> nn.Conv2d:
    """Learns all the teacher's outputs at each place of the last feature map; never exported."""
    if network.last is None:
        raise ValueError("the network has no feature map of the stride on which a teacher's labels lie")
    return nn.Conv2d(network.last, count, 1)


def feature_maps(network: FullNetwork, x: torch.Tensor) -> list[torch.Tensor]:
    """The last feature map [N, C, h, w] on each grid, from the finest to the last."""
    maps: dict[torch.Size, torch.Tensor] = {}
    for layer in network.layers():
        x = layer(x)
        maps[x.shape[2:]] = x
    return list(maps.values())


@torch.no_grad()
def hint_layers(network: FullNetwork, teacher: Teacher | None, config: Config) -> nn.ModuleList | None:
    """For each of the teacher's features the 1×1 convolution that reads it off the network's; never exported. None where
    no features are to be learnt."""
    if not (isinstance(teacher, OnlineTeacher) and config.distil.hints):
        return None
    x = torch.zeros(1, 3, *reversed(config.data.size))
    own = {map.shape[2:]: map.shape[1] for map in feature_maps(network.eval(), x)}
    layers = nn.ModuleList()
    for name, wanted in zip(config.distil.hints, teacher.predict(x).features, strict=True):
        if wanted.shape[2:] not in own:
            raise ValueError(
                f"distil.hints: {name} lies on a grid of {tuple(wanted.shape[2:])}, which the network does not have"
            )
        layers.append(nn.Conv2d(own[wanted.shape[2:]], wanted.shape[1], 1))
    return layers


def hint_loss(layers: nn.ModuleList, maps: list[torch.Tensor], answers: Answers) -> torch.Tensor:
    """The squared error of each hint over the variance of its channels, summed over hints."""
    own = {map.shape[2:]: map for map in maps}
    losses = []
    for layer, features in zip(layers, answers.features, strict=True):
        wanted = features.to(maps[0].device)
        losses.append(feature_error(layer(own[wanted.shape[2:]]), wanted))
    return torch.stack(losses).sum()


def feature_error(features: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The squared error of features [N, C, h, w] over the variance of the wanted ones within their channels."""
    wanted = wanted.float()
    variance = (wanted - wanted.mean((0, 2, 3), keepdim=True)).square().mean()
    return (features.float() - wanted).square().mean() / variance


def normalised_channels(features: torch.Tensor) -> torch.Tensor:
    """Each channel of [N, C, h, w] with mean 0 and variance 1."""
    features = features.float()
    variance, mean = torch.var_mean(features, (0, 2, 3), keepdim=True, correction=0)
    return (features - mean) * torch.rsqrt(variance + 1e-5)
