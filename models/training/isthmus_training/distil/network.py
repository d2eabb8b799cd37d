"""The networks that are learnt: an encoder to one grid of latents, and an adapter from it to the tensors at the cut.

Both are a linear map, which can be found without training, and beside it layers whose last starts at zero. There is no
batch norm: at each width of the encoder a convolution has a gain and a bias of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import nn
from torch.nn import functional as F

from ..network import Encoder, narrowed

Shape = tuple[int, int, int]


class Sizes(NamedTuple):
    """How large the networks are: `latents` on a grid of `grid` rows and columns, `widths` of the encoder, hidden channels
    and residual blocks of encoder and adapter."""

    latents: int
    grid: tuple[int, int]
    widths: list[int]
    encoder: tuple[int, int]
    adapter: tuple[int, int]


class Slim(nn.Module):
    """A convolution at several widths; a side that is not `slim` keeps all its channels."""

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d, widths: Sequence[int], slim: tuple[bool, bool]) -> None:
        super().__init__()
        self.conv, self.slim = conv, slim
        self.turned = isinstance(conv, nn.ConvTranspose2d)
        assert conv.bias is not None
        outputs = conv.out_channels
        conv.bias.requires_grad_(False)
        self.gains = cast("Mapping[str, torch.Tensor]", nn.ParameterDict({str(w): torch.ones(outputs) for w in widths}))
        self.biases = cast("Mapping[str, torch.Tensor]", nn.ParameterDict({str(w): torch.zeros(outputs) for w in widths}))
        nn.init.zeros_(conv.bias)
        nn.init.normal_(conv.weight, std=math.sqrt(2 * conv.stride[0] ** (2 * self.turned) / conv.weight[:, 0].numel()))
        if not self.turned:
            nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="relu")

    def parts(self, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias at a width, the gain in the weight."""
        inputs, outputs = self.conv.in_channels, self.conv.out_channels
        inputs = narrowed(inputs, width) if self.slim[0] else inputs
        outputs = narrowed(outputs, width) if self.slim[1] else outputs
        gain, bias = self.gains[str(width)][:outputs], self.biases[str(width)][:outputs]
        # Fewer inputs add up to less.
        gain = gain * math.sqrt(self.conv.in_channels / inputs)
        if self.turned:
            return self.conv.weight[:inputs, :outputs] * gain[:, None, None], bias
        return self.conv.weight[:outputs, :inputs] * gain[:, None, None, None], bias

    def forward(self, x: torch.Tensor, width: int) -> torch.Tensor:
        weight, bias = self.parts(width)
        if self.turned:
            return F.conv_transpose2d(x, weight, bias, self.conv.stride)
        return F.conv2d(x, weight, bias, self.conv.stride, self.conv.padding)

    @torch.no_grad()
    def plain(self, width: int) -> nn.Module:
        """This layer at one width."""
        weight, bias = self.parts(width)
        kernel, stride = weight.shape[2:], self.conv.stride
        size = (int(kernel[0]), int(kernel[1]))
        if self.turned:
            made: nn.Module = nn.ConvTranspose2d(weight.shape[0], weight.shape[1], size, (stride[0], stride[1]))
        else:
            padding = cast("tuple[int, int]", self.conv.padding)
            made = nn.Conv2d(weight.shape[1], weight.shape[0], size, (stride[0], stride[1]), padding)
        made.load_state_dict({"weight": weight, "bias": bias})
        return made


class Ratio(NamedTuple):
    """How a tensor's grid relates to that of the latents: `finer` places a side lie in one of the latents' (1 if not), or
    `coarser` places of the latents in one of the tensor's."""

    finer: int
    coarser: int

    @classmethod
    def between(cls, shape: Sequence[int], grid: tuple[int, int]) -> Ratio:
        if len(shape) != 3:
            raise ValueError(f"a tensor of shape {list(shape)} is no map [C, h, w], and cannot be a cut to learn")
        (height, width), (rows, columns) = shape[1:], grid
        for finer, coarser in [(n, 1) for n in (1, 2, 4, 8)] + [(1, n) for n in (2, 4, 8)]:
            if (height * coarser, width * coarser) == (rows * finer, columns * finer):
                return cls(finer, coarser)
        raise ValueError(f"a map of {height} × {width} places cannot be brought onto a grid of {rows} × {columns}")

    def into(self, channels: int, outputs: int) -> nn.Conv2d | nn.ConvTranspose2d:
        """The layer that brings the tensor onto the latents' grid."""
        if self.coarser > 1:
            return nn.ConvTranspose2d(channels, outputs, self.coarser, self.coarser)
        return nn.Conv2d(channels, outputs, self.finer, self.finer)

    def out_of(self, inputs: int, channels: int) -> nn.Conv2d | nn.ConvTranspose2d:
        """The layer that makes the tensor from the latents' grid."""
        if self.finer > 1:
            return nn.ConvTranspose2d(inputs, channels, self.finer, self.finer)
        return nn.Conv2d(inputs, channels, self.coarser, self.coarser)


