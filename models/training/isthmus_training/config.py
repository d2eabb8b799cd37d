"""A run's settings, read from TOML: every key with its default, what it means and what it must be. An unknown key is an
error, and so is a value out of range."""

from __future__ import annotations

import dataclasses
import math
import tomllib
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

LAST_STRIDE = 32
"""Of the last feature map, on whose cells a teacher's labels and CutMix's fractions lie."""
PRECISIONS = ("auto", "f32", "bf16")
TASKS = ("classification", "detection")


class Normalisation(NamedTuple):
    """Mean and standard deviation of each colour, in 0..=1, by which pictures are normalised."""

    mean: Sequence[float]
    std: Sequence[float]


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


@dataclass(frozen=True)
class Data:
    """Pictures. `size` is (width, height) of the network's input, each a multiple of 32."""

    size: list[int] = field(default_factory=lambda: [160, 160])
    stored: list[int] = field(default_factory=lambda: [224, 224])
    """Training pictures are kept in memory at this size; crops are taken from it."""
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    holdout: float = 0.15
    """Fraction of each class that validates where the data has no `val` folder."""

    @property
    def normalisation(self) -> Normalisation:
        return Normalisation(self.mean, self.std)

    def check(self) -> None:
        _require(
            all(side > 0 and side % 32 == 0 for side in self.size), f"data.size: {self.size} is not made of multiples of 32"
        )
        (width, height), (stored_width, stored_height) = self.size, self.stored
        _require(
            width * stored_height == height * stored_width,
            f"data.stored: {self.stored} has another aspect ratio than data.size, {self.size}",
        )


@dataclass(frozen=True)
class Network:
    """The full network. Its trunk, which the split one shares: channels and residual blocks per stage. The first stage
    keeps the latent grid's stride, each later one halves the grid."""

    backbone: str = ""
    """`timm:NAME` or `torchvision:NAME`: that network, with outputs for our classes, in place of all that the keys below
    describe."""
    cut: str = ""
    """The layer of `backbone` behind whose output it is cut, such as `blocks.3`. Empty: the last stage at the head's
    stride."""
    pretrained: bool = False
    """Whether `backbone` starts with the weights that its library fetches for it."""
    prefix_channels: list[int] = field(default_factory=list)
    """Channels at strides 2, 4 and so on before the trunk. Empty: the head's encoder stands there."""
    prefix_blocks: list[int] = field(default_factory=list)
    """Residual blocks at each of these strides; at stride 2 a convolution goes before them."""
    channels: list[int] = field(default_factory=lambda: [256, 448])
    blocks: list[int] = field(default_factory=lambda: [3, 1])

    def check(self) -> None:
        if self.backbone:
            alone = Network(self.backbone, self.cut, self.pretrained)
            _require(
                self == alone,
                "network.backbone: stands for the whole network; leave out the other keys but cut and pretrained",
            )
            return
        _require(not self.cut and not self.pretrained, "network.cut and network.pretrained need a network.backbone")
        _require(
            0 < len(self.channels) == len(self.blocks), "network.channels and network.blocks differ in length, or are empty"
        )
        _require(
            len(self.prefix_channels) == len(self.prefix_blocks),
            "network.prefix_channels and network.prefix_blocks differ in length",
        )
        _require(
            all(count > 0 for count in self.prefix_blocks[1:]),
            "network.prefix_blocks: every stride but the first needs a block",
        )


@dataclass(frozen=True)
class Full:
    """Training of the full network: warm-up and cosine."""

    enabled: bool = True
    phases: list[list[float]] = field(default_factory=lambda: [[20, 0.6], [8, 0.8], [2, 1.0]])
    """Progressive resizing: [length, scale of the input size] in order."""
    unit: str = "epochs"
    """Of the lengths: epochs, or minutes of training, which end on time on a shared machine but repeat only roughly."""
    batch: int = 64
    optimiser: str = "sgd"
    """`sgd` with Nesterov momentum, or `adamw`, which hints need: their gradients are of another size than a label's."""
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    warmup: float = 2.0
    """Length of the linear warm-up."""
    smoothing: float = 0.1
    """Label smoothing of the hard labels (Szegedy et al., 2016)."""
    average: float = 0.998
    """Decay per step of the averaged weights that are kept; 0 keeps the last ones."""
    scale: float = 0.35
    """The least fraction of a picture's area that a training crop keeps."""
    jitter: float = 0.2
    mix: float = 0.3
    """Fraction of batches that CutMix pastes patches across."""
    mirror: bool = True
    """Half of the views are mirror images: not where left and right, or letters, tell classes apart."""

    def check(self) -> None:
        _check_unit("full", self.unit)
        _require(self.optimiser in ("sgd", "adamw"), f"full.optimiser: {self.optimiser!r} is neither sgd nor adamw")


