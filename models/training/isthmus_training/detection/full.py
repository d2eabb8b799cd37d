"""The full detector: built, started from a classifier's bundle, trained, measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .. import checkpoint, warm_start
from ..config import Config
from ..data import normalise
from ..loop import Loop, MicroBatch, Objective
from ..network import Encoder, Features, Unsent
from .evaluate import Found, mean_average_precision, suppressed
from .losses import Places, Targets, annotated_loss, taught_loss
from .network import STRIDES, Answers, Detector, Trunk, boxes, expected, quiet
from .pictures import Tile
from .run import Run
from .teacher import CLASSES, FEATURES, HINTED
from .views import Shown, all_places, letterboxed

FILE = "full.pt"
BATCH = 16
LEAST = 0.02
"""The confidence from which boxes are counted when they are measured."""


def build(config: Config) -> Detector:
    """The full network, untrained."""
    split, network, settings = config.split, config.network, config.detection
    encoder = Encoder(split.head, split.strides, split.widths)
    middle, coarse = network.channels
    prefix = Unsent(encoder, split.channels[-1], (split.adapter_units, split.adapter_blocks), Features(middle))
    fine, wide = settings.pyramid
    blocks = (network.blocks[0], network.blocks[1])
    classes = len(settings.labels)
    return Detector(prefix, Trunk((middle, coarse), blocks, (fine, wide), classes), middle, classes)


class Teaching(nn.Module):
    """What reads a teacher's features and its other classes off the pyramid; never exported."""

    def __init__(self, pyramid: tuple[int, int]) -> None:
        super().__init__()
        fine, wide = pyramid
        self.others = nn.ModuleList(quiet(nn.Conv2d(channels, CLASSES, 1)) for channels in (fine, wide, wide))
        self.hints = nn.ModuleList(nn.Conv2d(wide, FEATURES, 1) for _ in HINTED)

    def loss(self, last: list[torch.Tensor], targets: Targets) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the other classes' scores and of the features, from what each grid's answers are read from."""
        others = torch.cat([layer(x).flatten(2) for layer, x in zip(self.others, last, strict=True)], 2).transpose(1, 2)
        wanted = targets.others
        missed = (others.detach().float().sigmoid() - wanted).abs()
        score = F.binary_cross_entropy_with_logits(others.float(), wanted, reduction="none") * missed.square()
        hinted = [x for x, stride in zip(last, STRIDES, strict=True) if stride in HINTED]
        hints = torch.cat([layer(x).flatten(2) for layer, x in zip(self.hints, hinted, strict=True)], 2).transpose(1, 2)
        error = (hints.float() - targets.hints).square().mean(2) * targets.hinted
        variance = targets.hints.var((0, 1)).mean().clamp(min=1e-6)
        return score.sum() / wanted.amax(2).sum().clamp(min=1), error.sum() / targets.hinted.sum().clamp(min=1) / variance


class FullObjective(Objective[Detector]):
    """Annotated boxes and a teacher's answers."""

    name, number = "full", 0

    def __init__(self, run: Run, network: Detector) -> None:
        self.run, self.settings = run, run.config.full
        self.network = self.averaged = network
        fine, wide = run.config.detection.pyramid
        self.teaching = Teaching((fine, wide))
        self.module = nn.ModuleDict({"network": network, "teaching": self.teaching})
        self.module.to(run.workers.device).to(memory_format=torch.channels_last)
        self.optimiser = self._optimiser()

    def _optimiser(self) -> torch.optim.Optimizer:
        known = [self.network.prefix, self.network.body.middle, self.network.body.coarse] if self.run.start else []
        slow = {parameter for part in known for parameter in part.parameters()}
        groups = []
        for rate, chosen in ((self.run.config.detection.known_rate, slow), (1.0, set(self.module.parameters()) - slow)):
            ordered = [p for p in self.module.parameters() if p in chosen]
            for decays in (True, False):
                parameters = [p for p in ordered if (p.ndim > 1) is decays]
                decay = self.run.config.full.weight_decay if decays else 0.0
                if parameters:
                    groups.append({"params": parameters, "weight_decay": decay, "rate_factor": rate})
        return torch.optim.AdamW(groups, self.settings.learning_rate, fused=True)

    def begin_epoch(self) -> None:
        self.module.train()

    def backward(self, part: MicroBatch) -> dict[str, torch.Tensor]:
        run, weights = self.run, self.run.config.detection
        x, targets, places = on(run.train.views(part.index, part.size, part.seed, run.config.data.normalisation), run)
        with run.workers.autocast():
            answers, last = self.network.body.answers(self.network.prefix(x))
        losses = task_losses(answers, targets, places, run.train.taught)
        if run.train.taught:
            with run.workers.autocast():
                losses["others"], losses["hints"] = self.teaching.loss(last, targets)
        total = sum((getattr(weights, key) * value for key, value in losses.items()), torch.zeros(()))
        (total * part.weight).backward()
        return {key: value.detach() for key, value in losses.items()}

    def finish(self, kept: Detector) -> None:
        pass

    def measure(self, kept: Detector, done: bool) -> dict[str, float]:
        kept.eval()
        whole, half = precision(self.run, kept)
        return {"mAP": whole, "AP50": half}


