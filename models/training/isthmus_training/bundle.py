"""A written bundle, run with ONNX Runtime: what the exporter measures and `evaluate` reports."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from PIL import Image

from . import entropy
from .data import preprocess
from .quantise import dequantise, quantise


class Quantisation(NamedTuple):
    """One width and bit depth: `scale`, `zero`, `prior` [C], and the tables that code its symbols."""

    bits: int
    scale: np.ndarray
    zero: np.ndarray
    prior: np.ndarray
    tables: entropy.Tables


class Measurement(NamedTuple):
    """How an operating point did on some pictures.

    `point` is its name: `s16/w100/c16/b6`, or `s16/w100/exit` for the early exit of a width, or `full` for the whole
    network; `frames` [n] are the pictures' ordinals, `sizes` [n] bytes a picture (envelope and packet; none for the
    last two), `right` [n] whether the answer was, `confidence` [n] its softmax probability.
    """

    point: str
    frames: np.ndarray
    sizes: np.ndarray
    right: np.ndarray
    confidence: np.ndarray

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())

    def entry(self) -> dict[str, Any]:
        """The manifest's `[[points]]`."""
        split, width, channels, bits = self.point.split("/")
        return {
            "split": split,
            "width": width,
            "channels": int(channels[1:]),
            "bits": int(bits[1:]),
            "accuracy": round(self.accuracy, 5),
            "bytes_mean": round(float(self.sizes.mean()), 1),
            "bytes_p50": int(np.percentile(self.sizes, 50, method="higher")),
            "bytes_p99": int(np.percentile(self.sizes, 99, method="higher")),
        }

    def line(self) -> str:
        sent = f", {self.sizes.mean():.1f} B" if self.sizes.any() else ""
        return f"{self.point}: accuracy {self.accuracy:.4f}{sent}"


BATCH = 16


class Bundle:
    def __init__(self, root: Path, manifest: dict[str, Any] | None = None, threads: int = 1) -> None:
        self.root, self.threads = root, threads
        self.manifest = manifest if manifest is not None else tomllib.loads((root / "manifest.toml").read_text("utf-8"))
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}

    def run(self, file: str, x: np.ndarray) -> list[np.ndarray]:
        """Runs the graph `file` on [n, C, H, W] f32, in batches where the graph's are free."""
        if file not in self._sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = self.threads
            self._sessions[file] = onnxruntime.InferenceSession(str(self.root / file), options, ["CPUExecutionProvider"])
        session = self._sessions[file]
        batch = 1 if session.get_inputs()[0].shape[0] == 1 else BATCH
        name = session.get_inputs()[0].name
        parts = [session.run(None, {name: x[at : at + batch]}) for at in range(0, len(x), batch)]
        return [np.concatenate(values) for values in zip(*parts, strict=True)]

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """u8 [n, H, W, 3] to f32 [n, 3, H, W]."""
        mean, std = (np.array(self.manifest["input"][key], np.float32) for key in ("mean", "std"))
        return np.ascontiguousarray(((pixels.astype(np.float32) / np.float32(255) - mean) / std).transpose(0, 3, 1, 2))

    def view(self, picture: Image.Image) -> np.ndarray:
        """A picture as the networks take it: f32 [1, 3, H, W]."""
        size = (self.manifest["input"]["width"], self.manifest["input"]["height"])
        return self.normalise(preprocess(picture, size)[None])

    def answers(self, split: dict[str, Any], width: dict[str, Any], latents: np.ndarray) -> dict[str, np.ndarray]:
        """What the server makes of dequantised latents [n, C, h, w], by the names of the goldens."""
        return {"logits": self.tail(split, width, latents)}

    def full_answers(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """The same of the full network, of pictures [n, 3, H, W]."""
        return {"full_logits": self.run(self.manifest["full"]["file"], x)[0]}

    def tail(self, split: dict[str, Any], width: dict[str, Any], latents: np.ndarray) -> np.ndarray:
        """Dequantised latents [n, C, h, w] to logits [n, K]."""
        return self.run(split["trunk"], self.run(width["adapter"], latents)[0])[0]

    def quantisation(self, entry: dict[str, Any]) -> Quantisation:
        """An entry of `[[splits.widths.quantisers]]` with its tables."""
        scale, zero, prior = (np.array(entry[key], np.float32) for key in ("scale", "zero_point", "prior_mean"))
        if "contexts" in entry:
            data, read = (self.root / entry["contexts"]).read_bytes(), entropy.Tables.contexts_from_bytes
        else:
            data, read = (self.root / entry["tables"]).read_bytes(), entropy.Tables.from_bytes
        return Quantisation(entry["bits"], scale, zero, prior, read(data, zero.astype(np.int64), 2 ** entry["bits"]))

    def measure(
        self, pixels: np.ndarray, labels: np.ndarray, chosen: np.ndarray | slice = slice(None)
    ) -> Iterator[Measurement]:
        """The full network and the exit of each width on all pictures, every operating point on the `chosen` ones."""
        x, everyone = self.normalise(pixels), np.arange(len(pixels))
        none = np.zeros(len(x), np.int64)
        yield measurement("full", everyone, none, self.run(self.manifest["full"]["file"], x)[0], labels)
        for split in self.manifest["splits"]:
            for width in split["widths"]:
                name = f"{split['name']}/{width['name']}"
                latents, exits = self.run(width["head"], x)
                yield measurement(f"{name}/exit", everyone, none, exits, labels)
                for point, sizes, values in self.sent(split, width, latents[chosen]):
                    logits = self.tail(split, width, values)
                    yield measurement(point, everyone[chosen], sizes, logits, labels[chosen])

    def sent(
        self, split: dict[str, Any], width: dict[str, Any], latents: np.ndarray
    ) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Latents [n, C, h, w] at every operating point of a width: its name, the bytes [n] that are sent, and what the
        server has then, dequantised [n, C, h, w]."""
        for q in map(self.quantisation, width["quantisers"]):
            symbols = quantise(latents, q.scale, q.zero, q.bits)
            cost = q.tables.cost(symbols).sum((2, 3))
            ends = np.ceil(cost.cumsum(1)[:, np.array(split["channels"]) - 1] / 8).astype(np.int64)
            for layers, channels in enumerate(split["channels"], 1):
                values = dequantise(symbols[:, :channels], q.scale, q.zero, q.prior)
                yield f"{split['name']}/{width['name']}/c{channels}/b{q.bits}", sent_bytes(ends[:, :layers]), values


def measurement(point: str, frames: np.ndarray, sizes: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> Measurement:
    """What logits [n, K] are worth against `labels` [n]."""
    top = np.exp(logits - logits.max(1, keepdims=True))
    return Measurement(point, frames, sizes, logits.argmax(1) == labels, top.max(1) / top.sum(1))


def sent_bytes(ends: np.ndarray) -> np.ndarray:
    """Bytes [n] of envelope and packet, from where each layer ends in the stream [n, layers].

    The envelope takes 5 bytes with a time left from 64 ms to 16 s, the packet's fixed part 3, each layer's length 1 below
    64 bytes and 2 from there, the first layer's checksum 2 and each further one's 1.
    """
    lengths = np.diff(ends, axis=1, prepend=0)
    return ends[:, -1] + 9 + (2 + (lengths >= 64)).sum(1)
