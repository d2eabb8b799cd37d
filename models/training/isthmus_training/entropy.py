"""Frequency tables, contexts and a reference range coder, written from the bundle's specification in plain integers.

The interval is kept in exact arithmetic, as a whole number of arbitrary size: slow, and with no carry to get wrong.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

TOTAL_BITS = 16
TOTAL = 1 << TOTAL_BITS
STATE_BITS = 56

PREDICTION_BINS = 8
ACTIVITY_BINS = 3
CONTEXTS = PREDICTION_BINS * ACTIVITY_BINS
NEIGHBOURS = ((0, -1), (-1, 0), (-1, -1), (-1, 1))
"""Left, above, above left, above right: rows and columns away."""
ACTIVE_CHANNELS = 4


@dataclasses.dataclass(frozen=True)
class Contexts:
    """How a channel's symbols choose among its tables, from deviations `d = q − zero` in places coded before.

    The prediction `Σ w · d` runs over the four neighbours and the same place in each channel before; the activity is
    the sum of |d| left, above, above right and in the four channels before. Both are cut into bins.
    """

    neighbours: np.ndarray
    """Weights i8 [C, 4]."""
    before: np.ndarray
    """Weights i8 [C, C]; channel c has c of them."""
    prediction: np.ndarray
    """Thresholds i32 [C, 7], not decreasing."""
    activity: np.ndarray
    """Thresholds i32 [C, 2], not decreasing."""

    @staticmethod
    def fit(deviations: np.ndarray) -> Contexts:
        """Weights by least squares and thresholds at quantiles of the places, of deviations [n, C, h, w]."""
        d = deviations.astype(np.int64)
        around = [_shifted(d, *offset) for offset in NEIGHBOURS]
        count = d.shape[1]
        neighbours, before = np.zeros((count, 4), np.int8), np.zeros((count, count), np.int8)
        for c in range(count):
            known = np.stack([n[:, c].ravel() for n in around] + [d[:, k].ravel() for k in range(c)], 1).astype(np.float64)
            square = known.T @ known + np.eye(known.shape[1])
            weights = np.linalg.solve(square, known.T @ d[:, c].ravel())
            weights = np.rint(weights * (127 / max(1e-9, np.abs(weights).max()))).astype(np.int8)
            neighbours[c], before[c, :c] = weights[:4], weights[4:]
        contexts = Contexts(neighbours, before, np.zeros((count, 7), np.int32), np.zeros((count, 2), np.int32))
        for thresholds, values in zip((contexts.prediction, contexts.activity), contexts.sums(d), strict=True):
            bins = thresholds.shape[1] + 1
            for c in range(count):
                thresholds[c] = np.quantile(values[:, c], np.arange(1, bins) / bins, method="higher")
        return contexts

    def sums(self, deviations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Prediction and activity of every place [n, c, h, w], of the first c channels' deviations."""
        d, count = deviations.astype(np.int64), deviations.shape[1]
        left, above, above_left, above_right = (_shifted(d, *offset) for offset in NEIGHBOURS)
        weights = self.neighbours[:count, :, None, None].astype(np.int64)
        prediction = sum(w * n for w, n in zip(weights.swapaxes(0, 1), (left, above, above_left, above_right), strict=True))
        prediction = prediction + np.einsum("ck,nkyx->ncyx", self.before[:count, :count].astype(np.int64), d)
        activity = np.abs(left) + np.abs(above) + np.abs(above_right)
        for distance in range(1, min(ACTIVE_CHANNELS, count - 1) + 1):
            activity[:, distance:] += np.abs(d[:, :-distance])
        return prediction, activity

    def of(self, deviations: np.ndarray) -> np.ndarray:
        """The context of every place [n, c, h, w], of the first c channels' deviations."""

        def bins(values: np.ndarray, least: np.ndarray) -> np.ndarray:
            return (values[..., None] >= least[: values.shape[1], None, None, :]).sum(-1)

        prediction, activity = self.sums(deviations)
        return bins(prediction, self.prediction) * ACTIVITY_BINS + bins(activity, self.activity)

    def at(self, deviations: np.ndarray, channel: int, y: int, x: int) -> int:
        """The context of one place, of deviations [C, h, w] that are known before it in coding order."""
        _, height, width = deviations.shape

        def known(c: int, row: int, column: int) -> int:
            return int(deviations[c, row, column]) if 0 <= row < height and 0 <= column < width else 0

        around = [known(channel, y + down, x + right) for down, right in NEIGHBOURS]
        earlier = [known(c, y, x) for c in range(channel)]
        prediction = sum(int(w) * d for w, d in zip(self.neighbours[channel], around, strict=True))
        prediction += sum(int(w) * d for w, d in zip(self.before[channel, :channel], earlier, strict=True))
        activity = sum(abs(around[n]) for n in (0, 1, 3)) + sum(map(abs, earlier[-ACTIVE_CHANNELS:]))
        by_prediction = sum(prediction >= least for least in self.prediction[channel])
        return by_prediction * ACTIVITY_BINS + sum(activity >= least for least in self.activity[channel])