@dataclass(frozen=True)
class Distil:
    """What an outside teacher adds to the full network's loss; without `--teacher` only hard labels are used."""

    enabled: bool = True
    hard: float = 0.3
    """Weight of the hard labels' cross-entropy."""
    classes: float = 0.7
    """Weight of the cross-entropy with the teacher's distribution over our classes."""
    outputs: float = 0.5
    """Weight of the cross-entropy with all the teacher's outputs, through a layer that is dropped at export."""
    cells: float = 0.5
    """Weight of the same in each cell of the last feature map."""
    temperature: float = 1.5
    views: bool = False
    """The teacher answers every training view itself (function matching, Beyer et al., 2022), not each picture once;
    `outputs` and `cells` then say nothing."""
    hints: list[str] = field(default_factory=list)
    """With `views`: tensors of the teacher's graph whose features the full network learns (FitNets, Romero et al.,
    2015), each where its own grid is the same for the last time, through a layer that is dropped at export."""
    hint: float = 1.0
    """Weight of each hint's error over its variance."""

    def check(self) -> None:
        _require(self.views or not self.hints, "distil.hints: need a teacher that sees the views, distil.views")


@dataclass(frozen=True)
class Split:
    """The head, what it sends, and the adapter. Costs are of the head at full width.

    A split before the trunk's place, such as `s8` before a trunk at stride 16, sends a finer grid, which its adapter
    halves. It is trained with the trunk of a bundle, to which it is added (`export --add`)."""

    name: str = "s16"
    widths: list[int] = field(default_factory=lambda: [50, 100])
    """Percentages of the head's channels, increasing."""
    head: list[int] = field(default_factory=lambda: [24, 32, 32, 48, 56])
    strides: list[int] = field(default_factory=lambda: [2, 2, 1, 2, 2])
    channels: list[int] = field(default_factory=lambda: [4, 8, 16, 24])
    """How many latent channels can be sent, increasing; the last is all of them."""
    bits: list[int] = field(default_factory=lambda: [8, 6, 4, 3])
    exit_units: int = 96
    adapter_units: int = 128
    adapter_blocks: int = 2
    adapter_shared: bool = False
    """Whether all widths have one adapter, which keeps a bundle small, and not each its own batch norms."""

    @property
    def stride(self) -> int:
        """Of the latent grid."""
        return math.prod(self.strides)

    def check(self) -> None:
        _require(len(self.head) == len(self.strides), "split.head and split.strides differ in length")
        _require(self.name == f"s{self.stride}", f"split.name: {self.name} must name the head's stride, s{self.stride}")
        for key, values in (("widths", self.widths), ("channels", self.channels)):
            increasing = bool(values) and values == sorted(set(values)) and values[0] > 0
            _require(increasing, f"split.{key}: {values} does not increase from 1 or more")
        _require(all(1 <= bits <= 8 for bits in self.bits), f"split.bits: {self.bits} is not within 1 to 8")


