"""Training of the full network, with or without an outside teacher."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Iterable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from . import begin, loop
from .config import Config, Full
from .data import Augmentation, Pictures, Views, normalise, random_views, shuffled
from .foreign import Foreign, create
from .network import Backbone, Encoder, Inherited, Prefix
from .settle import settle
from .teacher import Answers, Teacher

HINT_RATE = 4.0
"""The share of the learning rate that the layers have that read hints: they start from nothing."""


def build(config: Config, classes: int, pretrained: bool = False) -> Backbone | Foreign:
    """The full network, untrained, or with a foreign one's `pretrained` weights."""
    settings = config.network
    if settings.backbone:
        stages = [stage for stage in (config.full, config.stage1, config.stage2, config.stage3) if stage.enabled]
        sizes = {scaled(config.data.size, scale) for stage in stages for _, scale in stage.phases}
        size = tuple(config.data.size)
        model = create(settings.backbone, classes, size, pretrained)
        network = Foreign(model, settings.backbone, size, math.prod(config.split.strides), settings.cut)
        network.check(sizes)
        return network
    if settings.prefix_channels:
        prefix = Prefix(settings.prefix_channels, settings.prefix_blocks, settings.channels[0])
    else:
        prefix = Inherited(encoder(config), settings.channels[0])
    return Backbone(prefix, settings.channels, settings.blocks, classes)


def encoder(config: Config) -> Encoder:
    return Encoder(config.split.head, config.split.strides, config.split.widths)


def train(
    config: Config,
    train_set: Pictures,
    val_set: Pictures,
    teacher: Teacher | None,
    workers: loop.Workers,
    out: Path,
    start: Path | None = None,
) -> None:
    """Trains the network; `out/full.pt` is the checkpoint that a stopped run continues and `restore` reads. It starts
    as that of the bundle in `start`, if that is one."""
    settings = config.full
    torch.manual_seed(config.seed)
    fresh = not (out / "full.pt").exists()
    network = build(config, len(train_set.classes), config.network.pretrained and fresh)
    if start and begin.is_bundle(start) and fresh:
        _begin(network, config, train_set, start)
    outputs = outputs_for(network, teacher)
    hints = hint_layers(network, teacher, config) if teacher and config.distil.hints else None
    both = nn.ModuleList([part for part in (network, outputs, hints) if part is not None])
    both.to(workers.device, memory_format=torch.channels_last)
    optimiser = _optimiser(settings, [network, outputs] if outputs else [network], hints)
    ranks = workers.ranks
    ranks.begin_alike([both])
    average = loop.Average(network, settings.average)

    steps = len(shuffled(len(train_set), settings.batch, 0))
    schedule = loop.Schedule(settings.learning_rate, settings.warmup, settings.phases, settings.unit, steps)
    augmentation = augmentation_of(config)
    measuring, saving = loop.Pace(schedule, ranks), loop.Pace(schedule, ranks)

    history: list[dict[str, float]] = []
    checkpoint = out / "full.pt"
    if state := loop.restore(checkpoint):
        both.load_state_dict(state["both"])
        average.module.load_state_dict(state["average"])
        average.steps = state["steps"]
        optimiser.load_state_dict(state["optimiser"])
        history = state["history"]
        schedule.resume(len(history) * steps, sum(values["seconds"] for values in history))
        if not schedule.done:
            print(f"full: continues after epoch {len(history)}", flush=True)

    while not schedule.done:
        both.train()
        epoch, losses, began = len(history), [], schedule.seconds
        batches = shuffled(len(train_set), settings.batch, config.seed * 1000 + epoch)
        for step, batch in enumerate(batches):
            size = scaled(config.data.size, schedule.scale)
            for group in optimiser.param_groups:
                group["lr"] = schedule.rate * group["share"]

            def micro(item: tuple[int, np.ndarray]) -> torch.Tensor:
                at, index = item
                seed = hash((config.seed, epoch, step, at)) & 0xFFFFFFFF
                views = random_views(train_set, index, size, augmentation, config.data.mean, config.data.std, seed)
                answers = teacher.answers(views) if teacher else None
                with workers.autocast():
                    _, *end = network.trunk()
                    maps = feature_maps(network, views.pictures.to(workers.device))
                    loss = task_loss(config, maps[-1], end, outputs, views, train_set.labels, teacher, answers)
                    if hints is not None:
                        loss = loss + config.distil.hint * hint_loss(hints, maps, answers)
                (loss * (len(index) / len(batch))).backward()
                return loss.detach()

            losses += workers.share(micro, enumerate(workers.micro_batches(batch)))
            ranks.add_gradients(both.parameters())
            optimiser.step()
            optimiser.zero_grad()
            average.update(network)
            schedule.advance(ranks)
            if schedule.done:
                break
        ranks.average_statistics([both, average.module])
        # Asking for the losses waits for a GPU: until here it had only been told what to do.
        values = {"size": size[0], "loss": float(torch.stack(losses).mean()) if losses else math.nan}
        schedule.advance(ranks, steps=0)
        seconds = schedule.seconds - began
        # An encoder that the head shares has norms of every width, which only the split network's training serves.
        if schedule.done and not isinstance(network.prefix, Inherited):
            settle(config, average.module, train_set)
        if measuring.due:
            values["accuracy"] = measuring.run(lambda: accuracy(average.module, val_set, config, workers))
        loop.report("full", epoch + 1, schedule, (step + 1) * settings.batch / seconds, values, ranks)
        history.append(values | {"seconds": seconds})
        if saving.due:
            state = dict(both=both.state_dict(), average=average.module.state_dict(), steps=average.steps)
            state |= dict(optimiser=optimiser.state_dict(), history=history)
            saving.run(lambda: loop.save(checkpoint, state, ranks))


