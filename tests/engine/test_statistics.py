"""How numbers are drawn from a generator, and what the masks look like to a statistician.

Seeds are fixed, so that a test passes or fails once and for all; thresholds are those of a false
alarm in a million.
"""

import functools
import itertools

import pytest
import torch
from cases import rngs
from scipy import stats

from fusedact import masks
from fusedact.masks import generator, oracle
from fusedact.masks import plan as plans

ALARM = 1e-6
PROCESSORS = (132, 2048)
N = 2**20


class Generator:
    """The part of a CUDA generator that a draw uses."""

    def __init__(self):
        self.seed, self.offset = 42, 8

    def initial_seed(self):
        return self.seed

    def get_offset(self):
        return self.offset

    def set_offset(self, offset):
        self.offset = offset


def test_a_draw_moves_its_own_devices_generator_as_eager_would(monkeypatch):
    generators = (Generator(), Generator())
    monkeypatch.setattr(torch.cuda, "default_generators", generators)
    walks = [plans.eager_plan(n, 4, *PROCESSORS) for n in (8192, 8192, 2**26)]
    states = [generator.reserve(1, plan) for plan in walks]
    assert [state.seed for state in states] == [42] * 3
    assert [state.offset for state in states] == [8, 12, 16]
    assert generators[1].offset == 16 + walks[2].increment
    assert generators[0].offset == 8


def keep(p, offset=0, seed=1234, dtype=torch.float32, n=N, rng="eager"):
    if rng == "fast":
        return masks.fast_mask(n, p, seed, offset)
    return masks.eager_mask(n, p, dtype, seed, offset, *PROCESSORS)


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9, 0.99, 0.001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_keep_rate(p, dtype):
    kept = int(keep(p, dtype=dtype).sum())
    assert stats.binomtest(kept, N, 1 - p).pvalue > ALARM


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9, 0.99, 0.001, 1e-5, 1 - 1e-5])
def test_keep_rate_of_fast_is_that_of_the_probability_it_uses(p):
    used = plans.used_probability(p, "fast")
    kept = int(keep(p, rng="fast").sum())
    assert stats.binomtest(kept, N, 1 - used).pvalue > ALARM


@pytest.mark.parametrize("p", [1e-12, 2**-17, 0.1, 1 / 3, 0.9, 0.99, 1 - 2**-16, 1 - 2**-17])
def test_fast_rounds_the_probability_in_the_open(p):
    used = plans.used_probability(p, "fast")
    assert abs(used - p) <= 2**-17
    assert used * 65536 == int(used * 65536)
    assert plans.keep_threshold(used, False, "fast") == (1 - used) * 2**32
    assert plans.scales(used, double=False).forward == pytest.approx(1 / (1 - used), rel=2**-24)
    assert plans.used_probability(p, "eager") == p


def test_fast_keeps_one_in_65536_where_the_nearest_probability_would_keep_none():
    assert plans.used_probability(1 - 1e-12, "fast") == 1 - 2**-16


@rngs
@pytest.mark.parametrize("p", [0.1, 0.3, 0.99])
def test_expectation_is_unbiased(p, rng):
    forward, _ = plans.scales(plans.used_probability(p, rng), double=False)
    values = keep(p, rng=rng).double() * forward
    z = (values.mean() - 1) / (values.std() / N**0.5)
    assert abs(z) < stats.norm.isf(ALARM / 2)


def independent(a, b):
    table = [[int(((a == i) & (b == j)).sum()) for j in (False, True)] for i in (False, True)]
    return stats.chi2_contingency(table, correction=False).pvalue > ALARM


@functools.cache
def half(p, rng):
    return keep(p, n=N // 2, rng=rng)


@rngs
@pytest.mark.parametrize("p", [0.3, 0.9])
@pytest.mark.parametrize("distance", [1, 2, 4, 8, 32, 128, 256, 1024, 2048, 4096, 2**16, 256 * 1056])
def test_elements_at_a_distance_are_independent(p, rng, distance):
    mask = half(p, rng)
    assert independent(mask[:-distance], mask[distance:])


@rngs
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_calls_are_independent(dtype, rng):
    n = N // 4
    plan = (
        plans.fast_plan(n, dtype.itemsize)
        if rng == "fast"
        else plans.eager_plan(n, dtype.itemsize, *PROCESSORS)
    )
    masks = [keep(0.5, offset=i * plan.increment, dtype=dtype, n=n, rng=rng) for i in range(3)]
    masks.append(keep(0.5, seed=1235, dtype=dtype, n=n, rng=rng))
    for a, b in itertools.combinations(masks, 2):
        assert independent(a, b)


@rngs
def test_places_in_a_word_and_in_a_block_are_alike(rng):
    mask = keep(0.3, rng=rng)
    for width in (32, 1024, 4096):
        counts = mask.view(-1, width).sum(0).numpy()
        expected = mask.sum().item() / width
        # A binomial's variance is its mean times p, the chance of being dropped; a Poisson's is its mean.
        statistic = ((counts - expected) ** 2 / expected).sum() / 0.3
        assert stats.chi2.sf(statistic, width - 1) > ALARM


def test_words_are_uniform():
    plan = plans.eager_plan(N, 2, *PROCESSORS)
    words = oracle.eager_words(torch.arange(N), plan, 1234, 0)
    for shift in (0, 8, 16, 24):
        counts = torch.bincount((words >> shift) & 0xFF, minlength=256).numpy()
        assert stats.chisquare(counts).pvalue > ALARM


def test_numbers_of_fast_are_uniform_alone_and_in_pairs():
    """Its 16 bits, and the bytes of those that share a word."""
    numbers = oracle.fast_numbers(torch.arange(N), 1234, 0)
    for values in (numbers & 0xFF, numbers >> 8):
        assert stats.chisquare(torch.bincount(values, minlength=256).numpy()).pvalue > ALARM
    low, high = numbers.view(-1, 2, 2048).unbind(1)
    pairs = ((low >> 8) * 256 + (high >> 8)).flatten()
    assert stats.chisquare(torch.bincount(pairs, minlength=65536).numpy()).pvalue > ALARM


def test_no_counter_of_fast_comes_twice():
    """Tiles, calls and the high words of both have counters of their own."""
    e = torch.cat([torch.arange(8192), torch.arange(2**45, 2**45 + 8192)])
    calls = [oracle.fast_numbers(e, 1234, offset) for offset in (0, 4, 4 * 2**32)]
    pieces = torch.cat(calls).view(-1, 16)
    assert pieces.unique(dim=0).shape == pieces.shape


def test_no_two_elements_of_a_call_share_a_word():
    plan = plans.eager_plan(2**18, 2, *PROCESSORS)
    words = oracle.eager_words(torch.arange(2**18), plan, 1234, 0)
    # By chance about 2**36 / 2 / 2**32 = 8 pairs collide.
    assert 2**18 - words.unique().numel() <= stats.poisson.isf(ALARM, 8)
