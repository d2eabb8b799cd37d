"""The full network: built, trained with or without an outside teacher, restored from its checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from . import checkpoint, libraries, warm_start
from .config import Config, Full, Stage
from .data import Augmentation, Pictures, random_views
from .loop import Loop, MicroBatch, Objective, Run, fractions_right, scaled
from .losses import TaskLoss, feature_maps, hint_layers, hint_loss, outputs_for, outputs_layer
from .network import Backbone, Encoder, FullNetwork, Inherited, Prefix
from .recalibrate import recalibrate
from .teacher import Teacher
from .traced import TracedBackbone

FILE = "full.pt"
HINT_RATE = 4.0
"""The multiple of the learning rate that the layers have that read hints: they start from nothing."""


def build(config: Config, classes: int, pretrained: bool = False) -> FullNetwork:
    """The full network, untrained, or with the `pretrained` weights of a library's."""
    settings = config.network
    if settings.backbone:
        every: list[Full | Stage] = [config.full, *config.stages.values()]
        stages = [stage for stage in every if stage.enabled]
        sizes = {scaled(config.data.size, scale) for stage in stages for _, scale in stage.phases}
        width, height = config.data.size
        model = libraries.create(settings.backbone, classes, (width, height), pretrained)
        network = TracedBackbone(model, settings.backbone, (width, height), config.split.stride, settings.cut)
        network.check(sizes)
        return network
    prefix: Prefix | Inherited
    if settings.prefix_channels:
        prefix = Prefix(settings.prefix_channels, settings.prefix_blocks, settings.channels[0])
    else:
        split = config.split
        prefix = Inherited(Encoder(split.head, split.strides, split.widths), settings.channels[0])
    return Backbone(prefix, settings.channels, settings.blocks, classes)


def train(run: Run) -> None:
    """Trains the network; `full.pt` in the run's folder is the checkpoint that a stopped run continues and `restore` reads.
    It starts as that of the bundle in `run.start`, if that is one."""
    config = run.config
    torch.manual_seed(config.seed)
    fresh = not (run.folder / FILE).exists()
    network = build(config, len(run.pictures.train.classes), config.network.pretrained and fresh)
    if run.start and warm_start.is_bundle(run.start) and fresh:
        warm_start.load_full(network, run.start, plain_views(config, run.pictures.train, warm_start.PICTURES))
    outputs = outputs_for(network, run.teacher)
    hints = hint_layers(network, run.teacher, config)
    Loop(FullObjective(run, network, outputs, hints), run).train()


class FullObjective(Objective[FullNetwork]):
    """The task of the full network: labels, and what a teacher adds to them."""

    name, number = "full", 0

    def __init__(self, run: Run, network: FullNetwork, outputs: nn.Conv2d | None, hints: nn.ModuleList | None) -> None:
        self.run, self.settings = run, run.config.full
        self.network, self.averaged, self.hints = network, network, hints
        parts = {"network": network, "outputs": outputs, "hints": hints}
        self.module = nn.ModuleDict({name: part for name, part in parts.items() if part is not None})
        self.module.to(run.workers.device).to(memory_format=torch.channels_last)
        self.optimiser = _optimiser(run.config.full, [network, outputs] if outputs else [network], hints)
        self.task = TaskLoss(run.config, run.pictures.train.labels, run.teacher, outputs)
        run.workers.ranks.broadcast_weights([self.module])

    def begin_epoch(self) -> None:
        self.module.train()

    def backward(self, part: MicroBatch) -> dict[str, torch.Tensor]:
        run = self.run
        views = run.views(part)
        answers = run.teacher.answers(views) if run.teacher else None
        with run.workers.autocast():
            _, *end = self.network.trunk()
            maps = feature_maps(self.network, views.pictures.to(run.workers.device))
            loss = self.task(maps[-1], end, views, answers)
            if self.hints is not None and answers is not None:
                loss = loss + run.config.distil.hint * hint_loss(self.hints, maps, answers)
        (loss * part.weight).backward()
        return {"loss": loss.detach()}

    def finish(self, kept: FullNetwork) -> None:
        # An encoder that the head shares has norms of every width, which only the split network's training serves.
        if not isinstance(kept.prefix, Inherited):
            recalibrate(self.run.config, kept, self.run.pictures.train)

    def measure(self, kept: FullNetwork, done: bool) -> dict[str, float]:
        kept.eval()
        (accuracy,) = fractions_right(self.run, lambda x: [kept(x)])
        return {"accuracy": accuracy}


def untrained(config: Config, classes: int, teacher: Teacher | None) -> tuple[FullNetwork, nn.Conv2d | None]:
    """The network and the layer for the teacher's outputs, where the split network learns nothing from a trained one."""
    torch.manual_seed(config.seed)
    network = build(config, classes)
    return network, outputs_for(network, teacher)


def take(run: Run, bundle: Path) -> None:
    """Writes the run's checkpoint with the bundle's full network as it is."""
    network = build(run.config, len(run.pictures.train.classes))
    warm_start.load_full(network, bundle, plain_views(run.config, run.pictures.train, warm_start.PICTURES))
    module = nn.ModuleDict({"network": network})
    checkpoint.save(run.folder / FILE, {"module": module.state_dict(), "history": []}, run.workers.ranks)


def restore(config: Config, classes: int, folder: Path) -> tuple[FullNetwork, nn.Conv2d | None]:
    """The averaged network of a run's checkpoint, finished or not, and the layer that learned the teacher's outputs."""
    state = checkpoint.restore(folder / FILE)
    if state is None:
        raise ValueError(f"{folder} holds no {FILE}: train the full network first")

    def part(name: str) -> dict[str, torch.Tensor]:
        return {key.removeprefix(f"{name}."): value for key, value in state["module"].items() if key.startswith(f"{name}.")}

    network, outputs = build(config, classes), None
    network.load_state_dict(state.get("average") or part("network"))
    if learnt := part("outputs"):
        outputs = outputs_layer(network, len(learnt["bias"]))
        outputs.load_state_dict(learnt)
    return network, outputs


def plain_views(config: Config, pictures: Pictures, count: int) -> torch.Tensor:
    """Lightly augmented pictures [count, 3, H, W], drawn with the run's seed, at the input's full size."""
    light = Augmentation(0.8, 0.1, 0.0, config.full.mirror)
    index = np.random.default_rng(config.seed).permutation(len(pictures))[:count]
    width, height = config.data.size
    return random_views(pictures, index, (width, height), light, config.data.normalisation, config.seed).pictures.cpu()


def _optimiser(settings: Full, learnt: Iterable[nn.Module], hints: nn.Module | None) -> torch.optim.Optimizer:
    """Weights decay, biases and batch norm's parameters do not. Each group's `rate_factor` is of the learning rate."""
    parameters = [parameter for module in learnt for parameter in module.parameters()]
    groups = [
        {
            "params": [p for p in parameters if p.ndim > 1],
            "weight_decay": settings.weight_decay,
            "rate_factor": 1.0,
        },
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0, "rate_factor": 1.0},
    ]
    if hints is not None:
        groups.append({"params": list(hints.parameters()), "weight_decay": 0.0, "rate_factor": HINT_RATE})
    if settings.optimiser == "adamw":
        return torch.optim.AdamW(groups, settings.learning_rate, fused=True)
    return torch.optim.SGD(groups, settings.learning_rate, momentum=0.9, nesterov=True, fused=True)
