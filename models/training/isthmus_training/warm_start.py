"""Networks that start with a bundle's weights, and train on.

Files hold convolutions with their batch norms folded in. Here each norm is put back with the statistics that it has on
some pictures, so that the network computes what it did, and trains like any other.
"""

from __future__ import annotations

import functools
import itertools
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from .network import Backbone, FullNetwork, Prefix, Residual, SlimConv, Unsent
from .student import Student

PICTURES = 256
"""How many pictures the norms are measured on."""

Folded = tuple[torch.Tensor, torch.Tensor]
"""A layer's weights and bias as a file holds them."""


def is_bundle(folder: Path) -> bool:
    return (folder / "manifest.toml").is_file()


def has_split(bundle: Path, name: str) -> bool:
    return any(split["name"] == name for split in _manifest(bundle)["splits"])


@torch.no_grad()
def load_full(network: FullNetwork, bundle: Path, pictures: torch.Tensor) -> None:
    """Gives `network` the weights of the bundle's full network; norms are measured on `pictures` [N, 3, H, W]."""
    if not isinstance(network, Backbone) or not isinstance(network.prefix, Prefix):
        raise ValueError(f"{bundle}: only a full network with layers of its own can start from a bundle")
    layers = nn.Sequential(network.prefix.plain(), network.trunk())
    _load_plain(layers, bundle, _manifest(bundle)["full"]["file"], pictures)


@torch.no_grad()
def load_first_layers(student: Student, bundle: Path, pictures: torch.Tensor, features: torch.Tensor) -> None:
    """For a further split: gives the student's encoder as many first layers as it has of the shape of those of the bundle's
    first split, and its trunk the trunk of that, whose norms are measured on `features` [N, C', h', w']."""
    encoder = student.head.encoder
    split = _manifest(bundle)["splits"][0]
    widths = _widths(split)
    for width in sorted((int(width) for width in encoder.layers[0].norms), reverse=True):
        if width not in widths:
            raise ValueError(f"{bundle}: has the widths {sorted(widths)}, and not {width}")
        file, x = _WidthFile(bundle, widths[width]["head"], width, width == encoder.widest), pictures
        for layer in itertools.takewhile(file.fits, encoder.layers):
            x = torch.relu(file.run(layer, x))
    _load_plain(student.trunk, bundle, split["trunk"], features)


@torch.no_grad()
def load_split(student: Student, bundle: Path, name: str, pictures: torch.Tensor, features: torch.Tensor) -> None:
    """Gives the parts of a split network, of the same shapes, the weights of the bundle's split of that name; a network of
    fewer widths takes those that it has.

    An adapter of another shape starts anew; the trunk's norms are then measured on `features` [N, C', h', w'] of the full
    network, and else on those that the adapter gives.
    """
    head, quantiser, adapter = student.head, student.quantiser, student.adapter
    split = next(split for split in _manifest(bundle)["splits"] if split["name"] == name)
    widths = _widths(split)
    if not set(quantiser.widths) <= set(widths):
        raise ValueError(f"{bundle}: has the widths {sorted(widths)}, not {quantiser.widths}")
    for entry in widths.values():
        if sorted(q["bits"] for q in entry["quantisers"]) != sorted(quantiser.bits):
            raise ValueError(f"{bundle}: has other bit depths than {quantiser.bits}")
    known = [weight.shape for weight, _ in _folded(bundle, widths[adapter.widths[-1]]["adapter"])]
    adapted = known == [layer.conv.weight.shape for layer in adapter.convolutions()]
    if not adapted:
        print(f"the adapter has other layers than that of {bundle}, and starts anew", flush=True)
    # The widest first: its weights are all of them, and its statistics set their scale.
    for width in sorted(quantiser.widths, reverse=True):
        first = width == head.encoder.widest
        file = _WidthFile(bundle, widths[width]["head"], width, first)
        x = pictures
        for layer in head.encoder.layers:
            x = torch.relu(file.run(layer, x))
        latents = file.run(head.latent, x)
        file.end(head.exits[str(width)])
        for entry in widths[width]["quantisers"]:
            at = quantiser.widths.index(width), quantiser.bits.index(entry["bits"])
            quantiser.log_scale[at] = torch.tensor(entry["scale"]).log()

        if not adapted or width not in adapter.widths:
            continue
        file = _WidthFile(bundle, widths[width]["adapter"], width, first)
        x = torch.relu(file.run(adapter.first, latents))
        for block in adapter.blocks:
            x = torch.relu(x + file.run(block.second, torch.relu(file.run(block.first, x))))
        x = adapter.end(file.run(adapter.last, x))
        file.end(nn.Identity())
        features = x if first else features
    _load_plain(student.trunk, bundle, split["trunk"], features)


