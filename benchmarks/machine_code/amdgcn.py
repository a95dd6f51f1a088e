"""AMD's machine code: the assembly that Triton's AMD backend gives."""

import re
from typing import Any

from benchmarks.machine_code.program import Binary, Instruction, Program

_LINE = re.compile(r"^(?:(\.?\w+):|\t([a-z]\w+)(?:[ \t]+([^;\n]*))?)", re.MULTILINE)
_WIDTHS = {
    "dwordx4": 16,
    "dwordx3": 12,
    "dwordx2": 8,
    "dword": 4,
    "b128": 16,
    "b96": 12,
    "b64": 8,
    "b32": 4,
}


def parse(text: str) -> Program:
    """Read the assembly of one kernel."""
    instructions: list[Instruction] = []
    places: dict[str, int] = {}
    for label, name, operands in _LINE.findall(text):
        if label:
            places[label] = len(instructions)
            continue
        if name in ("s_setpc_b64", "s_swappc_b64"):
            raise ValueError(f"an indirect branch: {name} {operands}")
        target = operands.strip() if re.match(r"s_c?branch", name) else None
        accessed = 0
        if match := re.match(r"(?:global|buffer|flat)_(?:load|store)_(?:lds_)?(\w+)", name):
            kind = match[1]
            accessed = _WIDTHS.get(kind) or (1 if "byte" in kind or kind.endswith("8") else 2)
        guarded = name.startswith("s_cbranch")
        instructions.append(Instruction(name, guarded, accessed, target, name == "s_endpgm"))
    return Program(instructions, places)


def binary(compiled: Any) -> Binary:
    """Read a kernel that Triton compiled."""
    text = compiled.asm["amdgcn"]

    def said(key: str) -> int:
        match = re.search(rf"^\s+\.{key}:\s+(\d+)", text, re.MULTILINE)
        assert match, key
        return int(match[1])

    program = parse(text)
    barriers = sum(instruction.name.startswith("s_barrier") for instruction in program.instructions)
    spills = said("private_segment_fixed_size")
    return Binary(program, compiled.metadata.shared, barriers, spills, said("vgpr_count"))
