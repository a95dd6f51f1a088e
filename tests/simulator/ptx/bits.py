"""Logic, shifts, bit fields, bytes."""

import functools

from .kernel import Kernel
from .kinds import UnsupportedError, bits_of


def logic(kernel: Kernel, modifiers: list[str], operands: list[str], *, expression: str) -> str:
    (kind,) = modifiers
    kind = kind if kind == "pred" else f"u{bits_of(kind)}"
    values = [kernel.get(operand, kind) for operand in operands[1:]]
    return kernel.put(operands[0], kind, expression.format(*values))


def complement(kernel: Kernel, modifiers: list[str], operands: list[str]) -> str:
    return logic(kernel, modifiers, operands, expression="!{}" if modifiers == ["pred"] else "~{}")


def shift_left(kernel: Kernel, modifiers: list[str], operands: list[str]) -> str:
    n = bits_of(modifiers[-1])
    value, by = kernel.get(operands[1], f"u{n}"), kernel.get(operands[2], "u32")
    return kernel.put(operands[0], f"u{n}", f"{by} >= {n} ? 0 : {value} << {by}")


def shift_right(kernel: Kernel, modifiers: list[str], operands: list[str]) -> str:
    kind = modifiers[-1].replace("b", "u")
    n = bits_of(kind)
    value, by = kernel.get(operands[1], kind), kernel.get(operands[2], "u32")
    beyond = f"({value} >> {n - 1})" if kind[0] == "s" else "0"
    return kernel.put(operands[0], kind, f"{by} >= {n} ? {beyond} : {value} >> {by}")


def funnel_shift(kernel: Kernel, modifiers: list[str], operands: list[str]) -> str:
    side, mode, _ = modifiers
    a, b, by = (kernel.get(operand, "u32") for operand in operands[1:])
    by = f"({by} & 31)" if mode == "wrap" else f"({by} > 32 ? 32 : {by})"
    return kernel.put(operands[0], "u32", f"shf_{side}({a}, {b}, {by})")


def of_words(kernel: Kernel, modifiers: list[str], operands: list[str], *, function: str) -> str:
    if modifiers != ["b32"]:
        raise UnsupportedError(".".join(modifiers))
    values = ", ".join(kernel.get(operand, "u32") for operand in operands[1:])
    return kernel.put(operands[0], "u32", f"{function}({values})")


def extract_field(kernel: Kernel, modifiers: list[str], operands: list[str]) -> str:
    (kind,) = modifiers
    value, place, size = kernel.get(operands[1], kind), *(kernel.get(o, "u32") for o in operands[2:])
    return kernel.put(operands[0], kind, f"bfe_{kind[0]}({value}, {place}, {size}, {bits_of(kind)})")


def insert_field(kernel: Kernel, modifiers: list[str], operands: list[str]) -> str:
    n = bits_of(modifiers[-1])
    words = [kernel.get(operand, f"u{n}") for operand in operands[1:3]]
    field = [kernel.get(operand, "u32") for operand in operands[3:]]
    return kernel.put(operands[0], f"u{n}", f"bfi({', '.join(words + field)}, {n})")


def count_ones(kernel: Kernel, modifiers: list[str], operands: list[str]) -> str:
    value = kernel.get(operands[1], f"u{bits_of(modifiers[-1])}")
    return kernel.put(operands[0], "u32", f"__builtin_popcountll({value})")


def count_leading_zeros(kernel: Kernel, modifiers: list[str], operands: list[str]) -> str:
    n = bits_of(modifiers[-1])
    value = kernel.get(operands[1], f"u{n}")
    return kernel.put(operands[0], "u32", f"{value} ? __builtin_clzll({value}) - {64 - n} : {n}")


INSTRUCTIONS = {
    "and": functools.partial(logic, expression="{} & {}"),
    "bfe": extract_field,
    "bfi": insert_field,
    "brev": functools.partial(of_words, function="brev"),
    "clz": count_leading_zeros,
    "lop3": functools.partial(of_words, function="lop3"),
    "not": complement,
    "or": functools.partial(logic, expression="{} | {}"),
    "popc": count_ones,
    "prmt": functools.partial(of_words, function="prmt"),
    "shf": funnel_shift,
    "shl": shift_left,
    "shr": shift_right,
    "xor": functools.partial(logic, expression="{} ^ {}"),
}
