"""`import fusedact` needs neither a GPU nor Triton, and brings Triton in only for a kernel."""

import subprocess
import sys
from pathlib import Path

SRC = Path(__file__).parents[2] / "src"


def run(code):
    result = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(SRC), "PATH": ""}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


def test_works_without_triton():
    output = run(
        """
import sys
sys.modules["triton"] = None  # any import of it raises ImportError
import torch, fusedact
from fusedact import kernels
x = torch.randn(64, 128, requires_grad=True)
for name in fusedact.__all__:
    if name.startswith("Fused") and name not in ("FusedActivationDropout", "FusedThresholdDropout"):
        getattr(fusedact, name)(p=0.5)(x).sum().backward()
print(kernels.INSTALLED, x.grad.abs().sum().item() > 0)
"""
    )
    assert output.split() == ["False", "True"]


def test_import_does_not_import_triton():
    output = run(
        """
import sys, torch
before = set(sys.modules)
import fusedact
fusedact.FusedReLUDropout()(torch.randn(8))
print([name for name in set(sys.modules) - before if name.split(".")[0] == "triton"])
"""
    )
    assert output.strip() == "[]"


def test_public_names():
    import fusedact

    assert all(hasattr(fusedact, name) for name in fusedact.__all__)
    assert fusedact.__version__