@torch.no_grad()
def load_unsent(prefix: Unsent, stages: nn.Sequential, bundle: Path, width: int, pictures: torch.Tensor) -> None:
    """Gives a prefix that is a head and an adapter the weights of this width of a bundle's first split, and residual
    `stages` those of the classifier's trunk there, without what follows them. All have the same shapes."""
    manifest = _manifest(bundle)
    split, widest, adapter = manifest["splits"][0], prefix.encoder.widest, prefix.adapter
    entry = _widths(split)[width]
    file, x = _WidthFile(bundle, entry["head"], widest, True), pictures
    for layer in prefix.encoder.layers:
        x = torch.relu(file.run(layer, x))
    x = file.run(prefix.latent, x)
    file = _WidthFile(bundle, entry["adapter"], widest, True)
    x = torch.relu(file.run(adapter.first, x))
    for block in adapter.blocks:
        x = torch.relu(x + file.run(block.second, torch.relu(file.run(block.first, x))))
    x = adapter.end(file.run(adapter.last, x))
    *_, (last, _) = _pairs(stages)
    classifier = nn.Linear(last.weight.shape[0], len(manifest["labels"]))
    _load_plain(nn.Sequential(stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), classifier), bundle, split["trunk"], x)


@torch.no_grad()
def load_run(student: Student, weights: dict[str, torch.Tensor], run: Path) -> None:
    """Gives head, quantiser and adapter the weights of another `run`'s split network; an adapter of another shape starts
    anew."""
    for part in ("head", "quantiser", "adapter"):
        own = getattr(student, part).state_dict()
        values = {key.removeprefix(f"{part}."): value for key, value in weights.items() if key.startswith(f"{part}.")}
        if {key: value.shape for key, value in values.items()} == {key: value.shape for key, value in own.items()}:
            getattr(student, part).load_state_dict(values)
        elif part == "adapter":
            print(f"the adapter has other layers than that of {run}, and starts anew", flush=True)
        else:
            raise ValueError(f"{run}: its {part} has other layers than the configuration describes")


class _WidthFile:
    """Gives layers of several widths the weights of one width's file, in the order in which they run."""

    def __init__(self, bundle: Path, file: str, width: int, first: bool) -> None:
        self.bundle, self.width, self.first = bundle, width, first
        self.folded = _folded(bundle, file)

    def fits(self, layer: SlimConv) -> bool:
        """Whether the next of the file's layers has this one's shape."""
        return bool(self.folded) and self.folded[0][0].shape == layer.weight(self.width).shape

    def run(self, layer: SlimConv, x: torch.Tensor) -> torch.Tensor:
        """The layer's output; its weights are taken if this is the `first` width, else only its norm's."""
        weight, bias = self._next(layer.weight(self.width).shape)
        norm, shared = layer.norms[str(self.width)], layer.weight(self.width)
        if self.first:
            shared.copy_(weight)
        y = nn.functional.conv2d(x, shared, None, layer.conv.stride, layer.conv.padding)
        if self.first:
            y = _unfold(shared, norm, y, bias)
        else:
            # The file's weights are the shared ones, each output times a factor of its own.
            factor = (weight * shared).sum((1, 2, 3)) / shared.square().sum((1, 2, 3)).clamp(min=1e-12)
            mean, deviation = y.mean((0, 2, 3)), _deviation(y)
            _set(norm, factor * deviation, bias + factor * mean, mean, deviation.square())
        return norm.eval()(y)

    def end(self, rest: nn.Module) -> None:
        """What follows are the matrices of `rest`, and nothing else."""
        for part in rest.modules():
            if isinstance(part, nn.Linear):
                weight, bias = self._next(part.weight.shape)
                _set_layer(part, weight, bias)
        if self.folded:
            raise _mismatch(self.bundle)

    def _next(self, shape: torch.Size) -> Folded:
        if not self.folded or self.folded[0][0].shape != shape:
            raise _mismatch(self.bundle)
        return self.folded.pop(0)


