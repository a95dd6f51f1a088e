"""Keep masks: the states of PyTorch's generators, the two mappings from a state to a mask, and the oracle.

- eager: on a CUDA device `torch.nn.Dropout` numbers its threads, gives each a Philox4x32-10 sequence and
  advances the device generator's offset. `plan.eager_plan` and `plan.keep_threshold` restate its rules
  (aten/src/ATen/native/cuda/Dropout.cu, torch 2.11 and later). So a fused call drops the elements that
  `Dropout` would drop, and advances the generator as far.
- fast: each element takes 16 random bits from Philox4x32-7. The mask depends on seed, offset and the
  element's position in memory alone. The probability is rounded to a multiple of 2**-16, and the scale is
  computed from the rounded one.

The oracle, `eager_mask` and `fast_mask`, computes the masks of any GPU on a CPU.
"""

from .oracle import eager_mask, fast_mask

__all__ = ["eager_mask", "fast_mask"]
