"""A bundle whose networks come from an ONNX file: several tensors at the cut, any outputs, fitted pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

from ..bundle import BATCH, Bundle
from .converted import options
from .views import Input


class CutBundle(Bundle):
    """A bundle of format 2 with one decoder, whose head has no exit."""

    @property
    def decoder(self) -> dict[str, Any]:
        decoder: dict[str, Any] = self.manifest["decoders"][0]
        return decoder

    @property
    def input(self) -> Input:
        entry = self.manifest["input"]
        fill = tuple(entry.get("fill", (114, 114, 114)))
        return Input(**{**entry, "fill": fill})

    def view(self, picture: Image.Image) -> np.ndarray:
        return self.input.normalise(self.input.fitted(picture)[None])

    def answers(self, split: dict[str, Any], width: dict[str, Any], latents: np.ndarray) -> dict[str, np.ndarray]:
        parts = []
        for at in range(0, len(latents), BATCH):
            features = self.run_all(width["adapter"], [latents[at : at + BATCH]])
            parts.append(self.run_all(self.decoder["trunk"][split["name"]], features))
        return self._named("output", [np.concatenate(values) for values in zip(*parts, strict=True)])

    def full_answers(self, x: np.ndarray) -> dict[str, np.ndarray]:
        return self._named("full", self.run(self.manifest["full"]["file"], x))

    def run_all(self, file: str, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """Runs the graph `file` on all its inputs, in their order."""
        if file not in self._sessions:
            path = str(self.root / file)
            self._sessions[file] = onnxruntime.InferenceSession(path, options(self.threads), ["CPUExecutionProvider"])
        session = self._sessions[file]
        results: list[np.ndarray] = session.run(None, dict(zip((i.name for i in session.get_inputs()), inputs, strict=True)))
        return results

    def _named(self, kind: str, values: list[np.ndarray]) -> dict[str, np.ndarray]:
        if self.decoder["task"] == "classification":
            return {"logits" if kind == "output" else "full_logits": values[0]}
        names = [output["name"] for output in self.decoder["outputs"]]
        return {f"{kind}.{self.decoder['name']}.{name}": value for name, value in zip(names, values, strict=True)}
