"""A written bundle, run with ONNX Runtime: what the exporter measures and `evaluate` reports."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Iterator, NamedTuple

import numpy as np
import onnxruntime

from . import entropy
from .quantise import dequantise, quantise


class Quantisation(NamedTuple):
    """One width and bit depth: `scale`, `zero`, `prior` [C], and frequencies u16 [C, 2^bits]."""

    bits: int
    scale: np.ndarray
    zero: np.ndarray
    prior: np.ndarray
    frequencies: np.ndarray


class Measurement(NamedTuple):
    """An operating point on some pictures. `sizes` [n] are bytes a picture: −Σ log2 p rounded up, plus the header."""

    split: str
    width: str
    channels: int
    bits: int
    accuracy: float
    sizes: np.ndarray

    def entry(self) -> dict[str, Any]:
        """The manifest's `[[points]]`."""
        return {
            "split": self.split,
            "width": self.width,
            "channels": self.channels,
            "bits": self.bits,
            "accuracy": round(self.accuracy, 5),
            "bytes_mean": round(float(self.sizes.mean()), 1),
            "bytes_p50": int(np.percentile(self.sizes, 50, method="higher")),
            "bytes_p99": int(np.percentile(self.sizes, 99, method="higher")),
        }

    def line(self) -> str:
        if not self.channels:
            return f"{self.split} {self.width} exit: accuracy {self.accuracy:.4f}"
        name = f"{self.split} {self.width} c{self.channels} b{self.bits}"
        return f"{name}: accuracy {self.accuracy:.4f}, {self.sizes.mean():.1f} B"


HEADER_BYTES = 20
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
        return [np.concatenate(values) for values in zip(*parts)]

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """u8 [n, H, W, 3] to f32 [n, 3, H, W]."""
        mean, std = (np.array(self.manifest["input"][key], np.float32) for key in ("mean", "std"))
        return np.ascontiguousarray(((pixels.astype(np.float32) / np.float32(255) - mean) / std).transpose(0, 3, 1, 2))

    def tail(self, split: dict[str, Any], width: dict[str, Any], latents: np.ndarray) -> np.ndarray:
        """Dequantised latents [n, C, h, w] to logits [n, K]."""
        return self.run(split["trunk"], self.run(width["adapter"], latents)[0])[0]

    def quantisation(self, entry: dict[str, Any]) -> Quantisation:
        """An entry of `[[splits.widths.quantisers]]` with its tables."""
        values = [np.array(entry[key], np.float32) for key in ("scale", "zero_point", "prior_mean")]
        flat = np.frombuffer((self.root / entry["tables"]).read_bytes(), "<u2")
        return Quantisation(entry["bits"], *values, flat.reshape(-1, 2 ** entry["bits"]))

    def full_accuracy(self, pixels: np.ndarray, labels: np.ndarray) -> float:
        logits = self.run(self.manifest["full"]["file"], self.normalise(pixels))[0]
        return float((logits.argmax(1) == labels).mean())

    def measure(
        self, pixels: np.ndarray, labels: np.ndarray, chosen: np.ndarray | slice = slice(None)
    ) -> Iterator[Measurement]:
        """Every operating point, on the `chosen` pictures; before them the exit of each width, on all pictures, as a
        point of 0 channels and 0 bytes."""
        x = self.normalise(pixels)
        for split in self.manifest["splits"]:
            for width in split["widths"]:
                latents, exits = self.run(width["head"], x)
                right = float((exits.argmax(1) == labels).mean())
                yield Measurement(split["name"], width["name"], 0, 0, right, np.zeros(len(x)))
                latents, wanted = latents[chosen], labels[chosen]
                for q in map(self.quantisation, width["quantisers"]):
                    symbols = quantise(latents, q.scale, q.zero, q.bits)
                    cost = np.take_along_axis(entropy.bits(q.frequencies)[None], symbols.reshape(*symbols.shape[:2], -1), 2)
                    for channels in split["channels"]:
                        sizes = np.ceil(cost[:, :channels].sum((1, 2)) / 8) + HEADER_BYTES
                        values = dequantise(symbols[:, :channels], q.scale, q.zero, q.prior)
                        right = float((self.tail(split, width, values).argmax(1) == wanted).mean())
                        yield Measurement(split["name"], width["name"], channels, q.bits, right, sizes)
