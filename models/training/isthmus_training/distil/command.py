"""`isthmus-train distil`: from an ONNX file and a folder of pictures to a bundle."""

from __future__ import annotations

import argparse
import dataclasses
import os
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

from .. import precision
from ..ranks import Ranks
from ..workers import Workers
from . import converted, export, surgery
from .losses import TASKS, OutputLoss
from .train import Distillation, Settings, Source, Teacher, input_size
from .views import FITS, Input, Pictures

NAMES = {"classification": "classes", "detection": "boxes", "segmentation": "map", "regression": "values", "tensors": "tensors"}
MEAN, STD = "0.485,0.456,0.406", "0.229,0.224,0.225"


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command and its options."""
    usual = Settings()
    command = commands.add_parser("distil", help="learn a split network from an ONNX file and pictures without labels")
    command.add_argument("model", type=Path, metavar="MODEL.onnx")
    command.add_argument("--at", required=True, metavar="TENSOR[,TENSOR…]", help="where the network is cut")
    command.add_argument(
        "--pictures", type=Path, action="append", required=True, help="folder; may be given again, each is drawn from alike"
    )
    command.add_argument("--out", type=Path, help="the bundle to write at the end; without it only the run is kept")
    command.add_argument("--run", type=Path, help="folder of the checkpoint; OUT.run by default")
    command.add_argument("--measure", type=Path, help="folder of pictures to measure on; 2%% of the others by default")
    command.add_argument("--limit", type=int, default=200, help="pictures that are measured on")
    command.add_argument("--name", help="the bundle's; the file's by default")
    command.add_argument("--set-version", dest="version", default="0.1.0", help="the bundle's")

    answers = command.add_argument_group("what the network answers")
    answers.add_argument("--task", choices=TASKS, default="tensors")
    answers.add_argument("--labels", type=Path, help="file that names the classes, one a line")
    answers.add_argument("--boxes", type=Path, help="TOML file with a detector's [decoders.boxes]: layout and what it needs")

    picture = command.add_argument_group("how a picture becomes the network's input")
    picture.add_argument("--mean", type=_floats, default=_floats(MEAN), help="of 0..1, in the order of the channels")
    picture.add_argument("--std", type=_floats, default=_floats(STD))
    picture.add_argument("--channels", choices=("rgb", "bgr"), default="rgb")
    picture.add_argument("--fit", choices=FITS, default="crop")
    picture.add_argument("--fill", type=_integers, default=(114, 114, 114), help="of letterbox's bars, 0 to 255")

    network = command.add_argument_group("what is learnt")
    network.add_argument(
        "--head", choices=("prefix", "slim"), default=usual.head, help="behind the network's own layers, or not"
    )
    network.add_argument("--stride", type=int, default=0, help="of the latents; that of the tensor in the middle by default")
    network.add_argument("--sent", dest="sent", type=_integers, default=usual.channels, help="channels that may be sent")
    network.add_argument("--bits", type=_integers, default=usual.bits)
    network.add_argument("--widths", type=_integers, default=usual.widths)
    network.add_argument("--encoder", type=_integers, default=usual.encoder, help="hidden channels, residual blocks")
    network.add_argument("--adapter", type=_integers, default=usual.adapter, help="hidden channels, residual blocks")
    network.add_argument("--picture-encoder", type=_integers, default=usual.picture_encoder, help="channels for --head slim")

    training = command.add_argument_group("how long and how fast")
    training.add_argument("--hours", type=float, default=usual.hours)
    training.add_argument("--view", type=int, default=0, help="side of most views in pixels; the input's size by default")
    training.add_argument("--batch", type=int, default=usual.batch, help="views of a worker's step")
    training.add_argument("--learning-rate", type=float, default=usual.learning_rate)
    training.add_argument("--rate", type=float, default=usual.rate, help="price of a bit per place of the latents")
    training.add_argument("--share", type=float, default=usual.share, help="weight of the tensors at the cut")
    training.add_argument("--first", type=int, default=usual.first, help="views for the start in closed form")
    training.add_argument("--seed", type=int, default=usual.seed)
    training.add_argument("--device", default="auto", help="auto, cpu, cuda")
    training.add_argument("--precision", choices=("auto", "f32", "bf16"), default="auto")
    training.add_argument("--threads", type=int, default=os.cpu_count() or 1)


def _floats(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def run(options: argparse.Namespace) -> None:
    """Learns, or goes on learning, and writes the bundle."""
    if not (options.run or options.out):
        raise ValueError("--out or --run says where to keep what is learnt")
    folder = options.run or options.out.with_name(options.out.name + ".run")
    folder.mkdir(parents=True, exist_ok=True)
    model = surgery.read(options.model)
    cut = surgery.cut(model, options.at.split(","))
    how = Input(*input_size(model), options.mean, options.std, options.fit, options.channels, options.fill)
    decoder = _decoder(options, model)
    settings = _settings(options)
    pictures = Pictures(options.pictures, 0 if options.measure else 0.02, settings.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    workers = Workers(Ranks(device if options.device == "auto" else options.device), options.threads)
    learnt = Distillation(model, cut, settings, OutputLoss(options.task, decoder.get("boxes")), workers)
    pool = ThreadPoolExecutor(options.threads) if workers.device.type != "cpu" else None
    source = Source(pictures, how, Teacher(model, cut, bool(settings.view), workers.device), pool)
    print(f"{len(pictures):,} pictures to learn from; the cut gives {_shown(cut)}", flush=True)
    learn(learnt, source, folder, options.precision)
    if options.out:
        about = export.About(options.name or options.model.stem, options.version, decoder, how, options.threads)
        measured = Pictures([options.measure], 0, 0).learnt[0] if options.measure else pictures.held_out
        if len(measured) > options.limit:
            measured = measured[:: -(-len(measured) // options.limit)]
        export.write(model, learnt, pictures, measured, about, options.out)


def learn(learnt: Distillation, source: Source, folder: Path, chosen: str) -> None:
    """From the closed form, or where the run in `folder` was stopped, to the end."""
    try:
        probe = source.batch(2, learnt.settings.view, np.random.default_rng(0))
    except (RuntimeError, Fail, InvalidArgument, RuntimeException) as error:
        raise ValueError(f"the network does not run with two pictures of this size: {str(error)[:200]}") from error
    _, alone = source.teacher(probe.pictures[:1].numpy())
    for one, both in zip(alone, probe.outputs, strict=True):
        if not torch.allclose(one[0], both[0], rtol=1e-3, atol=1e-3 * float(both.abs().max())):
            raise ValueError("a picture's outputs depend on the other pictures of its batch: the network serves one at a time")
    parts = [tensor.cpu().numpy() for tensor in probe.tensors]
    far = converted.check(learnt.trunk.cpu(), surgery.resized(learnt.cut.trunk), parts)
    learnt.trunk.to(learnt.workers.device)
    print(f"the converted network is within {far:.1e} of the file's", flush=True)
    if learnt.resume(folder):
        print(f"continues after step {learnt.steps}", flush=True)
    else:
        learnt.start(source)
        learnt.save(folder)
        print(f"started in closed form from {learnt.settings.first} views", flush=True)
    if learnt.progress < 1:
        learnt.workers.precision = chosen if chosen != "auto" else _fastest(learnt, source)
        print(f"learns in {learnt.workers.precision}", flush=True)
        learnt.train(source, folder)


def _fastest(learnt: Distillation, source: Source) -> str:
    def step(name: str) -> int:
        learnt.workers.precision = name
        learnt.try_step(source)
        return learnt.settings.batch * learnt.workers.count

    rates = precision.rates(step)
    return max(rates, key=rates.__getitem__)


def _settings(options: argparse.Namespace) -> Settings:
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(Settings) if hasattr(options, field.name)}
    given |= {"channels": options.sent, "latents": options.sent[-1]}
    settings = Settings(**given)
    for name, values in (("sent", settings.channels), ("widths", settings.widths), ("bits", settings.bits)):
        if list(values) != sorted(set(values)) or values[0] < 1:
            raise ValueError(f"--{name}: numbers that increase, from 1")
    if settings.bits[-1] > 8 or settings.widths[-1] != 100:
        raise ValueError("--bits end at 8 at most, --widths at 100")
    if len(settings.encoder) != 2 or len(settings.adapter) != 2:
        raise ValueError("--encoder and --adapter: hidden channels and residual blocks, such as 64,2")
    return settings


def _decoder(options: argparse.Namespace, model: onnx.ModelProto) -> dict[str, Any]:
    """The manifest's entry, without trunk and outputs."""
    decoder: dict[str, Any] = {"name": NAMES[options.task], "task": options.task}
    if options.task in ("classification", "detection", "segmentation"):
        decoder["labels"] = _labels(options, model)
    if options.task == "detection":
        if not options.boxes:
            raise ValueError("--task detection needs --boxes, a file that says how outputs become boxes")
        decoder["boxes"] = {"confidence": 0.3, "iou": 0.6, "limit": 300} | tomllib.loads(options.boxes.read_text("utf-8"))
    return decoder


def _labels(options: argparse.Namespace, model: onnx.ModelProto) -> list[str]:
    if options.labels:
        return [line for line in options.labels.read_text("utf-8").splitlines() if line]
    if options.task == "detection":
        raise ValueError("--task detection needs --labels, a file that names the classes")
    shape = surgery.shape_of(model, model.graph.output[0].name)
    return [str(number) for number in range(shape[0] if options.task == "segmentation" else shape[-1])]


def _shown(cut: surgery.Cut) -> str:
    return ", ".join("×".join(map(str, shape)) for shape in cut.shapes)
