"""A counted kernel's row in files and tables."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine_code import amdgcn, roofline, sass
from benchmarks.machine_code.program import Binary, Instruction


@dataclass(frozen=True)
class Row:
    """One direction of one pair; the names are the JSON's keys, figures are per element.

    Attributes:
        backend: the kernel's origin, fusedact or torch.compile.
        kernel: forward, backward, or backward_from_output (of operations in place).
        activation: its row's name.
        dtype: of the tensors.
        rng: the mapping, of fusedact's.
        target: the machine that it is compiled for.
        instructions_per_element: issued by a thread, by its elements.
        shared_bytes: of shared memory.
        barriers: in the program's text.
        spill_bytes: see `Binary`.
        registers: of a thread.
        narrow_accesses: see `program.narrow_accesses`; None if the accesses can't be told apart.
        bytes_per_element: moved.
        saved_bytes_per_element: the bytes that backward reads beside the upstream gradient.
        alu, fma, fma_heavy, xu, memory: slots of each pipe, see `sass.Pipes`; None on AMD.
        predicted: by GPU, the predicted time and what binds it; none on AMD.
        triton: its version.
        torch: its version, of torch.compile's kernels.
    """

    backend: str
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
    narrow_accesses: int | None
    bytes_per_element: float
    saved_bytes_per_element: float
    alu: float | None
    fma: float | None
    fma_heavy: float | None
    xu: float | None
    memory: float | None
    triton: str
    predicted: dict[str, dict[str, Any]] = field(default_factory=dict)
    torch: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        """The identity of the kernel that was counted."""
        return self.backend, self.kernel, self.activation, self.dtype, self.rng, self.target


def read_binary(compiled: Any, target: str) -> Binary:
    """Return the machine code of a kernel that Triton compiled."""
    return amdgcn.binary(compiled) if target.startswith("gfx") else sass.binary(compiled)


def counted(
    binary: Binary, way: Sequence[Instruction], elements: float, bytes: float, target: str
) -> dict[str, Any]:
    """Return the attributes of a row that follow from a kernel's way and a thread's elements."""
    instructions = len(way) / elements
    found: dict[str, Any] = {
        "instructions_per_element": round(instructions, 2),
        "shared_bytes": binary.shared_bytes,
        "barriers": binary.barriers,
        "spill_bytes": binary.spill_bytes,
        "registers": binary.registers,
        "bytes_per_element": round(bytes, 4),
        "target": target,
    }
    names = [name for name in sass.Pipes._fields if name != "other"]
    if target.startswith("gfx"):
        return {**found, **dict.fromkeys(names)}
    pipes = sass.Pipes(*(slots / elements for slots in sass.pipes(way)))
    predicted = {
        gpu.name: roofline.predict(gpu, instructions, pipes, bytes)._asdict()
        for gpu in roofline.GPUS
        if gpu.target == target
    }
    return {**found, **{name: round(getattr(pipes, name), 3) for name in names}, "predicted": predicted}


def save(rows: Iterable[Row], path: Path) -> None:
    """Write JSON with a line for each row."""
    path.write_text("[\n" + ",\n".join(json.dumps(asdict(row)) for row in rows) + "\n]\n")


def load(path: Path) -> list[Row]:
    """Read a file that `save` wrote."""
    return [Row(**row) for row in json.loads(path.read_text())]
