"""Other forms of the kernels, for the rows that are over their budget: what each would cost.

    python -m benchmarks.kernel_forms [--json FILE]
    python -m benchmarks.kernel_forms --page docs/kernels.md

The second compiles nothing: it writes the page's tables, between markers, from the committed rows.

Every form is today's source with some lines replaced, compiled and counted as `benchmarks.machine_code`
does. No GPU is needed; it takes about ten minutes. Forms are for counting: one or the other is not accurate
enough or stores bits in another order, which its name says.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fusedact

from . import machine_code

TARGETS = ("sm_80", "sm_90", "sm_100")
DTYPES = ("bfloat16", "float16", "float32")
SOURCE = Path(fusedact.__file__).parent
COMMITTED = Path(__file__).parent / "results" / "kernel-forms.json"


class Family(NamedTuple):
    """Rows of the report that are tried together."""

    kernel: str
    activation: str
    rngs: tuple[str, ...]


class Form(NamedTuple):
    """A form: its name, the rows that it is for, and what it replaces: file, text, other text."""

    name: str
    families: tuple[Family, ...]
    replaced: tuple[tuple[str, str, str], ...]


BOTH = ("eager", "fast")
FORWARD = (
    Family("forward", "relu", ("fast",)),
    Family("forward", "leaky_relu", BOTH),
    Family("forward", "elu", BOTH),
)
FORWARD_FAST = tuple(Family("forward", name, ("fast",)) for name in ("relu", "leaky_relu", "elu"))
FORWARD_LEAKY = (Family("forward", "leaky_relu", BOTH),)
FORWARD_ELU = (Family("forward", "elu", BOTH),)
BACKWARD_LEAKY = (Family("backward", "leaky_relu", BOTH),)
BACKWARD_ELU = (Family("backward", "elu", BOTH),)
FROM_OUTPUT = (Family("backward_from_output", "elu", BOTH),)

_KERNEL, _MATHS = "kernels/dropout.py", "kernels/activations.py"
_PACKED = """    if BY == "selecting":
        word = tl.where(bit, word + VALUE, word)
    elif BY == "adding":
        word += tl.where(bit, VALUE, 0)
    else:
        word = word * 2 + bit.to(tl.int32)
