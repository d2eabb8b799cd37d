"""Every width as a plain module computes what the slimmable network does."""

import functools
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnxruntime
import pytest
import torch

from isthmus_training import config as configuration
from isthmus_training import full
from isthmus_training.data import Pictures, normalise
from isthmus_training.graph import Graph, round_weights
from isthmus_training.network import (
    Adapter,
    Backbone,
    Encoder,
    Features,
    Head,
    Inherited,
    Prefix,
    SlimConv,
    narrowed,
    plain,
    pooled_exit,
)
from isthmus_training.recalibrate import recalibrate
from isthmus_training.student import Points, Student

Module = TypeVar("Module", bound=torch.nn.Module)
WIDTHS = [25, 50, 100]


def backbone(own: bool) -> Backbone:
    encoder = Encoder([8, 12, 16, 16], [2, 2, 2, 2], WIDTHS)
    prefix = Prefix([8, 12, 16], [0, 1, 2], 24) if own else Inherited(encoder, 24)
    return Backbone(prefix, [24, 32], [2, 1], 5)


def randomised(module: Module) -> Module:
    """Gives each batch norm statistics and an affine of its own, so that a wrong one shows."""
    torch.manual_seed(5)
    for norm in (m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.uniform_(norm.bias, -0.5, 0.5)
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.uniform_(-0.5, 0.5)
        norm.running_var.uniform_(0.5, 1.5)
    return module.eval()


@pytest.mark.parametrize("width", WIDTHS)
def test_a_width_uses_the_first_channels(width: int) -> None:
    layer = randomised(SlimConv(6, 10, 3, 1, WIDTHS))
    conv = layer.plain(width)
    assert (conv.in_channels, conv.out_channels) == (narrowed(6, width), narrowed(10, width))
    x = torch.randn(2, conv.in_channels, 8, 8)
    torch.testing.assert_close(conv(x), layer(x, width))
    padded = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, 6 - conv.in_channels))
    every = torch.nn.functional.conv2d(padded, layer.conv.weight, padding=1)[:, : conv.out_channels]
    torch.testing.assert_close(layer.norms[str(width)](every), layer(x, width))


