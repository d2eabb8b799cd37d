"""Writes what was learnt as a bundle of format 2: graphs, tables, outcomes against the whole network, goldens, manifest."""

from __future__ import annotations

import dataclasses
import datetime
import math
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch

from .. import goldens
from ..export import packed, put, seal, tables
from . import plain, surgery
from .bundle import CutBundle
from .quality import Judge, Judgement
from .train import Distillation
from .views import Input, Pictures, open_picture

TABLE_SYMBOLS = 100_000
"""Symbols of each channel that tables are counted from, and no more pictures than that takes."""


@dataclasses.dataclass(frozen=True)
class About:
    """What a manifest says beside what is learnt: `decoder` is its entry without trunk and outputs."""

    name: str
    version: str
    decoder: Mapping[str, Any]
    how: Input
    threads: int = 1


class Measured(NamedTuple):
    """A point on some frames: bytes sent, and each answer's judgement."""

    point: str
    sizes: np.ndarray
    judgements: list[Judgement]

    @property
    def quality(self) -> float:
        return float(np.mean([judgement.quality for judgement in self.judgements]))

    def line(self) -> str:
        return f"{self.point}: {self.quality:.4f} of the whole network's answers, {self.sizes.mean():.0f} B"


def write(
    model: onnx.ModelProto, learnt: Distillation, pictures: Pictures, measured: Sequence[Path], about: About, target: Path
) -> None:
    """Writes the bundle in the folder `target`, which is replaced whole or not at all; operating points are measured on
    the pictures `measured`."""
    root = target.with_name(target.name + ".partial")
    shutil.rmtree(root, ignore_errors=True)
    (root / "onnx").mkdir(parents=True)
    bundle = CutBundle(root, _graphs(model, learnt, about, root), about.threads)
    rng = np.random.default_rng(learnt.settings.seed)
    count = min(len(pictures), max(64, TABLE_SYMBOLS // math.prod(learnt.sizes.grid)))
    views = np.concatenate([bundle.view(pictures.draw(rng)) for _ in range(count)])
    tables(bundle, bundle.manifest["splits"][0]["name"], torch.from_numpy(views))
    results = []
    for result in measure(bundle, measured):
        print(result.line(), flush=True)
        results.append(result)
    _record(bundle, results)
    goldens.write(bundle, (), learnt.settings.seed)
    seal(bundle.manifest, root)
    (root / "MODEL_CARD.md").write_text(_card(bundle.manifest, results, learnt, len(pictures)), "utf-8")
    put(root, target)


def _graphs(model: onnx.ModelProto, learnt: Distillation, about: About, root: Path) -> dict[str, Any]:
    """Writes every graph. Gives the manifest without what has to be measured."""
    settings, split, cut, how = learnt.settings, learnt.kept.cpu(), learnt.cut, about.how
    shapes = [(shape[0], shape[1], shape[2]) for shape in cut.shapes]
    latents = (settings.latents, *learnt.sizes.grid)
    name = f"s{how.height // latents[1]}"
    decoder = dict(about.decoder)
    trunk, adapter = f"onnx/{decoder['name']}_{name}.onnx", f"onnx/adapter_{name}.onnx"
    onnx.save(model, root / "onnx/full.onnx")
    onnx.save(cut.trunk, root / trunk)
    onnx.save(plain.adapter(split.adapter, latents, shapes), root / adapter)
    widths = []
    for width in settings.widths:
        head = plain.head(split, width, cut.prefix, (3, how.height, how.width), latents)
        file = f"onnx/head_{name}_w{width}.onnx"
        onnx.save(head, root / file)
        widths.append(
            {
                "name": f"w{width}",
                "head": file,
                "adapter": adapter,
                "head_macs": surgery.macs(head),
                "head_parameters": surgery.parameters(head),
                "exit": False,
                "exit_parameters": 0,
                "exit_quality": 0.0,
                "quantisers": [_quantiser(learnt, bits, f"{name}_w{width}_b{bits}") for bits in settings.bits],
            }
        )
    shapes_out = {value.name: list(surgery.shape_of(model, value.name)) for value in model.graph.output}
    decoder |= {
        "trunk": {name: trunk},
        "outputs": [{"name": output, "shape": shape, "dtype": "f32"} for output, shape in shapes_out.items()],
    }
    return {
        "format": 2,
        "name": about.name,
        "version": about.version,
        "input": how.manifest(),
        # Of its own answers, which without labels are all that is known.
        "full": {
            "file": "onnx/full.onnx",
            "macs": surgery.macs(model),
            "parameters": surgery.parameters(model),
            "quality": 1.0,
        },
        "splits": [
            {
                "name": name,
                "latent": list(latents),
                "channels": list(settings.channels),
                "features": [list(shape) for shape in shapes],
                "widths": widths,
            }
        ],
        "decoders": [decoder],
    }


def _quantiser(learnt: Distillation, bits: int, tag: str) -> dict[str, Any]:
    scale = learnt.kept.quantiser.scale(bits).detach().cpu().numpy()
    return {
        "bits": bits,
        # The shortest decimals that read back the same in f32.
        "scale": [float(str(value)) for value in scale],
        "zero_point": [2 ** (bits - 1)] * len(scale),
        "prior_mean": [0.0] * len(scale),
        "tables": f"tables/{tag}.cdf",
        "contexts": f"tables/{tag}.ctx",
    }


def measure(bundle: CutBundle, files: Sequence[Path]) -> Iterator[Measured]:
    """The whole network and every operating point, against the whole network."""
    how = bundle.input
    x = np.concatenate([bundle.view(open_picture(file)) for file in files])
    judge = Judge(bundle.decoder, (how.width, how.height))
    wanted = list(bundle.full_answers(x).values())

    def judged(answers: list[np.ndarray]) -> list[Judgement]:
        return [judge([a[n] for a in answers], [w[n] for w in wanted]) for n in range(len(x))]

    yield Measured("full", np.zeros(len(x), np.int64), judged(wanted))
    for split in bundle.manifest["splits"]:
        for width in split["widths"]:
            latents = bundle.run(width["head"], x)[0]
            for point, sizes, values in bundle.sent(split, width, latents):
                answers = list(bundle.answers(split, width, values).values())
                yield Measured(point, sizes, judged(answers))


def _record(bundle: CutBundle, results: Sequence[Measured]) -> None:
    """Fills in the measured points, and writes every single result."""
    rows, points = ["frame,label,point,bytes,quality,confidence,reply"], []
    classes = bundle.decoder["task"] == "classification"
    for result in results:
        if result.point != "full":
            split, width, channels, bits = result.point.split("/")
            points.append(
                {
                    "split": split,
                    "width": width,
                    "channels": int(channels[1:]),
                    "bits": int(bits[1:]),
                    "quality": round(result.quality, 5),
                    "bytes_mean": round(float(result.sizes.mean()), 1),
                    "bytes_p50": int(np.percentile(result.sizes, 50, method="higher")),
                    "bytes_p99": int(np.percentile(result.sizes, 99, method="higher")),
                }
            )
        for frame, (size, judgement) in enumerate(zip(result.sizes, result.judgements, strict=True)):
            label = judgement.label if classes else ""
            quality = f"{round(judgement.quality, 4):g}"
            rows.append(f"{frame},{label},{result.point},{size},{quality},{judgement.confidence:.4f},{judgement.reply}")
    bundle.manifest["points"] = points
    (bundle.root / "outcomes.csv.zst").write_bytes(packed("\n".join([*rows, ""]).encode()))


def _card(manifest: Mapping[str, Any], results: Sequence[Measured], learnt: Distillation, count: int) -> str:
    full, widths = manifest["full"], manifest["splits"][0]["widths"]
    return "\n".join(
        [
            f"# {manifest['name']} {manifest['version']}",
            "",
            f"A split network that learnt from {count:,} pictures without labels to imitate another, in {learnt.steps:,} steps"
            f" ({learnt.seconds / 3600:.1f} hours), cut at {', '.join(learnt.cut.at)}.",
            "",
            "## Measured",
            "",
            f"On {len(results[0].sizes):,} pictures that were held out, by ONNX Runtime. Quality is that of the answers beside"
            " the whole network's, which counts as right. Bytes are −Σ log2 p rounded up plus envelope and header.",
            "",
            f"Whole network: {full['macs'] / 1e6:.0f} MMAC, {full['parameters'] / 1e6:.2f} M parameters.",
            "",
            "| width | head MMAC | head parameters |",
            "|---|---|---|",
            *(f"| {w['name']} | {w['head_macs'] / 1e6:.1f} | {w['head_parameters']:,} |" for w in widths),
            "",
            "| point | quality | mean bytes |",
            "|---|---|---|",
            *(f"| {r.point} | {r.quality:.4f} | {r.sizes.mean():.0f} |" for r in results if r.point != "full"),
            "",
            f"Seed {learnt.settings.seed}. Exported {datetime.date.today()} on {platform.machine()} with torch"
            f" {torch.__version__}.",
            "",
        ]
    )