def _load_plain(layers: nn.Sequential, bundle: Path, file: str, x: torch.Tensor) -> None:
    """Gives `layers` the weights of a file that they were exported to."""
    pairs, folded = list(_pairs(layers)), _folded(bundle, file)
    if [layer.weight.shape for layer, _ in pairs] != [weight.shape for weight, _ in folded]:
        raise _mismatch(bundle)
    hooks = []
    for (layer, norm), (weight, bias) in zip(pairs, folded, strict=True):
        if norm is None:
            _set_layer(layer, weight, bias)
            continue
        layer.weight.copy_(weight)
        hooks.append(norm.register_forward_pre_hook(functools.partial(_unfold_before, layer.weight, bias)))
    layers.eval()(x)
    for hook in hooks:
        hook.remove()


def _unfold_before(
    weight: torch.Tensor, bias: torch.Tensor, norm: nn.BatchNorm2d, inputs: tuple[torch.Tensor]
) -> tuple[torch.Tensor]:
    """A hook of `norm`, behind the convolution of these weights and this bias."""
    return (_unfold(weight, norm, inputs[0], bias),)


def _unfold(weight: torch.Tensor, norm: nn.BatchNorm2d, y: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Scales a convolution's `weight`, whose output is `y`, to a variance of one, and `norm` to give `y + bias`. Gives `y`
    scaled."""
    mean, deviation = y.mean((0, 2, 3)), _deviation(y)
    weight.div_(deviation[:, None, None, None])
    _set(norm, deviation, bias + mean, mean / deviation, torch.ones_like(mean))
    return y / deviation[:, None, None]


def _set(norm: nn.BatchNorm2d, *values: torch.Tensor) -> None:
    """Sets a batch norm's weight, bias, mean and variance."""
    own = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    for mine, value in zip(own, values, strict=True):
        assert mine is not None
        mine.copy_(value)


def _set_layer(layer: nn.Conv2d | nn.Linear, weight: torch.Tensor, bias: torch.Tensor) -> None:
    assert layer.bias is not None
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)


def _deviation(y: torch.Tensor) -> torch.Tensor:
    return y.var((0, 2, 3), unbiased=False).sqrt().clamp(min=1e-4)


def _manifest(bundle: Path) -> dict[str, Any]:
    return tomllib.loads((bundle / "manifest.toml").read_text("utf-8"))


def _widths(split: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The manifest's entries by percentage of the head's channels."""
    return {int(entry["name"].removeprefix("w")): entry for entry in split["widths"]}


def _folded(bundle: Path, file: str) -> list[Folded]:
    """Each layer's weights and bias in the order in which they run."""
    tensors = [numpy_helper.to_array(tensor) for tensor in onnx.load(bundle / file).graph.initializer]
    values = [torch.from_numpy(tensor.astype(np.float32)) for tensor in tensors]
    return list(zip(values[::2], values[1::2], strict=False))


def _mismatch(bundle: Path) -> ValueError:
    return ValueError(f"{bundle}: its networks have other layers than the configuration describes")


def _pairs(module: nn.Module) -> Iterator[tuple[nn.Conv2d | nn.Linear, nn.BatchNorm2d | None]]:
    """The layers with weights in the order in which they are exported, each with the norm behind it."""
    if isinstance(module, Residual):
        for part in (module.first, module.second, module.shortcut):
            yield from _pairs(part)
        return
    parts = list(module.children()) if isinstance(module, nn.Sequential) else [module]
    for part, after in zip(parts, [*parts[1:], None], strict=True):
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            yield part, after if isinstance(after, nn.BatchNorm2d) else None
        elif isinstance(part, (nn.Sequential, Residual)):
            yield from _pairs(part)
