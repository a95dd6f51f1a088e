"""The oracle against independent statements of the same thing: known answers, and eager's own loop."""

import math

import numpy
import pytest
import torch
from cases import PROCESSORS, SEED

from fusedact import masks
from fusedact.masks import oracle
from fusedact.masks import plan as plans


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # Random123's kat_vectors, philox4x32 with 10 rounds
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, key, words):
    result = oracle.philox4x32(tuple(torch.tensor([c]) for c in counter), key[0] | key[1] << 32)
    assert [int(word) for word in result] == list(words)


def emulate(n, p, dtype, seed, offset, multiprocessors, threads_per_multiprocessor, alignment):
    """PyTorch's dropout kernel, thread by thread, in numpy's float32 (and float64 for float64).

    Written from the CUDA source and not from the closed form: grid-stride loops, a curand state
    with its counter, and comparisons of floats.
    """
    block, unroll = 256, 4
    grid = min((n + block - 1) // block, multiprocessors * (threads_per_multiprocessor // block))
    vec = min(16 // dtype.itemsize, alignment // dtype.itemsize) or 1
    while n % vec != 0:
        vec //= 2
    bound = numpy.float64(1 - p) if dtype is torch.float64 else numpy.float32(1 - p)
    keep = numpy.zeros(n, dtype=bool)

    def uniform4(call, idx):
        counter = [torch.tensor([v]) for v in (call & 0xFFFFFFFF, call >> 32 & 0xFFFFFFFF, idx, 0)]
        words = [int(w) for w in oracle.philox4x32(tuple(counter), seed)]
        inverse = numpy.float32(2.0**-32)
        return [numpy.float32(w) * inverse + inverse / numpy.float32(2) for w in words]

    for idx in range(grid * block):
        call = offset // 4
        if vec > 1:
            for linear in range(idx * vec, n, grid * block * vec):
                rand = []
                for _ in range((vec + 3) // 4):
                    rand += uniform4(call, idx)
                    call += 1
                keep[linear : linear + vec] = [r < bound for r in rand[:vec]]
        else:
            stride = grid * block
            rounded = ((n - 1) // (stride * unroll) + 1) * stride * unroll
            for linear in range(idx, rounded, stride * unroll):
                rand = uniform4(call, idx)
                call += 1
                for i in range(unroll):
                    if linear + stride * i < n:
                        keep[linear + stride * i] = rand[i] < bound
    increment = ((n - 1) // (block * grid * unroll) + 1) * unroll
    return torch.from_numpy(keep), increment


@pytest.mark.parametrize(
    ("n", "dtype", "alignment"),
    [
        (2052, torch.bfloat16, 16),
        (1, torch.float32, 16),
        (255, torch.bfloat16, 16),
        (2056, torch.float16, 16),
        (4100, torch.float32, 16),
        (2054, torch.float64, 16),
        (2054, torch.float64, 8),
        (3001, torch.float32, 16),
        (3000, torch.bfloat16, 2),
        (3000, torch.bfloat16, 4),
        (3000, torch.float16, 8),
    ],
)
def test_mask_equals_eagers_loop(n, dtype, alignment):
    processors = (1, 256)
    offset = 4 * (2**32 - 1)
    keep, increment = emulate(n, 0.3, dtype, SEED, offset, *processors, alignment)
    assert torch.equal(masks.eager_mask(n, 0.3, dtype, SEED, offset, *processors, alignment), keep)
    assert plans.eager_plan(n, dtype.itemsize, *processors, alignment).increment == increment


@pytest.mark.parametrize("p", [0.001, 0.1, 0.3, 0.5, 0.9, 0.99, 1e-10, 1 - 1e-10, 1 / 3])
@pytest.mark.parametrize("double", [False, True])
def test_threshold_is_where_eagers_comparison_turns(p, double):
    threshold = plans.keep_threshold(p, double)
    near = numpy.arange(max(0, threshold - 300), min(2**32, threshold + 300), dtype=numpy.uint32)
    uniform = near.astype(numpy.float32) * numpy.float32(2.0**-32) + numpy.float32(2.0**-33)
    bound = numpy.float64(1 - p) if double else numpy.float32(1 - p)
    assert numpy.array_equal(uniform < bound, near < threshold)
    assert math.isclose(threshold / 2**32, 1 - p, abs_tol=2**-24)


def test_scales():
    for p in (0.04, 0.1, 0.15, 0.3, 0.45, 0.9, 0.97):  # of four the two scales differ
        forward, backward = plans.scales(p, double=False)
        assert forward == numpy.float32(1.0 / numpy.float64(numpy.float32(1 - p)))
        assert backward == numpy.float32(1 / (1 - p))
        assert plans.scales(p, double=True) == (1 / (1 - p),) * 2


def test_plan():
    # 64 x 128 in bfloat16 on a GPU with 132 multiprocessors of 2048 threads
    assert plans.eager_plan(8192, 2, 132, 2048) == ("eager", 8, 8, 32, 4)
    # past one iteration of the grid: 2**26 elements, 132 * 8 blocks
    assert plans.eager_plan(2**26, 4, 132, 2048) == ("eager", 4, 4, 1056, 4 * (-(-(2**26) // (1056 * 1024))))
    assert plans.eager_plan(6, 8, *PROCESSORS).vec == 2
    assert plans.eager_plan(2**33 + 1, 2, 132, 2048).vec == 1


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"n": 0}, ValueError, "n=0: it must be at least 1"),
        ({"n": 6.0}, TypeError, r"n=6\.0: it must be an integer"),
        ({"n": True}, TypeError, "n=True: it must be an integer"),
        ({"p": 1.0}, ValueError, r"p=1\.0: it must be above 0 and below 1"),
        ({"p": -0.1}, ValueError, r"p=-0\.1: the dropout probability must be a number between 0 and 1"),
        ({"p": math.nan}, ValueError, "p=nan: the dropout probability must be a number between 0 and 1"),
        ({"p": "0.5"}, ValueError, "p='0.5': the dropout probability must be a number between 0 and 1"),
        ({"seed": 0.5}, TypeError, r"seed=0\.5: it must be an integer"),
        ({"seed": 2**64}, ValueError, r"seed=18\d*: it must be at least 0 and below 2\*\*64"),
        ({"offset": 6}, ValueError, "offset=6: it must be a multiple of 4"),
        ({"offset": -4}, ValueError, "offset=-4: it must be at least 0"),
        ({"dtype": torch.int32}, TypeError, r"dtype=torch\.int32: it must be one of torch\.float16, "),
        ({"multiprocessors": 0}, ValueError, "multiprocessors=0: it must be at least 1"),
        ({"threads_per_multiprocessor": 8}, ValueError, "threads_per_multiprocessor=8: .* at least 256"),
        ({"alignment": 12}, ValueError, "alignment=12: it must be a power of 2"),
    ],
)
def test_masks_that_nobody_draws(arguments, error, match):
    call = {"n": 100, "p": 0.5, "seed": 0, "offset": 0}
    gpu = {"dtype": torch.float32, "multiprocessors": 132, "threads_per_multiprocessor": 2048}
    with pytest.raises(error, match=match):
        masks.eager_mask(**{**call, **gpu, **arguments})
    if arguments.keys() <= call.keys():
        with pytest.raises(error, match=match):
            masks.fast_mask(**{**call, **arguments})


def test_numbers_of_other_kinds_and_another_default_device():
    """A mask is on the CPU in any case."""
    expected = masks.fast_mask(64, 0.5, 3, 8), masks.eager_mask(64, 0.5, torch.float32, 3, 8, *PROCESSORS)
    with torch.device("meta"):
        n, p = numpy.int64(64), numpy.float32(0.5)
        result = masks.fast_mask(n, p, 3, 8), masks.eager_mask(n, p, torch.float32, 3, 8, *PROCESSORS)
    assert all(map(torch.equal, result, expected))
