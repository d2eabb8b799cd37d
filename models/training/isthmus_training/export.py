"""Writes a trained run as a bundle: graphs, tables, goldens, manifest, model card."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
import zstandard
from torch import nn

from . import entropy, full, goldens, onnx_export
from .bundle import Bundle
from .config import Config
from .data import Pictures, Sets
from .graph import Graph, round_weights
from .network import FullNetwork, Section, plain
from .quantise import quantise, zero_point
from .student import Student

TABLE_PICTURES = 2048


@dataclasses.dataclass(frozen=True)
class Options:
    """What is chosen at export: `rendered` pictures for the goldens, synthetic ones if there are none, and never photos; the
    opening text of the model `card`; `threads` that measure.

    The full network and the exits are measured on all validation pictures, operating points on `limit` of them. With `add`
    the bundle that is there gets the student's split, in front of the trunk that it has.
    """

    rendered: Sequence[Path] = ()
    card: str = ""
    threads: int = 1
    limit: int | None = None
    add: bool = False


def write(
    config: Config, network: FullNetwork, student: Student, pictures: Sets, target: Path, options: Options | None = None
) -> None:
    """Writes a trained run as the bundle in the folder `target`.

    All of it is written to `target.partial`, which is renamed to `target` once it is complete: a bundle that is there
    already is replaced whole or not at all.
    """
    options = options or Options()
    root = target.with_name(target.name + ".partial")
    shutil.rmtree(root, ignore_errors=True)
    student = student.cpu().eval()
    if options.add:
        shutil.copytree(target, root)
        manifest = _joined(config, student, pictures.train.classes, root)
    else:
        root.mkdir(parents=True)
        manifest = _graphs(config, network.cpu().eval(), student, pictures.train.classes, root)
    bundle = Bundle(root, manifest, options.threads)
    tables(bundle, config.split.name, full.plain_views(config, pictures.train, TABLE_PICTURES))
    chosen = np.sort(np.random.default_rng(config.seed).permutation(len(pictures.val))[: options.limit])
    _measure(bundle, pictures.val, chosen)
    goldens.write(bundle, options.rendered, config.seed)
    seal(manifest, root)
    (root / "MODEL_CARD.md").write_text(_card(config, manifest, pictures, len(chosen), options.card), "utf-8")
    put(root, target)


def seal(manifest: dict[str, Any], root: Path) -> None:
    """Writes the manifest with the digests of all that is in the bundle beside it."""
    about = (root / "manifest.toml", root / "MODEL_CARD.md")
    files = sorted(path for path in root.rglob("*") if path.is_file() and path not in about)
    manifest["files"] = {path.relative_to(root).as_posix(): digest(path) for path in files}
    (root / "manifest.toml").write_bytes(tomli_w.dumps(manifest).encode())


def put(root: Path, target: Path) -> None:
    """Puts a complete bundle in a target's place."""
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(root, target)
    shutil.rmtree(old, ignore_errors=True)


def _graphs(config: Config, network: FullNetwork, student: Student, labels: list[str], root: Path) -> dict[str, Any]:
    """Writes every graph, weights rounded to f16. Gives the manifest without what has to be measured."""
    width, height = config.data.size
    # The split network's trunk serves the whole one only where it went on learning for it.
    prefix, trunk = (student.prefix, student.trunk) if config.whole else (network.prefix, network.trunk())
    layers = nn.Sequential(prefix.plain(), trunk)
    full_macs = _save(layers, ("picture", "logits"), (3, height, width), root / "onnx/full.onnx")

    split = split_graphs(config, student, root)
    _save(student.trunk, ("features", "logits"), tuple(split["features"]), root / split["trunk"])
    return {
        "format": 1,
        "name": config.name,
        "version": config.version,
        "task": "classification",
        "labels": labels,
        "input": {"width": width, "height": height, "mean": config.data.mean, "std": config.data.std},
        "full": {
            "file": "onnx/full.onnx",
            "macs": full_macs,
            "parameters": parameters(plain(layers)),
            "accuracy": 0.0,
        },
        "splits": [split],
    }


