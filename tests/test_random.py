"""How numbers are drawn from a generator, and what the masks look like to a statistician.

Seeds are fixed, so that a test passes or fails once and for all; thresholds are those of a false
alarm in a million.
"""

import itertools

import pytest
import torch
from scipy import stats

from fusedact import random, reference

ALARM = 1e-6
PROCESSORS = (132, 2048)
N = 2**22


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


class OnDevice:
    """The part of a CUDA tensor that a draw uses."""

    def __init__(self, n, index):
        self.n, self.index = n, index

    def numel(self):
        return self.n

    def element_size(self):
        return 4

    def get_device(self):
        return self.index


def test_a_draw_moves_its_own_devices_generator_as_eager_would(monkeypatch):
    generators = (Generator(), Generator())
    monkeypatch.setattr(torch.cuda, "default_generators", generators)
    tensors = [OnDevice(n, 1) for n in (8192, 8192, 2**26)]
    plans = [random.plan("eager", tensor.n, 4, *PROCESSORS) for tensor in tensors]
    calls = [random.draw(tensor, plan) for tensor, plan in zip(tensors, plans, strict=True)]
    assert [seed for seed, _ in calls] == [42] * 3
    assert [offset for _, offset in calls] == [8, 12, 16]
    assert generators[1].offset == 16 + plans[2].increment
    assert generators[0].offset == 8


def keep(p, offset=0, seed=1234, dtype=torch.float32, n=N):
    return reference.eager_mask(n, p, dtype, seed, offset, *PROCESSORS)


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9, 0.99, 0.001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_keep_rate(p, dtype):
    kept = int(keep(p, dtype=dtype).sum())
    assert stats.binomtest(kept, N, 1 - p).pvalue > ALARM


@pytest.mark.parametrize("p", [0.1, 0.3, 0.99])
def test_expectation_is_unbiased(p):
    forward, _ = random.scales(p, double=False)
    values = keep(p).double() * forward
    z = (values.mean() - 1) / (values.std() / N**0.5)
    assert abs(z) < stats.norm.isf(ALARM / 2)


def independent(a, b):
    table = [[int(((a == i) & (b == j)).sum()) for j in (False, True)] for i in (False, True)]
    return stats.chi2_contingency(table, correction=False).pvalue > ALARM


@pytest.mark.parametrize("p", [0.3, 0.9])
@pytest.mark.parametrize("distance", [1, 2, 4, 8, 32, 128, 256, 1024, 4096, 2**16, 256 * 1056, 1024 * 1056])
def test_elements_at_a_distance_are_independent(p, distance):
    mask = keep(p, n=N // 2)
    assert independent(mask[:-distance], mask[distance:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_calls_are_independent(dtype):
    plan = random.eager_plan(N, dtype.itemsize, *PROCESSORS)
    masks = [keep(0.5, offset=i * plan.increment, dtype=dtype) for i in range(3)]
    masks.append(keep(0.5, seed=1235, dtype=dtype))
    for a, b in itertools.combinations(masks, 2):
        assert independent(a, b)


def test_places_in_a_word_and_in_a_block_are_alike():
    mask = keep(0.3)
    for width in (32, 1024):
        counts = mask.view(-1, width).sum(0).numpy()
        expected = [mask.sum().item() / width] * width
        variance = 0.7  # a binomial's variance is (1 - p) p n, a Poisson's is its mean
        statistic = sum((counts - expected[0]) ** 2 / expected[0]) / (1 - variance)
        assert stats.chi2.sf(statistic, width - 1) > ALARM


def test_words_are_uniform():
    plan = random.eager_plan(N, 2, *PROCESSORS)
    words = reference.eager_words(torch.arange(N), plan, 1234, 0)
    for shift in (0, 8, 16, 24):
        counts = torch.bincount((words >> shift) & 0xFF, minlength=256).numpy()
        assert stats.chisquare(counts).pvalue > ALARM


def test_no_two_elements_of_a_call_share_a_word():
    plan = random.eager_plan(2**18, 2, *PROCESSORS)
    words = reference.eager_words(torch.arange(2**18), plan, 1234, 0)
    # By chance about 2**36 / 2 / 2**32 = 8 pairs collide.
    assert 2**18 - words.unique().numel() <= stats.poisson.isf(ALARM, 8)
