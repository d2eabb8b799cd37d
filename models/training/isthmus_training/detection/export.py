"""Writes a detector's run as a bundle of format 2."""

from __future__ import annotations

import dataclasses
import datetime
import platform
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from .. import goldens
from ..bundle import BATCH, Bundle
from ..config import Config
from ..data import normalise
from ..export import packed, parameters, put, seal, split_graphs, tables
from ..graph import Graph, round_weights
from ..network import plain
from ..student import Student
from . import graph as graphs
from .evaluate import Found, f1, mean_average_precision, suppressed
from .full import LEAST, in_picture
from .network import BINS, STRIDES, Trunk, boxes, expected
from .pictures import FILL, Labelled, Zoom, fitted
from .views import How, Shown, TrainSet, all_places, letterboxed

TABLE_VIEWS = 384
CONFIDENCE, OVERLAP, LIMIT = 0.3, 0.6, 100
BOX_BYTES = 12
"""Of a box in a server's reply."""


class Sets(NamedTuple):
    """What was learnt from, and what validates."""

    train: TrainSet
    val: Sequence[Labelled]


@dataclasses.dataclass(frozen=True)
class Options:
    """As `export.Options` of a classifier."""

    rendered: Sequence[Path] = ()
    card: str = ""
    threads: int = 1
    limit: int | None = None


class DetectorBundle(Bundle):
    """A bundle whose first decoder finds boxes."""

    def view(self, picture: Image.Image) -> np.ndarray:
        size = (self.manifest["input"]["width"], self.manifest["input"]["height"])
        return self.normalise(fitted(np.asarray(picture), size)[0][None])

    def answers(self, split: dict[str, Any], width: dict[str, Any], latents: np.ndarray) -> dict[str, np.ndarray]:
        decoder = self.manifest["decoders"][0]
        values = self.run(decoder["trunk"][split["name"]], self.run(width["adapter"], latents)[0])
        return self._named("output", values)

    def full_answers(self, x: np.ndarray) -> dict[str, np.ndarray]:
        return self._named("full", self.run(self.manifest["full"]["file"], x))

    def _named(self, kind: str, values: list[np.ndarray]) -> dict[str, np.ndarray]:
        decoder = self.manifest["decoders"][0]
        names = [output["name"] for output in decoder["outputs"]]
        return {f"{kind}.{decoder['name']}.{name}": value for name, value in zip(names, values, strict=True)}


class Measured(NamedTuple):
    """A point on some frames: bytes sent, quality and confidence of each answer, bytes of its reply; and mAP over all."""

    point: str
    sizes: np.ndarray
    quality: np.ndarray
    confidence: np.ndarray
    reply: np.ndarray
    precision: float

    def line(self) -> str:
        return f"{self.point}: quality {self.quality.mean():.4f}, mAP {self.precision:.4f}, {self.sizes.mean():.1f} B"


def write(config: Config, student: Student, pictures: Sets, target: Path, options: Options) -> None:
    """Writes a run as the bundle in the folder `target`, which is replaced whole or not at all."""
    root = target.with_name(target.name + ".partial")
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    bundle = DetectorBundle(root, _graphs(config, student.cpu().eval(), root), options.threads)
    tables(bundle, config.split.name, plain_views(config, pictures.train))
    every = np.random.default_rng(config.seed).permutation(len(pictures.val))[: options.limit]
    chosen = [pictures.val[at] for at in np.sort(every)]
    measured = []
    for result in measure(bundle, config, chosen):
        print(result.line(), flush=True)
        measured.append(result)
    _record(bundle, measured)
    goldens.write(bundle, options.rendered, config.seed)
    seal(bundle.manifest, root)
    (root / "MODEL_CARD.md").write_text(_card(config, bundle.manifest, measured, len(chosen), options.card), "utf-8")
    put(root, target)


def plain_views(config: Config, pictures: TrainSet) -> torch.Tensor:
    """Lightly augmented annotated pictures, by which tables are counted."""
    light = dataclasses.replace(pictures, how=How(Zoom(0.9, 1.3), mosaic=0.0, jitter=0.1))
    annotated = sum(count for source, count in zip(light.sources, light.counts, strict=True) if source.share == 1)
    index = np.random.default_rng(config.seed).permutation(annotated)[:TABLE_VIEWS]
    size = (config.data.size[0], config.data.size[1])
    return light.views(index, size, config.seed, config.data.normalisation)[0]


