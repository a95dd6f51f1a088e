"""The contract, in plain PyTorch: the eager composition, and which elements a mapping keeps.

`composition` is what every other path must equal, and the path taken where there is no GPU.
`eager_mask` computes, on a CPU and for any GPU, the mask that `torch.nn.Dropout` draws there, and
`fast_mask` that of rng="fast"; `forward` and `backward` are the values that go with a given mask.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import random
from .activations import Activation
from .random import Plan


def composition(
    activation: Activation,
    input: Tensor,
    parameters: tuple[float, ...],
    p: float,
    training: bool,
    inplace: bool,
) -> Tensor:
    """`dropout(act(input), p)`; with `inplace`, in the input's buffer."""
    if inplace and (type(input) is not Tensor or (input.requires_grad and torch.is_grad_enabled())):
        # Autograd refuses to overwrite what an activation saved, so it saves a copy's; and DTensor doesn't
        # know every activation in place when it is compiled (torch 2.11).
        return input.copy_(composition(activation, input.clone(), parameters, p, training, False))
    value = activation.eager(input, *parameters, inplace=inplace)
    if not training or p == 0:
        return value
    # Not in place: on a GPU that would draw another mask.
    result = _dropout(value, p)
    return input.copy_(result) if inplace else result


def _dropout(value: Tensor, p: float) -> Tensor:
    """`F.dropout`, which on a CPU would draw the same mask for every shard of a DTensor.

    DTensor gives each shard its part of the generator's numbers by moving the generator's offset. A
    CPU's generator has none: there every rank draws the whole tensor's mask and keeps its own part.
    """
    if type(value) is not Tensor and value.device.type == "cpu" and torch.distributed.is_available():
        from torch.distributed.tensor import DTensor

        if isinstance(value, DTensor):
            whole = F.dropout(torch.ones(value.shape, dtype=value.dtype), p)
            mask = DTensor.from_local(whole, value.device_mesh, run_check=False)
            return value * mask.redistribute(placements=value.placements)
    return F.dropout(value, p)


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int, rounds: int = 10) -> list[Tensor]:
    """Philox4x32 (Salmon et al., SC 2011): four words for each counter.

    Words are int64 tensors with values in [0, 2**32); `seed` is the 64-bit key.
    """
    c0, c1, c2, c3 = counter
    word = 0xFFFFFFFF
    for i in range(rounds):
        key0 = (seed + i * 0x9E3779B9) & word
        key1 = ((seed >> 32) + i * 0xBB67AE85) & word
        # int64 products wrap, which leaves all 64 bits right; the shift's sign bits are masked off.
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1 = ((b >> 32) & word) ^ c1 ^ key0, b & word
        c2, c3 = ((a >> 32) & word) ^ c3 ^ key1, a & word
    return [c0, c1, c2, c3]


def eager_words(e: Tensor, plan: Plan, seed: int, offset: int) -> Tensor:
    """The random words that PyTorch's dropout kernel gives the elements at `e`.

    `e` are places in memory; at vec 1, in the tensor's logical (row-major) order. Places and words are int64
    tensors of one dimension; words are in [0, 2**32).
    """
    threads = 256 * plan.blocks
    if plan.vec == 1:
        k, rest = e // (4 * threads), e % (4 * threads)
        lane, idx, call = rest // threads, rest % threads, k
    else:
        chunk, j = e // plan.vec, e % plan.vec
        k, idx = chunk // threads, chunk % threads
        call, lane = k * max(1, plan.vec // 4) + j // 4, j % 4
    call = call + offset // 4
    counter = (call & 0xFFFFFFFF, (call >> 32) & 0xFFFFFFFF, idx, torch.zeros_like(idx))
    return torch.stack(philox4x32(counter, seed)).gather(0, lane.unsqueeze(0)).squeeze(0)


def eager_mask(
    n: int,
    p: float,
    dtype: torch.dtype,
    seed: int,
    offset: int,
    multiprocessors: int,
    threads_per_multiprocessor: int,
    alignment: int = 16,
) -> Tensor:
    """Which elements `torch.nn.Dropout(p)` keeps on a GPU: bool [n], in memory order.

    Where the plan's vec is 1 (an odd n, say), in the tensor's logical order.

    Args:
        n: elements of a dense tensor, at least 1.
        p: probability of dropping an element, 0 < p < 1.
        dtype: of the tensor.
        seed: the generator's `initial_seed()`.
        offset: the generator's `get_offset()` before the call.
        multiprocessors: of the GPU (`multi_processor_count`).
        threads_per_multiprocessor: resident on it (`max_threads_per_multi_processor`).
        alignment: in bytes, of the pointer that dropout reads; 16 for an activation's new output.

    Raises:
        ValueError: `n`, `p` or `alignment` has a value that isn't allowed.
    """
    _check_mask(n, p)
    if alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"alignment has to be a power of 2, but got alignment={alignment!r}")
    plan = random.eager_plan(n, dtype.itemsize, multiprocessors, threads_per_multiprocessor, alignment)
    threshold = random.keep_threshold(p, dtype is torch.float64)
    return eager_words(torch.arange(n), plan, seed, offset) < threshold