@dataclass(frozen=True)
class Stage:
    """One stage of the split network's training: AdamW, warm-up and cosine."""

    enabled: bool = True
    phases: list[list[float]] = field(default_factory=lambda: [[8, 0.6]])
    unit: str = "epochs"
    warmup: float = 0.5
    batch: int = 64
    learning_rate: float = 1e-3
    trunk_rate: float = 0.2
    """The fraction of the learning rate that what the full network has trained gets: trunk, and prefix of its own."""
    trains: list[str] = field(default_factory=lambda: ["head", "adapter"])
    """Of head (with its quantiser and exits), adapter, trunk, exits. The others keep their weights and statistics."""
    whole: bool = False
    """Every fourth micro-batch trains the full network, which shares the trunk with the split one."""
    weight_decay: float = 1e-4
    average: float = 0.0
    """Decay per step of averaged weights, such as 0.999, whose batch norms are measured anew for every width at the stage's
    end, and which then take the weights' place; 0 keeps the last ones."""
    passes: int = 2
    """Passes a micro-batch: the widest with all channels and most bits, then others of any width. With 1, the widest and
    the narrower widths take turns. Channels and bits are drawn for each picture."""
    noise: float = 0.0
    """Fraction of the stage that adds uniform noise; the rest rounds."""
    feature: float = 0.0
    """Weight of the error of the trunk's input against the full network's, over that input's variance."""
    last: float = 0.0
    """Weight of the same for the last feature map, which the split network's trunk makes of what it takes: with the full
    network's trunk as it is, all that its classifier goes by (SimKD, Chen et al., 2022)."""
    task: float = 0.0
    """Weight of the loss that trained the full network, teacher included."""
    soft: float = 0.0
    """Weight of the cross-entropy with the full network's distribution."""
    temperature: float = 2.0
    invariant: float = 0.0
    """Weight of how far each further pass's last feature map, its channels normalised, is from the widest point's in the
    first pass: configuration-invariant distillation. Needs at least 2 `passes`."""
    exit: float = 1.0
    exit_rate: float = 1.0
    """What the exits' learning rate is of the others'."""
    rate: float = 0.0
    """Weight of the estimated size in kilobits a picture."""

    def check(self, key: str) -> None:
        _check_unit(key, self.unit)
        _require(
            self.passes > 1 or not self.invariant,
            f"{key}.invariant: needs another pass than the widest, {key}.passes of at least 2",
        )


def _check_unit(key: str, unit: str) -> None:
    _require(unit in ("epochs", "minutes"), f"{key}.unit: {unit!r} is neither epochs nor minutes")


@dataclass(frozen=True)
class Detection:
    """A detector's pictures, network and losses. Paths are relative to the data folder."""

    labels: list[str] = field(default_factory=list)
    boxes: list[str] = field(default_factory=list)
    """Annotated pictures: `NAME.json` (COCO), `NAME.csv`, or a folder in YOLO's text format. Pictures of the first two lie in
    the folder `NAME`, or beside the file."""
    renamed: list[str] = field(default_factory=list)
    """`THEIRS=OURS`: what sources call our classes."""
    plain: list[str] = field(default_factory=list)
    """Folders of pictures that only a teacher knows."""
    plain_share: float = 0.1
    """Views of those an epoch shows, a picture."""
    val: str = ""
    pyramid: list[int] = field(default_factory=lambda: [48, 96])
    """Channels at stride 8, and at strides 16 and 32."""
    start_width: int = 100
    """The width of the head of a classifier's bundle that the network starts from."""
    known_rate: float = 0.3
    """The fraction of the learning rate that layers get which start from a bundle's."""
    mosaic: float = 0.3
    """Fraction of views of four pictures."""
    empty: float = 0.0
    """Fraction of other views of annotated pictures that show a part with nothing in it, for the exits."""
    score: float = 1.0
    """Weight of the annotations' scores, and so on: `box` of their boxes, `bins` of the distributions of their sides; of a
    teacher's likewise, of all its classes' scores, `others`, and of its features, `hints`."""
    box: float = 2.0
    bins: float = 0.5
    taught_score: float = 1.0
    taught_box: float = 1.0
    taught_bins: float = 0.25
    others: float = 0.5
    hints: float = 0.5