@dataclasses.dataclass(frozen=True)
class Tables:
    """What a width and bit depth codes symbols with: frequencies u16 [C, K, S], with K = 1, or K = 24 and `contexts`."""

    frequencies: np.ndarray
    zero: np.ndarray
    """Zero points [C]."""
    contexts: Contexts | None = None

    @staticmethod
    def count(symbols: np.ndarray, zero: np.ndarray, size: int) -> Tables:
        """One table a channel, of symbols [n, C, h, w] below `size`."""
        counts = [np.bincount(channel.ravel(), minlength=size) for channel in symbols.swapaxes(0, 1)]
        return Tables(table(np.array(counts))[:, None], zero)

    @staticmethod
    def count_contexts(symbols: np.ndarray, zero: np.ndarray, size: int) -> Tables:
        """A table for each context. A context that is seldom met leans on its channel: it counts as if it had been
        met sixteen times more, with the channel's relative frequencies."""
        deviations = symbols.astype(np.int64) - _column(zero)
        contexts = Contexts.fit(deviations)
        chosen, frequencies = contexts.of(deviations), []
        for c in range(symbols.shape[1]):
            met = chosen[:, c].ravel() * size + symbols[:, c].ravel()
            counts = np.bincount(met, minlength=CONTEXTS * size).reshape(CONTEXTS, size)
            frequencies.append(table(counts * counts.sum() + 16 * counts.sum(0)))
        return Tables(np.array(frequencies), zero, contexts)

    def cost(self, symbols: np.ndarray) -> np.ndarray:
        """Bits [n, c, h, w] of the symbols of the first c channels."""
        chosen = np.zeros((), np.int64)
        if self.contexts:
            chosen = self.contexts.of(symbols.astype(np.int64) - _column(self.zero[: symbols.shape[1]]))
        channel = np.arange(symbols.shape[1])[:, None, None]
        return bits(self.frequencies)[channel, chosen, symbols]

    def to_bytes(self) -> bytes:
        """The file of a bundle."""
        if self.contexts is None:
            return self.frequencies.astype("<u2").tobytes()
        parts = []
        for c, frequencies in enumerate(self.frequencies):
            parts += [self.contexts.neighbours[c].tobytes(), self.contexts.before[c, :c].tobytes()]
            parts += [values[c].astype("<i4").tobytes() for values in (self.contexts.prediction, self.contexts.activity)]
            parts.append(frequencies.astype("<u2").tobytes())
        return b"".join(parts)

    @staticmethod
    def from_bytes(data: bytes, zero: np.ndarray, size: int) -> Tables:
        """Of a file with one table a channel."""
        return Tables(np.frombuffer(data, "<u2").reshape(len(zero), 1, size), zero)

    @staticmethod
    def contexts_from_bytes(data: bytes, zero: np.ndarray, size: int) -> Tables:
        """Of a file with a table for each context."""
        count, at = len(zero), 0
        contexts = Contexts(
            np.zeros((count, 4), np.int8),
            np.zeros((count, count), np.int8),
            np.zeros((count, PREDICTION_BINS - 1), np.int32),
            np.zeros((count, ACTIVITY_BINS - 1), np.int32),
        )
        frequencies = np.zeros((count, CONTEXTS, size), np.uint16)

        def take(into: np.ndarray, kind: str) -> None:
            nonlocal at
            into[...] = np.frombuffer(data, kind, into.size, at).reshape(into.shape)
            at += into.size * np.dtype(kind).itemsize

        for c in range(count):
            take(contexts.neighbours[c], "<i1")
            take(contexts.before[c, :c], "<i1")
            take(contexts.prediction[c], "<i4")
            take(contexts.activity[c], "<i4")
            take(frequencies[c], "<u2")
        if at != len(data):
            raise ValueError(f"{len(data)} bytes of tables where {at} are needed")
        return Tables(frequencies, zero, contexts)


