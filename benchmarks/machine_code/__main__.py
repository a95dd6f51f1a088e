"""The command, which selects the kernels to count and writes the rows."""

import argparse
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine_code
from benchmarks.machine_code import kernels, tables
from benchmarks.machine_code.row import save
from fusedact.activations import ROWS
from fusedact.masks.plan import RNGS


def check_compiler() -> None:
    """Leave with one line where Triton can't compile."""
    if os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y"):
        raise SystemExit("TRITON_INTERPRET is set: the interpreter compiles nothing; unset it")
    try:
        import triton  # noqa: F401
    except ImportError:
        raise SystemExit("Triton is not installed (pip install triton): nothing to compile with") from None


def main(arguments: Sequence[str] | None = None) -> None:
    assert machine_code.__doc__
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.machine_code", description=machine_code.__doc__.split("\n")[0]
    )
    for option, allowed, usual in (
        ("target", kernels.TARGETS, None),
        ("dtype", tuple(kernels.DTYPES), None),
        ("kernel", kernels.KERNELS, kernels.KERNELS),
        ("activation", tuple(ROWS), tuple(ROWS)),
        ("rng", RNGS, RNGS),
    ):
        parser.add_argument(
            f"--{option}",
            nargs="+",
            choices=allowed,
            default=usual,
            metavar=option.upper(),
            help=", ".join(allowed),
        )
    parser.add_argument(
        "--peers", action="store_true", help="count torch.compile's kernels in place of fusedact's"
    )
    parser.add_argument(
        "--forms", action="store_true", help="count forms of forward that were tried, in its place"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE")
    options = parser.parse_args(arguments)
    chosen = [
        case
        for case in kernels.cases()
        if case.kernel in options.kernel
        and case.activation.name in options.activation
        and case.rng in options.rng
    ]
    if not chosen:
        parser.error(
            "no kernel matches these options: backward_from_output is ELU's alone, so add --activation elu"
        )
    builds = list(kernels.USUAL)
    if options.target or options.dtype:
        asked = (options.dtype or kernels.DTYPES, options.target or kernels.TARGETS)
        builds = [kernels.Build(*axes) for axes in itertools.product(*asked)]
    check_compiler()
    if options.forms:
        from benchmarks.machine_code import forms

        dtypes, targets = options.dtype or ("bfloat16",), options.target or ("sm_90",)
        axes = {"activation": options.activation, "rng": options.rng, "dtype": dtypes, "target": targets}
        counts = forms.measure_all(axes)
    elif options.peers:
        from benchmarks.machine_code import peers

        counts = peers.measure_all([ROWS[name] for name in options.activation], builds)
    else:
        counts = kernels.measure_all(chosen, builds)
    print(tables.HEAD, flush=True)
    rows = []
    for row in counts:
        rows.append(row)
        print(tables.line(row), flush=True)
    if options.json:
        save(rows, options.json)


if __name__ == "__main__":
    main()
