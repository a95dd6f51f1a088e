"""Triton's interpreter, as the tests use it: with a GPU's roundings, and in less time."""

import dataclasses

import numpy
import torch
import triton.language as tl
from triton.runtime import interpreter

from fusedact.kernels import dropout

_patched = {}  # what `_patch_once` has done, by the globals of the functions


def install() -> None:
    """Change the interpreter of this process."""
    _round_as_gpus_do()
    interpreter._patch_lang = _patch_once
    # It computes each integer sum once more in 64 bits, and uses that in a debug mode alone.
    quick = dataclasses.replace(interpreter.interpreter_builder.options, sanitize_overflow=False)
    interpreter.interpreter_builder.options = quick
    dropout.philox4x32 = _philox4x32


def _round_as_gpus_do() -> None:
    """Mend three roundings.

    The interpreter truncates float32 to bfloat16, where GPUs (and PyTorch) round to nearest even; it rounds a
    float32 fma's product, which float64 holds exactly; and numpy's float32 exp2 varies with the CPU and
    keeps subnormal results, which hardware flushes.
    """
    builder = interpreter.InterpreterBuilder
    original_cast, original_fma = builder.cast_impl, builder.create_fma

    def cast_impl(self, src, dst_type):
        source, target = src.dtype.scalar, dst_type.scalar
        if (source, target) == (tl.float32, tl.bfloat16):
            data = torch.from_numpy(src.data.copy()).bfloat16().view(torch.uint16).numpy()
        elif (source, target) == (tl.bfloat16, tl.float32):
            data = torch.from_numpy(src.data.copy()).view(torch.bfloat16).float().numpy()
        else:
            return original_cast(self, src, dst_type)
        return interpreter.TensorHandle(data, target)

    def create_fma(self, x, y, z):
        if x.dtype.scalar != tl.float32:
            return original_fma(self, x, y, z)
        wide = x.data.astype("float64") * y.data + z.data
        return interpreter.TensorHandle(wide.astype("float32"), x.dtype.scalar)

    def create_exp2(self, x):
        rounded = numpy.exp2(x.data.astype("float64")).astype(x.data.dtype)
        if x.dtype.scalar == tl.float32:
            rounded[rounded < numpy.finfo("float32").tiny] = 0
        return interpreter.TensorHandle(rounded, x.dtype.scalar)

    builder.cast_impl, builder.create_fma, builder.create_exp2 = cast_impl, create_fma, create_exp2


def _patch_once(function, original=interpreter._patch_lang):
    """Replace `tl`'s functions by the interpreter's where `function` sees them, as every call would anew."""
    names = function.__globals__
    if id(names) not in _patched:
        _patched[id(names)] = names, original(function)
    return interpreter._LangPatchScope()  # which restores nothing


def _philox4x32(c0, c1, c2, c3, key, ROUNDS):
    """Compute `fusedact.kernels.philox` at once: its 100 operations are most of an interpreted kernel.

    `test_philox.py` runs the function itself.
    """
    wide = [word.handle.data.astype("uint64") for word in (c0, c1, c2, c3, *key)]
    x0, x1, x2, x3, k0, k1 = wide
    low = numpy.uint64(0xFFFFFFFF)
    for _ in range(ROUNDS):
        a, b = x0 * numpy.uint64(0xD2511F53), x2 * numpy.uint64(0xCD9E8D57)
        x0, x1, x2, x3 = (b >> 32) ^ x1 ^ k0, b & low, (a >> 32) ^ x3 ^ k1, a & low
        k0, k1 = (k0 + numpy.uint64(0x9E3779B9)) & low, (k1 + numpy.uint64(0xBB67AE85)) & low
    block = tl.block_type(tl.uint32, list(numpy.broadcast_shapes(*(x.shape for x in (x0, x1, x2, x3)))))
    return tuple(
        tl.tensor(
            interpreter.TensorHandle(numpy.broadcast_to(x, block.shape).astype("uint32"), tl.uint32), block
        )
        for x in (x0, x1, x2, x3)
    )
