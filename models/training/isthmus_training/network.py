"""The networks: the slimmable encoder and head, the full backbone over the same encoder, the adapter.

The encoder and the adapter run at several widths. All widths share each weight; a narrower one uses its first channels
(slimmable networks, Yu et al., 2019) and has a batch norm of its own.

All are plain: 3×3 convolutions, batch norm that folds away at export, ReLU, addition, global average pooling.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


def conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    padding = kernel // 2 if kernel % 2 else 0
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False), nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """`relu(second(relu(first(x))) + shortcut(x))` (He et al., 2015)."""

    def __init__(self, first: nn.Module, second: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.shortcut = first, second, shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


def block(inputs: int, outputs: int, stride: int) -> Residual:
    """A residual block, [N, C, H, W] to [N, C', H/s, W/s], that starts as its shortcut.

    A strided shortcut is a 2×2 convolution, which sees every place that it covers (the average pool and 1×1
    convolution of ResNet-D, He et al., 2018, with free weights).
    """
    second = conv_norm(outputs, outputs, 3)
    assert isinstance(second[1], nn.BatchNorm2d)
    nn.init.zeros_(second[1].weight)
    shortcut = nn.Identity() if inputs == outputs and stride == 1 else conv_norm(inputs, outputs, stride, stride)
    return Residual(conv_norm(inputs, outputs, 3, stride), second, shortcut)


class SlimConv(nn.Module):
    """A convolution and batch norm at several widths (percentages); a fixed side keeps all its channels."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int,
        widths: Sequence[int],
        slim: tuple[bool, bool] = (True, True),
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_in", nonlinearity="relu")
        self.slim = slim
        norms = nn.ModuleDict({str(w): nn.BatchNorm2d(self.sizes(w)[1]) for w in widths})
        self.norms = cast("Mapping[str, nn.BatchNorm2d]", norms)

    def sizes(self, width: int) -> tuple[int, int]:
        """Input and output channels at `width`."""
        inputs, outputs = self.conv.in_channels, self.conv.out_channels
        return (narrowed(inputs, width) if self.slim[0] else inputs), (narrowed(outputs, width) if self.slim[1] else outputs)

    def weight(self, width: int) -> torch.Tensor:
        inputs, outputs = self.sizes(width)
        return self.conv.weight[:outputs, :inputs]

    def forward(self, x: torch.Tensor, width: int) -> torch.Tensor:
        x = F.conv2d(x, self.weight(width), None, self.conv.stride, self.conv.padding)
        return self.norms[str(width)](x)

    def plain(self, width: int) -> nn.Conv2d:
        """This layer at one width as a plain convolution, batch norm folded in."""
        inputs, outputs = self.sizes(width)
        kernel = self.conv.kernel_size[0]
        conv = nn.Conv2d(inputs, outputs, kernel, self.conv.stride[0], kernel // 2)
        fold(conv, self.weight(width), self.norms[str(width)])
        return conv


class Encoder(nn.Module):
    """3×3 convolutions at several widths: pictures [N, 3, H, W] to activations [N, C, h, w]."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        self.channels, self.widest = channels[-1], widths[-1]
        inputs = [3, *channels[:-1]]
        sizes = enumerate(zip(inputs, channels, strides, strict=True))
        layers = nn.ModuleList(SlimConv(i, o, 3, s, widths, (n > 0, True)) for n, (i, o, s) in sizes)
        self.layers = cast("Sequence[SlimConv]", layers)

    def forward(self, x: torch.Tensor, width: int) -> torch.Tensor:
        for layer in self.layers:
            x = F.relu(layer(x, width))
        return x

    @torch.no_grad()
    def inherit(self) -> None:
        """Gives each narrower width the widest's batch norm, over the channels that it has."""
        for layer in self.layers:
            widest = layer.norms[str(self.widest)].state_dict()
            for norm in layer.norms.values():
                norm.load_state_dict({k: v[: norm.num_features] if v.ndim else v for k, v in widest.items()})

    def plain(self, width: int) -> nn.Sequential:
        return nn.Sequential(*(part for layer in self.layers for part in (layer.plain(width), nn.ReLU())))


class Head(nn.Module):
    """The device's network: pictures [N, 3, H, W] to latents [N, C, h, w] and the exit's logits [N, K]."""

    def __init__(
        self, encoder: Encoder, latents: int, early_exit: Callable[[int], nn.Sequential], widths: Sequence[int]
    ) -> None:
        """`early_exit` makes one for so many channels."""
        super().__init__()
        self.encoder = encoder
        self.latent = SlimConv(encoder.channels, latents, 1, 1, widths, (True, False))
        self.exits = nn.ModuleDict({str(w): early_exit(narrowed(encoder.channels, w)) for w in widths})

    def forward(self, x: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The exit learns on what the head computes and does not change it: its gradient stops here."""
        x = self.encoder(x, width)
        return self.latent(x, width), self.exits[str(width)](x.detach())

    def centre(self, width: int) -> torch.Tensor:
        """The latents' mean [C] at `width`: the bias of the batch norm that they come out of."""
        return self.latent.norms[str(width)].bias

    def plain(self, width: int) -> PlainHead:
        return PlainHead(self, width)


class PlainHead(nn.Module):
    """One width of a head, for export."""

    def __init__(self, head: Head, width: int) -> None:
        super().__init__()
        self.layers = head.encoder.plain(width)
        self.latent = head.latent.plain(width)
        self.exit = head.exits[str(width)]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.layers(x)
        return self.latent(x), self.exit(x)


class Prefix(nn.Module):
    """The full network's own layers before the trunk: pictures [N, 3, H, W] to the trunk's features [N, C', h, w].

    A convolution to stride 2, then for each further stride as many residual blocks as `blocks` says, the first of them
    strided; a last strided block gives the features.
    """

    def __init__(self, channels: Sequence[int], blocks: Sequence[int], features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(conv_norm(3, channels[0], 3, 2), nn.ReLU())
        inputs = channels[0]
        for stage, (outputs, count) in enumerate(zip(channels, blocks, strict=True)):
            for number in range(count):
                self.layers.append(block(inputs, outputs, 2 if stage and number == 0 else 1))
                inputs = outputs
        self.layers.append(block(inputs, features, 2))
        _initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)

    def plain(self) -> nn.Sequential:
        """The same as plain modules, for export."""
        return self.layers


class Inherited(nn.Module):
    """The device's encoder at its full width and an entry in place of layers of the full network's own: pictures
    [N, 3, H, W] to the trunk's features [N, C', h, w].

    The split network then starts from a trained encoder, and the full one is bound by what the device can afford.
    """

    def __init__(self, encoder: Encoder, features: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.entry = nn.Sequential(conv_norm(encoder.channels, features, 3), nn.ReLU())
        _initialise(self.entry)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.entry(self.encoder(x, self.encoder.widest))

    def plain(self) -> nn.Sequential:
        """The same as plain modules, for export; the encoder's are copies with their batch norms folded in."""
        return nn.Sequential(self.encoder.plain(self.encoder.widest), self.entry)


class FullNetwork(nn.Module):
    """A whole classifier over pictures [N, 3, H, W] that is cut in two: a `prefix`, which gives the trunk's features, and
    the trunk.

    `features` are the channels of the trunk's input, and none of them is below zero where they are `rectified`; `last` is
    the channels of the last feature map, if that has the stride on which a teacher's labels lie; `classes` the outputs.
    """

    prefix: Prefix | Inherited | Section
    features: int
    rectified: bool
    last: int | None
    classes: int

    def exit(self, units: int, inputs: int) -> nn.Sequential:
        """An early exit of the same outputs, on so many channels of the device's encoder."""
        return pooled_exit(units, self.classes, inputs)

    def trunk(self) -> nn.Sequential:
        """What follows the prefix: [N, C', h, w] to logits [N, K], through the last feature map [N, C'', H/32, W/32],
        which its first part gives. Shares this network's weights."""
        raise NotImplementedError

    def layers(self) -> Sequence[nn.Module]:
        """What runs one after the other from the pictures to the last feature map."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.trunk()(self.prefix(x))


class Backbone(FullNetwork):
    """The full network of this kit: a prefix and a residual trunk."""

    def __init__(self, prefix: Prefix | Inherited, channels: Sequence[int], blocks: Sequence[int], classes: int) -> None:
        super().__init__()
        self.prefix = prefix
        self.stages = nn.Sequential()
        inputs = channels[0]
        for stage, (outputs, count) in enumerate(zip(channels, blocks, strict=True)):
            for number in range(count):
                self.stages.append(block(inputs, outputs, 2 if stage and number == 0 else 1))
                inputs = outputs
        self.classifier = nn.Linear(inputs, classes)
        self.features, self.last, self.classes, self.rectified = channels[0], inputs, classes, True
        _initialise(self.stages)

    def trunk(self) -> nn.Sequential:
        return nn.Sequential(self.stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), self.classifier)

    def layers(self) -> Sequence[nn.Module]:
        prefix = self.prefix.layers if isinstance(self.prefix, Prefix) else [self.prefix]
        return [*prefix, *self.stages]


class Section(nn.Module):
    """Some operations of a traced network in a row, one tensor to another."""

    def __init__(self, layers: fx.GraphModule) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)

    def plain(self) -> Section:
        return self

    @torch.no_grad()
    def fold(self) -> Section:
        """Folds each batch norm into the convolution or matrix before it, in place."""
        parts = dict(self.layers.named_modules())
        calls = [node.target for node in self.layers.graph.nodes if node.op == "call_module"]
        for node in self.layers.graph.nodes:
            norm = parts.get(node.target) if node.op == "call_module" else None
            if not isinstance(norm, _BatchNorm):
                continue
            before = node.args[0]
            # A matrix over tokens [N, places, C], with a norm over [N · places, C].
            if before.op == "call_method" and before.target == "flatten" and len(before.users) == 1:
                before = before.args[0]
            linear = parts.get(before.target) if before.op == "call_module" else None
            if not isinstance(linear, (nn.Conv2d, nn.Linear)) or calls.count(before.target) > 1:
                continue
            if sum(user.target != "reshape_as" for user in before.users) > 1:
                continue
            gain, shift = inference(norm)
            bias = linear.bias if linear.bias is not None else torch.zeros_like(shift)
            linear.weight.copy_(linear.weight * gain.reshape(-1, *[1] * (linear.weight.ndim - 1)))
            linear.bias = nn.Parameter(bias * gain + shift)
            # timm's norms carry what follows them.
            self.layers.set_submodule(node.target, nn.Sequential(*norm.children()))
        return self


class SlimBlock(nn.Module):
    """A residual block whose batch norms are per width and whose channels are not."""

    def __init__(self, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.first = SlimConv(channels, channels, 3, 1, widths, (False, False))
        self.second = SlimConv(channels, channels, 3, 1, widths, (False, False))
        for norm in self.second.norms.values():
            nn.init.zeros_(norm.weight)

    def forward(self, x: torch.Tensor, width: int) -> torch.Tensor:
        return F.relu(x + self.second(F.relu(self.first(x, width)), width))


class Features(NamedTuple):
    """What an adapter gives a trunk: `channels` features on a grid `stride` times as coarse as that of the latents, none
    below zero where they are `rectified`."""

    channels: int
    rectified: bool = True
    stride: int = 1


class Adapter(nn.Module):
    """The server's first network: dequantised latents [N, C, h, w] to the trunk's features [N, C', h', w']."""

    def __init__(self, latents: int, hidden: int, blocks: int, features: Features, widths: Sequence[int]) -> None:
        super().__init__()
        self.widths = list(widths)
        self.first = SlimConv(latents, hidden, 3, features.stride, widths, (False, False))
        self.blocks = cast("Sequence[SlimBlock]", nn.ModuleList(SlimBlock(hidden, widths) for _ in range(blocks)))
        self.last = SlimConv(hidden, features.channels, 3, 1, widths, (False, False))
        self.end = nn.ReLU() if features.rectified else nn.Identity()

    def forward(self, latents: torch.Tensor, width: int) -> torch.Tensor:
        width = self.norms(width)
        x = F.relu(self.first(latents, width))
        for block in self.blocks:
            x = block(x, width)
        return self.end(self.last(x, width))

    def convolutions(self) -> list[SlimConv]:
        """In the order in which they run."""
        return [self.first, *(part for block in self.blocks for part in (block.first, block.second)), self.last]

    def norms(self, width: int) -> int:
        """Whose batch norms serve a width: its own, or those that all share."""
        return width if width in self.widths else self.widths[-1]

    def plain(self, width: int) -> nn.Sequential:
        width = self.norms(width)
        blocks = [Residual(block.first.plain(width), block.second.plain(width), nn.Identity()) for block in self.blocks]
        return nn.Sequential(self.first.plain(width), nn.ReLU(), *blocks, self.last.plain(width), self.end)


class Unsent(nn.Module):
    """The device's encoder, its latents and the adapter, at full width and with nothing rounded between them, in place of
    layers of the full network's own: pictures [N, 3, H, W] to the trunk's features [N, C', h, w].

    What the full network learns is then the split one's to begin with, and the full one is bound by what can be sent.
    """

    def __init__(self, encoder: Encoder, latents: int, hidden: tuple[int, int], features: Features) -> None:
        """`hidden` are the adapter's units and blocks."""
        super().__init__()
        self.encoder, widest = encoder, [encoder.widest]
        self.latent = SlimConv(encoder.channels, latents, 1, 1, widest, (True, False))
        self.adapter = Adapter(latents, *hidden, features, widest)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        width = self.encoder.widest
        return self.adapter(self.latent(self.encoder(x, width), width), width)

    def plain(self) -> nn.Sequential:
        """The same as plain modules, for export."""
        width = self.encoder.widest
        return nn.Sequential(self.encoder.plain(width), self.latent.plain(width), self.adapter.plain(width))

    @torch.no_grad()
    def hand_down(self, head: Head, adapter: Adapter) -> None:
        """Gives a head and an adapter of several widths these weights; each width's norms are as far as they go the
        widest's. The head's encoder is this one."""
        self.encoder.inherit()
        pairs = [(self.latent, head.latent)]
        for own, other in [*pairs, *zip(self.adapter.convolutions(), adapter.convolutions(), strict=True)]:
            other.conv.load_state_dict(own.conv.state_dict())
            for norm in other.norms.values():
                norm.load_state_dict(own.norms[str(self.encoder.widest)].state_dict())


AnyPrefix = Prefix | Inherited | Section | Unsent
"""What gives a trunk its features."""


def plain(module: nn.Module) -> nn.Module:
    """A copy of a backbone's prefix or trunk, each batch norm folded into its convolution."""
    return _folded(copy.deepcopy(module)).eval()


def narrowed(channels: int, width: int) -> int:
    """Channels at `width` percent, rounded up."""
    return -(-channels * width // 100)


def inference(norm: _BatchNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """What a batch norm multiplies each channel by in inference, and what it then adds."""
    assert norm.running_mean is not None and norm.running_var is not None
    gain = (norm.weight if norm.affine else 1) / torch.sqrt(norm.running_var + norm.eps)
    return gain, (norm.bias if norm.affine else 0) - norm.running_mean * gain


@torch.no_grad()
def fold(conv: nn.Conv2d, weight: torch.Tensor, norm: nn.BatchNorm2d) -> None:
    """Makes `conv` compute what `weight` and then `norm` do in inference."""
    gain, shift = inference(norm)
    assert conv.bias is not None
    conv.weight.copy_(weight * gain[:, None, None, None])
    conv.bias.copy_(shift)


def _initialise(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


def _folded(module: nn.Module) -> nn.Module:
    if isinstance(module, Section):
        return module.fold()
    for name, child in module.named_children():
        setattr(module, name, _folded(child))
    children = list(module.children())
    if isinstance(module, nn.Sequential):
        for conv, norm in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                conv.bias = nn.Parameter(torch.zeros(conv.out_channels))
                fold(conv, conv.weight.clone(), norm)
        kept = [child for child in children if not isinstance(child, nn.BatchNorm2d)]
        return kept[0] if len(kept) == 1 and len(children) > 1 else nn.Sequential(*kept)
    return module


def pooled_exit(units: int, classes: int, inputs: int) -> nn.Sequential:
    """An exit that goes by the mean of the head's activations."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, units), nn.ReLU(), nn.Linear(units, classes))
