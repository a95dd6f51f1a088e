"""Arithmetic and comparisons, of integers and floats.

Not bit-exact: ex2, lg2, sin, cos, tanh, rcp, rsqrt, sqrt and div with .approx or .full, which are the C
library's here. fma of bf16 rounds twice, first to float64.
"""

import functools

from .kernel import Kernel
from .kinds import FLOATS, UnsupportedError, bits_of, check_modifiers

# Floats


def is_float(kind: str) -> bool:
    return kind.removesuffix("x2") in FLOATS


def halves(kernel: Kernel, kind: str, operands: list[str], shift: int) -> list[str]:
    """The low (shift 0) or high (16) halves of operands that hold two."""
    return [f"{kind}((uint16_t)({kernel.raw(operand)} >> {shift}))" for operand in operands]


def float_values(kernel: Kernel, modifiers: list[str], operands: list[str], kind: str) -> list[str]:
    values = [kernel.get(operand, kind) for operand in operands]
    return [f"ftz({value})" for value in values] if "ftz" in modifiers and kind == "f32" else values


def of_floats(kernel: Kernel, modifiers: list[str], operands: list[str], expression: str) -> str:
    """`expression` of the values {0}, {1}, {2}, rounded to nearest, for one float or a pair of halves."""
    check_modifiers(modifiers[:-1], "rn", "ftz", "sat", "approx", "full", "NaN")
    kind = modifiers[-1]
    if "sat" in modifiers:
        expression = f"sat({expression})"
    if kind.endswith("x2"):
        half = kind.removesuffix("x2")
        parts = (
            f"(uint32_t)to_{half}({expression.format(*halves(kernel, half, operands[1:], shift))}) << {shift}"
            for shift in (0, 16)
        )
        return kernel.put(operands[0], "u32", " | ".join(parts))
    value = expression.format(*float_values(kernel, modifiers, operands[1:], kind))
    return kernel.put(operands[0], kind, f"ftz({value})" if "ftz" in modifiers and kind == "f32" else value)


def approximation(kernel: Kernel, modifiers: list[str], operands: list[str], *, expression: str) -> str:
    if not is_float(modifiers[-1]):
        raise UnsupportedError(modifiers[-1])
    return of_floats(kernel, modifiers, operands, expression)


_MODES = {"rm": "FE_DOWNWARD", "rp": "FE_UPWARD", "rz": "FE_TOWARDZERO"}


def fma(kernel: Kernel, modifiers: list[str], operands: list[str]) -> str:
    if modifiers[0] in _MODES and modifiers[-1] == "f32":
        mode, *modifiers = modifiers
        return of_floats(kernel, modifiers, operands, f"fmaf_rounded({_MODES[mode]}, {{0}}, {{1}}, {{2}})")
    name = "fmaf" if modifiers[-1] == "f32" else "fma"
    return of_floats(kernel, modifiers, operands, name + "({0}, {1}, {2})")


def flip_sign(kernel: Kernel, modifiers: list[str], operands: list[str]) -> str:
    kind = modifiers[-1]
    if not is_float(kind):
        return kernel.put(operands[0], kind, f"-{kernel.get(operands[1], kind)}")
    return kernel.put(operands[0], f"u{bits_of(kind)}", f"{kernel.raw(operands[1])} ^ {_signs(kind)}")


def drop_sign(kernel: Kernel, modifiers: list[str], operands: list[str]) -> str:
    kind = modifiers[-1]
    if not is_float(kind):
        value = kernel.get(operands[1], kind)
        return kernel.put(operands[0], kind, f"{value} < 0 ? -{value} : {value}")
    return kernel.put(operands[0], f"u{bits_of(kind)}", f"{kernel.raw(operands[1])} & ~{_signs(kind)}")


def _signs(kind: str) -> str:
    return "0x80008000ull" if kind.endswith("x2") else f"(1ull << {bits_of(kind) - 1})"


# Integers


def binary(kernel: Kernel, modifiers: list[str], operands: list[str], *, symbol: str) -> str:
    kind = modifiers[-1]
    if is_float(kind):
        return of_floats(kernel, modifiers, operands, f"{{0}} {symbol} {{1}}")
    check_modifiers(modifiers[:-1])
    a, b = (kernel.get(operand, kind) for operand in operands[1:])
    return kernel.put(operands[0], kind, f"{a} {symbol} {b}")


def multiply(kernel: Kernel, modifiers: list[str], operands: list[str]) -> str:
    if is_float(modifiers[-1]):
        return of_floats(kernel, modifiers, operands, "{0} * {1}")
    return _product(kernel, modifiers, operands, "0")


def multiply_add(kernel: Kernel, modifiers: list[str], operands: list[str]) -> str:
    kind = modifiers[-1]
    if is_float(kind):
        return fma(kernel, modifiers, operands)
    wide = f"{kind[0]}{2 * bits_of(kind)}" if "wide" in modifiers else kind
    return _product(kernel, modifiers, operands[:3], kernel.get(operands[3], wide))


