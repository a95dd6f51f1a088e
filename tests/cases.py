"""What the tests iterate over, all of it derived from the activations' rows."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import fusedact
from fusedact import autograd, masks, rows
from fusedact.activations import ROWS, Activation, Saves, own_rows
from fusedact.kernels import launch
from fusedact.kernels.configuration import LaunchConfiguration, configure
from fusedact.masks.generator import PhiloxState
from fusedact.masks.plan import RNGS, Plan, eager_plan, fast_plan, used_probability

ROOT = Path(__file__).parents[1]

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

EVERY = tuple(ROWS.values())
# One row for each kind of saving (ELU saves its input, in place its output): the engine is tested with these.
ENGINE = (rows.RELU, rows.LEAKY_RELU, rows.ELU, rows.IDENTITY)

# Those whose units die, keep a slope, or saturate: what the monitor does is tested with these.
WATCHED = ENGINE[:3]

watched = pytest.mark.parametrize("activation", WATCHED, ids=lambda row: row.name)
activations = pytest.mark.parametrize("activation", EVERY, ids=lambda row: row.name)
representatives = pytest.mark.parametrize("activation", ENGINE, ids=lambda row: row.name)
rngs = pytest.mark.parametrize("rng", RNGS)
# Every dtype with one activation, every representative with one dtype: for what depends on one of the two.
in_turn = pytest.mark.parametrize(
    ("activation", "dtype"),
    [(row, dtype) for i, row in enumerate(ENGINE) for j, dtype in enumerate(DTYPES) if i in (0, j)],
    ids=lambda value: getattr(value, "name", str(value)),
)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])

# A GPU so small that eager's grid-stride loop goes round several times: 6 blocks of 256 threads, which fill
# more than a program, and no whole number of them.
PROCESSORS = (3, 512)
# The call counter has a high word, and crosses 32 bits.
SEED, OFFSET = 0x9E3779B97F4A7C15, 4 * (2**40 + 2**32 - 3)

# Each vec of eager's plan, less and more than a block, than its grid, than an iteration.
SIZES = (1, 7, 10, 1000, 4096, 8200, 12_292, 20_001, 40_000)

LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 3),
    "misaligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    "sliced": lambda x: torch.cat([x, x], 3)[..., ::2],
    "expanded": lambda x: x[:, :1].expand(x.shape),
    "negated": lambda x: torch._neg_view(-x),
    "0-d": lambda x: x[0, 0, 0, 0],
}

# Values other than the defaults, so that one that is ignored is seen.
_VALUES = {
    "negative_slope": 0.3,
    "alpha": 0.3,
    "min_val": -0.7,
    "max_val": 1.3,
    "lambd": 0.4,
    "threshold": 0.2,
    "value": -0.6,
    "beta": 1.5,
}


class Public(NamedTuple):
    """How a user calls a row: its module and function, and their keyword arguments."""

    module: type[nn.Module]
    function: Callable[..., Tensor]
    arguments: dict[str, float | str]
    activation: Callable[[], nn.Module] | None  # PyTorch's module; None where it has none


def public(activation: Activation) -> Public:
    own = next(row for row in own_rows() if activation in (row, *_chosen(row)))
    name = f"{own.name}_dropout" if own is not rows.IDENTITY else "dropout"
    given = {
        parameter.name: next(v for v, row in parameter.choices.items() if (row or own) is activation)
        if parameter.choices
        else _VALUES[parameter.name]
        for parameter in own.parameters
    }
    module = next(cls for cls in _MODULES if cls.row is own)
    eager = None if own.module is None else lambda: own.module(**given)
    return Public(module, getattr(fusedact.functional, name), given, eager)


_MODULES = [
    cls
    for cls in vars(fusedact).values()
    if isinstance(cls, type) and issubclass(cls, fusedact.FusedActivationDropout) and hasattr(cls, "row")
]


def _chosen(row: Activation) -> list[Activation | None]:
    return [chosen for parameter in row.parameters for chosen in (parameter.choices or {}).values()]


def values(activation: Activation) -> tuple[float, ...]:
    """The numbers of its formula."""
    return tuple(_VALUES[p.name] for p in activation.parameters if p.choices is None)


def fused_module(
    activation: Activation, p: float = 0.5, inplace: bool = False, rng: str = "eager"
) -> nn.Module:
    found = public(activation)
    return found.module(p, inplace, **found.arguments, rng=rng)


def apply(activation: Activation, x: Tensor, p: float = 0.5, **options) -> Tensor:
    """Its function, as a user calls it."""
    found = public(activation)
    return found.function(x, p, **found.arguments, **options)


class Eager(nn.Module):
    """A row's PyTorch function as a module, where PyTorch has no module."""

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, input: Tensor) -> Tensor:
        return self.activation.function(input)


def eager_modules(activation: Activation, p: float = 0.5) -> nn.Module:
    made = public(activation).activation
    return nn.Sequential(Eager(activation) if made is None else made(), nn.Dropout(p))


def make_plan(x: Tensor, rng: str = "eager", processors: tuple[int, int] = PROCESSORS) -> Plan:
    if rng == "fast":
        return fast_plan(x.numel(), x.element_size())
    return eager_plan(x.numel(), x.element_size(), *processors)


