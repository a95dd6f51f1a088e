"""Print a report for bug reports, by `python -m fusedact.env`: versions, paths of calls, self-tests.

Each device has its own self-tests. On a GPU one of them compares masks of `torch.nn.Dropout` with the
oracle's. The command needs no GPU and no Triton. Its exit code is 1 if a self-test fails, else 0.
"""

import platform
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import __version__, dispatch, kernels, operators
from .activations import REQUIRED, ROWS, Activation
from .masks import eager_mask
from .masks import plan as plans

# Versions of torch whose masks were confirmed: benchmarks/results/dropout-verification.json.
CONFIRMED = ("2.11.0", "2.14.1")
_ELEMENTS, _P = 2**18, 0.3


def versions() -> dict[str, str]:
    """Return the installed versions, the system and the GPU, a line of text each."""
    return {
        "fusedact": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "torch": torch.__version__,
        "triton": _triton(),
        "system": platform.platform(),
        "GPU": "seen by PyTorch" if torch.cuda.is_available() else f"none seen by PyTorch, {_built()}",
    }


def _triton() -> str:
    if not kernels.INSTALLED:
        return "not installed"
    try:
        import triton
    except Exception as error:  # a bug report has to show a broken installation
        return f"installed, but its import fails: {error!r}"
    return str(triton.__version__)


def _built() -> str:
    if torch.version.cuda:
        return f"which was built for CUDA {torch.version.cuda}"
    return f"which was built for {'ROCm ' + torch.version.hip if torch.version.hip else 'CPUs'}"


def devices() -> list[torch.device]:
    """Return the CPU, and each device of the accelerator if PyTorch sees one."""
    found = [torch.device("cpu")]
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:
        found += [torch.device(accelerator.type, i) for i in range(torch.accelerator.device_count())]
    return found


def describe(device: torch.device) -> str:
    """Return the device's name, and for a GPU the properties that its masks depend on."""
    if device.type == "cpu":
        return platform.machine() or "unknown"
    if device.type != "cuda":
        return device.type
    properties = torch.cuda.get_device_properties(device)
    capability = f"compute capability {properties.major}.{properties.minor}"
    multiprocessors, threads = plans.processors(device.index)
    return f"{properties.name}, {capability}, {multiprocessors} multiprocessors of {threads} threads"


def paths(device: torch.device) -> tuple[str, str]:
    """Return the paths of a plain and a compiled call on `device`, with the reason for a fallback."""
    if dispatch.runs_kernels(torch.empty(1, device=device)) and kernels.INSTALLED:
        return "kernels", "operators that launch the kernels"
    why = (
        "Triton isn't installed" if device.type == operators.DEVICE else "the kernels need a CUDA or ROCm GPU"
    )
    return f"eager composition: {why}", "the same, compiled"


def self_test(device: torch.device) -> str:
    """Compare forward and backward of every activation with PyTorch's functions, from the same seed.

    If a row is `exact`, values and gradients must be eager's bits. Otherwise they must be close.

    Returns:
        "passed".

    Raises:
        AssertionError: a value or a gradient differs.
    """
    for row in ROWS.values():
        for dtype in (torch.float32, torch.bfloat16):
            try:
                _compare(row, torch.randn(128, 100, device=device, dtype=dtype, requires_grad=True))
            except AssertionError as error:
                raise AssertionError(f"{row.name}, {dtype}: {error}") from None
    return "passed"


def _compare(row: Activation, x: Tensor) -> None:
    values = tuple(
        0.5 if parameter.default is REQUIRED else parameter.default
        for parameter in row.parameters
        if parameter.choices is None
    )

    # Some functions are several operations, each of which rounds a half. Such a row's kernel rounds once.
    once = dispatch.runs_kernels(x) and not row.exact

    def eager(x: Tensor) -> Tensor:
        y = row.function(x.float() if once else x, *values)
        return nn.functional.dropout(y.to(x.dtype), 0.5)

    def fused(x: Tensor) -> Tensor:
        return dispatch.activation_dropout(row, x, values, 0.5, True, False, "eager")

    def run(function: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        torch.manual_seed(0)
        y = function(x)
        (dx,) = torch.autograd.grad(y, x, torch.randn_like(x))
        return {"output": y.detach(), "gradient": dx}

    rtol, atol = (4 * torch.finfo(x.dtype).eps, 1e-3) if x.dtype is torch.bfloat16 else (2e-5, 2e-6)
    if row.exact:
        rtol = atol = 0.0
    torch.testing.assert_close(run(fused), run(eager), rtol=rtol, atol=atol)


class Drawn(NamedTuple):
    """One mask of `torch.nn.Dropout`, and the generator's seed and its offset before and after the call."""

    keep: Tensor
    seed: int
    before: int
    after: int


def draw(device: torch.device, dtype: torch.dtype) -> Drawn:
    """Draw one mask of `torch.nn.Dropout` on a GPU; return it on the CPU."""
    generator = torch.cuda.default_generators[torch.device(device).index]
    generator.manual_seed(2**40 + 1)
    generator.set_offset(8)
    keep = nn.Dropout(_P)(torch.ones(_ELEMENTS, device=device, dtype=dtype)) != 0
    return Drawn(keep.cpu(), generator.initial_seed(), 8, generator.get_offset())


def check_masks(device: torch.device) -> str:
    """Compare one mask of `torch.nn.Dropout` per dtype with the oracle's.

    Returns:
        The result as text.

    Raises:
        AssertionError: a mask or the generator's offset differs.
    """
    for dtype in dispatch.DTYPES:
        drawn = draw(device, dtype)
        gpu = plans.processors(device.index)
        keep = eager_mask(_ELEMENTS, _P, dtype, drawn.seed, drawn.before, *gpu)
        increment = plans.eager_plan(_ELEMENTS, dtype.itemsize, *gpu).increment
        if not torch.equal(drawn.keep, keep) or drawn.after != drawn.before + increment:
            raise AssertionError(
                f'rng="eager" no longer matches torch.nn.Dropout in {dtype}: torch {torch.__version__} '
                f"draws another mask. It was confirmed for torch {' and '.join(CONFIRMED)}. Fused calls "
                "stay right, with masks of their own. Please report it with this output"
            )
    names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dispatch.DTYPES)
    return f"torch.nn.Dropout's, element for element, in {names}"


def checks(device: torch.device) -> dict[str, Callable[[torch.device], str]]:
    """Return the lines printed for a device: by name, the functions that compute their text."""
    return {
        "calls": lambda device: paths(device)[0],
        "torch.compile": lambda device: paths(device)[1],
        **({"masks": check_masks} if device.type == "cuda" else {}),
        "self-test": self_test,
    }


def main() -> int:
    """Print the report, and return the exit code."""
    for name, value in versions().items():
        print(f"{name:<10}{value}")
    failures = 0
    for device in devices():
        print(f"\n{device}: {describe(device)}")
        for name, check in checks(device).items():
            try:
                print(f"  {name:<15}{check(device)}")
            except Exception as error:
                failures += 1
                text = f"{type(error).__name__}: {error}".strip().replace("\n", "\n    ")
                print(f"  {name:<15}FAILED\n    {text}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