@pytest.mark.parametrize("width", WIDTHS)
def test_plain_head_and_adapter_match(width: int) -> None:
    head = randomised(Head(Encoder([8, 12, 16], [2, 2, 2], WIDTHS), 6, functools.partial(pooled_exit, 8, 3), WIDTHS))
    adapter = randomised(Adapter(6, 16, 2, Features(12), WIDTHS))
    x = torch.randn(2, 3, 32, 32)
    latents, exit_logits = head(x, width)
    for ours, theirs in zip(head.plain(width)(x), (latents, exit_logits), strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(adapter.plain(width)(latents), adapter(latents, width), atol=1e-4, rtol=1e-4)


def test_the_exit_does_not_change_the_head() -> None:
    head = Head(Encoder([8, 8], [2, 2], WIDTHS), 4, functools.partial(pooled_exit, 8, 3), WIDTHS)
    head(torch.randn(2, 3, 16, 16), 100)[1].sum().backward()
    assert all(p.grad is None for p in head.encoder.parameters())
    assert all(p.grad is not None for p in head.exits["100"].parameters())


@pytest.mark.parametrize("own", [True, False])
def test_prefix_and_trunk_make_the_whole_and_fold(own: bool) -> None:
    network = randomised(backbone(own))
    x = torch.randn(2, 3, 64, 64)
    features = network.prefix(x)
    assert features.shape == (2, 24, 4, 4)
    assert network.trunk()[0](features).shape == (2, network.last, 2, 2)
    torch.testing.assert_close(network.trunk()(features), network(x))
    prefix = network.prefix.plain()
    torch.testing.assert_close(plain(network.trunk())(plain(prefix)(x)), network(x), atol=1e-4, rtol=1e-4)


def test_narrower_widths_begin_as_the_widest() -> None:
    encoder = randomised(Encoder([8, 12], [2, 2], WIDTHS))
    encoder.inherit()
    widest, half = (encoder.layers[1].norms[str(w)] for w in (100, 50))
    for name in ("weight", "bias", "running_mean", "running_var"):
        torch.testing.assert_close(getattr(half, name), getattr(widest, name)[:6])


def test_graph_matches_the_module_and_counts_its_work(tmp_path: Path) -> None:
    network = randomised(backbone(True))
    module = round_weights(plain(torch.nn.Sequential(network.prefix.plain(), network.trunk())))
    graph = Graph("full", "picture", (3, 64, 64), "N")
    graph.output(graph.add(module, "picture"), "logits")
    graph.save(tmp_path / "full.onnx")
    x = torch.randn(3, 3, 64, 64)
    session = onnxruntime.InferenceSession(tmp_path / "full.onnx")
    ran = session.run(["logits"], {"picture": x.numpy()})[0]
    np.testing.assert_allclose(ran, module(x).detach().numpy(), atol=1e-4)

    macs = 0

    def count(layer: torch.nn.Conv2d | torch.nn.Linear, _: object, result: torch.Tensor) -> None:
        nonlocal macs
        macs += layer.weight.numel() * int(np.prod(result.shape[2:]))

    for layer in module.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            layer.register_forward_hook(count)
    module(x)
    assert graph.macs == macs


def test_every_picture_of_a_batch_runs_at_its_own_point() -> None:
    split = {"widths": [50, 100], "channels": [2, 4, 6], "bits": [8, 3]}
    data = {"size": [32, 32], "stored": [32, 32]}
    config = configuration.parse({"name": "x", "data": data, "split": split})
    student = randomised(Student(config, full.build(config, 2), None))
    x, device = torch.randn(3, 3, 32, 32), torch.device("cpu")
    points = Points(50, torch.tensor([6, 2, 4]), torch.tensor([3, 8, 3]))
    features, exits, _ = student(x, points, False)
    for at, (channels, bits) in enumerate([(6, 3), (2, 8), (4, 3)]):
        alone, exit_alone, _ = student(x[at : at + 1], Points.alike((50, channels, bits), 1, device), False)
        torch.testing.assert_close(features[at : at + 1], alone, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(exits[at : at + 1], exit_alone, atol=1e-5, rtol=1e-4)
    other, _, _ = student(x, Points.alike((50, 6, 8), 3, device), False)
    assert not torch.allclose(features, other)


def test_a_batch_costs_the_mean_of_what_its_pictures_send() -> None:
    split = {"widths": [50, 100], "channels": [2, 4], "bits": [8, 3]}
    data = {"size": [32, 32], "stored": [32, 32]}
    config = configuration.parse({"name": "x", "data": data, "split": split})
    student, x = randomised(Student(config, full.build(config, 2), None)), torch.randn(4, 3, 32, 32)

    def kilobits(*pairs: tuple[int, int]) -> float:
        channels, bits = (torch.tensor(values) for values in zip(*pairs, strict=True))
        return float(student(x, Points(100, channels, bits), False)[2].detach())

    few, many = kilobits(*[(2, 3)] * 4), kilobits(*[(4, 8)] * 4)
    assert few < many
    assert kilobits((2, 3), (4, 8), (4, 8), (4, 8)) == pytest.approx((few + 3 * many) / 4, rel=1e-5)


def test_recalibration_measures_the_statistics_of_what_will_be_seen() -> None:
    layers = {"prefix_channels": [8, 12, 16], "prefix_blocks": [0, 1, 1], "channels": [16, 24], "blocks": [1, 1]}
    split = {"widths": [50, 100], "channels": [2, 4]}
    data = {"size": [32, 32], "stored": [32, 32]}
    config = configuration.parse({"name": "x", "data": data, "network": layers, "split": split})
    rng = np.random.default_rng(0)
    # Of one colour each, so that crops look like the whole.
    pixels = np.broadcast_to(rng.integers(0, 256, (64, 1, 1, 3), dtype=np.uint8), (64, 32, 32, 3)).copy()
    pictures = Pictures(["a", "b"], pixels, torch.zeros(64, dtype=torch.int64), [])
    network = randomised(full.build(config, 2))
    student = Student(config, network, None)
    head = {name: value.clone() for name, value in student.head.state_dict().items()}
    for module in (network, student.prefix):
        recalibrate(config, module, pictures)
    for name, value in student.head.state_dict().items():
        torch.testing.assert_close(value, head[name])
    x = normalise(torch.from_numpy(pixels), config.data.normalisation)
    for prefix in (network.prefix, student.prefix):
        assert not any(part.training for part in prefix.modules())
        # The first convolution's outputs are now normalised: mean and spread are its batch norm's own.
        first = prefix.get_submodule("layers.0")
        norm, out = first.get_submodule("1"), first(x)
        assert isinstance(norm, torch.nn.BatchNorm2d)
        torch.testing.assert_close(out.mean((0, 2, 3)), norm.bias, atol=0.2, rtol=0)
        torch.testing.assert_close(out.std((0, 2, 3)), norm.weight.abs(), atol=0.2, rtol=0.2)
