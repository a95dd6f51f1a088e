"""What the compiler makes of the kernels, on a machine that needs no GPU.

    python -m benchmarks.machine_code [--target sm_90 ...] [--dtype bfloat16 ...] [--json FILE] ...

compiles every kernel for every target as a launch would (dense, 16-byte aligned tensors with a multiple
of 8 elements), prints a Markdown table per target and writes the rows as JSON.

Instructions are those that one thread issues in a full block, by the elements that are a thread's share;
on AMD a thread is a lane, and the scalar instructions of its wavefront count as its own. Counted is a way
through the program's control flow, not its text: what stands behind the end (padding, a branch to
itself) or on another way isn't. A full block's way is the one that

1. accesses the most bytes of global memory: early exits are for blocks beyond the tensor's end;
2. of those, calls the fewest functions: calls are slow paths, for arguments that are rare;
3. of those, guards the fewest accesses: where there is a way without bounds checks, full blocks take it;
4. of those, is the longest: where nothing decides, the count is too high and not too low.

An instruction whose predicate is false is still issued, and counts; so do those of the uniform datapath
and NOPs on the way. A loop, an indirect branch, a call that can't be avoided and a way that moves fewer
bytes than the tile has are errors: the count would be wrong.

Barriers and spills count wherever they stand. `spill_bytes` is the width of all loads and stores of
local memory (NVIDIA), or a lane's scratch memory (AMD).
"""

import argparse
import functools
import graphlib
import itertools
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fusedact import random
from fusedact.activations import Activation, Saved
from fusedact.functional import ACTIVATIONS
from fusedact.random import Plan

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
# By their names in the rows: the dtype, and Triton's name for it.
DTYPES = {
    "bfloat16": (torch.bfloat16, "bf16"),
    "float16": (torch.float16, "fp16"),
    "float32": (torch.float32, "fp32"),
    "float64": (torch.float64, "fp64"),
}
KERNELS = ("forward", "backward", "backward_from_output")  # the last for operations in place
# The most instructions per element, per kernel, activation and rng. An activation that isn't here is held
# to its committed counts alone.
BUDGETS = {
    ("forward", "relu", "eager"): 26,
    ("forward", "leaky_relu", "eager"): 28,
    ("forward", "elu", "eager"): 34,
    ("forward", "relu", "fast"): 16,
    ("forward", "leaky_relu", "fast"): 18,
    ("forward", "elu", "fast"): 24,
    ("backward", "relu", "eager"): 8,
    ("backward", "leaky_relu", "eager"): 10,
    ("backward", "elu", "eager"): 12,
    ("backward", "relu", "fast"): 8,
    ("backward", "leaky_relu", "fast"): 10,
    ("backward", "elu", "fast"): 12,
    ("backward_from_output", "elu", "eager"): 12,
    ("backward_from_output", "elu", "fast"): 12,
}
WIDE = 16  # bytes: the widest access that every target has


class Instruction(NamedTuple):
    """One machine instruction, as far as counting goes.

    Attributes:
        name: the mnemonic with its suffixes.
        guarded: a predicate may switch it off.
        bytes: of global memory that it accesses, per thread.
        label: of a branch's target.
        ends: the program ends here, or the callee returns.
    """

    name: str
    guarded: bool = False
    bytes: int = 0
    label: str | None = None
    ends: bool = False


class Program(NamedTuple):
    """Instructions in the order of their text; `places` are the indices that labels stand for."""

    instructions: list[Instruction]
    places: dict[str, int]


class Way(NamedTuple):
    """What a full block executes."""

    instructions: int
    accesses: list[int]  # bytes each


@dataclass(frozen=True)
class Row:
    """One compiled kernel; the names are the JSON's keys."""

    kernel: str
    activation: str
    dtype: str
    rng: str
    target: str
    instructions_per_element: float
    shared_bytes: int
    barriers: int
    spill_bytes: int
    registers: int
    narrow_accesses: int
    bytes_per_element: float
    saved_bytes_per_element: float
    triton: str


_SASS = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);", re.MULTILINE)


def parse_sass(text: str) -> Program:
    """What `cuobjdump -sass` prints for a cubin of one kernel."""
    instructions: list[Instruction] = []
    places: dict[str, int] = {}
    for address, guard, name, operands in _SASS.findall(text):
        places[f"{int(address, 16):x}"] = len(instructions)
        base, *suffixes = name.split(".")
        if base in ("BRX", "BRXU", "JMX", "JMXU"):
            raise ValueError(f"an indirect branch: {name}{operands}")
        label = None
        # BRA.DIV is for threads of a warp that have parted; a full block's haven't.
        if base in ("BRA", "JMP") and "DIV" not in suffixes:
            label = re.findall(r"0x([0-9a-f]+)", operands)[-1]
            if re.search(r"\bU?P\d", operands):  # BRA's second condition, in its operands
                guard = guard or "@"
        accessed = _sass_width(suffixes) if base in ("LDG", "STG", "LD", "ST", "LDGSTS") else 0
        instructions.append(Instruction(name, bool(guard), accessed, label, base in ("EXIT", "RET")))
    return Program(instructions, places)


