"""What a detector learns: annotated boxes, each given to the places that answer it best, and a teacher's answers in every
place."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional as F

from .network import BINS, STRIDES, Answers, boxes, expected


class Targets(NamedTuple):
    """What a batch of N views shows. `things` [N, G, 4] in the view, `classes` [N, G], -1 where there are fewer; `known`
    [N, n, K] says which classes the annotations cover in each place.

    Of a teacher, in every place: `scores` [N, n, K], all its classes `others` [N, n, 80], nothing where no picture is, and
    boxes `frames` [N, n, 4]; its features `hints` [N, m, C] at the hinted strides, `hinted` [N, m] where a picture is.
    """

    things: torch.Tensor
    classes: torch.Tensor
    known: torch.Tensor
    scores: torch.Tensor
    others: torch.Tensor
    frames: torch.Tensor
    hints: torch.Tensor
    hinted: torch.Tensor


class Places(NamedTuple):
    """The middles [n, 2] of all places in pixels of the view, and their strides [n]."""

    centres: torch.Tensor
    strides: torch.Tensor


def assigned(
    scores: torch.Tensor, found: torch.Tensor, targets: Targets, places: Places, most: int = 10
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gives each thing the `most` places around whose middle it lies that answer it best: by their score for its class and
    the overlap of their box (task-aligned assignment, Feng et al., 2021).

    `scores` [N, n, K] are probabilities, `found` [N, n, 4] boxes. Gives each place's thing [N, n], and how well it should score
    [N, n], 0 where it has none.
    """
    things, classes = targets.things, targets.classes
    x, y = places.centres.T
    inside = (x > things[..., None, 0]) & (x < things[..., None, 2]) & (y > things[..., None, 1]) & (y < things[..., None, 3])
    inside &= (classes >= 0)[..., None]
    # A thing too small to hold the middle of any place is given the nearest one of the finest grid.
    lonely = (classes >= 0) & ~inside.any(2)
    distance = (places.centres - ((things[..., :2] + things[..., 2:]) / 2)[..., None, :]).square().sum(-1)
    inside |= lonely[..., None] & F.one_hot(distance.argmin(2), len(places.strides)).bool()
    overlap = overlaps(things[:, :, None], found[:, None]).clamp(min=0) * inside
    of_class = scores.transpose(1, 2).gather(1, classes.clamp(min=0)[..., None].expand(-1, -1, scores.shape[1]))
    fit = (of_class.sqrt() * overlap.pow(6) + 1e-9) * inside
    best = fit.topk(min(most, fit.shape[2]), 2)
    chosen = torch.zeros_like(fit).scatter(2, best.indices, (best.values > 0).to(fit.dtype)).bool()
    # A place that several things want answers the one that its box overlaps most.
    wanted = torch.where(chosen, overlap + 1e-6, torch.zeros_like(overlap))
    value, thing = wanted.max(1)
    mine = chosen & F.one_hot(thing, things.shape[1]).transpose(1, 2).bool()
    fit = fit * mine
    scale = (overlap * mine).amax(2, keepdim=True) / fit.amax(2, keepdim=True).clamp(min=1e-12)
    worth = (fit * scale).amax(1)
    return thing, torch.where(value > 0, worth, torch.zeros_like(worth))


