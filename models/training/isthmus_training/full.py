"""Training of the full network, with or without an outside teacher."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Iterable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from . import loop
from .config import Config
from .data import Augmentation, Pictures, Views, normalise, random_views, shuffled
from .foreign import Foreign, create
from .network import Backbone, Encoder, Inherited, Prefix
from .teacher import LabelMaps

MICRO_BATCH = 32


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
    config: Config, train_set: Pictures, val_set: Pictures, teacher: LabelMaps | None, workers: loop.Workers, out: Path
) -> None:
    """Trains the network; `out/full.pt` is the checkpoint that a stopped run continues and `restore` reads."""
    settings = config.full
    torch.manual_seed(config.seed)
    network = build(config, len(train_set.classes), config.network.pretrained and not (out / "full.pt").exists())
    outputs = outputs_layer(network, teacher.maps.shape[1]) if teacher and network.last else None
    both = nn.ModuleList([network, outputs] if outputs else [network])
    both.to(workers.device, memory_format=torch.channels_last)
    optimiser = _optimiser(both, settings.learning_rate, settings.weight_decay)
    average = loop.Average(network, settings.average)

    steps = len(shuffled(len(train_set), settings.batch, 0))
    schedule = loop.Schedule(settings.learning_rate, settings.warmup, settings.phases, settings.unit, steps)
    augmentation = augmentation_of(config)

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
                group["lr"] = schedule.rate

            def micro(item: tuple[int, np.ndarray]) -> float:
                at, index = item
                seed = hash((config.seed, epoch, step, at)) & 0xFFFFFFFF
                views = random_views(train_set, index, size, augmentation, config.data.mean, config.data.std, seed)
                with workers.autocast():
                    body, *end = network.trunk()
                    last = body(network.prefix(views.pictures.to(workers.device)))
                    loss = task_loss(config, last, end, outputs, views, train_set.labels, teacher)
                (loss * (len(index) / len(batch))).backward()
                return loss.item()

            parts = np.array_split(batch, max(1, round(len(batch) / MICRO_BATCH)))
            losses += workers.map(micro, enumerate(parts))
            optimiser.step()
            optimiser.zero_grad()
            average.update(network)
            schedule.advance()
            if schedule.done:
                break
        seconds = schedule.seconds - began
        values = {"size": size[0], "loss": float(np.mean(losses))}
        if schedule.done or epoch % 4 == 3:
            values["accuracy"] = accuracy(average.module, val_set, config, workers)
        loop.report("full", epoch + 1, schedule, (step + 1) * settings.batch / seconds, values)
        history.append(values | {"seconds": seconds})
        state = dict(both=both.state_dict(), average=average.module.state_dict(), steps=average.steps)
        loop.save(checkpoint, state | dict(optimiser=optimiser.state_dict(), history=history))


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


def outputs_layer(network: Backbone | Foreign, count: int) -> nn.Conv2d:
    """Learns all the teacher's outputs at each place of the last feature map; never exported."""
    return nn.Conv2d(network.last, count, 1)


@torch.no_grad()
def accuracy(network: nn.Module, pictures: Pictures, config: Config, workers: loop.Workers, batch: int = 32) -> float:
    """Share of the validation pictures (stored at the input's size) whose class comes out on top."""
    network.eval()

    def correct(at: int) -> int:
        with torch.no_grad(), workers.autocast():
            x = normalise(torch.from_numpy(pictures.pixels[at : at + batch]), config.data.mean, config.data.std)
            top = network(x.to(workers.device)).argmax(1).cpu()
        return int((top == pictures.labels[at : at + batch]).sum())

    return sum(workers.map(correct, range(0, len(pictures), batch))) / len(pictures)


def augmentation_of(config: Config) -> Augmentation:
    return Augmentation(config.full.scale, config.full.jitter, config.full.mix, config.full.mirror)


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
    teacher: LabelMaps | None,
) -> torch.Tensor:
    """Cross-entropy of the logits that the layers in `end` make of the last feature map [N, C'', H/32, W/32], with the
    mixed hard labels and, given a teacher, with its soft ones (Hinton et al., 2015).

    The teacher's outputs are learnt for the whole view and for each cell of the feature map (token labelling, Jiang et
    al., 2021): many more answers per picture than one class of a few. A network without such a map (`outputs` none)
    learns the teacher's answer for the view alone.
    """
    logits, device = nn.Sequential(*end)(last).float(), last.device
    smoothing, classes = config.full.smoothing, logits.shape[1]
    hard = F.one_hot(labels[views.index], classes) * (1 - smoothing) + smoothing / classes
    loss = F.cross_entropy(logits, views.mix(hard).to(device))
    if teacher is None:
        return loss
    weights, t = config.distil, config.distil.temperature
    cells = teacher.logits(views.index, views.boxes, tuple(views.kept.shape)) / t
    whole = cells.mean((2, 3))

    def soft(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return t * t * F.cross_entropy(logits / t, views.mix(wanted.softmax(1)).to(device))

    loss = weights.hard * loss + weights.classes * soft(logits, whole[:, teacher.columns])
    if outputs is None:
        return loss
    outputs_map = outputs(last).float()
    loss = loss + weights.outputs * soft(outputs_map.mean((2, 3)), whole)
    return loss + weights.cells * soft(outputs_map, cells)


def _optimiser(module: nn.Module, rate: float, decay: float) -> torch.optim.Optimizer:
    """Weights decay, biases and batch norm's parameters do not."""
    matrices = [p for p in module.parameters() if p.ndim > 1]
    vectors = [p for p in module.parameters() if p.ndim == 1]
    groups = [dict(params=matrices, weight_decay=decay), dict(params=vectors, weight_decay=0.0)]
    return torch.optim.SGD(groups, rate, momentum=0.9, nesterov=True, fused=True)
