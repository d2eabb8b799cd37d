"""The full detector: built, started from a classifier's bundle, trained, measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .. import checkpoint
from ..config import Config
from ..data import normalise
from ..loop import Loop, MicroBatch, Objective
from ..network import Encoder, Features, Unsent
from ..warm_start import _load_plain, _manifest, _WidthFile, _widths
from ..workers import Workers
from .evaluate import Found, mean_average_precision, suppressed
from .losses import Places, Targets, annotated_loss, taught_loss
from .network import STRIDES, Answers, Detector, Trunk, boxes, expected
from .pictures import FILL, Labelled, decode, draw, letterbox
from .teacher import CLASSES, FEATURES, HINTED, grids
from .views import TrainSet

FILE = "full.pt"
LEAST = 0.02
"""The confidence from which boxes are counted when they are measured."""


@dataclasses.dataclass(frozen=True)
class Sets:
    """What is learnt from, and what validates."""

    train: TrainSet
    val: list[Labelled]


@dataclasses.dataclass(frozen=True)
class Run:
    """What all training of a run shares."""

    config: Config
    pictures: Sets
    workers: Workers
    folder: Path
    start: Path | None = None


def build(config: Config) -> Detector:
    split, network, settings = config.split, config.network, config.detection
    encoder = Encoder(split.head, split.strides, split.widths)
    middle, coarse = network.channels
    prefix = Unsent(encoder, split.channels[-1], (split.adapter_units, split.adapter_blocks), Features(middle))
    fine, wide = settings.pyramid
    blocks = (network.blocks[0], network.blocks[1])
    classes = len(settings.labels)
    return Detector(prefix, Trunk((middle, coarse), blocks, (fine, wide), classes), middle, classes)


@torch.no_grad()
def begin(network: Detector, bundle: Path, width: int, x: torch.Tensor) -> None:
    """Gives the network the weights of a classifier's bundle, cut at the same stride: its head and adapter of this width,
    and its trunk, of the same shapes as the prefix and the trunk's stages. Norms are measured on pictures `x`."""
    split = _manifest(bundle)["splits"][0]
    entry, prefix = _widths(split)[width], network.prefix
    widest = prefix.encoder.widest
    file = _WidthFile(bundle, entry["head"], widest, True)
    for layer in prefix.encoder.layers:
        x = torch.relu(file.run(layer, x))
    x = file.run(prefix.latent, x)
    file, adapter = _WidthFile(bundle, entry["adapter"], widest, True), prefix.adapter
    x = torch.relu(file.run(adapter.first, x))
    for block in adapter.blocks:
        x = torch.relu(x + file.run(block.second, torch.relu(file.run(block.first, x))))
    x = adapter.end(file.run(adapter.last, x))
    labels = len(_manifest(bundle)["labels"])
    channels = network.body.from_coarse[0].in_channels
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, labels))
    stages = nn.Sequential(nn.Sequential(*network.body.middle, *network.body.coarse), *classifier)
    _load_plain(stages, bundle, split["trunk"], x)


class Teaching(nn.Module):
    """What reads a teacher's features and its other classes off the pyramid; never exported."""

    def __init__(self, pyramid: tuple[int, int]) -> None:
        super().__init__()
        fine, wide = pyramid
        self.others = nn.ModuleList(nn.Conv2d(channels, CLASSES, 1) for channels in (fine, wide, wide))
        self.hints = nn.ModuleList(nn.Conv2d(wide, FEATURES, 1) for _ in HINTED)
        for layer in self.others:
            assert isinstance(layer, nn.Conv2d) and layer.bias is not None
            nn.init.constant_(layer.bias, -4.6)
            nn.init.normal_(layer.weight, std=0.01)

    def loss(self, last: list[torch.Tensor], targets: Targets) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the other classes' scores and of the features, from what each grid's answers are read from."""
        others = torch.cat([layer(x).flatten(2) for layer, x in zip(self.others, last, strict=True)], 2).transpose(1, 2)
        wanted = targets.others
        missed = (others.detach().float().sigmoid() - wanted).abs()
        score = F.binary_cross_entropy_with_logits(others.float(), wanted, reduction="none") * missed.square()
        hinted = [x for x, stride in zip(last, STRIDES, strict=True) if stride in HINTED]
        hints = torch.cat([layer(x).flatten(2) for layer, x in zip(self.hints, hinted, strict=True)], 2).transpose(1, 2)
        error = (hints.float() - targets.hints).square().mean(2) * targets.hinted
        variance = targets.hints[targets.hinted].var(0).mean()
        return score.sum() / wanted.amax(2).sum().clamp(min=1), error.sum() / targets.hinted.sum() / variance


class FullObjective(Objective[Detector]):
    """Annotated boxes and a teacher's answers."""

    name, number = "full", 0

    def __init__(self, run: Run, network: Detector) -> None:
        self.run, self.settings = run, run.config.full
        self.network = self.averaged = network
        fine, wide = run.config.detection.pyramid
        self.teaching = Teaching((fine, wide))
        self.module = nn.ModuleDict({"network": network, "teaching": self.teaching})
        self.module.to(memory_format=torch.channels_last)
        self.optimiser = self._optimiser()

    def _optimiser(self) -> torch.optim.Optimizer:
        known = [self.network.prefix, self.network.body.middle, self.network.body.coarse] if self.run.start else []
        slow = {parameter for part in known for parameter in part.parameters()}
        groups = []
        for rate, chosen in ((self.run.config.detection.known_rate, slow), (1.0, set(self.module.parameters()) - slow)):
            ordered = [p for p in self.module.parameters() if p in chosen]
            for decays in (True, False):
                parameters = [p for p in ordered if (p.ndim > 1) is decays]
                decay = self.settings.weight_decay if decays else 0.0
                if parameters:
                    groups.append({"params": parameters, "weight_decay": decay, "rate_factor": rate})
        return torch.optim.AdamW(groups, self.settings.learning_rate, fused=True)

    def begin_epoch(self) -> None:
        self.module.train()

    def backward(self, part: MicroBatch) -> dict[str, torch.Tensor]:
        run, weights = self.run, self.run.config.detection
        x, targets, places = run.pictures.train.views(part.index, part.size, part.seed, run.config.data.normalisation)
        with run.workers.autocast():
            answers, last = self.network.body.answers(self.network.prefix(x))
            others, hints = self.teaching.loss(last, targets)
        losses = task_losses(answers, targets, places)
        losses |= {"others": others, "hints": hints}
        total = sum((getattr(weights, key) * value for key, value in losses.items()), torch.zeros(()))
        (total * part.weight).backward()
        return {key: value.detach() for key, value in losses.items()}

    def finish(self, kept: Detector) -> None:
        pass

    def measure(self, kept: Detector, done: bool) -> dict[str, float]:
        kept.eval()
        whole, half = precision(self.run, lambda x: kept(x))
        return {"mAP": whole, "AP50": half}