def overlaps(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Intersection over union of boxes [..., 4]."""
    return _overlap(a, b)[0]


def generalised(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """1 − generalised intersection over union (Rezatofighi et al., 2019)."""
    ratio, union = _overlap(a, b)
    low, high = torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])
    around = (high - low).clamp(min=0).prod(-1).clamp(min=1e-6)
    return 1 - ratio + (around - union) / around


def _overlap(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    common = (high - low).clamp(min=0).prod(-1)
    union = ((a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - common).clamp(min=1e-6)
    return common / union, union


def focal(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Quality focal loss: cross-entropy with a score between 0 and 1, by how far it is missed."""
    missed = (logits.detach().sigmoid() - wanted).abs()
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none") * missed.square()


def spread(distances: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Cross-entropy [n] of distributions [n, 4, bins] with distances [n, 4], each between two bins."""
    wanted = wanted.clamp(0, BINS - 1 - 1e-3)
    below = wanted.long()
    above = wanted - below
    likely = distances.log_softmax(-1)
    low, high = (likely.gather(-1, (below + more)[..., None])[..., 0] for more in (0, 1))
    return -(low * (1 - above) + high * above).mean(-1)


def reached(frames: torch.Tensor, centres: torch.Tensor, strides: torch.Tensor) -> torch.Tensor:
    """Boxes [n, 4] as distances in strides from `centres` [n, 2] to their sides: the inverse of `boxes`."""
    return torch.cat([centres - frames[:, :2], frames[:, 2:] - centres], 1) / strides[:, None]


def present(targets: Targets) -> torch.Tensor:
    """Of each class [N, K] whether one is there. Where the annotations do not say, the teacher's highest score does."""
    classes = targets.classes
    there = (F.one_hot(classes.clamp(min=0), targets.scores.shape[2]) * (classes >= 0)[..., None]).amax(1).float()
    return torch.where(targets.known.all(1), there, torch.maximum(there, targets.scores.amax(1)))


WHERE = 0.1
"""Weight of all places together beside the surest one's."""


def exit_loss(logits: torch.Tensor, targets: Targets, size: tuple[int, int]) -> torch.Tensor:
    """How wrong an exit is about views of this width and height that show `targets`: with logits [N, K] about whether a
    class is there; with [N, K, h, w] also about the places where it is."""
    if logits.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits, present(targets))
    whether = F.binary_cross_entropy_with_logits(logits.amax((2, 3)), present(targets))
    where = occupied(targets, size, (logits.shape[2], logits.shape[3]))
    error = F.binary_cross_entropy_with_logits(logits, where, reduction="none").sum((1, 2, 3)).mean()
    return whether + WHERE * error


def occupied(targets: Targets, size: tuple[int, int], grid: tuple[int, int]) -> torch.Tensor:
    """Of each class and place [N, K, h, w] whether the place is within the middle half of a box or holds its centre. Where
    the annotations do not say, the teacher's highest score there does."""
    things, (h, w) = targets.things, grid
    cell = torch.tensor([size[0] / w, size[1] / h], device=things.device)
    y, x = torch.meshgrid(torch.arange(h, device=things.device), torch.arange(w, device=things.device), indexing="ij")
    places = (torch.stack([x, y], -1) + 0.5) * cell
    middles, sides = (things[..., :2] + things[..., 2:]) / 2, things[..., 2:] - things[..., :2]
    reach = torch.maximum(sides / 4, cell / 2)
    within = ((places - middles[:, :, None, None]).abs() <= reach[:, :, None, None]).all(-1)
    kinds = F.one_hot(targets.classes.clamp(min=0), targets.scores.shape[2]) * (targets.classes >= 0)[..., None]
    there = (within[:, :, None] * kinds[..., None, None]).amax(1).float()

    def pooled(values: torch.Tensor) -> torch.Tensor:
        levels, at = [], 0
        for stride in STRIDES:
            rows, columns = -(-size[1] // stride), -(-size[0] // stride)
            level = values[:, at : at + rows * columns].transpose(1, 2).unflatten(2, (rows, columns))
            levels.append(F.adaptive_max_pool2d(level, grid))
            at += rows * columns
        return torch.stack(levels).amax(0)

    unknown = pooled((~targets.known).float()) > 0
    return torch.where(unknown, torch.maximum(there, pooled(targets.scores)), there)


class Learnt(NamedTuple):
    """The parts of a detector's loss."""

    score: torch.Tensor
    box: torch.Tensor
    bins: torch.Tensor


def annotated_loss(answers: Answers, targets: Targets, places: Places) -> Learnt:
    """Of the annotations, where there are any, over classes that they cover."""
    distances = expected(answers.distances)
    found = boxes(distances, places.centres, places.strides)
    with torch.no_grad():
        thing, worth = assigned(answers.scores.sigmoid(), found, targets, places)
        classes = targets.classes.gather(1, thing).clamp(min=0)
        wanted = F.one_hot(classes, answers.scores.shape[2]) * worth[..., None]
    total = worth.sum().clamp(min=1)
    score = (focal(answers.scores, wanted) * targets.known).sum() / total
    taken = worth > 0
    if not bool(taken.any()):
        return Learnt(score, found.sum() * 0, found.sum() * 0)
    frames = targets.things.gather(1, thing[..., None].expand(-1, -1, 4))[taken]
    weight = worth[taken]
    box = (generalised(found[taken], frames) * weight).sum() / total
    centres, strides = places.centres.expand(*taken.shape, 2)[taken], places.strides.expand(taken.shape)[taken]
    bins = (spread(answers.distances[taken], reached(frames, centres, strides)) * weight).sum() / total
    return Learnt(score, box, bins)


def taught_loss(answers: Answers, targets: Targets, places: Places, least: float = 0.1) -> Learnt:
    """Of the teacher's answers: scores everywhere, boxes where it scores at `least` this for anything."""
    score = focal(answers.scores, targets.scores).sum() / targets.scores.amax(2).sum().clamp(min=1)
    sure = targets.others.amax(2)
    taken = sure >= least
    found = boxes(
        expected(answers.distances[taken]),
        places.centres.expand(*taken.shape, 2)[taken],
        places.strides.expand(taken.shape)[taken],
    )
    weight, frames = sure[taken], targets.frames[taken]
    whole = weight.sum().clamp(min=1)
    box = (generalised(found, frames) * weight).sum() / whole
    centres, strides = places.centres.expand(*taken.shape, 2)[taken], places.strides.expand(taken.shape)[taken]
    bins = (spread(answers.distances[taken], reached(frames, centres, strides)) * weight).sum() / whole
    return Learnt(score, box, bins)
