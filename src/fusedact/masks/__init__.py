"""Which elements are kept: PyTorch's generators, two mappings from them to a mask, and their oracle.

- eager: on a CUDA device `torch.nn.Dropout` numbers its threads, gives each a Philox4x32-10 sequence and
  advances the device generator's offset. `plan.eager_plan` and `plan.keep_threshold` restate its rules
  (aten/src/ATen/native/cuda/Dropout.cu, torch 2.11 and later). A fused call so drops the elements that
  `Dropout` would have dropped, and leaves the generator where it would have left it.
- fast: 16 random bits per element from Philox4x32-7. The mask is a function of seed, offset and the
  element's place in memory alone. The probability is rounded to a multiple of 2**-16, the scale with it.

`eager_mask` and `fast_mask` compute the masks of any GPU on a CPU.
"""

from .oracle import eager_mask, fast_mask

__all__ = ["eager_mask", "fast_mask"]
