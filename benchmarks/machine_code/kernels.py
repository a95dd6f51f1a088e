"""fusedact's kernels, compiled as a launch would compile them, and counted."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from benchmarks.machine_code.program import accesses, full_block, narrow_accesses
from benchmarks.machine_code.row import Row, counted, read_binary
from fusedact.activations import ROWS, Activation, Saves
from fusedact.masks.plan import RNGS, Plan, eager_plan, fast_plan

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
KERNELS = ("forward", "backward", "backward_from_output")  # the last for operations in place


class Dtype(NamedTuple):
    """PyTorch's dtype, and Triton's name for it."""

    torch: torch.dtype
    triton: str


DTYPES = {
    "bfloat16": Dtype(torch.bfloat16, "bf16"),
    "float16": Dtype(torch.float16, "fp16"),
    "float32": Dtype(torch.float32, "fp32"),
    "float64": Dtype(torch.float64, "fp64"),
}


class Build(NamedTuple):
    """The dtype and the target that a kernel is compiled for."""

    dtype: str
    target: str


# The builds counted by default: every target in one dtype, and every dtype for one target.
USUAL = (
    *(Build("bfloat16", target) for target in ("sm_80", "sm_90", "sm_100")),
    *(Build(dtype, "sm_90") for dtype in ("float16", "float32")),
)


class Case(NamedTuple):
    """One kernel of one pair, for any dtype and target."""

    kernel: str
    activation: Activation
    rng: str


def cases() -> Iterator[Case]:
    """Return every kernel, with activation and rng."""
    for kernel, activation, rng in itertools.product(KERNELS, ROWS.values(), RNGS):
        if kernel != "backward_from_output" or activation.from_output:
            yield Case(kernel, activation, rng)


def plan_of(rng: str, itemsize: int) -> Plan:
    """Return any large GPU's plan: its number of multiprocessors is no compile-time argument."""
    n = 2**24
    return fast_plan(n, itemsize) if rng == "fast" else eager_plan(n, itemsize, 132, 2048)


def compiled(case: Case, dtype: Dtype, target: str) -> Any:
    """Compile with Triton, specialised as the launcher would for aligned tensors."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fusedact.kernels import configuration, dropout
    from fusedact.kernels.tiles import COLUMNS

    amd = target.startswith("gfx")
    gpu = GPUTarget("hip", target, 64) if amd else GPUTarget("cuda", int(target[3:]), 32)
    # Tensors below 2 GiB, which on AMD take another kind of access, are the usual ones.
    attributes = [["tt.divisibility", 16]] + ([["tt.pointer_range", 32]] if amd else [])
    plan, row = plan_of(case.rng, dtype.torch.itemsize), case.activation
    unit = bool(row.parameters) and row.parameters[0].default == 1  # as with PyTorch's own defaults
    if case.kernel == "forward":
        function = dropout.forward_kernel
        constants = configuration.forward_constants(row, dtype.torch, plan, unit, False, False)
    else:
        function = dropout.backward_kernel
        from_output = case.kernel == "backward_from_output"
        constants = configuration.backward_constants(row, dtype.torch, plan, unit, from_output)
    options = {name: constants.pop(name) for name in tuple(constants) if name not in function.arg_names}
    # As on that GPU, and not on this machine.
    constants["PACKED"] = not amd and configuration.packs_on(divmod(int(target[3:]), 10))
    options["num_warps"] = COLUMNS // gpu.warp_size
    signature, specialised = {}, {}
    for index, parameter in enumerate(function.params):
        if parameter.name in constants:
            signature[parameter.name] = "constexpr"
        elif parameter.name.endswith("_ptr"):
            signature[parameter.name] = "*i32" if parameter.name == "bits_ptr" else f"*{dtype.triton}"
            specialised[(index,)] = attributes
        else:
            signature[parameter.name] = parameter.annotation_type
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=specialised)
    return triton.compile(source, target=gpu, options=options)


def _reads_saved(case: Case) -> bool:
    return case.kernel != "forward" and case.activation.saves is Saves.INPUT


def measure(case: Case, build: Build) -> Row:
    """Compile one kernel and count."""
    import triton

    from fusedact.kernels.configuration import planes
    from fusedact.kernels.tiles import COLUMNS, TILE

    dtype, target = DTYPES[build.dtype], build.target
    itemsize = dtype.torch.itemsize
    kernel = compiled(case, dtype, target)
    binary = read_binary(kernel, target)
    way = full_block(binary.program)
    threads = kernel.metadata.num_warps * (64 if target.startswith("gfx") else 32)
    elements = TILE / threads  # of one thread
    bits = planes(case.activation) / 8
    tensors = 3 if _reads_saved(case) else 2
    moved = tensors * itemsize + bits
    found = accesses(way)
    if sum(found) < elements * moved:
        raise ValueError(f"{sum(found)} bytes per thread, but a full block moves {elements * moved}")
    words = planes(case.activation) * -(-COLUMNS // threads)
    return Row(
        backend="fusedact",
        kernel=case.kernel,
        activation=case.activation.name,
        dtype=build.dtype,
        rng=case.rng,
        narrow_accesses=narrow_accesses(found, elements * tensors * itemsize, words),
        saved_bytes_per_element=bits + (itemsize if case.activation.saves is Saves.INPUT else 0),
        triton=triton.__version__,
        **counted(binary, way, elements, moved, target),
    )


def measure_all(chosen: Sequence[Case], builds: Sequence[Build]) -> Iterator[Row]:
    """Count kernels, of those in `cases`."""
    for build, case in itertools.product(builds, chosen):
        try:
            yield measure(case, build)
        except ValueError as error:
            place = f"{case.kernel} {case.activation.name} {case.rng} {build.dtype} {build.target}"
            raise SystemExit(f"{place}: can't count its instructions: {error}") from error