class Block(nn.Module):
    """A residual block at several widths that starts as its input."""

    def __init__(self, channels: int, widths: Sequence[int], slim: bool) -> None:
        super().__init__()
        self.first = Slim(nn.Conv2d(channels, channels, 3, padding=1), widths, (slim, slim))
        self.second = Slim(nn.Conv2d(channels, channels, 3, padding=1), widths, (slim, slim))
        nn.init.zeros_(self.second.conv.weight)

    def forward(self, x: torch.Tensor, width: int) -> torch.Tensor:
        return F.relu(x + self.second(F.relu(self.first(x, width)), width))


class TensorEncoder(nn.Module):
    """The network's own tensors at the cut, [N, C_i, h_i, w_i] each, to latents [N, C, h, w]."""

    def __init__(self, shapes: Sequence[Shape], sizes: Sizes) -> None:
        super().__init__()
        (hidden, blocks), widths = sizes.encoder, sizes.widths
        ratios = [Ratio.between(shape, sizes.grid) for shape in shapes]
        pairs = list(zip(ratios, shapes, strict=True))
        self.linear = nn.ModuleList(ratio.into(shape[0], sizes.latents) for ratio, shape in pairs)
        self.stems = nn.ModuleList(Slim(ratio.into(shape[0], hidden), widths, (False, True)) for ratio, shape in pairs)
        self.blocks = nn.ModuleList(Block(hidden, widths, True) for _ in range(blocks))
        self.last = Slim(nn.Conv2d(hidden, sizes.latents, 1), widths, (True, False))
        nn.init.zeros_(self.last.conv.weight)

    def forward(self, tensors: Sequence[torch.Tensor], width: int) -> torch.Tensor:
        x = F.relu(_sum([stem(tensor, width) for stem, tensor in zip(self.stems, tensors, strict=True)]))
        for block in self.blocks:
            x = block(x, width)
        return self.last(x, width) + _sum([part(tensor) for part, tensor in zip(self.linear, tensors, strict=True)])


class PictureEncoder(nn.Module):
    """Pictures [N, 3, H, W] to latents [N, C, h, w], by the kit's slimmable encoder."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int], sizes: Sizes) -> None:
        super().__init__()
        self.encoder = Encoder(channels, strides, sizes.widths)
        self.last = Slim(nn.Conv2d(channels[-1], sizes.latents, 1), sizes.widths, (True, False))

    def forward(self, tensors: Sequence[torch.Tensor], width: int) -> torch.Tensor:
        return self.last(self.encoder(tensors[0], width), width)


class Adapter(nn.Module):
    """Dequantised latents [N, C, h, w] to the tensors at the cut."""

    def __init__(self, shapes: Sequence[Shape], sizes: Sizes) -> None:
        super().__init__()
        hidden, blocks = sizes.adapter
        one = [100]
        ratios = [Ratio.between(shape, sizes.grid) for shape in shapes]
        pairs = list(zip(ratios, shapes, strict=True))
        self.linear = nn.ModuleList(ratio.out_of(sizes.latents, shape[0]) for ratio, shape in pairs)
        self.first = Slim(nn.Conv2d(sizes.latents, hidden, 3, padding=1), one, (False, False))
        self.blocks = nn.ModuleList(Block(hidden, one, False) for _ in range(blocks))
        self.ends = nn.ModuleList(ratio.out_of(hidden, shape[0]) for ratio, shape in pairs)
        for end in self.ends:
            nn.init.zeros_(cast("torch.Tensor", end.weight))
            nn.init.zeros_(cast("torch.Tensor", end.bias))

    def forward(self, latents: torch.Tensor) -> list[torch.Tensor]:
        x = F.relu(self.first(latents, 100))
        for block in self.blocks:
            x = block(x, 100)
        return [linear(latents) + end(x) for linear, end in zip(self.linear, self.ends, strict=True)]


def _sum(tensors: list[torch.Tensor]) -> torch.Tensor:
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total


class Quantiser(nn.Module):
    """Learned scales [depths, C] of latents around zero, which all widths share."""

    def __init__(self, bits: Sequence[int], channels: int) -> None:
        super().__init__()
        self.bits = list(bits)
        self.log_scale = nn.Parameter(torch.zeros(len(bits), channels))

    def scale(self, bits: int) -> torch.Tensor:
        return self.log_scale[self.bits.index(bits)].exp()

    def forward(self, latents: torch.Tensor, depth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Dequantised latents and their symbols less the zero point, at each picture's `depth` [N], an index of `bits`;
        rounding passes gradients through."""
        scale = self.log_scale.exp()[depth][:, :, None, None]
        half = torch.tensor([2.0 ** (bits - 1) for bits in self.bits], device=latents.device)[depth][:, None, None, None]
        steps = latents / scale
        symbols = steps + (steps.round() - steps).detach()
        symbols = torch.minimum(torch.maximum(symbols, -half), half - 1)
        return symbols * scale, symbols