def _graphs(config: Config, student: Student, root: Path) -> dict[str, Any]:
    """Writes every graph. Gives the manifest without what has to be measured."""
    width, height = config.data.size
    places = [(-(-width // stride)) * (-(-height // stride)) for stride in STRIDES]
    entry = split_graphs(config, student, root)
    trunk = entry.pop("trunk")
    for size in entry["widths"]:
        size["exit_quality"] = size.pop("exit_accuracy")
    shape = tuple(entry["features"])
    entry["features"] = [entry["features"]]
    body = round_weights(plain(student.trunk))
    assert isinstance(body, Trunk)
    graph = Graph("trunk", "features", shape, "N")
    graphs.add(graph, body, "features")
    graph.save(root / trunk)
    prefix = round_weights(plain(student.prefix.plain()))
    graph = Graph("full", "picture", (3, height, width), "N")
    graphs.add(graph, body, graph.add(prefix, "picture"))
    graph.save(root / "onnx/full.onnx")
    labels = config.detection.labels
    return {
        "format": 2,
        "name": config.name,
        "version": config.version,
        "input": {
            "width": width,
            "height": height,
            "mean": config.data.mean,
            "std": config.data.std,
            "fit": "letterbox",
            "channels": "rgb",
            "fill": [FILL] * 3,
        },
        "full": {
            "file": "onnx/full.onnx",
            "macs": graph.macs,
            "parameters": parameters(prefix) + parameters(body),
            "quality": 0.0,
        },
        "splits": [entry],
        "decoders": [
            {
                "name": "boxes",
                "task": "detection",
                "labels": labels,
                "trunk": {entry["name"]: trunk},
                "outputs": [
                    {"name": "scores", "shape": [sum(places), len(labels)], "dtype": "f32"},
                    {"name": "distances", "shape": [sum(places), 4 * BINS], "dtype": "f32"},
                ],
                "boxes": {
                    "layout": "distribution",
                    "strides": list(STRIDES),
                    "bins": BINS,
                    "confidence": CONFIDENCE,
                    "iou": OVERLAP,
                    "limit": LIMIT,
                },
            }
        ],
    }


def measure(bundle: DetectorBundle, config: Config, pictures: Sequence[Labelled]) -> Iterator[Measured]:
    """The full network, the exit of each width and every operating point, on these pictures."""
    size = (bundle.manifest["input"]["width"], bundle.manifest["input"]["height"])
    views, tiles = letterboxed(pictures, size)
    x = normalise(torch.from_numpy(views), config.data.normalisation).contiguous().numpy()
    judge = _Judge(config, pictures, tiles)
    none = np.zeros(len(x), np.int64)
    yield judge.of("full", none, judge.found(list(bundle.full_answers(x).values())))
    for split in bundle.manifest["splits"]:
        for width in split["widths"]:
            name = f"{split['name']}/{width['name']}"
            latents, exits = bundle.run(width["head"], x)
            yield judge.of_exit(f"{name}/exit", exits)
            for point, sizes, values in bundle.sent(split, width, latents):
                found: list[Found] = []
                for at in range(0, len(values), BATCH):
                    answers = bundle.answers(split, width, values[at : at + BATCH])
                    found += judge.found(list(answers.values()), at)
                yield judge.of(point, sizes, found)


class _Judge:
    """Holds a detector's outputs against what is in pictures."""

    def __init__(self, config: Config, pictures: Sequence[Labelled], tiles: Sequence[Shown]) -> None:
        self.labels, self.pictures, self.tiles = config.detection.labels, pictures, tiles
        self.places = all_places((config.data.size[0], config.data.size[1]))

    def found(self, outputs: list[np.ndarray], first: int = 0) -> list[Found]:
        """The boxes in the pictures from the `first` on."""
        scores, distances = outputs
        steps = expected(torch.from_numpy(distances).unflatten(2, (4, BINS)))
        frames = boxes(steps, self.places.centres, self.places.strides).numpy()
        tiles = self.tiles[first : first + len(scores)]
        return [
            in_picture(suppressed(s, f, LEAST, OVERLAP, LIMIT), *tile) for s, f, tile in zip(scores, frames, tiles, strict=True)
        ]

    def of(self, point: str, sizes: np.ndarray, found: list[Found]) -> Measured:
        sure = [one.above(CONFIDENCE) for one in found]
        quality = np.array([f1(one, picture) for one, picture in zip(sure, self.pictures, strict=True)])
        confidence = np.array([_confidence(one, some) for one, some in zip(found, sure, strict=True)])
        reply = np.array([answer_bytes(len(one.boxes)) for one in sure])
        precision, _ = mean_average_precision(self.pictures, found, self.labels)
        return Measured(point, sizes, quality, confidence, reply, precision)

    def of_exit(self, point: str, logits: np.ndarray) -> Measured:
        """An exit answers that nothing is there."""
        quality = np.array([float(not len(picture.boxes)) for picture in self.pictures])
        confidence = 1 - 1 / (1 + np.exp(-logits.max(1)))
        return Measured(point, np.zeros(len(logits), np.int64), quality, confidence, np.zeros(len(logits), np.int64), 0.0)


def answer_bytes(boxes: int) -> int:
    """Length of the message that answers with so many boxes: a tag, the length as a varint, and the boxes."""
    length = BOX_BYTES * boxes
    return length and 1 + -(-length.bit_length() // 7) + length


def _confidence(found: Found, sure: Found) -> float:
    """How sure an answer is: the mean of the boxes that it has; without any, how unlikely the likeliest one was."""
    if len(sure.boxes):
        return float(sure.confidence.mean())
    return 1 - float(found.confidence.max(initial=0.0))


def _record(bundle: DetectorBundle, measured: Sequence[Measured]) -> None:
    """Fills in what the manifest says was measured, and writes every single result."""
    rows, points = ["frame,label,point,bytes,quality,confidence,reply"], []
    exits = {f"{split['name']}/{width['name']}/exit": width for split in bundle.manifest["splits"] for width in split["widths"]}
    for result in measured:
        mean = round(float(result.quality.mean()), 5)
        if result.point == "full":
            bundle.manifest["full"]["quality"] = mean
        elif result.point in exits:
            exits[result.point]["exit_quality"] = mean
        else:
            points.append(_entry(result, mean))
        for frame, (size, quality, confidence, reply) in enumerate(zip(*result[1:5], strict=True)):
            rows.append(f"{frame},,{result.point},{size},{round(quality, 4):g},{confidence:.4f},{reply}")
    bundle.manifest["points"] = points
    (bundle.root / "outcomes.csv.zst").write_bytes(packed("\n".join([*rows, ""]).encode()))


def _entry(result: Measured, mean: float) -> dict[str, Any]:
    split, width, channels, bits = result.point.split("/")
    return {
        "split": split,
        "width": width,
        "channels": int(channels[1:]),
        "bits": int(bits[1:]),
        "quality": mean,
        "bytes_mean": round(float(result.sizes.mean()), 1),
        "bytes_p50": int(np.percentile(result.sizes, 50, method="higher")),
        "bytes_p99": int(np.percentile(result.sizes, 99, method="higher")),
    }


def _card(config: Config, manifest: dict[str, Any], measured: Sequence[Measured], count: int, text: str) -> str:
    by_name = {result.point: result for result in measured}
    rows = [
        f"| {p.point} | {100 * p.precision:.1f} | {p.quality.mean():.3f} | {p.sizes.mean():.0f} |"
        for p in measured
        if "/c" in p.point
    ]
    widths = [
        f"| {w['name']} | {w['head_macs'] / 1e6:.1f} | {w['head_parameters']:,} | {w['exit_parameters']:,} |"
        for split in manifest["splits"]
        for w in split["widths"]
    ]
    full = manifest["full"]
    return "\n".join(
        [
            f"# {config.name} {config.version}",
            "",
            text.strip(),
            "",
            "## Measured",
            "",
            f"mAP is COCO's, over overlaps from 0.5 to 0.95; F1 of boxes from a confidence of {CONFIDENCE} at an overlap of"
            f" 0.5, mean over pictures; of ONNX Runtime on {count:,} validation pictures. Bytes are −Σ log2 p rounded up plus"
            " envelope and header.",
            "",
            f"Full network: {100 * by_name['full'].precision:.1f} mAP, F1 {full['quality']:.3f}, {full['macs'] / 1e6:.0f} MMAC,"
            f" {full['parameters'] / 1e6:.2f} M parameters.",
            "",
            "| width | head MMAC | head parameters | exit's parameters |",
            "|---|---|---|---|",
            *widths,
            "",
            "| point | mAP | F1 | mean bytes |",
            "|---|---|---|---|",
            *rows,
            "",
            f"Seed {config.seed}. Exported {datetime.date.today()} on {platform.machine()} with torch {torch.__version__}.",
            "",
        ]
    )
