"""An outside teacher, an ONNX classifier whose answers the networks learn: it runs on every view, or it has labelled every
place of each picture once.

For the labels: a classifier that ends in a global average pool and a linear layer also classifies every place of its
last feature map, because the two commute. One pass a picture therefore labels every crop of it: the crop's logits are
the mean over its part of the map (ReLabel, Yun et al., 2021).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from PIL import Image

from .config import Normalisation
from .data import Pictures, Views, normalise

KNOWN = 32
"""Pictures of each class by which is found which of a teacher's outputs stands for it."""


class Answers(NamedTuple):
    """A teacher's logits for a batch of views: `whole` [n, K], in each cell of the last feature map `cells`
    [n, K, h, w], if it knows them, and its `features` [n, C, h', w'] at the tensors asked for.

    `mixed` says whether it saw the views as CutMix left them, else its answers are to be mixed likewise.
    """

    whole: torch.Tensor
    cells: torch.Tensor | None
    features: list[torch.Tensor]
    mixed: bool


class OnlineTeacher:
    """The teacher runs on every view that the network learns from: the same crop, size, colours and patches.

    It takes f32 [N, 3, H, W] scaled to −1..=1, at any size. `hints` names the tensors whose features it gives too.
    """

    outputs = None

    def __init__(self, model: Path, pictures: Pictures, hints: Sequence[str], normalisation: Normalisation) -> None:
        proto = onnx.load(model)
        graph = proto.graph
        known = {name for node in graph.node for name in node.output}
        if missing := [name for name in hints if name not in known]:
            raise ValueError(f"distil.hints: {model} has no tensor {missing[0]!r}")
        for axis, name in ((0, "N"), (2, "H"), (3, "W")):
            graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
        last = graph.output[0].name
        del graph.value_info[:], graph.output[:]
        graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in (last, *hints))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
        self._input = graph.input[0].name
        self._mean, self._std = (torch.tensor(values)[:, None, None] for values in normalisation)
        means = []
        for label in range(len(pictures.classes)):
            index = np.flatnonzero(pictures.labels.numpy() == label)[:KNOWN]
            seen = normalise(torch.as_tensor(pictures.pixels[index]), normalisation)
            means.append(self.predict(seen).whole.mean(0))
        self.columns = _columns(torch.stack(means))

    def predict(self, pictures: torch.Tensor) -> Answers:
        """Answers to normalised pictures [n, 3, H, W]."""
        x = ((pictures.cpu() * self._std + self._mean) * 2 - 1).contiguous().numpy()
        whole, *features = map(torch.from_numpy, self._session.run(None, {self._input: x}))
        return Answers(whole, None, features, True)

    def on(self, device: torch.device) -> OnlineTeacher:
        """The same: it sees views on the processor, wherever a network trains on them."""
        return self

    def answers(self, views: Views) -> Answers:
        return self.predict(views.pictures)


class LabelMaps:
    """The teacher's logits [n, K, h, w] f16 over `n` pictures; `outputs` is K."""

    def __init__(self, maps: np.ndarray, labels: torch.Tensor, classes: int) -> None:
        self.maps: np.ndarray | torch.Tensor = maps
        means = np.stack([maps[np.flatnonzero(labels.numpy() == c)].mean((0, 2, 3), dtype=np.float32) for c in range(classes)])
        self.columns, self.outputs = _columns(torch.from_numpy(means)), maps.shape[1]

    def on(self, device: torch.device) -> LabelMaps:
        """The same where a network trains on them: in a GPU's memory, or in the file as they are."""
        if device.type != "cpu":
            self.maps, self.columns = torch.from_numpy(np.array(self.maps)).to(device), self.columns.to(device)
        return self

    def answers(self, views: Views) -> Answers:
        rows, columns = views.kept.shape
        cells = self.logits(views.index, views.boxes, (rows, columns))
        return Answers(cells.mean((2, 3)), cells, [], False)

    def logits(self, index: torch.Tensor, boxes: torch.Tensor, cells: tuple[int, int]) -> torch.Tensor:
        """Logits [b, K, rows, columns] over a grid of `cells` (rows, columns) on the crops `boxes` of pictures `index`.

        `boxes` [b, 4] are (left, top, right, bottom) in 0..=1, with left > right in a mirror image.
        """
        chosen = self.maps[index] if isinstance(self.maps, torch.Tensor) else torch.from_numpy(self.maps[index.numpy()])
        maps = chosen.float()
        rows = _coverage(boxes[:, 1], boxes[:, 3], cells[0], maps.shape[2])
        columns = _coverage(boxes[:, 0], boxes[:, 2], cells[1], maps.shape[3])
        return torch.einsum("bkyx,biy,bjx->bkij", maps, rows, columns)


