"""The split network: a head for the device, and an adapter and trunk for the server.

Trained as in BottleFit (Matsubara et al., 2022): first the trunk's input learns the full network's features, then
the server's side learns the task, then all of it together. Every step runs the widest configuration and random
narrower ones (the sandwich rule, Yu and Huang, 2019).
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from . import begin, full, loop
from .config import Config, Stage
from .data import Pictures, Views, normalise, random_views, shuffled
from .foreign import Foreign
from .network import Adapter, Backbone, Head, Inherited
from .quantise import Quantiser
from .teacher import Answers, Teacher

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


class Student(nn.Module):
    """The split network, and the full one around the same trunk.

    `outputs` learns the teacher's outputs, as in the full network, and is not exported.
    """

    def __init__(self, config: Config, network: Backbone | Foreign, outputs: nn.Conv2d | None) -> None:
        super().__init__()
        split, latents = config.split, config.split.channels[-1]
        prefix = copy.deepcopy(network.prefix)
        if isinstance(prefix, Inherited):
            prefix.encoder.inherit()
            encoder = prefix.encoder
        else:
            encoder = full.encoder(config)
        self.head = Head(encoder, latents, split.exit_units, network.classes, split.widths)
        self.quantiser = Quantiser(split.widths, split.bits, latents)
        units, blocks, widths = split.adapter_units, split.adapter_blocks, split.widths
        adapted, stride = widths[-1:] if split.adapter_shared else widths, config.trunk_stride // math.prod(split.strides)
        self.adapter = Adapter(latents, units, blocks, network.features, adapted, network.rectified, stride)
        self.prefix = prefix
        self.trunk = copy.deepcopy(network.trunk())
        self.outputs = copy.deepcopy(outputs)

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


def train(
    config: Config,
    network: Backbone | Foreign,
    outputs: nn.Conv2d | None,
    train_set: Pictures,
    val_set: Pictures,
    teacher: Teacher | None,
    workers: loop.Workers,
    out: Path,
    start: Path | None = None,
) -> None:
    """Runs the enabled stages; `out/stage1.pt` and so on are the checkpoints that a stopped run continues.

    The network starts as that of the bundle in `start`, or where that lacks such a split, its encoder as the first
    layers of another's and its trunk as that; or its head and adapter as those of the run there, of the same shapes.
    """
    torch.manual_seed(config.seed + 1)
    network = network.to(workers.device).eval().requires_grad_(False)
    student = Student(config, network, outputs)
    if start and begin.is_bundle(start):
        pictures = full.plain_views(config, train_set, begin.PICTURES)
        name = config.split.name
        if begin.has_split(start, name):
            begin.begin_split(student.head, student.quantiser, student.adapter, student.trunk, start, name, pictures)
        else:
            features = network.prefix(pictures.to(workers.device)).cpu()
            begin.begin_beside(student.head.encoder, student.trunk, start, pictures, features)
    elif start:
        began = _latest(start)
        for part in ("head", "quantiser", "adapter"):
            values = {key.removeprefix(f"{part}."): value for key, value in began.items() if key.startswith(f"{part}.")}
            getattr(student, part).load_state_dict(values)
    student.to(workers.device, memory_format=torch.channels_last)
    workers.ranks.begin_alike([student])
    for number in (1, 2, 3):
        stage: Stage = getattr(config, f"stage{number}")
        if stage.enabled:
            _stage(number, stage, config, student, network, train_set, val_set, teacher, workers, out)


def restore(config: Config, network: Backbone | Foreign, outputs: nn.Conv2d | None, out: Path) -> Student:
    """The split network of a run's last stage that has a checkpoint."""
    student = Student(config, network, outputs)
    student.load_state_dict(_latest(out))
    return student


def _latest(run: Path) -> dict[str, torch.Tensor]:
    for number in (3, 2, 1):
        if state := loop.restore(run / f"stage{number}.pt"):
            return state["student"]
    raise ValueError(f"{run} holds no stage1.pt, stage2.pt or stage3.pt: train the split network first")