def _sass_width(suffixes: Sequence[str]) -> int:
    """Bytes per thread of a memory instruction; without a suffix for it, a word."""
    for suffix in suffixes:
        if match := re.fullmatch(r"[US]?(8|16|64|128|256)", suffix):
            return int(match[1]) // 8
    return 4


_GCN_LINE = re.compile(r"^(?:(\.?\w+):|\t([a-z]\w+)(?:[ \t]+([^;\n]*))?)", re.MULTILINE)
_GCN_WIDTHS = {
    "dwordx4": 16,
    "dwordx3": 12,
    "dwordx2": 8,
    "dword": 4,
    "b128": 16,
    "b96": 12,
    "b64": 8,
    "b32": 4,
}


def parse_amdgcn(text: str) -> Program:
    """The assembly of one kernel that Triton's AMD backend gives."""
    instructions: list[Instruction] = []
    places: dict[str, int] = {}
    for label, name, operands in _GCN_LINE.findall(text):
        if label:
            places[label] = len(instructions)
            continue
        if name in ("s_setpc_b64", "s_swappc_b64"):
            raise ValueError(f"an indirect branch: {name} {operands}")
        target = operands.strip() if re.match(r"s_c?branch", name) else None
        accessed = 0
        if match := re.match(r"(?:global|buffer|flat)_(?:load|store)_(?:lds_)?(\w+)", name):
            kind = match[1]
            accessed = _GCN_WIDTHS.get(kind) or (1 if "byte" in kind or kind.endswith("8") else 2)
        guarded = name.startswith("s_cbranch")
        instructions.append(Instruction(name, guarded, accessed, target, name == "s_endpgm"))
    return Program(instructions, places)


def full_block(program: Program) -> Way:
    """The way of a full block through the program: see the module's description."""
    instructions, places = program
    followers: dict[int, list[int]] = {}
    pending = [0]
    while pending:
        at = pending.pop()
        if at in followers:
            continue
        instruction = instructions[at]
        onward = [places[instruction.label]] if instruction.label is not None else []
        if instruction.guarded or not (instruction.ends or onward):
            onward.append(at + 1)
        followers[at] = onward
        pending += onward
    best: dict[int, tuple[tuple[int, int, int, int], int | None]] = {}
    try:
        # A node's followers come before it.
        for at in graphlib.TopologicalSorter(followers).static_order():
            instruction = instructions[at]
            called = instruction.name.startswith("CALL")
            guarded = instruction.guarded and instruction.bytes > 0
            rest = [(best[follower][0], follower) for follower in followers[at]]
            (accessed, calls, guards, length), follower = max(rest) if rest else ((0, 0, 0, 0), None)
            score = (accessed + instruction.bytes, calls - called, guards - guarded, length + 1)
            best[at] = (score, follower)
    except graphlib.CycleError:
        raise ValueError("a loop: how often it runs isn't known") from None
    (_, calls, _, length), _ = best[0]
    if calls:
        raise ValueError("a call on every way: what it executes isn't known")
    accesses = []
    place: int | None = 0
    while place is not None:
        if instructions[place].bytes:
            accesses.append(instructions[place].bytes)
        place = best[place][1]
    return Way(length, accesses)


def narrow_accesses(accesses: Sequence[int], tensor_bytes: float, words: int) -> int:
    """Accesses of tensors with less than 16 bytes, and of packed bits with less than a word.

    Machine code doesn't say whose bytes an access moves. Where the wide ones have room for the tensors,
    the others are those of the packed bits: `words` at least.
    """
    wide = sum(width for width in accesses if width >= WIDE)
    if wide >= tensor_bytes:
        return sum(width < 4 for width in accesses)
    return max(1, sum(width < WIDE for width in accesses) - words)


class Binary(NamedTuple):
    """A compiled kernel: its program, and what the compiler says of its resources."""

    program: Program
    shared_bytes: int
    barriers: int
    spill_bytes: int
    registers: int


def _disassembled(cubin: bytes) -> str:
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-sass", "-res-usage", file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _nvidia(compiled: Any) -> Binary:
    text = _disassembled(compiled.asm["cubin"])
    if text.count("Function : ") != 1:
        raise ValueError("more than one function in the cubin")
    program = parse_sass(text)
    spills = barriers = 0
    for instruction in program.instructions:
        base, *suffixes = instruction.name.split(".")
        spills += _sass_width(suffixes) if base in ("STL", "LDL") else 0
        barriers += base == "BAR"
    registers = re.search(r"REG:(\d+)", text)
    assert registers
    return Binary(program, compiled.metadata.shared, barriers, spills, int(registers[1]))