def _product(kernel: Kernel, modifiers: list[str], operands: list[str], plus: str) -> str:
    part, kind = modifiers
    n = bits_of(kind)
    double = f"{'' if kind[0] == 's' else 'u'}int{2 * n}_t"
    a, b = (kernel.get(operand, kind) for operand in operands[1:])
    product = f"({double}){a} * ({double}){b}"
    if part == "wide":
        return kernel.put(operands[0], f"{kind[0]}{2 * n}", f"{product} + {plus}")
    if part == "hi":
        return kernel.put(operands[0], kind, f"(({product}) >> {n}) + {plus}")
    check_modifiers([part], "lo")
    return kernel.put(operands[0], kind, f"{product} + {plus}")


def divide(kernel: Kernel, modifiers: list[str], operands: list[str]) -> str:
    if is_float(modifiers[-1]):
        return of_floats(kernel, modifiers, operands, "{0} / {1}")
    (kind,) = modifiers
    a, b = (kernel.get(operand, kind) for operand in operands[1:])
    return kernel.put(operands[0], kind, f"{b} ? {a} / {b} : -1")


def remainder(kernel: Kernel, modifiers: list[str], operands: list[str]) -> str:
    (kind,) = modifiers
    a, b = (kernel.get(operand, kind) for operand in operands[1:])
    return kernel.put(operands[0], kind, f"{b} ? {a} % {b} : {a}")


def extreme(kernel: Kernel, modifiers: list[str], operands: list[str], *, function: str, symbol: str) -> str:
    kind = modifiers[-1]
    if is_float(kind):
        nan = int("NaN" in modifiers)
        return of_floats(kernel, modifiers, operands, f"{function}({{0}}, {{1}}, {nan})")
    check_modifiers(modifiers[:-1])
    a, b = (kernel.get(operand, kind) for operand in operands[1:])
    return kernel.put(operands[0], kind, f"{a} {symbol} {b} ? {a} : {b}")


# Comparisons

_SYMBOLS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_UNSIGNED = {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
_JOINED = {"and": "&", "or": "|", "xor": "^"}


def _compared(compare: str, floating: bool, x: str, y: str) -> str:
    if not floating:
        return f"({x} {(_SYMBOLS | _UNSIGNED)[compare]} {y})"
    unordered = f"({x} != {x} || {y} != {y})"
    if compare == "nan":
        return unordered
    if compare == "num":
        return f"(!{unordered})"
    if compare == "ne":  # C's is true of a NaN
        return f"({x} < {y} || {x} > {y})"
    if compare.endswith("u"):
        return f"({unordered} || {x} {_SYMBOLS[compare[:-1]]} {y})"
    return f"({x} {_SYMBOLS[compare]} {y})"


def set_predicate(kernel: Kernel, modifiers: list[str], operands: list[str]) -> str:
    compare, *others, kind = modifiers
    check_modifiers(others, "ftz", *_JOINED)
    joined = next((_JOINED[modifier] for modifier in others if modifier in _JOINED), None)
    to, a, b, *third = operands
    first, _, second = (part.strip() for part in to.partition("|"))
    if kind.endswith("x2"):  # a predicate for each half, the low one first
        if joined:
            raise UnsupportedError("a pair of comparisons, joined with a third")
        puts = (
            kernel.put(name, "pred", _compared(compare, True, *halves(kernel, kind[:-2], [a, b], shift)))
            for name, shift in ((first, 0), (second, 16))
        )
        return f"{{ {' '.join(puts)} }}"
    if is_float(kind):
        value = _compared(compare, True, *float_values(kernel, modifiers, [a, b], kind))
    else:
        kind = "u" + kind[1:] if kind[0] == "b" else kind
        value = _compared(compare, False, kernel.get(a, kind), kernel.get(b, kind))
    rest = f" {joined} {kernel.get(third[0], 'pred')}" if joined else ""
    code = f"int yes = {value}{rest}, no = !{value}{rest}; {kernel.put(first, 'pred', 'yes')}"
    return f"{{ {code}{kernel.put(second, 'pred', 'no') if second else ''} }}"


def select(kernel: Kernel, modifiers: list[str], operands: list[str]) -> str:
    to, a, b, predicate = operands
    value = f"{kernel.raw(predicate)} ? {kernel.raw(a)} : {kernel.raw(b)}"
    return kernel.put(to, f"u{bits_of(modifiers[-1])}", value)


INSTRUCTIONS = {
    "abs": drop_sign,
    "add": functools.partial(binary, symbol="+"),
    "cos": functools.partial(approximation, expression="cos({0})"),
    "div": divide,
    "ex2": functools.partial(approximation, expression="exp2({0})"),
    "fma": fma,
    "lg2": functools.partial(approximation, expression="log2({0})"),
    "mad": multiply_add,
    "max": functools.partial(extreme, function="greatest", symbol=">"),
    "min": functools.partial(extreme, function="least", symbol="<"),
    "mul": multiply,
    "neg": flip_sign,
    "rcp": functools.partial(approximation, expression="1 / {0}"),
    "rem": remainder,
    "rsqrt": functools.partial(approximation, expression="1 / sqrt({0})"),
    "selp": select,
    "setp": set_predicate,
    "sin": functools.partial(approximation, expression="sin({0})"),
    "sqrt": functools.partial(approximation, expression="sqrt({0})"),
    "sub": functools.partial(binary, symbol="-"),
    "tanh": functools.partial(approximation, expression="tanh({0})"),
}