def _stage(
    number: int,
    stage: Stage,
    config: Config,
    student: Student,
    network: Backbone | Foreign,
    train_set: Pictures,
    val_set: Pictures,
    teacher: Teacher | None,
    workers: loop.Workers,
    out: Path,
) -> None:
    ranks = workers.ranks
    name, checkpoint = f"stage{number}", out / f"stage{number}.pt"
    trained = [getattr(student, part) for part in stage.trains]
    if "head" in stage.trains:
        trained.append(student.quantiser)
    if stage.whole:
        trained.append(student.prefix)
    if stage.task and student.outputs is not None:
        trained.append(student.outputs)
    learnt = [student.trunk, student.outputs, *([] if isinstance(student.prefix, Inherited) else [student.prefix])]
    groups, grouped = [], set()
    for module in trained:
        # An inherited encoder stands in the head and in the prefix.
        own = [parameter for parameter in module.parameters() if parameter not in grouped]
        grouped.update(own)
        groups.append(dict(params=own, share=stage.trunk_rate if module in learnt else 1.0))
    optimiser = torch.optim.AdamW(groups, stage.learning_rate, weight_decay=stage.weight_decay, fused=True)
    steps = len(shuffled(len(train_set), stage.batch, 0))
    schedule = loop.Schedule(stage.learning_rate, stage.warmup, stage.phases, stage.unit, steps)
    augmentation = full.augmentation_of(config)
    widest = _widest(config)

    measuring, saving = loop.Pace(schedule, ranks), loop.Pace(schedule, ranks)

    history: list[dict[str, float]] = []
    if state := loop.restore(checkpoint):
        student.load_state_dict(state["student"])
        history = state["history"]
        schedule.resume(len(history) * steps, sum(values["seconds"] for values in history))
        if not schedule.done:
            optimiser.load_state_dict(state["optimiser"])
            print(f"{name}: continues after epoch {len(history)}", flush=True)

    while not schedule.done:
        student.eval().requires_grad_(False)
        for module in trained:
            module.train().requires_grad_(True)
        epoch, began = len(history), schedule.seconds
        batches = shuffled(len(train_set), stage.batch, config.seed * 1000 + 100 * number + epoch)
        sums: list[dict[str, torch.Tensor]] = []
        for step, batch in enumerate(batches):
            size, noise = full.scaled(config.data.size, schedule.scale), schedule.progress < stage.noise
            for group in optimiser.param_groups:
                group["lr"] = schedule.rate * group["share"]

            def micro(item: tuple[int, np.ndarray]) -> dict[str, torch.Tensor]:
                at, index = item
                seed = hash((config.seed, number, epoch, step, at)) & 0xFFFFFFFF
                rng = np.random.default_rng(seed)
                views = random_views(train_set, index, size, augmentation, config.data.mean, config.data.std, seed)
                x, features, last, soft = views.pictures.to(workers.device), None, None, None
                with torch.no_grad(), workers.autocast():
                    if stage.feature or stage.last or stage.soft:
                        features = network.prefix(x)
                    if stage.last or stage.soft:
                        body, *end = network.trunk()
                        last = body(features)
                    if stage.soft:
                        soft = (nn.Sequential(*end)(last).float() / stage.temperature).softmax(1)
                answers = teacher.answers(views) if teacher and (stage.task or stage.soft) else None
                targets = Targets(views, train_set.labels, features, last, soft, answers)
                passes = _passes(config, stage, rng, len(x), step + at, x.device)
                values: dict[str, torch.Tensor] = {}
                widest_last: torch.Tensor | None = None
                for points in passes:
                    with workers.autocast():
                        weighted, last = _losses(config, stage, student, x, points, noise, targets, teacher, widest_last)
                    loss = sum(weight * value for weight, value in weighted.values())
                    (loss * (len(index) / len(batch) / len(passes))).backward()
                    values = {key: value.detach() for key, (_, value) in weighted.items()} | values
                    if stage.invariant and widest_last is None:
                        widest_last = last.detach()
                return values

            sums += workers.share(micro, enumerate(workers.micro_batches(batch)))
            ranks.add_gradients(student.parameters())
            optimiser.step()
            optimiser.zero_grad()
            schedule.advance(ranks)
            if schedule.done:
                break
        ranks.average_statistics([student])
        keys = dict.fromkeys(key for values in sums for key in values)
        # Asking for the losses waits for a GPU: until here it had only been told what to do.
        values = {"size": size[0]} | {key: float(torch.stack([s[key] for s in sums if key in s]).mean()) for key in keys}
        if wrong := [key for key, value in values.items() if not math.isfinite(value)]:
            raise ValueError(f"{name}: {wrong[0]} is not finite in epoch {epoch + 1}: a lower learning rate may help")
        schedule.advance(ranks, steps=0)
        seconds = schedule.seconds - began
        if measuring.due:
            values |= measuring.run(lambda: _accuracies(stage, student, widest, val_set, config, workers))
            if schedule.done:
                for point in _sampled(config, widest):
                    values["accuracy_w{}_c{}_b{}".format(*point)], _ = accuracy(student, point, val_set, config, workers)
        loop.report(name, epoch + 1, schedule, (step + 1) * stage.batch / seconds, values, ranks)
        history.append(values | {"seconds": seconds})
        if saving.due:
            state = dict(student=student.state_dict(), optimiser=optimiser.state_dict(), history=history)
            saving.run(lambda: loop.save(checkpoint, state, ranks))


def _widest(config: Config) -> Point:
    """The largest point of the widest head."""
    return config.split.widths[-1], config.split.channels[-1], max(config.split.bits)


