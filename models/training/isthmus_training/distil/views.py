"""Pictures without labels: found, decoded, fitted to the network's input, and seen in random views."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from ..data import preprocess

ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
FITS = ("crop", "letterbox", "stretch")


class Input(NamedTuple):
    """How a picture becomes the network's input, as the manifest's `[input]` says it."""

    width: int
    height: int
    mean: list[float]
    std: list[float]
    fit: str = "crop"
    channels: str = "rgb"
    fill: tuple[int, int, int] = (114, 114, 114)

    def manifest(self) -> dict[str, object]:
        entry = self._asdict() | {"fill": list(self.fill)}
        return entry if self.fit == "letterbox" else {key: value for key, value in entry.items() if key != "fill"}

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """u8 RGB [n, H, W, 3] to f32 [n, 3, H, W]."""
        pixels = pixels[..., ::-1] if self.channels == "bgr" else pixels
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        return np.ascontiguousarray(((pixels.astype(np.float32) / np.float32(255) - mean) / std).transpose(0, 3, 1, 2))

    def fitted(self, picture: Image.Image) -> np.ndarray:
        """The picture at the input's size, u8 [H, W, 3]."""
        return fitted(picture, self, (self.width, self.height))


def fitted(picture: Image.Image, how: Input, size: tuple[int, int]) -> np.ndarray:
    """The picture at `size` (width, height) by the input's fit, u8 [H, W, 3]."""
    width, height = size
    if how.fit == "letterbox":
        ratio = min(width / picture.width, height / picture.height)
        inner = (max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio)))
        small = picture if picture.size == inner else picture.resize(inner, Image.Resampling.BILINEAR)
        whole = Image.new("RGB", size, how.fill)
        whole.paste(small, ((width - inner[0]) // 2, (height - inner[1]) // 2))
        return np.asarray(whole)
    if how.fit == "crop":
        return preprocess(picture, size)
    return np.asarray(picture.resize(size, Image.Resampling.BILINEAR))


def open_picture(path: Path) -> Image.Image:
    with Image.open(path) as opened:
        # Decodes no larger than needed, where the format can.
        opened.draft("RGB", (1024, 1024))
        return ImageOps.exif_transpose(opened).convert("RGB")


class Pictures:
    """The pictures of some folders, each of which is drawn from equally often. A seeded part of each is held out."""

    def __init__(self, folders: Sequence[Path], held_out: float, seed: int) -> None:
        self.learnt: list[list[Path]] = []
        self.held_out: list[Path] = []
        for folder in folders:
            files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
            if not files:
                raise ValueError(f"no pictures in {folder}")
            order = np.random.default_rng(seed).permutation(len(files))
            count = min(len(files) - 1, max(1, round(held_out * len(files)))) if held_out and len(files) > 1 else 0
            self.held_out += [files[n] for n in sorted(order[:count])]
            self.learnt.append([files[n] for n in sorted(order[count:])])

    def __len__(self) -> int:
        return sum(map(len, self.learnt))

    def draw(self, rng: np.random.Generator) -> Image.Image:
        """A picture to learn from; one that does not decode is passed over."""
        for _ in range(100):
            files = self.learnt[rng.integers(len(self.learnt))]
            try:
                return open_picture(files[rng.integers(len(files))])
            except OSError:
                continue
        raise ValueError("of a hundred pictures none could be decoded")


def random_view(picture: Image.Image, how: Input, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A view of `size` (width, height): the fitted picture, somewhat larger or smaller and perhaps mirrored, of which a
    random part is cut out. u8 [H, W, 3]."""
    scale = float(np.exp(rng.uniform(np.log(0.7), np.log(1.4))))
    whole = (max(size[0], round(how.width * scale)), max(size[1], round(how.height * scale)))
    pixels = fitted(picture, how, whole)
    left, top = (int(rng.integers(whole[n] - size[n] + 1)) for n in (0, 1))
    pixels = pixels[top : top + size[1], left : left + size[0]]
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels
