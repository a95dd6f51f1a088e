"""NVIDIA's machine code: disassembled, read, and sorted by the pipe that executes it."""

import collections
import re
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from benchmarks.machine_code.program import Binary, Instruction, Program

_SASS = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);", re.MULTILINE)


def parse(text: str) -> Program:
    """Read what `cuobjdump -sass` prints for a cubin of one kernel."""
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
        accessed = _width(suffixes) if base in ("LDG", "STG", "LD", "ST", "LDGSTS") else 0
        instructions.append(Instruction(name, bool(guard), accessed, label, base in ("EXIT", "RET")))
    return Program(instructions, places)


def _width(suffixes: Sequence[str]) -> int:
    """Bytes per thread of a memory instruction; without a suffix for it, a word."""
    for suffix in suffixes:
        if match := re.fullmatch(r"[US]?(8|16|64|128|256)", suffix):
            return int(match[1]) // 8
    return 4


def binary(compiled: Any) -> Binary:
    """Disassemble a kernel that Triton compiled."""
    text = _disassembled(compiled.asm["cubin"])
    if text.count("Function : ") != 1:
        raise ValueError("more than one function in the cubin")
    program = parse(text)
    spills = barriers = 0
    for instruction in program.instructions:
        base, *suffixes = instruction.name.split(".")
        spills += _width(suffixes) if base in ("STL", "LDL") else 0
        barriers += base == "BAR"
    registers = re.search(r"REG:(\d+)", text)
    assert registers
    return Binary(program, compiled.metadata.shared, barriers, spills, int(registers[1]))


def _disassembled(cubin: bytes) -> str:
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-sass", "-res-usage", file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Pipes(NamedTuple):
    """A thread's issue slots per pipe.

    Attributes:
        alu: logic, integer sums, comparisons, selects, moves, conversions between 16 and 32 bits.
        fma: float sums and products, which either half of the FMA pipe takes.
        fma_heavy: integer products, which one half takes; those with 64 bits need two slots.
        xu: the special functions, and conversions between integer and float.
        memory: loads and stores.
        other: the uniform datapath, control, special registers, float64.
    """

    alu: float
    fma: float
    fma_heavy: float
    xu: float
    memory: float
    other: float


_FMA = {"FADD", "FMUL", "FFMA", "FADD2", "FMUL2", "FFMA2", "HADD2", "HMUL2", "HFMA2"}
_XU = {"MUFU", "F2F", "F2I", "I2F", "FRND", "POPC", "FLO", "BREV"}
_MEMORY = {
    "LDG",
    "STG",
    "LD",
    "ST",
    "LDS",
    "STS",
    "LDL",
    "STL",
    "LDC",
    "LDGSTS",
    "SHFL",
    "ATOM",
    "ATOMG",
    "RED",
}
_OTHER = {"BRA", "BSSY", "BSYNC", "CALL", "RET", "EXIT", "NOP", "BAR", "WARPSYNC", "DEPBAR", "ACQBULK"}
_OTHER |= {"S2R", "CS2R", "S2UR", "R2UR", "JMP", "YIELD", "PREEXIT", "ELECT", "ERRBAR", "CCTL", "MEMBAR"}
_OTHER |= {"DADD", "DMUL", "DFMA", "DSETP", "DMNMX", "LDCU", "LEPC", "BREAK", "BMOV"}


def pipes(way: Iterable[Instruction]) -> Pipes:
    """Return the slots that the instructions take."""
    slots: collections.Counter[str] = collections.Counter()
    for instruction in way:
        base, *suffixes = instruction.name.split(".")
        if base == "IMAD":
            slots["fma_heavy"] += 2 if suffixes[:1] in (["WIDE"], ["HI"]) else 1
        elif base in ("IDP", "IDP4A"):
            slots["fma_heavy"] += 1
        elif base in _FMA:
            slots["fma"] += 2 if base in ("FADD2", "FMUL2", "FFMA2") else 1  # two of float32
        elif base in _XU:
            slots["xu"] += 1
        elif base in _MEMORY:
            slots["memory"] += 1
        elif base in _OTHER or base.startswith("U"):
            slots["other"] += 1
        else:
            slots["alu"] += 1
    return Pipes(**{name: float(slots[name]) for name in Pipes._fields})
