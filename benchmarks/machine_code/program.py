"""A kernel's instructions, and which of them a full block executes.

The count is the number of a thread's instructions in a full block, divided by the thread's elements. On AMD a
thread is a lane, and the scalar instructions of its wavefront count as its own. The count follows one path
through the program's control flow. Instructions behind the end (padding, a branch to itself) or on other
paths don't count. A full block's path is the one that

1. accesses the most bytes of global memory, since early exits are for blocks beyond the tensor's end;
2. of those, calls the fewest functions, since calls are slow paths for rare arguments;
3. of those, guards the fewest accesses, since full blocks take a path without bounds checks if there is one;
4. of those, is the longest, so that the count is too high rather than too low.

An instruction with a false predicate is still issued, so it counts. Instructions of the uniform datapath and
NOPs on the path count too. A loop, an indirect branch and an unavoidable call are errors, since the count
would be wrong.
"""

import graphlib
from collections.abc import Sequence
from typing import NamedTuple

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


class Binary(NamedTuple):
    """A compiled kernel: its program, and the resources that the compiler reports.

    Barriers and spills count wherever they stand. `spill_bytes` is the width of all loads and stores of
    local memory (NVIDIA), or a lane's scratch memory (AMD).
    """

    program: Program
    shared_bytes: int
    barriers: int
    spill_bytes: int
    registers: int


class _Score(NamedTuple):
    """Of the rest of a way: greater is likelier a full block's."""

    bytes: int
    calls: int
    guards: int
    length: int


def full_block(program: Program) -> list[Instruction]:
    """Return the instructions that a full block executes, in order; see the module's description."""
    instructions = program.instructions
    followers = _followers(program)
    best: dict[int, tuple[_Score, int | None]] = {}
    try:
        # A node's followers come before it.
        for at in graphlib.TopologicalSorter(followers).static_order():
            instruction = instructions[at]
            called = instruction.name.startswith("CALL")
            guarded = instruction.guarded and instruction.bytes > 0
            rest = [(best[follower][0], follower) for follower in followers[at]]
            score, follower = max(rest) if rest else (_Score(0, 0, 0, 0), None)
            score = _Score(
                score.bytes + instruction.bytes,
                score.calls - called,
                score.guards - guarded,
                score.length + 1,
            )
            best[at] = (score, follower)
    except graphlib.CycleError:
        raise ValueError("a loop: how often it runs isn't known") from None
    if best[0][0].calls:
        raise ValueError("a call on every way: what it executes isn't known")
    way = []
    place: int | None = 0
    while place is not None:
        way.append(instructions[place])
        place = best[place][1]
    return way


def _followers(program: Program) -> dict[int, list[int]]:
    """Return the places that may follow each place that can be reached."""
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
    return followers


def accesses(way: Sequence[Instruction]) -> list[int]:
    """Return the bytes of each access of global memory."""
    return [instruction.bytes for instruction in way if instruction.bytes]


def narrow_accesses(accesses: Sequence[int], tensor_bytes: float, words: int) -> int:
    """Accesses of tensors with less than 16 bytes, and of packed bits with less than a word.

    Machine code doesn't say whose bytes an access moves. Where the wide ones have room for the tensors,
    the others are those of the packed bits: `words` at least.
    """
    wide = sum(width for width in accesses if width >= WIDE)
    if wide >= tensor_bytes:
        return sum(width < 4 for width in accesses)
    return max(1, sum(width < WIDE for width in accesses) - words)
