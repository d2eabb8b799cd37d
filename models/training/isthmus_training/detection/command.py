"""What the command line does where a configuration's task is detection."""

from __future__ import annotations

import argparse

from .. import student as students
from ..config import Config
from ..ranks import Ranks
from ..workers import Workers
from . import export, full, stages
from .run import Run, training, validation

FIT = 8
"""Pictures of a micro-batch: a detector's steps are of few."""


def train(config: Config, options: argparse.Namespace, device: str) -> None:
    """Trains the full network, then the split one, or continues; a teacher is asked about every picture first."""
    ranks = Ranks(device)
    pictures = training(config, options.data, options.run / "teacher" if options.teacher else None)
    if options.teacher:
        if ranks.first:
            pictures.ask(options.teacher, options.threads)
        ranks.barrier()
    val = validation(config, options.data)
    if ranks.first:
        print(f"{sum(len(s.pictures) for s in pictures.sources)} training and {len(val)} validation pictures", flush=True)
    workers = Workers(ranks, options.threads, config.precision, FIT)
    run = Run(config, pictures, val, workers, options.run, options.start)
    if options.only != "split" and config.full.enabled:
        full.train(run)
    if options.only != "full":
        stages.train(run, full.restore(config, options.run))


def write(config: Config, options: argparse.Namespace) -> None:
    """Writes a run as a bundle."""
    network = full.restore(config, options.run)
    student = students.restore(config, network, None, options.run)
    pictures = training(config, options.data, None)
    card = options.card.read_text("utf-8") if options.card else ""
    rendered = sorted(options.goldens.rglob("*.png")) if options.goldens else []
    chosen = export.Options(rendered, card, options.threads, options.limit)
    export.write(config, student, export.Sets(pictures, validation(config, options.data)), options.bundle, chosen)


def evaluate(config: Config, options: argparse.Namespace) -> None:
    """Says how a bundle does on the validation pictures."""
    bundle = export.DetectorBundle(options.bundle, threads=options.threads)
    for result in export.measure(bundle, config, validation(config, options.data)):
        print(result.line(), flush=True)
