"""The command line: `isthmus-train train | export | evaluate | backbones`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from . import config as configuration
from . import backbones, begin, data, export, full, loop, student
from .bundle import Bundle
from .network import Inherited
from .ranks import Ranks
from .settle import settle
from .teacher import Teacher, Witness, label_maps


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="isthmus-train", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    train = commands.add_parser("train", help="train, or continue a stopped run")
    train.add_argument("--config", type=Path, required=True)
    train.add_argument("--teacher", type=Path, help="ONNX classifier whose labels are learnt too")
    train.add_argument("--only", choices=["full", "split"], help="stop before the split network, or start at it")
    train.add_argument("--start", type=Path, help="a bundle to start from, or another run, whose head and adapter the split network's start as")
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
    options = parser.parse_args(arguments)
    try:
        {"train": _train, "export": _export, "evaluate": _evaluate, "backbones": _backbones}[options.command](options)
    except (OSError, ValueError) as error:
        print(f"isthmus-train: {error}", file=sys.stderr)
        return 1
    return 0


def _train(options: argparse.Namespace) -> None:
    config = configuration.load(options.config, options.set)
    options.run.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ranks = Ranks(device if options.device == "auto" else options.device)
    workers = loop.Workers(ranks, options.threads, config.precision)
    train_set, val_set = _pictures(config, options, ranks.first)
    teacher: Teacher | None = None
    if options.teacher and config.distil.enabled:
        if config.distil.views:
            teacher = Witness(options.teacher, train_set, config.distil.hints, config.data.mean, config.data.std)
        else:
            # One process makes the maps, the others then read them.
            if not ranks.first:
                ranks.wait()
            teacher = label_maps(train_set, options.teacher, options.run / "teacher.npy", options.threads)
            if ranks.first:
                ranks.wait()
    train_set, val_set = train_set.on(ranks.device), val_set.on(ranks.device)
    teacher = teacher and teacher.on(ranks.device)
    if options.only != "split" and config.full.enabled:
        full.train(config, train_set, val_set, teacher, workers, options.run, options.start)
    elif options.start and begin.is_bundle(options.start) and not (options.run / "full.pt").exists():
        full.take(config, train_set, options.start, workers, options.run)
    if options.only == "split" and config.split_alone and not (options.run / "full.pt").exists():
        network, outputs = full.untrained(config, len(train_set.classes), teacher)
    else:
        network, outputs = full.restore(config, len(train_set.classes), options.run)
    if options.only != "full":
        student.train(config, network, outputs, train_set, val_set, teacher, workers, options.run, options.start)


def _export(options: argparse.Namespace) -> None:
    config = configuration.load(options.config, options.set)
    train_set, val_set = _pictures(config, options)
    network, outputs = full.restore(config, len(train_set.classes), options.run)
    split = student.restore(config, network, outputs, options.run)
    torch.set_num_threads(options.threads)
    if config.whole and not options.add and not isinstance(network.prefix, Inherited):
        settle(config, split.prefix, train_set)
    goldens = sorted(p for p in options.goldens.rglob("*") if p.suffix == ".png") if options.goldens else []
    card = options.card.read_text("utf-8") if options.card else ""
    limit, add = options.limit, options.add
    export.write(config, network, split, train_set, val_set, options.bundle, goldens, card, options.threads, limit, add)


def _evaluate(options: argparse.Namespace) -> None:
    bundle = Bundle(options.bundle, threads=options.threads)
    size = (bundle.manifest["input"]["width"], bundle.manifest["input"]["height"])
    config = configuration.load(options.config, options.set)
    _, folder = data.scan(options.data, config.data.holdout, config.seed)
    pictures = data.load(folder, size, options.threads)
    labels = pictures.labels.numpy()
    for point in bundle.measure(pictures.pixels, labels):
        print(point.line(), flush=True)


def _backbones(options: argparse.Namespace) -> None:
    for line in backbones.table(options.names or backbones.NAMES, options.program):
        print(line, flush=True)


def _pictures(
    config: configuration.Config, options: argparse.Namespace, said: bool = True
) -> tuple[data.Pictures, data.Pictures]:
    train_folder, val_folder = data.scan(options.data, config.data.holdout, config.seed)
    train_set = data.load(train_folder, tuple(config.data.stored), options.threads)
    val_set = data.load(val_folder, tuple(config.data.size), options.threads)
    if not said:
        return train_set, val_set
    print(f"{len(train_set)} training and {len(val_set)} validation pictures of {len(train_set.classes)} classes")
    bad = train_set.bad + val_set.bad
    for path in bad:
        print(f"could not decode {path}")
    if bad:
        print(f"{len(bad)} pictures are left out")
    return train_set, val_set


if __name__ == "__main__":
    sys.exit(main())
