"""The reference values of a bundle, by which another engine's or language's results are checked: made, written, read.

Each file `goldens/*.safetensors.zst` holds one picture and what each part of an operating point makes of it, packed with zstd.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zstandard
from PIL import Image, ImageDraw
from safetensors.numpy import load, save

from . import entropy
from .bundle import Bundle
from .quantise import dequantise, quantise

COUNT = 6
LENGTH = 8
"""Bytes of the number at a safetensors file's beginning: how long the JSON is that follows."""


class Golden(NamedTuple):
    """One picture's tensors by name, and which `split`, `width`, `bits` and `channels` they are of."""

    tensors: dict[str, np.ndarray]
    point: dict[str, str]


def read(bundle: Path) -> list[Golden]:
    """All goldens of the bundle in this folder, in the order of their names."""
    return [_unpack(path.read_bytes()) for path in sorted((bundle / "goldens").glob("*.safetensors.zst"))]


def _unpack(packed: bytes) -> Golden:
    # Read as a stream: a frame need not say how long its content is.
    content = zstandard.ZstdDecompressor().stream_reader(packed).read()
    header = json.loads(content[LENGTH : LENGTH + int.from_bytes(content[:LENGTH], "little")])
    return Golden(load(content), header.get("__metadata__", {}))


def _pack(golden: Golden) -> bytes:
    content = save({name: np.ascontiguousarray(value) for name, value in golden.tensors.items()}, golden.point)
    return zstandard.ZstdCompressor(level=19).compress(content)


def write(bundle: Bundle, rendered: Sequence[Path], seed: int) -> None:
    """Writes goldens over the operating points, of `rendered` pictures or, without any, synthetic ones."""
    folder = bundle.root / "goldens"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    points = [
        (split, width, entry, channels)
        for split in bundle.manifest["splits"]
        for channels in split["channels"]
        for width in split["widths"]
        for entry in width["quantisers"]
    ]
    count = min(COUNT, len(points))
    for number in range(count):
        # A step that shares no factor with the list's length visits every width, depth and number of channels.
        step = next(s for s in range(len(points) // count + 1, 2 * len(points) + 2) if math.gcd(s, len(points)) == 1)
        if rendered:
            with Image.open(rendered[number * len(rendered) // count]) as opened:
                picture = np.asarray(opened.convert("RGB"))
        else:
            picture = synthetic_picture(seed + number)
        golden = _golden(bundle, *points[number * step % len(points)], picture)
        (folder / f"{number:03}.safetensors.zst").write_bytes(_pack(golden))


def _golden(
    bundle: Bundle, split: dict[str, Any], width: dict[str, Any], entry: dict[str, Any], channels: int, picture: np.ndarray
) -> Golden:
    x = bundle.view(Image.fromarray(picture))
    latents, *exits = bundle.run(width["head"], x)
    q = bundle.quantisation(entry)
    symbols = quantise(latents[0, :channels], q.scale[:channels], q.zero[:channels], q.bits)
    ends = [c for c in split["channels"] if c <= channels]
    layers = [symbols[a:b] for a, b in itertools.pairwise([0, *ends])]
    stream, lengths = entropy.encode(layers, q.tables)
    decoded = np.concatenate(entropy.decode(stream, [layer.shape for layer in layers], q.tables))
    if not np.array_equal(decoded, symbols):
        raise AssertionError("the range coder does not invert itself")
    answers = bundle.answers(split, width, dequantise(symbols, q.scale, q.zero, q.prior)[None])
    tensors = (
        {
            "picture": picture,
            "input": x[0],
            "latents": latents[0],
            "symbols": symbols,
            "layer_bytes": np.array(lengths, np.uint32),
            "stream": np.frombuffer(stream, np.uint8),
        }
        | ({"exit": exits[0][0]} if exits else {})
        | {name: values[0] for name, values in (answers | bundle.full_answers(x)).items()}
    )
    point = {"split": split["name"], "width": width["name"], "bits": str(q.bits), "channels": str(channels)}
    return Golden(tensors, point)


def synthetic_picture(seed: int, width: int = 320, height: int = 240) -> np.ndarray:
    """A gradient, a few shapes and some noise: u8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 255, (2, 2, 3))
    down, right = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    top, bottom = (row[0] * (1 - right) + row[1] * right for row in corners)
    picture = Image.fromarray((top * (1 - down) + bottom * down).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(4, 10))):
        x, y, size = int(rng.integers(width)), int(rng.integers(height)), int(rng.integers(10, 90))
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x - size, y - size // 2, x + size, y + size // 2), fill=colour)
    noisy = np.asarray(picture, np.float64) + rng.normal(0, 6, (height, width, 3))
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
