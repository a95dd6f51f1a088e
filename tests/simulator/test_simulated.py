"""The tests that need a GPU, on simulated ones: each group in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulator.libraries import environment, pytest_command, unavailable

ROOT = Path(__file__).parents[2]

# One activation will do where all take the same path, since Inductor or Triton compiles for each.
ONE = ["-k", "not leaky_relu and not -elu and not [elu and not dynamic"]
# Arguments of pytest. On small GPUs a small tensor makes eager's loop go round several times.
ON_SMALL_GPUS = {
    "values": ["tests/engine/test_cuda.py", "tests/engine/test_cuda_graphs.py"],
    "graphs": ["tests/engine/test_graphs.py", "tests/engine/test_captures.py", *ONE],
    "composition": ["tests/engine/test_training.py", "tests/engine/test_saved_tensors.py"],
    "host": [
        "tests/engine/test_shared_calls.py",
        "tests/engine/test_shared_changes.py",
        "tests/tools/test_host_time.py",
    ],
    "monitor": ["tests/monitor/test_monitor_models.py"],
    "pairs": ["tests/fusion/test_pairs_cuda.py"],
    "simulator": ["tests/simulator/gpu_tests"],
}


# An H100's multiprocessors: tensors of a million elements go round the loop, of one activation.
ON_A_LARGE_GPU = {
    "values": ["tests/engine/test_cuda.py", "-k", "bit_for_bit and relu and not leaky"],
    "masks": ["tests/simulator/gpu_tests/test_dropout_masks.py", "-k", "sizes or replay"],
}


@pytest.fixture(scope="session")
def simulated() -> dict[str, str]:
    if reason := unavailable():
        pytest.skip(f"no simulated GPU: {reason}")
    return environment()


def run(simulated: dict[str, str], multiprocessors: str, *arguments: str) -> None:
    command = pytest_command("-q", "--no-header", "-rfE", *arguments)
    result = subprocess.run(
        command,
        cwd=ROOT,
        env={**simulated, "SIMULATOR_MULTIPROCESSORS": multiprocessors},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout[-20_000:]}"


@pytest.mark.parametrize("group", ON_SMALL_GPUS)
def test_on_small_gpus(group, simulated):
    run(simulated, "4,6", *ON_SMALL_GPUS[group])


@pytest.mark.parametrize("group", ON_A_LARGE_GPU)
def test_on_a_large_gpu(group, simulated):
    run(simulated, "132", *ON_A_LARGE_GPU[group])


def test_a_module_runs_with_simulated_gpus(simulated):
    command = [sys.executable, "-m", "tests.simulator", "--module", "timeit", "-n1", "-r1"]
    code = ["-s", "import torch", "assert torch.ones(3, device='cuda:1').cumsum(0).tolist() == [1, 2, 3]"]
    result = subprocess.run([*command, *code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.startswith("1 loop"), result.stderr


def test_pytorch_launches_its_own_kernels_if_none_is_executed(simulated):
    """An operator of PyTorch's that the bridge had replaced would count."""
    command = [sys.executable, "-m", "tests.simulator", "--module", "timeit", "-n1", "-r1"]
    code = [
        "import torch; x = torch.ones(3, device='cuda'); n = torch.ones(3, dtype=torch.int32, device='cuda')",
        "torch.nn.functional.dropout(x.relu_())",
        "assert n.tolist() == n.add_(1).tolist()",
    ]
    own = {**os.environ, "SIMULATOR_EXECUTE": "0"}
    result = subprocess.run([*command, *code], cwd=ROOT, env=own, capture_output=True, text=True)
    assert result.stdout.startswith("1 loop"), result.stderr
    assert "violation" not in result.stderr
