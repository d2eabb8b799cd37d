"""Learns the split network: views, the whole network's answers to them, steps, and what a stopped run continues from."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import torch
from torch import nn

from .. import checkpoint
from ..workers import Workers
from . import converted, initial, surgery
from .losses import OutputLoss, feature_loss
from .network import PictureEncoder, Ratio, Shape, Sizes, Split, TensorEncoder
from .views import Input, Pictures, random_view

FILE = "distil.pt"
LONGEST_STEP = 60.0
"""Seconds that a step may count for: what takes longer was halted, or the machine slept."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a distillation is told; every value has a command-line option of its name.

    `view` is the side of the views in pixels (0: the input's size), `hours` the time of training, `rate` what a bit per
    place of the latents costs at the greatest depth, in losses; `share` of the loss is on the tensors at the cut.
    """

    head: str = "prefix"
    stride: int = 0
    latents: int = 48
    channels: tuple[int, ...] = (12, 24, 36, 48)
    bits: tuple[int, ...] = (4, 6)
    widths: tuple[int, ...] = (50, 100)
    encoder: tuple[int, int] = (64, 2)
    adapter: tuple[int, int] = (128, 3)
    picture_encoder: tuple[int, ...] = (24, 48, 96, 128)
    view: int = 0
    batch: int = 8
    hours: float = 6.0
    learning_rate: float = 1e-3
    rate: float = 0.003
    share: float = 0.3
    average: float = 0.999
    first: int = 192
    seed: int = 1


class Teacher:
    """The whole network: pictures to the tensors at the cut and the outputs. ONNX Runtime computes it, but on a GPU torch
    does. `resized` lets it see pictures of other sizes than its own."""

    def __init__(self, model: onnx.ModelProto, cut: surgery.Cut, resized: bool, device: torch.device | None = None) -> None:
        self.count, self.device = len(cut.at), device
        more = surgery.with_outputs(model, cut.at)
        more = surgery.resized(more) if resized else more
        self.module = converted.convert(more).to(device) if device and device.type != "cpu" else None
        self.session = converted.session(more)
        self.name = self.session.get_inputs()[0].name

    @torch.no_grad()
    def __call__(self, x: np.ndarray) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        if self.module is not None:
            results = list(self.module(torch.from_numpy(x).to(self.device)))
        else:
            results = [torch.from_numpy(value) for value in self.session.run(None, {self.name: x})]
        return results[: self.count], results[self.count :]


def input_size(model: onnx.ModelProto) -> tuple[int, int]:
    """Width and height of the network's input."""
    _, height, width = surgery.shape_of(model, model.graph.input[0].name)
    return width, height


@dataclasses.dataclass(frozen=True)
class Batch:
    """Views, and what the whole network makes of them."""

    pictures: torch.Tensor
    tensors: list[torch.Tensor]
    outputs: list[torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Source:
    """Where batches come from: random views of pictures, and the whole network's answers to them."""

    pictures: Pictures
    how: Input
    teacher: Teacher
    pool: ThreadPoolExecutor | None = None
    """Makes the views of a batch side by side, where the batches of a step are not."""

    def batch(self, count: int, side: int, rng: np.random.Generator) -> Batch:
        """`count` views, `side` pixels wide and high, or of the input's size (0)."""
        size = (side, side) if side else (self.how.width, self.how.height)

        def view(own: np.random.Generator) -> np.ndarray:
            return random_view(self.pictures.draw(own), self.how, size, own)

        views = list((self.pool.map if self.pool else map)(view, rng.spawn(count)))
        x = self.how.normalise(np.stack(views))
        return Batch(torch.from_numpy(x), *self.teacher(x))


class Distillation:
    """A split network in training, with all it takes to go on after a stop."""

    def __init__(
        self, model: onnx.ModelProto, cut: surgery.Cut, settings: Settings, loss: OutputLoss, workers: Workers
    ) -> None:
        self.cut, self.settings, self.loss, self.workers = cut, settings, loss, workers
        device = workers.device
        self.trunk = converted.convert(cut.trunk).to(device)
        self.trunk.to(memory_format=torch.channels_last)
        self.sizes = sizes(model, cut, settings)
        shapes = cast("list[Shape]", cut.shapes)
        torch.manual_seed(settings.seed)
        if settings.head == "prefix":
            encoder: TensorEncoder | PictureEncoder = TensorEncoder(shapes, self.sizes)
        else:
            encoder = PictureEncoder(settings.picture_encoder, picture_strides(model, self.sizes, settings), self.sizes)
        self.split = Split(encoder, shapes, self.sizes, settings.bits)
        self.scales = [torch.ones(shape[0]) for shape in shapes]
        self.steps, self.seconds = 0, 0.0
        self._place()

    def _place(self) -> None:
        device = self.workers.device
        self.split.to(device)
        self.split.to(memory_format=torch.channels_last)
        self.kept = copy.deepcopy(self.split).eval()
        self.scales = [scale.to(device) for scale in self.scales]
        slow = list(self.split.rate.parameters()) + list(self.split.quantiser.parameters())
        own = {id(parameter) for parameter in slow}
        rest = [p for p in self.split.parameters() if id(p) not in own and p.requires_grad]
        groups = [{"params": rest, "weight_decay": 1e-4, "factor": 1.0}, {"params": slow, "weight_decay": 0.0, "factor": 5.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=self.settings.learning_rate, betas=(0.9, 0.98))

    def start(self, source: Source) -> None:
        """The closed form, from some views, before anything is learnt."""
        ratios = [Ratio.between(shape, self.sizes.grid) for shape in self.cut.shapes]
        count = -(-self.settings.first // self.settings.batch)
        parts = self.workers.map(lambda number: self._moments(source, ratios, number), range(count))
        moments = initial.Moments.joined([part for part, _ in parts])
        shares = [torch.stack(own).mean(0) for own in zip(*[share for _, share in parts], strict=True)]
        self.scales = initial.channel_weights(shares, [math.prod(shape[1:]) for shape in self.cut.shapes])
        deviations = initial.start_linear(self.split.encoder, self.split.adapter, moments)
        self._start_scales(deviations)
        self._place()

    def _moments(self, source: Source, ratios: list[Ratio], number: int) -> tuple[initial.Moments, list[torch.Tensor]]:
        batch = source.batch(self.settings.batch, self.settings.view, np.random.default_rng((self.settings.seed, number, 3)))
        moments = initial.Moments(ratios)
        tensors = [tensor.cpu() for tensor in batch.tensors]
        moments.add(tensors)
        wanted = [output.to(self.workers.device) for output in batch.outputs]
        with self.workers.autocast():
            gradients = initial.sensitivities(
                lambda inputs: self.loss.embedded(wanted, self._run_trunk(*inputs)),
                [self._placed(t) for t in batch.tensors],
                number,
            )
        gradients = [gradient.float().cpu() for gradient in gradients]
        moments.add_gradients(gradients)
        return moments, [initial.channel_moments(t, g) for t, g in zip(tensors, gradients, strict=True)]

    @torch.no_grad()
    def _start_scales(self, deviations: torch.Tensor) -> None:
        """Latents in steps of the finest quantiser, for learning rates to suit them; with fewer bits steps are twice as
        large for each two, and larger where a channel would not fit."""
        top = max(self.settings.bits)
        step = 0.5 * deviations.square().mean().sqrt()
        initial.rescale(self.split.encoder, self.split.adapter, step)
        deviations = deviations / step
        for number, bits in enumerate(self.settings.bits):
            scale = (deviations * 4 / 2 ** (bits - 1)).clamp(min=2 ** ((top - bits) / 2))
            self.split.quantiser.log_scale[number] = scale.log()
            self.split.rate.base[number] = (deviations / scale * 0.5).clamp(min=0.1).log()

    def resume(self, folder: Path) -> bool:
        """Goes on where the checkpoint in `folder` left off, if there is one."""
        state = checkpoint.restore(folder / FILE)
        if state is None:
            return False
        self.split.load_state_dict(state["split"])
        self.scales, self.steps, self.seconds = state["scales"], state["steps"], state["seconds"]
        self._place()
        self.kept.load_state_dict(state["kept"])
        self.optimiser.load_state_dict(state["optimiser"])
        return True

    def save(self, folder: Path) -> None:
        state = {name: getattr(self, name).state_dict() for name in ("split", "kept", "optimiser")}
        state |= {"scales": self.scales, "steps": self.steps, "seconds": self.seconds}
        checkpoint.save(folder / FILE, state, self.workers.ranks)

    @property
    def progress(self) -> float:
        return min(1.0, self.seconds / max(1e-9, 3600 * self.settings.hours))

    def train(self, source: Source, folder: Path, every: float = 60.0) -> None:
        """Trains to the end of the hours, counted over all of its starts; reports and saves `every` so many seconds."""
        last = said = time.monotonic()
        taken, sums = self.steps, Sums()
        while self.progress < 1:
            sums.add(self.step(source))
            now = time.monotonic()
            self.seconds, last = self.seconds + min(now - last, LONGEST_STEP), now
            if now - said > every or self.progress >= 1:
                pace = (self.steps - taken) * self.settings.batch * self.workers.count / (now - said)
                left = 60 * self.settings.hours * (1 - self.progress)
                percent = 100 * self.progress
                print(f"step {self.steps}  {percent:.1f}%  {sums}  {pace:.1f}/s  {left:.0f} min left", flush=True)
                self.save(folder)
                taken, sums = self.steps, Sums()
                last = said = time.monotonic()

    def try_step(self, source: Source) -> None:
        """A step that leaves all as it was, for measuring how fast steps are."""
        list(self.workers.map(lambda part: self._backward(source, part, False), range(self.workers.count)))
        self.optimiser.zero_grad()

    def step(self, source: Source) -> dict[str, float]:
        """One step, whose micro-batches the workers compute side by side. Gives the means of their losses."""
        parts = range(self.workers.count)
        # Views of a part of the picture are quick; whole ones are what the network will see.
        whole = self.steps % 4 == 3
        losses = self.workers.map(lambda part: self._backward(source, part, whole), parts)
        values = {key: float(np.mean([loss[key] for loss in losses])) for key in losses[0]}
        if not math.isfinite(values["loss"]):
            raise ValueError(f"the loss is {values['loss']} in step {self.steps}: a lower learning rate may help")
        nn.utils.clip_grad_norm_(self.split.parameters(), 1.0)
        warm = min(1.0, (self.steps + 1) / 200) * max(0.01, math.cos(math.pi / 2 * self.progress))
        for group in self.optimiser.param_groups:
            group["lr"] = group["factor"] * self.settings.learning_rate * warm
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.steps += 1
        self._update_average()
        return values

    def _backward(self, source: Source, part: int, whole: bool) -> dict[str, float]:
        settings, rng = self.settings, np.random.default_rng((self.settings.seed, self.steps, part))
        count, side = settings.batch, settings.view
        if whole and side:
            count, side = max(1, round(count * side**2 / (source.how.width * source.how.height))), 0
        batch = source.batch(count, side, rng)
        # The same width in all parts of a step.
        widths = np.random.default_rng((settings.seed, self.steps, 7))
        width = int(widths.choice(settings.widths, p=_leaning(len(settings.widths))))
        channels = self._drawn(rng.choice(settings.channels, count, p=_leaning(len(settings.channels))))
        depth = self._drawn(rng.integers(len(settings.bits), size=count))
        wanted = [self._placed(tensor) for tensor in batch.tensors]
        inputs = wanted if settings.head == "prefix" else [self._placed(batch.pictures)]
        with self.workers.autocast():
            tensors, bits = self.split(inputs, width, channels, depth)
            outputs = self._run_trunk(*tensors)
        features = feature_loss(tensors, wanted, self.scales)
        answers = self.loss(outputs, [output.to(self.workers.device) for output in batch.outputs])
        per_place = bits / math.prod(self.grid(batch))
        price = settings.rate * 2.0 ** (max(settings.bits) - torch.tensor(settings.bits, device=bits.device)[depth])
        loss = (settings.share * features + answers + price * per_place).mean()
        (loss / self.workers.count).backward()
        means = {"loss": loss, "features": features.mean(), "outputs": answers.mean(), "bits/place": per_place.mean()}
        return {key: float(value.detach()) for key, value in means.items()}

    def grid(self, batch: Batch) -> tuple[int, int]:
        """Rows and columns of the latents of these views."""
        first = batch.tensors[0]
        ratio = Ratio.between(self.cut.shapes[0], self.sizes.grid)
        return first.shape[2] * ratio.coarser // ratio.finer, first.shape[3] * ratio.coarser // ratio.finer

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.settings.average, self.steps / (self.steps + 10))
        pairs = list(zip(self.kept.state_dict().values(), self.split.state_dict().values(), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([mine for mine, _ in floats], [theirs for _, theirs in floats], 1 - decay)
        for mine, theirs in pairs:
            if not mine.is_floating_point():
                mine.copy_(theirs)

    def _run_trunk(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        outputs = self.trunk(*tensors)
        return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.workers.device).contiguous(memory_format=torch.channels_last)

    def _drawn(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(self.workers.device)


class Sums:
    """Means of what steps report."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def add(self, values: dict[str, float]) -> None:
        for key, value in values.items():
            self.values.setdefault(key, []).append(value)

    def __str__(self) -> str:
        return "  ".join(f"{key} {sum(values) / len(values):.4f}" for key, values in self.values.items())


def sizes(model: onnx.ModelProto, cut: surgery.Cut, settings: Settings) -> Sizes:
    """The networks' sizes, with the latents' grid: that of `stride`, or of the tensor at the cut in the middle."""
    width, height = input_size(model)
    if settings.stride:
        grid = (height // settings.stride, width // settings.stride)
    else:
        shape = sorted(cut.shapes, key=math.prod)[(len(cut.shapes) - 1) // 2]
        if len(shape) != 3:
            raise ValueError(f"a tensor of shape {list(shape)} is no map [C, h, w], and cannot be a cut to learn")
        grid = (shape[1], shape[2])
    return Sizes(settings.latents, grid, list(settings.widths), settings.encoder, settings.adapter)


def picture_strides(model: onnx.ModelProto, size: Sizes, settings: Settings) -> list[int]:
    """Of the layers of an encoder from the picture: two for each, until the latents' grid is reached."""
    ratio = input_size(model)[1] / size.grid[0]
    halvings = round(math.log2(ratio))
    if 2**halvings != ratio or halvings > len(settings.picture_encoder):
        raise ValueError(f"{len(settings.picture_encoder)} layers cannot bring a picture to a grid {ratio:g} times as coarse")
    return [2] * halvings + [1] * (len(settings.picture_encoder) - halvings)


def _leaning(count: int) -> list[float]:
    """Probabilities that favour the last: it is what the others are measured by."""
    return [0.4 / (count - 1)] * (count - 1) + [0.6] if count > 1 else [1.0]