def _amd(compiled: Any) -> Binary:
    text = compiled.asm["amdgcn"]

    def said(key: str) -> int:
        match = re.search(rf"^\s+\.{key}:\s+(\d+)", text, re.MULTILINE)
        assert match, key
        return int(match[1])

    program = parse_amdgcn(text)
    barriers = sum(instruction.name.startswith("s_barrier") for instruction in program.instructions)
    spills = said("private_segment_fixed_size")
    return Binary(program, compiled.metadata.shared, barriers, spills, said("vgpr_count"))


def compile_kernel(kernel: str, activation: Activation, dtype_name: str, plan: Plan, target: str) -> Any:
    """Triton's compiled kernel, specialised as the launcher would for aligned tensors."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fusedact.kernels import dropout, launch

    amd = target.startswith("gfx")
    gpu = GPUTarget("hip", target, 64) if amd else GPUTarget("cuda", int(target[3:]), 32)
    dtype, element = DTYPES[dtype_name]
    # Tensors below 2 GiB, which on AMD take another kind of access, are the usual ones.
    attributes = [["tt.divisibility", 16]] + ([["tt.pointer_range", 32]] if amd else [])
    function = dropout.forward_kernel if kernel == "forward" else dropout.backward_kernel
    constants = dict(launch.specialisation(activation, kernel, dtype, plan))
    options = {name: constants.pop(name) for name in tuple(constants) if name not in function.arg_names}
    options["num_warps"] = dropout.COLUMNS // gpu.warp_size  # as on that GPU, and not on this machine
    if kernel == "forward":
        constants["signs_ptr"] = None
    elif activation.saved is not Saved.INPUT:
        constants["x_ptr"] = None
    signature, specialised = {}, {}
    for index, parameter in enumerate(function.params):
        if parameter.name in constants:
            signature[parameter.name] = "constexpr"
        elif parameter.name.endswith("_ptr"):
            signature[parameter.name] = "*i32" if parameter.name == "bits_ptr" else f"*{element}"
            specialised[(index,)] = attributes
        else:
            signature[parameter.name] = parameter.annotation_type
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=specialised)
    return triton.compile(source, target=gpu, options=options)


def measure(kernel: str, activation: Activation, dtype_name: str, rng: str, target: str) -> Row:
    """Compile one kernel and count."""
    import triton

    from fusedact.kernels import dropout, launch

    dtype, _ = DTYPES[dtype_name]
    # Any large GPU's plan: its number of multiprocessors is no compile-time argument.
    plan = random.plan(rng, 2**24, dtype.itemsize, 132, 2048)
    compiled = compile_kernel(kernel, activation, dtype_name, plan, target)
    binary = _amd(compiled) if target.startswith("gfx") else _nvidia(compiled)
    way = full_block(binary.program)

    threads = compiled.metadata.num_warps * (64 if target.startswith("gfx") else 32)
    elements = dropout.COLUMNS * dropout.WORD / threads  # of one thread
    planes = launch.planes(activation)
    keeps_input = activation.saved is Saved.INPUT
    tensors = 3 if kernel != "forward" and keeps_input else 2
    moved = tensors * dtype.itemsize + planes / 8
    if sum(way.accesses) < elements * moved:
        raise ValueError(f"{sum(way.accesses)} bytes per thread, but a full block moves {elements * moved}")
    words = planes * -(-dropout.COLUMNS // threads)
    return Row(
        kernel=kernel,
        activation=activation.name,
        dtype=dtype_name,
        rng=rng,
        target=target,
        instructions_per_element=round(way.instructions / elements, 2),
        shared_bytes=binary.shared_bytes,
        barriers=binary.barriers,
        spill_bytes=binary.spill_bytes,
        registers=binary.registers,
        narrow_accesses=narrow_accesses(way.accesses, elements * tensors * dtype.itemsize, words),
        bytes_per_element=moved,
        # The output, which the next layer keeps anyway, included.
        saved_bytes_per_element=planes / 8 + (dtype.itemsize if keeps_input else 0),
        triton=triton.__version__,
    )


def cases() -> Iterator[tuple[str, Activation, str]]:
    """Every kernel that there is, with activation and rng."""
    for kernel, activation, rng in itertools.product(KERNELS, ACTIVATIONS, random.RNGS):
        if kernel != "backward_from_output" or activation.from_output:
            yield kernel, activation, rng


def measure_all(
    chosen: Sequence[tuple[str, Activation, str]], target: str, dtypes: Sequence[str]
) -> Iterator[Row]:
    """Kernels, of those in `cases`, for one target."""
    for (kernel, activation, rng), dtype in itertools.product(chosen, dtypes):
        try:
            yield measure(kernel, activation, dtype, rng, target)
        except ValueError as error:
            place = f"{kernel} {activation.name} {dtype} {rng} {target}"
            raise SystemExit(f"{place}: can't count its instructions: {error}") from error


@functools.cache
def assembler(target: str) -> str:
    """The assembler that Triton takes for a target, with its version."""
    if target.startswith("gfx"):
        return "LLVM"
    from triton.backends.nvidia.compiler import get_ptxas_version

    match = re.search(r"V([\d.]+)", get_ptxas_version(int(target[3:])))
    return f"ptxas {match[1] if match else '?'}"


_COLUMNS = {
    "kernel": "kernel",
    "activation": "activation",
    "rng": "rng",
    "dtype": "dtype",
    "instructions_per_element": "instructions / element",
    "budget": "budget",
    "shared_bytes": "shared, B",
    "barriers": "barriers",
    "spill_bytes": "spills, B",
    "registers": "registers",
    "narrow_accesses": "narrow accesses",
    "bytes_per_element": "moved, B / element",
    "saved_bytes_per_element": "kept, B / element",
}


def is_exempt(row: Row) -> bool:
    """AMD's, and float64, whose arithmetic runs at half or at a 64th of the speed: nobody trains in it."""
    return row.dtype == "float64" or row.target.startswith("gfx")


