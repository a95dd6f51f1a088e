"""`python -m fusedact.env`: what it says, and that its self-test can fail."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fusedact
from fusedact import env, ops
from fusedact.functional import ACTIVATIONS

ROOT = Path(__file__).parents[1]


def run(code: str) -> "subprocess.CompletedProcess[str]":
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": ""}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def test_without_triton():
    result = run(
        """
import runpy, sys
sys.modules["triton"] = None  # any import of it raises ImportError
runpy.run_module("fusedact.env", run_name="__main__", alter_sys=True)
"""
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "triton    not installed\n" in result.stdout
    passed = [line.split() for line in result.stdout.splitlines() if "self-test" in line]
    assert passed == [["self-test", "passed"]] * len(env.devices())


def test_says_what_is_installed(capsys):
    assert env.main() == 0
    output = capsys.readouterr().out
    assert f"fusedact  {fusedact.__version__}\n" in output
    assert f"torch     {torch.__version__}\n" in output
    assert ("none seen by PyTorch" in output) != torch.cuda.is_available()
    for device in env.devices():
        assert f"\n\n{device}: " in output


def test_a_broken_triton_is_told(monkeypatch, tmp_path):
    (tmp_path / "triton.py").write_text("raise RuntimeError('no driver')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    monkeypatch.setattr(ops, "_TRITON", True)
    assert env.versions()["triton"] == "installed, but its import fails: RuntimeError('no driver')"


def test_paths_and_their_reasons(monkeypatch):
    cpu = torch.device("cpu")
    assert env.paths(cpu)[0] == "eager composition: the kernels need a CUDA or ROCm GPU"
    monkeypatch.setattr(ops, "_runs_kernels", lambda _: True)
    monkeypatch.setattr(ops, "kernels", lambda: "the module that launches them")
    assert env.paths(cpu) == ("kernels", "operators that launch the kernels")
    monkeypatch.setattr(ops, "kernels", lambda: None)
    monkeypatch.setattr(ops, "_OPERATORS", "cpu")
    assert env.paths(cpu) == ("eager composition: Triton isn't installed", "the same, compiled")


right = ops.activation_dropout


def wrong_value(*args):
    return right(*args) * 2


def wrong_mask(*args):
    torch.manual_seed(1)
    return right(*args)


def wrong_gradient(activation, input, *rest):
    return right(activation, input, *rest).detach() + (input - input.detach())


def too_many_numbers(*args):
    output = right(*args)
    torch.rand(1)
    return output


@pytest.mark.parametrize("wrong", [wrong_value, wrong_mask, wrong_gradient, too_many_numbers])
def test_a_failing_self_test_is_told(wrong, monkeypatch, capsys):
    monkeypatch.setattr(ops, "activation_dropout", wrong)
    with pytest.raises(AssertionError, match=r"relu, torch\.float32: Tensor-likes are not"):
        env.self_test(torch.device("cpu"))
    assert env.main() == 1
    output = capsys.readouterr().out
    assert "self-test      FAILED\n    AssertionError: relu, torch.float32: " in output
    assert "passed" not in output


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda row: row.name)
def test_every_activation_is_tested(activation, monkeypatch):
    def wrong(row, input, *rest):
        return right(row, input, *rest) * (1.001 if row is activation else 1)

    monkeypatch.setattr(ops, "activation_dropout", wrong)
    with pytest.raises(AssertionError, match=activation.name):
        env.self_test(torch.device("cpu"))


def test_a_launch_that_fails_is_told(monkeypatch, capsys):
    def failing(*_):
        raise RuntimeError("PTX was compiled\nfor another GPU")

    monkeypatch.setattr(ops, "activation_dropout", failing)
    assert env.main() == 1
    output = capsys.readouterr().out
    assert "FAILED\n    RuntimeError: PTX was compiled\n    for another GPU\n" in output