@dataclass(frozen=True)
class Config:
    name: str
    task: str = "classification"
    """What the network answers: `classification`, or `detection`, which `detection` then describes."""
    version: str = "0.1.0"
    seed: int = 1
    precision: str = "f32"
    """Of convolutions and matrix products in training: f32, or bf16, which processors without instructions for it compute
    many times slower; auto measures both before each network or stage is trained, and takes the faster. A run that has
    to repeat names one."""
    data: Data = field(default_factory=Data)
    network: Network = field(default_factory=Network)
    full: Full = field(default_factory=Full)
    distil: Distil = field(default_factory=Distil)
    split: Split = field(default_factory=Split)
    detection: Detection = field(default_factory=Detection)
    stage1: Stage = field(default_factory=lambda: Stage(feature=1.0, noise=0.5, rate=0.02))
    """Head and adapter learn the full network's features."""
    stage2: Stage = field(
        default_factory=lambda: Stage(
            phases=[[2, 0.8]], learning_rate=3e-4, trains=["adapter", "trunk"], task=0.5, soft=0.5, exit=0.0
        )
    )
    """Adapter and trunk learn the task through the real quantiser."""
    stage3: Stage = field(
        default_factory=lambda: Stage(
            phases=[[2, 1.0]], learning_rate=2e-4, trains=["head", "adapter", "trunk"], task=0.5, soft=0.5, rate=0.02
        )
    )
    """Everything together, straight through the rounding, with the rate in the loss."""
    stage4: Stage = field(
        default_factory=lambda: Stage(enabled=False, phases=[[2, 1.0]], trains=["exits"], warmup=0.1, weight_decay=0.02)
    )
    """Exits alone, on a head that changes no more."""

    @property
    def stages(self) -> dict[int, Stage]:
        """Those of the split network that are enabled, by number."""
        every = enumerate((self.stage1, self.stage2, self.stage3, self.stage4), 1)
        return {number: stage for number, stage in every if stage.enabled}

    @property
    def whole(self) -> bool:
        """Whether the full network learns on with the split one, and has its trunk in the end."""
        return self.stage3.enabled and self.stage3.whole

    @property
    def split_alone(self) -> bool:
        """Whether the split network learns nothing from the full one, and can be trained without it."""
        stages = list(self.stages.values())
        return all(
            stage.trains == ["exits"]
            or ("trunk" in stage.trains and not (stage.feature or stage.last or stage.soft or stage.whole))
            for stage in stages
        )

    @property
    def trunk_stride(self) -> int:
        """Of the features that the trunk takes."""
        if self.network.backbone:
            return self.split.stride
        return LAST_STRIDE >> (len(self.network.channels) - 1)

    def __post_init__(self) -> None:
        _require(self.task in TASKS, f"task: {self.task!r} is none of {', '.join(TASKS)}")
        _require(self.precision in PRECISIONS, f"precision: {self.precision!r} is none of {', '.join(PRECISIONS)}")
        self.data.check()
        self.network.check()
        self.full.check()
        self.distil.check()
        self.split.check()
        for key in ("stage1", "stage2", "stage3", "stage4"):
            getattr(self, key).check(key)
        if not self.network.backbone:
            self._check_strides()

    def _check_strides(self) -> None:
        """Whether head, prefix and trunk fit each other; a backbone of a library is asked once it is traced."""
        stride, trunk = self.split.stride, self.trunk_stride
        _require(
            trunk in (stride, 2 * stride),
            f"network.channels: the trunk's stages lead from stride {trunk} to {LAST_STRIDE}, but the head's stride"
            f" {stride} or twice that must be where they begin",
        )
        strides = len(self.network.prefix_channels)
        if strides:
            reached = 2 << strides
            _require(reached == trunk, f"network.prefix_channels: {strides} strides lead to {reached}, the trunk takes {trunk}")
        else:
            _require(
                trunk == stride,
                "network.prefix_channels: a split before the trunk's place needs a prefix of the network's own",
            )


def load(path: Path, changes: Sequence[str] = ()) -> Config:
    """The file's settings. Each of `changes` is one more line of TOML with its whole key, `stage3.rate=0`, in place of the
    file's own."""
    with path.open("rb") as file:
        table = tomllib.load(file)
    for change in changes:
        try:
            _merge(table, tomllib.loads(change))
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"--set {change}: not a KEY=VALUE of TOML: {error}") from None
    return parse(table)


def _merge(table: dict[str, Any], over: dict[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(table.get(key), dict):
            _merge(table[key], value)
        else:
            table[key] = value


def parse(table: dict[str, Any]) -> Config:
    return _build(Config, table, "")


def _build(kind: type, table: dict[str, Any], at: str) -> Any:
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(table) - set(hints))
    if unknown:
        raise ValueError(f"unknown key `{at}{unknown[0]}`; known: {', '.join(hints)}")
    values = {}
    for key, value in table.items():
        hint = hints[key]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            if not isinstance(value, dict):
                raise ValueError(f"`{at}{key}` must be a table")
            values[key] = _build(hint, value, f"{at}{key}.")
        else:
            values[key] = _checked(value, hint, f"{at}{key}")
    missing = [f.name for f in dataclasses.fields(kind) if f.name not in values and _required(f)]
    if missing:
        raise ValueError(f"missing key `{at}{missing[0]}`")
    return kind(**values)


def _required(item: dataclasses.Field) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def _checked(value: Any, hint: Any, at: str) -> Any:
    if typing.get_origin(hint) is list:
        if not isinstance(value, list):
            raise ValueError(f"`{at}` must be a list")
        return [_checked(item, typing.get_args(hint)[0], at) for item in value]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or isinstance(value, bool) is not (hint is bool):
        raise ValueError(f"`{at}` must be of type {hint.__name__}, not {type(value).__name__}")
    return value
