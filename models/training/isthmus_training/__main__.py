"""The command line: `isthmus-train train | export | evaluate | backbones`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import torch

from . import backbones, data, export, full, stages, student, warm_start
from . import config as configuration
from .bundle import Bundle
from .detection import command as detection
from .distil import command as distil
from .loop import Run
from .network import Inherited
from .ranks import Ranks, leave
from .recalibrate import recalibrate
from .teacher import OnlineTeacher, Teacher, label_maps
from .workers import Workers


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="isthmus-train", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    train = commands.add_parser("train", help="train, or continue a stopped run")
    train.add_argument("--config", type=Path, required=True)
    train.add_argument("--teacher", type=Path, help="ONNX classifier whose labels are learnt too")
    train.add_argument("--only", choices=["full", "split"], help="stop before the split network, or start at it")
    train.add_argument(
        "--start", type=Path, help="a bundle to start from, or another run, whose head and adapter the split network's start as"
    )
    train.add_argument("--device", default="auto", help="auto, cpu, cuda")

    write = commands.add_parser("export", help="write a run as a bundle")
    write.add_argument("--config", type=Path, required=True)
    write.add_argument("--bundle", type=Path, required=True, help="the folder to write; an old one is replaced")
    write.add_argument("--add", action="store_true", help="add the run's split to the bundle that is there, before its trunk")
    write.add_argument("--goldens", type=Path, help="folder of rendered pictures; synthetic ones by default")
    write.add_argument("--limit", type=int, help="validation pictures that operating points are measured on; all by default")
    write.add_argument("--card", type=Path, help="opening text of the model card")

    for command in (train, write):
        command.add_argument("--out", "--run", dest="run", type=Path, required=True, help="the run's folder")

    evaluate = commands.add_parser("evaluate", help="measure a bundle's operating points with ONNX Runtime")
    evaluate.add_argument("--config", type=Path, required=True, help="the run's: it divides a plain folder")
    evaluate.add_argument("--bundle", type=Path, required=True)

    for command in (train, write, evaluate):
        changed = "one of the configuration's settings, such as stage3.rate=0; may be given again"
        command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=changed)
        command.add_argument("--data", type=Path, required=True, help="DIR/{train,val}/CLASS/* or DIR/CLASS/*")
        command.add_argument("--threads", type=int, default=os.cpu_count() or 1)

    table = commands.add_parser("backbones", help="export networks of other libraries and run them in the Rust engine")
    table.add_argument("names", nargs="*", metavar="NAME", help="timm:NAME or torchvision:NAME; a list of them by default")
    table.add_argument("--program", type=Path, default=Path("target/release/bundle"), help="the `bundle` program")
    distil.add(commands)
    options = parser.parse_args(arguments)
    run = {"train": _train, "export": _export, "evaluate": _evaluate, "backbones": _backbones, "distil": distil.run}
    try:
        run[options.command](options)
    except (OSError, ValueError) as error:
        print(f"isthmus-train: {error}", file=sys.stderr)
        return 1
    finally:
        leave()
    return 0


def _train(options: argparse.Namespace) -> None:
    config = configuration.load(options.config, options.set)
    options.run.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    device = device if options.device == "auto" else options.device
    if config.task == "detection":
        detection.train(config, options, device)
        return
    ranks = Ranks(device)
    pictures = _pictures(config, options, ranks.first)
    teacher = _teacher(config, options, pictures.train, ranks)
    run = Run(
        config,
        pictures.on(ranks.device),
        teacher and teacher.on(ranks.device),
        Workers(ranks, options.threads, config.precision),
        options.run,
        options.start,
    )
    classes, trained = len(pictures.train.classes), (options.run / full.FILE).exists()
    if options.only != "split" and config.full.enabled:
        full.train(run)
    elif options.start and warm_start.is_bundle(options.start) and not trained:
        full.take(run, options.start)
        trained = True
    if options.only == "full":
        return
    if options.only == "split" and config.split_alone and not trained:
        stages.train(run, *full.untrained(config, classes, run.teacher))
    else:
        stages.train(run, *full.restore(config, classes, options.run))


def _teacher(
    config: configuration.Config, options: argparse.Namespace, pictures: data.Pictures, ranks: Ranks
) -> Teacher | None:
    if not options.teacher or not config.distil.enabled:
        return None
    if config.distil.views:
        return OnlineTeacher(options.teacher, pictures, config.distil.hints, config.data.normalisation)
    # One process makes the maps, the others then read them.
    if not ranks.first:
        ranks.barrier()
    maps = label_maps(pictures, options.teacher, options.run / "teacher.npy", options.threads)
    if ranks.first:
        ranks.barrier()
    return maps


def _export(options: argparse.Namespace) -> None:
    config = configuration.load(options.config, options.set)
    if config.task == "detection":
        detection.write(config, options)
        return
    pictures = _pictures(config, options)
    network, outputs = full.restore(config, len(pictures.train.classes), options.run)
    split = student.restore(config, network, outputs, options.run)
    torch.set_num_threads(options.threads)
    if config.whole and not options.add and not isinstance(network.prefix, Inherited):
        recalibrate(config, split.prefix, pictures.train)
    rendered = sorted(options.goldens.rglob("*.png")) if options.goldens else []
    card = options.card.read_text("utf-8") if options.card else ""
    chosen = export.Options(rendered, card, options.threads, options.limit, options.add)
    export.write(config, network, split, pictures, options.bundle, chosen)


def _evaluate(options: argparse.Namespace) -> None:
    config = configuration.load(options.config, options.set)
    if config.task == "detection":
        detection.evaluate(config, options)
        return
    bundle = Bundle(options.bundle, threads=options.threads)
    size = (bundle.manifest["input"]["width"], bundle.manifest["input"]["height"])
    _, folder = data.scan(options.data, config.data.holdout, config.seed)
    pictures = data.load(folder, size, options.threads)
    labels = pictures.labels.numpy()
    for point in bundle.measure(np.asarray(pictures.pixels), labels):
        print(point.line(), flush=True)


def _backbones(options: argparse.Namespace) -> None:
    for line in backbones.table(options.names or backbones.NAMES, options.program):
        print(line, flush=True)


def _pictures(config: configuration.Config, options: argparse.Namespace, said: bool = True) -> data.Sets:
    train_folder, val_folder = data.scan(options.data, config.data.holdout, config.seed)
    stored, size = ((width, height) for width, height in (config.data.stored, config.data.size))
    pictures = data.Sets(data.load(train_folder, stored, options.threads), data.load(val_folder, size, options.threads))
    if said:
        counts = [len(part) for part in pictures]
        print(f"{counts[0]} training and {counts[1]} validation pictures of {len(pictures.train.classes)} classes")
        bad = pictures.train.bad + pictures.val.bad
        for path in bad:
            print(f"could not decode {path}")
        if bad:
            print(f"{len(bad)} pictures are left out")
    return pictures


if __name__ == "__main__":
    sys.exit(main())
