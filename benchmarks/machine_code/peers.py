"""The kernels that `torch.compile` makes of the same pairs, counted as fusedact's are.

Inductor generates them for a CUDA device, which may be simulated; nothing runs. Of a kernel's configurations,
between which Inductor chooses by timing, the one with the fewest instructions is taken.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from unittest import mock

import torch

from benchmarks import backends
from benchmarks.machine_code.kernels import DTYPES, Build
from benchmarks.machine_code.program import full_block
from benchmarks.machine_code.row import Row, counted, read_binary
from fusedact.activations import Activation

SIZE = 2**24  # elements: as large as those that memory binds


class Launch(NamedTuple):
    """One launch: Inductor's kernel, and the tensors that it was given."""

    kernel: Any
    tensors: list[torch.Tensor]

    @property
    def bytes_per_element(self) -> float:
        """The bytes that the launch moves per element: each tensor once."""
        return sum(tensor.nbytes for tensor in self.tensors) / SIZE


@contextlib.contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Record Inductor's launches, in place of compiling and running them."""
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    launches: list[Launch] = []

    def run(self: Any, *arguments: Any, **options: Any) -> None:
        launches.append(Launch(self, [each for each in arguments if isinstance(each, torch.Tensor)]))

    def precompile(self: Any, *arguments: Any, **options: Any) -> None: ...

    with (
        mock.patch.object(CachingAutotuner, "run", run),
        mock.patch.object(CachingAutotuner, "precompile", precompile),
        torch._inductor.config.patch(fx_graph_cache=False, compile_threads=1),
    ):
        yield launches


def generated(activation: Activation, dtype: torch.dtype) -> dict[str, Launch]:
    """Return the launch of each direction of a compiled pair.

    Raises:
        ValueError: a direction is more than one kernel.
    """
    layer = backends.build("compiled", lambda make: make(activation))
    x = torch.zeros(SIZE, dtype=dtype, device="cuda", requires_grad=True)
    with recorded() as launches:
        y = layer(x)
        forward = len(launches)
        y.backward(torch.zeros_like(y))
    if forward != 1 or len(launches) != 2:
        names = ", ".join(launch.kernel.fn.__name__ for launch in launches)
        raise ValueError(f"{activation.name}: more than a kernel each way: {names}")
    return dict(zip(("forward", "backward"), launches, strict=True))


def measure(kernel: str, activation: Activation, build: Build, launches: dict[str, Launch]) -> Row:
    """Compile one of the pair's kernels for a target in every configuration, and return the least count."""
    import triton

    # Backward reads the upstream gradient, writes one of the same size, and reads what was kept.
    kept = launches["backward"].bytes_per_element - 2 * DTYPES[build.dtype].torch.itemsize
    launch = launches[kernel]
    counts = [_counted(launch, configuration, build.target) for configuration in launch.kernel.configs]
    return Row(
        backend="torch.compile",
        kernel=kernel,
        activation=activation.name,
        dtype=build.dtype,
        rng="",
        narrow_accesses=None,
        saved_bytes_per_element=round(kept, 4),
        triton=triton.__version__,
        torch=torch.__version__,
        **min(counts, key=lambda count: float(count["instructions_per_element"])),
    )


def _counted(launch: Launch, configuration: Any, target: str) -> dict[str, Any]:
    """Return the count of one configuration, compiled as Inductor does."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    meta = launch.kernel._create_compile_meta(configuration)
    source = ASTSource(launch.kernel.fn, meta["signature"], meta["constants"], meta["configs"][0])
    options = launch.kernel._create_compile_options(configuration, meta)
    compiled = triton.compile(source, target=GPUTarget("cuda", int(target[3:]), 32), options=options)
    binary = read_binary(compiled, target)
    elements = configuration.kwargs["XBLOCK"] / (32 * configuration.num_warps)  # of one thread
    return counted(binary, full_block(binary.program), elements, launch.bytes_per_element, target)


def measure_all(activations: Sequence[Activation], builds: Sequence[Build]) -> Iterator[Row]:
    """Count both kernels of every pair."""
    if not torch.cuda.is_available():
        raise SystemExit("--peers needs a CUDA device, real or simulated: torch.compile generates for one")
    for dtype in dict.fromkeys(build.dtype for build in builds):
        for activation in activations:
            launches = generated(activation, DTYPES[dtype].torch)
            for build in builds:
                if build.dtype == dtype:
                    yield from (measure(kernel, activation, build, launches) for kernel in launches)
