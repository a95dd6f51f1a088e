"""Runs the translation of one PTX instruction on many rows of operands."""

import ctypes
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from .ptx import Module
from .ptx.module import launch

_KERNEL = """
.visible .entry k(.param .u64 p0, .param .u64 p1) {{
  .reg .b64 %rd<9>; .reg .b32 %t; .reg .pred %p<4>; {registers} .reg .{out} %d;
  mov.u32 %t, %tid.x;
  ld.param.u64 %rd1, [p0]; mul.wide.u32 %rd3, %t, 24; add.s64 %rd1, %rd1, %rd3;
  ld.param.u64 %rd2, [p1]; mul.wide.u32 %rd4, %t, 8; add.s64 %rd2, %rd2, %rd4;
  {loads}
  mov.{out} %d, 0;
  {instruction}
  st.global.{out} [%rd2], %d;
  ret;
}}"""

Rows = Sequence[tuple[int, ...]]


def signed(x: int, bits: int) -> int:
    x %= 2**bits
    return x - 2**bits if x >> (bits - 1) else x


def run_kernel(text: str, folder: Path, threads: int, *tensors: torch.Tensor) -> None:
    """Run one block of kernel `k`, whose arguments are the tensors' addresses. It may touch nothing else."""
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")
    module, path = Module(text), folder / f"{abs(hash(text))}.so"
    module.build(path)
    ranges = [(tensor.data_ptr(), tensor.nbytes) for tensor in tensors]
    launch(module, ctypes.CDLL(str(path)), "k", (1,), (threads,), [start for start, _ in ranges], ranges)


def results(instruction: str, inputs: Sequence[str], out: str, rows: Rows, folder: Path) -> list[int]:
    """Return the bits of %d, of type `out`, for each row of %a, %b, %c, of types `inputs`."""
    named = list(zip(("%a", "%b", "%c"), inputs, strict=False))
    registers = " ".join(f".reg .{kind} {name};" for name, kind in named)
    loads = " ".join(f"ld.global.{kind} {name}, [%rd1+{8 * i}];" for i, (name, kind) in enumerate(named))
    text = _KERNEL.format(registers=registers, loads=loads, instruction=instruction, out=out)
    padded = [[signed(value, 64) for value in (*row, 0, 0)[:3]] for row in rows]
    x = torch.tensor(padded, dtype=torch.int64)
    y = torch.zeros(len(rows), dtype=torch.int64)
    run_kernel(text, folder, len(rows), x, y)
    return [value % 2 ** int(out[1:]) for value in y.tolist()]


def check(
    instruction: str, inputs: Sequence[str], out: str, rows: Rows, expected: Callable[..., int], folder: Path
) -> None:
    found = results(instruction, inputs, out, rows, folder)
    wanted = [expected(*row) % 2 ** int(out[1:]) for row in rows]
    wrong = [
        (tuple(map(hex, row)), hex(value), hex(right))
        for row, value, right in zip(rows, found, wanted, strict=True)
        if value != right
    ]
    assert not wrong, f"{instruction}: operands, result, and what it should be: {wrong[:3]}"
