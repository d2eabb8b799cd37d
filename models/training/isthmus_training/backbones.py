"""Which networks of torchvision and timm make bundles that the Rust engine runs: the table of `docs/backbones.md`.

Each is exported with random weights, as a run's would be after training, and `bundle verify` compares the engine's
logits with ONNX Runtime's on synthetic pictures.
"""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import tempfile
import tomllib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import config as configuration
from . import export, full, goldens
from .data import Pictures, Sets, normalise, preprocess
from .student import Student
from .traced import TracedBackbone

SIZE = (224, 224)
CLASSES = 1000
NAMES = [
    *("timm:" + name for name in (
        "resnet18", "mobilenetv2_100", "mobilenetv3_small_100", "mobilenetv3_large_100", "mobilenetv4_conv_small",
        "mnasnet_100", "fbnetc_100", "spnasnet_100", "tinynet_c", "ghostnet_100", "ghostnetv2_100", "efficientvit_m1",
        "efficientformer_l1", "shvit_s1", "levit_128s", "levit_conv_128s", "efficientnet_b0", "regnetx_002", "regnety_002",
        "convnext_atto", "repvgg_a0", "repvit_m0_9", "starnet_s1", "mobileone_s0", "fastvit_t8", "edgenext_xx_small",
        "mobilevit_xxs", "deit_tiny_patch16_224", "efficientvit_b0", "swin_tiny_patch4_window7_224",
    )),
    *("torchvision:" + name for name in (
        "resnet18", "mobilenet_v2", "mobilenet_v3_small", "mnasnet1_0", "shufflenet_v2_x0_5", "squeezenet1_1", "googlenet",
    )),
]  # fmt: skip


class Row(NamedTuple):
    """One network that runs: MACs and parameters of the whole, what is sent through the cut, the largest difference
    of a logit between the engines and the largest logit."""

    name: str
    macs: int
    parameters: int
    cut: str
    features: list[int]
    difference: float
    largest: float

    def line(self) -> str:
        shape = "×".join(map(str, self.features))
        return (
            f"| `{self.name}` | {self.macs / 1e6:.0f} | {self.parameters / 1e6:.2f} | `{self.cut}` | {shape} |"
            f" {self.difference:.0e} | {self.largest:.1f} |"
        )


def table(names: Sequence[str], program: Path) -> Iterator[str]:
    """Lines of Markdown: a row for each network that runs, then those that do not with the reason."""
    yield "| network | MMAC | M parameters | cut behind | its output | largest difference | largest logit |"
    yield "|---|---|---|---|---|---|---|"
    failed = []
    for name in names:
        try:
            yield row(name, program).line()
        except Exception as error:
            # Whatever a library or an exporter raises is a finding here.
            failed.append(f"- `{name}`: {' '.join(str(error).split())[:300]}")
    yield from ["", *failed] if failed else []


def row(name: str, program: Path) -> Row:
    split = {"widths": [100], "head": [16, 24, 32, 48], "strides": [2, 2, 2, 2], "channels": [8, 16], "bits": [8]}
    settings = {"name": "table", "network": {"backbone": name}, "split": split}
    stages = {stage: {"phases": [[1, 1.0]]} for stage in ("full", "stage1", "stage2", "stage3")}
    config = configuration.parse(settings | stages | {"data": {"size": list(SIZE), "stored": list(SIZE)}})
    torch.manual_seed(config.seed)
    shown = [Image.fromarray(goldens.synthetic_picture(seed)) for seed in range(8)]
    pixels = np.stack([preprocess(picture, SIZE) for picture in shown])
    pictures = Pictures([str(n) for n in range(CLASSES)], pixels, torch.arange(len(pixels)), [])
    x = normalise(torch.from_numpy(pixels), config.data.normalisation)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        network = full.build(config, CLASSES)
        assert isinstance(network, TracedBackbone)
        randomise(network, x)
        student = Student(config, network, None)
        bundle = Path(folder) / "bundle"
        export.write(config, network, student, Sets(pictures, pictures), bundle)
        verified = subprocess.run([program, "verify", bundle], capture_output=True, text=True)
        if verified.returncode:
            raise ValueError(verified.stderr.replace(f"{bundle}/", ""))
        manifest = tomllib.loads((bundle / "manifest.toml").read_text("utf-8"))
        logits = [golden.tensors[key] for golden in goldens.read(bundle) for key in ("logits", "full_logits")]
    found = re.search(r"outputs within (\S+)", verified.stdout)
    if found is None:
        raise ValueError(f"{program} verify does not say within what its logits are: {verified.stdout}")
    difference = float(found[1])
    whole, features = manifest["full"], manifest["splits"][0]["features"]
    largest = max(float(np.abs(values).max()) for values in logits)
    return Row(name, whole["macs"], whole["parameters"], network.cut, features, difference, largest)


@torch.no_grad()
def randomise(network: nn.Module, x: torch.Tensor) -> None:
    """Random weights under which every layer counts: as libraries initialise them, many a branch starts at zero and
    logits of a deep network vanish, so that any engine would agree. Batch norms measure the pictures `x`."""
    for name, values in network.named_parameters():
        if max(values.shape, default=1) < values.numel():
            nn.init.kaiming_normal_(values, nonlinearity="relu")
        else:
            nn.init.uniform_(values, *((-0.25, 0.25) if name.endswith("bias") else (0.5, 1.5)))
    network.eval()
    for norm in (part for part in network.modules() if isinstance(part, _BatchNorm)):
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    network(x)
    network.eval()
