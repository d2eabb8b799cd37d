"""A network of timm as the full one: cut, trained, exported, and the same in ONNX Runtime and the Rust engine."""

import builtins
import inspect
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from isthmus_training import backbones, libraries, onnx_export
from isthmus_training import config as configuration
from isthmus_training.__main__ import main
from isthmus_training.network import Section, plain
from isthmus_training.traced import Trace, TracedBackbone

SIZE = (64, 64)


class Odd(nn.Module):
    """What real networks do: shapes computed from the picture's, a decision by size, attention, places repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.ReLU())
        self.stage = nn.Conv2d(8, 8, 4, 4)
        self.matrix, self.norm = nn.Linear(8, 24), nn.BatchNorm1d(24)
        self.classifier, self.token = nn.Linear(8, 5), nn.Parameter(torch.randn(1, 1, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stage(self.stem(x))
        batch, channels, height, width = x.shape
        if height * width > 4:
            x = x * F.interpolate(F.avg_pool2d(x, 2, 2), size=(height, width), mode="nearest")
        y = self.matrix(x.flatten(2).transpose(1, 2))
        q, k, v = self.norm(y.flatten(0, 1)).reshape_as(y).view(batch, height * width, 3, -1).unbind(2)
        y = ((q @ k.transpose(1, 2)).softmax(-1) @ v).reshape(batch, height, width, channels)[:, ::2, ::2]
        y = torch.cat([self.token.expand(batch, -1, -1), y.reshape(batch, -1, channels)], 1)
        return self.classifier(F.dropout(y.mean(1), 0.5, self.training))


def runs_alike(module: nn.Module, x: torch.Tensor, path: Path) -> None:
    _, channels, height, width = x.shape
    onnx_export.write(module, ("x", "y"), (channels, height, width), path)
    ran = onnxruntime.InferenceSession(path).run(["y"], {"x": x.numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(ran, module.eval()(x).numpy(), atol=1e-4)


def test_an_odd_network_is_cut_folded_and_written(tmp_path: Path) -> None:
    model = Odd()
    backbones.randomise(model, torch.randn(4, 3, *SIZE))
    network = TracedBackbone(model, "odd", SIZE, 16).eval()
    assert (network.cut, network.features, network.classes, network.rectified) == ("stage", 8, 5, False)
    x = torch.randn(5, 3, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(network.trunk()(network.prefix(x)), model(x))
        folded = plain(nn.Sequential(network.prefix, network.trunk()))
        torch.testing.assert_close(folded(x), model(x), atol=1e-5, rtol=1e-5)
    assert not any(isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)) for part in folded.modules())
    runs_alike(folded, x, tmp_path / "odd.onnx")


def test_macs_are_those_of_convolutions_and_matrices(tmp_path: Path) -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1, groups=8)
            self.last = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.second(self.first(x)).mean((2, 3)))

    trace = Trace(Small(), torch.zeros(2, 3, 16, 16), "small")
    macs = onnx_export.write(trace.section(0), ("x", "y"), (3, 16, 16), tmp_path / "small.onnx")
    assert macs == 3 * 8 * 9 * 64 + 8 * 9 * 16 + 8 * 4


def test_what_cannot_be_cut_is_said_plainly() -> None:
    with pytest.raises(ValueError, match="no cut with the head's grid of 8×8; cuts: .*stem 8×16×16, stage 8×4×4"):
        TracedBackbone(Odd(), "odd", SIZE, 8)
    with pytest.raises(ValueError, match="cannot be cut at 'stem' with the head's grid; it can at stage"):
        TracedBackbone(Odd(), "odd", SIZE, 16, "stem")

    class Fixed(Odd):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x + torch.zeros(1, 3, *SIZE))

    with pytest.raises(ValueError, match="does not run at 96×96"):
        TracedBackbone(Fixed(), "fixed", SIZE, 16).check([SIZE, (96, 96)])


def test_torch_has_the_exporter_that_is_called() -> None:
    assert "dynamo" in inspect.signature(torch.onnx.export).parameters, (
        f"torch {torch.__version__} has no exporter from TorchScript any more: give onnx_export.py another, or bound torch"
        " in pyproject.toml to the versions before"
    )


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.partition(".")[0] == "timm":
            raise ModuleNotFoundError("no timm", name="timm")
        return load(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"needs timm, which is not installed: pip install isthmus-training\[backbones\]"):
        libraries.create("timm:resnet18", 3, SIZE)
    with pytest.raises(ValueError, match="neither timm:NAME nor torchvision:NAME"):
        libraries.create("resnet18", 3, SIZE)


def test_a_backbone_stands_alone() -> None:
    with pytest.raises(ValueError, match="leave out the other keys"):
        configuration.parse({"name": "x", "network": {"backbone": "timm:resnet18", "channels": [16, 24], "blocks": [1, 1]}})
    with pytest.raises(ValueError, match="need a network.backbone"):
        configuration.parse({"name": "x", "network": {"cut": "layer3"}})


def test_an_unknown_name_gets_near_ones() -> None:
    with pytest.raises(ValueError, match="timm has no 'resnett18'; the nearest are resnet18"):
        libraries.create("timm:resnett18", 3, SIZE)
    with pytest.raises(ValueError, match="torchvision has no 'mobilenet_v4'; the nearest are mobilenet_v"):
        libraries.create("torchvision:mobilenet_v4", 3, SIZE)


@pytest.mark.parametrize(("name", "cut", "features"), [("mobilenetv3_small_050", "blocks.3", 24), ("resnet10t", "layer3", 256)])
def test_stages_are_cut_whole(name: str, cut: str, features: int, tmp_path: Path) -> None:
    model = libraries.create(f"timm:{name}", 3, SIZE)
    backbones.randomise(model, torch.randn(4, 3, *SIZE))
    network = TracedBackbone(model, name, SIZE, 16).eval()
    assert (network.cut, network.features) == (cut, features)
    folded = plain(network.trunk())
    assert all(isinstance(part, Section) for part in folded.children())
    runs_alike(folded, torch.randn(3, features, 4, 4), tmp_path / "trunk.onnx")


def test_train_and_export(pictures: Path, toy: Path, tmp_path: Path) -> None:
    text = toy.read_text().replace("channels = [16, 24]\nblocks = [1, 1]\n", 'backbone = "timm:mobilenetv3_small_050"\n')
    toy.write_text(text.replace("[32, 32]", "[64, 64]").replace("[40, 40]", "[80, 80]"))
    common = ["--data", str(pictures), "--config", str(toy), "--threads", "2"]
    run, bundle = str(tmp_path / "run"), tmp_path / "bundle"
    assert main(["train", *common, "--out", run, "--device", "cpu"]) == 0
    assert main(["export", *common, "--run", run, "--bundle", str(bundle)]) == 0
    manifest = tomllib.loads((bundle / "manifest.toml").read_text())
    assert manifest["splits"][0]["features"] == [24, 4, 4]
    assert len(manifest["points"]) == 2 * 2 * 2 and len(list((bundle / "goldens").iterdir())) == 6


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """The `bundle` program that BUNDLE_PROGRAM names, or else a stand-in that says what it would."""
    if named := os.environ.get("BUNDLE_PROGRAM"):
        return Path(named).resolve()
    stand_in = tmp_path / "bundle"
    said = "6 goldens reproduced, 0 of 6 symbols rounded otherwise, outputs within 2.0e-6"
    stand_in.write_text(f"#!{sys.executable}\nprint({said!r})\n")
    stand_in.chmod(0o755)
    return stand_in


def test_the_command_prints_a_row_for_a_network_that_runs(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backbones", "timm:resnet10t", "timm:resnett18", "--program", str(program)]) == 0
    title, _, row, _, failed = capsys.readouterr().out.strip().split("\n")
    name, macs, parameters, cut, shape, difference, largest = (cell.strip() for cell in row.strip("|").split("|"))
    assert len(title.strip("|").split("|")) == 7
    assert (name, cut, shape) == ("`timm:resnet10t`", "`layer3`", "256×14×14")
    assert float(macs) > 500 and float(parameters) > 5
    assert 0 < float(difference) < 1e-3 * float(largest)
    assert failed.startswith("- `timm:resnett18`: network.backbone: timm has no 'resnett18'")