def untrained(config: Config, classes: int, teacher: Teacher | None) -> tuple[Backbone | Foreign, nn.Conv2d | None]:
    """The network and the layer for the teacher's outputs, where the split network learns nothing from a trained one."""
    torch.manual_seed(config.seed)
    network = build(config, classes)
    return network, outputs_for(network, teacher)


def take(config: Config, train_set: Pictures, bundle: Path, workers: loop.Workers, out: Path) -> None:
    """Writes `out/full.pt` with the bundle's full network as it is."""
    network = build(config, len(train_set.classes))
    _begin(network, config, train_set, bundle)
    state = network.state_dict()
    own = {f"0.{key}": value for key, value in state.items()}
    loop.save(out / "full.pt", dict(both=own, average=state, steps=0, history=[]), workers.ranks)


def restore(config: Config, classes: int, out: Path) -> tuple[Backbone | Foreign, nn.Conv2d | None]:
    """The averaged network of a run's checkpoint, finished or not, and the layer that learned the teacher's outputs."""
    state = loop.restore(out / "full.pt")
    if state is None:
        raise ValueError(f"{out} holds no full.pt: train the full network first")
    network, outputs = build(config, classes), None
    network.load_state_dict(state["average"])
    if "1.weight" in state["both"]:
        outputs = outputs_layer(network, len(state["both"]["1.bias"]))
        outputs.load_state_dict({key: state["both"][f"1.{key}"] for key in ("weight", "bias")})
    return network, outputs


def feature_maps(network: Backbone | Foreign, x: torch.Tensor) -> list[torch.Tensor]:
    """The last feature map [N, C, h, w] on each grid, from the finest to the last."""
    maps: dict[torch.Size, torch.Tensor] = {}
    for layer in network.layers():
        x = layer(x)
        maps[x.shape[2:]] = x
    return list(maps.values())


@torch.no_grad()
def hint_layers(network: Backbone | Foreign, teacher: Teacher, config: Config) -> nn.ModuleList:
    """For each of the teacher's features the 1×1 convolution that reads it off the network's; never exported."""
    x = torch.zeros(1, 3, *reversed(config.data.size))
    own = {map.shape[2:]: map.shape[1] for map in feature_maps(network.eval(), x)}
    layers = nn.ModuleList()
    for name, wanted in zip(config.distil.hints, teacher.see(x).features):
        if wanted.shape[2:] not in own:
            raise ValueError(f"distil.hints: {name} lies on a grid of {tuple(wanted.shape[2:])}, which the network does not have")
        layers.append(nn.Conv2d(own[wanted.shape[2:]], wanted.shape[1], 1))
    return layers


def hint_loss(layers: nn.ModuleList, maps: list[torch.Tensor], answers: Answers) -> torch.Tensor:
    """The squared error of each hint over the variance of its channels, summed over hints."""
    own, losses = {map.shape[2:]: map for map in maps}, []
    for layer, wanted in zip(layers, answers.features):
        wanted = wanted.to(maps[0].device)
        variance = (wanted - wanted.mean((0, 2, 3), keepdim=True)).square().mean()
        losses.append((layer(own[wanted.shape[2:]]).float() - wanted).square().mean() / variance)
    return torch.stack(losses).sum()


def outputs_for(network: Backbone | Foreign, teacher: Teacher | None) -> nn.Conv2d | None:
    """The layer for a teacher's outputs, if it has them for each place and the network such a map."""
    return outputs_layer(network, teacher.outputs) if teacher and teacher.outputs and network.last else None


