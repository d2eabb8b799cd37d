"""Pictures in folders by class: finding, decoding, preprocessing, random training views."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn import functional as F

from .config import Normalisation

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


@dataclasses.dataclass(frozen=True)
class Folder:
    """Picture files and their labels, before decoding. `labels` index into `classes`.

    `objects` [n, 4] is where the labelled thing is (left, top, right, bottom in pixels of the file), if an
    `annotations.json` beside the classes' folders says so.
    """

    classes: list[str]
    paths: list[Path]
    labels: list[int]
    objects: np.ndarray | None = None


@dataclasses.dataclass
class Pictures:
    """Decoded pictures. `pixels` [n, H, W, 3] u8, `labels` [n] i64, `bad` names what did not decode; `objects` [n, 4]
    is where the labelled thing is (left, top, right, bottom in 0..=1 of the picture), where that is known.

    In a GPU's memory `pixels` are a tensor, and views of them are made there."""

    classes: list[str]
    pixels: np.ndarray | torch.Tensor
    labels: torch.Tensor
    bad: list[str]
    objects: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def on(self, device: torch.device) -> Pictures:
        """The same where a network trains on them."""
        if device.type == "cpu":
            return self
        return dataclasses.replace(self, pixels=torch.as_tensor(self.pixels, device=device), labels=self.labels.to(device))


class Sets(NamedTuple):
    """What is learnt from, and what validates."""

    train: Pictures
    val: Pictures

    def on(self, device: torch.device) -> Sets:
        """The same where a network trains on them."""
        return Sets(self.train.on(device), self.val.on(device))


def scan(root: Path, holdout: float, seed: int) -> tuple[Folder, Folder]:
    """Finds training and validation pictures.

    `root/train/CLASS/*` and `root/val/CLASS/*` are taken as they are. A plain `root/CLASS/*` is divided:
    `holdout` of each class, drawn with `seed`, validates.
    """
    annotated = root
    if (root / "train").is_dir() and (root / "val").is_dir():
        annotated = root / "train"
        train, val = _by_class(root / "train"), _by_class(root / "val")
        if set(val) - set(train):
            raise ValueError(f"{root}: classes in val but not in train: {sorted(set(val) - set(train))}")
    else:
        train, val = {}, {}
        for name, paths in _by_class(root).items():
            paths = random.Random(f"{seed}/{name}").sample(paths, len(paths))
            cut = max(1, round(len(paths) * holdout))
            val[name], train[name] = sorted(paths[:cut]), sorted(paths[cut:])
    classes = sorted(train)
    if len(classes) < 2:
        raise ValueError(f"{root}: needs at least two folders of pictures, found {classes}")
    train_folder = _folder(classes, train)
    return dataclasses.replace(train_folder, objects=_objects(annotated, train_folder.paths)), _folder(classes, val)


def load(folder: Folder, size: tuple[int, int], threads: int) -> Pictures:
    """Decodes every picture to `size` (width, height), centre-cropped. Undecodable files are skipped and named."""

    def decode(path: Path) -> tuple[np.ndarray, tuple[int, int]] | None:
        try:
            with Image.open(path) as picture:
                return preprocess(picture, size), picture.size
        except (OSError, ValueError, SyntaxError):
            return None

    with ThreadPoolExecutor(threads) as pool:
        decoded = list(pool.map(decode, folder.paths))
    good = [(at, *picture) for at, picture in enumerate(decoded) if picture is not None]
    bad = [str(path) for path, picture in zip(folder.paths, decoded, strict=True) if picture is None]
    if not good:
        raise ValueError("none of the pictures could be decoded")
    places = [at for at, _, _ in good]
    pixels = np.stack([picture for _, picture, _ in good])
    objects = None
    if folder.objects is not None:
        crops = np.array([centre_crop(width, height, size) for _, _, (width, height) in good], np.float32)
        corners, sides = np.tile(crops[:, :2], 2), np.tile(crops[:, 2:] - crops[:, :2], 2)
        objects = ((folder.objects[places] - corners) / sides).clip(0, 1)
    return Pictures(folder.classes, pixels, torch.tensor([folder.labels[at] for at in places]), bad, objects)


