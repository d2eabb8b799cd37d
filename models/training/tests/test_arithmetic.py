"""The quantiser, the tables, the range coder: what Rust has to reproduce exactly."""

import itertools

import numpy as np
import pytest
import torch

from isthmus_training import entropy, schedule
from isthmus_training.config import Stage
from isthmus_training.quantise import Quantiser, dequantise, quantise, rate_bound, zero_point
from isthmus_training.ranks import Ranks

ONE = np.array([1.0], np.float32)


def test_ties_round_to_even() -> None:
    latents = np.array([-1.5, -0.5, 0.5, 1.5, 2.5], np.float32).reshape(1, 1, 5)
    assert quantise(latents, ONE, np.array([8]), 4).ravel().tolist() == [6, 8, 8, 10, 10]


def test_values_beyond_the_alphabet_are_clamped_and_nan_is_the_zero_point() -> None:
    latents = np.array([-np.inf, -1e30, 1e30, np.inf, np.nan], np.float32).reshape(1, 1, 5)
    assert quantise(latents, ONE, np.array([3]), 4).ravel().tolist() == [0, 0, 15, 15, 3]


def test_training_and_runtime_quantisers_agree() -> None:
    torch.manual_seed(0)
    quantiser, latents = Quantiser([50, 100], [6, 3], 5), torch.randn(4, 5, 3, 3) * 2
    centre = torch.tensor([0.0, 0.4, -1.0, 9.0, -9.0])
    trained, _ = quantiser(latents, centre, 50, torch.tensor([6, 3, 3, 6]), noise=False)
    for at, bits in enumerate((6, 3, 3, 6)):
        scale = quantiser.scale(50, bits).detach()
        zero = zero_point(centre, scale, bits)
        symbols = quantise(latents[at].numpy(), scale.numpy(), zero.numpy(), bits)
        ran = dequantise(symbols, scale.numpy(), zero.numpy(), centre.numpy())
        np.testing.assert_allclose(trained[at].detach().numpy(), ran, atol=1e-5)


def test_unsent_channels_take_the_prior_mean() -> None:
    symbols = np.full((2, 1, 4, 4), 7, np.uint8)
    scale, zero, prior = np.full(3, 0.5), np.full(3, 5), np.array([10.0, 0.25, -2.0])
    values = dequantise(symbols, scale, zero, prior)
    assert values.shape == (2, 3, 4, 4) and values.dtype == np.float32
    assert (values[:, 0] == 1.0).all() and (values[:, 1] == 0.25).all() and (values[:, 2] == -2.0).all()


def test_the_rate_bounds_the_entropy_of_rounded_latents() -> None:
    torch.manual_seed(1)
    for spread in (0.3, 1.0, 10.0):
        steps = torch.randn(1, 1, 200, 200) * spread
        counts = np.unique(steps.round().numpy(), return_counts=True)[1] / steps.numel()
        measured = -(counts * np.log2(counts)).sum()
        # Within a tenth of a bit where rounding is fine enough for the latents' variance to be the symbols'.
        # In units of a scale, whatever that is.
        (bound,), (tenfold,) = rate_bound(steps * 10, torch.tensor([[10.0], [100.0]]))
        assert measured <= bound + 0.02
        assert spread < 1 or bound < measured + 0.1
        assert spread < 10 or abs(bound - tenfold - np.log2(10)) < 0.1


def test_the_rate_counts_only_what_neighbours_and_channels_before_leave() -> None:
    torch.manual_seed(2)
    steps = torch.randn(8, 1, 20, 20).repeat(1, 2, 1, 1) * 5
    first, second = rate_bound(steps, torch.ones(1, 2))[0]
    assert second < 1 < first
    # In a run of lower precision too, and where channels differ by orders of magnitude.
    with torch.autocast("cpu", torch.bfloat16):
        latents = torch.cat([steps * 200, steps[:, :1] * 200, steps / 500], 1)
        assert rate_bound(latents, torch.ones(1, 5)).isfinite().all()


@pytest.mark.parametrize("symbols", [4, 16, 256])
def test_tables_sum_exactly_and_leave_no_symbol_out(symbols: int) -> None:
    rng = np.random.default_rng(symbols)
    counts = np.stack([np.zeros(symbols), np.eye(symbols)[1] * 1e6, rng.integers(0, 1000, symbols)]).astype(np.int64)
    table = entropy.table(counts)
    assert table.dtype == np.dtype("<u2") and table.min() >= 1
    assert (table.sum(1, dtype=np.int64) == 65536).all()
    assert np.ptp(table[0]) <= 1