"""
_UNPACKED = "        bits = bits + (((words << (g * LANES + lane)) < 0),)\n"
_LEAKY_VALUE = (
    "    value = tl.where(positive, x, _rounded(x * param, STORED))\n"
    "    return value * tl.where(keep, scale, 0.0), positive\n"
)
_LEAKY_GRADIENT = (
    "    gradient = _rounded(dy * tl.where(keep, scale, 0.0), STORED)\n"
    "    return tl.where(flag, gradient, gradient * param)\n"
)
_ELU_VALUE = (
    "    factor = tl.where(linear, scale, scaled)\n"
    "    return tl.where(linear, x, _expm1(x)) * tl.where(keep, factor, 0.0), linear\n"
)
_ELU_GRADIENT = "    return dy * tl.where(keep, tl.where(x <= 0, scaled * _exp(x), scale), 0.0)\n"
_ELU_FROM_OUTPUT = "    return dy * tl.where(keep, tl.where(y <= 0, y + scaled, scale), 0.0)\n"


def _packing(name: str, word: str) -> Form:
    """Every bit joins its word in the same way."""
    return Form(f"packing: {name}", FORWARD, ((_KERNEL, _PACKED, f"    word = {word}\n"),))


def _unpacking(name: str, bit: str) -> Form:
    replaced = (_KERNEL, _UNPACKED, f"        bits = bits + ({bit},)\n")
    return Form(name, (*BACKWARD_LEAKY, *BACKWARD_ELU, *FROM_OUTPUT), (replaced,))


def _rounds(number: int) -> Form:
    old = "FAST_ROUNDS: tl.constexpr = tl.constexpr(7)"
    return Form(f"Philox of {number} rounds", FORWARD_FAST, ((_KERNEL, old, old.replace("7", str(number))),))


def _maths(name: str, families: tuple[Family, ...], old: str, new: str) -> Form:
    return Form(name, families, ((_MATHS, old, new),))


FORMS = (
    Form("as it is", (*FORWARD, *BACKWARD_LEAKY, *BACKWARD_ELU, *FROM_OUTPUT), ()),
    _packing("selecting, everywhere", "tl.where(bit, word + VALUE, word)"),
    _packing("adding, everywhere", "word + tl.where(bit, VALUE, 0)"),
    _packing("doubling, everywhere", "word * 2 + bit.to(tl.int32)"),
    _packing("or of bits in their places", "word | tl.where(bit, VALUE, 0)"),
    _packing("shifted, and an or", "(word << 1) | bit.to(tl.int32)"),
    _packing("selecting, with an or", "tl.where(bit, word | VALUE, word)"),
    _packing(
        "in at the top, shifted down (bits in reverse)",
        "((word >> 1) & 0x7FFFFFFF) | tl.where(bit, -2147483648, 0)",
    ),
    Form(
        "packing: float32, doubled (the cost alone: it holds no more than 24 bits)",
        FORWARD,
        (
            (_KERNEL, _PACKED, "    word = tl.fma(word, 2.0, tl.where(bit, 1.0, 0.0))\n"),
            (
                _KERNEL,
                "    kept = tl.zeros([COLUMNS], tl.int32)\n    flagged = tl.zeros([COLUMNS], tl.int32)\n",
                "    kept = tl.zeros([COLUMNS], tl.float32)\n    flagged = tl.zeros([COLUMNS], tl.float32)\n",
            ),
            (_KERNEL, "PLANES, COLUMNS), kept)\n", "PLANES, COLUMNS), kept.to(tl.int32))\n"),
            (_KERNEL, "PLANES, COLUMNS), flagged)\n", "PLANES, COLUMNS), flagged.to(tl.int32))\n"),
        ),
    ),
    _rounds(8),
    _rounds(10),
    _maths(
        "the slope as a factor",
        FORWARD_LEAKY,
        _LEAKY_VALUE,
        "    value = _rounded(x * tl.where(positive, 1.0, param), STORED)\n"
        "    return value * tl.where(keep, scale, 0.0), positive\n",
    ),
    _maths(
        "expm1: a polynomial of one degree more",
        FORWARD_ELU,
        "        q = tl.fma(f, 0.0013882522514628171, 0.00836651516961362)\n",
        "        q = tl.fma(f, 1.98412698e-4, 0.0013882522514628171)\n"
        "        q = tl.fma(q, f, 0.00836651516961362)\n",
    ),
    _maths(
        "expm1: ln 2 in two parts",
        FORWARD_ELU,
        "        f = tl.fma(shifted - _ROUND_32, -_LN2, x)\n",
        "        f = tl.fma(shifted - _ROUND_32, 1.428606765330187e-06,\n"
        "                   tl.fma(shifted - _ROUND_32, -0.693148612976074, x))\n",
    ),
    _maths(
        "expm1: hardware exp2 less 1 below -1/16, a cubic above (not accurate enough: about 2^-18)",
        FORWARD_ELU,
        _ELU_VALUE,
        "    factor = tl.where(linear, scale, scaled)\n"
        "    near = tl.fma(tl.fma(x, 0.16666667, 0.5) * x, x, x)\n"
        "    below = tl.where(x < -0.0625, tl.exp2(x * _LOG2E) - 1.0, near)\n"
        "    return tl.where(linear, x, below) * tl.where(keep, factor, 0.0), linear\n",
    ),
    _maths(
        "the scale selected after the product",
        FORWARD_ELU,
        _ELU_VALUE,
        "    value = tl.where(linear, x * scale, _expm1(x) * scaled)\n"
        "    return value * tl.where(keep, 1.0, 0.0), linear\n",
    ),
    _maths(
        "two products, a scale each",
        FORWARD_ELU,
        _ELU_VALUE,
        "    one, other = tl.where(keep, scale, 0.0), tl.where(keep, scaled, 0.0)\n"
        "    return tl.where(linear, x * one, _expm1(x) * other), linear\n",
    ),
    _unpacking(
        "unpacking: an and",
        "(words & (-2147483648 if g * LANES + lane == 0 else 1 << (31 - g * LANES - lane))) != 0",
    ),
    _unpacking("unpacking: shifted down", "((words >> (31 - g * LANES - lane)) & 1) != 0"),
    _maths(
        "the slope as a factor",
        BACKWARD_LEAKY,
        _LEAKY_GRADIENT,
        "    gradient = _rounded(dy * tl.where(keep, scale, 0.0), STORED)\n"
        "    return gradient * tl.where(flag, 1.0, param)\n",
    ),
    _maths(
        "keep as a factor of its own",
        BACKWARD_LEAKY,
        _LEAKY_GRADIENT,
        "    gradient = _rounded(dy * scale * tl.where(keep, 1.0, 0.0), STORED)\n"
        "    return tl.where(flag, gradient, gradient * param)\n",
    ),
    _maths(
        "rounded once (not eager's bits)",
        BACKWARD_LEAKY,
        _LEAKY_GRADIENT,
        "    return dy * tl.where(keep, tl.where(flag, scale, scaled), 0.0)\n",
    ),
    _maths(
        "dy times keep first",
        BACKWARD_ELU,
        _ELU_GRADIENT,
        "    return dy * tl.where(keep, 1.0, 0.0) * tl.where(x <= 0, scaled * _exp(x), scale)\n",
    ),
    _maths(
        "exp and scale in factors of their own",
        BACKWARD_ELU,
        _ELU_GRADIENT,
        "    factor = tl.where(keep, tl.where(x <= 0, scaled, scale), 0.0)\n"
        "    return dy * factor * tl.where(x <= 0, _exp(x), 1.0)\n",
    ),
    _maths(
        "exp of min(x, 0), with no select",
        BACKWARD_ELU,
        _ELU_GRADIENT,
        "    factor = tl.where(keep, tl.where(x <= 0, scaled, scale), 0.0)\n"
        "    return dy * factor * _exp(tl.minimum(x, 0.0))\n",
    ),
    _maths(
        "tl.exp, which rounds x log2(e) (not accurate enough)",
        BACKWARD_ELU,
        _ELU_GRADIENT,
        "    return dy * tl.where(keep, tl.where(x <= 0, scaled * tl.exp(x), scale), 0.0)\n",
    ),
    _maths(
        "dy times keep first",
        FROM_OUTPUT,
        _ELU_FROM_OUTPUT,
        "    return dy * tl.where(keep, 1.0, 0.0) * tl.where(y <= 0, y + scaled, scale)\n",
    ),
    _maths(
        "the term selected, not the sum",
        FROM_OUTPUT,
        _ELU_FROM_OUTPUT,
        "    return dy * tl.where(keep, tl.where(y <= 0, y, 0.0) + tl.where(y <= 0, scaled, scale), 0.0)\n",
    ),
    _maths(
        "min(y, 0) (right for alpha = 1 alone)",
        FROM_OUTPUT,
        _ELU_FROM_OUTPUT,
        "    return dy * tl.where(keep, tl.minimum(y, 0.0) + scale, 0.0)\n",
    ),
)


def source_of(form: Form, folder: Path) -> None:
    """Write the package's source with the form's lines; ValueError where it has changed meanwhile."""
    shutil.copytree(SOURCE, folder / SOURCE.name, ignore=shutil.ignore_patterns("__pycache__"))
    for file, old, new in form.replaced:
        path = folder / SOURCE.name / file
        text = path.read_text()
        if text.count(old) != 1:
            raise ValueError(f"form {form.name!r}: {file} has no longer, or more than once: {old}")
        path.write_text(text.replace(old, new))


def measure(form: Form) -> Iterator[dict[str, Any]]:
    """Count a form, in processes that import its source."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source_of(form, folder)
        root = Path(__file__).parents[1]
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(folder), str(root)]))
        for kernel, activation, rngs in form.families:
            command = [sys.executable, "-m", "benchmarks.machine_code", "--json", str(folder / "rows.json")]
            command += ["--kernel", kernel, "--activation", activation, "--rng", *rngs]
            command += ["--target", *TARGETS, "--dtype", *DTYPES]
            subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
            for row in json.loads((folder / "rows.json").read_text()):
                yield {"form": form.name, **row}


