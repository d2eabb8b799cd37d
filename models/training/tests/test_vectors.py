"""Coded features for the Rust codec's own tests, from the reference coder and the tables in `proto/src`.

`python models/training/tests/test_vectors.py` writes `proto/tests/vectors.json` anew. The bytes may never change:
bundles and devices in the field depend on them.
"""

from __future__ import annotations

import json
import random
from binascii import crc_hqx
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isthmus_training import entropy

FILE = Path(__file__).parents[3] / "proto" / "tests" / "vectors.json"
DIGEST = bytes(range(32))


def test_the_vectors_are_those_of_the_reference_coder() -> None:
    assert FILE.read_text() == text()


def text() -> str:
    dice = random.Random(7)
    steep = [1 << max(0, 12 - 2 * symbol) for symbol in range(8)]
    ramp = list(range(1, 257))
    vectors = [
        vector(dice, "one bit, one channel", 1, [1], (1, 3), [[9, 1]]),
        vector(dice, "two layers", 3, [1, 2], (4, 4), [steep, steep[::-1]]),
        vector(dice, "four layers, one channel to three", 4, [1, 2, 4, 7], (5, 3), [[1] * 15 + [40]] * 7),
        vector(dice, "eight bits, a length of two bytes", 8, [1, 2], (9, 9), [ramp, ramp[::-1]]),
        vector(dice, "hardly any information", 2, [1, 2], (16, 16), [[0, 10**9, 0, 0]] * 2, rarely=1),
        vector(dice, "nothing but the rarest symbol", 2, [2], (6, 6), [[0, 10**9, 0, 0]] * 2, rarely=3),
        vector(dice, "contexts, two bits", 2, [1, 3, 6], (5, 7), [[1, 2, 6, 1]] * 6, contexts=True),
        vector(dice, "contexts, eight bits, one row", 8, [2], (1, 12), [ramp, ramp[::-1]], contexts=True),
    ]
    return "[\n" + ",\n".join(json.dumps(vector) for vector in vectors) + "\n]\n"


def vector(
    dice: random.Random,
    name: str,
    bits: int,
    channels: Sequence[int],
    plane: tuple[int, int],
    counts: Sequence[Sequence[int]],
    rarely: int | None = None,
    contexts: bool = False,
) -> dict[str, Any]:
    """Symbols drawn by their counts; or, but for one place in a hundred, all of them the symbol `rarely`."""
    zero = np.full(len(counts), 1 << bits - 1)
    tables = entropy.Tables(entropy.table(np.array(counts))[:, None], zero)
    if contexts:
        drawn = [[dice.choices(range(1 << bits), row, k=plane[0] * plane[1]) for row in counts] for _ in range(40)]
        sample = np.array(drawn).reshape(40, len(counts), *plane)
        # Neighbours and channels that have much to do with each other.
        sample[..., 1:] = (sample[..., 1:] + sample[..., :-1] + 1) // 2
        sample[:, 1:] = (sample[:, 1:] + sample[:, :-1] + 1) // 2
        tables = entropy.Tables.count_contexts(sample, zero, 1 << bits)
    places = plane[0] * plane[1]
    symbols = np.array([dice.choices(range(1 << bits), row, k=places) for row in counts], np.uint8)
    if rarely is not None:
        symbols[:] = rarely
        symbols[0, places // 2] = 2
    layers = np.split(symbols.reshape(-1, *plane), channels[:-1])
    stream, lengths = entropy.encode(layers, tables)
    envelope = bytes([0]) + (0xABCD).to_bytes(2, "big") + varint(250)
    return {
        "name": name,
        "bits": bits,
        "channels": list(channels),
        "height": plane[0],
        "width": plane[1],
        "contexts": contexts,
        "tables": tables.to_bytes().hex(),
        "symbols": symbols.ravel().tolist(),
        "layer_lengths": lengths,
        "stream": stream.hex(),
        "frame": (envelope + packet(bits, lengths, stream)).hex(),
    }


def packet(bits: int, lengths: Sequence[int], stream: bytes) -> bytes:
    """All layers, of the hello's bundle 2 with the digest 0, 1, 2, …, split 1, width 3."""
    head = bytes([2 << 4 | bits - 1, 2 << 4 | len(lengths) - 1, 1 << 4 | 3]) + b"".join(map(varint, lengths))
    first, *further = (stream[end - length : end] for length, end in zip(lengths, np.cumsum(lengths), strict=True))
    sums = crc_hqx(DIGEST + head + first, 0xFFFF).to_bytes(2, "big")
    sums += bytes(crc_8(DIGEST + bytes([layer]) + part) for layer, part in enumerate(further, 1))
    return head + sums + stream


def crc_8(data: bytes) -> int:
    """CRC-8/AUTOSAR: polynomial 0x2f, all ones before and inverted after."""
    remainder = 0xFF
    for byte in data:
        remainder ^= byte
        for _ in range(8):
            remainder = (remainder << 1 ^ 0x2F if remainder & 0x80 else remainder << 1) & 0xFF
    return remainder ^ 0xFF


def varint(value: int) -> bytes:
    """RFC 9000, 16."""
    for power, bound in enumerate((1 << 6, 1 << 14, 1 << 30, 1 << 62)):
        if value < bound:
            size = 1 << power
            return (power << 8 * size - 2 | value).to_bytes(size, "big")
    raise ValueError(value)


if __name__ == "__main__":
    FILE.write_text(text())