def outputs_layer(network: Backbone | Foreign, count: int) -> nn.Conv2d:
    """Learns all the teacher's outputs at each place of the last feature map; never exported."""
    return nn.Conv2d(network.last, count, 1)


@torch.no_grad()
def accuracy(network: nn.Module, pictures: Pictures, config: Config, workers: loop.Workers, batch: int = 32) -> float:
    """Share of the validation pictures (stored at the input's size) whose class comes out on top."""
    network.eval()

    def correct(at: int) -> int:
        with torch.no_grad(), workers.autocast():
            x = normalise(torch.as_tensor(pictures.pixels[at : at + batch]), config.data.mean, config.data.std)
            top = network(x.to(workers.device)).argmax(1)
        return int((top == pictures.labels[at : at + batch].to(top.device)).sum())

    return sum(workers.map(correct, range(0, len(pictures), batch))) / len(pictures)


def augmentation_of(config: Config) -> Augmentation:
    return Augmentation(config.full.scale, config.full.jitter, config.full.mix, config.full.mirror)


def plain_views(config: Config, pictures: Pictures, count: int) -> torch.Tensor:
    """Lightly augmented pictures [count, 3, H, W], drawn with the run's seed, at the input's full size."""
    light = Augmentation(0.8, 0.1, 0.0, config.full.mirror)
    index = np.random.default_rng(config.seed).permutation(len(pictures))[:count]
    mean, std = config.data.mean, config.data.std
    return random_views(pictures, index, tuple(config.data.size), light, mean, std, config.seed).pictures.cpu()


def _begin(network: Backbone | Foreign, config: Config, train_set: Pictures, bundle: Path) -> None:
    begin.begin_full(network, bundle, plain_views(config, train_set, begin.PICTURES))


def scaled(size: list[int], scale: float) -> tuple[int, int]:
    """(width, height) scaled and rounded to what the strides divide."""
    width, height = (max(32, round(side * scale / 32) * 32) for side in size)
    return width, height


def task_loss(
    config: Config,
    last: torch.Tensor,
    end: Iterable[nn.Module],
    outputs: nn.Conv2d | None,
    views: Views,
    labels: torch.Tensor,
    teacher: Teacher | None,
    answers: Answers | None,
) -> torch.Tensor:
    """Cross-entropy of the logits that the layers in `end` make of the last feature map [N, C'', H/32, W/32], with the
    mixed hard labels and, given a teacher, with its soft ones (Hinton et al., 2015).

    The teacher's outputs are learnt for the whole view and for each cell of the feature map (token labelling, Jiang et
    al., 2021): many more answers per picture than one class of a few. A network without such a map, or a teacher that
    sees the views (`outputs` none), gives the answer for the view alone.
    """
    logits, device = nn.Sequential(*end)(last).float(), last.device
    smoothing, classes = config.full.smoothing, logits.shape[1]
    hard = F.one_hot(labels[views.index], classes) * (1 - smoothing) + smoothing / classes
    loss = F.cross_entropy(logits, views.mix(hard).to(device))
    if teacher is None:
        return loss
    weights, t = config.distil, config.distil.temperature

    def soft(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        likely = (wanted / t).softmax(1)
        return t * t * F.cross_entropy(logits / t, (likely if answers.mixed else views.mix(likely)).to(device))

    loss = weights.hard * loss + weights.classes * soft(logits, answers.whole[:, teacher.columns])
    if outputs is None or answers.cells is None:
        return loss
    outputs_map = outputs(last).float()
    loss = loss + weights.outputs * soft(outputs_map.mean((2, 3)), answers.whole)
    return loss + weights.cells * soft(outputs_map, answers.cells)


def _optimiser(settings: Full, learnt: Iterable[nn.Module], hints: nn.Module | None) -> torch.optim.Optimizer:
    """Weights decay, biases and batch norm's parameters do not. Each group's `share` is of the learning rate."""
    parameters = [parameter for module in learnt for parameter in module.parameters()]
    groups = [
        dict(params=[p for p in parameters if p.ndim > 1], weight_decay=settings.weight_decay, share=1.0),
        dict(params=[p for p in parameters if p.ndim == 1], weight_decay=0.0, share=1.0),
    ]
    if hints is not None:
        groups.append(dict(params=list(hints.parameters()), weight_decay=0.0, share=HINT_RATE))
    if settings.optimiser == "adamw":
        return torch.optim.AdamW(groups, settings.learning_rate, fused=True)
    return torch.optim.SGD(groups, settings.learning_rate, momentum=0.9, nesterov=True, fused=True)
