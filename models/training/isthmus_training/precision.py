"""Which precision a network trains fastest in, measured on the machine at hand.

bf16 halves the time of convolutions where there are instructions for it, and takes many times as long where there are
none.
"""

from __future__ import annotations

import time
from collections.abc import Callable

PRECISIONS = ("f32", "bf16")


def rates(step: Callable[[str], int], clock: Callable[[], float] = time.perf_counter, seconds: float = 1.0) -> dict[str, float]:
    """Pictures a second in each precision, over at least `seconds` of each; `step` trains on some pictures in the given
    precision, and returns how many.

    The precisions take turns, so that what else the machine does slows both alike. The first step of each is not counted:
    kernels are chosen and compiled in it.
    """
    for precision in PRECISIONS:
        step(precision)
    took, pictures = dict.fromkeys(PRECISIONS, 0.0), dict.fromkeys(PRECISIONS, 0)
    while min(took.values()) < seconds:
        for precision in PRECISIONS:
            if took[precision] < seconds:
                began = clock()
                pictures[precision] += step(precision)
                took[precision] += clock() - began
    return {precision: pictures[precision] / took[precision] for precision in PRECISIONS}