def preprocess(picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Upright RGB, centre-cropped to the aspect ratio of `size` (width, height), resized. Gives u8 [H, W, 3].

    This is the bundle's preprocessing up to the subtraction of the mean: Pillow's `BILINEAR` is antialiased.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("P", "LA", "PA"):
        picture = picture.convert("RGBA")
    # The bands of RGBA are kept as they are: alpha over black would need a multiply that no camera needs.
    picture = _over_black(picture) if picture.mode == "RGBA" else picture.convert("RGB")
    box = centre_crop(picture.width, picture.height, size)
    return np.asarray(picture.crop(box).resize(size, Image.Resampling.BILINEAR))


def centre_crop(picture_width: int, picture_height: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The largest centred box (left, top, right, bottom in pixels) with the aspect ratio of `size` (width, height)."""
    width, height = size
    box_width = min(picture_width, max(1, picture_height * width // height))
    box_height = min(picture_height, max(1, picture_width * height // width))
    left, top = (picture_width - box_width) // 2, (picture_height - box_height) // 2
    return left, top, left + box_width, top + box_height


def normalise(pixels: torch.Tensor, by: Normalisation) -> torch.Tensor:
    """u8 [n, H, W, 3] to f32 [n, 3, H, W], channels last in memory: `(v / 255 − mean) / std`."""
    mean, std = (torch.tensor(values, device=pixels.device) for values in by)
    scaled = (pixels.float() / 255 - mean) / std
    return scaled.permute(0, 3, 1, 2)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How a training view differs from its picture: crops keep at least `scale` of the area, half of the views are
    mirror images, `jitter` is of brightness, contrast and saturation, `mix` the fraction of batches under CutMix."""

    scale: float
    jitter: float
    mix: float
    mirror: bool


@dataclasses.dataclass
class Views:
    """A batch of random training views.

    `pictures` [n, 3, H, W] f32; `index` [n] of each picture; `boxes` [n, 4] the part of the picture that is seen
    (left, top, right, bottom in 0..=1), with left > right in a mirror image; CutMix (Yun et al., 2019): `kept`
    [H/32, W/32] is each cell's fraction that shows the view itself, the rest shows the one before it in the batch.
    """

    pictures: torch.Tensor
    index: torch.Tensor
    boxes: torch.Tensor
    kept: torch.Tensor

    def mix(self, targets: torch.Tensor) -> torch.Tensor:
        """Mixes `targets` [n, K] of whole views, or [n, K, H/32, W/32] of their cells, as the pictures were mixed."""
        kept = self.kept if targets.ndim == 4 else self.kept.mean()
        return targets * kept + targets.roll(1, 0) * (1 - kept)


def random_views(
    pictures: Pictures,
    index: Sequence[int] | np.ndarray,
    size: tuple[int, int],
    augmentation: Augmentation,
    normalisation: Normalisation,
    seed: int,
) -> Views:
    """Random resized crops, mirror images, colour jitter, CutMix. Everything random hangs from `seed`.

    Where it is known where the labelled thing is, every crop shows it, and crops of all magnifications come equally
    often: a thing that fills little of the picture is learnt from near and recognised from afar.
    """
    rng = np.random.default_rng(seed)
    chosen, (width, height) = np.asarray(index), size
    boxes = _crops(rng, augmentation.scale, len(chosen), None if pictures.objects is None else pictures.objects[chosen])
    mirrored = (rng.random(len(chosen)) < 0.5) & augmentation.mirror
    boxes[mirrored] = boxes[mirrored][:, [2, 1, 0, 3]]
    if isinstance(pictures.pixels, torch.Tensor):
        device = pictures.pixels.device
        places, corners = _sent(chosen, device), _sent(boxes, device)
        seen = resampled(pictures.pixels[places], corners, size)
    else:
        places, corners = torch.from_numpy(chosen), torch.from_numpy(boxes)
        seen = torch.from_numpy(
            np.stack([_view(pictures.pixels[at], box, size) for at, box in zip(chosen, boxes, strict=True)])
        )
    x = normalise(seen, normalisation)
    if augmentation.jitter:
        x = _jitter(x, augmentation.jitter, rng)
    kept = np.ones((height, width), np.float32)
    if augmentation.mix and rng.random() < augmentation.mix:
        side = np.sqrt(1 - rng.uniform())
        w, h = int(width * side), int(height * side)
        left, top = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
        kept[top : top + h, left : left + w] = 0
    shown = _sent(kept, x.device)
    if kept.min() == 0:
        x = torch.where(shown > 0, x, x.roll(1, 0))
    return Views(x.contiguous(memory_format=torch.channels_last), places, corners, F.avg_pool2d(shown[None], 32)[0])


def resampled(pixels: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """What Pillow's `BILINEAR` makes of the `boxes` [n, 4] (0..=1, left > right in a mirror image) of pictures
    [n, H, W, 3] u8, unrounded: f32 [n, h, w, 3], by two products of matrices a picture, which a GPU is made for."""
    rows = _triangles(boxes[:, 1], boxes[:, 3], pixels.shape[1], size[1])
    columns = _triangles(boxes[:, 0], boxes[:, 2], pixels.shape[2], size[0])
    exact = torch.float32 if pixels.device.type == "cpu" else torch.float16
    rows, columns = rows.to(exact)[:, None], columns.to(exact)[:, None]
    bands = pixels.permute(0, 3, 1, 2).to(exact)
    return (rows @ bands @ columns.mT).float().permute(0, 2, 3, 1)


def _triangles(begin: torch.Tensor, end: torch.Tensor, places: int, outputs: int) -> torch.Tensor:
    """The weight [n, outputs, places] of each place in each output between `begin` and `end` [n]: a triangle as wide as
    the step from one output to the next, and no narrower than that between places."""
    steps = (end - begin)[:, None, None] * (places / outputs)
    centres = begin[:, None, None] * places + steps * (torch.arange(outputs, device=begin.device)[:, None] + 0.5)
    distances = (torch.arange(places, device=begin.device) + 0.5 - centres).abs()
    weights = (1 - distances / steps.abs().clamp(min=1)).clamp(min=0)
    return weights / weights.sum(2, keepdim=True)


def _view(picture: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A part of a picture [H, W, 3] u8 (0..=1, left > right in a mirror image), resized to `size`."""
    left, top, right, bottom = map(float, box * np.array([picture.shape[1], picture.shape[0]] * 2, np.float32))
    sides = (min(left, right), top, max(left, right), bottom)
    view = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR, box=sides))
    return view[:, ::-1] if left > right else view


def _sent(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """On the device, without waiting for what it is doing."""
    tensor = torch.from_numpy(values)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def shuffled(count: int, batch: int, seed: int) -> list[np.ndarray]:
    """One epoch's order in whole batches; what is left over waits for another epoch's order."""
    order = np.random.default_rng(seed).permutation(count)
    batch = min(batch, count)
    return [order[i : i + batch] for i in range(0, count - batch + 1, batch)]


def _crops(rng: np.random.Generator, least: float, count: int, things: np.ndarray | None) -> np.ndarray:
    """Boxes [count, 4] of at least the fraction `least` of a picture's area (left, top, right, bottom in 0..=1), each of
    which shows its thing of `things` [count, 4]."""
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), count))
    area = rng.uniform(least, 1.0, count) if things is None else np.exp(rng.uniform(np.log(least), 0.0, count))
    sides = np.minimum(1.0, np.sqrt(area[:, None] * np.stack([ratio, 1 / ratio], 1)))
    if things is None:
        corners = rng.random((count, 2)) * (1 - sides)
    else:
        near, far = things[:, :2], things[:, 2:]
        sides = np.minimum(1.0, np.maximum(sides, 1.1 * (far - near)))
        low, high = np.maximum(0.0, far - sides), np.maximum(0.0, np.minimum(near, 1 - sides))
        corners = low + rng.random((count, 2)) * (high - low)
    return np.concatenate([corners, np.minimum(1.0, corners + sides)], 1).astype(np.float32)


def _jitter(x: torch.Tensor, strength: float, rng: np.random.Generator) -> torch.Tensor:
    """Brightness, contrast and saturation of normalised pictures, each by a factor in `1 ± strength`."""

    def factor() -> torch.Tensor:
        return _sent(rng.uniform(1 - strength, 1 + strength, (len(x), 1, 1, 1)).astype(np.float32), x.device)

    brightness, contrast, saturation = factor() - 1, factor(), factor()
    centre, grey = x.mean((1, 2, 3), keepdim=True), x.mean(1, keepdim=True)
    x = grey + (x - grey) * saturation
    return centre + (x - centre) * contrast + brightness


def _by_class(root: Path) -> dict[str, list[Path]]:
    folders = (path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith("."))
    found = {f.name: sorted(p for p in f.iterdir() if p.suffix.lower() in SUFFIXES) for f in folders}
    return {name: paths for name, paths in found.items() if paths}


def _folder(classes: list[str], found: dict[str, list[Path]]) -> Folder:
    pairs = [(path, label) for label, name in enumerate(classes) for path in found.get(name, [])]
    return Folder(classes, [path for path, _ in pairs], [label for _, label in pairs])


def _objects(root: Path, paths: list[Path]) -> np.ndarray | None:
    """Boxes [n, 4] of the pictures `paths` from COCO-style annotations, one a picture; `None` without them."""
    file = root / "annotations.json"
    if not file.is_file():
        return None
    content = json.loads(file.read_text("utf-8"))
    names = {image["id"]: image["file_name"] for image in content["images"]}
    found = {names[item["image_id"]]: item["bbox"] for item in content["annotations"]}
    try:
        boxes = np.array([found[path.relative_to(root).as_posix()] for path in paths], np.float32)
    except KeyError as missing:
        raise ValueError(f"{file}: no box for {missing}") from None
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


def _over_black(picture: Image.Image) -> Image.Image:
    black = Image.new("RGBA", picture.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, picture).convert("RGB")