def budget(row: Row) -> int | None:
    """The most instructions per element that a row may count; None where nothing is set."""
    return None if is_exempt(row) else BUDGETS.get((row.kernel, row.activation, row.rng))


def table(rows: Sequence[Row]) -> str:
    """A Markdown table of one target's rows."""
    lines = [f"| {' | '.join(_COLUMNS.values())} |", f"|{'---|' * 4}{'---:|' * (len(_COLUMNS) - 4)}"]
    for row in rows:
        values = asdict(row)
        values["budget"] = budget(row) or ""
        lines.append(f"| {' | '.join(f'{values[name]}' for name in _COLUMNS)} |")
    return "\n".join(lines)


def summary(rows: Sequence[Row], target: str) -> str:
    """A Markdown table of one target's instructions per element beside their budgets; bold: above it."""
    names = [name for name in DTYPES if name != "float64"]
    lines = [f"| kernel | rng | activation | {' | '.join(names)} | budget |", f"|---|---|---|{'---:|' * 4}"]
    # Those with a budget in its order, then the others in theirs.
    for key in dict.fromkeys([*BUDGETS, *((row.kernel, row.activation, row.rng) for row in rows)]):
        kernel, activation, rng = key
        limit = BUDGETS.get(key)
        counts = {}
        for row in rows:
            if (row.kernel, row.activation, row.rng, row.target) == (*key, target):
                above = limit is not None and row.instructions_per_element > limit
                counts[row.dtype] = ("**{:.1f}**" if above else "{:.1f}").format(row.instructions_per_element)
        lines.append(
            f"| {kernel} | {rng} | {activation} | {' | '.join(counts[n] for n in names)} | {limit or ''} |"
        )
    return "\n".join(lines)


def check_compiler() -> None:
    """Leave with one line where Triton can't compile."""
    if os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y"):
        raise SystemExit("TRITON_INTERPRET is set: the interpreter compiles nothing; unset it")
    try:
        import triton  # noqa: F401
    except ImportError:
        raise SystemExit("Triton is not installed (pip install triton): nothing to compile with") from None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.machine_code", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--target", nargs="+", choices=TARGETS, default=TARGETS, metavar="TARGET", help=", ".join(TARGETS)
    )
    parser.add_argument(
        "--dtype", nargs="+", choices=DTYPES, default=tuple(DTYPES), metavar="DTYPE", help=", ".join(DTYPES)
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    names = [activation.name for activation in ACTIVATIONS]
    for option, allowed in (("kernel", KERNELS), ("activation", names), ("rng", random.RNGS)):
        parser.add_argument(
            f"--{option}",
            nargs="+",
            choices=allowed,
            default=allowed,
            metavar=option.upper(),
            help=", ".join(allowed),
        )
    options = parser.parse_args(arguments)
    chosen = [
        (kernel, activation, rng)
        for kernel, activation, rng in cases()
        if kernel in options.kernel and activation.name in options.activation and rng in options.rng
    ]
    if not chosen:
        parser.error("no kernel is all of that: backward_from_output is ELU's alone")
    check_compiler()
    rows: list[Row] = []
    for target in options.target:
        found = list(measure_all(chosen, target, options.dtype))
        print(f"\n### {target}: Triton {found[0].triton}, {assembler(target)}\n\n{table(found)}", flush=True)
        rows += found
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