def table(rows: Sequence[dict[str, Any]], kernel: str, activation: str, target: str = "sm_90") -> str:
    """A Markdown table of the forms of some rows: instructions per element of each dtype, by rng."""
    rows = [
        row
        for row in rows
        if (row["kernel"], row["activation"], row["target"]) == (kernel, activation, target)
    ]
    rngs = list(dict.fromkeys(row["rng"] for row in rows))
    lines = [f"| form | {' | '.join(rngs)} |", f"|---|{'---|' * len(rngs)}"]
    for form in dict.fromkeys(row["form"] for row in rows):
        cells = []
        for rng in rngs:
            counts = {
                row["dtype"]: f"{row['instructions_per_element']:.1f}"
                for row in rows
                if (row["form"], row["rng"]) == (form, rng)
            }
            cells.append(" / ".join(counts[dtype] for dtype in DTYPES) if counts else "")
        lines.append(f"| {form} | {' | '.join(cells)} |")
    return "\n".join(lines)


def rewritten(page: str, rows: Sequence[dict[str, Any]]) -> str:
    """The page with the table of every block `<!-- forms: KERNEL ACTIVATION -->` anew.

    Raises:
        ValueError: the page's blocks aren't those of the rows.
    """
    block = re.compile(r"(<!-- forms: (\w+) (\w+) -->\n).*?(\n<!-- /forms -->)", re.DOTALL)
    found = [match.groups()[1:3] for match in block.finditer(page)]
    wanted = {(row["kernel"], row["activation"]) for row in rows}
    if sorted(found) != sorted(wanted):
        raise ValueError(f"blocks have to be {sorted(wanted)}, but got {sorted(found)}")
    return block.sub(lambda match: match[1] + table(rows, match[2], match[3]) + match[4], page)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernel_forms", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write its tables from committed rows")
    options = parser.parse_args()
    if options.page:
        page = options.page.read_text()
        options.page.write_text(rewritten(page, json.loads(COMMITTED.read_text())))
        return
    machine_code.check_compiler()
    rows: list[dict[str, Any]] = []
    for number, form in enumerate(FORMS, 1):
        print(f"{number}/{len(FORMS)} {form.name}", file=sys.stderr, flush=True)
        rows += measure(form)
    for kernel, activation in dict.fromkeys((row["kernel"], row["activation"]) for row in rows):
        print(f"\n### {kernel}, {activation}, sm_90\n\n{table(rows, kernel, activation)}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
