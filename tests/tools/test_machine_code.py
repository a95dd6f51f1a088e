"""The kernels' machine code: no shared memory, barriers or spills, and no more of it than torch.compile's.

Kernels compile in processes of their own: the other tests may have chosen Triton's interpreter.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from cases import ROOT, environment

from benchmarks.machine_code.row import Row, load

RESULTS = ROOT / "benchmarks" / "results" / "machine-code"


def count(file: Path, *options: str) -> list[Row]:
    """Of kernels compiled here and now."""
    pytest.importorskip("triton", reason="needs Triton's compiler")
    line = [sys.executable, "-m", "benchmarks.machine_code", "--json", str(file), *options]
    done = subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return load(file)


def wasteful(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.shared_bytes or row.barriers or row.spill_bytes or row.narrow_accesses]
