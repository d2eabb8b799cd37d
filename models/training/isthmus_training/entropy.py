"""Frequency tables and a reference range coder, written from the bundle's specification in plain integers.

The interval is kept in exact arithmetic, as a whole number of arbitrary size: slow, and with no carry to get wrong.
"""

from __future__ import annotations

from typing import Sequence

import numpy as np

TOTAL_BITS = 16
TOTAL = 1 << TOTAL_BITS
STATE_BITS = 56


def table(counts: np.ndarray) -> np.ndarray:
    """Counts [C, S] to frequencies u16 [C, S]: each at least 1, each channel's sum exactly 65,536.

    One is set aside for every symbol, the rest is divided in proportion to the counts, and what rounding down leaves
    goes to the largest remainders, the lower symbol first among equals. A channel without counts is uniform.
    """
    rows = []
    for row in np.asarray(counts, np.int64):
        row = row if row.sum() else np.ones_like(row)
        shares = [int(count) * (TOTAL - len(row)) for count in row]
        whole = int(row.sum())
        frequencies = [1 + share // whole for share in shares]
        by_remainder = sorted(range(len(row)), key=lambda s: (-(shares[s] % whole), s))
        for symbol in by_remainder[: TOTAL - sum(frequencies)]:
            frequencies[symbol] += 1
        rows.append(frequencies)
    return np.array(rows, "<u2")


def bits(frequencies: np.ndarray) -> np.ndarray:
    """The cost in bits of every symbol: f64, of the table's shape."""
    return TOTAL_BITS - np.log2(frequencies.astype(np.float64))


def encode(layers: Sequence[np.ndarray], tables: np.ndarray) -> tuple[bytes, list[int]]:
    """Codes layers of symbols [c_i, h, w] with frequencies [C, S]. Gives the stream and each layer's length in bytes."""
    cumulative = _cumulative(tables)
    low, width, shift = 0, (1 << STATE_BITS) - 1, 0  # the interval, in units of 2^−(56 + shift)
    intervals, channel = [], 0
    for layer in layers:
        for plane in layer:
            starts = cumulative[channel]
            for symbol in plane.ravel().tolist():
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
    return stream, [end - begin for begin, end in zip(ends, ends[1:])]


def decode(stream: bytes, shapes: Sequence[tuple[int, int, int]], tables: np.ndarray) -> list[np.ndarray]:
    """The inverse of `encode`, for layers of the given shapes [c_i, h, w]; zeros follow the stream's end."""
    cumulative = _cumulative(tables)
    taken = STATE_BITS // 8
    offset = int.from_bytes(stream[:taken].ljust(taken, b"\0"), "big")  # of the code above the interval's low end
    width = (1 << STATE_BITS) - 1
    layers, channel = [], 0
    for shape in shapes:
        layer = np.empty(shape, np.uint8)
        for plane in layer.reshape(shape[0], -1):
            starts = cumulative[channel]
            for place in range(len(plane)):
                step = width >> TOTAL_BITS
                target = min(offset // step, TOTAL - 1)
                symbol = int(np.searchsorted(starts, target, "right")) - 1
                begin, end = starts[symbol], starts[symbol + 1]
                offset -= step * begin
                width = step * (end - begin) if end < TOTAL else width - step * begin
                while width < 1 << (STATE_BITS - 8):
                    following = stream[taken] if taken < len(stream) else 0
                    offset, width, taken = offset << 8 | following, width << 8, taken + 1
                plane[place] = symbol
            channel += 1
        layers.append(layer)
    return layers


def _cumulative(tables: np.ndarray) -> list[list[int]]:
    return [[0, *np.cumsum(row, dtype=np.int64).tolist()] for row in tables]


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