def _check_mask(n: int, p: float) -> None:
    if n < 1:
        raise ValueError(f"n has to be at least 1, but got n={n!r}")
    if not 0 < p < 1:
        raise ValueError(f"p has to be above 0 and below 1, where a mask is drawn, but got p={p!r}")


def fast_numbers(e: Tensor, seed: int, offset: int) -> Tensor:
    """The random 16 bits that the fast mapping gives the elements at `e`, places in memory.

    Tiles of 4096 elements have 512 Philox4x32-7 counters; each has 4 words for 4 consecutive elements
    of the tile's first half (a word's high 16 bits) and for those 2048 further (its low ones). Both
    are int64 tensors of one dimension; numbers are in [0, 2**16).
    """
    tile, place = e // 4096, e % 4096
    quad = tile * 512 + place % 2048 // 4
    call = torch.full_like(e, offset // 4)
    counter = (call & 0xFFFFFFFF, (call >> 32) & 0xFFFFFFFF, quad & 0xFFFFFFFF, quad >> 32)
    words = torch.stack(philox4x32(counter, seed, rounds=7)).gather(0, (e % 4).unsqueeze(0)).squeeze(0)
    return torch.where(place < 2048, words >> 16, words & 0xFFFF)


def fast_mask(n: int, p: float, seed: int, offset: int) -> Tensor:
    """Which elements rng="fast" keeps, on any GPU: bool [n], in memory order.

    Args:
        n: elements of a dense tensor, at least 1.
        p: probability of dropping an element, 0 < p < 1, rounded as `random.used_probability` does.
        seed: the generator's `initial_seed()`.
        offset: the generator's `get_offset()` before the call.

    Raises:
        ValueError: `n` or `p` has a value that isn't allowed.
    """
    _check_mask(n, p)
    threshold = round((1.0 - random.used_probability(p, "fast")) * 65536)
    return fast_numbers(torch.arange(n), seed, offset) < threshold


def forward(
    activation: Activation,
    input: Tensor,
    parameters: tuple[float, ...],
    p: float,
    keep: Tensor,
    rng: str = "eager",
) -> Tensor:
    """`dropout(act(input), p)` for the mask `keep` (bool, the input's shape), as a GPU computes it.

    eager rounds the activation to the dtype, then scales it, in float32 (float64 for float64); fast
    rounds once, at the end.
    """
    double = input.dtype is torch.float64
    wide = torch.float64 if double else torch.float32
    value = activation.eager(input if rng == "eager" else input.to(wide), *parameters).to(wide)
    return (value * keep * random.scales(p, double)[0]).to(input.dtype)


def backward(
    activation: Activation,
    input: Tensor,
    parameters: tuple[float, ...],
    p: float,
    keep: Tensor,
    dy: Tensor,
    rng: str = "eager",
) -> Tensor:
    """The gradient of `forward` with respect to `input`, for the upstream gradient `dy`."""
    double = input.dtype is torch.float64
    wide = torch.float64 if double else torch.float32
    stored = input.dtype if rng == "eager" else wide
    dy = (dy.to(wide) * keep * random.scales(p, double)[1]).to(stored)
    with torch.enable_grad():
        x = input.detach().to(stored).requires_grad_()
        (dx,) = torch.autograd.grad(activation.eager(x, *parameters), x, dy)
    return dx.to(input.dtype)