NEIGHBOURS = ((0, -1), (-1, 0), (-1, -1), (-1, 1))
ACTIVE = 4


class Rate(nn.Module):
    """Bits of symbols [N, C, h, w], estimated as the coder's contexts see them, in a form that gradients flow through.

    Each symbol has a logistic distribution. Its mean is a linear prediction from the four places coded before and the
    channels before; its width depends on how large the symbols around are, which is what the coder's activity measures.
    """

    def __init__(self, depths: int, channels: int) -> None:
        super().__init__()
        self.around = nn.Parameter(torch.zeros(channels, len(NEIGHBOURS)))
        self.before = nn.Parameter(torch.zeros(channels, channels))
        self.base = nn.Parameter(torch.zeros(depths, channels))
        self.slope = nn.Parameter(torch.full((channels,), 0.3))
        self.register_buffer("earlier", torch.ones(channels, channels).tril(-1))
        window = torch.ones(channels, channels).tril(-1).triu(-ACTIVE)
        self.register_buffer("window", window)

    earlier: torch.Tensor
    window: torch.Tensor

    def forward(self, symbols: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        """Bits of each symbol."""
        left, above, above_left, above_right = (_shifted(symbols, *offset) for offset in NEIGHBOURS)
        mean = torch.einsum("ck,nkyx->ncyx", self.before * self.earlier, symbols)
        for place, values in enumerate((left, above, above_left, above_right)):
            mean = mean + self.around[:, place, None, None] * values
        activity = left.abs() + above.abs() + above_right.abs() + torch.einsum("ck,nkyx->ncyx", self.window, symbols.abs())
        spread = self.base[depth][:, :, None, None] + self.slope[:, None, None] * torch.log1p(activity)
        far, steep = (symbols - mean).abs(), torch.exp(-spread.clamp(-3, 6))
        # The logistic distribution's mass within half a step of the symbol; symmetric, so that it is taken below zero.
        mass = torch.sigmoid((0.5 - far) * steep) - torch.sigmoid((-0.5 - far) * steep)
        return -torch.log2(mass.clamp(min=1e-6))


def _shifted(planes: torch.Tensor, down: int, right: int) -> torch.Tensor:
    """The planes as seen `down` and `right` of each place, 0 outside."""
    height, width = planes.shape[-2:]
    padded = F.pad(planes, (1, 1, 1, 1))
    return padded[..., 1 + down : 1 + down + height, 1 + right : 1 + right + width]


class Split(nn.Module):
    """Encoder, quantiser and adapter, with the rates of what is sent."""

    def __init__(
        self, encoder: TensorEncoder | PictureEncoder, shapes: Sequence[Shape], sizes: Sizes, bits: Sequence[int]
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.quantiser = Quantiser(bits, sizes.latents)
        self.rate = Rate(len(bits), sizes.latents)
        self.adapter = Adapter(shapes, sizes)

    def forward(
        self, tensors: Sequence[torch.Tensor], width: int, channels: torch.Tensor, depth: torch.Tensor
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The tensors at the cut as the adapter makes them, and bits [N] of each picture, when of each the first
        `channels` [N] are sent at `depth` [N]."""
        latents = self.encoder(tensors, width).float()
        values, symbols = self.quantiser(latents, depth)
        sent = torch.arange(latents.shape[1], device=latents.device)[None, :] < channels[:, None]
        with torch.autocast(latents.device.type, enabled=False):
            bits = (self.rate(symbols, depth) * sent[:, :, None, None]).sum((1, 2, 3))
        return self.adapter(values * sent[:, :, None, None]), bits