Teacher = OnlineTeacher | LabelMaps


def label_maps(pictures: Pictures, model: Path, cache: Path, threads: int, batch: int = 16) -> LabelMaps:
    """Runs the ONNX teacher over all pictures once; `cache` keeps the maps between runs.

    The teacher takes f32 [N, 3, S, S] scaled to −1..=1.
    """
    if not cache.exists():
        graph = _without_pool(onnx.load(model))
        side = graph.graph.input[0].type.tensor_type.shape.dim[2].dim_value or 224
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(graph.SerializeToString(), options, ["CPUExecutionProvider"])
        partial, maps = cache.with_suffix(".partial.npy"), None
        for at in range(0, len(pictures), batch):
            views = [_resized(p, side) for p in pictures.pixels[at : at + batch]]
            x = np.stack(views).transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
            out = session.run(None, {graph.graph.input[0].name: x})[0].astype(np.float16)
            if maps is None:
                maps = np.lib.format.open_memmap(partial, "w+", np.float16, (len(pictures), *out.shape[1:]))
            maps[at : at + len(out)] = out
            if at // batch % 64 == 0:
                print(f"teacher: {at + len(out)}/{len(pictures)} pictures", flush=True)
        if maps is None:
            raise ValueError("there are no pictures for the teacher to label")
        maps.flush()
        os.replace(partial, cache)
    kept = np.load(cache, mmap_mode="r")
    if len(kept) != len(pictures):
        raise ValueError(f"{cache} holds {len(kept)} pictures, the data {len(pictures)}: delete it")
    return LabelMaps(kept, pictures.labels, len(pictures.classes))


def _columns(means: torch.Tensor) -> torch.Tensor:
    """Which of a teacher's outputs stands for each class: the highest above the others' in its mean logits [classes, K]."""
    return (means - means.mean(0)).argmax(1)


def _without_pool(model: onnx.ModelProto) -> onnx.ModelProto:
    """Takes the last global average pool and the closing flatten out: logits [N, K] become [N, K, h, w]."""
    graph = model.graph
    pool = [node for node in graph.node if node.op_type == "GlobalAveragePool"][-1]
    for node in graph.node:
        node.input[:] = [pool.input[0] if name == pool.output[0] else name for name in node.input]
    graph.node.remove(pool)
    last = graph.node[-1]
    if last.op_type not in ("Flatten", "Reshape", "Squeeze"):
        raise ValueError("the teacher must end in a global average pool, a 1×1 convolution and a flatten")
    graph.node.remove(last)
    del graph.output[:]
    graph.output.append(onnx.helper.make_tensor_value_info(last.input[0], onnx.TensorProto.FLOAT, None))
    return model


def _resized(picture: np.ndarray, side: int) -> np.ndarray:
    if picture.shape[:2] == (side, side):
        return picture
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR))


def _coverage(begin: torch.Tensor, end: torch.Tensor, cells: int, places: int) -> torch.Tensor:
    """How much each of `places` in 0..=1 covers of each of `cells` in `begin..end` [b]: [b, cells, places], sums of 1."""
    steps = torch.linspace(0, 1, cells + 1, device=begin.device)
    edges = begin[:, None] + (end - begin)[:, None] * steps
    low, high = torch.minimum(edges[:, :-1], edges[:, 1:])[..., None], torch.maximum(edges[:, :-1], edges[:, 1:])[..., None]
    grid = torch.linspace(0, 1, places + 1, device=begin.device)
    overlap = (torch.minimum(high, grid[1:]) - torch.maximum(low, grid[:-1])).clamp(min=0) + 1e-6
    return overlap / overlap.sum(2, keepdim=True)
