"""Networks with random weights, exported as their users would export them, and what `bundle` makes of each.

    python trials.py FOLDER                export them, and check each against ONNX Runtime
    python trials.py FOLDER --bundle FILE  and list their cuts, cut each near half its operations, verify it

Prints the table of `docs/own-model.md`. It takes minutes and is no test that pytest collects.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import timm
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

warnings.filterwarnings("ignore")


class Excited(nn.Module):
    """Concurrent spatial and channel squeeze and excitation: the greater of both."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.channel = nn.Sequential(nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, width))
        self.spatial = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, width, _, _ = x.size()
        channel = self.channel(x.view(batch, width, -1).mean(2)).sigmoid().view(batch, width, 1, 1)
        return torch.max(x * channel, x * self.spatial(x).sigmoid())


class UNet(nn.Module):
    """Three levels, each with a skip connection, and scSE behind every block."""

    def __init__(self, classes: int = 28, width: int = 16) -> None:
        super().__init__()

        def block(before: int, behind: int) -> nn.Sequential:
            conv = nn.Conv2d(before, behind, 3, padding=1, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(behind), nn.ReLU(), Excited(behind))

        widths = [width, 2 * width, 4 * width]
        self.down = nn.ModuleList([block(3, widths[0]), block(widths[0], widths[1]), block(widths[1], widths[2])])
        self.middle = block(widths[2], widths[2])
        self.up = nn.ModuleList([block(2 * widths[2], widths[1]), block(2 * widths[1], widths[0]), block(2 * widths[0], width)])
        self.classes = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = nn.functional.max_pool2d(x, 2)
        x = self.middle(x)
        for block, skip in zip(self.up, reversed(skips), strict=True):
            x = nn.functional.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=False)
            x = block(torch.cat([x, skip], 1))
        return self.classes(x)