def _joined(config: Config, student: Student, labels: list[str], root: Path) -> dict[str, Any]:
    """Writes the split's graphs, but for the trunk's, into the bundle in `root`. Gives the bundle's manifest with it."""
    manifest, (width, height) = Bundle(root).manifest, config.data.size
    known = {"width": width, "height": height, "mean": config.data.mean, "std": config.data.std}
    if manifest["labels"] != labels or manifest["input"] != known:
        raise ValueError(f"{config.name}: the bundle to add {config.split.name} to has other labels or another input")
    first = manifest["splits"][0]
    if config.split.name == first["name"]:
        raise ValueError(f"{config.name}: {first['name']} came with the bundle's trunk; export it without --add")
    split = split_graphs(config, student, root)
    if split["features"] != first["features"]:
        raise ValueError(
            f"{config.name}: {split['name']} gives features {split['features']}, its trunk takes {first['features']}"
        )
    others = [other for other in manifest["splits"] if other["name"] != split["name"]]
    return manifest | {"version": config.version, "splits": [*others, split | {"trunk": first["trunk"]}]}


def split_graphs(config: Config, student: Student, root: Path) -> dict[str, Any]:
    """Writes heads and adapters. Gives the manifest's entry, in which the exits' accuracies are to be filled in."""
    (width, height), split = config.data.size, config.split
    picture = (3, height, width)
    grid = (height // int(split.name[1:]), width // int(split.name[1:]))
    latent_shape = (split.channels[-1], *grid)
    widths = []
    for percent in split.widths:
        tag = f"{split.name}_w{percent}"
        head = round_weights(student.head.plain(percent))
        graph = Graph(f"head_{tag}", "picture", picture, 1)
        last = graph.add(head.layers, "picture")
        latents = graph.add(head.latent, last)
        macs = graph.macs
        exits = graph.add(head.exit, last)
        graph.output(latents, "latents")
        graph.output(exits, "exit")
        graph.save(root / f"onnx/head_{tag}.onnx")

        adapter = f"adapter_{split.name}" if split.adapter_shared else f"adapter_{tag}"
        graph = Graph(adapter, "latents", latent_shape, "N")
        graph.output(graph.add(round_weights(student.adapter.plain(percent)), "latents"), "features")
        graph.save(root / f"onnx/{adapter}.onnx")
        feature_shape = graph.shapes["features"]

        exit_parameters = parameters(head.exit)
        widths.append(
            {
                "name": f"w{percent}",
                "head": f"onnx/head_{tag}.onnx",
                "adapter": f"onnx/{adapter}.onnx",
                "head_macs": macs,
                "head_parameters": parameters(head) - exit_parameters,
                "exit_parameters": exit_parameters,
                "exit_accuracy": 0.0,
                "quantisers": [quantiser(student, percent, bits, tag) for bits in split.bits],
            }
        )

    return {
        "name": split.name,
        "latent": list(latent_shape),
        "channels": split.channels,
        "features": list(feature_shape),
        "trunk": f"onnx/trunk_{split.name}.onnx",
        "widths": widths,
    }


def _save(module: nn.Module, names: tuple[str, str], shape: tuple[int, int, int], path: Path) -> int:
    """Writes a module of the server's, from its input [N, *shape] to its output as they are named. Gives its MACs a
    picture."""
    module = round_weights(plain(module))
    if any(isinstance(part, Section) for part in module.modules()):
        return onnx_export.write(module, names, shape, path)
    graph = Graph(path.stem, names[0], shape, "N")
    graph.output(graph.add(module, names[0]), names[1])
    graph.save(path)
    return graph.macs


@torch.no_grad()
def quantiser(student: Student, percent: int, bits: int, tag: str) -> dict[str, Any]:
    centre, scale = student.head.centre(percent), student.quantiser.scale(percent, bits)
    return {
        "bits": bits,
        "scale": _floats(scale),
        "zero_point": [int(value) for value in zero_point(centre, scale, bits)],
        "prior_mean": _floats(centre),
        "tables": f"tables/{tag}_b{bits}.cdf",
        "contexts": f"tables/{tag}_b{bits}.ctx",
    }


def tables(bundle: Bundle, name: str, x: torch.Tensor) -> None:
    """Counts the symbols of the split of this name for training pictures `x` [n, 3, H, W]."""
    (bundle.root / "tables").mkdir(exist_ok=True)
    split = next(split for split in bundle.manifest["splits"] if split["name"] == name)
    for width in split["widths"]:
        latents = bundle.run(width["head"], x.contiguous().numpy())[0]
        for entry in width["quantisers"]:
            scale, zero = np.array(entry["scale"], np.float32), np.array(entry["zero_point"], np.float32)
            symbols, size = quantise(latents, scale, zero, entry["bits"]), 2 ** entry["bits"]
            for key, count in (("tables", entropy.Tables.count), ("contexts", entropy.Tables.count_contexts)):
                (bundle.root / entry[key]).write_bytes(count(symbols, zero.astype(np.int64), size).to_bytes())


def _measure(bundle: Bundle, val_set: Pictures, chosen: np.ndarray) -> None:
    """Fills in what the manifest says was measured, and writes every single result on the `chosen` pictures as
    `outcomes.csv.zst`."""
    labels, points, rows = val_set.labels.numpy(), [], ["frame,label,point,bytes,right,confidence"]
    ordinals = {int(frame): ordinal for ordinal, frame in enumerate(chosen)}
    exits = {f"{split['name']}/{width['name']}/exit": width for split in bundle.manifest["splits"] for width in split["widths"]}
    for result in bundle.measure(np.asarray(val_set.pixels), labels, chosen):
        print(result.line(), flush=True)
        if result.point == "full":
            bundle.manifest["full"]["accuracy"] = round(result.accuracy, 5)
        elif result.point in exits:
            exits[result.point]["exit_accuracy"] = round(result.accuracy, 5)
        else:
            points.append(result.entry())
        for frame, size, right, confidence in zip(*result[1:], strict=True):
            if frame in ordinals:
                rows.append(f"{ordinals[frame]},{labels[frame]},{result.point},{size},{int(right)},{confidence:.4f}")
    bundle.manifest["points"] = points
    content = "\n".join([*rows, ""]).encode()
    (bundle.root / "outcomes.csv.zst").write_bytes(packed(content))


def packed(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=19).compress(content)


def _card(config: Config, manifest: dict[str, Any], pictures: Sets, measured: int, text: str) -> str:
    full = manifest["full"]
    rows = [
        f"| {p['split']} | {p['width']} | {p['channels']} | {p['bits']} | {100 * p['accuracy']:.2f} | {p['bytes_mean']} |"
        f" {p['bytes_p50']} | {p['bytes_p99']} |"
        for p in manifest["points"]
    ]
    widths = [
        f"| {split['name']} | {w['name']} | {w['head_macs'] / 1e6:.1f} | {w['head_parameters']:,} |"
        f" {100 * w['exit_accuracy']:.2f} |"
        for split in manifest["splits"]
        for w in split["widths"]
    ]
    return "\n".join(
        [
            f"# {config.name} {config.version}",
            "",
            text.strip(),
            "",
            "## Measured",
            "",
            f"{len(pictures.train):,} pictures trained it. Accuracies are of ONNX Runtime on {len(pictures.val):,} validation"
            f" pictures, those of operating points on {measured:,} of them, by `isthmus-train export`;"
            " `isthmus-train evaluate` measures all. Bytes are −Σ log2 p rounded up plus envelope and header.",
            "",
            f"Full network: {100 * full['accuracy']:.2f}% top-1, {full['macs'] / 1e6:.0f} MMAC,"
            f" {full['parameters'] / 1e6:.2f} M parameters.",
            "",
            "| split | width | head MMAC | head parameters | exit top-1 % |",
            "|---|---|---|---|---|",
            *widths,
            "",
            "| split | width | channels | bits | top-1 % | mean bytes | p50 | p99 |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            f"Seed {config.seed}. Exported {datetime.date.today()} on {platform.machine()} with torch {torch.__version__}.",
            "",
        ]
    )


def digest(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _floats(values: torch.Tensor) -> list[float]:
    """f32 values as the shortest decimals that read back the same in f32."""
    return [float(str(value)) for value in values.detach().cpu().numpy()]