def test_largest_remainders_get_what_is_left() -> None:
    # (65,536 − 3) / 3 is whole; with counts 1, 1, 2 the exact frequencies are 16,383.25, 16,383.25 and 32,766.5.
    assert entropy.table(np.array([[1, 1, 2]]))[0].tolist() == [16384, 16384, 32768]


@pytest.mark.parametrize("seed", range(6))
def test_the_coder_inverts_itself_and_its_layers_are_prefixes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bits, ends = int(rng.integers(1, 9)), np.cumsum(rng.integers(1, 4, 3))
    spread = rng.uniform(0.01, 3, (ends[-1], 1)) ** -2
    counts = np.round(1e4 * np.exp(-spread * (np.arange(2**bits) - 2 ** (bits - 1)) ** 2)).astype(np.int64)
    tables = entropy.Tables(entropy.table(counts)[:, None], np.full(ends[-1], 2 ** (bits - 1)))
    draw = [rng.choice(2**bits, (5, 7), p=row / 65536).astype(np.uint8) for row in tables.frequencies[:, 0]]
    # The rarest symbols as well, which no sample would hold.
    draw[0][0] = rng.integers(0, 2**bits, 7)
    symbols = np.stack(draw)
    if seed % 2:
        sample = rng.integers(0, 2**bits, (20, *symbols.shape))
        tables = entropy.Tables.count_contexts(sample, tables.zero, 2**bits)
    layers = [symbols[a:b] for a, b in itertools.pairwise([0, *ends])]
    stream, lengths = entropy.encode(layers, tables)
    assert sum(lengths) == len(stream)
    assert len(stream) <= tables.cost(symbols[None]).sum() / 8 + 2
    for count in range(1, len(layers) + 1):
        decoded = entropy.decode(stream[: sum(lengths[:count])], [layer.shape for layer in layers[:count]], tables)
        for layer, expected in zip(decoded, layers[:count], strict=True):
            np.testing.assert_array_equal(layer, expected)


def test_contexts_of_all_places_are_those_of_each_and_survive_the_file() -> None:
    rng = np.random.default_rng(3)
    zero, symbols = np.array([7, 8, 9, 8, 8, 8]), rng.integers(0, 16, (30, 6, 4, 5))
    tables = entropy.Tables.count_contexts(symbols, zero, 16)
    deviations = symbols[0] - zero[:, None, None]
    contexts = tables.contexts
    assert contexts is not None
    chosen = contexts.of(deviations[None])[0]
    assert all(contexts.at(deviations, *place) == chosen[place] for place in np.ndindex(*chosen.shape))
    # What comes later in coding order does not matter.
    np.testing.assert_array_equal(contexts.of(deviations[None, :3])[0], chosen[:3])
    read = entropy.Tables.contexts_from_bytes(tables.to_bytes(), zero, 16)
    np.testing.assert_array_equal(read.frequencies, tables.frequencies)
    assert read.contexts is not None
    np.testing.assert_array_equal(read.contexts.of(deviations[None])[0], chosen)


def test_contexts_save_what_neighbours_and_channels_share() -> None:
    rng = np.random.default_rng(4)
    base = rng.normal(0, 2, (300, 1, 6, 6)).repeat(2, 1).repeat(2, 3)
    symbols = np.clip(np.rint(base + rng.normal(0, 0.4, base.shape)) + 8, 0, 15).astype(np.int64)
    zero = np.array([8, 8])
    plain, by_context = (count(symbols, zero, 16) for count in (entropy.Tables.count, entropy.Tables.count_contexts))
    first, second = (by_context.cost(symbols).sum((0, 2, 3)) / plain.cost(symbols).sum((0, 2, 3))).tolist()
    assert first < 0.95 and second < 0.7


def test_a_stream_of_certain_symbols_is_nearly_empty() -> None:
    tables = entropy.Tables(entropy.table(np.array([[0, 10**9, 0, 0]]))[None], np.array([1]))
    stream, lengths = entropy.encode([np.ones((1, 10, 10), np.uint8)], tables)
    assert len(stream) <= 1 and lengths == [len(stream)]


def test_what_is_done_now_and_then_takes_a_twentieth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(schedule.time, "monotonic", lambda: now)
    ranks = Ranks("cpu")
    course = schedule.Schedule(Stage(phases=[[10, 1.0]], unit="minutes", warmup=0.0), 1)
    throttle, done = schedule.Throttle(course, ranks), []
    while not course.done:
        now += 10
        course.advance(ranks)
        if throttle.due:

            def measure() -> None:
                nonlocal now
                now += 4
                done.append(course.step)

            throttle.run(measure)
    # After the first step, then every eighty seconds or more, and at the end.
    assert done[:3] == [1, 9, 17] and done[-1] == course.step