def _passes(
    config: Config, stage: Stage, rng: np.random.Generator, count: int, turn: int, device: torch.device
) -> list[Points | None]:
    """The points that `count` pictures run at, pass by pass; `None` stands for the full network, which sends nothing."""
    *narrower, widest = config.split.widths
    if stage.whole and turn % 4 == 3:
        return [None]

    def drawn(width: int) -> Points:
        return Points.drawn(config, width, count, rng, device)

    if stage.passes == 1:
        # The micro-batches of a step take turns.
        return [drawn(widest if turn % 2 == 0 or not narrower else int(rng.choice(narrower)))]
    return [Points.alike(_widest(config), count, device), *(drawn(int(rng.choice(config.split.widths))) for _ in range(stage.passes - 1))]


class Targets(NamedTuple):
    """What a batch should give: `labels` of all pictures, the full network's `features`, `last` feature map and class
    probabilities `soft`, the outside teacher's `answers`."""

    views: Views
    labels: torch.Tensor
    features: torch.Tensor | None
    last: torch.Tensor | None
    soft: torch.Tensor | None
    answers: Answers | None


def _losses(
    config: Config,
    stage: Stage,
    student: Student,
    x: torch.Tensor,
    points: Points | None,
    noise: bool,
    targets: Targets,
    teacher: Teacher | None,
    widest_last: torch.Tensor | None,
) -> tuple[dict[str, tuple[float, torch.Tensor]], torch.Tensor | None]:
    """Each part of the loss with its weight, and the last feature map where one of them needs it. `widest_last` is that of
    the widest point."""
    features, exit_logits, kilobits = student.whole(x) if points is None else student(x, points, noise)
    (body, *end), t = student.trunk, stage.temperature
    last = body(features) if stage.task or stage.soft or stage.last or stage.invariant else None
    losses = {"rate": (stage.rate, kilobits)}
    if stage.exit and exit_logits is not None:
        hard = F.one_hot(targets.labels[targets.views.index], exit_logits.shape[1]).float()
        losses["exit"] = (stage.exit, F.cross_entropy(exit_logits, targets.views.mix(hard).to(x.device)))
    if stage.feature:
        losses["feature"] = (stage.feature, _error(features, targets.features))
    if stage.last:
        losses["last"] = (stage.last, _error(last, targets.last))
    if stage.task or stage.soft:
        task = full.task_loss(config, last, end, student.outputs, targets.views, targets.labels, teacher, targets.answers)
        losses["task"] = (stage.task, task)
    if stage.soft:
        logits = nn.Sequential(*end)(last).float()
        losses["soft"] = (stage.soft * t * t, F.cross_entropy(logits / t, targets.soft))
    if widest_last is not None:
        losses["invariant"] = (stage.invariant, (_normalised(last) - _normalised(widest_last)).square().mean())
    return losses, last


def _error(features: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The squared error of features [N, C, h, w] over the variance of the wanted ones within their channels."""
    wanted = wanted.float()
    variance = (wanted - wanted.mean((0, 2, 3), keepdim=True)).square().mean()
    return (features.float() - wanted).square().mean() / variance


def _normalised(features: torch.Tensor) -> torch.Tensor:
    """Each channel of [N, C, h, w] with mean 0 and variance 1."""
    features = features.float()
    variance, mean = torch.var_mean(features, (0, 2, 3), keepdim=True, correction=0)
    return (features - mean) * torch.rsqrt(variance + 1e-5)


def _sampled(config: Config, known: Point) -> list[Point]:
    """What tells how a stage ended: of every width the largest point and the middle one, but for the one that is `known`."""
    split = config.split
    ends = (split.channels[-1], max(split.bits)), (split.channels[len(split.channels) // 2], sorted(split.bits)[len(split.bits) // 2])
    return [point for point in ((width, *end) for width in split.widths for end in ends) if point != known]


def _accuracies(
    stage: Stage, student: Student, point: Point, pictures: Pictures, config: Config, workers: loop.Workers
) -> dict[str, float]:
    values = dict(zip(("accuracy", "exit_accuracy"), accuracy(student, point, pictures, config, workers)))
    if stage.whole:
        values["whole_accuracy"], _ = accuracy(student, None, pictures, config, workers)
    return values


@torch.no_grad()
def accuracy(
    student: Student, point: Point | None, pictures: Pictures, config: Config, workers: loop.Workers, batch: int = 32
) -> tuple[float, float]:
    """Accuracy of the whole and of the exit at a point, or of the full network, on pictures stored at the input's size."""
    student.eval()

    def correct(at: int) -> tuple[int, int]:
        with torch.no_grad(), workers.autocast():
            x = normalise(torch.as_tensor(pictures.pixels[at : at + batch]), config.data.mean, config.data.std)
            x = x.to(workers.device)
            features, exit_logits, _ = student(x, Points.alike(point, len(x), x.device), False) if point else student.whole(x)
            logits, labels = student.trunk(features), pictures.labels[at : at + batch].to(workers.device)
        exits = 0 if exit_logits is None else int((exit_logits.argmax(1) == labels).sum())
        return int((logits.argmax(1) == labels).sum()), exits

    counts = workers.map(correct, range(0, len(pictures), batch))
    return sum(c for c, _ in counts) / len(pictures), sum(c for _, c in counts) / len(pictures)
