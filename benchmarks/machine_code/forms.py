"""Other forms of the forward kernel, which were tried and not taken, counted like the one that stands.

A form is a few replacements in a copy of the package. Each compiles and computes the same.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import fusedact
from benchmarks.machine_code.row import Row, load

PACKAGE = Path(fusedact.__file__).parent
ROOT = Path(__file__).parents[2]


class Change(NamedTuple):
    """One replacement: `old` stands in the file once."""

    file: str
    old: str
    new: str


_DROPOUT, _TILES, _PHILOX, _PACKED = (
    f"kernels/{name}.py" for name in ("dropout", "tiles", "philox", "packed")
)
_BIT = """words = tl.where(
            bits[lane], words + (-(2**31) if g + lane == 0 else 2 ** (31 - g * LANES - lane)), words
        )"""
_LOADS = """    for g in tl.static_range(GROUPS):
        inside = inside_of(g, offsets, first, left, blocks, FAST, VEC, LANES, COLUMNS)
        xs = xs + (tl.load(x_ptr + g * STEP + offsets, mask=inside),)
"""
_LOADS_IN_TWO_WAYS = """    for g in tl.static_range(GROUPS):
        xs = xs + (tl.zeros([COLUMNS, LANES], x_ptr.dtype.element_ty),)
    if left >= 32 * COLUMNS:
        loaded = ()
        for g in tl.static_range(GROUPS):
            loaded = loaded + (tl.load(x_ptr + g * STEP + offsets),)
        xs = loaded
    else:
        loaded = ()
        for g in tl.static_range(GROUPS):
            inside = inside_of(g, offsets, first, left, blocks, FAST, VEC, LANES, COLUMNS)
            loaded = loaded + (tl.load(x_ptr + g * STEP + offsets, mask=inside),)
        xs = loaded
"""
_FACTORS = """        factors = ()
        for lane in tl.static_range(LANES):
            factors = factors + (tl.where(keeps[lane], scale, 0.0),)
        y *= joined(factors, COLUMNS, LANES)
"""
FORMS = {
    "bits after the product": (
        Change(_DROPOUT, "EARLY: tl.constexpr = LANES == 8", "EARLY: tl.constexpr = False"),
    ),
    "bits shifted in, one after the other": (
        Change(_TILES, _BIT, "words = words * 2 + bits[lane].to(tl.int32)"),
    ),
    "bits shifted to their place and added": (
        Change(_TILES, _BIT, "words = words + (bits[lane].to(tl.int32) << (31 - g * LANES - lane))"),
    ),
    "the scale selected lane by lane": (
        Change(_DROPOUT, "        y *= tl.where(keep, scale, 0.0)\n", _FACTORS),
    ),
    "full tiles loaded without bounds checks": (Change(_DROPOUT, _LOADS, _LOADS_IN_TWO_WAYS),),
    "Philox's uniform operands combined first, everywhere": (
        Change(_PHILOX, "^ c3 ^ key1", "^ (c3 ^ key1)"),
    ),
    "Philox's operands in the formula's order": (Change(_PHILOX, "^ (c1 ^ key0)", "^ c1 ^ key0"),),
    "comparisons in half precision": (
        Change(_DROPOUT, "x = widened(xs[g], ARITHMETIC, PACKED and not CLAMPS)", "x = xs[g].to(ARITHMETIC)"),
    ),
    "Triton's own conversions": (
        Change(_PACKED, "if PACKED and numbers.dtype == tl.bfloat16:", "if False:"),
        Change(_PACKED, "if PACKED and tl.bfloat16 == STORED:", "if False:"),
        Change(_PACKED, "elif PACKED and tl.float16 == STORED:", "elif False:"),
    ),
}


def measure_all(axes: Mapping[str, Sequence[str]]) -> Iterator[Row]:
    """Count forward kernels in every form, by the command's arguments; a row's backend is the form."""
    arguments = [word for name, values in axes.items() for word in (f"--{name}", *values)]
    for name, changes in FORMS.items():
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, "fusedact")
            shutil.copytree(PACKAGE, copy)
            for change in changes:
                source = (copy / change.file).read_text()
                if source.count(change.old) != 1:
                    raise SystemExit(f"{change.file} has changed: the form '{name}' no longer fits")
                (copy / change.file).write_text(source.replace(change.old, change.new))
            file = Path(folder, "rows.json")
            command = [sys.executable, "-m", "benchmarks.machine_code", "--kernel", "forward", *arguments]
            path = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
            subprocess.run(
                [*command, "--json", str(file)],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": path},
                stdout=subprocess.DEVNULL,
                check=True,
            )
            for row in load(file):
                yield replace(row, backend=name)
