"""`python -m fusedact.env`: what it says, and that its self-test can fail."""

import json
import re
import subprocess
import sys

import pytest
import torch
from cases import PROCESSORS, ROOT, activations

import fusedact
from fusedact import dispatch, env, kernels, masks, operators
from fusedact.masks import plan as plans


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
    # That process may see other devices than this one.
    found = re.findall(r"^(cpu|\w+:\d+): ", result.stdout, re.MULTILINE)
    assert passed == [["self-test", "passed"]] * len(found)
    masks = result.stdout.count("  masks          torch.nn.Dropout's, ")
    assert masks == sum(name.startswith("cuda") for name in found)


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
    monkeypatch.setattr(kernels, "INSTALLED", True)
    assert env.versions()["triton"] == "installed, but its import fails: RuntimeError('no driver')"


def test_paths_and_their_reasons(monkeypatch):
    cpu = torch.device("cpu")
    assert env.paths(cpu)[0] == "eager composition: the kernels need a CUDA or ROCm GPU"
    monkeypatch.setattr(dispatch, "runs_kernels", lambda _: True)
    monkeypatch.setattr(kernels, "INSTALLED", True)
    assert env.paths(cpu) == ("kernels", "operators that launch the kernels")
    monkeypatch.setattr(kernels, "INSTALLED", False)
    monkeypatch.setattr(operators, "DEVICE", "cpu")
    assert env.paths(cpu) == ("eager composition: Triton isn't installed", "the same, compiled")


right = dispatch.activation_dropout


def wrong_value(*args):
    return right(*args) * 2


def wrong_mask(*args):
    torch.manual_seed(1)
    return right(*args)


def wrong_gradient(activation, input, *rest):
    return right(activation, input, *rest).detach() + (input - input.detach())


def too_many_numbers(*args):
    output = right(*args)
    torch.rand(1, device=output.device)
    return output


@pytest.mark.parametrize("wrong", [wrong_value, wrong_mask, wrong_gradient, too_many_numbers])
def test_a_failing_self_test_is_told(wrong, monkeypatch, capsys):
    monkeypatch.setattr(dispatch, "activation_dropout", wrong)
    with pytest.raises(AssertionError, match=r"relu, torch\.float32: Tensor-likes are not"):
        env.self_test(torch.device("cpu"))
    assert env.main() == 1
    output = capsys.readouterr().out
    assert "self-test      FAILED\n    AssertionError: relu, torch.float32: " in output
    assert "passed" not in output


# Masks of torch.nn.Dropout


def drawn(device, dtype, seed=3, before=8):
    """As a GPU of the size that `gpu` says draws."""
    n, p = env._ELEMENTS, env._P
    plan = plans.eager_plan(n, dtype.itemsize, *PROCESSORS)
    keep = masks.eager_mask(n, p, dtype, seed, before, *PROCESSORS)
    return env.Drawn(keep, seed, before, before + plan.increment)


@pytest.fixture
def gpu(monkeypatch):
    """A CPU that passes for a GPU whose dropout `env.draw` returns."""
    monkeypatch.setattr(plans, "processors", lambda device: PROCESSORS)
    monkeypatch.setattr(env, "draw", drawn)
    return torch.device("cpu")


def test_masks_are_said_to_be_nn_dropouts(gpu):
    said = "torch.nn.Dropout's, element for element, in float16, bfloat16, float32, float64"
    assert env.check_masks(gpu) == said


def one_element(drawn):
    keep = drawn.keep.clone()
    keep[-1] = ~keep[-1]
    return drawn._replace(keep=keep)


@pytest.mark.parametrize("dtype", dispatch.DTYPES, ids=str)
@pytest.mark.parametrize(
    "broken", [one_element, lambda drawn: drawn._replace(after=drawn.after + 4)], ids=["mask", "offset"]
)
def test_a_dropout_that_draws_otherwise_is_told(gpu, monkeypatch, dtype, broken):
    def draw(device, drawn_in):
        return broken(drawn(device, drawn_in)) if drawn_in is dtype else drawn(device, drawn_in)

    monkeypatch.setattr(env, "draw", draw)
    expected = (
        f'rng="eager" no longer matches torch.nn.Dropout in {dtype}: torch {torch.__version__} draws another '
        "mask. It was confirmed for torch 2.11.0 and 2.14.1. "
    )
    with pytest.raises(AssertionError, match=re.escape(expected)):
        env.check_masks(gpu)


def test_the_versions_are_those_of_the_record():
    record = json.loads((ROOT / "benchmarks" / "results" / "dropout-verification.json").read_text())
    assert {f"torch {version}" for version in env.CONFIRMED} == record["sass_identical"].keys() - {"kernels"}


@pytest.mark.usefixtures("cuda")
def test_each_gpu_compares_real_masks(capsys, monkeypatch):
    """And a dropout that takes numbers of its own first is told."""
    assert env.main() == 0
    assert capsys.readouterr().out.count("  masks          torch.nn.Dropout's, ") == torch.cuda.device_count()
    forward = torch.nn.Dropout.forward

    def greedy(self, x):
        torch.rand(1, device=x.device)
        return forward(self, x)

    monkeypatch.setattr(torch.nn.Dropout, "forward", greedy)
    assert env.main() == 1
    said = '  masks          FAILED\n    AssertionError: rng="eager" no longer matches'
    assert capsys.readouterr().out.count(said) == torch.cuda.device_count()


@activations
def test_every_activation_is_tested(activation, monkeypatch):
    def wrong(row, input, *rest):
        return right(row, input, *rest) * (1.1 if row is activation else 1)

    monkeypatch.setattr(dispatch, "activation_dropout", wrong)
    with pytest.raises(AssertionError, match=activation.name):
        env.self_test(torch.device("cpu"))


def test_a_launch_that_fails_is_told(monkeypatch, capsys):
    def failing(*_):
        raise RuntimeError("PTX was compiled\nfor another GPU")

    monkeypatch.setattr(dispatch, "activation_dropout", failing)
    assert env.main() == 1
    output = capsys.readouterr().out
    assert "FAILED\n    RuntimeError: PTX was compiled\n    for another GPU\n" in output
