"""Philox4x32-10, the generator behind PyTorch's CUDA dropout, as a Triton function.

Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import triton
import triton.language as tl


@triton.jit
def philox4x32(c0, c1, c2, c3, key, ROUNDS: tl.constexpr):
    """Return four words of 32 random bits for a counter (c0, c1, c2, c3) and a key of two words, all uint32.

    `tl.philox` gives the same values. This function multiplies in 64 bits, so that one instruction gives both
    halves of a product. It also leaves each counter word its shape: scalar words are computed on the scalar
    path until the rounds mix them with the others.
    """
    key0 = key[0]
    key1 = key[1]
    for _ in tl.static_range(ROUNDS):
        a = c0.to(tl.uint64) * 0xD2511F53
        b = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (b >> 32).to(tl.uint32) ^ (c1 ^ key0)
        c2 = (a >> 32).to(tl.uint32) ^ c3 ^ key1
        c1 = b.to(tl.uint32)
        c3 = a.to(tl.uint32)
        key0 += 0x9E3779B9
        key1 += 0xBB67AE85
    return c0, c1, c2, c3
