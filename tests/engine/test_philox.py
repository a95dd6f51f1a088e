"""The kernels' Philox, which the other tests replace by a quicker one in the interpreter."""

import pytest
import torch

from fusedact.masks import oracle

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from fusedact.kernels.philox import philox4x32  # noqa: E402


@triton.jit
def words_kernel(counter_ptr, key_ptr, words_ptr, ROUNDS: tl.constexpr):
    at = tl.arange(0, 8)
    counter = ()
    for i in tl.static_range(4):
        counter = counter + (tl.load(counter_ptr + 8 * i + at).to(tl.uint32),)  # noqa: RUF005
    key = (tl.load(key_ptr).to(tl.uint32), tl.load(key_ptr + 1).to(tl.uint32))
    words = philox4x32(counter[0], counter[1], counter[2], counter[3], key, ROUNDS)
    for i in tl.static_range(4):
        tl.store(words_ptr + 8 * i + at, words[i].to(tl.int64))


@pytest.mark.parametrize("rounds", [7, 10])
def test_philox_has_the_oracles_words(rounds, device):
    """The oracle's are held against known answers."""
    counter = torch.randint(2**32, (4, 8), device=device)
    counter[:, 0], counter[:, 1] = 0, 2**32 - 1
    key = torch.tensor([0xA4093822, 0x299F31D0], device=device)
    words = torch.empty_like(counter)
    words_kernel[(1,)](counter, key, words, ROUNDS=rounds)
    expected = oracle.philox4x32(tuple(counter.cpu()), int(key[0]) | int(key[1]) << 32, rounds)
    assert torch.equal(words.cpu(), torch.stack(list(expected)))