def mask(x: Tensor, p: float, seed: int = SEED, offset: int = OFFSET, rng: str = "eager") -> Tensor:
    """The oracle's mask in the shape of the dense tensor `x`, whose elements the mapping numbers."""
    if rng == "fast":
        keep = masks.fast_mask(x.numel(), p, seed, offset)
    else:
        keep = masks.eager_mask(x.numel(), p, x.dtype, seed, offset, *PROCESSORS)
    if make_plan(x, rng).in_memory_order:
        return torch.as_strided(keep, x.shape, x.stride()).to(x.device)
    return keep.view(x.shape).to(x.device)


def configured(
    activation: Activation,
    x: Tensor,
    p: float,
    rng: str = "eager",
    plan: Plan | None = None,
    inplace: bool = False,
    watched: bool = False,
) -> LaunchConfiguration:
    from_output = inplace and activation.from_output is not None
    numbers = values(activation)
    used = used_probability(p, rng)
    result = configure(
        activation, x.dtype, x.numel(), numbers, used, plan or make_plan(x, rng), from_output, watched
    )
    assert result is not None
    return result


def forward_bits(configuration: LaunchConfiguration, x: Tensor, y: Tensor, state: PhiloxState) -> Tensor:
    """The packed bits of a launch, which writes `y` too."""
    bits = torch.empty(configuration.bits_shape, dtype=torch.int32, device=x.device)
    launch.forward(configuration, x, y, state, bits)
    return bits


def fused(
    activation: Activation,
    x: Tensor,
    p: float,
    inplace: bool = False,
    offset: int = OFFSET,
    rng: str = "eager",
) -> Tensor:
    configuration = configured(activation, x, p, rng, inplace=inplace)
    return autograd.fused(x, configuration, lambda: PhiloxState(SEED, offset), inplace)


def bytes_kept(activation: Activation, itemsize: int, from_output: bool = False) -> float:
    """Per element, for tiles that are full: the bits, and what stands beside them."""
    bits = {Saves.MASK: 1, Saves.ONE_BIT: 1, Saves.TWO_BITS: 2, Saves.INPUT: 1}[activation.saves]
    return bits / 8 + (itemsize if activation.saves is Saves.INPUT and not from_output else 0)


def steps(value: Tensor, truth: Tensor) -> Tensor:
    """The error of `value` in units of its dtype's last place at the float64 `truth`."""
    info = torch.finfo(value.dtype)
    exponent = torch.frexp(truth.abs().clamp_min(info.tiny)).exponent
    unit = torch.ldexp(torch.ones_like(truth), exponent - 1) * info.eps
    return (value.double() - truth).abs() / unit


def assert_equals_eager(activation: Activation, value: Tensor, expected: Tensor, truth: Tensor) -> None:
    """Eager's bits where the row promises them; else within 4 units of the float64 truth.

    tests/contract/test_accuracy.py holds the largest errors against eager's.
    """
    if activation.exact:
        torch.testing.assert_close(value, expected, rtol=0, atol=0, equal_nan=True)
        return
    # What isn't finite is held against the truth: of a NaN, eager's vectorised and its scalar ELU give
    # different gradients on a CPU. Where only eager's rounded steps overflow, either result will do.
    wide = value.double()
    close = (steps(value, truth) <= 4) | (wide == truth) | (wide.isnan() & truth.isnan())
    same = (value == expected) | (value.isnan() & expected.isnan())
    assert (close | same).all()


def both(call, x, dy, seed=7):
    """Result, gradient, and where the generator is afterwards."""
    torch.manual_seed(seed)
    x = x.detach().requires_grad_()
    y = call(x)
    (dx,) = torch.autograd.grad(y, x, dy)
    return y.detach(), dx, torch.cuda.default_generators[x.device.index].get_offset()


def of_roundings(dtype):
    """How far two results may be apart that compute exp in float32 each, and round to a half twice."""
    half = dtype in (torch.float16, torch.bfloat16)
    return {"rtol": 4 * torch.finfo(dtype).eps, "atol": 1e-5} if half else {}


def assert_same(activation, x, p, dy=None):
    dy = torch.randn_like(x) if dy is None else dy
    expected = both(eager_modules(activation, p), x, dy)
    result = both(lambda x: apply(activation, x, p), x, dy)
    assert result[2] == expected[2]
    assert result[0].stride() == expected[0].stride()
    if not activation.exact:
        assert torch.equal(result[0] == 0, expected[0] == 0)
        torch.testing.assert_close(result[:2], expected[:2], **of_roundings(x.dtype))
    else:
        assert torch.equal(result[0], expected[0])
        assert torch.equal(result[1], expected[1])


def edges():
    """Sizes around those where eager's plan changes, for this GPU."""
    properties = torch.cuda.get_device_properties(0)
    grid = properties.multi_processor_count * (properties.max_threads_per_multi_processor // 256) * 256
    near = [1, 255, 256, 257, 8192, 4 * 1021, 8 * 1021, 2 * 1021]
    for multiple in (1, 2, 4, 8, 16):
        near += [multiple * grid + d for d in (-8, -1, 0, 1, 2, 4)]
    # Simulated GPUs take a second for a million elements: large ones go round the loop once.
    return [n for n in near if n < 1_200_000]


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


def train(module, x, seed=1):
    """Value and gradient for a seed."""
    torch.manual_seed(seed)
    x = x.detach().requires_grad_()
    y = module(x)
    return y.detach(), *torch.autograd.grad(y, x, torch.ones_like(y))