class Modulated(nn.Module):
    """A block of EfficientMod: channels last, a context from a depthwise convolution, times the values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.context = nn.Linear(width, width)
        self.values = nn.Linear(width, width)
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        context = nn.functional.gelu(self.context(y)).permute(0, 3, 1, 2)
        context = self.depthwise(context).permute(0, 2, 3, 1)
        return x + self.out(context * self.values(y))


class EfficientMod(nn.Module):
    """Two stages of such blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 7, 4, 3)
        self.first = nn.Sequential(Modulated(32), Modulated(32))
        self.down = nn.Conv2d(32, 64, 3, 2, 1)
        self.second = nn.Sequential(Modulated(64), Modulated(64))
        self.head = nn.Linear(64, 100)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.stem(x).permute(0, 2, 3, 1))
        x = self.down(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.head(self.second(x).mean((1, 2)))


class Detector(nn.Module):
    """SSD's heads on three maps of a MobileNetV2: scores and boxes as tables."""

    def __init__(self, classes: int = 6, anchors: int = 3) -> None:
        super().__init__()
        backbone: Any = timm.create_model("mobilenetv2_100", features_only=True, out_indices=(2, 3, 4))
        widths: list[int] = backbone.feature_info.channels()
        self.backbone = backbone
        self.scores = nn.ModuleList(nn.Conv2d(width, anchors * classes, 3, padding=1) for width in widths)
        self.boxes = nn.ModuleList(nn.Conv2d(width, anchors * 4, 3, padding=1) for width in widths)
        self.classes = classes

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.backbone(x)

        def table(heads: nn.ModuleList, columns: int) -> Tensor:
            rows = [head(it).permute(0, 2, 3, 1).reshape(x.shape[0], -1, columns) for head, it in zip(heads, maps, strict=True)]
            return torch.cat(rows, 1)

        return table(self.scores, self.classes).softmax(-1), table(self.boxes, 4)


class Pyramid(nn.Module):
    """A feature pyramid on a ResNet-18: its maps are resized to each other's sizes."""

    def __init__(self) -> None:
        super().__init__()
        backbone: Any = timm.create_model("resnet18", features_only=True, out_indices=(1, 2, 3, 4))
        widths: list[int] = backbone.feature_info.channels()
        self.backbone = backbone
        self.pyramid = torchvision.ops.FeaturePyramidNetwork(widths, 64)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = {str(at): it for at, it in enumerate(self.backbone(x))}
        return list(self.pyramid(maps).values())


class Answered(nn.Module):
    """A network and what is done with its answer."""

    def __init__(self, network: nn.Module, answer: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.network, self.answer = network, answer

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.network(x))


def segmenter(build: Callable[..., nn.Module]) -> nn.Module:
    """One of torchvision's, without its dictionary."""
    return Answered(build(weights=None, weights_backbone=None, num_classes=21), lambda answer: answer["out"])


def classifier(name: str) -> nn.Module:
    """One of timm's; attention as it is written down, not fused."""
    timm.layers.set_fused_attn(False)
    return timm.create_model(name)


# Name, side, whether the batch is left free, and how it is built.
TRIALS: list[tuple[str, int, bool, Callable[[], nn.Module]]] = [
    ("MobileNetV2", 224, False, lambda: classifier("mobilenetv2_100")),
    ("MobileNetV2, softmax", 224, True, lambda: Answered(classifier("mobilenetv2_100"), lambda it: it.softmax(1))),
    ("GhostNetV2", 224, True, lambda: classifier("ghostnetv2_100")),
    ("GhostNetV2", 224, False, lambda: classifier("ghostnetv2_100")),
    ("EfficientMod, two stages", 224, True, EfficientMod),
    ("EfficientViT-M1", 224, True, lambda: classifier("efficientvit_m1")),
    ("EfficientViT-M1", 224, False, lambda: classifier("efficientvit_m1")),
    ("MobileViT-XXS", 256, True, lambda: classifier("mobilevit_xxs")),
    ("MobileViT-XXS", 256, False, lambda: classifier("mobilevit_xxs")),
    ("TinyViT-5M", 224, False, lambda: classifier("tiny_vit_5m_224")),
    ("DeiT-tiny", 224, True, lambda: classifier("deit_tiny_patch16_224")),
    ("DeiT-tiny", 224, False, lambda: classifier("deit_tiny_patch16_224")),
    ("Swin-tiny", 224, True, lambda: classifier("swin_tiny_patch4_window7_224")),
    ("Swin-tiny", 224, False, lambda: classifier("swin_tiny_patch4_window7_224")),
    ("U-Net with scSE", 128, True, UNet),
    ("U-Net with scSE", 128, False, UNet),
    ("DeepLabV3, MobileNetV3", 224, False, lambda: segmenter(torchvision.models.segmentation.deeplabv3_mobilenet_v3_large)),
    ("LR-ASPP, MobileNetV3", 224, False, lambda: segmenter(torchvision.models.segmentation.lraspp_mobilenet_v3_large)),
    ("FPN on ResNet-18", 224, False, Pyramid),
    ("SSD on MobileNetV2", 224, True, Detector),
    ("SSD on MobileNetV2", 224, False, Detector),
]


def enliven(network: nn.Module, side: int) -> None:
    """Weights that carry a picture through: Kaiming's for matrices, norms measured on noise."""
    torch.manual_seed(1)
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter.data, nonlinearity="relu")
        elif "bias" not in name:
            nn.init.uniform_(parameter.data, 0.5, 1.0)
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        for _ in range(2):
            network(torch.randn(2, 3, side, side))
    network.eval()


def export(folder: Path, name: str, side: int, free: bool, build: Callable[[], nn.Module]) -> Path:
    """The network as an ONNX file; one that is there is taken as it is."""
    words = "".join(letter if letter.isalnum() else "_" for letter in name.lower())
    file = folder / f"{words}_{'free' if free else 'one'}.onnx"
    if file.exists():
        return file
    network = build()
    enliven(network, side)
    axes = {"input": {0: "batch"}} if free else None
    with torch.no_grad():
        torch.onnx.export(
            network,
            (torch.randn(1, 3, side, side),),
            str(file),
            dynamo=False,
            opset_version=17,
            input_names=["input"],
            dynamic_axes=axes,
        )
    return file


