"""An outside teacher as a map of labels over each training picture.

A classifier that ends in a global average pool and a linear layer also classifies every place of its last feature
map, because the two commute. One pass a picture therefore labels every crop of it: the crop's logits are the mean
over its part of the map (ReLabel, Yun et al., 2021).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from PIL import Image

from .data import Pictures


class LabelMaps:
    """The teacher's logits [n, K, h, w] f16 over `n` pictures."""

    def __init__(self, maps: np.ndarray, labels: torch.Tensor, classes: int) -> None:
        self.maps = maps
        # Which of the teacher's outputs stands for which class: the one highest on average over its pictures.
        means = np.stack([maps[np.flatnonzero(labels.numpy() == c)].mean((0, 2, 3), dtype=np.float32) for c in range(classes)])
        self.columns = torch.from_numpy((means - means.mean(0)).argmax(1))

    def logits(self, index: torch.Tensor, boxes: torch.Tensor, cells: tuple[int, int]) -> torch.Tensor:
        """Logits [b, K, rows, columns] over a grid of `cells` (rows, columns) on the crops `boxes` of pictures `index`.

        `boxes` [b, 4] are (left, top, right, bottom) in 0..=1, with left > right in a mirror image.
        """
        maps = torch.from_numpy(self.maps[index.numpy()]).float()
        rows = _coverage(boxes[:, 1], boxes[:, 3], cells[0], maps.shape[2])
        columns = _coverage(boxes[:, 0], boxes[:, 2], cells[1], maps.shape[3])
        return torch.einsum("bkyx,biy,bjx->bkij", maps, rows, columns)


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
        maps = None
        for at in range(0, len(pictures), batch):
            views = [_resized(p, side) for p in pictures.pixels[at : at + batch]]
            x = np.stack(views).transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
            out = session.run(None, {graph.graph.input[0].name: x})[0].astype(np.float16)
            if maps is None:
                partial = cache.with_suffix(".partial.npy")
                maps = np.lib.format.open_memmap(partial, "w+", np.float16, (len(pictures), *out.shape[1:]))
            maps[at : at + len(out)] = out
            if at // batch % 64 == 0:
                print(f"teacher: {at + len(out)}/{len(pictures)} pictures", flush=True)
        maps.flush()
        os.replace(partial, cache)
    maps = np.load(cache, mmap_mode="r")
    if len(maps) != len(pictures):
        raise ValueError(f"{cache} holds {len(maps)} pictures, the data {len(pictures)}: delete it")
    return LabelMaps(maps, pictures.labels, len(pictures.classes))


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
    steps = torch.linspace(0, 1, cells + 1)
    edges = begin[:, None] + (end - begin)[:, None] * steps
    low, high = torch.minimum(edges[:, :-1], edges[:, 1:])[..., None], torch.maximum(edges[:, :-1], edges[:, 1:])[..., None]
    grid = torch.linspace(0, 1, places + 1)
    overlap = (torch.minimum(high, grid[1:]) - torch.maximum(low, grid[:-1])).clamp(min=0) + 1e-6
    return overlap / overlap.sum(2, keepdim=True)
