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


class ChannelNorm(nn.Module):
    """Layer norm over the channels of a map, as Segment Anything's neck has it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        x = centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class MobileSam(nn.Module):
    """MobileSAM's picture encoder: TinyViT to stride 16, and a neck that gives 256 channels."""

    def __init__(self) -> None:
        super().__init__()
        timm.layers.set_fused_attn(False)
        body: Any = timm.create_model("tiny_vit_5m_224", features_only=True, out_indices=(2,))
        (width,) = body.feature_info.channels()
        self.body = body
        first, second = nn.Conv2d(width, 256, 1, bias=False), nn.Conv2d(256, 256, 3, padding=1, bias=False)
        self.neck = nn.Sequential(first, ChannelNorm(256), second, ChannelNorm(256))

    def forward(self, x: Tensor) -> Tensor:
        return self.neck(self.body(x)[0])


def unit(before: int, behind: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True) -> nn.Sequential:
    conv = nn.Conv2d(before, behind, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(behind), *([nn.ReLU6()] if act else []))


class Bottleneck(nn.Module):
    """Between a first and a last 1×1 convolution of a MobileDet: depthwise (inverted), fused with the first, or Tucker's."""

    def __init__(self, kind: str, before: int, behind: int, stride: int = 1) -> None:
        super().__init__()
        wide = 4 * before if kind != "tucker" else before // 2
        layers = {
            "inverted": [unit(before, wide), unit(wide, wide, 5, stride, wide)],
            "fused": [unit(before, wide, 3, stride)],
            "tucker": [unit(before, wide), unit(wide, behind // 2, 3, stride)],
        }[kind]
        last = behind // 2 if kind == "tucker" else wide
        self.layers = nn.Sequential(*layers, unit(last, behind, act=False))
        self.added = stride == 1 and before == behind

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.added else self.layers(x)


class MobileDet(nn.Module):
    """A MobileDet of all three kinds of blocks, with SSD's heads on strides 16 and 32."""

    def __init__(self, columns: int = 3 * (6 + 4)) -> None:
        super().__init__()
        kinds = [("tucker", 16, 16, 1), ("fused", 16, 24, 2), ("tucker", 24, 24, 1), ("fused", 24, 40, 2), ("fused", 40, 40, 1)]
        kinds += [("inverted", 40, 72, 2), ("tucker", 72, 72, 1), ("inverted", 72, 72, 1)]
        self.first = nn.Sequential(unit(3, 16, 3, 2), *(Bottleneck(*kind) for kind in kinds))
        self.second = nn.Sequential(Bottleneck("inverted", 72, 96, 2), Bottleneck("inverted", 96, 96))
        self.heads = nn.ModuleList([nn.Conv2d(72, columns, 1), nn.Conv2d(96, columns, 1)])

    def forward(self, x: Tensor) -> Tensor:
        fine = self.first(x)
        maps = [head(it) for head, it in zip(self.heads, (fine, self.second(fine)), strict=True)]
        return torch.cat([it.permute(0, 2, 3, 1).reshape(x.shape[0], -1, 10) for it in maps], 1)


class LeYolo(nn.Module):
    """LeYOLO: inverted bottlenecks, a neck over three strides, and a table of boxes and sigmoid scores as YOLOv8 has it."""

    bins: Tensor

    def __init__(self, classes: int = 5) -> None:
        super().__init__()

        def stage(before: int, behind: int) -> nn.Sequential:
            return nn.Sequential(Bottleneck("inverted", before, behind, 2), Bottleneck("inverted", behind, behind))

        self.stem = nn.Sequential(unit(3, 16, 3, 2), stage(16, 16))
        self.stages = nn.ModuleList([stage(16, 32), stage(32, 64), stage(64, 96)])
        self.fine, self.middle = unit(32 + 64, 32), unit(64 + 96, 64)
        self.down = nn.ModuleList([unit(32, 64, 3, 2), unit(64, 96, 3, 2)])
        self.heads = nn.ModuleList(nn.Conv2d(width, 64 + classes, 1) for width in (32, 64, 96))
        self.register_buffer("bins", torch.arange(16.0))

    def forward(self, x: Tensor) -> Tensor:
        maps, x = [], self.stem(x)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        larger = nn.functional.interpolate
        middle = self.middle(torch.cat([maps[1], larger(maps[2], scale_factor=2.0)], 1))
        fine = self.fine(torch.cat([maps[0], larger(middle, scale_factor=2.0)], 1))
        middle = middle + self.down[0](fine)
        coarse = maps[2] + self.down[1](middle)
        found = [head(it).flatten(2) for head, it in zip(self.heads, (fine, middle, coarse), strict=True)]
        every = torch.cat(found, 2)
        sides = every[:, :64].unflatten(1, (4, 16)).softmax(2)
        return torch.cat([(sides * self.bins[:, None]).sum(2), every[:, 64:].sigmoid()], 1)


class OmniScale(nn.Module):
    """OSNet's block: streams of one to three light convolutions, each weighted by the same gate."""

    def __init__(self, before: int, behind: int) -> None:
        super().__init__()
        width = behind // 4

        def light() -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(width, width, 1, bias=False), *unit(width, width, 3, groups=width))

        self.first, self.last = unit(before, width), unit(width, behind, act=False)
        self.streams = nn.ModuleList(nn.Sequential(*(light() for _ in range(count))) for count in (1, 2, 3))
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, 4, 1), nn.ReLU(), nn.Conv2d(4, width, 1), nn.Sigmoid()
        )
        self.beside = unit(before, behind, act=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        streams = [stream(y) for stream in self.streams]
        return torch.relu(self.beside(x) + self.last(sum(self.gate(it) * it for it in streams)))


class LightMbn(nn.Module):
    """LightMBN's embedding: OSNet, and branches of the whole, of two parts and of two halves of the channels."""

    def __init__(self) -> None:
        super().__init__()
        stem = [unit(3, 32, 7, 2), nn.MaxPool2d(3, 2, 1)]
        body = [OmniScale(32, 64), OmniScale(64, 64), nn.AvgPool2d(2), OmniScale(64, 96), nn.AvgPool2d(2), OmniScale(96, 128)]
        self.body = nn.Sequential(*stem, *body)
        self.whole, self.parts = nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((2, 1))
        self.neck, self.shared = nn.BatchNorm1d(128), nn.Linear(64, 128)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        whole, parts = self.whole(x).flatten(1), self.parts(x).squeeze(3)
        halves = [self.shared(half) for half in whole.chunk(2, 1)]
        return torch.stack([self.neck(it) for it in (whole, parts[:, :, 0], parts[:, :, 1], *halves)], 2)


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
    ("MobileSAM's encoder", 256, False, MobileSam),
    ("MobileDet, three kinds of blocks", 224, True, MobileDet),
    ("LeYOLO", 224, True, LeYolo),
    ("LeYOLO", 224, False, LeYolo),
    ("LightMBN", 224, True, LightMbn),
    ("LightMBN", 224, False, LightMbn),
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