def pictures(folder: Path) -> Path:
    """Twelve pictures of two classes, to calibrate with and to measure on."""
    draw = np.random.default_rng(1)
    for number in range(12):
        place = folder / "pictures" / str(number % 2)
        place.mkdir(parents=True, exist_ok=True)
        coarse = draw.integers(0, 256, (7, 7, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((256, 256), Image.Resampling.BICUBIC).save(place / f"{number}.png")
    return folder / "pictures"


def run(file: Path, batch: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: batch})


def difference(file: Path, bundle: Path, side: int) -> float:
    """The furthest that the bundle's whole network, run by ONNX Runtime with three pictures, is from the
    export run with each alone, in parts of the largest value.

    Probabilities are held against those of the logits that the bundle has in their place.
    """
    batch = np.random.default_rng(2).standard_normal((3, 3, side, side), dtype=np.float32)
    alone = [run(file, batch[at : at + 1]) for at in range(3)]
    together = run(bundle / "onnx" / "full.onnx", batch)
    worst = 0.0
    for at, output in enumerate(together):
        expected = np.concatenate([it[at].reshape(1, -1) for it in alone])
        found = output.reshape(3, -1)
        if "softmax" in file.stem:
            powers = np.exp(found - found.max(1, keepdims=True))
            found = powers / powers.sum(1, keepdims=True)
        worst = max(worst, float(np.abs(expected - found).max() / max(1e-9, np.abs(expected).max())))
    return worst


def ask(program: str, *arguments: str) -> tuple[bool, str]:
    """Whether the program did it, and what it said."""
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    said = done.stdout if done.returncode == 0 else done.stderr
    return done.returncode == 0, said.strip()


def trial(program: str, folder: Path, file: Path, side: int) -> list[str]:
    """Columns of the table: cuts, the cut taken, whether it verifies, the difference to ONNX Runtime."""
    listed, said = ask(program, "cuts", str(file), "--no-times", "--format", "json")
    if not listed:
        return ["-", said, "-", "-"]
    cuts = json.loads(said)
    whole = cuts[0]["head_macs"] + cuts[0]["tail_macs"] if cuts else 0
    # The narrowest between a third and two thirds of the operations, else the one nearest to half.
    middle = [cut for cut in cuts if whole / 3 < cut["head_macs"] < 2 * whole / 3]
    if not cuts:
        return ["0", "-", "-", "-"]
    chosen = min(middle or cuts, key=lambda cut: (cut["bytes"], abs(cut["head_macs"] - whole / 2)))
    out = folder / (file.stem + ".bundle")
    shutil.rmtree(out, ignore_errors=True)
    done, said = ask(
        program,
        "cut",
        str(file),
        "--at",
        chosen["tensor"],
        "--calibrate",
        str(pictures(folder)),
        "--out",
        str(out),
        "--name",
        "trial",
        "--bits",
        "8",
    )
    shape = " × ".join(str(extent) for extent in chosen["shape"])
    if not done:
        return [str(len(cuts)), f"{shape} at {chosen['tensor']}", said.splitlines()[-1], "-"]
    verified, said = ask(program, "verify", str(out))
    return [str(len(cuts)), shape, "yes" if verified else said, f"{difference(file, out, side):.0e}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bundle", help="the program")
    parser.add_argument("--only", default="", help="part of a network's name")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    print("| network | batch | parameters | cuts | cut | verified | difference |\n|---|---|---|---|---|---|---|")
    for name, side, free, build in TRIALS:
        if arguments.only not in name:
            continue
        file = export(arguments.folder, name, side, free, build)
        weights = sum(math.prod(it.dims) for it in onnx.load(str(file)).graph.initializer)
        row = [name, "free" if free else "1", f"{weights / 1e6:.2f} M"]
        if arguments.bundle:
            row += trial(arguments.bundle, arguments.folder, file, side)
        print("| " + " | ".join(row) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