def table(counts: np.ndarray) -> np.ndarray:
    """Counts [K, S] to frequencies u16 [K, S]: each at least 1, each row's sum exactly 65,536.

    One is set aside for every symbol, the rest is divided in proportion to the counts, and what rounding down leaves
    goes to the largest remainders, the lower symbol first among equals. A row without counts is uniform.
    """
    rows = []
    for row in np.asarray(counts, np.int64):
        row = row if row.sum() else np.ones_like(row)
        parts = [int(count) * (TOTAL - len(row)) for count in row]
        whole = int(row.sum())
        frequencies = [1 + part // whole for part in parts]
        by_remainder = sorted(range(len(row)), key=lambda s: (-(parts[s] % whole), s))
        for symbol in by_remainder[: TOTAL - sum(frequencies)]:
            frequencies[symbol] += 1
        rows.append(frequencies)
    return np.array(rows, "<u2")


def bits(frequencies: np.ndarray) -> np.ndarray:
    """The cost in bits of every symbol: f64, of the table's shape."""
    return TOTAL_BITS - np.log2(frequencies.astype(np.float64))


def encode(layers: Sequence[np.ndarray], tables: Tables) -> tuple[bytes, list[int]]:
    """Codes layers of symbols [c_i, h, w]. Gives the stream and each layer's length in bytes."""
    cumulative = _cumulative(tables)
    symbols = np.concatenate(layers).astype(np.int64)
    deviations = symbols - _column(tables.zero[: len(symbols)])
    chosen = tables.contexts.of(deviations[None])[0] if tables.contexts else np.zeros_like(symbols)
    low, width, shift = 0, (1 << STATE_BITS) - 1, 0  # the interval, in units of 2^−(56 + shift)
    intervals, channel = [], 0
    for layer in layers:
        for _ in layer:
            for symbol, context in zip(symbols[channel].ravel().tolist(), chosen[channel].ravel().tolist(), strict=True):
                starts = cumulative[channel][context]
                step = width >> TOTAL_BITS
                begin, end = starts[symbol], starts[symbol + 1]
                low += step * begin
                width = step * (end - begin) if end < TOTAL else width - step * begin
                while width < 1 << (STATE_BITS - 8):
                    low, width, shift = low << 8, width << 8, shift + 8
            channel += 1
        intervals.append((low, STATE_BITS + shift))
    stream = _shortest(low, width, STATE_BITS + shift)
    ends = [0, *(_enough(stream, low, unit) for low, unit in intervals)]
    return stream, [end - begin for begin, end in itertools.pairwise(ends)]


def decode(stream: bytes, shapes: Sequence[tuple[int, int, int]], tables: Tables) -> list[np.ndarray]:
    """The inverse of `encode`, for layers of the given shapes [c_i, h, w]; zeros follow the stream's end."""
    cumulative = _cumulative(tables)
    taken = STATE_BITS // 8
    offset = int.from_bytes(stream[:taken].ljust(taken, b"\0"), "big")  # of the code above the interval's low end
    width = (1 << STATE_BITS) - 1
    _, rows, columns = shapes[0]
    symbols = np.zeros((sum(shape[0] for shape in shapes), rows, columns), np.uint8)
    deviations = np.zeros(symbols.shape, np.int64)
    for channel, y, x in np.ndindex(*symbols.shape):
        starts = cumulative[channel][tables.contexts.at(deviations, channel, y, x) if tables.contexts else 0]
        step = width >> TOTAL_BITS
        target = min(offset // step, TOTAL - 1)
        symbol = int(np.searchsorted(starts, target, "right")) - 1
        begin, end = starts[symbol], starts[symbol + 1]
        offset -= step * begin
        width = step * (end - begin) if end < TOTAL else width - step * begin
        while width < 1 << (STATE_BITS - 8):
            following = stream[taken] if taken < len(stream) else 0
            offset, width, taken = offset << 8 | following, width << 8, taken + 1
        symbols[channel, y, x] = symbol
        deviations[channel, y, x] = symbol - int(tables.zero[channel])
    return np.split(symbols, np.cumsum([shape[0] for shape in shapes])[:-1])


def _cumulative(tables: Tables) -> list[list[list[int]]]:
    return [[[0, *np.cumsum(row, dtype=np.int64).tolist()] for row in channel] for channel in tables.frequencies]


def _shifted(planes: np.ndarray, down: int, right: int) -> np.ndarray:
    """The planes [..., h, w] as seen `down` and `right` of each place, 0 outside."""
    height, width = planes.shape[-2:]
    padded = np.pad(planes, [(0, 0)] * (planes.ndim - 2) + [(1, 1), (1, 1)])
    return padded[..., 1 + down : 1 + down + height, 1 + right : 1 + right + width]


def _column(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.int64)[:, None, None]


def _shortest(low: int, width: int, unit: int) -> bytes:
    """The shortest byte string that, followed by zeros, lies in [low, low + width), in units of 2^−unit."""
    for size in range(unit // 8 + 1):
        spare = unit - 8 * size
        value = -(-low >> spare)
        if value << spare < low + width and value < 1 << (8 * size):
            return value.to_bytes(size, "big")
    raise AssertionError("an interval is at least one unit wide")


def _enough(stream: bytes, low: int, unit: int) -> int:
    """The fewest first bytes of `stream` that, followed by zeros, are not below `low`, in units of 2^−unit.

    Intervals are nested, so that the whole stream lies in each, and no part of it lies above.
    """
    for size in range(len(stream) + 1):
        if int.from_bytes(stream[:size], "big") << unit >= low << 8 * size:
            return size
    raise AssertionError("the stream lies in every layer's interval")