def task_losses(answers: Answers, targets: Targets, places: Places) -> dict[str, torch.Tensor]:
    truth, taught = annotated_loss(answers, targets, places), taught_loss(answers, targets, places)
    return {
        "score": truth.score, "box": truth.box, "bins": truth.bins,
        "taught_score": taught.score, "taught_box": taught.box, "taught_bins": taught.bins,
    }  # fmt: skip


@torch.no_grad()
def precision(run: Run, answer: Any, batch: int = 16) -> tuple[float, float]:
    """mAP and AP50 of what `answer` makes of the validation pictures."""
    width, height = run.config.data.size
    size = (width, height)
    points = grids(size, STRIDES)
    centres = torch.from_numpy(np.concatenate(points))
    strides = torch.from_numpy(np.repeat(np.array(STRIDES, np.float32), [len(p) for p in points]))
    pictures = run.pictures.val

    def find(at: int) -> list[Found]:
        tiles, views, sizes = [], [], []
        for labelled in pictures[at : at + batch]:
            picture, view = decode(labelled.path), np.full((height, width, 3), FILL, np.uint8)
            tile = letterbox(picture.shape[1], picture.shape[0], size)
            draw(view, picture, tile)
            tiles.append(tile)
            views.append(view)
            sizes.append((picture.shape[1], picture.shape[0]))
        with torch.no_grad(), run.workers.autocast():
            answers = answer(normalise(torch.from_numpy(np.stack(views)), run.config.data.normalisation))
        frames = boxes(expected(answers.distances), centres, strides).numpy()
        scores = answers.scores.sigmoid().numpy()
        return [
            in_picture(suppressed(s, f, LEAST), tile, wh) for s, f, tile, wh in zip(scores, frames, tiles, sizes, strict=True)
        ]

    found = [one for some in run.workers.map(find, range(0, len(pictures), batch)) for one in some]
    return mean_average_precision(pictures, found, run.config.detection.labels)


def in_picture(found: Found, tile: Any, size: tuple[int, int]) -> Found:
    """Boxes of a view back in their picture."""
    back = (found.boxes - np.tile(tile.offset, 2).astype(np.float32)) / tile.scale
    return found._replace(boxes=np.clip(back, 0, np.array([*size, *size], np.float32)))


def train(run: Run) -> None:
    torch.manual_seed(run.config.seed)
    network = build(run.config)
    if run.start and not (run.folder / FILE).exists():
        width, height = run.config.data.size
        pictures = run.pictures.train
        index = np.random.default_rng(run.config.seed).permutation(pictures.counts[0])[:128]
        x, _, _ = pictures.views(index, (width, height), run.config.seed, run.config.data.normalisation)
        begin(network, run.start, run.config.detection.start_width, x)
    Loop(FullObjective(run, network), run).train()  # type: ignore[arg-type]


def restore(config: Config, folder: Path) -> Detector:
    state = checkpoint.restore(folder / FILE)
    if state is None:
        raise ValueError(f"{folder} holds no {FILE}: train the full network first")
    network = build(config)
    network.load_state_dict(
        state.get("average") or {k.removeprefix("network."): v for k, v in state["module"].items() if k.startswith("network.")}
    )
    return network