def on(views: tuple[torch.Tensor, Targets, Places], run: Run) -> tuple[torch.Tensor, Targets, Places]:
    """Views where the run's networks are."""
    (x, targets, places), device = views, run.workers.device
    return x.to(device), Targets(*(part.to(device) for part in targets)), Places(*(part.to(device) for part in places))


def task_losses(answers: Answers, targets: Targets, places: Places, taught: bool) -> dict[str, torch.Tensor]:
    """Those of the annotations and, where a teacher `taught`, of its answers, each to be weighted."""
    losses = annotated_loss(answers, targets, places)._asdict()
    if taught:
        losses |= {f"taught_{key}": value for key, value in taught_loss(answers, targets, places)._asdict().items()}
    return losses


def precision(run: Run, answer: Callable[[torch.Tensor], Answers]) -> tuple[float, float]:
    """mAP and AP50 of what `answer` makes of the validation pictures."""
    width, height = run.config.data.size
    places = all_places((width, height))

    def find(at: int) -> list[Found]:
        pixels, tiles = letterboxed(run.val[at : at + BATCH], (width, height))
        x = normalise(torch.from_numpy(pixels), run.config.data.normalisation).to(run.workers.device)
        with torch.no_grad(), run.workers.autocast():
            answers = Answers(*(values.cpu() for values in answer(x)))
        return found(answers, places, tiles)

    every = [one for some in run.workers.map(find, range(0, len(run.val), BATCH)) for one in some]
    return mean_average_precision(run.val, every, run.config.detection.labels)


def found(answers: Answers, places: Places, tiles: Sequence[Shown]) -> list[Found]:
    """The boxes that answers stand for, in the pixels of the pictures."""
    frames = boxes(expected(answers.distances), places.centres, places.strides).numpy()
    scores = answers.scores.sigmoid().numpy()
    return [
        in_picture(suppressed(likely, frame, LEAST), *tile) for likely, frame, tile in zip(scores, frames, tiles, strict=True)
    ]


def in_picture(found: Found, tile: Tile, size: tuple[int, int]) -> Found:
    """Boxes of a view back in their picture."""
    left, top, right, bottom = tile.seen
    sides = np.tile(np.array(size, np.float32) / [right - left, bottom - top], 2)
    back = (found.boxes - np.array([left, top, left, top], np.float32)) * sides
    return found._replace(boxes=np.clip(back, 0, np.tile(size, 2)).astype(np.float32))


def train(run: Run) -> None:
    """Trains the network; `full.pt` in the run's folder is the checkpoint that a stopped run continues. It starts as a
    classifier's split network, if `run.start` is a bundle of one."""
    torch.manual_seed(run.config.seed)
    network = build(run.config)
    if run.start and warm_start.is_bundle(run.start) and not (run.folder / FILE).exists():
        width, height = run.config.data.size
        pictures = run.train
        index = np.random.default_rng(run.config.seed).permutation(pictures.counts[0])[:128]
        x, _, _ = pictures.views(index, (width, height), run.config.seed, run.config.data.normalisation)
        stages = nn.Sequential(*network.body.middle, *network.body.coarse)
        warm_start.load_unsent(network.prefix, stages, run.start, run.config.detection.start_width, x)
    Loop(FullObjective(run, network), run).train()


def restore(config: Config, folder: Path) -> Detector:
    """The averaged network of a run's checkpoint, finished or not."""
    state = checkpoint.restore(folder / FILE)
    if state is None:
        raise ValueError(f"{folder} holds no {FILE}: train the full network first")
    network = build(config)
    last = {key.removeprefix("network."): value for key, value in state["module"].items() if key.startswith("network.")}
    network.load_state_dict(state.get("average") or last)
    return network
