"""Networks of timm and torchvision, made by their names."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from torch import nn

EXTRA = "pip install isthmus-training[backbones]"


def create(name: str, classes: int, size: tuple[int, int], pretrained: bool = False) -> nn.Module:
    """The network `timm:NAME` or `torchvision:NAME` for pictures of `size` (width, height), with `classes` outputs.

    `pretrained` fetches the weights that the library has for it; the classifying layer starts anew.
    """
    source, _, model = name.partition(":")
    makers = {"timm": _of_timm, "torchvision": _of_torchvision}
    if source not in makers or not model:
        raise ValueError(f"network.backbone: {name!r} is neither timm:NAME nor torchvision:NAME")
    try:
        return makers[source](model, classes, size, pretrained)
    except ModuleNotFoundError as error:
        if error.name not in ("timm", "torchvision"):
            raise
        raise ValueError(f"network.backbone: {name} needs {error.name}, which is not installed: {EXTRA}") from error
    except RuntimeError as error:
        raise ValueError(f"network.backbone: {name}: {error}") from error


def _of_timm(name: str, classes: int, size: tuple[int, int], pretrained: bool) -> nn.Module:
    import timm
    from timm.layers import set_fused_attn

    if not timm.is_model(name):
        raise _unknown("timm", name.partition(".")[0], timm.list_models())
    # Attention in one operation has no form in ONNX of the version that bundles use.
    set_fused_attn(False)
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=classes, img_size=(size[1], size[0]))
    except TypeError:  # most networks take pictures of any size, and no such setting
        return timm.create_model(name, pretrained=pretrained, num_classes=classes)


def _of_torchvision(name: str, classes: int, size: tuple[int, int], pretrained: bool) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise _unknown("torchvision", name, known)
    if not pretrained:
        return models.get_model(name, weights=None, num_classes=classes)
    network = models.get_model(name, weights="DEFAULT")
    path, last = [(path, part) for path, part in network.named_modules() if isinstance(part, nn.Linear)][-1]
    network.set_submodule(path, nn.Linear(last.in_features, classes))
    return network


def _unknown(source: str, name: str, known: Sequence[str]) -> ValueError:
    near = difflib.get_close_matches(name, known, 5, 0.5)
    hint = f"; the nearest are {', '.join(near)}" if near else ""
    return ValueError(f"network.backbone: {source} has no {name!r}{hint}")
