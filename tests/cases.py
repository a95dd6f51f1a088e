"""What the tests iterate over, all of it derived from the activations' rows."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fusedact
from fusedact import ops, random, reference
from fusedact.activations import Activation, Saved
from fusedact.functional import ACTIVATIONS as ACTIVATIONS

# The fused module that the package exports for each.
_EXPORTED = [getattr(fusedact, name) for name in fusedact.__all__]
MODULES = {cls.activation.name: cls for cls in _EXPORTED if hasattr(cls, "activation")}

ROOT = Path(__file__).parents[1]

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

activations = pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a.name)
rngs = pytest.mark.parametrize("rng", random.RNGS)

# A GPU so small that eager's grid-stride loop goes round several times: 6 blocks of 256 threads, which fill
# more than a program, and no whole number of them.
PROCESSORS = (3, 512)
# The call counter has a high word, and crosses 32 bits.
SEED, OFFSET = 0x9E3779B97F4A7C15, 4 * (2**40 + 2**32 - 3)

# Each vec of eager's plan, less and more than a block, than its grid, than an iteration.
SIZES = (1, 7, 10, 1000, 4096, 8200, 12_292, 20_001, 40_000)


def parameters(activation: Activation) -> tuple[float, ...]:
    """A value other than the default, so that one that is ignored is seen."""
    return (0.3,) if activation.parameter else ()


def function(activation: Activation) -> Callable[..., Tensor]:
    return getattr(fusedact.functional, f"{activation.name}_dropout")


def fused_module(activation: Activation, p: float = 0.5, inplace: bool = False) -> nn.Module:
    return MODULES[activation.name](p, *parameters(activation), inplace)


def eager_modules(activation: Activation, p: float = 0.5) -> nn.Module:
    return nn.Sequential(activation.module(*parameters(activation)), nn.Dropout(p))


def make_plan(x: Tensor, rng: str = "eager") -> random.Plan:
    return random.plan(rng, x.numel(), x.element_size(), *PROCESSORS)


def mask(x: Tensor, p: float, seed: int = SEED, offset: int = OFFSET, rng: str = "eager") -> Tensor:
    """The oracle's mask in the shape of the dense tensor `x`, whose elements the mapping numbers."""
    if rng == "fast":
        keep = reference.fast_mask(x.numel(), p, seed, offset)
    else:
        keep = reference.eager_mask(x.numel(), p, x.dtype, seed, offset, *PROCESSORS)
    if make_plan(x, rng).in_memory_order:
        return torch.as_strided(keep, x.shape, x.stride()).to(x.device)
    return keep.view(x.shape).to(x.device)


def prepare(
    activation: Activation,
    x: Tensor,
    p: float,
    rng: str = "eager",
    plan: random.Plan | None = None,
    inplace: bool = False,
):
    from_output = inplace and activation.from_output is not None
    parameter = parameters(activation)[0] if activation.parameter else 0.0
    used = random.used_probability(p, rng)
    return ops.kernels().prepare(
        activation, x.dtype, x.numel(), parameter, used, plan or make_plan(x, rng), from_output
    )


def fused(
    activation: Activation,
    x: Tensor,
    p: float,
    inplace: bool = False,
    offset: int = OFFSET,
    rng: str = "eager",
) -> Tensor:
    return ops.fused(x, prepare(activation, x, p, rng, inplace=inplace), random.Draw(SEED, offset), inplace)


def steps(value: Tensor, truth: Tensor) -> Tensor:
    """The error of `value` in units of its dtype's last place at the float64 `truth`."""
    info = torch.finfo(value.dtype)
    exponent = torch.frexp(truth.abs().clamp_min(info.tiny)).exponent
    unit = torch.ldexp(torch.ones_like(truth), exponent - 1) * info.eps
    return (value.double() - truth).abs() / unit


def assert_equals_eager(activation: Activation, value: Tensor, expected: Tensor, truth: Tensor) -> None:
    """Eager's bits; for an activation that computes exp itself, within 4 units of the float64 truth.

    `test_elu_is_no_less_accurate_than_eager` holds the largest errors against each other.
    """
    if activation.saved is not Saved.INPUT:
        torch.testing.assert_close(value, expected, rtol=0, atol=0, equal_nan=True)
        return
    # What isn't finite is held against the truth: of a NaN, eager's vectorised and its scalar ELU give
    # different gradients on a CPU. Where only eager's rounded steps overflow, either result will do.
    wide = value.double()
    close = (steps(value, truth) <= 4) | (wide == truth) | (wide.isnan() & truth.isnan())
    assert (close | (value == expected)).all()


def environment(*path: Path) -> dict[str, str]:
    """For a process of its own, in which Triton compiles: this one may have its interpreter."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return {**kept, "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "src", *path)))}


_DRIVER = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

target = GPUTarget("cuda", 90, 32)

class Driver:  # as much of a GPU as compilation asks for
    def get_current_device(self): return 0
    def get_current_target(self): return target
    def get_current_stream(self, device=None): return 7
    def get_active_torch_device(self): return torch.device("cpu")

driver.set_active(Driver())
"""


def compiling(script: str) -> list[str]:
    """The lines that a script prints where Triton compiles for `target`, which need not be there."""
    pytest.importorskip("triton", reason="needs Triton's compiler")
    command = [sys.executable, "-c", _DRIVER + script]
    result = subprocess.run(command, env=environment(ROOT), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()
